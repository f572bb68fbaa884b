//! What waited, and for how long, minute by minute: the outbox knows only what waits now.

use std::sync::Arc;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};

use super::{WAITING_MAX, sql};
use crate::apps::AppId;
use crate::directory::Directory;
use crate::dispatch;
use crate::store::{Db, StoreError};

/// How often is looked; a sample stands for so long.
pub const EVERY: TimeDelta = TimeDelta::minutes(1);
/// How long samples are kept: a day longer than the longest time that the dashboard shows.
const KEPT: TimeDelta = TimeDelta::days(8);

/// What waited in an app at an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// When it was looked at.
    pub at: DateTime<Utc>,
    /// How many deliveries could be claimed then or later, counted up to [`WAITING_MAX`].
    pub waiting: i64,
    /// When the first of them was due.
    pub oldest_due_at: Option<DateTime<Utc>>,
}

impl Backlog {
    /// For how long the first of them had been due, in microseconds.
    pub fn overdue_us(&self) -> u64 {
        let overdue = self.oldest_due_at.map(|due_at| self.at - due_at);
        let us = overdue.and_then(|overdue| overdue.num_microseconds());
        us.map_or(0, |us| u64::try_from(us).unwrap_or(0))
    }
}

/// Write down what waits in every app, and forget what is old. Of several nodes the first to come
/// in a minute does it.
///
/// # Errors
/// When the database fails.
pub async fn sample(db: &Db, apps: Vec<AppId>, now: DateTime<Utc>) -> Result<(), StoreError> {
    let at = minute(now);
    let mut conn = db.read().await?;
    let mut seen = Vec::new();
    for app_id in apps {
        let (waiting, oldest_due_at) =
            dispatch::sql::backlog(&mut conn, app_id, WAITING_MAX).await?;
        if waiting > 0 {
            let backlog = Backlog {
                at,
                waiting,
                oldest_due_at,
            };
            seen.push((app_id, backlog));
        }
    }
    drop(conn);
    db.write(move |tx| {
        Box::pin(async move {
            for (app_id, backlog) in &seen {
                sql::keep(tx, *app_id, backlog).await?;
            }
            sql::forget(tx, at - KEPT).await
        })
    })
    .await
}

fn minute(now: DateTime<Utc>) -> DateTime<Utc> {
    now.duration_trunc(EVERY).unwrap_or(now)
}

/// Look as each minute begins, for ever.
pub async fn keep_sampling(db: Db, directory: Arc<Directory>) {
    loop {
        let now = Utc::now();
        let left = minute(now) + EVERY - now;
        tokio::time::sleep(left.to_std().unwrap_or_default()).await;
        let apps = directory.picture().app_ids();
        if let Err(error) = sample(&db, apps, Utc::now()).await {
            tracing::warn!(%error, "what waits could not be written down");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_later_is_not_overdue() {
        let at = DateTime::from_timestamp(100, 0).unwrap();
        let due = |second| Backlog {
            at,
            waiting: 1,
            oldest_due_at: DateTime::from_timestamp(second, 0),
        };
        assert_eq!(due(40).overdue_us(), 60_000_000);
        assert_eq!(due(101).overdue_us(), 0);
    }
}
