//! The log of one execution, bounded in lines and bytes.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::redact::Redaction;
use crate::json::Json;

/// How many lines an execution keeps at most, however short they are.
const LINES_MAX: usize = 10_000;
/// What a line costs besides its text: its time, its level and its JSON.
const LINE_OVERHEAD_BYTES: usize = 64;
/// What a field costs besides its name and its value.
const FIELD_OVERHEAD_BYTES: usize = 32;

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

    /// Keep a line without the secrets that were read, cut to what is left; none where it is dropped.
    /// Nothing looks at more of it than could be kept, so that a million lines, or one of many
    /// megabytes, cost the guest its own fuel and us no memory.
    pub(super) fn write(
        &mut self,
        level: Level,
        mut message: String,
        fields: Vec<(String, String)>,
        redaction: &mut Redaction,
    ) -> Option<&LogLine> {
        if self.truncated {
            return None;
        }
        if self.lines.len() == LINES_MAX || self.bytes_left <= LINE_OVERHEAD_BYTES {
            self.truncated = true;
            return None;
        }
        self.bytes_left -= LINE_OVERHEAD_BYTES;
        self.truncated = message.len() > self.bytes_left;
        redaction.beginning(&mut message, self.bytes_left);
        message.shrink_to_fit();
        self.bytes_left = self.bytes_left.saturating_sub(message.len());
        let mut kept = BTreeMap::new();
        for (mut name, mut value) in fields {
            let bytes = name.len() + value.len() + FIELD_OVERHEAD_BYTES;
            if bytes > self.bytes_left {
                self.truncated = true;
                break;
            }
            self.bytes_left -= bytes;
            redaction.text(&mut name);
            redaction.text(&mut value);
            // A guest that sends something else than JSON gets it back as text, and so does one whose
            // secret was a number.
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
        let write = |log: &mut Log, message: String| {
            log.write(Level::Info, message, Vec::new(), &mut Redaction::default());
        };
        write(&mut log, "x".repeat(50));
        write(&mut log, "é".repeat(50));
        write(&mut log, "never kept".into());
        let (lines, truncated) = log.into_parts();
        assert!(truncated);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1].message, "é".repeat(11));
    }

    #[test]
    fn a_log_is_cut_at_its_lines_and_says_so() {
        let mut log = Log::new(u64::MAX);
        for _ in 0..LINES_MAX + 1 {
            log.write(
                Level::Info,
                String::new(),
                Vec::new(),
                &mut Redaction::default(),
            );
        }
        let (lines, truncated) = log.into_parts();
        assert_eq!((lines.len(), truncated), (LINES_MAX, true));
    }

    #[test]
    fn small_fields_are_counted_as_what_they_take() {
        let mut log = Log::new(1_000);
        let fields = (0..500).map(|n| (format!("{n}"), "1".to_owned()));
        log.write(
            Level::Info,
            String::new(),
            fields.collect(),
            &mut Redaction::default(),
        );
        let (lines, truncated) = log.into_parts();
        assert!(truncated && lines[0].fields.len() < 1_000 / FIELD_OVERHEAD_BYTES);
    }

    #[test]
    fn a_secret_is_in_no_part_of_a_line() {
        let mut redaction = Redaction::default();
        redaction.add("12345678");
        redaction.add("line\none \"quoted\"");
        let fields = [
            ("12345678", "12345678"),
            ("map", r#"{"12345678":"line\none \"quoted\""}"#),
        ];
        let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut log = Log::new(1_000);
        log.write(
            Level::Info,
            "12345678!".into(),
            fields.into(),
            &mut redaction,
        );
        let (lines, _) = log.into_parts();
        let written = serde_json::to_string(&lines[0].fields).unwrap();
        assert_eq!(lines[0].message, "***!");
        assert_eq!(written, r#"{"***":"***","map":{"***":"***"}}"#);
    }
}
