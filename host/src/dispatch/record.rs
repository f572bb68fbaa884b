//! What is kept of attempts.

use chrono::{DateTime, Utc};

use super::retry::RetryPolicy;
use super::sql::Claimed;
use super::{Attempt, Delivery, Payload};
use crate::executions::{
    AbandonReason, AbandonedExecution, Execution, ExecutionError, ExecutionId, Log, OutcomeKind,
    sql::Ended,
};
use crate::store::{Id, micros};
use crate::telemetry::trace::TraceParent;

/// The attempts so far, with those that ended with their worker before it could tell.
pub(super) fn with_lost_attempts(delivery: &mut Delivery, ended: &Ended) -> Vec<Attempt> {
    let mut history = std::mem::take(&mut delivery.history);
    let known = history.last().map_or(0, |last| last.attempt);
    for attempt in known + 1..delivery.attempt {
        history.push(Attempt {
            attempt,
            execution_id: None,
            script_version: 0,
            at: ended.execution.started_at,
            outcome: OutcomeKind::PlatformFault,
            error: "its worker ended before it could tell".to_owned(),
            fuel: 0,
            duration_us: 0,
        });
    }
    history
}

/// What the history of a delivery keeps of an attempt.
pub(super) fn attempt_of(ended: &Ended) -> Attempt {
    let execution = &ended.execution;
    Attempt {
        attempt: execution.attempt,
        execution_id: Some(execution.id),
        script_version: execution.script_version,
        at: execution.started_at,
        outcome: execution.outcome,
        error: execution
            .error
            .as_ref()
            .map_or_else(String::new, |error| error.message.clone()),
        fuel: execution.fuel,
        duration_us: execution.duration_us,
    }
}

/// That nobody received the outcome of a delivery.
pub(super) fn abandoned(delivery: &Delivery, reason: AbandonReason) -> AbandonedExecution {
    AbandonedExecution {
        id: Id::new(),
        execution_id: delivery.id.of(),
        app_id: delivery.app_id,
        script_id: delivery.script_id,
        reason,
        created_at: micros(Utc::now()),
    }
}

/// An abandoned execution is written; count it.
pub(super) fn count_abandoned(row: &AbandonedExecution) {
    metrics::counter!("picloud_abandoned_executions_total", "reason" => row.reason.as_str())
        .increment(1);
}

/// The execution of a delivery of which no guest ever ran.
pub fn never_ran(
    delivery: &Delivery,
    id: ExecutionId,
    outcome: OutcomeKind,
    error: ExecutionError,
    now: DateTime<Utc>,
) -> Ended {
    let execution = Execution {
        id,
        app_id: delivery.app_id,
        script_id: delivery.script_id,
        script_version: 0,
        delivery_id: Some(delivery.id.uuid()),
        attempt: delivery.attempt,
        parent_id: delivery.parent_execution_id,
        trigger_id: delivery.trigger_id,
        invocation_type: delivery.invocation_type.clone(),
        request_id: delivery.request_id,
        trace_id: delivery.trace.map(TraceParent::trace_id),
        outcome,
        status: None,
        started_at: now,
        duration_us: 0,
        fuel: 0,
        error: Some(error),
    };
    Ended {
        execution,
        log: Log::default(),
    }
}

/// What stands for a delivery whose row cannot be read: its payload is kept, as text.
pub(super) fn unreadable(claimed: &Claimed, payload: &str) -> Delivery {
    let payload = Payload::of_text(payload);
    let (app_id, script_id) = (claimed.app_id, claimed.script_id);
    Delivery {
        id: claimed.id,
        attempt: claimed.attempt,
        reply_to: claimed.reply_to,
        ..Delivery::new(app_id, script_id, "unknown", payload, RetryPolicy::ONCE)
    }
}
