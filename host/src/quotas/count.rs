//! Counting between two measurements what this node adds and takes away.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::{Data, Full, Quotas, SLACK, Size, Unit, lock};
use crate::apps::AppId;

/// The counts of what is refused beyond its quota.
pub struct Counts {
    pub(super) quotas: Quotas,
    /// Of deliveries for which no caller waits.
    pub deliveries: Count,
    /// Of versions of scripts.
    pub script_versions: Count,
    /// Of idempotency keys and kept answers.
    pub idempotency_keys: Count,
}

impl Counts {
    /// The quotas.
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// Counts for these quotas.
    pub fn new(quotas: Quotas) -> Arc<Self> {
        let of = |data| Count::new(data, quotas.most(data));
        Arc::new(Self {
            quotas,
            deliveries: of(Data::Deliveries),
            script_versions: of(Data::ScriptVersions),
            idempotency_keys: of(Data::IdempotencyKeys),
        })
    }
}

/// How much each app keeps of one kind of data, as far as this node knows: what was measured last, and
/// what this node did since. Other nodes' part is known once it is measured again, which an app near
/// its quota is soon (but for versions of scripts, which are looked at when one is written).
pub struct Count {
    data: Data,
    most: Size,
    apps: Mutex<HashMap<AppId, Counted>>,
    /// Apps that are to be measured soon.
    wanted: Mutex<HashSet<AppId>>,
    is_wanted: Notify,
}

/// What is known of one app.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    measured: Size,
    /// All that this node did.
    done: Change,
    /// What of it was done when that measurement began.
    done_before: Change,
}

/// What was added, or, below zero, taken away.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Change {
    rows: i64,
    bytes: i64,
}

impl Counted {
    fn known(self) -> Size {
        let rows = self.done.rows.saturating_sub(self.done_before.rows);
        let bytes = self.done.bytes.saturating_sub(self.done_before.bytes);
        Size {
            rows: self.measured.rows.saturating_add_signed(rows),
            bytes: self.measured.bytes.saturating_add_signed(bytes),
        }
    }
}

impl Count {
    fn new(data: Data, most: Size) -> Self {
        Self {
            data,
            most,
            apps: Mutex::default(),
            wanted: Mutex::default(),
            is_wanted: Notify::new(),
        }
    }

    /// Refuse what there is no room for.
    ///
    /// # Errors
    /// [`Full`].
    pub fn check(&self, app: AppId, more: Size) -> Result<(), Full> {
        let known = lock(&self.apps).get(&app).copied().unwrap_or_default();
        let known = known.known();
        let rows = known.rows.saturating_add(more.rows);
        let bytes = known.bytes.saturating_add(more.bytes);
        let is_near = |at: u64, most: u64| at > most - most / SLACK;
        let is_watched = self.data != Data::ScriptVersions;
        if is_watched && (is_near(rows, self.most.rows) || is_near(bytes, self.most.bytes)) {
            self.want(app);
        }
        let full = |unit, used, max| Full {
            data: self.data,
            unit,
            used,
            max,
        };
        if rows > self.most.rows {
            return Err(full(Unit::Rows, known.rows, self.most.rows));
        }
        if bytes > self.most.bytes {
            return Err(full(Unit::Bytes, known.bytes, self.most.bytes));
        }
        Ok(())
    }

    /// Something was added.
    pub fn add(&self, app: AppId, size: Size) {
        let mut apps = lock(&self.apps);
        let done = &mut apps.entry(app).or_default().done;
        done.rows = done.rows.saturating_add_unsigned(size.rows);
        done.bytes = done.bytes.saturating_add_unsigned(size.bytes);
    }

    /// Something went.
    pub fn take(&self, app: AppId, size: Size) {
        let mut apps = lock(&self.apps);
        let done = &mut apps.entry(app).or_default().done;
        done.rows = done.rows.saturating_sub_unsigned(size.rows);
        done.bytes = done.bytes.saturating_sub_unsigned(size.bytes);
    }

    fn want(&self, app: AppId) {
        lock(&self.wanted).insert(app);
        self.is_wanted.notify_one();
    }

    /// Comes back once an app is to be measured.
    pub(super) async fn wanted(&self) {
        self.is_wanted.notified().await;
    }

    /// The apps that are to be measured.
    pub(super) fn take_wanted(&self) -> HashSet<AppId> {
        std::mem::take(&mut *lock(&self.wanted))
    }

    /// What was done in an app: asked before it is measured.
    pub(super) fn done(&self, app: AppId) -> Change {
        let known = lock(&self.apps).get(&app).copied().unwrap_or_default();
        known.done
    }

    /// The same of all apps of which something is known.
    pub(super) fn done_in_all(&self) -> HashMap<AppId, Change> {
        let apps = lock(&self.apps);
        apps.iter().map(|(app, known)| (*app, known.done)).collect()
    }

    /// An app was measured, where `done_before` was done when that began: what is done while it is
    /// measured may be missed, or count twice, until it is measured again.
    pub(super) fn measured(&self, app: AppId, size: Size, done_before: Change) {
        let mut apps = lock(&self.apps);
        let known = apps.entry(app).or_default();
        (known.measured, known.done_before) = (size, done_before);
    }

    /// Forget the other apps.
    pub(super) fn retain(&self, is_there: impl Fn(&AppId) -> bool) {
        lock(&self.apps).retain(|app, _| is_there(app));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(rows: u64, bytes: u64) -> (Count, AppId) {
        let most = Size { rows, bytes };
        (Count::new(Data::Deliveries, most), AppId::new())
    }

    #[test]
    fn an_app_is_full_by_rows_or_by_bytes_and_has_room_again_once_some_went() {
        let (count, app) = count(10, 1000);
        for _ in 0..10 {
            count.check(app, Size::row(10)).unwrap();
            count.add(app, Size::row(10));
        }
        let full = count.check(app, Size::row(10)).unwrap_err();
        assert_eq!((full.unit, full.used, full.max), (Unit::Rows, 10, 10));
        assert!(full.to_string().contains("deliveries_max"), "{full}");
        count.take(app, Size::row(10));
        count.check(app, Size::row(10)).unwrap();
        let full = count.check(app, Size::row(911)).unwrap_err();
        assert_eq!((full.unit, full.used, full.max), (Unit::Bytes, 90, 1000));
        assert!(full.to_string().contains("delivery_bytes_max"), "{full}");
        count.check(AppId::new(), Size::row(911)).unwrap();
    }

    #[test]
    fn what_is_done_while_it_is_measured_counts_on() {
        let (count, app) = count(10, 1000);
        count.add(app, Size::row(100));
        let before = count.done(app);
        count.add(app, Size::row(100));
        count.measured(app, Size { rows: 8, bytes: 80 }, before);
        assert_eq!(count.take_wanted().len(), 0);
        count.check(app, Size::row(1)).unwrap();
        assert_eq!(
            count.take_wanted(),
            HashSet::from([app]),
            "it is nearly full"
        );
        count.check(app, Size { rows: 2, bytes: 2 }).unwrap_err();
    }

    #[test]
    fn two_measurements_at_once_count_nothing_away() {
        let (count, app) = count(10, 1000);
        for _ in 0..8 {
            count.add(app, Size::row(1));
        }
        let (first, second) = (count.done(app), count.done(app));
        for before in [first, second] {
            count.measured(app, Size { rows: 8, bytes: 8 }, before);
        }
        count.check(app, Size { rows: 3, bytes: 0 }).unwrap_err();
    }

    #[test]
    fn what_others_added_and_this_node_took_away_makes_no_debt() {
        let (count, app) = count(10, 1000);
        for _ in 0..50 {
            count.take(app, Size::row(100));
        }
        let before = count.done(app);
        count.measured(
            app,
            Size {
                rows: 10,
                bytes: 500,
            },
            before,
        );
        count.check(app, Size::row(1)).unwrap_err();
    }
}
