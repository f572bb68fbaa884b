//! Subscriber tokens: who may hear which topics until when, signed under a key of the app. They are
//! verified without a look into the database.
//!
//! `pct_<what it says, JSON in base64>.<HMAC-SHA-256 of what stands before, in base64>`

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::topics::parse_glob;
use super::{PubSub, PubSubError, sql};
use crate::apps::AppId;
use crate::directory::{self, Picture};
use crate::identity::capability::{self, Capability, Decision};
use crate::identity::{Caller, Maker, UserId, Via};
use crate::quotas::objects::{self, Object};
use crate::secrets::master_key::{MasterKeys, Sealed};
use crate::triggers::Glob;

/// The most topics of a token.
pub const TOPICS_MAX: usize = 50;
/// The longest subject, in bytes.
pub const SUBJECT_BYTES_MAX: usize = 256;
/// What every token begins with.
pub const PREFIX: &str = "pct_";
/// The longest token that is looked at: 50 topics of 256 bytes fit.
const TOKEN_BYTES_MAX: usize = 24 * 1024;

/// For how long tokens may be good, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct TtlBounds {
    /// At least.
    pub min_s: u32,
    /// At most.
    pub max_s: u32,
    /// When nobody says.
    pub default_s: u32,
}

impl TtlBounds {
    /// The nearest that is allowed.
    fn clamp(self, ttl_s: Option<i64>) -> TimeDelta {
        let (min, max) = (
            i64::from(self.min_s),
            i64::from(self.max_s).max(self.min_s.into()),
        );
        TimeDelta::seconds(ttl_s.unwrap_or(self.default_s.into()).clamp(min, max))
    }
}

/// A key of an app.
#[derive(Debug, Clone)]
pub struct SubscriberKey {
    /// The app.
    pub app_id: AppId,
    /// Which of its keys.
    pub number: i64,
    /// The key itself, encrypted.
    pub sealed: Sealed,
    /// Until when it is good; none for the newest.
    pub good_until: Option<DateTime<Utc>>,
}

impl SubscriberKey {
    /// What its encryption is bound to. No secret can have this name.
    fn name(number: i64) -> String {
        format!("subscriber key {number}")
    }

    fn new(app_id: AppId, number: i64, keys: &MasterKeys) -> Option<Self> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).ok()?;
        let sealed = keys.seal(app_id, &Self::name(number), &STANDARD.encode(bytes))?;
        let good_until = None;
        Some(Self {
            app_id,
            number,
            sealed,
            good_until,
        })
    }

    fn mac(&self, keys: &MasterKeys, text: &str) -> Option<Hmac<Sha256>> {
        let key = keys.open(self.app_id, &Self::name(self.number), &self.sealed)?;
        let key = STANDARD.decode(key).ok()?;
        let mac = Hmac::<Sha256>::new_from_slice(&key).ok()?;
        Some(mac.chain_update(text))
    }
}

/// What a token says.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    app: AppId,
    key: i64,
    topics: Vec<Glob>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sub: Option<String>,
    /// Seconds since 1970.
    exp: i64,
    /// Makes it the only one of its kind.
    id: uuid::Uuid,
    /// Whoever the script ran for that made it; none where it ran for nobody, as the gate of its app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<Maker>,
}

/// A token that is good.
#[derive(Debug, Clone)]
pub struct Grant {
    topics: Vec<Glob>,
    /// Until when.
    pub expires_at: DateTime<Utc>,
    /// What it is counted by.
    pub id: [u8; 16],
    key: i64,
    /// Who made it, where it is good for no longer than they may.
    pub made_by: Option<Maker>,
}

impl Grant {
    /// Whether it is for this topic.
    pub fn is_for(&self, topic: &str) -> bool {
        self.topics.iter().any(|glob| glob.matches(topic))
    }

    /// Whether its key is still good, and whoever made it may still make such tokens, as far as the
    /// directory knows: it knows no API keys.
    pub fn holds(&self, picture: &Picture, app_id: AppId) -> bool {
        let now = Utc::now();
        let is_good = |key: &SubscriberKey| key.good_until.is_none_or(|until| until > now);
        let mut keys = picture.subscriber_keys(app_id).iter();
        let has_key = keys.any(|key| key.number == self.key && is_good(key));
        has_key
            && self
                .made_by
                .is_none_or(|by| may_make(picture, app_id, by.user_id))
    }
}

/// Whether a user may have scripts make tokens in an app.
fn may_make(picture: &Picture, app_id: AppId, user_id: UserId) -> bool {
    picture.app(app_id).is_some()
        && picture.user(user_id).is_some_and(|user| {
            let (user, via) = (user.clone(), Via::Trigger);
            let who = Caller { user, via };
            let role = picture.role(app_id, user_id);
            capability::in_app(&who, role, app_id, Capability::Publish) == Decision::Allowed
        })
}

/// Why a token is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// It was good.
    #[error("the subscriber token has expired")]
    Expired,
    /// It is none of ours, or not of this app, or its key was taken back.
    #[error("the subscriber token is not one of this app, or was revoked")]
    Unknown,
}

impl PubSub {
    /// A token for whoever a script lets in, which runs for `by`, if for anybody.
    ///
    /// # Errors
    /// [`PubSubError`] says what is wrong with what was asked for.
    pub async fn subscriber_token(
        &self,
        app_id: AppId,
        topics: &[String],
        subject: Option<String>,
        ttl_s: Option<i64>,
        by: Option<Maker>,
    ) -> Result<String, PubSubError> {
        if !(1..=TOPICS_MAX).contains(&topics.len()) {
            return Err(PubSubError::TokenTopics);
        }
        if subject
            .as_ref()
            .is_some_and(|sub| sub.len() > SUBJECT_BYTES_MAX)
        {
            return Err(PubSubError::TokenSubject);
        }
        let topics = topics.iter().map(|topic| parse_glob(topic));
        let mut claims = Claims {
            app: app_id,
            key: 0,
            topics: topics.collect::<Result<_, _>>()?,
            sub: subject,
            exp: (Utc::now() + self.limits.token_ttl.clamp(ttl_s)).timestamp(),
            id: uuid::Uuid::new_v4(),
            by,
        };
        if let Some(token) = self.signed(app_id, &mut claims) {
            return Ok(token);
        }
        // The first of the app, or its key is encrypted under a master key that is not here.
        self.rotate(app_id, Rotation::Overlap).await?;
        self.signed(app_id, &mut claims)
            .ok_or(PubSubError::NoMasterKey)
    }

    fn signed(&self, app_id: AppId, claims: &mut Claims) -> Option<String> {
        let picture = self.directory.picture();
        let newest = picture.subscriber_keys(app_id).first()?;
        claims.key = newest.number;
        let text = serde_json::to_string(claims).ok()?;
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(text));
        let mac = newest.mac(&self.keys, &text)?.finalize().into_bytes();
        Some(format!("{text}.{}", URL_SAFE_NO_PAD.encode(mac)))
    }

    /// What a token is good for.
    ///
    /// # Errors
    /// [`BadToken`].
    pub fn verify(&self, app_id: AppId, token: &str) -> Result<Grant, BadToken> {
        let unknown = BadToken::Unknown;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(unknown);
        }
        let (text, mac) = token.rsplit_once('.').ok_or(unknown)?;
        let said = text.strip_prefix(PREFIX).ok_or(unknown)?;
        let said = URL_SAFE_NO_PAD.decode(said).map_err(|_| unknown)?;
        let mac = URL_SAFE_NO_PAD.decode(mac).map_err(|_| unknown)?;
        let claims: Claims = serde_json::from_slice(&said).map_err(|_| unknown)?;
        if claims.app != app_id {
            return Err(unknown);
        }
        let picture = self.directory.picture();
        let keys = picture.subscriber_keys(app_id);
        let key = keys.iter().find(|key| key.number == claims.key);
        let key = key.ok_or(unknown)?;
        // Compares in constant time.
        let signed = key.mac(&self.keys, text).ok_or(unknown)?;
        signed.verify_slice(&mac).map_err(|_| unknown)?;
        let now = Utc::now();
        if key.good_until.is_some_and(|until| until <= now) {
            return Err(unknown);
        }
        let expires_at = DateTime::from_timestamp(claims.exp, 0).ok_or(unknown)?;
        if expires_at <= now {
            return Err(BadToken::Expired);
        }
        Ok(Grant {
            topics: claims.topics,
            expires_at,
            id: claims.id.into_bytes(),
            key: claims.key,
            made_by: claims.by,
        })
    }

    /// Sign with a new key from now on. Answers until when the tokens before are good.
    ///
    /// # Errors
    /// [`PubSubError::NoMasterKey`], or when the database fails.
    pub async fn rotate(&self, app_id: AppId, rotation: Rotation) -> Result<Rotated, PubSubError> {
        let (keys, keys_max) = (self.keys.clone(), self.limits.subscriber_keys_max);
        let overlap = match rotation {
            Rotation::Overlap => TimeDelta::seconds(self.limits.token_ttl.max_s.into()),
            Rotation::Revoke => TimeDelta::zero(),
        };
        let rotated = self.db.write(move |tx| {
            Box::pin(async move {
                // Also the lock: two rotations come one after the other.
                directory::raise_version(tx).await?;
                let now = tx.now;
                let number = sql::last_key(tx.conn().await?, app_id).await? + 1;
                let key = SubscriberKey::new(app_id, number, &keys);
                let key = key.ok_or(PubSubError::NoMasterKey)?;
                let previous_until = now + overlap;
                sql::retire_keys(tx, app_id, previous_until).await?;
                objects::check::<PubSubError>(tx, app_id, Object::SubscriberKeys, keys_max).await?;
                sql::insert_key(tx, &key).await?;
                Ok::<_, PubSubError>(Rotated {
                    rotated_at: now,
                    previous_until,
                })
            })
        });
        let rotated = rotated.await?;
        self.directory.refresh().await?;
        Ok(rotated)
    }
}

impl PubSub {
    /// Encrypt every key that signs tokens under the current master key where it is under another
    /// of ours. Answers how many were, and how many are under master keys that are not here.
    ///
    /// # Errors
    /// When the database fails; what was done until then stays done.
    pub async fn reseal_keys(&self) -> Result<(u64, u64), PubSubError> {
        let current = self.keys.current_id().ok_or(PubSubError::NoMasterKey)?;
        let (mut resealed, mut foreign) = (0, 0);
        let all = sql::all_keys(&mut self.db.read().await?).await?;
        let under_others = all.into_iter().filter(|key| key.sealed.key_id != current);
        for key in under_others {
            let name = SubscriberKey::name(key.number);
            let Some(sealed) = self.keys.reseal(key.app_id, &name, &key.sealed) else {
                foreign += 1;
                continue;
            };
            let written = self
                .db
                .write(move |tx| Box::pin(async move { sql::reseal_key(tx, &key, &sealed).await }));
            resealed += u64::from(written.await?);
        }
        Ok((resealed, foreign))
    }
}

/// What becomes of the tokens before a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// They stay good until they end.
    Overlap,
    /// They end at once.
    Revoke,
}

/// A rotation that was done.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "SubscriberKeysRotated")]
pub struct Rotated {
    /// When.
    pub rotated_at: DateTime<Utc>,
    /// Until when the tokens before are good, at most.
    pub previous_until: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_is_kept_within_its_bounds() {
        let bounds = TtlBounds {
            min_s: 10,
            max_s: 86_400,
            default_s: 3_600,
        };
        for (asked, given) in [
            (None, 3_600),
            (Some(0), 10),
            (Some(-5), 10),
            (Some(60), 60),
            (Some(315_360_000), 86_400),
            (Some(i64::MAX), 86_400),
        ] {
            assert_eq!(bounds.clamp(asked).num_seconds(), given, "{asked:?}");
        }
    }
}
