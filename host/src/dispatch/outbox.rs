//! Where deliveries enter: written with this worker's lease on them where there is room for them
//! here, and handed over in memory; else left for whoever has room.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::{Notify, mpsc, watch};

use super::gate::{Gate, Permit};
use super::leases::Leases;
use super::sql::{NewDelivery, Placed};
use super::{Delivery, Fence, Payload, WorkerId};
use crate::apps::AppId;
use crate::budget::{Budget, Hold, Metrics, Share};
use crate::quotas::{Counts, ROW_BYTES, Size};
use crate::store::Db;

/// The outbox as the domains see it.
pub struct Outbox {
    /// This node's worker, whose lease is put on what it takes on at once.
    pub(super) worker: WorkerId,
    pub(super) db: Db,
    pub(super) gate: Gate,
    pub(super) lease: TimeDelta,
    pub(super) leases: Arc<Leases>,
    /// Something may be claimable now.
    pub(super) wake: Notify,
    /// Other nodes could help.
    pub(super) call_others: Notify,
    /// Whether rows may be due that nobody has claimed. While it is false, an execution that
    /// ends wakes nobody: a claim for each would cost more than the executions.
    pub(super) backlog: AtomicBool,
    handed: mpsc::UnboundedSender<HandedOver>,
    /// The memory for payloads of deliveries that are worked on here. Those of callers who wait are
    /// bodies of requests, and are counted as such.
    pub(super) payloads: Arc<Budget<AppId>>,
    /// What of the apps' deliveries and idempotency keys is in the database.
    pub(super) counts: Arc<Counts>,
}

/// One in so many bytes for payloads is beyond the reach of any single app.
const PAYLOADS_KEPT_FREE: u64 = 4;

/// A delivery with this worker's lease on it, and its place at the gate.
pub(super) type HandedOver = (Delivery, Permit);

/// What the dispatcher takes deliveries from; there is one for each [`Outbox`].
pub struct HandOver(pub(super) mpsc::UnboundedReceiver<HandedOver>);

/// What a delivery is counted as: its payload is nearly all of it.
pub(super) fn size_of(delivery: &Delivery) -> Size {
    Size::row(delivery.payload.bytes() as u64 + ROW_BYTES)
}

impl Outbox {
    /// An outbox for a node that runs at most `executions_max` at once, and holds at most
    /// `payload_bytes_max` of payloads for that.
    pub fn new(
        db: Db,
        executions_max: usize,
        lease_ms: u64,
        payload_bytes_max: u64,
        counts: Arc<Counts>,
    ) -> (Arc<Self>, HandOver) {
        let metrics = Metrics {
            bytes: "picloud_payloads_bytes",
            refused: "picloud_payloads_refused_total",
        };
        let (handed, hand_over) = mpsc::unbounded_channel();
        let outbox = Self {
            worker: WorkerId::new(),
            db,
            gate: Gate::new(executions_max),
            lease: TimeDelta::milliseconds(i64::try_from(lease_ms).unwrap_or(i64::MAX / 2)),
            leases: Leases::new(Duration::from_millis(lease_ms)),
            wake: Notify::new(),
            call_others: Notify::new(),
            backlog: AtomicBool::new(false),
            handed,
            payloads: Budget::new(payload_bytes_max, metrics),
            counts,
        };
        (Arc::new(outbox), HandOver(hand_over))
    }

    /// For how long the oldest lease is held that this process holds.
    pub fn oldest_lease(&self) -> Duration {
        self.leases.held().1
    }

    /// This node's worker.
    pub fn worker(&self) -> WorkerId {
        self.worker
    }

    /// What the writes of an attempt at `delivery` are fenced by.
    pub fn fence(&self, delivery: &Delivery) -> Fence {
        Fence {
            id: delivery.id,
            attempt: delivery.attempt,
            worker: self.worker,
        }
    }

    /// Take on no delivery for which nobody waits while what decides who may do what is stale, for
    /// ever: other nodes run what is due.
    pub async fn keep_held_while(self: Arc<Self>, mut is_stale: watch::Receiver<bool>) {
        loop {
            let is_held = *is_stale.borrow_and_update();
            self.gate.hold_deliveries(is_held);
            if !is_held {
                self.is_behind();
            }
            if is_stale.changed().await.is_err() {
                // The sender goes only with the process.
                std::future::pending::<()>().await;
            }
        }
    }

    /// A place for a delivery of this app for which nobody waits, if there is one now.
    pub fn admit(&self, app_id: AppId) -> Option<Permit> {
        match self.db.is_stuck() {
            true => None,
            false => self.gate.enter_without_caller(app_id),
        }
    }

    /// Whether no delivery is taken on for which nobody waits. Without room on the disk, a script that
    /// writes would only use up its attempts.
    pub(super) fn holds_deliveries(&self) -> bool {
        self.gate.holds_deliveries() || self.db.is_stuck() || !self.db.has_room()
    }

    /// The row of `delivery`. With a place at the gate it is born claimed: whoever writes it must
    /// [`hand it over`](Self::placed) once it is committed.
    pub fn row(
        &self,
        mut delivery: Delivery,
        permit: Option<&mut Permit>,
        held: bool,
    ) -> NewDelivery {
        let is_event = matches!(*delivery.payload, Payload::Event(_));
        let has_room = !is_event || self.room_for_payloads(delivery.app_id) > 0;
        let permit = permit.filter(|_| !held && has_room);
        let claimed = permit.is_some();
        delivery.attempt = u32::from(claimed);
        if let Some(permit) = permit {
            // Before it is written, so that nothing is ever leased here that is not held.
            permit.lease = Some(self.leases.take((delivery.id, delivery.attempt)));
        }
        NewDelivery {
            delivery,
            born_claimed: claimed.then_some((self.worker, self.lease)),
            held,
            key: None,
        }
    }

    /// How many bytes of payloads of an app's deliveries there is room for.
    pub(super) fn room_for_payloads(&self, app_id: AppId) -> u64 {
        self.payloads.left(&self.share_of(app_id))
    }

    /// A hold on nothing yet of the memory for payloads.
    pub(super) fn hold_of(&self, app_id: AppId) -> Hold<AppId> {
        self.payloads.hold([Some(self.share_of(app_id)), None])
    }

    fn share_of(&self, app_id: AppId) -> Share<AppId> {
        let bytes_max = self.payloads.bytes_max();
        Share {
            of: app_id,
            bytes_max: bytes_max - bytes_max / PAYLOADS_KEPT_FREE,
        }
    }

    /// What the apps' deliveries and idempotency keys have room for.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// A delivery for which nobody waits is in the outbox.
    pub fn count(&self, delivery: &Delivery) {
        self.counts
            .deliveries
            .add(delivery.app_id, size_of(delivery));
    }

    /// A delivery for which nobody waits is gone.
    pub(super) fn uncount(&self, delivery: &Delivery) {
        self.counts
            .deliveries
            .take(delivery.app_id, size_of(delivery));
    }

    /// What [`Self::row`] made is committed.
    pub fn placed(&self, delivery: Delivery, permit: Option<Permit>, placed: &Placed) {
        if !matches!(placed, Placed::Known(_)) {
            self.count(&delivery);
        }
        match (placed, permit) {
            (Placed::Claimed, Some(mut permit)) => {
                permit.placed();
                if let Payload::Event(event) = &*delivery.payload {
                    let hold = self.hold_of(delivery.app_id);
                    hold.note(event.get().len() as u64);
                    permit.payload = Some(hold);
                }
                // The receiver goes only with the process.
                let _ = self.handed.send((delivery, permit));
                return;
            }
            (_, permit) => Self::not_placed(permit),
        }
        if matches!(placed, Placed::Due) {
            self.is_behind();
        }
    }

    /// What [`Self::row`] made was not written, or has no lease.
    pub fn not_placed(permit: Option<Permit>) {
        if let Some(lease) = permit.and_then(|mut permit| permit.lease.take()) {
            lease.end();
        }
    }

    /// There are due rows that nobody has claimed; whoever ends next makes room for one, here or
    /// on another node.
    pub fn is_behind(&self) {
        self.backlog.store(true, Ordering::Relaxed);
        self.wake.notify_one();
        self.call_others.notify_one();
    }
}
