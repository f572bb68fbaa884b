//! Takes deliveries on, under a lease, and sees them through to their outcome.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::gate::{Gate, Permit};
use super::inbox::{Inbox, Waiter};
use super::sql::{self, Claimed, Completion, NewDelivery};
use super::{Answer, Attempted, Delivery, DeliveryId, Executor, Payload, WorkerId};
use crate::apps::AppId;
use crate::executions::{
    AbandonReason, AbandonedExecution, Execution, ExecutionError, ExecutionId, Log, OutcomeKind,
    sql::Ended,
};
use crate::sandbox::Request;
use crate::scripts::ScriptId;
use crate::store::{Db, Engine, Id, StoreError};

/// The safety net under the wake-up: how long a due row waits when its notification was lost.
const POLL: Duration = Duration::from_secs(1);
/// How many rows one claim takes at most.
const CLAIM_MAX: usize = 64;
/// How long after its script's time limit a caller waits for the outcome to be written.
const ANSWER_GRACE: Duration = Duration::from_secs(5);

/// The worker of this node.
pub struct Dispatcher {
    worker: WorkerId,
    db: Db,
    gate: Gate,
    inbox: Inbox,
    executor: Arc<dyn Executor>,
    lease: TimeDelta,
    /// Something may be claimable now.
    wake: Notify,
    /// Whether rows may be due that nobody has claimed. While it is false, an execution that
    /// ends wakes nobody: a claim for each would cost more than the executions.
    backlog: AtomicBool,
    /// Deliveries that are worked on.
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// A delivery to be.
pub struct Order {
    /// What it delivers; its id, attempt and `reply_to` are set by the dispatcher.
    pub delivery: Delivery,
    /// How long its script may take.
    pub timeout: Duration,
}

/// The gate is full.
#[derive(Debug, thiserror::Error)]
#[error("as many executions run as this node takes on")]
pub struct GateFull;

impl Dispatcher {
    /// A dispatcher that runs deliveries with `executor`, at most `executions_max` at once.
    pub fn new(
        db: Db,
        executor: Arc<dyn Executor>,
        executions_max: usize,
        lease_ms: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            worker: WorkerId::new(),
            db,
            gate: Gate::new(executions_max),
            inbox: Inbox::default(),
            executor,
            lease: TimeDelta::milliseconds(i64::try_from(lease_ms).unwrap_or(i64::MAX / 2)),
            wake: Notify::new(),
            backlog: AtomicBool::new(false),
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
        } = order;
        let permit = self.gate.enter().ok_or(GateFull)?;
        delivery.reply_to = Some(self.worker);
        delivery.attempt = 1;
        delivery.attempts_max = 1;
        let waiter: Waiter = self.inbox.register(delivery.id);
        let dispatcher = self.clone();
        // A task of its own: it must not end half-way when the caller leaves.
        self.tasks.spawn(async move {
            match dispatcher.insert(&delivery, true).await {
                Ok(()) => dispatcher.work(delivery, permit).await,
                Err(error) => {
                    tracing::error!(delivery_id = %delivery.id, %error, "a delivery could not be written");
                    if let Ok(slot) = dispatcher.inbox.take(delivery.id) {
                        // Nothing was run, so there is nothing to abandon when nobody listens.
                        let _ = slot.answer(Answer::Unavailable);
                    }
                }
            }
        });
        Ok(waiter.wait(timeout + ANSWER_GRACE).await)
    }

    /// Put a delivery into the outbox for which nobody waits. It is safe once this returns.
    ///
    /// # Errors
    /// [`StoreError`] when it could not be written.
    pub async fn enqueue(self: &Arc<Self>, mut delivery: Delivery) -> Result<(), StoreError> {
        let permit = self.gate.enter_without_caller();
        delivery.reply_to = None;
        delivery.attempt = u32::from(permit.is_some());
        let dispatcher = self.clone();
        let written = self.tasks.spawn(async move {
            dispatcher.insert(&delivery, permit.is_some()).await?;
            match permit {
                Some(permit) => {
                    let next = dispatcher.clone();
                    dispatcher
                        .tasks
                        .spawn(async move { next.work(delivery, permit).await });
                }
                // Whoever ends next makes room for it.
                None => dispatcher.backlog.store(true, Ordering::Relaxed),
            }
            Ok(())
        });
        written.await.unwrap_or(Err(StoreError::Closed))
    }

    /// A place at the gate for an execution that does not come through the outbox.
    ///
    /// # Errors
    /// [`GateFull`].
    pub fn enter(&self) -> Result<Permit, GateFull> {
        self.gate.enter().ok_or(GateFull)
    }

    async fn insert(&self, delivery: &Delivery, born_claimed: bool) -> Result<(), StoreError> {
        let payload = serde_json::to_string(&*delivery.payload)
            .expect("a payload is strings and numbers, which are always JSON");
        let new = NewDelivery {
            delivery: delivery.clone(),
            payload,
            born_claimed: born_claimed.then_some((self.worker, self.lease)),
        };
        self.db.write_grouped(lane(delivery.id), new).await
    }

    /// See a leased delivery through.
    async fn work(self: Arc<Self>, delivery: Delivery, permit: Permit) {
        let (id, attempt, reply_to) = (delivery.id, delivery.attempt, delivery.reply_to);
        let begun = crate::store::micros(Utc::now());
        let attempted = self.executor.attempt(delivery.clone());
        // A panic here would leave the row leased for as long as this process lives.
        let attempted = AssertUnwindSafe(attempted).catch_unwind().await;
        let Attempted { ended, answer } = attempted.unwrap_or_else(|_| {
            tracing::error!(delivery_id = %id, "an attempt panicked; this is a mistake of ours");
            let error = ExecutionError::new("the platform failed");
            Attempted {
                ended: never_ran(
                    &delivery,
                    delivery.id.of(),
                    OutcomeKind::PlatformFault,
                    error,
                    begun,
                ),
                answer: Answer::PlatformFault,
            }
        });
        let execution = &ended.execution;
        metrics::counter!("picloud_executions_total", "outcome" => execution.outcome.as_str())
            .increment(1);
        let slot = reply_to.map(|_| self.inbox.take(id));
        let gone = slot.as_ref().and_then(|slot| slot.as_ref().err().copied());
        let abandon = |reason| AbandonedExecution {
            id: Id::new(),
            execution_id: ended.execution.id,
            app_id: ended.execution.app_id,
            script_id: ended.execution.script_id,
            reason,
            created_at: crate::store::micros(Utc::now()),
        };
        let abandoned = gone.map(abandon);
        let late = abandon(AbandonReason::CallerGone);
        let completion = Completion {
            id,
            attempt,
            worker: self.worker,
            ended: Some(ended),
            abandoned,
        };
        // The place is free for the next execution while this outcome goes to the disk.
        drop(permit);
        if self.backlog.load(Ordering::Relaxed) {
            self.wake.notify_one();
        }
        let completed = self.complete(completion).await;
        if let Some(Ok(slot)) = slot
            && slot.answer(answer).is_err()
            && completed
        {
            self.record_late(late).await;
        }
    }

    /// Write the end of a delivery, again and again while the database is away and the lease
    /// may still hold. Says whether it was written.
    async fn complete(&self, completion: Completion) -> bool {
        let (id, lane) = (completion.id, lane(completion.id));
        let mut completion = Arc::new(completion);
        let mut trimmed = false;
        let mut pause = Duration::from_millis(50);
        let gives_up_at = Utc::now() + self.lease;
        loop {
            match self.db.write_grouped(lane, completion.clone()).await {
                Ok(true) => return true,
                Ok(false) => {
                    metrics::counter!("picloud_completions_refused_total").increment(1);
                    tracing::warn!(delivery_id = %id, "a completion came after its lease; refused");
                    return false;
                }
                Err(error) if error.is_unavailable() && Utc::now() < gives_up_at => {
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
        let written = self
            .db
            .write(move |tx| {
                Box::pin(async move {
                    crate::executions::sql::insert_abandoned(tx, std::iter::once(&abandoned)).await
                })
            })
            .await;
        if let Err(error) = written {
            let error: StoreError = error;
            tracing::error!(%error, "an abandoned execution could not be recorded");
        }
    }

    /// Claim and work until told to stop; then give back what is left.
    ///
    /// # Errors
    /// When the leases of an earlier life cannot be taken over.
    pub async fn run(self: Arc<Self>, grace: Duration) -> Result<(), StoreError> {
        let heartbeat = tokio::spawn(self.clone().keep_leases());
        while !self.stopping.is_cancelled() {
            self.claim_due().await;
            tokio::select! {
                () = self.wake.notified() => {}
                () = tokio::time::sleep(POLL) => {}
                () = self.stopping.cancelled() => {}
            }
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
        let worker = self.worker;
        let released = self
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
        if self.db.engine() != Engine::Sqlite {
            return Ok(());
        }
        let found = self
            .db
            .write(|tx| Box::pin(async move { sql::release(tx, None).await }))
            .await?;
        if found > 0 {
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

    /// Whether the dispatcher takes on work.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    async fn claim_due(self: &Arc<Self>) {
        loop {
            let permits: Vec<Permit> = std::iter::from_fn(|| self.gate.enter_without_caller())
                .take(CLAIM_MAX)
                .collect();
            if permits.is_empty() || self.stopping.is_cancelled() {
                return;
            }
            let (worker, lease) = (self.worker, self.lease);
            let limit = i64::try_from(permits.len()).unwrap_or(i64::MAX);
            let claimed = self
                .db
                .write(move |tx| {
                    Box::pin(async move { sql::claim(tx, worker, lease, limit).await })
                })
                .await;
            let claimed = match claimed {
                Ok(claimed) => claimed,
                Err(error) => {
                    let error: StoreError = error;
                    tracing::warn!(%error, "due deliveries could not be claimed");
                    return;
                }
            };
            let full = claimed.len() == permits.len();
            self.backlog.store(full, Ordering::Relaxed);
            for (claimed, permit) in claimed.into_iter().zip(permits) {
                let dispatcher = self.clone();
                self.tasks
                    .spawn(async move { dispatcher.take_on(claimed, permit).await });
            }
            if !full {
                return;
            }
        }
    }

    /// What to do with a claimed row: run it, unless its sync caller cannot be there any more,
    /// its attempts are used up, or it cannot be read.
    async fn take_on(self: Arc<Self>, claimed: Claimed, permit: Permit) {
        let Claimed {
            id,
            app_id,
            script_id,
            attempt,
            delivery,
        } = claimed;
        let now = crate::store::micros(Utc::now());
        let mut completion = Completion {
            id,
            attempt,
            worker: self.worker,
            ended: None,
            abandoned: None,
        };
        match delivery {
            Ok(delivery) if delivery.reply_to.is_some() => {
                completion.abandoned = Some(AbandonedExecution {
                    id: Id::new(),
                    execution_id: id.of(),
                    app_id,
                    script_id,
                    reason: AbandonReason::LeaseExpired,
                    created_at: now,
                });
            }
            Ok(delivery) if attempt <= delivery.attempts_max => {
                return self.work(delivery, permit).await;
            }
            unrunnable => {
                let problem = match &unrunnable {
                    Ok(_) => "every attempt at the delivery ended with its worker".to_owned(),
                    Err(error) => error.to_string(),
                };
                tracing::error!(delivery_id = %id, %problem, "a delivery cannot be run");
                let delivery =
                    unrunnable.unwrap_or_else(|_| unreadable(id, app_id, script_id, attempt));
                let error = ExecutionError::new(problem);
                // The delivery's own id may be its first attempt's.
                let execution = ExecutionId::new();
                completion.ended = Some(never_ran(
                    &delivery,
                    execution,
                    OutcomeKind::PlatformFault,
                    error,
                    now,
                ));
            }
        }
        drop(permit);
        self.complete(completion).await;
    }

    async fn keep_leases(self: Arc<Self>) {
        let third = self.lease.to_std().unwrap_or(POLL) / 3;
        let (worker, lease) = (self.worker, self.lease);
        loop {
            tokio::time::sleep(third).await;
            let kept = self
                .db
                .write(move |tx| Box::pin(async move { sql::heartbeat(tx, worker, lease).await }))
                .await;
            if let Err(error) = kept {
                let error: StoreError = error;
                tracing::warn!(%error, "leases could not be extended");
            }
        }
    }
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
        invocation_type: delivery.invocation_type.clone(),
        request_id: delivery.request_id,
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

/// What stands for a delivery whose row cannot be read.
fn unreadable(id: DeliveryId, app_id: AppId, script_id: ScriptId, attempt: u32) -> Delivery {
    let nothing = Payload::Request(Request::default());
    Delivery {
        id,
        attempt,
        ..Delivery::new(app_id, script_id, "unknown", nothing, 0)
    }
}

/// Deliveries have no order among each other, so any lane will do, always the same one.
fn lane(id: DeliveryId) -> u64 {
    id.uuid().as_u64_pair().1
}

impl Delivery {
    /// A delivery of `payload` that nobody has claimed.
    pub fn new(
        app_id: AppId,
        script_id: ScriptId,
        invocation_type: &str,
        payload: Payload,
        attempts_max: u32,
    ) -> Self {
        let id = DeliveryId::new();
        Self {
            id,
            app_id,
            script_id,
            invocation_type: invocation_type.to_owned(),
            payload: Arc::new(payload),
            request_id: id.uuid(),
            trigger_depth: 0,
            reply_to: None,
            attempt: 0,
            attempts_max,
        }
    }
}
