//! Whether somebody else keeps a table locked that calls need, as a migration does or a hand in
//! `psql`.
//!
//! A statement that waits for such a lock looks like one that works, and whatever begins meanwhile
//! waits with it: a script holds its instance, and the memory of it, until its time limit. So a node
//! tries whether it would have to wait, each second and at once when a statement takes long, and
//! refuses calls while it would.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;

use super::session::timed_out;
use super::{Conn, StoreError, bounded};

/// How often is tried where nothing takes long.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long is waited at least between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// How long one try may take: less than after what the server is asked about a statement, since others
/// would wait for that answer.
const LOOK_MAX: Duration = Duration::from_millis(1_500);
/// How long a statement takes before a lock is suspected.
pub(super) const SUSPECTED_AFTER: Duration = Duration::from_millis(250);

/// Locks as a write does, which has to wait for a little more than a read has, and lets go at once: the
/// statements are one transaction. Half a second is longer than the locks of a migration that adds a
/// column, and shorter than what Postgres takes for a deadlock.
const TRY: &str = "
    set local lock_timeout = '500ms';
    lock table outbox, executions, abandoned_executions, dead_letters, idempotency_keys,
        kv, secrets, journal, channels
    in row exclusive mode";
/// How Postgres says that a lock was not to be had in time.
const NOT_TO_BE_HAD: &str = "55P03";

/// Since when a table is locked, if one is.
#[derive(Default)]
pub(super) struct Locks {
    since: Mutex<Option<Instant>>,
    suspected: Notify,
}

impl Locks {
    /// A statement takes long: find out whether that is for a lock.
    pub(super) fn suspect(&self) {
        self.suspected.notify_one();
    }

    /// For how long a table has been locked, if one is.
    pub(super) fn last(&self) -> Option<Duration> {
        self.since().map(|since| since.elapsed())
    }

    /// Wait until it is time to try again: soon while a table is locked, so that its end is noticed.
    pub(super) async fn are_due(&self) {
        tokio::time::sleep(PAUSE).await;
        if self.last().is_some() {
            return;
        }
        let _ = timeout(LOOK_EVERY, self.suspected.notified()).await;
    }

    /// Try whether a write would have to wait. Where that cannot be known, nothing is noted: whatever
    /// keeps us from it is told elsewhere.
    ///
    /// # Errors
    /// Why it cannot be known.
    pub(super) async fn look(&self, conn: &mut Conn) -> Result<(), StoreError> {
        let Conn::Postgres(held) = conn else {
            return Ok(());
        };
        let began = Instant::now();
        let trying = async { bounded!(held, |c| sqlx::raw_sql(TRY).execute(c).await) };
        let tried = timeout(LOOK_MAX, trying).await;
        let tried = tried.map_err(|_| timed_out("a try for locks is not answered"))?;
        let is_locked = match tried {
            Ok(_) => false,
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(NOT_TO_BE_HAD) => {
                true
            }
            Err(error) => return Err(error.into()),
        };
        let mut since = self.since();
        match (is_locked, *since) {
            (true, None) => *since = Some(began),
            (false, Some(_)) => *since = None,
            _ => {}
        }
        Ok(())
    }

    fn since(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        // A panic while it was held cannot have left it half-written.
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
