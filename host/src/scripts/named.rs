//! What a request that is made by hand has by name: its query and its headers.

use schemars::JsonSchema;
use serde::Deserialize;

/// What comes by name, once or several times.
pub(super) type Named = std::collections::BTreeMap<String, Values>;

/// How many values one name may have: a request of a browser has fewer.
const VALUES_MAX: usize = 1_000;

/// A text, or several of them.
pub(super) struct Values(Vec<String>);

impl JsonSchema for Values {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Values".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "anyOf": [
            { "type": "string" },
            { "type": "array", "maxItems": VALUES_MAX, "items": { "type": "string" } },
        ] })
    }
}

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Values;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "a text, or an array of at most {VALUES_MAX} texts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Values, E> {
                Ok(Values(vec![text.to_owned()]))
            }

            // What is too much is not even read.
            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut texts: A,
            ) -> Result<Values, A::Error> {
                let mut values = Vec::new();
                while let Some(text) = texts.next_element()? {
                    if values.len() == VALUES_MAX {
                        return Err(serde::de::Error::invalid_length(VALUES_MAX + 1, &self));
                    }
                    values.push(text);
                }
                Ok(Values(values))
            }
        }

        from.deserialize_any(Visitor)
    }
}

/// Each value with its name.
pub(super) fn pairs(named: Named) -> impl Iterator<Item = (String, String)> {
    named.into_iter().flat_map(|(name, Values(values))| {
        values.into_iter().map(move |value| (name.clone(), value))
    })
}
