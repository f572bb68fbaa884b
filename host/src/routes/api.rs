//! The HTTP API of routes.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pattern::is_reserved;
use super::table::{NoMatch, RouteTable};
use super::{
    DispatchMode, MethodPattern, PathPattern, Route, RouteError, RouteId, TrailingSlash, put, sql,
};
use crate::apps::HostPattern;
use crate::cors;
use crate::directory;
use crate::http::answer::{Created, NoContent, Page};
use crate::http::endpoints::{Api, Of, Rule};
use crate::http::etag::Tagged;
use crate::http::extract::{
    Body, PageQuery, Path, Query, app_named, check_ttl, given, page_cursor,
};
use crate::http::problem::{Problem, ProblemType};
use crate::idempotency::RoutePolicy;
use crate::identity::capability::Capability;
use crate::node::Node;
use crate::quotas::objects::{self, Object};
use crate::scripts::ScriptId;
use crate::scripts::api::named_script;
use crate::store::{Expected, StoreError};

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get(
            "/apps/{app}/routes",
            Rule::App(Capability::ReadRoutes, Of::App),
            list,
        )
        .called("listRoutes", "List the routes of an app")
        .post(
            "/apps/{app}/routes",
            Rule::App(Capability::WriteRoutes, Of::App),
            create,
        )
        .called("createRoute", "Add a route to an app")
        .may_fail(&[ProblemType::RouteConflict, ProblemType::TooMany])
        .get(
            "/apps/{app}/routes/match",
            Rule::App(Capability::ReadRoutes, Of::App),
            which,
        )
        .called("matchRoute", "Find the route that a request would take")
        .get(
            "/routes/{id}",
            Rule::App(Capability::ReadRoutes, Of::Route),
            show,
        )
        .called("getRoute", "Show a route")
        .patch(
            "/routes/{id}",
            Rule::App(Capability::WriteRoutes, Of::Route),
            change,
        )
        .called("changeRoute", "Change a route")
        .may_fail(&[ProblemType::RouteConflict])
        .delete(
            "/routes/{id}",
            Rule::App(Capability::WriteRoutes, Of::Route),
            remove,
        )
        .called("deleteRoute", "Delete a route")
}

async fn list(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Route>>, Problem> {
    let after = page_cursor(query.cursor.as_deref())?;
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let routes = sql::page(
        &mut node.db.read().await?,
        app_id,
        after,
        query.limit.and_one(),
    )
    .await?;
    Ok(Page::of(routes, query.limit.get(), |route| {
        route.id.to_string()
    }))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct MatchQuery {
    method: Option<String>,
    host: Option<String>,
    path: String,
}

/// Which route a request would take.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RouteMatch")]
struct Match {
    /// None where it would be answered 404 or 405.
    route: Option<Route>,
    /// What the parameters of the route's path hold.
    params: BTreeMap<String, String>,
    rest: Option<String>,
    /// The methods that the path takes, where it is not found for the method alone.
    allow: Vec<String>,
}

async fn which(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Query(query): Query<MatchQuery>,
) -> Result<Json<Match>, Problem> {
    let picture = node.directory.picture();
    let app_id = app_named(&picture, &app)?.id;
    let method = query.method.unwrap_or_else(|| "GET".to_owned());
    let host = query.host.unwrap_or_default().to_ascii_lowercase();
    let empty = RouteTable::default();
    let routes = picture.routes(app_id).unwrap_or(&empty);
    let found = routes.find(&method.to_ascii_uppercase(), &host, &query.path);
    let (found, allow) = match found {
        _ if is_reserved(&query.path) => (None, Vec::new()),
        Ok(found) => (Some(found), Vec::new()),
        Err(NoMatch::Method(allow)) => (None, allow.into_iter().collect()),
        Err(NoMatch::Path | NoMatch::Undecodable) => (None, Vec::new()),
    };
    let params = found.iter().flat_map(|found| found.params.iter().cloned());
    Ok(Json(Match {
        params: params.collect(),
        rest: found.as_ref().and_then(|found| found.rest.clone()),
        route: found.map(|found| (*found.route).clone()),
        allow,
    }))
}

#[derive(Deserialize, JsonSchema)]
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
    #[serde(default)]
    trailing_slash: TrailingSlash,
    idempotency: Option<RoutePolicy>,
    cors: Option<cors::Policy>,
}

/// Two at once may both have seen no conflict; the database let one through.
fn conflict(error: RouteError) -> Problem {
    match error {
        RouteError::Store(StoreError::Duplicate) => Problem::new(
            ProblemType::RouteConflict,
            "another route was just made that matches the same",
        ),
        error => error.into(),
    }
}

async fn create(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Body(new): Body<NewRoute>,
) -> Result<Created<Route>, Problem> {
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
        trailing_slash,
        idempotency,
        cors,
        ..
    } = new;
    if let Some(policy) = &idempotency {
        check_ttl(policy.ttl_s)?;
    }
    let routes_max = node.quotas.quotas().objects;
    let route = node
        .db
        .write(move |tx| {
            Box::pin(async move {
                directory::raise_version(tx).await?;
                objects::check::<RouteError>(tx, app_id, Object::Routes, routes_max).await?;
                let (id, created_at, updated_at) = (RouteId::new(), tx.now, tx.now);
                let route = Route {
                    id,
                    app_id,
                    script_id,
                    method,
                    host,
                    path,
                    dispatch_mode,
                    trailing_slash,
                    idempotency,
                    cors,
                    created_at,
                    updated_at,
                };
                put(tx, &route).await?;
                tx.creates(id);
                Ok(route)
            })
        })
        .await
        .map_err(conflict)?;
    node.refresh_directory().await;
    Ok(Created(route))
}

async fn show(
    State(node): State<Arc<Node>>,
    Path(id): Path<RouteId>,
) -> Result<Tagged<Json<Route>>, Problem> {
    let route = sql::get(&mut node.db.read().await?, id).await?;
    let route = route.ok_or_else(|| RouteError::NotFound(id.to_string()))?;
    Ok(Tagged::of(route))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RouteChange")]
struct Change {
    script_id: Option<ScriptId>,
    script: Option<String>,
    path: Option<PathPattern>,
    method: Option<MethodPattern>,
    #[serde(default, deserialize_with = "given")]
    host: Option<Option<HostPattern>>,
    dispatch_mode: Option<DispatchMode>,
    trailing_slash: Option<TrailingSlash>,
    #[serde(default, deserialize_with = "given")]
    idempotency: Option<Option<RoutePolicy>>,
    #[serde(default, deserialize_with = "given")]
    cors: Option<Option<cors::Policy>>,
}

async fn change(
    State(node): State<Arc<Node>>,
    Path(id): Path<RouteId>,
    expected: Expected,
    Body(change): Body<Change>,
) -> Result<Tagged<Json<Route>>, Problem> {
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
                directory::raise_version(tx).await?;
                let known = sql::get(tx.conn().await?, id).await?;
                expected.check(known.as_ref())?;
                let mut route = known.ok_or_else(|| RouteError::NotFound(id.to_string()))?;
                route.script_id = script_id.unwrap_or(route.script_id);
                route.path = change.path.unwrap_or(route.path);
                route.method = change.method.unwrap_or(route.method);
                route.host = change.host.unwrap_or(route.host);
                route.dispatch_mode = change.dispatch_mode.unwrap_or(route.dispatch_mode);
                route.trailing_slash = change.trailing_slash.unwrap_or(route.trailing_slash);
                route.idempotency = change.idempotency.unwrap_or(route.idempotency);
                route.cors = change.cors.unwrap_or(route.cors);
                route.updated_at = tx.now;
                put(tx, &route).await?;
                Ok(route)
            })
        })
        .await
        .map_err(conflict)?;
    node.refresh_directory().await;
    Ok(Tagged::of(route))
}

async fn remove(
    State(node): State<Arc<Node>>,
    Path(id): Path<RouteId>,
    expected: Expected,
) -> Result<NoContent, Problem> {
    node.db
        .write(move |tx| {
            Box::pin(async move {
                directory::raise_version(tx).await?;
                // One that cannot be read can be removed, too.
                if expected != Expected::Anything {
                    expected.check(sql::get(tx.conn().await?, id).await?.as_ref())?;
                }
                match sql::delete(tx, id).await? {
                    true => Ok(()),
                    false => Err(RouteError::NotFound(id.to_string())),
                }
            })
        })
        .await?;
    node.refresh_directory().await;
    Ok(NoContent)
}
