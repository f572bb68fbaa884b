//! Which pages of other origins may read what is answered: the rules of CORS, as the Fetch standard
//! has them. Routes and topics share them; `http/cors.rs` says them to browsers.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most origins, methods or headers of one list.
pub const LIST_MAX: usize = 50;
/// For how long a browser may remember what a preflight said, in seconds, where nothing is set.
pub const MAX_AGE_S: u32 = 600;
/// The same at most: no browser remembers it for longer than a day.
pub const MAX_AGE_S_MAX: u32 = 86_400;
/// What an origin looks like; which ports are usual is not said.
const ORIGIN: &str =
    r"^(\*|[a-z][a-z0-9+.-]{0,20}://[a-z0-9._-]{1,253}(:([1-9][0-9]{0,3}|[1-5][0-9]{4}))?)$";
/// What a header's name looks like, or `*`.
const HEADER: &str = "^(\\*|[A-Za-z0-9_-]{1,100})$";
/// What a method looks like.
const METHOD: &str = "^[A-Z-]{1,20}$";
/// Hosts have at most 253 bytes; with a scheme and a port this is enough.
const ORIGIN_BYTES_MAX: usize = 300;

/// The origin of pages, as a browser writes it, or every one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(rename = "CorsOrigin", extend("pattern" = ORIGIN))]
pub enum Origin {
    /// `*`.
    Any,
    /// `https://shop.example.com`.
    Named(String),
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let no = |why: &str| {
            Err(format!(
                "`{text}` is no origin{why}; write it as a browser does: `https://shop.example.com`, with a \
                 port where it is not the usual one, or `*` for all"
            ))
        };
        if text == "null" {
            return no(" (files and sandboxed pages send it, anybody's)");
        }
        if text != text.to_ascii_lowercase() {
            return no(" (it has capitals)");
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return no("");
        };
        let of_schemes = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        let is_scheme =
            scheme.starts_with(|c: char| c.is_ascii_lowercase()) && scheme.chars().all(of_schemes);
        if !is_scheme || text.len() > ORIGIN_BYTES_MAX {
            return no("");
        }
        if rest.contains(['/', '?', '#']) {
            return no(" (it has a path)");
        }
        if !rest.is_ascii() {
            return no(" (write the host in its `xn--` form)");
        }
        // The colons of an IPv6 address are within brackets.
        let after_address = rest.rfind(']').map_or(0, |at| at + 1);
        let (host, port) = match rest[after_address..].rfind(':') {
            Some(at) => {
                let (host, port) = rest.split_at(after_address + at);
                (host, Some(&port[1..]))
            }
            None => (rest, None),
        };
        let of_names = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let is_host = match host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
        {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.chars().all(of_names),
        };
        if !is_host {
            return no("");
        }
        match (scheme, port) {
            ("http", Some("80")) | ("https", Some("443")) => {
                no(" (browsers leave the usual port out)")
            }
            (_, Some(port)) => match port.parse::<u16>() {
                Ok(number) if number.to_string() == port => Ok(Self::Named(text.to_owned())),
                _ => no(""),
            },
            (_, None) => Ok(Self::Named(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Origin {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Origin> for String {
    fn from(origin: Origin) -> Self {
        origin.to_string()
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "*",
            Self::Named(text) => text,
        })
    }
}

/// How an origin is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetIn {
    /// It is listed by its name.
    ByName,
    /// Every origin is.
    WithAll,
}

/// How the pages of `origin` are let in by a list, if they are.
pub fn lets_in(list: &[Origin], origin: &str) -> Option<LetIn> {
    let is_it = |known: &Origin| matches!(known, Origin::Named(name) if name == origin);
    match list.iter().any(is_it) {
        true => Some(LetIn::ByName),
        false => list.contains(&Origin::Any).then_some(LetIn::WithAll),
    }
}

/// Which pages of other origins may call a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RouteCors")]
pub struct Policy {
    /// The origins; `*`: all.
    #[schemars(length(min = 1, max = LIST_MAX))]
    pub origins: Vec<Origin>,
    /// The methods that their pages may use; null: those of the route.
    #[serde(default)]
    #[schemars(length(min = 1, max = LIST_MAX), inner(regex(pattern = METHOD)))]
    pub methods: Option<Vec<String>>,
    /// The headers that they may send, besides those that every page may; `*`: any.
    #[serde(default = "headers")]
    #[schemars(length(max = LIST_MAX), inner(regex(pattern = HEADER)))]
    pub headers: Vec<String>,
    /// The headers of the answer that they may read, besides those that every page may; `*`: all.
    #[serde(default = "exposed_headers")]
    #[schemars(length(max = LIST_MAX), inner(regex(pattern = HEADER)))]
    pub exposed_headers: Vec<String>,
    /// Whether a browser sends them cookies and other credentials of its own.
    #[serde(default)]
    pub credentials: bool,
    /// For how long a browser may remember what a preflight said, in seconds.
    #[serde(default = "max_age_s")]
    #[schemars(range(max = MAX_AGE_S_MAX))]
    pub max_age_s: u32,
}

/// What JSON takes, tokens, and what the platform reads.
fn headers() -> Vec<String> {
    ["authorization", "content-type", "idempotency-key"]
        .map(str::to_owned)
        .into()
}

/// What the platform says.
fn exposed_headers() -> Vec<String> {
    [
        "idempotency-ignored",
        "idempotency-replayed",
        "retry-after",
        "x-execution-id",
    ]
    .map(str::to_owned)
    .into()
}

fn max_age_s() -> u32 {
    MAX_AGE_S
}

/// A policy that no route can have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("cors.{field}: {rule}")]
pub struct BadPolicy {
    /// The field of the policy.
    pub field: &'static str,
    /// What is wrong, and what to do.
    pub rule: String,
}

impl Policy {
    /// That a route of this method, or of any, can have it.
    ///
    /// # Errors
    /// [`BadPolicy`].
    pub fn check(&self, method: Option<&str>) -> Result<(), BadPolicy> {
        let bad = |field, rule: String| Err(BadPolicy { field, rule });
        if self.origins.is_empty() {
            let rule = "name at least one origin, or `*`; with `\"cors\": null` no page of another \
                 origin may call the route";
            return bad("origins", rule.to_owned());
        }
        let lists = [
            ("origins", self.origins.len()),
            ("methods", self.methods.as_ref().map_or(0, Vec::len)),
            ("headers", self.headers.len()),
            ("exposed_headers", self.exposed_headers.len()),
        ];
        if let Some((field, _)) = lists.into_iter().find(|(_, length)| *length > LIST_MAX) {
            return bad(field, format!("has at most {LIST_MAX} entries"));
        }
        if self.credentials {
            let is_any = |list: &[String]| list.iter().any(|name| name == "*");
            let wild = [
                ("origins", self.origins.contains(&Origin::Any)),
                ("headers", is_any(&self.headers)),
                ("exposed_headers", is_any(&self.exposed_headers)),
            ];
            if let Some((field, _)) = wild.into_iter().find(|(_, is_wild)| *is_wild) {
                let rule = format!(
                    "browsers refuse credentials where `{field}` has `*`: list them by name in \
                     cors.{field}, or set cors.credentials to false"
                );
                return bad("credentials", rule);
            }
        }
        if let Some(methods) = &self.methods {
            self.check_methods(methods, method)?;
        }
        for (field, names) in [
            ("headers", &self.headers),
            ("exposed_headers", &self.exposed_headers),
        ] {
            let is_name = |name: &&String| {
                let of_names = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
                *name == "*" || (1..=100).contains(&name.len()) && name.bytes().all(of_names)
            };
            if let Some(odd) = names.iter().find(|name| !is_name(name)) {
                let rule =
                    format!("`{odd}` is no name of a header, like `x-request-id`, and not `*`");
                return bad(field, rule);
            }
        }
        if self.max_age_s > MAX_AGE_S_MAX {
            let rule = format!("is 0 to {MAX_AGE_S_MAX} seconds, not {}", self.max_age_s);
            return bad("max_age_s", rule);
        }
        Ok(())
    }

    fn check_methods(&self, methods: &[String], of_route: Option<&str>) -> Result<(), BadPolicy> {
        let bad = |rule: String| {
            let field = "methods";
            Err(BadPolicy { field, rule })
        };
        if methods.is_empty() {
            return bad(
                "name at least one method, or leave it out for those of the route".to_owned(),
            );
        }
        let is_method = |method: &str| {
            let of_methods = |b: u8| b.is_ascii_uppercase() || b == b'-';
            (1..=20).contains(&method.len()) && method.bytes().all(of_methods)
        };
        for method in methods {
            if !is_method(method) || ["CONNECT", "TRACE", "ANY"].contains(&method.as_str()) {
                return bad(format!(
                    "`{method}` is no method that a page can use, like `POST`"
                ));
            }
            // HEAD is served by the route of GET.
            let takes = |own: &str| own == method || own == "GET" && method == "HEAD";
            if let Some(own) = of_route.filter(|own| !takes(own)) {
                return bad(format!(
                    "the route takes {own} and no {method}: leave `{method}` out, or make the route's \
                     method `ANY`"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn policy(fields: Value) -> Policy {
        serde_json::from_value(fields).unwrap()
    }

    #[test]
    fn an_origin_is_what_browsers_write() {
        for good in [
            "*",
            "https://shop.example.com",
            "http://localhost:5173",
            "http://127.0.0.1:8080",
            "https://[::1]:8443",
            "https://[2001:db8::1]",
            "https://xn--bcher-kva.example",
            "http://intra_net",
            "https://x:80",
            "capacitor://localhost",
            "chrome-extension://abcdefghijklmnop",
        ] {
            assert_eq!(good.parse::<Origin>().unwrap().to_string(), good);
        }
        for (bad, words) in [
            ("", ""),
            ("null", "sandboxed"),
            ("shop.example.com", ""),
            ("https://", ""),
            ("https://shop.example.com/", "path"),
            ("https://shop.example.com/a", "path"),
            ("https://Shop.example.com", "capitals"),
            ("https://shop.example.com:443", "usual port"),
            ("http://shop.example.com:80", "usual port"),
            ("https://shop:0443", ""),
            ("https://shop:99999", ""),
            ("https://shop:", ""),
            ("https://*.example.com", ""),
            ("https://a b", ""),
            ("https://bücher.example", "xn--"),
            ("https://me@shop", ""),
            ("https://[::1", ""),
            ("https://[nonsense]", ""),
            ("https://a,https://b", ""),
            ("1http://x", ""),
            ("://x", ""),
            (&format!("https://{}", "x".repeat(300)), ""),
        ] {
            let refused = bad.parse::<Origin>().unwrap_err();
            assert!(refused.contains(words), "{bad}: {refused}");
            assert!(refused.contains("https://shop.example.com"), "{refused}");
        }
    }

    proptest! {
        /// Nothing that a header could not hold, or that means two origins, is ever let in.
        #[test]
        fn whatever_parses_is_one_plain_origin(text in "[ -~é\\n]{0,40}|https?://[a-z0-9:.\\[\\]/@,* ]{0,20}") {
            if let Ok(Origin::Named(name)) = text.parse() {
                prop_assert_eq!(&name, &text);
                prop_assert!(name.bytes().all(|b| b.is_ascii_graphic() && !b"\"',*@\\".contains(&b)));
                prop_assert_eq!(name.matches('/').count(), 2);
                prop_assert_eq!(lets_in(&[Origin::Named(name.clone())], &name), Some(LetIn::ByName));
            }
        }
    }

    #[test]
    fn origins_are_let_in_by_name_or_all_of_them() {
        let named = [Origin::Named("https://x".into())];
        assert_eq!(lets_in(&[], "https://x"), None);
        assert_eq!(lets_in(&named, "https://x"), Some(LetIn::ByName));
        assert_eq!(lets_in(&named, "https://x.evil"), None);
        assert_eq!(lets_in(&named, ""), None);
        let both = [named[0].clone(), Origin::Any];
        assert_eq!(lets_in(&both, "https://x"), Some(LetIn::ByName));
        assert_eq!(lets_in(&both, "null"), Some(LetIn::WithAll));
    }

    #[test]
    fn what_no_route_can_have_is_named_with_what_to_do() {
        for (fields, method, field, words) in [
            (json!({ "origins": [] }), None, "origins", "at least one"),
            (
                json!({ "origins": vec!["https://x"; 51] }),
                None,
                "origins",
                "at most 50",
            ),
            (
                json!({ "origins": ["*"], "credentials": true }),
                None,
                "credentials",
                "cors.origins",
            ),
            (
                json!({ "origins": ["https://x"], "headers": ["*"], "credentials": true }),
                None,
                "credentials",
                "cors.headers",
            ),
            (
                json!({ "origins": ["*"], "methods": [] }),
                None,
                "methods",
                "at least one",
            ),
            (
                json!({ "origins": ["*"], "methods": ["post"] }),
                None,
                "methods",
                "`post`",
            ),
            (
                json!({ "origins": ["*"], "methods": ["GET", "PUT"] }),
                Some("GET"),
                "methods",
                "no PUT",
            ),
            (
                json!({ "origins": ["*"], "headers": ["a: b"] }),
                None,
                "headers",
                "`a: b`",
            ),
            (
                json!({ "origins": ["*"], "exposed_headers": [""] }),
                None,
                "exposed_headers",
                "``",
            ),
            (
                json!({ "origins": ["*"], "max_age_s": 86_401 }),
                None,
                "max_age_s",
                "86400",
            ),
        ] {
            let bad = policy(fields).check(method).unwrap_err();
            assert_eq!(bad.field, field, "{bad}");
            assert!(bad.rule.contains(words), "{bad}");
        }
    }

    #[test]
    fn what_is_left_out_is_what_most_routes_want() {
        let least = policy(json!({ "origins": ["https://x"] }));
        assert_eq!(least.check(Some("POST")), Ok(()));
        assert!(least.headers.contains(&"content-type".to_owned()));
        assert_eq!((least.max_age_s, least.credentials), (600, false));
        let whole = json!({ "origins": ["https://x"], "methods": ["GET", "HEAD"], "headers": [],
                            "exposed_headers": [], "credentials": true, "max_age_s": 0 });
        assert_eq!(policy(whole.clone()).check(Some("GET")), Ok(()));
        assert_eq!(serde_json::to_value(policy(whole.clone())).unwrap(), whole);
    }
}
