//! The statements of overviews: each stops at a bound, however large the tables are.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::waiting::Backlog;
use super::{Sample, WAITING_MAX};
use crate::apps::AppId;
use crate::executions::{ExecutionId, OutcomeKind};
use crate::store::{Conn, StoreError, Tx, on};

/// The newest executions of an app that were accepted in a time, at most `limit`.
///
/// Ids begin with the time of their making, so `executions_app (app_id, id)` serves it.
pub async fn samples(
    conn: &mut Conn,
    app_id: AppId,
    since: DateTime<Utc>,
    until: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Sample>, StoreError> {
    const SQL: &str = "
        select id, started_at, outcome, duration_us from executions
        where app_id = $1 and id >= $2 and id < $3 order by id desc limit $4";
    let rows: Vec<(ExecutionId, DateTime<Utc>, String, i64)> = on!(conn, |c| {
        sqlx::query_as(SQL)
            .bind(app_id)
            .bind(first_id(since))
            .bind(first_id(until))
            .bind(limit)
            .fetch_all(c)
            .await
    })?;
    let sample = |(id, started_at, outcome, duration_us): (ExecutionId, _, String, i64)| {
        let outcome = OutcomeKind::parse(&outcome).ok_or_else(|| StoreError::Inconsistent {
            table: "executions",
            column: "outcome",
            id: id.to_string(),
            problem: outcome,
        })?;
        Ok(Sample {
            started_at,
            outcome,
            duration_us: duration_us.unsigned_abs(),
        })
    };
    rows.into_iter().map(sample).collect()
}

/// The smallest id that could be made at an instant or later.
fn first_id(instant: DateTime<Utc>) -> Uuid {
    let milliseconds = instant.timestamp_millis().max(0).unsigned_abs();
    uuid::Builder::from_unix_timestamp_millis(milliseconds, &[0; 10]).into_uuid()
}

/// How many dead letters of an app nobody settled, counted up to [`WAITING_MAX`].
pub async fn unresolved(conn: &mut Conn, app_id: AppId) -> Result<i64, StoreError> {
    // `dead_letters_unresolved (app_id, id)` serves it.
    const SQL: &str = "
        select count(*) from (
            select 1 from dead_letters where app_id = $1 and state = 'unresolved' limit $2
        ) as counted";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(app_id)
        .bind(WAITING_MAX)
        .fetch_one(c)
        .await)?)
}

/// What waited in an app in a time, oldest first; minutes in which nothing did are left out.
pub async fn backlogs(
    conn: &mut Conn,
    app_id: AppId,
    since: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<Vec<Backlog>, StoreError> {
    const SQL: &str = "
        select at, waiting, oldest_due_at from waiting_samples
        where app_id = $1 and at >= $2 and at < $3 order by at";
    let rows: Vec<(DateTime<Utc>, i64, DateTime<Utc>)> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(app_id)
        .bind(since)
        .bind(until)
        .fetch_all(c)
        .await)?;
    let backlog = |(at, waiting, due_at)| Backlog {
        at,
        waiting,
        oldest_due_at: Some(due_at),
    };
    Ok(rows.into_iter().map(backlog).collect())
}

/// Keep what waits in an app in a minute, unless another node did.
pub async fn keep(tx: &mut Tx, app_id: AppId, backlog: &Backlog) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into waiting_samples (app_id, at, waiting, oldest_due_at) values ($1, $2, $3, $4)
        on conflict (app_id, at) do nothing";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(app_id)
        .bind(backlog.at)
        .bind(backlog.waiting)
        .bind(backlog.oldest_due_at)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// Forget what waited before an instant. `waiting_samples_age (at)` serves it.
pub async fn forget(tx: &mut Tx, before: DateTime<Utc>) -> Result<(), StoreError> {
    const SQL: &str = "delete from waiting_samples where at < $1";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(before)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}
