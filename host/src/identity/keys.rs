//! API keys: what machines call the API with.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::capability::Scope;
use super::{IdentityError, KeyGrant, Sessions, UserId, sql, token};
use crate::apps::AppId;
use crate::store::{ETag, Expected, Id, StoreError, Tx};

/// The id of an API key.
pub type ApiKeyId = Id<ApiKey>;

/// How much of a token is kept to tell keys apart.
const START_CHARS: usize = 8;

/// An API key, without its token.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// Whose it is: it can do nothing that they may not.
    pub user_id: UserId,
    /// Its name.
    pub name: String,
    /// How its token begins.
    pub token_start: String,
    /// What it may be used for.
    pub scopes: Vec<Scope>,
    /// In which apps; none: wherever its user may.
    pub apps: Option<Vec<AppId>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it ends; none: when it is revoked.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was last used, to within five minutes.
    pub last_used_at: Option<DateTime<Utc>>,
}

impl ApiKey {
    /// What can be changed of it: that it is used is no change.
    fn changeable(self) -> Self {
        Self {
            last_used_at: None,
            ..self
        }
    }

    /// Its tag.
    pub fn etag(&self) -> ETag {
        ETag::of(&self.clone().changeable())
    }

    pub(super) fn grant(self) -> KeyGrant {
        KeyGrant {
            id: self.id,
            name: self.name,
            scopes: self.scopes,
            apps: self.apps,
        }
    }
}

/// The most keys of one user.
pub(super) const KEYS_MAX: i64 = 1000;

/// What a key is to be.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// Its name.
    pub name: String,
    /// What it may be used for.
    pub scopes: Vec<Scope>,
    /// In which apps.
    pub apps: Option<Vec<AppId>>,
    /// When it ends.
    pub expires_at: Option<DateTime<Utc>>,
}

/// Refuse what is not as expected. Nobody else changes the key until the transaction ends.
async fn check(
    tx: &mut Tx,
    user_id: UserId,
    id: ApiKeyId,
    expected: &Expected,
) -> Result<(), StoreError> {
    let known = sql::keys::hold(tx, user_id, id).await?;
    expected.check(known.map(ApiKey::changeable).as_ref())
}

impl Sessions {
    /// One key of a user.
    ///
    /// # Errors
    /// [`IdentityError::NotFound`] when the user has no such key.
    pub async fn key(&self, user_id: UserId, id: ApiKeyId) -> Result<ApiKey, IdentityError> {
        let key = sql::keys::get(&mut self.db.read().await?, user_id, id).await?;
        key.ok_or_else(|| IdentityError::not_found("API key", id))
    }

    /// Make a key for a user. Answers it with its token, which is shown once.
    ///
    /// # Errors
    /// [`IdentityError::NameTaken`] when the user has a key of this name,
    /// [`IdentityError::TooManyKeys`] when they have as many as there may be.
    pub async fn create_key(
        &self,
        user_id: UserId,
        new: NewKey,
    ) -> Result<(ApiKey, String), IdentityError> {
        let token = token::new(token::Kind::ApiKey)?;
        let hash = token::hash(&token);
        let token_start: String = token.chars().take(START_CHARS).collect();
        let made = self.db.write(move |tx| {
            Box::pin(async move {
                let key = ApiKey {
                    id: ApiKeyId::new(),
                    user_id,
                    name: new.name,
                    token_start,
                    scopes: new.scopes,
                    apps: new.apps,
                    created_at: tx.now,
                    expires_at: new.expires_at,
                    last_used_at: None,
                };
                if sql::keys::count(tx.conn().await?, user_id).await? >= KEYS_MAX {
                    return Err(IdentityError::TooManyKeys);
                }
                match sql::keys::insert(tx, &key, &hash).await {
                    Ok(()) => {
                        tx.creates(key.id);
                        Ok(key)
                    }
                    Err(StoreError::Duplicate) => Err(IdentityError::NameTaken(key.name)),
                    Err(error) => Err(error.into()),
                }
            })
        });
        Ok((made.await?, token))
    }

    /// Give a key a new token; the old one is dead from then on, and so are the invitations that were
    /// made with it.
    ///
    /// # Errors
    /// [`IdentityError::NotFound`] when the user has no such key.
    pub async fn rotate_key(
        &self,
        user_id: UserId,
        id: ApiKeyId,
        expected: Expected,
    ) -> Result<(ApiKey, String), IdentityError> {
        let token = token::new(token::Kind::ApiKey)?;
        let hash = token::hash(&token);
        let start: String = token.chars().take(START_CHARS).collect();
        let rotated = self.db.write(move |tx| {
            Box::pin(async move {
                check(tx, user_id, id, &expected).await?;
                sql::keys::set_token(tx, user_id, id, &hash, &start).await?;
                // Whoever had the old token may have made them.
                sql::links::delete_made_with(tx, id).await?;
                let key = sql::keys::get(tx.conn().await?, user_id, id).await?;
                key.ok_or_else(|| IdentityError::not_found("API key", id))
            })
        });
        let rotated = rotated.await?;
        self.tell_revoked(user_id);
        Ok((rotated, token))
    }

    /// The keys of a user, in the order of their making: those after `after`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keys(
        &self,
        user_id: UserId,
        after: Option<ApiKeyId>,
        limit: i64,
    ) -> Result<Vec<ApiKey>, IdentityError> {
        let mut conn = self.db.read().await?;
        Ok(sql::keys::page(&mut conn, user_id, after, limit).await?)
    }

    /// Revoke a key of a user. Says whether there was one.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn revoke_key(
        &self,
        user_id: UserId,
        id: ApiKeyId,
        expected: Expected,
    ) -> Result<(), IdentityError> {
        let revoked = self.db.write(move |tx| {
            Box::pin(async move {
                check(tx, user_id, id, &expected).await?;
                let was_there = sql::keys::delete(tx, user_id, id).await?;
                IdentityError::unless(was_there, "API key", id)
            })
        });
        revoked.await?;
        self.tell_revoked(user_id);
        Ok(())
    }
}

/// Whether a key has ended at `now`.
pub(super) fn has_ended(key: &ApiKey, now: DateTime<Utc>) -> bool {
    key.expires_at.is_some_and(|at| at <= now)
}
