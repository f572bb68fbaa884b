//! The outbox: claiming, fencing, completing, and the dispatcher on top of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use picloud::apps::AppId;
use picloud::dead_letters::{DeadLetter, sql as dead_letters};
use picloud::dispatch::dispatcher::{Dispatcher, Order};
use picloud::dispatch::outbox::Outbox;
use picloud::dispatch::record::never_ran;
use picloud::dispatch::retry::RetryPolicy;
use picloud::dispatch::sql::{self, Claimed, Completion, NewDelivery, Placed, Then};
use picloud::dispatch::{Answer, Attempted, Delivery, Executor, Payload, WorkerId};
use picloud::executions::sql as executions;
use picloud::executions::tally::Tally;
use picloud::executions::{AbandonReason, ExecutionError, OutcomeKind};
use picloud::idempotency::Key;
use picloud::journal::Journal;
use picloud::sandbox::Request;
use picloud::scripts::ScriptId;
use picloud::store::{Db, Engine, Grouped, StoreError};
use picloud::tasks::Tasks;

use crate::database::{Database, unlimited};
use crate::on_both_engines;

on_both_engines!(
    a_claim_takes_what_is_due_and_counts_the_attempt,
    a_claim_takes_no_more_payloads_than_there_is_room_for,
    two_workers_never_claim_the_same,
    i03_a_stale_worker_cannot_complete_a_delivery,
    i03_a_stale_worker_among_others_cannot_either,
    i03_of_two_attempts_that_end_together_the_stale_one_is_refused,
    i04_a_delivery_leaves_together_with_its_outcome,
    i05_a_sync_delivery_is_attempted_at_most_once,
    a_dead_workers_deliveries_are_taken_on,
    a_delivery_that_kills_its_workers_ends_all_the_same,
    an_attempt_that_panics_ends_all_the_same,
    an_attempt_that_panics_is_made_again_and_buried,
    a_caller_who_leaves_leaves_an_abandoned_execution,
    i03_a_stale_worker_cannot_put_a_delivery_back,
    a_failed_attempt_is_due_again_and_then_dead,
    a_retry_is_claimed_when_it_is_due_and_not_at_the_next_poll,
    one_apps_flood_leaves_another_its_turn,
    a_key_makes_one_delivery,
    what_cannot_be_read_dies_and_is_not_lost,
);

pub const LEASE: TimeDelta = TimeDelta::seconds(60);
const NO_LEASE: TimeDelta = TimeDelta::microseconds(-1);

pub fn delivery() -> Delivery {
    let payload = Payload::Request(Request {
        method: "POST".into(),
        ..Request::default()
    });
    let retry = RetryPolicy {
        base_ms: 0,
        ..RetryPolicy::DEFAULT
    };
    Delivery::new(AppId::new(), ScriptId::new(), "http_async", payload, retry)
}

pub async fn insert(db: &Db, delivery: &Delivery, lease: Option<(WorkerId, TimeDelta)>) -> Placed {
    let new = NewDelivery {
        delivery: delivery.clone(),
        born_claimed: lease,
        held: false,
        key: None,
    };
    db.write_grouped(new).await.unwrap()
}

/// Claim for every app that has something due.
pub async fn claim(db: &Db, worker: WorkerId, lease: TimeDelta, limit: usize) -> Vec<Claimed> {
    let claim = db.write::<_, StoreError, _>(move |tx| {
        Box::pin(async move {
            let mut claimed = Vec::new();
            for (app_id, _) in sql::apps_waiting(tx).await? {
                let left = limit - claimed.len();
                claimed.extend(sql::claim(tx, app_id, worker, lease, left, u64::MAX).await?);
            }
            Ok(claimed)
        })
    });
    claim.await.unwrap()
}

pub fn completion(delivery: &Delivery, attempt: u32, worker: WorkerId) -> Completion {
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
        is_sync: false,
        is_awaited: false,
        then: Then::Gone,
        order_key: delivery.order_key.clone(),
        also: Vec::new(),
    }
}

pub async fn complete(db: &Db, completion: Completion) -> bool {
    db.write_grouped(Arc::new(completion)).await.unwrap()
}

pub async fn rows(db: &Db) -> i64 {
    sql::depth(&mut db.read().await.unwrap()).await.unwrap()
}

pub async fn executions_of(db: &Db, delivery: &Delivery) -> usize {
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
    let mut ids: Vec<_> = claimed.iter().map(|claimed| claimed.id).collect();
    ids.sort();
    assert_eq!(ids, [free.id, lapsed.id]);
    assert!(claimed.iter().all(|claimed| claimed.attempt == 1));
    let read = claimed[0].delivery.as_ref().unwrap();
    let Payload::Request(request) = &*read.payload else {
        panic!("{:?}", read.payload);
    };
    assert_eq!(
        (request.method.as_str(), read.retry.attempts_max),
        ("POST", 3)
    );
    assert!(
        claim(&test.db, mine, LEASE, 10).await.is_empty(),
        "what is leased stays leased"
    );
}

async fn a_claim_takes_no_more_payloads_than_there_is_room_for(test: Database) {
    let app = AppId::new();
    for _ in 0..6 {
        let mut large = delivery();
        large.app_id = app;
        large.payload = Arc::new(Payload::of_text(&"x".repeat(100_000)));
        insert(&test.db, &large, None).await;
    }
    let claim_of = async |bytes_max| {
        let claim = test.db.write::<_, StoreError, _>(move |tx| {
            let worker = WorkerId::new();
            Box::pin(async move { sql::claim(tx, app, worker, LEASE, 10, bytes_max).await })
        });
        claim.await.unwrap().len()
    };
    assert_eq!(claim_of(250_000).await, 3, "the third takes it over");
    assert_eq!(claim_of(1).await, 1, "one always goes on");
    assert_eq!(claim_of(u64::MAX).await, 2);
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

/// A worker whose lease was over, and itself again, which has claimed the same delivery since.
async fn i03_of_two_attempts_that_end_together_the_stale_one_is_refused(test: Database) {
    let again = || Then::DueAfter(TimeDelta::zero(), Vec::new());
    for is_stale_first in [true, false] {
        for (stale_then, fresh_then, left) in [
            (Then::Gone, Then::Gone, 0),
            (Then::Gone, again(), 1),
            (again(), Then::Gone, 0),
        ] {
            let (worker, delivery) = (WorkerId::new(), delivery());
            insert(&test.db, &delivery, None).await;
            claim(&test.db, worker, NO_LEASE, 1).await;
            claim(&test.db, worker, LEASE, 1).await;
            let ending = |attempt, then| {
                Arc::new(Completion {
                    then,
                    ..completion(&delivery, attempt, worker)
                })
            };
            let mut items = vec![ending(1, stale_then), ending(2, fresh_then)];
            let mut expected = vec![false, true];
            if !is_stale_first {
                items.reverse();
                expected.reverse();
            }
            let written = test.db.write::<_, StoreError, _>(move |tx| {
                Box::pin(async move { Grouped::apply(tx, &items).await })
            });
            assert_eq!(written.await.unwrap(), expected);
            assert_eq!(executions_of(&test.db, &delivery).await, 1);
            assert_eq!(rows(&test.db).await, left);
            test.execute("delete from outbox").await;
        }
    }
}

/// However many end together, and whether or not they are as many as a statement has tuples.
async fn i03_a_stale_worker_among_others_cannot_either(test: Database) {
    let worker = WorkerId::new();
    for count in [2, 5, 32, 45, 70, 130] {
        let deliveries = (0..count).map(|_| Delivery {
            attempt: 1,
            ..delivery()
        });
        let deliveries: Vec<_> = deliveries.collect();
        let new = |delivery: &Delivery| NewDelivery {
            delivery: delivery.clone(),
            born_claimed: Some((worker, LEASE)),
            held: false,
            key: None,
        };
        let new: Vec<_> = deliveries.iter().map(new).collect();
        let mut ends: Vec<_> = deliveries
            .iter()
            .map(|delivery| completion(delivery, 1, worker))
            .collect();
        let stale = &mut ends[1];
        stale.attempt = 2;
        stale.ended.as_mut().unwrap().execution.attempt = 2;
        let ends: Vec<_> = ends.into_iter().map(Arc::new).collect();
        let before = rows(&test.db).await;
        // Their statements themselves: a group that fails would be tried one by one.
        let ended = test.db.write::<_, StoreError, _>(move |tx| {
            Box::pin(async move {
                sql::insert(tx, &new).await?;
                Arc::<Completion>::apply(tx, &ends).await
            })
        });
        let ended = ended.await.unwrap();
        let held = ended.iter().enumerate().all(|(n, held)| *held == (n != 1));
        assert!(held, "{count}: {ended:?}");
        assert_eq!(rows(&test.db).await, before + 1, "{count}");
        for (n, delivery) in deliveries.iter().enumerate() {
            assert_eq!(executions_of(&test.db, delivery).await, usize::from(n != 1));
        }
    }
}

async fn i04_a_delivery_leaves_together_with_its_outcome(test: Database) {
    let worker = WorkerId::new();
    let delivery = delivery();
    insert(&test.db, &delivery, Some((worker, LEASE))).await;
    // The execution's id is taken, so that its insert fails: then the row must not go either.
    let taken = completion(&delivery, 0, worker).ended.unwrap();
    test.db.write_grouped(taken).await.unwrap();
    let failed = test
        .db
        .write_grouped(Arc::new(completion(&delivery, 0, worker)))
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

    fn is_held(&self, _: &Delivery) -> bool {
        false
    }

    fn handlers(&self, _: &DeadLetter) -> Vec<Delivery> {
        Vec::new()
    }
}

fn dispatcher(db: &Db, fake: &Arc<Fake>) -> Arc<Dispatcher> {
    let (outbox, handed) = Outbox::new(db.clone(), 10, 60_000, 1 << 30, unlimited());
    let tally = Tally::new(Journal::new(db.clone()));
    let dispatcher = Dispatcher::new(outbox, handed, fake.clone(), tally);
    tokio::spawn(
        dispatcher
            .clone()
            .run(Tasks::default(), Duration::from_secs(1)),
    );
    dispatcher
}

pub async fn until_empty(db: &Db) {
    for _ in 0..500 {
        if rows(db).await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("a delivery is stuck");
}

async fn until_attempted(fake: &Fake) {
    for _ in 0..2_000 {
        if fake.attempts.load(Ordering::SeqCst) > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("nothing was attempted");
}

pub async fn abandoned(db: &Db, delivery: &Delivery) -> Vec<AbandonReason> {
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
    assert_eq!(fake.attempts.load(Ordering::SeqCst), 2);
    let history = &dead_letters_of(&test.db, &left).await[0].history;
    let known: Vec<_> = history
        .iter()
        .map(|attempt| (attempt.attempt, attempt.execution_id.is_some()))
        .collect();
    assert_eq!(known, [(1, false), (2, true), (3, true)]);
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
    assert_eq!(dead_letters_of(&test.db, &poison).await[0].attempts, 3);
}

async fn an_attempt_that_panics_ends_all_the_same(test: Database) {
    let fake = Fake::new(Duration::ZERO, true);
    let dispatcher = dispatcher(&test.db, &fake);
    let order = Order {
        delivery: delivery(),
        timeout: Duration::from_secs(5),
        key: None,
    };
    let answer = dispatcher.call(order).await.unwrap();
    assert!(matches!(answer, Some(Answer::PlatformFault)), "{answer:?}");
    until_empty(&test.db).await;
}

async fn an_attempt_that_panics_is_made_again_and_buried(test: Database) {
    let fake = Fake::new(Duration::ZERO, true);
    dispatcher(&test.db, &fake);
    let poison = delivery();
    insert(&test.db, &poison, None).await;
    until_empty(&test.db).await;
    assert_eq!(fake.attempts.load(Ordering::SeqCst), 3);
    let letters = dead_letters_of(&test.db, &poison).await;
    assert_eq!((letters.len(), letters[0].attempts), (1, 3));
    assert_eq!(letters[0].last_error, "the platform failed");
}

async fn a_caller_who_leaves_leaves_an_abandoned_execution(test: Database) {
    let fake = Fake::new(Duration::from_secs(1), false);
    let dispatcher = dispatcher(&test.db, &fake);
    let delivery = delivery();
    let order = Order {
        delivery: delivery.clone(),
        timeout: Duration::from_secs(5),
        key: None,
    };
    tokio::select! {
        answer = dispatcher.call(order) => panic!("answered before the caller left: {answer:?}"),
        () = until_attempted(&fake) => {}
    }
    until_empty(&test.db).await;
    assert_eq!(fake.attempts.load(Ordering::SeqCst), 1);
    assert_eq!(
        abandoned(&test.db, &delivery).await,
        [AbandonReason::CallerGone]
    );
    assert_eq!(executions_of(&test.db, &delivery).await, 1);
}

async fn i03_a_stale_worker_cannot_put_a_delivery_back(test: Database) {
    let (slow, fast) = (WorkerId::new(), WorkerId::new());
    let delivery = delivery();
    insert(&test.db, &delivery, None).await;
    claim(&test.db, slow, NO_LEASE, 1).await;
    claim(&test.db, fast, LEASE, 1).await;
    for then in [
        Then::DueAfter(TimeDelta::zero(), Vec::new()),
        Then::Held,
        Then::PutBack(TimeDelta::zero()),
        Then::Gone,
    ] {
        let stale = Completion {
            then,
            ..completion(&delivery, 1, slow)
        };
        assert!(!complete(&test.db, stale).await);
    }
    assert!(claim(&test.db, slow, LEASE, 1).await.is_empty());
    assert!(complete(&test.db, completion(&delivery, 2, fast)).await);
}

pub async fn dead_letters_of(db: &Db, delivery: &Delivery) -> Vec<DeadLetter> {
    let mut conn = db.read().await.unwrap();
    let filter = dead_letters::Filter::default();
    let bounds = dead_letters::Bounds {
        limit: 10,
        bytes_max: usize::MAX,
    };
    let order = dead_letters::Order::NewestFirst;
    let whole = dead_letters::whole(&mut conn, delivery.app_id, &filter, None, order, bounds);
    whole.await.unwrap().0
}

async fn a_failed_attempt_is_due_again_and_then_dead(test: Database) {
    let fake = Fake::new(Duration::ZERO, false);
    let dispatcher = dispatcher(&test.db, &fake);
    let failing = delivery();
    insert(&test.db, &failing, None).await;
    until_empty(&test.db).await;
    assert_eq!(fake.attempts.load(Ordering::SeqCst), 3);
    assert_eq!(executions_of(&test.db, &failing).await, 3);
    let dead = dead_letters_of(&test.db, &failing).await;
    assert_eq!((dead.len(), dead[0].attempts), (1, 3));
    let attempts: Vec<_> = dead[0].history.iter().map(|a| a.attempt).collect();
    assert_eq!(attempts, [1, 2, 3]);
    assert_eq!(dead[0].last_error, "x");
    dispatcher.stop();
}

async fn a_retry_is_claimed_when_it_is_due_and_not_at_the_next_poll(test: Database) {
    let fake = Fake::new(Duration::ZERO, false);
    let app_id = AppId::new();
    for base_ms in [100, 200, 300] {
        let retry = RetryPolicy {
            attempts_max: 2,
            base_ms,
            jitter_pct: 0,
            ..RetryPolicy::DEFAULT
        };
        let failing = Delivery {
            app_id,
            retry,
            ..delivery()
        };
        insert(&test.db, &failing, None).await;
    }
    let started = std::time::Instant::now();
    let dispatcher = dispatcher(&test.db, &fake);
    until_empty(&test.db).await;
    let took = started.elapsed();
    assert!(
        (Duration::from_millis(300)..Duration::from_millis(1_000)).contains(&took),
        "{took:?}"
    );
    dispatcher.stop();
}

async fn one_apps_flood_leaves_another_its_turn(test: Database) {
    let flood = delivery();
    for _ in 0..200 {
        let one = Delivery {
            app_id: flood.app_id,
            ..delivery()
        };
        insert(&test.db, &one, None).await;
    }
    let single = delivery();
    insert(&test.db, &single, None).await;
    let waiting = test
        .db
        .write::<_, StoreError, _>(|tx| Box::pin(async move { sql::apps_waiting(tx).await }));
    let apps: Vec<_> = waiting
        .await
        .unwrap()
        .into_iter()
        .map(|(app, _)| app)
        .collect();
    assert_eq!(apps.len(), 2);
    assert!(apps.contains(&single.app_id));
    // The gate of this dispatcher has two places for deliveries; one of them is nobody's flood's.
    let fake = Fake::new(Duration::from_millis(30), false);
    let dispatcher = dispatcher(&test.db, &fake);
    for _ in 0..500 {
        if executions_of(&test.db, &single).await > 0 {
            assert!(rows(&test.db).await > 150, "it did not have to wait");
            return dispatcher.stop();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the single delivery starves");
}

async fn a_key_makes_one_delivery(test: Database) {
    let key = |body: &[u8]| {
        Key::new(
            uuid::Uuid::nil(),
            "k".into(),
            &[body],
            Duration::from_secs(60),
        )
    };
    let app_id = AppId::new();
    let keyed = |body: &[u8]| NewDelivery {
        delivery: Delivery {
            app_id,
            ..delivery()
        },
        born_claimed: None,
        held: false,
        key: Some(key(body)),
    };
    let first = keyed(b"same");
    let other_node = match test.db.engine() {
        Engine::Sqlite => test.db.clone(),
        Engine::Postgres => Db::open(&test.url).await.unwrap(),
    };
    let calls = (0..20).map(|n| {
        let db = if n % 2 == 0 { &test.db } else { &other_node };
        let call = if n == 0 {
            first.clone()
        } else {
            keyed(b"same")
        };
        async move { db.write_grouped(call).await.unwrap() }
    });
    let placed = futures_util::future::join_all(calls).await;
    let made = placed
        .iter()
        .filter(|placed| matches!(placed, Placed::Due))
        .count();
    assert_eq!((made, rows(&test.db).await), (1, 1), "of twenty at once");
    let other = test.db.write_grouped(keyed(b"other")).await.unwrap();
    assert!(matches!(other, Placed::Known(known) if !known.same_request && !known.done));
}

async fn what_cannot_be_read_dies_and_is_not_lost(test: Database) {
    let odd = delivery();
    insert(&test.db, &odd, None).await;
    test.execute("update outbox set payload = '{\"event\": {'")
        .await;
    let fake = Fake::new(Duration::ZERO, false);
    let dispatcher = dispatcher(&test.db, &fake);
    until_empty(&test.db).await;
    assert_eq!(fake.attempts.load(Ordering::SeqCst), 0);
    let letters = dead_letters_of(&test.db, &odd).await;
    assert_eq!(letters.len(), 1);
    let kept = serde_json::to_value(letters[0].original().value).unwrap();
    assert_eq!(kept, "{\"event\": {", "kept as it was");
    dispatcher.stop();
}
