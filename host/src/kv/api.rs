//! The HTTP API of the key-value store, for people and tools.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Kv, sql};
use crate::http::endpoints::{Api, Of, Rule};
use crate::http::extract::{Body, PageQuery, Path, Query, app_named, page, page_limit};
use crate::http::problem::Problem;
use crate::identity::capability::Capability;
use crate::node::Node;
use crate::triggers::firing::Origin;

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get(
            "/apps/{app}/kv",
            Rule::App(Capability::ReadKv, Of::App),
            collections,
        )
        .get(
            "/apps/{app}/kv/{collection}",
            Rule::App(Capability::ReadKv, Of::App),
            list,
        )
        .get(
            "/apps/{app}/kv/{collection}/{key}",
            Rule::App(Capability::ReadKv, Of::App),
            show,
        )
        .put(
            "/apps/{app}/kv/{collection}/{key}",
            Rule::App(Capability::WriteKv, Of::App),
            set,
        )
        .delete(
            "/apps/{app}/kv/{collection}/{key}",
            Rule::App(Capability::WriteKv, Of::App),
            remove,
        )
}

fn kv(node: &Node, app: &str) -> Result<Kv, Problem> {
    let app_id = app_named(&node.directory.picture(), app)?.id;
    Ok(node.kv.of(app_id, Origin::act()))
}

async fn collections(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Value>, Problem> {
    let limit = page_limit(query.limit.as_deref())?;
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let after = query.cursor.unwrap_or_default();
    let rows = sql::collections(&mut node.db.read().await?, app_id, &after, limit + 1).await?;
    let rows: Vec<Value> = rows
        .into_iter()
        .map(|(collection, keys)| json!({ "collection": collection, "keys": keys }))
        .collect();
    Ok(page(rows, limit, |row| {
        row["collection"].as_str().unwrap_or_default().to_owned()
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    prefix: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

async fn list(
    State(node): State<Arc<Node>>,
    Path((app, collection)): Path<(String, String)>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, Problem> {
    let limit = page_limit(query.limit.as_deref())?;
    let limit = u32::try_from(limit).ok();
    let prefix = query.prefix.unwrap_or_default();
    let listed = kv(&node, &app)?
        .list(collection, &prefix, query.cursor.as_deref(), limit)
        .await?;
    let next = listed.next.map(|cursor| cursor.to_string());
    Ok(Json(
        json!({ "items": listed.entries, "next_cursor": next }),
    ))
}

fn missing(collection: &str, key: &str) -> Problem {
    Problem::not_found(format!("the collection `{collection}` has no key `{key}`"))
}

async fn show(
    State(node): State<Arc<Node>>,
    Path((app, collection, key)): Path<(String, String, String)>,
) -> Result<Response, Problem> {
    let value = kv(&node, &app)?
        .get(collection.clone(), key.clone())
        .await?;
    let value = value.ok_or_else(|| missing(&collection, &key))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], value).into_response())
}

async fn set(
    State(node): State<Arc<Node>>,
    Path((app, collection, key)): Path<(String, String, String)>,
    Body(value): Body<Box<RawValue>>,
) -> Result<StatusCode, Problem> {
    kv(&node, &app)?
        .set(collection, key, Box::<str>::from(value).into())
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove(
    State(node): State<Arc<Node>>,
    Path((app, collection, key)): Path<(String, String, String)>,
) -> Result<StatusCode, Problem> {
    match kv(&node, &app)?
        .delete(collection.clone(), key.clone())
        .await?
    {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(missing(&collection, &key)),
    }
}
