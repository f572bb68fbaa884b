//! How a node stops, step by step: told to whoever must know.

use tokio::sync::watch;

/// How far a node is on its way to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It serves.
    Serving,
    /// It was told to stop: it is not ready, and ends its streams, whose clients go elsewhere. What
    /// else comes is served, until whoever sends it has noticed (`shutdown_drain_ms`).
    Leaving,
    /// New requests are refused; what runs goes on (`shutdown_grace_ms`).
    Refusing,
    /// New connections are refused, too.
    Closed,
    /// Whoever still waits is told that it is in vain.
    Over,
}

/// Where a node is among its [stages](Stage). They follow each other in their order.
#[derive(Debug)]
pub struct Stopping(watch::Sender<Stage>);

impl Default for Stopping {
    fn default() -> Self {
        Self(watch::Sender::new(Stage::Serving))
    }
}

impl Stopping {
    /// Where it is.
    pub fn stage(&self) -> Stage {
        *self.0.borrow()
    }

    /// Go on to a stage; one that is passed already changes nothing.
    pub fn enter(&self, stage: Stage) {
        self.0.send_if_modified(|now| {
            let is_later = stage > *now;
            *now = stage.max(*now);
            is_later
        });
    }

    /// Comes back once a stage is reached.
    pub fn reached(&self, stage: Stage) -> impl Future<Output = ()> + Send + use<> {
        let mut stages = self.0.subscribe();
        async move {
            // Stages are told for as long as the node lives.
            let _ = stages.wait_for(|now| *now >= stage).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_stage_is_reached_with_the_later_ones_and_never_left() {
        let stopping = Stopping::default();
        let closed = stopping.reached(Stage::Closed);
        assert!(stopping.reached(Stage::Leaving).now_or_never().is_none());
        stopping.enter(Stage::Over);
        assert!(closed.now_or_never().is_some());
        stopping.enter(Stage::Refusing);
        assert_eq!(stopping.stage(), Stage::Over);
    }
}
