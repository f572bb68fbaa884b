//! Retention: what is over goes after a while, so that the disk stays bounded.

pub mod api;
pub mod sql;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

use crate::directory::Directory;
use crate::store::{Db, StoreError};
use crate::{idempotency, journal};

/// How often is swept.
const EVERY: Duration = Duration::from_secs(60);
/// How many rows one transaction removes: few enough that nobody waits long for it.
const BATCH: i64 = 500;

/// How long what is over is kept.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Dead letters, whatever their state.
    pub dead_letters: TimeDelta,
    /// Abandoned executions.
    pub abandoned_executions: TimeDelta,
    /// Executions and their logs.
    pub executions: TimeDelta,
    /// Entries of the audit log.
    pub audit: TimeDelta,
}

/// How many rows a sweep removed, or would.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "Removed")]
pub struct Swept {
    /// Dead letters.
    pub dead_letters: u64,
    /// Abandoned executions.
    pub abandoned_executions: u64,
    /// Executions.
    pub executions: u64,
    /// Entries of the audit log.
    pub audit: u64,
    /// Idempotency keys.
    pub idempotency_keys: u64,
}

/// A table whose rows have an age: their ids are UUIDs of version 7, which begin with the time.
#[derive(Debug, Clone, Copy)]
pub enum Aged {
    /// `dead_letters`
    DeadLetters,
    /// `abandoned_executions`
    AbandonedExecutions,
    /// `executions`
    Executions,
    /// `audit`
    Audit,
}

/// The smallest id that can have been made at `at`.
fn first_id_at(at: DateTime<Utc>) -> Uuid {
    let millis = u64::try_from(at.timestamp_millis()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid()
}

impl Retention {
    fn of(&self, aged: Aged) -> TimeDelta {
        match aged {
            Aged::DeadLetters => self.dead_letters,
            Aged::AbandonedExecutions => self.abandoned_executions,
            Aged::Executions => self.executions,
            Aged::Audit => self.audit,
        }
    }

    /// Count what a sweep would remove.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn dry_run(&self, db: &Db) -> Result<Swept, StoreError> {
        let mut conn = db.read().await?;
        let now = Utc::now();
        let before = |aged| first_id_at(now - self.of(aged));
        Ok(Swept {
            dead_letters: sql::count(&mut conn, Aged::DeadLetters, before(Aged::DeadLetters))
                .await?,
            abandoned_executions: sql::count(
                &mut conn,
                Aged::AbandonedExecutions,
                before(Aged::AbandonedExecutions),
            )
            .await?,
            executions: sql::count(&mut conn, Aged::Executions, before(Aged::Executions)).await?,
            audit: sql::count(&mut conn, Aged::Audit, before(Aged::Audit)).await?,
            idempotency_keys: sql::count_keys(&mut conn, now).await?,
        })
    }

    /// Remove what is over, batch by batch. Several nodes may sweep at once: whoever comes second
    /// finds less.
    ///
    /// # Errors
    /// When the database fails; what was removed by then stays so.
    pub async fn sweep(&self, db: &Db) -> Result<Swept, StoreError> {
        let swept = Swept {
            dead_letters: self.remove(db, Some(Aged::DeadLetters)).await?,
            abandoned_executions: self.remove(db, Some(Aged::AbandonedExecutions)).await?,
            executions: self.remove(db, Some(Aged::Executions)).await?,
            audit: self.remove(db, Some(Aged::Audit)).await?,
            idempotency_keys: self.remove(db, None).await?,
        };
        if swept != Swept::default() {
            tracing::info!(?swept, "rows past their retention were removed");
        }
        Ok(swept)
    }

    /// Remove what is over of one kind; idempotency keys, which say themselves when they are over,
    /// when none is named.
    async fn remove(&self, db: &Db, aged: Option<Aged>) -> Result<u64, StoreError> {
        let keep = aged.map(|aged| (aged, self.of(aged)));
        let mut removed = 0;
        loop {
            let batch = db.write::<_, StoreError, _>(move |tx| {
                Box::pin(async move {
                    let now = tx.now;
                    match keep {
                        Some((aged, keep)) => {
                            sql::remove(tx, aged, first_id_at(now - keep), BATCH).await
                        }
                        None => idempotency::sql::sweep(tx, now, BATCH).await,
                    }
                })
            });
            let rows = batch.await?;
            removed += rows;
            if rows < BATCH.unsigned_abs() {
                return Ok(removed);
            }
        }
    }

    /// Sweep again and again, for ever.
    pub async fn keep_sweeping(self, db: Db, directory: Arc<Directory>) {
        loop {
            tokio::time::sleep(EVERY).await;
            if let Err(error) = self.sweep(&db).await {
                tracing::warn!(%error, "rows past their retention could not be removed");
            }
            let picture = directory.picture();
            if let Err(error) = journal::sweep::sweep(&db, |channel| channel.keep(&picture)).await {
                tracing::warn!(%error, "the journal could not be swept");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_its_age() {
        let before = first_id_at(Utc::now() - TimeDelta::seconds(1));
        let now = Uuid::now_v7();
        let after = first_id_at(Utc::now() + TimeDelta::seconds(1));
        assert!(before < now && now < after);
    }
}
