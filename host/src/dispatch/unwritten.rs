//! The calls that were answered and whose outcomes are not written yet: a caller has the answer
//! some milliseconds earlier so, and whoever reads outcomes waits for those that were before.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

/// How long a reader waits. An outcome takes longer than this only while the database is away.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// The outcomes that are about to be written.
pub struct Unwritten {
    now: Mutex<Generation>,
}

/// Those that began between two readers. Nothing is ever sent: it is over once nobody could.
struct Generation {
    open: mpsc::Sender<Infallible>,
    over: mpsc::Receiver<Infallible>,
}

/// An outcome that is about to be written; dropped when it is.
pub struct Pending(
    #[expect(dead_code, reason = "its drop is what counts")] mpsc::Sender<Infallible>,
);

impl Generation {
    fn new() -> Self {
        let (open, over) = mpsc::channel(1);
        Self { open, over }
    }
}

impl Default for Unwritten {
    fn default() -> Self {
        Self {
            now: Mutex::new(Generation::new()),
        }
    }
}

impl Unwritten {
    /// Note an outcome, before its caller is answered.
    pub fn begin(&self) -> Pending {
        Pending(self.lock().open.clone())
    }

    /// Wait until all that began before now is written, or the database is too slow for that.
    pub async fn settled(&self) {
        let next = Generation::new();
        // The next is not over before this one is.
        let _holds_next = next.open.clone();
        let Generation { open, mut over } = std::mem::replace(&mut *self.lock(), next);
        drop(open);
        let _ = tokio::time::timeout(WAIT_MAX, over.recv()).await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Generation> {
        // A panic while it was held cannot have left it half-done.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_reader_waits_for_what_was_before() {
        let unwritten = Unwritten::default();
        unwritten.settled().await;
        let before = unwritten.begin();
        let mut first = Box::pin(unwritten.settled());
        assert!(first.as_mut().now_or_never().is_none());
        let after = unwritten.begin();
        let mut second = Box::pin(unwritten.settled());
        assert!(second.as_mut().now_or_never().is_none());
        drop(after);
        assert!(
            second.as_mut().now_or_never().is_none(),
            "the first is not written"
        );
        drop(before);
        assert!(first.as_mut().now_or_never().is_some());
        drop(first);
        assert!(second.as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_reader_does_not_wait_for_what_comes_after() {
        let unwritten = Unwritten::default();
        let before = unwritten.begin();
        let mut reader = Box::pin(unwritten.settled());
        assert!(reader.as_mut().now_or_never().is_none());
        let _after = unwritten.begin();
        drop(before);
        assert!(reader.as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_reader_does_not_wait_for_ever() {
        let unwritten = Unwritten::default();
        let _pending = unwritten.begin();
        unwritten.settled().await;
    }
}
