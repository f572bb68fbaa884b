//! Sessions: signing in with a password, and whose token is whose.

use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::broadcast;

use super::guesses::subscriber_of;
use super::keys::has_ended;
use super::password::{Hasher, Verdict};
use super::{ApiKeyId, Caller, IdentityError, User, UserId, Via, sql, token};
use crate::store::{Db, Id, StoreError, Tx};
use crate::telemetry::repeated::Repeated;

/// The id of a session.
pub type SessionId = Id<Session>;

/// How long a use of a token may go unrecorded: not every request shall write.
const RECORD_USE_EVERY: TimeDelta = TimeDelta::minutes(5);
/// How many users' revocations a stream may not have heard of yet. One that missed some looks, too.
const REVOCATIONS_MAX: usize = 64;

/// A sign-in that lasts.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// When it began.
    pub created_at: DateTime<Utc>,
    /// When it ends, however much it is used.
    pub expires_at: DateTime<Utc>,
    /// When it was last used, to within five minutes.
    pub last_used_at: Option<DateTime<Utc>>,
    /// From where it was begun.
    pub address: Option<String>,
    /// With what.
    pub user_agent: Option<String>,
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

/// Where a session is begun from.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The address.
    pub address: Option<String>,
    /// The program, as it calls itself.
    pub user_agent: Option<String>,
}

/// How somebody has shown who they are.
#[derive(Debug)]
pub(crate) enum Proof {
    /// By the password that has this hash; the other one takes its place, where there is one.
    Password {
        /// As it was read.
        hash: String,
        /// The same password, hashed by today's parameters.
        new_hash: Option<String>,
    },
    /// By a link or a code that was taken out, or at a provider.
    Otherwise,
}

/// Tells of users some of whose sessions or API keys ended, on this node.
pub(crate) struct Revocations(broadcast::Receiver<UserId>);

impl Revocations {
    /// Comes back once something of this user's may have ended.
    pub(crate) async fn of(&mut self, user_id: UserId) {
        loop {
            match self.0.recv().await {
                Ok(whose) if whose != user_id => {}
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                // The sender goes only with the process.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

/// Give a user another password. All that let somebody in as them by the one before ends: their
/// sessions, but for `keep`, codes of sign-ins, links to a new password.
pub(super) async fn replace_password(
    tx: &mut Tx,
    user_id: UserId,
    hash: &str,
    keep: Option<SessionId>,
) -> Result<(), StoreError> {
    // The row first: whoever begins a session holds it.
    sql::users::set_password(tx, user_id, hash).await?;
    sql::sessions::delete_others(tx, user_id, keep).await?;
    sql::sessions::delete_codes(tx, user_id).await?;
    sql::links::delete_of(tx, user_id).await
}

/// Begins and ends sessions, and knows tokens.
#[derive(Clone)]
pub struct Sessions {
    pub(super) db: Db,
    pub(super) hasher: Hasher,
    ttl: TimeDelta,
    idle: TimeDelta,
    revoked: broadcast::Sender<UserId>,
}

impl Sessions {
    /// Sessions that last for `ttl_hours`, or until they were not used for `idle_hours`.
    pub fn new(db: Db, ttl_hours: u32, idle_hours: u32) -> Self {
        Self {
            db,
            hasher: Hasher::default(),
            ttl: TimeDelta::hours(ttl_hours.into()),
            idle: TimeDelta::hours(idle_hours.into()),
            revoked: broadcast::Sender::new(REVOCATIONS_MAX),
        }
    }

    /// Tells of what ends from now on.
    pub(crate) fn revocations(&self) -> Revocations {
        Revocations(self.revoked.subscribe())
    }

    /// Tell that something of a user's has ended.
    pub(super) fn tell_revoked(&self, user_id: UserId) {
        // Nobody listens where there is no stream.
        let _ = self.revoked.send(user_id);
    }

    /// What hashes passwords.
    pub(crate) fn hasher(&self) -> &Hasher {
        &self.hasher
    }

    /// The database that they are in.
    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    /// Begin a session for whoever knows the password.
    ///
    /// # Errors
    /// [`IdentityError::WrongPassword`] after the same time whether or not the user exists.
    pub async fn log_in(
        &self,
        name: &str,
        password: String,
        from: Origin,
    ) -> Result<NewSession, IdentityError> {
        let known = sql::users::by_name(&mut self.db.read().await?, name).await?;
        let hash = known.as_ref().map(|(_, hash)| hash.clone());
        let verdict = self.hasher.verify(password, hash).await?;
        let new_hash = match verdict {
            Verdict::Wrong => None,
            Verdict::Right => Some(None),
            Verdict::Rehashed(hash) => Some(Some(hash)),
        };
        let enabled = known.filter(|(user, _)| user.disabled_at.is_none());
        let (Some((user, hash)), Some(new_hash)) = (enabled, new_hash) else {
            return Err(IdentityError::WrongPassword);
        };
        self.begin(user, Proof::Password { hash, new_hash }, from)
            .await
    }

    /// Whether a session of a user was begun from an address, or its network of IPv6.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn is_known_at(&self, name: &str, address: &str) -> Result<bool, IdentityError> {
        let mut conn = self.db.read().await?;
        let Some((user, _)) = sql::users::by_name(&mut conn, name).await? else {
            return Ok(false);
        };
        let known = sql::sessions::addresses(&mut conn, user.id).await?;
        let from = subscriber_of(address);
        Ok(known.iter().any(|known| subscriber_of(known) == from))
    }

    /// Begin a session for a user who has shown who they are, if that holds still: a password takes
    /// long to verify.
    ///
    /// # Errors
    /// [`IdentityError::WrongPassword`] when it was changed, [`IdentityError::NoSession`] when the user
    /// was disabled or removed, and when the system has no randomness, or the database fails.
    pub(crate) async fn begin(
        &self,
        user: User,
        shown: Proof,
        from: Origin,
    ) -> Result<NewSession, IdentityError> {
        let token = token::new(token::Kind::Session)?;
        let token_hash = token::hash(&token);
        let (user_id, ttl) = (user.id, self.ttl);
        let begun = self.db.write(move |tx| {
            Box::pin(async move {
                let held = sql::users::hold(tx, user_id).await?;
                match (shown, held) {
                    (Proof::Password { hash, new_hash }, Some((_, now))) if now == hash => {
                        if let Some(hash) = new_hash {
                            sql::users::set_password(tx, user_id, &hash).await?;
                        }
                    }
                    (Proof::Password { .. }, _) => return Err(IdentityError::WrongPassword),
                    (Proof::Otherwise, Some(_)) => {}
                    (Proof::Otherwise, None) => return Err(IdentityError::NoSession),
                }
                let session = Session {
                    id: SessionId::new(),
                    created_at: tx.now,
                    expires_at: tx.now + ttl,
                    last_used_at: Some(tx.now),
                    address: from.address,
                    user_agent: from.user_agent,
                };
                sql::sessions::insert(tx, user_id, &session, &token_hash).await?;
                Ok(session.expires_at)
            })
        });
        let expires_at = begun.await?;
        Ok(NewSession {
            token,
            expires_at,
            user,
        })
    }

    /// Whose a session's token or an API key is.
    ///
    /// # Errors
    /// [`IdentityError::NoSession`] when it is nobody's, [`IdentityError::DamagedToken`] when it
    /// cannot be anybody's.
    pub async fn caller(&self, token: &str) -> Result<Caller, IdentityError> {
        let hash = token::hash(token);
        let mut conn = self.db.read().await?;
        let now = Utc::now();
        let stale = |used: Option<DateTime<Utc>>| used.is_none_or(|at| now - at > RECORD_USE_EVERY);
        match token::kind(token).ok_or(IdentityError::DamagedToken)? {
            token::Kind::Session => {
                let found = sql::sessions::by_token(&mut conn, &hash, now).await?;
                let (user, session) = found.ok_or(IdentityError::NoSession)?;
                let last = session.last_used_at.unwrap_or(session.created_at);
                if now - last > self.idle {
                    return Err(IdentityError::NoSession);
                }
                drop(conn);
                if stale(session.last_used_at) {
                    let id = session.id;
                    let noted = self.db.write(move |tx| {
                        Box::pin(async move { sql::sessions::note_use(tx, id).await })
                    });
                    warn_unless_noted(noted.await);
                }
                let via = Via::Session(session.id);
                Ok(Caller { user, via })
            }
            token::Kind::ApiKey => {
                let found = sql::keys::by_token(&mut conn, &hash, now).await?;
                let (user, key) = found.ok_or(IdentityError::NoSession)?;
                drop(conn);
                if stale(key.last_used_at) {
                    let id = key.id;
                    let noted = self.db.write(move |tx| {
                        Box::pin(async move { sql::keys::note_use(tx, id).await })
                    });
                    warn_unless_noted(noted.await);
                }
                let via = Via::ApiKey(key.grant());
                Ok(Caller { user, via })
            }
            token::Kind::Link | token::Kind::Setup | token::Kind::SignInCode => {
                Err(IdentityError::NoSession)
            }
        }
    }

    /// The sessions of a user that have not ended, the newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn of(
        &self,
        user_id: UserId,
        before: Option<SessionId>,
        limit: i64,
    ) -> Result<Vec<Session>, IdentityError> {
        let mut conn = self.db.read().await?;
        Ok(sql::sessions::page(&mut conn, user_id, Utc::now(), before, limit).await?)
    }

    /// End a session of a user. Says whether there was one.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn end(&self, user_id: UserId, id: SessionId) -> Result<(), IdentityError> {
        let ended = self.db.write(move |tx| {
            Box::pin(async move {
                let was_there = sql::sessions::delete(tx, user_id, id).await?;
                IdentityError::unless(was_there, "session", id)
            })
        });
        ended.await?;
        self.tell_revoked(user_id);
        Ok(())
    }

    /// Whether an API key of a user is good, and the user enabled.
    ///
    /// # Errors
    /// When the database fails.
    pub(crate) async fn is_key_good(
        &self,
        user_id: UserId,
        id: ApiKeyId,
    ) -> Result<bool, IdentityError> {
        let key = sql::keys::get(&mut self.db.read().await?, user_id, id).await?;
        Ok(key.is_some_and(|key| !has_ended(&key, Utc::now())))
    }

    /// Change a user's own password; their other sessions end.
    ///
    /// # Errors
    /// [`IdentityError::WrongPassword`] when `current` is not theirs,
    /// [`IdentityError::WeakPassword`] when `new` will not do.
    pub async fn change_password(
        &self,
        who: &Caller,
        current: String,
        new: String,
    ) -> Result<(), IdentityError> {
        let user = &who.user;
        super::password::check(&new, &user.name)?;
        let known = sql::users::by_name(&mut self.db.read().await?, &user.name).await?;
        let verified = known.map(|(_, hash)| hash);
        if self.hasher.verify(current, verified.clone()).await? == Verdict::Wrong {
            return Err(IdentityError::WrongPassword);
        }
        let hash = self.hasher.hash(new).await?;
        let user_id = user.id;
        let keep = match who.via {
            Via::Session(id) => Some(id),
            Via::ApiKey(_) | Via::Trigger => None,
        };
        let changed = self.db.write(move |tx| {
            Box::pin(async move {
                // Hashing takes long: another may have changed it meanwhile.
                let held = sql::users::hold(tx, user_id).await?.map(|(_, hash)| hash);
                if held.is_none() || held != verified {
                    return Err(IdentityError::WrongPassword);
                }
                Ok(replace_password(tx, user_id, &hash, keep).await?)
            })
        });
        changed.await?;
        self.tell_revoked(user_id);
        Ok(())
    }
}

static UNNOTED: Repeated = Repeated::new("uses of tokens that could not be noted");

/// That a use could not be written down is no reason to refuse it.
fn warn_unless_noted(noted: Result<(), StoreError>) {
    if let Err(error) = noted {
        match !error.is_unavailable() || UNNOTED.begins() {
            true => tracing::warn!(%error, "the use of a token could not be noted"),
            false => tracing::debug!(%error, "the use of a token could not be noted"),
        }
    }
}
