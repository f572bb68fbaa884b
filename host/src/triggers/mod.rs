//! Triggers: an event filter → a script, with a retry policy and the principal who registered it.

pub mod api;
pub mod firing;
mod glob;
pub mod sql;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::apps::{AppId, NAME_BYTES_MAX};
use crate::dead_letters::DeadLetter;
use crate::dispatch::retry::RetryPolicy;
use crate::idempotency::EventPolicy;
use crate::identity::UserId;
use crate::kv::{Collection, Key};
use crate::quotas::objects::TooMany;
use crate::scripts::ScriptId;
use crate::store::{Id, StoreError};
pub use glob::Glob;

/// The id of a trigger.
pub type TriggerId = Id<Trigger>;

/// Which events go to which script.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Trigger {
    /// Its id.
    pub id: TriggerId,
    /// The app that it belongs to.
    pub app_id: AppId,
    /// The script that runs.
    pub script_id: ScriptId,
    /// Its name, unique in the app.
    pub name: String,
    /// What it listens to.
    #[serde(flatten)]
    pub kind: Kind,
    /// Whether events make deliveries.
    pub enabled: bool,
    /// Whether its deliveries are kept for later.
    pub paused: bool,
    /// How its deliveries are dispatched.
    pub dispatch_mode: DispatchMode,
    /// How often a delivery is attempted, and when.
    pub retry: RetryPolicy,
    /// Whether deliveries wait for each other.
    pub ordered_by: Option<OrderedBy>,
    /// What makes a delivery happen once.
    pub idempotency: Option<EventPolicy>,
    /// Who registered it: its executions run as them.
    pub registered_by_principal: UserId,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

/// The name of a trigger where nobody says one: its script and what it listens to, `notify on
/// people` say, with a number where others have that.
pub fn default_name(script: &str, kind: &Kind, taken: &[String]) -> String {
    let of = match kind {
        Kind::Kv(filter) => filter.collection.to_string(),
        Kind::PubSub(filter) => format!("topic {}", filter.topic),
        Kind::DeadLetter(_) => "dead letters".to_owned(),
    };
    let whole: String = format!("{script} on {of}")
        .chars()
        .filter(|c| !c.is_control())
        .collect();
    let numbered = |n: u32| {
        let number = if n == 1 {
            String::new()
        } else {
            format!(" {n}")
        };
        let mut name = whole.clone();
        name.truncate(name.floor_char_boundary(NAME_BYTES_MAX - number.len()));
        name + number.as_str()
    };
    // There are fewer names than numbers.
    let mut names = (1..).map(numbered);
    names.find(|name| !taken.contains(name)).unwrap_or(whole)
}

/// What a trigger listens to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", content = "filter", rename_all = "snake_case")]
#[schemars(rename = "TriggerKind")]
pub enum Kind {
    /// Mutations of the key-value store.
    Kv(KvFilter),
    /// Deliveries that used up their attempts.
    DeadLetter(DeadLetterFilter),
    /// Messages that are published to topics.
    #[serde(rename = "pubsub")]
    PubSub(PubSubFilter),
}

impl Kind {
    /// The word in the database and the API; a delivery's `invocation_type` too.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Kv(_) => "kv",
            Self::DeadLetter(_) => "dead_letter",
            Self::PubSub(_) => "pubsub",
        }
    }
}

/// Which mutations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KvFilter {
    /// Of these collections.
    pub collection: Glob,
    /// Of these kinds; at least one.
    pub ops: Vec<Op>,
    /// Of these keys.
    pub key: Option<Glob>,
}

impl KvFilter {
    /// Whether a mutation of this key may be meant; whether it is, its kind decides.
    pub fn may_match(&self, collection: &Collection, key: &Key) -> bool {
        self.collection.matches(collection.as_str())
            && self
                .key
                .as_ref()
                .is_none_or(|glob| glob.matches(key.as_str()))
    }
}

/// Which messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PubSubFilter {
    /// Of these topics.
    pub topic: Glob,
}

/// What a mutation did to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "KvOp")]
pub enum Op {
    /// It had no value before.
    Insert,
    /// It has another value than before, or the same again.
    Update,
    /// It has none any more.
    Delete,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Insert, Self::Update, Self::Delete];
}

/// Which dead letters; what is left out is not looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeadLetterFilter {
    /// Fired so: `http`, `kv` or `pubsub`.
    #[serde(default)]
    pub source: Option<Source>,
    /// Of this trigger.
    #[serde(default)]
    pub trigger_id: Option<TriggerId>,
    /// Of this script.
    #[serde(default)]
    pub script_id: Option<ScriptId>,
}

impl DeadLetterFilter {
    /// Whether this dead letter is meant.
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        self.source
            .is_none_or(|source| source.as_str() == letter.source)
            && self
                .trigger_id
                .is_none_or(|id| letter.trigger_id == Some(id))
            && self.script_id.is_none_or(|id| letter.script_id == id)
    }
}

/// What fires deliveries that can become dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "DeadLetterSource")]
pub enum Source {
    /// An async route.
    Http,
    /// A trigger on the key-value store.
    Kv,
    /// A trigger on topics.
    #[serde(rename = "pubsub")]
    PubSub,
}

impl Source {
    /// The word in the database and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Kv => "kv",
            Self::PubSub => "pubsub",
        }
    }

    /// The source that a word names.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Http, Self::Kv, Self::PubSub]
            .into_iter()
            .find(|source| source.as_str() == word)
    }
}

/// How the deliveries of a trigger are dispatched: nobody ever waits for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "TriggerDispatchMode")]
pub enum DispatchMode {
    /// Through the outbox.
    #[default]
    Async,
}

/// What deliveries have in common that wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OrderedBy {
    /// The same collection and key; or the same topic.
    Key,
}

/// What can go wrong with triggers.
#[derive(Debug, thiserror::Error)]
pub enum TriggerError {
    /// No such trigger.
    #[error("there is no trigger `{0}`")]
    NotFound(String),
    /// Another trigger of the app has the name.
    #[error("the app has a trigger `{0}` already")]
    NameTaken(String),
    /// A filter names a trigger that is not there.
    #[error("the app has no trigger `{0}`")]
    UnknownTrigger(TriggerId),
    /// A filter names a script that is not there.
    #[error("the app has no script `{0}`")]
    UnknownScript(ScriptId),
    /// The app has as many of them as it may.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_a_trigger_does() {
        let kv = |collection: &str| {
            Kind::Kv(KvFilter {
                collection: collection.parse().unwrap(),
                ops: Op::ALL.to_vec(),
                key: None,
            })
        };
        let name = |kind, taken: &[&str]| {
            let taken: Vec<String> = taken.iter().map(|name| (*name).to_owned()).collect();
            default_name("notify", &kind, &taken)
        };
        assert_eq!(name(kv("orders:*"), &[]), "notify on orders:*");
        assert_eq!(
            name(kv("people"), &["notify on people"]),
            "notify on people 2"
        );
        let two = ["notify on people", "notify on people 2"];
        assert_eq!(name(kv("people"), &two), "notify on people 3");
        let dead = || Kind::DeadLetter(DeadLetterFilter::default());
        assert_eq!(name(dead(), &[]), "notify on dead letters");
        let topic = "t".parse().unwrap();
        assert_eq!(
            name(Kind::PubSub(PubSubFilter { topic }), &[]),
            "notify on topic t"
        );
        let long = name(kv(&"é".repeat(80)), &[]);
        assert!(long.len() <= NAME_BYTES_MAX && long.starts_with("notify on éé"));
        let other = name(kv(&"é".repeat(80)), &[&long]);
        assert!(other.len() <= NAME_BYTES_MAX && other.ends_with("é 2"));
    }
}
