//! The HTTP API of the checks.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};

use super::{Arrival, Report, of_server};
use crate::http::address;
use crate::http::endpoints::{Api, Rule, peer};
use crate::identity::capability::Capability;
use crate::node::Node;

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get(
            "/doctor",
            Rule::Instance(Capability::ManageInstance),
            doctor,
        )
        .called("checkSetUp", "Check the set-up of the node that answers")
}

async fn doctor(State(node): State<Arc<Node>>, request: Request) -> Json<Report> {
    let (parts, _) = request.into_parts();
    let names = ["x-forwarded-for", "x-forwarded-proto", "forwarded"];
    let arrival = Arrival {
        peer: peer(&parts).map(|peer| peer.ip().to_canonical()),
        is_https: address::is_https(&parts, &node.config.trusted_proxies),
        is_forwarded: names.iter().any(|name| parts.headers.contains_key(*name)),
    };
    Json(of_server(&node, arrival).await)
}
