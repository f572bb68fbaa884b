//! Somebody else's text on a terminal: what a terminal would obey is shown, and not done.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a terminal does something else with a character than show it: it moves, erases or
/// colours (controls), turns the direction of the text around it (UAX #9), or shows nothing at all.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200b}'
                | '\u{200e}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// A text on one line, each of its characters visible: a line break is shown as `\n`, the beginning
/// of an escape sequence as `\u{1b}`.
pub(super) fn line(text: &str) -> Cow<'_, str> {
    shown(text, |_| false)
}

/// The same for what has lines, a source say: its line breaks and tabs stay.
pub(super) fn lines(text: &str) -> Cow<'_, str> {
    shown(text, |c| matches!(c, '\n' | '\t'))
}

fn shown(text: &str, stays: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_shown = |c: char| stays(c) || !is_obeyed(c);
    if text.chars().all(is_shown) {
        return Cow::Borrowed(text);
    }
    let escaped = |mut text: String, c: char| {
        match is_shown(c) {
            true => text.push(c),
            false => text.extend(c.escape_default()),
        }
        text
    };
    Cow::Owned(text.chars().fold(String::new(), escaped))
}

/// A JSON text, which stays the same value: what a terminal obeys can only stand in its strings,
/// and is written there as JSON writes it.
pub(super) fn json(text: &str) -> Cow<'_, str> {
    let is_shown = |c: char| matches!(c, '\n' | '\t') || !is_obeyed(c);
    if text.chars().all(is_shown) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // Between two values; in a string it cannot stand.
            '\r' => escaped.push(' '),
            c if is_shown(c) => escaped.push(c),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a string cannot fail.
                    let _ = write!(escaped, "\\u{unit:04x}");
                }
            }
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_shown() {
        assert_eq!(
            line("plain, ä, 日本, 🏳\u{200d}🌈"),
            "plain, ä, 日本, 🏳\u{200d}🌈"
        );
        assert_eq!(
            line("a\u{1b}[2Jb\r\nc\td\u{9b}3m\u{7f}\u{202e}e"),
            r"a\u{1b}[2Jb\r\nc\td\u{9b}3m\u{7f}\u{202e}e"
        );
        assert_eq!(lines("a\n\tb\r\n\u{7}"), "a\n\tb\\r\n\\u{7}");
    }

    #[test]
    fn json_stays_the_same_value() {
        let text = "{\r\n\"a\u{9b}\u{7f}\": \"\u{202e}\u{e0041}ä\"}";
        let shown = json(text);
        assert_eq!(
            shown,
            "{ \n\"a\\u009b\\u007f\": \"\\u202e\\udb40\\udc41ä\"}"
        );
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(value(&shown), value(text));
    }
}
