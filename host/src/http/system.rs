//! What the instance says of itself: health, readiness, version, metrics; none needs a token.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::{address, user_routes};
use crate::node::Node;
use crate::sandbox::SDK_VERSION;
use crate::store::SCHEMA_VERSION;

/// Whether a path is answered for as long as the process lives, also while it stops.
pub(super) fn is_always_answered(path: &str) -> bool {
    PATHS.contains(&path)
}

const PATHS: [&str; 4] = ["/healthz", "/readyz", "/version", "/metrics"];

pub(super) fn router() -> Router<Arc<Node>> {
    let [is_alive, is_ready, versions, counted] = PATHS;
    Router::new()
        .route(is_alive, get(healthz))
        .route(is_ready, get(readyz))
        .route(versions, get(version))
        .route(counted, get(metrics))
}

/// The process lives: nothing else is asked.
async fn healthz() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// Whether it can serve. The database is asked in the background, so that probes cost nothing
/// and hang on nothing. Probes come by address, so the status is told on every host; why it is so is
/// told where the instance tells of itself.
async fn readyz(State(node): State<Arc<Node>>, uri: Uri, headers: HeaderMap) -> Response {
    match node.readiness() {
        Ok(()) => Json(json!({ "status": "ready" })).into_response(),
        Err(problems) => {
            let mut body = json!({ "status": "not ready" });
            if tells_of_itself(&node, &headers, &uri) {
                body["problems"] = problems.into();
            }
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

/// Whether a request came to the instance's own host, or, where it has none, to a host that no app
/// claims: what an app's visitors can reach does not tell what the instance is and how it is doing.
fn tells_of_itself(node: &Node, headers: &HeaderMap, uri: &Uri) -> bool {
    let host = address::host(headers, uri);
    match &node.config.admin_host {
        Some(own) => *own == host,
        None => {
            let picture = node.directory.picture();
            let app = picture.app_for_host(&host);
            !app.is_some_and(|app| app.claims_hosts())
        }
    }
}

async fn version(State(node): State<Arc<Node>>, uri: Uri, headers: HeaderMap) -> Response {
    if !tells_of_itself(&node, &headers, &uri) {
        return user_routes::no_route(uri.path()).into_response();
    }
    Json(json!({
        "product": env!("CARGO_PKG_VERSION"),
        "sdk": SDK_VERSION,
        "api": "v1",
        "schema": SCHEMA_VERSION,
        "wit": format!("picloud:function@{SDK_VERSION}"),
    }))
    .into_response()
}

async fn metrics(State(node): State<Arc<Node>>, uri: Uri, headers: HeaderMap) -> Response {
    if !tells_of_itself(&node, &headers, &uri) {
        return user_routes::no_route(uri.path()).into_response();
    }
    let text = node.metrics();
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text,
    )
        .into_response()
}
