//! The HTTP API of executions.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::sql::{self, Filter};
use super::{Execution, ExecutionId, OutcomeKind};
use crate::http::endpoints::{Api, Of, Rule};
use crate::http::extract::{
    INSTANT, PageQuery, Path, Query, app_named, instant, page, page_cursor, page_limit, parsed,
};
use crate::http::problem::Problem;
use crate::identity::capability::Capability;
use crate::node::Node;
use crate::store::{Conn, StoreError};

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get(
            "/apps/{app}/executions",
            Rule::App(Capability::ReadLogs, Of::App),
            list,
        )
        .get(
            "/apps/{app}/abandoned-executions",
            Rule::App(Capability::ReadLogs, Of::App),
            abandoned,
        )
        .get(
            "/executions/{id}",
            Rule::App(Capability::ReadLogs, Of::Execution),
            show,
        )
        .get(
            "/executions/{id}/tree",
            Rule::App(Capability::ReadLogs, Of::Execution),
            tree,
        )
}

/// A connection that sees the outcome of every call that this node has answered.
async fn settled(node: &Node) -> Result<Conn, StoreError> {
    node.dispatcher.settled().await;
    node.db.read().await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    script_id: Option<String>,
    outcome: Option<String>,
    request_id: Option<String>,
    trace_id: Option<String>,
    delivery_id: Option<String>,
    invocation_type: Option<String>,
    since: Option<String>,
    until: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

async fn list(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, Problem> {
    let limit = page_limit(query.limit.as_deref())?;
    let before = page_cursor(query.cursor.as_deref())?;
    let app_id = app_named(&node.directory.picture(), &app)?.id;
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
        trace_id: parsed(
            "trace_id",
            query.trace_id.as_deref(),
            |text| {
                let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                (text.len() == 32 && text.bytes().all(is_hex)).then(|| text.to_owned())
            },
            "32 hexadecimal digits",
        )?,
        delivery_id: parsed("delivery_id", query.delivery_id.as_deref(), uuid, "a UUID")?,
        invocation_type: query.invocation_type,
        since: parsed("since", query.since.as_deref(), instant, INSTANT)?,
        until: parsed("until", query.until.as_deref(), instant, INSTANT)?,
    };
    let mut conn = settled(&node).await?;
    let executions = sql::page(&mut conn, app_id, &filter, before, limit + 1).await?;
    Ok(page(executions, limit, |execution| {
        execution.id.to_string()
    }))
}

async fn show(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let missing = || Problem::not_found(format!("there is no execution `{id}`"));
    let parsed: ExecutionId = id.parse().map_err(|_| missing())?;
    let ended = sql::get(&mut settled(&node).await?, parsed)
        .await?
        .ok_or_else(missing)?;
    let mut shown = serde_json::to_value(&ended.execution).map_err(Problem::internal)?;
    shown["logs"] = serde_json::to_value(&ended.log.lines).map_err(Problem::internal)?;
    shown["logs_truncated"] = ended.log.truncated.into();
    Ok(Json(shown))
}

/// The most executions that a tree shows.
const TREE_MAX: i64 = 1_000;

/// Everything that the request of an execution led to, as a tree.
async fn tree(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let missing = || Problem::not_found(format!("there is no execution `{id}`"));
    let parsed: ExecutionId = id.parse().map_err(|_| missing())?;
    let mut conn = settled(&node).await?;
    let ended = sql::get(&mut conn, parsed).await?.ok_or_else(missing)?;
    let Execution {
        app_id, request_id, ..
    } = ended.execution;
    let mut all = sql::of_request(&mut conn, app_id, request_id, TREE_MAX + 1).await?;
    let truncated = all.len() > TREE_MAX as usize;
    all.truncate(TREE_MAX as usize);
    let known: HashSet<ExecutionId> = all.iter().map(|execution| execution.id).collect();
    let mut children = HashMap::<Option<ExecutionId>, Vec<Execution>>::new();
    for execution in all {
        // One whose parent is not kept any more stands at the top.
        let parent = execution.parent_id.filter(|id| known.contains(id));
        children.entry(parent).or_default().push(execution);
    }
    let roots = branches(&mut children, None).map_err(Problem::internal)?;
    Ok(Json(json!({
        "request_id": request_id,
        "roots": roots,
        "truncated": truncated,
    })))
}

/// The executions beneath `parent`, each with those beneath it. They are as deep as events go,
/// which is not deep.
fn branches(
    children: &mut HashMap<Option<ExecutionId>, Vec<Execution>>,
    parent: Option<ExecutionId>,
) -> Result<Vec<Value>, serde_json::Error> {
    let executions = children.remove(&parent).unwrap_or_default();
    let branch = |execution: Execution| {
        let mut branch = serde_json::to_value(&execution)?;
        branch["children"] = branches(children, Some(execution.id))?.into();
        Ok(branch)
    };
    executions.into_iter().map(branch).collect()
}

async fn abandoned(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Value>, Problem> {
    let limit = page_limit(query.limit.as_deref())?;
    let before = page_cursor(query.cursor.as_deref())?.unwrap_or_else(|| Uuid::max().into());
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let rows = sql::abandoned_page(&mut settled(&node).await?, app_id, before, limit + 1).await?;
    Ok(page(rows, limit, |row| row.id.to_string()))
}
