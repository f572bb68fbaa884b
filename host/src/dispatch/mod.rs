//! The outbox and the dispatcher: every execution that HTTP or an event fires is a delivery,
//! and every delivery ends in exactly one outcome.
//!
//! - [`outbox`]: where deliveries enter; [`sql`]: its rows.
//! - [`dispatcher`]: takes deliveries on, under a lease, and sees them through.
//! - [`leases`]: which leases this process holds; [`upkeep`] keeps them.
//! - [`retry`]: when one that failed is tried again.
//! - [`inbox`]: where a sync caller waits; [`unwritten`]: what they were answered already.
//! - [`gate`]: how many executions there may be at once.
//!
//! What a delivery runs is somebody else's affair: [`Executor`] is all that this room knows.

pub mod dispatcher;
mod fair;
pub mod gate;
pub mod inbox;
mod leases;
pub mod outbox;
pub mod record;
pub mod retry;
mod settle;
pub mod sql;
mod unwritten;
pub mod upkeep;

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::apps::AppId;
use crate::dead_letters::{DeadLetter, DeadLetterId};
use crate::executions::sql::Ended;
use crate::executions::{ExecutionId, OutcomeKind};
use crate::idempotency::Known;
use crate::identity::UserId;
use crate::json::Json;
use crate::sandbox::{Outcome, Request};
use crate::scripts::ScriptId;
use crate::store::Id;
use crate::telemetry::trace::{self, TraceParent};
use crate::triggers::TriggerId;
use retry::RetryPolicy;

/// The id of a delivery; also the id of the execution that its first attempt makes.
pub type DeliveryId = Id<Delivery>;

/// The id of a worker: a new one at each start of a process, so that a lease of an earlier life
/// is never taken for one of this.
pub type WorkerId = Id<dispatcher::Dispatcher>;

/// A fencing token: the lease under which somebody writes, whose writes are refused once another
/// worker has the delivery. Without it, a process that was frozen, or cut off from the database,
/// would go on where it stopped and write over what came after it.
#[derive(Debug, Clone, Copy)]
pub struct Fence {
    /// The delivery.
    pub id: DeliveryId,
    /// Which claim of it.
    pub attempt: u32,
    /// Who claimed it.
    pub worker: WorkerId,
}

/// One event on its way to one script.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Its id.
    pub id: DeliveryId,
    /// The app.
    pub app_id: AppId,
    /// The script.
    pub script_id: ScriptId,
    /// The version of it; none: whichever is current at the attempt.
    pub script_version: Option<u32>,
    /// The trigger that made it, if one did.
    pub trigger_id: Option<TriggerId>,
    /// What fired it: `http`, `http_async`, `kv` or `dead_letter`.
    pub invocation_type: String,
    /// What happened.
    pub payload: Arc<Payload>,
    /// The request that it all began with.
    pub request_id: Uuid,
    /// The execution that caused it, if one did.
    pub parent_execution_id: Option<ExecutionId>,
    /// Where it was caused in the trace of that request, if that has one.
    pub trace: Option<TraceParent>,
    /// As whom it runs; a public route's runs as nobody.
    pub principal_id: Option<UserId>,
    /// How many events lie between that request and this delivery.
    pub trigger_depth: u32,
    /// In whose inbox a sync caller waits, if one does.
    pub reply_to: Option<WorkerId>,
    /// The dead letter that it repeats; for a handler of dead letters, the one that it tells of.
    pub dead_letter_id: Option<DeadLetterId>,
    /// How often it may be attempted, and when.
    pub retry: RetryPolicy,
    /// Deliveries of one key run one after another, in the order in which they were written.
    pub order_key: Option<String>,
    /// How often it was claimed; it fences together with the worker's id.
    pub attempt: u32,
    /// The attempts that failed.
    pub history: Vec<Attempt>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// An attempt that failed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Attempt {
    /// Which, counted from 1.
    pub attempt: u32,
    /// Its execution; none when its worker was gone before it could tell.
    pub execution_id: Option<ExecutionId>,
    /// The version of the script that ran; 0 when none could.
    pub script_version: u32,
    /// When it began, or was found to have ended.
    pub at: DateTime<Utc>,
    /// What became of it.
    pub outcome: OutcomeKind,
    /// What went wrong.
    pub error: String,
    /// The fuel that it used.
    pub fuel: u64,
    /// How long it took.
    pub duration_us: u64,
}

/// What happened.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// A request to a route.
    Request(Request),
    /// An event, as its handler sees it in `ctx.event`.
    Event(Box<RawValue>),
}

impl Payload {
    /// An event that is `text`, without what no database holds.
    pub fn of_text(text: &str) -> Self {
        let text = text.replace('\0', "\u{fffd}");
        let text = serde_json::value::to_raw_value(&text).expect("a text is always JSON");
        Self::Event(text)
    }

    /// An event of which nothing is known yet.
    pub fn nothing() -> Self {
        Self::Event(RawValue::NULL.to_owned())
    }

    /// About how many bytes it has, where they may be many.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Request(request) => request.body.as_ref().map_or(0, |body| body.bytes.len()),
            Self::Event(event) => event.get().len(),
        }
    }

    /// Its JSON.
    pub fn json(&self) -> String {
        // Text, numbers and JSON are always JSON. If it ever were not so, a panic would leave a
        // delivery that nobody can end.
        serde_json::to_string(self).unwrap_or_else(|error| {
            let problem = Json::text(&error.to_string());
            format!(r#"{{"event":{}}}"#, problem.as_str())
        })
    }
}

/// What became of an attempt.
pub struct Attempted {
    /// What is kept of it.
    pub ended: Ended,
    /// What a sync caller is told.
    pub answer: Answer,
}

/// What a sync caller is told.
#[derive(Debug)]
pub enum Answer {
    /// What the sandbox made of it.
    Outcome(Outcome),
    /// The script was deleted meanwhile.
    ScriptDeleted,
    /// The app was deleted meanwhile.
    AppDeleted,
    /// The database could not be reached, so nothing was run.
    Unavailable,
    /// The script was stopped before its end, because the database was away for too long: what it did
    /// until then stays.
    Stopped,
    /// Another call with the same idempotency key came first.
    Known(Known),
    /// Our own fault.
    PlatformFault,
}

/// Runs what a delivery asks for.
pub trait Executor: Send + Sync + 'static {
    /// Make one attempt. It never fails: what goes wrong is the attempt's outcome.
    fn attempt(&self, delivery: Delivery) -> BoxFuture<'_, Attempted>;

    /// Whether the delivery is to be kept for later, because its trigger is paused.
    fn is_held(&self, delivery: &Delivery) -> bool;

    /// The deliveries that tell of a dead letter.
    fn handlers(&self, letter: &DeadLetter) -> Vec<Delivery>;
}

impl Delivery {
    /// A delivery of `payload` that nobody has claimed.
    pub fn new(
        app_id: AppId,
        script_id: ScriptId,
        invocation_type: &str,
        payload: Payload,
        retry: RetryPolicy,
    ) -> Self {
        let id = DeliveryId::new();
        Self {
            id,
            app_id,
            script_id,
            script_version: None,
            trigger_id: None,
            invocation_type: invocation_type.to_owned(),
            payload: Arc::new(payload),
            request_id: id.uuid(),
            parent_execution_id: None,
            trace: trace::here(),
            principal_id: None,
            trigger_depth: 0,
            reply_to: None,
            dead_letter_id: None,
            retry,
            order_key: None,
            attempt: 0,
            history: Vec::new(),
            created_at: Utc::now(),
        }
    }

    /// Since when this attempt was waited for: since it was made, or since the attempt before it.
    fn waiting_since(&self) -> DateTime<Utc> {
        let last = self.history.last();
        last.map_or(self.created_at, |last| {
            last.at + TimeDelta::microseconds(i64::try_from(last.duration_us).unwrap_or(0))
        })
    }
}
