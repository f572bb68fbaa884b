//! For how long a lane has been at its transaction: one that waits for a lock of somebody else's says
//! nothing until it is cut off.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Since when a lane is at its transaction, if it is at one.
#[derive(Clone, Default)]
pub(super) struct AtWork(Arc<Mutex<Option<Instant>>>);

/// That it is, until this is dropped.
pub(super) struct Working<'w>(&'w AtWork);

impl AtWork {
    /// A transaction begins.
    pub(super) fn begin(&self) -> Working<'_> {
        self.set(Some(Instant::now()));
        Working(self)
    }

    /// For how long it has been.
    pub(super) fn lasts(&self) -> Duration {
        let since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}
