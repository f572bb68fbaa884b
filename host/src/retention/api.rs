//! The HTTP API of retention.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::http::endpoints::{Api, Rule};
use crate::http::extract::Query;
use crate::http::problem::Problem;
use crate::identity::capability::Capability;
use crate::node::Node;

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default().post("/gc", Rule::Instance(Capability::ManageInstance), gc)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GcQuery {
    #[serde(default)]
    dry_run: bool,
}

async fn gc(
    State(node): State<Arc<Node>>,
    Query(query): Query<GcQuery>,
) -> Result<Json<Value>, Problem> {
    let retention = node.config.retention;
    let swept = match query.dry_run {
        true => retention.dry_run(&node.db).await?,
        false => retention.sweep(&node.db).await?,
    };
    Ok(Json(json!({ "dry_run": query.dry_run, "removed": swept })))
}
