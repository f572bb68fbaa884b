//! Signing in at an OpenID provider: whom it vouches for, and what they may do here.
//!
//! - [`provider`]: the provider, and what it says of somebody.
//! - [`attempt`]: what a sign-in that goes on is bound to.
//! - [`handover`]: from a browser to a program on somebody's machine.
//! - [`roles`]: from their groups to their roles.

pub mod api;
pub mod attempt;
pub mod handover;
pub mod provider;
pub mod roles;
pub mod sql;

use std::collections::BTreeSet;

use crate::apps::AppId;
use crate::directory;
use crate::identity::capability::{AppRole, Role};
use crate::identity::sql::{members, users};
use crate::identity::{IdentityError, Sessions, User, UserId, name, token};
use crate::store::{StoreError, Tx};
use provider::Person;
use roles::Mapping;

/// What the provider is, and what those who come from it get.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The provider, as its ID tokens name it.
    pub issuer: String,
    /// Who we are to it.
    pub client_id: String,
    /// How we show that; a public client shows nothing.
    pub client_secret: Option<String>,
    /// The file of that.
    pub client_secret_file: Option<std::path::PathBuf>,
    /// What we ask for.
    pub scopes: Vec<String>,
    /// The claim with somebody's groups.
    pub groups_claim: String,
    /// What groups are here.
    pub roles: Mapping,
    /// Whether those who come for the first time become users.
    pub creates_users: bool,
    /// Whether somebody with the verified e-mail address that a user has as name is that user.
    pub links_verified_email: bool,
    /// What people call the provider.
    pub name: String,
}

/// Why somebody cannot sign in at the provider.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// No provider is set.
    #[error("this instance has no OpenID provider; set `oidc_issuer`, or sign in with a password")]
    Off,
    /// The browser did not begin this sign-in, or not within its time.
    #[error(
        "this sign-in was not begun in this browser, was used before, or took longer than 10 \
         minutes; begin again"
    )]
    NotBegun,
    /// The provider says no, in a word of its protocol.
    #[error("the provider did not sign you in: {0}")]
    Refused(String),
    /// The provider cannot be reached.
    #[error("the provider cannot be reached now; try again, or sign in with a password")]
    Unreachable(String),
    /// The provider said something that proves nothing.
    #[error("what the provider answered is not valid; the server's log says why")]
    Untrusted(String),
    /// None of their groups gives them a role.
    #[error("none of your groups at the provider may use this instance; ask its owner")]
    NoRole,
    /// Nobody of theirs is known here, and nobody is to be made.
    #[error(
        "nobody here is known as you, and users are not made by signing in; ask for an invitation"
    )]
    Unknown,
    /// A user has the name that they would get.
    #[error(
        "there is a user `{0}` already, who signs in otherwise; ask an owner to rename or remove one"
    )]
    NameTaken(String),
    /// They may not sign in any more.
    #[error("the user `{0}` is disabled")]
    Disabled(String),
    /// A code that is none of ours, or a part of one.
    #[error("the code is not whole; copy all of it, from `pcc_` on")]
    DamagedCode,
    /// A code that makes no session.
    #[error(
        "this code was used, has expired, or was made for another sign-in; begin again with: \
         picloud login --oidc"
    )]
    DeadCode,
    /// Users and sessions.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl From<StoreError> for OidcError {
    fn from(error: StoreError) -> Self {
        Self::Identity(error.into())
    }
}

impl Settings {
    /// The user that a person is here, with the roles that their groups give them now.
    ///
    /// # Errors
    /// [`OidcError`] says why they are none.
    pub async fn user(&self, sessions: &Sessions, person: Person) -> Result<User, OidcError> {
        let granted = self.roles.of(&person.groups);
        let role = granted.role.ok_or(OidcError::NoRole)?;
        // A password that nobody knows: they may set one by a link.
        let unknown: String = token::random_digits(40)?.into_iter().collect();
        let hash = sessions.hasher().hash(unknown).await?;
        let settings = self.clone();
        let found = sessions.db().write(move |tx| {
            Box::pin(async move {
                // First, so that two who come for the first time at once wait for each other.
                directory::raise_version(tx).await?;
                let mut user = settings.known_or_new(tx, &person, role, &hash).await?;
                if user.disabled_at.is_some() {
                    return Err(OidcError::Disabled(user.name));
                }
                if settings.roles.gives_roles() && user.role != role {
                    set_role(tx, &mut user, role).await?;
                }
                settings.set_members(tx, user.id, &granted.apps).await?;
                Ok(user)
            })
        });
        found.await
    }

    async fn known_or_new(
        &self,
        tx: &mut Tx,
        person: &Person,
        role: Role,
        password_hash: &str,
    ) -> Result<User, OidcError> {
        let known = sql::user_of(tx, &self.issuer, &person.subject).await?;
        if let Some(id) = known {
            let user = users::get(tx.conn().await?, id).await?;
            return user.ok_or_else(|| IdentityError::not_found("user", id).into());
        }
        let named = users::by_name(tx.conn().await?, &person.name).await?;
        let user = match named {
            Some((user, _)) => {
                let email = person.verified_email.as_deref();
                let email = email.and_then(|email| name::canonical(email).ok());
                let is_theirs = self.links_verified_email
                    && email.is_some()
                    && email == name::canonical(&user.name).ok();
                is_theirs
                    .then_some(user)
                    .ok_or_else(|| OidcError::NameTaken(person.name.clone()))?
            }
            None if !self.creates_users => return Err(OidcError::Unknown),
            None => {
                let name = name::canonical(&person.name).map_err(IdentityError::ImpossibleName)?;
                let user = User {
                    id: UserId::new(),
                    name,
                    role,
                    created_at: tx.now,
                    disabled_at: None,
                };
                let added = users::insert(tx, &user, password_hash).await;
                added.map_err(|error| match error {
                    StoreError::Duplicate => OidcError::NameTaken(user.name.clone()),
                    error => error.into(),
                })?;
                user
            }
        };
        sql::link(tx, &self.issuer, &person.subject, user.id).await?;
        Ok(user)
    }

    /// In the apps that the mapping names a user has what their groups give, and nothing else.
    async fn set_members(
        &self,
        tx: &mut Tx,
        user_id: UserId,
        granted: &[(String, AppRole)],
    ) -> Result<(), StoreError> {
        let slugs: BTreeSet<&str> = self.roles.apps().collect();
        for slug in slugs {
            let app_id: Option<AppId> = sql::app_of(tx, slug).await?;
            let Some(app_id) = app_id else {
                tracing::warn!(app = slug, "oidc_roles names an app that does not exist");
                continue;
            };
            let role = granted.iter().find(|(app, _)| app == slug);
            match role {
                Some((_, role)) => members::set(tx, app_id, user_id, *role).await?,
                None => {
                    members::delete(tx, app_id, user_id).await?;
                }
            }
        }
        Ok(())
    }
}

/// Give a user another role, but never take the last owner away.
async fn set_role(tx: &mut Tx, user: &mut User, role: Role) -> Result<(), StoreError> {
    let before = std::mem::replace(&mut user.role, role);
    users::update(tx, user).await?;
    if !users::has_owner(tx.conn().await?).await? {
        tracing::warn!(user_id = %user.id, "the last owner stays owner, whatever their groups say");
        user.role = before;
        users::update(tx, user).await?;
    }
    Ok(())
}
