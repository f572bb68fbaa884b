//! Keeps the secrets that an execution read out of what is kept of it.
//!
//! A secret is sought as it is, in the ways that programs commonly write a text (as JSON, in base64 or
//! hexadecimal digits, in URLs), and line by line. All of them are sought in one pass (Aho and
//! Corasick, 1975), whose time does not grow with their number.

use aho_corasick::{AhoCorasick, AhoCorasickKind, Input, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::Outcome;

/// What stands in the place of a secret.
const REDACTED: &str = "***";
/// Shorter secrets would take harmless text with them.
const BYTES_MIN: usize = 5;
/// The same for what is only a part of one.
const PART_BYTES_MIN: usize = 8;
/// The same for what is sure of one in an encoding.
const ENCODED_BYTES_MIN: usize = 7;
/// How much of a form the pass looks for; the rest is compared where that is found.
const SOUGHT_BYTES_MAX: usize = 32;
/// How many lines of secrets are sought one by one: those of some forty private keys.
const LINES_MAX: usize = 2_048;

/// What JavaScript's `encodeURIComponent` leaves as it is.
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'!')
    .remove(b'~')
    .remove(b'*')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')');

/// The secrets that an execution read.
#[derive(Default)]
pub(super) struct Redaction {
    secrets: Vec<String>,
    /// Made when it is needed; none after a secret was added.
    sought: Option<Sought>,
}

/// The forms of some secrets, ready to be found.
struct Sought {
    /// In order, without repetition.
    forms: Vec<Vec<u8>>,
    /// Finds the beginnings of the forms.
    beginnings: AhoCorasick,
    longest: usize,
}

impl Redaction {
    /// A value was read. Answers whether it is to be kept from now on.
    pub(super) fn add(&mut self, value: &str) -> bool {
        let is_new = value.len() >= BYTES_MIN && !self.secrets.iter().any(|known| known == value);
        if is_new {
            self.secrets.push(value.to_owned());
            self.sought = None;
        }
        is_new
    }

    /// Take them out of what was thrown and of other words about the end; the response is the
    /// script's own.
    pub(super) fn outcome(&mut self, outcome: &mut Outcome) {
        match outcome {
            Outcome::Threw(thrown) => {
                self.text(&mut thrown.message);
                thrown.calls.iter_mut().for_each(|call| self.text(call));
            }
            Outcome::InvalidResponse(text) | Outcome::Trapped(text) => self.text(text),
            _ => {}
        }
    }

    /// Take them out of a text.
    pub(super) fn text(&mut self, text: &mut String) {
        self.beginning(text, usize::MAX);
    }

    /// Keep about the first `bytes_max` bytes of a text, without secrets: no part of one is left where
    /// it is cut. The time that it takes depends on `bytes_max` and not on the text's length.
    pub(super) fn beginning(&mut self, text: &mut String, bytes_max: usize) {
        if self.secrets.is_empty() {
            text.truncate(text.floor_char_boundary(bytes_max));
            return;
        }
        let sought = self.sought.get_or_insert_with(|| Sought::of(&self.secrets));
        // What begins before the cut is seen to its end.
        text.truncate(text.floor_char_boundary(bytes_max.saturating_add(sought.longest)));
        match sought.redacted(text, bytes_max) {
            Some(redacted) => *text = redacted,
            None => text.truncate(text.floor_char_boundary(bytes_max)),
        }
    }
}

impl Sought {
    fn of(secrets: &[String]) -> Self {
        let mut forms: Vec<Vec<u8>> = secrets.iter().flat_map(|secret| forms(secret)).collect();
        let lines = secrets.iter().flat_map(|secret| lines(secret));
        forms.extend(lines.take(LINES_MAX).map(|line| line.as_bytes().to_vec()));
        forms.sort_unstable();
        forms.dedup();
        let mut beginnings: Vec<&[u8]> = forms
            .iter()
            .map(|form| &form[..form.len().min(SOUGHT_BYTES_MAX)])
            .collect();
        beginnings.dedup();
        let beginnings = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(beginnings)
            .expect("the forms of 1 MiB of secrets are fewer than an automaton holds");
        let longest = forms.iter().map(Vec::len).max().unwrap_or_default();
        Self {
            forms,
            beginnings,
            longest,
        }
    }

    /// What begins in the first `bytes_max` bytes of a text, without secrets; none if it has none.
    fn redacted(&self, text: &str, bytes_max: usize) -> Option<String> {
        let bytes = text.as_bytes();
        let mut redacted: Option<String> = None;
        // Up to where the text is dealt with, and from where it is looked at.
        let (mut done, mut from) = (0, 0);
        while let Some(found) = self.beginnings.find(Input::new(bytes).range(from..)) {
            let start = found.start();
            if start >= bytes_max {
                break;
            }
            let end = text.ceil_char_boundary(start + self.common(&bytes[start..]));
            let redacted = redacted.get_or_insert_default();
            // One that begins within the last goes with it.
            if start >= done {
                redacted.push_str(&text[done..start]);
                redacted.push_str(REDACTED);
            }
            done = done.max(end);
            from = (start + 1).max(done.saturating_sub(SOUGHT_BYTES_MAX));
        }
        let mut redacted = redacted?;
        let end = text.floor_char_boundary(bytes_max.min(text.len()));
        redacted.push_str(text.get(done..end).unwrap_or_default());
        Some(redacted)
    }

    /// How many bytes a form has at most in common with the beginning of `bytes`: that form is next
    /// to where they would be among the forms.
    fn common(&self, bytes: &[u8]) -> usize {
        let place = self.forms.partition_point(|form| &form[..] < bytes);
        let neighbours = self.forms[place.saturating_sub(1)..].iter().take(2);
        let common = neighbours.map(|form| form.iter().zip(bytes).take_while(|(a, b)| a == b));
        common.map(Iterator::count).max().unwrap_or_default()
    }
}

/// The ways in which programs write a text.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    // In JSON, in JSON within JSON, in JSON of ASCII alone, and as Rhai prints it.
    let json = within_quotes(&Value::from(secret).to_string());
    let twice = within_quotes(&Value::from(json.as_str()).to_string());
    let debug = within_quotes(&format!("{secret:?}"));
    let ascii = ascii(&json);
    let mut encoded = vec![hex::encode(secret), hex::encode_upper(secret)];
    encoded.push(utf8_percent_encode(secret, COMPONENT).to_string());
    encoded.push(form_urlencoded::byte_serialize(secret.as_bytes()).collect());
    for shift in 0..3 {
        // Where a text stands in what is encoded shifts its bits; what depends on its neighbours is
        // left out.
        let shifted = [&vec![0; shift][..], secret.as_bytes()].concat();
        let digits = (shift * 8).div_ceil(6)..shifted.len() * 8 / 6;
        let of = |all: String| all[digits.clone()].to_owned();
        encoded.push(of(STANDARD_NO_PAD.encode(&shifted)));
        encoded.push(of(URL_SAFE_NO_PAD.encode(&shifted)));
    }
    // As Rhai prints a blob; and what is encoded once more for a URL.
    let blob: Vec<_> = secret.as_bytes().chunks(8).map(hex::encode).collect();
    encoded.push(blob.join(" "));
    for base64 in [STANDARD.encode(secret), STANDARD_NO_PAD.encode(secret)] {
        encoded.push(utf8_percent_encode(&base64, COMPONENT).to_string());
    }
    encoded.retain(|form| form.len() >= ENCODED_BYTES_MIN);
    encoded.extend([secret.to_owned(), json, twice, debug, ascii]);
    encoded.into_iter().map(String::into_bytes).collect()
}

/// The lines of a secret that has many.
fn lines(secret: &str) -> impl Iterator<Item = &str> {
    let lines = secret.lines().map(str::trim);
    lines.filter(move |line| line.len() >= PART_BYTES_MIN && line.len() < secret.len())
}

fn within_quotes(text: &str) -> String {
    text[1..text.len() - 1].to_owned()
}

/// A string of JSON in ASCII alone.
fn ascii(json: &str) -> String {
    let mut ascii = String::with_capacity(json.len());
    for c in json.chars() {
        match c.is_ascii() {
            true => ascii.push(c),
            false => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }),
        }
    }
    ascii
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn redaction(secrets: &[&str]) -> Redaction {
        let mut redaction = Redaction::default();
        for secret in secrets {
            redaction.add(secret);
        }
        redaction
    }

    fn redacted(secrets: &[&str], text: &str) -> String {
        let mut text = text.to_owned();
        redaction(secrets).text(&mut text);
        text
    }

    #[test]
    fn no_part_of_a_secret_is_left() {
        let secrets = ["hunter2", "hunter2-and-more", "abcd", "hunter2"];
        assert_eq!(
            redacted(&secrets, "hunter2-and-more, hunter2, abcd, hunter"),
            "***, ***, abcd, hunter"
        );
        assert_eq!(redacted(&["abcdef", "efghij"], "abcdefghij!"), "***!");
        assert_eq!(
            redacted(&["12345"], r#"{"12345":[12345]}"#),
            r#"{"***":[***]}"#
        );
    }

    #[test]
    fn a_secret_is_found_however_it_is_written() {
        let secret = "-----BEGIN \"KEY\"-----\nMIIEvQ\\IBADé/+?\n-----END-----\n";
        let json = Value::from(secret).to_string();
        let shifted = |prefix: &str| STANDARD.encode(format!("{prefix}{secret}"));
        for written in [
            secret.to_owned(),
            json.clone(),
            Value::from(json.as_str()).to_string(),
            ascii(&json),
            format!("{secret:?}"),
            hex::encode(secret),
            hex::encode_upper(secret),
            utf8_percent_encode(secret, COMPONENT).to_string(),
            form_urlencoded::byte_serialize(secret.as_bytes()).collect(),
            shifted(""),
            shifted("u"),
            shifted("us"),
            shifted("user"),
            URL_SAFE_NO_PAD.encode(secret),
            utf8_percent_encode(&shifted(""), COMPONENT).to_string(),
            "MIIEvQ\\IBADé/+?".to_owned(),
        ] {
            let text = redacted(&[secret], &format!("a {written} b"));
            let left = text.trim_start_matches("a ").trim_end_matches(" b");
            assert!(
                left.contains(REDACTED) && left.len() < 14,
                "{written}: {text}"
            );
        }
    }

    #[test]
    fn a_secret_of_six_bytes_is_found_in_what_is_encoded_with_it() {
        for prefix in ["", "u", "us", "user:", "a:b"] {
            let written = STANDARD.encode(format!("{prefix}qZ7#kP"));
            let text = redacted(&["qZ7#kP"], &written);
            assert!(text.contains(REDACTED), "{prefix}: {text}");
        }
        let blob = "68756e7465723268 756e74657232";
        assert_eq!(redacted(&["hunter2hunter2"], blob), REDACTED);
    }

    #[test]
    fn what_is_cut_has_no_part_of_a_secret_at_its_end() {
        for (bytes_max, expected) in [
            (4, "x ho"),
            (5, "x ho "),
            (6, "x ho ***"),
            (90, "x ho *** y"),
        ] {
            let mut text = "x ho hunter2 y".to_owned();
            redaction(&["hunter2"]).beginning(&mut text, bytes_max);
            assert_eq!(text, expected, "{bytes_max}");
        }
    }

    #[test]
    fn two_hundred_secrets_cost_one_pass() {
        let secrets: Vec<String> = (0..200)
            .map(|n| format!("{}{n}", "a".repeat(500)))
            .collect();
        let mut many = Redaction::default();
        for secret in &secrets {
            many.add(secret);
        }
        let began = std::time::Instant::now();
        let mut text = "a".repeat(1 << 20);
        many.text(&mut text);
        // Each of them in a pass of its own, compared anew at each place, would take an hour.
        assert!(began.elapsed().as_secs() < 20 && text.len() < 1 << 14);
    }

    proptest! {
        #[test]
        fn nothing_else_is_taken(
            before in "[x-z ]{0,40}", secret in "[a-f\"\\\\é]{5,40}", after in "[x-z ]{0,40}",
            bytes_max in 0_usize..100,
        ) {
            let text = format!("{before}{secret}{after}");
            prop_assert_eq!(redacted(&[&secret], &text), format!("{before}{REDACTED}{after}"));
            let mut cut = text;
            redaction(&[&secret]).beginning(&mut cut, bytes_max);
            let is_left = |c: char| !"xyz *".contains(c);
            prop_assert!(!cut.contains(is_left), "{}", cut);
        }
    }
}
