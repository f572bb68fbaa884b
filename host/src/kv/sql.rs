//! The statements of the key-value store.

use super::{Collection, Key, Value};
use crate::apps::AppId;
use crate::store::{Conn, Grouped, StoreError, Tx, on};

/// The value of a key.
pub async fn get(
    conn: &mut Conn,
    app_id: AppId,
    collection: &Collection,
    key: &Key,
) -> Result<Option<String>, StoreError> {
    const SQL: &str = "select value from kv where app_id = $1 and collection = $2 and key = $3";
    Ok(on!(conn, |c| {
        let query = sqlx::query_scalar(SQL).bind(app_id);
        query
            .bind(collection.as_str())
            .bind(key.as_str())
            .fetch_optional(c)
            .await
    })?)
}

/// Whether a key has a value.
pub async fn has(
    conn: &mut Conn,
    app_id: AppId,
    collection: &Collection,
    key: &Key,
) -> Result<bool, StoreError> {
    const SQL: &str = "select count(*) from kv where app_id = $1 and collection = $2 and key = $3";
    let count: i64 = on!(conn, |c| {
        let query = sqlx::query_scalar(SQL).bind(app_id);
        query
            .bind(collection.as_str())
            .bind(key.as_str())
            .fetch_one(c)
            .await
    })?;
    Ok(count > 0)
}

/// The entries after the key `after`, at most `limit`.
pub async fn page(
    conn: &mut Conn,
    app_id: AppId,
    collection: &Collection,
    after: &str,
    limit: u32,
) -> Result<Vec<(String, String)>, StoreError> {
    const SQL: &str = "
        select key, value from kv where app_id = $1 and collection = $2 and key > $3
        order by key limit $4";
    Ok(on!(conn, |c| {
        sqlx::query_as(SQL)
            .bind(app_id)
            .bind(collection.as_str())
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(c)
            .await
    })?)
}

/// The collections of an app after the name `after`, with how many keys each has.
pub async fn collections(
    conn: &mut Conn,
    app_id: AppId,
    after: &str,
    limit: i64,
) -> Result<Vec<(String, i64)>, StoreError> {
    const SQL: &str = "
        select collection, count(*) from kv where app_id = $1 and collection > $2
        group by collection order by collection limit $3";
    Ok(on!(conn, |c| {
        sqlx::query_as(SQL)
            .bind(app_id)
            .bind(after)
            .bind(limit)
            .fetch_all(c)
            .await
    })?)
}

/// A key that gets a value, or loses the one that it has.
pub struct Mutation {
    /// The app.
    pub app_id: AppId,
    /// The collection.
    pub collection: Collection,
    /// The key.
    pub key: Key,
    /// Its new value, if it keeps one.
    pub value: Option<Value>,
}

impl Grouped for Mutation {
    /// Whether a row was written or removed.
    type Output = bool;

    async fn apply(tx: &mut Tx, items: &[Self]) -> Result<Vec<bool>, StoreError> {
        const SET: &str = "
            insert into kv (app_id, collection, key, value, updated_at)
            values ($1, $2, $3, $4, $5)
            on conflict (app_id, collection, key)
            do update set value = excluded.value, updated_at = excluded.updated_at";
        const DELETE: &str = "delete from kv where app_id = $1 and collection = $2 and key = $3";
        let now = tx.now;
        let mut changed = Vec::with_capacity(items.len());
        for item in items {
            let rows = on!(&mut tx.conn, |c| {
                let query = sqlx::query(if item.value.is_some() { SET } else { DELETE });
                let query = query.bind(item.app_id);
                let mut query = query.bind(item.collection.as_str()).bind(item.key.as_str());
                if let Some(value) = &item.value {
                    query = query.bind(value.as_str()).bind(now);
                }
                query.execute(c).await.map(|done| done.rows_affected())
            })?;
            changed.push(rows > 0);
        }
        Ok(changed)
    }
}
