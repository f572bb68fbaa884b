//! CORS as browsers are told of it: for the routes of apps and for topics alike. `crate::cors` has
//! the rules.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::cors::{Policy, lets_in};

/// All that an answer can say of this; where a route has a policy, only that says it.
const WORDS: [HeaderName; 6] = [
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    header::ACCESS_CONTROL_MAX_AGE,
];

/// Whether a browser shows the answer also to a page for which it sent cookies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Credentials {
    Shown,
    Hidden,
}

/// Say that the answer differs by origin.
pub(super) fn vary(headers: &mut HeaderMap) {
    headers.append(header::VARY, HeaderValue::from_static("origin"));
}

/// Let the pages of an origin read the answer.
pub(super) fn allow(headers: &mut HeaderMap, origin: &HeaderValue, credentials: Credentials) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if credentials == Credentials::Shown {
        let yes = HeaderValue::from_static("true");
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
    }
}

/// Say what a page that is let in may send, and for how long that may be remembered.
pub(super) fn allow_sending(headers: &mut HeaderMap, methods: &str, names: &str, max_age_s: u32) {
    for (name, text) in [
        (header::ACCESS_CONTROL_ALLOW_METHODS, methods),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, names),
        (header::ACCESS_CONTROL_MAX_AGE, &max_age_s.to_string()),
    ] {
        set(headers, name, text);
    }
}

/// Nothing is said where there is nothing to say.
fn set(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::try_from(text)
        && !text.is_empty()
    {
        headers.insert(name, value);
    }
}

/// The method that a page wants to use, where a browser asks for it first.
pub(super) fn asked_method(request: &Request) -> Option<&str> {
    let headers = request.headers();
    let is_preflight = request.method() == Method::OPTIONS && headers.contains_key(header::ORIGIN);
    let method = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD);
    method.filter(|_| is_preflight)?.to_str().ok()
}

/// What a page is told that wants to use a route.
pub(super) fn preflight(policy: &Policy, method: &str, asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    vary(headers);
    if let_in(policy, asked, headers) {
        let methods = policy.methods.as_ref().map(|methods| methods.join(", "));
        // Without a list they are the route's, and it takes the one that was asked for.
        let methods = methods.unwrap_or_else(|| method.to_owned());
        let names = match policy.headers.iter().any(|name| name == "*") {
            true => asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS),
            false => None,
        };
        // `*` itself would not mean `authorization`.
        let names = names.and_then(|names| names.to_str().ok().map(str::to_owned));
        let names = names.unwrap_or_else(|| policy.headers.join(", "));
        allow_sending(headers, &methods, &names, policy.max_age_s);
    }
    response
}

/// What the answer to a request says by its route's policy.
pub(super) struct Words(HeaderMap);

impl Words {
    /// What it is to say.
    pub(super) fn of(policy: &Policy, request: &Request) -> Self {
        let mut headers = HeaderMap::new();
        vary(&mut headers);
        let method = request.method().as_str();
        let methods = policy.methods.as_ref();
        let takes = methods.is_none_or(|methods| methods.iter().any(|known| known == method));
        if takes && let_in(policy, request.headers(), &mut headers) {
            set(
                &mut headers,
                header::ACCESS_CONTROL_EXPOSE_HEADERS,
                &policy.exposed_headers.join(", "),
            );
        }
        Self(headers)
    }

    /// Say it.
    pub(super) fn say(self, headers: &mut HeaderMap) {
        for word in WORDS {
            headers.remove(word);
        }
        for (name, value) in &self.0 {
            // The script may have said on what else the answer depends.
            headers.append(name, value.clone());
        }
    }
}

/// Let the page in that asks, if the policy does. Says whether it does.
fn let_in(policy: &Policy, asked: &HeaderMap, headers: &mut HeaderMap) -> bool {
    let Some(origin) = asked.get(header::ORIGIN) else {
        return false;
    };
    let credentials = match policy.credentials {
        true => Credentials::Shown,
        false => Credentials::Hidden,
    };
    let is_let_in = lets_in(&policy.origins, origin.to_str().unwrap_or_default()).is_some();
    if is_let_in {
        allow(headers, origin, credentials);
    }
    is_let_in
}
