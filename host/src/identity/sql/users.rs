//! The statements of users.

use chrono::{DateTime, Utc};

use super::inconsistent;
use crate::identity::capability::Role;
use crate::identity::{User, UserId, name};
use crate::store::{Conn, Readable, StoreError, Tx, on};

#[derive(sqlx::FromRow)]
struct Row {
    id: UserId,
    name: String,
    role: String,
    password_hash: String,
    created_at: DateTime<Utc>,
    disabled_at: Option<DateTime<Utc>>,
}

impl Row {
    fn split(self) -> Result<(User, String), StoreError> {
        let user = user(self.id, self.name, &self.role, self.created_at)?;
        let disabled_at = self.disabled_at;
        Ok((
            User {
                disabled_at,
                ..user
            },
            self.password_hash,
        ))
    }
}

/// A user who is not disabled, of what their row says.
pub(super) fn user(
    id: UserId,
    name: String,
    role: &str,
    created_at: DateTime<Utc>,
) -> Result<User, StoreError> {
    let role = Role::parse(role).ok_or_else(|| inconsistent("users", "role", id, role))?;
    Ok(User {
        id,
        name,
        role,
        created_at,
        disabled_at: None,
    })
}

macro_rules! select_users {
    ($rest:literal) => {
        concat!(
            "select id, name, role, password_hash, created_at, disabled_at from users ",
            $rest
        )
    };
}

/// Everybody who is not disabled.
pub async fn enabled(conn: &mut Conn) -> Result<Readable<User>, StoreError> {
    const SQL: &str = select_users!("where disabled_at is null");
    let rows: Vec<Row> = on!(conn, |c| sqlx::query_as(SQL).fetch_all(c).await)?;
    Ok(rows.into_iter().map(|row| Ok(row.split()?.0)).collect())
}

/// A page of everybody in the order of their making: those after `after`.
pub async fn page(
    conn: &mut Conn,
    after: Option<UserId>,
    limit: i64,
) -> Result<Vec<User>, StoreError> {
    const SQL: &str = select_users!("where id > $1 order by id limit $2");
    let after = after.unwrap_or_else(|| uuid::Uuid::nil().into());
    let rows: Vec<Row> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(after)
        .bind(limit)
        .fetch_all(c)
        .await)?;
    rows.into_iter().map(|row| Ok(row.split()?.0)).collect()
}

/// One user.
pub async fn get(conn: &mut Conn, id: UserId) -> Result<Option<User>, StoreError> {
    const SQL: &str = select_users!("where id = $1");
    let row: Option<Row> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(id)
        .fetch_optional(c)
        .await)?;
    row.map(|row| Ok(row.split()?.0)).transpose()
}

/// A user who may sign in and the hash of their password. Nobody else changes them until the
/// transaction ends: SQLite has one writer, and on Postgres the row is locked.
pub async fn hold(tx: &mut Tx, id: UserId) -> Result<Option<(User, String)>, StoreError> {
    const SQL: &str = select_users!("where id = $1 and disabled_at is null");
    const SQL_POSTGRES: &str =
        select_users!("where id = $1 and disabled_at is null for no key update");
    let sql = tx.text(SQL, SQL_POSTGRES);
    let row: Option<Row> = on!(tx.conn().await?, |c| sqlx::query_as(sql)
        .bind(id)
        .fetch_optional(c)
        .await)?;
    row.map(Row::split).transpose()
}

/// A user and the hash of their password. The name may be written in any way that means it.
pub async fn by_name(conn: &mut Conn, name: &str) -> Result<Option<(User, String)>, StoreError> {
    // As it is written comes first: older versions took names as they came.
    const SQL: &str = select_users!(
        "where name = $1 or replace(name, 'ς', 'σ') = $2 order by name = $1 desc limit 1"
    );
    // Nobody's name has one, and Postgres does not look for it.
    if name.contains('\0') {
        return Ok(None);
    }
    let sought = name::sought(name);
    let row: Option<Row> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(name)
        .bind(&sought)
        .fetch_optional(c)
        .await)?;
    row.map(Row::split).transpose()
}

/// Whether there is anybody.
pub async fn any(conn: &mut Conn) -> Result<bool, StoreError> {
    const SQL: &str = "select count(*) from users";
    let count: i64 = on!(conn, |c| sqlx::query_scalar(SQL).fetch_one(c).await)?;
    Ok(count > 0)
}

/// Whether there is an owner who may sign in.
pub async fn has_owner(conn: &mut Conn) -> Result<bool, StoreError> {
    const SQL: &str = "select count(*) from users where role = 'owner' and disabled_at is null";
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
    let sql = tx.text(SQL, SQL_POSTGRES);
    Ok(add(tx, sql, user, password_hash).await? == 1)
}

/// The names of all users.
pub async fn names(conn: &mut Conn) -> Result<Vec<String>, StoreError> {
    const SQL: &str = "select name from users order by id";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL).fetch_all(c).await)?)
}

/// Add a user, whose name is [canonical](name::canonical). [`StoreError::Duplicate`] when it is
/// taken, or is how a name of an older version would be written today.
pub async fn insert(tx: &mut Tx, user: &User, password_hash: &str) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into users (id, name, password_hash, role, created_at) values ($1, $2, $3, $4, $5)";
    let mut names = names(tx.conn().await?).await?.into_iter();
    let sought = name::sought(&user.name);
    if names.any(|known| name::sought(&known) == sought) {
        return Err(StoreError::Duplicate);
    }
    add(tx, SQL, user, password_hash).await.map(|_| ())
}

async fn add(
    tx: &mut Tx,
    sql: &'static str,
    user: &User,
    password_hash: &str,
) -> Result<u64, StoreError> {
    let added = on!(tx.conn().await?, |c| {
        sqlx::query(sql)
            .bind(user.id)
            .bind(&user.name)
            .bind(password_hash)
            .bind(user.role.as_str())
            .bind(user.created_at)
            .execute(c)
            .await
            .map(|done| done.rows_affected())
    })?;
    Ok(added)
}

/// Write a user's role and whether they are disabled. Links that are good no more by that go with it.
pub async fn update(tx: &mut Tx, user: &User) -> Result<(), StoreError> {
    const SQL: &str = "update users set role = $2, disabled_at = $3 where id = $1";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(user.id)
        .bind(user.role.as_str())
        .bind(user.disabled_at)
        .execute(c)
        .await
        .map(|_| ()))?;
    super::links::sweep(tx).await
}

/// Write the hash of a user's password.
pub async fn set_password(tx: &mut Tx, id: UserId, hash: &str) -> Result<(), StoreError> {
    const SQL: &str = "update users set password_hash = $2 where id = $1";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(id)
        .bind(hash)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}

/// Remove a user and all that hangs on them.
pub async fn delete(tx: &mut Tx, id: UserId) -> Result<(), StoreError> {
    const SQL: &str = "delete from users where id = $1";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(id)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}
