//! What commands that make routes take about how they are called.

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::json;

use super::output::Failure;
use crate::cors::{Origin, Policy};
use crate::idempotency::{RoutePolicy, TTL_S_MAX};
use crate::routes::{Route, TrailingSlash};

/// How routes are to be called, in words.
#[derive(Args)]
pub(super) struct PolicyArgs {
    #[command(flatten)]
    cors: CorsArgs,
    #[command(flatten)]
    idempotency: IdempotencyArgs,
    /// What a request gets whose path has a slash at its end and the route's has none, or the other
    /// way round
    #[arg(long, value_name = "WHAT")]
    trailing_slash: Option<TrailingSlash>,
}

impl PolicyArgs {
    /// What routes get.
    pub(super) fn given(&self) -> Result<Policies, Failure> {
        Ok(Policies {
            cors: self.cors.given()?,
            idempotency: self.idempotency.given()?,
            trailing_slash: self.trailing_slash,
        })
    }
}

/// How a route is called; what is left out stays as it is.
#[derive(Clone, Serialize)]
pub(super) struct Policies {
    #[serde(skip_serializing_if = "Option::is_none")]
    cors: Option<Option<Policy>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency: Option<Option<RoutePolicy>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trailing_slash: Option<TrailingSlash>,
}

impl Policies {
    /// What of it is not so yet.
    pub(super) fn unlike(self, known: &Route) -> Self {
        Self {
            cors: self.cors.filter(|cors| *cors != known.cors),
            idempotency: self
                .idempotency
                .filter(|policy| *policy != known.idempotency),
            trailing_slash: self
                .trailing_slash
                .filter(|what| *what != known.trailing_slash),
        }
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.cors.is_none() && self.idempotency.is_none() && self.trailing_slash.is_none()
    }
}

impl ValueEnum for TrailingSlash {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Strict, Self::Redirect]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Self::Strict => "404: it is another path",
            Self::Redirect => "a redirect (308) to the path as the route has it",
        };
        Some(PossibleValue::new(self.as_str()).help(help))
    }
}

/// Which pages of other origins may call a route.
#[derive(Args)]
struct CorsArgs {
    /// An origin whose pages may call the routes, or '*'; may be repeated
    #[arg(long = "cors-origin", value_name = "https://…")]
    origins: Vec<Origin>,
    /// A method that those pages may use, in place of the routes' own; may be repeated
    #[arg(long = "cors-method", value_name = "METHOD", requires = "origins")]
    methods: Vec<String>,
    /// A header that they may send, in place of the usual ones, or '*'; may be repeated
    #[arg(long = "cors-header", value_name = "NAME", requires = "origins")]
    headers: Vec<String>,
    /// A header of the answer that they may read, in place of the usual ones, or '*'; may be repeated
    #[arg(long = "cors-expose-header", value_name = "NAME", requires = "origins")]
    exposed_headers: Vec<String>,
    /// Browsers send their cookies along
    #[arg(long = "cors-credentials", requires = "origins")]
    credentials: bool,
    /// For how many seconds browsers may remember what a preflight said
    #[arg(long = "cors-max-age-s", value_name = "SECONDS", requires = "origins")]
    max_age_s: Option<u32>,
    /// No page of another origin may call them any more
    #[arg(long, conflicts_with = "origins")]
    no_cors: bool,
}

impl CorsArgs {
    /// What routes get as `cors`, whole, as the server shows it; none: they keep what they have.
    fn given(&self) -> Result<Option<Option<Policy>>, Failure> {
        if self.no_cors {
            return Ok(Some(None));
        }
        if self.origins.is_empty() {
            return Ok(None);
        }
        let mut fields = json!({ "origins": self.origins, "credentials": self.credentials });
        for (name, list) in [
            ("methods", &self.methods),
            ("headers", &self.headers),
            ("exposed_headers", &self.exposed_headers),
        ] {
            if !list.is_empty() {
                fields[name] = json!(list);
            }
        }
        if let Some(max_age_s) = self.max_age_s {
            fields["max_age_s"] = max_age_s.into();
        }
        let whole = serde_json::from_value::<Policy>(fields);
        whole
            .map(|policy| Some(Some(policy)))
            .map_err(|error| Failure::Local(error.to_string()))
    }
}

/// Whether calls of a route with the same `Idempotency-Key` are one.
#[derive(Args)]
struct IdempotencyArgs {
    /// Calls with the same Idempotency-Key are one: the script runs once. With =SECONDS, for how
    /// long a key holds
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = ""
    )]
    idempotent: Option<String>,
    /// An Idempotency-Key is a header like any other
    #[arg(long, conflicts_with = "idempotent")]
    no_idempotent: bool,
}

impl IdempotencyArgs {
    /// What routes get as `idempotency`, whole; none: they keep what they have.
    fn given(&self) -> Result<Option<Option<RoutePolicy>>, Failure> {
        let Some(text) = &self.idempotent else {
            return Ok(self.no_idempotent.then_some(None));
        };
        let mut fields = json!({});
        if !text.is_empty() {
            let ttl_s: Option<u64> = text.parse().ok();
            let ttl_s = ttl_s.filter(|seconds| (1..=TTL_S_MAX).contains(seconds));
            let ttl_s = ttl_s.ok_or_else(|| {
                Failure::Usage(format!(
                    "--idempotent={text}: write seconds, like 86400, {TTL_S_MAX} at most"
                ))
            })?;
            fields["ttl_s"] = ttl_s.into();
        }
        let whole = serde_json::from_value::<RoutePolicy>(fields);
        whole
            .map(|policy| Some(Some(policy)))
            .map_err(|error| Failure::Local(error.to_string()))
    }
}
