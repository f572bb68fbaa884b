//! The statements of links.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::inconsistent;
use crate::apps::AppId;
use crate::identity::UserId;
use crate::identity::capability::{AppRole, Role};
use crate::identity::links::{Link, LinkId};
use crate::store::{Conn, StoreError, Tx, on};

#[derive(sqlx::FromRow)]
struct Row {
    id: LinkId,
    user_id: Option<UserId>,
    role: String,
    apps: String,
    created_by: UserId,
    created_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
}

impl TryFrom<Row> for Link {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let odd = |column, text: &str| inconsistent("links", column, row.id, text);
        let apps: BTreeMap<AppId, AppRole> =
            serde_json::from_str(&row.apps).map_err(|_| odd("apps", &row.apps))?;
        Ok(Self {
            role: Role::parse(&row.role).ok_or_else(|| odd("role", &row.role))?,
            apps,
            id: row.id,
            user_id: row.user_id,
            created_by: row.created_by,
            created_at: row.created_at,
            expires_at: row.expires_at,
        })
    }
}

macro_rules! columns {
    () => {
        "id, user_id, role, apps, created_by, created_at, expires_at"
    };
}

/// Add a link, and remove those that have ended.
pub async fn insert(tx: &mut Tx, link: &Link, token_hash: &[u8]) -> Result<(), StoreError> {
    const SWEEP: &str = "delete from links where expires_at <= $1";
    const SQL: &str = "
        insert into links (id, token_hash, user_id, role, apps, created_by, created_at, expires_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8)";
    let now = tx.now;
    on!(tx.conn().await?, |c| sqlx::query(SWEEP)
        .bind(now)
        .execute(c)
        .await
        .map(|_| ()))?;
    let apps = serde_json::to_string(&link.apps).expect("a map from ids to names is JSON");
    on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(link.id)
            .bind(token_hash)
            .bind(link.user_id)
            .bind(link.role.as_str())
            .bind(&apps)
            .bind(link.created_by)
            .bind(link.created_at)
            .bind(link.expires_at)
            .execute(c)
            .await
            .map(|_| ())
    })?;
    Ok(())
}

/// Whether there is a link with this hash that has not ended at `now`.
pub async fn is_living(
    conn: &mut Conn,
    token_hash: &[u8],
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    const SQL: &str = "select count(*) from links where token_hash = $1 and expires_at > $2";
    let count: i64 = on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(token_hash)
        .bind(now)
        .fetch_one(c)
        .await)?;
    Ok(count > 0)
}

/// Take a link that has not ended out: it is good once.
pub async fn take(tx: &mut Tx, token_hash: &[u8]) -> Result<Option<Link>, StoreError> {
    const SQL: &str = concat!(
        "delete from links where token_hash = $1 and expires_at > $2 returning ",
        columns!()
    );
    let now = tx.now;
    let row: Option<Row> = on!(tx.conn().await?, |c| sqlx::query_as(SQL)
        .bind(token_hash)
        .bind(now)
        .fetch_optional(c)
        .await)?;
    row.map(Link::try_from).transpose()
}

/// A page of the invitations that have not ended at `now`, in the order of their making.
pub async fn invitations(
    conn: &mut Conn,
    now: DateTime<Utc>,
    after: Option<LinkId>,
    limit: i64,
) -> Result<Vec<Link>, StoreError> {
    const SQL: &str = concat!(
        "select ",
        columns!(),
        " from links where user_id is null and expires_at > $1 and id > $2 order by id limit $3"
    );
    let after = after.unwrap_or_else(|| uuid::Uuid::nil().into());
    let rows: Vec<Row> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(now)
        .bind(after)
        .bind(limit)
        .fetch_all(c)
        .await)?;
    rows.into_iter().map(Link::try_from).collect()
}

/// Remove an invitation. Says whether there was one.
pub async fn delete_invitation(tx: &mut Tx, id: LinkId) -> Result<bool, StoreError> {
    const SQL: &str = "delete from links where id = $1 and user_id is null";
    let gone = on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(id)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(gone == 1)
}
