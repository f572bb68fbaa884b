//! `json::parse`, `json::stringify`, `json::pretty`.

use rhai::{Dynamic, ImmutableString, Module};

use super::{Context, fail};
use crate::json;

pub(super) fn module() -> Module {
    let mut module = Module::new();
    module.set_native_fn("parse", |context: Context<'_>, text: ImmutableString| {
        json::parse(&text).or_else(|problem| fail(&context, "json::parse", problem))
    });
    module.set_native_fn("stringify", |context: Context<'_>, value: Dynamic| {
        json::stringify(&value, false).or_else(|problem| fail(&context, "json::stringify", problem))
    });
    module.set_native_fn("pretty", |context: Context<'_>, value: Dynamic| {
        json::stringify(&value, true).or_else(|problem| fail(&context, "json::pretty", problem))
    });
    module
}
