//! Sessions on Postgres, seen from beside them.
//!
//! A statement that is not answered is either slow or lost: the network swallowed it, or its answer.
//! TCP cannot tell (a proxy acknowledges what it never delivers), and a time limit alone would end
//! slow statements. The server can: in `pg_stat_activity` a session that works is `active`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection, Row};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::{Conn, StoreError, bounded};

/// How long connecting may take, and a question about sessions.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For how long what the server said of its sessions stands for all who ask.
const ANSWER_LASTS: Duration = Duration::from_millis(500);

/// What a session is set to. The server ends one whose client is gone, so that it does not hold its
/// locks: a client that answers no packets for 10 s, or leaves a transaction idle for as long.
/// `statement_timeout` is the net below our own limits, in `conn.rs`.
const SETTINGS: &str = "
    set statement_timeout = '40s';
    set idle_in_transaction_session_timeout = '10s';
    set tcp_keepalives_idle = 5; set tcp_keepalives_interval = 2; set tcp_keepalives_count = 3;
    set tcp_user_timeout = '10s'";

/// What names a session among all that the server ever had.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct SessionId {
    pid: i32,
    started_at: String,
}

/// A session, and what its server was known by when it began.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) id: SessionId,
    /// Another one after a crash, and on a standby that was promoted: such a server has forgotten
    /// transactions that were not on its disk, and gives their ids anew.
    life: String,
}

impl Session {
    /// Whether `later` is of a server that remembers all that the server of this one knew.
    pub(super) fn is_remembered_in(&self, later: &Self) -> bool {
        self.life == later.life
    }
}

/// What the server says of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activity {
    /// It works on a statement.
    Works,
    /// It waits for its client, or is not there: what the client waits for does not come.
    Waits,
    /// The server has no room for the question.
    Unknown,
}

/// A way to the server beside the connections that it is asked about.
pub(super) struct Sessions {
    options: PgConnectOptions,
    known: Mutex<Option<(Instant, HashMap<SessionId, bool>)>>,
}

/// Set up a new connection. Answers which session it is.
pub(super) async fn begin(conn: &mut PgConnection) -> Result<Session, sqlx::Error> {
    // A recovery resets the statistics, also where the server's first process has outlived it.
    const SELF: &str = "
        select pid, backend_start::text,
               concat(pg_postmaster_start_time(), ' ', (select stats_reset from pg_stat_bgwriter))
        from pg_stat_activity where pid = pg_backend_pid()";
    let set_up = async {
        sqlx::raw_sql(SETTINGS).execute(&mut *conn).await?;
        let row = sqlx::raw_sql(SELF).fetch_one(&mut *conn).await?;
        let id = SessionId {
            pid: row.try_get(0)?,
            started_at: row.try_get(1)?,
        };
        let life = row.try_get(2)?;
        Ok(Session { id, life })
    };
    timeout(CONNECT_TIMEOUT, set_up)
        .await
        .unwrap_or_else(|_| Err(timed_out("a new connection is not answered")))
}

/// Connect, within [`CONNECT_TIMEOUT`].
pub(super) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    timeout(CONNECT_TIMEOUT, options.connect())
        .await
        .unwrap_or_else(|_| Err(timed_out("the server does not answer")))
}

/// What a wait that was given up is told as.
pub(super) fn timed_out(what: &'static str) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, what))
}

impl Sessions {
    pub(super) fn new(options: PgConnectOptions) -> Arc<Self> {
        Arc::new(Self {
            options,
            known: Mutex::new(None),
        })
    }

    /// What `session` does. Many may ask at once: the server is asked twice a second at most.
    pub(super) async fn activity(&self, session: &SessionId) -> Activity {
        let mut known = self.known.lock().await;
        let is_fresh = |(asked, _): &(Instant, _)| asked.elapsed() < ANSWER_LASTS;
        if !known.as_ref().is_some_and(is_fresh) {
            match timeout(CONNECT_TIMEOUT * 2, self.ask()).await {
                Ok(Ok(sessions)) => *known = Some((Instant::now(), sessions)),
                Ok(Err(error)) if is_crowded(&error) => return Activity::Unknown,
                // Whatever keeps this connection from its answer keeps the other one, too.
                _ => return Activity::Waits,
            }
        }
        let works = known.as_ref().and_then(|(_, known)| known.get(session));
        match works {
            Some(true) => Activity::Works,
            _ => Activity::Waits,
        }
    }

    async fn ask(&self) -> Result<HashMap<SessionId, bool>, sqlx::Error> {
        // A session that reads or writes its connection has answered, or has not heard all of the
        // question.
        const SQL: &str = "
            select pid, backend_start::text,
                   state = 'active' and coalesce(wait_event_type, '') <> 'Client'
            from pg_stat_activity where usename = current_user and backend_start is not null";
        let mut conn = self.options.connect().await?;
        let rows = sqlx::raw_sql(SQL).fetch_all(&mut conn).await?;
        let sessions = rows.into_iter().map(|row| {
            let id = SessionId {
                pid: row.try_get(0)?,
                started_at: row.try_get(1)?,
            };
            let works: Option<bool> = row.try_get(2)?;
            Ok((id, works.unwrap_or(false)))
        });
        sessions.collect()
    }
}

/// Whether the server has no room for another connection.
pub(super) fn is_crowded(error: &sqlx::Error) -> bool {
    let code = error
        .as_database_error()
        .and_then(|database| database.code());
    code.as_deref() == Some("53300")
}

/// End a session whose connection was lost, and what it has begun, and wait until it is gone.
/// Answers whether it is: the locks that it held are free then, and nothing that it was sent is
/// done any more.
pub(super) async fn end(conn: &mut PgConnection, session: &SessionId) -> Result<bool, StoreError> {
    // Answers once it is gone, or after the time in milliseconds.
    const END: &str = "
        select pg_terminate_backend(pid) from pg_stat_activity
        where pid = $1 and backend_start::text = $2";
    const IS_GONE: &str = "
        select not exists (
            select 1 from pg_stat_activity where pid = $1 and backend_start::text = $2)";
    let ended = async {
        sqlx::query(END)
            .bind(session.pid)
            .bind(&session.started_at)
            .execute(&mut *conn)
            .await?;
        for pause_ms in [1, 5, 20, 50, 100, 200, 400] {
            let is_gone: bool = sqlx::query_scalar(IS_GONE)
                .bind(session.pid)
                .bind(&session.started_at)
                .fetch_one(&mut *conn)
                .await?;
            if is_gone {
                return Ok(true);
            }
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        }
        Ok::<_, sqlx::Error>(false)
    };
    Ok(timeout(CONNECT_TIMEOUT * 2, ended)
        .await
        .unwrap_or_else(|_| Err(timed_out("a lost session cannot be ended")))?)
}

/// See that the role may still read and write our tables: which of them a statement was about that
/// failed, nobody knows later.
///
/// # Errors
/// [`StoreError::Unavailable`] names a table that it may not.
pub(super) async fn check_rights(conn: &mut Conn) -> Result<(), StoreError> {
    // Others may have tables in the same schema: ours are those of whoever ran our migrations.
    const SQL: &str = "
        select relname::text from pg_class
        where relnamespace = current_schema()::regnamespace and relkind = 'r'
          and relowner = (select relowner from pg_class where oid = '_sqlx_migrations'::regclass)
          and relname <> '_sqlx_migrations'
          and not (has_table_privilege(oid, 'select') and has_table_privilege(oid, 'insert')
                   and has_table_privilege(oid, 'update') and has_table_privilege(oid, 'delete'))
        order by relname limit 1";
    let Conn::Postgres(held) = conn else {
        return Ok(());
    };
    let refused: Option<String> =
        bounded!(held, |c| sqlx::query_scalar(SQL).fetch_optional(c).await)?;
    match refused {
        None => Ok(()),
        Some(table) => {
            let problem = format!("its role may not read and write the table {table}");
            let error = std::io::Error::new(std::io::ErrorKind::PermissionDenied, problem);
            Err(StoreError::Unavailable(Arc::new(sqlx::Error::Io(error))))
        }
    }
}

/// Whether a transaction was committed whose session is [gone](end); none while that is not
/// decided, or forgotten. The server must be one that [remembers](Session::is_remembered_in) it.
pub(super) async fn was_committed(
    conn: &mut PgConnection,
    xid: i64,
) -> Result<Option<bool>, StoreError> {
    const SQL: &str = "select pg_xact_status($1::text::xid8)";
    let asked = sqlx::query_scalar(SQL)
        .bind(xid.to_string())
        .fetch_one(conn);
    let status: Option<String> = timeout(CONNECT_TIMEOUT, asked)
        .await
        .unwrap_or_else(|_| Err(timed_out("the server does not answer")))?;
    Ok(match status.as_deref() {
        Some("committed") => Some(true),
        Some("aborted") => Some(false),
        _ => None,
    })
}
