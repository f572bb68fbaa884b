//! What let a request in, looked at again for as long as its answer goes on: a stream ends with the
//! authority that began it, whatever kind it is of.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use chrono::{DateTime, Utc};

use super::problem::Problem;
use crate::apps::AppId;
use crate::identity::capability::{self, Capability, Decision};
use crate::identity::{Caller, UserId};
use crate::node::Node;
use crate::pubsub::tokens::Grant;

/// How often a stream's session, API key or token is looked up again, which may have ended on another
/// node. What ends on this node is noticed at once, and so is on every node what the directory tells:
/// roles, and users that are disabled or removed.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// Why somebody is let in no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// What showed who they are is good no more: another token may be.
    Token,
    /// They lack what it takes.
    Role,
}

/// Who was let in, with what showed that, and what it takes.
#[derive(Clone)]
pub(crate) struct Admission {
    caller: Caller,
    token: Arc<str>,
    takes: Option<(Capability, Option<AppId>)>,
}

impl Admission {
    /// Whoever has this token.
    ///
    /// # Errors
    /// 401 when it is nobody's, and when the database fails.
    pub(super) async fn of(node: &Node, token: String) -> Result<Self, Problem> {
        let caller = node.sessions.caller(&token).await?;
        Ok(Self {
            caller,
            token: token.into(),
            takes: None,
        })
    }

    /// The same where this is needed, too, in an app or on the instance.
    pub(crate) fn taking(mut self, capability: Capability, app_id: Option<AppId>) -> Self {
        self.takes = Some((capability, app_id));
        self
    }

    /// Who was let in, as they were then.
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// In which app something is needed, if it is in one.
    pub(crate) fn app_id(&self) -> Option<AppId> {
        self.takes.and_then(|(_, app_id)| app_id)
    }

    /// Who it is with the role that they have now, as far as the directory knows.
    ///
    /// # Errors
    /// [`Ended`] where they would not be let in any more.
    pub(crate) fn caller_now(&self, node: &Node) -> Result<Caller, Ended> {
        let picture = node.directory.picture();
        let user = picture.user(self.caller.user.id).ok_or(Ended::Token)?;
        let user = user.clone();
        let via = self.caller.via.clone();
        let caller = Caller { user, via };
        let decision = match self.takes {
            None => Decision::Allowed,
            Some((capability, None)) => capability::on_instance(&caller, capability),
            Some((capability, Some(app_id))) => {
                picture.app(app_id).ok_or(Ended::Role)?;
                let role = picture.role(app_id, caller.user.id);
                capability::in_app(&caller, role, app_id, capability)
            }
        };
        match decision {
            Decision::Allowed => Ok(caller),
            Decision::Denied(_) | Decision::Hidden => Err(Ended::Role),
        }
    }

    /// Whether the token is good. While that cannot be known, because the database is away say, it is.
    async fn is_token_good(&self, node: &Node) -> bool {
        let caller = node.sessions.caller(&self.token).await;
        !caller.is_err_and(|error| Problem::from(error).is_unauthorized())
    }
}

/// For handlers of endpoints that have a rule.
impl FromRequestParts<Arc<Node>> for Admission {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Node>) -> Result<Self, Problem> {
        let admission = parts.extensions.get::<Self>().cloned();
        admission.ok_or_else(|| Problem::internal("a public endpoint asks who was let in"))
    }
}

/// Whether it is being looked up that somebody may still hear a stream, because something of theirs
/// has just ended. What is said meanwhile must wait.
#[derive(Clone, Default)]
pub(super) struct Doubt(Arc<AtomicBool>);

impl Doubt {
    pub(super) fn is_there(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// By what somebody hears a stream.
pub(crate) enum Authority {
    /// A sign-in or an API key.
    SignedIn(Admission),
    /// A subscriber token of an app.
    Subscriber(AppId, Grant),
}

impl Authority {
    /// Comes back once it is good no more, and says why. While that is looked up there is `doubt`.
    pub(super) async fn ended(self, node: Arc<Node>, doubt: Doubt) -> Ended {
        // First, so that nothing ends unheard between a look and what is told after it.
        let mut changes = node.directory.changes();
        let mut revocations = node.sessions.revocations();
        loop {
            if let Err(ended) = self.known(&node) {
                return ended;
            }
            // Boxed: a stream is idle for most of its life, and should be small then.
            if !Box::pin(self.is_good(&node)).await {
                return Ended::Token;
            }
            doubt.0.store(false, Ordering::Relaxed);
            let user_id = self.user_id();
            let ended_here = async {
                match user_id {
                    Some(user_id) => revocations.of(user_id).await,
                    None => std::future::pending().await,
                }
            };
            let look_again = tokio::time::sleep(self.look_again_in());
            tokio::pin!(ended_here, look_again);
            // Another picture is looked at without asking the database.
            while self.known(&node).is_ok() {
                tokio::select! {
                    () = &mut ended_here => {
                        doubt.0.store(true, Ordering::Relaxed);
                        break;
                    }
                    () = &mut look_again => break,
                    // Whoever changes things goes only with the process.
                    changed = changes.changed() => if changed.is_err() { return Ended::Token },
                }
            }
        }
    }

    fn user_id(&self) -> Option<UserId> {
        match self {
            Self::SignedIn(admission) => Some(admission.caller.user.id),
            Self::Subscriber(_, grant) => grant.made_by.map(|maker| maker.user_id),
        }
    }

    fn look_again_in(&self) -> Duration {
        let left = |until: DateTime<Utc>| (until - Utc::now()).to_std().unwrap_or_default();
        match self {
            Self::SignedIn(_) => LOOK_AGAIN,
            Self::Subscriber(_, grant) => match grant.made_by.and_then(|maker| maker.api_key_id) {
                Some(_) => left(grant.expires_at).min(LOOK_AGAIN),
                None => left(grant.expires_at),
            },
        }
    }

    /// Whether it is good as far as the directory knows.
    fn known(&self, node: &Node) -> Result<(), Ended> {
        match self {
            Self::SignedIn(admission) => admission.caller_now(node).map(|_| ()),
            Self::Subscriber(app_id, grant) => {
                match grant.holds(&node.directory.picture(), *app_id) {
                    true => Ok(()),
                    false => Err(Ended::Token),
                }
            }
        }
    }

    async fn is_good(&self, node: &Node) -> bool {
        match self {
            Self::SignedIn(admission) => admission.is_token_good(node).await,
            Self::Subscriber(_, grant) => {
                grant.expires_at > Utc::now() && is_maker_good(node, grant).await
            }
        }
    }
}

/// Whether the API key that a subscriber token was made with, if it was, is good. While that cannot be
/// known, it is.
pub(super) async fn is_maker_good(node: &Node, grant: &Grant) -> bool {
    let made_with = grant
        .made_by
        .and_then(|maker| Some((maker.user_id, maker.api_key_id?)));
    match made_with {
        Some((user_id, key)) => {
            let good = node.sessions.is_key_good(user_id, key).await;
            good.unwrap_or(true)
        }
        None => true,
    }
}
