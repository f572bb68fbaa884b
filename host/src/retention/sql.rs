//! The statements of retention.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::Aged;
use crate::store::{Conn, StoreError, Tx, on};

/// How many rows have an id below `before`.
pub async fn count(conn: &mut Conn, aged: Aged, before: Uuid) -> Result<u64, StoreError> {
    let sql = match aged {
        Aged::DeadLetters => "select count(*) from dead_letters where id < $1",
        Aged::AbandonedExecutions => "select count(*) from abandoned_executions where id < $1",
        Aged::Executions => "select count(*) from executions where id < $1",
        Aged::Audit => "select count(*) from audit where id < $1",
    };
    let count: i64 = on!(conn, |c| sqlx::query_scalar(sql)
        .bind(before)
        .fetch_one(c)
        .await)?;
    Ok(count.unsigned_abs())
}

/// How many idempotency keys hold no more.
pub async fn count_keys(conn: &mut Conn, now: DateTime<Utc>) -> Result<u64, StoreError> {
    const SQL: &str = "select count(*) from idempotency_keys where expires_at <= $1";
    let count: i64 = on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(now)
        .fetch_one(c)
        .await)?;
    Ok(count.unsigned_abs())
}

/// Remove rows with an id below `before`, the oldest first, at most `limit`. Answers how many.
pub async fn remove(tx: &mut Tx, aged: Aged, before: Uuid, limit: i64) -> Result<u64, StoreError> {
    macro_rules! text {
        ($table:literal, $lock:literal) => {
            concat!(
                "delete from ",
                $table,
                " where id in (select id from ",
                $table,
                " where id < $1 order by id limit $2 ",
                $lock,
                ")"
            )
        };
    }
    macro_rules! texts {
        ($table:literal) => {
            tx.text(text!($table, ""), text!($table, "for update skip locked"))
        };
    }
    let sql = match aged {
        Aged::DeadLetters => texts!("dead_letters"),
        Aged::AbandonedExecutions => texts!("abandoned_executions"),
        Aged::Executions => texts!("executions"),
        Aged::Audit => texts!("audit"),
    };
    Ok(on!(tx.conn().await?, |c| sqlx::query(sql)
        .bind(before)
        .bind(limit)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?)
}
