//! The statements of dead letters.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{DeadLetter, DeadLetterId, Listed, Named, Resolution, State};
use crate::apps::AppId;
use crate::dispatch::sql::RetryRow;
use crate::dispatch::{Attempt, DeliveryId, Payload};
use crate::executions::ExecutionId;
use crate::identity::UserId;
use crate::json::Json;
use crate::scripts::ScriptId;
use crate::store::{Conn, StoreError, Tx, on};
use crate::telemetry::trace::TraceParent;
use crate::triggers::TriggerId;

#[derive(sqlx::FromRow)]
struct DeadLetterRow {
    id: DeadLetterId,
    app_id: AppId,
    script_id: ScriptId,
    script_version: i64,
    trigger_id: Option<TriggerId>,
    source: String,
    payload: String,
    request_id: Uuid,
    parent_execution_id: Option<ExecutionId>,
    traceparent: Option<String>,
    principal_id: Option<UserId>,
    trigger_depth: i64,
    #[sqlx(flatten)]
    retry: RetryRow,
    order_key: Option<String>,
    delivery_id: DeliveryId,
    replay_of: Option<DeadLetterId>,
    history: String,
    attempts: i64,
    last_error: String,
    first_attempt_at: DateTime<Utc>,
    last_attempt_at: DateTime<Utc>,
    state: String,
    handler_failed: bool,
    reason: Option<String>,
    replayed_as: Option<DeliveryId>,
    settled_by: Option<UserId>,
    settled_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
}

impl TryFrom<DeadLetterRow> for DeadLetter {
    type Error = StoreError;

    fn try_from(row: DeadLetterRow) -> Result<Self, StoreError> {
        let inconsistent = |(column, problem): (&'static str, String)| StoreError::Inconsistent {
            table: "dead_letters",
            column,
            id: row.id.to_string(),
            problem,
        };
        let number = |column, value: i64| {
            u32::try_from(value).map_err(|error| inconsistent((column, error.to_string())))
        };
        // Whatever stands there can be looked at and settled.
        let payload = serde_json::from_str(&row.payload)
            .unwrap_or_else(|_| Payload::Event(Json::text(&row.payload).into_raw()));
        let history: Vec<Attempt> = serde_json::from_str(&row.history).unwrap_or_default();
        Ok(Self {
            payload: Arc::new(payload),
            history,
            script_version: number("script_version", row.script_version)?,
            trigger_depth: number("trigger_depth", row.trigger_depth)?,
            attempts: number("attempts", row.attempts)?,
            state: State::parse(&row.state)
                .ok_or_else(|| inconsistent(("state", row.state.clone())))?,
            reason: row.reason.as_deref().and_then(Resolution::parse),
            retry: row.retry.try_into().map_err(inconsistent)?,
            id: row.id,
            app_id: row.app_id,
            script_id: row.script_id,
            trigger_id: row.trigger_id,
            source: row.source,
            request_id: row.request_id,
            parent_execution_id: row.parent_execution_id,
            trace: row.traceparent.as_deref().and_then(TraceParent::parse),
            principal_id: row.principal_id,
            order_key: row.order_key,
            delivery_id: row.delivery_id,
            replay_of: row.replay_of,
            last_error: row.last_error,
            first_attempt_at: row.first_attempt_at,
            last_attempt_at: row.last_attempt_at,
            handler_failed: row.handler_failed,
            replayed_as: row.replayed_as,
            settled_by: row.settled_by,
            settled_at: row.settled_at,
            created_at: row.created_at,
        })
    }
}

/// The columns of dead letters, with these for what happened and for every attempt: they can be of
/// any size. A macro, because a statement's text is a literal.
macro_rules! columns {
    ($payload:literal, $history:literal) => {
        concat!(
            "select id, app_id, script_id, script_version, trigger_id, source, request_id,
                    parent_execution_id, traceparent, principal_id, trigger_depth, attempts_max,
                    backoff, base_ms, jitter_pct, order_key, delivery_id, replay_of, attempts,
                    last_error, first_attempt_at, last_attempt_at, state, handler_failed, reason,
                    replayed_as, settled_by, settled_at, created_at, ",
            $payload,
            " as payload, ",
            $history,
            " as history"
        )
    };
}

const WHOLE: &str = concat!(
    columns!("payload", "history"),
    " from dead_letters where app_id = "
);
const LISTED: &str = concat!(
    columns!("'{}'", "'[]'"),
    " from dead_letters where app_id = "
);

/// Which dead letters are meant.
#[derive(Debug, Default, Clone)]
pub struct Filter {
    /// In this state.
    pub state: Option<State>,
    /// Fired so.
    pub source: Option<String>,
    /// Of this script.
    pub script_id: Option<ScriptId>,
    /// Of this trigger.
    pub trigger_id: Option<TriggerId>,
    /// Whose last error has this in it, whatever the case.
    pub error: Option<String>,
    /// Whose handler failed, or did not.
    pub handler_failed: Option<bool>,
    /// Made then or later.
    pub since: Option<DateTime<Utc>>,
    /// Made earlier.
    pub until: Option<DateTime<Utc>>,
    /// With an id up to this one: those that were there at the beginning of a bulk call.
    pub up_to: Option<DeadLetterId>,
}

impl Filter {
    /// Whether it lets everything through.
    pub fn is_empty(&self) -> bool {
        self.source.is_none()
            && self.script_id.is_none()
            && self.trigger_id.is_none()
            && self.error.is_none()
            && self.handler_failed.is_none()
            && self.since.is_none()
            && self.until.is_none()
    }
}

macro_rules! push_filter {
    ($query:expr, $app_id:expr, $filter:expr) => {{
        let (query, filter) = (&mut $query, $filter);
        query.push_bind($app_id);
        if let Some(state) = filter.state {
            // A literal: only so does the index of unresolved ones serve.
            query.push(match state {
                State::Unresolved => " and state = 'unresolved'",
                State::Replayed => " and state = 'replayed'",
                State::Resolved => " and state = 'resolved'",
            });
        }
        if let Some(source) = &filter.source {
            query.push(" and source = ").push_bind(source.as_str());
        }
        if let Some(script_id) = filter.script_id {
            query.push(" and script_id = ").push_bind(script_id);
        }
        if let Some(trigger_id) = filter.trigger_id {
            query.push(" and trigger_id = ").push_bind(trigger_id);
        }
        if let Some(error) = &filter.error {
            query
                .push(" and lower(last_error) like ")
                .push_bind(format!("%{}%", escaped_like(error)))
                .push(r" escape '\'");
        }
        if let Some(handler_failed) = filter.handler_failed {
            query
                .push(" and handler_failed = ")
                .push_bind(handler_failed);
        }
        if let Some(since) = filter.since {
            query.push(" and created_at >= ").push_bind(since);
        }
        if let Some(until) = filter.until {
            query.push(" and created_at < ").push_bind(until);
        }
        if let Some(up_to) = filter.up_to {
            query.push(" and id <= ").push_bind(up_to);
        }
    }};
}

fn escaped_like(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.to_lowercase().chars() {
        if matches!(c, '%' | '_' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// A page of an app's dead letters, newest first: those before `before`, without what happened.
pub async fn page(
    conn: &mut Conn,
    app_id: AppId,
    filter: &Filter,
    before: Option<DeadLetterId>,
    limit: i64,
) -> Result<Vec<Listed>, StoreError> {
    let rows: Vec<DeadLetterRow> = on!(conn, |c| {
        let mut query = sqlx::QueryBuilder::new(LISTED);
        push_filter!(query, app_id, filter);
        if let Some(before) = before {
            query.push(" and id < ").push_bind(before);
        }
        query.push(" order by id desc limit ").push_bind(limit);
        query.build_query_as().fetch_all(c).await
    })?;
    let letters = rows.into_iter().map(DeadLetter::try_from);
    letters.map(|letter| letter.map(Listed::from)).collect()
}

/// The ids of the oldest that `filter` lets through, at most `limit`, and their scripts'.
pub async fn oldest_named(
    conn: &mut Conn,
    app_id: AppId,
    filter: &Filter,
    limit: i64,
) -> Result<Vec<Named>, StoreError> {
    Ok(on!(conn, |c| {
        let mut query =
            sqlx::QueryBuilder::new("select id, script_id from dead_letters where app_id = ");
        push_filter!(query, app_id, filter);
        query.push(" order by id limit ").push_bind(limit);
        query.build_query_as().fetch_all(c).await
    })?)
}

/// In which order dead letters are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The oldest first.
    OldestFirst,
    /// The newest first.
    NewestFirst,
}

/// How many dead letters are read at once.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// At most so many.
    pub limit: i64,
    /// Up to the one that takes them over so many bytes.
    pub bytes_max: usize,
}

#[derive(sqlx::FromRow)]
struct FoundRow {
    #[sqlx(flatten)]
    letter: DeadLetterRow,
    found: i64,
}

/// The first that `filter` lets through, before `before` if that is given, whole; and whether there
/// are more. The sizes are summed before a payload is read, so what does not fit is not read.
pub async fn whole(
    conn: &mut Conn,
    app_id: AppId,
    filter: &Filter,
    before: Option<DeadLetterId>,
    order: Order,
    bounds: Bounds,
) -> Result<(Vec<DeadLetter>, bool), StoreError> {
    const SIZED: &str = "
        with sized as materialized (
            select id, octet_length(payload) + octet_length(history) as bytes
            from dead_letters where app_id = ";
    const SUMMED: &str = "), summed as materialized (
            select id, row_number() over places as place, sum(bytes) over places - bytes as before
            from sized window places as (order by id";
    const FOUND: &str = concat!(
        ")) ",
        columns!("payload", "history"),
        ", (select count(*) from sized) as found
         from dead_letters where id in (select id from summed where place <= "
    );
    let direction = match order {
        Order::OldestFirst => "",
        Order::NewestFirst => " desc",
    };
    let bytes_max = i64::try_from(bounds.bytes_max).unwrap_or(i64::MAX);
    let rows: Vec<FoundRow> = on!(conn, |c| {
        let mut query = sqlx::QueryBuilder::new(SIZED);
        push_filter!(query, app_id, filter);
        if let Some(before) = before {
            query.push(" and id < ").push_bind(before);
        }
        query.push(" order by id").push(direction);
        query.push(" limit ").push_bind(bounds.limit + 1);
        query.push(SUMMED).push(direction).push(FOUND);
        query.push_bind(bounds.limit).push(" and before < ");
        query.push_bind(bytes_max).push(") order by id");
        query.push(direction);
        query.build_query_as().fetch_all(c).await
    })?;
    let more = rows
        .first()
        .is_some_and(|row| row.found > rows.len() as i64);
    let letters = rows.into_iter().map(|row| DeadLetter::try_from(row.letter));
    Ok((letters.collect::<Result<_, _>>()?, more))
}

/// How many `filter` lets through.
pub async fn count(conn: &mut Conn, app_id: AppId, filter: &Filter) -> Result<i64, StoreError> {
    Ok(on!(conn, |c| {
        let mut query =
            sqlx::QueryBuilder::new("select count(*) from dead_letters where app_id = ");
        push_filter!(query, app_id, filter);
        query.build_query_scalar().fetch_one(c).await
    })?)
}

/// The newest of all that `filter` lets through.
pub async fn newest(
    conn: &mut Conn,
    app_id: AppId,
    filter: &Filter,
) -> Result<Option<DeadLetterId>, StoreError> {
    Ok(on!(conn, |c| {
        let mut query = sqlx::QueryBuilder::new("select id from dead_letters where app_id = ");
        push_filter!(query, app_id, filter);
        query.push(" order by id desc limit 1");
        query.build_query_scalar().fetch_optional(c).await
    })?)
}

/// How many there are in each state and of each source.
pub async fn counts(
    conn: &mut Conn,
    app_id: AppId,
) -> Result<Vec<(String, String, i64)>, StoreError> {
    const SQL: &str = "
        select state, source, count(*) from dead_letters where app_id = $1
        group by state, source order by state, source";
    Ok(on!(conn, |c| sqlx::query_as(SQL)
        .bind(app_id)
        .fetch_all(c)
        .await)?)
}

/// One of an app.
pub async fn get(
    conn: &mut Conn,
    app_id: AppId,
    id: DeadLetterId,
) -> Result<Option<DeadLetter>, StoreError> {
    let row: Option<DeadLetterRow> = on!(conn, |c| {
        let mut query = sqlx::QueryBuilder::new(WHOLE);
        query.push_bind(app_id).push(" and id = ").push_bind(id);
        query.build_query_as().fetch_optional(c).await
    })?;
    row.map(DeadLetter::try_from).transpose()
}

/// The app of a dead letter.
pub async fn app_of(conn: &mut Conn, id: DeadLetterId) -> Result<Option<AppId>, StoreError> {
    const SQL: &str = "select app_id from dead_letters where id = $1";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(id)
        .fetch_optional(c)
        .await)?)
}

/// Add one.
pub async fn insert(tx: &mut Tx, letter: &DeadLetter) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into dead_letters (id, app_id, script_id, script_version, trigger_id, source, payload,
            request_id, parent_execution_id, principal_id, trigger_depth, attempts_max, backoff,
            base_ms, jitter_pct, order_key, delivery_id, replay_of, history, attempts, last_error,
            first_attempt_at, last_attempt_at, state, handler_failed, created_at, traceparent)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
                $19, $20, $21, $22, $23, $24, $25, $26, $27)";
    let history = Json::written(&letter.history);
    let payload = letter.payload.json();
    on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(letter.id)
            .bind(letter.app_id)
            .bind(letter.script_id)
            .bind(i64::from(letter.script_version))
            .bind(letter.trigger_id)
            .bind(letter.source.as_str())
            .bind(payload.as_str())
            .bind(letter.request_id)
            .bind(letter.parent_execution_id)
            .bind(letter.principal_id)
            .bind(i64::from(letter.trigger_depth))
            .bind(i64::from(letter.retry.attempts_max))
            .bind(letter.retry.backoff.as_str())
            .bind(i64::try_from(letter.retry.base_ms).unwrap_or(i64::MAX))
            .bind(i64::from(letter.retry.jitter_pct))
            .bind(letter.order_key.as_deref())
            .bind(letter.delivery_id)
            .bind(letter.replay_of)
            .bind(history.as_str())
            .bind(i64::from(letter.attempts))
            .bind(letter.last_error.as_str())
            .bind(letter.first_attempt_at)
            .bind(letter.last_attempt_at)
            .bind(letter.state.as_str())
            .bind(letter.handler_failed)
            .bind(letter.created_at)
            .bind(letter.trace.map(|trace| trace.to_string()))
            .execute(c)
            .await
            .map(|_| ())
    })?;
    Ok(())
}

/// It was put back. Says whether it could be: only an unresolved one can, and only once.
pub async fn replayed(
    tx: &mut Tx,
    id: DeadLetterId,
    replayed_as: DeliveryId,
    by: UserId,
) -> Result<bool, StoreError> {
    const SQL: &str = "
        update dead_letters set state = 'replayed', replayed_as = $2, settled_by = $3, settled_at = $4
        where id = $1 and state = 'unresolved'";
    let now = tx.now;
    let rows = on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(id)
        .bind(replayed_as)
        .bind(by)
        .bind(now)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(rows > 0)
}

/// It needs no further work. Says whether it was unresolved.
pub async fn resolved(
    tx: &mut Tx,
    app_id: AppId,
    id: DeadLetterId,
    reason: Resolution,
    by: UserId,
) -> Result<bool, StoreError> {
    const SQL: &str = "
        update dead_letters set state = 'resolved', reason = $3, settled_by = $4, settled_at = $5
        where app_id = $1 and id = $2 and state = 'unresolved'";
    let now = tx.now;
    let rows = on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(app_id)
            .bind(id)
            .bind(reason.as_str())
            .bind(by)
            .bind(now)
            .execute(c)
            .await
            .map(|done| done.rows_affected())
    })?;
    Ok(rows > 0)
}

/// A handler that was told of it failed.
pub async fn handler_failed(tx: &mut Tx, id: DeadLetterId) -> Result<(), StoreError> {
    const SQL: &str = "update dead_letters set handler_failed = true where id = $1";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(id)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}
