//! Byte budgets: what many hold together is bounded, and each one's share of it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that holders identified by `S` may hold together.
pub struct Budget<S> {
    bytes_max: u64,
    metrics: Metrics,
    held: Mutex<Held<S>>,
}

/// The names of a budget's metrics.
#[derive(Debug, Clone, Copy)]
pub struct Metrics {
    /// A gauge of the bytes that are held.
    pub bytes: &'static str,
    /// A counter of the requests that were refused.
    pub refused: &'static str,
}

struct Held<S> {
    bytes: u64,
    of: HashMap<S, u64>,
}

/// Whose share something is counted to, and the most bytes of that share.
#[derive(Debug, Clone)]
pub struct Share<S> {
    /// Who holds it.
    pub of: S,
    /// What they may hold in all.
    pub bytes_max: u64,
}

/// There is no room in a budget, or in a share of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// Whoever asks would have a share of their own left.
    #[error("as many bytes are held as may be by all")]
    ByAll,
    /// Whoever asks holds, or asks for, more than their share.
    #[error("as many bytes are held as may be by one")]
    ByOne,
}

/// Bytes taken from a budget for one purpose; dropped, they are given back.
pub struct Hold<S: Eq + Hash> {
    budget: Arc<Budget<S>>,
    /// None for whoever has no share.
    shares: [Option<Share<S>>; 2],
    bytes: AtomicU64,
}

impl<S: Eq + Hash + Clone> Budget<S> {
    /// A budget of `bytes_max` bytes, nothing of which is held.
    pub fn new(bytes_max: u64, metrics: Metrics) -> Arc<Self> {
        let held = Mutex::new(Held {
            bytes: 0,
            of: HashMap::new(),
        });
        Arc::new(Self {
            bytes_max,
            metrics,
            held,
        })
    }

    /// The bytes of the whole budget.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// How many bytes there is room for in a share.
    pub fn left(&self, share: &Share<S>) -> u64 {
        let held = self.lock();
        let theirs = held.of.get(&share.of).copied().unwrap_or_default();
        let of_share = share.bytes_max.saturating_sub(theirs);
        of_share.min(self.bytes_max.saturating_sub(held.bytes))
    }

    /// A hold on nothing yet; what it takes is counted to each of `shares`, too.
    pub fn hold(self: &Arc<Self>, shares: [Option<Share<S>>; 2]) -> Hold<S> {
        Hold {
            budget: self.clone(),
            shares,
            bytes: AtomicU64::new(0),
        }
    }
}

impl<S> Budget<S> {
    fn lock(&self) -> MutexGuard<'_, Held<S>> {
        // A panic while it was held cannot have left an addition half-done.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes that are held, and how many hold some.
    #[cfg(test)]
    pub fn held(&self) -> (u64, usize) {
        let held = self.lock();
        (held.bytes, held.of.len())
    }
}

impl<S: Eq + Hash + Clone> Hold<S> {
    /// Hold `more` bytes than before.
    ///
    /// # Errors
    /// [`Exceeded`]; then it holds what it held.
    pub fn grow_by(&self, more: u64) -> Result<(), Exceeded> {
        self.grow(&mut self.budget.lock(), more)
    }

    /// Hold `bytes` in all, unless that is less than before.
    ///
    /// # Errors
    /// [`Exceeded`]; then it holds what it held.
    pub fn grow_to(&self, bytes: u64) -> Result<(), Exceeded> {
        let mut held = self.budget.lock();
        let more = bytes.saturating_sub(self.bytes.load(Ordering::Relaxed));
        self.grow(&mut held, more)
    }

    /// Hold `more` bytes than before, room or not, because they are there already.
    pub fn note(&self, more: u64) {
        self.take(&mut self.budget.lock(), more);
    }

    /// Hold `bytes` in all, room or not: what there is now of what was held.
    pub fn note_all(&self, bytes: u64) {
        let mut held = self.budget.lock();
        self.give_back(&mut held, self.bytes.swap(0, Ordering::Relaxed));
        self.take(&mut held, bytes);
    }

    /// Whether there is room for anything more.
    ///
    /// # Errors
    /// [`Exceeded`] where there is none.
    pub fn check(&self) -> Result<(), Exceeded> {
        self.check_room(&self.budget.lock(), 1)
    }

    /// A hold on nothing yet, which is counted to the same shares.
    pub fn another(&self) -> Self {
        self.budget.hold(self.shares.clone())
    }

    fn grow(&self, held: &mut Held<S>, more: u64) -> Result<(), Exceeded> {
        self.check_room(held, more)?;
        self.take(held, more);
        Ok(())
    }

    fn check_room(&self, held: &Held<S>, more: u64) -> Result<(), Exceeded> {
        let Budget {
            bytes_max, metrics, ..
        } = &*self.budget;
        let is_over = |share: &Share<S>| {
            let theirs = held.of.get(&share.of).copied().unwrap_or_default();
            theirs + more > share.bytes_max
        };
        let exceeded = if self.shares.iter().flatten().any(is_over) {
            Exceeded::ByOne
        } else if held.bytes + more > *bytes_max {
            Exceeded::ByAll
        } else {
            return Ok(());
        };
        metrics::counter!(metrics.refused).increment(1);
        Err(exceeded)
    }

    fn take(&self, held: &mut Held<S>, more: u64) {
        if more == 0 {
            return;
        }
        held.bytes += more;
        for share in self.shares.iter().flatten() {
            match held.of.get_mut(&share.of) {
                Some(theirs) => *theirs += more,
                None => {
                    held.of.insert(share.of.clone(), more);
                }
            }
        }
        self.bytes.fetch_add(more, Ordering::Relaxed);
        metrics::gauge!(self.budget.metrics.bytes).set(held.bytes as f64);
    }
}

impl<S: Eq + Hash> Hold<S> {
    fn give_back(&self, held: &mut Held<S>, bytes: u64) {
        held.bytes -= bytes;
        for share in self.shares.iter().flatten() {
            if let Some(theirs) = held.of.get_mut(&share.of) {
                *theirs -= bytes;
                if *theirs == 0 {
                    held.of.remove(&share.of);
                }
            }
        }
        metrics::gauge!(self.budget.metrics.bytes).set(held.bytes as f64);
    }
}

impl<S: Eq + Hash> Drop for Hold<S> {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        if bytes > 0 {
            self.give_back(&mut self.budget.lock(), bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_held_within_shares_and_given_back() {
        let names = Metrics {
            bytes: "test_bytes",
            refused: "test_refused_total",
        };
        let budget = Budget::new(100, names);
        let hold = |of| budget.hold([Some(Share { of, bytes_max: 60 }), None]);
        let (first, second, other) = (hold("a"), hold("a"), hold("b"));
        assert!(first.grow_to(40).is_ok() && first.grow_to(20).is_ok());
        assert!(second.grow_by(21).is_err() && second.grow_by(20).is_ok());
        assert_eq!(first.grow_by(1), Err(Exceeded::ByOne));
        assert!(other.grow_by(41).is_err() && other.grow_by(40).is_ok());
        let nobodys = budget.hold([None, None]);
        assert_eq!(nobodys.grow_by(1), Err(Exceeded::ByAll));
        assert_eq!(hold("c").grow_by(1), Err(Exceeded::ByAll));
        assert_eq!(
            hold("c").grow_by(61),
            Err(Exceeded::ByOne),
            "whatever others hold"
        );
        assert_eq!(budget.held(), (100, 2));
        assert!(nobodys.check().is_err() && first.another().check().is_err());
        other.note(10);
        let left = |of| budget.left(&Share { of, bytes_max: 60 });
        assert_eq!((budget.held().0, left("a"), left("c")), (110, 0, 0));
        drop((first, second, other, nobodys));
        assert_eq!(budget.held(), (0, 0));
        let (more, same) = (hold("a"), hold("a").another());
        more.note(60);
        assert!(same.check().is_err() && hold("b").check().is_ok());
        more.note_all(7);
        assert_eq!((budget.held().0, same.check().is_ok()), (7, true));
        more.note_all(70);
        assert_eq!((budget.held().0, same.check().is_ok()), (70, false));
        drop(more);
        assert_eq!(budget.held(), (0, 0));
    }
}
