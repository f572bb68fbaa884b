//! What an instance may allocate.

use wasmtime::ResourceLimiter;

/// Elements of all tables together: a language runtime's function table, with room to spare.
const TABLE_ELEMENTS_MAX: usize = 20_000;

/// The guest wanted more memory than its limit. It traps at once instead of getting a -1 that
/// most allocators turn into an abort without a reason.
#[derive(Debug, thiserror::Error)]
#[error("the memory limit is reached")]
pub(super) struct MemoryExceeded;

/// Bounds the memories and the tables of an instance as sums: wasmtime's own limits look at
/// each alone.
pub(super) struct Limiter {
    memory_bytes_max: usize,
    memory_bytes: usize,
    table_elements: usize,
}

impl Limiter {
    pub(super) fn new(memory_bytes_max: u64) -> Self {
        let memory_bytes_max = usize::try_from(memory_bytes_max).unwrap_or(usize::MAX);
        Self {
            memory_bytes_max,
            memory_bytes: 0,
            table_elements: 0,
        }
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let sum = self
            .memory_bytes
            .saturating_add(desired.saturating_sub(current));
        if sum > self.memory_bytes_max {
            return Err(MemoryExceeded.into());
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
