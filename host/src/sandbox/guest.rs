//! The Rhai interpreter, as `cargo xtask guest` packed it.

/// The packed component: pre-initialised, so that a fresh instance finds its engine built.
pub static RHAI_GUEST: &[u8] = include_bytes!(env!("PICLOUD_GUEST_PATH"));
