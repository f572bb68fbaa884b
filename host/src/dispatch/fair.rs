//! Claiming for all apps in turn, so that one's flood delays nobody else.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use chrono::{DateTime, TimeDelta, Utc};

use super::DeliveryId;
use super::gate::Permit;
use super::outbox::Outbox;
use super::sql::{self, Claimed};
use crate::apps::AppId;
use crate::store::{Engine, StoreError, Tx};

/// How many rows one claim takes at most.
const CLAIM_MAX: usize = 128;

/// What a claim found.
pub(super) struct Claims {
    pub(super) taken: Vec<(Claimed, Permit)>,
    /// Whether rows are due that were left, for want of room or because there were so many.
    pub(super) more: bool,
    /// How long until the next row is due that is not due yet.
    pub(super) next_due_in: Option<TimeDelta>,
    /// What was held here and is leased for longer now.
    pub(super) renewed: Vec<DeliveryId>,
    /// When it was claimed, by both clocks.
    pub(super) at: (Instant, DateTime<Utc>),
}

/// What a clock may be put back by unnoticed: what waits waits for as much longer.
pub(super) const CLOCK_STEP: TimeDelta = TimeDelta::seconds(1);

/// Claim for each app that has due rows, in turn, as much as fits its share of the gate: however
/// many one app has, another's single one is among the first.
pub(super) async fn claim(
    tx: &mut Tx,
    outbox: &Outbox,
    turns: &Mutex<Turns>,
) -> Result<Claims, StoreError> {
    // Only what this process does not hold may be free for it: a slow database or a long transaction may
    // have kept its leases from being renewed. What another node has taken meanwhile is not renewed.
    let renew = match tx.engine() {
        Engine::Postgres => outbox.leases.near_their_end(),
        Engine::Sqlite => {
            // Its clock is ours, which may have jumped.
            let jump = outbox.leases.clock_jump(tx.now);
            if jump < -CLOCK_STEP {
                sql::bring_forward(tx, -jump).await?;
            }
            outbox.leases.to_renew_after(jump)
        }
    };
    let renewed = sql::leases::renew(tx, outbox.worker, outbox.lease, &renew).await?;
    let waiting = sql::apps_waiting(tx).await?;
    let now = tx.now;
    let next_due = waiting
        .iter()
        .map(|(_, at)| *at)
        .filter(|at| *at > now)
        .min();
    let oldest = waiting
        .iter()
        .map(|(_, at)| *at)
        .filter(|at| *at <= now)
        .min();
    let lag = oldest.map_or(0.0, |at| (now - at).as_seconds_f64());
    metrics::gauge!("picloud_outbox_oldest_due_seconds").set(lag);
    let due = waiting.into_iter().filter(|(_, at)| *at <= now);
    let due = turns
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .ordered(due.map(|(app_id, _)| app_id).collect());
    let mut claims = Claims {
        taken: Vec::new(),
        more: false,
        next_due_in: next_due.map(|at| at - now),
        renewed,
        at: (Instant::now(), now),
    };
    if outbox.holds_deliveries() {
        // It looks again by itself, or is woken.
        claims.next_due_in = None;
        return Ok(claims);
    }
    let mut left = outbox.gate.free_for_deliveries().min(CLAIM_MAX);
    for (n, app_id) in due.iter().copied().enumerate() {
        let share = left.div_ceil(due.len() - n);
        let mut permits: Vec<Permit> = std::iter::from_fn(|| outbox.admit(app_id))
            .take(share)
            .collect();
        if permits.is_empty() {
            claims.more = true;
            continue;
        }
        let (worker, lease) = (outbox.worker, outbox.lease);
        let bytes = outbox.room_for_payloads(app_id);
        let rows = match bytes {
            0 => Vec::new(),
            _ => sql::claim(tx, app_id, worker, lease, permits.len(), bytes).await?,
        };
        let claimed: u64 = rows.iter().map(|row| row.payload_bytes).sum();
        // Fewer than asked for: the app has no more, or others have them.
        claims.more |= rows.len() == permits.len() || claimed >= bytes;
        permits.truncate(rows.len());
        left -= rows.len();
        for (row, permit) in rows.iter().zip(&mut permits) {
            permit.lease = Some(outbox.leases.take((row.id, row.attempt)));
            let hold = outbox.hold_of(app_id);
            hold.note(row.payload_bytes);
            permit.payload = Some(hold);
        }
        let mut turns = turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.served(app_id);
        claims.taken.extend(rows.into_iter().zip(permits));
    }
    Ok(claims)
}

/// Whose turn it is among the apps that have something due.
#[derive(Default)]
pub(super) struct Turns {
    last: u64,
    of: HashMap<AppId, u64>,
}

impl Turns {
    /// `due`, with those first who were served longest ago, or never.
    fn ordered(&mut self, mut due: Vec<AppId>) -> Vec<AppId> {
        let waiting: HashSet<AppId> = due.iter().copied().collect();
        self.of.retain(|app_id, _| waiting.contains(app_id));
        due.sort_by_key(|app_id| self.of.get(app_id).copied().unwrap_or(0));
        due
    }

    fn served(&mut self, app_id: AppId) {
        self.last += 1;
        self.of.insert(app_id, self.last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_served_comes_last() {
        let (a, b, c) = (AppId::new(), AppId::new(), AppId::new());
        let mut turns = Turns::default();
        assert_eq!(turns.ordered(vec![a, b]), [a, b]);
        turns.served(a);
        assert_eq!(turns.ordered(vec![a, b, c]), [b, c, a]);
        turns.served(b);
        assert_eq!(turns.ordered(vec![a, b]), [a, b]);
        assert_eq!(turns.ordered(vec![c]), [c]);
        assert!(turns.of.is_empty(), "who has nothing due is forgotten");
    }
}
