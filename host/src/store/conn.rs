//! Connections of either engine, and the macro that runs one expression on whichever it is.

use std::any::Any;

use chrono::{DateTime, Utc};
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, Postgres, QueryBuilder, Row, Sqlite};

use super::held::Held;
use super::session::Session;
use super::{Durability, Engine, StoreError, micros};

/// Run one `sqlx` expression on a [`Held`](super::held::Held) connection, and wait for its answer
/// no longer than one may.
macro_rules! bounded {
    ($held:expr, |$c:ident| $body:expr) => {{
        let ($c, watch) = $held.watched();
        watch.keep(async { $body }).await
    }};
}
pub(crate) use bounded;

/// Run one `sqlx` expression on whichever connection a [`Conn`] holds:
/// `on!(conn, |c| sqlx::query(SQL).bind(id).execute(c).await)`.
///
/// The expression is compiled once for each driver, so it may only bind types that both know. It is
/// waited for no longer than a statement may take.
macro_rules! on {
    ($conn:expr, |$c:ident| $body:expr) => {
        match $conn {
            $crate::store::Conn::Sqlite(held) => {
                let ($c, watch) = held.watched();
                let $c: &mut ::sqlx::SqliteConnection = $c;
                watch.keep(async { $body }).await
            }
            $crate::store::Conn::Postgres(held) => {
                let ($c, watch) = held.watched();
                let $c: &mut ::sqlx::PgConnection = $c;
                watch.keep(async { $body }).await
            }
        }
    };
}
pub(crate) use on;

/// A connection to either database.
pub enum Conn {
    /// To SQLite.
    Sqlite(Held<Sqlite>),
    /// To Postgres.
    Postgres(Held<Postgres>),
}

impl Conn {
    /// Which database it is to.
    pub fn engine(&self) -> Engine {
        match self {
            Self::Sqlite(_) => Engine::Sqlite,
            Self::Postgres(_) => Engine::Postgres,
        }
    }

    /// The text of this connection's engine, where one text cannot serve both.
    pub fn text(&self, sqlite: &'static str, postgres: &'static str) -> &'static str {
        match self {
            Self::Sqlite(_) => sqlite,
            Self::Postgres(_) => postgres,
        }
    }

    /// What its database's clock shows; on SQLite that is ours.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn now(&mut self) -> Result<DateTime<Utc>, StoreError> {
        match self {
            Self::Sqlite(_) => Ok(micros(Utc::now())),
            Self::Postgres(held) => {
                let asked = sqlx::query_scalar("select clock_timestamp()");
                Ok(bounded!(held, |c| asked.fetch_one(c).await)?)
            }
        }
    }

    /// Its session on Postgres, where the server can be asked about it.
    pub(super) fn session(&self) -> Option<&Session> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(held) => held.session(),
        }
    }

    /// Whether it must not be used again.
    pub(super) fn is_lost(&self) -> bool {
        match self {
            Self::Sqlite(held) => held.is_lost(),
            Self::Postgres(held) => held.is_lost(),
        }
    }

    /// Close it, if it is nobody else's, and hear what the database says of that.
    ///
    /// # Errors
    /// When the database fails.
    pub(super) async fn close(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(held) => {
                if let Some(conn) = held.into_own() {
                    conn.close().await?;
                }
            }
            Self::Postgres(held) => {
                if let Some(conn) = held.into_own() {
                    conn.close().await?;
                }
            }
        }
        Ok(())
    }
}

/// A transaction that the writer began and will end. What takes `&mut Tx` writes, and what is
/// done with one `Tx` happens together or not at all.
pub struct Tx {
    pub(super) conn: Conn,
    /// The instant of this transaction, by the database's clock: due times and leases are
    /// reckoned from it, so that nodes whose clocks differ agree.
    pub now: DateTime<Utc>,
    /// Its number on Postgres, under which the server knows later whether it was committed.
    pub(super) xid: Option<i64>,
    /// On SQLite: statements that have not been sent yet. Each sending wakes the connection's
    /// thread and is answered to ours, which costs more than a small statement does; so the
    /// beginning, what is only written, and the commit go together.
    waiting: Waiting,
    /// Whether it was begun. A transaction of one statement is not: the statement commits itself,
    /// which saves Postgres two of three round trips, and SQLite two of three answers.
    begun: bool,
    /// Whether nothing is written after what is written now.
    pub(super) is_last: bool,
    /// Whether it was committed with its last statement.
    is_committed: bool,
    /// What it makes: see [`Self::creates`].
    created: Option<String>,
    /// What is told once it is committed.
    pub(super) announcements: Vec<Announcement>,
}

/// What is told once a transaction is committed. The store does not know what it is.
pub type Announcement = Box<dyn Any + Send>;

struct Waiting {
    text: QueryBuilder<Sqlite>,
    /// How many statements are in it.
    count: usize,
    /// The numbers of tuples of those that are about many rows.
    tuples: Vec<usize>,
}

impl Waiting {
    fn nothing() -> Self {
        Self {
            text: QueryBuilder::new(""),
            count: 0,
            tuples: Vec::new(),
        }
    }

    /// Where to write the next statement.
    fn next(&mut self) -> &mut QueryBuilder<Sqlite> {
        if self.count > 0 {
            self.text.push("; ");
        }
        self.count += 1;
        &mut self.text
    }
}

impl Tx {
    /// Begin, and read the clock. SQLite's is ours; Postgres's is asked for, because leases must
    /// not depend on a node's clock.
    pub(super) async fn begin(mut conn: Conn, durability: Durability) -> Result<Self, StoreError> {
        let (now, xid) = match &mut conn {
            Conn::Sqlite(_) => (micros(Utc::now()), None),
            Conn::Postgres(held) => {
                // One round trip for all of it. A server that only reads has no numbers to give.
                macro_rules! begin {
                    ($set:literal) => {
                        concat!(
                            "begin; ",
                            $set,
                            "select now(), case when current_setting('transaction_read_only') = 'off'
                                then pg_current_xact_id()::text::bigint end"
                        )
                    };
                }
                let begin = match durability {
                    Durability::PowerCut => begin!(""),
                    Durability::Kill => begin!("set local synchronous_commit = off; "),
                };
                let row = bounded!(held, |c| sqlx::raw_sql(begin).fetch_one(c).await)?;
                let xid: Option<i64> = row.try_get(1)?;
                if xid.is_none() {
                    // Where it leads to the server that writes now, another connection helps.
                    held.lose();
                    return Err(super::error::read_only());
                }
                (row.try_get(0)?, xid)
            }
        };
        let mut waiting = Waiting::nothing();
        // A transaction that reads first and writes then could not wait for its lock.
        waiting.next().push("begin immediate");
        Ok(Self {
            begun: true,
            waiting,
            xid,
            ..Self::of_one_statement(conn, now)
        })
    }

    /// For one statement, which commits itself; `now` is what the database's clock must show.
    pub(super) fn of_one_statement(conn: Conn, now: DateTime<Utc>) -> Self {
        Self {
            conn,
            now,
            xid: None,
            waiting: Waiting::nothing(),
            begun: false,
            is_last: false,
            is_committed: false,
            created: None,
            announcements: Vec::new(),
        }
    }

    /// Whether there is something to roll back.
    pub(super) fn is_begun(&self) -> bool {
        self.begun
    }

    /// Have `what` told to whoever [listens](super::Db::announcements) in this process, once and
    /// only if this transaction is committed.
    pub fn announce(&mut self, what: impl Any + Send) {
        self.announcements.push(Box::new(what));
    }

    /// The connection, with everything before sent.
    ///
    /// # Errors
    /// When what was not sent yet fails.
    pub async fn conn(&mut self) -> Result<&mut Conn, StoreError> {
        if let Conn::Sqlite(held) = &mut self.conn
            && self.waiting.count > 0
        {
            let mut waiting = std::mem::replace(&mut self.waiting, Waiting::nothing());
            bounded!(held, |c| waiting.text.build().execute(c).await)?;
        }
        Ok(&mut self.conn)
    }

    /// Where to write a statement with so many [`tuples`](super::tuples) that is sent to SQLite
    /// together with what comes before and after it. Few texts may come of it, so that they stay
    /// prepared: few statements go together, and no third number of tuples.
    ///
    /// # Errors
    /// When what was not sent yet fails.
    pub(crate) async fn sqlite_statement(
        &mut self,
        tuples: usize,
    ) -> Result<&mut QueryBuilder<Sqlite>, StoreError> {
        /// New deliveries, executions and deletions of 64 each.
        const STATEMENTS_MAX: usize = 6;
        let waiting = &self.waiting.tuples;
        let is_third =
            waiting.iter().any(|other| *other != waiting[0]) && !waiting.contains(&tuples);
        if is_third || waiting.len() == STATEMENTS_MAX {
            self.conn().await?;
        }
        self.waiting.tuples.push(tuples);
        Ok(self.waiting.next())
    }

    /// Send what waits to SQLite, with the commit if nothing is written after it; answers the rows of
    /// its last statement.
    ///
    /// # Errors
    /// When it fails.
    pub(crate) async fn sqlite_last_rows<T>(&mut self) -> Result<Vec<T>, StoreError>
    where
        T: Send + Unpin,
        (T,): for<'r> sqlx::FromRow<'r, SqliteRow>,
    {
        if self.is_last {
            self.waiting.next().push("commit");
        }
        let rows = self.sqlite_rows().await?;
        self.is_committed = self.is_last;
        Ok(rows)
    }

    /// Send what waits to SQLite; answers the rows of its last statement.
    ///
    /// # Errors
    /// When it fails.
    pub(crate) async fn sqlite_rows<T>(&mut self) -> Result<Vec<T>, StoreError>
    where
        T: Send + Unpin,
        (T,): for<'r> sqlx::FromRow<'r, SqliteRow>,
    {
        let Conn::Sqlite(held) = &mut self.conn else {
            return Ok(Vec::new());
        };
        let mut waiting = std::mem::replace(&mut self.waiting, Waiting::nothing());
        let query = waiting.text.build_query_scalar();
        Ok(bounded!(held, |c| query.fetch_all(c).await)?)
    }

    /// Say what this transaction makes, by its id or its name, to whoever writes down who did it.
    pub fn creates(&mut self, id: impl ToString) {
        self.created = Some(id.to_string());
    }

    /// What this transaction makes.
    pub fn created(&self) -> Option<&str> {
        self.created.as_deref()
    }

    /// Which database it is in.
    pub fn engine(&self) -> Engine {
        self.conn.engine()
    }

    /// The text of this transaction's engine, where one text cannot serve both.
    pub fn text(&self, sqlite: &'static str, postgres: &'static str) -> &'static str {
        self.conn.text(sqlite, postgres)
    }

    pub(super) async fn commit(&mut self) -> Result<(), StoreError> {
        match &mut self.conn {
            Conn::Sqlite(_) if self.is_committed => {}
            Conn::Sqlite(held) => {
                if self.begun {
                    self.waiting.next().push("commit");
                }
                let commit = self.waiting.text.build();
                bounded!(held, |c| commit.execute(c).await)?;
            }
            Conn::Postgres(held) if self.begun => {
                bounded!(held, |c| sqlx::raw_sql("commit").execute(c).await)?;
            }
            Conn::Postgres(_) => {}
        }
        Ok(())
    }
}
