//! The statements of links.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::inconsistent;
use crate::apps::AppId;
use crate::identity::capability::{AppRole, Role};
use crate::identity::links::{Link, LinkId};
use crate::identity::{ApiKeyId, UserId};
use crate::store::{Conn, StoreError, Tx, on};

#[derive(sqlx::FromRow)]
struct Row {
    id: LinkId,
    user_id: Option<UserId>,
    role: String,
    apps: String,
    created_by: UserId,
    api_key_id: Option<ApiKeyId>,
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
            api_key_id: row.api_key_id,
            created_at: row.created_at,
            expires_at: row.expires_at,
        })
    }
}

macro_rules! columns {
    () => {
        "id, user_id, role, apps, created_by, api_key_id, created_at, expires_at"
    };
}

/// What follows `where` for the links that are good at `$1`:
///
/// - they have not ended;
/// - their maker may make them still: an enabled admin, or an owner where it is about an owner;
/// - the API key that they were made with has not ended; one that is revoked takes them with it;
/// - whose password they set is enabled, and no more than they were when it was made.
macro_rules! living {
    () => {
        "expires_at > $1
         and exists (
             select 1 from users as maker
             where maker.id = links.created_by and maker.disabled_at is null
               and (maker.role = 'owner' or (maker.role = 'admin' and links.role <> 'owner')))
         and (links.api_key_id is null or exists (
             select 1 from api_keys
             where api_keys.id = links.api_key_id
               and (api_keys.expires_at is null or api_keys.expires_at > $1)))
         and (links.user_id is null or exists (
             select 1 from users as target
             where target.id = links.user_id and target.disabled_at is null
               and (target.role = links.role or target.role = 'member' or links.role = 'owner')))"
    };
}

/// Remove the links that are good no more.
pub async fn sweep(tx: &mut Tx) -> Result<(), StoreError> {
    const SQL: &str = concat!("delete from links where not (", living!(), ")");
    let now = tx.now;
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(now)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}

/// Remove the links that set a user's password.
pub async fn delete_of(tx: &mut Tx, user_id: UserId) -> Result<(), StoreError> {
    const SQL: &str = "delete from links where user_id = $1";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(user_id)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}

/// Remove the links that were made with an API key.
pub async fn delete_made_with(tx: &mut Tx, key: ApiKeyId) -> Result<(), StoreError> {
    const SQL: &str = "delete from links where api_key_id = $1";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(key)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}

/// Add a link, and remove those that are good no more.
pub async fn insert(tx: &mut Tx, link: &Link, token_hash: &[u8]) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into links (id, token_hash, user_id, role, apps, created_by, api_key_id, created_at,
            expires_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    sweep(tx).await?;
    let apps = serde_json::to_string(&link.apps).expect("a map from ids to names is JSON");
    on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(link.id)
            .bind(token_hash)
            .bind(link.user_id)
            .bind(link.role.as_str())
            .bind(&apps)
            .bind(link.created_by)
            .bind(link.api_key_id)
            .bind(link.created_at)
            .bind(link.expires_at)
            .execute(c)
            .await
            .map(|_| ())
    })?;
    Ok(())
}

/// Whether there is a link with this hash that is good at `now`.
pub async fn is_living(
    conn: &mut Conn,
    token_hash: &[u8],
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    const SQL: &str = concat!(
        "select count(*) from links where ",
        living!(),
        " and token_hash = $2"
    );
    let count: i64 = on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(now)
        .bind(token_hash)
        .fetch_one(c)
        .await)?;
    Ok(count > 0)
}

/// Take a link that is good out: it is good once.
pub async fn take(tx: &mut Tx, token_hash: &[u8]) -> Result<Option<Link>, StoreError> {
    const SQL: &str = concat!(
        "delete from links where ",
        living!(),
        " and token_hash = $2 returning ",
        columns!()
    );
    let now = tx.now;
    let row: Option<Row> = on!(tx.conn().await?, |c| sqlx::query_as(SQL)
        .bind(now)
        .bind(token_hash)
        .fetch_optional(c)
        .await)?;
    row.map(Link::try_from).transpose()
}

/// A page of the invitations that are good at `now`, in the order of their making.
pub async fn invitations(
    conn: &mut Conn,
    now: DateTime<Utc>,
    after: Option<LinkId>,
    limit: i64,
) -> Result<Vec<Link>, StoreError> {
    const SQL: &str = concat!(
        "select ",
        columns!(),
        " from links where user_id is null and ",
        living!(),
        " and id > $2 order by id limit $3"
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
