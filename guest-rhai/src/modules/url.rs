//! `url::{encode, decode, parse_query, build_query}` (RFC 3986; forms as the URL Standard has them).

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use rhai::{Array, Dynamic, ImmutableString, Map, Module};

use super::{Context, Native, fail};
use crate::json;

/// All but RFC 3986's unreserved characters.
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

pub(super) fn module() -> Module {
    let mut module = Module::new();
    module.set_native_fn("encode", |text: ImmutableString| {
        Ok(utf8_percent_encode(&text, COMPONENT).to_string())
    });
    module.set_native_fn(
        "decode",
        |context: Context<'_>, text: ImmutableString| -> Native<String> {
            match percent_decode_str(&text).decode_utf8() {
                Ok(text) => Ok(text.into_owned()),
                Err(_) => fail(
                    &context,
                    "url::decode",
                    "the text is not UTF-8 once decoded",
                ),
            }
        },
    );
    module.set_native_fn("parse_query", |text: ImmutableString| -> Native<Map> {
        let text = text.strip_prefix('?').unwrap_or(&text);
        let pairs = form_urlencoded::parse(text.as_bytes());
        Ok(pairs
            .map(|(name, value)| (name.as_ref().into(), value.into_owned().into()))
            .collect())
    });
    module.set_native_fn("build_query", |map: Map| -> Native<String> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, value) in map {
            match value.flatten().try_cast_result::<Array>() {
                Ok(values) => {
                    let values = values.iter().map(json::display);
                    query.extend_pairs(values.map(|value| (name.as_str(), value)));
                }
                Err(value) => {
                    let value: Dynamic = value;
                    query.append_pair(&name, &json::display(&value));
                }
            }
        }
        Ok(query.finish())
    });
    module
}
