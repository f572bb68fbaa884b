//! Topics that are open to subscribers, because somebody opened them.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{PubSubError, TOPIC_BYTES_MAX, TOPIC_MARKS, is_of_topics};
use crate::cors::Origin;
use crate::journal::sweep::Keep;
use crate::triggers::Glob;

/// Who may subscribe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "TopicAuthMode")]
pub enum AuthMode {
    /// Anybody.
    Public,
    /// Whoever has a subscriber token for the topic.
    Token,
    /// Whoever is signed in to the instance and may see the app.
    Session,
}

impl AuthMode {
    /// The word in the database and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Token => "token",
            Self::Session => "session",
        }
    }

    /// The mode that a word names.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Public, Self::Token, Self::Session]
            .into_iter()
            .find(|mode| mode.as_str() == word)
    }
}

/// How a topic, or every topic that begins so, is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OpenTopic {
    /// Which.
    pub name: Glob,
    /// Who may subscribe.
    pub auth_mode: AuthMode,
    /// For how long the journal keeps its messages, in seconds.
    pub retention_s: u32,
    /// How many it keeps of each topic.
    pub retention_messages: u32,
    /// The origins whose pages may subscribe; `*`: all.
    pub cors_origins: Vec<Origin>,
    /// When it was opened.
    pub created_at: DateTime<Utc>,
    /// When that was last changed.
    pub updated_at: DateTime<Utc>,
}

impl OpenTopic {
    /// How long the journal keeps its messages.
    pub fn keep(&self) -> Keep {
        Keep {
            age: TimeDelta::seconds(self.retention_s.into()),
            entries: self.retention_messages.into(),
        }
    }
}

/// The open topics of an app.
#[derive(Debug, Default)]
pub struct OpenTopics {
    exact: HashMap<String, Arc<OpenTopic>>,
    /// The longest first.
    prefixes: Vec<Arc<OpenTopic>>,
}

impl OpenTopics {
    /// Add one.
    pub fn add(&mut self, topic: OpenTopic) {
        match &topic.name {
            Glob::Exact(name) => {
                self.exact.insert(name.clone(), Arc::new(topic));
            }
            Glob::Prefix(_) => {
                self.prefixes.push(Arc::new(topic));
                self.prefixes
                    .sort_by_key(|topic| std::cmp::Reverse(topic.name.to_string().len()));
            }
        }
    }

    /// How a topic is open, if it is: what names it alone comes first, then the longest prefix.
    pub fn of(&self, topic: &str) -> Option<&Arc<OpenTopic>> {
        let by_prefix = || self.prefixes.iter().find(|open| open.name.matches(topic));
        self.exact.get(topic).or_else(by_prefix)
    }
}

/// What names a topic, or with `*` at its end every topic that begins so.
///
/// # Errors
/// [`PubSubError::InvalidGlob`].
pub fn parse_glob(text: &str) -> Result<Glob, PubSubError> {
    let name = text.strip_suffix('*').unwrap_or(text);
    if text.is_empty() || text.len() > TOPIC_BYTES_MAX || !name.chars().all(is_of_topics) {
        return Err(PubSubError::InvalidGlob(format!(
            "`{text}` is neither a topic nor the beginning of topics and `*`: it has 1 to {TOPIC_BYTES_MAX} bytes, ASCII letters and digits, and any of {TOPIC_MARKS}"
        )));
    }
    text.parse().map_err(PubSubError::InvalidGlob)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> OpenTopic {
        OpenTopic {
            name: parse_glob(name).unwrap(),
            auth_mode: AuthMode::Public,
            retention_s: 60,
            retention_messages: 10,
            cors_origins: Vec::new(),
            created_at: Utc::now(),
            updated_at: Utc::now(),
        }
    }

    #[test]
    fn the_most_particular_opening_counts() {
        let mut open = OpenTopics::default();
        for name in ["room:*", "room:vip:*", "room:1"] {
            open.add(topic(name));
        }
        let of = |name| open.of(name).map(|open| open.name.to_string());
        assert_eq!(of("room:1").as_deref(), Some("room:1"));
        assert_eq!(of("room:2").as_deref(), Some("room:*"));
        assert_eq!(of("room:vip:2").as_deref(), Some("room:vip:*"));
        assert_eq!(of("poll"), None);
    }

    #[test]
    fn odd_names_are_refused() {
        for odd in ["", "a*b", "a b*", "**", "é", &"t".repeat(257)] {
            assert!(parse_glob(odd).is_err(), "{odd:?}");
        }
        assert!(parse_glob("*").is_ok());
    }
}
