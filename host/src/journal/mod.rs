//! The journal: what is told to streams is written here first, and sent after. One mechanism for
//! the topics of the apps and for the events that the dashboard hears.
//!
//! A *channel* is an open topic of an app, or the events of the instance. Each entry has a number
//! from the channel's row, taken in the transaction that writes it: numbers are without holes, and
//! whoever sees one may read all before it. So a stream that is told 7 after 5 knows that it must
//! read, whatever was lost or overtook on the way, and what is sent need only be a hint.

pub mod api;
mod caps;
mod cursors;
mod fanout;
mod nodes;
pub mod sql;
mod subscription;
pub mod sweep;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;
use uuid::Uuid;

use crate::apps::AppId;
use crate::directory::Picture;
use crate::store::{Announcement, Db, Engine};
use crate::tasks::Tasks;
pub use caps::{Cap, Caps, Place, Replay, ReplayLimits, Replays, TooMany, TooManyReplays};
pub use cursors::{Begin, Cursors};
use fanout::Fanout;
use nodes::Outgoing;
pub use subscription::{Subscription, Told, Watch};
use sweep::Keep;

/// Where entries are written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Channel {
    app_id: Uuid,
    /// Empty for the events of the instance.
    topic: Arc<str>,
}

impl Channel {
    /// A topic of an app.
    pub fn of_topic(app_id: AppId, topic: &str) -> Self {
        let (app_id, topic) = (app_id.uuid(), topic.into());
        Self { app_id, topic }
    }

    /// The events of the instance.
    pub fn events() -> Self {
        let (app_id, topic) = (Uuid::nil(), "".into());
        Self { app_id, topic }
    }

    /// In which lane it is written.
    pub fn lane(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// How long its entries are kept; none where it belongs to nothing any more.
    pub fn keep(&self, picture: &Picture) -> Option<Keep> {
        match self.topic() {
            Some(topic) => {
                let open = picture.open_topic(self.app_id.into(), topic)?;
                Some(open.keep())
            }
            None => Some(sweep::EVENTS),
        }
    }

    /// The topic; none where it is the events of the instance.
    pub fn topic(&self) -> Option<&str> {
        (!self.topic.is_empty()).then_some(&self.topic)
    }
}

/// What happens, as events of the instance name it.
pub mod kinds {
    /// Deliveries used up their attempts.
    pub const DEAD_LETTERS_CREATED: &str = "dead_letters.created";
    /// Dead letters were put back.
    pub const DEAD_LETTERS_REPLAYED: &str = "dead_letters.replayed";
    /// Dead letters need no further work.
    pub const DEAD_LETTERS_RESOLVED: &str = "dead_letters.resolved";
    /// Somebody changed something.
    pub const CHANGED: &str = "changed";
    /// Executions ended; ephemeral.
    pub const EXECUTIONS: &str = "executions";
}

/// What happened, before it is written.
#[derive(Debug, Clone)]
pub struct NewEntry {
    /// Its id.
    pub id: Uuid,
    /// `message`, or what happened.
    pub kind: String,
    /// The app that an event of the instance is about.
    pub about: Option<AppId>,
    /// JSON, in one line.
    pub body: String,
}

impl NewEntry {
    /// An event of the instance.
    pub fn event(kind: &str, about: Option<AppId>, data: &Value) -> Self {
        Self {
            id: Uuid::now_v7(),
            kind: kind.to_owned(),
            about,
            body: data.to_string(),
        }
    }

    /// As streams are told it.
    pub fn told(self, channel: Channel, seq: Option<i64>, at: DateTime<Utc>) -> Entry {
        let (id, body) = (self.id, &self.body);
        let at = at.to_rfc3339_opts(SecondsFormat::Micros, true);
        let seq_member = seq.map_or(String::new(), |seq| format!(r#""seq":{seq},"#));
        let data = match channel.topic() {
            Some(topic) => {
                let topic = Value::from(topic);
                format!(
                    r#"{{"topic":{topic},"id":"{id}",{seq_member}"published_at":"{at}","message":{body}}}"#
                )
            }
            None => {
                let (kind, app_id) = (&self.kind, serde_json::json!(self.about));
                format!(
                    r#"{{"type":"{kind}","id":"{id}",{seq_member}"at":"{at}","app_id":{app_id},"data":{body}}}"#
                )
            }
        };
        let (kind, about) = (self.kind, self.about);
        Entry {
            channel,
            seq,
            is_first: false,
            kind,
            about,
            data,
        }
    }
}

/// An entry as streams are told it.
#[derive(Debug)]
pub struct Entry {
    /// Where it was written.
    pub channel: Channel,
    /// Its number; an ephemeral one has none.
    pub seq: Option<i64>,
    /// Whether it is known to be the first of its channel.
    pub is_first: bool,
    /// `message`, or what happened.
    pub kind: String,
    /// The app that an event of the instance is about.
    pub about: Option<AppId>,
    /// JSON, in one line.
    pub data: String,
}

/// The journal of this node: what was written is followed here, and told to its streams.
pub struct Journal {
    db: Db,
    fanout: Fanout,
    outgoing: Option<Outgoing>,
    /// What transactions of this process announce; held by whoever follows them.
    announced: tokio::sync::Mutex<Option<UnboundedReceiver<Vec<Announcement>>>>,
    /// How many streams hear the events of the instance, here.
    watching: AtomicUsize,
}

impl Journal {
    /// The journal, which hears of what is written once it [follows](Self::follow).
    pub fn new(db: Db) -> Arc<Self> {
        let outgoing = (db.engine() == Engine::Postgres).then(Outgoing::default);
        Arc::new(Self {
            announced: tokio::sync::Mutex::new(db.announcements()),
            db,
            fanout: Fanout::default(),
            outgoing,
            watching: AtomicUsize::new(0),
        })
    }

    /// Whether anybody may hear the events of the instance. Other nodes may, and are not asked.
    pub fn is_watched(&self) -> bool {
        self.outgoing.is_some() || self.watching.load(Ordering::Relaxed) > 0
    }

    /// Tell something to whoever listens now, on every node, at most once.
    pub fn tell_ephemeral(&self, channel: &Channel, entry: NewEntry) {
        if let Some(outgoing) = &self.outgoing {
            outgoing.ephemeral(channel, &entry);
        }
        let entry = entry.told(channel.clone(), None, Utc::now());
        self.fanout.send(channel, &[Arc::new(entry)]);
    }

    /// Follow what is written, here and on other nodes, for as long as `tasks` run.
    pub fn follow(self: &Arc<Self>, tasks: &Tasks) {
        let journal = || self.clone();
        let here = journal();
        tasks.spawn("journal.follow", move || here.clone().follow_this_node());
        let looking = journal();
        tasks.spawn("journal.look", move || {
            let journal = looking.clone();
            async move { journal.look_by_itself().await }
        });
        if self.outgoing.is_some() {
            let [telling, hearing] = [journal(), journal()];
            tasks.spawn("journal.tell_nodes", move || {
                let journal = telling.clone();
                async move { journal.tell_other_nodes().await }
            });
            tasks.spawn("journal.hear_nodes", move || {
                let journal = hearing.clone();
                async move { journal.hear_other_nodes().await }
            });
        }
    }

    /// Follow what this node writes, for ever.
    async fn follow_this_node(self: Arc<Self>) {
        let mut announced = self.announced.lock().await;
        let Some(announced) = announced.as_mut() else {
            // Another journal on the same handle follows it.
            return std::future::pending().await;
        };
        while let Some(announcements) = announced.recv().await {
            for announcement in announcements {
                if let Ok(appended) = announcement.downcast::<Appended>() {
                    if let Some(outgoing) = &self.outgoing {
                        outgoing.written(&appended.written);
                    }
                    self.tell(*appended);
                }
            }
        }
    }
}

/// What a transaction of this node wrote to a channel: it announces that.
struct Appended {
    written: Written,
    /// Whether the channel began with it.
    begins: bool,
    entries: Vec<NewEntry>,
    at: DateTime<Utc>,
}

/// Which entries a transaction wrote to a channel. As a text it is told to other nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Written {
    channel: Channel,
    first: i64,
    last: i64,
}

impl Written {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ' ');
        let app_id = parts.next()?.parse().ok()?;
        let first = parts.next()?.parse().ok()?;
        let last = parts.next()?.parse().ok()?;
        let topic = parts.next()?.into();
        let channel = Channel { app_id, topic };
        Some(Self {
            channel,
            first,
            last,
        })
    }
}

impl std::fmt::Display for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Channel { app_id, topic } = &self.channel;
        write!(f, "{app_id} {} {} {topic}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_reads_back() {
        for channel in [
            Channel::of_topic(AppId::new(), "room:1/a"),
            Channel::events(),
        ] {
            let written = Written {
                channel,
                first: 7,
                last: 9,
            };
            assert_eq!(Written::parse(&written.to_string()), Some(written));
        }
        assert_eq!(Written::parse("nonsense"), None);
    }

    #[test]
    fn an_entry_is_json_in_one_line() {
        let entry = |body: &str| NewEntry {
            id: Uuid::nil(),
            kind: "message".into(),
            about: None,
            body: body.into(),
        };
        let channel = Channel::of_topic(AppId::new(), "a");
        let told = entry(r#"{"text":"hi"}"#).told(channel.clone(), Some(7), Utc::now());
        let data: Value = serde_json::from_str(&told.data).unwrap();
        assert_eq!(data["topic"], "a");
        assert_eq!(data["seq"], 7);
        assert_eq!(data["message"]["text"], "hi");
        let told = entry("null").told(channel, None, Utc::now());
        let data: Value = serde_json::from_str(&told.data).unwrap();
        assert!(data.get("seq").is_none());
    }
}
