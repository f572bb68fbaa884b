//! Connections for reading, which apps share.

use std::ops::{Deref, DerefMut};

use sqlx::SqlitePool;
use tokio::time::timeout;
use uuid::Uuid;

use super::held::Held;
use super::readers::{ACQUIRE_TIMEOUT, Readers};
use super::session::timed_out;
use super::{Conn, Engine, StoreError};
use crate::fair_queue::{FairQueue, Patience, Place, Room};

/// A pool of connections, and whose turn it is to have one.
pub(super) struct Reads {
    pool: Pool,
    turns: FairQueue,
}

enum Pool {
    Sqlite(SqlitePool),
    Postgres(Readers),
}

/// A connection that an app has for a while. One app never has all of them.
pub struct Reading {
    conn: Conn,
    // Given on once the connection was let go of.
    _place: Place,
}

impl Reads {
    pub(super) fn sqlite(pool: SqlitePool, connections: u32) -> Self {
        let (pool, turns) = (Pool::Sqlite(pool), turns(connections));
        Self { pool, turns }
    }

    pub(super) fn postgres(readers: Readers, connections: u32) -> Self {
        let (pool, turns) = (Pool::Postgres(readers), turns(connections));
        Self { pool, turns }
    }

    /// Those of Postgres.
    pub(super) fn of_postgres(&self) -> Option<&Readers> {
        match &self.pool {
            Pool::Sqlite(_) => None,
            Pool::Postgres(readers) => Some(readers),
        }
    }

    pub(super) fn engine(&self) -> Engine {
        match self.pool {
            Pool::Sqlite(_) => Engine::Sqlite,
            Pool::Postgres(_) => Engine::Postgres,
        }
    }

    /// A connection for the host itself.
    pub(super) async fn acquire(&self) -> Result<Conn, StoreError> {
        Ok(match &self.pool {
            Pool::Sqlite(pool) => Conn::Sqlite(Held::pooled(pool.acquire().await?)),
            Pool::Postgres(readers) => readers.acquire().await?,
        })
    }

    /// A connection for an app, once it is its turn.
    pub(super) async fn acquire_for(&self, app: Uuid) -> Result<Reading, StoreError> {
        let place = timeout(ACQUIRE_TIMEOUT, self.turns.place(app, Patience::Unbounded)).await;
        let Ok(Ok(place)) = place else {
            return Err(timed_out("every connection for reading is in use").into());
        };
        Ok(Reading {
            conn: self.acquire().await?,
            _place: place,
        })
    }
}

/// So many connections, of which one is left for others than the app that has the most.
fn turns(connections: u32) -> FairQueue {
    let places = connections as usize;
    FairQueue::new(Room {
        places,
        places_per_app: places.saturating_sub(1).max(1),
        waiting: usize::MAX,
        waiting_per_app: usize::MAX,
    })
}

impl Deref for Reading {
    type Target = Conn;

    fn deref(&self) -> &Conn {
        &self.conn
    }
}

impl DerefMut for Reading {
    fn deref_mut(&mut self) -> &mut Conn {
        &mut self.conn
    }
}
