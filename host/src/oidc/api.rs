//! The HTTP API of signing in at a provider. Browsers come here by links and redirects, so what
//! goes wrong is told as a page where one is asked for.

use std::num::NonZeroU16;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::{Extension, Json};
use chrono::Utc;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::attempt::{self, Attempt, Goal, local};
use super::handover::{self, Challenge, Program};
use super::provider::Provider;
use super::{OidcError, Settings};
use crate::audit::Actor;
use crate::http::cookie::Browser;
use crate::http::endpoints::{Address, Api, Rule, Told};
use crate::http::extract::{Body, Guess, Query, checked_name};
use crate::http::openapi::describe::{Operation, Output};
use crate::http::problem::{Problem, ProblemType};
use crate::identity::User;
use crate::identity::api::{Begun, origin};
use crate::identity::guesses::Counted;
use crate::identity::sessions::{Origin, Proof};
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
        .noted()
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
        .post("/auth/oidc/session", Rule::Public, redeem)
        .called(
            "redeemOidcCode",
            "Begin a session with the code that a browser handed over",
        )
        .may_fail(&[
            ProblemType::NotFound,
            ProblemType::DeadCode,
            ProblemType::OidcNotAllowed,
            ProblemType::TooManyAttempts,
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

/// The same, or a page with a code.
struct Ended(Response);

impl IntoResponse for Ended {
    fn into_response(self) -> Response {
        self.0
    }
}

impl Output for Ended {
    fn describe(operation: &mut Operation<'_>) {
        SentOn::describe(operation);
        operation.answers(StatusCode::OK, "text/html", json!({ "type": "string" }));
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Begin {
    /// The page of the dashboard to come to in the end.
    return_to: Option<String>,
    /// For a program: the SHA-256 of its verifier in base64url. It gets a code for
    /// `POST /auth/oidc/session`, and the browser no session.
    code_challenge: Option<Challenge>,
    /// The port on the browser's machine that the program listens on; left out, the code is shown.
    port: Option<NonZeroU16>,
}

impl Begin {
    fn goal(self) -> Result<Goal, Problem> {
        match (self.code_challenge, self.port) {
            (None, None) => {
                let page = local(self.return_to);
                page.map(Goal::Page).map_err(|rule| {
                    Problem::invalid_field("return_to", format!("return_to {rule}"))
                })
            }
            (None, Some(_)) => {
                let detail = "a program that listens on a port sends its code_challenge, too";
                Err(Problem::invalid_field("code_challenge", detail))
            }
            (Some(_), _) if self.return_to.is_some() => {
                let detail = "a program gets a code, and the browser comes to no page";
                Err(Problem::invalid_field("return_to", detail))
            }
            (Some(code_challenge), port) => Ok(Goal::Program(Program {
                code_challenge,
                port,
            })),
        }
    }
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
    Extension(counted): Extension<Counted>,
    browser: Browser,
    headers: HeaderMap,
    Query(query): Query<Begin>,
) -> SentOn {
    let begun = async {
        node.guesses.count(&address, &counted)?;
        let provider = provider(&node)?;
        let goal = query.goal()?;
        let cookie = browser.cookie()?.of_attempt();
        let attempt = Attempt::begin(goal)?;
        let page = provider.page(&attempt, redirect_url(&browser)).await?;
        let kept = cookie.set(&attempt.cookie(), Utc::now() + attempt::LASTS)?;
        sent_to(&page, [kept])
    };
    SentOn(match begun.await {
        Ok(response) => response,
        Err(problem) => told(problem, None, &headers),
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
    Extension(counted): Extension<Counted>,
    browser: Browser,
    headers: HeaderMap,
    Query(query): Query<Finish>,
) -> Ended {
    let resumed = || {
        node.guesses.count(&address.0, &counted)?;
        provider(&node)?;
        let kept = browser.cookie()?.of_attempt().value(&headers)?;
        let state = query.state.as_deref().unwrap_or_default();
        Ok::<_, Problem>(Attempt::resume(kept, state)?)
    };
    let mut response = match resumed() {
        Ok(attempt) => {
            let finished = async {
                let user = vouched_for(&node, &browser, query, &attempt).await?;
                match attempt.goal() {
                    Goal::Page(page) => {
                        let from = origin(address, &headers);
                        come_to(&node, &browser, user, from, page).await
                    }
                    Goal::Program(program) => hand_over(&node, user, program).await,
                }
            };
            let finished = finished.await;
            finished.unwrap_or_else(|problem| told(problem, attempt.program(), &headers))
        }
        Err(problem) => told(problem, None, &headers),
    };
    // An attempt is good for one answer.
    let clear = browser
        .cookie()
        .and_then(|cookie| cookie.of_attempt().clear());
    if let Ok(clear) = clear {
        response.headers_mut().append(header::SET_COOKIE, clear);
    }
    Ended(response)
}

/// The user that the provider's answer is about.
async fn vouched_for(
    node: &Node,
    browser: &Browser,
    query: Finish,
    attempt: &Attempt,
) -> Result<User, Problem> {
    let provider = provider(node)?;
    let code = code_of(query, &provider.settings)?;
    let person = provider
        .redeem(code, attempt, redirect_url(browser))
        .await?;
    checked_name("preferred_username", &person.name)?;
    let user = provider.settings.user(&node.sessions, person).await?;
    node.refresh_directory().await;
    Ok(user)
}

/// For the audit log, which cannot know who somebody is before they have signed in.
fn actor(user: &User) -> Actor {
    Actor {
        user_id: user.id,
        api_key_id: None,
        name: user.name.clone(),
    }
}

/// Sign the browser in, and send it to a page.
async fn come_to(
    node: &Node,
    browser: &Browser,
    user: User,
    from: Origin,
    page: &str,
) -> Result<Response, Problem> {
    let actor = actor(&user);
    let session = node.sessions.begin(user, Proof::Otherwise, from).await?;
    let cookie = browser.cookie()?.set(&session.token, session.expires_at)?;
    let mut response = sent_to(page, [cookie])?;
    response.extensions_mut().insert(actor);
    Ok(response)
}

/// Hand a code over to a program; the browser is not signed in.
async fn hand_over(node: &Node, user: User, program: &Program) -> Result<Response, Problem> {
    let code = handover::new_code(&node.sessions, user.id, program).await?;
    let mut response = match program.given(&code) {
        Some(address) => sent_to(&address, [])?,
        None => {
            let name = escaped(&user.name);
            let page = page(
                "Go on in the terminal",
                &format!(
                    "<p>Copy this code to where you ran <code>picloud login</code>. It is good once, for 5 minutes:</p>\
                     <p><code>{code}</code></p>\
                     <p>Whoever sent you here and asks for it wants to act as <b>{name}</b>: do not tell it to anybody.</p>"
                ),
            );
            (StatusCode::OK, page).into_response()
        }
    };
    response.extensions_mut().insert(actor(&user));
    Ok(response)
}

/// A program with the code that a browser handed over to it.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Redeem {
    code: String,
    /// What the `code_challenge` was made of.
    code_verifier: String,
}

async fn redeem(
    State(node): State<Arc<Node>>,
    Guess(address, _): Guess,
    headers: HeaderMap,
    Body(given): Body<Redeem>,
) -> Result<Begun<200>, Problem> {
    provider(&node)?;
    let user = handover::redeem(&node.sessions, &given.code, &given.code_verifier).await?;
    let from = origin(address, &headers);
    let session = node.sessions.begin(user, Proof::Otherwise, from).await?;
    let cookie = None;
    Ok(Begun { session, cookie })
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

/// A problem: told to the program that waits, or as a page where the browser shows it to somebody.
fn told(problem: Problem, program: Option<&Program>, headers: &HeaderMap) -> Response {
    let to = program.and_then(|program| program.refused(problem.of().name(), problem.detail()));
    if let Some(Ok(mut response)) = to.map(|to| sent_to(&to, [])) {
        response
            .extensions_mut()
            .insert(Told(problem.of().status()));
        return response;
    }
    let accept = headers.get(header::ACCEPT);
    let is_for_people = accept
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/html"));
    if !is_for_people {
        return problem.into_response();
    }
    let body = format!(
        "<p>{}</p><p><a href=\"/admin\">Back</a></p>",
        escaped(problem.detail())
    );
    let page = page(&escaped(problem.title()), &body);
    let mut response = problem.into_response();
    let (mut parts, body) = page.into_response().into_parts();
    parts.status = response.status();
    response.headers_mut().remove(header::CONTENT_TYPE);
    response.headers_mut().remove(header::CONTENT_LENGTH);
    parts.headers.extend(std::mem::take(response.headers_mut()));
    Response::from_parts(parts, body)
}

/// A page that does nothing but say something.
fn page(title: &str, body: &str) -> impl IntoResponse + use<> {
    let headers = [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'"),
    ];
    let page = Html(format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
         <h1>{title}</h1>{body}</html>"
    ));
    (headers, page)
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
