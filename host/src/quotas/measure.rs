//! Measuring in small steps, and removing what is beyond a quota.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use chrono::{TimeDelta, Utc};
use uuid::Uuid;

use super::objects::Object;
use super::sql::{self, Aged};
use super::{Count, Data, EVERY, Full, Meter, SOON, Size, Unit, lock};
use crate::apps::AppId;
use crate::journal::{self, sweep::Keep};
use crate::scripts::ScriptId;
use crate::store::{StoreError, Tx};

/// How many rows one transaction removes: few, because each may have megabytes.
const BATCH: i64 = 50;
/// How many old versions of scripts go at most for a new one.
const VERSIONS_MAX: i64 = 500;

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
    /// Measure all apps, and keep them within their quotas, for ever. Beside it, and not after it, what
    /// is nearly full: of all apps together there may be much to measure.
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
        let Self { counts, .. } = &*self;
        let deliveries = async {
            loop {
                wanted_soon(&counts.deliveries).await;
                if let Err(error) = self.measure_deliveries(Pace::Beside).await {
                    tracing::warn!(%error, "the deliveries that wait could not be measured");
                }
            }
        };
        let keys = async {
            loop {
                for app in wanted_soon(&counts.idempotency_keys).await {
                    tell(app, self.measure_keys(app, Pace::Beside).await);
                }
            }
        };
        tokio::join!(all, wanted, deliveries, keys);
    }

    /// Measure all apps now, and remove what is beyond their quotas.
    pub async fn enforce(&self) -> Removed {
        self.measure_all(Pace::AtOnce).await
    }

    async fn measure_all(&self, pace: Pace) -> Removed {
        let apps = self.directory.picture().app_ids();
        let mut removed = Removed::default();
        if let Err(error) = self.measure_deliveries(pace).await {
            tracing::warn!(%error, "the deliveries that wait could not be measured");
        }
        for app in apps {
            tell(app, self.measure(app, pace, &mut removed).await);
        }
        // Some were made meanwhile.
        let picture = self.directory.picture();
        let is_there = |app: &AppId| picture.app(*app).is_some();
        lock(&self.kv).retain(|app, _| is_there(app));
        self.counts.deliveries.retain(is_there);
        self.counts.script_versions.retain(is_there);
        self.counts.idempotency_keys.retain(is_there);
        let mut known = lock(&self.known);
        known.retain(|app, _| is_there(app));
        for data in Data::ALL {
            let sum: u64 = known.values().map(|usage| usage.of(data).bytes).sum();
            metrics::gauge!("picloud_stored_bytes", "data" => data.as_str()).set(sum as f64);
            let most = self.quotas.most(data);
            let parts = known.values().map(|usage| usage.of(data).part_of(most));
            let part = parts.fold(0.0, f64::max);
            metrics::gauge!("picloud_stored_quota_used", "data" => data.as_str()).set(part);
        }
        for object in Object::ALL {
            let most = known.values().map(|usage| usage.objects(object)).max();
            let part = most.unwrap_or_default() as f64 / self.quotas.objects as f64;
            metrics::gauge!("picloud_objects_limit_used", "kind" => object.as_str()).set(part);
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
        self.measure_versions(app, pace).await?;
        self.measure_keys(app, pace).await?;
        for object in Object::ALL {
            let count = sql::objects(&mut self.db.read().await?, app, object).await?;
            let mut known = lock(&self.known);
            known.entry(app).or_default().objects.insert(object, count);
        }
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

    /// Measure the deliveries that wait, of all apps at once.
    async fn measure_deliveries(&self, pace: Pace) -> Result<(), StoreError> {
        let count = &self.counts.deliveries;
        let done = count.done_in_all();
        let mut sizes: HashMap<AppId, Size> = HashMap::new();
        // What comes later has later ids, and comes for ever.
        let until = sql::last_delivery(&mut self.db.read().await?).await?;
        let mut after = Uuid::nil();
        loop {
            let began = Instant::now();
            let step = sql::outbox_step(&mut self.db.read().await?, after, until).await?;
            let Some(step) = step else { break };
            for (app, size) in step.size {
                let of_app = sizes.entry(app).or_default();
                of_app.rows += size.rows;
                of_app.bytes += size.bytes;
            }
            after = step.last;
            pace.pause_after(began).await;
        }
        let mut apps: HashSet<AppId> = self.directory.picture().app_ids().into_iter().collect();
        apps.extend(done.keys());
        for app in apps {
            let size = sizes.get(&app).copied().unwrap_or_default();
            count.measured(app, size, done.get(&app).copied().unwrap_or_default());
            self.know(app, Data::Deliveries, size);
        }
        Ok(())
    }

    /// Measure the versions of an app's scripts.
    async fn measure_versions(&self, app: AppId, pace: Pace) -> Result<(), StoreError> {
        let done = self.counts.script_versions.done(app);
        let mut size = Size::default();
        let mut after = (Uuid::nil(), 0);
        loop {
            let began = Instant::now();
            let step = sql::versions_step(&mut self.db.read().await?, app, &after).await?;
            let Some(step) = step else { break };
            size.rows += step.size.rows;
            size.bytes += step.size.bytes;
            after = step.last;
            pace.pause_after(began).await;
        }
        self.counts.script_versions.measured(app, size, done);
        self.know(app, Data::ScriptVersions, size);
        Ok(())
    }

    /// Measure the idempotency keys of an app.
    async fn measure_keys(&self, app: AppId, pace: Pace) -> Result<(), StoreError> {
        let done = self.counts.idempotency_keys.done(app);
        let mut size = Size::default();
        let mut after = (Uuid::nil(), String::new());
        loop {
            let began = Instant::now();
            let step = sql::idempotency_keys_step(&mut self.db.read().await?, app, &after).await?;
            let Some(step) = step else { break };
            size.rows += step.size.rows;
            size.bytes += step.size.bytes;
            after = step.last;
            pace.pause_after(began).await;
        }
        self.counts.idempotency_keys.measured(app, size, done);
        self.know(app, Data::IdempotencyKeys, size);
        Ok(())
    }

    /// What has to go so that there is room for another version of a script in an app, whose code has so
    /// many bytes: nothing, or the oldest versions to which nothing refers. Whoever writes the new one
    /// [removes](OldVersions::remove) them in the same transaction, and [notes it](Self::note_version) then.
    ///
    /// # Errors
    /// [`Full`] where that is not enough, or when the database fails.
    pub async fn room_for_version<E>(&self, app: AppId, bytes: usize) -> Result<OldVersions, E>
    where
        E: From<Full> + From<StoreError>,
    {
        let version = Size::row(bytes as u64 + sql::ROW_BYTES);
        if self.counts.script_versions.check(app, version).is_ok() {
            return Ok(OldVersions::default());
        }
        let max = self.quotas.script_versions;
        let mut conn = self.db.read().await?;
        let used = sql::versions_bytes(&mut conn, app).await?;
        let beyond = (used + version.bytes).saturating_sub(max);
        if beyond == 0 {
            return Ok(OldVersions::default());
        }
        let old = sql::versions_to_remove(&mut conn, app, beyond, VERSIONS_MAX).await?;
        let bytes = old.iter().map(|(.., bytes)| bytes.unsigned_abs()).sum();
        if bytes < beyond {
            let (data, unit) = (Data::ScriptVersions, Unit::Bytes);
            let full = Full {
                data,
                unit,
                used,
                max,
            };
            return Err(full.into());
        }
        let rows = old.len() as u64;
        let versions = old
            .into_iter()
            .map(|(script, version, _)| (script, version));
        Ok(OldVersions {
            versions: versions.collect(),
            size: Size { rows, bytes },
        })
    }

    /// Another version of a script was written, and `old` were removed for it.
    pub fn note_version(&self, app: AppId, bytes: usize, old: &OldVersions) {
        let version = Size::row(bytes as u64 + sql::ROW_BYTES);
        self.counts.script_versions.add(app, version);
        self.counts.script_versions.take(app, old.size);
        note_removed(app, Data::ScriptVersions, old.size.rows);
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

/// Versions of scripts that go so that there is room for a new one.
#[derive(Debug, Clone, Default)]
pub struct OldVersions {
    versions: Vec<(ScriptId, i64)>,
    size: Size,
}

impl OldVersions {
    /// Remove them, but for one that is current by now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn remove(&self, tx: &mut Tx) -> Result<(), StoreError> {
        for (script_id, version) in &self.versions {
            sql::remove_version(tx, *script_id, *version).await?;
        }
        Ok(())
    }
}

/// The apps that are to be measured, a little after the first of them came to be.
async fn wanted_soon(count: &Count) -> HashSet<AppId> {
    count.wanted().await;
    tokio::time::sleep(SOON).await;
    count.take_wanted()
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
