//! `picloud triggers`, `dead-letters`, `executions`, `gc`: what an operator does.

use std::io::IsTerminal;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::client::{Client, encoded};
use super::manage::{print_list, print_one, sure};
use super::output::{Failure, Output, cell};
use super::show::script_id;
use super::{AppArg, Done};
use crate::json::{EVENT_DEPTH_MAX, Json};

/// Triggers.
#[derive(Subcommand)]
pub(super) enum Triggers {
    /// List them, with how many deliveries of each wait
    List {
        #[command(flatten)]
        app: AppArg,
    },
    /// Show one
    Show {
        /// The trigger's id
        id: String,
    },
    /// Run a script when a key changes
    CreateKv {
        /// The script, by name or id
        script: String,
        /// The collections: a name, a prefix like 'orders:*', or '*'
        #[arg(long)]
        collection: String,
        /// Which changes; all when left out
        #[arg(long, value_delimiter = ',', value_name = "insert,update,delete")]
        ops: Vec<String>,
        /// The keys: a key, a prefix like 'eu/*', or '*'
        #[arg(long)]
        key: Option<String>,
        /// Run the deliveries of one key one after another
        #[arg(long)]
        ordered_by_key: bool,
        #[command(flatten)]
        common: NewTrigger,
    },
    /// Run a script when a message is published
    CreatePubsub {
        /// The script, by name or id
        script: String,
        /// The topics: a name, a prefix like 'orders:*', or '*'
        #[arg(long)]
        topic: String,
        /// Run the deliveries of one topic one after another
        #[arg(long)]
        ordered_by_topic: bool,
        #[command(flatten)]
        common: NewTrigger,
    },
    /// Run a script when a delivery has used up its attempts
    CreateDeadLetter {
        /// The script, by name or id
        script: String,
        /// Only those fired so
        #[arg(long, value_name = "http|kv|pubsub")]
        source: Option<String>,
        /// Only those of this trigger
        #[arg(long, value_name = "ID")]
        of_trigger: Option<String>,
        /// Only those of this script, by name or id
        #[arg(long, value_name = "SCRIPT")]
        of_script: Option<String>,
        #[command(flatten)]
        common: NewTrigger,
    },
    /// Keep its deliveries for later
    Pause {
        /// The trigger's id
        id: String,
    },
    /// Let its deliveries go on
    Resume {
        /// The trigger's id
        id: String,
    },
    /// Let events make deliveries again
    Enable {
        /// The trigger's id
        id: String,
    },
    /// Let events make no deliveries
    Disable {
        /// The trigger's id
        id: String,
    },
    /// Delete one; deliveries that wait for it become dead letters
    Delete {
        /// The trigger's id
        id: String,
    },
}

/// What every new trigger may have.
#[derive(Args)]
pub(super) struct NewTrigger {
    #[command(flatten)]
    app: AppArg,
    /// Its name
    #[arg(long)]
    name: Option<String>,
    /// How often a delivery is attempted
    #[arg(long, value_name = "N")]
    attempts_max: Option<u32>,
    /// How the pause between attempts grows
    #[arg(long, value_name = "exponential|linear|constant")]
    backoff: Option<String>,
    /// The first pause, in milliseconds
    #[arg(long, value_name = "MS")]
    base_ms: Option<u64>,
}

impl NewTrigger {
    fn body(&self, script: &str, client: &Client) -> Result<Value, Failure> {
        let mut retry = Map::new();
        retry.extend(
            self.attempts_max
                .map(|n| ("attempts_max".to_owned(), n.into())),
        );
        retry.extend(
            self.backoff
                .clone()
                .map(|b| ("backoff".to_owned(), b.into())),
        );
        retry.extend(self.base_ms.map(|ms| ("base_ms".to_owned(), ms.into())));
        let script_id = script_id(client, &self.app.app, script)?;
        Ok(json!({ "script_id": script_id, "name": self.name, "retry": retry }))
    }

    fn create(&self, kind: &str, body: &Value, client: &Client, out: &Output) -> Done {
        let path = format!("/apps/{}/triggers/{kind}", encoded(&self.app.app));
        print_one(out, &client.post(&path, body)?);
        Ok(())
    }
}

impl Triggers {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        let of = |id: &str| format!("/triggers/{}", encoded(id));
        match self {
            Self::List { app } => {
                let items = client.all(&format!("/apps/{}/triggers", encoded(&app.app)))?;
                let members = [
                    "name", "kind", "filter", "enabled", "paused", "waiting", "id",
                ];
                let empty = "No triggers yet; make one with: picloud triggers create-kv SCRIPT --collection NAME";
                print_list(out, items, &members, empty);
            }
            Self::Show { id } => print_one(out, &client.get(&of(&id))?),
            Self::CreateKv {
                script,
                collection,
                ops,
                key,
                ordered_by_key,
                common,
            } => {
                let mut body = common.body(&script, client)?;
                body["collection"] = collection.into();
                body["key"] = key.into();
                if !ops.is_empty() {
                    body["ops"] = ops.into();
                }
                if ordered_by_key {
                    body["ordered_by"] = "key".into();
                }
                return common.create("kv", &body, client, out);
            }
            Self::CreatePubsub {
                script,
                topic,
                ordered_by_topic,
                common,
            } => {
                let mut body = common.body(&script, client)?;
                body["topic"] = topic.into();
                if ordered_by_topic {
                    body["ordered_by"] = "key".into();
                }
                return common.create("pubsub", &body, client, out);
            }
            Self::CreateDeadLetter {
                script,
                source,
                of_trigger,
                of_script,
                common,
            } => {
                let of_script = of_script
                    .map(|script| script_id(client, &common.app.app, &script))
                    .transpose()?;
                let mut body = common.body(&script, client)?;
                body["filter"] =
                    json!({ "source": source, "trigger_id": of_trigger, "script_id": of_script });
                return common.create("dead_letter", &body, client, out);
            }
            Self::Pause { id } => {
                let path = format!("{}/pause", of(&id));
                print_one(out, &client.post(&path, &Value::Null)?);
            }
            Self::Resume { id } => {
                let path = format!("{}/resume", of(&id));
                print_one(out, &client.post(&path, &Value::Null)?);
            }
            Self::Enable { id } => {
                print_one(out, &client.patch(&of(&id), &json!({ "enabled": true }))?);
            }
            Self::Disable { id } => {
                print_one(out, &client.patch(&of(&id), &json!({ "enabled": false }))?);
            }
            Self::Delete { id } => {
                client.delete(&of(&id))?;
            }
        }
        Ok(())
    }
}

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
        payload: Option<String>,
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
    #[arg(long, value_name = "http|kv")]
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

impl Filter {
    fn body(&self, client: &Client, app: Option<&str>) -> Result<Map<String, Value>, Failure> {
        let script = match (&self.script, app) {
            (Some(script), Some(app)) => Some(script_id(client, app, script)?),
            (script, _) => script.clone(),
        };
        let fields = [
            ("source", self.source.clone()),
            ("script_id", script),
            ("trigger_id", self.trigger.clone()),
            ("error", self.error.clone()),
            ("since", self.since.clone()),
            ("until", self.until.clone()),
        ];
        let given = fields
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
        Ok(given.collect())
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

impl Many {
    /// Settle one batch after another, and say how far it is.
    fn settle(self, verb: &str, did: &str, more: Value, client: &Client, out: &Output) -> Done {
        let app = self.app.as_deref().ok_or_else(|| {
            Failure::Usage("name a dead letter by its id, or many with --app and a filter".into())
        })?;
        let path = format!("/apps/{}/dead-letters/{verb}", encoded(app));
        let mut body = self.filter.body(client, Some(app))?;
        body.insert("all".into(), self.all.into());
        body.insert("dry_run".into(), self.dry_run.into());
        body.extend(more.as_object().cloned().unwrap_or_default());
        let mut total = 0;
        loop {
            let answer = client.post(&path, &body.clone().into())?;
            let done = answer[did].as_u64().unwrap_or(0);
            let left = answer["left"].as_u64().unwrap_or(0);
            total += done;
            if self.dry_run {
                let shown = json!({ "would_be": left, "dry_run": true });
                out.show(&shown, |_| println!("{left} would be {did}"));
                return Ok(());
            }
            // The next batch is of those that were there at the first: what dies meanwhile is new.
            body.insert("up_to".into(), answer["up_to"].clone());
            if left == 0 || done == 0 {
                let shown = json!({ did: total, "left": left });
                out.show(&shown, |_| println!("{total} {did}"));
                return Ok(());
            }
            if !out.json && std::io::stderr().is_terminal() {
                eprintln!("{total} {did}, {left} left …");
            }
        }
    }
}

impl DeadLetters {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        let of = |id: &str| format!("/dead-letters/{}", encoded(id));
        match self {
            Self::List { app, filter, state } => {
                let mut query = filter.body(client, Some(&app.app))?;
                if state != "any" {
                    query.insert("state".into(), state.into());
                }
                let query: Vec<String> = query
                    .iter()
                    .map(|(name, value)| {
                        format!("{name}={}", encoded(value.as_str().unwrap_or_default()))
                    })
                    .collect();
                let path = format!(
                    "/apps/{}/dead-letters?{}",
                    encoded(&app.app),
                    query.join("&")
                );
                let members = [
                    "id",
                    "created_at",
                    "state",
                    "source",
                    "attempts",
                    "handler_failed",
                    "last_error",
                ];
                print_list(out, client.all(&path)?, &members, "No dead letters.");
            }
            Self::Show { id } => {
                let letter = client.get(&of(&id))?;
                out.show(&letter, print_letter);
            }
            Self::Replay {
                id: Some(id),
                payload,
                at_version,
                ..
            } => {
                let mut body = json!({ "at_version": at_version.word() });
                if let Some(path) = payload {
                    let text = match path.as_str() {
                        "-" => std::io::read_to_string(std::io::stdin())?,
                        path => std::fs::read_to_string(path)?,
                    };
                    let payload = Json::parse_within(text, EVENT_DEPTH_MAX)
                        .map_err(|refused| Failure::Usage(format!("{path}: {refused}")))?;
                    body["payload"] = json!(payload);
                }
                let done = client.post(&format!("{}/replay", of(&id)), &body)?;
                out.show(&done, |done| {
                    println!("replayed as delivery {}", cell(&done["delivery_id"]));
                });
            }
            Self::Replay {
                many, at_version, ..
            } => {
                let more = json!({ "at_version": at_version.word() });
                return many.settle("replay", "replayed", more, client, out);
            }
            Self::Resolve {
                id: Some(id),
                reason,
                ..
            } => {
                let body = json!({ "reason": reason });
                let done = client.post(&format!("{}/resolve", of(&id)), &body)?;
                out.show(&done, |_| println!("resolved"));
            }
            Self::Resolve { many, reason, .. } => {
                let more = json!({ "reason": reason });
                return many.settle("resolve", "resolved", more, client, out);
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

fn print_letter(letter: &Value) {
    for (name, value) in letter.as_object().into_iter().flatten() {
        if !matches!(name.as_str(), "payload" | "history") && !value.is_null() {
            println!("{name:<20} {}", cell(value));
        }
    }
    println!("\nattempts");
    for attempt in letter["history"].as_array().into_iter().flatten() {
        println!(
            "  {}  {}  {}  {} µs  {} fuel  {}\n     {}",
            attempt["attempt"],
            cell(&attempt["at"]),
            cell(&attempt["outcome"]),
            attempt["duration_us"],
            attempt["fuel"],
            cell(&attempt["execution_id"]),
            cell(&attempt["error"]),
        );
    }
    let payload = serde_json::to_string_pretty(&letter["payload"]).unwrap_or_default();
    println!("\npayload\n{payload}");
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
                print_list(out, client.first(&path, limit)?, &members, empty);
            }
            Self::Show { id } => {
                print_one(out, &client.get(&format!("/executions/{}", encoded(&id)))?);
            }
            Self::Tree { id } => {
                let tree = client.get(&format!("/executions/{}/tree", encoded(&id)))?;
                out.show(&tree, |tree| {
                    for root in tree["roots"].as_array().into_iter().flatten() {
                        print_branch(root, 0);
                    }
                    if tree["truncated"] == true {
                        println!("… and more; the tree shows the first thousand");
                    }
                });
            }
        }
        Ok(())
    }
}

fn print_branch(execution: &Value, depth: usize) {
    let error = execution["error"]["message"].as_str().unwrap_or_default();
    println!(
        "{:indent$}{} {}  attempt {}  {} µs  {}  {error}",
        "",
        cell(&execution["invocation_type"]),
        cell(&execution["outcome"]),
        execution["attempt"],
        execution["duration_us"],
        cell(&execution["id"]),
        indent = depth * 2
    );
    for child in execution["children"].as_array().into_iter().flatten() {
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
        let done = client.post(&path, &Value::Null)?;
        out.show(&done, |done| {
            let verb = if self.dry_run { "would go" } else { "went" };
            for (table, rows) in done["removed"].as_object().into_iter().flatten() {
                println!("{rows:>8} of {table} {verb}");
            }
        });
        Ok(())
    }
}
