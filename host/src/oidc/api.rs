//! The HTTP API of signing in at a provider. Browsers come here by links and redirects, so what
//! goes wrong is told as a page where one is asked for.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::{Extension, Json};
use chrono::Utc;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::attempt::{self, Attempt, local};
use super::provider::Provider;
use super::{OidcError, Settings};
use crate::audit::Actor;
use crate::http::cookie::Browser;
use crate::http::endpoints::{Address, Api, Rule};
use crate::http::extract::{Query, checked_name};
use crate::http::openapi::describe::{Operation, Output};
use crate::http::problem::{Problem, ProblemType};
use crate::identity::api::origin;
use crate::node::Node;

/// Where a provider sends browsers back to, below the root of the API.
pub const CALLBACK: &str = "/auth/oidc/callback";

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get("/auth/oidc", Rule::Public, show)
        .called("getOidc", "Whether one can sign in at an OpenID provider")
        .get("/auth/oidc/login", Rule::Public, begin)
        .called("beginOidcLogIn", "Send a browser to the provider")
        .may_fail(&[
            ProblemType::NotFound,
            ProblemType::Csrf,
            ProblemType::TooManyAttempts,
            ProblemType::OidcUntrusted,
            ProblemType::OidcUnreachable,
        ])
        .get(CALLBACK, Rule::Public, finish)
        .called("endOidcLogIn", "Where the provider sends a browser back to")
        .may_fail(&[
            ProblemType::OidcNotBegun,
            ProblemType::Unauthorized,
            ProblemType::Csrf,
            ProblemType::OidcRefused,
            ProblemType::OidcNotAllowed,
            ProblemType::NotFound,
            ProblemType::NameTaken,
            ProblemType::TooManyAttempts,
            ProblemType::OidcUntrusted,
            ProblemType::OidcUnreachable,
        ])
}

/// What a page for signing in needs to know.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OidcShown")]
struct Shown {
    /// Whether one can sign in at a provider.
    enabled: bool,
    /// What people call the provider: "Sign in with …".
    name: Option<String>,
}

async fn show(State(node): State<Arc<Node>>) -> Json<Shown> {
    let name = node
        .oidc
        .as_ref()
        .map(|provider| provider.settings.name.clone());
    let enabled = name.is_some();
    Json(Shown { enabled, name })
}

/// 303 to where a browser goes next, or a problem.
struct SentOn(Response);

impl IntoResponse for SentOn {
    fn into_response(self) -> Response {
        self.0
    }
}

impl Output for SentOn {
    fn describe(operation: &mut Operation<'_>) {
        operation.answer(StatusCode::SEE_OTHER);
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Begin {
    /// The page of the dashboard to come to in the end.
    return_to: Option<String>,
}

/// Where the provider sends this browser back to.
fn redirect_url(browser: &Browser) -> String {
    format!("{}{}{CALLBACK}", browser.origin(), crate::http::API_ROOT)
}

fn provider(node: &Node) -> Result<&Provider, OidcError> {
    node.oidc.as_ref().ok_or(OidcError::Off)
}

async fn begin(
    State(node): State<Arc<Node>>,
    Extension(Address(address)): Extension<Address>,
    browser: Browser,
    headers: HeaderMap,
    Query(query): Query<Begin>,
) -> SentOn {
    let begun = async {
        node.guesses.count(&address, None)?;
        let provider = provider(&node)?;
        let return_to = local(query.return_to)
            .map_err(|rule| Problem::invalid_field("return_to", format!("return_to {rule}")))?;
        let cookie = browser.cookie()?.of_attempt();
        let attempt = Attempt::begin(return_to)?;
        let page = provider.page(&attempt, redirect_url(&browser)).await?;
        let kept = cookie.set(&attempt.cookie(), Utc::now() + attempt::LASTS)?;
        sent_to(&page, [kept])
    };
    SentOn(match begun.await {
        Ok(response) => response,
        Err(problem) => told(problem, &headers),
    })
}

/// What a provider says in the address that it sends a browser to.
#[derive(Deserialize, JsonSchema)]
struct Finish {
    code: Option<String>,
    state: Option<String>,
    iss: Option<String>,
    error: Option<String>,
}

async fn finish(
    State(node): State<Arc<Node>>,
    Extension(address): Extension<Address>,
    browser: Browser,
    headers: HeaderMap,
    Query(query): Query<Finish>,
) -> SentOn {
    let finished = async {
        node.guesses.count(&address.0, None)?;
        let provider = provider(&node)?;
        let cookie = browser.cookie()?;
        let kept = cookie.of_attempt().value(&headers)?;
        let attempt = Attempt::resume(kept, query.state.as_deref().unwrap_or_default())?;
        let code = code_of(query, &provider.settings)?;
        let person = provider
            .redeem(code, &attempt, redirect_url(&browser))
            .await?;
        checked_name("preferred_username", &person.name)?;
        let user = provider.settings.user(&node.sessions, person).await?;
        node.refresh_directory().await;
        let actor = Actor {
            user_id: user.id,
            api_key_id: None,
            name: user.name.clone(),
        };
        let session = node
            .sessions
            .begin(user, None, origin(address, &headers))
            .await?;
        let cookies = [
            cookie.set(&session.token, session.expires_at)?,
            cookie.of_attempt().clear()?,
        ];
        let mut response = sent_to(attempt.return_to(), cookies)?;
        response.extensions_mut().insert(actor);
        Ok::<_, Problem>(response)
    };
    SentOn(match finished.await {
        Ok(response) => response,
        Err(problem) => {
            let mut response = told(problem, &headers);
            // An attempt is good for one answer.
            let clear = browser
                .cookie()
                .and_then(|cookie| cookie.of_attempt().clear());
            if let Ok(clear) = clear {
                response.headers_mut().append(header::SET_COOKIE, clear);
            }
            response
        }
    })
}

/// The code that the provider sent, if it is that provider and it sent one.
fn code_of(query: Finish, settings: &Settings) -> Result<String, OidcError> {
    if query.iss.is_some_and(|issuer| issuer != settings.issuer) {
        return Err(OidcError::Untrusted("another provider answered".to_owned()));
    }
    if let Some(word) = query.error {
        let is_word = word.len() <= 64 && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        let word = if is_word { word } else { "an error".to_owned() };
        return Err(OidcError::Refused(word));
    }
    query
        .code
        .ok_or_else(|| OidcError::Untrusted("there is no code".to_owned()))
}

/// Send a browser on.
fn sent_to<const N: usize>(to: &str, cookies: [HeaderValue; N]) -> Result<Response, Problem> {
    let to: HeaderValue = to.parse().map_err(Problem::internal)?;
    let mut response = StatusCode::SEE_OTHER.into_response();
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, to);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for cookie in cookies {
        headers.append(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

/// A problem, as a page where the browser shows it to somebody.
fn told(problem: Problem, headers: &HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT);
    let is_for_people = accept
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/html"));
    if !is_for_people {
        return problem.into_response();
    }
    let (title, detail) = (escaped(problem.title()), escaped(problem.detail()));
    let page = Html(format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\
         <h1>{title}</h1><p>{detail}</p><p><a href=\"/admin\">Back</a></p></html>"
    ));
    let mut response = problem.into_response();
    let (mut parts, body) = page.into_response().into_parts();
    parts.status = response.status();
    response.headers_mut().remove(header::CONTENT_TYPE);
    response.headers_mut().remove(header::CONTENT_LENGTH);
    parts.headers.extend(std::mem::take(response.headers_mut()));
    parts.headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'"),
    );
    Response::from_parts(parts, body)
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}
