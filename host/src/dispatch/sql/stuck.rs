//! The rows of the outbox that nobody moves although somebody should, and what lets them go on.

use chrono::TimeDelta;

use super::HOLD_BATCH;
use crate::store::{Conn, StoreError, Tx, on};

/// The triggers that are not paused, and for which rows are held: `of_nothing`. A look into the index
/// for each trigger that something waits for, however much waits for it.
macro_rules! held_for_nothing {
    () => {
        "with recursive held_of (trigger_id) as (
            select (select trigger_id from outbox where held order by trigger_id limit 1)
            union all
            select (select o.trigger_id from outbox o
                    where held and o.trigger_id > held_of.trigger_id
                    order by o.trigger_id limit 1)
            from held_of where held_of.trigger_id is not null
        ), of_nothing as (
            select h.trigger_id from held_of h where h.trigger_id is not null
            and not exists (select 1 from triggers t where t.id = h.trigger_id and t.paused)
        ) "
    };
}

/// The rows that are blocked although they are the first of their key: `by_nothing`. A look into the
/// index for each such key.
macro_rules! blocked_by_nothing {
    () => {
        "with recursive blocked_of (order_key) as (
            select (select order_key from outbox where blocked order by order_key limit 1)
            union all
            select (select o.order_key from outbox o
                    where blocked and o.order_key > blocked_of.order_key
                    order by o.order_key limit 1)
            from blocked_of where blocked_of.order_key is not null
        ), by_nothing as (
            select o.id from blocked_of b join outbox o on o.id = (
                select id from outbox first where first.order_key = b.order_key
                order by first.order_seq limit 1)
            where o.blocked
        ) "
    };
}

/// How many rows nobody moves although somebody should have: see the table of states in
/// ARCHITECTURE.md. Each is zero, unless a node is about to move it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, sqlx::FromRow)]
pub struct Stuck {
    /// Their lease ended, and nobody has claimed them.
    pub expired: i64,
    /// They are due, and nobody has claimed them: there may be no room.
    pub overdue: i64,
    /// They wait for a trigger to be resumed that is not paused.
    pub held: i64,
    /// They wait for another row of their order key that is not there.
    pub blocked: i64,
}

impl Stuck {
    /// Each with the name of its kind.
    pub fn counts(&self) -> [(&'static str, i64); 4] {
        [
            ("expired", self.expired),
            ("overdue", self.overdue),
            ("held", self.held),
            ("blocked", self.blocked),
        ]
    }
}

/// Count them: those that are so for longer than `patience`, where a row tells for how long.
pub async fn stuck(conn: &mut Conn, patience: TimeDelta) -> Result<Stuck, StoreError> {
    const DUE: &str = "
        select
            coalesce(sum(case when lease_owner is null then 0 else 1 end), 0) as expired,
            coalesce(sum(case when lease_owner is null then 1 else 0 end), 0) as overdue
        from outbox where due_at < $1 and not held and not blocked";
    const HELD: &str = concat!(held_for_nothing!(), "select count(*) from of_nothing");
    const BLOCKED: &str = concat!(blocked_by_nothing!(), "select count(*) from by_nothing");
    let before = conn.now().await? - patience;
    let (expired, overdue) = on!(&mut *conn, |c| sqlx::query_as(DUE)
        .bind(before)
        .fetch_one(c)
        .await)?;
    Ok(Stuck {
        expired,
        overdue,
        held: on!(&mut *conn, |c| sqlx::query_scalar(HELD).fetch_one(c).await)?,
        blocked: on!(&mut *conn, |c| sqlx::query_scalar(BLOCKED)
            .fetch_one(c)
            .await)?,
    })
}

/// Let go on what waits for nothing any more: rows that are held though their trigger is not
/// paused (a node that had not heard of the resumption wrote them), and rows that are blocked
/// though they are the first of their key. At most [`HOLD_BATCH`] of each.
pub async fn mend(tx: &mut Tx) -> Result<u64, StoreError> {
    const HELD: &str = concat!(
        held_for_nothing!(),
        "update outbox set held = false where id in (
            select id from outbox where held and trigger_id in (select trigger_id from of_nothing)
            limit $1)"
    );
    const BLOCKED: &str = concat!(
        blocked_by_nothing!(),
        "update outbox set blocked = false where id in (select id from by_nothing limit $1)"
    );
    let mut mended = 0;
    for sql in [HELD, BLOCKED] {
        mended += on!(tx.conn().await?, |c| sqlx::query(sql)
            .bind(HOLD_BATCH.cast_signed())
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
    }
    Ok(mended)
}
