//! Apps that nobody sees: one that is being imported, until all of it is there, and one that was
//! deleted, until all of it is gone.
//!
//! Both can have more rows than one short transaction may write or remove, and others wait for a
//! transaction. So the rows come and go in batches, under an app whose `remove_at` is set: nothing
//! lists it, it has no host, and in place of its slug is its id, which is nobody's slug. When that
//! instant has passed, [`sweep`] removes it. An import moves it ahead with each batch, so that the
//! sweep of another node leaves it alone, and what a crash leaves of one goes by itself.

use std::time::Duration;

use chrono::TimeDelta;

use super::AppId;
use super::sql::leaving as sql;
use crate::dispatch::sql::leaving as deliveries;
use crate::store::{Db, Engine, StoreError, Tx};

/// How long an app that is being imported is kept without a sign of its import.
const KEPT_FOR: TimeDelta = TimeDelta::seconds(30);
/// After how long such a sign is given again.
const KEPT_AGAIN_AFTER: TimeDelta = TimeDelta::seconds(3);
/// How often is looked for apps to remove.
const EVERY: Duration = Duration::from_secs(1);
/// How many entries of the key-value store one transaction removes: each may have a megabyte.
const ENTRIES: i64 = 64;
/// How many records of what happened one transaction removes.
const RECORDS: i64 = 64;
/// How many versions of scripts one transaction removes: each may have 16 MiB of code.
const VERSIONS: i64 = 4;
/// How many apps are looked at in a round.
const APPS: i64 = 100;

/// Begin an app that nobody sees.
///
/// # Errors
/// When the database fails.
pub async fn begin(tx: &mut Tx, id: AppId) -> Result<(), StoreError> {
    let until = tx.now + KEPT_FOR;
    sql::begin(tx, id, until).await
}

/// Keep an app that is being imported for a while longer, and until this transaction ends. Says
/// whether that is so: after too long without a sign, the sweep has it.
///
/// # Errors
/// When the database fails.
pub async fn keep(tx: &mut Tx, id: AppId) -> Result<bool, StoreError> {
    let Some(until) = sql::kept_until(tx, id).await? else {
        return Ok(false);
    };
    let later = tx.now + KEPT_FOR;
    // Not each time: on Postgres every row that is added looks the app up, among all the versions
    // of its row that nobody has cleared away yet.
    if later - until > KEPT_AGAIN_AFTER {
        return sql::keep(tx, id, later).await;
    }
    Ok(true)
}

/// Have the sweep remove an app that was begun, unless it was shown.
///
/// # Errors
/// When the database fails; then the sweep removes it after [`KEPT_FOR`].
pub async fn give_up(db: &Db, id: AppId) -> Result<(), StoreError> {
    let giving_up = db.write::<_, StoreError, _>(move |tx| {
        Box::pin(async move {
            let now = tx.now;
            sql::keep(tx, id, now).await.map(drop)
        })
    });
    giving_up.await
}

/// Remove the apps that are to be removed now, batch by batch; answers how many. Several nodes may
/// sweep at once.
///
/// # Errors
/// When the database fails; what was removed by then stays so.
pub async fn sweep(db: &Db) -> Result<u64, StoreError> {
    let leaving = sql::page(&mut db.read().await?, APPS).await?;
    let mut removed = 0;
    for id in leaving {
        let mut next = Left::Entries(None);
        loop {
            let batch = db.write::<_, StoreError, _>(move |tx| {
                Box::pin(async move { remove_batch(tx, id, next).await })
            });
            match batch.await? {
                Some(Left::Nothing) => {
                    removed += 1;
                    break;
                }
                Some(left) => next = left,
                None => break,
            }
        }
    }
    Ok(removed)
}

/// What is left of an app that is being removed.
enum Left {
    /// Entries of its key-value store after this one, and all that follows.
    Entries(Option<(String, String)>),
    /// Versions of its scripts, and all that follows.
    Versions,
    /// Deliveries, executions, dead letters and kept answers.
    Records,
    /// It is gone.
    Nothing,
}

/// Remove a part of an app. Answers what is left, unless it is not to be removed now, or not wholly
/// because it is still worked on.
async fn remove_batch(tx: &mut Tx, id: AppId, left: Left) -> Result<Option<Left>, StoreError> {
    // An import that would keep it waits for the lock, and then finds that it is late.
    if !sql::lock(tx, id).await? {
        return Ok(None);
    }
    if let Left::Entries(after) = left {
        let last = sql::remove_entries(tx, id, after, ENTRIES).await?;
        return Ok(Some(
            last.map_or(Left::Versions, |last| Left::Entries(Some(last))),
        ));
    }
    if sql::remove_versions(tx, id, VERSIONS).await? > 0 {
        return Ok(Some(Left::Versions));
    }
    // What its last executions write goes with it, so it stays until they have ended. Whether they
    // have is asked before their records are looked for: an end writes them as the delivery goes.
    let waiting = deliveries::remove_waiting(tx, id, RECORDS).await?;
    let is_at_work = deliveries::are_left(tx, id).await?;
    if waiting + sql::remove_records(tx, id, RECORDS).await? > 0 {
        return Ok(Some(Left::Records));
    }
    if is_at_work {
        return Ok(None);
    }
    sql::remove(tx, id).await?;
    Ok(Some(Left::Nothing))
}

/// Have the sweep remove what an earlier process was importing. On SQLite one process at a time has
/// the file, so nobody is at it any more; on Postgres other nodes may be.
///
/// # Errors
/// When the database fails.
pub async fn take_over(db: &Db) -> Result<(), StoreError> {
    let leaving = sql::page(&mut db.read().await?, 1).await?;
    if db.engine() == Engine::Postgres || leaving.is_empty() {
        return Ok(());
    }
    let giving_up =
        db.write::<_, StoreError, _>(|tx| Box::pin(async move { sql::give_up_all(tx).await }));
    giving_up.await
}

/// Sweep again and again, for ever.
pub async fn keep_sweeping(db: Db) {
    loop {
        match sweep(&db).await {
            Ok(0) => {}
            Ok(apps) => tracing::info!(apps, "apps that were deleted, or not imported, are gone"),
            Err(error) => tracing::warn!(%error, "what is left of apps could not be removed"),
        }
        tokio::time::sleep(EVERY).await;
    }
}
