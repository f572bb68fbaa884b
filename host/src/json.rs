//! What a JSON value is, for the whole product: one that every reader of ours, both databases,
//! Rhai and browsers can hold. It knows no domain.
//!
//! A [`Json`] is well-formed (RFC 8259), nested at most [`DEPTH_MAX`] deep, has no half of a
//! surrogate pair in a string, and no number beyond what a double holds. It is checked once, where
//! somebody else's value enters, by [`Json::parse`] or [`check`].
//!
//! What a database has may have been written before that was checked. [`Json::read`] takes
//! whatever is there: it never fails, and answers what can be shown, delivered and corrected.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::ops::Range;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// How deep arrays and objects may be nested in a value.
pub const DEPTH_MAX: usize = 100;
/// How deep an event may be nested: a message or a value of the key-value store lies two deep in
/// its event.
pub const EVENT_DEPTH_MAX: usize = DEPTH_MAX + 2;
/// How deep what a handler is told may be nested: a dead letter's event has the event that failed
/// two deep. Readers of ours hold 127 (`serde_json`) or 108 (the Rhai guest).
pub const TOLD_DEPTH_MAX: usize = EVENT_DEPTH_MAX + 2;

/// The longest pointer that a refusal shows, in bytes.
const POINTER_BYTES_MAX: usize = 256;
/// Numbers whose whole part has at most so many digits, exponent included, are within a double's
/// range, whatever they are; others are looked at.
const PLAIN_DIGITS_MAX: i64 = 300;

/// A JSON value, as it was written.
#[derive(Debug, Clone)]
pub struct Json(Box<RawValue>);

impl Json {
    /// Take `text` if it is a value.
    ///
    /// # Errors
    /// [`NotJson`] says what is wrong, and where.
    pub fn parse(text: String) -> Result<Self, NotJson> {
        Self::parse_within(text, DEPTH_MAX)
    }

    /// The same, nested at most `depth_max` deep.
    ///
    /// # Errors
    /// [`NotJson`] says what is wrong, and where.
    pub fn parse_within(text: String, depth_max: usize) -> Result<Self, NotJson> {
        Scan::new(&text, depth_max).run()?;
        Self::checked(text)
    }

    /// The same for what `serde` took out of a larger text.
    ///
    /// # Errors
    /// [`NotJson`] says what is wrong, and where.
    pub fn of(raw: Box<RawValue>) -> Result<Self, NotJson> {
        Self::within(raw, DEPTH_MAX)
    }

    /// The same, nested at most `depth_max` deep.
    ///
    /// # Errors
    /// [`NotJson`] says what is wrong, and where.
    pub fn within(raw: Box<RawValue>, depth_max: usize) -> Result<Self, NotJson> {
        Scan::new(raw.get(), depth_max).run()?;
        Ok(Self(raw))
    }

    /// What a database has, whatever that is: as it stands if it is a value nested at most
    /// `depth_max` deep, and else [repaired](Repaired).
    pub fn read(text: &str, depth_max: usize) -> Read {
        match readable(text, depth_max) {
            Cow::Borrowed(text) => Read {
                value: Self::checked(text.to_owned()).unwrap_or_else(|_| Self::text(text)),
                repaired: false,
            },
            Cow::Owned(repaired) => Read {
                value: Self::checked(repaired).unwrap_or_else(|_| Self::text(text)),
                repaired: true,
            },
        }
    }

    /// A text, as a JSON string.
    pub fn text(text: &str) -> Self {
        Self::written(text)
    }

    /// A value of our own types, which are always JSON; if one ever is not, what is wrong with it
    /// stands in its place.
    pub fn written(value: &(impl Serialize + ?Sized)) -> Self {
        let written = serde_json::value::to_raw_value(value);
        let written = written.or_else(|error| serde_json::value::to_raw_value(&error.to_string()));
        Self(written.unwrap_or_else(|_| RawValue::NULL.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// The value, for what keeps it so.
    pub fn into_raw(self) -> Box<RawValue> {
        self.0
    }

    fn checked(text: String) -> Result<Self, NotJson> {
        RawValue::from_string(text)
            .map(Self)
            .map_err(|error| NotJson {
                fault: Fault::Malformed,
                pointer: String::new(),
                line: error.line(),
                column: error.column(),
                what: error.to_string(),
            })
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl From<Json> for String {
    fn from(json: Json) -> Self {
        Box::<str>::from(json.0).into()
    }
}

/// A value that a database had.
#[derive(Debug, Clone)]
pub struct Read {
    /// The value.
    pub value: Json,
    /// Whether it is not as it stands there.
    pub repaired: bool,
}

/// What a stored text looks like to whoever reads it: itself, if it is a value nested at most
/// `depth_max` deep. Else it is repaired: half of a surrogate pair becomes U+FFFD, a number beyond
/// the range a string of its characters, what is nested too deep a string of its JSON, and what
/// is no JSON at all becomes one string.
pub fn readable(text: &str, depth_max: usize) -> Cow<'_, str> {
    let mut scan = Scan::new(text, depth_max);
    scan.repairs = Some(Vec::new());
    if scan.run().is_err() {
        return Cow::Owned(Json::text(text).into());
    }
    let repairs = scan.repairs.unwrap_or_default();
    if repairs.is_empty() {
        return Cow::Borrowed(text);
    }
    let mut repaired = String::with_capacity(text.len());
    let mut done = 0;
    for (at, fault) in repairs {
        let (Some(before), Some(odd)) = (text.get(done..at.start), text.get(at.clone())) else {
            continue;
        };
        repaired.push_str(before);
        match fault {
            Fault::LoneSurrogate => repaired.push_str("\\ufffd"),
            _ => repaired.push_str(Json::text(odd).as_str()),
        }
        done = at.end;
    }
    repaired.push_str(text.get(done..).unwrap_or_default());
    Cow::Owned(repaired)
}

/// Whether a media type (without parameters) says that a body is JSON.
pub fn is_media_type(essence: &str) -> bool {
    essence.eq_ignore_ascii_case("application/json")
        || essence.to_ascii_lowercase().ends_with("+json")
}

/// Whether a `content-type` says that a body is JSON.
pub fn is_content_type(content_type: &str) -> bool {
    is_media_type(content_type.split(';').next().unwrap_or_default().trim())
}

/// Check a text that is kept as it is.
///
/// # Errors
/// [`NotJson`] says what is wrong, and where.
pub fn check(text: &str) -> Result<(), NotJson> {
    Scan::new(text, DEPTH_MAX).run()
}

/// Check a text that came as bytes.
///
/// # Errors
/// [`NotJson`] says what is wrong, and where.
pub fn check_bytes(bytes: &[u8]) -> Result<(), NotJson> {
    match std::str::from_utf8(bytes) {
        Ok(text) => check(text),
        Err(error) => {
            let (line, column) = place(bytes, error.valid_up_to());
            Err(NotJson {
                fault: Fault::Malformed,
                pointer: String::new(),
                line,
                column,
                what: "the text is not UTF-8".to_owned(),
            })
        }
    }
}

/// What keeps a text from being a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is no JSON.
    Malformed,
    /// It is nested too deep.
    TooDeep,
    /// A string or a name has half of a surrogate pair.
    LoneSurrogate,
    /// A number is beyond what a double holds.
    NumberRange,
}

/// Why a text is no JSON value. Its text says what, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct NotJson {
    /// What is wrong.
    pub fault: Fault,
    /// The place, as a JSON pointer (RFC 6901); a very long one is cut.
    pub pointer: String,
    /// The line of the place, from 1.
    pub line: usize,
    /// Its column, from 1, in bytes.
    pub column: usize,
    /// What is wrong there, and what to do.
    pub what: String,
}

impl NotJson {
    /// Whether it is no JSON at all, not only none of ours.
    pub fn is_malformed(&self) -> bool {
        self.fault == Fault::Malformed
    }
}

impl fmt::Display for NotJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            pointer,
            line,
            column,
            what,
            ..
        } = self;
        if self.is_malformed() {
            f.write_str("not JSON ")?;
        }
        match pointer.is_empty() {
            true => write!(f, "at line {line}, column {column}: {what}"),
            false => write!(f, "at {pointer} (line {line}, column {column}): {what}"),
        }
    }
}

/// An array or an object that is open where the scan stands.
enum Open {
    /// With the number of its item.
    Array(usize),
    /// With where the name of its member stands, without quotes.
    Object(Range<usize>),
}

/// One pass over a text, from its start to its end. It keeps nothing but what is open.
struct Scan<'t> {
    text: &'t str,
    bytes: &'t [u8],
    at: usize,
    open: Vec<Open>,
    depth_max: usize,
    /// Where something is to be repaired, in order; without, the first fault ends the scan.
    repairs: Option<Vec<(Range<usize>, Fault)>>,
}

impl<'t> Scan<'t> {
    fn new(text: &'t str, depth_max: usize) -> Self {
        Self {
            text,
            bytes: text.as_bytes(),
            at: 0,
            open: Vec::new(),
            depth_max,
            repairs: None,
        }
    }

    fn run(&mut self) -> Result<(), NotJson> {
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
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        let mut exponent = 0;
        if matches!(self.peek(), Some(b'e' | b'E')) {
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
fn place(bytes: &[u8], at: usize) -> (usize, usize) {
    let before = bytes.get(..at).unwrap_or(bytes);
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let begin = before.iter().rposition(|byte| *byte == b'\n');
    (line, before.len() - begin.map_or(0, |begin| begin + 1) + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn refused(text: &str) -> NotJson {
        check(text).expect_err(text)
    }

    fn nested(depth: usize) -> String {
        format!("{}{}", "[".repeat(depth), "]".repeat(depth))
    }

    #[test]
    fn what_every_reader_holds_is_a_value() {
        for fine in [
            "null",
            " \t\r\n{ \"a\" : [ 1 , -0.5e+10, true , false, null , \"\" ] , \"\" : {} } ",
            r#""\"\\\/\b\f\n\r\t\u0000\u00e9\ud83d\ude00é😀""#,
            "1e308",
            "-1.7976931348623157e308",
            "1e-999",
            "0e999999999999999999999",
            "123456789012345678901234567890",
            &nested(DEPTH_MAX),
        ] {
            check(fine).unwrap_or_else(|error| panic!("{fine}: {error}"));
            assert_eq!(readable(fine, DEPTH_MAX), fine);
        }
        assert!(check(&format!("0.{}", "1".repeat(10_000))).is_ok());
    }

    #[test]
    fn what_some_reader_does_not_hold_is_refused_with_its_place() {
        for (text, fault, says) in [
            (
                r#"{"a":["\ud83d"]}"#,
                Fault::LoneSurrogate,
                "at /a/0 (line 1, column 8): \\ud83d is half of a surrogate pair; write whole characters",
            ),
            (
                "{\"a\":\n [1, \"x\\uDE00\"]}",
                Fault::LoneSurrogate,
                "at /a/1 (line 2, column 8): \\ude00 is half",
            ),
            (r#"["\ud83d\ud83d\ude00"]"#, Fault::LoneSurrogate, "at /0 "),
            (r#"["\ud83dA"]"#, Fault::LoneSurrogate, "at /0 "),
            (
                r#"{"\ud83d":1}"#,
                Fault::LoneSurrogate,
                "at line 1, column 3: ",
            ),
            (
                r#"{"a/b~":{"x":1e999}}"#,
                Fault::NumberRange,
                "at /a~1b~0/x (line 1, column 14): the number 1e999 is beyond what a double holds",
            ),
            ("-1e309", Fault::NumberRange, "at line 1, column 1: "),
            (
                &"9".repeat(400),
                Fault::NumberRange,
                "at line 1, column 1: ",
            ),
            (&nested(101), Fault::TooDeep, "nested more than 100 deep"),
        ] {
            let error = refused(text);
            assert_eq!(
                (error.fault, error.is_malformed()),
                (fault, false),
                "{text}"
            );
            assert!(error.to_string().contains(says), "{text}: {error}");
        }
        let long = format!(
            "{{\"{}\":{{\"{}\":1e999}}}}",
            "é".repeat(1000),
            "b".repeat(1000)
        );
        assert!(refused(&long).pointer.len() < 300);
    }

    #[test]
    fn what_is_no_json_is_refused_with_its_place() {
        for (text, says) in [
            (
                "",
                "not JSON at line 1, column 1: it ends where a value is missing",
            ),
            ("{\"a\": ", "not JSON at /a (line 1, column 7): it ends"),
            ("[1 2]", "at /0 (line 1, column 4): `,` or `]` is missing"),
            (
                "{\"a\":1,}",
                "at line 1, column 8: the name of a member is missing",
            ),
            ("{\"a\" 1}", "at /a (line 1, column 6): `:` is missing"),
            ("[01]", "`,` or `]` is missing"),
            ("[1.]", "a digit is missing"),
            ("[-]", "a digit is missing"),
            ("[1e]", "a digit is missing"),
            ("nul", "a value is missing"),
            ("NaN", "a value is missing"),
            ("[1]x", "something after the value"),
            ("\"a\nb\"", "control character"),
            ("\"\\x\"", "is followed by none of"),
            ("\"\\u12g4\"", "four hexadecimal digits"),
            ("\"\\ud83d\\u12\"", "half of a surrogate pair"),
            ("\"abc", "does not end"),
            ("\u{feff}1", "a value is missing"),
        ] {
            let error = refused(text);
            assert!(error.to_string().contains(says), "{text}: {error}");
        }
        let error = check_bytes(b"\n\"\xff\"").unwrap_err();
        assert_eq!(
            error.to_string(),
            "not JSON at line 2, column 2: the text is not UTF-8"
        );
    }

    #[test]
    fn what_is_stored_is_repaired_where_it_must_be() {
        for (stored, read) in [
            (r#"{"a":"x\ud83dy"}"#, r#"{"a":"x\ufffdy"}"#),
            (
                r#"{"\ude00":"\ud83d\ud83d\ude00"}"#,
                r#"{"\ufffd":"\ufffd\ud83d\ude00"}"#,
            ),
            (r#"[1e999,-1e999,1]"#, r#"["1e999","-1e999",1]"#),
            ("nonsense", r#""nonsense""#),
            ("", r#""""#),
            (r#"{"a":"\ud83d""#, r#""{\"a\":\"\\ud83d\"""#),
        ] {
            assert_eq!(readable(stored, DEPTH_MAX), read);
        }
        let deep = readable(&nested(200), DEPTH_MAX).into_owned();
        let inside = format!("\"{}\"", nested(100));
        assert_eq!(
            deep,
            format!("{}{inside}{}", "[".repeat(100), "]".repeat(100))
        );
        let cut = format!("{}{}", "[".repeat(200), "]".repeat(199));
        assert_eq!(readable(&cut, DEPTH_MAX), format!("\"{cut}\""));
        let huge = nested(1_000_000);
        assert!(check(&readable(&huge, DEPTH_MAX)).is_ok());
    }

    /// A text that is JSON, or nearly.
    fn nearly_json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            any::<i64>().prop_map(|n| n.to_string()),
            any::<f64>().prop_map(|n| n.to_string()),
            "-?[0-9]{1,3}(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?",
            "[0-9]{290,330}",
            ".{0,12}".prop_map(|text| Value::from(text).to_string()),
            "\"(\\\\u[dD][89abcAB][0-9a-f]{2}|\\\\u00[0-9a-f]{2}|[a-z\\\\\"]){0,4}\"",
            ".{0,3}",
        ];
        leaf.prop_recursive(5, 60, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5)
                    .prop_map(|items| format!("[{}]", items.join(" ,"))),
                prop::collection::vec(("[a-z~/]{0,3}", inner.clone()), 0..4).prop_map(|members| {
                    let members = members.iter();
                    let members = members.map(|(name, value)| format!("\"{name}\" : {value}"));
                    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
                }),
                (inner, 0_usize..130).prop_map(|(inner, depth)| format!(
                    "{}{inner}{}",
                    "[".repeat(depth),
                    "]".repeat(depth)
                )),
            ]
        })
    }

    fn depth(value: &Value) -> usize {
        match value {
            Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
            Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
            _ => 0,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn what_is_accepted_every_reader_reads(text in nearly_json()) {
            match check(&text) {
                Ok(()) => {
                    let value = serde_json::from_str::<Value>(&text);
                    prop_assert!(value.is_ok(), "{text}: {value:?}");
                    prop_assert!(serde_json::from_str::<&RawValue>(&text).is_ok());
                    prop_assert_eq!(readable(&text, DEPTH_MAX), text.as_str());
                }
                // And what is refused is either no JSON, or none that serde_json holds, or deep.
                Err(error) => {
                    let value = serde_json::from_str::<Value>(&text);
                    let is_held = value.as_ref().is_ok_and(|value| depth(value) <= DEPTH_MAX);
                    prop_assert!(!is_held, "{text}: {error}");
                    let is_json = serde_json::from_str::<&RawValue>(&text).is_ok();
                    // The first fault counts: what follows may be no JSON.
                    prop_assert!(!is_json || !error.is_malformed(), "{text}: {error}");
                }
            }
        }

        #[test]
        fn whatever_is_stored_can_be_read(text in nearly_json(), limit in 1..DEPTH_MAX) {
            let read = readable(&text, limit);
            prop_assert!(Scan::new(&read, limit).run().is_ok(), "{read}");
            prop_assert_eq!(readable(&read, limit), &*read, "once is enough");
        }

        #[test]
        fn nothing_panics(text in ".{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..50)) {
            let _ = (check(&text), check_bytes(&bytes), readable(&text, 3));
        }

        #[test]
        fn generated_json_is_accepted(value in value()) {
            prop_assert!(check(&value.to_string()).is_ok());
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(|f| serde_json::json!(f)),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(8, 100, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }
}
