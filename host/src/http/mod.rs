//! The server: every path of the instance, and the routes of the apps behind them.

pub mod address;
pub mod answer;
pub mod cookie;
mod dashboard;
pub mod endpoints;
pub mod extract;
pub mod openapi;
pub mod problem;
mod system;
mod trace;
mod user_routes;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use tower_http::catch_panic::CatchPanicLayer;

use crate::node::Node;
use crate::{
    apps, audit, backup, dead_letters, executions, identity, kv, overview, portable, retention,
    routes, scripts, secrets, triggers,
};
use problem::Problem;

/// The largest body of the admin API: a component of 16 MiB as base64 fits.
pub const API_BODY_BYTES_MAX: usize = 24 * 1024 * 1024;

/// Where the API is.
pub const API_ROOT: &str = "/api/v1";

/// Every endpoint of the API.
pub fn endpoints() -> endpoints::Api {
    endpoints::Api::default()
        .room("identity", identity::api::endpoints())
        .room("apps", apps::api::endpoints())
        .room("scripts", scripts::api::endpoints())
        .room("routes", routes::api::endpoints())
        .room("executions", executions::api::endpoints())
        .room("overview", overview::api::endpoints())
        .room("kv", kv::api::endpoints())
        .room("triggers", triggers::api::endpoints())
        .room("dead_letters", dead_letters::api::endpoints())
        .room("retention", retention::api::endpoints())
        .room("secrets", secrets::api::endpoints())
        .room("audit", audit::api::endpoints())
        .room("backup", backup::api::endpoints())
        .room("portable", portable::api::endpoints())
        .room("openapi", openapi::endpoints())
}

/// All of it.
pub fn router(node: Arc<Node>) -> Router {
    let api = endpoints()
        .guarded(node.clone())
        .fallback(unknown_path)
        .layer(DefaultBodyLimit::max(API_BODY_BYTES_MAX));
    let own = Router::new()
        .nest(API_ROOT, api)
        .route("/api", any(unknown_path))
        .route("/api/{*rest}", any(unknown_path))
        .merge(dashboard::router())
        .layer(middleware::from_fn_with_state(
            node.clone(),
            keep_to_admin_host,
        ));
    Router::new()
        .merge(own)
        .merge(system::router())
        .fallback(user_routes::answer)
        .layer(middleware::from_fn(explain_405))
        .layer(CatchPanicLayer::custom(
            |panic: Box<dyn std::any::Any + Send>| {
                let said = panic.downcast_ref::<&str>().copied().map(str::to_owned);
                let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
                Problem::internal(format!("a panic: {}", said.unwrap_or_default())).into_response()
            },
        ))
        .layer(middleware::from_fn(trace::follow))
        .with_state(node)
}

/// The API and the dashboard are on the instance's own host, where it has one.
async fn keep_to_admin_host(
    State(node): State<Arc<Node>>,
    request: Request,
    next: Next,
) -> Response {
    let is_here = node
        .config
        .admin_host
        .as_ref()
        .is_none_or(|own| *own == address::host(request.headers(), request.uri()));
    match is_here {
        true => next.run(request).await,
        // Routes cannot be below these paths.
        false => user_routes::no_route(request.uri().path()).into_response(),
    }
}

async fn unknown_path(request: Request) -> Problem {
    Problem::not_found(format!("there is nothing at `{}`", request.uri().path()))
}

/// axum answers an unknown method with an empty 405; ours say what would work.
async fn explain_405(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let bare = response.headers().get(header::CONTENT_TYPE).is_none();
    if response.status() == axum::http::StatusCode::METHOD_NOT_ALLOWED && bare {
        let allow = response
            .headers()
            .get(header::ALLOW)
            .and_then(|allow| allow.to_str().ok());
        return Problem::method_not_allowed(allow.unwrap_or_default()).into_response();
    }
    response
}
