//! Takes deliveries on, under a lease, and sees them through to their outcome.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::Utc;
use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fair::{Claims, Turns, claim};
use super::gate::Permit;
use super::inbox::{Inbox, Waiter};
use super::outbox::{HandOver, Outbox};
use super::record::{
    abandoned, attempt_of, count_abandoned, never_ran, unreadable, with_lost_attempts,
};
use super::retry::RetryPolicy;
use super::sql::{self, Also, Claimed, Completion, NewDelivery, Placed, Then};
use super::unwritten::Unwritten;
use super::{Answer, Attempt, Attempted, Delivery, Executor};
use crate::apps::AppId;
use crate::dead_letters::DeadLetter;
use crate::executions::{
    AbandonReason, AbandonedExecution, ExecutionError, ExecutionId, OutcomeKind, sql::Ended,
    tally::Tally,
};
use crate::idempotency::{KeptAnswer, Key};
use crate::sandbox::Outcome;
use crate::store::{Engine, StoreError};
use crate::telemetry::trace::Span;

/// The safety net under the wake-up: how long a due row waits when its notification was lost.
const POLL: Duration = Duration::from_secs(1);
/// How long after its script's time limit a caller waits for the outcome to be written.
const ANSWER_GRACE: Duration = Duration::from_secs(5);
/// How long the next try is away when there was no room at the gate.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(5);

/// The worker of this node.
pub struct Dispatcher {
    outbox: Arc<Outbox>,
    handed: Mutex<Option<HandOver>>,
    inbox: Inbox,
    unwritten: Unwritten,
    executor: Arc<dyn Executor>,
    tally: Arc<Tally>,
    turns: Arc<Mutex<Turns>>,
    /// Deliveries that are worked on.
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// A delivery to be, for whose answer somebody waits.
pub struct Order {
    /// What it delivers; its attempt and `reply_to` are set by the dispatcher.
    pub delivery: Delivery,
    /// How long its script may take.
    pub timeout: Duration,
    /// What makes it happen once, and whether its answer is kept for whoever asks again.
    pub key: Option<(Key, bool)>,
}

/// The gate is full.
#[derive(Debug, thiserror::Error)]
#[error("as many executions run as this node takes on")]
pub struct GateFull;

/// Say of an exported execution what it was.
fn describe(span: &Span, delivery: &Delivery, ended: &Ended) {
    if !span.is_exported() {
        return;
    }
    let execution = &ended.execution;
    for (key, id) in [
        ("picloud.execution.id", execution.id.to_string()),
        ("picloud.delivery.id", delivery.id.to_string()),
        ("picloud.app.id", execution.app_id.to_string()),
        ("picloud.script.id", execution.script_id.to_string()),
        ("picloud.invocation_type", delivery.invocation_type.clone()),
    ] {
        span.set(key, id);
    }
    span.set("picloud.attempt", i64::from(execution.attempt));
    span.set("picloud.fuel", execution.fuel.cast_signed());
    span.set("picloud.outcome", execution.outcome.as_str());
    // The script's own words stay in its log.
    if execution.outcome != OutcomeKind::Answered {
        span.failed(execution.outcome.as_str());
    }
}

impl Dispatcher {
    /// A dispatcher that runs with `executor` what is in `outbox`, and counts in `tally` what came
    /// of it.
    pub fn new(
        outbox: Arc<Outbox>,
        handed: HandOver,
        executor: Arc<dyn Executor>,
        tally: Arc<Tally>,
    ) -> Arc<Self> {
        Arc::new(Self {
            outbox,
            handed: Mutex::new(Some(handed)),
            inbox: Inbox::default(),
            unwritten: Unwritten::default(),
            executor,
            tally,
            turns: Arc::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        })
    }

    /// Put a delivery into the outbox, run it and wait for its answer; `None` when it took too
    /// long. A caller who drops this future has left: the delivery goes on and is recorded as
    /// abandoned.
    ///
    /// # Errors
    /// [`GateFull`]; then nothing was written.
    pub async fn call(self: &Arc<Self>, order: Order) -> Result<Option<Answer>, GateFull> {
        let Order {
            mut delivery,
            timeout,
            key,
        } = order;
        let permit = self.enter(delivery.app_id)?;
        delivery.reply_to = Some(self.outbox.worker);
        delivery.retry = RetryPolicy::ONCE;
        let waiter: Waiter = self.inbox.register(delivery.id);
        let dispatcher = self.clone();
        // A task of its own: it must not end half-way when the caller leaves.
        let seen_through = async move {
            let row = NewDelivery {
                key: key.as_ref().map(|(key, _)| key.clone()),
                ..dispatcher.outbox.row(delivery, Some(&permit), false)
            };
            let delivery = row.delivery.clone();
            let committing = Span::begin("commit delivery");
            let written = dispatcher.outbox.db.write_grouped(row);
            match committing.around(written).await {
                Ok(Placed::Known(known)) => dispatcher.turn_away(&delivery, Answer::Known(known)),
                Ok(_) => dispatcher.attempt(delivery, permit, key).await,
                Err(error) => {
                    tracing::error!(delivery_id = %delivery.id, %error, "a delivery could not be written");
                    dispatcher.turn_away(&delivery, Answer::Unavailable);
                }
            }
        };
        self.tasks.spawn(Span::current().around(seen_through));
        Ok(waiter.wait(timeout + ANSWER_GRACE).await)
    }

    /// Put a delivery into the outbox for which nobody waits, unless its key was used before, and
    /// run it where there is room for it here. It is safe once this returns, and goes on when the
    /// caller leaves.
    ///
    /// # Errors
    /// [`StoreError`] when it could not be written.
    pub async fn enqueue(
        self: &Arc<Self>,
        delivery: Delivery,
        key: Option<Key>,
    ) -> Result<Placed, StoreError> {
        let (tell, told) = oneshot::channel();
        let dispatcher = self.clone();
        let committing = Span::begin("commit delivery");
        // Whoever waits is told, and the same task runs it: a start that waits for the turn of
        // another task is later.
        self.tasks.spawn(async move {
            let outbox = &dispatcher.outbox;
            let permit = outbox.admit(delivery.app_id);
            let row = NewDelivery {
                key,
                ..outbox.row(delivery, permit.as_ref(), false)
            };
            let delivery = row.delivery.clone();
            let written = committing.around(outbox.db.write_grouped(row)).await;
            let placed = written.as_ref().ok().cloned();
            // A caller who has left does not want to know.
            let _ = tell.send(written);
            match (placed, permit) {
                (Some(Placed::Claimed), Some(permit)) => dispatcher.work(delivery, permit).await,
                (Some(placed), permit) => outbox.placed(delivery, permit, &placed),
                (None, _) => {}
            }
        });
        told.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Answer the caller of a delivery that was not run: when they have left, there is nothing to
    /// abandon.
    fn turn_away(&self, delivery: &Delivery, answer: Answer) {
        if let Ok(slot) = self.inbox.take(delivery.id) {
            let _ = slot.answer(answer);
        }
    }

    /// Wait until the outcomes of all calls are written that this node answered before now.
    pub async fn settled(&self) {
        self.unwritten.settled().await;
    }

    /// A place at the gate for an execution whose caller waits.
    ///
    /// # Errors
    /// [`GateFull`].
    pub fn enter(&self, app_id: AppId) -> Result<Permit, GateFull> {
        self.outbox.gate.enter(app_id).ok_or(GateFull)
    }

    /// Work on a leased delivery for which nobody waits, in its trace.
    async fn work(self: Arc<Self>, delivery: Delivery, permit: Permit) {
        let span = Span::of(delivery.trace);
        span.around(self.attempt(delivery, permit, None)).await;
    }

    /// See a leased delivery through this attempt. `key` is what makes it happen once, and
    /// whether its answer is kept for whoever asks again.
    async fn attempt(
        self: Arc<Self>,
        delivery: Delivery,
        permit: Permit,
        key: Option<(Key, bool)>,
    ) {
        if delivery.reply_to.is_none() && self.executor.is_held(&delivery) {
            let completion = self.completion(&delivery, Then::Held);
            drop(permit);
            self.complete(completion).await;
            return;
        }
        let begun = crate::store::micros(Utc::now());
        Span::since(delivery.waiting_since(), "delivery wait");
        let execution = Span::begin("execution");
        let attempted = self.executor.attempt(delivery.clone());
        // A panic here would leave the row leased for as long as this process lives.
        let attempted = AssertUnwindSafe(attempted).catch_unwind();
        let attempted = execution.clone().around(attempted).await;
        let Attempted { ended, answer } = attempted.unwrap_or_else(|_| {
            tracing::error!(delivery_id = %delivery.id, "an attempt panicked; this is a mistake of ours");
            let error = ExecutionError::new("the platform failed");
            // The execution of a first attempt has the delivery's id.
            let id = match delivery.attempt {
                1 => delivery.id.of(),
                _ => ExecutionId::new(),
            };
            let outcome = OutcomeKind::PlatformFault;
            Attempted {
                ended: never_ran(&delivery, id, outcome, error, begun),
                answer: Answer::PlatformFault,
            }
        });
        describe(&execution, &delivery, &ended);
        drop(execution);
        // The place is free for the next execution while this outcome goes to the disk.
        drop(permit);
        if self.outbox.backlog.load(Ordering::Relaxed) {
            self.outbox.wake.notify_one();
        }
        metrics::counter!("picloud_executions_total", "outcome" => ended.execution.outcome.as_str())
            .increment(1);
        self.tally.count(&ended.execution);
        match delivery.reply_to {
            Some(_) => self.answer(&delivery, ended, answer, key).await,
            None => self.conclude(delivery, ended).await,
        }
    }

    /// The end of a delivery whose caller waits: it is attempted once, whatever came of it.
    async fn answer(
        &self,
        delivery: &Delivery,
        ended: Ended,
        answer: Answer,
        key: Option<(Key, bool)>,
    ) {
        let slot = self.inbox.take(delivery.id);
        let mut completion = self.completion(delivery, Then::Gone);
        completion.ended = Some(ended);
        let Some((key, keep_answer)) = key else {
            // The answer tells all that the caller wants to know: what is written comes after.
            let _pending = self.unwritten.begin();
            let answered = slot.and_then(|slot| slot.answer(answer));
            if let Err(reason) = answered {
                let row = abandoned(delivery, reason);
                completion.also.push(Also::Abandoned(row));
            }
            self.complete(completion).await;
            return;
        };
        // Whoever has the answer may call again with the key, and must find the first call ended.
        completion.is_awaited = true;
        if let Err(reason) = &slot {
            let row = abandoned(delivery, *reason);
            completion.also.push(Also::Abandoned(row));
        }
        if keep_answer
            && let Answer::Outcome(Outcome::Answered(response)) = &answer
            && let Some(answer) = KeptAnswer::of(response)
        {
            let keep = Also::Keep(delivery.app_id, key, answer);
            completion.also.push(keep);
        }
        let completed = self.complete(completion).await;
        if let Ok(slot) = slot
            && slot.answer(answer).is_err()
            && completed
        {
            self.record_late(abandoned(delivery, AbandonReason::CallerGone))
                .await;
        }
    }

    /// The end of an attempt for which nobody waits: done, due again, or dead.
    async fn conclude(&self, mut delivery: Delivery, ended: Ended) {
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
        completion.ended = Some(ended);
        let is_due_again = matches!(completion.then, Then::DueAfter(..));
        let tells = completion
            .also
            .iter()
            .any(|also| matches!(also, Also::Enqueue(_)));
        let frees_another = delivery.order_key.is_some();
        if !self.complete(completion).await {
            return;
        }
        metrics::counter!("picloud_deliveries_total", "outcome" => name, "source" => delivery.invocation_type)
            .increment(1);
        if tells || frees_another {
            self.outbox.is_behind();
        } else if is_due_again {
            // To reckon anew when the next is due.
            self.outbox.wake.notify_one();
        }
    }

    /// What is written when a delivery has used up its attempts. A handler of a dead letter makes
    /// none: the one that it was told of is marked.
    fn bury(&self, delivery: &Delivery, history: Vec<Attempt>) -> Vec<Also> {
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

    fn completion(&self, delivery: &Delivery, then: Then) -> Completion {
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

    /// Write the end of an attempt, again and again while the database is away and the lease may
    /// still hold. Says whether it was written.
    async fn complete(&self, completion: Completion) -> bool {
        let id = completion.id;
        let mut completion = Arc::new(completion);
        let mut trimmed = false;
        let mut pause = Duration::from_millis(50);
        let gives_up_at = Instant::now() + self.outbox.lease.to_std().unwrap_or(POLL);
        loop {
            let committing = Span::begin("commit outcome");
            let written = self.outbox.db.write_grouped(completion.clone());
            match committing.around(written).await {
                Ok(true) => {
                    for also in &completion.also {
                        if let Also::Abandoned(row) = also {
                            count_abandoned(row);
                        }
                    }
                    return true;
                }
                Ok(false) => {
                    metrics::counter!("picloud_completions_refused_total").increment(1);
                    tracing::warn!(delivery_id = %id, "a completion came after its lease; refused");
                    return false;
                }
                Err(error) if error.is_unavailable() && Instant::now() < gives_up_at => {
                    tracing::warn!(delivery_id = %id, %error, "an outcome could not be written yet");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
                // Something in the outcome is not to the database's liking. The delivery must
                // end all the same, or it would stay leased for as long as this process lives.
                Err(error) if !error.is_unavailable() && !trimmed => {
                    tracing::error!(delivery_id = %id, %error, "an outcome is written without its details");
                    completion = Arc::new(completion.trimmed());
                    trimmed = true;
                }
                Err(error) => {
                    tracing::error!(delivery_id = %id, %error, "an outcome could not be written");
                    return false;
                }
            }
        }
    }

    /// The caller left between the commit and the answer.
    async fn record_late(&self, abandoned: AbandonedExecution) {
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

    /// Claim and work until told to stop; then give back what is left.
    ///
    /// # Errors
    /// When what is left cannot be given back.
    pub async fn run(self: Arc<Self>, grace: Duration) -> Result<(), StoreError> {
        let outbox = || self.outbox.clone();
        let heartbeat = tokio::spawn(outbox().keep_leases());
        let mending = tokio::spawn(outbox().keep_mending());
        let counting = tokio::spawn(outbox().keep_counting());
        let calling = tokio::spawn(outbox().call_other_nodes());
        let listening = tokio::spawn(outbox().listen_to_other_nodes());
        let receiving = tokio::spawn(self.clone().take_what_is_handed());
        while !self.stopping.is_cancelled() {
            let pause = self.claim_due().await;
            tokio::select! {
                () = self.outbox.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
                () = self.stopping.cancelled() => {}
            }
        }
        for task in [mending, counting, receiving, calling, listening] {
            task.abort();
        }
        self.tasks.close();
        if tokio::time::timeout(grace, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                running = self.tasks.len(),
                "the grace time is over; what still runs is given back"
            );
        }
        heartbeat.abort();
        let worker = self.outbox.worker;
        let released = self
            .outbox
            .db
            .write(move |tx| Box::pin(async move { sql::release(tx, Some(worker)).await }))
            .await?;
        if released > 0 {
            tracing::info!(released, "deliveries given back");
        }
        Ok(())
    }

    /// Take over every lease of an earlier life. Only where no other process can hold one: on
    /// SQLite, whose file is locked.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn take_over(&self) -> Result<(), StoreError> {
        let db = &self.outbox.db;
        if db.engine() != Engine::Sqlite {
            return Ok(());
        }
        let found = db
            .write(|tx| Box::pin(async move { sql::release(tx, None).await }))
            .await?;
        if found > 0 {
            metrics::counter!("picloud_leases_reclaimed_total").increment(found);
            tracing::info!(
                found,
                "deliveries were left claimed by an earlier run; taking them on"
            );
        }
        Ok(())
    }

    /// Stop claiming. [`Self::run`] then waits for what runs, and ends.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Whether the dispatcher takes on no more work.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Work on what the domains have written with our lease on it.
    async fn take_what_is_handed(self: Arc<Self>) {
        let handed = self
            .handed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(HandOver(mut handed)) = handed else {
            return;
        };
        while let Some((delivery, permit)) = handed.recv().await {
            let dispatcher = self.clone();
            self.tasks
                .spawn(async move { dispatcher.work(delivery, permit).await });
        }
    }

    /// Claim what is due while there is room for it. Answers how long nothing more can be due.
    async fn claim_due(self: &Arc<Self>) -> Duration {
        loop {
            if self.stopping.is_cancelled() {
                return POLL;
            }
            let (outbox, turns) = (self.outbox.clone(), self.turns.clone());
            let claimed = self
                .outbox
                .db
                .write(move |tx| Box::pin(async move { claim(tx, &outbox, &turns).await }));
            let Claims {
                taken,
                more,
                next_due_in,
            } = match claimed.await {
                Ok(claims) => claims,
                Err(error) => {
                    let error: StoreError = error;
                    tracing::warn!(%error, "due deliveries could not be claimed");
                    return POLL;
                }
            };
            self.outbox.backlog.store(more, Ordering::Relaxed);
            let is_stuck = taken.is_empty();
            for (claimed, permit) in taken {
                let dispatcher = self.clone();
                self.tasks
                    .spawn(async move { dispatcher.take_on(claimed, permit).await });
            }
            match (more, is_stuck) {
                // Whoever ends wakes us; one may have ended before `backlog` said so.
                (true, true) => return NO_ROOM_PAUSE,
                // Nothing is due any more, and that is when the next row is.
                (false, true) => {
                    let pause = next_due_in.map_or(POLL, |in_| in_.to_std().unwrap_or_default());
                    return pause.clamp(Duration::from_millis(1), POLL);
                }
                // An app whose first row was due may have another that is due soon.
                (_, false) => {}
            }
        }
    }

    /// What to do with a claimed row: run it, unless its sync caller cannot be there any more,
    /// its attempts are used up, or it cannot be read.
    async fn take_on(self: Arc<Self>, claimed: Claimed, permit: Permit) {
        let now = crate::store::micros(Utc::now());
        let attempt = claimed.attempt;
        let (delivery, problem) = match &claimed.delivery {
            Ok(delivery) => (delivery.clone(), None),
            Err((error, payload)) => (unreadable(&claimed, payload), Some(error)),
        };
        if delivery.reply_to.is_some() {
            let mut completion = self.completion(&delivery, Then::Gone);
            let row = abandoned(&delivery, AbandonReason::LeaseExpired);
            completion.also.push(Also::Abandoned(row));
            drop(permit);
            self.complete(completion).await;
            return;
        }
        if let Some(error) = problem {
            tracing::error!(delivery_id = %delivery.id, %error, "a delivery cannot be read");
            drop(permit);
            let error = ExecutionError::new(error.to_string());
            let outcome = OutcomeKind::PlatformFault;
            let ended = never_ran(&delivery, ExecutionId::new(), outcome, error, now);
            let history = vec![attempt_of(&ended)];
            let mut completion = self.completion(&delivery, Then::Gone);
            completion.also = self.bury(&delivery, history);
            completion.ended = Some(ended);
            self.complete(completion).await;
            return;
        }
        let told = delivery.history.last().map_or(0, |last| last.attempt);
        if attempt > told + 1 {
            // Somebody claimed it before us and never told what came of it.
            metrics::counter!("picloud_leases_reclaimed_total").increment(1);
        }
        if attempt > delivery.retry.attempts_max {
            drop(permit);
            let error = ExecutionError::new("every attempt at the delivery ended with its worker");
            let outcome = OutcomeKind::PlatformFault;
            // The delivery's own id may be its first attempt's.
            let ended = never_ran(&delivery, ExecutionId::new(), outcome, error, now);
            return self.conclude(delivery, ended).await;
        }
        self.work(delivery, permit).await;
    }
}
