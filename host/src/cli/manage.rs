//! `picloud kv`, `apps`, `scripts`, `routes`: what is there, and changing it.

use std::io::Read;

use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::client::{Client, encoded};
use super::cors::CorsArgs;
use super::output::{Failure, Output, cell, json_or_text, table};
use super::show::script_id;
use super::{AppArg, Done};

/// Print a list as a table of these members, or what to do when it is empty.
pub(super) fn print_list(out: &Output, items: Vec<Value>, members: &[&str], empty: &str) {
    out.show(&Value::Array(items), |items| {
        let items = items.as_array().map(Vec::as_slice).unwrap_or_default();
        if items.is_empty() {
            return println!("{empty}");
        }
        let headings: Vec<String> = members.iter().map(|name| name.to_uppercase()).collect();
        let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
        let row = |item: &Value| members.iter().map(|name| cell(&item[*name])).collect();
        table(&headings, &items.iter().map(row).collect::<Vec<_>>());
    });
}

pub(super) fn print_one(out: &Output, item: &Value) {
    out.show(item, |item| {
        for (name, value) in item.as_object().into_iter().flatten() {
            println!("{name:<14} {}", cell(value));
        }
    });
}

/// The key-value store.
#[derive(Subcommand)]
pub(super) enum Kv {
    /// Print the value of a key
    Get {
        /// The collection
        collection: String,
        /// The key
        key: String,
        #[command(flatten)]
        app: AppArg,
    },
    /// Give a key a value
    Set {
        /// The collection
        collection: String,
        /// The key
        key: String,
        /// JSON, or text that becomes a JSON string; - reads standard input
        value: String,
        #[command(flatten)]
        app: AppArg,
    },
    /// Remove a key
    Delete {
        /// The collection
        collection: String,
        /// The key
        key: String,
        #[command(flatten)]
        app: AppArg,
    },
    /// List the collections, or the entries of one
    List {
        /// The collection
        collection: Option<String>,
        #[command(flatten)]
        app: AppArg,
    },
}

fn kv_path(app: &AppArg, collection: &str, key: &str) -> String {
    format!(
        "/apps/{}/kv/{}/{}",
        encoded(&app.app),
        encoded(collection),
        encoded(key)
    )
}

impl Kv {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        match self {
            Self::Get {
                collection,
                key,
                app,
            } => {
                let value = client.get(&kv_path(&app, &collection, &key))?;
                println!("{value}");
            }
            Self::Set {
                collection,
                key,
                value,
                app,
            } => {
                let text = if value == "-" {
                    let mut text = String::new();
                    std::io::stdin().read_to_string(&mut text)?;
                    text
                } else {
                    value
                };
                let value = json_or_text("VALUE", &text)?;
                client.put_text(&kv_path(&app, &collection, &key), value.into())?;
            }
            Self::Delete {
                collection,
                key,
                app,
            } => {
                client.delete(&kv_path(&app, &collection, &key))?;
            }
            Self::List {
                collection: None,
                app,
            } => {
                let items = client.all(&format!("/apps/{}/kv", encoded(&app.app)))?;
                let empty = "No collections yet; `picloud kv set` makes one.";
                print_list(out, items, &["collection", "keys"], empty);
            }
            Self::List {
                collection: Some(collection),
                app,
            } => {
                let path = format!("/apps/{}/kv/{}", encoded(&app.app), encoded(&collection));
                let items = client.all(&path)?;
                print_list(out, items, &["key", "value"], "The collection is empty.");
            }
        }
        Ok(())
    }
}

/// Apps.
#[derive(Subcommand)]
pub(super) enum Apps {
    /// List them
    List,
    /// Make one
    Create {
        /// Its short name
        slug: String,
        /// The name that people see
        #[arg(long)]
        name: Option<String>,
        /// A host that it claims, like shop.example.com or '*.example.com'; may be repeated
        #[arg(long = "host")]
        hosts: Vec<String>,
    },
    /// Show one
    Show {
        /// The app, by slug or id
        app: String,
    },
    /// Change one
    Update {
        /// The app, by slug or id
        app: String,
        /// Its new short name
        #[arg(long)]
        slug: Option<String>,
        /// Its new name
        #[arg(long)]
        name: Option<String>,
        /// Its hosts, in place of those that it has; may be repeated
        #[arg(long = "host")]
        hosts: Vec<String>,
        /// Whether viewers see no log lines, errors and payloads
        #[arg(long, value_name = "true|false")]
        hide_payloads_from_viewers: Option<bool>,
    },
    /// Delete one with all that belongs to it
    Delete {
        /// The app, by slug or id
        app: String,
        /// Yes, really
        #[arg(long)]
        yes: bool,
    },
}

impl Apps {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        match self {
            Self::List => {
                let empty = "No apps yet; make one with: picloud apps create SLUG";
                print_list(
                    out,
                    client.all("/apps")?,
                    &["slug", "name", "hosts", "is_default", "id"],
                    empty,
                );
            }
            Self::Create { slug, name, hosts } => {
                let body = json!({ "slug": slug, "name": name, "hosts": hosts });
                print_one(out, &client.post("/apps", &body)?);
            }
            Self::Show { app } => print_one(out, &client.get(&format!("/apps/{}", encoded(&app)))?),
            Self::Update {
                app,
                slug,
                name,
                hosts,
                hide_payloads_from_viewers: hides,
            } => {
                let mut body = Map::new();
                body.extend(slug.map(|slug| ("slug".to_owned(), slug.into())));
                body.extend(name.map(|name| ("name".to_owned(), name.into())));
                body.extend(
                    hides.map(|hides| ("hide_payloads_from_viewers".to_owned(), hides.into())),
                );
                if !hosts.is_empty() {
                    body.insert("hosts".into(), hosts.into());
                }
                print_one(
                    out,
                    &client.patch(&format!("/apps/{}", encoded(&app)), &body.into())?,
                );
            }
            Self::Delete { app, yes } => {
                sure(
                    yes,
                    &format!("the app `{app}`, its scripts, routes and data"),
                )?;
                client.delete(&format!("/apps/{}", encoded(&app)))?;
            }
        }
        Ok(())
    }
}

pub(super) fn sure(yes: bool, what: &str) -> Done {
    match yes {
        true => Ok(()),
        false => Err(Failure::Usage(format!(
            "this deletes {what}; say so with --yes"
        ))),
    }
}

/// The hosts that an app claims.
#[derive(Subcommand)]
pub(super) enum Domains {
    /// List them
    List {
        #[command(flatten)]
        app: AppArg,
    },
    /// Claim one, like shop.example.com or '*.example.com'
    Add {
        /// The host
        host: String,
        #[command(flatten)]
        app: AppArg,
    },
    /// Give one up; names the routes that are on it, if any
    Remove {
        /// The host
        host: String,
        /// Leave those routes behind, unreachable
        #[arg(long)]
        orphan: bool,
        #[command(flatten)]
        app: AppArg,
    },
}

impl Domains {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        let path = |app: &AppArg| format!("/apps/{}/domains", encoded(&app.app));
        match self {
            Self::List { app } => {
                let empty = "No hosts; claim one with: picloud domains add HOST";
                print_list(out, client.all(&path(&app))?, &["host"], empty);
            }
            Self::Add { host, app } => {
                print_one(out, &client.post(&path(&app), &json!({ "host": host }))?);
            }
            Self::Remove { host, orphan, app } => {
                let query = if orphan { "?orphan=true" } else { "" };
                client.delete(&format!("{}/{}{query}", path(&app), encoded(&host)))?;
            }
        }
        Ok(())
    }
}

/// Scripts.
#[derive(Subcommand)]
pub(super) enum Scripts {
    /// List them
    List {
        #[command(flatten)]
        app: AppArg,
    },
    /// Print one's source
    Show {
        /// The script, by name or id
        script: String,
        #[command(flatten)]
        app: AppArg,
        /// An older version
        #[arg(long)]
        version: Option<u32>,
    },
    /// List one's versions
    Versions {
        /// The script, by name or id
        script: String,
        #[command(flatten)]
        app: AppArg,
    },
    /// Delete one; its routes then answer 404
    Delete {
        /// The script, by name or id
        script: String,
        #[command(flatten)]
        app: AppArg,
        /// Yes, really
        #[arg(long)]
        yes: bool,
    },
}

impl Scripts {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        match self {
            Self::List { app } => {
                let items = client.all(&format!("/apps/{}/scripts", encoded(&app.app)))?;
                let empty = "No scripts yet; upload one with: picloud deploy FILE";
                print_list(
                    out,
                    items,
                    &["name", "kind", "version", "updated_at", "id"],
                    empty,
                );
            }
            Self::Show {
                script,
                app,
                version,
            } => {
                let id = script_id(client, &app.app, &script)?;
                let shown = match version {
                    None => client.get(&format!("/scripts/{id}"))?,
                    Some(version) => client.get(&format!("/scripts/{id}/versions/{version}"))?,
                };
                out.show(&shown, |shown| match shown["source"].as_str() {
                    Some(source) => print!("{source}"),
                    None => println!("a component; it has no source"),
                });
            }
            Self::Versions { script, app } => {
                let id = script_id(client, &app.app, &script)?;
                let items = client.all(&format!("/scripts/{id}/versions"))?;
                print_list(out, items, &["version", "created_at"], "");
            }
            Self::Delete { script, app, yes } => {
                sure(yes, &format!("the script `{script}` with all its versions"))?;
                let id = script_id(client, &app.app, &script)?;
                client.delete(&format!("/scripts/{id}"))?;
            }
        }
        Ok(())
    }
}

/// Routes.
#[derive(Subcommand)]
pub(super) enum Routes {
    /// List them
    List {
        #[command(flatten)]
        app: AppArg,
    },
    /// Change which pages of other origins may call one
    Update {
        /// Its id
        id: String,
        #[command(flatten)]
        cors: CorsArgs,
    },
    /// Delete one
    Delete {
        /// Its id
        id: String,
    },
}

impl Routes {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        match self {
            Self::List { app } => {
                let items = client.all(&format!("/apps/{}/routes", encoded(&app.app)))?;
                let members = ["method", "host", "path", "dispatch_mode", "script_id", "id"];
                let empty =
                    "No routes yet; bind one with: picloud deploy FILE --route 'POST /hello'";
                print_list(out, items, &members, empty);
            }
            Self::Update { id, cors } => {
                let cors = cors.given()?.ok_or_else(|| {
                    Failure::Usage("nothing to change: give --cors-origin or --no-cors".into())
                })?;
                let path = format!("/routes/{}", encoded(&id));
                print_one(out, &client.patch(&path, &json!({ "cors": cors }))?);
            }
            Self::Delete { id } => {
                client.delete(&format!("/routes/{}", encoded(&id)))?;
            }
        }
        Ok(())
    }
}
