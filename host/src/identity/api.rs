//! The HTTP API of users, their sessions and keys, and of an app's members.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::capability::{AppRole, Capability, Role, Scope};
use super::keys::NewKey;
use super::links::Link;
use super::sessions::{NewSession, Origin};
use super::users::Change;
use super::{Caller, IdentityError, User, UserId, Via};
use crate::apps::AppId;
use crate::audit::Actor;
use crate::http::cookie::{Browser, Cookie};
use crate::http::endpoints::{Address, Api, Of, Rule, may_see};
use crate::http::extract::{
    Body, PageQuery, Path, Query, SignedIn, app_named, checked_name, page, page_cursor, page_limit,
};
use crate::http::problem::Problem;
use crate::node::Node;

/// The endpoints of this room.
pub fn endpoints() -> Api {
    let users = Rule::Instance(Capability::ManageInstance);
    let members = Rule::App(Capability::ManageApp, Of::App);
    Api::default()
        .get("/setup", Rule::Public, setup)
        .post("/setup", Rule::Public, set_up)
        .post("/auth/login", Rule::Public, log_in)
        .post("/auth/logout", Rule::Session, log_out)
        .get("/auth/csrf", Rule::Session, csrf)
        .get("/auth/me", Rule::SignedIn, me)
        .post("/auth/password", Rule::Session, change_password)
        .post("/auth/join", Rule::Public, join)
        .post("/auth/reset", Rule::Public, reset)
        .get("/auth/sessions", Rule::Session, sessions)
        .delete("/auth/sessions/{id}", Rule::Session, end_session)
        .get("/auth/keys", Rule::Session, keys)
        .post("/auth/keys", Rule::Session, create_key)
        .post("/auth/keys/{id}/rotate", Rule::Session, rotate_key)
        .delete("/auth/keys/{id}", Rule::Session, revoke_key)
        .get("/users", users, list)
        .get("/users/{id}", users, show)
        .patch("/users/{id}", users, change)
        .delete("/users/{id}", users, remove)
        .post("/users/{id}/reset-link", users, reset_link)
        .get("/invitations", users, invitations)
        .post("/invitations", users, invite)
        .delete("/invitations/{id}", users, revoke_invitation)
        .get("/apps/{app}/members", members, list_members)
        .put("/apps/{app}/members/{user}", members, set_member)
        .delete("/apps/{app}/members/{user}", members, remove_member)
}

/// What there is to do before anybody can sign in.
#[derive(Serialize)]
struct Setup {
    has_owner: bool,
}

async fn setup(State(node): State<Arc<Node>>) -> Result<Json<Setup>, Problem> {
    let has_owner = node.sessions.is_set_up().await?;
    Ok(Json(Setup { has_owner }))
}

async fn set_up(
    State(node): State<Arc<Node>>,
    Extension(address): Extension<Address>,
    browser: Browser,
    headers: HeaderMap,
    Body(first): Body<Join>,
) -> Result<(StatusCode, Response), Problem> {
    let cookie = browser.cookie_if(first.cookie)?;
    node.guesses.count(&address.0, None)?;
    checked_name("name", &first.name)?;
    let from = origin(address, &headers);
    let owner = node
        .sessions
        .set_up(&first.token, first.name, first.password, from)
        .await?;
    node.refresh_directory().await;
    Ok((StatusCode::CREATED, begun(owner, cookie)?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    name: String,
    password: String,
    /// For browsers: whether the token is kept in a cookie and not told.
    #[serde(default)]
    cookie: bool,
}

/// Where a session begins.
fn origin(Address(address): Address, headers: &HeaderMap) -> Origin {
    let user_agent = headers.get(header::USER_AGENT);
    let user_agent = user_agent.and_then(|value| value.to_str().ok());
    Origin {
        address: Some(address),
        user_agent: user_agent.map(|text| text.chars().take(200).collect()),
    }
}

/// A session that began.
#[derive(Serialize)]
struct Begun {
    /// For the header `Authorization`; none where a cookie has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// For the header `X-CSRF-Token`, where a cookie has the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    csrf_token: Option<String>,
    expires_at: DateTime<Utc>,
    user: User,
}

/// Tell whoever began a session, and the audit log.
fn begun(session: NewSession, cookie: Option<Cookie>) -> Result<Response, Problem> {
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
    let begun = Begun {
        token: Some(token).filter(|_| set.is_none()),
        csrf_token: csrf_token.transpose()?,
        expires_at,
        user,
    };
    let mut response = Json(begun).into_response();
    response.extensions_mut().insert(actor);
    if let Some(set) = set {
        response.headers_mut().insert(header::SET_COOKIE, set);
    }
    Ok(response)
}

async fn log_in(
    State(node): State<Arc<Node>>,
    Extension(address): Extension<Address>,
    browser: Browser,
    headers: HeaderMap,
    Body(login): Body<Login>,
) -> Result<Response, Problem> {
    let cookie = browser.cookie_if(login.cookie)?;
    node.guesses.count(&address.0, Some(&login.name))?;
    let from = origin(address, &headers);
    let session = node.sessions.log_in(&login.name, login.password, from);
    begun(session.await?, cookie)
}

#[derive(Serialize)]
struct CsrfToken {
    csrf_token: String,
}

/// For a page that was loaded anew.
async fn csrf(browser: Browser) -> Result<impl IntoResponse, Problem> {
    let csrf_token = browser.csrf()?;
    let headers = [(header::CACHE_CONTROL, "no-store")];
    Ok((headers, Json(CsrfToken { csrf_token })))
}

/// The session of a caller; [`Rule::Session`] let nobody else through.
fn session_of(who: &Caller) -> Result<super::SessionId, Problem> {
    match who.via {
        Via::Session(id) => Ok(id),
        Via::ApiKey(_) | Via::Trigger => Err(Problem::forbidden("this takes a sign-in")),
    }
}

async fn log_out(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    browser: Browser,
) -> Result<Response, Problem> {
    node.sessions.end(who.user.id, session_of(&who)?).await?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    if let Some(clear) = browser.clear()? {
        response.headers_mut().insert(header::SET_COOKIE, clear);
    }
    Ok(response)
}

/// Who calls, and what they may: their roles, and the scopes of the key that they came with.
async fn me(State(node): State<Arc<Node>>, SignedIn(who): SignedIn) -> Json<Value> {
    let picture = node.directory.picture();
    let apps: BTreeMap<AppId, AppRole> = picture.roles_of(who.user.id).collect();
    let key = who.api_key().map(
        |key| json!({ "id": key.id, "name": key.name, "scopes": key.scopes, "apps": key.apps }),
    );
    let User { id, name, role, .. } = &who.user;
    Json(json!({ "id": id, "name": name, "role": role, "apps": apps, "api_key": key }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewPassword {
    current: String,
    password: String,
}

async fn change_password(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Extension(address): Extension<Address>,
    Body(change): Body<NewPassword>,
) -> Result<StatusCode, Problem> {
    node.guesses.count(&address.0, Some(&who.user.name))?;
    let NewPassword { current, password } = change;
    let changed = node.sessions.change_password(&who, current, password).await;
    match changed {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        // They are signed in: 401 would tell their client to sign in again.
        Err(IdentityError::WrongPassword) => {
            let detail = "this is not the current password";
            Err(Problem::invalid_field("current", detail))
        }
        Err(error) => Err(error.into()),
    }
}

/// Somebody new.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Join {
    /// Of the invitation, or what the server printed for the first owner.
    token: String,
    name: String,
    password: String,
    /// As for a sign-in.
    #[serde(default)]
    cookie: bool,
}

async fn join(
    State(node): State<Arc<Node>>,
    Extension(address): Extension<Address>,
    browser: Browser,
    headers: HeaderMap,
    Body(join): Body<Join>,
) -> Result<(StatusCode, Response), Problem> {
    let cookie = browser.cookie_if(join.cookie)?;
    node.guesses.count(&address.0, None)?;
    checked_name("name", &join.name)?;
    let from = origin(address, &headers);
    let joined = node
        .sessions
        .join(&join.token, join.name, join.password, from)
        .await?;
    node.refresh_directory().await;
    Ok((StatusCode::CREATED, begun(joined, cookie)?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reset {
    token: String,
    password: String,
}

async fn reset(
    State(node): State<Arc<Node>>,
    Extension(address): Extension<Address>,
    Body(reset): Body<Reset>,
) -> Result<StatusCode, Problem> {
    node.guesses.count(&address.0, None)?;
    let Reset { token, password } = reset;
    node.sessions.reset_password(&token, password).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn sessions(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
) -> Result<Json<Value>, Problem> {
    let current = session_of(&who)?;
    let sessions = node.sessions.of(who.user.id).await?;
    let mut items = Vec::new();
    for session in sessions {
        let is_current = session.id == current;
        let mut shown = serde_json::to_value(session).map_err(Problem::internal)?;
        shown["current"] = is_current.into();
        items.push(shown);
    }
    Ok(Json(json!({ "items": items, "next_cursor": null })))
}

/// An id of a path.
fn id<T>(what: &'static str, text: &str) -> Result<crate::store::Id<T>, Problem> {
    let parsed = text.parse();
    parsed.map_err(|_| IdentityError::not_found(what, text).into())
}

/// What a removal answers.
fn removed(was_there: bool, what: &'static str, id: &str) -> Result<StatusCode, Problem> {
    match was_there {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(IdentityError::not_found(what, id).into()),
    }
}

async fn end_session(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(named): Path<String>,
) -> Result<StatusCode, Problem> {
    let session = id("session", &named)?;
    let ended = node.sessions.end(who.user.id, session).await?;
    removed(ended, "session", &named)
}

async fn keys(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Query(query): Query<PageQuery>,
) -> Result<Json<Value>, Problem> {
    let limit = page_limit(query.limit.as_deref())?;
    let after = page_cursor(query.cursor.as_deref())?;
    let keys = node.sessions.keys(who.user.id, after, limit + 1).await?;
    Ok(page(keys, limit, |key| key.id.to_string()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFields {
    name: String,
    scopes: Vec<Scope>,
    /// Ids or slugs.
    #[serde(default)]
    apps: Option<Vec<String>>,
    #[serde(default)]
    expires_at: Option<DateTime<Utc>>,
}

async fn create_key(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Body(fields): Body<KeyFields>,
) -> Result<(StatusCode, Json<Value>), Problem> {
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
    Ok((StatusCode::CREATED, with_token(key, token)?))
}

/// Something with its token, which is shown this once.
fn with_token(of: impl serde::Serialize, token: String) -> Result<Json<Value>, Problem> {
    let mut shown = serde_json::to_value(of).map_err(Problem::internal)?;
    shown["token"] = token.into();
    Ok(Json(shown))
}

async fn rotate_key(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(named): Path<String>,
) -> Result<Json<Value>, Problem> {
    let key = id("API key", &named)?;
    let (key, token) = node.sessions.rotate_key(who.user.id, key).await?;
    with_token(key, token)
}

async fn revoke_key(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(named): Path<String>,
) -> Result<StatusCode, Problem> {
    let key = id("API key", &named)?;
    let revoked = node.sessions.revoke_key(who.user.id, key).await?;
    removed(revoked, "API key", &named)
}

async fn list(
    State(node): State<Arc<Node>>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Value>, Problem> {
    let limit = page_limit(query.limit.as_deref())?;
    let after = page_cursor(query.cursor.as_deref())?;
    let users = node.sessions.users(after, limit + 1).await?;
    Ok(page(users, limit, |user| user.id.to_string()))
}

async fn show(
    State(node): State<Arc<Node>>,
    Path(named): Path<String>,
) -> Result<Json<User>, Problem> {
    Ok(Json(node.sessions.user(id("user", &named)?).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserChange {
    role: Option<Role>,
    disabled: Option<bool>,
}

async fn change(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(named): Path<String>,
    Body(change): Body<UserChange>,
) -> Result<Json<User>, Problem> {
    let UserChange { role, disabled } = change;
    let change = Change { role, disabled };
    let user_id = id("user", &named)?;
    let user = node.sessions.change_user(who.user.role, user_id, change);
    let user = user.await?;
    node.refresh_directory().await;
    Ok(Json(user))
}

async fn remove(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(named): Path<String>,
) -> Result<StatusCode, Problem> {
    let user_id = id("user", &named)?;
    node.sessions.remove_user(who.user.role, user_id).await?;
    node.refresh_directory().await;
    Ok(StatusCode::NO_CONTENT)
}

async fn reset_link(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(named): Path<String>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let user_id: UserId = id("user", &named)?;
    let (link, token) = node.sessions.reset_link(&who.user, user_id).await?;
    let Link { expires_at, .. } = link;
    let shown = json!({ "user_id": user_id, "token": token, "expires_at": expires_at });
    Ok((StatusCode::CREATED, Json(shown)))
}

async fn invitations(
    State(node): State<Arc<Node>>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Value>, Problem> {
    let limit = page_limit(query.limit.as_deref())?;
    let after = page_cursor(query.cursor.as_deref())?;
    let links = node.sessions.invitations(after, limit + 1).await?;
    Ok(page(links, limit, |link| link.id.to_string()))
}

fn member() -> Role {
    Role::Member
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Invitation {
    #[serde(default = "member")]
    role: Role,
    /// Ids or slugs.
    #[serde(default)]
    apps: BTreeMap<String, AppRole>,
}

async fn invite(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Body(invitation): Body<Invitation>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let picture = node.directory.picture();
    let mut apps = BTreeMap::new();
    for (named, role) in invitation.apps {
        let app = picture
            .app_named(&named)
            .ok_or_else(|| Problem::invalid_field("apps", format!("there is no app `{named}`")))?;
        apps.insert(app.id, role);
    }
    let (link, token) = node
        .sessions
        .invite(&who.user, invitation.role, apps)
        .await?;
    Ok((StatusCode::CREATED, with_token(link, token)?))
}

async fn revoke_invitation(
    State(node): State<Arc<Node>>,
    Path(named): Path<String>,
) -> Result<StatusCode, Problem> {
    let link = id("invitation", &named)?;
    let revoked = node.sessions.revoke_invitation(link).await?;
    removed(revoked, "invitation", &named)
}

async fn list_members(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Value>, Problem> {
    let limit = page_limit(query.limit.as_deref())?;
    let after = page_cursor(query.cursor.as_deref())?;
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let members = node.sessions.members(app_id, after, limit + 1).await?;
    Ok(page(members, limit, |member| member.user_id.to_string()))
}

/// The user that an id or a name in a path means.
async fn user_named(node: &Node, named: &str) -> Result<UserId, Problem> {
    if let Ok(id) = named.parse() {
        return Ok(id);
    }
    let known = super::sql::users::by_name(&mut node.db.read().await?, named).await?;
    let known = known.map(|(user, _)| user.id);
    known.ok_or_else(|| IdentityError::not_found("user", named).into())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewMember {
    role: AppRole,
}

async fn set_member(
    State(node): State<Arc<Node>>,
    Path((app, user)): Path<(String, String)>,
    Body(NewMember { role }): Body<NewMember>,
) -> Result<StatusCode, Problem> {
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let user_id = user_named(&node, &user).await?;
    node.sessions.set_member(app_id, user_id, role).await?;
    node.refresh_directory().await;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove_member(
    State(node): State<Arc<Node>>,
    Path((app, user)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let user_id = user_named(&node, &user).await?;
    let was = node.sessions.remove_member(app_id, user_id).await?;
    node.refresh_directory().await;
    removed(was, "member", &user)
}
