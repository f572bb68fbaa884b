//! What else is written in the transaction of a change: that it was made.

use std::future::Future;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{StoreError, Tx};

tokio::task_local! {
    static WITNESS: Option<Arc<dyn Witness>>;
}

/// Writes down that a change is made, in the change's own transaction: neither is committed
/// without the other.
pub trait Witness: Send + Sync {
    /// Write it. The change is in the transaction already.
    fn write<'t>(&'t self, tx: &'t mut Tx) -> BoxFuture<'t, Result<(), StoreError>>;

    /// The transaction was committed.
    fn committed(&self);
}

/// Do `work`; whatever it writes itself, `witness` writes in the same transactions. What other
/// tasks write for it is not seen.
pub async fn witnessed<F: Future>(witness: Arc<dyn Witness>, work: F) -> F::Output {
    WITNESS.scope(Some(witness), work).await
}

/// Do `work`, whose writes are no change yet: no witness writes anything with them.
pub async fn unwitnessed<F: Future>(work: F) -> F::Output {
    WITNESS.scope(None, work).await
}

/// `work` for a task of its own, with the witness of whoever makes it.
pub fn still_witnessed<F: Future>(work: F) -> impl Future<Output = F::Output> {
    WITNESS.scope(current(), work)
}

/// The witness of the work that asks.
pub(super) fn current() -> Option<Arc<dyn Witness>> {
    WITNESS.try_with(Option::clone).ok().flatten()
}
