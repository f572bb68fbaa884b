//! The audit log: who changed what, from where. Rows are only ever added, and removed when they
//! are old.

pub mod api;
pub mod sql;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

use crate::apps::AppId;
use crate::identity::{ApiKeyId, Caller, UserId};
use crate::store::{Db, Id};

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
    /// The path as it was called.
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

/// An entry of the log.
#[derive(Debug, Clone, Serialize, JsonSchema)]
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
    /// The path as it was called.
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

/// Write down what was done; the answer to it waits for this. What cannot be written is in the
/// log at least.
pub async fn note(db: &Db, act: Act) {
    let said = act.action.clone();
    let noted = db.write(move |tx| {
        Box::pin(async move {
            let actor = act.actor;
            let entry = Entry {
                id: Uuid::now_v7().into(),
                at: tx.now,
                user_id: actor.as_ref().map(|actor| actor.user_id),
                api_key_id: actor.as_ref().and_then(|actor| actor.api_key_id),
                who: actor.map(|actor| actor.name).unwrap_or_default(),
                action: act.action,
                target: act.target,
                app_id: act.app_id,
                status: act.status,
                address: act.address,
            };
            sql::insert(tx, &entry).await
        })
    });
    if let Err(error) = noted.await {
        tracing::error!(%error, action = said, "the audit log could not be written");
    }
}
