//! The SDK: the modules that a script calls. Each registers itself; each failure throws a
//! message that begins with the call.

mod base64;
mod dead_letters;
mod hex;
mod json;
mod kv;
mod log;
mod pubsub;
mod random;
mod regex;
mod secrets;
mod time;
mod url;

use rhai::{Engine, EvalAltResult, Module};

/// What a native function answers.
type Native<T> = Result<T, Box<EvalAltResult>>;

/// An error of the call `call`.
fn fail<T>(call: &str, problem: impl std::fmt::Display) -> Native<T> {
    Err(format!("{call}: {problem}").into())
}

/// Teach the engine all of them.
pub fn register(engine: &mut Engine) {
    kv::register_collection(engine);
    time::register_sleep(engine);
    let modules: [(&str, Module); 12] = [
        ("base64", base64::module()),
        ("dead_letters", dead_letters::module()),
        ("hex", hex::module()),
        ("json", json::module()),
        ("kv", kv::module()),
        ("log", log::module()),
        ("pubsub", pubsub::module()),
        ("random", random::module()),
        ("regex", regex::module()),
        ("secrets", secrets::module()),
        ("time", time::module()),
        ("url", url::module()),
    ];
    for (name, module) in modules {
        engine.register_static_module(name, module.into());
    }
}
