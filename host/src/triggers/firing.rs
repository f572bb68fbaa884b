//! From what happened to deliveries.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::{Kind, KvFilter, Op, OrderedBy, Trigger};
use crate::apps::AppId;
use crate::dead_letters::DeadLetter;
use crate::directory::{Directory, Picture};
use crate::dispatch::gate::Permit;
use crate::dispatch::outbox::Outbox;
use crate::dispatch::retry::RetryPolicy;
use crate::dispatch::sql::{NewDelivery, Placed};
use crate::dispatch::{Delivery, Payload};
use crate::executions::ExecutionId;
use crate::json::{Json, Read};
use crate::kv::{Collection, Key};
use crate::pubsub::Topic;
use crate::quotas::{Full, ROW_BYTES, Size};
use crate::store::StoreError;
use crate::telemetry::trace::{self, TraceParent};

/// How many bytes one write may put into the outbox, all triggers that hear of it together: each has a
/// delivery with what happened of its own, in the transaction of the write.
pub const TOLD_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What happened is too large for so many triggers that hear of it.
#[derive(Debug, thiserror::Error)]
#[error(
    "goes to all triggers that hear of it, {bytes} bytes together; the limit is {TOLD_BYTES_MAX}: have fewer triggers"
)]
pub struct HeardByTooMany {
    /// What all of their deliveries would carry.
    pub bytes: u64,
}

/// Why an event is refused, and with it what it would have told of.
#[derive(Debug, thiserror::Error)]
pub enum Untellable {
    /// It and the triggers that hear of it are too much together.
    #[error(transparent)]
    HeardByTooMany(#[from] HeardByTooMany),
    /// The app has no room for it.
    #[error(transparent)]
    Full(#[from] Full),
}

/// Whether all that listen may be told of something that has so many bytes.
///
/// # Errors
/// [`HeardByTooMany`] beyond [`TOLD_BYTES_MAX`].
fn check_told(bytes: u64, listening: &[&Firing]) -> Result<(), HeardByTooMany> {
    let bytes = bytes.saturating_mul(listening.len() as u64);
    match bytes <= TOLD_BYTES_MAX {
        true => Ok(()),
        false => Err(HeardByTooMany { bytes }),
    }
}

/// What makes deliveries of events.
#[derive(Clone)]
pub struct Events {
    directory: Arc<Directory>,
    outbox: Arc<Outbox>,
    depth_max: u32,
}

/// What an event goes back to.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// The request that it all began with.
    pub request_id: Uuid,
    /// The execution that caused it, if one did.
    pub execution_id: Option<ExecutionId>,
    /// Where it happens in the trace of that request, if that has one.
    pub trace: Option<TraceParent>,
    /// How many events lie between the two.
    pub trigger_depth: u32,
}

impl Origin {
    /// Somebody's own act, through the API.
    pub fn act() -> Self {
        Self {
            request_id: Uuid::now_v7(),
            execution_id: None,
            trace: trace::here(),
            trigger_depth: 0,
        }
    }
}

/// A trigger that listens to a key or a topic. Whether it fires, and what its handler sees, the
/// mutation itself decides: only in its transaction is known what was there before.
#[derive(Debug)]
pub struct Firing {
    trigger: Arc<Trigger>,
    row: NewDelivery,
}

/// The places at the gate that are kept for the deliveries of some [`Firing`]s, in their order.
#[derive(Debug, Default)]
pub struct Places(Vec<Option<Permit>>);

impl Events {
    /// Events that go at most `depth_max` deep.
    pub fn new(directory: Arc<Directory>, outbox: Arc<Outbox>, depth_max: u32) -> Self {
        Self {
            directory,
            outbox,
            depth_max,
        }
    }

    /// The triggers that listen to a key.
    pub fn listening(
        &self,
        app_id: AppId,
        collection: &Collection,
        key: &Key,
        origin: Origin,
    ) -> (Vec<Firing>, Places) {
        let picture = self.directory.picture();
        let triggers = picture.kv_triggers(app_id).iter();
        let listening = triggers.filter(|trigger| match &trigger.kind {
            Kind::Kv(filter) => filter.may_match(collection, key),
            Kind::DeadLetter(_) | Kind::PubSub(_) => false,
        });
        let ordered = || {
            let collection = collection.as_str();
            // The length keeps `a` + `b:c` and `a:b` + `c` apart.
            format!("{}:{collection}:{}", collection.len(), key.as_str())
        };
        self.firings(app_id, listening.collect(), ordered, origin)
    }

    /// The triggers that listen to a topic.
    pub fn listening_to_topic(
        &self,
        app_id: AppId,
        topic: &Topic,
        origin: Origin,
    ) -> (Vec<Firing>, Places) {
        let picture = self.directory.picture();
        let triggers = picture.pubsub_triggers(app_id).iter();
        let listening = triggers.filter(|trigger| match &trigger.kind {
            Kind::PubSub(filter) => filter.topic.matches(topic.as_str()),
            Kind::Kv(_) | Kind::DeadLetter(_) => false,
        });
        let ordered = || topic.as_str().to_owned();
        self.firings(app_id, listening.collect(), ordered, origin)
    }

    /// What `listening` fires; `ordered` tells what deliveries have in common that wait for each
    /// other.
    fn firings(
        &self,
        app_id: AppId,
        listening: Vec<&Arc<Trigger>>,
        ordered: impl Fn() -> String,
        origin: Origin,
    ) -> (Vec<Firing>, Places) {
        if origin.trigger_depth >= self.depth_max && !listening.is_empty() {
            metrics::counter!("picloud_deliveries_dropped_total", "why" => "depth")
                .increment(listening.len() as u64);
            tracing::warn!(
                %app_id,
                request_id = %origin.request_id,
                depth_max = self.depth_max,
                "an event lies deeper than the limit; its deliveries are dropped"
            );
            return Default::default();
        }
        let firing = |trigger: &Arc<Trigger>| {
            let delivery = Delivery {
                trigger_depth: origin.trigger_depth + 1,
                request_id: origin.request_id,
                parent_execution_id: origin.execution_id,
                trace: origin.trace,
                order_key: trigger
                    .ordered_by
                    .map(|OrderedBy::Key| format!("{}:{}", trigger.id, ordered())),
                ..of_trigger(trigger, trigger.retry)
            };
            let mut permit = match trigger.paused {
                true => None,
                false => self.outbox.admit(app_id),
            };
            let row = self.outbox.row(delivery, permit.as_mut(), trigger.paused);
            let trigger = trigger.clone();
            (Firing { trigger, row }, permit)
        };
        let (firings, permits) = listening.into_iter().map(firing).unzip();
        (firings, Places(permits))
    }

    /// Refuse an event of so many bytes that all triggers that may hear of it may not be told of, or that
    /// their app has no room for.
    ///
    /// # Errors
    /// [`Untellable`].
    pub fn check(
        &self,
        app_id: AppId,
        listening: &[&Firing],
        bytes: u64,
    ) -> Result<(), Untellable> {
        check_told(bytes, listening)?;
        Ok(self.check_room(app_id, listening, bytes)?)
    }

    fn check_room(&self, app_id: AppId, listening: &[&Firing], bytes: u64) -> Result<(), Full> {
        if listening.is_empty() {
            return Ok(());
        }
        let rows = listening.len() as u64;
        let bytes = bytes.saturating_add(ROW_BYTES).saturating_mul(rows);
        let counts = self.outbox.counts();
        counts.deliveries.check(app_id, Size { rows, bytes })?;
        let keyed = listening
            .iter()
            .filter(|firing| firing.trigger.idempotency.is_some());
        match keyed.count() as u64 {
            0 => Ok(()),
            rows => {
                let bytes = rows * ROW_BYTES;
                counts.idempotency_keys.check(app_id, Size { rows, bytes })
            }
        }
    }

    /// The mutation is committed: hand over what this node has taken on.
    pub fn fired(&self, fired: Vec<Option<(Delivery, Placed)>>, places: Places) {
        for (fired, permit) in fired.into_iter().zip(places.0) {
            match fired {
                Some((delivery, placed)) => self.outbox.placed(delivery, permit, &placed),
                None => Outbox::not_placed(permit),
            }
        }
    }

    /// The mutation was not committed, because of `error`. Where that is in doubt, the leases of its
    /// deliveries are given back, so that they are run if they are there.
    pub fn not_fired(&self, places: Places, error: &StoreError) {
        if !error.is_in_doubt() {
            places.0.into_iter().for_each(Outbox::not_placed);
        }
    }
}

/// A delivery of a trigger, without what happened.
fn of_trigger(trigger: &Trigger, retry: RetryPolicy) -> Delivery {
    let nothing = Payload::nothing();
    Delivery {
        trigger_id: Some(trigger.id),
        principal_id: Some(trigger.registered_by_principal),
        ..Delivery::new(
            trigger.app_id,
            trigger.script_id,
            trigger.kind.as_str(),
            nothing,
            retry,
        )
    }
}

/// The deliveries that tell of a dead letter. A handler runs once: there is no dead letter of a
/// dead letter.
pub fn handlers_of(picture: &Picture, letter: &DeadLetter) -> Vec<Delivery> {
    let triggers = picture.dead_letter_triggers(letter.app_id).iter();
    let told = triggers.filter(|trigger| match &trigger.kind {
        Kind::DeadLetter(filter) => filter.matches(letter),
        Kind::Kv(_) | Kind::PubSub(_) => false,
    });
    told.map(|trigger| Delivery {
        payload: Arc::new(letter.event()),
        request_id: letter.request_id,
        trace: letter.trace,
        parent_execution_id: letter.history.last().and_then(|last| last.execution_id),
        trigger_depth: letter.trigger_depth + 1,
        dead_letter_id: Some(letter.id),
        ..of_trigger(trigger, RetryPolicy::ONCE)
    })
    .collect()
}

/// A mutation as its handlers see it.
#[derive(Serialize)]
pub struct KvEvent<'e> {
    id: Uuid,
    source: &'static str,
    op: Op,
    at: DateTime<Utc>,
    kv: KvChange<'e>,
}

#[derive(Serialize)]
struct KvChange<'e> {
    collection: &'e str,
    key: &'e str,
    value: Option<&'e Json>,
    old_value: Option<Json>,
    /// That the old value is not as it was stored: it was written before values were checked.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    old_value_repaired: bool,
}

impl<'e> KvEvent<'e> {
    /// What happened to a key: which value it has now and which it had.
    pub fn new(
        collection: &'e Collection,
        key: &'e Key,
        value: Option<&'e Json>,
        old_value: Option<Read>,
        at: DateTime<Utc>,
    ) -> Self {
        let op = match (&old_value, value) {
            (None, _) => Op::Insert,
            (Some(_), Some(_)) => Op::Update,
            (Some(_), None) => Op::Delete,
        };
        Self {
            id: Uuid::now_v7(),
            source: "kv",
            op,
            at,
            kv: KvChange {
                collection: collection.as_str(),
                key: key.as_str(),
                value,
                old_value_repaired: old_value.as_ref().is_some_and(|read| read.repaired),
                old_value: old_value.map(|read| read.value),
            },
        }
    }

    /// Its JSON: the same event for each of its deliveries.
    pub fn payload(&self) -> Arc<Payload> {
        payload(self)
    }
}

/// A message as its handlers see it.
#[derive(Serialize)]
pub struct PubSubEvent<'e> {
    id: Uuid,
    source: &'static str,
    op: &'static str,
    at: DateTime<Utc>,
    pubsub: Published<'e>,
}

#[derive(Serialize)]
struct Published<'e> {
    topic: &'e str,
    message: &'e Json,
    message_id: Uuid,
    published_at: DateTime<Utc>,
}

impl<'e> PubSubEvent<'e> {
    /// What was published.
    pub fn new(
        topic: &'e Topic,
        message: &'e Json,
        message_id: Uuid,
        published_at: DateTime<Utc>,
    ) -> Self {
        Self {
            id: message_id,
            source: "pubsub",
            op: "publish",
            at: published_at,
            pubsub: Published {
                topic: topic.as_str(),
                message,
                message_id,
                published_at,
            },
        }
    }

    /// Its JSON: the same event for each of its deliveries.
    pub fn payload(&self) -> Arc<Payload> {
        payload(self)
    }
}

fn payload(event: &impl Serialize) -> Arc<Payload> {
    Arc::new(Payload::Event(Json::written(event).into_raw()))
}

impl Firing {
    /// Whether its trigger may hear of a key that is removed, or else gets a value.
    pub fn may_hear(&self, is_removed: bool) -> bool {
        match &self.trigger.kind {
            Kind::Kv(KvFilter { ops, .. }) => {
                ops.iter().any(|op| (*op == Op::Delete) == is_removed)
            }
            Kind::PubSub(_) | Kind::DeadLetter(_) => false,
        }
    }

    /// The row of the outbox, if the trigger listens to what this event did to a key.
    pub fn row(&self, event: &KvEvent<'_>, payload: &Arc<Payload>) -> Option<NewDelivery> {
        let Kind::Kv(KvFilter { ops, .. }) = &self.trigger.kind else {
            return None;
        };
        if !ops.contains(&event.op) {
            return None;
        }
        Some(self.row_with(payload))
    }

    /// The row of the outbox that delivers this.
    pub fn row_with(&self, payload: &Arc<Payload>) -> NewDelivery {
        let mut row = self.row.clone();
        row.delivery.payload = payload.clone();
        if let (Some(policy), Payload::Event(text)) = (&self.trigger.idempotency, &**payload) {
            row.key = policy.key_of(self.trigger.id.uuid(), text.get());
        }
        row
    }
}
