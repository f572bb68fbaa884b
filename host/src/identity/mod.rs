//! Who acts: users, their passwords and their sessions.

pub mod api;
pub mod sql;

use std::sync::Arc;

use argon2::Argon2;
use argon2::password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::store::{Db, Id, StoreError};

/// The id of a user.
pub type UserId = Id<User>;

/// Somebody who may sign in.
#[derive(Debug, Clone, Serialize)]
pub struct User {
    /// Their id.
    pub id: UserId,
    /// The name that they sign in with.
    pub name: String,
    /// What they may do on the instance; `owner` is the only role for now.
    pub role: String,
}

/// A session that began: its token is shown here and never again.
#[derive(Debug, Clone)]
pub struct NewSession {
    /// The bearer token.
    pub token: String,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
    /// Whose it is.
    pub user: User,
}

/// What can go wrong with identities.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The name or the password is wrong; which one is not said.
    #[error("the name or the password is wrong")]
    WrongPassword,
    /// There is no session with this token.
    #[error("the token is unknown or has expired")]
    NoSession,
    /// A password could not be hashed or a token not be made.
    #[error("hashing failed: {0}")]
    Hashing(String),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The shortest password that is taken, in characters.
pub const PASSWORD_CHARS_MIN: usize = 8;

/// How many passwords are hashed at once. Each takes 19 MiB and a core for tens of
/// milliseconds: without a bound, a flood of logins would be a flood of memory.
const HASHING_AT_ONCE: usize = 2;

/// Begins and ends sessions.
#[derive(Clone)]
pub struct Sessions {
    db: Db,
    ttl: TimeDelta,
    hashing: Arc<Semaphore>,
}

impl Sessions {
    /// Sessions that last for `ttl_hours`.
    pub fn new(db: Db, ttl_hours: u32) -> Self {
        Self {
            db,
            ttl: TimeDelta::hours(ttl_hours.into()),
            hashing: Arc::new(Semaphore::new(HASHING_AT_ONCE)),
        }
    }

    /// Make the first owner, if there is no user yet. Says whether it did.
    ///
    /// # Errors
    /// When hashing or the database fails.
    pub async fn create_first_owner(
        &self,
        name: &str,
        password: String,
    ) -> Result<bool, IdentityError> {
        if sql::any_user(&mut self.db.read().await?).await? {
            return Ok(false);
        }
        let hash = self.hashed(move |argon2| hash(argon2, &password)).await?;
        let user = User {
            id: UserId::new(),
            name: name.to_owned(),
            role: "owner".into(),
        };
        self.db
            .write::<_, StoreError, _>(move |tx| {
                Box::pin(async move {
                    let is_first = sql::insert_first(tx, &user, &hash).await?;
                    crate::directory::raise_version(tx).await?;
                    Ok(is_first)
                })
            })
            .await
            .map_err(IdentityError::from)
    }

    /// Begin a session for whoever knows the password.
    ///
    /// # Errors
    /// [`IdentityError::WrongPassword`] after the same time whether or not the user exists.
    pub async fn log_in(&self, name: &str, password: String) -> Result<NewSession, IdentityError> {
        let known = sql::user_by_name(&mut self.db.read().await?, name).await?;
        let known_hash = known.as_ref().map(|(_, hash)| hash.clone());
        let right = self
            .hashed(move |argon2| match known_hash {
                Some(known) => Ok(verify(argon2, &password, &known)),
                // A user who does not exist costs as much as one who does.
                None => hash(argon2, &password).map(|_| false),
            })
            .await?;
        let Some((user, _)) = known.filter(|_| right) else {
            return Err(IdentityError::WrongPassword);
        };
        let token = format!("pcs_{}", random_text()?);
        let hash = token_hash(&token);
        let (user_id, ttl) = (user.id, self.ttl);
        let expires_at = self
            .db
            .write(move |tx| {
                Box::pin(async move {
                    let expires_at = tx.now + ttl;
                    sql::insert_session(tx, user_id, &hash, expires_at).await?;
                    Ok::<_, StoreError>(expires_at)
                })
            })
            .await?;
        Ok(NewSession {
            token,
            expires_at,
            user,
        })
    }

    /// Whose session a token is.
    ///
    /// # Errors
    /// [`IdentityError::NoSession`] when it is nobody's.
    pub async fn user_of(&self, token: &str) -> Result<User, IdentityError> {
        let mut conn = self.db.read().await?;
        sql::user_by_token(&mut conn, &token_hash(token), Utc::now())
            .await?
            .ok_or(IdentityError::NoSession)
    }

    /// End the session of a token; a token that has none is no error.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn log_out(&self, token: &str) -> Result<(), IdentityError> {
        let hash = token_hash(token);
        self.db
            .write(move |tx| Box::pin(async move { sql::delete_session(tx, &hash).await }))
            .await
            .map_err(IdentityError::from)
    }

    /// Hash on a thread for blocking work. The permit moves into the work: a caller who leaves
    /// does not free it while the hashing goes on.
    async fn hashed<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Argon2<'_>) -> Result<T, IdentityError> + Send + 'static,
    ) -> Result<T, IdentityError> {
        let permit = self.hashing.clone().acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            // The crate's defaults are OWASP's minimum: argon2id, 19 MiB, t=2, p=1.
            work(&Argon2::default())
        })
        .await
        .map_err(|error| IdentityError::Hashing(error.to_string()))?
    }
}

fn hash(argon2: &Argon2<'_>, password: &str) -> Result<String, IdentityError> {
    argon2
        .hash_password(password.as_bytes())
        .map(|hash| hash.to_string())
        .map_err(|error| IdentityError::Hashing(error.to_string()))
}

fn verify(argon2: &Argon2<'_>, password: &str, known: &str) -> bool {
    PasswordHash::new(known)
        .is_ok_and(|known| argon2.verify_password(password.as_bytes(), &known).is_ok())
}

/// What the database keeps of a token. It has 256 random bits, so a plain hash is enough.
fn token_hash(token: &str) -> Vec<u8> {
    Sha256::digest(token.as_bytes()).to_vec()
}

/// 256 random bits as text.
///
/// # Errors
/// When the system has no randomness.
pub fn random_text() -> Result<String, IdentityError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| IdentityError::Hashing(error.to_string()))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}
