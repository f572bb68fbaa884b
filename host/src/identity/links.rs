//! Links that are good once: an invitation to join, and one to set a new password. Whoever makes
//! one sends it on their own way; the server knows no e-mail address.
//!
//! A link gives what its maker might give now, and no more than when it was made: `sql/links.rs` has
//! the one condition that says so. One that does not hold is removed with the change that it fell
//! to, so nothing brings it back.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::capability::{self, AppRole, Role};
use super::sessions::{NewSession, Origin, Proof, replace_password};
use super::{
    ApiKeyId, Caller, IdentityError, Maker, Sessions, User, UserId, name, password, sql, token,
};
use crate::apps::{self, AppId};
use crate::store::{Id, StoreError};

/// How long an invitation is good.
const INVITATION_TTL: TimeDelta = TimeDelta::days(7);
/// How long a link to a new password is good.
const RESET_TTL: TimeDelta = TimeDelta::hours(24);

/// The id of a link.
pub type LinkId = Id<Link>;

/// A link, without its token.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Invitation")]
pub struct Link {
    /// Its id.
    pub id: LinkId,
    /// Whose password it sets; none when it is an invitation.
    #[serde(skip)]
    pub user_id: Option<UserId>,
    /// What whoever joins becomes on the instance; what the user was whose password it sets.
    pub role: Role,
    /// What they become in apps.
    pub apps: BTreeMap<AppId, AppRole>,
    /// Who made it.
    pub created_by: UserId,
    /// The API key that they made it with.
    #[serde(skip)]
    pub api_key_id: Option<ApiKeyId>,
    /// When.
    pub created_at: DateTime<Utc>,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
}

impl Sessions {
    /// Invite somebody. Answers the link with its token, which is shown once.
    ///
    /// # Errors
    /// [`IdentityError::OwnersOnly`] when somebody else invites an owner,
    /// [`IdentityError::Forbidden`] when an API key gives more than it has.
    pub async fn invite(
        &self,
        by: &Caller,
        role: Role,
        apps: BTreeMap<AppId, AppRole>,
    ) -> Result<(Link, String), IdentityError> {
        if role == Role::Owner && by.user.role != Role::Owner {
            return Err(IdentityError::OwnersOnly);
        }
        capability::giving_on_instance(by, role).allowed()?;
        for role in apps.values() {
            capability::giving_in_app(by, *role).allowed()?;
        }
        self.link(by.maker(), None, role, apps, INVITATION_TTL)
            .await
    }

    /// Let a user set a new password without the old one. A link that they were given for this before
    /// is dead from then on.
    ///
    /// # Errors
    /// [`IdentityError::NotFound`] when there is no such user, [`IdentityError::OwnersOnly`] when
    /// it is an owner's and `by` is none, [`IdentityError::Forbidden`] when `by` came with an API key,
    /// [`IdentityError::Disabled`] when the user is.
    pub async fn reset_link(
        &self,
        by: &Caller,
        user_id: UserId,
    ) -> Result<(Link, String), IdentityError> {
        let user = sql::users::get(&mut self.db.read().await?, user_id).await?;
        let user = user.ok_or_else(|| IdentityError::not_found("user", user_id))?;
        if user.role == Role::Owner && by.user.role != Role::Owner {
            return Err(IdentityError::OwnersOnly);
        }
        capability::giving_sign_in(by).allowed()?;
        if user.disabled_at.is_some() {
            return Err(IdentityError::Disabled(user.name));
        }
        let apps = BTreeMap::new();
        self.link(by.maker(), Some(user_id), user.role, apps, RESET_TTL)
            .await
    }

    async fn link(
        &self,
        made_by: Maker,
        user_id: Option<UserId>,
        role: Role,
        apps: BTreeMap<AppId, AppRole>,
        ttl: TimeDelta,
    ) -> Result<(Link, String), IdentityError> {
        let token = token::new(token::Kind::Link)?;
        let hash = token::hash(&token);
        let made = self.db.write(move |tx| {
            Box::pin(async move {
                let link = Link {
                    id: LinkId::new(),
                    user_id,
                    role,
                    apps,
                    created_by: made_by.user_id,
                    api_key_id: made_by.api_key_id,
                    created_at: tx.now,
                    expires_at: tx.now + ttl,
                };
                if let Some(user_id) = user_id {
                    sql::links::delete_of(tx, user_id).await?;
                }
                sql::links::insert(tx, &link, &hash).await?;
                tx.creates(link.id);
                Ok::<_, StoreError>(link)
            })
        });
        Ok((made.await?, token))
    }

    /// The invitations that nobody has followed, in the order of their making.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn invitations(
        &self,
        after: Option<LinkId>,
        limit: i64,
    ) -> Result<Vec<Link>, IdentityError> {
        let mut conn = self.db.read().await?;
        Ok(sql::links::invitations(&mut conn, Utc::now(), after, limit).await?)
    }

    /// Take an invitation back. Says whether there was one.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn revoke_invitation(&self, id: LinkId) -> Result<(), IdentityError> {
        let revoked = self.db.write(move |tx| {
            Box::pin(async move {
                let was_there = sql::links::delete_invitation(tx, id).await?;
                IdentityError::unless(was_there, "invitation", id)
            })
        });
        revoked.await
    }

    /// Follow an invitation: make the user, and begin their first session.
    ///
    /// # Errors
    /// [`IdentityError::DeadLink`], [`IdentityError::NameTaken`] or
    /// [`IdentityError::WeakPassword`]; the link is then as good as before.
    pub async fn join(
        &self,
        link_token: &str,
        name: String,
        new_password: String,
        from: Origin,
    ) -> Result<NewSession, IdentityError> {
        let token_hash = self.living(link_token).await?;
        let name = name::canonical(&name).map_err(IdentityError::ImpossibleName)?;
        password::check(&new_password, &name)?;
        let hash = self.hasher.hash(new_password).await?;
        let joined = self.db.write(move |tx| {
            Box::pin(async move {
                // First, as whoever changes a user does, who takes their links after it.
                crate::directory::raise_version(tx).await?;
                let link = sql::links::take(tx, &token_hash).await?;
                let link = link.filter(|link| link.user_id.is_none());
                let link = link.ok_or(IdentityError::DeadLink)?;
                let user = User {
                    id: UserId::new(),
                    name,
                    role: link.role,
                    created_at: tx.now,
                    disabled_at: None,
                };
                match sql::users::insert(tx, &user, &hash).await {
                    Ok(()) => {}
                    Err(StoreError::Duplicate) => return Err(IdentityError::NameTaken(user.name)),
                    Err(error) => return Err(error.into()),
                }
                for (app_id, role) in link.apps {
                    // Of an app that was deleted meanwhile nothing is given.
                    if apps::sql::is_there(tx, app_id).await? {
                        sql::members::set(tx, app_id, user.id, role).await?;
                    }
                }
                Ok(user)
            })
        });
        let user = joined.await?;
        self.begin(user, Proof::Otherwise, from).await
    }

    /// Follow a link to a new password; all sessions of its user end.
    ///
    /// # Errors
    /// [`IdentityError::DeadLink`] or [`IdentityError::WeakPassword`].
    pub async fn reset_password(
        &self,
        link_token: &str,
        new_password: String,
    ) -> Result<UserId, IdentityError> {
        let token_hash = self.living(link_token).await?;
        password::check(&new_password, "")?;
        let hash = self.hasher.hash(new_password).await?;
        let reset = self.db.write(move |tx| {
            Box::pin(async move {
                // First, as whoever changes a user does, who takes their links after it.
                crate::directory::raise_version(tx).await?;
                let link = sql::links::take(tx, &token_hash).await?;
                let user_id = link.and_then(|link| link.user_id);
                let user_id = user_id.ok_or(IdentityError::DeadLink)?;
                replace_password(tx, user_id, &hash, None).await?;
                Ok::<_, IdentityError>(user_id)
            })
        });
        let user_id = reset.await?;
        self.tell_revoked(user_id);
        Ok(user_id)
    }

    /// The hash of a link's token, if there is such a link: nothing is hashed for anybody else.
    async fn living(&self, link_token: &str) -> Result<Vec<u8>, IdentityError> {
        if token::kind(link_token) != Some(token::Kind::Link) {
            return Err(IdentityError::DeadLink);
        }
        let hash = token::hash(link_token);
        let mut conn = self.db.read().await?;
        match sql::links::is_living(&mut conn, &hash, Utc::now()).await? {
            true => Ok(hash),
            false => Err(IdentityError::DeadLink),
        }
    }
}
