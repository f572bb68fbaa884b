//! `picloud users`, `members`, `keys`, `audit`: who may do what, and who did.

use chrono::{DateTime, Utc};
use clap::{Subcommand, ValueEnum};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::Answer;
use super::client::{Client, encoded};
use super::input::secret;
use super::manage::sure;
use super::output::{Failure, Output, print_text};
use super::{AppArg, Done, terminal};
use crate::audit::Entry;
use crate::identity::capability::{AppRole, Role, Scope};
use crate::identity::links::Link;
use crate::identity::users::Member;
use crate::identity::{ApiKey, User};

macro_rules! named_values {
    ($($type:ident),*) => {
        $(impl ValueEnum for $type {
            fn value_variants<'a>() -> &'a [Self] {
                Self::ALL
            }

            fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
                Some(self.as_str().into())
            }
        })*
    };
}

named_values!(AppRole, Role, Scope);

/// `shop=editor`.
fn app_role(text: &str) -> Result<(String, AppRole), String> {
    let wrong = || format!("write it like shop=editor: viewer, editor or app_admin, not `{text}`");
    let (app, role) = text.split_once('=').ok_or_else(wrong)?;
    let role = AppRole::parse(role).ok_or_else(wrong)?;
    Ok((app.to_owned(), role))
}

/// `30d`, `12h`: from now.
fn from_now(text: &str) -> Result<DateTime<Utc>, String> {
    let wrong = || format!("write it like 30d or 12h, not `{text}`");
    let at = text
        .len()
        .checked_sub(1)
        .filter(|at| text.is_char_boundary(*at));
    let (number, unit) = text.split_at(at.ok_or_else(wrong)?);
    let number: u32 = number.parse().map_err(|_| wrong())?;
    let hours = match unit {
        "d" => 24,
        "h" => 1,
        _ => return Err(wrong()),
    };
    let time = chrono::TimeDelta::hours(i64::from(number) * hours);
    Utc::now().checked_add_signed(time).ok_or_else(wrong)
}

/// Something that was made with a token.
#[derive(Deserialize)]
struct WithToken {
    token: String,
}

/// Print what is shown this once.
fn print_token(out: &Output, made: &Answer<WithToken>, what: &str, next: &str) {
    out.show(made, |made| {
        print_text(&format!("{}\n", made.token));
        eprintln!("This is {what}; it is shown this once.{next}");
    });
}

/// Users.
#[derive(Subcommand)]
pub(super) enum Users {
    /// List them
    List,
    /// Make a link with which somebody joins; it is good once, for seven days
    Invite {
        /// What they become on the instance
        #[arg(long, default_value = "member")]
        role: Role,
        /// What they become in an app, like shop=editor; may be repeated
        #[arg(long = "app", value_name = "APP=ROLE", value_parser = app_role)]
        apps: Vec<(String, AppRole)>,
    },
    /// List the invitations that nobody has followed
    Invitations,
    /// Take an invitation back
    RevokeInvitation {
        /// Its id
        id: String,
    },
    /// Follow an invitation, or a link to a new password
    Join {
        /// The link's token
        token: String,
        /// The name to sign in with; left out, the link is one to a new password
        #[arg(long)]
        name: Option<String>,
        /// Read the password from standard input
        #[arg(long)]
        password_stdin: bool,
    },
    /// Change somebody's role on the instance
    SetRole {
        /// Who, by name or id
        user: String,
        /// Their role from now on
        role: Role,
    },
    /// Keep somebody from signing in; their API keys do nothing
    Disable {
        /// Who, by name or id
        user: String,
    },
    /// Let somebody sign in again
    Enable {
        /// Who, by name or id
        user: String,
    },
    /// Make a link with which somebody sets a new password; it is good once, for a day
    ResetLink {
        /// Who, by name or id
        user: String,
    },
    /// Remove somebody with their sessions, keys and roles
    Delete {
        /// Who, by name or id
        user: String,
        /// Yes, really
        #[arg(long)]
        yes: bool,
    },
}

/// The path of a user that a name or an id means.
fn user_path(client: &Client, named: &str) -> Result<String, Failure> {
    let users = client.all::<User>("/users")?;
    let mut users = users.iter();
    let found = users.find(|user| user.name == named || user.id.to_string() == named);
    let user = found.ok_or_else(|| Failure::Missing(format!("there is no user `{named}`")))?;
    Ok(format!("/users/{}", user.id))
}

/// Somebody who joined.
#[derive(Deserialize)]
struct Joined {
    user: User,
}

impl Users {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        let change = |user: &str, change: Value| -> Done {
            out.show_members(&client.patch::<User>(&user_path(client, user)?, &change)?);
            Ok(())
        };
        match self {
            Self::List => {
                let members = ["name", "role", "created_at", "disabled_at", "id"];
                out.list(&client.all::<User>("/users")?, &members, "Nobody.");
            }
            Self::Invite { role, apps } => {
                let apps: Map<String, Value> = apps
                    .into_iter()
                    .map(|(app, role)| (app, role.as_str().into()))
                    .collect();
                let body = json!({ "role": role.as_str(), "apps": apps });
                let made = client.post("/invitations", &body)?;
                let next = format!(
                    " Whoever has it joins with:\n  picloud --url {} users join TOKEN --name NAME",
                    client.url()
                );
                print_token(out, &made, "an invitation", &next);
            }
            Self::Invitations => {
                let empty = "No invitations; make one with: picloud users invite";
                let members = ["role", "apps", "expires_at", "id"];
                out.list(&client.all::<Link>("/invitations")?, &members, empty);
            }
            Self::RevokeInvitation { id } => {
                client.delete(&format!("/invitations/{}", encoded(&id)))?;
            }
            Self::Join {
                token,
                name,
                password_stdin,
            } => {
                let password = secret(password_stdin, "Your new password: ")?;
                match name {
                    Some(name) => {
                        let body = json!({ "token": token, "name": name, "password": password });
                        let joined: Answer<Joined> = client.post("/auth/join", &body)?;
                        out.show_own(&joined.user, || {
                            let name = terminal::line(&joined.user.name);
                            println!("You are {name}; sign in with: picloud login --user {name}");
                        });
                    }
                    None => {
                        let body = json!({ "token": token, "password": password });
                        client.act("/auth/reset", &body)?;
                    }
                }
            }
            Self::SetRole { user, role } => change(&user, json!({ "role": role.as_str() }))?,
            Self::Disable { user } => change(&user, json!({ "disabled": true }))?,
            Self::Enable { user } => change(&user, json!({ "disabled": false }))?,
            Self::ResetLink { user } => {
                let path = user_path(client, &user)?;
                let made = client.post(&format!("{path}/reset-link"), &json!({}))?;
                let next = format!(
                    " Whoever has it sets a password with:\n  picloud --url {} users join TOKEN",
                    client.url()
                );
                print_token(out, &made, "a link to a new password", &next);
            }
            Self::Delete { user, yes } => {
                sure(
                    yes,
                    &format!("the user `{user}`, their sessions, keys and roles"),
                )?;
                client.delete(&user_path(client, &user)?)?;
            }
        }
        Ok(())
    }
}

/// Who has a role in an app.
#[derive(Subcommand)]
pub(super) enum Members {
    /// List them
    List {
        #[command(flatten)]
        app: AppArg,
    },
    /// Give somebody a role in an app
    Set {
        /// Who, by name or id
        user: String,
        /// Their role from now on
        role: AppRole,
        #[command(flatten)]
        app: AppArg,
    },
    /// Take somebody's role in an app away
    Remove {
        /// Who, by name or id
        user: String,
        #[command(flatten)]
        app: AppArg,
    },
}

impl Members {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        let path = |app: &AppArg| format!("/apps/{}/members", encoded(&app.app));
        match self {
            Self::List { app } => {
                let empty = "No members; admins of the instance may do everything here.";
                let members = ["name", "role", "created_at", "user_id"];
                out.list(&client.all::<Member>(&path(&app))?, &members, empty);
            }
            Self::Set { user, role, app } => {
                let path = format!("{}/{}", path(&app), encoded(&user));
                client.place(&path, &json!({ "role": role.as_str() }))?;
            }
            Self::Remove { user, app } => {
                client.delete(&format!("{}/{}", path(&app), encoded(&user)))?;
            }
        }
        Ok(())
    }
}

/// Your API keys.
#[derive(Subcommand)]
pub(super) enum Keys {
    /// List them
    List,
    /// Make one
    Create {
        /// Its name
        name: String,
        /// What it may be used for; may be repeated
        #[arg(long = "scope", required = true)]
        scopes: Vec<Scope>,
        /// The only app that it is for; may be repeated
        #[arg(long = "app")]
        apps: Vec<String>,
        /// When it ends, like 30d or 12h; left out: when it is revoked
        #[arg(long, value_parser = from_now)]
        expires: Option<DateTime<Utc>>,
    },
    /// Give one a new token; the old one is dead at once
    Rotate {
        /// The key, by name or id
        key: String,
    },
    /// Revoke one
    Revoke {
        /// The key, by name or id
        key: String,
    },
}

fn key_path(client: &Client, named: &str) -> Result<String, Failure> {
    let keys = client.all::<ApiKey>("/auth/keys")?;
    let mut keys = keys.iter();
    let found = keys.find(|key| key.name == named || key.id.to_string() == named);
    let key = found.ok_or_else(|| Failure::Missing(format!("you have no API key `{named}`")))?;
    Ok(format!("/auth/keys/{}", key.id))
}

impl Keys {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        let next = " Machines send it as `Authorization: Bearer TOKEN`, or as PICLOUD_TOKEN.";
        match self {
            Self::List => {
                let empty = "No API keys; make one with: picloud keys create NAME --scope script:write --scope route:write";
                let members = [
                    "name",
                    "token_start",
                    "scopes",
                    "apps",
                    "expires_at",
                    "last_used_at",
                ];
                out.list(&client.all::<ApiKey>("/auth/keys")?, &members, empty);
            }
            Self::Create {
                name,
                scopes,
                apps,
                expires,
            } => {
                let scopes: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
                let apps = Some(apps).filter(|apps| !apps.is_empty());
                let body =
                    json!({ "name": name, "scopes": scopes, "apps": apps, "expires_at": expires });
                let made = client.post("/auth/keys", &body)?;
                print_token(out, &made, "the API key's token", next);
            }
            Self::Rotate { key } => {
                let path = format!("{}/rotate", key_path(client, &key)?);
                let made = client.post(&path, &json!({}))?;
                print_token(out, &made, "the API key's new token", next);
            }
            Self::Revoke { key } => {
                client.delete(&key_path(client, &key)?)?;
            }
        }
        Ok(())
    }
}

/// `picloud audit`.
#[derive(clap::Args)]
pub(super) struct Audit {
    /// Only what was done in this app
    #[arg(long)]
    app: Option<String>,
    /// Only what this user did, by id
    #[arg(long)]
    user_id: Option<String>,
    /// Only this endpoint, like 'PATCH /scripts/{id}'
    #[arg(long)]
    action: Option<String>,
    /// How many entries
    #[arg(long, default_value_t = 50)]
    limit: usize,
}

impl Audit {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        let mut path = match &self.app {
            Some(app) => format!("/apps/{}/audit", encoded(app)),
            None => "/audit".to_owned(),
        };
        let filters = [("user_id", self.user_id), ("action", self.action)];
        for (name, value) in filters {
            if let Some(value) = value {
                let sign = if path.contains('?') { '&' } else { '?' };
                path.push_str(&format!("{sign}{name}={}", encoded(&value)));
            }
        }
        let entries = client.first::<Entry>(&path, self.limit)?;
        let members = ["at", "who", "action", "target", "status", "address"];
        out.list(&entries, &members, "Nothing was changed yet.");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_time_is_refused() {
        assert!(from_now("30d").is_ok() && from_now("0h").is_ok());
        for wrong in ["", "d", "3", "3m", "-1d", "1.5d", "3é", "99999999999d"] {
            assert!(from_now(wrong).is_err(), "{wrong}");
        }
    }
}
