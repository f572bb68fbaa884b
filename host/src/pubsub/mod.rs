//! Topics: messages for triggers, and for whoever subscribed where an admin opened the topic.

pub mod api;
pub mod imports;
pub mod sql;
pub mod tokens;
pub mod topics;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::apps::AppId;
use crate::directory::{Directory, Unread};
use crate::journal::{Channel, Journal, NewEntry};
use crate::json::{self, NotJson};
use crate::quotas::{Full, objects::TooMany};
use crate::secrets::master_key::MasterKeys;
use crate::store::{Db, StoreError, micros, still_witnessed};
use crate::triggers::firing::{Events, HeardByTooMany, Origin, Untellable};
pub use tokens::{SubscriberKey, TtlBounds};
pub use topics::{AuthMode, OpenTopic, OpenTopics};

/// The longest name of a topic, in bytes.
pub const TOPIC_BYTES_MAX: usize = 256;
/// The characters of a topic besides ASCII letters and digits.
pub const TOPIC_MARKS: &str = "-_.:/@~";

/// What a topic looks like; [`TOPIC_MARKS`] are in it.
pub const TOPIC_PATTERN: &str = "^[A-Za-z0-9_.:/@~-]+$";
/// What topics look like, one or those that begin so.
pub const TOPICS_PATTERN: &str = r"^[A-Za-z0-9_.:/@~-]*\*?$";

/// What can go wrong with messages and topics.
#[derive(Debug, thiserror::Error)]
pub enum PubSubError {
    /// The name of the topic is no name.
    #[error(
        "the topic's name has 1 to {TOPIC_BYTES_MAX} bytes: ASCII letters and digits, and any of {TOPIC_MARKS}"
    )]
    InvalidTopic,
    /// What names topics is no glob of topics.
    #[error("{0}")]
    InvalidGlob(String),
    /// The message is none that JSON can be here.
    #[error("the message: {0}")]
    InvalidMessage(NotJson),
    /// The message is larger than the limit.
    #[error("the message has {bytes} bytes; the limit is {bytes_max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// So many triggers hear of a message of this size.
    #[error("the message {0}, or a smaller message")]
    HeardByTooMany(#[from] HeardByTooMany),
    /// A token is for no topic, or for too many.
    #[error("a token is for 1 to {} topics", tokens::TOPICS_MAX)]
    TokenTopics,
    /// A subject that is too long.
    #[error("a subject has at most {} bytes", tokens::SUBJECT_BYTES_MAX)]
    TokenSubject,
    /// No key to encrypt with.
    #[error(
        "this instance has no master key: with Postgres, set `master_key` or `master_key_file` to the same on every node"
    )]
    NoMasterKey,
    /// The topic is not open.
    #[error("the topic `{0}` is not open to subscribers")]
    NotOpen(String),
    /// The app keeps as many deliveries as it may.
    #[error(transparent)]
    Full(#[from] Full),
    /// There are as many topics, or keys that sign tokens, as there may be.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// It is done, and this node does not know it yet.
    #[error("it is done, but {0}")]
    Unread(#[from] Unread),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The name of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic(String);

impl Topic {
    /// Take `name` if it is one.
    ///
    /// # Errors
    /// [`PubSubError::InvalidTopic`].
    pub fn parse(name: String) -> Result<Self, PubSubError> {
        let fits = (1..=TOPIC_BYTES_MAX).contains(&name.len()) && name.chars().all(is_of_topics);
        fits.then_some(Self(name)).ok_or(PubSubError::InvalidTopic)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_of_topics(c: char) -> bool {
    c.is_ascii_alphanumeric() || TOPIC_MARKS.contains(c)
}

impl From<Untellable> for PubSubError {
    fn from(error: Untellable) -> Self {
        match error {
            Untellable::HeardByTooMany(error) => error.into(),
            Untellable::Full(full) => full.into(),
        }
    }
}

/// A message for a topic, read and checked.
pub struct Addressed {
    topic: Topic,
    message: Message,
}

/// A message: JSON in one line.
#[derive(Debug, Clone)]
struct Message(String);

impl Message {
    fn parse(text: &str, bytes_max: usize) -> Result<Self, PubSubError> {
        let bytes = text.len();
        if bytes > bytes_max {
            return Err(PubSubError::TooLarge { bytes, bytes_max });
        }
        json::check(text).map_err(PubSubError::InvalidMessage)?;
        // In JSON a line can end only between two tokens, where a space will do. An event of a
        // stream is then one line, too.
        Ok(Self(text.trim().replace(['\n', '\r'], " ")))
    }
}

/// What is known of a message that was published.
#[derive(Debug, Clone, Copy)]
pub struct Receipt {
    /// The id of the message.
    pub message_id: Uuid,
    /// When.
    pub published_at: DateTime<Utc>,
}

/// The topics of the instance.
#[derive(Clone)]
pub struct PubSub {
    db: Db,
    directory: Arc<Directory>,
    events: Events,
    journal: Arc<Journal>,
    keys: Arc<MasterKeys>,
    limits: Limits,
}

/// What the configuration says of messages and tokens.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest message, in bytes of JSON.
    pub message_bytes_max: usize,
    /// For how long subscriber tokens may be good.
    pub token_ttl: TtlBounds,
    /// How many keys an app may have that sign them.
    pub subscriber_keys_max: u64,
}

impl PubSub {
    /// Topics whose messages fire `events` and go to the `journal`.
    pub fn new(
        db: Db,
        directory: Arc<Directory>,
        events: Events,
        journal: Arc<Journal>,
        keys: Arc<MasterKeys>,
        limits: Limits,
    ) -> Self {
        Self {
            db,
            directory,
            events,
            journal,
            keys,
            limits,
        }
    }

    /// Read a message for a topic. It takes a processor as long as the message is long, so whoever
    /// publishes does it where that is counted.
    ///
    /// # Errors
    /// [`PubSubError`] says what is wrong with either.
    pub fn read(&self, topic: String, message: &str) -> Result<Addressed, PubSubError> {
        Ok(Addressed {
            topic: Topic::parse(topic)?,
            message: Message::parse(message, self.limits.message_bytes_max)?,
        })
    }

    /// Publish a message: one delivery for each trigger that listens, and where the topic is open
    /// an entry of the journal, all in one transaction. Durable once it returns.
    ///
    /// # Errors
    /// [`PubSubError`]; then nothing was published.
    pub async fn publish_durable(
        &self,
        app_id: AppId,
        Addressed { topic, message }: Addressed,
        origin: Origin,
    ) -> Result<Receipt, PubSubError> {
        let picture = self.directory.picture();
        let is_open = picture.open_topic(app_id, topic.as_str()).is_some();
        drop(picture);
        let (listening, places) = self.events.listening_to_topic(app_id, &topic, origin);
        let message_id = Uuid::now_v7();
        if listening.is_empty() && !is_open {
            // Nobody can ever hear it.
            let published_at = micros(Utc::now());
            return Ok(Receipt {
                message_id,
                published_at,
            });
        }
        let bytes = topic.as_str().len() + message.0.len();
        let hear: Vec<_> = listening.iter().collect();
        if let Err(error) = self.events.check(app_id, &hear, bytes as u64) {
            self.events.not_fired(places, &StoreError::Closed);
            return Err(error.into());
        }
        let publication = sql::Publication {
            app_id,
            channel: Channel::of_topic(app_id, topic.as_str()),
            topic,
            is_open,
            entry: message.entry(message_id),
            listening,
        };
        let (db, events) = (self.db.clone(), self.events.clone());
        // A task of its own: a caller who leaves must not keep what was written under our lease
        // from being run.
        let written = tokio::spawn(still_witnessed(async move {
            match db.write_grouped(publication).await {
                Ok(published) => {
                    events.fired(published.fired, places);
                    Ok(published.at)
                }
                Err(error) => {
                    events.not_fired(places, &error);
                    Err(error)
                }
            }
        }));
        let published_at = written.await.unwrap_or(Err(StoreError::Closed))?;
        Ok(Receipt {
            message_id,
            published_at,
        })
    }

    /// Tell a message to whoever subscribed and listens now, on every node, at most once. Nothing
    /// is written.
    pub fn publish_ephemeral(
        &self,
        app_id: AppId,
        Addressed { topic, message }: Addressed,
    ) -> Receipt {
        let message_id = Uuid::now_v7();
        let picture = self.directory.picture();
        if picture.open_topic(app_id, topic.as_str()).is_some() {
            let channel = Channel::of_topic(app_id, topic.as_str());
            self.journal
                .tell_ephemeral(&channel, message.entry(message_id));
        }
        let published_at = Utc::now();
        Receipt {
            message_id,
            published_at,
        }
    }
}

impl Message {
    fn entry(self, id: Uuid) -> NewEntry {
        NewEntry {
            id,
            kind: "message".to_owned(),
            about: None,
            body: self.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_has_1_to_256_plain_characters() {
        let longest = "t".repeat(256);
        for fine in ["a", "room:1", "user/42@eu~x.y_z-1", &longest] {
            assert!(Topic::parse(fine.into()).is_ok(), "{fine:?}");
        }
        let too_long = "t".repeat(257);
        for odd in [
            "", " ", "a b", "room*", "ключ", "a\nb", "a?b", "a\0", "a%2F", &too_long,
        ] {
            assert!(Topic::parse(odd.into()).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn a_message_is_json_in_one_line() {
        let message = Message::parse("\n{\r\n \"a\": \"x\\ny\"\n}\n", 100).unwrap();
        assert_eq!(message.0, "{   \"a\": \"x\\ny\" }");
        assert!(matches!(
            Message::parse("{", 100),
            Err(PubSubError::InvalidMessage(_))
        ));
        assert!(matches!(
            Message::parse("\"12345\"", 6),
            Err(PubSubError::TooLarge { bytes: 7, .. })
        ));
    }
}
