//! `picloud topics` and `picloud publish`.

use clap::{Args, Subcommand};
use serde_json::json;

use super::client::{Client, encoded};
use super::manage::{print_list, print_one};
use super::output::{Failure, Output};
use super::{AppArg, Done};
use crate::json::Json;

/// Topics that are open to subscribers.
#[derive(Subcommand)]
pub(super) enum Topics {
    /// List them
    List {
        #[command(flatten)]
        app: AppArg,
    },
    /// Show one
    Show {
        /// The topic, as it was opened
        topic: String,
        #[command(flatten)]
        app: AppArg,
    },
    /// Let browsers and other clients subscribe to a topic, or change how it is open
    Open {
        /// The topic, or the beginning of topics and '*'
        topic: String,
        /// Who may subscribe
        #[arg(long, value_name = "public|token|session")]
        auth: String,
        /// For how many seconds messages can be replayed
        #[arg(long, value_name = "SECONDS")]
        retention_s: Option<u32>,
        /// How many messages of each topic can be replayed
        #[arg(long, value_name = "N")]
        retention_messages: Option<u32>,
        /// An origin whose pages may subscribe, or '*'; may be repeated
        #[arg(long = "cors-origin", value_name = "https://…")]
        cors_origins: Vec<String>,
        #[command(flatten)]
        app: AppArg,
    },
    /// Let nobody subscribe any more; its streams end
    Close {
        /// The topic, as it was opened
        topic: String,
        #[command(flatten)]
        app: AppArg,
    },
    /// Sign subscriber tokens with a new key
    RotateKeys {
        /// End the tokens before it at once
        #[arg(long)]
        revoke: bool,
        #[command(flatten)]
        app: AppArg,
    },
}

impl Topics {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        let all = |app: &AppArg| format!("/apps/{}/topics", encoded(&app.app));
        let one = |app: &AppArg, topic: &str| format!("{}/{}", all(app), encoded(topic));
        match self {
            Self::List { app } => {
                let empty =
                    "No topic is open; open one with: picloud topics open TOPIC --auth public";
                let members = [
                    "name",
                    "auth_mode",
                    "retention_s",
                    "retention_messages",
                    "cors_origins",
                ];
                print_list(out, client.all(&all(&app))?, &members, empty);
            }
            Self::Show { topic, app } => print_one(out, &client.get(&one(&app, &topic))?),
            Self::Open {
                topic,
                auth,
                retention_s,
                retention_messages,
                cors_origins,
                app,
            } => {
                let body = json!({
                    "auth_mode": auth,
                    "retention_s": retention_s,
                    "retention_messages": retention_messages,
                    "cors_origins": cors_origins,
                });
                client.put_text(&one(&app, &topic), body.to_string())?;
                print_one(out, &client.get(&one(&app, &topic))?);
            }
            Self::Close { topic, app } => {
                client.delete(&one(&app, &topic))?;
            }
            Self::RotateKeys { revoke, app } => {
                let path = format!("/apps/{}/subscriber-keys/rotate", encoded(&app.app));
                print_one(out, &client.post(&path, &json!({ "revoke": revoke }))?);
            }
        }
        Ok(())
    }
}

/// A message.
#[derive(Args)]
pub(super) struct Publish {
    /// The topic
    topic: String,
    /// The message: JSON
    message: String,
    /// Only to whoever listens now; nothing is stored
    #[arg(long)]
    ephemeral: bool,
    #[command(flatten)]
    app: AppArg,
}

impl Publish {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        let message = Json::parse(self.message).map_err(|refused| {
            let hint = match refused.is_malformed() {
                true => "; a text is written '\"like this\"'",
                false => "",
            };
            Failure::Usage(format!("MESSAGE: {refused}{hint}"))
        })?;
        let (app, topic) = (encoded(&self.app.app), encoded(&self.topic));
        let path = format!("/apps/{app}/topics/{topic}/messages");
        let body = json!({ "message": message, "ephemeral": self.ephemeral });
        print_one(out, &client.post(&path, &body)?);
        Ok(())
    }
}
