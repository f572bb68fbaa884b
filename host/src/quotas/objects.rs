//! How many scripts, routes, triggers and so on an app may have of each kind: every node holds all of
//! them in memory, and reads all of them anew when one changes.
//!
//! They are counted in the transaction that makes one. Hosts and secrets have limits of their own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::sql;
use crate::apps::AppId;
use crate::store::{StoreError, Tx};

/// The setting that bounds them.
pub const SETTING: &str = "objects_per_app_max";

/// What an app may have only so many of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "AppObject")]
pub enum Object {
    /// Scripts, whatever their versions.
    Scripts,
    /// Routes.
    Routes,
    /// Triggers.
    Triggers,
    /// Topics that are open to subscribers.
    Topics,
    /// Members.
    Members,
    /// Keys that sign subscriber tokens.
    SubscriberKeys,
}

impl Object {
    /// Each of them.
    pub const ALL: [Self; 6] = [
        Self::Scripts,
        Self::Routes,
        Self::Triggers,
        Self::Topics,
        Self::Members,
        Self::SubscriberKeys,
    ];

    /// The word in the API, in metrics and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scripts => "scripts",
            Self::Routes => "routes",
            Self::Triggers => "triggers",
            Self::Topics => "topics",
            Self::Members => "members",
            Self::SubscriberKeys => "subscriber_keys",
        }
    }
}

/// An app has as many objects of a kind as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the app may have {max} {object}, and would have {count} ({SETTING}); delete some, or have the limit raised",
    object = .object.as_str()
)]
pub struct TooMany {
    /// Of which kind.
    pub object: Object,
    /// How many it would have.
    pub count: u64,
    /// How many it may have.
    pub max: u64,
}

/// Refuse another object where an app has as many of its kind as it may. What it has, it keeps and can
/// change, whatever the limit is by now.
///
/// # Errors
/// [`TooMany`], or when the database fails.
pub async fn check<E>(tx: &mut Tx, app_id: AppId, object: Object, max: u64) -> Result<(), E>
where
    E: From<TooMany> + From<StoreError>,
{
    let there = sql::objects(tx.conn().await?, app_id, object).await?;
    Ok(check_count(object, there + 1, max)?)
}

/// Refuse more objects of a kind than an app may have.
///
/// # Errors
/// [`TooMany`].
pub fn check_count(object: Object, count: u64, max: u64) -> Result<(), TooMany> {
    match count > max {
        true => Err(TooMany { object, count, max }),
        false => Ok(()),
    }
}
