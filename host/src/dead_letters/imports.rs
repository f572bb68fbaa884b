//! The dead letters, as guests call them.

use super::sql::Filter;
use super::{AtVersion, DeadLetterError, DeadLetterId, DeadLetters, Resolution, State, sql};
use crate::imports::{GuestImports, log_failed};
use crate::json::Json;
use crate::sandbox::DeadLetterImports;
use crate::sandbox::bindings::dead_letters as wit;

/// How many a page of `list` has at most.
const PAGE_MAX: u32 = 100;
/// About how many bytes a page of `list` has at most: it ends with the one that exceeds this. A
/// guest's memory is bounded, and so is ours.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

impl DeadLetterImports for GuestImports {
    async fn replay(&mut self, id: String) -> Result<String, wit::Error> {
        let (letters, id) = (self.managed()?, parsed(&id)?);
        let replayed = self.apart(async move { letters.replay(id, None, AtVersion::Latest).await });
        told(replayed.await).map(|delivery_id| delivery_id.to_string())
    }

    async fn resolve(&mut self, id: String, resolution: wit::Resolution) -> Result<(), wit::Error> {
        let (letters, id) = (self.managed()?, parsed(&id)?);
        let reason = match resolution {
            wit::Resolution::Ignored => Resolution::Ignored,
            wit::Resolution::HandledByScript => Resolution::HandledByScript,
        };
        told(
            self.apart(async move { letters.resolve(id, reason).await })
                .await,
        )
    }

    async fn list(
        &mut self,
        cursor: Option<String>,
        limit: Option<u32>,
    ) -> Result<wit::Page, wit::Error> {
        let letters = self.managed()?;
        let before = cursor.as_deref().map(parsed).transpose()?;
        let limit = limit.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
        let listed = self.apart(async move { letters.unresolved(before, limit).await });
        let (letters, next) = told(listed.await)?;
        Ok(wit::Page {
            entries: letters
                .iter()
                .map(|letter| Json::written(&letter.told()).into())
                .collect(),
            next: next.map(|id| id.to_string()),
        })
    }
}

impl GuestImports {
    /// Managing dead letters needs somebody who may; a public route's script acts as nobody.
    fn managed(&self) -> Result<DeadLetters, wit::Error> {
        self.dead_letters.clone().ok_or(wit::Error::Denied)
    }
}

impl DeadLetters {
    /// Unresolved ones, newest first, and where the next page begins.
    async fn unresolved(
        &self,
        before: Option<DeadLetterId>,
        limit: u32,
    ) -> Result<(Vec<super::DeadLetter>, Option<DeadLetterId>), DeadLetterError> {
        let filter = Filter {
            state: Some(State::Unresolved),
            ..Filter::default()
        };
        let mut conn = self.db.read().await?;
        let bounds = sql::Bounds {
            limit: limit.into(),
            bytes_max: PAGE_BYTES,
        };
        let order = sql::Order::NewestFirst;
        let read = sql::whole(&mut conn, self.app_id, &filter, before, order, bounds);
        let (letters, more) = read.await?;
        let next = letters.last().filter(|_| more).map(|letter| letter.id);
        Ok((letters, next))
    }
}

fn parsed(id: &str) -> Result<DeadLetterId, wit::Error> {
    id.parse().map_err(|_| wit::Error::InvalidId)
}

/// The error as the guest is told it. What failed inside us is logged and only called
/// unavailable.
fn told<T>(done: Option<Result<T, DeadLetterError>>) -> Result<T, wit::Error> {
    let error = match done {
        Some(Ok(done)) => return Ok(done),
        Some(Err(error)) => error,
        None => return Err(wit::Error::Unavailable),
    };
    Err(match error {
        DeadLetterError::NotFound(_) => wit::Error::NotFound,
        DeadLetterError::AlreadySettled(_) => wit::Error::AlreadyResolved,
        DeadLetterError::Store(error) => {
            log_failed("the dead letters", &error, error.is_unavailable());
            wit::Error::Unavailable
        }
        error => {
            tracing::warn!(%error, "a guest's call to the dead letters failed");
            wit::Error::Unavailable
        }
    })
}
