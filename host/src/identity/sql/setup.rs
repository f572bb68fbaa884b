//! The statements of the tokens that make the first owner.

use crate::store::{StoreError, Tx, on};

/// Add a token.
pub async fn insert(tx: &mut Tx, token_hash: &[u8]) -> Result<(), StoreError> {
    const SQL: &str = "insert into setup_tokens (token_hash, created_at) values ($1, $2)";
    let now = tx.now;
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(token_hash)
        .bind(now)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}

/// Whether this is the hash of a token.
pub async fn is_known(tx: &mut Tx, token_hash: &[u8]) -> Result<bool, StoreError> {
    const SQL: &str = "select count(*) from setup_tokens where token_hash = $1";
    let count: i64 = on!(tx.conn().await?, |c| sqlx::query_scalar(SQL)
        .bind(token_hash)
        .fetch_one(c)
        .await)?;
    Ok(count > 0)
}

/// Remove them all.
pub async fn delete_all(tx: &mut Tx) -> Result<(), StoreError> {
    const SQL: &str = "delete from setup_tokens";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}
