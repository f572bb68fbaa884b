//! The HTTP API of users, invitations, and the members of an app.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Change, Member};
use crate::http::answer::{Created, NoContent, Page};
use crate::http::endpoints::{Api, Of, Rule};
use crate::http::etag::Tagged;
use crate::http::extract::{Body, PageQuery, Path, Query, SignedIn, app_named, page_cursor};
use crate::http::problem::{Problem, ProblemType};
use crate::identity::api::WithToken;
use crate::identity::capability::{AppRole, Capability, Role};
use crate::identity::links::Link;
use crate::identity::{IdentityError, User, UserId};
use crate::node::Node;
use crate::store::{Expected, Id};

/// The endpoints of this room.
pub fn endpoints() -> Api {
    let users = Rule::Instance(Capability::ManageInstance);
    let members = Rule::App(Capability::ManageApp, Of::App);
    Api::default()
        .get("/users", users, list)
        .called("listUsers", "List the users")
        .get("/users/{id}", users, show)
        .called("getUser", "Show a user")
        .patch("/users/{id}", users, change)
        .called(
            "changeUser",
            "Change a user's role, or whether they may sign in",
        )
        .may_fail(&[ProblemType::LastOwner])
        .delete("/users/{id}", users, remove)
        .called("removeUser", "Remove a user")
        .may_fail(&[ProblemType::LastOwner])
        .post("/users/{id}/reset-link", users, reset_link)
        .called(
            "createResetLink",
            "Make a link with which a user sets a new password",
        )
        .may_fail(&[ProblemType::InvalidRequest])
        .get("/invitations", users, invitations)
        .called(
            "listInvitations",
            "List the invitations that nobody has used yet",
        )
        .post("/invitations", users, invite)
        .called(
            "createInvitation",
            "Invite somebody; the token is shown this once",
        )
        .delete("/invitations/{id}", users, revoke_invitation)
        .called("revokeInvitation", "Revoke an invitation")
        .get("/apps/{app}/members", members, list_members)
        .called("listMembers", "List who has a role in an app")
        .get("/apps/{app}/members/{user}", members, show_member)
        .called("getMember", "Show the role of a user in an app")
        .put("/apps/{app}/members/{user}", members, set_member)
        .called("setMember", "Give a user a role in an app")
        .may_fail(&[ProblemType::TooMany])
        .delete("/apps/{app}/members/{user}", members, remove_member)
        .called("removeMember", "Take a user's role in an app away")
}

async fn list(
    State(node): State<Arc<Node>>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<User>>, Problem> {
    let after = page_cursor(query.cursor.as_deref())?;
    let users = node.sessions.users(after, query.limit.and_one()).await?;
    Ok(Page::of(users, query.limit.get(), |user| {
        user.id.to_string()
    }))
}

async fn show(
    State(node): State<Arc<Node>>,
    Path(id): Path<UserId>,
) -> Result<Tagged<Json<User>>, Problem> {
    Ok(Tagged::of(node.sessions.user(id).await?))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct UserChange {
    role: Option<Role>,
    disabled: Option<bool>,
}

async fn change(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(user_id): Path<UserId>,
    expected: Expected,
    Body(change): Body<UserChange>,
) -> Result<Tagged<Json<User>>, Problem> {
    let UserChange { role, disabled } = change;
    let change = Change { role, disabled };
    let user = node
        .sessions
        .change_user(who, user_id, change, expected)
        .await?;
    node.refresh_directory().await;
    Ok(Tagged::of(user))
}

async fn remove(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(user_id): Path<UserId>,
    expected: Expected,
) -> Result<NoContent, Problem> {
    node.sessions
        .remove_user(who.user.role, user_id, expected)
        .await?;
    node.refresh_directory().await;
    Ok(NoContent)
}

/// With what a user sets a new password; it is shown this once.
#[derive(Serialize, JsonSchema)]
struct ResetLink {
    user_id: UserId,
    token: String,
    expires_at: DateTime<Utc>,
}

async fn reset_link(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(user_id): Path<UserId>,
) -> Result<Created<ResetLink>, Problem> {
    let (link, token) = node.sessions.reset_link(&who, user_id).await?;
    Ok(Created(ResetLink {
        user_id,
        token,
        expires_at: link.expires_at,
    }))
}

async fn invitations(
    State(node): State<Arc<Node>>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Link>>, Problem> {
    let after = page_cursor(query.cursor.as_deref())?;
    let links = node
        .sessions
        .invitations(after, query.limit.and_one())
        .await?;
    Ok(Page::of(links, query.limit.get(), |link| {
        link.id.to_string()
    }))
}

fn member() -> Role {
    Role::Member
}

#[derive(Deserialize, JsonSchema)]
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
) -> Result<Created<WithToken<Link>>, Problem> {
    let picture = node.directory.picture();
    let mut apps = BTreeMap::new();
    for (named, role) in invitation.apps {
        let app = picture
            .app_named(&named)
            .ok_or_else(|| Problem::invalid_field("apps", format!("there is no app `{named}`")))?;
        apps.insert(app.id, role);
    }
    let (link, token) = node.sessions.invite(&who, invitation.role, apps).await?;
    Ok(Created(WithToken { of: link, token }))
}

async fn revoke_invitation(
    State(node): State<Arc<Node>>,
    Path(link): Path<Id<Link>>,
) -> Result<NoContent, Problem> {
    node.sessions.revoke_invitation(link).await?;
    Ok(NoContent)
}

async fn list_members(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Member>>, Problem> {
    let after = page_cursor(query.cursor.as_deref())?;
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let members = node
        .sessions
        .members(app_id, after, query.limit.and_one())
        .await?;
    Ok(Page::of(members, query.limit.get(), |member| {
        member.user_id.to_string()
    }))
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

async fn show_member(
    State(node): State<Arc<Node>>,
    Path((app, user)): Path<(String, String)>,
) -> Result<Tagged<Json<Member>>, Problem> {
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let user_id = user_named(&node, &user).await?;
    let member = node.sessions.member(app_id, user_id).await?;
    let member = member.ok_or_else(|| IdentityError::not_found("member", user))?;
    Ok(Tagged::of(member))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NewMember {
    role: AppRole,
}

async fn set_member(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path((app, user)): Path<(String, String)>,
    expected: Expected,
    Body(NewMember { role }): Body<NewMember>,
) -> Result<NoContent, Problem> {
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let user_id = user_named(&node, &user).await?;
    node.sessions
        .set_member(
            who,
            app_id,
            user_id,
            role,
            expected,
            node.quotas.quotas().objects,
        )
        .await?;
    node.refresh_directory().await;
    Ok(NoContent)
}

async fn remove_member(
    State(node): State<Arc<Node>>,
    Path((app, user)): Path<(String, String)>,
    expected: Expected,
) -> Result<NoContent, Problem> {
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let user_id = user_named(&node, &user).await?;
    let removed = node
        .sessions
        .remove_member(app_id, (user_id, user), expected);
    removed.await?;
    node.refresh_directory().await;
    Ok(NoContent)
}
