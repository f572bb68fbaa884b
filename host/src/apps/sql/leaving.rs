//! The statements of apps that nobody sees: see [`super::super::leaving`].

use chrono::{DateTime, Utc};

use super::AppId;
use crate::store::{Conn, StoreError, Tx, on};

/// Begin an app that nobody sees, which is kept until then.
pub async fn begin(tx: &mut Tx, id: AppId, until: DateTime<Utc>) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into apps (id, slug, name, created_at, updated_at, remove_at)
        values ($1, $2, '', $3, $3, $4)";
    let now = tx.now;
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(id)
        .bind(id.to_string())
        .bind(now)
        .bind(until)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// Until when an app that nobody sees is kept, unless it is to be removed already. Its row is locked:
/// nobody begins to remove it before the transaction ends.
pub async fn kept_until(tx: &mut Tx, id: AppId) -> Result<Option<DateTime<Utc>>, StoreError> {
    const SQL: &str = "select remove_at from apps where id = $1 and remove_at > $2";
    const SQL_POSTGRES: &str = "
        select remove_at from apps where id = $1 and remove_at > $2 for no key update";
    let (now, sql) = (tx.now, tx.text(SQL, SQL_POSTGRES));
    Ok(on!(tx.conn().await?, |c| sqlx::query_scalar(sql)
        .bind(id)
        .bind(now)
        .fetch_optional(c)
        .await)?)
}

/// Keep an app that nobody sees until then, unless it is to be removed already. Says whether it is
/// kept.
pub async fn keep(tx: &mut Tx, id: AppId, until: DateTime<Utc>) -> Result<bool, StoreError> {
    const SQL: &str = "update apps set remove_at = $3 where id = $1 and remove_at > $2";
    let now = tx.now;
    set(tx, SQL, id, now, until).await
}

/// Let an app be seen, unless it is to be removed already. Says whether it is.
pub async fn show(tx: &mut Tx, id: AppId) -> Result<bool, StoreError> {
    const SQL: &str =
        "update apps set remove_at = null, created_at = $3 where id = $1 and remove_at > $2";
    let now = tx.now;
    set(tx, SQL, id, now, now).await
}

/// Lock an app that is to be removed now. Says whether there is such a one.
pub async fn lock(tx: &mut Tx, id: AppId) -> Result<bool, StoreError> {
    const SQL: &str = "select id from apps where id = $1 and remove_at <= $2";
    const SQL_POSTGRES: &str = "
        select id from apps where id = $1 and remove_at <= $2 for no key update";
    let (now, sql) = (tx.now, tx.text(SQL, SQL_POSTGRES));
    let found: Option<AppId> = on!(tx.conn().await?, |c| sqlx::query_scalar(sql)
        .bind(id)
        .bind(now)
        .fetch_optional(c)
        .await)?;
    Ok(found.is_some())
}

/// Run a statement about an app and two instants. Says whether it changed the app.
async fn set(
    tx: &mut Tx,
    sql: &'static str,
    id: AppId,
    now: DateTime<Utc>,
    to: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let changed = on!(tx.conn().await?, |c| sqlx::query(sql)
        .bind(id)
        .bind(now)
        .bind(to)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(changed > 0)
}

/// Let nobody see an app any more, which is removed later: its slug and its hosts are free. Says
/// whether it was seen.
pub async fn hide(tx: &mut Tx, id: AppId) -> Result<bool, StoreError> {
    const HIDE: &str = "
        update apps set slug = $3, remove_at = $2 where id = $1 and remove_at is null";
    // What nodes cache, and what must not outlive it. There is little of it; the entries of the
    // key-value store and the versions of scripts are removed later.
    const OWNED: [&str; 7] = [
        "delete from app_hosts where app_id = $1",
        "delete from routes where app_id = $1",
        "delete from triggers where app_id = $1",
        "delete from members where app_id = $1",
        "delete from secrets where app_id = $1",
        "delete from topics where app_id = $1",
        "delete from subscriber_keys where app_id = $1",
    ];
    let now = tx.now;
    let hidden = on!(tx.conn().await?, |c| sqlx::query(HIDE)
        .bind(id)
        .bind(now)
        .bind(id.to_string())
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    if hidden == 0 {
        return Ok(false);
    }
    for sql in OWNED {
        on!(tx.conn().await?, |c| sqlx::query(sql)
            .bind(id)
            .execute(c)
            .await
            .map(drop))?;
    }
    Ok(true)
}

/// The apps that nobody sees, at most `limit`, those first that are to be removed first.
pub async fn page(conn: &mut Conn, limit: i64) -> Result<Vec<AppId>, StoreError> {
    // `apps_leaving (remove_at)` serves it.
    const SQL: &str = "
        select id from apps where remove_at is not null order by remove_at limit $1";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(limit)
        .fetch_all(c)
        .await)?)
}

/// Have every app removed now that nobody sees.
pub async fn give_up_all(tx: &mut Tx) -> Result<(), StoreError> {
    const SQL: &str = "update apps set remove_at = $1 where remove_at > $1";
    let now = tx.now;
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(now)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// Remove the first `limit` entries of an app's key-value store after this one. Answers the last of
/// them, if there are more.
///
/// After one, because what was removed stays in Postgres' index for a while, and each batch would
/// step over it; and from one to another, because any other way to name some rows is a join, which
/// Postgres plans by what it last knew of the table.
pub async fn remove_entries(
    tx: &mut Tx,
    id: AppId,
    after: Option<(String, String)>,
    limit: i64,
) -> Result<Option<(String, String)>, StoreError> {
    // The primary key (app_id, collection, key) serves them.
    const LAST: &str = "
        select collection, key from kv where app_id = $1 and (collection, key) > ($2, $3)
        order by collection, key limit 1 offset $4";
    const TO_LAST: &str = "
        delete from kv where app_id = $1 and (collection, key) > ($2, $3)
            and (collection, key) <= ($4, $5)";
    const ALL: &str = "delete from kv where app_id = $1 and (collection, key) > ($2, $3)";
    let (collection, key) = after.unwrap_or_default();
    let last: Option<(String, String)> = on!(tx.conn().await?, |c| sqlx::query_as(LAST)
        .bind(id)
        .bind(&collection)
        .bind(&key)
        .bind(limit - 1)
        .fetch_optional(c)
        .await)?;
    let sql = if last.is_some() { TO_LAST } else { ALL };
    on!(tx.conn().await?, |c| {
        let mut query = sqlx::query(sql).bind(id).bind(&collection).bind(&key);
        if let Some((collection, key)) = &last {
            query = query.bind(collection).bind(key);
        }
        query.execute(c).await.map(drop)
    })?;
    Ok(last)
}

/// Remove versions of an app's scripts, at most `limit`. Answers how many.
pub async fn remove_versions(tx: &mut Tx, id: AppId, limit: i64) -> Result<u64, StoreError> {
    const SQL: &str = "
        delete from script_versions where (script_id, version) in (
            select v.script_id, v.version
            from scripts s join script_versions v on v.script_id = s.id
            where s.app_id = $1 limit $2)";
    Ok(on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(id)
        .bind(limit)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?)
}

/// Remove executions, dead letters and kept answers of an app, at most `limit` of each. Answers how many.
pub async fn remove_records(tx: &mut Tx, id: AppId, limit: i64) -> Result<u64, StoreError> {
    const RECORDS: [&str; 4] = [
        "delete from dead_letters where id in (
            select id from dead_letters where app_id = $1 order by id limit $2)",
        "delete from executions where id in (
            select id from executions where app_id = $1 order by id limit $2)",
        "delete from abandoned_executions where id in (
            select id from abandoned_executions where app_id = $1 order by id limit $2)",
        "delete from idempotency_keys where (app_id, scope, key) in (
            select app_id, scope, key from idempotency_keys where app_id = $1 limit $2)",
    ];
    let mut removed = 0;
    for sql in RECORDS {
        removed += on!(tx.conn().await?, |c| sqlx::query(sql)
            .bind(id)
            .bind(limit)
            .execute(c)
            .await
            .map(|done| done.rows_affected()))?;
    }
    Ok(removed)
}

/// Remove an app and what is left of what belongs to it.
pub async fn remove(tx: &mut Tx, id: AppId) -> Result<(), StoreError> {
    const SQL: &str = "delete from apps where id = $1";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(id)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}
