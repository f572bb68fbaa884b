//! The definition against what serde_json holds, and against itself.

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
        "-79228162514264337593543950335",
        "123456789012345678901234567890e0",
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
            "[79228162514264337593543950336]",
            Fault::NumberRange,
            "at /0 (line 1, column 2): the integer 79228162514264337593543950336 is beyond",
        ),
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
        // Of two members with one name serde_json keeps the last.
        (
            &format!("{{\"a\":{},\"a\":1}}", nested(100)),
            Fault::TooDeep,
            "nested more than 100 deep",
        ),
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

#[test]
fn a_pointer_leads_to_what_is_written_there() {
    let text = r#"{"a": [1.0, {"b/~": 123456789012345678901}], "": null, "a\"": 2}"#;
    for (pointer, found) in [
        ("", Some(text)),
        ("/a/0", Some("1.0")),
        ("/a/1/b~1~0", Some("123456789012345678901")),
        ("/", Some("null")),
        ("/a\"", Some("2")),
        ("/a/2", None),
        ("/a/x", None),
        ("/a/0/0", None),
        ("a", None),
    ] {
        assert_eq!(pointed_at(text, pointer), found, "{pointer}");
    }
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

/// How deep a text is nested that is JSON. Not its value: of two members with one name that has only
/// the last.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0, 0);
    let mut chars = text.chars();
    let mut in_string = false;
    while let Some(c) = chars.next() {
        match c {
            '"' => in_string = !in_string,
            '\\' => _ = chars.next(),
            '[' | '{' if !in_string => depth += 1,
            ']' | '}' if !in_string => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Whether a text has an integer beyond what every reader holds, wherever that is.
fn has_long_integer(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_digit() || "+-.eE".contains(c);
    let mut runs = text.split(|c| !is_part(c));
    runs.any(|run| {
        let digits = run.trim_start_matches('-');
        let is_integer = digits.chars().all(|c| c.is_ascii_digit());
        is_integer && (digits.len(), digits) > (29, "79228162514264337593543950335")
    })
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
                let is_held = serde_json::from_str::<Value>(&text).is_ok();
                let is_held = is_held && depth(&text) <= DEPTH_MAX && !has_long_integer(&text);
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
