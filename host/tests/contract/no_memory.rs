//! Attempts for which there was no memory: whose doing that was decides whether they count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use picloud::budget::Exceeded;
use picloud::dead_letters::DeadLetter;
use picloud::dispatch::dispatcher::Dispatcher;
use picloud::dispatch::outbox::Outbox;
use picloud::dispatch::record::never_ran;
use picloud::dispatch::{Answer, Attempted, Delivery, Executor};
use picloud::executions::tally::Tally;
use picloud::executions::{ExecutionError, OutcomeKind};
use picloud::journal::Journal;
use picloud::sandbox::Outcome;
use picloud::tasks::Tasks;

use crate::database::{Database, unlimited};
use crate::on_both_engines;
use crate::outbox::{dead_letters_of, delivery, executions_of, insert, until_empty};

on_both_engines!(an_attempt_without_memory_counts_unless_others_hold_it);

/// Finds no memory at the first two attempts, and fails at all others.
struct Refused {
    attempts: AtomicU32,
    exceeded: Exceeded,
}

impl Executor for Refused {
    fn attempt(&self, delivery: Delivery) -> BoxFuture<'_, Attempted> {
        async move {
            let before = self.attempts.fetch_add(1, Ordering::SeqCst);
            let id = match delivery.attempt {
                1 => delivery.id.of(),
                _ => Default::default(),
            };
            let (outcome, answer) = match before < 2 {
                true => (
                    OutcomeKind::NoMemory,
                    Answer::Outcome(Outcome::NoMemory(self.exceeded)),
                ),
                false => (OutcomeKind::Threw, Answer::PlatformFault),
            };
            let error = ExecutionError::new("x");
            let ended = never_ran(&delivery, id, outcome, error, chrono::Utc::now());
            Attempted { ended, answer }
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

/// See a delivery through, and answer how often it was attempted. Three of these count.
async fn attempts(test: &Database, delivery: &Delivery, exceeded: Exceeded) -> u32 {
    let refused = Arc::new(Refused {
        attempts: AtomicU32::new(0),
        exceeded,
    });
    let (outbox, handed) = Outbox::new(test.db.clone(), 10, 60_000, 1 << 30, unlimited());
    let tally = Tally::new(Journal::new(test.db.clone()));
    let dispatcher = Dispatcher::new(outbox, handed, refused.clone(), tally);
    let grace = Duration::from_secs(1);
    tokio::spawn(dispatcher.clone().run(Tasks::default(), grace));
    insert(&test.db, delivery, None).await;
    until_empty(&test.db).await;
    dispatcher.stop();
    let dead = dead_letters_of(&test.db, delivery).await;
    let counted: Vec<_> = dead[0].history.iter().map(|a| a.attempt).collect();
    assert_eq!(counted, [1, 2, 3]);
    assert_eq!(executions_of(&test.db, delivery).await, 3);
    refused.attempts.load(Ordering::SeqCst)
}

async fn an_attempt_without_memory_counts_unless_others_hold_it(test: Database) {
    assert_eq!(attempts(&test, &delivery(), Exceeded::ByAll).await, 5);
    assert_eq!(attempts(&test, &delivery(), Exceeded::ByOne).await, 3);
}
