//! Executions: what ran, what it logged and what became of it.

pub mod api;
pub mod imports;
pub mod running;
pub mod sql;
pub mod tally;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::apps::AppId;
use crate::sandbox::{LogLine, Outcome, Report};
use crate::scripts::ScriptId;
use crate::store::Id;
use crate::triggers::TriggerId;

/// The id of an execution.
pub type ExecutionId = Id<Execution>;

/// One run of a guest.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Execution {
    /// Its id; the first attempt at a delivery has the delivery's.
    pub id: ExecutionId,
    /// The app.
    pub app_id: AppId,
    /// The script.
    pub script_id: ScriptId,
    /// The version that ran; 0 when none could.
    pub script_version: u32,
    /// The delivery that it was an attempt at, if it came through the outbox.
    pub delivery_id: Option<Uuid>,
    /// Which attempt, counted from 1.
    pub attempt: u32,
    /// The execution that caused it, if one did.
    pub parent_id: Option<ExecutionId>,
    /// The trigger that fired it, if one did.
    pub trigger_id: Option<TriggerId>,
    /// What fired it: `http`, `http_async`, `execute`, `kv` or `dead_letter`.
    pub invocation_type: String,
    /// The request that it all began with.
    pub request_id: Uuid,
    /// The trace that the request belongs to, if it has one.
    pub trace_id: Option<String>,
    /// What became of it.
    pub outcome: OutcomeKind,
    /// The status that a sync caller was answered, if one was.
    pub status: Option<u16>,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// How long it took.
    pub duration_us: u64,
    /// How much fuel it used.
    pub fuel: u64,
    /// What went wrong, if anything did.
    pub error: Option<ExecutionError>,
}

/// The log of an execution.
#[derive(Debug, Clone, Default)]
pub struct Log {
    /// The lines, oldest first.
    pub lines: Vec<LogLine>,
    /// Whether lines were dropped at a limit.
    pub truncated: bool,
}

/// What went wrong in an execution, for the author of its script.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExecutionError {
    /// What, in a sentence.
    pub message: String,
    /// The line of the source, from 1.
    pub line: Option<u32>,
    /// The column of the source, from 1.
    pub column: Option<u32>,
    /// The call that failed, innermost first.
    #[serde(default)]
    pub calls: Vec<String>,
}

impl ExecutionError {
    /// An error without a place in the source.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            line: None,
            column: None,
            calls: Vec::new(),
        }
    }

    /// The same with as much of it as is kept: a guest throws what it likes, and lists of executions,
    /// dead letters and their attempts have it.
    fn bounded(mut self) -> Self {
        cut(&mut self.message, MESSAGE_BYTES_MAX);
        self.calls.truncate(CALLS_MAX);
        self.calls
            .iter_mut()
            .for_each(|call| cut(call, CALL_BYTES_MAX));
        self
    }
}

/// The most of an error's message that is kept.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// The most calls that an error names: Rhai allows no deeper ones.
const CALLS_MAX: usize = 64;
/// The most of a call that is kept.
const CALL_BYTES_MAX: usize = 1024;

/// Cut a text that has more than `bytes_max` bytes, and say so in its place.
fn cut(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let bytes = text.len();
        text.truncate(text.floor_char_boundary(bytes_max));
        text.push_str(&format!("… (cut; it has {bytes} bytes)"));
    }
}

macro_rules! outcomes {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// What became of an execution, as one word.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub enum OutcomeKind {
            $($(#[$doc])* #[serde(rename = $word)] $name,)*
        }

        impl OutcomeKind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word in the database, the API and the metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

outcomes! {
    /// The script answered.
    Answered = "answered",
    /// It threw.
    Threw = "threw",
    /// Its source does not validate.
    InvalidSource = "invalid_source",
    /// What it answered is no response.
    InvalidResponse = "invalid_response",
    /// It used up its fuel.
    FuelUsedUp = "fuel_used_up",
    /// It ran or waited for too long.
    TimedOut = "timed_out",
    /// It wanted more memory than its limit.
    MemoryExceeded = "memory_exceeded",
    /// It called too deeply.
    StackOverflow = "stack_overflow",
    /// Its response was larger than its limit.
    OutputTooLarge = "output_too_large",
    /// It called the host too often, or moved too many bytes.
    HostCallsExceeded = "host_calls_exceeded",
    /// The guest trapped.
    Trapped = "trapped",
    /// There was no room for another instance.
    NoCapacity = "no_capacity",
    /// The node had no more memory for it.
    NoMemory = "no_memory",
    /// Its script was deleted before it could run.
    ScriptDeleted = "script_deleted",
    /// Its app was deleted before it could run.
    AppDeleted = "app_deleted",
    /// Its trigger was deleted before it could run.
    TriggerDeleted = "trigger_deleted",
    /// Who registered its trigger was removed or disabled.
    PrincipalGone = "principal_gone",
    /// Our own fault.
    PlatformFault = "platform_fault",
}

impl OutcomeKind {
    /// Whether another attempt cannot do better: what is missing does not come back by itself.
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::ScriptDeleted | Self::AppDeleted | Self::TriggerDeleted | Self::PrincipalGone
        )
    }

    /// Whether the script never began: it did nothing that must not be done again.
    pub fn never_ran(self) -> bool {
        self.is_final() || matches!(self, Self::InvalidSource | Self::NoCapacity)
    }

    /// The outcome that a word names.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == word)
    }

    /// What a sandbox's outcome is called, and what its author should read.
    pub fn of(outcome: &Outcome) -> (Self, Option<ExecutionError>) {
        let (kind, error) = Self::whole_of(outcome);
        (kind, error.map(ExecutionError::bounded))
    }

    fn whole_of(outcome: &Outcome) -> (Self, Option<ExecutionError>) {
        let said = |kind, message: String| (kind, Some(ExecutionError::new(message)));
        match outcome {
            Outcome::Answered(_) => (Self::Answered, None),
            Outcome::InvalidSource(diagnostics) => {
                let first = diagnostics.first();
                let position = first.and_then(|diagnostic| diagnostic.position);
                let error = ExecutionError {
                    message: first.map_or_else(String::new, |first| first.message.clone()),
                    line: position.map(|position| position.line),
                    column: position.map(|position| position.column),
                    calls: Vec::new(),
                };
                (Self::InvalidSource, Some(error))
            }
            Outcome::Threw(thrown) => {
                let error = ExecutionError {
                    message: thrown.message.clone(),
                    line: thrown.position.map(|position| position.line),
                    column: thrown.position.map(|position| position.column),
                    calls: thrown.calls.clone(),
                };
                (Self::Threw, Some(error))
            }
            Outcome::InvalidResponse(problem) => said(Self::InvalidResponse, problem.clone()),
            Outcome::FuelUsedUp => said(Self::FuelUsedUp, "the script used up its fuel".into()),
            Outcome::TimedOut => said(
                Self::TimedOut,
                "the script took longer than its time limit".into(),
            ),
            Outcome::MemoryExceeded => said(
                Self::MemoryExceeded,
                "the script wanted more memory than its limit".into(),
            ),
            Outcome::StackOverflow => {
                said(Self::StackOverflow, "the script called too deeply".into())
            }
            Outcome::OutputTooLarge { bytes, bytes_max } => said(
                Self::OutputTooLarge,
                format!("the response has {bytes} bytes; the limit is {bytes_max}"),
            ),
            Outcome::HostCallsExceeded(limit) => said(Self::HostCallsExceeded, limit.to_string()),
            Outcome::Trapped(trap) => said(Self::Trapped, format!("the guest trapped: {trap}")),
            Outcome::NoCapacity => said(
                Self::NoCapacity,
                "the instance runs as many executions as it can".into(),
            ),
            Outcome::NoMemory(_) => said(
                Self::NoMemory,
                "the instance, or the app, has no more memory for executions now".into(),
            ),
            // The cause went to the operator's log; it is none of the author's business.
            Outcome::Platform(_) => said(Self::PlatformFault, "the platform failed".into()),
        }
    }
}

impl Log {
    /// The log of a report.
    pub fn of(report: &mut Report) -> Self {
        Self {
            lines: std::mem::take(&mut report.log),
            truncated: report.log_truncated,
        }
    }
}

/// A sync delivery whose caller did not receive the outcome.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct AbandonedExecution {
    /// Its id.
    pub id: Id<AbandonedExecution>,
    /// The execution that it was to be.
    pub execution_id: ExecutionId,
    /// The app.
    pub app_id: AppId,
    /// The script.
    pub script_id: ScriptId,
    /// Why nobody was there.
    pub reason: AbandonReason,
    /// When that was noticed.
    pub created_at: DateTime<Utc>,
}

/// Why a sync caller did not receive its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AbandonReason {
    /// The caller left.
    CallerGone,
    /// The caller was told that it took too long.
    TimedOut,
    /// The worker died, or lost its lease.
    LeaseExpired,
}

impl AbandonReason {
    /// The word in the database and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CallerGone => "caller_gone",
            Self::TimedOut => "timed_out",
            Self::LeaseExpired => "lease_expired",
        }
    }

    /// The reason that a word names.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::CallerGone, Self::TimedOut, Self::LeaseExpired]
            .into_iter()
            .find(|reason| reason.as_str() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Thrown;

    #[test]
    fn as_much_of_an_error_is_kept_as_somebody_reads() {
        let thrown = |message: String, calls| {
            Outcome::Threw(Thrown {
                message,
                position: None,
                calls,
            })
        };
        let (_, error) = OutcomeKind::of(&thrown("short".into(), vec!["f".into()]));
        let error = error.unwrap();
        assert_eq!((error.message.as_str(), error.calls.len()), ("short", 1));
        let long = thrown("ä".repeat(5_000_000), vec!["f".repeat(10_000); 10_000]);
        let error = OutcomeKind::of(&long).1.unwrap();
        assert!(error.message.starts_with("ää") && error.message.len() < 66_000);
        assert!(error.message.ends_with("… (cut; it has 10000000 bytes)"));
        let bytes: usize = error.calls.iter().map(String::len).sum();
        assert!(bytes < 300_000, "{bytes}");
    }
}
