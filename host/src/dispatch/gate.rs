//! How many executions there may be at once on this node.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The share of the gate that deliveries without a waiting caller may take, so that a backlog
/// never shuts callers out.
const ASYNC_SHARE: usize = 4;

/// Bounds executions below what the sandbox's pool can hold.
pub struct Gate {
    all: Arc<Semaphore>,
    without_caller: Arc<Semaphore>,
}

/// The right to run one execution; dropping it gives the place back.
#[derive(Debug)]
pub struct Permit {
    _all: OwnedSemaphorePermit,
    _without_caller: Option<OwnedSemaphorePermit>,
}

impl Gate {
    /// A gate for `executions_max` at once.
    pub fn new(executions_max: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(executions_max)),
            without_caller: Arc::new(Semaphore::new((executions_max / ASYNC_SHARE).max(1))),
        }
    }

    /// A place for an execution whose caller waits, if there is one.
    pub fn enter(&self) -> Option<Permit> {
        let all = self.all.clone().try_acquire_owned().ok()?;
        Some(Permit {
            _all: all,
            _without_caller: None,
        })
    }

    /// A place for an execution for which nobody waits, if there is one.
    pub fn enter_without_caller(&self) -> Option<Permit> {
        let without_caller = self.without_caller.clone().try_acquire_owned().ok()?;
        let all = self.all.clone().try_acquire_owned().ok()?;
        Some(Permit {
            _all: all,
            _without_caller: Some(without_caller),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Gate;

    #[test]
    fn a_backlog_leaves_room_for_callers() {
        let gate = Gate::new(8);
        let background: Vec<_> = std::iter::from_fn(|| gate.enter_without_caller()).collect();
        assert_eq!(background.len(), 2);
        let callers: Vec<_> = std::iter::from_fn(|| gate.enter()).collect();
        assert_eq!(callers.len(), 6);
        drop(background);
        assert!(gate.enter().is_some());
    }
}
