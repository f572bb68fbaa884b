//! Measuring in small steps, and removing what is beyond a quota.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use chrono::{TimeDelta, Utc};
use uuid::Uuid;

use super::sql::{self, Aged};
use super::{Data, EVERY, Meter, SOON, Size, lock};
use crate::apps::AppId;
use crate::journal::{self, sweep::Keep};
use crate::store::StoreError;

/// How many rows one transaction removes: few, because each may have megabytes.
const BATCH: i64 = 50;

/// Whether somebody waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// At once.
    AtOnce,
    /// For a tenth of the time.
    Beside,
}

impl Pace {
    async fn pause_after(self, began: Instant) {
        if self == Self::Beside {
            tokio::time::sleep(began.elapsed() * 9).await;
        }
    }
}

/// How many rows were removed because an app had too many bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Dead letters.
    pub dead_letters: u64,
    /// Executions.
    pub executions: u64,
    /// Messages.
    pub messages: u64,
}

impl Meter {
    /// Measure all apps, and keep them within their quotas, for ever. Beside it, and not after it, the
    /// key-value stores that are nearly full: of all apps together there may be much to measure.
    pub async fn keep_measuring(self: Arc<Self>) {
        let all = async {
            loop {
                self.measure_all(Pace::Beside).await;
                tokio::time::sleep(EVERY).await;
            }
        };
        let wanted = async {
            loop {
                self.is_wanted.notified().await;
                tokio::time::sleep(SOON).await;
                let wanted = std::mem::take(&mut *lock(&self.wanted));
                for app in wanted {
                    tell(app, self.measure_kv(app, Pace::Beside).await);
                }
            }
        };
        tokio::join!(all, wanted);
    }

    /// Measure all apps now, and remove what is beyond their quotas.
    pub async fn enforce(&self) -> Removed {
        self.measure_all(Pace::AtOnce).await
    }

    async fn measure_all(&self, pace: Pace) -> Removed {
        let apps: HashSet<AppId> = self.directory.picture().app_ids().into_iter().collect();
        let mut removed = Removed::default();
        for app in &apps {
            tell(*app, self.measure(*app, pace, &mut removed).await);
        }
        let is_there = |app: &AppId| apps.contains(app);
        lock(&self.kv).retain(|app, _| is_there(app));
        let mut known = lock(&self.known);
        known.retain(|app, _| is_there(app));
        for data in Data::ALL {
            let sum: u64 = known.values().map(|usage| usage.of(data).bytes).sum();
            metrics::gauge!("picloud_stored_bytes", "data" => data.as_str()).set(sum as f64);
            let most = known.values().map(|usage| usage.of(data).bytes).max();
            let part = most.unwrap_or_default() as f64 / self.quotas.of(data) as f64;
            metrics::gauge!("picloud_stored_quota_used", "data" => data.as_str()).set(part);
        }
        removed
    }

    async fn measure(
        &self,
        app: AppId,
        pace: Pace,
        removed: &mut Removed,
    ) -> Result<(), StoreError> {
        self.measure_kv(app, pace).await?;
        removed.dead_letters += self.measure_aged(app, Aged::DeadLetters, pace).await?;
        removed.executions += self.measure_aged(app, Aged::Executions, pace).await?;
        removed.messages += self.measure_messages(app, pace).await?;
        Ok(())
    }

    fn know(&self, app: AppId, data: Data, size: Size) {
        let mut known = lock(&self.known);
        let usage = known.entry(app).or_default();
        usage.sizes.insert(data, size);
        if usage.sizes.len() == Data::ALL.len() {
            usage.measured_at = Some(Utc::now());
        }
    }

    async fn measure_kv(&self, app: AppId, pace: Pace) -> Result<(), StoreError> {
        // What is written while it is measured may count twice, until it is measured again.
        let written = lock(&self.kv).get(&app).map_or(0, |of_app| of_app.written);
        let mut size = Size::default();
        let mut after = (String::new(), String::new());
        loop {
            let began = Instant::now();
            let step = sql::kv_step(&mut self.db.read().await?, app, &after).await?;
            let Some(step) = step else { break };
            size.rows += step.size.rows;
            size.bytes += step.size.bytes;
            after = step.last;
            pace.pause_after(began).await;
        }
        let mut kv = lock(&self.kv);
        let of_app = kv.entry(app).or_default();
        of_app.measured = size.bytes;
        // Another measurement may have ended meanwhile.
        of_app.written = of_app.written.saturating_sub(written);
        drop(kv);
        self.know(app, Data::Kv, size);
        Ok(())
    }

    /// Measure what has an age, and remove the oldest beyond the quota. Answers how many went.
    async fn measure_aged(&self, app: AppId, aged: Aged, pace: Pace) -> Result<u64, StoreError> {
        let bytes_max = self.quotas.of(aged.data());
        let mut size = Size::default();
        // The step in which the quota is reached, and what there is room for in it. From the newest on:
        // what another node removes meanwhile is older than what is found here.
        let mut reached = None;
        let mut before = Uuid::max();
        loop {
            let began = Instant::now();
            let step = sql::aged_step(&mut self.db.read().await?, app, aged, before).await?;
            let Some(step) = step else { break };
            if size.bytes <= bytes_max && size.bytes + step.size.bytes > bytes_max {
                reached = Some((before, bytes_max - size.bytes));
            }
            size.rows += step.size.rows;
            size.bytes += step.size.bytes;
            before = step.last;
            pace.pause_after(began).await;
        }
        let last = match reached {
            None => None,
            Some((before, room)) => {
                let mut conn = self.db.read().await?;
                sql::aged_beyond(&mut conn, app, aged, before, room).await?
            }
        };
        let Some(last) = last else {
            self.know(app, aged.data(), size);
            return Ok(0);
        };
        let mut removed = Size::default();
        loop {
            let batch = self.db.write::<_, StoreError, _>(move |tx| {
                Box::pin(sql::remove_aged(tx, app, aged, last, BATCH))
            });
            let sizes = batch.await?;
            removed.rows += sizes.len() as u64;
            removed.bytes += sizes.iter().sum::<u64>();
            if sizes.len() < BATCH as usize {
                break;
            }
        }
        self.know(
            app,
            aged.data(),
            Size {
                rows: size.rows.saturating_sub(removed.rows),
                bytes: size.bytes.saturating_sub(removed.bytes),
            },
        );
        note_removed(app, aged.data(), removed.rows);
        Ok(removed.rows)
    }

    /// Measure the messages of an app, and remove the oldest beyond the quota. Answers how many went.
    async fn measure_messages(&self, app: AppId, pace: Pace) -> Result<u64, StoreError> {
        let mut size = Size::default();
        let mut after = (String::new(), 0);
        loop {
            let began = Instant::now();
            let step = sql::messages_step(&mut self.db.read().await?, app, &after).await?;
            let Some(step) = step else { break };
            size.rows += step.size.rows;
            size.bytes += step.size.bytes;
            after = step.last;
            pace.pause_after(began).await;
        }
        let mut removed = 0;
        if size.bytes > self.quotas.messages {
            let mut conn = self.db.read().await?;
            let oldest = sql::oldest_kept_message(&mut conn, app, self.quotas.messages).await?;
            drop(conn);
            let picture = self.directory.picture();
            // Where even the newest takes more than there may be, none is kept.
            let age = oldest.map_or(TimeDelta::zero(), |at| Utc::now() - at);
            let keep = |keep: Keep| Keep {
                age: keep.age.min(age),
                ..keep
            };
            removed = journal::sweep::sweep_app(&self.db, app, |channel| {
                channel.keep(&picture).map(keep)
            })
            .await?;
            note_removed(app, Data::Messages, removed);
            size.bytes = size.bytes.min(self.quotas.messages);
            size.rows -= removed.min(size.rows);
        }
        self.know(app, Data::Messages, size);
        Ok(removed)
    }
}

fn note_removed(app_id: AppId, data: Data, removed: u64) {
    if removed == 0 {
        return;
    }
    let (kind, setting) = (data.as_str(), data.setting());
    tracing::warn!(%app_id, data = kind, removed, setting, "the app kept more bytes than its quota; the oldest were removed");
    metrics::counter!("picloud_quota_removed_total", "data" => kind).increment(removed);
}

fn tell(app_id: AppId, measured: Result<(), StoreError>) {
    if let Err(error) = measured {
        tracing::warn!(%app_id, %error, "what an app keeps could not be measured");
    }
}
