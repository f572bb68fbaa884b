//! What a JSON value is, for the whole product: one that every reader of ours, both databases,
//! Rhai and browsers can hold. It knows no domain.
//!
//! A [`Json`] is well-formed (RFC 8259), nested at most [`DEPTH_MAX`] deep, has no half of a
//! surrogate pair in a string, no number beyond what a double holds and no integer beyond what a
//! decimal of 96 bits does. It is checked once, where
//! somebody else's value enters, by [`Json::parse`] or [`check`].
//!
//! What a database has may have been written before that was checked. [`Json::read`] takes
//! whatever is there: it never fails, and answers what can be shown, delivered and corrected.

mod scan;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use scan::{Scan, place};

/// How deep arrays and objects may be nested in a value.
pub const DEPTH_MAX: usize = 100;
/// How deep an event may be nested: a message or a value of the key-value store lies two deep in
/// its event.
pub const EVENT_DEPTH_MAX: usize = DEPTH_MAX + 2;
/// How deep what a handler is told may be nested: a dead letter's event has the event that failed
/// two deep. Readers of ours hold 127 (`serde_json`) or 108 (the Rhai guest).
pub const TOLD_DEPTH_MAX: usize = EVENT_DEPTH_MAX + 2;

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

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Self::of(raw).map_err(D::Error::custom)
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

/// The part of a JSON text that a pointer (RFC 6901) leads to, as it is written there.
pub fn pointed_at<'t>(text: &'t str, pointer: &str) -> Option<&'t str> {
    let mut tokens = pointer.split('/');
    // The whole text, or what follows the first slash.
    if tokens.next() != Some("") {
        return None;
    }
    let mut here: &'t RawValue = serde_json::from_str(text).ok()?;
    for token in tokens {
        let token = token.replace("~1", "/").replace("~0", "~");
        here = match here.get().as_bytes().first() {
            Some(b'{') => {
                let members: HashMap<Cow<'t, str>, &'t RawValue> =
                    serde_json::from_str(here.get()).ok()?;
                members.get(token.as_str()).copied()?
            }
            Some(b'[') => {
                let items: Vec<&'t RawValue> = serde_json::from_str(here.get()).ok()?;
                items.get(token.parse::<usize>().ok()?).copied()?
            }
            _ => return None,
        };
    }
    Some(here.get())
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
    /// A number is beyond what every reader holds.
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
