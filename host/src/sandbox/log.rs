//! The log of one execution, bounded in lines and bytes.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::json::Json;

/// How many lines an execution keeps at most, however short they are.
const LINES_MAX: usize = 10_000;
/// What a line costs besides its text: its time, its level and its JSON.
const LINE_OVERHEAD_BYTES: usize = 64;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "LogLevel")]
pub enum Level {
    /// The finest detail.
    Trace,
    /// For whoever debugs.
    Debug,
    /// What happens when all is well.
    Info,
    /// Something to look at.
    Warn,
    /// Something failed.
    Error,
}

/// A line of an execution's log.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct LogLine {
    /// When it was written.
    pub at: DateTime<Utc>,
    /// How much it matters.
    pub level: Level,
    /// What it says.
    pub message: String,
    /// The named values that belong to it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub fields: BTreeMap<String, Json>,
}

/// Keeps lines until a limit is reached; from then on it is truncated and keeps no more.
pub(super) struct Log {
    lines: Vec<LogLine>,
    bytes_left: usize,
    truncated: bool,
}

impl Log {
    pub(super) fn new(bytes_max: u64) -> Self {
        let bytes_left = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        Self {
            lines: Vec::new(),
            bytes_left,
            truncated: false,
        }
    }

    /// Keep a line, cut to what is left; none where it is dropped. That costs next to nothing, so
    /// that a million of them cost the guest its own fuel and us no memory.
    pub(super) fn write(
        &mut self,
        level: Level,
        mut message: String,
        fields: Vec<(String, String)>,
    ) -> Option<&LogLine> {
        if self.truncated {
            return None;
        }
        if self.lines.len() == LINES_MAX || self.bytes_left <= LINE_OVERHEAD_BYTES {
            self.truncated = true;
            return None;
        }
        self.bytes_left -= LINE_OVERHEAD_BYTES;
        if message.len() > self.bytes_left {
            message.truncate(message.floor_char_boundary(self.bytes_left));
            self.truncated = true;
        }
        self.bytes_left -= message.len();
        let mut kept = BTreeMap::new();
        for (name, value) in fields {
            let bytes = name.len() + value.len();
            if bytes > self.bytes_left {
                self.truncated = true;
                break;
            }
            self.bytes_left -= bytes;
            // A guest that sends something else than JSON gets it back as text.
            let value = Json::parse(value.clone()).unwrap_or_else(|_| Json::text(&value));
            kept.insert(name, value);
        }
        let at = micros_now();
        self.lines.push(LogLine {
            at,
            level,
            message,
            fields: kept,
        });
        self.lines.last()
    }

    pub(super) fn into_parts(self) -> (Vec<LogLine>, bool) {
        (self.lines, self.truncated)
    }
}

fn micros_now() -> DateTime<Utc> {
    use chrono::{DurationRound, TimeDelta};
    let now = Utc::now();
    now.duration_trunc(TimeDelta::microseconds(1))
        .unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_cut_at_its_bytes_and_says_so() {
        let mut log = Log::new(200);
        log.write(Level::Info, "x".repeat(50), Vec::new());
        log.write(Level::Info, "é".repeat(50), Vec::new());
        log.write(Level::Info, "never kept".into(), Vec::new());
        let (lines, truncated) = log.into_parts();
        assert!(truncated);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1].message, "é".repeat(11));
    }

    #[test]
    fn a_log_is_cut_at_its_lines_and_says_so() {
        let mut log = Log::new(u64::MAX);
        for _ in 0..LINES_MAX + 1 {
            log.write(Level::Info, String::new(), Vec::new());
        }
        let (lines, truncated) = log.into_parts();
        assert_eq!((lines.len(), truncated), (LINES_MAX, true));
    }
}
