//! The statements of hosts that somebody asked for who may not give them.

use super::AppId;
use crate::apps::HostPattern;
use crate::store::{Conn, StoreError, Tx, on};

/// Ask for a host, if it was not asked for before.
pub async fn ask(tx: &mut Tx, id: AppId, host: &HostPattern) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into host_requests (app_id, host, asked_at) values ($1, $2, $3)
        on conflict do nothing";
    let now = tx.now;
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(id)
        .bind(host.to_string())
        .bind(now)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

/// An app has a host that was asked for, or is not to have it. Says whether it was asked for.
pub async fn answer(tx: &mut Tx, id: AppId, host: &HostPattern) -> Result<bool, StoreError> {
    const SQL: &str = "delete from host_requests where app_id = $1 and host = $2";
    let removed = on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(id)
        .bind(host.to_string())
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(removed > 0)
}

/// What was asked for an app, in order.
pub async fn of(conn: &mut Conn, id: AppId) -> Result<Vec<HostPattern>, StoreError> {
    const SQL: &str = "select host from host_requests where app_id = $1 order by host";
    let hosts: Vec<String> = on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(id)
        .fetch_all(c)
        .await)?;
    Ok(hosts.iter().filter_map(|host| host.parse().ok()).collect())
}
