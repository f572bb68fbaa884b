//! The HTTP API of the audit log.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::{Entry, Filter, sql};
use crate::apps::AppId;
use crate::http::answer::Page;
use crate::http::endpoints::{Api, Of, Rule};
use crate::http::extract::{Limit, Path, Query, app_named, instant, page_cursor};
use crate::http::openapi::describe::{Operation, Output};
use crate::http::problem::Problem;
use crate::identity::UserId;
use crate::identity::capability::Capability;
use crate::node::Node;

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get("/audit", Rule::Instance(Capability::ManageInstance), list)
        .called("listAudit", "Read the audit log, newest first")
        .get(
            "/apps/{app}/audit",
            Rule::App(Capability::ManageApp, Of::App),
            of_app,
        )
        .called("listAppAudit", "Read the audit log of an app, newest first")
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    user_id: Option<UserId>,
    /// An endpoint: `PATCH /scripts/{id}`.
    action: Option<String>,
    /// Not before.
    #[serde(default, deserialize_with = "instant")]
    since: Option<DateTime<Utc>>,
    /// Before.
    #[serde(default, deserialize_with = "instant")]
    until: Option<DateTime<Utc>>,
    /// How many at most.
    #[serde(default)]
    limit: Limit,
    /// Where to begin: the `next_cursor` of the page before.
    cursor: Option<String>,
    /// `jsonl`: JSON lines instead of a page, with the next cursor in `x-next-cursor`.
    #[serde(default)]
    format: Format,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Format {
    #[default]
    Json,
    Jsonl,
}

async fn list(
    State(node): State<Arc<Node>>,
    Query(query): Query<ListQuery>,
) -> Result<Listed, Problem> {
    answer(&node, query, None).await
}

async fn of_app(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Listed, Problem> {
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    answer(&node, query, Some(app_id)).await
}

/// A page, or the same as JSON lines with the next cursor in a header, for those who keep a copy.
enum Listed {
    Page(Json<Page<Entry>>),
    Lines(Page<Entry>),
}

impl IntoResponse for Listed {
    fn into_response(self) -> Response {
        let page = match self {
            Self::Page(page) => return page.into_response(),
            Self::Lines(page) => page,
        };
        let lines = page
            .items
            .iter()
            .map(|entry| Ok(serde_json::to_string(entry)? + "\n"));
        let text: String = match lines.collect::<Result<_, serde_json::Error>>() {
            Ok(text) => text,
            Err(error) => return Problem::internal(error).into_response(),
        };
        let mut response = ([(header::CONTENT_TYPE, JSON_LINES)], text).into_response();
        if let Some(Ok(cursor)) = page.next_cursor.map(|cursor| cursor.parse()) {
            response.headers_mut().insert("x-next-cursor", cursor);
        }
        response
    }
}

const JSON_LINES: &str = "application/jsonl";

impl Output for Listed {
    fn describe(operation: &mut Operation<'_>) {
        Json::<Page<Entry>>::describe(operation);
        operation.answers(StatusCode::OK, JSON_LINES, json!({ "type": "string" }));
        operation.answer(StatusCode::OK)["headers"]["x-next-cursor"] = json!({
            "description": "Where the next page begins, beside JSON lines",
            "schema": { "type": "string" },
        });
    }
}

async fn answer(node: &Node, query: ListQuery, app_id: Option<AppId>) -> Result<Listed, Problem> {
    let before = page_cursor(query.cursor.as_deref())?;
    let filter = Filter {
        app_id,
        user_id: query.user_id,
        action: query.action,
        since: query.since,
        until: query.until,
    };
    let limit = query.limit;
    let entries = sql::page(&mut node.db.read().await?, &filter, before, limit.and_one()).await?;
    let page = Page::of(entries, limit.get(), |entry| entry.id.to_string());
    Ok(match query.format {
        Format::Json => Listed::Page(page),
        Format::Jsonl => Listed::Lines(page.0),
    })
}
