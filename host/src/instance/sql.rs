//! The statements about the instance as a whole.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use super::{DELIVERIES_MAX, NodeAbout, Queue};
use crate::dispatch::WorkerId;
use crate::store::{Conn, StoreError, Tx, on};

/// Say that a node is there.
pub async fn say(tx: &mut Tx, node: &NodeAbout) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into nodes (id, hostname, version, started_at, seen_at)
        values ($1, $2, $3, $4, $5)
        on conflict (id) do update set seen_at = excluded.seen_at";
    let now = tx.now;
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(node.id)
        .bind(&node.hostname)
        .bind(&node.version)
        .bind(node.started_at)
        .bind(now)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// Forget a node, which ends.
pub async fn leave(tx: &mut Tx, id: WorkerId) -> Result<(), StoreError> {
    const SQL: &str = "delete from nodes where id = $1";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(id)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// Forget the nodes that were last heard of before an instant.
pub async fn forget(tx: &mut Tx, before: DateTime<Utc>) -> Result<(), StoreError> {
    const SQL: &str = "delete from nodes where seen_at < $1";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(before)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// The nodes that are known, the newest first.
pub async fn nodes(conn: &mut Conn) -> Result<Vec<NodeAbout>, StoreError> {
    const SQL: &str = "
        select id, hostname, version, started_at, seen_at from nodes
        order by started_at desc, id limit 200";
    type Row = (WorkerId, String, String, DateTime<Utc>, DateTime<Utc>);
    let rows: Vec<Row> = on!(conn, |c| sqlx::query_as(SQL).fetch_all(c).await)?;
    let about = |(id, hostname, version, started_at, seen_at)| NodeAbout {
        id,
        hostname,
        version,
        started_at,
        seen_at,
    };
    Ok(rows.into_iter().map(about).collect())
}

/// How many deliveries each node works on. `outbox_lease (lease_owner)` serves it.
pub async fn leases(conn: &mut Conn) -> Result<HashMap<WorkerId, i64>, StoreError> {
    const SQL: &str = "
        select lease_owner, count(*) from outbox where lease_owner is not null
        group by lease_owner";
    let rows: Vec<(WorkerId, i64)> = on!(conn, |c| sqlx::query_as(SQL).fetch_all(c).await)?;
    Ok(rows.into_iter().collect())
}

/// What is in the outbox at an instant.
pub async fn queue(conn: &mut Conn, now: DateTime<Utc>) -> Result<Queue, StoreError> {
    const SQL: &str = "
        select count(*) filter (where lease_owner is not null),
               count(*) filter (where lease_owner is null and not held and not blocked
                                and due_at <= $1),
               count(*) filter (where lease_owner is null and not held and not blocked
                                and due_at > $1),
               count(*) filter (where lease_owner is null and held),
               count(*) filter (where lease_owner is null and blocked and not held)
        from (select lease_owner, held, blocked, due_at from outbox limit $2) as counted";
    let counts: (i64, i64, i64, i64, i64) = on!(conn, |c| sqlx::query_as(SQL)
        .bind(now)
        .bind(DELIVERIES_MAX)
        .fetch_one(c)
        .await)?;
    let (leased, due, later, held, blocked) = counts;
    Ok(Queue {
        leased,
        due,
        later,
        held,
        blocked,
    })
}

/// How large the database is, in bytes.
pub async fn database_bytes(conn: &mut Conn) -> Result<u64, StoreError> {
    const PAGES: &str = "
        select page_count * page_size from pragma_page_count(), pragma_page_size()";
    const SIZE: &str = "select pg_database_size(current_database())";
    let sql = conn.text(PAGES, SIZE);
    let bytes: i64 = on!(conn, |c| sqlx::query_scalar(sql).fetch_one(c).await)?;
    Ok(bytes.unsigned_abs())
}
