//! The statements of those who come from a provider.

use chrono::{DateTime, Utc};

use crate::apps::AppId;
use crate::identity::UserId;
use crate::store::{StoreError, Tx, on};

/// The user whom a provider calls so.
pub async fn user_of(
    tx: &mut Tx,
    issuer: &str,
    subject: &str,
) -> Result<Option<UserId>, StoreError> {
    const SQL: &str = "select user_id from oidc_subjects where issuer = $1 and subject = $2";
    Ok(on!(tx.conn().await?, |c| sqlx::query_scalar(SQL)
        .bind(issuer)
        .bind(subject)
        .fetch_optional(c)
        .await)?)
}

/// Write down that a provider calls a user so.
pub async fn link(
    tx: &mut Tx,
    issuer: &str,
    subject: &str,
    user_id: UserId,
) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into oidc_subjects (issuer, subject, user_id, created_at) values ($1, $2, $3, $4)";
    let now = tx.now;
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(issuer)
        .bind(subject)
        .bind(user_id)
        .bind(now)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}

/// The app of this slug.
pub async fn app_of(tx: &mut Tx, slug: &str) -> Result<Option<AppId>, StoreError> {
    const SQL: &str = "select id from apps where slug = $1";
    Ok(on!(tx.conn().await?, |c| sqlx::query_scalar(SQL)
        .bind(slug)
        .fetch_optional(c)
        .await)?)
}

/// Add a code that a program makes a session of, and remove those that have ended.
pub async fn insert_code(
    tx: &mut Tx,
    code_hash: &[u8],
    user_id: UserId,
    code_challenge: &str,
    expires_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    const SWEEP: &str = "delete from sign_in_codes where expires_at <= $1";
    const SQL: &str = "
        insert into sign_in_codes (code_hash, user_id, code_challenge, created_at, expires_at)
        values ($1, $2, $3, $4, $5)";
    let now = tx.now;
    on!(tx.conn().await?, |c| sqlx::query(SWEEP)
        .bind(now)
        .execute(c)
        .await
        .map(|_| ()))?;
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(code_hash)
        .bind(user_id)
        .bind(code_challenge)
        .bind(now)
        .bind(expires_at)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}

/// Take a code that has not ended out, with whose it is and its challenge: it is good once.
pub async fn take_code(
    tx: &mut Tx,
    code_hash: &[u8],
) -> Result<Option<(UserId, String)>, StoreError> {
    const SQL: &str = "
        delete from sign_in_codes where code_hash = $1 and expires_at > $2
        returning user_id, code_challenge";
    let now = tx.now;
    Ok(on!(tx.conn().await?, |c| sqlx::query_as(SQL)
        .bind(code_hash)
        .bind(now)
        .fetch_optional(c)
        .await)?)
}
