//! Signing in and out.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::User;
use crate::http::extract::{Body, SignedIn};
use crate::http::problem::Problem;
use crate::node::Node;

/// The paths of this room.
pub fn router() -> Router<Arc<Node>> {
    Router::new()
        .route("/auth/login", post(log_in))
        .route("/auth/logout", post(log_out))
        .route("/auth/me", get(me))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    name: String,
    password: String,
}

async fn log_in(
    State(node): State<Arc<Node>>,
    Body(login): Body<Login>,
) -> Result<Json<Value>, Problem> {
    let session = node.sessions.log_in(&login.name, login.password).await?;
    Ok(Json(json!({
        "token": session.token,
        "expires_at": session.expires_at,
        "user": session.user,
    })))
}

async fn log_out(State(node): State<Arc<Node>>, who: SignedIn) -> Result<StatusCode, Problem> {
    node.sessions.log_out(&who.token).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn me(who: SignedIn) -> Json<User> {
    Json(who.user)
}
