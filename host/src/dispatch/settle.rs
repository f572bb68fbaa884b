//! What is written when an attempt has ended, and when it is written again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};

use super::leases::Lease;
use super::record::{abandoned, attempt_of, count_abandoned, with_lost_attempts};
use super::sql::{self, Also, Completion, Then};
use super::{Answer, Attempt, Delivery};
use crate::apps::AppId;
use crate::dead_letters::DeadLetter;
use crate::executions::{AbandonReason, AbandonedExecution, OutcomeKind, sql::Ended};
use crate::idempotency::{KeptAnswer, Key, sql as idempotency};
use crate::quotas::Size;
use crate::sandbox::Outcome;
use crate::store::StoreError;
use crate::telemetry::trace::Span;

use super::dispatcher::Dispatcher;

/// How long an outcome waits that could not be written, before it is tried again; it doubles.
const SETTLE_PAUSE: Duration = Duration::from_millis(50);
/// The longest such wait.
const SETTLE_PAUSE_MAX: Duration = Duration::from_secs(1);
/// For how long it is tried to set right what another node recorded.
const SET_RIGHT_WITHIN: Duration = Duration::from_secs(60);

/// How a sync call ended.
pub(super) struct SyncEnd {
    pub(super) ended: Ended,
    pub(super) answer: Answer,
    /// Whether it was stopped, because its lease was over or by a panic.
    pub(super) was_stopped: bool,
}

/// In which form an outcome is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As it is.
    Whole,
    /// Without the guest's words.
    Trimmed,
    /// Only what becomes of the row.
    Bare,
}

impl Form {
    fn plainer(self) -> Self {
        match self {
            Self::Whole => Self::Trimmed,
            Self::Trimmed | Self::Bare => Self::Bare,
        }
    }
}

fn count_all_abandoned(completion: &Completion) {
    for also in &completion.also {
        if let Also::Abandoned(row) = also {
            count_abandoned(row);
        }
    }
}

impl Dispatcher {
    /// The end of a delivery whose caller waits: it is attempted once, whatever came of it.
    pub(super) async fn answer(
        &self,
        delivery: &Delivery,
        end: SyncEnd,
        key: Option<(Key, bool)>,
        lease: Lease,
    ) {
        let SyncEnd {
            ended,
            answer,
            was_stopped,
        } = end;
        let slot = self.inbox.take(delivery.id);
        let mut completion = self.completion(delivery, Then::Gone);
        completion.ended = Some(ended.clone());
        let Some((key, keep_answer)) = key else {
            // The answer tells all that the caller wants to know: what is written comes after.
            let _pending = self.unwritten.begin();
            let answered = slot.and_then(|slot| slot.answer(answer));
            if let Err(reason) = answered {
                let row = abandoned(delivery, reason);
                completion.also.push(Also::Abandoned(row));
            }
            let completed = self.complete(completion, lease).await;
            if !completed && answered.is_ok() && !was_stopped {
                self.set_right(ended, None).await;
            }
            return;
        };
        // Whoever has the answer may call again with the key, and must find the first call ended.
        completion.is_awaited = true;
        if let Err(reason) = &slot {
            let row = abandoned(delivery, *reason);
            completion.also.push(Also::Abandoned(row));
        }
        let mut kept = None;
        let was_not_run =
            ended.execution.outcome.never_ran() || matches!(answer, Answer::Unavailable);
        if was_not_run {
            let keys = &self.outbox.counts.idempotency_keys;
            keys.take(delivery.app_id, key.size());
            let forget = Also::Forget(delivery.app_id, key, delivery.id.of());
            completion.also.push(forget);
        } else if keep_answer
            && let Answer::Outcome(Outcome::Answered(response)) = &answer
            && let Some(answer) = KeptAnswer::of(response)
        {
            // Before it is written: where that fails, it is measured again.
            let size = Size {
                rows: 0,
                bytes: answer.bytes() as u64,
            };
            let keys = &self.outbox.counts.idempotency_keys;
            keys.add(delivery.app_id, size);
            kept = Some((delivery.app_id, key.clone(), answer.clone()));
            let keep = Also::Keep(delivery.app_id, key, delivery.id.of(), answer);
            completion.also.push(keep);
        }
        let completed = self.complete(completion, lease).await;
        let Ok(slot) = slot else { return };
        // Before the answer: whoever has it may call again with the key.
        let is_right = completed || was_stopped || self.set_right(ended, kept).await;
        let answered = slot.answer(match is_right {
            true => answer,
            false => Answer::Stopped,
        });
        if answered.is_err() && completed {
            self.record_late(abandoned(delivery, AbandonReason::CallerGone))
                .await;
        }
    }

    /// Its lease being over, a call was recorded as abandoned by another node; but it ran, and its
    /// caller has, or gets, the answer. Keep its execution instead, and what was to be kept for its
    /// key. Says whether that was written.
    pub(super) async fn set_right(
        &self,
        ended: Ended,
        kept: Option<(AppId, Key, KeptAnswer)>,
    ) -> bool {
        let id = ended.execution.id;
        let (ended, kept) = (Arc::new(ended), Arc::new(kept));
        let gives_up_at = Instant::now() + SET_RIGHT_WITHIN;
        loop {
            let (ended, kept) = (ended.clone(), kept.clone());
            let written = self.outbox.db.write::<_, StoreError, _>(move |tx| {
                Box::pin(async move {
                    // Its only attempt has the delivery's id.
                    sql::leases::take_out_answered(tx, id.of()).await?;
                    if let Some((app_id, key, answer)) = &*kept {
                        idempotency::keep(tx, *app_id, key, id, answer).await?;
                    }
                    crate::executions::sql::set_right(tx, &ended).await
                })
            });
            match written.await {
                Ok(()) => return true,
                // Another node, or a completion of ours whose answer was lost, may be at the same rows.
                Err(error)
                    if (!error.blames_value() || matches!(error, StoreError::Duplicate))
                        && Instant::now() < gives_up_at =>
                {
                    tokio::time::sleep(SETTLE_PAUSE_MAX).await;
                }
                Err(error) => {
                    tracing::error!(execution_id = %id, %error, "an execution that was answered could not be kept");
                    return false;
                }
            }
        }
    }

    /// The end of an attempt for which nobody waits: done, due again, or dead.
    pub(super) async fn conclude(&self, mut delivery: Delivery, ended: Ended, lease: Lease) {
        let outcome = ended.execution.outcome;
        let mut completion = self.completion(&delivery, Then::Gone);
        let name = match outcome {
            OutcomeKind::Answered => "done",
            // Nothing of its app is left, a place for its dead letters neither.
            OutcomeKind::AppDeleted => "app_deleted",
            _ => {
                let mut history = with_lost_attempts(&mut delivery, &ended);
                // The claim that found the attempts used up was none.
                if delivery.attempt <= delivery.retry.attempts_max {
                    history.push(attempt_of(&ended));
                }
                let again = delivery.attempt < delivery.retry.attempts_max && !outcome.is_final();
                match again {
                    true => {
                        let (_, seed) = delivery.id.uuid().as_u64_pair();
                        let pause = delivery.retry.pause(delivery.attempt, seed);
                        completion.then = Then::DueAfter(pause, history);
                        "retried"
                    }
                    false => {
                        let also = self.bury(&delivery, history);
                        completion.also.extend(also);
                        "dead"
                    }
                }
            }
        };
        // Of an app that is gone nobody could see an execution.
        completion.ended = (outcome != OutcomeKind::AppDeleted).then_some(ended);
        let is_due_again = matches!(completion.then, Then::DueAfter(..));
        let is_told = |also: &Also| match also {
            Also::Enqueue(new) => Some(new.delivery.clone()),
            _ => None,
        };
        let told: Vec<Delivery> = completion.also.iter().filter_map(is_told).collect();
        let frees_another = delivery.order_key.is_some();
        if !self.complete(completion, lease).await {
            return;
        }
        if !is_due_again {
            self.outbox.uncount(&delivery);
        }
        told.iter().for_each(|handler| self.outbox.count(handler));
        metrics::counter!("picloud_deliveries_total", "outcome" => name, "source" => delivery.invocation_type)
            .increment(1);
        if !told.is_empty() || frees_another {
            self.outbox.is_behind();
        } else if is_due_again {
            // To reckon anew when the next is due.
            self.outbox.wake.notify_one();
        }
    }

    /// A delivery is due again after a pause, as if it had not been attempted: what ran of it is not kept,
    /// because the attempt that counts has its ids.
    pub(super) async fn put_back(&self, delivery: &Delivery, pause: TimeDelta, lease: Lease) {
        let completion = self.completion(delivery, Then::PutBack(pause));
        if self.complete(completion, lease).await {
            metrics::counter!("picloud_deliveries_put_back_total").increment(1);
            // To reckon anew when the next is due.
            self.outbox.wake.notify_one();
        }
    }

    /// What is written when a delivery has used up its attempts. A handler of a dead letter makes
    /// none: the one that it was told of is marked.
    pub(super) fn bury(&self, delivery: &Delivery, history: Vec<Attempt>) -> Vec<Also> {
        if delivery.invocation_type == "dead_letter" {
            metrics::counter!("picloud_dead_letter_handlers_failed_total").increment(1);
            let marked = delivery.dead_letter_id.map(Also::HandlerFailed);
            return marked.into_iter().collect();
        }
        let letter = DeadLetter::of(delivery, history, crate::store::micros(Utc::now()));
        tracing::warn!(
            delivery_id = %delivery.id,
            dead_letter_id = %letter.id,
            script_id = %delivery.script_id,
            attempts = letter.attempts,
            "a delivery used up its attempts"
        );
        let handlers = self.executor.handlers(&letter);
        let told = handlers
            .into_iter()
            .map(|handler| Also::Enqueue(Box::new(self.outbox.row(handler, None, false))));
        std::iter::once(Also::DeadLetter(Box::new(letter)))
            .chain(told)
            .collect()
    }

    pub(super) fn completion(&self, delivery: &Delivery, then: Then) -> Completion {
        Completion {
            id: delivery.id,
            attempt: delivery.attempt,
            worker: self.outbox.worker,
            ended: None,
            is_sync: delivery.reply_to.is_some(),
            is_awaited: delivery.order_key.is_some(),
            then,
            order_key: delivery.order_key.clone(),
            also: Vec::new(),
        }
    }

    /// Write the end of an attempt: again and again while the database is away, in a plainer form if
    /// it does not take this one. Says whether it was written; if not, the lease was over.
    pub(super) async fn complete(&self, completion: Completion, lease: Lease) -> bool {
        let _unsettled = self.outbox.gate.unsettled();
        let id = completion.id;
        let mut completion = Arc::new(completion);
        let mut form = Form::Whole;
        let mut may_be_written = false;
        let mut is_told = false;
        let mut pause = SETTLE_PAUSE;
        loop {
            let committing = Span::begin("commit outcome");
            let written = self.outbox.db.write_grouped(completion.clone());
            match committing.around(written).await {
                Ok(true) => {
                    lease.end();
                    count_all_abandoned(&completion);
                    return true;
                }
                Ok(false) => {
                    lease.end();
                    if may_be_written && self.is_recorded(&completion).await {
                        count_all_abandoned(&completion);
                        return true;
                    }
                    metrics::counter!("picloud_completions_refused_total").increment(1);
                    // Many at a time, where a database was away: that leases were not renewed was told.
                    tracing::info!(delivery_id = %id, "a completion came after its lease; refused");
                    return false;
                }
                // The store says once that it is away.
                Err(error) if error.is_unavailable() => {
                    may_be_written |= error.is_in_doubt();
                    tracing::debug!(delivery_id = %id, %error, "an outcome could not be written yet");
                }
                // The database refuses everything, for a reason that it did not have before.
                Err(error) if !error.blames_value() => {
                    if !is_told {
                        tracing::error!(delivery_id = %id, %error, "an outcome could not be written yet");
                    }
                    is_told = true;
                }
                // Something in the outcome is not to the database's liking. The delivery must end all
                // the same.
                Err(error) => {
                    tracing::error!(delivery_id = %id, ?form, %error, "an outcome could not be written");
                    form = form.plainer();
                    completion = Arc::new(match form {
                        Form::Whole | Form::Trimmed => completion.trimmed(),
                        Form::Bare => completion.bare(),
                    });
                    if form == Form::Bare {
                        pause = SETTLE_PAUSE_MAX;
                    } else {
                        continue;
                    }
                }
            }
            // Not all at once, when it is back.
            let jitter = id.uuid().as_u64_pair().1 % 100;
            tokio::time::sleep(pause + pause * jitter as u32 / 100).await;
            pause = (pause * 2).min(SETTLE_PAUSE_MAX);
        }
    }

    /// Whether the execution of an attempt was written, whose completion is refused now.
    pub(super) async fn is_recorded(&self, completion: &Completion) -> bool {
        let Some(ended) = &completion.ended else {
            // Nothing else tells. The row is gone, as it was to be.
            return true;
        };
        let gives_up_at = Instant::now() + SET_RIGHT_WITHIN;
        loop {
            let asked = async {
                let mut conn = self.outbox.db.read().await?;
                crate::executions::sql::is_there(&mut conn, ended.execution.id).await
            };
            match asked.await {
                Ok(is_there) => return is_there,
                Err(error) if error.is_unavailable() && Instant::now() < gives_up_at => {
                    tokio::time::sleep(SETTLE_PAUSE_MAX).await;
                }
                // What follows from it can be written twice.
                Err(_) => return false,
            }
        }
    }

    /// The caller left between the commit and the answer.
    pub(super) async fn record_late(&self, abandoned: AbandonedExecution) {
        let row = abandoned.clone();
        let written = self.outbox.db.write::<_, StoreError, _>(move |tx| {
            Box::pin(async move { crate::executions::sql::insert_abandoned(tx, &row).await })
        });
        match written.await {
            Ok(()) => count_abandoned(&abandoned),
            Err(error) => {
                tracing::error!(%error, "an abandoned execution could not be recorded");
            }
        }
    }
}
