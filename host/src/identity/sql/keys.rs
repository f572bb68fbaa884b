//! The statements of API keys.

use chrono::{DateTime, Utc};

use super::inconsistent;
use super::users::user;
use crate::identity::keys::has_ended;
use crate::identity::{ApiKey, ApiKeyId, User, UserId};
use crate::store::{Conn, StoreError, Tx, on};

#[derive(sqlx::FromRow)]
struct Row {
    id: ApiKeyId,
    user_id: UserId,
    name: String,
    token_start: String,
    scopes: String,
    apps: Option<String>,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
    last_used_at: Option<DateTime<Utc>>,
}

impl TryFrom<Row> for ApiKey {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let odd = |column, text: &str| inconsistent("api_keys", column, row.id, text);
        let scopes = serde_json::from_str(&row.scopes).map_err(|_| odd("scopes", &row.scopes))?;
        let apps = row.apps.as_deref().map(|text| {
            let parsed = serde_json::from_str(text);
            parsed.map_err(|_| odd("apps", text))
        });
        Ok(Self {
            apps: apps.transpose()?,
            id: row.id,
            user_id: row.user_id,
            name: row.name,
            token_start: row.token_start,
            scopes,
            created_at: row.created_at,
            expires_at: row.expires_at,
            last_used_at: row.last_used_at,
        })
    }
}

#[derive(sqlx::FromRow)]
struct WithUser {
    user_name: String,
    user_role: String,
    user_created_at: DateTime<Utc>,
    #[sqlx(flatten)]
    key: Row,
}

macro_rules! columns {
    () => {
        "k.id, k.user_id, k.name, k.token_start, k.scopes, k.apps, k.created_at, k.expires_at,
         k.last_used_at"
    };
}

/// The key whose token has this hash, if it has not ended at `now`, and its user, unless they
/// are disabled.
pub async fn by_token(
    conn: &mut Conn,
    token_hash: &[u8],
    now: DateTime<Utc>,
) -> Result<Option<(User, ApiKey)>, StoreError> {
    const SQL: &str = concat!(
        "select users.name as user_name, users.role as user_role,
                users.created_at as user_created_at, ",
        columns!(),
        " from api_keys k join users on users.id = k.user_id
         where k.token_hash = $1 and users.disabled_at is null"
    );
    let row: Option<WithUser> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(token_hash)
        .fetch_optional(c)
        .await)?;
    let found = row.map(|row| {
        let id = row.key.user_id;
        let user = user(id, row.user_name, &row.user_role, row.user_created_at)?;
        Ok::<_, StoreError>((user, ApiKey::try_from(row.key)?))
    });
    Ok(found.transpose()?.filter(|(_, key)| !has_ended(key, now)))
}

/// A page of a user's keys in the order of their making: those after `after`.
pub async fn page(
    conn: &mut Conn,
    user_id: UserId,
    after: Option<ApiKeyId>,
    limit: i64,
) -> Result<Vec<ApiKey>, StoreError> {
    const SQL: &str = concat!(
        "select ",
        columns!(),
        " from api_keys k where k.user_id = $1 and k.id > $2 order by k.id limit $3"
    );
    let after = after.unwrap_or_else(|| uuid::Uuid::nil().into());
    let rows: Vec<Row> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(user_id)
        .bind(after)
        .bind(limit)
        .fetch_all(c)
        .await)?;
    rows.into_iter().map(ApiKey::try_from).collect()
}

macro_rules! one_key {
    ($lock:literal) => {
        concat!(
            "select ",
            columns!(),
            " from api_keys k where k.user_id = $1 and k.id = $2",
            $lock
        )
    };
}

/// One key of a user. Nobody else changes or removes it until the transaction ends: SQLite has
/// one writer, and on Postgres the row is locked.
pub async fn hold(
    tx: &mut Tx,
    user_id: UserId,
    id: ApiKeyId,
) -> Result<Option<ApiKey>, StoreError> {
    let sql = tx.text(one_key!(""), one_key!(" for update"));
    one(tx.conn().await?, sql, user_id, id).await
}

/// One key of a user.
pub async fn get(
    conn: &mut Conn,
    user_id: UserId,
    id: ApiKeyId,
) -> Result<Option<ApiKey>, StoreError> {
    one(conn, one_key!(""), user_id, id).await
}

async fn one(
    conn: &mut Conn,
    sql: &'static str,
    user_id: UserId,
    id: ApiKeyId,
) -> Result<Option<ApiKey>, StoreError> {
    let row: Option<Row> = on!(conn, |c| sqlx::query_as(sql)
        .bind(user_id)
        .bind(id)
        .fetch_optional(c)
        .await)?;
    row.map(ApiKey::try_from).transpose()
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("a list of texts is JSON")
}

/// How many keys a user has.
pub async fn count(conn: &mut Conn, user_id: UserId) -> Result<i64, StoreError> {
    const SQL: &str = "select count(*) from api_keys where user_id = $1";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(user_id)
        .fetch_one(c)
        .await)?)
}

/// Add a key. [`StoreError::Duplicate`] when its user has one of this name.
pub async fn insert(tx: &mut Tx, key: &ApiKey, token_hash: &[u8]) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into api_keys (id, user_id, name, token_hash, token_start, scopes, apps,
            created_at, expires_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    let (scopes, apps) = (json(&key.scopes), key.apps.as_ref().map(json));
    on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(key.id)
            .bind(key.user_id)
            .bind(&key.name)
            .bind(token_hash)
            .bind(&key.token_start)
            .bind(&scopes)
            .bind(apps.as_deref())
            .bind(key.created_at)
            .bind(key.expires_at)
            .execute(c)
            .await
            .map(|_| ())
    })?;
    Ok(())
}

/// Give a key another token.
pub async fn set_token(
    tx: &mut Tx,
    user_id: UserId,
    id: ApiKeyId,
    token_hash: &[u8],
    token_start: &str,
) -> Result<(), StoreError> {
    const SQL: &str = "
        update api_keys set token_hash = $3, token_start = $4 where user_id = $1 and id = $2";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(user_id)
        .bind(id)
        .bind(token_hash)
        .bind(token_start)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}

/// Write down that a key is used.
pub async fn note_use(tx: &mut Tx, id: ApiKeyId) -> Result<(), StoreError> {
    const SQL: &str = "update api_keys set last_used_at = $2 where id = $1";
    let now = tx.now;
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(id)
        .bind(now)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}

/// Remove a key of a user. Says whether there was one.
pub async fn delete(tx: &mut Tx, user_id: UserId, id: ApiKeyId) -> Result<bool, StoreError> {
    const SQL: &str = "delete from api_keys where user_id = $1 and id = $2";
    let gone = on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(user_id)
        .bind(id)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(gone == 1)
}
