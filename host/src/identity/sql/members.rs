//! The statements of members.

use chrono::{DateTime, Utc};

use super::inconsistent;
use crate::apps::AppId;
use crate::identity::UserId;
use crate::identity::capability::AppRole;
use crate::identity::users::Member;
use crate::store::{Conn, Readable, StoreError, Tx, on};

#[derive(sqlx::FromRow)]
struct Row {
    user_id: UserId,
    name: String,
    role: String,
    created_at: DateTime<Utc>,
}

impl TryFrom<Row> for Member {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            role: role(row.user_id, &row.role)?,
            user_id: row.user_id,
            name: row.name,
            created_at: row.created_at,
        })
    }
}

macro_rules! select_members {
    ($rest:literal) => {
        concat!(
            "select members.user_id, users.name, members.role, members.created_at
             from members join users on users.id = members.user_id ",
            $rest
        )
    };
}

fn role(user_id: UserId, text: &str) -> Result<AppRole, StoreError> {
    AppRole::parse(text).ok_or_else(|| inconsistent("members", "role", user_id, text))
}

/// Every member of every app.
pub async fn all(conn: &mut Conn) -> Result<Readable<(AppId, UserId, AppRole)>, StoreError> {
    const SQL: &str = "select app_id, user_id, role from members";
    let rows: Vec<(AppId, UserId, String)> = on!(conn, |c| sqlx::query_as(SQL).fetch_all(c).await)?;
    let members = rows.into_iter();
    let members =
        members.map(|(app_id, user_id, text)| Ok((app_id, user_id, role(user_id, &text)?)));
    Ok(members.collect())
}

/// A page of an app's members by their ids: those after `after`.
pub async fn page(
    conn: &mut Conn,
    app_id: AppId,
    after: Option<UserId>,
    limit: i64,
) -> Result<Vec<Member>, StoreError> {
    const SQL: &str = select_members!(
        "where members.app_id = $1 and members.user_id > $2 order by members.user_id limit $3"
    );
    let after = after.unwrap_or_else(|| uuid::Uuid::nil().into());
    let rows: Vec<Row> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(app_id)
        .bind(after)
        .bind(limit)
        .fetch_all(c)
        .await)?;
    rows.into_iter().map(Member::try_from).collect()
}

/// One member of an app.
pub async fn get(
    conn: &mut Conn,
    app_id: AppId,
    user_id: UserId,
) -> Result<Option<Member>, StoreError> {
    const SQL: &str = select_members!("where members.app_id = $1 and members.user_id = $2");
    let row: Option<Row> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(app_id)
        .bind(user_id)
        .fetch_optional(c)
        .await)?;
    row.map(Member::try_from).transpose()
}

/// Give a user a role in an app, in place of the one that they had.
pub async fn set(
    tx: &mut Tx,
    app_id: AppId,
    user_id: UserId,
    role: AppRole,
) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into members (app_id, user_id, role, created_at) values ($1, $2, $3, $4)
        on conflict (app_id, user_id) do update set role = excluded.role";
    let now = tx.now;
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(app_id)
        .bind(user_id)
        .bind(role.as_str())
        .bind(now)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}

/// Take a user's role in an app away. Says whether they had one.
pub async fn delete(tx: &mut Tx, app_id: AppId, user_id: UserId) -> Result<bool, StoreError> {
    const SQL: &str = "delete from members where app_id = $1 and user_id = $2";
    let gone = on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(app_id)
        .bind(user_id)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(gone == 1)
}
