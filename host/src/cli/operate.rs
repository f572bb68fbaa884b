//! `picloud dead-letters`, `executions`, `gc`: what an operator does.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::answer::{Answer, Members};
use super::client::{Client, encoded};
use super::manage::sure;
use super::output::{Failure, Output, cell, indented};
use super::show::{Execution, script_id};
use super::terminal::{self, line};
use super::{AppArg, Done, input};
use crate::dead_letters::DeadLetterId;
use crate::dispatch::DeliveryId;
use crate::json::{EVENT_DEPTH_MAX, Json};

/// Dead letters.
#[derive(Subcommand)]
pub(super) enum DeadLetters {
    /// List them, newest first
    List {
        #[command(flatten)]
        app: AppArg,
        #[command(flatten)]
        filter: Filter,
        /// Only those in this state
        #[arg(
            long,
            default_value = "unresolved",
            value_name = "unresolved|replayed|resolved|any"
        )]
        state: String,
    },
    /// Show one with what happened and every attempt
    Show {
        /// The dead letter's id
        id: String,
    },
    /// Put one back into the outbox, or every one that the filter lets through
    Replay {
        /// The dead letter's id
        id: Option<String>,
        #[command(flatten)]
        many: Many,
        /// Another payload, as a JSON file; - reads standard input
        #[arg(long, requires = "id", value_name = "FILE")]
        payload: Option<PathBuf>,
        /// The version of the script that runs
        #[arg(long, default_value = "latest")]
        at_version: AtVersion,
    },
    /// Say that one needs no further work, or every one that the filter lets through
    Resolve {
        /// The dead letter's id
        id: Option<String>,
        #[command(flatten)]
        many: Many,
        /// Why
        #[arg(
            long,
            default_value = "ignored",
            value_name = "ignored|handled_by_script"
        )]
        reason: String,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum AtVersion {
    /// Whichever is current
    Latest,
    /// The one that failed
    Pinned,
}

/// Which dead letters.
#[derive(Args)]
pub(super) struct Filter {
    /// Fired so
    #[arg(long, value_name = "http|kv|pubsub")]
    source: Option<String>,
    /// Of this script, by name or id
    #[arg(long)]
    script: Option<String>,
    /// Of this trigger
    #[arg(long, value_name = "ID")]
    trigger: Option<String>,
    /// Whose last error has this in it
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// Made then or later, like 2026-01-31T12:00:00Z
    #[arg(long)]
    since: Option<String>,
    /// Made earlier
    #[arg(long)]
    until: Option<String>,
}

/// The same, as it is sent.
#[derive(Serialize)]
struct Sought {
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    script_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trigger_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

impl Sought {
    fn query(&self) -> String {
        let fields = [
            ("source", &self.source),
            ("script_id", &self.script_id),
            ("trigger_id", &self.trigger_id),
            ("error", &self.error),
            ("since", &self.since),
            ("until", &self.until),
        ];
        let given = fields
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name}={}&", encoded(value.as_ref()?))));
        given.collect()
    }
}

impl Filter {
    fn sought(self, client: &Client, app: &str) -> Result<Sought, Failure> {
        let script = self.script.map(|script| script_id(client, app, &script));
        Ok(Sought {
            source: self.source,
            script_id: script.transpose()?.map(|id| id.to_string()),
            trigger_id: self.trigger,
            error: self.error,
            since: self.since,
            until: self.until,
        })
    }
}

/// Many dead letters.
#[derive(Args)]
pub(super) struct Many {
    /// The app, by slug or id; for many at once
    #[arg(long, env = "PICLOUD_APP")]
    app: Option<String>,
    #[command(flatten)]
    filter: Filter,
    /// Every unresolved one, without a filter
    #[arg(long)]
    all: bool,
    /// Only say how many there are
    #[arg(long)]
    dry_run: bool,
}

/// A batch, as it is sent.
#[derive(Serialize)]
struct Batch {
    #[serde(flatten)]
    sought: Sought,
    all: bool,
    dry_run: bool,
    #[serde(flatten)]
    how: How,
    #[serde(skip_serializing_if = "Option::is_none")]
    up_to: Option<DeadLetterId>,
}

/// What is done with dead letters.
#[derive(Serialize)]
#[serde(untagged)]
enum How {
    Replay { at_version: &'static str },
    Resolve { reason: String },
}

impl How {
    /// As it is called, and what is done then.
    fn words(&self) -> (&'static str, &'static str) {
        match self {
            Self::Replay { .. } => ("replay", "replayed"),
            Self::Resolve { .. } => ("resolve", "resolved"),
        }
    }
}

/// What became of a batch.
#[derive(Deserialize)]
struct Settled {
    #[serde(alias = "replayed", alias = "resolved")]
    done: u64,
    left: u64,
    up_to: Option<DeadLetterId>,
}

impl Many {
    /// Settle one batch after another, and say how far it is.
    fn settle(self, how: How, client: &Client, out: &Output) -> Done {
        let app = self.app.as_deref().ok_or_else(|| {
            Failure::Usage("name a dead letter by its id, or many with --app and a filter".into())
        })?;
        let (verb, did) = how.words();
        let path = format!("/apps/{}/dead-letters/{verb}", encoded(app));
        let mut batch = Batch {
            sought: self.filter.sought(client, app)?,
            all: self.all,
            dry_run: self.dry_run,
            how,
            up_to: None,
        };
        let mut total = 0;
        loop {
            let answer: Answer<Settled> = client.post(&path, &batch)?;
            let Settled { done, left, up_to } = *answer;
            total += done;
            if batch.dry_run {
                let shown = json!({ "would_be": left, "dry_run": true });
                out.show_own(&shown, || println!("{left} would be {did}"));
                return Ok(());
            }
            // The next batch is of those that were there at the first: what dies meanwhile is new.
            batch.up_to = up_to;
            if left == 0 || done == 0 {
                let shown = json!({ did: total, "left": left });
                out.show_own(&shown, || println!("{total} {did}"));
                return Ok(());
            }
            if !out.json && std::io::stderr().is_terminal() {
                eprintln!("{total} {did}, {left} left …");
            }
        }
    }
}

/// One dead letter, as it is sent back into the outbox.
#[derive(Serialize)]
struct Replay {
    at_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Json>,
}

/// The delivery that repeats it.
#[derive(Deserialize)]
struct Replayed {
    delivery_id: DeliveryId,
}

impl DeadLetters {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        let of = |id: &str| format!("/dead-letters/{}", encoded(id));
        match self {
            Self::List { app, filter, state } => {
                let mut query = filter.sought(client, &app.app)?.query();
                if state != "any" {
                    query.push_str(&format!("state={}", encoded(&state)));
                }
                let path = format!("/apps/{}/dead-letters?{query}", encoded(&app.app));
                let members = [
                    "id",
                    "created_at",
                    "state",
                    "source",
                    "attempts",
                    "handler_failed",
                    "last_error",
                ];
                out.list(&client.all::<Listed>(&path)?, &members, "No dead letters.");
            }
            Self::Show { id } => {
                let letter: Answer<Letter> = client.get(&of(&id))?;
                out.show(&letter, |_| print_letter(&letter));
            }
            Self::Replay {
                id: Some(id),
                payload,
                at_version,
                ..
            } => {
                let payload = payload.map(|path| {
                    let read = Json::parse_within(input::text(&path)?, EVENT_DEPTH_MAX);
                    let about = |refused| format!("{}: {refused}", path.display());
                    read.map_err(|refused| Failure::Usage(about(refused)))
                });
                let body = Replay {
                    at_version: at_version.word(),
                    payload: payload.transpose()?,
                };
                let path = format!("{}/replay", of(&id));
                let done: Answer<Replayed> = client.post(&path, &body)?;
                out.show(&done, |done| {
                    println!("replayed as delivery {}", done.delivery_id);
                });
            }
            Self::Replay {
                many, at_version, ..
            } => {
                let at_version = at_version.word();
                return many.settle(How::Replay { at_version }, client, out);
            }
            Self::Resolve {
                id: Some(id),
                reason,
                ..
            } => {
                let body = json!({ "reason": reason });
                let path = format!("{}/resolve", of(&id));
                let done: Answer<Letter> = client.post(&path, &body)?;
                out.show(&done, |_| println!("resolved"));
            }
            Self::Resolve { many, reason, .. } => {
                return many.settle(How::Resolve { reason }, client, out);
            }
        }
        Ok(())
    }
}

impl AtVersion {
    fn word(self) -> &'static str {
        match self {
            Self::Latest => "latest",
            Self::Pinned => "pinned",
        }
    }
}

/// A dead letter in a list, of which everything is shown.
#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "id")]
    _id: DeadLetterId,
}

/// A dead letter with what happened and every attempt.
#[derive(Deserialize)]
struct Letter {
    payload: Box<RawValue>,
    #[serde(default)]
    payload_repaired: bool,
    history: Vec<Attempt>,
}

/// An attempt that failed.
#[derive(Deserialize)]
struct Attempt {
    attempt: u32,
    at: DateTime<Utc>,
    outcome: String,
    duration_us: u64,
    fuel: u64,
    execution_id: Option<String>,
    error: String,
}

fn print_letter(letter: &Answer<Letter>) {
    for (name, value) in Members::of(letter.text()).iter() {
        let is_below = matches!(name, "payload" | "payload_repaired" | "history");
        if !is_below && value.get() != "null" {
            println!("{:<20} {}", line(name), cell(value));
        }
    }
    println!("\nattempts");
    for attempt in &letter.history {
        println!(
            "  {}  {}  {}  {} µs  {} fuel  {}\n     {}",
            attempt.attempt,
            attempt.at.to_rfc3339(),
            line(&attempt.outcome),
            attempt.duration_us,
            attempt.fuel,
            line(attempt.execution_id.as_deref().unwrap_or("-")),
            line(&attempt.error),
        );
    }
    let repaired = match letter.payload_repaired {
        true => " (unreadable as it is stored; this is what can be read of it)",
        false => "",
    };
    let payload = indented(letter.payload.get());
    println!("\npayload{repaired}\n{}", terminal::json(&payload));
}

/// Executions.
#[derive(Subcommand)]
pub(super) enum Executions {
    /// List them, newest first
    List {
        #[command(flatten)]
        app: AppArg,
        /// Only those with this outcome
        #[arg(long)]
        outcome: Option<String>,
        /// How many at most
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Show one with its log
    Show {
        /// The execution's id
        id: String,
    },
    /// Show everything that its request led to
    Tree {
        /// The execution's id; any of the tree
        id: String,
    },
}

impl Executions {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        match self {
            Self::List {
                app,
                outcome,
                limit,
            } => {
                let mut path = format!("/apps/{}/executions?", encoded(&app.app));
                if let Some(outcome) = outcome {
                    path.push_str(&format!("outcome={}", encoded(&outcome)));
                }
                let members = [
                    "id",
                    "started_at",
                    "invocation_type",
                    "outcome",
                    "attempt",
                    "duration_us",
                ];
                let empty = "No executions yet; `picloud invoke` makes one.";
                let executions = client.first::<Execution>(&path, limit)?;
                out.list(&executions, &members, empty);
            }
            Self::Show { id } => {
                let path = format!("/executions/{}", encoded(&id));
                out.show_members(&client.get::<Execution>(&path)?);
            }
            Self::Tree { id } => {
                let path = format!("/executions/{}/tree", encoded(&id));
                let tree: Answer<Tree> = client.get(&path)?;
                out.show(&tree, |tree| {
                    for root in &tree.roots {
                        print_branch(root, 0);
                    }
                    if tree.truncated {
                        println!("… and more; the tree shows the first thousand");
                    }
                });
            }
        }
        Ok(())
    }
}

/// Everything that a request led to.
#[derive(Deserialize)]
struct Tree {
    roots: Vec<Branch>,
    truncated: bool,
}

/// An execution and those beneath it.
#[derive(Deserialize)]
struct Branch {
    id: String,
    invocation_type: String,
    outcome: String,
    attempt: u32,
    duration_us: u64,
    error: Option<BranchError>,
    children: Vec<Branch>,
}

/// What went wrong in one.
#[derive(Deserialize)]
struct BranchError {
    message: String,
}

fn print_branch(execution: &Branch, depth: usize) {
    let error = execution.error.as_ref();
    println!(
        "{}{} {}  attempt {}  {} µs  {}  {}",
        "  ".repeat(depth),
        line(&execution.invocation_type),
        line(&execution.outcome),
        execution.attempt,
        execution.duration_us,
        line(&execution.id),
        line(error.map_or("", |error| error.message.as_str())),
    );
    for child in &execution.children {
        print_branch(child, depth + 1);
    }
}

/// Remove what is past its retention now; the server does it each minute by itself.
#[derive(Args)]
pub(super) struct Gc {
    /// Only say how much it is
    #[arg(long)]
    dry_run: bool,
    /// Yes, really
    #[arg(long)]
    yes: bool,
}

impl Gc {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        if !self.dry_run {
            sure(self.yes, "what is past its retention")?;
        }
        let path = format!("/gc?dry_run={}", self.dry_run);
        let done: Answer<Collected> = client.post(&path, &())?;
        out.show(&done, |done| {
            let verb = if self.dry_run { "would go" } else { "went" };
            for (table, rows) in &done.removed {
                println!("{rows:>8} of {} {verb}", line(table));
            }
        });
        Ok(())
    }
}

/// What was past its retention.
#[derive(Deserialize)]
struct Collected {
    /// How many rows, by the table.
    removed: BTreeMap<String, u64>,
}
