//! The first owner: given by the configuration, or made by whoever has the token that the server
//! printed, so that nobody else takes a fresh instance over.

use super::capability::Role;
use super::sessions::{NewSession, Origin, Proof};
use super::{IdentityError, Sessions, User, UserId, name, password, sql, token};
use crate::directory;
use crate::store::{StoreError, Tx};

/// Make the first owner, if there is no user yet, and let no token make another.
async fn insert_first(
    tx: &mut Tx,
    name: String,
    password_hash: &str,
) -> Result<Option<User>, StoreError> {
    // Raising the version first makes two nodes that start together wait for each other.
    directory::raise_version(tx).await?;
    let owner = User {
        id: UserId::new(),
        name,
        role: Role::Owner,
        created_at: tx.now,
        disabled_at: None,
    };
    if !sql::users::insert_first(tx, &owner, password_hash).await? {
        return Ok(None);
    }
    sql::setup::delete_all(tx).await?;
    Ok(Some(owner))
}

impl Sessions {
    /// Whether there is an owner. There is always one after the first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn is_set_up(&self) -> Result<bool, IdentityError> {
        Ok(sql::users::any(&mut self.db.read().await?).await?)
    }

    /// Make the first owner with the password of the configuration, if there is no user yet. Says
    /// whether it did.
    ///
    /// # Errors
    /// When hashing or the database fails.
    pub async fn create_first_owner(
        &self,
        name: &str,
        password: String,
    ) -> Result<bool, IdentityError> {
        if self.is_set_up().await? {
            return Ok(false);
        }
        let name = name::canonical(name).map_err(IdentityError::ImpossibleName)?;
        let hash = self.hasher.hash(password).await?;
        let made = self
            .db
            .write(move |tx| Box::pin(async move { insert_first(tx, name, &hash).await }));
        Ok(made.await?.is_some())
    }

    /// A token that makes the first owner. Earlier ones stay good: another node printed them, or
    /// somebody has noted one down.
    ///
    /// # Errors
    /// When the system has no randomness, or the database fails.
    pub async fn setup_token(&self) -> Result<String, IdentityError> {
        let token = token::new(token::Kind::Setup)?;
        let hash = token::hash(&token);
        let made = self
            .db
            .write(move |tx| Box::pin(async move { sql::setup::insert(tx, &hash).await }));
        made.await.map_err(IdentityError::from)?;
        Ok(token)
    }

    /// Make the first owner, and begin their first session.
    ///
    /// # Errors
    /// [`IdentityError::AlreadySetUp`], [`IdentityError::WrongSetupToken`] or
    /// [`IdentityError::WeakPassword`].
    pub async fn set_up(
        &self,
        setup_token: &str,
        name: String,
        new_password: String,
        from: Origin,
    ) -> Result<NewSession, IdentityError> {
        if self.is_set_up().await? {
            return Err(IdentityError::AlreadySetUp);
        }
        // Before the costly hash, so that only typing costs.
        if token::kind(setup_token) != Some(token::Kind::Setup) {
            return Err(IdentityError::WrongSetupToken);
        }
        let name = name::canonical(&name).map_err(IdentityError::ImpossibleName)?;
        password::check(&new_password, &name)?;
        let token_hash = token::hash(setup_token);
        let hash = self.hasher.hash(new_password).await?;
        let made = self.db.write(move |tx| {
            Box::pin(async move {
                if !sql::setup::is_known(tx, &token_hash).await? {
                    // They are gone once one was used.
                    return match sql::users::any(tx.conn().await?).await? {
                        true => Err(IdentityError::AlreadySetUp),
                        false => Err(IdentityError::WrongSetupToken),
                    };
                }
                let owner = insert_first(tx, name, &hash).await?;
                owner.ok_or(IdentityError::AlreadySetUp)
            })
        });
        let owner = made.await?;
        self.begin(owner, Proof::Otherwise, from).await
    }
}
