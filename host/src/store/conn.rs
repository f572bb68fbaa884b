//! Connections of either engine, and the macro that runs one expression on whichever it is.

use std::ops::{Deref, DerefMut};

use chrono::{DateTime, Utc};
use sqlx::pool::PoolConnection;
use sqlx::{Database, Postgres, Sqlite};

/// A connection to either database.
pub enum Conn {
    /// To SQLite.
    Sqlite(Held<Sqlite>),
    /// To Postgres.
    Postgres(Held<Postgres>),
}

impl Conn {
    /// The text of this connection's engine, where one text cannot serve both.
    pub fn text(&self, sqlite: &'static str, postgres: &'static str) -> &'static str {
        match self {
            Self::Sqlite(_) => sqlite,
            Self::Postgres(_) => postgres,
        }
    }
}

/// A connection and how it is held.
pub enum Held<D: Database> {
    /// It goes back to its pool.
    Pooled(PoolConnection<D>),
    /// A writer's lane keeps it for life: the pool's health checks on every checkout and
    /// return would cost more than the writes.
    Own(Box<D::Connection>),
}

impl<D: Database> Deref for Held<D> {
    type Target = D::Connection;

    fn deref(&self) -> &D::Connection {
        match self {
            Self::Pooled(conn) => conn,
            Self::Own(conn) => conn,
        }
    }
}

impl<D: Database> DerefMut for Held<D> {
    fn deref_mut(&mut self) -> &mut D::Connection {
        match self {
            Self::Pooled(conn) => conn,
            Self::Own(conn) => conn,
        }
    }
}

/// A transaction that the writer began and will end. What takes `&mut Tx` writes, and what is
/// done with one `Tx` happens together or not at all.
pub struct Tx {
    /// The connection, for functions that only read.
    pub conn: Conn,
    /// The instant of this transaction, by the database's clock: due times and leases are
    /// reckoned from it, so that nodes whose clocks differ agree.
    pub now: DateTime<Utc>,
}

/// Run one `sqlx` expression on whichever connection a [`Conn`] holds:
/// `on!(conn, |c| sqlx::query(SQL).bind(id).execute(c).await)`.
///
/// The expression is compiled once for each driver, so it may only bind types that both know.
macro_rules! on {
    ($conn:expr, |$c:ident| $body:expr) => {
        match $conn {
            $crate::store::Conn::Sqlite(held) => {
                let $c: &mut ::sqlx::SqliteConnection = &mut *held;
                $body
            }
            $crate::store::Conn::Postgres(held) => {
                let $c: &mut ::sqlx::PgConnection = &mut *held;
                $body
            }
        }
    };
}
pub(crate) use on;
