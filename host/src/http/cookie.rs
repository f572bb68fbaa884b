//! Signing in from a browser: the session's token in a cookie that no page can read, and what
//! keeps other pages from using it.
//!
//! A page that is not ours could make a browser send the cookie. `SameSite=Strict` keeps it from
//! other sites; `Sec-Fetch-Site` or `Origin` tells what comes from another origin of the same site,
//! another app's host say; and what changes something needs a header with a word that only our
//! own pages can learn. The cookie exists where no app's page can be of the same origin: on
//! `admin_host`, or, where that is not set, on hosts that no app claims, whose pages
//! `user_routes` has sandboxed.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use chrono::{DateTime, Utc};
use subtle::ConstantTimeEq;

use super::address;
use super::problem::Problem;
use crate::identity::token;
use crate::node::Node;

/// The header with [`token::csrf`].
const CSRF: HeaderName = HeaderName::from_static("x-csrf-token");
/// Where a browser says who asks; no page can write it. It is sent to trustworthy addresses only:
/// over TLS, or on the same machine.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

const PLAIN: &str = "picloud";
/// A browser takes it over TLS only.
const SECURE: &str = "__Secure-picloud";
/// A browser takes it over TLS only, and from this very host only.
const OWN_HOST: &str = "__Host-picloud";
/// What a sign-in at a provider is bound to, on the same hosts.
const PLAIN_ATTEMPT: &str = "picloud-oidc";
const SECURE_ATTEMPT: &str = "__Secure-picloud-oidc";
const OWN_HOST_ATTEMPT: &str = "__Host-picloud-oidc";

/// The cookie of a session, as it is on the host that a request is for.
#[derive(Debug, Clone, Copy)]
pub struct Cookie {
    name: &'static str,
    path: &'static str,
    is_secure: bool,
    same_site: &'static str,
}

impl Cookie {
    /// None where an app's pages are of the same origin.
    fn of(node: &Node, parts: &Parts) -> Option<Self> {
        let has_own_host = node.config.admin_host.is_some();
        if !has_own_host {
            let host = address::host(&parts.headers, &parts.uri);
            if node.directory.picture().was_given(&host) {
                return None;
            }
        }
        let is_secure = address::is_https(parts, &node.config.trusted_proxies);
        let (name, path) = match (is_secure, has_own_host) {
            // The routes of apps are beside the API.
            (false, _) => (PLAIN, "/api"),
            (true, false) => (SECURE, "/api"),
            (true, true) => (OWN_HOST, "/"),
        };
        Some(Self {
            name,
            path,
            is_secure,
            same_site: "Strict",
        })
    }

    /// The cookie of a sign-in that goes on at a provider, beside that of a session. Its page, on
    /// another site, leads the browser back here, and the cookie must come with it.
    pub fn of_attempt(self) -> Self {
        let name = match self.name {
            OWN_HOST => OWN_HOST_ATTEMPT,
            SECURE => SECURE_ATTEMPT,
            _ => PLAIN_ATTEMPT,
        };
        let same_site = "Lax";
        Self {
            name,
            same_site,
            ..self
        }
    }

    /// What makes a browser keep a token until `expires_at`.
    ///
    /// # Errors
    /// Never in truth: tokens are of letters and digits.
    pub fn set(self, token: &str, expires_at: DateTime<Utc>) -> Result<HeaderValue, Problem> {
        let seconds = (expires_at - Utc::now()).num_seconds().max(0);
        let Self {
            name,
            path,
            same_site,
            ..
        } = self;
        let secure = if self.is_secure { "; Secure" } else { "" };
        let text = format!(
            "{name}={token}; Path={path}; Max-Age={seconds}; HttpOnly; SameSite={same_site}{secure}"
        );
        text.parse().map_err(Problem::internal)
    }

    /// What makes a browser forget it.
    ///
    /// # Errors
    /// Never in truth.
    pub fn clear(self) -> Result<HeaderValue, Problem> {
        self.set("", DateTime::UNIX_EPOCH)
    }

    /// Its value in a request. One that is there twice was put beside ours by somebody else.
    ///
    /// # Errors
    /// 401 when it is there twice.
    pub fn value(self, headers: &HeaderMap) -> Result<Option<&str>, Problem> {
        let lines = headers.get_all(header::COOKIE).into_iter();
        let pairs = lines.filter_map(|line| line.to_str().ok());
        let pairs = pairs.flat_map(|line| line.split(';'));
        let mut values = pairs.filter_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            (name.trim() == self.name).then(|| value.trim())
        });
        match (values.next(), values.next()) {
            (Some(_), Some(_)) => Err(Problem::unauthorized(format!(
                "the cookie `{}` was sent twice; delete the cookies of this site and sign in again",
                self.name
            ))),
            (value, _) => Ok(value),
        }
    }
}

/// Whether a name is a session's cookie on any host. Some browsers do not look at the case of the
/// prefixes.
fn is_ours(name: &str) -> bool {
    let ours = [
        PLAIN,
        SECURE,
        OWN_HOST,
        PLAIN_ATTEMPT,
        SECURE_ATTEMPT,
        OWN_HOST_ATTEMPT,
    ];
    ours.iter().any(|own| own.eq_ignore_ascii_case(name.trim()))
}

/// Whether a `Set-Cookie` of an app's would set a session's.
pub fn sets_ours(value: &HeaderValue) -> bool {
    let text = String::from_utf8_lossy(value.as_bytes());
    // A cookie without a name, `=a=b`, is sent back as `a=b`.
    let text = text.trim_start_matches(|c: char| c == '=' || c.is_ascii_whitespace());
    is_ours(text.split(['=', ';']).next().unwrap_or_default())
}

/// The cookies in a header's text that an app may see: not a session's.
pub fn without_ours(text: String) -> Option<String> {
    if !text.to_ascii_lowercase().contains(PLAIN) {
        return Some(text);
    }
    let is_theirs = |pair: &&str| !is_ours(pair.split('=').next().unwrap_or_default());
    let theirs: Vec<&str> = text.split(';').filter(is_theirs).collect();
    let text = theirs.join(";").trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// Which page makes a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    /// One of the same origin: the dashboard.
    SameOrigin,
    /// Another one.
    Other,
    /// None, or none that says so.
    Unsaid,
}

impl Asker {
    fn of(parts: &Parts, is_https: bool) -> Self {
        let text = |name: HeaderName| parts.headers.get(name)?.to_str().ok();
        match text(SEC_FETCH_SITE) {
            Some("same-origin") => return Self::SameOrigin,
            // Somebody typed the address, or followed a bookmark.
            Some("none") => return Self::Unsaid,
            Some(_) => return Self::Other,
            None => {}
        }
        let Some(origin) = text(header::ORIGIN) else {
            return Self::Unsaid;
        };
        let (scheme, host) = origin.split_once("://").unwrap_or(("", origin));
        // Behind a proxy that we were not told of we take `https` for plain.
        let fits = scheme == "https" || scheme == "http" && !is_https;
        let ours = address::host_and_port(&parts.headers, &parts.uri);
        match fits && host.eq_ignore_ascii_case(&ours) {
            true => Self::SameOrigin,
            false => Self::Other,
        }
    }
}

const OTHER_PAGE: &str = "a page of another origin asks; a sign-in by cookie is for the dashboard. \
     Behind a proxy, let it pass `Host` on as it came";

/// What a request says of the browser that makes it, for those who begin and end sessions.
#[derive(Debug)]
pub struct Browser {
    cookie: Option<Cookie>,
    token: Option<String>,
    asker: Asker,
    has_csrf: bool,
    origin: String,
}

impl Browser {
    fn of(node: &Node, parts: &Parts) -> Result<Self, Problem> {
        let cookie = Cookie::of(node, parts);
        let token = match cookie {
            Some(cookie) => cookie.value(&parts.headers)?.map(str::to_owned),
            None => None,
        };
        let scheme = match address::is_https(parts, &node.config.trusted_proxies) {
            true => "https",
            false => "http",
        };
        let host = address::host_and_port(&parts.headers, &parts.uri);
        Ok(Self {
            cookie,
            token,
            origin: format!("{scheme}://{host}"),
            asker: Asker::of(parts, cookie.is_some_and(|cookie| cookie.is_secure)),
            has_csrf: parts.headers.contains_key(CSRF),
        })
    }

    /// Where the browser finds us: `https://admin.example.com`.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The cookie to keep a session in that begins with this request.
    ///
    /// # Errors
    /// 403 where there can be none.
    pub fn cookie(&self) -> Result<Cookie, Problem> {
        let detail = "an app has or had this host, so its pages could use your sign-in; use a host that \
             no app was ever given, or set `admin_host`";
        self.cookie.ok_or_else(|| Problem::cross_site(detail))
    }

    /// The same, where one is asked for by a page: another page may not sign anybody in.
    ///
    /// # Errors
    /// 403 when it is another page, or where there can be no cookie.
    pub fn cookie_if(&self, is_wanted: bool) -> Result<Option<Cookie>, Problem> {
        if !is_wanted {
            return Ok(None);
        }
        match self.asker {
            Asker::Other => Err(Problem::cross_site(OTHER_PAGE)),
            Asker::SameOrigin | Asker::Unsaid => self.cookie().map(Some),
        }
    }

    /// What a page must send in `X-CSRF-Token` to change something with the cookie that came. The
    /// header must be there already, with anything in it: a page of another origin cannot add one.
    ///
    /// # Errors
    /// 403 when another page asks, 400 when there is no cookie.
    pub fn csrf(&self) -> Result<String, Problem> {
        let token = self.token.as_deref();
        let token = token.ok_or_else(|| {
            Problem::malformed("you came without the cookie of a session, and need no such token")
        })?;
        if self.asker == Asker::Other || !self.has_csrf {
            return Err(Problem::cross_site(
                "ask from the dashboard, with the header `X-CSRF-Token: fetch`",
            ));
        }
        Ok(token::csrf(token)?)
    }

    /// What clears the cookie, where the request came with one.
    ///
    /// # Errors
    /// Never in truth.
    pub fn clear(&self) -> Result<Option<HeaderValue>, Problem> {
        let cookie = self.cookie.filter(|_| self.token.is_some());
        cookie.map(Cookie::clear).transpose()
    }
}

impl FromRequestParts<Arc<Node>> for Browser {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, node: &Arc<Node>) -> Result<Self, Problem> {
        Self::of(node, parts)
    }
}

/// The session's token that came in a cookie, if one did and the dashboard sent it.
///
/// # Errors
/// 403 when another page did, or without the token against that.
pub fn token(node: &Node, parts: &Parts) -> Result<Option<String>, Problem> {
    let browser = Browser::of(node, parts)?;
    // A cookie holds what a sign-in put there; what a key does, it does as a bearer.
    let is_session = |token: &String| token::kind(token) == Some(token::Kind::Session);
    let Some(token) = browser.token.filter(is_session) else {
        return Ok(None);
    };
    if browser.asker == Asker::Other {
        return Err(Problem::cross_site(OTHER_PAGE));
    }
    let changes = !matches!(parts.method, Method::GET | Method::HEAD);
    if changes {
        let expected = token::csrf(&token)?;
        let sent = parts
            .headers
            .get(CSRF)
            .map_or(&b""[..], HeaderValue::as_bytes);
        if !bool::from(sent.ct_eq(expected.as_bytes())) {
            let detail = "send `X-CSRF-Token` with what the sign-in answered, or GET \
                 /api/v1/auth/csrf gives";
            return Err(Problem::cross_site(detail));
        }
    }
    Ok(Some(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_neither_sees_nor_sets_the_cookie_of_a_session() {
        for (sent, seen) in [
            ("a=1; b=2", Some("a=1; b=2")),
            ("a=1; picloud=x; b=2", Some("a=1; b=2")),
            ("picloud=x", None),
            ("__Host-picloud=x; a=picloud", Some("a=picloud")),
            ("__secure-PICLOUD=x;a=1", Some("a=1")),
            ("my-picloud=x", Some("my-picloud=x")),
        ] {
            assert_eq!(without_ours(sent.to_owned()).as_deref(), seen, "{sent}");
        }
        for (set, is_ours) in [
            ("picloud=x; Path=/api", true),
            (" __HOST-picloud =x", true),
            ("=picloud=x", true),
            ("= __Secure-picloud=x", true),
            ("picloud", true),
            ("sid=picloud=x", false),
            ("picloud2=x", false),
        ] {
            assert_eq!(sets_ours(&HeaderValue::from_static(set)), is_ours, "{set}");
        }
    }

    #[test]
    fn who_asks_is_what_the_browser_says() {
        let asker = |headers: &[(&str, &str)], is_https| {
            let mut request = axum::http::Request::builder().header("host", "A.test:8080");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            Asker::of(&request.body(()).unwrap().into_parts().0, is_https)
        };
        let (same, other, unsaid) = (Asker::SameOrigin, Asker::Other, Asker::Unsaid);
        for (name, value, is_https, expected) in [
            ("sec-fetch-site", "same-origin", true, same),
            ("sec-fetch-site", "none", true, unsaid),
            ("sec-fetch-site", "same-site", true, other),
            ("sec-fetch-site", "cross-site", true, other),
            ("origin", "http://a.test:8080", false, same),
            ("origin", "https://a.test:8080", false, same),
            ("origin", "http://a.test:8080", true, other),
            ("origin", "http://a.test", false, other),
            ("origin", "http://b.test:8080", false, other),
            ("origin", "null", false, other),
            ("origin", "a.test:8080", false, other),
            ("accept", "*/*", false, unsaid),
        ] {
            assert_eq!(
                asker(&[(name, value)], is_https),
                expected,
                "{name}: {value}"
            );
        }
        let both = [
            ("sec-fetch-site", "same-site"),
            ("origin", "http://a.test:8080"),
        ];
        assert_eq!(asker(&both, false), other);
    }
}
