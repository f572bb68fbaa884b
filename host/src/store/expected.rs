//! Changes that are only made to what their maker has read: ETags, and what `If-Match` asks of
//! them (RFC 9110, 8.8.3 and 13.1.1).

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::StoreError;

/// How much of the hash is told: nobody can make two resources that share so much.
const HASH_BYTES: usize = 16;

/// A strong validator: it is another one after every change of what it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ETag(String);

impl ETag {
    /// That of a resource. What changes by itself, a counter say, must be no part of it.
    pub fn of(resource: &impl Serialize) -> Self {
        let text = serde_json::to_vec(resource).expect("what the API answers is JSON");
        let hash = Sha256::digest(text);
        Self(format!(
            "\"{}\"",
            URL_SAFE_NO_PAD.encode(&hash[..HASH_BYTES])
        ))
    }

    /// As a header has it: in quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// In which state something must be, so that it is changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Expected {
    /// In any, and it need not even be there.
    #[default]
    Anything,
    /// It must be there.
    Something,
    /// It must have one of these tags.
    OneOf(Vec<String>),
}

impl Expected {
    /// Refuse a change of what is not as expected. `current` is read in the transaction that
    /// changes it, and nobody else can change it until that ends.
    ///
    /// # Errors
    /// [`StoreError::Changed`].
    pub fn check<T: Serialize>(&self, current: Option<&T>) -> Result<(), StoreError> {
        let fits = match (self, current) {
            (Self::Anything, _) | (Self::Something, Some(_)) => true,
            (Self::OneOf(tags), Some(current)) => {
                let current = ETag::of(current);
                tags.iter().any(|tag| tag == current.as_str())
            }
            (_, None) => false,
        };
        match fits {
            true => Ok(()),
            false => Err(StoreError::Changed),
        }
    }
}

/// The value of an `If-Match`. A weak tag in it fits nothing.
impl FromStr for Expected {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim() == "*" {
            return Ok(Self::Something);
        }
        let tags =
            entity_tags(text).ok_or("this is `*`, or ETags as they were answered, in quotes")?;
        Ok(Self::OneOf(tags.into_iter().map(str::to_owned).collect()))
    }
}

/// The tags of a list like `"a", W/"b"`, as they stand; none where it is no such list.
pub fn entity_tags(text: &str) -> Option<Vec<&str>> {
    let mut tags = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let quoted = rest.strip_prefix("W/").unwrap_or(rest);
        let (tag, after) = quoted.strip_prefix('"')?.split_once('"')?;
        if tag.contains(|c: char| c == ' ' || c.is_control()) {
            return None;
        }
        tags.push(&rest[..rest.len() - after.len()]);
        rest = after.trim_start();
        if !rest.is_empty() {
            rest = rest.strip_prefix(',')?.trim_start();
        }
    }
    (!tags.is_empty()).then_some(tags)
}

impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_read_is_as_expected() {
        let tag = ETag::of(&"read");
        let expected: Expected = format!("\"other\", {tag}").parse().unwrap();
        assert!(expected.check(Some(&"read")).is_ok());
        assert!(expected.check(Some(&"changed")).is_err());
        assert!(expected.check::<&str>(None).is_err());
        let weak: Expected = format!("W/{tag}").parse().unwrap();
        assert!(weak.check(Some(&"read")).is_err());
        let there: Expected = "*".parse().unwrap();
        assert!(there.check(Some(&"read")).is_ok());
        assert!(there.check::<&str>(None).is_err());
        assert!(Expected::Anything.check::<&str>(None).is_ok());
    }

    #[test]
    fn a_list_of_tags_is_read_or_refused_whole() {
        assert_eq!(
            entity_tags(" \"a\" ,W/\"b,c\""),
            Some(vec!["\"a\"", "W/\"b,c\""])
        );
        for odd in [
            "",
            "a",
            "\"a",
            "a\"",
            "\"a\" \"b\"",
            "\"a b\"",
            "*, \"a\"",
            "w/\"a\"",
        ] {
            assert_eq!(entity_tags(odd), None, "{odd}");
        }
    }
}
