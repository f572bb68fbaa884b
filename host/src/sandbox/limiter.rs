//! What an instance may allocate, and all instances together.

use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;
use wasmtime::ResourceLimiter;

use crate::budget::{Budget, Exceeded, Hold, Metrics, Share};

/// One in so many bytes of all guests' memory is kept out of any single app's reach.
const KEPT_FREE: u64 = 4;

/// Elements of all tables together: a language runtime's function table, with room to spare.
const TABLE_ELEMENTS_MAX: usize = 20_000;

/// From how many bytes on an answer is counted.
const COUNTED_FROM_BYTES: usize = 16 * 1024;

/// The guest wanted more memory than its limit. It traps at once instead of getting a -1 that
/// most allocators turn into an abort without a reason.
#[derive(Debug, thiserror::Error)]
#[error("the memory limit is reached")]
pub(super) struct MemoryExceeded;

/// All guests hold as much memory as they may, or all of one app do.
#[derive(Debug, thiserror::Error)]
#[error("the guests of the node, or of the app, hold as much memory as they may: {0}")]
pub(super) struct NoMemory(pub(super) Exceeded);

/// The memory of all guests together, with a share for each app.
pub(super) type Memory = Budget<Uuid>;

/// A memory of `bytes_max` bytes for all guests.
pub(super) fn memory(bytes_max: u64) -> Arc<Memory> {
    let metrics = Metrics {
        bytes: "picloud_guest_memory_bytes",
        refused: "picloud_guest_memory_refused_total",
    };
    Budget::new(bytes_max, metrics)
}

/// Bounds the memories and the tables of an instance as sums: wasmtime's own limits look at
/// each alone.
pub(super) struct Limiter {
    /// What it takes of the memory of all.
    hold: Hold<Uuid>,
    memory_bytes_max: usize,
    memory_bytes: usize,
    /// Whether what a guest begins with counts: the interpreter touches next to nothing of it.
    is_interpreted: bool,
    table_elements: usize,
}

impl Limiter {
    pub(super) fn new(
        memory: &Arc<Memory>,
        app: Uuid,
        memory_bytes_max: u64,
        is_interpreted: bool,
    ) -> Self {
        let share = Share {
            of: app,
            bytes_max: memory.bytes_max() - memory.bytes_max() / KEPT_FREE,
        };
        Self {
            hold: memory.hold([Some(share), None]),
            memory_bytes_max: usize::try_from(memory_bytes_max).unwrap_or(usize::MAX),
            memory_bytes: 0,
            is_interpreted,
            table_elements: 0,
        }
    }
}

/// An answer, which counts as memory of guests until it is gone.
struct Answer {
    bytes: Bytes,
    _hold: Hold<Uuid>,
}

impl AsRef<[u8]> for Answer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Limiter {
    /// What a guest answered, counted in place of its memory for as long as anybody has it: callers who do
    /// not read must not have guest after guest answer, each with the memory of the one before. What is
    /// small is not worth it.
    pub(super) fn answer(self, bytes: Bytes) -> Bytes {
        if bytes.len() < COUNTED_FROM_BYTES {
            return bytes;
        }
        self.hold.note_all(bytes.len() as u64);
        let _hold = self.hold;
        Bytes::from_owner(Answer { bytes, _hold })
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        let sum = self.memory_bytes.saturating_add(more);
        if sum > self.memory_bytes_max {
            return Err(MemoryExceeded.into());
        }
        if current > 0 || !self.is_interpreted {
            self.hold.grow_by(more as u64).map_err(NoMemory)?;
        }
        self.memory_bytes = sum;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let sum = self
            .table_elements
            .saturating_add(desired.saturating_sub(current));
        if sum > TABLE_ELEMENTS_MAX {
            return Ok(false);
        }
        self.table_elements = sum;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn limiter(memory: &Arc<Memory>, app: u128, is_interpreted: bool) -> Limiter {
        let app = Uuid::from_u128(app);
        Limiter::new(memory, app, 64 << 20, is_interpreted)
    }

    #[test]
    fn guests_hold_no_more_than_their_shares_and_give_it_back() {
        let memory = memory(80 << 20);
        let grow = |limiter: &mut Limiter, from: usize, to: usize| {
            limiter.memory_growing(from * MIB, to * MIB, None)
        };
        let (mut one, mut two) = (limiter(&memory, 1, false), limiter(&memory, 1, true));
        assert!(grow(&mut one, 0, 10).is_ok() && grow(&mut one, 10, 50).is_ok());
        // What the interpreter begins with is not counted, and what it grows by is.
        assert!(grow(&mut two, 0, 20).is_ok() && grow(&mut two, 20, 30).is_ok());
        let whose = |refused: wasmtime::Error| refused.downcast::<NoMemory>().unwrap().0;
        let refused = grow(&mut two, 30, 31).unwrap_err();
        assert_eq!(whose(refused), Exceeded::ByOne);
        assert!(grow(&mut two, 30, 80).unwrap_err().is::<MemoryExceeded>());
        let mut other = limiter(&memory, 2, false);
        assert!(grow(&mut other, 0, 20).is_ok());
        let refused = grow(&mut other, 20, 21).unwrap_err();
        assert_eq!(whose(refused), Exceeded::ByAll);
        drop((one, two, other));
        assert_eq!(memory.held(), (0, 0));
    }

    #[test]
    fn an_answer_counts_as_its_guest_did_until_it_is_gone() {
        let memory = memory(80 << 20);
        let mut guest = limiter(&memory, 1, false);
        assert!(guest.memory_growing(0, 50 * MIB, None).is_ok());
        let answer = guest.answer(vec![0; 20 * MIB].into());
        assert_eq!(memory.held().0, 20 << 20);
        let copy = answer.slice(..1);
        drop(answer);
        assert_eq!(memory.held().0, 20 << 20);
        drop(copy);
        assert_eq!(memory.held(), (0, 0));
        // What an interpreter begins with was not counted, and what it answers is.
        let answer = limiter(&memory, 1, true).answer(vec![0; MIB].into());
        assert_eq!(memory.held().0, 1 << 20);
        let small = limiter(&memory, 1, true).answer(Bytes::from_static(b"1"));
        assert_eq!(memory.held().0, 1 << 20);
        drop((answer, small));
    }
}
