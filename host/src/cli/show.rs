//! `picloud invoke` and `picloud logs`: run scripts and see what became of it.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::answer::{Answer, Members};
use super::client::{Client, encoded};
use super::output::{Failure, Output, json_or_text, print_text};
use super::terminal::line;
use super::{AppArg, Done, input};
use crate::executions::ExecutionError;
use crate::json::Json;
use crate::scripts::{Script, ScriptId};

/// How often `--follow` looks.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);

/// Run a script now and show its answer.
#[derive(clap::Args)]
pub(super) struct Invoke {
    /// The script, by name or id
    script: String,
    #[command(flatten)]
    app: AppArg,
    /// The request's method
    #[arg(long, default_value = "POST")]
    method: String,
    /// The request's path
    #[arg(long, default_value = "/")]
    path: String,
    /// A header, like 'x-name: value'; may be repeated
    #[arg(long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// A query parameter, like 'name=value'; may be repeated
    #[arg(long = "query", value_name = "PAIR")]
    query: Vec<String>,
    /// The body: JSON, or text; - reads standard input
    #[arg(long, allow_negative_numbers = true)]
    data: Option<String>,
    /// The data is a text, whatever it looks like
    #[arg(long, requires = "data")]
    text: bool,
}

/// It, as it is sent.
#[derive(Serialize)]
struct Call {
    method: String,
    path: String,
    headers: BTreeMap<String, Vec<String>>,
    query: BTreeMap<String, Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Json>,
}

fn pairs(
    given: &[String],
    separator: char,
    what: &str,
) -> Result<BTreeMap<String, Vec<String>>, Failure> {
    let mut named = BTreeMap::<_, Vec<_>>::new();
    for text in given {
        let (name, value) = text.split_once(separator).ok_or_else(|| {
            Failure::Usage(format!(
                "`{text}`: a {what} is written name{separator}value"
            ))
        })?;
        let values = named.entry(name.trim().to_owned()).or_default();
        values.push(value.trim().to_owned());
    }
    Ok(named)
}

/// The id of the script that a name or an id names.
pub(super) fn script_id(client: &Client, app: &str, script: &str) -> Result<ScriptId, Failure> {
    let (app_path, name) = (encoded(app), encoded(script));
    let found = client.first::<Script>(&format!("/apps/{app_path}/scripts?name={name}"), 1)?;
    if let Some(found) = found.first() {
        return Ok(found.id);
    }
    script
        .parse()
        .map_err(|_| Failure::Missing(format!("the app `{app}` has no script `{script}`")))
}

/// What became of a run.
#[derive(Deserialize)]
struct Executed {
    execution_id: String,
    outcome: String,
    response: Option<ScriptAnswer>,
    error: Option<ExecutionError>,
    fuel: u64,
    duration_us: u64,
    logs: Vec<LogLine>,
    logs_truncated: bool,
}

/// What the script answered.
#[derive(Deserialize)]
struct ScriptAnswer {
    status: u16,
    /// None where it is no text.
    body: Option<String>,
}

/// A line of a log.
#[derive(Deserialize)]
struct LogLine {
    level: String,
    message: String,
    /// The named values that belong to it.
    #[serde(default)]
    fields: Members,
}

impl Invoke {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        let id = script_id(client, &self.app.app, &self.script)?;
        let data = match self.data.as_deref() {
            Some("-") => Some(input::stdin()?),
            _ => self.data,
        };
        let body = data.map(|data| json_or_text("--data", &data, self.text));
        let call = Call {
            method: self.method,
            path: self.path,
            headers: pairs(&self.headers, ':', "header")?,
            query: pairs(&self.query, '=', "query parameter")?,
            body: body.transpose()?,
        };
        let done: Answer<Executed> = client.post(&format!("/scripts/{id}/execute"), &call)?;
        out.show(&done, |done| {
            print_lines(&done.logs, done.logs_truncated);
            let (took, fuel) = (done.duration_us, done.fuel);
            match &done.response {
                Some(ScriptAnswer {
                    status,
                    body: Some(body),
                }) => {
                    eprintln!("{status} · {took} µs · {fuel} fuel");
                    print_text(&format!("{body}\n"));
                }
                Some(ScriptAnswer { status, body: None }) => eprintln!("{status} · binary body"),
                None => {
                    eprintln!("{} · {}", line(&done.outcome), line(&done.execution_id));
                    print_error(done.error.as_ref());
                }
            }
        });
        match done.outcome == "answered" {
            true => Ok(()),
            false => Err(Failure::Shown),
        }
    }
}

fn print_error(error: Option<&ExecutionError>) {
    let Some(error) = error else { return };
    let place = match (error.line, error.column) {
        (Some(line), Some(column)) => format!(" (line {line}, column {column})"),
        (Some(line), None) => format!(" (line {line})"),
        (None, _) => String::new(),
    };
    println!("  error: {}{place}", line(&error.message));
    for call in &error.calls {
        println!("    in {}", line(call));
    }
}

fn print_lines(lines: &[LogLine], truncated: bool) {
    for LogLine {
        level,
        message,
        fields,
    } in lines
    {
        let fields = fields.iter();
        let fields: String = fields
            .map(|(name, value)| format!(" {}={}", line(name), shown(value)))
            .collect();
        println!("  {:<5} {}{fields}", line(level), line(message));
    }
    if truncated {
        println!("  … more was logged than the limit; it is not kept");
    }
}

/// A value as JSON, on one line.
fn shown(value: &RawValue) -> String {
    line(&super::terminal::json(value.get())).into_owned()
}

/// Show executions and their log lines.
#[derive(clap::Args)]
pub(super) struct Logs {
    #[command(flatten)]
    app: AppArg,
    /// Only of this script, by name or id
    #[arg(long)]
    script: Option<String>,
    /// Only with this outcome, like `threw`
    #[arg(long)]
    outcome: Option<String>,
    /// How many of the newest
    #[arg(long, default_value_t = 20)]
    last: u32,
    /// Go on with new ones until interrupted
    #[arg(long)]
    follow: bool,
    /// Only this execution
    #[arg(long, conflicts_with_all = ["script", "outcome", "follow"])]
    execution: Option<String>,
}

impl Logs {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        if let Some(id) = &self.execution {
            return print_execution(client, out, id);
        }
        let mut filter = String::new();
        if let Some(script) = &self.script {
            let id = script_id(client, &self.app.app, script)?;
            filter = format!("&script_id={id}");
        }
        if let Some(outcome) = &self.outcome {
            filter.push_str(&format!("&outcome={}", encoded(outcome)));
        }
        let path = format!("/apps/{}/executions", encoded(&self.app.app));
        let last = usize::try_from(self.last.clamp(1, 200)).unwrap_or(1);
        let mut newest = client.first::<Execution>(&format!("{path}?{filter}"), last)?;
        newest.reverse();
        let mut seen = HashSet::new();
        if newest.is_empty() && !self.follow {
            out.say("No executions yet. Call a route, or run: picloud invoke SCRIPT");
        }
        // Ids are made when a delivery begins and written when it ends, so a newer id may be
        // seen before an older one: look back a little further than what was seen last.
        loop {
            for execution in &newest {
                if seen.insert(execution.id.clone()) {
                    print_execution(client, out, &execution.id)?;
                }
            }
            if !self.follow {
                return Ok(());
            }
            std::thread::sleep(FOLLOW_EVERY);
            let since = chrono::Utc::now() - chrono::TimeDelta::seconds(30);
            let since = encoded(&since.to_rfc3339());
            newest = match client.all(&format!("{path}?since={since}{filter}")) {
                Ok(items) => items,
                // The server restarts; following goes on when it is back.
                Err(failure) if failure.is_passing() => Vec::new(),
                Err(failure) => return Err(failure),
            };
            newest.reverse();
        }
    }
}

/// An execution, with its log where it is shown alone.
#[derive(Deserialize)]
pub(super) struct Execution {
    id: String,
    started_at: String,
    outcome: String,
    status: Option<u16>,
    duration_us: u64,
    error: Option<ExecutionError>,
    payloads_hidden: bool,
    #[serde(default)]
    logs: Vec<LogLine>,
    #[serde(default)]
    logs_truncated: bool,
}

fn print_execution(client: &Client, out: &Output, id: &str) -> Done {
    let execution: Answer<Execution> = client.get(&format!("/executions/{}", encoded(id)))?;
    out.show(&execution, |execution| {
        let status = execution.status;
        let status = status.map_or(String::new(), |status| format!(" {status}"));
        println!(
            "{}  {}{status}  {} µs  {}",
            line(&execution.started_at),
            line(&execution.outcome),
            execution.duration_us,
            line(&execution.id)
        );
        if execution.payloads_hidden {
            println!("  the app hides log and error from viewers");
            return;
        }
        print_lines(&execution.logs, execution.logs_truncated);
        print_error(execution.error.as_ref());
    });
    Ok(())
}
