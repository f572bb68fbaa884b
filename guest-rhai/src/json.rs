//! Rhai values to and from JSON, without a tree in between.

use std::fmt;

use rhai::{Array, Blob, Dynamic, INT, ImmutableString, Map};
use rust_decimal::Decimal;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::ctx::{Ctx, RequestRef};
use crate::error::SdkError;

/// How deep a value may be nested, both ways: what is written can be read again. The host says
/// the same (`host/src/json/`).
pub const DEPTH_MAX: usize = 100;
/// How deep what the host tells may be nested: a value lies a few deep in its event, and that in
/// the event of a dead letter.
const TOLD_DEPTH_MAX: usize = DEPTH_MAX + 8;

/// Read a JSON text. Whole numbers stay whole: beyond 64 bits they are decimals, and beyond those
/// an error. Only `-0` is a float: no integer has its sign.
///
/// # Errors
/// What is wrong with the text, and where.
pub fn parse(text: &str) -> Result<Dynamic, String> {
    parse_within(text, DEPTH_MAX)
}

/// The same for what the host tells: an event, or a dead letter.
///
/// # Errors
/// What is wrong with the text, and where.
pub fn parse_told(text: &str) -> Result<Dynamic, String> {
    parse_within(text, TOLD_DEPTH_MAX)
}

/// From so many digits on, an integer may not fit 64 bits; a float would lose its last ones.
const LONG_DIGITS: usize = 19;

fn parse_within(text: &str, depth_max: usize) -> Result<Dynamic, String> {
    let mut run = 0;
    let has_long_number = text.bytes().any(|byte| {
        run = if byte.is_ascii_digit() { run + 1 } else { 0 };
        run >= LONG_DIGITS
    });
    if has_long_number {
        // Known to be JSON before its parts are looked at.
        let whole: &RawValue = serde_json::from_str(text).map_err(|error| error.to_string())?;
        // Of what neither takes, only `plain` knows the place in the whole text.
        return exact(whole, 0, depth_max)
            .or_else(|problem| plain(text, depth_max).and(Err(problem)));
    }
    plain(text, depth_max)
}

/// Read a JSON text without long integers.
fn plain(text: &str, depth_max: usize) -> Result<Dynamic, String> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Value {
        depth: 0,
        depth_max,
    }
    .deserialize(&mut deserializer)
    .and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|error| error.to_string())
}

/// The members of an object as they stand there: one whose name comes again is read, too, and may
/// be wrong.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut members: A,
            ) -> Result<Members<'de>, A::Error> {
                let mut all = Vec::new();
                while let Some(member) = members.next_entry()? {
                    all.push(member);
                }
                Ok(Members(all))
            }
        }
        deserializer.deserialize_map(All)
    }
}

/// Read a JSON value whose integers may be long. What else is in it is what [`plain`] makes of it.
fn exact(raw: &RawValue, depth: usize, depth_max: usize) -> Result<Dynamic, String> {
    let told = |error: serde_json::Error| error.to_string();
    let text = raw.get();
    let first = text.bytes().next().unwrap_or_default();
    if matches!(first, b'{' | b'[') && depth >= depth_max {
        return Err(format!("nested more than {depth_max} deep"));
    }
    match first {
        b'{' => {
            let Members(members) = serde_json::from_str(text).map_err(told)?;
            let read = |(name, member): (String, &RawValue)| {
                Ok((name.into(), exact(member, depth + 1, depth_max)?))
            };
            let members: Result<Map, String> = members.into_iter().map(read).collect();
            Ok(members?.into())
        }
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(told)?;
            let read = |item: &RawValue| exact(item, depth + 1, depth_max);
            let items: Result<Array, String> = items.into_iter().map(read).collect();
            Ok(items?.into())
        }
        b'-' | b'0'..=b'9' if text != "-0" && !text.contains(['.', 'e', 'E']) => match text
            .parse::<INT>()
        {
            Ok(number) => Ok(number.into()),
            Err(_) => Decimal::from_str_exact(text)
                .map(Dynamic::from)
                .map_err(|_| {
                    format!(
                        "the integer {text} has more digits than a number holds; let it be a string"
                    )
                }),
        },
        _ => {
            let mut deserializer = serde_json::Deserializer::from_str(text);
            let value = Value { depth, depth_max };
            value.deserialize(&mut deserializer).map_err(told)
        }
    }
}

/// A value at a depth.
struct Value {
    depth: usize,
    depth_max: usize,
}

impl Value {
    fn inner<E: serde::de::Error>(&self) -> Result<Self, E> {
        let Self { depth, depth_max } = *self;
        match depth < depth_max {
            true => Ok(Self {
                depth: depth + 1,
                depth_max,
            }),
            false => Err(E::custom(format!("nested more than {depth_max} deep"))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Value {
    type Value = Dynamic;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Dynamic, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value {
    type Value = Dynamic;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Dynamic, E> {
        Ok(Dynamic::UNIT)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Dynamic, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Dynamic, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Dynamic, E> {
        Ok(INT::try_from(value).map_or_else(|_| Decimal::from(value).into(), Dynamic::from))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Dynamic, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Dynamic, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Dynamic, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Dynamic, A::Error> {
        let mut array = Array::new();
        while let Some(item) = seq.next_element_seed(self.inner()?)? {
            array.push(item);
        }
        Ok(array.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Dynamic, A::Error> {
        // Also of an object without members, as an array does.
        self.inner::<A::Error>()?;
        let mut map = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            map.insert(name.into(), members.next_value_seed(self.inner()?)?);
        }
        Ok(map.into())
    }
}

/// Why a value cannot be JSON.
#[derive(Debug, PartialEq, Eq)]
pub struct NotJson {
    /// Where in the value, like `items[3].name`; empty for the value itself.
    pub at: String,
    /// What is there.
    pub what: String,
}

impl fmt::Display for NotJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at.as_str() {
            "" => write!(f, "{} cannot be JSON", self.what),
            at => write!(f, "`{at}` is {}, which cannot be JSON", self.what),
        }
    }
}

/// Write a value as JSON; in lines and indented if `pretty`.
///
/// # Errors
/// [`NotJson`] says what in it cannot be.
pub fn stringify(value: &Dynamic, pretty: bool) -> Result<String, NotJson> {
    let mut writer = Writer {
        out: String::new(),
        path: Vec::new(),
        pretty,
    };
    match writer.value(value) {
        Ok(()) => Ok(writer.out),
        Err(what) => Err(NotJson {
            at: writer.path.concat().trim_start_matches('.').into(),
            what,
        }),
    }
}

struct Writer {
    out: String,
    path: Vec<String>,
    pretty: bool,
}

impl Writer {
    fn value(&mut self, value: &Dynamic) -> Result<(), String> {
        // A shared value, captured by a closure say, is what it holds.
        if value.is_shared() {
            return self.value(&value.flatten_clone());
        }
        if value.is_unit() {
            self.out.push_str("null");
        } else if let Ok(value) = value.as_bool() {
            self.out.push_str(if value { "true" } else { "false" });
        } else if let Ok(value) = value.as_int() {
            fmt::Write::write_fmt(&mut self.out, format_args!("{value}"))
                .map_err(|e| e.to_string())?;
        } else if let Ok(value) = value.as_float() {
            if !value.is_finite() {
                return Err(format!("the number {value}"));
            }
            self.raw(&value);
        } else if let Ok(value) = value.as_decimal() {
            self.out.push_str(&value.to_string());
        } else if let Ok(text) = value.as_immutable_string_ref() {
            self.raw(text.as_str());
        } else if let Ok(value) = value.as_char() {
            self.raw(&value.to_string());
        } else if let Ok(array) = value.as_array_ref() {
            self.list('[', ']', array.iter().enumerate(), |writer, (at, item)| {
                writer.path.push(format!("[{at}]"));
                writer.value(item)
            })?;
        } else if let Ok(map) = value.as_map_ref() {
            self.list('{', '}', map.iter(), |writer, (name, member)| {
                writer.raw(name.as_str());
                writer.out.push_str(if writer.pretty { ": " } else { ":" });
                writer.path.push(format!(".{name}"));
                writer.value(member)
            })?;
        } else if let Some(error) = value.read_lock::<SdkError>() {
            self.raw(error.message.as_str());
        } else if let Some(ctx) = value.read_lock::<Ctx>() {
            let map = ctx.to_map().map_err(|unreadable| unreadable.to_string())?;
            self.value(&map.into())?;
        } else if value.is::<RequestRef>() {
            let map = RequestRef::to_map().map_err(|unreadable| unreadable.to_string())?;
            self.value(&map.into())?;
        } else {
            return Err(match value.type_name() {
                "Fn" => "a function".to_owned(),
                "blob" | "range" | "range=" | "timestamp" => format!("a {}", value.type_name()),
                other if value.read_lock::<Blob>().is_some() => format!("a blob ({other})"),
                other => format!("of type {}", other.rsplit("::").next().unwrap_or(other)),
            });
        }
        Ok(())
    }

    fn list<T>(
        &mut self,
        open: char,
        close: char,
        items: impl ExactSizeIterator<Item = T>,
        mut write: impl FnMut(&mut Self, T) -> Result<(), String>,
    ) -> Result<(), String> {
        if self.path.len() >= DEPTH_MAX {
            return Err(format!("nested more than {DEPTH_MAX} deep"));
        }
        self.out.push(open);
        let empty = items.len() == 0;
        for (at, item) in items.enumerate() {
            if at > 0 {
                self.out.push(',');
            }
            self.line(self.path.len() + 1);
            write(self, item)?;
            self.path.pop();
        }
        if !empty {
            self.line(self.path.len());
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if self.pretty {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n("  ", depth));
        }
    }

    fn raw(&mut self, value: &(impl serde::Serialize + ?Sized)) {
        let text = serde_json::to_string(value);
        self.out
            .push_str(&text.expect("a string or a finite number is always JSON"));
    }
}

/// A value as people read it in a message: text as it is, the rest as JSON where it can be.
pub fn display(value: &Dynamic) -> String {
    if let Some(error) = value.read_lock::<SdkError>() {
        return error.message.to_string();
    }
    if value.is::<Ctx>() {
        return display(&Ctx.shown().into());
    }
    if value.is::<RequestRef>() {
        return display(&RequestRef::shown().into());
    }
    match value.clone().flatten().try_cast::<ImmutableString>() {
        Some(text) => text.into(),
        None => stringify(value, false).unwrap_or_else(|_| value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            (-1e9..1e9).prop_map(|f: f64| serde_json::json!(f)),
            ".{0,12}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::btree_map("[a-zé\"\\\\]{0,6}", inner, 0..6)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// Texts of JSON and of what is nearly JSON, as no writer of ours would write it.
    fn text() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?",
            r#""([a-z0-9é]|\\[nt"/u]|\\u[0-9a-f]{4}|\\ud83d\\ude00){0,8}""#,
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            let member = ("\"[ab]{0,1}\"", inner.clone()).prop_map(|(k, v)| format!("{k}: {v}"));
            prop_oneof![
                prop::collection::vec(inner, 0..4).prop_map(|all| format!("[{}]", all.join(", "))),
                prop::collection::vec(member, 0..4)
                    .prop_map(|all| format!("{{{}}}", all.join(","))),
            ]
        })
    }

    proptest! {
        #[test]
        fn json_survives_the_way_through_a_script(value in json(), pretty in any::<bool>()) {
            let text = value.to_string();
            let back = stringify(&parse(&text).unwrap(), pretty).unwrap();
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&back).unwrap(), value);
        }

        #[test]
        fn a_value_reads_the_same_whatever_stands_beside_it(text in text()) {
            let shown = |value: &Dynamic| format!("{value:?}");
            let beside = |other: &str| {
                let read = parse(&format!("[{text},\"{other}\"]")).ok()?;
                Some(shown(&read.as_array_ref().unwrap()[0]))
            };
            let alone = parse(&text).ok().as_ref().map(shown);
            prop_assert_eq!(&alone, &beside(""));
            prop_assert_eq!(&alone, &beside("12345678901234567890"));
        }

        #[test]
        fn parsing_never_panics(text in ".{0,200}") {
            let _ = parse(&text);
        }
    }

    #[test]
    fn depth_is_limited_both_ways() {
        let deep = |depth| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(&deep(DEPTH_MAX)).is_ok());
        assert!(parse(&deep(DEPTH_MAX + 1)).is_err());
        let mut value = Dynamic::from(1_i64);
        for _ in 0..=DEPTH_MAX {
            value = Array::from([value]).into();
        }
        assert!(stringify(&value, false).is_err());
        let mut empty = Dynamic::from(Array::new());
        for _ in 1..DEPTH_MAX {
            empty = Array::from([empty]).into();
        }
        assert!(parse(&stringify(&empty, false).unwrap()).is_ok());
        assert!(stringify(&Array::from([empty]).into(), false).is_err());
        for beside in ["", "12345678901234567890"] {
            let object = |depth| {
                let (open, close) = ("[".repeat(depth - 2), "]".repeat(depth - 2));
                format!("[{open}{{}}{close},\"{beside}\"]")
            };
            assert!(parse(&object(DEPTH_MAX)).is_ok());
            assert!(parse(&object(DEPTH_MAX + 1)).is_err());
        }
        let told = |depth| parse_told(&format!("{{\"kv\":{{\"value\":{}}}}}", deep(depth)));
        assert!(told(DEPTH_MAX).is_ok(), "an event of the deepest value");
    }

    #[test]
    fn long_integers_keep_their_digits() {
        for text in [
            "9223372036854775807",
            "-9223372036854775808",
            "9223372036854775808",
            "18446744073709551615",
            "-9223372036854775809",
            "79228162514264337593543950335",
            r#"{"a":[10000000000000000001,{"b":"12345678901234567890"},1.5,null]}"#,
        ] {
            let back = stringify(&parse(text).unwrap(), false).unwrap();
            assert_eq!(back, text);
        }
        assert!(parse("12345678901234567890.25").unwrap().is_float());
        let error = parse(r#"{"id": 123456789012345678901234567890123}"#).unwrap_err();
        assert!(error.contains("let it be a string"), "{error}");
        assert!(parse("[12345678901234567890,]").is_err());
        let deep = |depth| {
            format!(
                "{}12345678901234567890{}",
                "[".repeat(depth),
                "]".repeat(depth)
            )
        };
        assert!(parse(&deep(DEPTH_MAX)).is_ok());
        assert!(parse(&deep(DEPTH_MAX + 1)).is_err());
    }

    #[test]
    fn a_negative_zero_keeps_its_sign() {
        for text in ["-0", "[-0,\"12345678901234567890\"]", "[-0, 1]"] {
            let value = parse(text).unwrap();
            let zero = match value.as_array_ref() {
                Ok(array) => array[0].clone(),
                Err(_) => value.clone(),
            };
            assert!(zero.as_float().unwrap().is_sign_negative(), "{text}");
            assert_eq!(stringify(&zero, false).unwrap(), "-0.0");
        }
    }

    #[test]
    fn a_problem_has_its_place_in_the_whole_text() {
        for beside in ["", "12345678901234567890"] {
            let text = format!("[\n\"{beside}\",\n{{\"a\": 1e999}}]");
            let error = parse(&text).unwrap_err();
            assert_eq!(error, "number out of range at line 3 column 11");
        }
    }

    #[test]
    fn what_cannot_be_json_is_named_with_its_place() {
        let mut map = Map::new();
        let items: Array = vec![1.0.into(), f64::NAN.into()];
        map.insert("items".into(), items.into());
        let error = stringify(&map.into(), false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`items[1]` is the number NaN, which cannot be JSON"
        );
        let blob = Dynamic::from_blob(vec![1]);
        assert_eq!(
            stringify(&blob, false).unwrap_err().to_string(),
            "a blob cannot be JSON"
        );
    }
}
