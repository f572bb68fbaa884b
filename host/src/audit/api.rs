//! The HTTP API of the audit log.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;

use super::{Filter, sql};
use crate::http::endpoints::{Api, Of, Rule};
use crate::http::extract::{
    INSTANT, Path, Query, app_named, instant, page, page_cursor, page_limit, parsed,
};
use crate::http::problem::Problem;
use crate::identity::capability::Capability;
use crate::node::Node;

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get("/audit", Rule::Instance(Capability::ManageInstance), list)
        .get(
            "/apps/{app}/audit",
            Rule::App(Capability::ManageApp, Of::App),
            of_app,
        )
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    user_id: Option<String>,
    action: Option<String>,
    since: Option<String>,
    until: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
    /// `jsonl`: JSON lines instead of a page.
    format: Option<String>,
}

async fn list(
    State(node): State<Arc<Node>>,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    answer(&node, query, Filter::default()).await
}

async fn of_app(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let filter = Filter {
        app_id: Some(app_id),
        ..Filter::default()
    };
    answer(&node, query, filter).await
}

/// A page, or the same as JSON lines with the next cursor in a header, for those who keep a copy.
async fn answer(node: &Node, query: ListQuery, filter: Filter) -> Result<Response, Problem> {
    let limit = page_limit(query.limit.as_deref())?;
    let before = page_cursor(query.cursor.as_deref())?;
    let uuid = |text: &str| text.parse().ok();
    let filter = Filter {
        user_id: parsed("user_id", query.user_id.as_deref(), uuid, "a UUID")?,
        action: query.action,
        since: parsed("since", query.since.as_deref(), instant, INSTANT)?,
        until: parsed("until", query.until.as_deref(), instant, INSTANT)?,
        ..filter
    };
    let known = |text: &str| matches!(text, "json" | "jsonl").then(|| text == "jsonl");
    let lines = parsed(
        "format",
        query.format.as_deref(),
        known,
        "`json` or `jsonl`",
    )?;
    let entries = sql::page(&mut node.db.read().await?, &filter, before, limit + 1).await?;
    let Json(shown) = page(entries, limit, |entry| entry.id.to_string());
    if !lines.unwrap_or(false) {
        return Ok(Json(shown).into_response());
    }
    let items = shown["items"].as_array().into_iter().flatten();
    let text: String = items.map(|entry| format!("{entry}\n")).collect();
    let mut response = ([(header::CONTENT_TYPE, "application/jsonl")], text).into_response();
    if let Value::String(cursor) = &shown["next_cursor"]
        && let Ok(value) = cursor.parse()
    {
        response.headers_mut().insert("x-next-cursor", value);
    }
    Ok(response)
}
