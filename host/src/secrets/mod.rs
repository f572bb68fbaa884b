//! Secrets: values that an app's scripts may read, encrypted at rest, answered by no API.

pub mod api;
pub mod imports;
pub mod master_key;
pub mod sql;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::apps::AppId;
use crate::scripts::ScriptId;
use crate::store::{Db, Expected, StoreError};
use master_key::{MasterKeys, Sealed};

/// What a name looks like.
pub const NAME_PATTERN: &str = "^[A-Za-z_][A-Za-z0-9_]*$";
/// The longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// The largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;
/// The most secrets of an app.
pub const SECRETS_MAX: i64 = 200;

/// A secret, without its value.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Secret {
    /// Its name.
    pub name: String,
    /// Which scripts may read it; none: all of the app.
    pub scripts: Option<Vec<ScriptId>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it last got a value.
    pub updated_at: DateTime<Utc>,
}

/// What can go wrong with secrets.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// A name that no secret can have.
    #[error("the name {0}")]
    InvalidName(&'static str),
    /// An empty value, or one that is too large.
    #[error("a secret has 1 to {VALUE_BYTES_MAX} bytes")]
    InvalidValue,
    /// There is none of this name.
    #[error("the app has no secret `{0}`")]
    NotFound(String),
    /// The app has as many as it may.
    #[error("an app has at most {SECRETS_MAX} secrets")]
    TooMany,
    /// It is for other scripts.
    #[error("the secret `{0}` is for other scripts")]
    Denied(String),
    /// No key to encrypt with.
    #[error(
        "this instance has no master key: with Postgres, set `master_key` or `master_key_file` to the same on every node"
    )]
    NoMasterKey,
    /// It was encrypted under a key that is not here.
    #[error("the secret `{0}` was encrypted under a master key that this node does not have")]
    ForeignKey(String),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Check a name.
///
/// # Errors
/// [`SecretError::InvalidName`].
pub fn check_name(name: &str) -> Result<(), SecretError> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(SecretError::InvalidName("has 1 to 128 bytes"));
    }
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !plain || name.starts_with(|first: char| first.is_ascii_digit()) {
        let rule = "has letters, digits and `_` only, and begins with no digit";
        return Err(SecretError::InvalidName(rule));
    }
    Ok(())
}

/// The secrets of all apps.
#[derive(Clone)]
pub struct Secrets {
    db: Db,
    keys: Arc<MasterKeys>,
}

impl Secrets {
    /// Secrets under these keys.
    pub fn new(db: Db, keys: Arc<MasterKeys>) -> Self {
        Self { db, keys }
    }

    /// The value of a secret, for a script; none when the app has none of this name.
    ///
    /// # Errors
    /// [`SecretError::Denied`] when it is for other scripts.
    pub async fn read(
        &self,
        app_id: AppId,
        script_id: ScriptId,
        name: &str,
    ) -> Result<Option<String>, SecretError> {
        check_name(name)?;
        let found = sql::get(&mut self.db.read().await?, app_id, name).await?;
        let Some((secret, sealed)) = found else {
            return Ok(None);
        };
        if secret
            .scripts
            .is_some_and(|scripts| !scripts.contains(&script_id))
        {
            return Err(SecretError::Denied(name.to_owned()));
        }
        let value = self.keys.open(app_id, name, &sealed);
        value
            .map(Some)
            .ok_or_else(|| SecretError::ForeignKey(name.to_owned()))
    }

    /// A secret without its value.
    ///
    /// # Errors
    /// [`SecretError::NotFound`].
    pub async fn show(&self, app_id: AppId, name: String) -> Result<Secret, SecretError> {
        let found = sql::get(&mut self.db.read().await?, app_id, &name).await?;
        found
            .map(|(secret, _)| secret)
            .ok_or(SecretError::NotFound(name))
    }

    /// Give a secret a value.
    ///
    /// # Errors
    /// [`SecretError`] says what is wrong; nothing was changed then.
    pub async fn set(
        &self,
        app_id: AppId,
        name: String,
        value: &str,
        scripts: Option<Vec<ScriptId>>,
        expected: Expected,
    ) -> Result<(), SecretError> {
        check_name(&name)?;
        if value.is_empty() || value.len() > VALUE_BYTES_MAX {
            return Err(SecretError::InvalidValue);
        }
        let sealed = self.keys.seal(app_id, &name, value);
        let sealed = sealed.ok_or(SecretError::NoMasterKey)?;
        let set = self.db.write(move |tx| {
            Box::pin(async move {
                expected.check(sql::hold(tx, app_id, &name).await?.as_ref())?;
                sql::upsert(tx, app_id, &name, scripts.as_deref(), &sealed).await?;
                match sql::count(tx.conn().await?, app_id).await? > SECRETS_MAX {
                    true => Err(SecretError::TooMany),
                    false => Ok(()),
                }
            })
        });
        set.await
    }

    /// Remove a secret.
    ///
    /// # Errors
    /// [`SecretError::NotFound`].
    pub async fn remove(
        &self,
        app_id: AppId,
        name: String,
        expected: Expected,
    ) -> Result<(), SecretError> {
        let removed = self.db.write(move |tx| {
            Box::pin(async move {
                expected.check(sql::hold(tx, app_id, &name).await?.as_ref())?;
                match sql::delete(tx, app_id, &name).await? {
                    true => Ok(()),
                    false => Err(SecretError::NotFound(name)),
                }
            })
        });
        removed.await
    }

    /// Encrypt every secret under the current key that is under another of ours. Answers how
    /// many were, and how many are under keys that are not here.
    ///
    /// # Errors
    /// When the database fails; what was done until then stays done.
    pub async fn rotate(&self) -> Result<(u64, u64), SecretError> {
        let current = self.keys.current_id().ok_or(SecretError::NoMasterKey)?;
        let (mut rotated, mut foreign) = (0, 0);
        let old = sql::under_other_keys(&mut self.db.read().await?, current).await?;
        for (app_id, name, sealed) in old {
            let Some(new) = self.keys.reseal(app_id, &name, &sealed) else {
                foreign += 1;
                continue;
            };
            // Only if nobody gave it another value meanwhile.
            let replaced = self.db.write(move |tx| {
                Box::pin(async move { sql::replace(tx, app_id, &name, &sealed, &new).await })
            });
            rotated += u64::from(replaced.await?);
        }
        Ok((rotated, foreign))
    }
}

/// How a secret is shown that was put under a key.
impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sealed({} bytes)", self.bytes.len())
    }
}
