//! The statements of routes.

use chrono::{DateTime, Utc};

use super::{DispatchMode, Route, RouteId, TrailingSlash};
use crate::apps::AppId;
use crate::scripts::ScriptId;
use crate::store::{Conn, Readable, StoreError, Tx, on};

#[derive(sqlx::FromRow)]
struct RouteRow {
    id: RouteId,
    app_id: AppId,
    script_id: ScriptId,
    method: String,
    host: Option<String>,
    path: String,
    dispatch_mode: String,
    trailing_slash: String,
    idempotency: Option<String>,
    cors: Option<String>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl TryFrom<RouteRow> for Route {
    type Error = StoreError;

    fn try_from(row: RouteRow) -> Result<Self, StoreError> {
        let inconsistent = |column| {
            move |problem| StoreError::Inconsistent {
                table: "routes",
                column,
                id: row.id.to_string(),
                problem,
            }
        };
        Ok(Self {
            id: row.id,
            app_id: row.app_id,
            script_id: row.script_id,
            method: row.method.parse().map_err(inconsistent("method"))?,
            host: row
                .host
                .map(|host| host.parse())
                .transpose()
                .map_err(inconsistent("host"))?,
            path: row.path.parse().map_err(inconsistent("path"))?,
            dispatch_mode: match row.dispatch_mode.as_str() {
                "sync" => DispatchMode::Sync,
                "async" => DispatchMode::Async,
                other => return Err(inconsistent("dispatch_mode")(format!("`{other}`"))),
            },
            trailing_slash: match row.trailing_slash.as_str() {
                "strict" => TrailingSlash::Strict,
                "redirect" => TrailingSlash::Redirect,
                other => return Err(inconsistent("trailing_slash")(format!("`{other}`"))),
            },
            idempotency: row
                .idempotency
                .map(|text| serde_json::from_str(&text))
                .transpose()
                .map_err(|error| inconsistent("idempotency")(error.to_string()))?,
            cors: row
                .cors
                .map(|text| serde_json::from_str(&text))
                .transpose()
                .map_err(|error| inconsistent("cors")(error.to_string()))?,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

macro_rules! select_routes {
    ($rest:literal) => {
        concat!(
            "select id, app_id, script_id, method, host, path, dispatch_mode, trailing_slash, idempotency,
                    cors, created_at, updated_at
             from routes ",
            $rest
        )
    };
}

/// Every route of the instance.
pub async fn all(conn: &mut Conn) -> Result<Readable<Route>, StoreError> {
    const SQL: &str = select_routes!("");
    let rows: Vec<RouteRow> = on!(conn, |c| sqlx::query_as(SQL).fetch_all(c).await)?;
    Ok(rows.into_iter().map(Route::try_from).collect())
}

/// The routes of an app that are on a host of their own.
pub async fn with_hosts(conn: &mut Conn, app_id: AppId) -> Result<Vec<Route>, StoreError> {
    const SQL: &str = select_routes!("where app_id = $1 and host is not null order by id");
    let rows: Vec<RouteRow> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(app_id)
        .fetch_all(c)
        .await)?;
    rows.into_iter().map(Route::try_from).collect()
}

/// A page of an app's routes in the order of their making: those after `after`.
pub async fn page(
    conn: &mut Conn,
    app_id: AppId,
    after: Option<RouteId>,
    limit: i64,
) -> Result<Vec<Route>, StoreError> {
    // The nil UUID sorts before every id.
    const SQL: &str = select_routes!("where app_id = $1 and id > $2 order by id limit $3");
    let after = after.unwrap_or_else(|| uuid::Uuid::nil().into());
    let rows: Vec<RouteRow> = on!(conn, |c| {
        sqlx::query_as(SQL)
            .bind(app_id)
            .bind(after)
            .bind(limit)
            .fetch_all(c)
            .await
    })?;
    rows.into_iter().map(Route::try_from).collect()
}

/// One route.
pub async fn get(conn: &mut Conn, id: RouteId) -> Result<Option<Route>, StoreError> {
    const SQL: &str = select_routes!("where id = $1");
    let row: Option<RouteRow> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(id)
        .fetch_optional(c)
        .await)?;
    row.map(Route::try_from).transpose()
}

/// The app that a route belongs to, whether the rest of it can be read or not.
pub async fn app_of(conn: &mut Conn, id: RouteId) -> Result<Option<AppId>, StoreError> {
    const SQL: &str = "select app_id from routes where id = $1";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(id)
        .fetch_optional(c)
        .await)?)
}

/// The route of an app that has this conflict key.
pub async fn by_conflict_key(
    conn: &mut Conn,
    app_id: AppId,
    key: &str,
) -> Result<Option<Route>, StoreError> {
    const SQL: &str = select_routes!("where app_id = $1 and conflict_key = $2");
    let row: Option<RouteRow> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(app_id)
        .bind(key)
        .fetch_optional(c)
        .await)?;
    row.map(Route::try_from).transpose()
}

/// Add a route, or write it over the one of its id.
pub async fn upsert(tx: &mut Tx, route: &Route) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into routes (id, app_id, script_id, method, host, path, dispatch_mode,
                            conflict_key, trailing_slash, idempotency, cors, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
        on conflict (id) do update set
            script_id = excluded.script_id, method = excluded.method, host = excluded.host,
            path = excluded.path, dispatch_mode = excluded.dispatch_mode,
            conflict_key = excluded.conflict_key, trailing_slash = excluded.trailing_slash,
            idempotency = excluded.idempotency, cors = excluded.cors,
            updated_at = excluded.updated_at";
    const OURS: &str = "our own types are always JSON";
    let idempotency = route.idempotency.as_ref().map(serde_json::to_string);
    let idempotency = idempotency.transpose().expect(OURS);
    let cors = route.cors.as_ref().map(serde_json::to_string);
    let cors = cors.transpose().expect(OURS);
    on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(route.id)
            .bind(route.app_id)
            .bind(route.script_id)
            .bind(route.method.to_string())
            .bind(route.host.as_ref().map(ToString::to_string))
            .bind(route.path.to_string())
            .bind(route.dispatch_mode.as_str())
            .bind(route.conflict_key())
            .bind(route.trailing_slash.as_str())
            .bind(idempotency)
            .bind(cors)
            .bind(route.created_at)
            .bind(route.updated_at)
            .execute(c)
            .await
            .map(|_| ())
    })?;
    Ok(())
}

/// Remove a route. Says whether there was one.
pub async fn delete(tx: &mut Tx, id: RouteId) -> Result<bool, StoreError> {
    const SQL: &str = "delete from routes where id = $1";
    let gone = on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(id)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(gone > 0)
}
