//! The HTTP API of signing in, and of one's own sessions and keys.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::capability::{AppRole, Role, Scope};
use super::keys::NewKey;
use super::sessions::{NewSession, Origin};
use super::{
    ApiKey, ApiKeyId, Caller, IdentityError, KeyGrant, Session, SessionId, User, UserId, Via,
};
use crate::apps::{AppId, NAME_BYTES_MAX};
use crate::audit::Actor;
use crate::http::answer::{Created, NoContent, Page, With};
use crate::http::cookie::{Browser, Cookie};
use crate::http::endpoints::{Address, Api, Rule, may_see};
use crate::http::etag::Tagged;
use crate::http::extract::{
    Body, Guess, NAME, PageQuery, Path, Query, SignedIn, checked_name, page_cursor,
};
use crate::http::openapi::describe::{Operation, Output};
use crate::http::problem::{Problem, ProblemType};
use crate::node::Node;
use crate::store::Expected;

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get("/setup", Rule::Public, setup)
        .called("getSetup", "Whether the instance has an owner")
        .post("/setup", Rule::Public, set_up)
        .called(
            "setUp",
            "Make the first owner with the token that the server printed",
        )
        .may_fail(&[ProblemType::AlreadySetUp, ProblemType::TooManyAttempts])
        .post("/auth/login", Rule::Public, log_in)
        .called("logIn", "Sign in with a name and a password")
        .may_fail(&[ProblemType::WrongPassword, ProblemType::TooManyAttempts])
        .post("/auth/logout", Rule::Session, log_out)
        .called("logOut", "End the session that this is called with")
        .get("/auth/csrf", Rule::Session, csrf)
        .called(
            "getCsrfToken",
            "What a page sends in X-CSRF-Token, where a cookie signs in",
        )
        .may_fail(&[ProblemType::MalformedRequest])
        .get("/auth/me", Rule::SignedIn, me)
        .called("getMe", "Who calls, and what they may")
        .post("/auth/password", Rule::Session, change_password)
        .called(
            "changePassword",
            "Change your password; your other sessions end",
        )
        .may_fail(&[ProblemType::TooManyAttempts])
        .post("/auth/join", Rule::Public, join)
        .called("join", "Join with an invitation, and be signed in")
        .may_fail(&[
            ProblemType::DeadLink,
            ProblemType::NameTaken,
            ProblemType::TooManyAttempts,
        ])
        .post("/auth/reset", Rule::Public, reset)
        .called("resetPassword", "Set a new password with a reset link")
        .may_fail(&[ProblemType::DeadLink, ProblemType::TooManyAttempts])
        .get("/auth/sessions", Rule::Session, sessions)
        .called("listSessions", "List your sessions")
        .delete("/auth/sessions/{id}", Rule::Session, end_session)
        .called("endSession", "End one of your sessions")
        .get("/auth/keys", Rule::Session, keys)
        .called("listKeys", "List your API keys")
        .post("/auth/keys", Rule::Session, create_key)
        .called("createKey", "Make an API key; its token is shown this once")
        .may_fail(&[ProblemType::NameTaken, ProblemType::TooMany])
        .get("/auth/keys/{id}", Rule::Session, show_key)
        .called("getKey", "Show one of your API keys, without its token")
        .post("/auth/keys/{id}/rotate", Rule::Session, rotate_key)
        .called(
            "rotateKey",
            "Give an API key a new token; the old one is dead",
        )
        .delete("/auth/keys/{id}", Rule::Session, revoke_key)
        .called("revokeKey", "Revoke an API key")
}

/// What there is to do before anybody can sign in.
#[derive(Serialize, JsonSchema)]
struct Setup {
    has_owner: bool,
}

async fn setup(State(node): State<Arc<Node>>) -> Result<Json<Setup>, Problem> {
    let has_owner = node.sessions.is_set_up().await?;
    Ok(Json(Setup { has_owner }))
}

async fn set_up(
    State(node): State<Arc<Node>>,
    Guess(address, _): Guess,
    browser: Browser,
    headers: HeaderMap,
    Body(first): Body<Join>,
) -> Result<Begun<201>, Problem> {
    let cookie = browser.cookie_if(first.cookie)?;
    checked_name("name", &first.name)?;
    let from = origin(address, &headers);
    let owner = node
        .sessions
        .set_up(&first.token, first.name, first.password, from)
        .await?;
    node.refresh_directory().await;
    Ok(Begun {
        session: owner,
        cookie,
    })
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Login {
    name: String,
    password: String,
    /// For browsers: whether the token is kept in a cookie and not told.
    #[serde(default)]
    cookie: bool,
}

/// Where a session begins.
pub(crate) fn origin(Address(address): Address, headers: &HeaderMap) -> Origin {
    let user_agent = headers.get(header::USER_AGENT);
    let user_agent = user_agent.and_then(|value| value.to_str().ok());
    Origin {
        address: Some(address),
        user_agent: user_agent.map(|text| text.chars().take(200).collect()),
    }
}

/// A session that began.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "NewSession")]
struct NewSessionView {
    /// For the header `Authorization`; none where a cookie has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// For the header `X-CSRF-Token`, where a cookie has the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    csrf_token: Option<String>,
    expires_at: DateTime<Utc>,
    user: User,
}

/// What tells whoever began a session, and the audit log.
pub(crate) struct Begun<const STATUS: u16> {
    /// The session.
    pub(crate) session: NewSession,
    /// Where its token is kept, if not told.
    pub(crate) cookie: Option<Cookie>,
}

impl<const STATUS: u16> Begun<STATUS> {
    const STATUS: StatusCode = match StatusCode::from_u16(STATUS) {
        Ok(status) => status,
        Err(_) => panic!("no status"),
    };

    fn response(self) -> Result<Response, Problem> {
        let Self { session, cookie } = self;
        let NewSession {
            token,
            expires_at,
            user,
        } = session;
        let actor = Actor {
            user_id: user.id,
            api_key_id: None,
            name: user.name.clone(),
        };
        let set = cookie.map(|cookie| cookie.set(&token, expires_at));
        let set = set.transpose()?;
        let csrf_token = set.as_ref().map(|_| super::token::csrf(&token));
        let view = NewSessionView {
            token: Some(token).filter(|_| set.is_none()),
            csrf_token: csrf_token.transpose()?,
            expires_at,
            user,
        };
        let mut response = (Self::STATUS, Json(view)).into_response();
        response.extensions_mut().insert(actor);
        if let Some(set) = set {
            response.headers_mut().insert(header::SET_COOKIE, set);
        }
        Ok(response)
    }
}

impl<const STATUS: u16> IntoResponse for Begun<STATUS> {
    fn into_response(self) -> Response {
        self.response().into_response()
    }
}

impl<const STATUS: u16> Output for Begun<STATUS> {
    fn describe(operation: &mut Operation<'_>) {
        operation.answers_json::<NewSessionView>(Self::STATUS);
    }
}

async fn log_in(
    State(node): State<Arc<Node>>,
    Guess(address, counted): Guess,
    browser: Browser,
    headers: HeaderMap,
    Body(login): Body<Login>,
) -> Result<Begun<200>, Problem> {
    let cookie = browser.cookie_if(login.cookie)?;
    let known = async || node.sessions.is_known_at(&login.name, &address.0).await;
    node.guesses
        .count_at(&address.0, &login.name, &counted, known)
        .await?;
    let from = origin(address, &headers);
    let session = node.sessions.log_in(&login.name, login.password, from);
    let session = session.await?;
    Ok(Begun { session, cookie })
}

#[derive(Serialize, JsonSchema)]
struct CsrfToken {
    csrf_token: String,
}

/// For a page that was loaded anew.
async fn csrf(browser: Browser) -> Result<With<Json<CsrfToken>>, Problem> {
    let csrf_token = browser.csrf()?;
    let answer = Json(CsrfToken { csrf_token });
    let no_store = HeaderValue::from_static("no-store");
    Ok(With {
        answer,
        header: Some((header::CACHE_CONTROL, no_store)),
    })
}

/// The session of a caller; [`Rule::Session`] let nobody else through.
fn session_of(who: &Caller) -> Result<SessionId, Problem> {
    match who.via {
        Via::Session(id) => Ok(id),
        Via::ApiKey(_) | Via::Trigger => Err(Problem::forbidden("this takes a sign-in")),
    }
}

async fn log_out(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    browser: Browser,
) -> Result<With<NoContent>, Problem> {
    match node.sessions.end(who.user.id, session_of(&who)?).await {
        // It ended meanwhile.
        Ok(()) | Err(IdentityError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let clear = browser.clear()?;
    Ok(With {
        answer: NoContent,
        header: clear.map(|clear| (header::SET_COOKIE, clear)),
    })
}

/// Who calls, and what they may.
#[derive(Serialize, JsonSchema)]
struct Me {
    id: UserId,
    name: String,
    role: Role,
    /// The role in each app, by its id.
    apps: BTreeMap<AppId, AppRole>,
    /// The key that they came with, if they came with one.
    api_key: Option<KeyGrant>,
}

async fn me(State(node): State<Arc<Node>>, SignedIn(who): SignedIn) -> Json<Me> {
    let apps = node.directory.picture().roles_of(who.user.id).collect();
    let api_key = who.api_key().cloned();
    let User { id, name, role, .. } = who.user;
    Json(Me {
        id,
        name,
        role,
        apps,
        api_key,
    })
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NewPassword {
    current: String,
    password: String,
}

async fn change_password(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Guess(address, counted): Guess,
    Body(change): Body<NewPassword>,
) -> Result<NoContent, Problem> {
    let name = &who.user.name;
    let known = async || node.sessions.is_known_at(name, &address.0).await;
    let guesses = &node.guesses;
    guesses.count_at(&address.0, name, &counted, known).await?;
    let NewPassword { current, password } = change;
    let changed = node.sessions.change_password(&who, current, password).await;
    match changed {
        Ok(()) => Ok(NoContent),
        // They are signed in: 401 would tell their client to sign in again.
        Err(IdentityError::WrongPassword) => {
            let detail = "this is not the current password";
            Err(Problem::invalid_field("current", detail))
        }
        Err(error) => Err(error.into()),
    }
}

/// Somebody new.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Join {
    /// Of the invitation, or what the server printed for the first owner.
    token: String,
    #[schemars(extend("maxLength" = NAME_BYTES_MAX, "pattern" = NAME))]
    name: String,
    password: String,
    /// As for a sign-in.
    #[serde(default)]
    cookie: bool,
}

async fn join(
    State(node): State<Arc<Node>>,
    Guess(address, _): Guess,
    browser: Browser,
    headers: HeaderMap,
    Body(join): Body<Join>,
) -> Result<Begun<201>, Problem> {
    let cookie = browser.cookie_if(join.cookie)?;
    checked_name("name", &join.name)?;
    let from = origin(address, &headers);
    let joined = node
        .sessions
        .join(&join.token, join.name, join.password, from)
        .await?;
    node.refresh_directory().await;
    Ok(Begun {
        session: joined,
        cookie,
    })
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Reset {
    token: String,
    password: String,
}

async fn reset(
    State(node): State<Arc<Node>>,
    Guess(..): Guess,
    Body(reset): Body<Reset>,
) -> Result<NoContent, Problem> {
    let Reset { token, password } = reset;
    node.sessions.reset_password(&token, password).await?;
    Ok(NoContent)
}

/// One of your sessions.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Session")]
struct SessionView {
    #[serde(flatten)]
    session: Session,
    /// Whether it is the one that this is called with.
    current: bool,
}

async fn sessions(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<SessionView>>, Problem> {
    let id = session_of(&who)?;
    let before = page_cursor(query.cursor.as_deref())?;
    let limit = query.limit;
    let sessions = node.sessions.of(who.user.id, before, limit.and_one());
    let views = sessions.await?.into_iter().map(|session| SessionView {
        current: session.id == id,
        session,
    });
    Ok(Page::of(
        views.collect(),
        limit.get(),
        |view: &SessionView| view.session.id.to_string(),
    ))
}

async fn end_session(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(session): Path<SessionId>,
) -> Result<NoContent, Problem> {
    node.sessions.end(who.user.id, session).await?;
    Ok(NoContent)
}

async fn keys(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<ApiKey>>, Problem> {
    let after = page_cursor(query.cursor.as_deref())?;
    let keys = node
        .sessions
        .keys(who.user.id, after, query.limit.and_one())
        .await?;
    Ok(Page::of(keys, query.limit.get(), |key| key.id.to_string()))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct KeyFields {
    #[schemars(extend("maxLength" = NAME_BYTES_MAX, "pattern" = NAME))]
    name: String,
    #[schemars(length(min = 1))]
    scopes: Vec<Scope>,
    /// Ids or slugs.
    #[serde(default)]
    #[schemars(length(min = 1))]
    apps: Option<Vec<String>>,
    #[serde(default)]
    expires_at: Option<DateTime<Utc>>,
}

async fn create_key(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Body(fields): Body<KeyFields>,
) -> Result<Created<WithToken<ApiKey>>, Problem> {
    checked_name("name", &fields.name)?;
    let mut scopes = fields.scopes;
    scopes.sort();
    scopes.dedup();
    if scopes.is_empty() {
        let detail = "a key without a scope can do nothing; give at least one";
        return Err(Problem::invalid_field("scopes", detail));
    }
    if fields.expires_at.is_some_and(|at| at <= Utc::now()) {
        let detail = "a key that has ended is none; leave it out, or give an instant to come";
        return Err(Problem::invalid_field("expires_at", detail));
    }
    if fields.apps.as_ref().is_some_and(Vec::is_empty) {
        let detail = "a key for no app can do nothing; leave it out if every app is meant";
        return Err(Problem::invalid_field("apps", detail));
    }
    let picture = node.directory.picture();
    let mut apps = None;
    for named in fields.apps.into_iter().flatten() {
        let app = picture.app_named(&named);
        let app = app.filter(|app| may_see(&node, &who, app.id));
        let app = app
            .ok_or_else(|| Problem::invalid_field("apps", format!("there is no app `{named}`")))?;
        apps.get_or_insert_with(Vec::new).push(app.id);
    }
    let new = NewKey {
        name: fields.name,
        scopes,
        apps,
        expires_at: fields.expires_at,
    };
    let (key, token) = node.sessions.create_key(who.user.id, new).await?;
    Ok(Created(WithToken { of: key, token }))
}

/// Something with its token, which is shown this once.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "{T}WithToken")]
pub(super) struct WithToken<T> {
    #[serde(flatten)]
    pub(super) of: T,
    pub(super) token: String,
}

async fn show_key(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(key): Path<ApiKeyId>,
) -> Result<Tagged<Json<ApiKey>>, Problem> {
    let key = node.sessions.key(who.user.id, key).await?;
    Ok(Tagged {
        etag: key.etag(),
        answer: Json(key),
    })
}

async fn rotate_key(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(key): Path<ApiKeyId>,
    expected: Expected,
) -> Result<Tagged<Json<WithToken<ApiKey>>>, Problem> {
    let rotated = node.sessions.rotate_key(who.user.id, key, expected);
    let (key, token) = rotated.await?;
    Ok(Tagged {
        etag: key.etag(),
        answer: Json(WithToken { of: key, token }),
    })
}

async fn revoke_key(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(key): Path<ApiKeyId>,
    expected: Expected,
) -> Result<NoContent, Problem> {
    let revoked = node.sessions.revoke_key(who.user.id, key, expected);
    revoked.await?;
    Ok(NoContent)
}
