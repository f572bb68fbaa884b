//! One pass over a text that says whether it is a value, or where it is to be repaired.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::ops::Range;

use serde_json::value::RawValue;

use super::{Fault, NotJson};

/// The longest pointer that a refusal shows, in bytes.
const POINTER_BYTES_MAX: usize = 256;
/// Numbers whose whole part has at most so many digits, exponent included, are within a double's
/// range, whatever they are; others are looked at.
const PLAIN_DIGITS_MAX: i64 = 300;
/// The largest integer that every reader holds whole: that of a decimal of 96 bits, as scripts have.
const INTEGER_MAX: &str = "79228162514264337593543950335";

/// An array or an object that is open where the scan stands.
enum Open {
    /// With the number of its item.
    Array(usize),
    /// With where the name of its member stands, without quotes.
    Object(Range<usize>),
}

/// One pass over a text, from its start to its end. It keeps nothing but what is open.
pub(super) struct Scan<'t> {
    text: &'t str,
    bytes: &'t [u8],
    at: usize,
    open: Vec<Open>,
    depth_max: usize,
    /// Where something is to be repaired, in order; without, the first fault ends the scan.
    pub(super) repairs: Option<Vec<(Range<usize>, Fault)>>,
}

impl<'t> Scan<'t> {
    pub(super) fn new(text: &'t str, depth_max: usize) -> Self {
        Self {
            text,
            bytes: text.as_bytes(),
            at: 0,
            open: Vec::new(),
            depth_max,
            repairs: None,
        }
    }

    pub(super) fn run(&mut self) -> Result<(), NotJson> {
        loop {
            if self.value()? {
                continue;
            }
            // After a value: the next item or member, or the end of what is open.
            loop {
                self.space();
                let next = self.peek();
                let Some(open) = self.open.last_mut() else {
                    return match next {
                        None => Ok(()),
                        Some(_) => Err(self.malformed("there is something after the value")),
                    };
                };
                match (open, next) {
                    (Open::Array(item), Some(b',')) => {
                        *item += 1;
                        self.at += 1;
                        break;
                    }
                    (Open::Object(_), Some(b',')) => {
                        self.at += 1;
                        self.name()?;
                        break;
                    }
                    (Open::Array(_), Some(b']')) | (Open::Object(_), Some(b'}')) => {
                        self.at += 1;
                        self.open.pop();
                    }
                    (Open::Array(_), _) => return Err(self.malformed("`,` or `]` is missing")),
                    (Open::Object(_), _) => return Err(self.malformed("`,` or `}` is missing")),
                }
            }
        }
    }

    /// Read a value, or the beginning of an array or object with something in it. Says whether
    /// its first value is to be read next.
    fn value(&mut self) -> Result<bool, NotJson> {
        self.space();
        match self.peek() {
            Some(b'[' | b'{') if self.open.len() >= self.depth_max => self.too_deep()?,
            Some(b'[') => {
                self.at += 1;
                self.space();
                if self.peek() != Some(b']') {
                    self.open.push(Open::Array(0));
                    return Ok(true);
                }
                self.at += 1;
            }
            Some(b'{') => {
                self.at += 1;
                self.space();
                if self.peek() != Some(b'}') {
                    self.open.push(Open::Object(0..0));
                    self.name()?;
                    return Ok(true);
                }
                self.at += 1;
            }
            Some(b'"') => self.string().map(|_| ())?,
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b't') => self.word("true")?,
            Some(b'f') => self.word("false")?,
            Some(b'n') => self.word("null")?,
            None => return Err(self.malformed("it ends where a value is missing")),
            Some(_) => return Err(self.malformed("a value is missing")),
        }
        Ok(false)
    }

    /// Read the name of a member and the colon after it.
    fn name(&mut self) -> Result<(), NotJson> {
        self.space();
        // Until the name is read, the place is the object.
        if let Some(Open::Object(name)) = self.open.last_mut() {
            *name = 0..0;
        }
        if self.peek() != Some(b'"') {
            return Err(self.malformed("the name of a member is missing, in double quotes"));
        }
        let read = self.string()?;
        if let Some(Open::Object(name)) = self.open.last_mut() {
            *name = read;
        }
        self.space();
        if self.peek() != Some(b':') {
            return Err(self.malformed("`:` is missing"));
        }
        self.at += 1;
        Ok(())
    }

    /// Read a string; answers where it stands, without its quotes.
    fn string(&mut self) -> Result<Range<usize>, NotJson> {
        let start = self.at + 1;
        self.at = start;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(start..self.at - 1);
                }
                Some(b'\\') => self.escape()?,
                Some(0..=0x1f) => {
                    return Err(self.malformed("a string has a control character; escape it"));
                }
                Some(_) => self.at += 1,
                None => return Err(self.malformed("a string does not end")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), NotJson> {
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 2;
                Ok(())
            }
            Some(b'u') => {
                let Some(unit) = self.unit(self.at) else {
                    return Err(self.malformed("`\\u` is followed by four hexadecimal digits"));
                };
                let is_pair = matches!(unit, 0xd800..=0xdbff)
                    && matches!(self.unit(self.at + 6), Some(0xdc00..=0xdfff));
                if is_pair {
                    self.at += 12;
                    return Ok(());
                }
                if matches!(unit, 0xd800..=0xdfff) {
                    let what = format!(
                        "\\u{unit:04x} is half of a surrogate pair; write whole characters"
                    );
                    self.fault(self.at..self.at + 6, Fault::LoneSurrogate, what)?;
                }
                self.at += 6;
                Ok(())
            }
            _ => Err(self.malformed("`\\` is followed by none of \"\\/bfnrtu")),
        }
    }

    /// The code unit that the escape at `at` says.
    fn unit(&self, at: usize) -> Option<u16> {
        let escape = self.bytes.get(at..at + 6)?;
        let digits = escape.strip_prefix(b"\\u")?;
        digits.iter().try_fold(0, |unit, digit| {
            let digit = char::from(*digit).to_digit(16)?;
            Some((unit << 4) | u16::try_from(digit).ok()?)
        })
    }

    fn number(&mut self) -> Result<(), NotJson> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let whole = match self.peek() {
            Some(b'0') => {
                self.at += 1;
                1
            }
            _ => self.digits()?,
        };
        let mut is_integer = true;
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
            is_integer = false;
        }
        let mut exponent = 0;
        if matches!(self.peek(), Some(b'e' | b'E')) {
            is_integer = false;
            self.at += 1;
            let is_negative = self.peek() == Some(b'-');
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            let digits = self.at;
            self.digits()?;
            let digits = self.text.get(digits..self.at).unwrap_or_default();
            exponent = match is_negative {
                true => 0,
                false => digits.parse().unwrap_or(i64::MAX),
            };
        }
        let written = self.text.get(start..self.at).unwrap_or_default();
        let digits = written.trim_start_matches('-');
        let is_long = digits.len() > INTEGER_MAX.len()
            || digits.len() == INTEGER_MAX.len() && digits > INTEGER_MAX;
        if is_integer && is_long {
            let cut = written.get(..40).unwrap_or(written);
            let what = format!(
                "the integer {cut} is beyond what every reader holds (±{INTEGER_MAX}); write it as a \
                 string, or with an exponent"
            );
            return self.fault(start..self.at, Fault::NumberRange, what);
        }
        let is_plain = exponent.saturating_add(whole) <= PLAIN_DIGITS_MAX;
        if !is_plain && !is_double(self.text.get(start..self.at).unwrap_or_default()) {
            let cut = self.text.get(start..self.at.min(start + 40));
            let what = format!(
                "the number {} is beyond what a double holds (±1.8e308); write it as a string",
                cut.unwrap_or_default()
            );
            self.fault(start..self.at, Fault::NumberRange, what)?;
        }
        Ok(())
    }

    /// Read digits; answers how many.
    fn digits(&mut self) -> Result<i64, NotJson> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        match self.at - start {
            0 => Err(self.malformed("a digit is missing in a number")),
            count => Ok(i64::try_from(count).unwrap_or(i64::MAX)),
        }
    }

    fn word(&mut self, word: &str) -> Result<(), NotJson> {
        match self.bytes[self.at..].starts_with(word.as_bytes()) {
            true => {
                self.at += word.len();
                Ok(())
            }
            false => Err(self.malformed("a value is missing")),
        }
    }

    /// An array or object begins that is nested too deep: to repair it, skip it.
    fn too_deep(&mut self) -> Result<(), NotJson> {
        let what = format!(
            "nested more than {} deep; keep what is inside in a string, or flatten it",
            self.depth_max
        );
        let start = self.at;
        self.fault(start..start, Fault::TooDeep, what)?;
        // It takes no stack for what it ignores.
        let rest = self.text.get(start..).unwrap_or_default();
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<&RawValue>();
        if !matches!(values.next(), Some(Ok(_))) {
            return Err(self.malformed("what is nested deep does not end, or is not JSON"));
        }
        self.at = start + values.byte_offset();
        if let Some((skipped, _)) = self.repairs.as_mut().and_then(|repairs| repairs.last_mut()) {
            skipped.end = self.at;
        }
        Ok(())
    }

    fn fault(&mut self, at: Range<usize>, fault: Fault, what: String) -> Result<(), NotJson> {
        match &mut self.repairs {
            Some(repairs) => {
                repairs.push((at, fault));
                Ok(())
            }
            None => Err(self.refused(at.start, fault, what)),
        }
    }

    fn malformed(&self, what: &str) -> NotJson {
        self.refused(self.at, Fault::Malformed, what.to_owned())
    }

    fn refused(&self, at: usize, fault: Fault, what: String) -> NotJson {
        let (line, column) = place(self.bytes, at);
        NotJson {
            fault,
            pointer: self.pointer(),
            line,
            column,
            what,
        }
    }

    /// Where the scan stands.
    fn pointer(&self) -> String {
        let mut pointer = String::new();
        for open in &self.open {
            match open {
                Open::Array(item) => {
                    // Writing to a string cannot fail.
                    let _ = write!(pointer, "/{item}");
                }
                Open::Object(name) if name.is_empty() && name.start == 0 => {}
                Open::Object(name) => {
                    let name = self.text.get(name.clone()).unwrap_or_default();
                    let name = shown_name(name);
                    pointer.push('/');
                    pointer.push_str(&name.replace('~', "~0").replace('/', "~1"));
                }
            }
            if pointer.len() > POINTER_BYTES_MAX {
                pointer.truncate(pointer.floor_char_boundary(POINTER_BYTES_MAX));
                pointer.push('…');
                break;
            }
        }
        pointer
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }
}

/// A member's name as it stands between its quotes, decoded where that is short work.
fn shown_name(name: &str) -> Cow<'_, str> {
    if name.len() > POINTER_BYTES_MAX {
        return Cow::Borrowed(&name[..name.floor_char_boundary(POINTER_BYTES_MAX)]);
    }
    if !name.contains('\\') {
        return Cow::Borrowed(name);
    }
    let decoded = serde_json::from_str(&format!("\"{name}\""));
    decoded.map_or(Cow::Borrowed(name), Cow::Owned)
}

/// Whether every reader takes a number of these characters for a finite one.
fn is_double(number: &str) -> bool {
    number.parse::<f64>().is_ok_and(f64::is_finite) && serde_json::from_str::<f64>(number).is_ok()
}

/// Line and column of a byte, from 1.
pub(super) fn place(bytes: &[u8], at: usize) -> (usize, usize) {
    let before = bytes.get(..at).unwrap_or(bytes);
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let begin = before.iter().rposition(|byte| *byte == b'\n');
    (line, before.len() - begin.map_or(0, |begin| begin + 1) + 1)
}
