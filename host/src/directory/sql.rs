//! The statements about the version of apps, scripts and routes.

use crate::store::{Conn, StoreError, Tx, on};

/// The version.
pub async fn version(conn: &mut Conn) -> Result<i64, StoreError> {
    const SQL: &str = "select version from directory_version where id = 1";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL).fetch_one(c).await)?)
}

/// Raise it. On Postgres this row is also the lock that makes such changes wait for each other.
pub async fn raise_version(tx: &mut Tx) -> Result<(), StoreError> {
    const SQL: &str = "update directory_version set version = version + 1 where id = 1";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}
