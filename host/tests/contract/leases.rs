//! Leases: what is held is renewed, what is not is given back, and nothing stays leased for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use picloud::dead_letters::DeadLetter;
use picloud::dispatch::dispatcher::Dispatcher;
use picloud::dispatch::outbox::Outbox;
use picloud::dispatch::record::never_ran;
use picloud::dispatch::retry::RetryPolicy;
use picloud::dispatch::sql::{self, Stuck, leases::Renewal};
use picloud::dispatch::{Answer, Attempted, Delivery, Executor, WorkerId};
use picloud::executions::tally::Tally;
use picloud::executions::{AbandonReason, AbandonedExecution, ExecutionError, OutcomeKind};
use picloud::journal::Journal;
use picloud::store::{Db, Engine, Id, StoreError};
use picloud::tasks::Tasks;

use crate::database::{Database, unlimited};
use crate::on_both_engines;
use crate::outbox::{LEASE, claim, dead_letters_of, delivery, insert, rows, until_empty};

on_both_engines!(
    only_the_leases_that_are_named_are_renewed,
    a_lease_that_is_given_back_is_due_at_once,
    what_nothing_works_on_is_given_back_while_its_node_lives,
    a_delivery_at_whose_burying_we_panic_is_buried_all_the_same,
    an_outcome_that_is_refused_ends_its_delivery_all_the_same,
    a_call_that_was_answered_is_not_left_recorded_as_abandoned,
    rows_that_nobody_moves_are_counted,
);

async fn renewed(
    db: &Db,
    worker: WorkerId,
    renew: Vec<(picloud::dispatch::DeliveryId, u32)>,
    give_back: Vec<(picloud::dispatch::DeliveryId, u32)>,
) -> Vec<(picloud::dispatch::DeliveryId, u32)> {
    let renewal = Renewal {
        worker,
        lease: LEASE,
        renew,
        give_back,
        is_held: Arc::new(|_| false),
        looks: true,
        beats: true,
    };
    let mut leased = db.write_grouped(renewal).await.unwrap().leased.unwrap();
    leased.sort_unstable();
    leased
}

/// One that was born claimed.
fn claimed() -> Delivery {
    Delivery {
        attempt: 1,
        ..delivery()
    }
}

/// How long a lease lasts that is to end within the test.
const SHORT: TimeDelta = TimeDelta::milliseconds(300);

async fn only_the_leases_that_are_named_are_renewed(test: Database) {
    let worker = WorkerId::new();
    let (held, lost) = (claimed(), claimed());
    insert(&test.db, &held, Some((worker, SHORT))).await;
    insert(&test.db, &lost, Some((worker, SHORT))).await;
    let leased = renewed(&test.db, worker, vec![(held.id, 1)], Vec::new()).await;
    assert_eq!(leased, [(held.id, 1), (lost.id, 1)]);
    let others = WorkerId::new();
    let mut taken = Vec::new();
    for _ in 0..100 {
        taken.extend(claim(&test.db, others, LEASE, 10).await);
        if !taken.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ids: Vec<_> = taken.iter().map(|taken| taken.id).collect();
    assert_eq!(ids, [lost.id]);
    let leased = renewed(
        &test.db,
        worker,
        vec![(held.id, 1), (lost.id, 1)],
        Vec::new(),
    )
    .await;
    assert_eq!(leased, [(held.id, 1)], "the other is another worker's now");
}

async fn a_lease_that_is_given_back_is_due_at_once(test: Database) {
    let worker = WorkerId::new();
    let (one, two) = (claimed(), claimed());
    insert(&test.db, &one, Some((worker, LEASE))).await;
    insert(&test.db, &two, Some((worker, LEASE))).await;
    // An earlier claim of it is none of the lease's affair.
    let leased = renewed(&test.db, worker, Vec::new(), vec![(one.id, 1), (two.id, 7)]).await;
    assert_eq!(leased, [(two.id, 1)]);
    let taken = claim(&test.db, WorkerId::new(), LEASE, 10).await;
    assert_eq!((taken.len(), taken[0].id, taken[0].attempt), (1, one.id, 2));
}

/// Counts attempts, each of which fails.
struct Failing {
    attempts: AtomicU32,
    /// Whether it panics when it is asked who is told of a dead letter.
    panics_at_burying: bool,
}

impl Executor for Failing {
    fn attempt(&self, delivery: Delivery) -> BoxFuture<'_, Attempted> {
        self.attempts.fetch_add(1, Ordering::SeqCst);
        let id = match delivery.attempt {
            1 => delivery.id.of(),
            _ => Default::default(),
        };
        let error = ExecutionError::new("x");
        let ended = never_ran(&delivery, id, OutcomeKind::Threw, error, chrono::Utc::now());
        let answer = Answer::ScriptDeleted;
        std::future::ready(Attempted { ended, answer }).boxed()
    }

    fn is_held(&self, _: &Delivery) -> bool {
        false
    }

    fn handlers(&self, _: &DeadLetter) -> Vec<Delivery> {
        assert!(!self.panics_at_burying, "as the test wants");
        Vec::new()
    }
}

fn dispatcher(db: &Db, panics_at_burying: bool) -> (Arc<Dispatcher>, Arc<Outbox>, Arc<Failing>) {
    let failing = Arc::new(Failing {
        attempts: AtomicU32::new(0),
        panics_at_burying,
    });
    let (outbox, handed) = Outbox::new(db.clone(), 10, 1_500, 1 << 30, unlimited());
    let tally = Tally::new(Journal::new(db.clone()));
    let dispatcher = Dispatcher::new(outbox.clone(), handed, failing.clone(), tally);
    tokio::spawn(
        dispatcher
            .clone()
            .run(Tasks::default(), Duration::from_secs(1)),
    );
    (dispatcher, outbox, failing)
}

async fn what_nothing_works_on_is_given_back_while_its_node_lives(test: Database) {
    let (dispatcher, outbox, failing) = dispatcher(&test.db, false);
    // As a claim leaves it whose answer was lost: leased to this node for an hour, and unknown to it.
    let hour = TimeDelta::hours(1);
    insert(&test.db, &delivery(), Some((outbox.worker(), hour))).await;
    until_empty(&test.db).await;
    assert!(failing.attempts.load(Ordering::SeqCst) > 0);
    dispatcher.stop();
}

async fn a_delivery_at_whose_burying_we_panic_is_buried_all_the_same(test: Database) {
    let (dispatcher, _, _) = dispatcher(&test.db, true);
    let poison = delivery();
    insert(&test.db, &poison, None).await;
    until_empty(&test.db).await;
    let letters = dead_letters_of(&test.db, &poison).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(
        letters[0].last_error,
        "the platform failed at every attempt"
    );
    dispatcher.stop();
}

/// Nor in a plainer form: an execution of its id is there already.
async fn an_outcome_that_is_refused_ends_its_delivery_all_the_same(test: Database) {
    let (dispatcher, _, failing) = dispatcher(&test.db, false);
    let refused = Delivery {
        retry: RetryPolicy::ONCE,
        ..delivery()
    };
    let (id, error) = (refused.id.of(), ExecutionError::new("x"));
    let ended = never_ran(&refused, id, OutcomeKind::Threw, error, chrono::Utc::now());
    test.db.write_grouped(ended).await.unwrap();
    insert(&test.db, &refused, None).await;
    until_empty(&test.db).await;
    assert_eq!(failing.attempts.load(Ordering::SeqCst), 1);
    let letters = dead_letters_of(&test.db, &refused).await;
    assert_eq!((letters.len(), letters[0].history.len()), (1, 0));
    dispatcher.stop();
}

async fn a_call_that_was_answered_is_not_left_recorded_as_abandoned(test: Database) {
    let called = delivery();
    let error = ExecutionError::new("x");
    let ended = never_ran(
        &called,
        called.id.of(),
        OutcomeKind::Threw,
        error,
        chrono::Utc::now(),
    );
    let row = |reason| AbandonedExecution {
        id: Id::new(),
        execution_id: called.id.of(),
        app_id: called.app_id,
        script_id: called.script_id,
        reason,
        created_at: chrono::Utc::now(),
    };
    let row = row(AbandonReason::LeaseExpired);
    let written = test.db.write::<_, StoreError, _>(move |tx| {
        Box::pin(async move {
            use picloud::executions::sql;
            sql::insert_abandoned(tx, &row).await?;
            sql::set_right(tx, &ended).await?;
            // Once more, as after a lost answer.
            sql::set_right(tx, &ended).await
        })
    });
    written.await.unwrap();
    assert_eq!(crate::outbox::executions_of(&test.db, &called).await, 1);
    assert!(crate::outbox::abandoned(&test.db, &called).await.is_empty());
}

async fn rows_that_nobody_moves_are_counted(test: Database) {
    let count = async || {
        let mut conn = test.db.read().await.unwrap();
        sql::stuck(&mut conn, TimeDelta::zero()).await.unwrap()
    };
    assert_eq!(count().await, Stuck::default());
    let past = TimeDelta::seconds(-5);
    insert(&test.db, &delivery(), Some((WorkerId::new(), past))).await;
    insert(&test.db, &delivery(), Some((WorkerId::new(), LEASE))).await;
    insert(&test.db, &delivery(), None).await;
    for _ in 0..2 {
        let ordered = Delivery {
            order_key: Some("k".into()),
            ..delivery()
        };
        insert(&test.db, &ordered, Some((WorkerId::new(), LEASE))).await;
    }
    let stuck = Stuck {
        expired: 1,
        overdue: 1,
        ..Stuck::default()
    };
    assert_eq!(
        count().await,
        stuck,
        "what waits for its order is not stuck"
    );
    test.execute("delete from outbox where order_key = 'k' and not blocked")
        .await;
    assert_eq!(
        count().await,
        Stuck {
            blocked: 1,
            ..stuck
        }
    );
    assert!(test.db.engine() == Engine::Sqlite || rows(&test.db).await == 4);
}
