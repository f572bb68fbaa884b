//! `picloud secrets`.

use clap::Subcommand;
use serde_json::json;

use super::client::{Client, encoded, password};
use super::manage::print_list;
use super::output::Output;
use super::{AppArg, Done};

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
        /// Read the value from standard input
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

impl Secrets {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        let path = |app: &AppArg| format!("/apps/{}/secrets", encoded(&app.app));
        match self {
            Self::List { app } => {
                let empty = "No secrets; make one with: picloud secrets set NAME";
                let members = ["name", "scripts", "updated_at"];
                print_list(out, client.all(&path(&app))?, &members, empty);
            }
            Self::Set {
                name,
                scripts,
                stdin,
                app,
            } => {
                let value = password(stdin, &format!("Value of {name}: "))?;
                let scripts = Some(scripts).filter(|scripts| !scripts.is_empty());
                let body = json!({ "value": value, "scripts": scripts });
                let path = format!("{}/{}", path(&app), encoded(&name));
                client.put_text(&path, body.to_string())?;
            }
            Self::Delete { name, app } => {
                client.delete(&format!("{}/{}", path(&app), encoded(&name)))?;
            }
            Self::Rotate => {
                let done = client.post("/secrets/rotate", &json!({}))?;
                out.show(&done, |done| {
                    println!(
                        "{} secrets and keys of subscriber tokens came under the current master key.",
                        done["rotated"]
                    );
                    if done["under_missing_keys"] != 0 {
                        println!(
                            "{} are under keys that this node does not have: set them as master_key_previous.",
                            done["under_missing_keys"]
                        );
                    }
                });
            }
        }
        Ok(())
    }
}
