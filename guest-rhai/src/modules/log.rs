//! `log::{trace, debug, info, warn, error}`, with a message and, if wanted, fields.

use rhai::{Dynamic, Map, Module};

use super::Native;
use crate::ctx::{Ctx, RequestRef};
use crate::error::SdkError;
use crate::host::{self, Level};
use crate::json;

pub(super) fn module() -> Module {
    let mut module = Module::new();
    for (name, level) in [
        ("trace", Level::Trace),
        ("debug", Level::Debug),
        ("info", Level::Info),
        ("warn", Level::Warn),
        ("error", Level::Error),
    ] {
        module.set_native_fn(name, move |message: Dynamic| -> Native<()> {
            host::write_log(level, &json::display(&message), Vec::new());
            Ok(())
        });
        module.set_native_fn(
            name,
            move |message: Dynamic, fields: Dynamic| -> Native<()> {
                // A field that cannot be JSON is logged as text: a log line should never fail.
                let value = |value: &Dynamic| {
                    json::stringify(value, false)
                        .or_else(|_| json::stringify(&value.to_string().into(), false))
                        .unwrap_or_default()
                };
                let fields = fields_of(fields)
                    .iter()
                    .map(|(name, field)| (name.to_string(), value(field)))
                    .collect();
                host::write_log(level, &json::display(&message), fields);
                Ok(())
            },
        );
    }
    module
}

/// The fields that a value stands for: whatever a script catches can be logged.
fn fields_of(value: Dynamic) -> Map {
    if let Some(error) = value.read_lock::<SdkError>() {
        return error.to_map();
    }
    if value.is::<Ctx>() {
        return Ctx.shown();
    }
    if value.is::<RequestRef>() {
        return RequestRef::shown();
    }
    match value.flatten().try_cast_result::<Map>() {
        Ok(map) => map,
        Err(other) => Map::from([("value".into(), other)]),
    }
}
