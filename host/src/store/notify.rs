//! Notifications between the processes that share a Postgres. They are hints: one may be lost,
//! so whoever listens also looks by itself now and then.

use std::time::Duration;

use sqlx::postgres::PgListener;

use super::open::Reads;
use super::{Db, StoreError};

/// How long to wait before listening again when the connection is gone.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

impl Db {
    /// Send `payload` to whoever listens on `channel`, this process among them. On SQLite there
    /// is nobody else. Not part of any transaction: a notification that is committed with other
    /// rows would make every commit wait for a lock that all of them share.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn notify(&self, channel: &str, payload: &str) -> Result<(), StoreError> {
        if let Reads::Postgres(pool) = &self.inner.reads {
            sqlx::query("select pg_notify($1, $2)")
                .bind(channel)
                .bind(payload)
                .execute(pool)
                .await?;
        }
        Ok(())
    }

    /// Call `hear` with each payload that is sent on `channel`, for ever. On SQLite this never
    /// ends and never hears anything.
    pub async fn listen(&self, channel: &str, hear: impl Fn(&str)) {
        let Reads::Postgres(pool) = &self.inner.reads else {
            return std::future::pending().await;
        };
        loop {
            let listened: Result<(), sqlx::Error> = async {
                let mut listener = PgListener::connect_with(pool).await?;
                listener.listen(channel).await?;
                loop {
                    let notification = listener.recv().await?;
                    hear(notification.payload());
                }
            }
            .await;
            if let Err(error) = listened {
                tracing::warn!(%error, "notifications cannot be heard; looking by ourselves");
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }
}
