//! What a script catches: an error of the SDK has the members that a language's error has, and is
//! used as its text where old scripts do that.

use std::fmt;

use rhai::{Dynamic, Engine, EvalAltResult, ImmutableString, Map, NativeCallContext, Position};

use crate::ctx::Unreadable;
use crate::host::{Problem, kind};

/// An error of the SDK, as a script catches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SdkError {
    /// The call that failed: `kv.get`; none where a member was asked for that there is not, or that
    /// cannot be read.
    pub call: Option<&'static str>,
    /// Which kind of problem it is.
    pub kind: &'static str,
    /// Where the call stands.
    pub position: Position,
    /// All that is told of it; begins with the call, if there is one.
    pub message: ImmutableString,
}

impl fmt::Display for SdkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl SdkError {
    fn thrown(self) -> Box<EvalAltResult> {
        let position = self.position;
        EvalAltResult::ErrorRuntime(Dynamic::from(self), position).into()
    }

    /// A member; none where errors have no such member.
    fn member(&self, name: &str) -> Option<Dynamic> {
        Some(match name {
            "message" => self.message.clone().into(),
            "kind" => self.kind.into(),
            "call" => self.call.map_or(Dynamic::UNIT, Dynamic::from),
            "error" => "ErrorRuntime".into(),
            "line" => number(self.position.line()),
            "position" => number(self.position.position()),
            _ => return None,
        })
    }

    /// The members that it has, as a caught error of the language has its own.
    pub fn to_map(&self) -> Map {
        ["message", "kind", "call", "error", "line", "position"]
            .into_iter()
            .filter_map(|name| Some((name.into(), self.member(name)?)))
            .filter(|(_, member)| !member.is_unit())
            .collect()
    }
}

/// Make an error of the call `call`.
pub fn thrown(
    context: &NativeCallContext<'_>,
    call: &'static str,
    problem: Problem,
) -> Box<EvalAltResult> {
    let error = SdkError {
        call: Some(call),
        kind: problem.kind,
        position: context.call_position(),
        message: format!("{call}: {}", problem.text).into(),
    };
    error.thrown()
}

/// Make an error of a member `name` that `owner` does not have.
pub fn no_such_member(
    context: &NativeCallContext<'_>,
    owner: &str,
    name: &str,
) -> Box<EvalAltResult> {
    let error = SdkError {
        call: None,
        kind: kind::INVALID,
        position: context.call_position(),
        message: format!("{owner} has no `{name}`").into(),
    };
    error.thrown()
}

/// Make an error of a member of `ctx` that cannot be read.
pub fn unreadable_member(
    context: &NativeCallContext<'_>,
    unreadable: &Unreadable,
) -> Box<EvalAltResult> {
    let error = SdkError {
        call: None,
        kind: kind::INVALID,
        position: context.call_position(),
        message: unreadable.to_string().into(),
    };
    error.thrown()
}

impl From<String> for Problem {
    fn from(text: String) -> Self {
        Self::new(kind::INVALID, text)
    }
}

impl From<&str> for Problem {
    fn from(text: &str) -> Self {
        Self::new(kind::INVALID, text)
    }
}

fn number(number: Option<usize>) -> Dynamic {
    let number = number.and_then(|number| i64::try_from(number).ok());
    number.map_or(Dynamic::UNIT, Dynamic::from)
}

/// Teach the engine errors.
pub fn register(engine: &mut Engine) {
    engine
        .register_type_with_name::<SdkError>("Error")
        .register_indexer_get(
            |context: NativeCallContext<'_>, error: &mut SdkError, name: &str| {
                let member = error.member(name);
                member.ok_or_else(|| no_such_member(&context, "an error", name))
            },
        )
        .register_fn("to_string", |error: &mut SdkError| error.message.clone())
        .register_fn("to_debug", |error: &mut SdkError| {
            format!("{:?}", error.message.as_str())
        });
    as_text(engine);
}

/// What scripts did to these errors when they were strings.
fn as_text(engine: &mut Engine) {
    type Error<'a> = &'a mut SdkError;
    engine
        .register_fn("==", |a: SdkError, b: SdkError| a.message == b.message)
        .register_fn("!=", |a: SdkError, b: SdkError| a.message != b.message)
        .register_fn("==", |a: SdkError, b: &str| a.message == b)
        .register_fn("!=", |a: SdkError, b: &str| a.message != b)
        .register_fn("==", |a: &str, b: SdkError| b.message == a)
        .register_fn("!=", |a: &str, b: SdkError| b.message != a)
        .register_fn("+", |a: SdkError, b: &str| format!("{}{b}", a.message))
        .register_fn("+", |a: &str, b: SdkError| format!("{a}{}", b.message))
        .register_fn("+=", |a: &mut ImmutableString, b: SdkError| {
            *a = format!("{a}{}", b.message).into();
        })
        .register_fn("len", |error: Error<'_>| {
            i64::try_from(error.message.chars().count()).unwrap_or(i64::MAX)
        })
        .register_fn("is_empty", |_: Error<'_>| false)
        .register_fn("contains", |error: Error<'_>, part: &str| {
            error.message.contains(part)
        })
        .register_fn("starts_with", |error: Error<'_>, part: &str| {
            error.message.starts_with(part)
        })
        .register_fn("ends_with", |error: Error<'_>, part: &str| {
            error.message.ends_with(part)
        })
        .register_fn("index_of", |error: Error<'_>, part: &str| -> i64 {
            let before = error.message.find(part);
            let before = before.map(|at| error.message[..at].chars().count());
            before.and_then(|at| i64::try_from(at).ok()).unwrap_or(-1)
        })
        .register_fn("split", |error: Error<'_>, by: &str| -> rhai::Array {
            error.message.split(by).map(Into::into).collect()
        })
        .register_fn("to_upper", |error: Error<'_>| error.message.to_uppercase())
        .register_fn("to_lower", |error: Error<'_>| error.message.to_lowercase())
        .register_fn("sub_string", |error: Error<'_>, from: i64| {
            sub_string(error, from, i64::MAX)
        })
        .register_fn("sub_string", |error: Error<'_>, from: i64, count: i64| {
            sub_string(error, from, count)
        });
}

fn sub_string(error: &SdkError, from: i64, count: i64) -> String {
    let count = usize::try_from(count).unwrap_or(0);
    let from = match usize::try_from(from) {
        Ok(from) => from,
        Err(_) => {
            let length = error.message.chars().count();
            let back = usize::try_from(from.unsigned_abs()).unwrap_or(usize::MAX);
            length.saturating_sub(back)
        }
    };
    error.message.chars().skip(from).take(count).collect()
}
