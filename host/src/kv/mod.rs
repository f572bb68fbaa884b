//! The key-value store of an app: collections of keys with JSON values.

pub mod api;
pub mod imports;
pub mod sql;

use std::borrow::Cow;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::apps::AppId;
use crate::dispatch::Fence;
use crate::json::{self, DEPTH_MAX, Json, NotJson};
use crate::quotas::{Full, Meter};
use crate::store::{Db, ETag, Engine, Expected, StoreError, still_witnessed};
use crate::triggers::firing::{Events, Firing, HeardByTooMany, Origin, TOLD_BYTES_MAX, Untellable};

/// The longest name of a collection, in bytes.
pub const COLLECTION_BYTES_MAX: usize = 128;
/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// The most entries of a page.
pub const PAGE_ENTRIES_MAX: u32 = 1000;
/// The entries of a page for which no limit was given.
pub const PAGE_ENTRIES: u32 = 100;
/// About how many bytes of values a page has at most: it ends with the entry that exceeds this.
/// A guest's memory and the API's answer are bounded by it.
pub const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// What can go wrong with a call to the store. The caller's mistakes say what to do.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// The name of the collection is no name.
    #[error("the collection's name {0}")]
    InvalidCollection(&'static str),
    /// The key is no key.
    #[error("the key {0}")]
    InvalidKey(&'static str),
    /// The value is none that JSON can be here.
    #[error("the value: {0}")]
    InvalidValue(NotJson),
    /// The cursor was not made for this collection.
    #[error("the cursor was not made by a list of this collection")]
    InvalidCursor,
    /// The limit of a list.
    #[error("a limit is 1 to {PAGE_ENTRIES_MAX}, not {0}")]
    InvalidLimit(u32),
    /// Something is larger than its limit.
    #[error("the {what} has {bytes} bytes; the limit is {bytes_max}")]
    TooLarge {
        /// `collection`, `key` or `value`.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// So many triggers hear of a value of this size.
    #[error("the value {0}, or a smaller value")]
    HeardByTooMany(#[from] HeardByTooMany),
    /// The app keeps as much as it may.
    #[error(transparent)]
    Full(#[from] Full),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Untellable> for KvError {
    fn from(error: Untellable) -> Self {
        match error {
            Untellable::HeardByTooMany(error) => error.into(),
            Untellable::Full(full) => full.into(),
        }
    }
}

/// The name of a collection: 1 to [`COLLECTION_BYTES_MAX`] bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Collection(String);

impl Collection {
    /// Take `name` if it is one.
    ///
    /// # Errors
    /// [`KvError::InvalidCollection`], [`KvError::TooLarge`].
    pub fn parse(name: String) -> Result<Self, KvError> {
        let name = bounded("collection", name, COLLECTION_BYTES_MAX)?;
        match problem(&name) {
            Some(problem) => Err(KvError::InvalidCollection(problem)),
            None => Ok(Self(name)),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A key: 1 to [`KEY_BYTES_MAX`] bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key(String);

impl Key {
    /// Take `key` if it is one.
    ///
    /// # Errors
    /// [`KvError::InvalidKey`], [`KvError::TooLarge`].
    pub fn parse(key: String) -> Result<Self, KvError> {
        let key = bounded("key", key, KEY_BYTES_MAX)?;
        match problem(&key) {
            Some(problem) => Err(KvError::InvalidKey(problem)),
            None => Ok(Self(key)),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn problem(text: &str) -> Option<&'static str> {
    if text.is_empty() {
        return Some("is empty");
    }
    text.contains(char::is_control)
        .then_some("has a control character")
}

fn bounded(what: &'static str, text: String, bytes_max: usize) -> Result<String, KvError> {
    if text.len() > bytes_max {
        return Err(KvError::TooLarge {
            what,
            bytes: text.len(),
            bytes_max,
        });
    }
    Ok(text)
}

/// A value that fits the store.
#[derive(Debug, Clone)]
pub struct Value(Json);

impl Value {
    /// Take `text` if it is JSON of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// [`KvError::InvalidValue`], [`KvError::TooLarge`].
    pub fn parse(text: String, bytes_max: usize) -> Result<Self, KvError> {
        let text = bounded("value", text, bytes_max)?;
        Json::parse(text).map(Self).map_err(KvError::InvalidValue)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The value.
    pub fn json(&self) -> &Json {
        &self.0
    }
}

/// A value as the database has it, which may have been written before values were checked.
#[derive(Debug, Clone)]
pub struct Stored(String);

impl Stored {
    /// What stands in the database.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The value as it is read, [repaired](json::readable) if need be.
    pub fn read(&self) -> json::Read {
        Json::read(&self.0, DEPTH_MAX)
    }

    /// The text of that value.
    pub fn into_text(self) -> String {
        match json::readable(&self.0, DEPTH_MAX) {
            Cow::Borrowed(_) => self.0,
            Cow::Owned(repaired) => repaired,
        }
    }

    /// Of what stands there: also a value that is repaired each time can be corrected.
    pub fn etag(&self) -> ETag {
        ETag::of(self)
    }
}

/// As it stands there, for its [`ETag`] only.
impl Serialize for Stored {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serde_json::from_str::<&RawValue>(&self.0) {
            Ok(raw) => raw.serialize(serializer),
            Err(_) => self.0.serialize(serializer),
        }
    }
}

/// A key and its value.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "KvEntry")]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    #[schemars(with = "serde_json::Value")]
    pub value: Json,
    /// That the value is not as it was stored: it was written before values were checked.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    pub value_repaired: bool,
}

/// Some entries of a collection, in the byte order of their keys.
#[derive(Debug)]
pub struct Page {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Where the next page begins, if there is one.
    pub next: Option<Cursor>,
}

/// Where a page begins: after a key of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    text: String,
    after: String,
}

impl Cursor {
    fn after(collection: &Collection, key: &str) -> Self {
        let mut bytes = cursor_check(collection, key).to_be_bytes().to_vec();
        bytes.extend_from_slice(key.as_bytes());
        Self {
            text: URL_SAFE_NO_PAD.encode(bytes),
            after: key.to_owned(),
        }
    }

    /// Take `text` if it is a cursor of this collection.
    ///
    /// # Errors
    /// [`KvError::InvalidCursor`].
    pub fn parse(collection: &Collection, text: &str) -> Result<Self, KvError> {
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| KvError::InvalidCursor)?;
        let (check, key) = bytes
            .split_first_chunk::<8>()
            .ok_or(KvError::InvalidCursor)?;
        let after = std::str::from_utf8(key).map_err(|_| KvError::InvalidCursor)?;
        if u64::from_be_bytes(*check) != cursor_check(collection, after) {
            return Err(KvError::InvalidCursor);
        }
        Ok(Self {
            text: text.to_owned(),
            after: after.to_owned(),
        })
    }
}

/// Finds mistakes, not forgery: a forged cursor shows nothing that its maker may not read.
/// FNV-1a, because a cursor outlives the process and std's hashers promise no stability.
fn cursor_check(collection: &Collection, key: &str) -> u64 {
    let bytes = collection.0.bytes().chain([0]).chain(key.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The key-value store of the instance.
#[derive(Clone)]
pub struct KvStore {
    db: Db,
    events: Events,
    quotas: Arc<Meter>,
    value_bytes_max: usize,
}

impl KvStore {
    /// A store for values of at most `value_bytes_max` bytes, whose mutations fire `events`.
    pub fn new(db: Db, events: Events, quotas: Arc<Meter>, value_bytes_max: usize) -> Self {
        Self {
            db,
            events,
            quotas,
            value_bytes_max,
        }
    }

    /// The same, for calls on the threads where guests compute.
    pub fn for_guests(&self) -> Self {
        Self {
            db: self.db.for_guests(),
            ..self.clone()
        }
    }

    /// The part of the app `app_id`, for somebody whose mutations go back to `origin`.
    pub fn of(&self, app_id: AppId, origin: Origin) -> Kv {
        Kv {
            store: self.clone(),
            app_id,
            origin,
            expected: Expected::Anything,
            fence: None,
        }
    }
}

/// One app's part of the store.
#[derive(Clone)]
pub struct Kv {
    store: KvStore,
    app_id: AppId,
    origin: Origin,
    expected: Expected,
    fence: Option<Fence>,
}

impl Kv {
    /// Whether its database is a part of this process.
    pub fn is_embedded(&self) -> bool {
        self.store.db.engine() == Engine::Sqlite
    }

    /// The same, for whoever works on a delivery: nothing is changed once its lease is over.
    pub fn fenced(self, fence: Fence) -> Self {
        let fence = Some(fence);
        Self { fence, ..self }
    }

    /// The same, where a key is only changed if its value is as expected.
    pub fn expecting(self, expected: Expected) -> Self {
        Self { expected, ..self }
    }

    /// The value of a key.
    ///
    /// # Errors
    /// [`KvError`]; nothing was changed.
    pub async fn get(&self, collection: String, key: String) -> Result<Option<Stored>, KvError> {
        let (collection, key) = (Collection::parse(collection)?, Key::parse(key)?);
        let mut conn = self.store.db.read_for(self.app_id.uuid()).await?;
        let value = sql::get(&mut conn, self.app_id, &collection, &key).await?;
        Ok(value.map(Stored))
    }

    /// Whether a key has a value.
    ///
    /// # Errors
    /// [`KvError`]; nothing was changed.
    pub async fn has(&self, collection: String, key: String) -> Result<bool, KvError> {
        let (collection, key) = (Collection::parse(collection)?, Key::parse(key)?);
        let mut conn = self.store.db.read_for(self.app_id.uuid()).await?;
        Ok(sql::has(&mut conn, self.app_id, &collection, &key).await?)
    }

    /// Give a key a value. Durable once it returns.
    ///
    /// # Errors
    /// [`KvError`]; nothing was changed.
    pub async fn set(&self, collection: String, key: String, value: String) -> Result<(), KvError> {
        let value = Value::parse(value, self.store.value_bytes_max)?;
        self.mutate(collection, key, Some(value)).await?;
        Ok(())
    }

    /// Remove a key. Says whether there was one; durable once it returns.
    ///
    /// # Errors
    /// [`KvError`]; nothing was changed.
    pub async fn delete(&self, collection: String, key: String) -> Result<bool, KvError> {
        let removed = self.mutate(collection, key, None).await?;
        if removed {
            self.store.quotas.note_removed_kv(self.app_id);
        }
        Ok(removed)
    }

    async fn mutate(
        &self,
        collection: String,
        key: String,
        value: Option<Value>,
    ) -> Result<bool, KvError> {
        let (collection, key) = (Collection::parse(collection)?, Key::parse(key)?);
        let bytes = value.as_ref().map_or(0, |value| {
            (collection.as_str().len() + key.as_str().len() + value.as_str().len()) as u64
        });
        let KvStore {
            db, events, quotas, ..
        } = self.store.clone();
        let app_id = self.app_id;
        if value.is_some() {
            quotas.count_kv(app_id, bytes)?;
        }
        let (listening, places) = events.listening(self.app_id, &collection, &key, self.origin);
        let is_heard = !listening.is_empty();
        let hear = listening
            .iter()
            .filter(|firing| firing.may_hear(value.is_none()));
        let hear: Vec<&Firing> = hear.collect();
        let has_room = match self.told_bytes(&collection, &key, bytes, hear.len()).await {
            Ok(told) => events.check(app_id, &hear, told).map_err(KvError::from),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = has_room {
            events.not_fired(places, &StoreError::Closed);
            if value.is_some() {
                quotas.uncount_kv(app_id, bytes);
            }
            return Err(error);
        }
        let mutation = sql::Mutation {
            app_id: self.app_id,
            collection,
            key,
            value,
            expected: self.expected.clone(),
            fence: self.fence,
            listening,
        };
        let written = async move {
            match db.write_grouped(mutation).await {
                Ok(mutated) => {
                    events.fired(mutated.fired, places);
                    Ok(mutated.changed)
                }
                Err(error) => {
                    events.not_fired(places, &error);
                    if !error.is_in_doubt() {
                        quotas.uncount_kv(app_id, bytes);
                    }
                    Err(error.into())
                }
            }
        };
        match is_heard {
            false => written.await,
            // A task of its own: a caller who leaves must not keep what was written under our
            // lease from being run.
            true => tokio::spawn(still_witnessed(written))
                .await
                .unwrap_or(Err(StoreError::Closed.into())),
        }
    }

    /// How much each of so many triggers is told of a key that is changed: the value that it had, too. That
    /// is looked up only where it could be more than all of them may be told of.
    async fn told_bytes(
        &self,
        collection: &Collection,
        key: &Key,
        bytes: u64,
        listening: usize,
    ) -> Result<u64, StoreError> {
        let at_most = (self.store.value_bytes_max as u64).saturating_mul(listening as u64);
        if at_most <= TOLD_BYTES_MAX / 2 {
            return Ok(bytes);
        }
        let mut conn = self.store.db.read_for(self.app_id.uuid()).await?;
        Ok(bytes + sql::value_bytes(&mut conn, self.app_id, collection, key).await?)
    }

    /// A page of a collection.
    ///
    /// # Errors
    /// [`KvError`].
    pub async fn list(
        &self,
        collection: String,
        prefix: &str,
        cursor: Option<&str>,
        limit: Option<u32>,
    ) -> Result<Page, KvError> {
        let collection = Collection::parse(collection)?;
        let limit = limit.unwrap_or(PAGE_ENTRIES);
        if !(1..=PAGE_ENTRIES_MAX).contains(&limit) {
            return Err(KvError::InvalidLimit(limit));
        }
        let cursor = cursor
            .map(|text| Cursor::parse(&collection, text))
            .transpose()?;
        let after = cursor.map_or(String::new(), |cursor| cursor.after);
        let mut conn = self.store.db.read_for(self.app_id.uuid()).await?;
        let page = sql::page(
            &mut conn,
            self.app_id,
            &collection,
            prefix,
            &after,
            limit,
            PAGE_BYTES,
        );
        let sql::Entries {
            entries: rows,
            more,
        } = page.await?;
        // What follows takes as long as a megabyte of JSON does, and others wait for a connection.
        drop(conn);
        let next = match rows.last() {
            Some((key, _)) if more => Some(Cursor::after(&collection, key)),
            _ => None,
        };
        let entries = rows.into_iter().map(|(key, value)| {
            let read = Stored(value).read();
            Entry {
                key,
                value: read.value,
                value_repaired: read.repaired,
            }
        });
        Ok(Page {
            entries: entries.collect(),
            next,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn collection(name: &str) -> Collection {
        Collection::parse(name.into()).unwrap()
    }

    #[test]
    fn names_and_keys_are_neither_empty_nor_too_long_nor_controlling() {
        assert!(matches!(
            Collection::parse(String::new()),
            Err(KvError::InvalidCollection("is empty"))
        ));
        assert!(matches!(
            Key::parse("a\nb".into()),
            Err(KvError::InvalidKey(_))
        ));
        assert!(matches!(
            Key::parse("k".repeat(1_000_000)),
            Err(KvError::TooLarge { what: "key", .. })
        ));
        assert!(Key::parse("ключ/🔑".into()).is_ok());
    }

    #[test]
    fn a_value_is_json() {
        assert!(Value::parse("{\"a\":[1,null]}".into(), 100).is_ok());
        assert!(matches!(
            Value::parse("{a".into(), 100),
            Err(KvError::InvalidValue(_))
        ));
        let refused = Value::parse(r#"{"a":["\ud83d"]}"#.into(), 100).unwrap_err();
        assert!(
            refused.to_string().starts_with("the value: at /a/0 "),
            "{refused}"
        );
        assert!(matches!(
            Value::parse("\"12345\"".into(), 3),
            Err(KvError::TooLarge { .. })
        ));
    }

    proptest! {
        #[test]
        fn a_cursor_fits_its_collection_only(key in "\\PC{1,40}", garbage in ".{0,40}") {
            let cursor = Cursor::after(&collection("a"), &key);
            prop_assert_eq!(&Cursor::parse(&collection("a"), &cursor.to_string()).unwrap(), &cursor);
            prop_assert!(Cursor::parse(&collection("b"), &cursor.to_string()).is_err());
            prop_assert!(Cursor::parse(&collection("a"), &garbage).is_err());
        }
    }
}
