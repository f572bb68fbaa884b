//! The values of a backup: the four kinds that SQLite knows. What Postgres has a type of its own
//! for is one of them, so that a backup of either database can be restored into the other: a UUID
//! is 16 bytes, an instant is text (RFC 3339), a truth value is 0 or 1.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::DateTime;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// One value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// None.
    Null,
    /// A number.
    Integer(i64),
    /// Text.
    Text(String),
    /// Bytes; in JSON an object whose one member is them in base64.
    Bytes(Vec<u8>),
}

/// The member of the object that bytes are in JSON.
const BYTES: &str = "base64";

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Integer(number) => serializer.serialize_i64(*number),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Bytes(bytes) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry(BYTES, &STANDARD.encode(bytes))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reading;

        impl<'de> Visitor<'de> for Reading {
            type Value = Value;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("null, a whole number, a text or {\"base64\": …}")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
                Ok(Value::Integer(number))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Value, E> {
                i64::try_from(number).map(Value::Integer).map_err(E::custom)
            }

            fn visit_str<E>(self, text: &str) -> Result<Value, E> {
                Ok(Value::Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Value, E> {
                Ok(Value::Text(text))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let entry: Option<(String, String)> = map.next_entry()?;
                let entry = entry.filter(|(name, _)| name == BYTES);
                let (_, text) = entry.ok_or_else(|| A::Error::missing_field(BYTES))?;
                if map.next_entry::<String, serde::de::IgnoredAny>()?.is_some() {
                    return Err(A::Error::custom("bytes have one member"));
                }
                let bytes = STANDARD.decode(text).map_err(A::Error::custom)?;
                Ok(Value::Bytes(bytes))
            }
        }

        deserializer.deserialize_any(Reading)
    }
}

/// Write a value as Postgres reads it from `copy … from stdin`, for a column of this type.
///
/// # Errors
/// What is wrong with it.
pub fn copy_field(out: &mut String, value: &Value, kind: &str) -> Result<(), String> {
    // Writing to a string cannot fail.
    let _ = match (kind, value) {
        (_, Value::Null) => {
            out.push_str("\\N");
            Ok(())
        }
        ("bigint", Value::Integer(number)) => write!(out, "{number}"),
        ("boolean", Value::Integer(0)) => out.write_char('f'),
        ("boolean", Value::Integer(1)) => out.write_char('t'),
        ("text", Value::Text(text)) => {
            for char in text.chars() {
                match char {
                    '\\' => out.push_str("\\\\"),
                    '\n' => out.push_str("\\n"),
                    '\r' => out.push_str("\\r"),
                    '\t' => out.push_str("\\t"),
                    '\0' => return Err("has a NUL, which Postgres does not keep".to_owned()),
                    char => out.push(char),
                }
            }
            Ok(())
        }
        ("timestamp with time zone", Value::Text(text)) => {
            DateTime::parse_from_rfc3339(text)
                .map_err(|error| format!("is no instant: {error}"))?;
            out.write_str(text)
        }
        ("uuid", Value::Bytes(bytes)) => {
            let uuid = Uuid::from_slice(bytes).map_err(|error| format!("is no UUID: {error}"))?;
            write!(out, "{uuid}")
        }
        ("bytea", Value::Bytes(bytes)) => write!(out, "\\\\x{}", hex::encode(bytes)),
        _ => return Err(format!("does not take this value: it is a {kind}")),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::Integer),
            any::<String>().prop_map(Value::Text),
            any::<Vec<u8>>().prop_map(Value::Bytes),
        ]
    }

    proptest! {
        #[test]
        fn a_value_reads_back_as_it_was_written(value in any_value()) {
            let text = serde_json::to_string(&value).unwrap();
            prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        }

        #[test]
        fn a_field_never_ends_its_line_or_its_column(value in any_value(), kind in "bigint|text|bytea|uuid") {
            let mut out = String::new();
            if copy_field(&mut out, &value, &kind).is_ok() {
                prop_assert!(!out.contains(['\n', '\t', '\r']));
            }
        }
    }

    #[test]
    fn what_does_not_fit_its_column_is_refused() {
        let field = |value: Value, kind| {
            let mut out = String::new();
            copy_field(&mut out, &value, kind).map(|()| out)
        };
        assert_eq!(field(Value::Integer(1), "boolean").unwrap(), "t");
        assert_eq!(
            field(Value::Bytes(vec![0, 255]), "bytea").unwrap(),
            r"\\x00ff"
        );
        assert!(field(Value::Integer(2), "boolean").is_err());
        assert!(field(Value::Bytes(vec![1; 15]), "uuid").is_err());
        assert!(field(Value::Text("yesterday".into()), "timestamp with time zone").is_err());
        assert!(field(Value::Text("a\0b".into()), "text").is_err());
        assert!(field(Value::Text("1".into()), "bigint").is_err());
        for wrong in [
            "1.5",
            "true",
            "[]",
            "{}",
            r#"{"base64":"!"}"#,
            r#"{"base64":"","x":1}"#,
        ] {
            assert!(serde_json::from_str::<Value>(wrong).is_err(), "{wrong}");
        }
    }
}
