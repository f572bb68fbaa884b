//! Keeps the secrets that an execution read out of what is kept of it.

use serde_json::Value;

use super::Outcome;

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
        let known = self.0.iter().any(|known| known == value);
        if value.len() >= BYTES_MIN && !known {
            self.0.push(value.to_owned());
            // A secret that is a part of another must not leave the rest of it.
            self.0.sort_by_key(|value| std::cmp::Reverse(value.len()));
        }
    }

    /// Take them out of what was thrown; the response is the script's own.
    pub(super) fn outcome(&self, outcome: &mut Outcome) {
        match outcome {
            Outcome::Threw(thrown) => self.text(&mut thrown.message),
            Outcome::InvalidResponse(problem) => self.text(problem),
            _ => {}
        }
    }

    /// Take them out of a JSON text, where they may be escaped; what is none is taken as plain text.
    pub(super) fn json(&self, mut text: String) -> String {
        if self.0.is_empty() {
            return text;
        }
        match serde_json::from_str(&text) {
            Ok(mut value) => {
                self.value(&mut value);
                value.to_string()
            }
            Err(_) => {
                self.text(&mut text);
                text
            }
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

    fn value(&self, value: &mut Value) {
        match value {
            Value::String(text) => self.text(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.value(item)),
            Value::Object(members) => members.values_mut().for_each(|member| self.value(member)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
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
    }
}
