//! The Rhai interpreter as a guest: a component of the world `picloud:function/rhai`.
//!
//! The engine is built once, in `wizer-initialize`, and is part of the snapshot that every
//! instance starts from; an instance only compiles one script, or runs one. `docs/rhai-sdk.md`
//! describes what a script sees.

#[cfg(target_arch = "wasm32")]
mod arena;
#[cfg(test)]
mod both_ways;
#[cfg(target_arch = "wasm32")]
mod component;
pub mod ctx;
pub mod engine;
pub mod error;
pub mod host;
pub mod json;
pub mod modules;
pub mod outcome;
#[cfg(target_arch = "wasm32")]
mod preview1;
pub mod script;
#[cfg(test)]
mod tests;
