//! Whose turn it is to compute: guests share their threads app by app, not execution by execution.
//!
//! At most as many executions compute at once as there are threads. Each computes for one tick of the
//! epoch at most, or until it waits for the host; then the app that has used the least goes on, and
//! of it the execution that has waited longest (fair queuing with a virtual clock, as in Linux' first
//! completely fair scheduler). So an app with a thousand loops has the same share as one with a single
//! call, which waits for one tick or so.

use std::cell::Cell;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;
use uuid::Uuid;

/// The turns of one sandbox.
pub(super) struct Turns(Mutex<Queues>);

/// Tells whether executions wait for their turns.
#[derive(Clone)]
pub struct Crowd(Arc<Turns>);

impl Crowd {
    /// Whether any does now.
    pub fn waits(&self) -> bool {
        !self.0.lock().waiting.is_empty()
    }
}

struct Queues {
    /// How many may compute besides those that do. If there are any, nobody waits.
    free: usize,
    apps: HashMap<Uuid, App>,
    /// The apps of which somebody waits, by what they have used.
    waiting: BTreeSet<(Duration, Uuid)>,
    /// What the app had used that was let on last. Others begin there: what they did not use before
    /// is nothing that they could take all at once.
    clock: Duration,
    next_number: u64,
}

/// An app with executions.
#[derive(Default)]
struct App {
    executions: usize,
    used: Duration,
    waiting: VecDeque<Waiting>,
}

/// An execution that waits.
struct Waiting {
    number: u64,
    place: Arc<Mutex<Place>>,
}

/// What a waiting execution is told.
enum Place {
    /// It waits.
    Queued(Waker),
    /// It may go on.
    Granted,
}

impl Turns {
    /// Turns for so many threads.
    pub(super) fn new(threads: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Queues {
            free: threads,
            apps: HashMap::new(),
            waiting: BTreeSet::new(),
            clock: Duration::ZERO,
            next_number: 0,
        })))
    }

    /// What polls `computing`, which is of `app`, whenever it is its turn.
    pub(super) fn share<F: Future>(self: &Arc<Self>, app: Uuid, computing: F) -> Sharing<F> {
        let mut queues = self.lock();
        let clock = queues.clock;
        let known = queues.apps.entry(app).or_insert_with(|| App {
            used: clock,
            ..App::default()
        });
        known.executions += 1;
        drop(queues);
        Sharing {
            turn: Turn {
                turns: self.clone(),
                app,
                state: State::Idle,
            },
            computing,
        }
    }

    /// Whether executions wait for them.
    pub(super) fn crowd(self: &Arc<Self>) -> Crowd {
        Crowd(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        // A panic while it was held cannot have left an addition half-done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queues {
    /// Let the next one compute in the place of one that has computed. Answers whom to wake.
    fn pass_on(&mut self) -> Option<Waker> {
        let Some((used, app)) = self.waiting.pop_first() else {
            self.free += 1;
            return None;
        };
        self.clock = self.clock.max(used);
        let known = self.apps.get_mut(&app)?;
        let next = known.waiting.pop_front()?;
        if !known.waiting.is_empty() {
            self.waiting.insert((used, app));
        }
        match std::mem::replace(&mut *lock(&next.place), Place::Granted) {
            Place::Queued(waker) => Some(waker),
            Place::Granted => None,
        }
    }

    /// An execution of `app` waits from now.
    fn wait(&mut self, app: Uuid, waker: &Waker) -> State {
        let number = self.next_number;
        self.next_number += 1;
        let place = Arc::new(Mutex::new(Place::Queued(waker.clone())));
        let known = self.apps.entry(app).or_default();
        if known.waiting.is_empty() {
            known.used = known.used.max(self.clock);
        }
        known.waiting.push_back(Waiting {
            number,
            place: place.clone(),
        });
        self.waiting.insert((known.used, app));
        State::Waiting { number, place }
    }

    /// An app has computed for so long.
    fn count(&mut self, app: Uuid, spent: Duration) {
        if let Some(known) = self.apps.get_mut(&app) {
            let was_waiting = self.waiting.remove(&(known.used, app));
            known.used += spent;
            if was_waiting {
                self.waiting.insert((known.used, app));
            }
            // Where nobody waits, what is used is taken from nobody.
            if self.waiting.is_empty() {
                self.clock = self.clock.max(known.used);
            }
        }
    }
}

fn lock(place: &Mutex<Place>) -> MutexGuard<'_, Place> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    /// Whether what is polled on this thread was interrupted: it waits for nothing but its turn.
    static INTERRUPTED: Cell<bool> = const { Cell::new(false) };
}

/// An interruption of what [computes](Turns::share) by the clock, until its next turn.
#[derive(Default)]
pub(super) struct Interruption {
    is_over: bool,
}

impl Future for Interruption {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.is_over, true) {
            return Poll::Ready(());
        }
        INTERRUPTED.set(true);
        Poll::Pending
    }
}

pin_project! {
    /// A future that computes when it is its app's turn.
    pub(super) struct Sharing<F> {
        turn: Turn,
        #[pin]
        computing: F,
    }
}

struct Turn {
    turns: Arc<Turns>,
    app: Uuid,
    state: State,
}

enum State {
    /// It waits for something else than its turn.
    Idle,
    Waiting {
        number: u64,
        place: Arc<Mutex<Place>>,
    },
    Computing,
}

impl<F: Future> Future for Sharing<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let sharing = self.project();
        if !sharing.turn.take(cx.waker()) {
            return Poll::Pending;
        }
        INTERRUPTED.set(false);
        let began = Instant::now();
        let polled = sharing.computing.poll(cx);
        // It could go on, so it waits for its next turn from now, and not only once the runtime comes
        // back to it.
        let again = polled.is_pending() && INTERRUPTED.get();
        sharing
            .turn
            .give_back(began.elapsed(), again.then(|| cx.waker()));
        polled
    }
}

impl Turn {
    /// Begin to compute, or wait for that.
    fn take(&mut self, waker: &Waker) -> bool {
        let mut queues = self.turns.lock();
        match &self.state {
            State::Computing => return true,
            State::Waiting { place, .. } => match &mut *lock(place) {
                Place::Queued(known) => {
                    known.clone_from(waker);
                    return false;
                }
                Place::Granted => {}
            },
            State::Idle if queues.free > 0 => queues.free -= 1,
            State::Idle => {
                let waiting = queues.wait(self.app, waker);
                drop(queues);
                self.state = waiting;
                return false;
            }
        }
        drop(queues);
        self.state = State::Computing;
        true
    }

    /// End a turn that took so long, and wait for another one if it is `again`.
    fn give_back(&mut self, spent: Duration, again: Option<&Waker>) {
        let mut queues = self.turns.lock();
        queues.count(self.app, spent);
        self.state = match again {
            Some(waker) => queues.wait(self.app, waker),
            None => State::Idle,
        };
        let next = queues.pass_on();
        drop(queues);
        if let Some(next) = next {
            next.wake();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut queues = self.turns.lock();
        let has_turn = match &self.state {
            State::Idle => false,
            State::Computing => true,
            State::Waiting { number, place } => {
                let was_granted = matches!(*lock(place), Place::Granted);
                if !was_granted && let Some(known) = queues.apps.get_mut(&self.app) {
                    known.waiting.retain(|waiting| waiting.number != *number);
                    let (used, is_empty) = (known.used, known.waiting.is_empty());
                    if is_empty {
                        queues.waiting.remove(&(used, self.app));
                    }
                }
                was_granted
            }
        };
        if let Entry::Occupied(mut known) = queues.apps.entry(self.app) {
            known.get_mut().executions -= 1;
            if known.get().executions == 0 {
                known.remove();
            }
        }
        let next = has_turn.then(|| queues.pass_on()).flatten();
        drop(queues);
        if let Some(next) = next {
            next.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn runtime(threads: usize) -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build()
            .unwrap()
    }

    /// Compute for one tick again and again.
    async fn ticks(count: usize) {
        for _ in 0..count {
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(1) {
                std::hint::spin_loop();
            }
            Interruption::default().await;
        }
    }

    #[test]
    fn an_apps_single_execution_goes_before_anothers_hundred() {
        let turns = Turns::new(1);
        let (many, one) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let runtime = runtime(1);
        let ended = Arc::new(AtomicUsize::new(0));
        let all: Vec<_> = (0..100)
            .map(|_| {
                let ended = ended.clone();
                let computing = turns.share(many, ticks(20));
                runtime.spawn(async move {
                    computing.await;
                    ended.fetch_add(1, Ordering::Relaxed);
                })
            })
            .collect();
        // Both have an equal share: 100 ticks of the one beside 100 of the other's 2,000.
        runtime.block_on(async {
            runtime.spawn(turns.share(one, ticks(100))).await.unwrap();
        });
        assert_eq!(ended.load(Ordering::Relaxed), 0);
        runtime.block_on(async {
            for one in all {
                one.await.unwrap();
            }
        });
        let queues = turns.lock();
        assert!(queues.apps.is_empty() && queues.waiting.is_empty());
        assert_eq!(queues.free, 1);
    }

    #[test]
    fn what_was_used_while_nobody_waited_is_not_owed() {
        let turns = Turns::new(2);
        let (busy, newcomer) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let _stays = turns.share(busy, async {});
        turns.lock().count(busy, Duration::from_secs(3_600));
        let _comes = turns.share(newcomer, async {});
        let queues = turns.lock();
        assert_eq!(queues.apps[&newcomer].used, queues.apps[&busy].used);
    }

    #[test]
    fn who_leaves_takes_no_turn_along() {
        let turns = Turns::new(2);
        let runtime = runtime(2);
        runtime.block_on(async {
            for round in 0..200 {
                let app = |n: u128| Uuid::from_u128(n % 5);
                let all = (0..20).map(|n| runtime.spawn(turns.share(app(n), ticks(3))));
                let all: Vec<_> = all.collect();
                for (n, one) in all.iter().enumerate() {
                    if (n + round) % 3 == 0 {
                        one.abort();
                    }
                }
                for one in all {
                    let _ = one.await;
                }
            }
        });
        let queues = turns.lock();
        assert!(queues.apps.is_empty() && queues.waiting.is_empty());
        assert_eq!(queues.free, 2);
    }

    #[test]
    fn a_panic_gives_its_turn_back() {
        let turns = Turns::new(1);
        let runtime = runtime(1);
        runtime.block_on(async {
            let panicking = turns.share(Uuid::nil(), async { panic!("meant") });
            assert!(runtime.spawn(panicking).await.is_err());
            runtime
                .spawn(turns.share(Uuid::nil(), ticks(1)))
                .await
                .unwrap();
        });
        assert_eq!(turns.lock().free, 1);
    }
}
