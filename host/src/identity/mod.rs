//! Who acts, and what they may do: users, sessions, API keys, roles.

pub mod api;
pub mod capability;
pub mod guesses;
pub mod keys;
pub mod links;
pub mod name;
pub mod password;
pub mod sessions;
pub mod setup;
pub mod sql;
pub mod token;
pub mod users;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::apps::AppId;
use crate::quotas::objects::TooMany;
use crate::store::{Id, StoreError};
use capability::{Role, Scope};

pub use keys::{ApiKey, ApiKeyId};
pub use sessions::{Session, SessionId, Sessions};

/// The id of a user.
pub type UserId = Id<User>;

/// Somebody who may sign in.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct User {
    /// Their id.
    pub id: UserId,
    /// The name that they sign in with.
    pub name: String,
    /// What they may do on the instance.
    pub role: Role,
    /// When they were made.
    pub created_at: DateTime<Utc>,
    /// Since when they may not sign in; none while they may.
    pub disabled_at: Option<DateTime<Utc>>,
}

/// Who makes a request of the API.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The user, or the user whose API key it is.
    pub user: User,
    /// How we know.
    pub via: Via,
}

/// How we know who calls.
#[derive(Debug, Clone)]
pub enum Via {
    /// They signed in.
    Session(SessionId),
    /// They sent an API key.
    ApiKey(KeyGrant),
    /// They registered the trigger that fired.
    Trigger,
}

/// What an API key is for. It gives nothing that its user may not do.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct KeyGrant {
    /// The key.
    pub id: ApiKeyId,
    /// Its name.
    pub name: String,
    /// What it may be used for.
    pub scopes: Vec<Scope>,
    /// In which apps; none: wherever its user may.
    pub apps: Option<Vec<AppId>>,
}

/// Who made what lets others in: it is good for no longer than they might make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maker {
    /// The user.
    pub user_id: UserId,
    /// The API key that they came with, if they came with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_id: Option<ApiKeyId>,
}

impl Caller {
    /// Who they are as the maker of something.
    pub fn maker(&self) -> Maker {
        Maker {
            user_id: self.user.id,
            api_key_id: self.api_key().map(|key| key.id),
        }
    }

    /// The API key that was sent, if one was.
    pub fn api_key(&self) -> Option<&KeyGrant> {
        match &self.via {
            Via::ApiKey(key) => Some(key),
            Via::Session(_) | Via::Trigger => None,
        }
    }

    /// The id that scripts see: the key's, or the user's.
    pub fn principal_id(&self) -> Uuid {
        self.api_key()
            .map_or(self.user.id.uuid(), |key| key.id.uuid())
    }

    /// The name that scripts and the audit log see.
    pub fn principal_name(&self) -> String {
        match self.api_key() {
            Some(key) => format!("{}/{}", self.user.name, key.name),
            None => self.user.name.clone(),
        }
    }
}

/// What can go wrong with identities.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The name or the password is wrong; which one is not said.
    #[error("the name or the password is wrong")]
    WrongPassword,
    /// There is no session and no API key with this token.
    #[error("the token is unknown, was revoked or has expired")]
    NoSession,
    /// The token has a form that none of ours has: a typing error, or a part of one.
    #[error("the token is not whole: its checksum does not fit")]
    DamagedToken,
    /// Too many guesses from one address, or at one name.
    #[error("too many attempts; try again in {retry_after_s} s")]
    TooManyGuesses {
        /// When the next one is looked at.
        retry_after_s: u64,
    },
    /// A password that would be guessed.
    #[error("{0}")]
    WeakPassword(String),
    /// A name that no user can have.
    #[error("a user cannot have this name: {0}")]
    ImpossibleName(&'static str),
    /// The name of a user or a key is taken.
    #[error("the name `{0}` is taken")]
    NameTaken(String),
    /// Nobody of this id, or nothing that the caller may see.
    #[error("there is no {what} `{id}`")]
    NotFound {
        /// Of what kind.
        what: &'static str,
        /// Its id, as it was asked for.
        id: String,
    },
    /// The instance would be without an owner.
    #[error("the instance needs an owner; make somebody else owner first")]
    LastOwner,
    /// Only owners decide about owners.
    #[error("only an owner may do this to an owner, or make one")]
    OwnersOnly,
    /// The caller may not do this, for want of what the text names.
    #[error("{0}")]
    Forbidden(String),
    /// A link to a new password for somebody who may not sign in.
    #[error("the user `{0}` is disabled; enable them first")]
    Disabled(String),
    /// A link that was used, revoked, or has expired.
    #[error("this link was used, was revoked or has expired; ask for a new one")]
    DeadLink,
    /// A token that does not make the first owner.
    #[error("this is not the set-up token that the server printed when it started")]
    WrongSetupToken,
    /// There is an owner.
    #[error("this instance has an owner; sign in, or ask for an invitation")]
    AlreadySetUp,
    /// A password could not be hashed or a token not be made.
    #[error("hashing failed: {0}")]
    Hashing(String),
    /// The app has as many members as it may.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// The user has as many API keys as there may be.
    #[error("a user has at most {} API keys; revoke some", keys::KEYS_MAX)]
    TooManyKeys,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl IdentityError {
    /// Nothing of this kind with this id.
    pub fn not_found(what: &'static str, id: impl ToString) -> Self {
        let id = id.to_string();
        Self::NotFound { what, id }
    }

    /// That what is removed was there. Said within its transaction: what changes nothing is not
    /// committed, and not written down as done.
    ///
    /// # Errors
    /// [`Self::NotFound`].
    pub fn unless(was_there: bool, what: &'static str, id: impl ToString) -> Result<(), Self> {
        match was_there {
            true => Ok(()),
            false => Err(Self::not_found(what, id)),
        }
    }
}
