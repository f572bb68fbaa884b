//! The key-value store, as guests call it.

use super::{Kv, KvError, Page, Stored};
use crate::imports::{GuestImports, log_failed};
use crate::quotas::Data;
use crate::sandbox::KvImports;
use crate::sandbox::bindings::kv;
use crate::triggers::firing::{HeardByTooMany, TOLD_BYTES_MAX};

impl GuestImports {
    fn readable(&self) -> Result<Kv, kv::Error> {
        let allowed = self.may_read_kv.then(|| self.kv.clone());
        allowed.ok_or(kv::Error::Denied)
    }

    /// Read one key. From an embedded database that takes less time here than handing it to another thread
    /// would, and a read that is dropped half-way does no harm; but while executions wait for their turns,
    /// it would need one whenever it goes on. And a socket to Postgres is looked after by the runtime that
    /// opened it, which on the threads of guests may be busy for many turns.
    async fn read_one<T: Send + 'static>(
        &self,
        read: impl Future<Output = Result<T, KvError>> + Send + 'static,
    ) -> Option<Result<T, KvError>> {
        match self.kv.is_embedded() && !self.crowd.waits() {
            true => Some(read.await),
            false => self.apart(read).await,
        }
    }

    fn writable(&self) -> Result<Kv, kv::Error> {
        let allowed = self.may_write_kv.then(|| self.kv.clone());
        allowed.ok_or(kv::Error::Denied)
    }
}

impl KvImports for GuestImports {
    async fn get(&mut self, collection: String, key: String) -> Result<Option<String>, kv::Error> {
        let store = self.readable()?;
        let read = self.read_one(async move { store.get(collection, key).await });
        let value = told(read.await)?;
        Ok(value.map(Stored::into_text))
    }

    async fn set(
        &mut self,
        collection: String,
        key: String,
        value: String,
    ) -> Result<(), kv::Error> {
        let store = self.writable()?;
        told(
            self.apart(async move { store.set(collection, key, value).await })
                .await,
        )
    }

    async fn delete(&mut self, collection: String, key: String) -> Result<bool, kv::Error> {
        let store = self.writable()?;
        told(
            self.apart(async move { store.delete(collection, key).await })
                .await,
        )
    }

    async fn has(&mut self, collection: String, key: String) -> Result<bool, kv::Error> {
        let store = self.readable()?;
        told(
            self.read_one(async move { store.has(collection, key).await })
                .await,
        )
    }

    async fn list_told(
        &mut self,
        collection: String,
        cursor: Option<String>,
        limit: Option<u32>,
    ) -> Result<kv::ToldPage, kv::Error> {
        let store = self.readable()?;
        let listed = self
            .apart(async move { store.list(collection, "", cursor.as_deref(), limit).await })
            .await;
        let Page { entries, next } = told(listed)?;
        let entry = |entry: super::Entry| kv::ToldEntry {
            key: entry.key,
            value: entry.value.into(),
            value_repaired: entry.value_repaired,
        };
        Ok(kv::ToldPage {
            entries: entries.into_iter().map(entry).collect(),
            next: next.map(|cursor| cursor.to_string()),
        })
    }
}

/// The error as the guest is told it. What failed inside us is logged and only called
/// unavailable.
fn told<T>(done: Option<Result<T, KvError>>) -> Result<T, kv::Error> {
    let error = match done {
        Some(Ok(done)) => return Ok(done),
        Some(Err(error)) => error,
        None => return Err(kv::Error::Unavailable),
    };
    Err(match error {
        KvError::InvalidCollection(problem) => kv::Error::InvalidCollection(problem.into()),
        KvError::InvalidKey(problem) => kv::Error::InvalidKey(problem.into()),
        KvError::InvalidValue(refused) => kv::Error::InvalidValue(refused.to_string()),
        KvError::InvalidCursor => kv::Error::InvalidCursor,
        KvError::InvalidLimit(limit) => kv::Error::InvalidLimit(limit),
        KvError::TooLarge {
            what,
            bytes,
            bytes_max,
        } => kv::Error::TooLarge(kv::TooLarge {
            what: what.into(),
            bytes: bytes as u64,
            bytes_max: bytes_max as u64,
        }),
        KvError::HeardByTooMany(HeardByTooMany { bytes }) => kv::Error::TooLarge(kv::TooLarge {
            what: "value, with all triggers that hear of it,".into(),
            bytes,
            bytes_max: TOLD_BYTES_MAX,
        }),
        // The contract has no word of its own for it.
        KvError::Full(full) => kv::Error::TooLarge(kv::TooLarge {
            what: match full.data {
                Data::Kv => "whole key-value store of the app".into(),
                data => format!("app's `{}` in the database", data.as_str()),
            },
            bytes: full.used,
            bytes_max: full.max,
        }),
        KvError::Store(error) => {
            log_failed("the key-value store", &error, error.is_unavailable());
            kv::Error::Unavailable
        }
    })
}
