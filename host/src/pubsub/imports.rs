//! The topics, as guests call them.

use super::{Addressed, PubSub, PubSubError, Receipt};
use crate::imports::{GuestImports, log_failed};
use crate::sandbox::PubSubImports;
use crate::sandbox::bindings::pubsub as wit;

impl GuestImports {
    fn may_publish(&self) -> Result<(), wit::Error> {
        self.may_publish.then_some(()).ok_or(wit::Error::Denied)
    }
}

impl PubSubImports for GuestImports {
    async fn publish_durable(
        &mut self,
        topic: String,
        message: String,
    ) -> Result<String, wit::Error> {
        self.may_publish()?;
        let message = read(&self.pubsub, topic, &message)?;
        let (pubsub, app_id, origin) = (self.pubsub.clone(), self.app_id, self.origin);
        let published =
            self.apart(async move { pubsub.publish_durable(app_id, message, origin).await });
        told(published.await).map(message_id)
    }

    async fn publish_ephemeral(
        &mut self,
        topic: String,
        message: String,
    ) -> Result<String, wit::Error> {
        self.may_publish()?;
        let message = read(&self.pubsub, topic, &message)?;
        let (pubsub, app_id) = (self.pubsub.clone(), self.app_id);
        // Apart from the guests' threads: telling ten thousand streams takes a while.
        let published = self.apart(async move { Ok(pubsub.publish_ephemeral(app_id, message)) });
        told(published.await).map(message_id)
    }

    async fn subscriber_token(
        &mut self,
        topics: Vec<String>,
        subject: Option<String>,
        ttl_seconds: Option<i64>,
    ) -> Result<String, wit::Error> {
        self.may_publish()?;
        let (pubsub, app_id, by) = (self.pubsub.clone(), self.app_id, self.acts_for);
        let made = self.apart(async move {
            pubsub
                .subscriber_token(app_id, &topics, subject, ttl_seconds, by)
                .await
        });
        told(made.await)
    }
}

/// The message that a guest gives; what that takes is its app's turn.
fn read(pubsub: &PubSub, topic: String, message: &str) -> Result<Addressed, wit::Error> {
    told(Some(pubsub.read(topic, message)))
}

fn message_id(receipt: Receipt) -> String {
    receipt.message_id.to_string()
}

/// The error as the guest is told it. What failed inside us is logged and only called
/// unavailable.
fn told<T>(done: Option<Result<T, PubSubError>>) -> Result<T, wit::Error> {
    let error = match done {
        Some(Ok(done)) => return Ok(done),
        Some(Err(error)) => error,
        None => return Err(wit::Error::Unavailable),
    };
    let text = error.to_string();
    Err(match error {
        PubSubError::InvalidTopic | PubSubError::InvalidGlob(_) => wit::Error::InvalidTopic(text),
        PubSubError::InvalidMessage(refused) => wit::Error::InvalidMessage(refused.to_string()),
        PubSubError::TooLarge { bytes, bytes_max } => wit::Error::TooLarge(wit::TooLarge {
            bytes: bytes as u64,
            bytes_max: bytes_max as u64,
        }),
        // The contract has no word of its own for it.
        PubSubError::HeardByTooMany(too_many) => wit::Error::InvalidMessage(too_many.to_string()),
        PubSubError::Full(full) => wit::Error::TooLarge(wit::TooLarge {
            bytes: full.used,
            bytes_max: full.max,
        }),
        PubSubError::TokenTopics
        | PubSubError::TooMany(_)
        | PubSubError::TokenSubject
        | PubSubError::NoMasterKey
        | PubSubError::NotOpen(_) => wit::Error::InvalidTokenRequest(text),
        PubSubError::Store(error) => {
            log_failed("topics", &error, error.is_unavailable());
            wit::Error::Unavailable
        }
        PubSubError::Unread(unread) => {
            log_failed("topics", &unread, true);
            wit::Error::Unavailable
        }
    })
}
