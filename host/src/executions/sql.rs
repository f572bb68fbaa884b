//! The statements of executions and abandoned executions.

use chrono::{DateTime, Utc};
use std::collections::BTreeMap;
use uuid::Uuid;

use super::{
    AbandonReason, AbandonedExecution, Execution, ExecutionError, ExecutionId, Log, OutcomeKind,
};
use crate::apps::AppId;
use crate::dispatch::WorkerId;
use crate::json::{self, DEPTH_MAX};
use crate::sandbox::{Level, LogLine};
use crate::scripts::ScriptId;
use crate::store::{Conn, Engine, Grouped, Id, StoreError, Tx, insert_all, on};
use crate::triggers::TriggerId;

/// An execution that ended, with its log.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The execution.
    pub execution: Execution,
    /// Its log.
    pub log: Log,
}

impl Grouped for Ended {
    type Output = ();

    fn app(&self) -> Option<Uuid> {
        Some(self.execution.app_id.uuid())
    }

    async fn apply(tx: &mut Tx, items: &[Self]) -> Result<Vec<()>, StoreError> {
        insert(tx, items.iter()).await?;
        Ok(vec![(); items.len()])
    }
}

/// Add executions.
pub async fn insert<'e>(
    tx: &mut Tx,
    ended: impl Iterator<Item = &'e Ended>,
) -> Result<(), StoreError> {
    insert_leased(tx, ended, None).await
}

/// Add executions; on SQLite, with a worker, those whose deliveries it has leased for this attempt.
pub async fn insert_leased<'e>(
    tx: &mut Tx,
    ended: impl Iterator<Item = &'e Ended>,
    worker: Option<WorkerId>,
) -> Result<(), StoreError> {
    debug_assert!(worker.is_none() || tx.engine() == Engine::Sqlite);
    let ended: Vec<&Ended> = ended.collect();
    insert_all!(tx, "executions", ended.as_slice(), |ended| {
        id: ended.execution.id,
        app_id: ended.execution.app_id,
        script_id: ended.execution.script_id,
        script_version: i64::from(ended.execution.script_version),
        delivery_id: ended.execution.delivery_id,
        attempt: i64::from(ended.execution.attempt),
        parent_id: ended.execution.parent_id,
        trigger_id: ended.execution.trigger_id,
        invocation_type: ended.execution.invocation_type.as_str(),
        request_id: ended.execution.request_id,
        trace_id: ended.execution.trace_id.as_deref(),
        outcome: ended.execution.outcome.as_str(),
        status: ended.execution.status.map(i64::from),
        started_at: ended.execution.started_at,
        duration_us: saturating(ended.execution.duration_us),
        fuel: saturating(ended.execution.fuel),
        error: ended.execution.error.as_ref().map(json),
        logs: json(&ended.log.lines),
        logs_truncated: ended.log.truncated,
    }, where |statement| if let Some(worker) = worker {
        // Their delivery_id and attempt.
        const LEASED: &str = " and exists (select 1 from outbox
            where id = column5 and attempt = column6 and lease_owner = ";
        statement.push(LEASED).push_bind(worker).push(")");
    });
    Ok(())
}

fn saturating(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("our own types are always JSON")
}

#[derive(sqlx::FromRow)]
struct ExecutionRow {
    id: ExecutionId,
    app_id: AppId,
    script_id: ScriptId,
    script_version: i64,
    delivery_id: Option<Uuid>,
    attempt: i64,
    parent_id: Option<ExecutionId>,
    trigger_id: Option<TriggerId>,
    invocation_type: String,
    request_id: Uuid,
    trace_id: Option<String>,
    outcome: String,
    status: Option<i64>,
    started_at: DateTime<Utc>,
    duration_us: i64,
    fuel: i64,
    error: Option<String>,
}

#[derive(sqlx::FromRow)]
struct LoggedRow {
    #[sqlx(flatten)]
    execution: ExecutionRow,
    logs: String,
    logs_truncated: bool,
}

fn inconsistent(id: ExecutionId, column: &'static str, problem: impl ToString) -> StoreError {
    StoreError::Inconsistent {
        table: "executions",
        column,
        id: id.to_string(),
        problem: problem.to_string(),
    }
}

impl TryFrom<ExecutionRow> for Execution {
    type Error = StoreError;

    fn try_from(row: ExecutionRow) -> Result<Self, StoreError> {
        let id = row.id;
        let number = |column, value: i64| {
            u32::try_from(value).map_err(|error| inconsistent(id, column, error))
        };
        Ok(Self {
            script_version: number("script_version", row.script_version)?,
            attempt: number("attempt", row.attempt)?,
            outcome: OutcomeKind::parse(&row.outcome)
                .ok_or_else(|| inconsistent(id, "outcome", &row.outcome))?,
            status: row.status.and_then(|status| u16::try_from(status).ok()),
            duration_us: row.duration_us.unsigned_abs(),
            fuel: row.fuel.unsigned_abs(),
            // One that cannot be read is shown as it stands.
            error: row.error.map(|text| {
                serde_json::from_str(&text).unwrap_or_else(|_| ExecutionError::new(text))
            }),
            id,
            app_id: row.app_id,
            script_id: row.script_id,
            delivery_id: row.delivery_id,
            parent_id: row.parent_id,
            trigger_id: row.trigger_id,
            invocation_type: row.invocation_type,
            request_id: row.request_id,
            trace_id: row.trace_id,
            started_at: row.started_at,
        })
    }
}

macro_rules! execution_columns {
    () => {
        "id, app_id, script_id, script_version, delivery_id, attempt, parent_id, trigger_id,
         invocation_type, request_id, trace_id, outcome, status, started_at, duration_us, fuel, error"
    };
}

const OF_APP: &str = concat!(
    "select ",
    execution_columns!(),
    " from executions where app_id = "
);

/// Narrow a query to the executions whose `$column` is `$value`. That whose own id this is has no
/// entry in the index of the column.
macro_rules! narrow {
    ($query:expr, $column:literal, $value:expr) => {
        $query
            .push(concat!(
                " and id in (select id from executions where ",
                $column,
                " = "
            ))
            .push_bind($value)
            .push(concat!(
                " and ",
                $column,
                " <> id union all select id from executions where id = "
            ))
            .push_bind($value)
            .push(concat!(" and ", $column, " = id)"))
    };
}

/// The app of an execution.
pub async fn app_of(conn: &mut Conn, id: ExecutionId) -> Result<Option<AppId>, StoreError> {
    const SQL: &str = "select app_id from executions where id = $1";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(id)
        .fetch_optional(c)
        .await)?)
}

/// One execution with its log.
pub async fn get(conn: &mut Conn, id: ExecutionId) -> Result<Option<Ended>, StoreError> {
    const SQL: &str = concat!(
        "select ",
        execution_columns!(),
        ", logs, logs_truncated from executions where id = $1"
    );
    let row: Option<LoggedRow> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(id)
        .fetch_optional(c)
        .await)?;
    let Some(row) = row else { return Ok(None) };
    let log = Log {
        lines: lines(&row.logs, row.execution.started_at),
        truncated: row.logs_truncated,
    };
    Ok(Some(Ended {
        execution: row.execution.try_into()?,
        log,
    }))
}

/// The lines of a log. Fields that no reader holds, which older versions kept, are repaired; what
/// is no log at all is one line.
fn lines(text: &str, at: DateTime<Utc>) -> Vec<LogLine> {
    // Lines, a line, its fields.
    const FIELD_DEPTH: usize = 3;
    let as_it_stands = serde_json::from_str(text);
    let repaired = || serde_json::from_str(&json::readable(text, DEPTH_MAX + FIELD_DEPTH));
    as_it_stands.or_else(|_| repaired()).unwrap_or_else(|_| {
        vec![LogLine {
            at,
            level: Level::Warn,
            message: format!("this log cannot be read; it is: {text}"),
            fields: BTreeMap::new(),
        }]
    })
}

/// Which executions a list shows.
#[derive(Debug, Default, Clone)]
pub struct Filter {
    /// Of this script.
    pub script_id: Option<ScriptId>,
    /// With this outcome.
    pub outcome: Option<OutcomeKind>,
    /// Of this request.
    pub request_id: Option<Uuid>,
    /// Of this trace.
    pub trace_id: Option<String>,
    /// Of this delivery.
    pub delivery_id: Option<Uuid>,
    /// Fired so.
    pub invocation_type: Option<String>,
    /// Begun then or later.
    pub since: Option<DateTime<Utc>>,
    /// Begun earlier.
    pub until: Option<DateTime<Utc>>,
}

/// A page of an app's executions, newest first: those before `before`.
pub async fn page(
    conn: &mut Conn,
    app_id: AppId,
    filter: &Filter,
    before: Option<ExecutionId>,
    limit: i64,
) -> Result<Vec<Execution>, StoreError> {
    let rows: Vec<ExecutionRow> = on!(conn, |c| {
        let mut query = sqlx::QueryBuilder::new(OF_APP);
        query.push_bind(app_id);
        if let Some(before) = before {
            query.push(" and id < ").push_bind(before);
        }
        if let Some(script_id) = filter.script_id {
            query.push(" and script_id = ").push_bind(script_id);
        }
        if let Some(outcome) = filter.outcome {
            query.push(" and outcome = ").push_bind(outcome.as_str());
        }
        if let Some(request_id) = filter.request_id {
            narrow!(query, "request_id", request_id);
        }
        if let Some(trace_id) = &filter.trace_id {
            query.push(" and trace_id = ").push_bind(trace_id.as_str());
        }
        if let Some(delivery_id) = filter.delivery_id {
            narrow!(query, "delivery_id", delivery_id);
        }
        if let Some(invocation_type) = &filter.invocation_type {
            query
                .push(" and invocation_type = ")
                .push_bind(invocation_type.as_str());
        }
        if let Some(since) = filter.since {
            query.push(" and started_at >= ").push_bind(since);
        }
        if let Some(until) = filter.until {
            query.push(" and started_at < ").push_bind(until);
        }
        query.push(" order by id desc limit ").push_bind(limit);
        query.build_query_as().fetch_all(c).await
    })?;
    rows.into_iter().map(Execution::try_from).collect()
}

/// Every execution of an app that one request led to, oldest first, at most `limit`.
pub async fn of_request(
    conn: &mut Conn,
    app_id: AppId,
    request_id: Uuid,
    limit: i64,
) -> Result<Vec<Execution>, StoreError> {
    let rows: Vec<ExecutionRow> = on!(conn, |c| {
        let mut query = sqlx::QueryBuilder::new(OF_APP);
        query.push_bind(app_id);
        narrow!(query, "request_id", request_id);
        query.push(" order by id limit ").push_bind(limit);
        query.build_query_as().fetch_all(c).await
    })?;
    rows.into_iter().map(Execution::try_from).collect()
}

/// Add an abandoned execution.
pub async fn insert_abandoned(tx: &mut Tx, row: &AbandonedExecution) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into abandoned_executions (id, execution_id, app_id, script_id, reason, created_at)
        values ($1, $2, $3, $4, $5, $6)";
    on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(row.id)
            .bind(row.execution_id)
            .bind(row.app_id)
            .bind(row.script_id)
            .bind(row.reason.as_str())
            .bind(row.created_at)
            .execute(c)
            .await
            .map(|_| ())
    })?;
    Ok(())
}

/// Whether an execution is kept.
pub async fn is_there(conn: &mut Conn, id: ExecutionId) -> Result<bool, StoreError> {
    const SQL: &str = "select exists (select 1 from executions where id = $1)";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(id)
        .fetch_one(c)
        .await)?)
}

/// Keep an execution that was recorded as abandoned, although its caller was answered.
pub async fn set_right(tx: &mut Tx, ended: &Ended) -> Result<(), StoreError> {
    const SQL: &str = "
        delete from abandoned_executions where execution_id = $1 and app_id = $2";
    let id = ended.execution.id;
    if !is_there(tx.conn().await?, id).await? {
        insert(tx, std::iter::once(ended)).await?;
    }
    let app_id = ended.execution.app_id;
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(id)
        .bind(app_id)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}

#[derive(sqlx::FromRow)]
struct AbandonedRow {
    id: Id<AbandonedExecution>,
    execution_id: ExecutionId,
    app_id: AppId,
    script_id: ScriptId,
    reason: String,
    created_at: DateTime<Utc>,
}

/// A page of an app's abandoned executions, newest first: those before `before`.
pub async fn abandoned_page(
    conn: &mut Conn,
    app_id: AppId,
    before: Id<AbandonedExecution>,
    limit: i64,
) -> Result<Vec<AbandonedExecution>, StoreError> {
    const SQL: &str = "
        select id, execution_id, app_id, script_id, reason, created_at from abandoned_executions
        where app_id = $1 and id < $2 order by id desc limit $3";
    let rows: Vec<AbandonedRow> = on!(conn, |c| {
        sqlx::query_as(SQL)
            .bind(app_id)
            .bind(before)
            .bind(limit)
            .fetch_all(c)
            .await
    })?;
    let parsed = rows.into_iter().map(|row| {
        let reason = AbandonReason::parse(&row.reason).ok_or_else(|| StoreError::Inconsistent {
            table: "abandoned_executions",
            column: "reason",
            id: row.id.to_string(),
            problem: row.reason.clone(),
        })?;
        let AbandonedRow {
            id,
            execution_id,
            app_id,
            script_id,
            created_at,
            ..
        } = row;
        Ok(AbandonedExecution {
            id,
            execution_id,
            app_id,
            script_id,
            reason,
            created_at,
        })
    });
    parsed.collect()
}
