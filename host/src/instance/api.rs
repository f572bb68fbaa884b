//! The HTTP API of the instance as a whole.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use chrono::Utc;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Disk, NodeAbout, NodeState, Queue, on_disk, sql, states};
use crate::dispatch::WorkerId;
use crate::http::endpoints::{Api, Rule};
use crate::http::problem::Problem;
use crate::identity::capability::Capability;
use crate::node::Node;

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get(
            "/instance",
            Rule::Instance(Capability::ManageInstance),
            show,
        )
        .called(
            "getInstance",
            "Show the nodes, what is in the outbox, and what is on disk",
        )
}

/// A node and what it works on.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "InstanceNodeWithLeases")]
struct NodeView {
    #[serde(flatten)]
    node: NodeAbout,
    /// Whether it is there.
    state: NodeState,
    /// Whether it is the one that answers.
    is_this: bool,
    /// How many deliveries it works on.
    leases: i64,
}

#[derive(Serialize, JsonSchema)]
struct Instance {
    /// The newest first; one that is gone is forgotten after a day.
    nodes: Vec<NodeView>,
    queue: Queue,
    disk: Disk,
    /// For how long the node that answers has not read who may do what, and which routes there are.
    directory_age_ms: u64,
}

async fn show(State(node): State<Arc<Node>>) -> Result<Json<Instance>, Problem> {
    let this: WorkerId = node.about.id;
    let mut conn = node.db.read().await?;
    let leases = sql::leases(&mut conn).await?;
    let nodes = sql::nodes(&mut conn).await?;
    let nodes = states(&nodes).into_iter().zip(nodes);
    let nodes = nodes.map(|(state, node)| NodeView {
        state,
        is_this: node.id == this,
        leases: leases.get(&node.id).copied().unwrap_or(0),
        node,
    });
    let queue = sql::queue(&mut conn, Utc::now()).await?;
    let database_bytes = sql::database_bytes(&mut conn).await?;
    drop(conn);
    let (cache, data) = (node.config.cache_dir.clone(), node.config.data_dir.clone());
    let looked = tokio::task::spawn_blocking(move || on_disk(cache, data)).await;
    let (cache_bytes, free_bytes) = looked.unwrap_or_default();
    Ok(Json(Instance {
        nodes: nodes.collect(),
        queue,
        disk: Disk {
            database_bytes,
            cache_bytes,
            free_bytes,
        },
        directory_age_ms: u64::try_from(node.directory.age().as_millis()).unwrap_or(u64::MAX),
    }))
}
