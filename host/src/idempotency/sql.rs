//! The statements of idempotency keys.

use chrono::{DateTime, TimeDelta, Utc};

use super::{KeptAnswer, Key, Known};
use crate::apps::AppId;
use crate::executions::ExecutionId;
use crate::store::{Conn, StoreError, Tx, on};

#[derive(sqlx::FromRow)]
struct KnownRow {
    request_hash: Vec<u8>,
    execution_id: ExecutionId,
    done: bool,
    answer: Option<String>,
}

/// Take a key for `execution_id`. Answers who took it before, if somebody did and it still holds.
/// The row is unique: of two at once, one waits for the other's commit.
pub async fn claim(
    tx: &mut Tx,
    app_id: AppId,
    key: &Key,
    execution_id: ExecutionId,
) -> Result<Option<Known>, StoreError> {
    const TAKE: &str = "
        insert into idempotency_keys (app_id, scope, key, request_hash, execution_id, expires_at)
        values ($1, $2, $3, $4, $5, $6)
        on conflict (app_id, scope, key) do update set
            request_hash = excluded.request_hash, execution_id = excluded.execution_id,
            answer = null, expires_at = excluded.expires_at
        where idempotency_keys.expires_at <= $7";
    const KNOWN: &str = "
        select request_hash, execution_id, answer,
               not exists (select 1 from outbox where outbox.id = execution_id) as done
        from idempotency_keys
        where app_id = $1 and scope = $2 and key = $3";
    let now = tx.now;
    let ttl = TimeDelta::from_std(key.ttl).unwrap_or(TimeDelta::days(1));
    let taken = on!(tx.conn().await?, |c| {
        sqlx::query(TAKE)
            .bind(app_id)
            .bind(key.scope)
            .bind(key.key.as_str())
            .bind(&key.request_hash[..])
            .bind(execution_id)
            .bind(now + ttl)
            .bind(now)
            .execute(c)
            .await
            .map(|done| done.rows_affected())
    })?;
    if taken > 0 {
        return Ok(None);
    }
    let known: KnownRow = on!(tx.conn().await?, |c| {
        sqlx::query_as(KNOWN)
            .bind(app_id)
            .bind(key.scope)
            .bind(key.key.as_str())
            .fetch_one(c)
            .await
    })?;
    Ok(Some(Known {
        same_request: known.request_hash == key.request_hash,
        execution_id: known.execution_id,
        done: known.done,
        // One that cannot be read counts as not kept.
        answer: known
            .answer
            .and_then(|text| serde_json::from_str(&text).ok()),
    }))
}

/// Whether somebody took a key that still holds.
pub async fn is_known(conn: &mut Conn, app_id: AppId, key: &Key) -> Result<bool, StoreError> {
    const SQL: &str = "
        select count(*) from idempotency_keys
        where app_id = $1 and scope = $2 and key = $3 and expires_at > $4";
    let now = conn.now().await?;
    let count: i64 = on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(app_id)
        .bind(key.scope)
        .bind(key.key.as_str())
        .bind(now)
        .fetch_one(c)
        .await)?;
    Ok(count > 0)
}

/// Keep the answer of the call that took the key.
pub async fn keep(
    tx: &mut Tx,
    app_id: AppId,
    key: &Key,
    execution_id: ExecutionId,
    answer: &KeptAnswer,
) -> Result<(), StoreError> {
    // The key may be another call's by now.
    const SQL: &str = "
        update idempotency_keys set answer = $4
        where app_id = $1 and scope = $2 and key = $3 and execution_id = $5";
    let text = serde_json::to_string(answer).expect("our own types are always JSON");
    on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(app_id)
            .bind(key.scope)
            .bind(key.key.as_str())
            .bind(text.as_str())
            .bind(execution_id)
            .execute(c)
            .await
            .map(|_| ())
    })?;
    Ok(())
}

/// Let a key go whose call was not run.
pub async fn forget(
    tx: &mut Tx,
    app_id: AppId,
    key: &Key,
    execution_id: ExecutionId,
) -> Result<(), StoreError> {
    const SQL: &str = "
        delete from idempotency_keys
        where app_id = $1 and scope = $2 and key = $3 and execution_id = $4";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(app_id)
        .bind(key.scope)
        .bind(key.key.as_str())
        .bind(execution_id)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}

/// Remove keys that hold no more, at most `limit`. Answers how many.
pub async fn sweep(tx: &mut Tx, now: DateTime<Utc>, limit: i64) -> Result<u64, StoreError> {
    const SQL: &str = "
        delete from idempotency_keys where (app_id, scope, key) in (
            select app_id, scope, key from idempotency_keys where expires_at <= $1 limit $2)";
    Ok(on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(now)
        .bind(limit)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?)
}
