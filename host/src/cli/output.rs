//! What the CLI prints: tables for people, JSON for programs.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::answer::{Answer, Members, Problem};
use super::terminal;
use crate::json::Json;

/// What a shell says of a program that SIGPIPE ended: 128 and the signal's number.
const CLOSED_PIPE: i32 = 128 + 13;
/// How far a long cell pushes the columns behind it; what is longer stands out.
const COLUMN_CHARS_MAX: usize = 60;

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

/// Print to standard error, if somebody reads it.
pub(super) fn complain(text: fmt::Arguments<'_>) {
    let _ = io::stderr().lock().write_fmt(text);
}

/// Print a JSON text: as it is into a file or a pipe, and on a terminal so that it does nothing.
pub(super) fn print_json(text: &str) {
    match io::stdout().is_terminal() {
        true => println!("{}", terminal::json(text)),
        false => println!("{text}"),
    }
}

/// The same for any text.
pub(super) fn print_text(text: &str) {
    match io::stdout().is_terminal() {
        true => print!("{}", terminal::lines(text)),
        false => print!("{text}"),
    }
}

/// How to print.
pub(super) struct Output {
    pub(super) json: bool,
}

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server said no.
    Problem(Box<Problem>),
    /// There is no such thing, as we found by looking.
    Missing(String),
    /// What is there is in the way.
    Conflict(String),
    /// Nobody is signed in.
    SignIn(String),
    /// The server cannot be reached.
    Unreachable(String),
    /// What answered is no PiCloud, or none that we understand.
    Foreign(String),
    /// What was asked about failed, a script say; it was shown already.
    Shown,
    /// The command cannot be done as it was given.
    Usage(String),
    /// Something on this machine failed.
    Local(String),
}

impl Failure {
    /// As `--help` lists them: see [`super::EXIT_CODES`].
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Shown | Self::Local(_) => 1,
            Self::Usage(_) => 2,
            Self::Missing(_) => 3,
            Self::Conflict(_) => 4,
            Self::SignIn(_) => 5,
            Self::Unreachable(_) | Self::Foreign(_) => 6,
            Self::Problem(problem) if problem.is_of_unknown_path() => 6,
            Self::Problem(problem) => match problem.status {
                404 => 3,
                401 | 403 => 5,
                400..500 => 4,
                _ => 6,
            },
        }
    }

    /// Whether the server said that there is no such thing.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Problem(problem) if problem.status == 404 && !problem.is_of_unknown_path())
    }

    /// Whether it may be over in a moment: the server restarts, or what stands before it says so.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Problem(problem) => problem.status >= 500,
            _ => false,
        }
    }
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
    /// Print what the server answered, as it did, or for people what `human` makes of it.
    pub(super) fn show<T>(&self, answer: &Answer<T>, human: impl FnOnce(&T)) {
        match self.json {
            true => print_json(answer.text()),
            false => human(answer),
        }
    }

    /// The same for a document of our own.
    pub(super) fn show_own(&self, value: &impl Serialize, human: impl FnOnce()) {
        match self.json {
            true => print_json(Json::written(value).as_str()),
            false => human(),
        }
    }

    /// Print what the server answered, for people a member a line.
    pub(super) fn show_members<T>(&self, answer: &Answer<T>) {
        self.show(answer, |_| {
            for (name, value) in Members::of(answer.text()).iter() {
                println!("{:<14} {}", terminal::line(name), cell(value));
            }
        });
    }

    /// Print a list, for people as a table of these members, or what to do when it is empty.
    pub(super) fn list<T>(&self, items: &[Answer<T>], members: &[&str], empty: &str) {
        let texts: Vec<&RawValue> = items.iter().map(Answer::raw).collect();
        self.show_own(&texts, || {
            if texts.is_empty() {
                return println!("{empty}");
            }
            let headings: Vec<String> = members.iter().map(|name| name.to_uppercase()).collect();
            let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
            let row = |item: &&RawValue| {
                let item = Members::of(item.get());
                let cells = members
                    .iter()
                    .map(|name| item.get(name).map_or_else(none, cell));
                cells.collect()
            };
            table(&headings, &texts.iter().map(row).collect::<Vec<_>>());
        });
    }

    /// Print what was done, for people only.
    pub(super) fn say(&self, text: impl fmt::Display) {
        if !self.json {
            println!("{text}");
        }
    }

    /// Print why it failed, to standard error.
    pub(super) fn failure(&self, failure: &Failure) {
        let text = match failure {
            Failure::Shown => return,
            Failure::Problem(problem) => return self.problem(problem),
            Failure::Missing(text)
            | Failure::Conflict(text)
            | Failure::SignIn(text)
            | Failure::Unreachable(text)
            | Failure::Foreign(text)
            | Failure::Usage(text)
            | Failure::Local(text) => text,
        };
        match self.json {
            true => eprintln!("{}", json!({ "title": text })),
            false => eprintln!("error: {}", terminal::lines(text)),
        }
    }

    fn problem(&self, problem: &Problem) {
        if self.json {
            return eprintln!("{}", problem.text());
        }
        eprintln!("error: {}", terminal::line(problem.says()));
        let more = [
            ("field", problem.field.as_deref()),
            ("execution", problem.execution_id.as_deref()),
            ("error", problem.error_id.as_deref()),
        ];
        for (name, value) in more {
            if let Some(value) = value {
                eprintln!("  {name}: {}", terminal::line(value));
            }
        }
        if let Some(other) = &problem.conflicting_route {
            eprintln!("  conflicts with route: {}", terminal::line(&other.id));
        }
        if problem.asks_to_sign_in() {
            eprintln!("  sign in with: picloud login");
        }
    }
}

/// Print rows under headings, each column as wide as it must be, up to a bound: what is longer
/// pushes only its own row.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        let heading = headings.get(column).map_or(0, |heading| heading.len());
        let widest = cells.map(|width| width.min(COLUMN_CHARS_MAX));
        widest.chain([heading]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).map(|(cell, width)| {
            let missing = width.saturating_sub(cell.chars().count());
            format!("{cell}{}", " ".repeat(missing))
        });
        println!("{}", padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(&mut headings.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
}

fn none() -> String {
    "-".to_owned()
}

/// A value as a cell of a table: a text as it reads, anything else as its JSON.
pub(super) fn cell(value: &RawValue) -> String {
    let text = value.get();
    if text == "null" {
        return none();
    }
    match text
        .starts_with('"')
        .then(|| serde_json::from_str::<String>(text))
    {
        Some(Ok(text)) => terminal::line(&text).into_owned(),
        _ => terminal::line(&terminal::json(text)).into_owned(),
    }
}

/// A JSON text with a line for each of its values, none of which is touched.
pub(super) fn indented(json: &str) -> String {
    const STEP: &str = "  ";
    let mut text = String::with_capacity(json.len() * 2);
    let mut depth = 0_usize;
    let mut rest = json.chars().peekable();
    while let Some(c) = rest.next() {
        let line = |depth: usize| format!("\n{}", STEP.repeat(depth));
        match c {
            '"' => {
                text.push(c);
                while let Some(c) = rest.next() {
                    text.push(c);
                    match c {
                        '\\' => text.extend(rest.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            '{' | '[' => {
                text.push(c);
                while rest.next_if(char::is_ascii_whitespace).is_some() {}
                if let Some(end) = rest.next_if(|c| matches!(c, '}' | ']')) {
                    text.push(end);
                } else {
                    depth += 1;
                    text.push_str(&line(depth));
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                text.push_str(&line(depth));
                text.push(c);
            }
            ',' => {
                text.push(c);
                text.push_str(&line(depth));
            }
            ':' => text.push_str(": "),
            c if c.is_ascii_whitespace() => {}
            c => text.push(c),
        }
    }
    text
}

/// What somebody gave as `name`: JSON, or else a text. What begins as JSON does and is none was
/// mistyped rather than meant as a text.
pub(super) fn json_or_text(name: &str, text: &str, is_text: bool) -> Result<Json, Failure> {
    if is_text {
        return Ok(Json::text(text));
    }
    match Json::parse(text.to_owned()) {
        Ok(json) => Ok(json),
        Err(refused) => {
            let is_begun = text.trim_start().starts_with(['{', '[', '"']);
            match (refused.is_malformed(), is_begun) {
                (true, false) => Ok(Json::text(text)),
                (true, true) => Err(Failure::Usage(format!(
                    "{name}: {refused}; if it is meant as a text and not as JSON, say --text"
                ))),
                (false, _) => Err(Failure::Usage(format!("{name}: {refused}"))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_tells_what_kind_of_failure_it_was() {
        let code = |status: u16| Failure::Problem(Box::new(Problem::example(status))).exit_code();
        let codes = [404, 401, 403, 409, 410, 422, 413, 500, 503].map(code);
        assert_eq!(codes, [3, 5, 5, 4, 4, 4, 4, 6, 6]);
    }

    #[test]
    fn a_cell_is_one_line_and_keeps_numbers_as_they_are() {
        let cell = |json: &str| cell(&RawValue::from_string(json.to_owned()).unwrap());
        assert_eq!(cell("null"), "-");
        assert_eq!(cell(r#""a\u001b[0m\nb""#), r"a\u{1b}[0m\nb");
        assert_eq!(cell("9007199254740993"), "9007199254740993");
        assert_eq!(cell("[10.0, 1e-7]"), "[10.0, 1e-7]");
        assert_eq!(cell("[\n \"\u{9b}\"]"), "[\\n \"\\u009b\"]");
    }

    #[test]
    fn what_is_indented_stays_the_same_value() {
        for (json, text) in [
            ("10.0", "10.0"),
            (r#" { } "#, "{}"),
            (
                r#"{"a":[1e400 ,9007199254740993],"b\"}":"x, {\\"}"#,
                "{\n  \"a\": [\n    1e400,\n    9007199254740993\n  ],\n  \"b\\\"}\": \"x, {\\\\\"\n}",
            ),
        ] {
            assert_eq!(indented(json), text);
        }
    }

    #[test]
    fn what_begins_as_json_and_is_none_is_asked_about() {
        let given = |text: &str| json_or_text("VALUE", text, false);
        for (text, json) in [
            ("42", "42"),
            ("10.0", "10.0"),
            ("plain words", "\"plain words\""),
            ("2026-01-31", "\"2026-01-31\""),
            ("[1, 2]", "[1, 2]"),
        ] {
            assert_eq!(given(text).unwrap().as_str(), json);
        }
        for mistyped in ["{n: 1}", "[1, 2", " {\"a\": 1,}", "\"open"] {
            let Err(Failure::Usage(says)) = given(mistyped) else {
                panic!("{mistyped}");
            };
            assert!(says.contains("--text"), "{says}");
            let text = json_or_text("VALUE", mistyped, true).unwrap();
            assert_eq!(
                serde_json::from_str::<String>(text.as_str()).unwrap(),
                mistyped
            );
        }
    }
}
