//! The outbox: its rows and the statements that put them in, claim them and take them out.
//!
//! A row's `due_at` says when it may be claimed: when it is due, or, while it is leased, when
//! the lease ends. So one index serves the claim, however many rows are leased or wait for
//! later. A row that is `held` (its trigger is paused) or `blocked` (one with the same order key
//! comes before it) is not in that index at all, so that no claim ever steps over it. A claim
//! raises `attempt`; `(id, attempt, lease_owner)` is the fence that every later write about the
//! row carries.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::retry::{Backoff, RetryPolicy};
use super::{Attempt, Delivery, DeliveryId, Payload, WorkerId};
use crate::apps::AppId;
use crate::dead_letters::{self, DeadLetter, DeadLetterId};
use crate::executions::sql::{Ended, insert as insert_executions, insert_abandoned};
use crate::executions::{AbandonedExecution, ExecutionError, ExecutionId, Log};
use crate::idempotency::{self, KeptAnswer, Key, Known};
use crate::identity::UserId;
use crate::scripts::ScriptId;
use crate::store::{Conn, Grouped, StoreError, Tx, chunks, on};
use crate::triggers::TriggerId;

/// A new row of the outbox.
#[derive(Debug, Clone)]
pub struct NewDelivery {
    /// What it delivers. Its attempt is 1 when it is born claimed, else 0.
    pub delivery: Delivery,
    /// The worker that works on it at once, and for how long its lease lasts.
    pub born_claimed: Option<(WorkerId, TimeDelta)>,
    /// Whether it is kept for later.
    pub held: bool,
    /// What makes it happen once.
    pub key: Option<Key>,
}

/// What became of a new row.
#[derive(Debug, Clone)]
pub enum Placed {
    /// It is there, with its lease.
    Claimed,
    /// It is there and due.
    Due,
    /// It is there and waits for another of its order key, or for its trigger to be resumed.
    Waiting,
    /// It is not there: its key was used before.
    Known(Known),
}

impl Grouped for NewDelivery {
    type Output = Placed;

    async fn apply(tx: &mut Tx, items: &[Self]) -> Result<Vec<Placed>, StoreError> {
        insert(tx, items).await
    }
}

struct Row<'r> {
    new: &'r NewDelivery,
    payload: String,
    order_seq: Option<i64>,
    blocked: bool,
}

/// Put deliveries in.
pub async fn insert(tx: &mut Tx, items: &[NewDelivery]) -> Result<Vec<Placed>, StoreError> {
    let mut last_seq = last_of_order_keys(tx, items).await?;
    let mut placed = Vec::with_capacity(items.len());
    let mut rows = Vec::with_capacity(items.len());
    for new in items {
        if let Some(key) = &new.key
            && let Some(known) =
                idempotency::sql::claim(tx, new.delivery.app_id, key, new.delivery.id.of()).await?
        {
            placed.push(Placed::Known(known));
            continue;
        }
        let last = new.delivery.order_key.as_ref();
        let last = last.and_then(|key| last_seq.get_mut(key.as_str()));
        let blocked = last.as_ref().is_some_and(|last| **last > 0);
        let order_seq = last.map(|last| {
            *last += 1;
            *last
        });
        placed.push(match new.born_claimed {
            _ if blocked || new.held => Placed::Waiting,
            Some(_) => Placed::Claimed,
            None => Placed::Due,
        });
        rows.push(Row {
            payload: new.delivery.payload.json(),
            new,
            order_seq,
            blocked,
        });
    }
    for chunk in chunks(&rows) {
        insert_rows(tx, chunk).await?;
    }
    Ok(placed)
}

/// The last number given out for each order key among `items`; 0 when none waits. On Postgres it
/// locks the keys until the commit, so that nobody ends the delivery before unseen.
async fn last_of_order_keys<'i>(
    tx: &mut Tx,
    items: &'i [NewDelivery],
) -> Result<HashMap<&'i str, i64>, StoreError> {
    let keys = items
        .iter()
        .filter_map(|new| new.delivery.order_key.as_deref());
    // In one order everywhere, or two could wait for each other.
    let keys: std::collections::BTreeSet<&str> = keys.collect();
    let mut last = HashMap::with_capacity(keys.len());
    for key in keys {
        const SQL: &str = "select coalesce(max(order_seq), 0) from outbox where order_key = $1";
        lock_order_key(tx, key).await?;
        let seq: i64 = on!(&mut tx.conn, |c| sqlx::query_scalar(SQL)
            .bind(key)
            .fetch_one(c)
            .await)?;
        last.insert(key, seq);
    }
    Ok(last)
}

async fn lock_order_key(tx: &mut Tx, key: &str) -> Result<(), StoreError> {
    const SQL: &str = "select pg_advisory_xact_lock(hashtextextended($1, 0))";
    if let Conn::Postgres(held) = &mut tx.conn {
        sqlx::query(SQL).bind(key).execute(&mut **held).await?;
    }
    Ok(())
}

async fn insert_rows(tx: &mut Tx, rows: &[Row<'_>]) -> Result<(), StoreError> {
    let now = tx.now;
    on!(&mut tx.conn, |c| {
        let mut query = sqlx::QueryBuilder::new(
            "insert into outbox (id, app_id, script_id, script_version, trigger_id, invocation_type,
                payload, request_id, parent_execution_id, principal_id, trigger_depth, reply_to,
                dead_letter_id, attempt, attempts_max, backoff, base_ms, jitter_pct, due_at, lease_owner,
                created_at, order_key, order_seq, held, blocked) ",
        );
        query.push_values(rows, |mut values, row| {
            let delivery = &row.new.delivery;
            let waits = row.blocked || row.new.held;
            let lease = row.new.born_claimed.filter(|_| !waits);
            let attempt = if waits { 0 } else { delivery.attempt };
            values
                .push_bind(delivery.id)
                .push_bind(delivery.app_id)
                .push_bind(delivery.script_id)
                .push_bind(delivery.script_version.map(i64::from))
                .push_bind(delivery.trigger_id)
                .push_bind(delivery.invocation_type.as_str())
                .push_bind(row.payload.as_str())
                .push_bind(delivery.request_id)
                .push_bind(delivery.parent_execution_id)
                .push_bind(delivery.principal_id)
                .push_bind(i64::from(delivery.trigger_depth))
                .push_bind(delivery.reply_to)
                .push_bind(delivery.dead_letter_id)
                .push_bind(i64::from(attempt))
                .push_bind(i64::from(delivery.retry.attempts_max))
                .push_bind(delivery.retry.backoff.as_str())
                .push_bind(i64::try_from(delivery.retry.base_ms).unwrap_or(i64::MAX))
                .push_bind(i64::from(delivery.retry.jitter_pct))
                .push_bind(lease.map_or(now, |(_, lasts)| now + lasts))
                .push_bind(lease.map(|(worker, _)| worker))
                .push_bind(now)
                .push_bind(delivery.order_key.as_deref())
                .push_bind(row.order_seq)
                .push_bind(row.new.held)
                .push_bind(row.blocked);
        });
        query.build().execute(c).await.map(|_| ())
    })?;
    Ok(())
}

/// The end of an attempt: what is kept of it, and what becomes of its row.
#[derive(Debug, Clone)]
pub struct Completion {
    /// The delivery.
    pub id: DeliveryId,
    /// The claim under which it was worked on.
    pub attempt: u32,
    /// The worker that holds the lease.
    pub worker: WorkerId,
    /// The execution, if there was one.
    pub ended: Option<Ended>,
    /// Whether somebody waits for it to be written: a caller, or the next delivery of its key.
    pub is_awaited: bool,
    /// What becomes of the row.
    pub then: Then,
    /// The order key, whose next delivery may run once this row is gone.
    pub order_key: Option<String>,
    /// What else is written with it.
    pub also: Vec<Also>,
}

/// What becomes of a delivery's row after an attempt.
#[derive(Debug, Clone)]
pub enum Then {
    /// It goes: the delivery has its outcome.
    Gone,
    /// It is due again after a while.
    DueAfter(TimeDelta, Vec<Attempt>),
    /// It waits for its trigger to be resumed; the attempt was none.
    Held,
}

/// What is written together with the end of an attempt.
#[derive(Debug, Clone)]
pub enum Also {
    /// Nobody received the outcome.
    Abandoned(AbandonedExecution),
    /// The delivery used up its attempts.
    DeadLetter(Box<DeadLetter>),
    /// Somebody is told of that.
    Enqueue(Box<NewDelivery>),
    /// A handler of a dead letter failed.
    HandlerFailed(DeadLetterId),
    /// The answer is kept for whoever calls with the same key.
    Keep(AppId, Key, KeptAnswer),
}

/// What stands for words that the database did not take.
const NOT_STORED: &str = "the details could not be stored";

impl Completion {
    /// The same without the words of the guest.
    pub fn trimmed(&self) -> Self {
        let mut trimmed = self.clone();
        if let Some(ended) = &mut trimmed.ended {
            ended.log = Log {
                lines: Vec::new(),
                truncated: true,
            };
            ended.execution.error = Some(ExecutionError::new(NOT_STORED));
        }
        for also in &mut trimmed.also {
            if let Also::DeadLetter(letter) = also {
                letter.last_error = NOT_STORED.to_owned();
                for attempt in &mut letter.history {
                    attempt.error = NOT_STORED.to_owned();
                }
            }
        }
        if let Then::DueAfter(_, history) = &mut trimmed.then {
            for attempt in history {
                attempt.error = NOT_STORED.to_owned();
            }
        }
        trimmed
    }
}

impl Grouped for Arc<Completion> {
    /// Whether the lease still held; if not, nothing was written.
    type Output = bool;

    fn is_patient(&self) -> bool {
        !self.is_awaited
    }

    async fn apply(tx: &mut Tx, items: &[Self]) -> Result<Vec<bool>, StoreError> {
        let mut held = HashSet::with_capacity(items.len());
        let gone: Vec<&Self> = items
            .iter()
            .filter(|item| matches!(item.then, Then::Gone))
            .collect();
        for chunk in chunks(&gone) {
            held.extend(delete_fenced(tx, chunk).await?);
        }
        for item in items {
            if put_back(tx, item).await? {
                held.insert(item.id);
            }
        }
        let fenced: Vec<bool> = items.iter().map(|item| held.contains(&item.id)).collect();
        let kept: Vec<&Self> = items
            .iter()
            .zip(&fenced)
            .filter_map(|(item, held)| held.then_some(item))
            .collect();
        insert_executions(tx, kept.iter().filter_map(|item| item.ended.as_ref())).await?;
        for item in &kept {
            also(tx, &item.also).await?;
        }
        unblock_next(tx, &kept).await?;
        Ok(fenced)
    }
}

async fn delete_fenced(
    tx: &mut Tx,
    chunk: &[&Arc<Completion>],
) -> Result<Vec<DeliveryId>, StoreError> {
    Ok(on!(&mut tx.conn, |c| {
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
    })?)
}

/// Put a row back that does not go. Says whether it was put back.
async fn put_back(tx: &mut Tx, item: &Completion) -> Result<bool, StoreError> {
    const DUE: &str = "
        update outbox set lease_owner = null, due_at = $4, history = $5
        where id = $1 and attempt = $2 and lease_owner = $3";
    const HELD: &str = "
        update outbox set lease_owner = null, due_at = $4, held = true, attempt = attempt - 1
        where id = $1 and attempt = $2 and lease_owner = $3";
    let (sql, due_at, history) = match &item.then {
        Then::Gone => return Ok(false),
        Then::DueAfter(pause, history) => (DUE, tx.now + *pause, Some(json(history))),
        Then::Held => (HELD, tx.now, None),
    };
    let rows = on!(&mut tx.conn, |c| {
        let query = sqlx::query(sql).bind(item.id).bind(i64::from(item.attempt));
        let mut query = query.bind(item.worker).bind(due_at);
        if let Some(history) = history {
            query = query.bind(history);
        }
        query.execute(c).await.map(|done| done.rows_affected())
    })?;
    Ok(rows > 0)
}

async fn also(tx: &mut Tx, also: &[Also]) -> Result<(), StoreError> {
    for also in also {
        match also {
            Also::Abandoned(row) => insert_abandoned(tx, row).await?,
            Also::DeadLetter(letter) => dead_letters::sql::insert(tx, letter).await?,
            Also::Enqueue(new) => {
                insert(tx, std::slice::from_ref(&**new)).await?;
            }
            Also::HandlerFailed(id) => dead_letters::sql::handler_failed(tx, *id).await?,
            Also::Keep(app_id, key, answer) => {
                idempotency::sql::keep(tx, *app_id, key, answer).await?;
            }
        }
    }
    Ok(())
}

/// Let the next delivery of each order key run whose row before it went.
async fn unblock_next(tx: &mut Tx, kept: &[&Arc<Completion>]) -> Result<(), StoreError> {
    let gone = kept.iter().filter(|item| matches!(item.then, Then::Gone));
    let keys: std::collections::BTreeSet<&str> =
        gone.filter_map(|item| item.order_key.as_deref()).collect();
    for key in keys {
        const SQL: &str = "
            update outbox set blocked = false, due_at = $2
            where order_key = $1 and blocked
              and order_seq = (select min(order_seq) from outbox where order_key = $1)";
        lock_order_key(tx, key).await?;
        let now = tx.now;
        on!(&mut tx.conn, |c| sqlx::query(SQL)
            .bind(key)
            .bind(now)
            .execute(c)
            .await
            .map(|_| ()))?;
    }
    Ok(())
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("our own types are always JSON")
}

#[derive(sqlx::FromRow)]
struct DeliveryRow {
    id: DeliveryId,
    app_id: AppId,
    script_id: ScriptId,
    script_version: Option<i64>,
    trigger_id: Option<TriggerId>,
    invocation_type: String,
    payload: String,
    request_id: Uuid,
    parent_execution_id: Option<ExecutionId>,
    principal_id: Option<UserId>,
    trigger_depth: i64,
    reply_to: Option<WorkerId>,
    dead_letter_id: Option<DeadLetterId>,
    attempt: i64,
    #[sqlx(flatten)]
    retry: RetryRow,
    history: String,
    order_key: Option<String>,
}

/// The columns of a policy, wherever one is kept.
#[derive(sqlx::FromRow)]
pub struct RetryRow {
    attempts_max: i64,
    backoff: String,
    base_ms: i64,
    jitter_pct: i64,
}

impl TryFrom<RetryRow> for RetryPolicy {
    type Error = (&'static str, String);

    fn try_from(row: RetryRow) -> Result<Self, Self::Error> {
        let number =
            |column, value: i64| u32::try_from(value).map_err(|error| (column, error.to_string()));
        Ok(Self {
            attempts_max: number("attempts_max", row.attempts_max)?,
            backoff: Backoff::parse(&row.backoff).ok_or(("backoff", row.backoff))?,
            base_ms: u64::try_from(row.base_ms).map_err(|error| ("base_ms", error.to_string()))?,
            jitter_pct: number("jitter_pct", row.jitter_pct)?,
        })
    }
}

impl TryFrom<DeliveryRow> for Delivery {
    type Error = StoreError;

    fn try_from(row: DeliveryRow) -> Result<Self, StoreError> {
        let inconsistent = |(column, problem): (&'static str, String)| StoreError::Inconsistent {
            table: "outbox",
            column,
            id: row.id.to_string(),
            problem,
        };
        let number = |column, value: i64| {
            u32::try_from(value).map_err(|error| inconsistent((column, error.to_string())))
        };
        let payload: Payload = serde_json::from_str(&row.payload)
            .map_err(|error| inconsistent(("payload", error.to_string())))?;
        let history = serde_json::from_str(&row.history)
            .map_err(|error| inconsistent(("history", error.to_string())))?;
        let version = row.script_version;
        Ok(Self {
            payload: Arc::new(payload),
            history,
            script_version: version
                .map(|version| number("script_version", version))
                .transpose()?,
            trigger_depth: number("trigger_depth", row.trigger_depth)?,
            attempt: number("attempt", row.attempt)?,
            retry: row.retry.try_into().map_err(inconsistent)?,
            id: row.id,
            app_id: row.app_id,
            script_id: row.script_id,
            trigger_id: row.trigger_id,
            invocation_type: row.invocation_type,
            request_id: row.request_id,
            parent_execution_id: row.parent_execution_id,
            principal_id: row.principal_id,
            reply_to: row.reply_to,
            dead_letter_id: row.dead_letter_id,
            order_key: row.order_key,
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
    /// In whose inbox a sync caller waits, if one does.
    pub reply_to: Option<WorkerId>,
    /// The delivery, or why it cannot be read, with its payload as it stands.
    pub delivery: Result<Delivery, (StoreError, String)>,
}

/// The apps that have rows which may be claimed now or later, each with when its next is due.
///
/// One look into the index for each app, however many rows there are: a skip scan.
pub async fn apps_waiting(tx: &mut Tx) -> Result<Vec<(AppId, DateTime<Utc>)>, StoreError> {
    const SQL: &str = "
        with recursive apps (app_id) as (
            select (select app_id from outbox where not held and not blocked
                    order by app_id limit 1)
            union all
            select (select o.app_id from outbox o
                    where not held and not blocked and o.app_id > apps.app_id
                    order by o.app_id limit 1)
            from apps where apps.app_id is not null
        )
        select app_id, due_at from (
            select a.app_id, (select o.due_at from outbox o
                              where o.app_id = a.app_id and not held and not blocked
                              order by o.due_at limit 1) as due_at
            from apps a where a.app_id is not null
        ) waiting where due_at is not null";
    Ok(on!(&mut tx.conn, |c| sqlx::query_as(SQL)
        .fetch_all(c)
        .await)?)
}

/// Claim at most `limit` due rows of an app for `worker`, those longest due first.
pub async fn claim(
    tx: &mut Tx,
    app_id: AppId,
    worker: WorkerId,
    lease: TimeDelta,
    limit: usize,
) -> Result<Vec<Claimed>, StoreError> {
    // The selection uses the index outbox_due. The condition on due_at stands outside again:
    // that is what makes it right when two claim at once; skipping locked rows only saves
    // waiting for each other.
    macro_rules! claim_text {
        ($lock:literal) => {
            concat!(
                "with due as materialized (
                    select id from outbox
                    where app_id = $1 and due_at <= $2 and not held and not blocked
                    order by due_at limit $3 ",
                $lock,
                ")
                update outbox
                set attempt = attempt + 1, lease_owner = $4, due_at = $5
                from due
                where outbox.id = due.id and outbox.due_at <= $2 and not held and not blocked
                returning outbox.id, app_id, script_id, script_version, trigger_id,
                          invocation_type, payload, request_id, parent_execution_id, principal_id,
                          trigger_depth, reply_to, dead_letter_id, attempt, attempts_max, backoff,
                          base_ms, jitter_pct, history, order_key"
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
            .bind(app_id)
            .bind(now)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .bind(worker)
            .bind(now + lease)
            .fetch_all(c)
            .await
    })?;
    let claimed = rows.into_iter().map(|row| {
        let payload = row.payload.clone();
        Claimed {
            id: row.id,
            app_id: row.app_id,
            script_id: row.script_id,
            attempt: u32::try_from(row.attempt).unwrap_or(u32::MAX),
            reply_to: row.reply_to,
            delivery: row.try_into().map_err(|error| (error, payload)),
        }
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

/// How many rows one statement holds or lets go on: few enough that nobody waits long for it.
pub const HOLD_BATCH: u64 = 2_000;

/// Keep deliveries of a trigger for later, or let them go on: at most [`HOLD_BATCH`] of them.
/// Answers how many. What is worked on stays so.
pub async fn hold(tx: &mut Tx, trigger_id: TriggerId, held: bool) -> Result<u64, StoreError> {
    const HOLD: &str = "
        update outbox set held = true where id in (
            select id from outbox where trigger_id = $1 and not held and lease_owner is null
            limit $2)";
    const LET_GO: &str = "
        update outbox set held = false where id in (
            select id from outbox where trigger_id = $1 and held limit $2)";
    let sql = if held { HOLD } else { LET_GO };
    Ok(on!(&mut tx.conn, |c| sqlx::query(sql)
        .bind(trigger_id)
        .bind(HOLD_BATCH.cast_signed())
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?)
}

/// How many deliveries of a trigger wait or are worked on.
pub async fn waiting_of(conn: &mut Conn, trigger_id: TriggerId) -> Result<i64, StoreError> {
    const SQL: &str = "select count(*) from outbox where trigger_id = $1";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(trigger_id)
        .fetch_one(c)
        .await)?)
}

/// Let go on what waits for nothing any more: rows that are held though their trigger is not
/// paused (a node that had not heard of the resumption wrote them), and rows that are blocked
/// though they are the first of their key. At most [`HOLD_BATCH`] of each.
pub async fn mend(tx: &mut Tx) -> Result<u64, StoreError> {
    const HELD: &str = "
        update outbox set held = false where id in (
            select id from outbox where held and not exists (
                select 1 from triggers where triggers.id = outbox.trigger_id and triggers.paused)
            limit $1)";
    const BLOCKED: &str = "
        update outbox set blocked = false where id in (
            select id from outbox where blocked and not exists (
                select 1 from outbox before
                where before.order_key = outbox.order_key
                  and before.order_seq < outbox.order_seq)
            limit $1)";
    let mut mended = 0;
    for sql in [HELD, BLOCKED] {
        mended += on!(&mut tx.conn, |c| sqlx::query(sql)
            .bind(HOLD_BATCH.cast_signed())
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
    }
    Ok(mended)
}

/// How many deliveries wait or are worked on.
pub async fn depth(conn: &mut Conn) -> Result<i64, StoreError> {
    const SQL: &str = "select count(*) from outbox";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL).fetch_one(c).await)?)
}
