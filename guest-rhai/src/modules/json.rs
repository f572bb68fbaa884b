//! `json::parse`, `json::stringify`, `json::pretty`.

use rhai::{Dynamic, ImmutableString, Module};

use super::fail;
use crate::json;

pub(super) fn module() -> Module {
    let mut module = Module::new();
    module.set_native_fn("parse", |text: ImmutableString| {
        json::parse(&text).or_else(|problem| fail("json::parse", problem))
    });
    module.set_native_fn("stringify", |value: Dynamic| {
        json::stringify(&value, false).or_else(|problem| fail("json::stringify", problem))
    });
    module.set_native_fn("pretty", |value: Dynamic| {
        json::stringify(&value, true).or_else(|problem| fail("json::pretty", problem))
    });
    module
}
