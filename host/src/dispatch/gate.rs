//! How many executions there may be at once on this node, and which part of them one app may
//! have.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::leases::Lease;
use crate::apps::AppId;
use crate::budget::Hold;

/// One in so many places at the gate is for deliveries without a waiting caller, so that a
/// backlog never shuts callers out.
const ASYNC_SHARE: usize = 4;
/// One in so many places for deliveries is beyond the reach of any single app, so that one's flood
/// leaves a place for another's single delivery.
const DELIVERIES_KEPT_FREE: usize = 4;
/// The same for all places: fewer, because callers come and go.
const PLACES_KEPT_FREE: usize = 8;

/// How many outcomes may wait to be written before nothing more is taken on: some 50 MiB of them.
const UNSETTLED_MAX: usize = 4_096;

/// Bounds executions below what the sandbox's pool can hold.
#[derive(Clone)]
pub struct Gate {
    limits: Limits,
    // Locked for a few additions and never across an await.
    taken: Arc<Mutex<Taken>>,
}

#[derive(Clone, Copy)]
struct Limits {
    all: usize,
    all_of_one_app: usize,
    deliveries: usize,
    deliveries_of_one_app: usize,
}

#[derive(Default)]
struct Taken {
    all: usize,
    deliveries: usize,
    /// Whether none of them is let in.
    deliveries_held: bool,
    /// Outcomes that are not written yet.
    unsettled: usize,
    /// All, and deliveries without a caller, of each app that has any.
    of_app: HashMap<AppId, (usize, usize)>,
}

/// The right to run one execution; dropping it gives the place back.
pub struct Permit {
    gate: Gate,
    app_id: AppId,
    is_delivery: bool,
    /// The lease on what is run.
    pub(super) lease: Option<Lease>,
    /// What its payload takes of the memory for payloads.
    pub(super) payload: Option<Hold<AppId>>,
}

/// An outcome that waits to be written; dropped when it is.
pub(super) struct Unsettled(Gate);

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Permit").field(&self.app_id).finish()
    }
}

impl Permit {
    /// The row of what is run is there, with its lease.
    pub(super) fn placed(&self) {
        if let Some(lease) = &self.lease {
            lease.placed();
        }
    }
}

impl Gate {
    /// A gate for `executions_max` at once.
    pub fn new(executions_max: usize) -> Self {
        let deliveries = (executions_max / ASYNC_SHARE).max(1);
        let limits = Limits {
            all: executions_max,
            all_of_one_app: executions_max - executions_max / PLACES_KEPT_FREE,
            deliveries,
            deliveries_of_one_app: deliveries - deliveries / DELIVERIES_KEPT_FREE,
        };
        Self {
            limits,
            taken: Arc::default(),
        }
    }

    /// A place for an execution whose caller waits, if there is one.
    pub fn enter(&self, app_id: AppId) -> Option<Permit> {
        self.take(app_id, false)
    }

    /// A place for an execution for which nobody waits, if there is one.
    pub fn enter_without_caller(&self, app_id: AppId) -> Option<Permit> {
        self.take(app_id, true)
    }

    /// Let no delivery in for which nobody waits, or let them in again: they act for somebody, and
    /// whether that somebody still may is not known.
    pub(super) fn hold_deliveries(&self, is_held: bool) {
        self.lock().deliveries_held = is_held;
    }

    /// Whether no delivery is let in for which nobody waits.
    pub(super) fn holds_deliveries(&self) -> bool {
        self.lock().deliveries_held
    }

    /// Count an outcome that is to be written.
    pub(super) fn unsettled(&self) -> Unsettled {
        self.lock().unsettled += 1;
        Unsettled(self.clone())
    }

    /// How many places there are for deliveries now.
    pub fn free_for_deliveries(&self) -> usize {
        let taken = self.lock();
        if taken.unsettled >= UNSETTLED_MAX || taken.deliveries_held {
            return 0;
        }
        (self.limits.deliveries - taken.deliveries).min(self.limits.all - taken.all)
    }

    fn take(&self, app_id: AppId, is_delivery: bool) -> Option<Permit> {
        let limits = self.limits;
        let mut taken = self.lock();
        let (all, deliveries) = taken.of_app.get(&app_id).copied().unwrap_or_default();
        let full = taken.all >= limits.all
            || all >= limits.all_of_one_app
            || taken.unsettled >= UNSETTLED_MAX;
        let full_for_deliveries = taken.deliveries_held
            || taken.deliveries >= limits.deliveries
            || deliveries >= limits.deliveries_of_one_app;
        if full || (is_delivery && full_for_deliveries) {
            return None;
        }
        taken.all += 1;
        taken.deliveries += usize::from(is_delivery);
        taken
            .of_app
            .insert(app_id, (all + 1, deliveries + usize::from(is_delivery)));
        Some(Permit {
            gate: self.clone(),
            app_id,
            is_delivery,
            lease: None,
            payload: None,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        // A panic while it was held cannot have left an addition half-done.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        self.0.lock().unsettled -= 1;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = self.gate.lock();
        taken.all -= 1;
        taken.deliveries -= usize::from(self.is_delivery);
        if let Some((all, deliveries)) = taken.of_app.get_mut(&self.app_id) {
            *all -= 1;
            *deliveries -= usize::from(self.is_delivery);
            if *all == 0 {
                taken.of_app.remove(&self.app_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_of(enter: impl Fn() -> Option<Permit>) -> Vec<Permit> {
        std::iter::from_fn(enter).collect()
    }

    #[test]
    fn a_backlog_leaves_room_for_callers() {
        let gate = Gate::new(16);
        let apps = [AppId::new(), AppId::new(), AppId::new()];
        let background = apps.map(|app| all_of(|| gate.enter_without_caller(app)));
        assert_eq!(background.each_ref().map(Vec::len), [3, 1, 0]);
        let callers = apps.map(|app| all_of(|| gate.enter(app)));
        assert_eq!(callers.iter().map(Vec::len).sum::<usize>(), 12);
        drop(background);
        assert!(gate.enter(apps[2]).is_some());
    }

    #[test]
    fn one_app_cannot_take_every_place() {
        let gate = Gate::new(400);
        let (flooding, other) = (AppId::new(), AppId::new());
        let flood = all_of(|| gate.enter_without_caller(flooding));
        assert_eq!(flood.len(), 75);
        assert!(gate.enter_without_caller(other).is_some());
        let callers = all_of(|| gate.enter(flooding));
        assert_eq!(callers.len() + flood.len(), 350);
        assert!(gate.enter(other).is_some());
        drop((flood, callers));
        assert!(gate.lock().of_app.is_empty());
    }

    #[test]
    fn nothing_is_taken_on_while_too_many_outcomes_are_not_written() {
        let gate = Gate::new(16);
        let app = AppId::new();
        let unsettled: Vec<_> = (0..UNSETTLED_MAX).map(|_| gate.unsettled()).collect();
        assert!(gate.enter(app).is_none() && gate.enter_without_caller(app).is_none());
        assert_eq!(gate.free_for_deliveries(), 0);
        drop(unsettled);
        assert!(gate.enter(app).is_some());
    }

    #[test]
    fn deliveries_can_be_held_while_callers_go_on() {
        let gate = Gate::new(16);
        let app = AppId::new();
        gate.hold_deliveries(true);
        assert!(gate.enter_without_caller(app).is_none() && gate.enter(app).is_some());
        assert_eq!(gate.free_for_deliveries(), 0);
        gate.hold_deliveries(false);
        assert!(gate.enter_without_caller(app).is_some());
    }

    #[test]
    fn the_smallest_gate_lets_one_in() {
        let gate = Gate::new(1);
        let app = AppId::new();
        let one = gate.enter_without_caller(app);
        assert!(one.is_some() && gate.enter(app).is_none());
        drop(one);
        assert!(gate.enter(app).is_some());
    }
}
