//! What became of a write whose answer was lost.

use std::time::{Duration, Instant};

use super::LaneWorker;
use crate::store::group::Group;
use crate::store::session::{self, Session};
use crate::store::{Conn, StoreError, Tx};

/// For how long a lane tries to find out whether a commit happened whose answer was lost.
pub(super) const DOUBT_MAX: Duration = Duration::from_secs(10);
/// How long it waits before it tries again.
pub(super) const DOUBT_PAUSE: Duration = Duration::from_millis(100);

/// What was not answered.
enum Doubt<'g> {
    /// The commit of a transaction, with its number.
    Commit(Option<i64>),
    /// The only statement of a group.
    Statement(&'g mut Box<dyn Group>),
}

impl LaneWorker {
    /// Find out whether a transaction was committed whose commit was not answered.
    pub(super) async fn find_commit(
        &mut self,
        tx: Tx,
        error: StoreError,
    ) -> Result<(), StoreError> {
        let (session, xid) = (tx.conn.session().cloned(), tx.xid);
        let announcements = tx.announcements;
        drop(tx.conn);
        match self.find_out(session, Doubt::Commit(xid)).await {
            Some(true) => {
                self.announce(announcements);
                Ok(())
            }
            Some(false) => Err(error),
            None => Err(in_doubt(error)),
        }
    }

    /// Find out whether the only statement of a transaction was executed that was not answered.
    pub(super) async fn find_statement(
        &mut self,
        error: StoreError,
        session: Option<Session>,
        group: &mut Box<dyn Group>,
    ) -> Result<(), StoreError> {
        if session.is_none() {
            // SQLite says what happened.
            return Err(error);
        }
        match self.find_out(session, Doubt::Statement(group)).await {
            Some(true) => Ok(()),
            Some(false) => Err(error),
            None => Err(in_doubt(error)),
        }
    }

    /// End the lost session, so that nothing that it was sent is done any more, and ask on a new
    /// connection, until there is an answer or [`DOUBT_MAX`] is over.
    async fn find_out(&mut self, lost: Option<Session>, mut doubt: Doubt<'_>) -> Option<bool> {
        let lost = lost?;
        metrics::counter!("picloud_store_answers_lost_total").increment(1);
        let began = Instant::now();
        loop {
            if let Ok(Some((answer, conn))) = self.ask(&lost, &mut doubt).await {
                self.conn = Some(conn);
                return answer;
            }
            if began.elapsed() > DOUBT_MAX {
                return None;
            }
            tokio::time::sleep(DOUBT_PAUSE).await;
        }
    }

    /// Ask once: none if it is to be asked again, and no answer if it can never be known.
    async fn ask(
        &self,
        lost: &Session,
        doubt: &mut Doubt<'_>,
    ) -> Result<Option<(Option<bool>, Conn)>, StoreError> {
        let mut conn = self.connector.connect().await?;
        let remembers = |now| lost.is_remembered_in(now);
        let is_remembered = conn.session().is_some_and(remembers);
        let Conn::Postgres(held) = &mut conn else {
            return Ok(None);
        };
        if !session::end(held, &lost.id).await? {
            return Ok(None);
        }
        if matches!(doubt, Doubt::Commit(_)) && !is_remembered {
            // What the server says of the transaction may be about another one.
            return Ok(Some((None, conn)));
        }
        let answer = match doubt {
            Doubt::Commit(Some(xid)) => session::was_committed(held, *xid).await?,
            Doubt::Commit(None) => None,
            Doubt::Statement(group) => Some(group.was_written(&mut conn).await?),
        };
        Ok(answer.map(|answer| (Some(answer), conn)))
    }
}

/// That nobody knows whether it was written, because of `error`.
fn in_doubt(error: StoreError) -> StoreError {
    match error {
        StoreError::Unavailable(why) => StoreError::InDoubt(why),
        error => error,
    }
}
