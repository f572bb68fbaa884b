//! What is done for the outbox for as long as a node runs: leases are kept, rows that wait for
//! nothing are let go on, rows are counted, and nodes tell each other that there is work.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::TimeDelta;

use super::outbox::Outbox;
use super::sql::leases::Renewal;
use super::{WorkerId, sql};
use crate::store::{Engine, StoreError};

/// Where nodes tell each other that there is something to claim.
const CHANNEL: &str = "picloud_outbox";
/// How long one notification stands for all that follow.
const CALL_PAUSE: Duration = Duration::from_millis(20);
/// How often rows are looked for that wait for nothing any more.
const MEND_EVERY: Duration = Duration::from_secs(5);
/// How often the outbox is counted, unless that takes long.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// For how long a row is not moved that somebody should move, until it counts as stuck.
pub const STUCK_AFTER: TimeDelta = TimeDelta::seconds(10);
/// How often leases are looked after at the least, and other nodes shown that this one lives.
const PULSE: Duration = Duration::from_secs(1);
/// How long leases that could not be renewed or given back are left before the next try.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
/// How often is looked whether other nodes live.
const LOOK_AT_NODES_EVERY: Duration = Duration::from_millis(500);
/// For how long a node is not seen to live before its leases are given back: it may be connecting
/// again.
const GONE_AFTER: Duration = Duration::from_secs(3);
/// How many nodes that were seen alive are kept in mind.
const SEEN_MAX: usize = 10_000;

impl Outbox {
    /// Tell other nodes that there is something to claim: once for however many rows.
    pub(super) async fn call_other_nodes(self: Arc<Self>) {
        let own = self.worker.to_string();
        loop {
            self.call_others.notified().await;
            if let Err(error) = self.db.notify(CHANNEL, &own).await {
                tracing::warn!(%error, "other nodes could not be told; they look by themselves");
            }
            tokio::time::sleep(CALL_PAUSE).await;
        }
    }

    /// Look for work when another node says that there is some.
    pub(super) async fn listen_to_other_nodes(self: Arc<Self>) {
        let own = self.worker.to_string();
        let hear = |who: &str| {
            if who != own {
                self.wake.notify_one();
            }
        };
        self.db.listen(CHANNEL, hear).await;
    }

    /// Let rows go on that wait for nothing any more, for ever.
    pub(super) async fn keep_mending(self: Arc<Self>) {
        let mut pause = MEND_EVERY;
        loop {
            tokio::time::sleep(pause).await;
            pause = MEND_EVERY;
            let mended = self
                .db
                .write::<_, StoreError, _>(|tx| Box::pin(async move { sql::mend(tx).await }));
            match mended.await {
                Ok(0) => {}
                Ok(mended) => {
                    // There may be more.
                    pause = Duration::ZERO;
                    tracing::info!(mended, "deliveries waited for nothing; they go on");
                    self.is_behind();
                }
                Err(error) => tracing::warn!(%error, "waiting deliveries could not be looked at"),
            }
        }
    }

    /// Count the outbox for ever. To count is to read it all: with a million rows that is no
    /// small matter, so it takes a hundredth of the time at most.
    pub(super) async fn keep_counting(self: Arc<Self>) {
        loop {
            let started = Instant::now();
            let (held, oldest) = self.leases.held();
            metrics::gauge!("picloud_leases_held").set(held as f64);
            metrics::gauge!("picloud_leases_oldest_seconds").set(oldest.as_secs_f64());
            if let Ok(mut conn) = self.db.read().await
                && let Ok(depth) = sql::depth(&mut conn).await
                && let Ok(stuck) = sql::stuck(&mut conn, STUCK_AFTER).await
            {
                metrics::gauge!("picloud_outbox_deliveries").set(depth as f64);
                for (why, count) in stuck.counts() {
                    metrics::gauge!("picloud_outbox_stuck", "why" => why).set(count as f64);
                }
            }
            tokio::time::sleep(COUNT_EVERY.max(started.elapsed() * 100)).await;
        }
    }

    /// Renew the leases that are held here, and give back those that nothing works on, for ever.
    pub(super) async fn keep_leases(self: Arc<Self>) {
        let look_every = self.leases.lasts() / 3;
        let mut looked = Instant::now();
        let mut beaten = None;
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.pulse()) => {}
                () = self.leases.wake.notified() => {}
            }
            let due = self.leases.due();
            let gives_back = !due.give_back.is_empty();
            let is_idle = due.renew.is_empty() && !gives_back;
            let has_others = self.db.engine() == Engine::Postgres;
            let beats = has_others && beaten.is_none_or(|at: Instant| at.elapsed() >= PULSE);
            if is_idle && !beats && looked.elapsed() < look_every {
                continue;
            }
            let sent = Instant::now();
            let renewal = Renewal {
                worker: self.worker,
                lease: self.lease,
                renew: due.renew.clone(),
                give_back: due.give_back.clone(),
                is_held: self.leases.is_held(),
                looks: looked.elapsed() >= look_every || !is_idle,
                beats,
            };
            match self.db.write_grouped(renewal).await {
                Ok(done) => {
                    beaten = if beats { Some(sent) } else { beaten };
                    self.leases.renewed(sent, &done.renewed);
                    if let Some(leased) = done.leased {
                        looked = sent;
                        self.leases.looked(&due.renew, &leased);
                    }
                }
                // The store says once that it is away.
                Err(_) => {
                    self.leases.failed(due.give_back);
                    tokio::time::sleep(AGAIN_AFTER).await;
                    continue;
                }
            }
            if gives_back {
                self.is_behind();
            }
        }
    }

    /// How often leases are looked after: often enough that other nodes see within seconds that this
    /// one is gone, and that short leases, of tests say, are renewed.
    fn pulse(&self) -> Duration {
        (self.leases.lasts() / 10).min(PULSE)
    }

    /// Stop what works under a lease that could not be renewed in time, for ever. On SQLite nobody
    /// else can have taken it.
    pub(super) async fn keep_fenced(self: Arc<Self>) {
        if self.db.engine() == Engine::Sqlite {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(self.pulse() / 4).await;
            let late = self.leases.fence();
            if late > 0 {
                tracing::error!(
                    late,
                    "leases could not be renewed in time; their work is stopped"
                );
            }
        }
    }

    /// Give back the leases of nodes that are gone, for ever: those whose connection was seen to
    /// live, and is not any more. A node that nobody saw live, one of an older version say, keeps its
    /// leases until they end.
    pub(super) async fn watch_other_nodes(self: Arc<Self>) {
        if self.db.engine() == Engine::Sqlite {
            return std::future::pending().await;
        }
        let mut seen = Seen::default();
        loop {
            tokio::time::sleep(LOOK_AT_NODES_EVERY).await;
            let looked = async {
                let mut conn = self.db.read().await?;
                let alive = sql::leases::alive(&mut conn).await?;
                let owners = sql::leases::owners(&mut conn).await?;
                Ok::<_, StoreError>((alive, owners))
            };
            let Ok((alive, owners)) = looked.await else {
                // What is not seen now may be there.
                seen.missing.clear();
                continue;
            };
            for gone in seen.gone(&alive, &owners, self.worker, Instant::now()) {
                let released = self
                    .db
                    .write(move |tx| Box::pin(async move { sql::release(tx, Some(gone)).await }));
                let released: Result<u64, StoreError> = released.await;
                if let Ok(released @ 1..) = released {
                    metrics::counter!("picloud_leases_taken_over_total").increment(released);
                    tracing::warn!(node = %gone, released, "a node is gone; its deliveries are taken over");
                    self.is_behind();
                }
            }
        }
    }
}

/// Which nodes were seen to live, and since when they are not.
#[derive(Default)]
struct Seen {
    alive: HashSet<i32>,
    missing: HashMap<WorkerId, Instant>,
}

impl Seen {
    /// The owners of leases that are gone for long enough.
    fn gone(
        &mut self,
        alive: &HashSet<i32>,
        owners: &[WorkerId],
        own: WorkerId,
        now: Instant,
    ) -> Vec<WorkerId> {
        self.missing.retain(|owner, _| owners.contains(owner));
        let mut gone = Vec::new();
        for owner in owners.iter().copied().filter(|owner| *owner != own) {
            let key = sql::leases::lock_key(owner);
            if alive.contains(&key) || !self.alive.contains(&key) {
                self.missing.remove(&owner);
            } else if now - *self.missing.entry(owner).or_insert(now) >= GONE_AFTER {
                gone.push(owner);
            }
        }
        if self.alive.len() > SEEN_MAX {
            self.alive.clear();
        }
        self.alive.extend(alive);
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_node_that_was_seen_alive_and_is_missing_for_long_is_gone() {
        let (own, other, old) = (WorkerId::new(), WorkerId::new(), WorkerId::new());
        let alive = HashSet::from([sql::leases::lock_key(own), sql::leases::lock_key(other)]);
        let dead = HashSet::from([sql::leases::lock_key(own)]);
        let owners = [own, other, old];
        let mut seen = Seen::default();
        let start = Instant::now();
        let mut gone = |alive, after| seen.gone(alive, &owners, own, start + after);
        assert!(gone(&alive, Duration::ZERO).is_empty());
        assert!(gone(&dead, Duration::from_secs(1)).is_empty());
        assert!(gone(&dead, Duration::from_secs(3)).is_empty());
        assert_eq!(gone(&dead, Duration::from_secs(4)), [other]);
        assert!(
            gone(&alive, Duration::from_secs(5)).is_empty(),
            "it came back"
        );
        assert!(gone(&dead, Duration::from_secs(60)).is_empty());
    }
}
