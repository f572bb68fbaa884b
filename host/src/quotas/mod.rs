//! Quotas of stored data: how many bytes each app keeps of each kind, and what happens beyond.
//!
//! Nothing is counted as it is written: a counter for each app would be a row that all its writes wait
//! for. Instead the tables are measured again and again, some thousand rows at a time and for a tenth of
//! the time, so that a quota is kept within about a minute. Beyond it the oldest dead letters, executions
//! and messages go; a key of the key-value store is nobody's to remove, so new values are refused. So are
//! new deliveries, versions of scripts and idempotency keys; what of these this node adds and takes away
//! is counted between two measurements ([`Count`]).
//!
//! How many scripts, routes and so on an app has is bounded where they are made ([`objects`]).

pub mod api;
mod count;
mod measure;
pub mod objects;
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
pub use count::{Count, Counts};
pub use measure::OldVersions;
use objects::Object;
pub use sql::ROW_BYTES;

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
    /// Deliveries in the outbox for which no caller waits.
    Deliveries,
    /// Versions of its scripts: sources and components.
    ScriptVersions,
    /// Idempotency keys with the answers that are kept for them.
    IdempotencyKeys,
}

impl Data {
    /// Each of them.
    pub const ALL: [Self; 7] = [
        Self::Kv,
        Self::DeadLetters,
        Self::Executions,
        Self::Messages,
        Self::Deliveries,
        Self::ScriptVersions,
        Self::IdempotencyKeys,
    ];

    /// The word in the API, in metrics and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kv => "kv",
            Self::DeadLetters => "dead_letters",
            Self::Executions => "executions",
            Self::Messages => "messages",
            Self::Deliveries => "deliveries",
            Self::ScriptVersions => "script_versions",
            Self::IdempotencyKeys => "idempotency_keys",
        }
    }

    /// The setting that is its quota.
    pub fn setting(self) -> &'static str {
        match self {
            Self::Kv => "kv_bytes_max",
            Self::DeadLetters => "dead_letter_bytes_max",
            Self::Executions => "execution_bytes_max",
            Self::Messages => "message_bytes_kept_max",
            Self::Deliveries => "delivery_bytes_max",
            Self::ScriptVersions => "script_version_bytes_max",
            Self::IdempotencyKeys => "idempotency_bytes_max",
        }
    }

    /// The setting that bounds the number of its rows, if one does.
    pub fn rows_setting(self) -> Option<&'static str> {
        (self == Self::Deliveries).then_some("deliveries_max")
    }

    /// What people call it.
    fn name(self) -> &'static str {
        match self {
            Self::Kv => "keys and values",
            Self::DeadLetters => "dead letters",
            Self::Executions => "executions",
            Self::Messages => "messages",
            Self::Deliveries => "deliveries that wait",
            Self::ScriptVersions => "versions of scripts",
            Self::IdempotencyKeys => "idempotency keys and kept answers",
        }
    }

    /// What makes room for more of it, where more is refused.
    fn remedy(self) -> &'static str {
        match self {
            Self::Kv | Self::DeadLetters | Self::Executions | Self::Messages => "remove some",
            Self::Deliveries => "wait until some are done, resume paused triggers",
            Self::ScriptVersions => {
                "delete scripts, replay or resolve dead letters (old versions to which nothing refers are removed already)"
            }
            Self::IdempotencyKeys => "wait until some have ended, let routes keep them shorter",
        }
    }
}

/// The most that one app keeps of each kind of data.
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
    /// Of the payloads and histories of deliveries that wait.
    pub delivery_bytes: u64,
    /// How many deliveries wait.
    pub deliveries: u64,
    /// Of versions of scripts.
    pub script_versions: u64,
    /// Of idempotency keys and kept answers.
    pub idempotency_keys: u64,
    /// How many scripts, routes and so on it has, of each kind.
    pub objects: u64,
}

impl Quotas {
    /// No quota at all.
    pub const UNLIMITED: Self = Self {
        kv: u64::MAX / 2,
        dead_letters: u64::MAX,
        executions: u64::MAX,
        messages: u64::MAX,
        delivery_bytes: u64::MAX,
        deliveries: u64::MAX,
        script_versions: u64::MAX,
        idempotency_keys: u64::MAX,
        objects: u64::MAX,
    };

    /// The most of one kind.
    pub fn most(&self, data: Data) -> Size {
        Size {
            rows: match data {
                Data::Deliveries => self.deliveries,
                _ => u64::MAX,
            },
            bytes: self.of(data),
        }
    }

    /// The most bytes of one kind.
    pub fn of(&self, data: Data) -> u64 {
        match data {
            Data::Kv => self.kv,
            Data::DeadLetters => self.dead_letters,
            Data::Executions => self.executions,
            Data::Messages => self.messages,
            Data::Deliveries => self.delivery_bytes,
            Data::ScriptVersions => self.script_versions,
            Data::IdempotencyKeys => self.idempotency_keys,
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

impl Size {
    /// One row of so many bytes.
    pub fn row(bytes: u64) -> Self {
        Self { rows: 1, bytes }
    }

    /// How much of `most` this is: of rows or of bytes, whichever is more.
    fn part_of(self, most: Self) -> f64 {
        let bytes = self.bytes as f64 / most.bytes as f64;
        bytes.max(self.rows as f64 / most.rows as f64)
    }
}

/// What an app keeps, as it was measured.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// When a kind was measured last; none until all were.
    pub measured_at: Option<DateTime<Utc>>,
    sizes: HashMap<Data, Size>,
    objects: HashMap<Object, u64>,
}

impl Usage {
    /// How much it keeps of one kind.
    pub fn of(&self, data: Data) -> Size {
        self.sizes.get(&data).copied().unwrap_or_default()
    }

    /// How many objects of one kind it has.
    pub fn objects(&self, object: Object) -> u64 {
        self.objects.get(&object).copied().unwrap_or_default()
    }
}

/// An app keeps as much of one kind of data as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the app keeps {used} {unit} of {name}, and may keep {max} ({setting}): there is no room for more; {remedy}, or have the quota raised",
    name = .data.name(),
    remedy = .data.remedy(),
    unit = .unit.as_str(),
    setting = .unit.setting(*.data)
)]
pub struct Full {
    /// What kind.
    pub data: Data,
    /// In which unit it is told.
    pub unit: Unit,
    /// What it keeps.
    pub used: u64,
    /// What it may keep.
    pub max: u64,
}

/// What a quota is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Rows.
    Rows,
}

impl Unit {
    fn as_str(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Rows => "rows",
        }
    }

    fn setting(self, data: Data) -> &'static str {
        match self {
            Self::Bytes => data.setting(),
            Self::Rows => data.rows_setting().unwrap_or(data.setting()),
        }
    }
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
    counts: Arc<Counts>,
    known: Mutex<HashMap<AppId, Usage>>,
    kv: Mutex<HashMap<AppId, KvUse>>,
    /// Apps whose key-value store is to be measured soon.
    wanted: Mutex<HashSet<AppId>>,
    is_wanted: Notify,
}

impl Meter {
    /// A meter that has measured nothing yet.
    pub fn new(db: Db, directory: Arc<Directory>, counts: Arc<Counts>) -> Arc<Self> {
        Arc::new(Self {
            db,
            directory,
            quotas: counts.quotas,
            counts,
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

    /// Apps that keep nearly as much of something as they may, by slug, with the setting, and how much
    /// that is in percent; the fullest first.
    pub fn nearly_full(&self) -> Vec<(String, &'static str, u8)> {
        let (picture, known) = (self.directory.picture(), lock(&self.known));
        let mut found = Vec::new();
        for (app, usage) in known.iter() {
            let Some(app) = picture.app(*app) else {
                continue;
            };
            let of_data = Data::ALL.map(|data| {
                let (size, most) = (usage.of(data), self.quotas.most(data));
                let by_rows = Size { bytes: 0, ..size }.part_of(most);
                let by_bytes = Size { rows: 0, ..size }.part_of(most);
                match data.rows_setting().filter(|_| by_rows > by_bytes) {
                    Some(setting) => (setting, by_rows),
                    None => (data.setting(), by_bytes),
                }
            });
            let of_objects = Object::ALL.map(|object| {
                let part = usage.objects(object) as f64 / self.quotas.objects as f64;
                (objects::SETTING, part)
            });
            for (setting, part) in of_data.into_iter().chain(of_objects) {
                let percent = (part * 100.0).min(f64::from(u8::MAX)) as u8;
                if percent >= NEARLY_FULL_PERCENT {
                    found.push((app.slug.to_string(), setting, percent));
                }
            }
        }
        found.sort_by_key(|(_, _, percent)| Reverse(*percent));
        found
    }

    /// Count bytes that are about to be written to the key-value store of an app.
    ///
    /// # Errors
    /// [`Full`]; nothing is counted.
    pub fn count_kv(&self, app: AppId, bytes: u64) -> Result<(), Full> {
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
            true => Err(Full {
                data: Data::Kv,
                unit: Unit::Bytes,
                used: measured,
                max: bytes_max,
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
