//! `picloud topics` and `picloud publish`.

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::client::{Client, encoded};
use super::output::{Failure, Output};
use super::{AppArg, Done};
use crate::json::Json;
use crate::pubsub::tokens::Rotated;
use crate::pubsub::topics::OpenTopic;

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
                out.list(&client.all::<OpenTopic>(&all(&app))?, &members, empty);
            }
            Self::Show { topic, app } => {
                out.show_members(&client.get::<OpenTopic>(&one(&app, &topic))?);
            }
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
                out.show_members(&client.put::<OpenTopic>(&one(&app, &topic), &body)?);
            }
            Self::Close { topic, app } => {
                client.delete(&one(&app, &topic))?;
            }
            Self::RotateKeys { revoke, app } => {
                let path = format!("/apps/{}/subscriber-keys/rotate", encoded(&app.app));
                let body = json!({ "revoke": revoke });
                out.show_members(&client.post::<Rotated>(&path, &body)?);
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

/// It, as it is sent: as it was written.
#[derive(Serialize)]
struct NewMessage {
    message: Json,
    ephemeral: bool,
}

/// That it was published.
#[derive(Deserialize)]
struct Receipt {
    #[serde(rename = "message_id")]
    _message_id: Uuid,
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
        let body = NewMessage {
            message,
            ephemeral: self.ephemeral,
        };
        out.show_members(&client.post::<Receipt>(&path, &body)?);
        Ok(())
    }
}
