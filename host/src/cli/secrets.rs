//! `picloud secrets`.

use clap::Subcommand;
use serde::Deserialize;
use serde_json::json;

use super::answer::Answer;
use super::client::{Client, encoded};
use super::input::secret;
use super::output::Output;
use super::{AppArg, Done};
use crate::secrets::Secret;

/// Secrets. Nothing shows their values.
#[derive(Subcommand)]
pub(super) enum Secrets {
    /// List their names
    List {
        #[command(flatten)]
        app: AppArg,
    },
    /// Give one a value, which is asked for
    Set {
        /// Its name, as secrets::get takes it
        name: String,
        /// The only script that may read it; may be repeated
        #[arg(long = "script")]
        scripts: Vec<String>,
        /// Read the value from standard input; one line break at its end is no part of it
        #[arg(long)]
        stdin: bool,
        #[command(flatten)]
        app: AppArg,
    },
    /// Remove one
    Delete {
        /// Its name
        name: String,
        #[command(flatten)]
        app: AppArg,
    },
    /// Encrypt what is under a previous master key (secrets, keys of subscriber tokens) under the current one
    Rotate,
}

/// What was encrypted anew.
#[derive(Deserialize)]
struct Rotated {
    rotated: u64,
    under_missing_keys: u64,
}

impl Secrets {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        let path = |app: &AppArg| format!("/apps/{}/secrets", encoded(&app.app));
        match self {
            Self::List { app } => {
                let empty = "No secrets; make one with: picloud secrets set NAME";
                let members = ["name", "scripts", "updated_at"];
                out.list(&client.all::<Secret>(&path(&app))?, &members, empty);
            }
            Self::Set {
                name,
                scripts,
                stdin,
                app,
            } => {
                let value = secret(stdin, &format!("Value of {name}: "))?;
                let scripts = Some(scripts).filter(|scripts| !scripts.is_empty());
                let body = json!({ "value": value, "scripts": scripts });
                let path = format!("{}/{}", path(&app), encoded(&name));
                client.place(&path, &body)?;
            }
            Self::Delete { name, app } => {
                client.delete(&format!("{}/{}", path(&app), encoded(&name)))?;
            }
            Self::Rotate => {
                let done: Answer<Rotated> = client.post("/secrets/rotate", &json!({}))?;
                out.show(&done, |done| {
                    println!(
                        "{} secrets and keys of subscriber tokens came under the current master key.",
                        done.rotated
                    );
                    if done.under_missing_keys != 0 {
                        println!(
                            "{} are under keys that this node does not have: set them as master_key_previous.",
                            done.under_missing_keys
                        );
                    }
                });
            }
        }
        Ok(())
    }
}
