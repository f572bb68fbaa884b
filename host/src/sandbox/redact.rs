//! Keeps the secrets that an execution read out of what is kept of it.

use std::borrow::Cow;

use serde_json::Value;

use super::Outcome;
use crate::json;

/// What stands in the place of a secret.
const REDACTED: &str = "***";
/// Shorter ones would take harmless text with them.
const BYTES_MIN: usize = 6;

/// The secrets that an execution read.
#[derive(Default)]
pub(super) struct Redaction(Vec<String>);

impl Redaction {
    /// A value was read.
    pub(super) fn add(&mut self, value: &str) {
        if value.len() < BYTES_MIN || self.0.iter().any(|known| known == value) {
            return;
        }
        // Also as it is written between quotes, in JSON that a script made a text of, or as scripts
        // print it.
        let quoted = [Value::from(value).to_string(), format!("{value:?}")];
        let escaped = quoted.map(|text| text[1..text.len() - 1].to_owned());
        for form in std::iter::once(value.to_owned()).chain(escaped) {
            if !self.0.contains(&form) {
                self.0.push(form);
            }
        }
        // A secret that is a part of another must not leave the rest of it.
        self.0.sort_by_key(|value| std::cmp::Reverse(value.len()));
    }

    /// Take them out of what was thrown; the response is the script's own.
    pub(super) fn outcome(&self, outcome: &mut Outcome) {
        match outcome {
            Outcome::Threw(thrown) => self.text(&mut thrown.message),
            Outcome::InvalidResponse(problem) => self.text(problem),
            _ => {}
        }
    }

    /// Take them out of the strings and names of a JSON text; what is none is taken as plain text.
    /// The rest stays as it is written.
    pub(super) fn json(&self, mut text: String) -> String {
        if self.0.is_empty() {
            return text;
        }
        if json::check(&text).is_err() {
            self.text(&mut text);
            return text;
        }
        let mut redacted = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some(start) = rest.find('"') {
            let (before, from) = rest.split_at(start);
            let (literal, after) = from.split_at(string_bytes(from));
            redacted.push_str(before);
            redacted.push_str(&self.literal(literal));
            rest = after;
        }
        redacted.push_str(rest);
        redacted
    }

    /// A string of JSON without them.
    fn literal<'l>(&self, literal: &'l str) -> Cow<'l, str> {
        let Ok(written) = serde_json::from_str::<String>(literal) else {
            return Cow::Borrowed(literal);
        };
        let mut text = written.clone();
        self.text(&mut text);
        match text == written {
            true => Cow::Borrowed(literal),
            false => Cow::Owned(Value::from(text).to_string()),
        }
    }

    /// Take them out of a text.
    pub(super) fn text(&self, text: &mut String) {
        for secret in &self.0 {
            if text.contains(secret) {
                *text = text.replace(secret, REDACTED);
            }
        }
    }
}

/// How long the string of JSON is that `text` begins with, its quotes included.
fn string_bytes(text: &str) -> usize {
    let mut is_escaped = false;
    let end = text.bytes().skip(1).position(|byte| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    });
    end.map_or(text.len(), |end| end + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_of_a_secret_is_left() {
        let mut redaction = Redaction::default();
        for value in ["hunter2", "hunter2-and-more", "abc", "hunter2"] {
            redaction.add(value);
        }
        let mut text = "hunter2-and-more, hunter2, abc, hunter".to_owned();
        redaction.text(&mut text);
        assert_eq!(text, "***, ***, abc, hunter");
        redaction.add("a \"quoted\" one");
        let json = r#"{"a":["x hunter2",1],"b":{"c":"a \"quoted\" one"}}"#;
        assert_eq!(
            redaction.json(json.into()),
            r#"{"a":["x ***",1],"b":{"c":"***"}}"#
        );
        assert_eq!(redaction.json("no json, hunter2".into()), "no json, ***");
        let json = r#"{"hunter2":[18446744073709551617,1.10,"\"\\"],"a\"b":"x\\"}"#;
        assert_eq!(
            redaction.json(json.into()),
            r#"{"***":[18446744073709551617,1.10,"\"\\"],"a\"b":"x\\"}"#
        );
        redaction.add("-----BEGIN KEY-----\nabc\n");
        let mut text = r#"{"key":"-----BEGIN KEY-----\nabc\n"} and a \"quoted\" one"#.to_owned();
        redaction.text(&mut text);
        assert_eq!(text, r#"{"key":"***"} and ***"#);
    }
}
