//! The leases that this process holds.
//!
//! A lease is held by what works on its delivery: a [`Lease`] is made before its row is written or
//! claimed, and ends when it is known what became of the row. What is held is renewed, and nothing
//! else: a row whose answer was lost, or whose work ended without an outcome, is given back. Who
//! could not renew a lease in time stops the work: another node may have begun it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::DeliveryId;
use super::sql::leases::IsHeld;

/// A row of the outbox and the claim of it that a lease is for.
pub type Claim = (DeliveryId, u32);

/// All of them.
pub(super) struct Leases {
    // Locked for map operations and never across an await.
    state: Mutex<State>,
    /// There is something to give back.
    pub(super) wake: Notify,
    lasts: Duration,
}

#[derive(Default)]
struct State {
    held: HashMap<Claim, Holding>,
    next_number: u64,
    /// Rows that may be leased to this process although nothing works on them.
    let_go: Vec<Claim>,
    /// What was leased to this process and not held when it was last looked.
    unheld: HashSet<Claim>,
    /// What the clocks said when leases were last looked at before a claim.
    clock: Option<(Instant, DateTime<Utc>)>,
}

struct Holding {
    /// Which lease it is of.
    number: u64,
    since: Instant,
    /// When it ends unless it is renewed: not later than in the database, whose time is counted
    /// from when the statement arrived there.
    until: Instant,
    /// Whether the row is known to be there.
    is_placed: bool,
    over: CancellationToken,
}

/// The lease on one delivery, for as long as something works on it.
pub(super) struct Lease {
    leases: Arc<Leases>,
    claim: Claim,
    number: u64,
    over: CancellationToken,
    has_ended: bool,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lease").field(&self.claim).finish()
    }
}

impl Lease {
    /// The row is there, with this lease on it.
    pub(super) fn placed(&self) {
        if let Some(holding) = self.leases.state().held.get_mut(&self.claim) {
            holding.is_placed = true;
        }
    }

    /// Wait until it is over: another node has the row, or may have it.
    pub(super) async fn over(&self) {
        self.over.cancelled().await;
    }

    /// The row is not leased any more, or never was.
    pub(super) fn end(mut self) {
        self.has_ended = true;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.leases.state();
        // One that was put back uncounted may have been claimed here again, as the same attempt.
        let is_mine = |holding: &Holding| holding.number == self.number;
        if state.held.get(&self.claim).is_some_and(is_mine) {
            state.held.remove(&self.claim);
        }
        if !self.has_ended {
            state.let_go.push(self.claim);
            drop(state);
            self.leases.wake.notify_one();
        }
    }
}

/// What the database is asked to do for the leases of this process.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// To be renewed.
    pub(super) renew: Vec<Claim>,
    /// To be given back.
    pub(super) give_back: Vec<Claim>,
}

impl Leases {
    pub(super) fn new(lasts: Duration) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            wake: Notify::new(),
            lasts,
        })
    }

    /// A lease on the row of `claim`, which is about to be written or was just claimed.
    pub(super) fn take(self: &Arc<Self>, claim: Claim) -> Lease {
        let since = Instant::now();
        let over = CancellationToken::new();
        let mut state = self.state();
        let number = state.next_number;
        state.next_number += 1;
        let holding = Holding {
            number,
            since,
            until: since + self.lasts,
            is_placed: false,
            over: over.clone(),
        };
        state.held.insert(claim, holding);
        drop(state);
        Lease {
            leases: self.clone(),
            claim,
            number,
            over,
            has_ended: false,
        }
    }

    /// The leases on rows that are there of which a fifth is over: the rest is for a database that is
    /// slow to answer.
    fn to_renew(&self) -> Vec<Claim> {
        self.ending(|holding| holding.is_placed)
    }

    /// The same, and those whose rows may be there: that they were written may not have been heard yet.
    pub(super) fn near_their_end(&self) -> Vec<Claim> {
        self.ending(|_| true)
    }

    fn ending(&self, which: impl Fn(&Holding) -> bool) -> Vec<Claim> {
        let before = Instant::now() + self.lasts * 4 / 5;
        let state = self.state();
        let held = state.held.iter();
        let ending = held.filter(|(_, holding)| holding.until <= before && which(holding));
        ending.map(|(claim, _)| *claim).collect()
    }

    /// What the clock said when leases were last cared for before a claim that was committed.
    pub(super) fn clock_seen(&self, at: Instant, now: DateTime<Utc>) {
        self.state().clock = Some((at, now));
    }

    /// How far the clock by which leases end has jumped since it was seen: less than nothing where it
    /// was put back. `now` is what it says.
    pub(super) fn clock_jump(&self, now: DateTime<Utc>) -> TimeDelta {
        let before = self.state().clock;
        before.map_or(TimeDelta::zero(), |(at, then)| {
            let passed = TimeDelta::from_std(at.elapsed()).unwrap_or(TimeDelta::MAX);
            now - then - passed
        })
    }

    /// The leases that are to be renewed before anything is claimed where nobody else claims: all
    /// that are held after a `jump` of the clock, since they look as if they were over.
    pub(super) fn to_renew_after(&self, jump: TimeDelta) -> Vec<Claim> {
        match jump.to_std().is_ok_and(|jump| jump > self.lasts / 5) {
            true => self.state().held.keys().copied().collect(),
            false => self.near_their_end(),
        }
    }

    /// What tells whether a claim is held.
    pub(super) fn is_held(self: &Arc<Self>) -> IsHeld {
        let leases = self.clone();
        Arc::new(move |claim| leases.state().held.contains_key(claim))
    }

    /// What is to be done now.
    pub(super) fn due(&self) -> Due {
        Due {
            renew: self.to_renew(),
            give_back: std::mem::take(&mut self.state().let_go),
        }
    }

    /// These could not be given back.
    pub(super) fn failed(&self, give_back: Vec<Claim>) {
        self.state().let_go.extend(give_back);
    }

    /// These were renewed by a statement that was sent at `sent`.
    pub(super) fn renewed(&self, sent: Instant, ids: &[DeliveryId]) {
        let ids: HashSet<DeliveryId> = ids.iter().copied().collect();
        let mut state = self.state();
        for ((id, _), holding) in &mut state.held {
            if ids.contains(id) {
                holding.until = holding.until.max(sent + self.lasts);
            }
        }
    }

    /// `leased` are leased to this process. What of `asked` is not among them is over; what is among
    /// them and not held twice in a row is given back: in between, its claim may not have been heard of
    /// here yet.
    pub(super) fn looked(&self, asked: &[Claim], leased: &[Claim]) {
        let leased: HashSet<Claim> = leased.iter().copied().collect();
        let mut state = self.state();
        for claim in asked.iter().filter(|claim| !leased.contains(*claim)) {
            if let Some(holding) = state.held.get(claim) {
                holding.over.cancel();
            }
        }
        let unheld = leased
            .iter()
            .filter(|claim| !state.held.contains_key(*claim));
        let unheld: HashSet<Claim> = unheld.copied().collect();
        let stuck: Vec<Claim> = unheld.intersection(&state.unheld).copied().collect();
        if !stuck.is_empty() {
            metrics::counter!("picloud_leases_rescued_total").increment(stuck.len() as u64);
            let first: Vec<_> = stuck.iter().take(3).map(|(id, _)| id.to_string()).collect();
            tracing::warn!(
                count = stuck.len(),
                delivery_ids = first.join(" "),
                "deliveries were leased to this node and nothing worked on them; given back"
            );
            state.let_go.extend(stuck);
            self.wake.notify_one();
        }
        state.unheld = unheld;
    }

    /// End the leases that were not renewed in time. Answers how many.
    pub(super) fn fence(&self) -> usize {
        let now = Instant::now();
        let state = self.state();
        let late = state.held.values().filter(|holding| {
            holding.is_placed && holding.until <= now && !holding.over.is_cancelled()
        });
        late.map(|holding| holding.over.cancel()).count()
    }

    /// How many are held, and for how long the oldest.
    pub(super) fn held(&self) -> (usize, Duration) {
        let state = self.state();
        let oldest = state.held.values().map(|holding| holding.since.elapsed());
        (state.held.len(), oldest.max().unwrap_or_default())
    }

    /// How long one lasts.
    pub(super) fn lasts(&self) -> Duration {
        self.lasts
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held cannot have left a map operation half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> Claim {
        (DeliveryId::new(), 1)
    }

    fn leases(lasts_ms: u64) -> Arc<Leases> {
        Leases::new(Duration::from_millis(lasts_ms))
    }

    fn is_over(lease: &Lease) -> bool {
        lease.over.is_cancelled()
    }

    #[test]
    fn only_what_is_held_and_placed_is_renewed() {
        let leases = leases(0);
        let (one, two) = (claim(), claim());
        let held = leases.take(one);
        held.placed();
        let unplaced = leases.take(two);
        assert_eq!(leases.due().renew, [one]);
        assert_eq!(leases.near_their_end().len(), 2, "it is not claimed here");
        held.end();
        unplaced.end();
        let due = leases.due();
        assert!(due.renew.is_empty() && due.give_back.is_empty());
    }

    #[test]
    fn what_was_dropped_without_an_end_is_given_back_once() {
        let leases = leases(60_000);
        let one = claim();
        drop(leases.take(one));
        let due = leases.due();
        assert_eq!(due.give_back, [one]);
        assert!(leases.due().give_back.is_empty());
        leases.failed(due.give_back);
        assert_eq!(leases.due().give_back, [one]);
    }

    #[test]
    fn what_is_held_once_more_is_not_given_back() {
        let leases = leases(60_000);
        let (one, two) = (claim(), claim());
        drop(leases.take(one));
        drop(leases.take(two));
        let due = leases.due();
        let held = leases.take(one);
        let is_held = leases.is_held();
        let given_back: Vec<_> = due
            .give_back
            .iter()
            .filter(|claim| !is_held(claim))
            .collect();
        assert_eq!(given_back, [&two]);
        held.end();
    }

    #[test]
    fn all_are_renewed_once_the_clock_has_jumped() {
        let leases = leases(60_000);
        let one = claim();
        let held = leases.take(one);
        held.placed();
        let (now, hour) = (Utc::now(), TimeDelta::hours(1));
        let jumps = [now, now, now + hour, now].map(|now| {
            let jump = leases.clock_jump(now);
            leases.clock_seen(Instant::now(), now);
            jump
        });
        let is_about = |jump: TimeDelta, length: TimeDelta| (jump - length).abs().num_seconds() < 5;
        for (jump, length) in
            jumps
                .into_iter()
                .zip([TimeDelta::zero(), TimeDelta::zero(), hour, -hour])
        {
            assert!(is_about(jump, length), "{jumps:?}");
        }
        assert_eq!(leases.to_renew_after(jumps[2]), [one]);
        for jump in [jumps[1], jumps[3], TimeDelta::seconds(5)] {
            assert!(leases.to_renew_after(jump).is_empty());
        }
        held.end();
    }

    #[test]
    fn a_lease_that_the_database_does_not_know_is_over() {
        let leases = leases(60_000);
        let (one, two) = (claim(), claim());
        let (lost, kept) = (leases.take(one), leases.take(two));
        leases.looked(&[one, two], &[two]);
        assert!(is_over(&lost) && !is_over(&kept));
    }

    #[test]
    fn what_is_leased_and_not_held_is_given_back_when_seen_twice() {
        let leases = leases(60_000);
        let one = claim();
        leases.looked(&[], &[one]);
        assert!(leases.due().give_back.is_empty());
        leases.looked(&[], &[one]);
        assert_eq!(leases.due().give_back, [one]);
    }

    #[test]
    fn a_lease_that_was_not_renewed_in_time_is_fenced() {
        let short = leases(0);
        let lease = short.take(claim());
        assert_eq!(short.fence(), 0, "its row may not be there yet");
        lease.placed();
        assert_eq!(short.fence(), 1);
        assert!(is_over(&lease));
        assert_eq!(short.fence(), 0);
        let long = leases(60_000);
        let lease = long.take(claim());
        lease.placed();
        assert_eq!(long.fence(), 0);
        drop(lease);
    }

    #[test]
    fn a_lease_that_was_not_renewed_ends_though_its_row_is_still_leased() {
        let leases = leases(0);
        let (one, two) = (claim(), claim());
        let (locked, renewed) = (leases.take(one), leases.take(two));
        locked.placed();
        renewed.placed();
        let later = Instant::now() + Duration::from_secs(60);
        leases.renewed(later, &[two.0]);
        leases.looked(&[one, two], &[one, two]);
        assert_eq!(leases.fence(), 1);
        assert!(is_over(&locked) && !is_over(&renewed));
    }
}
