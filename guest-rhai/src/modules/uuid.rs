//! `uuid::{v4, v7}` (RFC 9562).

use rhai::Module;

use super::random::fill;
use super::{Context, Native, time};

/// A UUID of a version, of 16 bytes.
pub(super) fn text(version: u8, mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | version << 4;
    // The variant that RFC 9562 describes.
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex::encode(bytes);
    [
        &text[..8],
        &text[8..12],
        &text[12..16],
        &text[16..20],
        &text[20..],
    ]
    .join("-")
}

/// A random one.
pub(super) fn v4(context: &Context<'_>, call: &'static str) -> Native<String> {
    let mut bytes = [0; 16];
    fill(context, call, &mut bytes)?;
    Ok(text(4, bytes))
}

/// One that begins with the time: later ones sort behind.
fn v7(context: &Context<'_>) -> Native<String> {
    let mut bytes = [0; 16];
    fill(context, "uuid::v7", &mut bytes[6..])?;
    bytes[..6].copy_from_slice(&time::now_ms().to_be_bytes()[2..]);
    Ok(text(7, bytes))
}

pub(super) fn module() -> Module {
    let mut module = Module::new();
    module.set_native_fn("v4", |context: Context<'_>| v4(&context, "uuid::v4"));
    module.set_native_fn("v7", |context: Context<'_>| v7(&context));
    module
}
