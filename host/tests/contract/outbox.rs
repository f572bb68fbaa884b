//! The outbox: claiming, fencing, completing, and the dispatcher on top of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use picloud::apps::AppId;
use picloud::dispatch::dispatcher::{Dispatcher, Order, never_ran};
use picloud::dispatch::sql::{self, Claimed, Completion, NewDelivery};
use picloud::dispatch::{Answer, Attempted, Delivery, Executor, Payload, WorkerId};
use picloud::executions::sql as executions;
use picloud::executions::{AbandonReason, ExecutionError, OutcomeKind};
use picloud::sandbox::Request;
use picloud::scripts::ScriptId;
use picloud::store::{Db, StoreError};

use crate::database::Database;
use crate::on_both_engines;

on_both_engines!(
    a_claim_takes_what_is_due_and_counts_the_attempt,
    two_workers_never_claim_the_same,
    i03_a_stale_worker_cannot_complete_a_delivery,
    i04_a_delivery_leaves_together_with_its_outcome,
    i05_a_sync_delivery_is_attempted_at_most_once,
    a_dead_workers_deliveries_are_taken_on,
    a_delivery_that_kills_its_workers_ends_all_the_same,
    an_attempt_that_panics_ends_all_the_same,
    a_caller_who_leaves_leaves_an_abandoned_execution,
);

const LEASE: TimeDelta = TimeDelta::seconds(60);
const NO_LEASE: TimeDelta = TimeDelta::microseconds(-1);

fn delivery() -> Delivery {
    let payload = Payload::Request(Request {
        method: "POST".into(),
        ..Request::default()
    });
    Delivery::new(AppId::new(), ScriptId::new(), "http_async", payload, 3)
}

async fn insert(db: &Db, delivery: &Delivery, lease: Option<(WorkerId, TimeDelta)>) {
    let payload = serde_json::to_string(&*delivery.payload).unwrap();
    let new = NewDelivery {
        delivery: delivery.clone(),
        payload,
        born_claimed: lease,
    };
    db.write_grouped(0, new).await.unwrap();
}

async fn claim(db: &Db, worker: WorkerId, lease: TimeDelta, limit: i64) -> Vec<Claimed> {
    let claim = db.write::<_, StoreError, _>(move |tx| {
        Box::pin(async move { sql::claim(tx, worker, lease, limit).await })
    });
    claim.await.unwrap()
}

fn completion(delivery: &Delivery, attempt: u32, worker: WorkerId) -> Completion {
    let error = ExecutionError::new("x");
    let outcome = OutcomeKind::Threw;
    let ended = never_ran(
        delivery,
        delivery.id.of(),
        outcome,
        error,
        chrono::Utc::now(),
    );
    Completion {
        id: delivery.id,
        attempt,
        worker,
        ended: Some(ended),
        abandoned: None,
    }
}

async fn complete(db: &Db, completion: Completion) -> bool {
    db.write_grouped(0, Arc::new(completion)).await.unwrap()
}

async fn rows(db: &Db) -> i64 {
    let depth = db.write::<_, StoreError, _>(|tx| Box::pin(async move { sql::depth(tx).await }));
    depth.await.unwrap().0
}

async fn executions_of(db: &Db, delivery: &Delivery) -> usize {
    let mut conn = db.read().await.unwrap();
    let filter = executions::Filter::default();
    executions::page(&mut conn, delivery.app_id, &filter, None, 100)
        .await
        .unwrap()
        .len()
}

async fn a_claim_takes_what_is_due_and_counts_the_attempt(test: Database) {
    let (mine, other) = (WorkerId::new(), WorkerId::new());
    let (free, leased, lapsed) = (delivery(), delivery(), delivery());
    insert(&test.db, &free, None).await;
    insert(&test.db, &leased, Some((other, LEASE))).await;
    insert(&test.db, &lapsed, Some((other, NO_LEASE))).await;
    let claimed = claim(&test.db, mine, LEASE, 10).await;
    let ids: Vec<_> = claimed.iter().map(|claimed| claimed.id).collect();
    assert_eq!(ids, [free.id, lapsed.id]);
    assert!(claimed.iter().all(|claimed| claimed.attempt == 1));
    let read = claimed[0].delivery.as_ref().unwrap();
    let Payload::Request(request) = &*read.payload;
    assert_eq!((request.method.as_str(), read.attempts_max), ("POST", 3));
    assert!(
        claim(&test.db, mine, LEASE, 10).await.is_empty(),
        "what is leased stays leased"
    );
}

async fn two_workers_never_claim_the_same(test: Database) {
    for _ in 0..100 {
        insert(&test.db, &delivery(), None).await;
    }
    // Another process, as far as the database can tell.
    let workers = (0..4).map(|_| {
        let db = test.db.clone();
        tokio::spawn(async move {
            let (worker, mut mine) = (WorkerId::new(), Vec::new());
            loop {
                let claimed = claim(&db, worker, LEASE, 7).await;
                if claimed.is_empty() {
                    return mine;
                }
                mine.extend(claimed.into_iter().map(|claimed| claimed.id));
            }
        })
    });
    let mut all = Vec::new();
    for worker in workers.collect::<Vec<_>>() {
        all.extend(worker.await.unwrap());
    }
    all.sort();
    let count = all.len();
    all.dedup();
    assert_eq!((count, all.len()), (100, 100));
}

async fn i03_a_stale_worker_cannot_complete_a_delivery(test: Database) {
    let (slow, fast) = (WorkerId::new(), WorkerId::new());
    let delivery = delivery();
    insert(&test.db, &delivery, None).await;
    assert_eq!(claim(&test.db, slow, NO_LEASE, 1).await[0].attempt, 1);
    assert_eq!(claim(&test.db, fast, NO_LEASE, 1).await[0].attempt, 2);
    assert!(
        !complete(&test.db, completion(&delivery, 1, slow)).await,
        "its lease is over"
    );
    assert!(
        !complete(&test.db, completion(&delivery, 2, slow)).await,
        "it is not its lease"
    );
    assert!(
        !complete(&test.db, completion(&delivery, 1, fast)).await,
        "it is not its attempt"
    );
    assert_eq!(
        (
            rows(&test.db).await,
            executions_of(&test.db, &delivery).await
        ),
        (1, 0)
    );
    assert!(complete(&test.db, completion(&delivery, 2, fast)).await);
    assert!(
        !complete(&test.db, completion(&delivery, 2, fast)).await,
        "and only once"
    );
    assert_eq!(
        (
            rows(&test.db).await,
            executions_of(&test.db, &delivery).await
        ),
        (0, 1)
    );
}

async fn i04_a_delivery_leaves_together_with_its_outcome(test: Database) {
    let worker = WorkerId::new();
    let delivery = delivery();
    insert(&test.db, &delivery, Some((worker, LEASE))).await;
    // The execution's id is taken, so that its insert fails: then the row must not go either.
    let taken = completion(&delivery, 0, worker).ended.unwrap();
    test.db.write_grouped(0, taken).await.unwrap();
    let failed = test
        .db
        .write_grouped(0, Arc::new(completion(&delivery, 0, worker)))
        .await;
    assert!(matches!(failed, Err(StoreError::Duplicate)));
    assert_eq!(rows(&test.db).await, 1);
}

/// Runs nothing; counts, and does what the test wants of an attempt.
struct Fake {
    attempts: AtomicU32,
    takes: Duration,
    panics: bool,
}

impl Fake {
    fn new(takes: Duration, panics: bool) -> Arc<Self> {
        Arc::new(Self {
            attempts: AtomicU32::new(0),
            takes,
            panics,
        })
    }
}

impl Executor for Fake {
    fn attempt(&self, delivery: Delivery) -> BoxFuture<'_, Attempted> {
        async move {
            self.attempts.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(self.takes).await;
            assert!(!self.panics, "as the test wants");
            let error = ExecutionError::new("x");
            let outcome = OutcomeKind::Threw;
            let id = if delivery.attempt == 1 {
                delivery.id.of()
            } else {
                Default::default()
            };
            let ended = never_ran(&delivery, id, outcome, error, chrono::Utc::now());
            Attempted {
                ended,
                answer: Answer::ScriptDeleted,
            }
        }
        .boxed()
    }
}

fn dispatcher(db: &Db, fake: &Arc<Fake>) -> Arc<Dispatcher> {
    let dispatcher = Dispatcher::new(db.clone(), fake.clone(), 10, 60_000);
    tokio::spawn(dispatcher.clone().run(Duration::from_secs(1)));
    dispatcher
}

async fn until_empty(db: &Db) {
    for _ in 0..500 {
        if rows(db).await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("a delivery is stuck");
}

async fn abandoned(db: &Db, delivery: &Delivery) -> Vec<AbandonReason> {
    let mut conn = db.read().await.unwrap();
    let before = uuid::Uuid::max().into();
    let rows = executions::abandoned_page(&mut conn, delivery.app_id, before, 10)
        .await
        .unwrap();
    rows.into_iter().map(|row| row.reason).collect()
}

async fn i05_a_sync_delivery_is_attempted_at_most_once(test: Database) {
    let dead = WorkerId::new();
    let sync = Delivery {
        reply_to: Some(dead),
        attempt: 1,
        ..delivery()
    };
    insert(&test.db, &sync, Some((dead, NO_LEASE))).await;
    let fake = Fake::new(Duration::ZERO, false);
    dispatcher(&test.db, &fake);
    until_empty(&test.db).await;
    assert_eq!(fake.attempts.load(Ordering::SeqCst), 0);
    assert_eq!(
        abandoned(&test.db, &sync).await,
        [AbandonReason::LeaseExpired]
    );
}

async fn a_dead_workers_deliveries_are_taken_on(test: Database) {
    let dead = WorkerId::new();
    let left = Delivery {
        attempt: 1,
        ..delivery()
    };
    insert(&test.db, &left, Some((dead, NO_LEASE))).await;
    let fake = Fake::new(Duration::ZERO, false);
    dispatcher(&test.db, &fake);
    until_empty(&test.db).await;
    assert_eq!(fake.attempts.load(Ordering::SeqCst), 1);
    assert_eq!(executions_of(&test.db, &left).await, 1);
}

async fn a_delivery_that_kills_its_workers_ends_all_the_same(test: Database) {
    let poison = Delivery {
        attempt: 3,
        ..delivery()
    };
    insert(&test.db, &poison, Some((WorkerId::new(), NO_LEASE))).await;
    let fake = Fake::new(Duration::ZERO, false);
    dispatcher(&test.db, &fake);
    until_empty(&test.db).await;
    assert_eq!(fake.attempts.load(Ordering::SeqCst), 0);
    assert_eq!(executions_of(&test.db, &poison).await, 1);
}

async fn an_attempt_that_panics_ends_all_the_same(test: Database) {
    let fake = Fake::new(Duration::ZERO, true);
    let dispatcher = dispatcher(&test.db, &fake);
    let order = Order {
        delivery: delivery(),
        timeout: Duration::from_secs(5),
    };
    let answer = dispatcher.call(order).await.unwrap();
    assert!(matches!(answer, Some(Answer::PlatformFault)), "{answer:?}");
    until_empty(&test.db).await;
}

async fn a_caller_who_leaves_leaves_an_abandoned_execution(test: Database) {
    let fake = Fake::new(Duration::from_millis(200), false);
    let dispatcher = dispatcher(&test.db, &fake);
    let delivery = delivery();
    let order = Order {
        delivery: delivery.clone(),
        timeout: Duration::from_secs(5),
    };
    let call = dispatcher.call(order);
    assert!(
        tokio::time::timeout(Duration::from_millis(50), call)
            .await
            .is_err()
    );
    until_empty(&test.db).await;
    assert_eq!(fake.attempts.load(Ordering::SeqCst), 1);
    assert_eq!(
        abandoned(&test.db, &delivery).await,
        [AbandonReason::CallerGone]
    );
    assert_eq!(executions_of(&test.db, &delivery).await, 1);
}
