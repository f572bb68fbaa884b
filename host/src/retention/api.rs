//! The HTTP API of retention.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::http::extract::{Query, SignedIn};
use crate::http::problem::Problem;
use crate::node::Node;

/// The paths of this room.
pub fn router() -> Router<Arc<Node>> {
    Router::new().route("/gc", post(gc))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GcQuery {
    #[serde(default)]
    dry_run: bool,
}

async fn gc(
    State(node): State<Arc<Node>>,
    _: SignedIn,
    Query(query): Query<GcQuery>,
) -> Result<Json<Value>, Problem> {
    let retention = node.config.retention;
    let swept = match query.dry_run {
        true => retention.dry_run(&node.db).await?,
        false => retention.sweep(&node.db).await?,
    };
    Ok(Json(json!({ "dry_run": query.dry_run, "removed": swept })))
}
