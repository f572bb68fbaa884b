//! The statements of the audit log.

use chrono::{DateTime, Utc};

use super::{Entry, EntryId, Filter};
use crate::apps::AppId;
use crate::identity::{ApiKeyId, UserId};
use crate::store::{Conn, StoreError, Tx, on};

#[derive(sqlx::FromRow)]
struct Row {
    id: EntryId,
    at: DateTime<Utc>,
    user_id: Option<UserId>,
    api_key_id: Option<ApiKeyId>,
    who: String,
    action: String,
    target: String,
    app_id: Option<AppId>,
    status: i64,
    address: String,
}

impl From<Row> for Entry {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            at: row.at,
            who: row.who,
            user_id: row.user_id,
            api_key_id: row.api_key_id,
            action: row.action,
            target: row.target,
            app_id: row.app_id,
            status: u16::try_from(row.status).unwrap_or_default(),
            address: row.address,
        }
    }
}

/// Add an entry.
pub async fn insert(tx: &mut Tx, entry: &Entry) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into audit (id, at, user_id, api_key_id, who, action, app_id, target, status,
            address)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(entry.id)
            .bind(entry.at)
            .bind(entry.user_id)
            .bind(entry.api_key_id)
            .bind(&entry.who)
            .bind(&entry.action)
            .bind(entry.app_id)
            .bind(&entry.target)
            .bind(i64::from(entry.status))
            .bind(&entry.address)
            .execute(c)
            .await
            .map(|_| ())
    })?;
    Ok(())
}

/// A page of the log, the newest first: those before `before`.
pub async fn page(
    conn: &mut Conn,
    filter: &Filter,
    before: Option<EntryId>,
    limit: i64,
) -> Result<Vec<Entry>, StoreError> {
    const SQL: &str = "
        select id, at, user_id, api_key_id, who, action, target, app_id, status, address
        from audit
        where ($1 is null or app_id = $1) and ($2 is null or user_id = $2)
          and ($3 is null or action = $3) and ($4 is null or at >= $4)
          and ($5 is null or at < $5) and id < $6
        order by id desc limit $7";
    // Postgres cannot tell the type of a parameter that is only compared with null.
    const SQL_POSTGRES: &str = "
        select id, at, user_id, api_key_id, who, action, target, app_id, status, address
        from audit
        where ($1::uuid is null or app_id = $1) and ($2::uuid is null or user_id = $2)
          and ($3::text is null or action = $3) and ($4::timestamptz is null or at >= $4)
          and ($5::timestamptz is null or at < $5) and id < $6
        order by id desc limit $7";
    let sql = conn.text(SQL, SQL_POSTGRES);
    let before = before.unwrap_or_else(|| uuid::Uuid::max().into());
    let rows: Vec<Row> = on!(conn, |c| {
        sqlx::query_as(sql)
            .bind(filter.app_id)
            .bind(filter.user_id)
            .bind(filter.action.as_deref())
            .bind(filter.since)
            .bind(filter.until)
            .bind(before)
            .bind(limit)
            .fetch_all(c)
            .await
    })?;
    Ok(rows.into_iter().map(Entry::from).collect())
}
