//! What is done for the outbox for as long as a node runs: leases are kept, rows that wait for
//! nothing are let go on, rows are counted, and nodes tell each other that there is work.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::outbox::Outbox;
use super::sql;
use crate::store::StoreError;

/// Where nodes tell each other that there is something to claim.
const CHANNEL: &str = "picloud_outbox";
/// How long one notification stands for all that follow.
const CALL_PAUSE: Duration = Duration::from_millis(20);
/// How often rows are looked for that wait for nothing any more.
const MEND_EVERY: Duration = Duration::from_secs(5);
/// How often the outbox is counted, unless that takes long.
const COUNT_EVERY: Duration = Duration::from_secs(5);

impl Outbox {
    /// Tell other nodes that there is something to claim: once for however many rows.
    pub(super) async fn call_other_nodes(self: Arc<Self>) {
        let own = self.worker.to_string();
        loop {
            self.call_others.notified().await;
            if let Err(error) = self.db.notify(CHANNEL, &own).await {
                tracing::warn!(%error, "other nodes could not be told; they look by themselves");
            }
            tokio::time::sleep(CALL_PAUSE).await;
        }
    }

    /// Look for work when another node says that there is some.
    pub(super) async fn listen_to_other_nodes(self: Arc<Self>) {
        let own = self.worker.to_string();
        let hear = |who: &str| {
            if who != own {
                self.wake.notify_one();
            }
        };
        self.db.listen(CHANNEL, hear).await;
    }

    /// Let rows go on that wait for nothing any more, for ever.
    pub(super) async fn keep_mending(self: Arc<Self>) {
        let mut pause = MEND_EVERY;
        loop {
            tokio::time::sleep(pause).await;
            pause = MEND_EVERY;
            let mended = self
                .db
                .write::<_, StoreError, _>(|tx| Box::pin(async move { sql::mend(tx).await }));
            match mended.await {
                Ok(0) => {}
                Ok(mended) => {
                    // There may be more.
                    pause = Duration::ZERO;
                    tracing::info!(mended, "deliveries waited for nothing; they go on");
                    self.is_behind();
                }
                Err(error) => tracing::warn!(%error, "waiting deliveries could not be looked at"),
            }
        }
    }

    /// Count the outbox for ever. To count is to read it all: with a million rows that is no
    /// small matter, so it takes a hundredth of the time at most.
    pub(super) async fn keep_counting(self: Arc<Self>) {
        loop {
            let started = Instant::now();
            if let Ok(mut conn) = self.db.read().await
                && let Ok(depth) = sql::depth(&mut conn).await
            {
                metrics::gauge!("picloud_outbox_deliveries").set(depth as f64);
            }
            tokio::time::sleep(COUNT_EVERY.max(started.elapsed() * 100)).await;
        }
    }

    /// Extend the leases of this node's worker, for ever.
    pub(super) async fn keep_leases(self: Arc<Self>) {
        let (worker, lease) = (self.worker, self.lease);
        let pause = lease.to_std().expect("it is made of an unsigned number") / 3;
        loop {
            tokio::time::sleep(pause).await;
            let kept = self
                .db
                .write(move |tx| Box::pin(async move { sql::heartbeat(tx, worker, lease).await }))
                .await;
            if let Err(error) = kept {
                let error: StoreError = error;
                tracing::warn!(%error, "leases could not be extended");
            }
        }
    }
}
