//! Gives back the memory that slots of the instance pool keep after many executions at once.
//!
//! A slot keeps the pages of its last instance mapped, so that the next finds them: some 300 KiB each
//! for the interpreter, most of them of its compiled file. wasmtime lets go of them only when it forgets
//! the module whose memory they hold, so the interpreter is loaded once more, and the old one goes with
//! the last execution that uses it.

use std::time::Duration;

use super::Imports;
use super::engine::{Sandbox, SandboxError, WARM_SLOTS};

/// How often is looked.
const EVERY: Duration = Duration::from_secs(2);
/// How many looks in a row must find too much: slots that are used now and then keep what is theirs.
const LOOKS: u32 = 5;
/// The bytes of written pages that unused slots may keep.
const UNUSED_BYTES_MAX: usize = 32 << 20;

/// What no execution uses.
#[derive(Debug, Clone, Copy, Default)]
struct Unused {
    /// Slots that keep the memory of their last instance.
    slots: u32,
    /// What they keep of written pages, in bytes.
    bytes: usize,
}

impl<I: Imports> Sandbox<I> {
    /// Wait until unused slots have kept too much memory for a while.
    pub async fn has_too_much_unused(&self) {
        let mut looks = 0;
        while looks < LOOKS {
            tokio::time::sleep(EVERY).await;
            let Unused { slots, bytes } = self.unused();
            looks = match slots > WARM_SLOTS || bytes > UNUSED_BYTES_MAX {
                true => looks + 1,
                false => 0,
            };
        }
    }

    fn unused(&self) -> Unused {
        let pool = self.shared.engine.pooling_allocator_metrics();
        pool.map_or_else(Unused::default, |pool| Unused {
            slots: pool.unused_warm_memories(),
            bytes: pool.unused_memory_bytes_resident(),
        })
    }

    /// Give back what slots keep for the interpreter. What they keep for a component goes when it is
    /// dropped.
    ///
    /// # Errors
    /// When the interpreter cannot be loaded again; the old one stays.
    pub async fn trim(&self) -> Result<(), SandboxError> {
        let shared = self.shared.clone();
        let loading = tokio::task::spawn_blocking(move || shared.load_interpreter());
        let joined = loading.await.map_err(std::io::Error::other)?;
        let before = self.unused();
        self.shared.rhai.store(joined?.into());
        metrics::counter!("picloud_sandbox_trims_total").increment(1);
        let after = self.unused();
        tracing::debug!(?before, ?after, "unused slots gave their memory back");
        Ok(())
    }
}
