//! The HTTP API of executions.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::sql::{self, Filter};
use super::{ExecutionId, OutcomeKind};
use crate::http::extract::{
    PageQuery, Path, Query, SignedIn, app_named, page, page_cursor, page_limit,
};
use crate::http::problem::Problem;
use crate::node::Node;

/// The paths of this room.
pub fn router() -> Router<Arc<Node>> {
    Router::new()
        .route("/apps/{app}/executions", get(list))
        .route("/apps/{app}/abandoned-executions", get(abandoned))
        .route("/executions/{id}", get(show))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    script_id: Option<String>,
    outcome: Option<String>,
    request_id: Option<String>,
    invocation_type: Option<String>,
    since: Option<String>,
    until: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// A filter's value, or what it must look like.
fn parsed<T>(
    field: &str,
    text: Option<&str>,
    parse: impl FnOnce(&str) -> Option<T>,
    looks: &str,
) -> Result<Option<T>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let problem = || Problem::invalid_field(field, format!("{field} is {looks}, not `{text}`"));
    parse(text).map(Some).ok_or_else(problem)
}

fn instant(text: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(text)
        .ok()
        .map(|at| at.to_utc())
}

async fn list(
    State(node): State<Arc<Node>>,
    _: SignedIn,
    Path(app): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, Problem> {
    let limit = page_limit(query.limit.as_deref())?;
    let before = page_cursor(query.cursor.as_deref())?;
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    const INSTANT: &str = "an instant like 2026-01-31T12:00:00Z";
    let uuid = |text: &str| text.parse::<Uuid>().ok();
    let outcomes = OutcomeKind::ALL
        .iter()
        .map(|kind| kind.as_str())
        .collect::<Vec<_>>()
        .join(", ");
    let filter = Filter {
        script_id: parsed("script_id", query.script_id.as_deref(), uuid, "a UUID")?.map(Into::into),
        outcome: parsed(
            "outcome",
            query.outcome.as_deref(),
            OutcomeKind::parse,
            &format!("one of {outcomes}"),
        )?,
        request_id: parsed("request_id", query.request_id.as_deref(), uuid, "a UUID")?,
        invocation_type: query.invocation_type,
        since: parsed("since", query.since.as_deref(), instant, INSTANT)?,
        until: parsed("until", query.until.as_deref(), instant, INSTANT)?,
    };
    let mut conn = node.db.read().await?;
    let executions = sql::page(&mut conn, app_id, &filter, before, limit + 1).await?;
    Ok(page(executions, limit, |execution| {
        execution.id.to_string()
    }))
}

async fn show(
    State(node): State<Arc<Node>>,
    _: SignedIn,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let missing = || Problem::not_found(format!("there is no execution `{id}`"));
    let parsed: ExecutionId = id.parse().map_err(|_| missing())?;
    let ended = sql::get(&mut node.db.read().await?, parsed)
        .await?
        .ok_or_else(missing)?;
    let mut shown = serde_json::to_value(&ended.execution).map_err(Problem::internal)?;
    shown["logs"] = serde_json::to_value(&ended.log.lines).map_err(Problem::internal)?;
    shown["logs_truncated"] = ended.log.truncated.into();
    Ok(Json(shown))
}

async fn abandoned(
    State(node): State<Arc<Node>>,
    _: SignedIn,
    Path(app): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Value>, Problem> {
    let limit = page_limit(query.limit.as_deref())?;
    let before = page_cursor(query.cursor.as_deref())?.unwrap_or_else(|| Uuid::max().into());
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let rows = sql::abandoned_page(&mut node.db.read().await?, app_id, before, limit + 1).await?;
    Ok(page(rows, limit, |row| row.id.to_string()))
}
