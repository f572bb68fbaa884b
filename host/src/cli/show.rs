//! `picloud invoke` and `picloud logs`: run scripts and see what became of it.

use std::collections::HashSet;
use std::io::Read;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::client::{Client, encoded};
use super::output::{Failure, Output, cell, json_or_text};
use super::{AppArg, Done};

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
    #[arg(long)]
    data: Option<String>,
}

fn pairs(given: &[String], separator: char, what: &str) -> Result<Map<String, Value>, Failure> {
    let pair = |text: &String| {
        let (name, value) = text.split_once(separator)?;
        Some((name.trim().to_owned(), value.trim().into()))
    };
    given
        .iter()
        .map(|text| {
            let usage = || {
                Failure::Usage(format!(
                    "`{text}`: a {what} is written name{separator}value"
                ))
            };
            pair(text).ok_or_else(usage)
        })
        .collect()
}

/// The id of the script that a name or an id names.
pub(super) fn script_id(client: &Client, app: &str, script: &str) -> Result<String, Failure> {
    let found = client.get(&format!(
        "/apps/{}/scripts?name={}",
        encoded(app),
        encoded(script)
    ))?;
    if let Some(id) = found["items"][0]["id"].as_str() {
        return Ok(id.to_owned());
    }
    if script.parse::<uuid::Uuid>().is_ok() {
        return Ok(script.to_owned());
    }
    let detail = format!("the app `{app}` has no script `{script}`");
    Err(Failure::Problem(
        json!({ "status": 404, "title": "Not found", "detail": detail }),
    ))
}

impl Invoke {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        let id = script_id(client, &self.app.app, &self.script)?;
        let mut body = json!({
            "method": self.method,
            "path": self.path,
            "headers": pairs(&self.headers, ':', "header")?,
            "query": pairs(&self.query, '=', "query parameter")?,
        });
        if let Some(data) = self.data {
            let text = if data == "-" {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text)?;
                text
            } else {
                data
            };
            body["body"] = json!(json_or_text("--data", &text)?);
        }
        let done = client.post(&format!("/scripts/{id}/execute"), &body)?;
        out.show(&done, |done| {
            print_lines(&done["logs"], done["logs_truncated"] == true);
            if let Some(body) = done["response"]["body"].as_str() {
                eprintln!(
                    "{} · {} µs · {} fuel",
                    done["response"]["status"], done["duration_us"], done["fuel"]
                );
                println!("{body}");
            } else if done["response"].is_object() {
                eprintln!("{} · binary body", done["response"]["status"]);
            } else {
                eprintln!(
                    "{} · {}",
                    cell(&done["outcome"]),
                    cell(&done["execution_id"])
                );
                print_error(&done["error"]);
            }
        });
        if done["outcome"] == "answered" {
            Ok(())
        } else {
            Err(Failure::Shown)
        }
    }
}

fn print_error(error: &Value) {
    if error.is_null() {
        return;
    }
    let place = match error["line"].as_u64() {
        Some(line) => format!(" (line {line}, column {})", cell(&error["column"])),
        None => String::new(),
    };
    println!("  error: {}{place}", cell(&error["message"]));
    for call in error["calls"].as_array().into_iter().flatten() {
        println!("    in {}", cell(call));
    }
}

fn print_lines(lines: &Value, truncated: bool) {
    for line in lines.as_array().into_iter().flatten() {
        let fields: String = line["fields"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, value)| format!(" {name}={value}"))
            .collect();
        println!(
            "  {:<5} {}{fields}",
            cell(&line["level"]),
            cell(&line["message"])
        );
    }
    if truncated {
        println!("  … more was logged than the limit; it is not kept");
    }
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
            filter = format!("&script_id={}", script_id(client, &self.app.app, script)?);
        }
        if let Some(outcome) = &self.outcome {
            filter.push_str(&format!("&outcome={}", encoded(outcome)));
        }
        let path = format!("/apps/{}/executions", encoded(&self.app.app));
        let last = self.last.clamp(1, 200);
        let newest = client.get(&format!("{path}?limit={last}{filter}"))?;
        let mut seen = HashSet::new();
        let mut newest: Vec<Value> = newest["items"].as_array().cloned().unwrap_or_default();
        newest.reverse();
        if newest.is_empty() && !self.follow {
            out.say("No executions yet. Call a route, or run: picloud invoke SCRIPT");
        }
        // Ids are made when a delivery begins and written when it ends, so a newer id may be
        // seen before an older one: look back a little further than what was seen last.
        loop {
            for execution in &newest {
                let id = cell(&execution["id"]);
                if seen.insert(id.clone()) {
                    print_execution(client, out, &id)?;
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
                Err(Failure::Unreachable(_)) => Vec::new(),
                Err(failure) => return Err(failure),
            };
            newest.reverse();
        }
    }
}

fn print_execution(client: &Client, out: &Output, id: &str) -> Done {
    let execution = client.get(&format!("/executions/{}", encoded(id)))?;
    out.show(&execution, |execution| {
        let status = execution["status"]
            .as_u64()
            .map_or(String::new(), |status| format!(" {status}"));
        println!(
            "{}  {}{status}  {} µs  {}",
            cell(&execution["started_at"]),
            cell(&execution["outcome"]),
            execution["duration_us"],
            cell(&execution["id"])
        );
        if execution["payloads_hidden"] == true {
            println!("  the app hides log and error from viewers");
            return;
        }
        print_lines(&execution["logs"], execution["logs_truncated"] == true);
        print_error(&execution["error"]);
    });
    Ok(())
}
