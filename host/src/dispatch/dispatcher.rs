//! Takes deliveries on, under a lease, and sees them through to their outcome.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fair::{CLOCK_STEP, Claims, Turns, claim};
use super::gate::Permit;
use super::inbox::{Inbox, Waiter};
use super::outbox::{HandOver, Outbox, size_of};
use super::record::{abandoned, attempt_of, never_ran, unreadable};
use super::retry::{RetryPolicy, pause_for_memory};
use super::settle::SyncEnd;
use super::sql::{self, Also, Claimed, NewDelivery, Placed, Then};
use super::unwritten::Unwritten;
use super::{Answer, Attempted, Delivery, DeliveryId, Executor, Payload};
use crate::apps::AppId;
use crate::budget::Exceeded;
use crate::dead_letters::DeadLetter;
use crate::executions::{
    AbandonReason, ExecutionError, ExecutionId, OutcomeKind, sql::Ended, tally::Tally,
};
use crate::idempotency::{Key, sql as idempotency};
use crate::quotas::Full;
use crate::sandbox::Outcome;
use crate::store::{Engine, StoreError};
use crate::tasks::Tasks;
use crate::telemetry::trace::Span;

/// The safety net under the wake-up: how long a due row waits when its notification was lost.
const POLL: Duration = Duration::from_secs(1);
/// How long after its script's time limit a caller waits for the outcome to be written.
const ANSWER_GRACE: Duration = Duration::from_secs(5);
/// After so many claims more than its attempts, a delivery is buried without being looked at: what
/// it is about made us panic each time.
const CLAIMS_BEYOND: u32 = 3;
/// How long a node that stops tries to give back its leases.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the next try is away when there was no room at the gate.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(5);

/// The worker of this node.
pub struct Dispatcher {
    pub(super) outbox: Arc<Outbox>,
    /// Locked by the one task that receives.
    pub(super) handed: tokio::sync::Mutex<HandOver>,
    pub(super) inbox: Inbox,
    pub(super) unwritten: Unwritten,
    pub(super) executor: Arc<dyn Executor>,
    pub(super) tally: Arc<Tally>,
    pub(super) turns: Arc<Mutex<Turns>>,
    /// Deliveries that are worked on.
    pub(super) tasks: TaskTracker,
    pub(super) stopping: CancellationToken,
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

/// An attempt, or what is done after it, panicked.
fn count_panic(delivery_id: DeliveryId) {
    metrics::counter!("picloud_dispatch_panics_total").increment(1);
    tracing::error!(%delivery_id, "an attempt panicked; this is a mistake of ours");
}

/// The gate is full.
#[derive(Debug, thiserror::Error)]
#[error("as many executions run as this node takes on")]
pub struct GateFull;

/// How long a delivery waits that failed because others hold all memory for guests, which is no attempt
/// of it. A caller who waits is told instead.
fn pause_for_others(delivery: &Delivery, answer: &Answer) -> Option<TimeDelta> {
    match answer {
        Answer::Outcome(Outcome::NoMemory(Exceeded::ByAll)) if delivery.reply_to.is_none() => {
            let (_, seed) = delivery.id.uuid().as_u64_pair();
            pause_for_memory(Utc::now() - delivery.created_at, seed)
        }
        _ => None,
    }
}

/// Why a delivery was not taken on. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// As much runs as this node takes on.
    #[error(transparent)]
    GateFull(#[from] GateFull),
    /// The app keeps as many deliveries, or idempotency keys, as it may.
    #[error(transparent)]
    Full(#[from] Full),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

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
            handed: tokio::sync::Mutex::new(handed),
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
    /// long, [`Answer::Unavailable`] when it could not be written in that time. A caller who drops
    /// this future has left: the delivery goes on and is recorded as abandoned.
    ///
    /// # Errors
    /// [`Refused`]; then nothing was written.
    pub async fn call(self: &Arc<Self>, order: Order) -> Result<Option<Answer>, Refused> {
        let Order {
            mut delivery,
            timeout,
            key,
        } = order;
        if let Err(error) = self.outbox.db.check_for_call() {
            // It would hold an instance until its time limit.
            tracing::debug!(%error, "a call is refused");
            return Ok(Some(Answer::Unavailable));
        }
        if let Some((key, _)) = &key {
            let room = self.room_for_key(delivery.app_id, key);
            self.see_to_room(room, delivery.app_id, Some(key)).await?;
        }
        let mut permit = self.enter(delivery.app_id)?;
        delivery.reply_to = Some(self.outbox.worker);
        delivery.retry = RetryPolicy::ONCE;
        let waiter: Waiter = self.inbox.register(delivery.id);
        let dispatcher = self.clone();
        // A task of its own: it must not end half-way when the caller leaves.
        let seen_through = async move {
            let row = NewDelivery {
                key: key.as_ref().map(|(key, _)| key.clone()),
                ..dispatcher.outbox.row(delivery, Some(&mut permit), false)
            };
            let delivery = row.delivery.clone();
            let committing = Span::begin("commit delivery");
            let written = dispatcher.outbox.db.write_grouped(row);
            match committing.around(written).await {
                Ok(Placed::Known(known)) => {
                    Outbox::not_placed(Some(permit));
                    dispatcher.turn_away(&delivery, Answer::Known(known));
                }
                Ok(_) if dispatcher.inbox.begin(delivery.id) => {
                    permit.placed();
                    if let Some((key, _)) = &key {
                        let keys = &dispatcher.outbox.counts.idempotency_keys;
                        keys.add(delivery.app_id, key.size());
                    }
                    dispatcher.guarded_attempt(delivery, permit, key).await;
                }
                // It came to be written after its caller had been told that it never would be.
                Ok(_) => dispatcher.take_back(&delivery, permit, key).await,
                Err(error) => {
                    tracing::debug!(delivery_id = %delivery.id, %error, "a delivery could not be written");
                    dispatcher.turn_away(&delivery, Answer::Unavailable);
                    match error.is_in_doubt() {
                        true => dispatcher.take_back(&delivery, permit, key).await,
                        false => Outbox::not_placed(Some(permit)),
                    }
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
    /// [`Refused`] when it could not be written, or the app has no room for it.
    pub async fn enqueue(
        self: &Arc<Self>,
        delivery: Delivery,
        key: Option<Key>,
    ) -> Result<Placed, Refused> {
        self.outbox.db.check_urgent()?;
        let (app_id, size) = (delivery.app_id, size_of(&delivery));
        let mut room = self.outbox.counts.deliveries.check(app_id, size);
        if let Some(key) = &key {
            room = room.and_then(|()| self.room_for_key(app_id, key));
        }
        self.see_to_room(room, app_id, key.as_ref()).await?;
        let key_size = key.as_ref().map(Key::size);
        let (tell, told) = oneshot::channel();
        let dispatcher = self.clone();
        let committing = Span::begin("commit delivery");
        // Whoever waits is told, and the same task runs it: a start that waits for the turn of
        // another task is later.
        self.tasks.spawn(async move {
            let outbox = &dispatcher.outbox;
            let mut permit = outbox.admit(delivery.app_id);
            let row = NewDelivery {
                key,
                ..outbox.row(delivery, permit.as_mut(), false)
            };
            let delivery = row.delivery.clone();
            let written = committing.around(outbox.db.write_grouped(row)).await;
            let placed = written.as_ref().ok().cloned();
            let is_in_doubt = written.as_ref().is_err_and(StoreError::is_in_doubt);
            let is_new = placed
                .as_ref()
                .is_some_and(|placed| !matches!(placed, Placed::Known(_)));
            if let Some(size) = key_size.filter(|_| is_new) {
                outbox.counts.idempotency_keys.add(app_id, size);
            }
            // A caller who has left does not want to know.
            let _ = tell.send(written);
            match (placed, permit) {
                (Some(Placed::Claimed), Some(permit)) => {
                    permit.placed();
                    outbox.count(&delivery);
                    dispatcher.work(delivery, permit).await;
                }
                (Some(placed), permit) => outbox.placed(delivery, permit, &placed),
                // If it is there, it is run: its lease is given back.
                (None, permit) if is_in_doubt => drop(permit),
                (None, permit) => Outbox::not_placed(permit),
            }
        });
        Ok(told.await.unwrap_or(Err(StoreError::Closed))?)
    }

    fn room_for_key(&self, app_id: AppId, key: &Key) -> Result<(), Full> {
        self.outbox
            .counts
            .idempotency_keys
            .check(app_id, key.size())
    }

    /// Refuse a call that there is no room for, unless its key was used before: what was promised for
    /// that is answered.
    async fn see_to_room(
        &self,
        room: Result<(), Full>,
        app_id: AppId,
        key: Option<&Key>,
    ) -> Result<(), Refused> {
        let Err(full) = room else { return Ok(()) };
        if let Some(key) = key {
            let mut conn = self.outbox.db.read_for(app_id.uuid()).await?;
            if idempotency::is_known(&mut conn, app_id, key).await? {
                return Ok(());
            }
        }
        Err(full.into())
    }

    /// Answer the caller of a delivery that was not run: when they have left, there is nothing to
    /// abandon.
    fn turn_away(&self, delivery: &Delivery, answer: Answer) {
        if let Ok(slot) = self.inbox.take(delivery.id) {
            let _ = slot.answer(answer);
        }
    }

    /// Take a call back whose row was written, or may have been: its caller was told that nothing was
    /// run, so nothing is, and its key is free again.
    async fn take_back(&self, delivery: &Delivery, mut permit: Permit, key: Option<(Key, bool)>) {
        let Some(lease) = permit.lease.take() else {
            return;
        };
        drop(permit);
        lease.placed();
        let mut completion = self.completion(delivery, Then::Gone);
        let forget = key.map(|(key, _)| Also::Forget(delivery.app_id, key, delivery.id.of()));
        completion.also.extend(forget);
        self.complete(completion, lease).await;
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
        span.around(self.guarded_attempt(delivery, permit, None))
            .await;
    }

    /// The same as [`Self::attempt`]. A panic in it is our mistake, and the end of this attempt only:
    /// its lease is given back, so that the delivery is tried again or buried.
    async fn guarded_attempt(
        self: Arc<Self>,
        delivery: Delivery,
        permit: Permit,
        key: Option<(Key, bool)>,
    ) {
        let (id, is_sync) = (delivery.id, delivery.reply_to.is_some());
        let attempt = AssertUnwindSafe(self.clone().attempt(delivery, permit, key));
        if attempt.catch_unwind().await.is_err() {
            count_panic(id);
            if is_sync && let Ok(slot) = self.inbox.take(id) {
                // Who has left does not want to know.
                let _ = slot.answer(Answer::PlatformFault);
            }
        }
    }

    /// See a leased delivery through this attempt. `key` is what makes it happen once, and
    /// whether its answer is kept for whoever asks again.
    async fn attempt(
        self: Arc<Self>,
        delivery: Delivery,
        mut permit: Permit,
        key: Option<(Key, bool)>,
    ) {
        let Some(lease) = permit.lease.take() else {
            // Whoever has a permit for a row has taken the lease on it.
            tracing::error!(delivery_id = %delivery.id, "a delivery was begun without its lease");
            return;
        };
        if delivery.reply_to.is_none() && self.executor.is_held(&delivery) {
            let completion = self.completion(&delivery, Then::Held);
            drop(permit);
            self.complete(completion, lease).await;
            return;
        }
        let begun = crate::store::micros(Utc::now());
        Span::since(delivery.waiting_since(), "delivery wait");
        let execution = Span::begin("execution");
        let attempted = self.executor.attempt(delivery.clone());
        // The execution that failed is kept, too.
        let attempted = AssertUnwindSafe(attempted).catch_unwind();
        let attempted = execution.clone().around(attempted);
        let attempted = tokio::select! {
            attempted = attempted => attempted.map_err(|_| {
                count_panic(delivery.id);
                ("the platform failed", Answer::PlatformFault)
            }),
            // Dropped, the guest ends: another node may have begun the same.
            () = lease.over() => {
                metrics::counter!("picloud_leases_lost_total").increment(1);
                tracing::info!(delivery_id = %delivery.id, "an attempt is stopped: its lease is over");
                Err(("it was stopped: its lease could not be renewed", Answer::Stopped))
            }
        };
        let was_stopped = attempted.is_err();
        let Attempted { ended, answer } = attempted.unwrap_or_else(|(problem, answer)| {
            // The execution of a first attempt has the delivery's id.
            let id = match delivery.attempt {
                1 => delivery.id.of(),
                _ => ExecutionId::new(),
            };
            let (outcome, error) = (OutcomeKind::PlatformFault, ExecutionError::new(problem));
            let ended = never_ran(&delivery, id, outcome, error, begun);
            Attempted { ended, answer }
        });
        describe(&execution, &delivery, &ended);
        drop(execution);
        // The place is free for the next execution while this outcome goes to the disk.
        drop(permit);
        if self.outbox.backlog.load(Ordering::Relaxed) {
            self.outbox.wake.notify_one();
        }
        if let Some(pause) = pause_for_others(&delivery, &answer) {
            return self.put_back(&delivery, pause, lease).await;
        }
        metrics::counter!("picloud_executions_total", "outcome" => ended.execution.outcome.as_str())
            .increment(1);
        self.tally.count(&ended.execution);
        match delivery.reply_to {
            Some(_) => {
                let end = SyncEnd {
                    ended,
                    answer,
                    was_stopped,
                };
                self.answer(&delivery, end, key, lease).await;
            }
            None => self.conclude(delivery, ended, lease).await,
        }
    }

    /// Claim and work until told to stop; then give back what is left, within [`RELEASE_TIMEOUT`].
    pub async fn run(self: Arc<Self>, tasks: Tasks, grace: Duration) {
        let outbox = |work: fn(Arc<Outbox>) -> BoxFuture<'static, ()>| {
            let outbox = self.outbox.clone();
            move || work(outbox.clone())
        };
        let leases = tasks.spawn("outbox.leases", outbox(|o| o.keep_leases().boxed()));
        let fencing = tasks.spawn("outbox.fencing", outbox(|o| o.keep_fenced().boxed()));
        let upkeep = [
            tasks.spawn("outbox.nodes", outbox(|o| o.watch_other_nodes().boxed())),
            tasks.spawn("outbox.mending", outbox(|o| o.keep_mending().boxed())),
            tasks.spawn("outbox.counting", outbox(|o| o.keep_counting().boxed())),
            tasks.spawn("outbox.calling", outbox(|o| o.call_other_nodes().boxed())),
            tasks.spawn(
                "outbox.listening",
                outbox(|o| o.listen_to_other_nodes().boxed()),
            ),
            tasks.spawn("dispatcher.handed", {
                let dispatcher = self.clone();
                move || dispatcher.clone().take_what_is_handed()
            }),
            tasks.spawn("dispatcher.claiming", {
                let dispatcher = self.clone();
                move || dispatcher.clone().keep_claiming()
            }),
        ];
        self.stopping.cancelled().await;
        for task in &upkeep {
            task.end();
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
        leases.end();
        fencing.end();
        let worker = self.outbox.worker;
        let released = self
            .outbox
            .db
            .write(move |tx| Box::pin(async move { sql::release(tx, Some(worker)).await }));
        match tokio::time::timeout(RELEASE_TIMEOUT, released).await {
            Ok(Ok(0)) => {}
            Ok(Ok(released)) => tracing::info!(released, "deliveries given back"),
            Ok(Err(error)) => {
                let error: StoreError = error;
                tracing::warn!(%error, "deliveries could not be given back; their leases end by themselves");
            }
            Err(_) => tracing::warn!(
                "deliveries could not be given back in time; their leases end by themselves"
            ),
        }
    }

    /// Claim what is due whenever something may be.
    async fn keep_claiming(self: Arc<Self>) {
        loop {
            let pause = self.claim_due().await;
            tokio::select! {
                () = self.outbox.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
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
            .write(|tx| {
                Box::pin(async move {
                    let behind = sql::clock_behind(tx).await?;
                    if behind > CLOCK_STEP {
                        sql::bring_forward(tx, behind).await?;
                    }
                    sql::release(tx, None).await
                })
            })
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
        let mut handed = self.handed.lock().await;
        while let Some((delivery, permit)) = handed.0.recv().await {
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
            let sent = Instant::now();
            let (outbox, turns) = (self.outbox.clone(), self.turns.clone());
            let claimed = self
                .outbox
                .db
                .write(move |tx| Box::pin(async move { claim(tx, &outbox, &turns).await }));
            let Claims {
                taken,
                more,
                next_due_in,
                renewed,
                at: (at, now),
            } = match claimed.await {
                Ok(claims) => claims,
                Err(error) => {
                    let error: StoreError = error;
                    match error.is_unavailable() {
                        // The store says once that it is away.
                        true => tracing::debug!(%error, "due deliveries could not be claimed"),
                        false => tracing::warn!(%error, "due deliveries could not be claimed"),
                    }
                    return POLL;
                }
            };
            self.outbox.leases.renewed(sent, &renewed);
            self.outbox.leases.clock_seen(at, now);
            self.outbox.backlog.store(more, Ordering::Relaxed);
            let is_stuck = taken.is_empty();
            for (claimed, permit) in taken {
                permit.placed();
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
    /// its attempts are used up, or it cannot be read. A panic in it is the end of this claim only.
    async fn take_on(self: Arc<Self>, claimed: Claimed, permit: Permit) {
        let id = claimed.id;
        let taking = AssertUnwindSafe(self.take_on_unguarded(claimed, permit));
        if taking.catch_unwind().await.is_err() {
            count_panic(id);
        }
    }

    async fn take_on_unguarded(self: Arc<Self>, claimed: Claimed, mut permit: Permit) {
        let now = crate::store::micros(Utc::now());
        let attempt = claimed.attempt;
        let (delivery, problem) = match &claimed.delivery {
            Ok(delivery) => (delivery.clone(), None),
            Err((error, payload)) => (unreadable(&claimed, payload), Some(error.to_string())),
        };
        let is_poison = attempt > delivery.retry.attempts_max.saturating_add(CLAIMS_BEYOND);
        let is_over = delivery.reply_to.is_some()
            || problem.is_some()
            || attempt > delivery.retry.attempts_max;
        let lease = match is_over {
            true => permit.lease.take(),
            false => None,
        };
        let Some(lease) = lease else {
            let told = delivery.history.last().map_or(0, |last| last.attempt);
            if attempt > told + 1 {
                // Somebody claimed it before us and never told what came of it.
                metrics::counter!("picloud_leases_reclaimed_total").increment(1);
            }
            return self.work(delivery, permit).await;
        };
        drop(permit);
        if delivery.reply_to.is_some() {
            let mut completion = self.completion(&delivery, Then::Gone);
            let row = abandoned(&delivery, AbandonReason::LeaseExpired);
            completion.also.push(Also::Abandoned(row));
            self.complete(completion, lease).await;
            return;
        }
        // The delivery's own id may be its first attempt's.
        let ended = |problem: &str| {
            let (outcome, error) = (OutcomeKind::PlatformFault, ExecutionError::new(problem));
            never_ran(&delivery, ExecutionId::new(), outcome, error, now)
        };
        match problem {
            _ if is_poison => {
                let ended = ended("the platform failed at every attempt");
                let bare = Delivery {
                    payload: Arc::new(Payload::of_text(&delivery.payload.json())),
                    ..delivery.clone()
                };
                let mut completion = self.completion(&delivery, Then::Gone);
                let letter = DeadLetter::of(&bare, vec![attempt_of(&ended)], now);
                completion.also.push(match delivery.dead_letter_id {
                    Some(id) if delivery.invocation_type == "dead_letter" => {
                        Also::HandlerFailed(id)
                    }
                    _ => Also::DeadLetter(Box::new(letter)),
                });
                self.complete(completion, lease).await;
            }
            Some(problem) => {
                tracing::error!(delivery_id = %delivery.id, problem, "a delivery cannot be read");
                let ended = ended(&problem);
                let mut completion = self.completion(&delivery, Then::Gone);
                completion.also = self.bury(&delivery, vec![attempt_of(&ended)]);
                completion.ended = Some(ended);
                self.complete(completion, lease).await;
            }
            None => {
                metrics::counter!("picloud_leases_reclaimed_total").increment(1);
                let ended = ended("every attempt at the delivery ended with its worker");
                self.conclude(delivery, ended, lease).await;
            }
        }
    }
}
