//! `picloud kv`, `apps`, `scripts`, `routes`: what is there, and changing it.

use chrono::SecondsFormat;
use clap::Subcommand;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::answer::Answer;
use super::client::{Client, encoded};
use super::output::{Failure, Output, cell, json_or_text, print_json, print_text, table};
use super::policies::PolicyArgs;
use super::show::script_id;
use super::{AppArg, Done, input, terminal};
use crate::apps::api::DomainState;
use crate::apps::{App, HostPattern};
use crate::quotas::api::{AppUsage, Counted, Kept};
use crate::routes::Route;
use crate::scripts::Script;

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
        #[arg(allow_negative_numbers = true)]
        value: String,
        /// It is a text, whatever it looks like
        #[arg(long)]
        text: bool,
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
                let path = kv_path(&app, &collection, &key);
                print_json(client.get::<IgnoredAny>(&path)?.text());
            }
            Self::Set {
                collection,
                key,
                value,
                text: is_text,
                app,
            } => {
                let text = match value.as_str() {
                    "-" => input::stdin()?,
                    _ => value,
                };
                let value = json_or_text("VALUE", &text, is_text)?;
                client.place(&kv_path(&app, &collection, &key), &value)?;
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
                let items = client.all::<Collection>(&format!("/apps/{}/kv", encoded(&app.app)))?;
                let empty = "No collections yet; `picloud kv set` makes one.";
                out.list(&items, &["collection", "keys"], empty);
            }
            Self::List {
                collection: Some(collection),
                app,
            } => {
                let path = format!("/apps/{}/kv/{}", encoded(&app.app), encoded(&collection));
                print_entries(&client.all(&path)?, out);
            }
        }
        Ok(())
    }
}

/// A collection, of which everything is shown.
#[derive(Deserialize)]
struct Collection {
    #[serde(rename = "collection")]
    _collection: String,
}

/// A key and its value.
#[derive(Deserialize)]
struct Entry {
    key: String,
    value: Box<RawValue>,
    /// Whether the value is not as it was stored, because nobody can read what was.
    #[serde(default)]
    value_repaired: bool,
}

fn print_entries(entries: &[Answer<Entry>], out: &Output) {
    let texts: Vec<&RawValue> = entries.iter().map(Answer::raw).collect();
    out.show_own(&texts, || {
        if entries.is_empty() {
            return println!("The collection is empty.");
        }
        let row = |entry: &Answer<Entry>| {
            let mark = match entry.value_repaired {
                true => "  (unreadable as it is stored; this is what can be read of it)",
                false => "",
            };
            let key = terminal::line(&entry.key).into_owned();
            vec![key, format!("{}{mark}", cell(&entry.value))]
        };
        table(
            &["KEY", "VALUE"],
            &entries.iter().map(row).collect::<Vec<_>>(),
        );
    });
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
    /// Show how many bytes one keeps of each kind of data, and may keep
    Usage {
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

/// What becomes of an app.
#[derive(Serialize)]
struct AppChange {
    #[serde(skip_serializing_if = "Option::is_none")]
    slug: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hide_payloads_from_viewers: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hosts: Option<Vec<String>>,
}

impl Apps {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        match self {
            Self::List => {
                let empty = "No apps yet; make one with: picloud apps create SLUG";
                let members = ["slug", "name", "hosts", "is_default", "id"];
                out.list(&client.all::<App>("/apps")?, &members, empty);
            }
            Self::Create { slug, name, hosts } => {
                let body = json!({ "slug": slug, "name": name, "hosts": hosts });
                out.show_members(&client.post::<App>("/apps", &body)?);
            }
            Self::Show { app } => {
                out.show_members(&client.get::<App>(&format!("/apps/{}", encoded(&app)))?);
            }
            Self::Usage { app } => {
                let path = format!("/apps/{}/usage", encoded(&app));
                out.show(&client.get::<AppUsage>(&path)?, show_usage);
            }
            Self::Update {
                app,
                slug,
                name,
                hosts,
                hide_payloads_from_viewers: hides,
            } => {
                let change = AppChange {
                    slug,
                    name,
                    hide_payloads_from_viewers: hides,
                    hosts: Some(hosts).filter(|hosts| !hosts.is_empty()),
                };
                let path = format!("/apps/{}", encoded(&app));
                out.show_members(&client.patch::<App>(&path, &change)?);
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

fn show_usage(usage: &AppUsage) {
    let Some(at) = usage.measured_at else {
        return println!("It has not been measured yet; try again in a minute.");
    };
    let row = |kept: &Kept| {
        let percent = kept.bytes.saturating_mul(100) / kept.bytes_max.max(1);
        let rows = match kept.rows_max {
            Some(max) => format!("{} of {max}", kept.rows),
            None => kept.rows.to_string(),
        };
        vec![
            kept.data.as_str().to_owned(),
            rows,
            kept.bytes.to_string(),
            format!("{percent} % of {}", kept.bytes_max),
            kept.setting.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = usage.stored.iter().map(row).collect();
    table(&["DATA", "ROWS", "BYTES", "USED", "SETTING"], &rows);
    println!("");
    let row = |counted: &Counted| {
        vec![
            counted.kind.as_str().to_owned(),
            format!("{} of {}", counted.count, counted.max),
            counted.setting.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = usage.objects.iter().map(row).collect();
    table(&["OBJECTS", "COUNT", "SETTING"], &rows);
    println!("measured {}", at.to_rfc3339_opts(SecondsFormat::Secs, true));
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
    /// Claim one, like shop.example.com or '*.example.com'; or ask for it, where you do not manage the
    /// instance
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

/// A host of an app, or for one.
#[derive(Deserialize)]
struct Domain {
    #[serde(rename = "host")]
    _host: HostPattern,
    #[serde(rename = "state")]
    _state: DomainState,
}

impl Domains {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        let path = |app: &AppArg| format!("/apps/{}/domains", encoded(&app.app));
        match self {
            Self::List { app } => {
                let empty = "No hosts; claim one with: picloud domains add HOST";
                out.list(
                    &client.all::<Domain>(&path(&app))?,
                    &["host", "state"],
                    empty,
                );
            }
            Self::Add { host, app } => {
                let body = json!({ "host": host });
                out.show_members(&client.post::<Domain>(&path(&app), &body)?);
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

/// A version of a script.
#[derive(Deserialize)]
struct Version {
    #[serde(rename = "version")]
    _version: u32,
    /// Only where one is shown, and where it has one.
    source: Option<String>,
}

impl Scripts {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        match self {
            Self::List { app } => {
                let path = format!("/apps/{}/scripts", encoded(&app.app));
                let empty = "No scripts yet; upload one with: picloud deploy FILE";
                let members = ["name", "kind", "version", "updated_at", "id"];
                out.list(&client.all::<Script>(&path)?, &members, empty);
            }
            Self::Show {
                script,
                app,
                version,
            } => {
                let id = script_id(client, &app.app, &script)?;
                let path = match version {
                    None => format!("/scripts/{id}"),
                    Some(version) => format!("/scripts/{id}/versions/{version}"),
                };
                let shown: Answer<Version> = client.get(&path)?;
                out.show(&shown, |shown| match &shown.source {
                    Some(source) => print_text(source),
                    None => println!("a component; it has no source"),
                });
            }
            Self::Versions { script, app } => {
                let id = script_id(client, &app.app, &script)?;
                let items = client.all::<Version>(&format!("/scripts/{id}/versions"))?;
                out.list(&items, &["version", "created_at"], "");
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
    /// Change which pages of other origins may call one, and whether a call can be repeated
    Update {
        /// Its id
        id: String,
        #[command(flatten)]
        policies: PolicyArgs,
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
                let path = format!("/apps/{}/routes", encoded(&app.app));
                let members = ["method", "host", "path", "dispatch_mode", "script_id", "id"];
                let empty =
                    "No routes yet; bind one with: picloud deploy FILE --route 'POST /hello'";
                out.list(&client.all::<Route>(&path)?, &members, empty);
            }
            Self::Update { id, policies } => {
                let change = policies.given()?;
                if change.is_nothing() {
                    let detail = "nothing to change: give --cors-origin or --no-cors, \
                                  --idempotent or --no-idempotent, or --trailing-slash";
                    return Err(Failure::Usage(detail.into()));
                }
                let path = format!("/routes/{}", encoded(&id));
                out.show_members(&client.patch::<Route>(&path, &change)?);
            }
            Self::Delete { id } => {
                client.delete(&format!("/routes/{}", encoded(&id)))?;
            }
        }
        Ok(())
    }
}
