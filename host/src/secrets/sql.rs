//! The statements of secrets.

use chrono::{DateTime, Utc};

use super::Secret;
use super::master_key::{KeyId, Sealed};
use crate::apps::AppId;
use crate::scripts::ScriptId;
use crate::store::{Conn, StoreError, Tx, on};

#[derive(sqlx::FromRow)]
struct Row {
    name: String,
    scripts: Option<String>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl TryFrom<Row> for Secret {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let scripts = row.scripts.as_deref().map(serde_json::from_str);
        let scripts = scripts
            .transpose()
            .map_err(|error| StoreError::Inconsistent {
                table: "secrets",
                column: "scripts",
                id: row.name.clone(),
                problem: error.to_string(),
            })?;
        Ok(Self {
            name: row.name,
            scripts,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

#[derive(sqlx::FromRow)]
struct WithValue {
    #[sqlx(flatten)]
    secret: Row,
    key_id: Vec<u8>,
    sealed: Vec<u8>,
}

/// A page of an app's secrets by name: those after `after`.
pub async fn page(
    conn: &mut Conn,
    app_id: AppId,
    after: &str,
    limit: i64,
) -> Result<Vec<Secret>, StoreError> {
    const SQL: &str = "
        select name, scripts, created_at, updated_at from secrets
        where app_id = $1 and name > $2 order by name limit $3";
    let rows: Vec<Row> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(app_id)
        .bind(after)
        .bind(limit)
        .fetch_all(c)
        .await)?;
    rows.into_iter().map(Secret::try_from).collect()
}

/// A secret and its encrypted value.
pub async fn get(
    conn: &mut Conn,
    app_id: AppId,
    name: &str,
) -> Result<Option<(Secret, Sealed)>, StoreError> {
    const SQL: &str = "
        select name, scripts, created_at, updated_at, key_id, sealed from secrets
        where app_id = $1 and name = $2";
    let row: Option<WithValue> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(app_id)
        .bind(name)
        .fetch_optional(c)
        .await)?;
    let Some(row) = row else { return Ok(None) };
    let (key_id, bytes) = (row.key_id, row.sealed);
    Ok(Some((row.secret.try_into()?, Sealed { key_id, bytes })))
}

/// A secret without its value. Nobody else changes or removes it until the transaction ends:
/// SQLite has one writer, and on Postgres the row is locked.
pub async fn hold(tx: &mut Tx, app_id: AppId, name: &str) -> Result<Option<Secret>, StoreError> {
    macro_rules! one_secret {
        ($lock:literal) => {
            concat!(
                "select name, scripts, created_at, updated_at from secrets
                 where app_id = $1 and name = $2",
                $lock
            )
        };
    }
    let sql = tx.text(one_secret!(""), one_secret!(" for update"));
    let row: Option<Row> = on!(tx.conn().await?, |c| sqlx::query_as(sql)
        .bind(app_id)
        .bind(name)
        .fetch_optional(c)
        .await)?;
    row.map(Secret::try_from).transpose()
}

/// How many secrets an app has.
pub async fn count(conn: &mut Conn, app_id: AppId) -> Result<i64, StoreError> {
    const SQL: &str = "select count(*) from secrets where app_id = $1";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(app_id)
        .fetch_one(c)
        .await)?)
}

/// Write a secret, over the one of its name.
pub async fn upsert(
    tx: &mut Tx,
    app_id: AppId,
    name: &str,
    scripts: Option<&[ScriptId]>,
    sealed: &Sealed,
) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into secrets (app_id, name, scripts, key_id, sealed, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $6, $6)
        on conflict (app_id, name) do update set scripts = excluded.scripts,
            key_id = excluded.key_id, sealed = excluded.sealed, updated_at = excluded.updated_at";
    let now = tx.now;
    let scripts = scripts.map(|ids| serde_json::to_string(ids).expect("a list of ids is JSON"));
    on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(app_id)
            .bind(name)
            .bind(scripts.as_deref())
            .bind(&sealed.key_id)
            .bind(&sealed.bytes)
            .bind(now)
            .execute(c)
            .await
            .map(|_| ())
    })?;
    Ok(())
}

/// Remove a secret. Says whether there was one.
pub async fn delete(tx: &mut Tx, app_id: AppId, name: &str) -> Result<bool, StoreError> {
    const SQL: &str = "delete from secrets where app_id = $1 and name = $2";
    let gone = on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(app_id)
        .bind(name)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(gone == 1)
}

/// Every secret that is not under this key.
pub async fn under_other_keys(
    conn: &mut Conn,
    current: KeyId,
) -> Result<Vec<(AppId, String, Sealed)>, StoreError> {
    const SQL: &str = "select app_id, name, key_id, sealed from secrets where key_id <> $1";
    let rows: Vec<(AppId, String, Vec<u8>, Vec<u8>)> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(&current[..])
        .fetch_all(c)
        .await)?;
    let rows = rows.into_iter();
    Ok(rows
        .map(|(app_id, name, key_id, bytes)| (app_id, name, Sealed { key_id, bytes }))
        .collect())
}

/// Write an encrypted value over another, unless that is not there any more. Says whether it did.
pub async fn replace(
    tx: &mut Tx,
    app_id: AppId,
    name: &str,
    old: &Sealed,
    new: &Sealed,
) -> Result<bool, StoreError> {
    const SQL: &str = "
        update secrets set key_id = $4, sealed = $5
        where app_id = $1 and name = $2 and sealed = $3";
    let changed = on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(app_id)
            .bind(name)
            .bind(&old.bytes)
            .bind(&new.key_id)
            .bind(&new.bytes)
            .execute(c)
            .await
            .map(|done| done.rows_affected())
    })?;
    Ok(changed == 1)
}

/// How many secrets are under which master key.
pub async fn by_key(conn: &mut Conn) -> Result<Vec<(Vec<u8>, i64)>, StoreError> {
    const SQL: &str = "select key_id, count(*) from secrets group by key_id order by key_id";
    Ok(on!(conn, |c| sqlx::query_as(SQL).fetch_all(c).await)?)
}

/// The names of an app's secrets.
pub async fn names(conn: &mut Conn, app_id: AppId) -> Result<Vec<String>, StoreError> {
    const SQL: &str = "select name from secrets where app_id = $1 order by name";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(app_id)
        .fetch_all(c)
        .await)?)
}
