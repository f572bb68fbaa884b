//! The deliveries of an app that is being removed.

use crate::apps::AppId;
use crate::store::{StoreError, Tx, on};

/// Remove deliveries of an app on which nobody works, at most `limit`, also those that are due much
/// later. Answers how many. Those that are held or blocked become due by themselves, when what they
/// wait for is gone.
pub async fn remove_waiting(tx: &mut Tx, app_id: AppId, limit: i64) -> Result<u64, StoreError> {
    // `outbox_due (app_id, due_at)` serves them.
    const SQL: &str = "
        delete from outbox where lease_owner is null and id in (
            select id from outbox
            where app_id = $1 and not held and not blocked and lease_owner is null
            order by due_at limit $2)
        returning invocation_type";
    const SQL_POSTGRES: &str = "
        delete from outbox where lease_owner is null and id in (
            select id from outbox
            where app_id = $1 and not held and not blocked and lease_owner is null
            order by due_at limit $2 for update skip locked)
        returning invocation_type";
    let sql = tx.text(SQL, SQL_POSTGRES);
    let removed: Vec<String> = on!(tx.conn().await?, |c| sqlx::query_scalar(sql)
        .bind(app_id)
        .bind(limit)
        .fetch_all(c)
        .await)?;
    let count = removed.len() as u64;
    for source in removed {
        metrics::counter!("picloud_deliveries_total", "outcome" => "app_deleted", "source" => source)
            .increment(1);
    }
    Ok(count)
}

/// Whether an app has deliveries that somebody works on, or is about to.
pub async fn are_left(tx: &mut Tx, app_id: AppId) -> Result<bool, StoreError> {
    const SQL: &str = "
        select 1 from outbox where app_id = $1 and not held and not blocked limit 1";
    let found: Option<i32> = on!(tx.conn().await?, |c| sqlx::query_scalar(SQL)
        .bind(app_id)
        .fetch_optional(c)
        .await)?;
    Ok(found.is_some())
}
