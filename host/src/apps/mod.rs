//! Apps: the tenants. Everything belongs to one app, and a request belongs to the app that
//! claims its host.

pub mod api;
pub mod domains;
pub mod leaving;
pub mod sql;

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::routes::Route;
use crate::store::{Id, StoreError};

/// The id of an app.
pub type AppId = Id<App>;

/// A tenant.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct App {
    /// Its id.
    pub id: AppId,
    /// Its short name, unique on the instance.
    pub slug: Slug,
    /// The name that people see.
    pub name: String,
    /// The hosts that it claims.
    pub hosts: Vec<HostPattern>,
    /// Whether viewers see neither what requests and events carried nor what scripts said of it.
    pub hide_payloads_from_viewers: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

/// What can go wrong with apps.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// No such app.
    #[error("there is no app `{0}`")]
    NotFound(String),
    /// Another app has the slug.
    #[error("another app has the slug `{0}`")]
    SlugTaken(Slug),
    /// Another app claims a host that overlaps.
    #[error("another app claims `{claimed}`, which overlaps with `{host}`")]
    HostTaken {
        /// What was asked for.
        host: HostPattern,
        /// What stands in its way.
        claimed: HostPattern,
    },
    /// The host is the instance's own.
    #[error("`{0}` is this instance's admin_host; its API and dashboard are there, and no app")]
    AdminHost(HostPattern),
    /// The host is nobody's alone.
    #[error(
        "`{0}` cannot be one app's: it is an address, a name of one label, or what others have names below (a public suffix); claim a name like `shop.example.com`"
    )]
    SharedHost(HostPattern),
    /// Somebody who may not give hosts to apps would add them by changing the app.
    #[error(
        "`{0}` is given to an app by who manages the instance; ask for it with POST /apps/{{app}}/domains (`picloud domains add`)"
    )]
    NotYours(HostPattern),
    /// More hosts than an app may claim.
    #[error("an app has at most {HOSTS_MAX} hosts; a wildcard covers many")]
    TooManyHosts,
    /// The app does not claim the host.
    #[error("the app does not claim `{0}`")]
    HostNotClaimed(HostPattern),
    /// Routes would be on hosts that the app does not claim any more.
    #[error(
        "{} routes would be on hosts that the app does not claim any more; change them first, or say `?orphan=true`",
        .0.len()
    )]
    WouldOrphan(Vec<Route>),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AppError {
    /// What went wrong when an app was given this slug.
    pub fn of_slug(error: StoreError, slug: &Slug) -> Self {
        match error {
            StoreError::Duplicate => Self::SlugTaken(slug.clone()),
            error => error.into(),
        }
    }
}

impl App {
    /// Whether it has hosts of its own; else it serves those that nobody claims.
    pub fn claims_hosts(&self) -> bool {
        !self.hosts.is_empty()
    }
}

/// Whether names below this one belong to different people, who must not have each other's cookies:
/// `com`, `co.uk`, `github.io`, or any name of one label (publicsuffix.org).
fn is_public_suffix(name: &str) -> bool {
    psl::suffix_str(name).is_none_or(|suffix| suffix == name)
}

/// The most hosts of an app.
pub const HOSTS_MAX: usize = 100;

/// The longest name of an app, script or user, in bytes.
pub const NAME_BYTES_MAX: usize = 100;

/// A short name for URLs and flags: 1 to 63 of `a-z`, `0-9` and `-`, neither first nor last a
/// hyphen. It never looks like a UUID, so that `{app}` in a path is unambiguous.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
pub struct Slug(String);

impl Slug {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Slug {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = text
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if text.is_empty()
            || text.len() > 63
            || !plain
            || text.starts_with('-')
            || text.ends_with('-')
        {
            return Err("a slug is 1 to 63 lower-case letters, digits and hyphens, \
                        and neither begins nor ends with a hyphen, like `my-shop`"
                .into());
        }
        if text.parse::<uuid::Uuid>().is_ok() {
            return Err("a slug must not look like an id".into());
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for Slug {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Slug> for String {
    fn from(slug: Slug) -> Self {
        slug.0
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The most bytes of a host (RFC 1035, 2.3.4).
const HOST_BYTES_MAX: usize = 253;

/// What a host looks like; an address of IPv6, which is taken too, looks otherwise.
const HOST_PATTERN: &str = r"^(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?$";

/// What a host looks like that an app may claim: it has two labels at least, and the last is no number.
/// Public suffixes of more labels, no pattern can tell.
const CLAIMABLE_PATTERN: &str = r"^(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)+[A-Za-z]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?$";

/// The schema of a host that an app is to claim.
pub fn claimable_host(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": CLAIMABLE_PATTERN, "maxLength": HOST_BYTES_MAX })
}

/// The schema of the hosts that an app is to claim, or null.
pub fn claimable_hosts(generator: &mut SchemaGenerator) -> Schema {
    let host = claimable_host(generator);
    json_schema!({ "type": ["array", "null"], "items": host, "maxItems": HOSTS_MAX })
}

/// A host name, `shop.example.com`, or all names below one, `*.example.com`; lower case,
/// without a port.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = HOST_PATTERN, "maxLength" = HOST_BYTES_MAX))]
pub enum HostPattern {
    /// This name.
    Exact(String),
    /// Every name that ends with a dot and this one.
    Below(String),
}

impl HostPattern {
    /// Whether `host` (lower case, without a port) is one of them.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => host == name,
            Self::Below(name) => host
                .strip_suffix(name.as_str())
                .is_some_and(|front| front.len() > 1 && front.ends_with('.')),
        }
    }

    /// Whether an app can have it for itself: no address, and no name that many have names below.
    pub fn is_ones_own(&self) -> bool {
        let (Self::Exact(name) | Self::Below(name)) = self;
        let last = name.rsplit('.').next().unwrap_or_default();
        // Browsers read a name that ends in a number as an address (WHATWG URL, 3.5).
        last.starts_with(|first: char| first.is_ascii_alphabetic())
            && name.parse::<std::net::IpAddr>().is_err()
            && !is_public_suffix(name)
    }

    /// Whether every host that `other` matches is matched by this one too.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Below(_), Self::Exact(name)) => self.matches(name),
            (Self::Below(mine), Self::Below(theirs)) => mine == theirs || self.matches(theirs),
            (Self::Exact(mine), Self::Exact(theirs)) => mine == theirs,
            (Self::Exact(_), Self::Below(_)) => false,
        }
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_short = text.len() <= HOST_BYTES_MAX;
        let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text.as_str()),
        };
        // RFC 1123 labels, and underscores because internal names have them.
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let address = name.parse::<std::net::Ipv6Addr>().is_ok() && !below;
        if !is_short || !(address || name.split('.').all(label)) {
            return Err(
                "a host is a name like `shop.example.com`, or `*.example.com` for all \
                        names below one; without scheme, port or path"
                    .into(),
            );
        }
        Ok(if below {
            Self::Below(name.into())
        } else {
            Self::Exact(name.into())
        })
    }
}

impl TryFrom<String> for HostPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<HostPattern> for String {
    fn from(pattern: HostPattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slug_is_lower_case_and_never_an_id() {
        for good in ["a", "my-shop", "7", "x1-2"] {
            assert!(good.parse::<Slug>().is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a b",
            "ä",
            &long,
            "0192f0c1-0000-7000-8000-000000000000",
        ] {
            assert!(bad.parse::<Slug>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wildcard_matches_names_below_and_not_the_name_itself() {
        let pattern: HostPattern = "*.Example.com".parse().unwrap();
        assert!(pattern.matches("a.example.com"));
        assert!(pattern.matches("a.b.example.com"));
        assert!(!pattern.matches("example.com"));
        assert!(!pattern.matches(".example.com"));
        assert!(!pattern.matches("badexample.com"));
    }

    #[test]
    fn a_host_pattern_covers_what_it_matches() {
        let covers = |a: &str, b: &str| {
            a.parse::<HostPattern>()
                .unwrap()
                .covers(&b.parse::<HostPattern>().unwrap())
        };
        assert!(covers("*.x.org", "a.x.org"));
        assert!(covers("*.x.org", "*.a.x.org"));
        assert!(covers("*.x.org", "*.x.org"));
        assert!(!covers("a.x.org", "*.a.x.org"));
        assert!(!covers("*.x.org", "x.org"));
    }

    #[test]
    fn what_is_nobodys_alone_is_told() {
        for (host, is_ones_own) in [
            ("shop.example.com", true),
            ("*.example.com", true),
            ("example.localhost", true),
            ("a.github.io", true),
            ("localhost", false),
            ("*.localhost", false),
            ("intranet", false),
            ("com", false),
            ("*.com", false),
            ("*.co.uk", false),
            ("github.io", false),
            ("127.0.0.1", false),
            ("shop.127.1", false),
            ("fe80::1", false),
            ("::1", false),
        ] {
            let parsed: HostPattern = host.parse().unwrap();
            assert_eq!(parsed.is_ones_own(), is_ones_own, "{host}");
        }
    }

    #[test]
    fn a_host_has_no_scheme_port_or_path() {
        for bad in [
            "", "http://a", "a:80", "a/b", "*", "*.", "a..b", "-a.com", "a b",
        ] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad}");
        }
    }
}
