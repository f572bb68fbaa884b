//! Routes: method, host and path → script.

pub mod api;
pub mod pattern;
pub mod sql;
pub mod table;

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::apps::{self, AppId, HostPattern};
use crate::cors;
use crate::idempotency::RoutePolicy;
use crate::quotas::objects::TooMany;
use crate::scripts::ScriptId;
use crate::store::{Id, StoreError, Tx};
pub use pattern::PathPattern;

/// The id of a route.
pub type RouteId = Id<Route>;

/// Which requests go to which script.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Route {
    /// Its id.
    pub id: RouteId,
    /// The app that it belongs to.
    pub app_id: AppId,
    /// The script that runs.
    pub script_id: ScriptId,
    /// The method.
    pub method: MethodPattern,
    /// The hosts; none: any host of the app.
    pub host: Option<HostPattern>,
    /// The path.
    pub path: PathPattern,
    /// Whether the caller waits.
    pub dispatch_mode: DispatchMode,
    /// What it does with its path where a slash at the end is missing, or too much.
    pub trailing_slash: TrailingSlash,
    /// What it does with an `Idempotency-Key`; none: it is a header like any other.
    pub idempotency: Option<RoutePolicy>,
    /// Which pages of other origins may call it; none: it says nothing of that.
    pub cors: Option<cors::Policy>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

impl Route {
    /// What two conflicting routes of an app have in common: they match the same requests
    /// equally well.
    pub fn conflict_key(&self) -> String {
        let host = self
            .host
            .as_ref()
            .map_or("any".to_owned(), HostPattern::to_string);
        format!("{} {host} {}", self.method, self.path.shape())
    }
}

/// Write a route if nothing is in its way. Raise the directory's version first: it makes such
/// changes wait for each other, so that what is looked up here still holds.
///
/// # Errors
/// [`RouteError::Conflict`], [`RouteError::HostNotClaimed`], [`RouteError::Cors`].
pub async fn put(tx: &mut Tx, route: &Route) -> Result<(), RouteError> {
    if let Some(policy) = &route.cors {
        policy.check(route.method.exact())?;
    }
    let known = sql::by_conflict_key(tx.conn().await?, route.app_id, &route.conflict_key()).await?;
    if let Some(other) = known.filter(|other| other.id != route.id) {
        return Err(RouteError::Conflict(Box::new(other)));
    }
    if route.host.is_some() {
        let app = apps::sql::get(tx.conn().await?, route.app_id).await?;
        check_host(route, &app.map(|app| app.hosts).unwrap_or_default())?;
    }
    Ok(sql::upsert(tx, route).await?)
}

/// Refuse a route that is on a host which its app does not claim.
///
/// # Errors
/// [`RouteError::HostNotClaimed`].
pub fn check_host(route: &Route, claimed: &[HostPattern]) -> Result<(), RouteError> {
    match &route.host {
        Some(host) if !claimed.is_empty() && !claimed.iter().any(|claim| claim.covers(host)) => {
            Err(RouteError::HostNotClaimed(host.clone()))
        }
        _ => Ok(()),
    }
}

/// Whether the caller of a route waits for its script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DispatchMode {
    /// The answer is the script's.
    #[default]
    Sync,
    /// The answer is 202 as soon as the delivery is safe.
    Async,
}

impl DispatchMode {
    /// The word in the database and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Async => "async",
        }
    }
}

/// What a route does with a request for its path with a slash at the end that its pattern has not,
/// or without one that it has: to routing they are two paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TrailingSlash {
    /// Nothing: it is another path.
    #[default]
    Strict,
    /// It leads to the path as the pattern has it (308), unless another route has that path.
    Redirect,
}

impl TrailingSlash {
    /// The word in the database and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Redirect => "redirect",
        }
    }
}

/// A method or any.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "^[A-Za-z-]{1,20}$"))]
pub enum MethodPattern {
    /// Every method.
    #[default]
    Any,
    /// This one, in upper case.
    Exact(String),
}

impl MethodPattern {
    /// The one method, unless it is any.
    pub fn exact(&self) -> Option<&str> {
        match self {
            Self::Any => None,
            Self::Exact(method) => Some(method),
        }
    }
}

impl FromStr for MethodPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let method = text.to_ascii_uppercase();
        match method.as_str() {
            "ANY" => Ok(Self::Any),
            "CONNECT" | "TRACE" => Err(format!("{method} cannot be routed")),
            _ if !method.is_empty()
                && method.len() <= 20
                && method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') =>
            {
                Ok(Self::Exact(method))
            }
            _ => {
                Err("a method is `ANY` or one like `GET`, `POST`, `PUT`, `PATCH`, `DELETE`".into())
            }
        }
    }
}

impl TryFrom<String> for MethodPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<MethodPattern> for String {
    fn from(method: MethodPattern) -> Self {
        method.to_string()
    }
}

impl fmt::Display for MethodPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "ANY",
            Self::Exact(method) => method,
        })
    }
}

/// What can go wrong with routes.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// No such route.
    #[error("there is no route `{0}`")]
    NotFound(String),
    /// Another route matches the same requests equally well.
    #[error("the route conflicts with `{} {}` ({})", .0.method, .0.path, .0.id)]
    Conflict(Box<Route>),
    /// The app has hosts, and this is none of them.
    #[error("the app does not claim the host `{0}`; add it to the app's hosts first")]
    HostNotClaimed(HostPattern),
    /// No route can have this policy.
    #[error(transparent)]
    Cors(#[from] cors::BadPolicy),
    /// The app has as many of them as it may.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}
