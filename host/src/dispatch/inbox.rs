//! Where a sync caller waits for the outcome of its delivery.
//!
//! An entry is taken out exactly once: by whoever answers, or by the caller who stops waiting.
//! Whoever comes second finds nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Answer, DeliveryId};
use crate::executions::AbandonReason;

/// How long a caller waits beyond their limit for whoever is about to answer.
const LAST_MOMENT: Duration = Duration::from_secs(5);

/// The callers who wait on this node.
#[derive(Clone, Default)]
pub struct Inbox {
    // Locked for a map operation and never across an await.
    waiting: Arc<Mutex<HashMap<DeliveryId, Waiting>>>,
}

enum Waiting {
    /// The caller waits: for the row to be written, or, once it has begun, for the outcome.
    Caller {
        answer: oneshot::Sender<Answer>,
        has_begun: bool,
    },
    /// The caller stopped waiting, for this reason; the entry stays until the outcome comes.
    Gone(AbandonReason),
}

/// A caller's place in the inbox. Dropping it means that the caller left.
pub struct Waiter {
    inbox: Inbox,
    id: DeliveryId,
    answer: oneshot::Receiver<Answer>,
}

/// The right to answer a caller, which nobody else has.
#[derive(Debug)]
pub struct Slot(oneshot::Sender<Answer>);

impl Slot {
    /// Answer. The caller may have left in this very moment; then it answers that.
    ///
    /// # Errors
    /// Why the caller is not there.
    pub fn answer(self, answer: Answer) -> Result<(), AbandonReason> {
        self.0.send(answer).map_err(|_| AbandonReason::CallerGone)
    }
}

impl Inbox {
    /// Wait for the outcome of `id`.
    pub fn register(&self, id: DeliveryId) -> Waiter {
        let (sender, answer) = oneshot::channel();
        let waiting = Waiting::Caller {
            answer: sender,
            has_begun: false,
        };
        self.lock().insert(id, waiting);
        Waiter {
            inbox: self.clone(),
            id,
            answer,
        }
    }

    /// Take the right to answer the caller of `id`.
    ///
    /// # Errors
    /// Why there is no such caller any more.
    pub fn take(&self, id: DeliveryId) -> Result<Slot, AbandonReason> {
        match self.lock().remove(&id) {
            Some(Waiting::Caller { answer, .. }) => Ok(Slot(answer)),
            Some(Waiting::Gone(reason)) => Err(reason),
            None => Err(AbandonReason::CallerGone),
        }
    }

    /// The row of `id` is written, and its script is about to run. Not so, and the entry is taken
    /// out, where its caller was told that it never began.
    pub fn begin(&self, id: DeliveryId) -> bool {
        let mut waiting = self.lock();
        match waiting.get_mut(&id) {
            Some(Waiting::Caller { has_begun, .. }) => *has_begun = true,
            Some(Waiting::Gone(AbandonReason::TimedOut)) => {
                waiting.remove(&id);
                return false;
            }
            // Who has left counts on it, and has not been told anything.
            Some(Waiting::Gone(_)) | None => {}
        }
        true
    }

    /// How many callers wait.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Turn the caller of `id` away and say whether it had [begun](Self::begin); none where somebody
    /// holds the right to answer it.
    fn leave(&self, id: DeliveryId, reason: AbandonReason) -> Option<bool> {
        let mut inbox = self.lock();
        let waiting = inbox.get_mut(&id)?;
        let Waiting::Caller { has_begun, .. } = *waiting else {
            return None;
        };
        *waiting = Waiting::Gone(reason);
        Some(has_begun)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<DeliveryId, Waiting>> {
        // A panic while it was held cannot have left a map operation half-done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    /// Wait for the answer, but no longer than `limit`: then `None`, and whoever comes with the
    /// outcome learns that it is too late. [`Answer::Unavailable`] when it has not begun by then, and
    /// so never does.
    pub async fn wait(mut self, limit: Duration) -> Option<Answer> {
        if let Ok(answer) = tokio::time::timeout(limit, &mut self.answer).await {
            return answer.ok();
        }
        match self.inbox.leave(self.id, AbandonReason::TimedOut) {
            Some(true) => None,
            Some(false) => Some(Answer::Unavailable),
            // Somebody took the right to answer in the last moment, and is about to; a call with a key
            // once its outcome is written, which takes long while the database is away.
            None => {
                let last = tokio::time::timeout(LAST_MOMENT, &mut self.answer).await;
                last.ok()?.ok()
            }
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.inbox.leave(self.id, AbandonReason::CallerGone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_answer() -> Answer {
        Answer::PlatformFault
    }

    #[tokio::test]
    async fn i06_an_inbox_is_resolved_exactly_once() {
        let inbox = Inbox::default();
        let id = DeliveryId::new();
        let waiter = inbox.register(id);
        let slot = inbox.take(id).unwrap();
        assert_eq!(inbox.take(id).unwrap_err(), AbandonReason::CallerGone);
        slot.answer(some_answer()).unwrap();
        assert!(waiter.wait(Duration::from_secs(9)).await.is_some());
        assert!(inbox.is_empty());
    }

    #[tokio::test]
    async fn i06_who_resolves_too_late_is_told_why() {
        let inbox = Inbox::default();
        let id = DeliveryId::new();
        let waiter = inbox.register(id);
        assert!(inbox.begin(id));
        assert!(waiter.wait(Duration::ZERO).await.is_none());
        assert_eq!(inbox.take(id).unwrap_err(), AbandonReason::TimedOut);
        drop(inbox.register(id));
        assert_eq!(inbox.take(id).unwrap_err(), AbandonReason::CallerGone);
        assert!(inbox.is_empty());
    }

    #[tokio::test]
    async fn what_has_not_begun_in_time_never_begins() {
        let inbox = Inbox::default();
        let id = DeliveryId::new();
        let told = inbox.register(id).wait(Duration::ZERO).await;
        assert!(matches!(told, Some(Answer::Unavailable)));
        assert!(!inbox.begin(id));
        assert!(inbox.is_empty());
        drop(inbox.register(id));
        assert!(inbox.begin(id), "whoever left was told nothing");
    }

    #[tokio::test]
    async fn an_answer_under_way_beats_the_time_limit() {
        let inbox = Inbox::default();
        let id = DeliveryId::new();
        let waiter = inbox.register(id);
        let slot = inbox.take(id).unwrap();
        let waiting = tokio::spawn(waiter.wait(Duration::ZERO));
        tokio::task::yield_now().await;
        slot.answer(some_answer()).unwrap();
        assert!(waiting.await.unwrap().is_some());
    }
}
