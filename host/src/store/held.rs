//! A connection as somebody holds it, and the limits on what they wait for.

use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use sqlx::Database;
use sqlx::pool::PoolConnection;
use tokio::time::timeout;

use super::locks::{Locks, SUSPECTED_AFTER};
use super::session::{Activity, Session, Sessions, timed_out};

/// How long a statement is waited for before the server is asked whether it works on it, and
/// between two such questions.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a statement is waited for that the server works on; and any on SQLite.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it is where the server has no room for the question.
const UNKNOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection and where it goes when it is dropped.
pub struct Held<D: Database> {
    conn: Place<D>,
    /// Its session, where the server can be asked about it.
    session: Option<Beside>,
    state: State,
}

enum Place<D: Database> {
    /// It goes back to sqlx's pool.
    Pooled(PoolConnection<D>),
    /// It belongs to whoever holds it; or, with a home, goes back there. None once it went.
    Own(Option<Box<D::Connection>>, Option<Arc<dyn Home<D>>>),
}

/// Where connections go back to that can be used again.
pub(super) trait Home<D: Database>: Send + Sync {
    /// Take back `conn`.
    fn take_back(&self, conn: Box<D::Connection>, beside: Option<Beside>);

    /// One was lost; others that were idle meanwhile may be, too.
    fn lost_one(&self);
}

/// A session, and how to ask the server about it.
#[derive(Clone)]
pub(super) struct Beside {
    pub(super) session: Session,
    pub(super) sessions: Arc<Sessions>,
    pub(super) locks: Arc<Locks>,
}

/// In what a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Every statement was answered.
    Idle,
    /// A statement was sent, and its answer not waited for yet.
    Busy,
    /// It is closed, out of step, or an answer does not come.
    Lost,
}

impl<D: Database> Held<D> {
    /// One of a pool of sqlx's.
    pub(super) fn pooled(conn: PoolConnection<D>) -> Self {
        Self {
            conn: Place::Pooled(conn),
            session: None,
            state: State::Idle,
        }
    }

    /// One that its holder keeps.
    pub(super) fn own(conn: D::Connection) -> Self {
        Self {
            conn: Place::Own(Some(Box::new(conn)), None),
            session: None,
            state: State::Idle,
        }
    }

    /// The same, where the server can be asked about its session.
    pub(super) fn own_beside(conn: D::Connection, beside: Beside) -> Self {
        let mut held = Self::own(conn);
        held.session = Some(beside);
        held
    }

    /// One that goes home when it is dropped.
    pub(super) fn of_home(
        conn: Box<D::Connection>,
        beside: Option<Beside>,
        home: Arc<dyn Home<D>>,
    ) -> Self {
        Self {
            conn: Place::Own(Some(conn), Some(home)),
            session: beside,
            state: State::Idle,
        }
    }

    /// The session that it is, where the server can be asked about it.
    pub(super) fn session(&self) -> Option<&Session> {
        self.session.as_ref().map(|beside| &beside.session)
    }

    /// Whether it must not be used again.
    pub(super) fn is_lost(&self) -> bool {
        self.state != State::Idle
    }

    /// Never use it again.
    pub(super) fn lose(&mut self) {
        self.state = State::Lost;
    }

    /// The connection itself, if nobody else has a claim on it.
    pub(super) fn into_own(mut self) -> Option<D::Connection> {
        match &mut self.conn {
            Place::Own(conn, None) => conn.take().map(|conn| *conn),
            _ => None,
        }
    }

    /// The connection, and what watches over a statement on it.
    pub fn watched(&mut self) -> (&mut D::Connection, Watch<'_>) {
        let conn = match &mut self.conn {
            Place::Pooled(conn) => &mut **conn,
            Place::Own(conn, _) => conn.as_deref_mut().expect(STILL_THERE),
        };
        let watch = Watch {
            session: self.session.as_ref(),
            state: &mut self.state,
        };
        (conn, watch)
    }
}

const STILL_THERE: &str = "a connection is taken out only by who drops its holder";

impl<D: Database> Deref for Held<D> {
    type Target = D::Connection;

    fn deref(&self) -> &D::Connection {
        match &self.conn {
            Place::Pooled(conn) => conn,
            Place::Own(conn, _) => conn.as_deref().expect(STILL_THERE),
        }
    }
}

impl<D: Database> DerefMut for Held<D> {
    fn deref_mut(&mut self) -> &mut D::Connection {
        self.watched().0
    }
}

impl<D: Database> Drop for Held<D> {
    fn drop(&mut self) {
        if let Place::Own(conn, Some(home)) = &mut self.conn {
            match (self.state, conn.take()) {
                (State::Idle, Some(conn)) => home.take_back(conn, self.session.take()),
                // A caller who left dropped a statement: closed, it disturbs nobody.
                (State::Busy, _) | (_, None) => {}
                (State::Lost, _) => home.lost_one(),
            }
        }
    }
}

/// Watches over one statement: see [`on`](super::on).
pub struct Watch<'h> {
    session: Option<&'h Beside>,
    state: &'h mut State,
}

impl Watch<'_> {
    /// Wait for a statement for as long as the server works on it, up to [`STATEMENT_TIMEOUT`].
    /// Dropped before it is answered, the connection is not used again.
    ///
    /// # Errors
    /// What the statement fails with; an I/O error when its answer does not come; a decoding error
    /// where a value makes sqlx panic, as a Postgres time of `infinity` does.
    pub async fn keep<T>(
        self,
        statement: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        *self.state = State::Busy;
        let mut statement = pin!(AssertUnwindSafe(statement).catch_unwind());
        let began = Instant::now();
        let mut look_after = SUSPECTED_AFTER;
        let answered = loop {
            if let Ok(answered) = timeout(look_after, &mut statement).await {
                break answered;
            }
            if look_after == SUSPECTED_AFTER {
                look_after = LOOK_EVERY - SUSPECTED_AFTER;
                if let Some(beside) = self.session {
                    beside.locks.suspect();
                }
                continue;
            }
            look_after = LOOK_EVERY;
            let waited = began.elapsed();
            let limit = match self.session {
                None => STATEMENT_TIMEOUT,
                Some(beside) => match beside.sessions.activity(&beside.session.id).await {
                    Activity::Works => STATEMENT_TIMEOUT,
                    Activity::Unknown => UNKNOWN_TIMEOUT,
                    Activity::Waits => Duration::ZERO,
                },
            };
            if waited >= limit {
                // It may have come while the server was asked.
                match timeout(Duration::ZERO, &mut statement).await {
                    Ok(answered) => break answered,
                    Err(_) => {
                        metrics::counter!("picloud_store_connections_lost_total").increment(1);
                        *self.state = State::Lost;
                        return Err(timed_out("a statement is not answered"));
                    }
                }
            }
        };
        let Ok(answered) = answered else {
            *self.state = State::Lost;
            return Err(sqlx::Error::Decode(
                "a value is outside what its type holds here, as a time of `infinity` is".into(),
            ));
        };
        *self.state = match &answered {
            Err(error) if ends_connection(error) => State::Lost,
            _ => State::Idle,
        };
        answered
    }
}

/// Whether nothing can be sent any more on a connection on which this happened.
fn ends_connection(error: &sqlx::Error) -> bool {
    match error {
        // The server said so, before it closed the connection, or will say the same to all that
        // follows: a shutdown, a time limit of the session, a server that is read-only now.
        sqlx::Error::Database(database) => database.code().is_some_and(|code| {
            ["57P", "25P03", "25P04", "25006", "26000"]
                .iter()
                .any(|ends| code.starts_with(ends))
        }),
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}
