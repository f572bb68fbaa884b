//! Background tasks that run for as long as a node does, and are restarted where they fail.
//!
//! A loop that panics or returns would otherwise be missing until the process is restarted, without
//! a word: leases would not be extended, other nodes not heard, nothing swept. Here that is caught,
//! logged, counted (`picloud_task_restarts_total`), told to readiness, and the loop begins anew
//! after a pause. This room knows no domain.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// When failed tasks are restarted, and when they count as well again.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// The pause before the first restart; each that follows waits twice as long.
    pause_min: Duration,
    /// The longest pause before a restart.
    pause_max: Duration,
    /// How long a restarted task must run to count as well again; then its pauses begin anew, too.
    steady_after: Duration,
}

const PATIENCE: Patience = Patience {
    pause_min: Duration::from_millis(100),
    pause_max: Duration::from_secs(5),
    steady_after: Duration::from_secs(5),
};

/// The background tasks of a node; clones share them.
#[derive(Clone)]
pub struct Tasks {
    patience: Patience,
    ending: CancellationToken,
    running: TaskTracker,
    // Locked for a map operation and never across an await.
    failed: Arc<Mutex<BTreeMap<&'static str, Failed>>>,
}

/// A task that failed and is not well again yet.
#[derive(Debug, Clone, Copy)]
enum Failed {
    /// It waits for its restart.
    Down,
    /// It has run again since then.
    Restarted(Instant),
}

/// One task. Dropping this does not end it.
#[derive(Debug, Clone)]
pub struct Task {
    ending: CancellationToken,
    running: TaskTracker,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::with(PATIENCE)
    }
}

impl Tasks {
    fn with(patience: Patience) -> Self {
        Self {
            patience,
            ending: CancellationToken::new(),
            running: TaskTracker::new(),
            failed: Arc::default(),
        }
    }

    /// Run what `make` makes until [`Self::end`]. Where it panics or returns before, it is made and
    /// run anew after a pause. What must outlive a restart belongs into what `make` captures.
    ///
    /// `name` is shown in the log, in the metric and in `/readyz`: `room.what_it_does`.
    pub fn spawn<F, T>(&self, name: &'static str, mut make: F) -> Task
    where
        F: FnMut() -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let task = Task {
            ending: self.ending.child_token(),
            running: TaskTracker::new(),
        };
        metrics::counter!("picloud_task_restarts_total", "task" => name).increment(0);
        let (tasks, ending) = (self.clone(), task.ending.clone());
        let supervised = async move {
            let patience = tasks.patience;
            let mut pause = patience.pause_min;
            loop {
                let began = Instant::now();
                // A task of its own, so that whatever panics in it, its making and its dropping
                // included, ends at its handle.
                let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut make));
                let how = match made {
                    Err(_) => "it panicked".to_owned(),
                    Ok(made) => {
                        let mut run = AbortOnDropHandle::new(tokio::spawn(made));
                        let ended = tokio::select! {
                            biased;
                            () = ending.cancelled() => {
                                run.abort();
                                // What it holds is dropped once it has left its current step.
                                let _ = run.await;
                                break;
                            }
                            ended = &mut run => ended,
                        };
                        how(ended)
                    }
                };
                // A runtime that shuts down ends its tasks before it ends this one.
                if ending.is_cancelled() {
                    break;
                }
                if began.elapsed() >= patience.steady_after {
                    pause = patience.pause_min;
                }
                tracing::error!(
                    task = name,
                    ?pause,
                    "a background task ended: {how}; it is restarted"
                );
                tasks.locked().insert(name, Failed::Down);
                tokio::select! {
                    biased;
                    () = ending.cancelled() => break,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(patience.pause_max);
                metrics::counter!("picloud_task_restarts_total", "task" => name).increment(1);
                let restarted = Failed::Restarted(Instant::now());
                tasks.locked().insert(name, restarted);
            }
            tasks.locked().remove(name);
        };
        let supervised = task.running.track_future(supervised);
        task.running.close();
        self.running.spawn(supervised);
        task
    }

    /// What is wrong with them, for readiness: those that are down, or were restarted a moment ago.
    pub fn problems(&self) -> Vec<String> {
        let mut failed = self.locked();
        failed.retain(|_, failed| match failed {
            Failed::Down => true,
            Failed::Restarted(at) => at.elapsed() < self.patience.steady_after,
        });
        let problem = |(name, failed): (&&str, &Failed)| match failed {
            Failed::Down => format!("the background task {name} failed and will be restarted"),
            Failed::Restarted(_) => format!("the background task {name} failed and was restarted"),
        };
        failed.iter().map(problem).collect()
    }

    /// End all of them, those that are spawned from now on included.
    pub fn end(&self) {
        self.ending.cancel();
        self.running.close();
    }

    /// Wait until all of them have ended.
    pub async fn ended(&self) {
        self.running.wait().await;
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<&'static str, Failed>> {
        // A panic while it was held cannot have left a map operation half-done.
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Task {
    /// End it, whatever becomes of the others.
    pub fn end(&self) {
        self.ending.cancel();
    }

    /// Wait until it has ended.
    pub async fn ended(&self) {
        self.running.wait().await;
    }
}

/// How a run ended that was not to end.
fn how(ended: Result<(), JoinError>) -> String {
    match ended {
        Ok(()) => "it returned".to_owned(),
        // The panic hook has logged the place.
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A task that fails as `fail` says at each of its first runs, and then goes on.
    fn failing(tasks: &Tasks, times: u32, fail: fn()) -> (Task, Arc<AtomicU32>) {
        let runs = Arc::new(AtomicU32::new(0));
        let counted = runs.clone();
        let task = tasks.spawn("test.failing", move || {
            let run = counted.fetch_add(1, Ordering::SeqCst);
            async move {
                match run < times {
                    true => fail(),
                    false => std::future::pending().await,
                }
            }
        });
        (task, runs)
    }

    async fn is_run(runs: &AtomicU32, times: u32) {
        while runs.load(Ordering::SeqCst) < times {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn impatient() -> Tasks {
        Tasks::with(Patience {
            pause_min: Duration::from_millis(10),
            pause_max: Duration::from_millis(40),
            steady_after: Duration::from_millis(200),
        })
    }

    #[tokio::test]
    async fn a_task_that_panics_or_returns_runs_again_after_growing_pauses() {
        for fail in [|| panic!("as the test wants it"), || {}] {
            let tasks = impatient();
            let began = Instant::now();
            let (_, runs) = failing(&tasks, 5, fail);
            is_run(&runs, 6).await;
            // 10, 20, 40, 40 and 40 ms.
            let took = began.elapsed();
            assert!((150..5_000).contains(&took.as_millis()), "{took:?}");
        }
    }

    #[tokio::test]
    async fn a_task_that_cannot_even_be_made_is_tried_again() {
        let tasks = impatient();
        let tried = Arc::new(AtomicU32::new(0));
        let counted = tried.clone();
        tasks.spawn("test.unmade", move || {
            assert!(counted.fetch_add(1, Ordering::SeqCst) > 0, "the first time");
            std::future::pending()
        });
        is_run(&tried, 2).await;
    }

    #[tokio::test]
    async fn readiness_is_told_of_a_failed_task_until_it_runs_steadily() {
        let tasks = Tasks::with(Patience {
            steady_after: Duration::from_secs(2),
            ..PATIENCE
        });
        let (_, runs) = failing(&tasks, 1, || panic!("as the test wants it"));
        let told = async |what: &[&str]| {
            while tasks.problems() != what {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        told(&["the background task test.failing failed and will be restarted"]).await;
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        told(&["the background task test.failing failed and was restarted"]).await;
        is_run(&runs, 2).await;
        told(&[]).await;
    }

    #[tokio::test]
    async fn tasks_end_when_they_are_told_to_and_are_not_restarted() {
        let tasks = impatient();
        let held = Arc::new(());
        let hold = || {
            let held = held.clone();
            move || {
                let held = held.clone();
                async move {
                    let _held = held;
                    std::future::pending().await
                }
            }
        };
        let one = tasks.spawn("test.one", hold());
        tasks.spawn("test.other", hold());
        // Two tasks and what makes them.
        while Arc::strong_count(&held) < 5 {
            tokio::task::yield_now().await;
        }
        one.end();
        one.ended().await;
        assert_eq!(Arc::strong_count(&held), 3, "one is left");
        tasks.end();
        tasks.ended().await;
        assert_eq!(Arc::strong_count(&held), 1);
        assert_eq!(tasks.problems(), Vec::<String>::new());
    }
}
