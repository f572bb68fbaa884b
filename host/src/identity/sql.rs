//! The statements of users and sessions.

use chrono::{DateTime, Utc};

use super::{User, UserId};
use crate::store::{Conn, Id, StoreError, Tx, on};

#[derive(sqlx::FromRow)]
struct UserRow {
    id: UserId,
    name: String,
    role: String,
    password_hash: String,
}

impl UserRow {
    fn split(self) -> (User, String) {
        (
            User {
                id: self.id,
                name: self.name,
                role: self.role,
            },
            self.password_hash,
        )
    }
}

/// Everybody who is not disabled.
pub async fn enabled_users(conn: &mut Conn) -> Result<Vec<User>, StoreError> {
    const SQL: &str = "select id, name, role, password_hash from users where disabled_at is null";
    let rows: Vec<UserRow> = on!(conn, |c| sqlx::query_as(SQL).fetch_all(c).await)?;
    Ok(rows.into_iter().map(|row| row.split().0).collect())
}

/// Whether anybody can sign in.
pub async fn any_user(conn: &mut Conn) -> Result<bool, StoreError> {
    const SQL: &str = "select count(*) from users";
    let count: i64 = on!(conn, |c| sqlx::query_scalar(SQL).fetch_one(c).await)?;
    Ok(count > 0)
}

/// Add a user if there is none at all. Says whether it did.
pub async fn insert_first(
    tx: &mut Tx,
    user: &User,
    password_hash: &str,
) -> Result<bool, StoreError> {
    const SQL: &str = "
        insert into users (id, name, password_hash, role, created_at)
        select $1, $2, $3, $4, $5 where not exists (select 1 from users)";
    // Postgres cannot tell the types of parameters in a select list.
    const SQL_POSTGRES: &str = "
        insert into users (id, name, password_hash, role, created_at)
        select $1::uuid, $2::text, $3::text, $4::text, $5::timestamptz
        where not exists (select 1 from users)";
    let (sql, now) = (tx.text(SQL, SQL_POSTGRES), tx.now);
    let added = on!(tx.conn().await?, |c| {
        sqlx::query(sql)
            .bind(user.id)
            .bind(&user.name)
            .bind(password_hash)
            .bind(&user.role)
            .bind(now)
            .execute(c)
            .await
            .map(|done| done.rows_affected())
    })?;
    Ok(added == 1)
}

/// A user and the hash of their password.
pub async fn user_by_name(
    conn: &mut Conn,
    name: &str,
) -> Result<Option<(User, String)>, StoreError> {
    const SQL: &str = "select id, name, role, password_hash from users
                       where name = $1 and disabled_at is null";
    let row: Option<UserRow> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(name)
        .fetch_optional(c)
        .await)?;
    Ok(row.map(UserRow::split))
}

/// Whose session has this hash and has not ended at `now`.
pub async fn user_by_token(
    conn: &mut Conn,
    token_hash: &[u8],
    now: DateTime<Utc>,
) -> Result<Option<User>, StoreError> {
    const SQL: &str = "
        select users.id, users.name, users.role, users.password_hash
        from sessions join users on users.id = sessions.user_id
        where sessions.token_hash = $1 and sessions.expires_at > $2
              and users.disabled_at is null";
    let row: Option<UserRow> = on!(conn, |c| {
        sqlx::query_as(SQL)
            .bind(token_hash)
            .bind(now)
            .fetch_optional(c)
            .await
    })?;
    Ok(row.map(|row| row.split().0))
}

/// Add a session, and remove those that have ended.
pub async fn insert_session(
    tx: &mut Tx,
    user_id: UserId,
    token_hash: &[u8],
    expires_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    const SWEEP: &str = "delete from sessions where expires_at <= $1";
    const SQL: &str = "
        insert into sessions (id, user_id, token_hash, created_at, expires_at)
        values ($1, $2, $3, $4, $5)";
    let (id, now) = (Id::<NewSessionRow>::new(), tx.now);
    on!(tx.conn().await?, |c| sqlx::query(SWEEP)
        .bind(now)
        .execute(c)
        .await
        .map(|_| ()))?;
    on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(id)
            .bind(user_id)
            .bind(token_hash)
            .bind(now)
            .bind(expires_at)
            .execute(c)
            .await
            .map(|_| ())
    })?;
    Ok(())
}

/// What the id of a session is the id of.
struct NewSessionRow;

/// Remove a session.
pub async fn delete_session(tx: &mut Tx, token_hash: &[u8]) -> Result<(), StoreError> {
    const SQL: &str = "delete from sessions where token_hash = $1";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(token_hash)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}
