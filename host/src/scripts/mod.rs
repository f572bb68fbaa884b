//! Scripts: the named, versioned functions of an app.

pub mod api;
mod named;
pub mod runner;
pub mod sql;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::apps::AppId;
use crate::executions::ExecutionId;
use crate::fair_queue::QueueFull;
use crate::quotas::{Full, objects::TooMany};
use crate::sandbox::{CompileError, Diagnostic, Limits};
use crate::store::{Id, StoreError};

/// The id of a script.
pub type ScriptId = Id<Script>;

/// A function of an app.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Script {
    /// Its id.
    pub id: ScriptId,
    /// The app that it belongs to.
    pub app_id: AppId,
    /// Its name, unique in the app.
    pub name: String,
    /// What its code is.
    pub kind: Kind,
    /// The current version, counted from 1.
    pub version: u32,
    /// The limits that it sets itself.
    pub limits: ScriptLimits,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

/// What a script's code is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "ScriptKind")]
pub enum Kind {
    /// A source text for the Rhai interpreter.
    Rhai,
    /// A WebAssembly component of the world `picloud:function/function`.
    Component,
}

impl Kind {
    /// The word in the database and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rhai => "rhai",
            Self::Component => "component",
        }
    }
}

/// The limits that a script sets; what it leaves out is the instance's default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScriptLimits {
    /// WebAssembly instructions, roughly.
    #[schemars(range(min = 1))]
    pub fuel: Option<u64>,
    /// Wall-clock time, waiting included.
    #[schemars(range(min = 1))]
    pub timeout_ms: Option<u64>,
    /// Linear memory.
    #[schemars(range(min = 1))]
    pub memory_bytes: Option<u64>,
    /// The response's body.
    #[schemars(range(min = 1))]
    pub output_bytes: Option<u64>,
    /// All log lines together.
    #[schemars(range(min = 1))]
    pub log_bytes: Option<u64>,
}

impl ScriptLimits {
    /// The limits that an execution gets.
    pub fn over(&self, default: Limits) -> Limits {
        Limits {
            fuel: self.fuel.unwrap_or(default.fuel),
            timeout_ms: self.timeout_ms.unwrap_or(default.timeout_ms),
            memory_bytes: self.memory_bytes.unwrap_or(default.memory_bytes),
            output_bytes: self.output_bytes.unwrap_or(default.output_bytes),
            log_bytes: self.log_bytes.unwrap_or(default.log_bytes),
        }
    }

    /// The first member that is 0 or above the instance's ceiling, with its ceiling.
    pub fn first_outside(&self, ceiling: &Limits) -> Option<(&'static str, u64)> {
        let members = [
            ("limits.fuel", self.fuel, ceiling.fuel),
            ("limits.timeout_ms", self.timeout_ms, ceiling.timeout_ms),
            (
                "limits.memory_bytes",
                self.memory_bytes,
                ceiling.memory_bytes,
            ),
            (
                "limits.output_bytes",
                self.output_bytes,
                ceiling.output_bytes,
            ),
            ("limits.log_bytes", self.log_bytes, ceiling.log_bytes),
        ];
        members.into_iter().find_map(|(name, value, most)| {
            value
                .is_some_and(|value| value == 0 || value > most)
                .then_some((name, most))
        })
    }
}

/// What can go wrong with scripts.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// No such script.
    #[error("there is no script `{0}`")]
    NotFound(String),
    /// Another script of the app has the name.
    #[error("the app has another script named `{0}`")]
    NameTaken(String),
    /// It was changed since the caller read it.
    #[error("the script is at version {current} now, not {expected}: read it again and decide")]
    VersionConflict {
        /// What the caller changed.
        expected: u32,
        /// What is there.
        current: u32,
    },
    /// The source does not validate.
    #[error("the source has {} mistake(s)", .0.len())]
    InvalidSource(Vec<Diagnostic>),
    /// A component that the sandbox does not take; the text says why.
    #[error("{0}")]
    InvalidComponent(String),
    /// Too many wait to be compiled.
    #[error("too much waits to be compiled: {full}; try again")]
    QueueFull {
        /// How many wait.
        full: QueueFull,
        /// When to try again.
        retry_after_s: u64,
    },
    /// The script ran and did what it did; only its execution is not in the history.
    #[error("the script ran, and its execution {execution_id} could not be kept: {problem}")]
    NotKept {
        /// The execution that nobody will find.
        execution_id: ExecutionId,
        /// Why it is not kept.
        problem: StoreError,
    },
    /// The app has as many of them as it may.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// The app keeps as many versions as it may.
    #[error(transparent)]
    Full(#[from] Full),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The sandbox could not look at it.
    #[error("the sandbox failed: {0}")]
    Sandbox(String),
}

impl From<CompileError> for ScriptError {
    fn from(error: CompileError) -> Self {
        match error {
            CompileError::QueueFull {
                full,
                retry_after_s,
            } => Self::QueueFull {
                full,
                retry_after_s,
            },
            CompileError::Failed(problem) => Self::Sandbox(problem),
            error => Self::InvalidComponent(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_zero_or_above_the_ceiling_is_named() {
        let ceiling = Limits {
            fuel: 10,
            timeout_ms: 10,
            memory_bytes: 10,
            output_bytes: 10,
            log_bytes: 10,
        };
        let limits = |fuel, log_bytes| ScriptLimits {
            fuel,
            log_bytes,
            ..ScriptLimits::default()
        };
        assert_eq!(limits(Some(10), None).first_outside(&ceiling), None);
        assert_eq!(
            limits(Some(11), None).first_outside(&ceiling),
            Some(("limits.fuel", 10))
        );
        assert_eq!(
            limits(None, Some(0)).first_outside(&ceiling),
            Some(("limits.log_bytes", 10))
        );
    }
}
