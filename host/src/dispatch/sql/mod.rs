//! The outbox: its rows and the statements that put them in, claim them and take them out.
//!
//! A row's `due_at` says when it may be claimed: when it is due, or, while it is leased, when
//! the lease ends. So one index serves the claim, however many rows are leased or wait for
//! later. A row that is `held` (its trigger is paused) or `blocked` (one with the same order key
//! comes before it) is not in that index at all, so that no claim ever steps over it. A claim
//! raises `attempt`; `(id, attempt, lease_owner)` is the fence that every later write about the
//! row carries.

mod completion;
pub mod leases;
pub mod leaving;
mod stuck;

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::retry::{Backoff, RetryPolicy};
use super::{Delivery, DeliveryId, Payload, WorkerId};
use crate::apps::AppId;
use crate::dead_letters::DeadLetterId;
use crate::executions::ExecutionId;
use crate::idempotency::{self, Key, Known};
use crate::identity::UserId;
use crate::scripts::ScriptId;
use crate::store::{
    Conn, Durability, Engine, Grouped, ROWS_MAX, StoreError, Tx, bounded, insert_all, on,
};
use crate::telemetry::trace::TraceParent;
use crate::triggers::TriggerId;

pub use completion::{Also, Completion, Then};
pub use stuck::{Stuck, mend, stuck};

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

    fn app(&self) -> Option<Uuid> {
        Some(self.delivery.app_id.uuid())
    }

    fn bytes(&self) -> usize {
        self.delivery.payload.bytes()
    }

    fn is_new(&self) -> bool {
        true
    }

    /// After a power cut nobody waits for a sync delivery any more, and it is never run again: its
    /// row only says whom to record as abandoned. What its script writes comes later, and brings
    /// the row with it. A key must be known for as long as it was promised.
    fn durability(&self) -> Durability {
        match self.delivery.reply_to.is_some() && self.key.is_none() {
            true => Durability::Kill,
            false => Durability::PowerCut,
        }
    }

    fn is_one_statement(engine: Engine, items: &[Self]) -> bool {
        let simple = |new: &Self| new.key.is_none() && new.delivery.order_key.is_none();
        items.iter().all(simple) && (engine == Engine::Postgres || items.len() <= ROWS_MAX)
    }

    async fn written(conn: &mut Conn, items: &[Self]) -> Result<Option<Vec<Placed>>, StoreError> {
        // One statement writes all of them. Its answer was lost a moment ago, so the first is still
        // there, unless its lease is over; then another node has it.
        const SQL: &str = "select exists (select 1 from outbox where id = $1)";
        let Some(first) = items.first() else {
            return Ok(Some(Vec::new()));
        };
        let id = first.delivery.id;
        let is_there: bool = on!(conn, |c| sqlx::query_scalar(SQL)
            .bind(id)
            .fetch_one(c)
            .await)?;
        Ok(is_there.then(|| items.iter().map(NewDelivery::placed_alone).collect()))
    }

    async fn apply(tx: &mut Tx, items: &[Self]) -> Result<Vec<Placed>, StoreError> {
        insert(tx, items).await
    }
}

impl NewDelivery {
    /// Where it is once it is written, where it has no order key.
    fn placed_alone(&self) -> Placed {
        match self.born_claimed {
            _ if self.held => Placed::Waiting,
            Some(_) => Placed::Claimed,
            None => Placed::Due,
        }
    }
}

struct Row<'r> {
    new: &'r NewDelivery,
    payload: String,
    order_seq: Option<i64>,
    blocked: bool,
}

impl Row<'_> {
    fn waits(&self) -> bool {
        self.blocked || self.new.held
    }

    fn lease(&self) -> Option<(WorkerId, TimeDelta)> {
        self.new.born_claimed.filter(|_| !self.waits())
    }

    fn attempt(&self) -> i64 {
        match self.waits() {
            true => 0,
            false => i64::from(self.new.delivery.attempt),
        }
    }
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
        placed.push(match blocked {
            true => Placed::Waiting,
            false => new.placed_alone(),
        });
        rows.push(Row {
            payload: new.delivery.payload.json(),
            new,
            order_seq,
            blocked,
        });
    }
    insert_rows(tx, &rows).await?;
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
        let seq: i64 = on!(tx.conn().await?, |c| sqlx::query_scalar(SQL)
            .bind(key)
            .fetch_one(c)
            .await)?;
        last.insert(key, seq);
    }
    Ok(last)
}

async fn lock_order_key(tx: &mut Tx, key: &str) -> Result<(), StoreError> {
    const SQL: &str = "select pg_advisory_xact_lock(hashtextextended($1, 0))";
    if let Conn::Postgres(held) = tx.conn().await? {
        bounded!(held, |c| sqlx::query(SQL).bind(key).execute(c).await)?;
    }
    Ok(())
}

async fn insert_rows(tx: &mut Tx, rows: &[Row<'_>]) -> Result<(), StoreError> {
    let now = tx.now;
    insert_all!(tx, "outbox", rows, |row| {
        id: row.new.delivery.id,
        app_id: row.new.delivery.app_id,
        script_id: row.new.delivery.script_id,
        script_version: row.new.delivery.script_version.map(i64::from),
        trigger_id: row.new.delivery.trigger_id,
        invocation_type: row.new.delivery.invocation_type.as_str(),
        payload: row.payload.as_str(),
        request_id: row.new.delivery.request_id,
        parent_execution_id: row.new.delivery.parent_execution_id,
        traceparent: row.new.delivery.trace.map(|trace| trace.to_string()),
        principal_id: row.new.delivery.principal_id,
        trigger_depth: i64::from(row.new.delivery.trigger_depth),
        reply_to: row.new.delivery.reply_to,
        dead_letter_id: row.new.delivery.dead_letter_id,
        attempt: row.attempt(),
        attempts_max: i64::from(row.new.delivery.retry.attempts_max),
        backoff: row.new.delivery.retry.backoff.as_str(),
        base_ms: i64::try_from(row.new.delivery.retry.base_ms).unwrap_or(i64::MAX),
        jitter_pct: i64::from(row.new.delivery.retry.jitter_pct),
        due_at: row.lease().map_or(now, |(_, lasts)| now + lasts),
        lease_owner: row.lease().map(|(worker, _)| worker),
        created_at: now,
        order_key: row.new.delivery.order_key.as_deref(),
        order_seq: row.order_seq,
        held: row.new.held,
        blocked: row.blocked,
    });
    Ok(())
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
    traceparent: Option<String>,
    principal_id: Option<UserId>,
    trigger_depth: i64,
    reply_to: Option<WorkerId>,
    dead_letter_id: Option<DeadLetterId>,
    attempt: i64,
    #[sqlx(flatten)]
    retry: RetryRow,
    history: String,
    order_key: Option<String>,
    created_at: DateTime<Utc>,
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
            trace: row.traceparent.as_deref().and_then(TraceParent::parse),
            principal_id: row.principal_id,
            reply_to: row.reply_to,
            dead_letter_id: row.dead_letter_id,
            order_key: row.order_key,
            created_at: row.created_at,
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
    /// The size of its payload as it stands in the database.
    pub payload_bytes: u64,
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
    Ok(on!(tx.conn().await?, |c| sqlx::query_as(SQL)
        .fetch_all(c)
        .await)?)
}

/// Claim at most `limit` due rows of an app for `worker`, those longest due first, up to the one whose
/// payload takes them over `bytes_max`.
pub async fn claim(
    tx: &mut Tx,
    app_id: AppId,
    worker: WorkerId,
    lease: TimeDelta,
    limit: usize,
    bytes_max: u64,
) -> Result<Vec<Claimed>, StoreError> {
    // The selection uses the index outbox_due. The condition on due_at stands outside again:
    // that is what makes it right when two claim at once; skipping locked rows only saves
    // waiting for each other.
    macro_rules! claim_text {
        ($lock:literal, $is_due:literal) => {
            concat!(
                "with due as materialized (
                    select id, due_at, octet_length(payload) as bytes from outbox
                    where app_id = $1 and due_at <= $2 and not held and not blocked
                    order by due_at limit $3 ",
                $lock,
                "), fitting as materialized (
                    select id from (
                        select id, sum(bytes) over (order by due_at, id) - bytes as before from due
                    ) as summed where before < $6)
                update outbox
                set attempt = attempt + 1, lease_owner = $4, due_at = $5
                where id ",
                $is_due,
                " and due_at <= $2 and not held and not blocked
                returning id, app_id, script_id, script_version, trigger_id,
                          invocation_type, payload, request_id, parent_execution_id, traceparent,
                          principal_id, trigger_depth, reply_to, dead_letter_id, attempt,
                          attempts_max, backoff, base_ms, jitter_pct, history, order_key,
                          created_at"
            )
        };
    }
    let now = tx.now;
    let sqlite = claim_text!("", "in (select id from fitting)");
    // An array, so that Postgres looks each row up, whatever it believes to know of the table.
    let postgres = claim_text!(
        "for update skip locked",
        "= any(array(select id from fitting))"
    );
    let sql = tx.text(sqlite, postgres);
    let rows: Vec<DeliveryRow> = on!(tx.conn().await?, |c| {
        sqlx::query_as(sql)
            .bind(app_id)
            .bind(now)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .bind(worker)
            .bind(now + lease)
            .bind(i64::try_from(bytes_max).unwrap_or(i64::MAX))
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
            payload_bytes: row.payload.len() as u64,
            delivery: row.try_into().map_err(|error| (error, payload)),
        }
    });
    let mut claimed: Vec<Claimed> = claimed.collect();
    // RETURNING has no order.
    claimed.sort_by_key(|claimed| claimed.id);
    Ok(claimed)
}

/// Give back every lease of `worker`, or everybody's when there is none: they are due at once.
/// Answers how many.
pub async fn release(tx: &mut Tx, worker: Option<WorkerId>) -> Result<u64, StoreError> {
    const OF: &str = "update outbox set due_at = $1, lease_owner = null where lease_owner = $2";
    const ALL: &str =
        "update outbox set due_at = $1, lease_owner = null where lease_owner is not null";
    let now = tx.now;
    Ok(on!(tx.conn().await?, |c| {
        let query = match worker {
            Some(worker) => sqlx::query(OF).bind(now).bind(worker),
            None => sqlx::query(ALL).bind(now),
        };
        query.execute(c).await.map(|done| done.rows_affected())
    })?)
}

/// Make what waits due earlier, after the clock was put back `by` so much: for SQLite, whose rows
/// have the times of the one process that writes them.
pub async fn bring_forward(tx: &mut Tx, by: TimeDelta) -> Result<(), StoreError> {
    // By the clock as it was, most of them were due, or would have been by now.
    const OVERDUE: &str = "
        update outbox set due_at = $1
        where due_at > $1 and due_at <= $2 and lease_owner is null";
    const WAITING: &str = "select id, due_at from outbox where due_at > $1 and lease_owner is null";
    const SET: &str = "update outbox set due_at = $1 where id = $2";
    // So that the next start does not find the clock put back once more.
    const MADE: &str = "update outbox set created_at = $1 where created_at > $1";
    let now = tx.now;
    let waiting: Vec<(DeliveryId, DateTime<Utc>)> = on!(tx.conn().await?, |c| {
        sqlx::query_as(WAITING).bind(now + by).fetch_all(c).await
    })?;
    tracing::warn!(
        seconds = by.num_seconds(),
        "the clock was put back; what waits is due as much earlier"
    );
    let conn = tx.conn().await?;
    on!(conn, |c| sqlx::query(OVERDUE)
        .bind(now)
        .bind(now + by)
        .execute(c)
        .await
        .map(|_| ()))?;
    on!(conn, |c| sqlx::query(MADE)
        .bind(now)
        .execute(c)
        .await
        .map(|_| ()))?;
    for (id, due_at) in waiting {
        on!(conn, |c| sqlx::query(SET)
            .bind(due_at - by)
            .bind(id)
            .execute(c)
            .await
            .map(|_| ()))?;
    }
    Ok(())
}

/// By how much the clock is behind what it said when the newest row was made.
pub async fn clock_behind(tx: &mut Tx) -> Result<TimeDelta, StoreError> {
    const NEWEST: &str = "select created_at from outbox order by created_at desc limit 1";
    let now = tx.now;
    let newest: Option<DateTime<Utc>> = on!(tx.conn().await?, |c| {
        sqlx::query_scalar(NEWEST).fetch_optional(c).await
    })?;
    Ok(newest.map_or(TimeDelta::zero(), |newest| newest - now))
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
    Ok(on!(tx.conn().await?, |c| sqlx::query(sql)
        .bind(trigger_id)
        .bind(HOLD_BATCH.cast_signed())
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?)
}

/// How many deliveries of an app may be claimed now or later, counted up to `limit`, and when the
/// first of them is or was due. `outbox_due (app_id, due_at)` serves it.
pub async fn backlog(
    conn: &mut Conn,
    app_id: AppId,
    limit: i64,
) -> Result<(i64, Option<DateTime<Utc>>), StoreError> {
    const SQL: &str = "
        select count(*), min(due_at) from (
            select due_at from outbox where app_id = $1 and not held and not blocked
            order by due_at limit $2
        ) as counted";
    Ok(on!(conn, |c| sqlx::query_as(SQL)
        .bind(app_id)
        .bind(limit)
        .fetch_one(c)
        .await)?)
}

/// How many deliveries of a trigger wait or are worked on.
pub async fn waiting_of(conn: &mut Conn, trigger_id: TriggerId) -> Result<i64, StoreError> {
    const SQL: &str = "select count(*) from outbox where trigger_id = $1";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(trigger_id)
        .fetch_one(c)
        .await)?)
}

/// The app of a delivery that waits or is worked on.
pub async fn app_of(conn: &mut Conn, id: DeliveryId) -> Result<Option<AppId>, StoreError> {
    const SQL: &str = "select app_id from outbox where id = $1";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(id)
        .fetch_optional(c)
        .await)?)
}

/// How many deliveries wait or are worked on.
pub async fn depth(conn: &mut Conn) -> Result<i64, StoreError> {
    const SQL: &str = "select count(*) from outbox";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL).fetch_one(c).await)?)
}
