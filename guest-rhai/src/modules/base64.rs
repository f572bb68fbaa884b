//! `base64::{encode, decode, decode_text}` and the URL-safe `encode_url` and `decode_url` (RFC 4648).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rhai::{Blob, ImmutableString, Module};

use super::{Context, Native, fail};

pub(super) fn module() -> Module {
    let mut module = Module::new();
    module.set_native_fn("encode", |blob: Blob| Ok(STANDARD.encode(blob)));
    module.set_native_fn("encode", |text: ImmutableString| {
        Ok(STANDARD.encode(text.as_bytes()))
    });
    module.set_native_fn("encode_url", |blob: Blob| Ok(URL_SAFE_NO_PAD.encode(blob)));
    module.set_native_fn("encode_url", |text: ImmutableString| {
        Ok(URL_SAFE_NO_PAD.encode(text.as_bytes()))
    });
    module.set_native_fn(
        "decode",
        |context: Context<'_>, text: ImmutableString| -> Native<Blob> {
            STANDARD
                .decode(text.as_bytes())
                .or_else(|problem| fail(&context, "base64::decode", problem))
        },
    );
    module.set_native_fn(
        "decode_url",
        |context: Context<'_>, text: ImmutableString| -> Native<Blob> {
            let text = text.trim_end_matches('=');
            URL_SAFE_NO_PAD
                .decode(text)
                .or_else(|problem| fail(&context, "base64::decode_url", problem))
        },
    );
    module.set_native_fn(
        "decode_text",
        |context: Context<'_>, text: ImmutableString| -> Native<String> {
            const CALL: &str = "base64::decode_text";
            let bytes = STANDARD
                .decode(text.as_bytes())
                .or_else(|problem| fail(&context, CALL, problem))?;
            String::from_utf8(bytes).or_else(|_| fail(&context, CALL, "the bytes are not UTF-8"))
        },
    );
    module
}
