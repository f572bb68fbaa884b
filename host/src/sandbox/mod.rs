//! The sandbox: runs a guest in a fresh WebAssembly instance, with fuel, a deadline and limits
//! on everything that it can make the host do.
//!
//! It knows nothing of HTTP or SQL, and nothing outside it names wasmtime. A guest has no
//! ambient authority: what it reaches is what `wit/` gives it, through [`Imports`].

mod artifact;
pub mod bindings;
mod compile;
mod components;
mod confine;
mod engine;
mod guest;
mod imports;
mod limiter;
mod log;
mod redact;
mod run;
mod trim;
mod turns;
mod wasi;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::budget::Exceeded;
use crate::fair_queue::QueueFull;

pub use artifact::Cached;
pub use bindings::types::{Diagnostic, Position, Thrown};
pub use compile::{CompileError, CompileLimits, compile_child_main};
pub use components::{Compiled, Component};
pub use confine::{has_landlock, has_seccomp};
pub use engine::{
    Sandbox, SandboxConfig, SandboxError, cached, executions_within, map_limit, maps_of,
};
pub use guest::RHAI_GUEST;
pub use imports::{
    DeadLetterImports, Imports, KvImports, LogImports, NoImports, PubSubImports, SecretImports,
};
pub use log::{Level, LogLine};
pub use turns::Crowd;

/// What an execution may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// WebAssembly instructions, roughly; 1,000,000 turns of a Rhai loop take 1.6 × 10⁹.
    pub fuel: u64,
    /// Wall-clock time, waiting included.
    pub timeout_ms: u64,
    /// Linear memory.
    pub memory_bytes: u64,
    /// The response's body.
    pub output_bytes: u64,
    /// All log lines together.
    pub log_bytes: u64,
}

/// The version of the contract in `wit/` that guests are told.
pub const SDK_VERSION: &str = "1.3.0";

const MIB: u64 = 1024 * 1024;

impl Limits {
    /// What a script gets that sets nothing: about a second of computing, ten of waiting.
    pub const DEFAULT: Self = Self {
        fuel: 5_000_000_000,
        timeout_ms: 10_000,
        memory_bytes: 64 * MIB,
        output_bytes: 4 * MIB,
        log_bytes: 256 * 1024,
    };

    /// What a script may set at most, unless the instance says otherwise.
    pub const CEILING: Self = Self {
        fuel: 500_000_000_000,
        timeout_ms: 300_000,
        memory_bytes: 256 * MIB,
        output_bytes: 32 * MIB,
        log_bytes: 4 * MIB,
    };
}

/// The request that fired an execution. A delivery keeps it as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The method, in upper case.
    pub method: String,
    /// The path as it was sent, without the query.
    pub path: String,
    /// The values of the route's parameters, decoded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub params: Vec<(String, String)>,
    /// The query's pairs, decoded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<(String, String)>,
    /// What the route's `{*rest}` matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<String>,
    /// The header fields, names in lower case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    /// The body, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Body>,
}

/// A body and what it claims to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    /// The `content-type`, if one was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// The bytes.
    #[serde(flatten, with = "body_text")]
    pub bytes: Bytes,
}

/// A body in JSON: as text where it is UTF-8, so that people can read and edit it, unless that is
/// longer than base64. What no text has, control characters, takes six characters each.
mod body_text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Text<'a> {
        Text(std::borrow::Cow<'a, str>),
        Base64(String),
    }

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) if is_short(text) => Text::Text(text.into()).serialize(to),
            _ => Text::Base64(STANDARD.encode(bytes)).serialize(to),
        }
    }

    /// Whether a text takes no more as a string of JSON than in base64.
    fn is_short(text: &str) -> bool {
        let more = text.bytes().map(|byte| match byte {
            b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 1,
            0..0x20 => 5,
            _ => 0,
        });
        // A few lines of code with many quotes in it are still for people to read.
        text.len() + more.sum::<usize>() <= 2 * text.len()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        match Text::deserialize(from)? {
            Text::Text(text) => Ok(Bytes::from(text.into_owned())),
            Text::Base64(text) => STANDARD
                .decode(text)
                .map(Bytes::from)
                .map_err(serde::de::Error::custom),
        }
    }
}

/// What a sync caller receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status, 200 to 599.
    pub status: u16,
    /// The header fields.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

/// Who acts.
#[derive(Debug, Clone)]
pub struct Principal {
    /// The id.
    pub id: Uuid,
    /// The name that people see.
    pub name: String,
    /// `user` or `api_key`.
    pub kind: &'static str,
}

/// What an execution knows of itself.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// The app's id.
    pub app_id: Uuid,
    /// The app's slug.
    pub app_slug: String,
    /// The script's id.
    pub script_id: Uuid,
    /// The script's name.
    pub script_name: String,
    /// The script's version.
    pub script_version: u32,
    /// The execution's id.
    pub execution_id: Uuid,
    /// The request that it all began with.
    pub request_id: Uuid,
    /// What fired it.
    pub invocation_type: String,
    /// Who acts, if anybody does.
    pub principal: Option<Principal>,
    /// How many events lie between that request and this.
    pub trigger_depth: u32,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// The event as JSON, if one fired it.
    pub event: Option<String>,
}

/// A Rhai script as the interpreter runs it. [`Sandbox::program`] makes it.
#[derive(Clone)]
pub enum Program {
    /// The compiled program: memory that is copied into every instance. It is good for the
    /// sandbox that made it only, and holds nothing but what the source says.
    Image(Arc<[u8]>),
    /// The source, which every execution compiles: of a script whose image would be too large.
    Source(Arc<str>),
}

impl Program {
    /// How many bytes it holds.
    pub fn size(&self) -> usize {
        match self {
            Self::Image(image) => image.len(),
            Self::Source(source) => source.len(),
        }
    }
}

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The source does not validate.
    #[error("the source does not validate: {0:?}")]
    Invalid(Vec<Diagnostic>),
    /// It could not be compiled within the limits.
    #[error("the source could not be compiled: {0:?}")]
    Ended(Outcome),
    /// Others wait to be compiled.
    #[error("sources wait to be compiled: {0}")]
    QueueFull(#[from] QueueFull),
}

/// What a guest runs.
#[derive(Clone)]
pub enum Code {
    /// A program for the Rhai interpreter.
    Rhai(Program),
    /// An uploaded component.
    Component(Component),
}

impl Code {
    /// Whether the Rhai interpreter runs it.
    fn is_interpreted(&self) -> bool {
        matches!(self, Self::Rhai(_))
    }
}

/// One execution to be.
pub struct Job<I> {
    /// What runs.
    pub code: Code,
    /// The request, if one fired it.
    pub request: Option<Request>,
    /// What the guest learns of itself.
    pub context: Arc<Context>,
    /// What it may use up.
    pub limits: Limits,
    /// What its imports do.
    pub imports: I,
}

/// What became of an execution.
#[derive(Debug)]
pub struct Report {
    /// The outcome.
    pub outcome: Outcome,
    /// The fuel that was used.
    pub fuel_used: u64,
    /// How long it took, instantiation included.
    pub duration: Duration,
    /// What was logged.
    pub log: Vec<LogLine>,
    /// Whether log lines were dropped at a limit.
    pub log_truncated: bool,
}

/// How an execution ended. Every way is a value of this type; none is an error.
#[derive(Debug)]
pub enum Outcome {
    /// With a response.
    Answered(Response),
    /// The source does not validate.
    InvalidSource(Vec<Diagnostic>),
    /// The guest threw.
    Threw(Thrown),
    /// What it returned is no response; the text names the field.
    InvalidResponse(String),
    /// It used up its fuel.
    FuelUsedUp,
    /// It ran or waited past its deadline.
    TimedOut,
    /// It wanted more memory than its limit.
    MemoryExceeded,
    /// It called too deeply.
    StackOverflow,
    /// Its response's body is larger than its limit.
    OutputTooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// It called the host more often, or moved more bytes, than any script should.
    HostCallsExceeded(HostLimit),
    /// It trapped; the text is wasmtime's name of the trap.
    Trapped(String),
    /// The pool has no room for another instance.
    NoCapacity,
    /// All guests of the node, or of the app, hold as much memory as they may.
    NoMemory(Exceeded),
    /// Our own fault; the text is for the operator.
    Platform(String),
}

/// A limit on what a guest makes the host do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostLimit {
    /// How often it may call.
    Calls(u64),
    /// How many bytes its calls may carry, both ways together.
    Bytes(u64),
    /// How many bytes of secrets it may read.
    SecretBytes(u64),
}

impl fmt::Display for HostLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Calls(most) => write!(f, "the script called the host more than {most} times"),
            Self::Bytes(most) => {
                write!(f, "the script's host calls carried more than {most} bytes")
            }
            Self::SecretBytes(most) => {
                write!(f, "the script read more than {most} bytes of secrets")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_the_outbox_whatever_its_body() {
        for bytes in [&b"{\"a\":1}"[..], b"\xff\x00", b""] {
            let body = Body {
                content_type: Some("x/y".into()),
                bytes: Bytes::from_static(bytes),
            };
            let request = Request {
                method: "POST".into(),
                body: Some(body),
                ..Request::default()
            };
            let text = serde_json::to_string(&request).unwrap();
            assert_eq!(
                serde_json::from_str::<Request>(&text).unwrap(),
                request,
                "{text}"
            );
        }
    }

    #[test]
    fn a_body_takes_at_most_twice_its_length_in_the_outbox() {
        for byte in 0..=u8::MAX {
            let bytes = Bytes::from(vec![byte; 10_000]);
            let body = Body {
                content_type: None,
                bytes,
            };
            let text = serde_json::to_string(&body).unwrap();
            assert!(text.len() < 20_100, "{byte}: {}", text.len());
            assert_eq!(serde_json::from_str::<Body>(&text).unwrap(), body);
        }
    }
}
