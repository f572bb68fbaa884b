//! The outbox and the dispatcher: every execution that HTTP or an event fires is a delivery,
//! and every delivery ends in exactly one outcome.
//!
//! - [`sql`]: the outbox, whose rows are taken out together with their outcome.
//! - [`dispatcher`]: takes deliveries on, under a lease, and sees them through.
//! - [`inbox`]: where a sync caller waits.
//! - [`gate`]: how many executions there may be at once.
//!
//! What a delivery runs is somebody else's affair: [`Executor`] is all that this room knows.

pub mod dispatcher;
pub mod gate;
pub mod inbox;
pub mod sql;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use uuid::Uuid;

use crate::apps::AppId;
use crate::executions::sql::Ended;
use crate::sandbox::{Outcome, Request};
use crate::scripts::ScriptId;
use crate::store::Id;

/// The id of a delivery; also the id of the execution that its first attempt makes.
pub type DeliveryId = Id<Delivery>;

/// The id of a worker: a new one at each start of a process, so that a lease of an earlier life
/// is never taken for one of this.
pub type WorkerId = Id<dispatcher::Dispatcher>;

/// One event on its way to one script.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Its id.
    pub id: DeliveryId,
    /// The app.
    pub app_id: AppId,
    /// The script.
    pub script_id: ScriptId,
    /// What fired it: `http` or `http_async`.
    pub invocation_type: String,
    /// What happened.
    pub payload: Arc<Payload>,
    /// The request that it all began with.
    pub request_id: Uuid,
    /// How many events lie between that request and this delivery.
    pub trigger_depth: u32,
    /// In whose inbox a sync caller waits, if one does.
    pub reply_to: Option<WorkerId>,
    /// How often it was claimed; it fences together with the worker's id.
    pub attempt: u32,
    /// How often it may be.
    pub attempts_max: u32,
}

/// What happened.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// A request to a route.
    Request(Request),
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
    /// Our own fault.
    PlatformFault,
}

/// Runs what a delivery asks for.
pub trait Executor: Send + Sync + 'static {
    /// Make one attempt. It never fails: what goes wrong is the attempt's outcome.
    fn attempt(&self, delivery: Delivery) -> BoxFuture<'_, Attempted>;
}
