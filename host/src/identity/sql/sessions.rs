//! The statements of sessions.

use chrono::{DateTime, Utc};

use uuid::Uuid;

use super::users::user;
use crate::identity::{Session, SessionId, User, UserId};
use crate::store::{Conn, StoreError, Tx, on};

#[derive(sqlx::FromRow)]
struct Row {
    id: SessionId,
    created_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    last_used_at: Option<DateTime<Utc>>,
    address: Option<String>,
    user_agent: Option<String>,
}

impl From<Row> for Session {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            created_at: row.created_at,
            expires_at: row.expires_at,
            last_used_at: row.last_used_at,
            address: row.address,
            user_agent: row.user_agent,
        }
    }
}

#[derive(sqlx::FromRow)]
struct WithUser {
    user_id: UserId,
    name: String,
    role: String,
    user_created_at: DateTime<Utc>,
    #[sqlx(flatten)]
    session: Row,
}

/// The session whose token has this hash, if it has not ended at `now`, and its user, unless
/// they are disabled.
pub async fn by_token(
    conn: &mut Conn,
    token_hash: &[u8],
    now: DateTime<Utc>,
) -> Result<Option<(User, Session)>, StoreError> {
    const SQL: &str = "
        select users.id as user_id, users.name, users.role, users.created_at as user_created_at,
               sessions.id, sessions.created_at, sessions.expires_at, sessions.last_used_at,
               sessions.address, sessions.user_agent
        from sessions join users on users.id = sessions.user_id
        where sessions.token_hash = $1 and sessions.expires_at > $2
              and users.disabled_at is null";
    let row: Option<WithUser> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(token_hash)
        .bind(now)
        .fetch_optional(c)
        .await)?;
    row.map(|row| {
        let user = user(row.user_id, row.name, &row.role, row.user_created_at)?;
        Ok((user, row.session.into()))
    })
    .transpose()
}

/// The sessions of a user that have not ended at `now`, the newest first.
pub async fn page(
    conn: &mut Conn,
    user_id: UserId,
    now: DateTime<Utc>,
    before: Option<SessionId>,
    limit: i64,
) -> Result<Vec<Session>, StoreError> {
    const SQL: &str = "
        select id, created_at, expires_at, last_used_at, address, user_agent from sessions
        where user_id = $1 and expires_at > $2 and id < $3 order by id desc limit $4";
    let rows: Vec<Row> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(user_id)
        .bind(now)
        .bind(before.unwrap_or_else(|| Uuid::max().into()))
        .bind(limit)
        .fetch_all(c)
        .await)?;
    Ok(rows.into_iter().map(Session::from).collect())
}

/// Add a session, and remove those that have ended.
pub async fn insert(
    tx: &mut Tx,
    user_id: UserId,
    session: &Session,
    token_hash: &[u8],
) -> Result<(), StoreError> {
    const SWEEP: &str = "delete from sessions where expires_at <= $1";
    const SQL: &str = "
        insert into sessions (id, user_id, token_hash, created_at, expires_at, last_used_at,
            address, user_agent)
        values ($1, $2, $3, $4, $5, $6, $7, $8)";
    let now = tx.now;
    on!(tx.conn().await?, |c| sqlx::query(SWEEP)
        .bind(now)
        .execute(c)
        .await
        .map(|_| ()))?;
    on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(session.id)
            .bind(user_id)
            .bind(token_hash)
            .bind(session.created_at)
            .bind(session.expires_at)
            .bind(session.last_used_at)
            .bind(session.address.as_deref())
            .bind(session.user_agent.as_deref())
            .execute(c)
            .await
            .map(|_| ())
    })?;
    Ok(())
}

/// Write down that a session is used.
pub async fn note_use(tx: &mut Tx, id: SessionId) -> Result<(), StoreError> {
    const SQL: &str = "update sessions set last_used_at = $2 where id = $1";
    let now = tx.now;
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(id)
        .bind(now)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}

/// Remove a session of a user. Says whether there was one.
pub async fn delete(tx: &mut Tx, user_id: UserId, id: SessionId) -> Result<bool, StoreError> {
    const SQL: &str = "delete from sessions where user_id = $1 and id = $2";
    let gone = on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(user_id)
        .bind(id)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(gone == 1)
}

/// Remove the sessions of a user, all but `keep`.
pub async fn delete_others(
    tx: &mut Tx,
    user_id: UserId,
    keep: Option<SessionId>,
) -> Result<(), StoreError> {
    const SQL: &str = "delete from sessions where user_id = $1 and id <> $2";
    let keep = keep.unwrap_or_else(|| uuid::Uuid::nil().into());
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(user_id)
        .bind(keep)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}

/// Remove the codes that a program would begin a session of a user with.
pub async fn delete_codes(tx: &mut Tx, user_id: UserId) -> Result<(), StoreError> {
    const SQL: &str = "delete from sign_in_codes where user_id = $1";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(user_id)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}

/// From where the sessions of a user were begun.
pub async fn addresses(conn: &mut Conn, user_id: UserId) -> Result<Vec<String>, StoreError> {
    const SQL: &str =
        "select distinct address from sessions where user_id = $1 and address is not null";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(user_id)
        .fetch_all(c)
        .await)?)
}
