//! `hex::encode`, `hex::decode` (RFC 4648, base 16).

use rhai::{Blob, ImmutableString, Module};

use super::{Context, Native, fail};

pub(super) fn module() -> Module {
    let mut module = Module::new();
    module.set_native_fn("encode", |blob: Blob| Ok(hex::encode(blob)));
    module.set_native_fn("encode", |text: ImmutableString| {
        Ok(hex::encode(text.as_bytes()))
    });
    module.set_native_fn(
        "decode",
        |context: Context<'_>, text: ImmutableString| -> Native<Blob> {
            hex::decode(text.as_bytes()).or_else(|problem| fail(&context, "hex::decode", problem))
        },
    );
    module
}
