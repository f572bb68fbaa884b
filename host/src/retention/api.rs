//! The HTTP API of retention.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Swept;
use crate::http::endpoints::{Api, Rule};
use crate::http::extract::Query;
use crate::http::problem::Problem;
use crate::identity::capability::Capability;
use crate::journal;
use crate::node::Node;

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .post("/gc", Rule::Instance(Capability::ManageInstance), gc)
        .called(
            "collectGarbage",
            "Remove what is past its retention or beyond a quota",
        )
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GcQuery {
    /// Only say how much that is.
    #[serde(default)]
    dry_run: bool,
}

/// What was past its retention.
#[derive(Serialize, JsonSchema)]
struct Collected {
    dry_run: bool,
    removed: Swept,
}

async fn gc(
    State(node): State<Arc<Node>>,
    Query(query): Query<GcQuery>,
) -> Result<Json<Collected>, Problem> {
    let retention = node.config.retention;
    let removed = match query.dry_run {
        true => retention.dry_run(&node.db).await?,
        false => {
            // What is only there to be told again is not counted.
            let picture = node.directory.picture();
            journal::sweep::sweep(&node.db, |channel| channel.keep(&picture)).await?;
            let mut removed = retention.sweep(&node.db).await?;
            let beyond = node.quotas.enforce().await;
            removed.dead_letters += beyond.dead_letters;
            removed.executions += beyond.executions;
            removed
        }
    };
    let dry_run = query.dry_run;
    Ok(Json(Collected { dry_run, removed }))
}
