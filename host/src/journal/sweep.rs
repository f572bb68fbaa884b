//! What is past its retention goes from the journal.

use chrono::TimeDelta;

use super::{Channel, sql};
use crate::apps::AppId;
use crate::store::{Db, StoreError};

/// How many entries one transaction removes.
const BATCH: i64 = 500;
/// How many channels are looked at with one statement.
const CHANNELS: i64 = 500;

/// How long entries are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// For so long.
    pub age: TimeDelta,
    /// The newest so many.
    pub entries: i64,
}

/// How long the events of the instance are kept.
pub const EVENTS: Keep = Keep {
    age: TimeDelta::days(1),
    entries: 50_000,
};

/// Remove what is past its retention, which `keep` tells for a channel: none where the channel
/// belongs to nothing any more. Answers how many entries went.
///
/// # Errors
/// When the database fails; what was removed by then stays so.
pub async fn sweep(db: &Db, keep: impl Fn(&Channel) -> Option<Keep>) -> Result<u64, StoreError> {
    sweep_after(db, None, |_| true, keep).await
}

/// The same for the topics of one app.
///
/// # Errors
/// When the database fails; what was removed by then stays so.
pub async fn sweep_app(
    db: &Db,
    app_id: AppId,
    keep: impl Fn(&Channel) -> Option<Keep>,
) -> Result<u64, StoreError> {
    let app_id = app_id.uuid();
    let topic = "".into();
    let before_all = Some(Channel { app_id, topic });
    sweep_after(db, before_all, |channel| channel.app_id == app_id, keep).await
}

/// Sweep the channels after `after`, up to the first that is none of those wanted.
async fn sweep_after(
    db: &Db,
    mut after: Option<Channel>,
    is_wanted: impl Fn(&Channel) -> bool,
    keep: impl Fn(&Channel) -> Option<Keep>,
) -> Result<u64, StoreError> {
    let mut removed = 0;
    loop {
        let mut conn = db.read().await?;
        let channels = sql::channels(&mut conn, after.as_ref(), CHANNELS).await?;
        drop(conn);
        let Some(last) = channels.last() else {
            return Ok(removed);
        };
        after = Some(last.clone());
        for channel in channels {
            if !is_wanted(&channel) {
                return Ok(removed);
            }
            removed += sweep_channel(db, channel.clone(), keep(&channel)).await?;
        }
    }
}

async fn sweep_channel(db: &Db, channel: Channel, keep: Option<Keep>) -> Result<u64, StoreError> {
    let mut removed = 0;
    loop {
        let mut conn = db.read().await?;
        let oldest = sql::oldest(&mut conn, &channel).await?;
        drop(conn);
        // Most channels have nothing to remove, and are not written to for that.
        let is_over = oldest.map_or(keep.is_none(), |oldest| oldest.is_over(keep));
        if !is_over {
            return Ok(removed);
        }
        let channel = channel.clone();
        let batch = db.write::<_, StoreError, _>(move |tx| {
            Box::pin(async move { sql::remove(tx, &channel, keep, BATCH).await })
        });
        let rows = batch.await?;
        removed += rows;
        if rows < BATCH.unsigned_abs() {
            return Ok(removed);
        }
    }
}
