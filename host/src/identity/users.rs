//! Who there is, and which roles they have.

pub mod api;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::capability::{self, AppRole, Role};
use super::{Caller, IdentityError, Sessions, User, UserId, sql};
use crate::apps::AppId;
use crate::directory;
use crate::quotas::objects::{self, Object};
use crate::store::{Expected, Tx};

/// A user with a role in an app.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Member {
    /// Who.
    pub user_id: UserId,
    /// Their name.
    pub name: String,
    /// Their role in the app.
    pub role: AppRole,
    /// Since when.
    pub created_at: DateTime<Utc>,
}

/// What is to become of a user.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change {
    /// Their role on the instance.
    pub role: Option<Role>,
    /// Whether they may not sign in.
    pub disabled: Option<bool>,
}

/// A user as they are now, if that is as expected and `by` may change them.
async fn changeable(
    tx: &mut Tx,
    by: Role,
    id: UserId,
    expected: &Expected,
) -> Result<User, IdentityError> {
    // Raising the version first makes such changes wait for each other: two who demote each
    // other, say, where one owner must stay.
    directory::raise_version(tx).await?;
    let user = sql::users::get(tx.conn().await?, id).await?;
    expected.check(user.as_ref())?;
    let user = user.ok_or_else(|| IdentityError::not_found("user", id))?;
    match user.role == Role::Owner && by != Role::Owner {
        true => Err(IdentityError::OwnersOnly),
        false => Ok(user),
    }
}

/// Refuse what left the instance without an owner who can sign in.
async fn owner_stays(tx: &mut Tx) -> Result<(), IdentityError> {
    match sql::users::has_owner(tx.conn().await?).await? {
        true => Ok(()),
        false => Err(IdentityError::LastOwner),
    }
}

impl Sessions {
    /// Everybody, in the order of their making: those after `after`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn users(
        &self,
        after: Option<UserId>,
        limit: i64,
    ) -> Result<Vec<User>, IdentityError> {
        let mut conn = self.db.read().await?;
        Ok(sql::users::page(&mut conn, after, limit).await?)
    }

    /// One user.
    ///
    /// # Errors
    /// [`IdentityError::NotFound`].
    pub async fn user(&self, id: UserId) -> Result<User, IdentityError> {
        let user = sql::users::get(&mut self.db.read().await?, id).await?;
        user.ok_or_else(|| IdentityError::not_found("user", id))
    }

    /// Change somebody's role, or whether they may sign in. The sessions of whoever is disabled
    /// end; their API keys do nothing until they are enabled again.
    ///
    /// # Errors
    /// [`IdentityError::LastOwner`], [`IdentityError::OwnersOnly`], [`IdentityError::NotFound`], or
    /// [`IdentityError::Forbidden`] when an API key would give more than it may.
    pub async fn change_user(
        &self,
        by: Caller,
        id: UserId,
        change: Change,
        expected: Expected,
    ) -> Result<User, IdentityError> {
        if change.role == Some(Role::Owner) && by.user.role != Role::Owner {
            return Err(IdentityError::OwnersOnly);
        }
        let changed = self.db.write(move |tx| {
            Box::pin(async move {
                let before = changeable(tx, by.user.role, id, &expected).await?;
                let mut user = before.clone();
                user.role = change.role.unwrap_or(user.role);
                user.disabled_at = match change.disabled {
                    Some(true) => user.disabled_at.or(Some(tx.now)),
                    Some(false) => None,
                    None => user.disabled_at,
                };
                let was_disabled = before.disabled_at.is_some();
                let is_enabled = was_disabled && user.disabled_at.is_none();
                if user.role > before.role || is_enabled {
                    capability::giving_on_instance(&by, user.role).allowed()?;
                }
                sql::users::update(tx, &user).await?;
                owner_stays(tx).await?;
                if user.disabled_at.is_some() {
                    sql::sessions::delete_others(tx, id, None).await?;
                }
                if is_enabled {
                    // Whoever is enabled begins anew: nothing from before lets anybody in again.
                    sql::sessions::delete_codes(tx, id).await?;
                }
                Ok(user)
            })
        });
        changed.await
    }

    /// Remove a user with their sessions, API keys and roles. What they registered, triggers
    /// say, stays and does nothing.
    ///
    /// # Errors
    /// As for [`Sessions::change_user`].
    pub async fn remove_user(
        &self,
        by: Role,
        id: UserId,
        expected: Expected,
    ) -> Result<(), IdentityError> {
        let removed = self.db.write(move |tx| {
            Box::pin(async move {
                changeable(tx, by, id, &expected).await?;
                sql::users::delete(tx, id).await?;
                owner_stays(tx).await
            })
        });
        removed.await
    }

    /// The members of an app, by their ids: those after `after`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn members(
        &self,
        app_id: AppId,
        after: Option<UserId>,
        limit: i64,
    ) -> Result<Vec<Member>, IdentityError> {
        let mut conn = self.db.read().await?;
        Ok(sql::members::page(&mut conn, app_id, after, limit).await?)
    }

    /// One member of an app; none when the user has no role in it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn member(
        &self,
        app_id: AppId,
        user_id: UserId,
    ) -> Result<Option<Member>, IdentityError> {
        let mut conn = self.db.read().await?;
        Ok(sql::members::get(&mut conn, app_id, user_id).await?)
    }

    /// Give a user a role in an app.
    ///
    /// # Errors
    /// [`IdentityError::NotFound`] when there is no such user, [`IdentityError::Forbidden`] when an API
    /// key would give more than it may, [`IdentityError::TooMany`] when the app has as many as it may.
    pub async fn set_member(
        &self,
        by: Caller,
        app_id: AppId,
        user_id: UserId,
        role: AppRole,
        expected: Expected,
        members_max: u64,
    ) -> Result<(), IdentityError> {
        let set = self.db.write(move |tx| {
            Box::pin(async move {
                directory::raise_version(tx).await?;
                let known = sql::members::get(tx.conn().await?, app_id, user_id).await?;
                expected.check(known.as_ref())?;
                let user = sql::users::get(tx.conn().await?, user_id).await?;
                user.ok_or_else(|| IdentityError::not_found("user", user_id))?;
                if known.is_none() {
                    let members = Object::Members;
                    objects::check::<IdentityError>(tx, app_id, members, members_max).await?;
                }
                if known.is_none_or(|known| known.role < role) {
                    capability::giving_in_app(&by, role).allowed()?;
                }
                Ok(sql::members::set(tx, app_id, user_id, role).await?)
            })
        });
        set.await
    }

    /// Take a user's role in an app away. Says whether they had one.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn remove_member(
        &self,
        app_id: AppId,
        (user_id, named): (UserId, String),
        expected: Expected,
    ) -> Result<(), IdentityError> {
        let removed = self.db.write(move |tx| {
            Box::pin(async move {
                directory::raise_version(tx).await?;
                let known = sql::members::get(tx.conn().await?, app_id, user_id).await?;
                expected.check(known.as_ref())?;
                let was_there = sql::members::delete(tx, app_id, user_id).await?;
                IdentityError::unless(was_there, "member", named)
            })
        });
        removed.await
    }
}
