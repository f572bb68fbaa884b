//! The HTTP API of routes.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::table::{NoMatch, RouteTable};
use super::{DispatchMode, MethodPattern, PathPattern, Route, RouteError, RouteId, put, sql};
use crate::apps::HostPattern;
use crate::directory;
use crate::http::endpoints::{Api, Of, Rule};
use crate::http::extract::{
    Body, PageQuery, Path, Query, app_named, check_ttl, given, page, page_cursor, page_limit,
};
use crate::http::problem::Problem;
use crate::idempotency::RoutePolicy;
use crate::identity::capability::Capability;
use crate::node::Node;
use crate::scripts::ScriptId;
use crate::scripts::api::named_script;
use crate::store::StoreError;

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get(
            "/apps/{app}/routes",
            Rule::App(Capability::ReadRoutes, Of::App),
            list,
        )
        .post(
            "/apps/{app}/routes",
            Rule::App(Capability::WriteRoutes, Of::App),
            create,
        )
        .get(
            "/apps/{app}/routes/match",
            Rule::App(Capability::ReadRoutes, Of::App),
            which,
        )
        .get(
            "/routes/{id}",
            Rule::App(Capability::ReadRoutes, Of::Route),
            show,
        )
        .patch(
            "/routes/{id}",
            Rule::App(Capability::WriteRoutes, Of::Route),
            change,
        )
        .delete(
            "/routes/{id}",
            Rule::App(Capability::WriteRoutes, Of::Route),
            remove,
        )
}

async fn list(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Value>, Problem> {
    let limit = page_limit(query.limit.as_deref())?;
    let after = page_cursor(query.cursor.as_deref())?;
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let routes = sql::page(&mut node.db.read().await?, app_id, after, limit + 1).await?;
    Ok(page(routes, limit, |route| route.id.to_string()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MatchQuery {
    method: Option<String>,
    host: Option<String>,
    path: String,
}

/// Which route a request would take.
async fn which(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Query(query): Query<MatchQuery>,
) -> Result<Json<Value>, Problem> {
    let picture = node.directory.picture();
    let app_id = app_named(&picture, &app)?.id;
    let method = query.method.unwrap_or_else(|| "GET".to_owned());
    let host = query.host.unwrap_or_default().to_ascii_lowercase();
    let empty = RouteTable::default();
    let routes = picture.routes(app_id).unwrap_or(&empty);
    let (found, allow) = match routes.find(&method.to_ascii_uppercase(), &host, &query.path) {
        Ok(found) => (Some(found), Vec::new()),
        Err(NoMatch::Method(allow)) => (None, allow.into_iter().collect()),
        Err(NoMatch::Path | NoMatch::Undecodable) => (None, Vec::new()),
    };
    let params = found.iter().flat_map(|found| found.params.iter().cloned());
    Ok(Json(json!({
        "route": found.as_ref().map(|found| found.route.as_ref()),
        "params": params.collect::<BTreeMap<_, _>>(),
        "rest": found.as_ref().and_then(|found| found.rest.as_ref()),
        "allow": allow,
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewRoute {
    script_id: Option<ScriptId>,
    script: Option<String>,
    path: PathPattern,
    #[serde(default)]
    method: MethodPattern,
    host: Option<HostPattern>,
    #[serde(default)]
    dispatch_mode: DispatchMode,
    idempotency: Option<RoutePolicy>,
}

/// Two at once may both have seen no conflict; the database let one through.
fn conflict(error: RouteError) -> Problem {
    match error {
        RouteError::Store(StoreError::Duplicate) => Problem::conflict(
            "route_conflict",
            "another route was just made that matches the same",
        ),
        error => error.into(),
    }
}

async fn create(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Body(new): Body<NewRoute>,
) -> Result<(StatusCode, Json<Route>), Problem> {
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let script_id = named_script(&node, app_id, new.script_id, new.script.as_deref()).await?;
    let script_id = script_id.ok_or_else(|| {
        Problem::invalid_field(
            "script_id",
            "missing field `script_id` (or `script`, a name)",
        )
    })?;
    let NewRoute {
        path,
        method,
        host,
        dispatch_mode,
        idempotency,
        ..
    } = new;
    if let Some(policy) = &idempotency {
        check_ttl(policy.ttl_s)?;
    }
    let route = node
        .db
        .write(move |tx| {
            Box::pin(async move {
                let (id, created_at, updated_at) = (RouteId::new(), tx.now, tx.now);
                let route = Route {
                    id,
                    app_id,
                    script_id,
                    method,
                    host,
                    path,
                    dispatch_mode,
                    idempotency,
                    created_at,
                    updated_at,
                };
                put(tx, &route).await?;
                Ok(route)
            })
        })
        .await
        .map_err(conflict)?;
    node.refresh_directory().await;
    Ok((StatusCode::CREATED, Json(route)))
}

fn route_id(text: &str) -> Result<RouteId, Problem> {
    text.parse()
        .map_err(|_| RouteError::NotFound(text.to_owned()).into())
}

async fn show(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<Json<Route>, Problem> {
    let route = sql::get(&mut node.db.read().await?, route_id(&id)?).await?;
    Ok(Json(route.ok_or(RouteError::NotFound(id))?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    script_id: Option<ScriptId>,
    script: Option<String>,
    path: Option<PathPattern>,
    method: Option<MethodPattern>,
    #[serde(default, deserialize_with = "given")]
    host: Option<Option<HostPattern>>,
    dispatch_mode: Option<DispatchMode>,
    #[serde(default, deserialize_with = "given")]
    idempotency: Option<Option<RoutePolicy>>,
}

async fn change(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
    Body(change): Body<Change>,
) -> Result<Json<Route>, Problem> {
    let id = route_id(&id)?;
    let route = sql::get(&mut node.db.read().await?, id).await?;
    let app_id = route
        .ok_or_else(|| RouteError::NotFound(id.to_string()))?
        .app_id;
    let script_id = named_script(&node, app_id, change.script_id, change.script.as_deref()).await?;
    if let Some(Some(policy)) = &change.idempotency {
        check_ttl(policy.ttl_s)?;
    }
    let route = node
        .db
        .write(move |tx| {
            Box::pin(async move {
                let known = sql::get(tx.conn().await?, id).await?;
                let mut route = known.ok_or_else(|| RouteError::NotFound(id.to_string()))?;
                route.script_id = script_id.unwrap_or(route.script_id);
                route.path = change.path.unwrap_or(route.path);
                route.method = change.method.unwrap_or(route.method);
                route.host = change.host.unwrap_or(route.host);
                route.dispatch_mode = change.dispatch_mode.unwrap_or(route.dispatch_mode);
                route.idempotency = change.idempotency.unwrap_or(route.idempotency);
                route.updated_at = tx.now;
                put(tx, &route).await?;
                Ok(route)
            })
        })
        .await
        .map_err(conflict)?;
    node.refresh_directory().await;
    Ok(Json(route))
}

async fn remove(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let id = route_id(&id)?;
    node.db
        .write(move |tx| {
            Box::pin(async move {
                if !sql::delete(tx, id).await? {
                    return Err(RouteError::NotFound(id.to_string()));
                }
                directory::raise_version(tx).await?;
                Ok(())
            })
        })
        .await?;
    node.refresh_directory().await;
    Ok(StatusCode::NO_CONTENT)
}
