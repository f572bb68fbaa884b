//! Quotas of stored data: how many bytes each app keeps of each kind, and what happens beyond.
//!
//! Nothing is counted as it is written: a counter for each app would be a row that all its writes wait
//! for. Instead the tables are measured again and again, some thousand rows at a time and for a tenth of
//! the time, so that a quota is kept within about a minute. Beyond it the oldest dead letters, executions
//! and messages go; a key of the key-value store is nobody's to remove, so new values are refused.

pub mod api;
mod measure;
mod sql;

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::apps::AppId;
use crate::directory::Directory;
use crate::store::Db;

/// How often all apps are measured, if that takes little of the time.
const EVERY: Duration = Duration::from_secs(60);
/// How soon an app is measured again whose key-value store is nearly full.
const SOON: Duration = Duration::from_millis(500);
/// The part of a quota, one in so many, that values written since the last measurement may take beyond
/// it: a value may have replaced another.
const SLACK: u64 = 8;
/// From which part of a quota on an app's data is told of.
const NEARLY_FULL_PERCENT: u8 = 90;

/// What an app keeps in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "StoredData")]
pub enum Data {
    /// Keys and values of its key-value store.
    Kv,
    /// Dead letters with their payloads and histories.
    DeadLetters,
    /// Executions with their errors and logs.
    Executions,
    /// Messages of its topics that are kept.
    Messages,
}

impl Data {
    /// Each of them.
    pub const ALL: [Self; 4] = [
        Self::Kv,
        Self::DeadLetters,
        Self::Executions,
        Self::Messages,
    ];

    /// The word in the API, in metrics and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kv => "kv",
            Self::DeadLetters => "dead_letters",
            Self::Executions => "executions",
            Self::Messages => "messages",
        }
    }

    /// The setting that is its quota.
    pub fn setting(self) -> &'static str {
        match self {
            Self::Kv => "kv_bytes_max",
            Self::DeadLetters => "dead_letter_bytes_max",
            Self::Executions => "execution_bytes_max",
            Self::Messages => "message_bytes_kept_max",
        }
    }
}

/// The most bytes that one app keeps of each kind of data.
#[derive(Debug, Clone, Copy)]
pub struct Quotas {
    /// Of keys and values.
    pub kv: u64,
    /// Of dead letters.
    pub dead_letters: u64,
    /// Of executions.
    pub executions: u64,
    /// Of messages.
    pub messages: u64,
}

impl Quotas {
    /// The most bytes of one kind.
    pub fn of(&self, data: Data) -> u64 {
        match data {
            Data::Kv => self.kv,
            Data::DeadLetters => self.dead_letters,
            Data::Executions => self.executions,
            Data::Messages => self.messages,
        }
    }
}

/// How much there is of something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Rows.
    pub rows: u64,
    /// Bytes of what they hold; indexes and the database's own bookkeeping come on top.
    pub bytes: u64,
}

/// What an app keeps, as it was measured.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// When a kind was measured last; none until all were.
    pub measured_at: Option<DateTime<Utc>>,
    sizes: HashMap<Data, Size>,
}

impl Usage {
    /// How much it keeps of one kind.
    pub fn of(&self, data: Data) -> Size {
        self.sizes.get(&data).copied().unwrap_or_default()
    }
}

/// An app keeps as many keys and values as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the app keeps {bytes} bytes of keys and values, and may keep {bytes_max} (kv_bytes_max); remove some, or have the quota raised"
)]
pub struct KvFull {
    /// What it keeps.
    pub bytes: u64,
    /// What it may keep.
    pub bytes_max: u64,
}

/// What is known of an app's key-value store between two measurements.
#[derive(Debug, Clone, Copy, Default)]
struct KvUse {
    measured: u64,
    /// Bytes written since, whatever they replaced.
    written: u64,
}

/// Measures what apps keep, and keeps it within the quotas. Each node measures for itself.
pub struct Meter {
    db: Db,
    directory: Arc<Directory>,
    quotas: Quotas,
    known: Mutex<HashMap<AppId, Usage>>,
    kv: Mutex<HashMap<AppId, KvUse>>,
    /// Apps whose key-value store is to be measured soon.
    wanted: Mutex<HashSet<AppId>>,
    is_wanted: Notify,
}

impl Meter {
    /// A meter that has measured nothing yet.
    pub fn new(db: Db, directory: Arc<Directory>, quotas: Quotas) -> Arc<Self> {
        Arc::new(Self {
            db,
            directory,
            quotas,
            known: Mutex::default(),
            kv: Mutex::default(),
            wanted: Mutex::default(),
            is_wanted: Notify::new(),
        })
    }

    /// The quotas that it keeps.
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// What an app keeps.
    pub fn usage(&self, app: AppId) -> Usage {
        lock(&self.known).get(&app).cloned().unwrap_or_default()
    }

    /// Apps that keep nearly as much of something as they may, by slug, and how much that is in percent;
    /// the fullest first.
    pub fn nearly_full(&self) -> Vec<(String, Data, u8)> {
        let (picture, known) = (self.directory.picture(), lock(&self.known));
        let mut found = Vec::new();
        for (app, usage) in known.iter() {
            let Some(app) = picture.app(*app) else {
                continue;
            };
            for data in Data::ALL {
                let percent = usage.of(data).bytes.saturating_mul(100) / self.quotas.of(data);
                let percent = u8::try_from(percent).unwrap_or(u8::MAX);
                if percent >= NEARLY_FULL_PERCENT {
                    found.push((app.slug.to_string(), data, percent));
                }
            }
        }
        found.sort_by_key(|(_, _, percent)| Reverse(*percent));
        found
    }

    /// Count bytes that are about to be written to the key-value store of an app.
    ///
    /// # Errors
    /// [`KvFull`]; nothing is counted.
    pub fn count_kv(&self, app: AppId, bytes: u64) -> Result<(), KvFull> {
        let bytes_max = self.quotas.kv;
        let mut kv = lock(&self.kv);
        let of_app = kv.entry(app).or_default();
        let known = of_app.measured + bytes;
        let at_most = known + of_app.written;
        let is_full = known > bytes_max || at_most > bytes_max + bytes_max / SLACK;
        if !is_full {
            of_app.written += bytes;
        }
        let measured = of_app.measured;
        drop(kv);
        if at_most > bytes_max {
            self.want(app);
        }
        match is_full {
            true => Err(KvFull {
                bytes: measured,
                bytes_max,
            }),
            false => Ok(()),
        }
    }

    /// Take back what was counted and then not written.
    pub fn uncount_kv(&self, app: AppId, bytes: u64) {
        if let Some(of_app) = lock(&self.kv).get_mut(&app) {
            of_app.written = of_app.written.saturating_sub(bytes);
        }
    }

    /// Note that an app removed something from its key-value store.
    pub fn note_removed_kv(&self, app: AppId) {
        let kv = lock(&self.kv);
        let is_near = kv.get(&app).is_some_and(|of_app| {
            of_app.measured + of_app.written > self.quotas.kv - self.quotas.kv / SLACK
        });
        drop(kv);
        if is_near {
            self.want(app);
        }
    }

    fn want(&self, app: AppId) {
        lock(&self.wanted).insert(app);
        self.is_wanted.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held cannot have left an insertion half-done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
