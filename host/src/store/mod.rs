//! The database: one handle over SQLite and Postgres, reads from a pool, and every
//! write through the group-commit [`writer`].
//!
//! This room knows no domain: tables and statements live in the domains' `sql.rs`.

mod at_work;
mod beside;
mod conn;
mod error;
mod expected;
mod file;
mod fresh;
mod group;
mod held;
mod id;
mod locks;
mod migrate;
mod notify;
mod open;
mod readable;
mod readers;
mod reading;
mod rows;
mod session;
mod snapshot;
mod witness;
mod writer;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

pub use beside::write_beside;
pub use conn::{Announcement, Conn, Tx};
pub(crate) use conn::{bounded, on};
pub use error::StoreError;
pub use expected::{ETag, Expected, entity_tags};
pub use fresh::Fresh;
pub use group::{Durability, Grouped, Lane};
pub use held::{Held, Watch};
pub use id::Id;
pub use migrate::SCHEMA_VERSION;
pub use open::CONNECTIONS_MAX;
pub use readable::Readable;
pub use reading::Reading;
pub(crate) use rows::insert_all;
pub use rows::{ROWS_MAX, chunks, tuples};
pub use snapshot::snapshot;
pub use witness::{Witness, still_witnessed, unwitnessed, witnessed};

use reading::Reads;
use uuid::Uuid;
use writer::Writer;

/// For how long a write that callers wait for may go unanswered, or a table be locked, before the node
/// is not ready.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// After how long such a write is taken for one that waits for a lock.
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// Which database stands behind a [`Db`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The embedded default: one process, one file.
    Sqlite,
    /// For many nodes.
    Postgres,
}

/// A handle on the database; clones share it.
#[derive(Clone)]
pub struct Db {
    inner: Arc<Inner>,
    for_guests: bool,
}

struct Inner {
    reads: Reads,
    guest_reads: Reads,
    writer: Writer,
    locks: Arc<locks::Locks>,
    announced: Mutex<Option<mpsc::UnboundedReceiver<Vec<Announcement>>>>,
    /// SQLite's. Held for as long as the process serves: it keeps a second one off the same file.
    file: Option<Arc<file::Served>>,
}

impl Db {
    /// Open the database at `url` (`sqlite:///path/to/file` or `postgres://…`) and bring its
    /// schema up to date.
    ///
    /// # Errors
    /// When it cannot be reached, belongs to a newer PiCloud, or another process serves the
    /// same SQLite file.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let opened = open::open(url).await?;
        let (announce, announced) = mpsc::unbounded_channel();
        Ok(Self {
            inner: Arc::new(Inner {
                reads: opened.reads,
                guest_reads: opened.guest_reads,
                writer: Writer::start(opened.writes, opened.keyed_lanes, announce),
                locks: opened.locks,
                announced: Mutex::new(Some(announced)),
                file: opened.file,
            }),
            for_guests: false,
        })
    }

    /// The same, with readers of its own: for reads on the threads where guests compute. One may
    /// hold its connection for as long as others compute, and nobody else is to wait for that.
    pub fn for_guests(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            for_guests: true,
        }
    }

    /// Which database this is.
    pub fn engine(&self) -> Engine {
        self.inner.reads.engine()
    }

    /// What transactions of this process [announce](Tx::announce), in the order of their commits
    /// on each lane. There is one listener: it is none when this was asked before.
    pub fn announcements(&self) -> Option<mpsc::UnboundedReceiver<Vec<Announcement>>> {
        let mut announced = self.inner.announced.lock();
        announced
            .as_deref_mut()
            .map_or(None, |announced| announced.take())
    }

    /// A connection for reading.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when none can be had.
    pub async fn read(&self) -> Result<Conn, StoreError> {
        self.reads().acquire().await
    }

    /// A connection for reading what an app asks for, as often and as much as it likes: apps take turns.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when none can be had.
    pub async fn read_for(&self, app: Uuid) -> Result<Reading, StoreError> {
        self.reads().acquire_for(app).await
    }

    fn reads(&self) -> &Reads {
        match self.for_guests {
            true => &self.inner.guest_reads,
            false => &self.inner.reads,
        }
    }

    /// Run `work` in a transaction of its own: commit when it answers `Ok`, roll back when it
    /// answers `Err`. It runs to its end even when the caller's future is dropped.
    ///
    /// # Errors
    /// What `work` answers, or [`StoreError`] as `E` when the database fails.
    pub async fn write<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Send + 'static,
    {
        self.check_for_write()?;
        let Some(witness) = witness::current() else {
            return self.inner.writer.alone(work).await;
        };
        let writing = witness.clone();
        let written = self.inner.writer.alone(move |tx| {
            Box::pin(async move {
                let done = work(&mut *tx).await?;
                writing.write(tx).await?;
                Ok::<T, E>(done)
            })
        });
        let done = written.await?;
        witness.committed();
        Ok(done)
    }

    /// Write `item` together with whatever else waits to be written, and answer once that
    /// transaction is committed.
    ///
    /// # Errors
    /// When this item could not be written; others of its group are not affected.
    pub async fn write_grouped<G: Grouped>(&self, item: G) -> Result<G::Output, StoreError> {
        self.check_for_write()?;
        if item.is_new() {
            self.check_room()?;
        }
        self.inner.writer.grouped(item, witness::current()).await
    }

    /// See that SQLite's file is still where it was opened.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] says what became of it.
    pub fn check_file(&self) -> Result<(), StoreError> {
        let file = self.inner.file.as_ref();
        Ok(file.map_or(Ok(()), |file| file.check())?)
    }

    /// See that so many bytes more can be kept. Postgres has a disk of its own.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`] says how much there is.
    pub fn check_room_for(&self, bytes: u64) -> Result<(), StoreError> {
        let file = self.inner.file.as_ref();
        file.map_or(Ok(()), |file| file.check_room_for(bytes))
    }

    /// Whether something new can be kept, by the last look at the disk. Postgres has a disk of its own.
    pub fn has_room(&self) -> bool {
        self.check_room().is_ok()
    }

    /// Whether what begins now would only wait, and take memory: a write that callers wait for is
    /// stuck, or a table is locked.
    pub fn is_stuck(&self) -> bool {
        self.inner.locks.last().is_some() || self.inner.writer.stalled() > STUCK_AFTER
    }

    /// See that what calls read and write is answered.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::Stalled`].
    pub fn check_for_call(&self) -> Result<(), StoreError> {
        match self.inner.locks.last() {
            Some(lasts) => Err(StoreError::Locked(lasts)),
            None => check_stalled(self.inner.writer.stalled()),
        }
    }

    /// See that what is urgent is written: the rows of deliveries, say, which run later.
    ///
    /// # Errors
    /// [`StoreError::Stalled`].
    pub fn check_urgent(&self) -> Result<(), StoreError> {
        check_stalled(self.inner.writer.urgent_stalled())
    }

    /// Look for tables that somebody else keeps locked, for ever.
    pub async fn keep_looking_for_locks(self) {
        if self.engine() == Engine::Sqlite {
            // Its readers wait for nobody, and a write that waits for another process fails soon.
            return std::future::pending().await;
        }
        let locks = &self.inner.locks;
        loop {
            locks.are_due().await;
            let looked = async { locks.look(&mut self.read().await?).await };
            if let Err(error) = looked.await {
                tracing::debug!(%error, "whether a table is locked cannot be known now");
            }
        }
    }

    fn check_room(&self) -> Result<(), StoreError> {
        let file = self.inner.file.as_ref();
        file.map_or(Ok(()), |file| file.check_room())
    }

    fn check_for_write(&self) -> Result<(), StoreError> {
        let file = self.inner.file.as_ref();
        Ok(file.map_or(Ok(()), |file| file.check_for_write())?)
    }

    /// Ask the database for a sign of life, and whether each table is open to us. While writes work,
    /// that writes nothing, so that an idle instance is idle; once one has failed, it is a write.
    ///
    /// # Errors
    /// [`StoreError`] when it does not answer, refuses writes, or has no room for anything new.
    pub async fn check(&self) -> Result<(), StoreError> {
        self.check_file()?;
        self.check_room()?;
        check_stalled(self.inner.writer.stalled())?;
        if let Some(lasts) = self.inner.locks.last()
            && lasts > STALLED_AFTER
        {
            return Err(StoreError::Locked(lasts));
        }
        let is_failing = self.inner.writer.is_failing();
        self.write::<_, StoreError, _>(move |tx| {
            Box::pin(async move {
                if is_failing {
                    migrate::touch(tx).await?;
                }
                session::check_rights(tx.conn().await?).await
            })
        })
        .await?;
        if is_failing {
            self.inner.writer.recovered();
        }
        Ok(())
    }
}

fn check_stalled(stalled: Duration) -> Result<(), StoreError> {
    match stalled > STALLED_AFTER {
        true => Err(StoreError::Stalled(stalled)),
        false => Ok(()),
    }
}

/// `at` without what the databases would not keep: Postgres stores microseconds, and equality
/// must survive a round trip.
pub fn micros(at: DateTime<Utc>) -> DateTime<Utc> {
    at.duration_trunc(TimeDelta::microseconds(1)).unwrap_or(at)
}
