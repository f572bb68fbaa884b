//! The statements of those who come from a provider.

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
