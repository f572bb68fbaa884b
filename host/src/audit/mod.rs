//! The audit log: who changed what, from where. Rows are only ever added, and removed when they
//! are old.

pub mod api;
pub mod sql;

use std::sync::atomic::{AtomicBool, Ordering};

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::apps::AppId;
use crate::identity::{ApiKeyId, Caller, UserId};
use crate::journal::{self, Channel, NewEntry, kinds};
use crate::store::{Db, Id, StoreError, Tx, Witness, write_beside};
use crate::telemetry::repeated::Repeated;

/// How much of a path is kept.
const TARGET_BYTES_MAX: usize = 1024;

/// The id of an entry.
pub type EntryId = Id<Entry>;

/// Who acted.
#[derive(Debug, Clone)]
pub struct Actor {
    /// The user, or the user whose key it was.
    pub user_id: UserId,
    /// The API key, if one was used.
    pub api_key_id: Option<ApiKeyId>,
    /// The name at that time.
    pub name: String,
}

impl Actor {
    /// Who calls.
    pub fn of(caller: &Caller) -> Self {
        Self {
            user_id: caller.user.id,
            api_key_id: caller.api_key().map(|key| key.id),
            name: caller.principal_name(),
        }
    }
}

/// What was done, or was tried.
#[derive(Debug, Clone)]
pub struct Act {
    /// The endpoint.
    pub action: String,
    /// The path as it was called, with the query where that says what it is about.
    pub target: String,
    /// From where.
    pub address: String,
    /// In which app.
    pub app_id: Option<AppId>,
    /// By whom; none when nobody was signed in.
    pub actor: Option<Actor>,
    /// The status of the answer.
    pub status: u16,
}

impl Act {
    /// What streams are told of it; none where nothing was changed that pages show.
    fn event(&self) -> Option<NewEntry> {
        let (_, path) = self.action.split_once(' ')?;
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        let what = match parts[..] {
            // They do something with it, and change nothing of it.
            [.., "execute" | "validate" | "messages"] => None,
            ["apps", _, part, ..] | [part, ..] => changed(part),
            [] => None,
        }?;
        if self.status >= 400 {
            return None;
        }
        let data = json!({
            "what": what,
            "action": self.action,
            "target": self.target,
            "by": self.actor.as_ref().map(|actor| &actor.name),
        });
        Some(NewEntry::event(kinds::CHANGED, self.app_id, &data))
    }
}

/// What a part of a path names, where pages show it.
fn changed(part: &str) -> Option<&'static str> {
    Some(match part {
        "apps" => "app",
        "domains" => "domain",
        "members" => "member",
        "scripts" => "script",
        "routes" => "route",
        "triggers" => "trigger",
        "topics" => "topic",
        "subscriber-keys" => "subscriber_key",
        "secrets" => "secret",
        "users" => "user",
        "invitations" => "invitation",
        _ => return None,
    })
}

/// An entry of the log.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "AuditEntry")]
pub struct Entry {
    /// Its id.
    pub id: EntryId,
    /// When.
    pub at: DateTime<Utc>,
    /// Who, by the name at that time; empty when nobody was signed in.
    pub who: String,
    /// The user.
    pub user_id: Option<UserId>,
    /// The API key, if one was used.
    pub api_key_id: Option<ApiKeyId>,
    /// The endpoint: `PATCH /scripts/{id}`.
    pub action: String,
    /// The path as it was called, with the query where that says what it is about; that of a
    /// creation ends with the id of what was made.
    pub target: String,
    /// In which app.
    pub app_id: Option<AppId>,
    /// What was answered: 403 is an attempt that was refused.
    pub status: u16,
    /// From where.
    pub address: String,
}

/// Which entries are wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this app.
    pub app_id: Option<AppId>,
    /// Of this user.
    pub user_id: Option<UserId>,
    /// Of this endpoint.
    pub action: Option<String>,
    /// Not before.
    pub since: Option<DateTime<Utc>>,
    /// Before.
    pub until: Option<DateTime<Utc>>,
}

/// An act that is being done: it is written down in the transaction of its change, the first if
/// there are several.
pub struct Acting {
    act: Act,
    noted: AtomicBool,
}

impl Acting {
    /// An act whose status is that of its success.
    pub fn new(act: Act) -> Self {
        let noted = AtomicBool::new(false);
        Self { act, noted }
    }

    /// Whether a change was committed, and the act with it.
    pub fn is_noted(&self) -> bool {
        self.noted.load(Ordering::Acquire)
    }
}

impl Witness for Acting {
    fn write<'t>(&'t self, tx: &'t mut Tx) -> BoxFuture<'t, Result<(), StoreError>> {
        Box::pin(async move {
            if self.is_noted() {
                return Ok(());
            }
            let mut act = self.act.clone();
            if let Some(created) = tx.created() {
                act.target = format!("{}/{created}", act.target);
                act.status = 201;
            }
            insert(tx, act).await
        })
    }

    fn committed(&self) {
        self.noted.store(true, Ordering::Release);
    }
}

/// A target without what is beyond [`TARGET_BYTES_MAX`]: a path may be longer than all else of an entry.
fn cut(mut target: String) -> String {
    if target.len() > TARGET_BYTES_MAX {
        target.truncate(target.floor_char_boundary(TARGET_BYTES_MAX));
        target.push('…');
    }
    target
}

async fn insert(tx: &mut Tx, act: Act) -> Result<(), StoreError> {
    let event = act.event();
    let actor = act.actor;
    let entry = Entry {
        id: Uuid::now_v7().into(),
        at: tx.now,
        user_id: actor.as_ref().map(|actor| actor.user_id),
        api_key_id: actor.as_ref().and_then(|actor| actor.api_key_id),
        who: actor.map(|actor| actor.name).unwrap_or_default(),
        action: act.action,
        target: cut(act.target),
        app_id: act.app_id,
        status: act.status,
        address: act.address,
    };
    sql::insert(tx, &entry).await?;
    match event {
        Some(event) => journal::sql::append(tx, &Channel::events(), &[&event]).await,
        None => Ok(()),
    }
}

static UNWRITTEN: Repeated = Repeated::new("entries of the audit log that could not be written");

/// Write down what was not done, or was done without a transaction of its own; the answer to it
/// waits for this. What cannot be written is in the log at least, but while the database is away: then all of it was refused.
pub async fn note(db: &Db, act: Act) {
    let said = act.action.clone();
    let noted = db.write(move |tx| Box::pin(async move { insert(tx, act).await }));
    if let Err(error) = noted.await {
        match !error.is_unavailable() || UNWRITTEN.begins() {
            true => tracing::error!(%error, action = said, "the audit log could not be written"),
            false => tracing::debug!(%error, action = said, "the audit log could not be written"),
        }
    }
}

/// Write down what was done to the database at `url` without its server.
///
/// # Errors
/// When it cannot be written.
pub async fn note_beside(url: &str, act: Act) -> Result<(), StoreError> {
    write_beside(url, async |tx| insert(tx, act).await).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_told_of_what_was_changed_and_of_nothing_else() {
        let event = |action: &str, status| {
            let act = Act {
                action: action.to_owned(),
                target: "/api/v1/…".to_owned(),
                address: String::new(),
                app_id: None,
                actor: None,
                status,
            };
            let event = act.event()?;
            let data: serde_json::Value = serde_json::from_str(&event.body).unwrap();
            Some(data["what"].as_str().unwrap().to_owned())
        };
        for (action, what) in [
            ("PATCH /scripts/{id}", Some("script")),
            ("POST /apps/{app}/scripts", Some("script")),
            ("POST /triggers/{id}/pause", Some("trigger")),
            ("DELETE /apps/{app}", Some("app")),
            ("PUT /apps/{app}/members/{user}", Some("member")),
            ("POST /scripts/{id}/execute", None),
            ("PUT /apps/{app}/kv/{collection}/{key}", None),
            ("PUT /apps/{app}/kv-value", None),
            ("POST /apps/{app}/topics/{topic}/messages", None),
            ("POST /auth/login", None),
            ("POST /gc", None),
        ] {
            assert_eq!(event(action, 200).as_deref(), what, "{action}");
            assert_eq!(event(action, 403), None, "{action}");
        }
    }
}
