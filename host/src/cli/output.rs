//! What the CLI prints: tables for people, JSON for programs.

use std::fmt;
use std::io::{self, Write};

use serde_json::{Value, json};

use crate::json::Json;

/// What a shell says of a program that SIGPIPE ended: 128 and the signal's number.
const CLOSED_PIPE: i32 = 128 + 13;

/// Print to standard output. Where nobody reads on, the program ends without a word, as others
/// do; we do not leave that to SIGPIPE, because it would also come from a server's connection.
pub(super) fn print(text: fmt::Arguments<'_>) {
    let mut stdout = io::stdout().lock();
    let Err(error) = stdout.write_fmt(text).and_then(|()| stdout.flush()) else {
        return;
    };
    if error.kind() != io::ErrorKind::BrokenPipe {
        eprintln!("error: standard output cannot be written: {error}");
        std::process::exit(1);
    }
    std::process::exit(CLOSED_PIPE);
}

/// How to print.
pub(super) struct Output {
    pub(super) json: bool,
}

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server said no: its problem document.
    Problem(Value),
    /// The server cannot be reached.
    Unreachable(String),
    /// What was asked about failed, a script say; it was shown already.
    Shown,
    /// The command cannot be done as it was given.
    Usage(String),
    /// Something on this machine failed.
    Local(String),
}

impl Failure {
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Shown | Self::Local(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 6,
            Self::Problem(problem) => match problem["status"].as_u64() {
                Some(404) => 3,
                Some(401 | 403) => 5,
                Some(400..500) => 4,
                _ => 6,
            },
        }
    }
}

/// That there is no such thing, as the server says it.
pub(super) fn missing(detail: String) -> Failure {
    Failure::Problem(json!({ "status": 404, "title": "Not found", "detail": detail }))
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Local(error.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Local(format!("{error:#}"))
    }
}

impl Output {
    /// Print one document, or for people what `human` makes of it.
    pub(super) fn show(&self, value: &Value, human: impl FnOnce(&Value)) {
        if self.json {
            println!("{value}");
        } else {
            human(value);
        }
    }

    /// Print what was done, for people only.
    pub(super) fn say(&self, text: impl std::fmt::Display) {
        if !self.json {
            println!("{text}");
        }
    }

    /// Print why it failed, to standard error.
    pub(super) fn failure(&self, failure: &Failure) {
        let problem = match failure {
            Failure::Shown => return,
            Failure::Problem(problem) => problem.clone(),
            Failure::Unreachable(text) | Failure::Usage(text) | Failure::Local(text) => {
                json!({ "title": text })
            }
        };
        if self.json {
            eprintln!("{problem}");
            return;
        }
        let text = |key: &str| problem[key].as_str().filter(|text| !text.is_empty());
        eprintln!(
            "error: {}",
            text("detail")
                .or(text("title"))
                .unwrap_or("the server gave no reason")
        );
        if let Some(field) = text("field") {
            eprintln!("  field: {field}");
        }
        if let Some(id) = text("execution_id") {
            eprintln!("  execution: {id}");
        }
        if let Some(other) = problem["conflicting_route"]["id"].as_str() {
            eprintln!("  conflicts with route: {other}");
        }
        if problem["status"] == 401 {
            eprintln!("  sign in with: picloud login");
        }
    }
}

/// Print rows under headings, each column as wide as it must be.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells.chain([headings[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        println!("{}", padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(&mut headings.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
}

/// A value as a cell of a table.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What somebody gave as `name`: JSON, or else a text.
pub(super) fn json_or_text(name: &str, text: &str) -> Result<Json, Failure> {
    match Json::parse(text.to_owned()) {
        Ok(json) => Ok(json),
        Err(refused) if refused.is_malformed() => Ok(Json::text(text)),
        Err(refused) => Err(Failure::Usage(format!("{name}: {refused}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_tells_what_kind_of_failure_it_was() {
        let code = |status: u16| Failure::Problem(json!({ "status": status })).exit_code();
        let codes = [404, 401, 403, 409, 422, 413, 500, 503].map(code);
        assert_eq!(codes, [3, 5, 5, 4, 4, 4, 6, 6]);
    }
}
