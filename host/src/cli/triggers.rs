//! `picloud triggers`.

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::client::{Client, encoded};
use super::output::Output;
use super::show::script_id;
use super::{AppArg, Done};
use crate::scripts::ScriptId;
use crate::triggers::Trigger;

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

/// A new trigger, as it is sent.
#[derive(Serialize)]
struct Body {
    script_id: ScriptId,
    name: Option<String>,
    retry: Retry,
    #[serde(flatten)]
    filter: BodyFilter,
    #[serde(skip_serializing_if = "Option::is_none")]
    ordered_by: Option<&'static str>,
}

/// What each kind has of its own.
#[derive(Serialize)]
#[serde(untagged)]
enum BodyFilter {
    Kv {
        collection: String,
        key: Option<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        ops: Vec<String>,
    },
    PubSub {
        topic: String,
    },
    DeadLetter {
        filter: DeadLetters,
    },
}

/// Which dead letters.
#[derive(Serialize)]
struct DeadLetters {
    source: Option<String>,
    trigger_id: Option<String>,
    script_id: Option<ScriptId>,
}

/// What is left out takes the instance's default.
#[derive(Serialize)]
struct Retry {
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts_max: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backoff: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base_ms: Option<u64>,
}

impl NewTrigger {
    fn create(
        self,
        kind: &str,
        script: &str,
        (filter, is_ordered): (BodyFilter, bool),
        client: &Client,
        out: &Output,
    ) -> Done {
        let app = &self.app.app;
        let body = Body {
            script_id: script_id(client, app, script)?,
            name: self.name,
            retry: Retry {
                attempts_max: self.attempts_max,
                backoff: self.backoff,
                base_ms: self.base_ms,
            },
            filter,
            ordered_by: is_ordered.then_some("key"),
        };
        let path = format!("/apps/{}/triggers/{kind}", encoded(app));
        out.show_members(&client.post::<Trigger>(&path, &body)?);
        Ok(())
    }
}

impl Triggers {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        let of = |id: &str| format!("/triggers/{}", encoded(id));
        match self {
            Self::List { app } => {
                let path = format!("/apps/{}/triggers", encoded(&app.app));
                let members = [
                    "name", "kind", "filter", "enabled", "paused", "waiting", "id",
                ];
                let empty = "No triggers yet; make one with: picloud triggers create-kv SCRIPT --collection NAME";
                out.list(&client.all::<Trigger>(&path)?, &members, empty);
            }
            Self::Show { id } => out.show_members(&client.get::<Trigger>(&of(&id))?),
            Self::CreateKv {
                script,
                collection,
                ops,
                key,
                ordered_by_key,
                common,
            } => {
                let filter = BodyFilter::Kv {
                    collection,
                    key,
                    ops,
                };
                return common.create("kv", &script, (filter, ordered_by_key), client, out);
            }
            Self::CreatePubsub {
                script,
                topic,
                ordered_by_topic,
                common,
            } => {
                let filter = BodyFilter::PubSub { topic };
                return common.create("pubsub", &script, (filter, ordered_by_topic), client, out);
            }
            Self::CreateDeadLetter {
                script,
                source,
                of_trigger,
                of_script,
                common,
            } => {
                let of_script = of_script.map(|script| script_id(client, &common.app.app, &script));
                let filter = DeadLetters {
                    source,
                    trigger_id: of_trigger,
                    script_id: of_script.transpose()?,
                };
                let filter = BodyFilter::DeadLetter { filter };
                return common.create("dead_letter", &script, (filter, false), client, out);
            }
            Self::Pause { id } => {
                let path = format!("{}/pause", of(&id));
                out.show_members(&client.post::<Trigger>(&path, &())?);
            }
            Self::Resume { id } => {
                let path = format!("{}/resume", of(&id));
                out.show_members(&client.post::<Trigger>(&path, &())?);
            }
            Self::Enable { id } => {
                let body = json!({ "enabled": true });
                out.show_members(&client.patch::<Trigger>(&of(&id), &body)?);
            }
            Self::Disable { id } => {
                let body = json!({ "enabled": false });
                out.show_members(&client.patch::<Trigger>(&of(&id), &body)?);
            }
            Self::Delete { id } => {
                client.delete(&of(&id))?;
            }
        }
        Ok(())
    }
}
