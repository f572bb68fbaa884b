//! The outbox: its rows and the statements that put them in, claim them and take them out.
//!
//! A row's `due_at` says when it may be claimed: when it is due, or, while it is leased, when
//! the lease ends. So one index serves the claim, however many rows are leased or wait for
//! later. A claim raises `attempt`; `(id, attempt, lease_owner)` is the fence that every later
//! write about the row carries.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{Delivery, DeliveryId, Payload, WorkerId};
use crate::apps::AppId;
use crate::executions::sql::{Ended, insert as insert_executions, insert_abandoned};
use crate::executions::{AbandonedExecution, ExecutionError, Log};
use crate::scripts::ScriptId;
use crate::store::{Grouped, StoreError, Tx, chunks, on};

/// A new row of the outbox.
pub struct NewDelivery {
    /// What it delivers. Its attempt is 1 when it is born claimed, else 0.
    pub delivery: Delivery,
    /// Its payload as JSON.
    pub payload: String,
    /// The worker that works on it at once, and for how long its lease lasts.
    pub born_claimed: Option<(WorkerId, TimeDelta)>,
}

impl Grouped for NewDelivery {
    type Output = ();

    async fn apply(tx: &mut Tx, items: &[Self]) -> Result<Vec<()>, StoreError> {
        let now = tx.now;
        for chunk in chunks(items) {
            on!(&mut tx.conn, |c| {
                let mut query = sqlx::QueryBuilder::new(
                    "insert into outbox (id, app_id, script_id, invocation_type, payload, request_id,
                        trigger_depth, reply_to, attempt, attempts_max, due_at, lease_owner,
                        created_at) ",
                );
                query.push_values(chunk, |mut row, new| {
                    let delivery = &new.delivery;
                    let lease = new.born_claimed;
                    row.push_bind(delivery.id)
                        .push_bind(delivery.app_id)
                        .push_bind(delivery.script_id)
                        .push_bind(delivery.invocation_type.as_str())
                        .push_bind(new.payload.as_str())
                        .push_bind(delivery.request_id)
                        .push_bind(i64::from(delivery.trigger_depth))
                        .push_bind(delivery.reply_to)
                        .push_bind(i64::from(delivery.attempt))
                        .push_bind(i64::from(delivery.attempts_max))
                        .push_bind(lease.map_or(now, |(_, lasts)| now + lasts))
                        .push_bind(lease.map(|(worker, _)| worker))
                        .push_bind(now);
                });
                query.build().execute(c).await.map(|_| ())
            })?;
        }
        Ok(vec![(); items.len()])
    }
}

/// The end of a delivery: its row goes, and what became of it stays.
#[derive(Debug)]
pub struct Completion {
    /// The delivery.
    pub id: DeliveryId,
    /// The claim under which it was worked on.
    pub attempt: u32,
    /// The worker that holds the lease.
    pub worker: WorkerId,
    /// The execution, if there was one.
    pub ended: Option<Ended>,
    /// What to record when the caller is gone.
    pub abandoned: Option<AbandonedExecution>,
}

impl Completion {
    /// The same without the words of the guest.
    pub fn trimmed(&self) -> Self {
        let ended = self.ended.clone().map(|mut ended| {
            ended.log = Log {
                lines: Vec::new(),
                truncated: true,
            };
            ended.execution.error = Some(ExecutionError::new("the details could not be stored"));
            ended
        });
        Self {
            ended,
            abandoned: self.abandoned.clone(),
            ..*self
        }
    }
}

impl Grouped for Arc<Completion> {
    /// Whether the lease still held; if not, nothing was written.
    type Output = bool;

    async fn apply(tx: &mut Tx, items: &[Self]) -> Result<Vec<bool>, StoreError> {
        let mut held = std::collections::HashSet::with_capacity(items.len());
        for chunk in chunks(items) {
            let gone: Vec<DeliveryId> = on!(&mut tx.conn, |c| {
                let mut query = sqlx::QueryBuilder::new("delete from outbox where ");
                let mut fences = query.separated(" or ");
                for item in chunk {
                    fences
                        .push("(id = ")
                        .push_bind_unseparated(item.id)
                        .push_unseparated(" and attempt = ")
                        .push_bind_unseparated(i64::from(item.attempt))
                        .push_unseparated(" and lease_owner = ")
                        .push_bind_unseparated(item.worker)
                        .push_unseparated(")");
                }
                query.push(" returning id");
                query.build_query_scalar().fetch_all(c).await
            })?;
            held.extend(gone);
        }
        let fenced: Vec<bool> = items.iter().map(|item| held.contains(&item.id)).collect();
        let kept = || {
            items
                .iter()
                .zip(&fenced)
                .filter(|(_, held)| **held)
                .map(|(item, _)| item)
        };
        insert_executions(tx, kept().filter_map(|item| item.ended.as_ref())).await?;
        insert_abandoned(tx, kept().filter_map(|item| item.abandoned.as_ref())).await?;
        Ok(fenced)
    }
}

#[derive(sqlx::FromRow)]
struct DeliveryRow {
    id: DeliveryId,
    app_id: AppId,
    script_id: ScriptId,
    invocation_type: String,
    payload: String,
    request_id: Uuid,
    trigger_depth: i64,
    reply_to: Option<WorkerId>,
    attempt: i64,
    attempts_max: i64,
}

impl TryFrom<DeliveryRow> for Delivery {
    type Error = StoreError;

    fn try_from(row: DeliveryRow) -> Result<Self, StoreError> {
        let inconsistent = |column, problem: String| StoreError::Inconsistent {
            table: "outbox",
            column,
            id: row.id.to_string(),
            problem,
        };
        let number = |column, value: i64| {
            u32::try_from(value).map_err(|error| inconsistent(column, error.to_string()))
        };
        let payload: Payload = serde_json::from_str(&row.payload)
            .map_err(|error| inconsistent("payload", error.to_string()))?;
        Ok(Self {
            payload: Arc::new(payload),
            trigger_depth: number("trigger_depth", row.trigger_depth)?,
            attempt: number("attempt", row.attempt)?,
            attempts_max: number("attempts_max", row.attempts_max)?,
            id: row.id,
            app_id: row.app_id,
            script_id: row.script_id,
            invocation_type: row.invocation_type,
            request_id: row.request_id,
            reply_to: row.reply_to,
        })
    }
}

/// A claimed row: the delivery, or what is known of one that cannot be read. An unreadable row
/// must go the same way as any other, or it would be claimed for ever.
pub struct Claimed {
    /// Its id.
    pub id: DeliveryId,
    /// The app.
    pub app_id: AppId,
    /// The script.
    pub script_id: ScriptId,
    /// The attempt that the claim began.
    pub attempt: u32,
    /// The delivery.
    pub delivery: Result<Delivery, StoreError>,
}

/// Claim at most `limit` due rows for `worker`, those longest due first.
pub async fn claim(
    tx: &mut Tx,
    worker: WorkerId,
    lease: TimeDelta,
    limit: i64,
) -> Result<Vec<Claimed>, StoreError> {
    // The selection uses the index outbox_due. The condition on due_at stands outside again:
    // that is what makes it right when two claim at once; skipping locked rows only saves
    // waiting for each other.
    macro_rules! claim_text {
        ($lock:literal) => {
            concat!(
                "with due as materialized (
                    select id from outbox where due_at <= $1 order by due_at limit $2 ",
                $lock,
                ")
                update outbox
                set attempt = attempt + 1, lease_owner = $3, due_at = $4
                from due
                where outbox.id = due.id and outbox.due_at <= $1
                returning outbox.id, app_id, script_id, invocation_type, payload, request_id,
                          trigger_depth, reply_to, attempt, attempts_max"
            )
        };
    }
    let (now, sql) = (
        tx.now,
        tx.conn
            .text(claim_text!(""), claim_text!("for update skip locked")),
    );
    let rows: Vec<DeliveryRow> = on!(&mut tx.conn, |c| {
        sqlx::query_as(sql)
            .bind(now)
            .bind(limit)
            .bind(worker)
            .bind(now + lease)
            .fetch_all(c)
            .await
    })?;
    let claimed = rows.into_iter().map(|row| Claimed {
        id: row.id,
        app_id: row.app_id,
        script_id: row.script_id,
        attempt: u32::try_from(row.attempt).unwrap_or(u32::MAX),
        delivery: row.try_into(),
    });
    let mut claimed: Vec<Claimed> = claimed.collect();
    // RETURNING has no order.
    claimed.sort_by_key(|claimed| claimed.id);
    Ok(claimed)
}

/// Extend every lease of `worker` that has not ended. Uses the index outbox_lease.
pub async fn heartbeat(tx: &mut Tx, worker: WorkerId, lease: TimeDelta) -> Result<(), StoreError> {
    const SQL: &str = "update outbox set due_at = $2 where lease_owner = $1 and due_at > $3";
    let (now, until) = (tx.now, tx.now + lease);
    on!(&mut tx.conn, |c| {
        sqlx::query(SQL)
            .bind(worker)
            .bind(until)
            .bind(now)
            .execute(c)
            .await
            .map(|_| ())
    })?;
    Ok(())
}

/// Give back every lease of `worker`, or everybody's when there is none: they are due at once.
/// Answers how many.
pub async fn release(tx: &mut Tx, worker: Option<WorkerId>) -> Result<u64, StoreError> {
    const OF: &str = "update outbox set due_at = $1, lease_owner = null where lease_owner = $2";
    const ALL: &str =
        "update outbox set due_at = $1, lease_owner = null where lease_owner is not null";
    let now = tx.now;
    Ok(on!(&mut tx.conn, |c| {
        let query = match worker {
            Some(worker) => sqlx::query(OF).bind(now).bind(worker),
            None => sqlx::query(ALL).bind(now),
        };
        query.execute(c).await.map(|done| done.rows_affected())
    })?)
}

/// How many deliveries wait or are worked on, and since when the longest due one is due.
pub async fn depth(tx: &mut Tx) -> Result<(i64, Option<DateTime<Utc>>), StoreError> {
    const SQL: &str = "select count(*), min(due_at) from outbox";
    Ok(on!(&mut tx.conn, |c| sqlx::query_as(SQL)
        .fetch_one(c)
        .await)?)
}
