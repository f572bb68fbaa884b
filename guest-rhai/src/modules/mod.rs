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
mod unique;
mod url;
mod uuid;
mod values;

use rhai::{Engine, EvalAltResult, Module};

use crate::error;
use crate::host::{Problem, kind};

/// Which call of a script a native function answers. Only it knows where the call stands.
type Context<'a> = rhai::NativeCallContext<'a>;

/// What a native function answers.
type Native<T> = Result<T, Box<EvalAltResult>>;

/// An error of the call `call`: what it was given is wrong.
fn fail<T>(
    context: &Context<'_>,
    call: &'static str,
    problem: impl std::fmt::Display,
) -> Native<T> {
    refused(
        context,
        call,
        Problem::new(kind::INVALID, problem.to_string()),
    )
}

/// An error of the call `call`: the host refused it.
fn refused<T>(context: &Context<'_>, call: &'static str, problem: Problem) -> Native<T> {
    Err(error::thrown(context, call, problem))
}

/// Teach the engine all of them.
pub fn register(engine: &mut Engine) {
    kv::register_collection(engine);
    time::register_sleep(engine);
    values::register(engine);
    let modules: [(&str, Module); 14] = [
        ("base64", base64::module()),
        ("dead_letters", dead_letters::module()),
        ("hex", hex::module()),
        ("json", json::module()),
        ("kv", kv::module()),
        ("log", log::module()),
        ("num", values::module()),
        ("pubsub", pubsub::module()),
        ("random", random::module()),
        ("regex", regex::module()),
        ("secrets", secrets::module()),
        ("time", time::module()),
        ("url", url::module()),
        ("uuid", uuid::module()),
    ];
    for (name, module) in modules {
        engine.register_static_module(name, module.into());
    }
}
