//! Requests that are seen through to their end, also when their client leaves.
//!
//! A server drops the future that answers a request when its client is gone. Where that future
//! changes something it must not end half-way: what it began would go on without it (a script, a
//! compiler), what it held would be free too early (a place at the gate), and what it was to write
//! down at the end would be missing (an execution, an entry of the audit log).

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::telemetry::trace::Span;

/// How many requests may go on without a client, besides those whose script holds a place at the
/// gate. Connections bound the others.
const ABANDONED_MAX: usize = 256;

/// The requests of this node that are seen through.
#[derive(Clone)]
pub struct SeenThrough {
    tracker: TaskTracker,
    stopping: CancellationToken,
    abandoned: Arc<AtomicUsize>,
    abandoned_max: usize,
}

impl SeenThrough {
    /// None so far; `executions_max` of them may run scripts.
    pub fn new(executions_max: usize) -> Self {
        Self {
            tracker: TaskTracker::new(),
            stopping: CancellationToken::new(),
            abandoned: Arc::default(),
            abandoned_max: executions_max.saturating_add(ABANDONED_MAX),
        }
    }

    /// Do `work` in this task; where the answer is dropped before it has ended, in a task of its
    /// own. So nothing is slower for those who stay.
    pub(super) fn see_through<T: 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> impl Future<Output = T> + Send {
        Attended {
            work: Some(work.boxed()),
            running: Some(self.tracker.token()),
            span: Span::current(),
            through: self.clone(),
        }
    }

    /// Let [`Self::finish`] begin.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Once told to [stop](Self::stop), wait until every request has ended, or the grace time has.
    pub async fn finish(&self, grace: Duration) {
        self.stopping.cancelled().await;
        self.tracker.close();
        let ended = tokio::time::timeout(grace, self.tracker.wait()).await;
        if ended.is_err() {
            let running = self.tracker.len();
            tracing::warn!(
                running,
                "the grace time is over; requests that still run end half-way"
            );
        }
    }

    /// Go on with what nobody waits for any more.
    fn go_on<T: 'static>(
        &self,
        work: BoxFuture<'static, T>,
        span: Span,
        running: Option<TaskTrackerToken>,
    ) {
        // None while the process ends.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let before = self.abandoned.fetch_add(1, Ordering::Relaxed);
        if before >= self.abandoned_max {
            self.abandoned.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!("too many requests were left by their clients; one ends half-way");
            return;
        }
        metrics::counter!("picloud_requests_abandoned_total").increment(1);
        let abandoned = self.abandoned.clone();
        runtime.spawn(async move {
            let work = span.around(work.map(drop));
            if AssertUnwindSafe(work).catch_unwind().await.is_err() {
                tracing::error!("a request panicked after its client had left");
            }
            abandoned.fetch_sub(1, Ordering::Relaxed);
            drop(running);
        });
    }
}

/// Work that somebody waits for.
struct Attended<T: 'static> {
    /// None once it has ended.
    work: Option<BoxFuture<'static, T>>,
    running: Option<TaskTrackerToken>,
    span: Span,
    through: SeenThrough,
}

impl<T: 'static> Future for Attended<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        // Taken out, so that what panicked is not gone on with.
        let Some(mut work) = self.work.take() else {
            return Poll::Pending;
        };
        let polled = work.as_mut().poll(context);
        if polled.is_pending() {
            self.work = Some(work);
        }
        polled
    }
}

impl<T: 'static> Drop for Attended<T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            let span = self.span.clone();
            self.through.go_on(work, span, self.running.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_is_dropped_goes_on_and_is_waited_for() {
        let through = SeenThrough::new(1);
        let ((go, wait), (tell, told)) = (oneshot::channel(), oneshot::channel());
        let mut work = Box::pin(through.see_through(async move {
            let said: i32 = wait.await.unwrap();
            tell.send(said).unwrap();
        }));
        assert!((&mut work).now_or_never().is_none());
        drop(work);
        through.stop();
        let mut finished = Box::pin(through.finish(Duration::from_secs(60)));
        assert!((&mut finished).now_or_never().is_none());
        go.send(7).unwrap();
        assert_eq!(told.await, Ok(7));
        finished.await;
        assert_eq!(through.abandoned.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn the_grace_time_bounds_the_waiting() {
        let through = SeenThrough::new(1);
        let work = through.see_through(std::future::pending::<()>());
        through.stop();
        through.finish(Duration::from_millis(1)).await;
        drop(work);
    }

    #[tokio::test]
    async fn no_more_than_the_bound_go_on_alone_and_what_panicked_does_not() {
        let through = SeenThrough::new(0);
        for _ in 0..ABANDONED_MAX + 3 {
            drop(through.see_through(std::future::pending::<()>()));
        }
        assert_eq!(through.abandoned.load(Ordering::Relaxed), ABANDONED_MAX);
        assert_eq!(through.tracker.len(), ABANDONED_MAX);
        let through = SeenThrough::new(0);
        let panicking = through.see_through::<()>(async { panic!("on purpose") });
        assert!(AssertUnwindSafe(panicking).catch_unwind().await.is_err());
        assert!(through.tracker.is_empty());
        assert_eq!(through.abandoned.load(Ordering::Relaxed), 0);
    }
}
