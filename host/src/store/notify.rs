//! Notifications between the processes that share a Postgres. They are hints: one may be lost,
//! so whoever listens also looks by itself now and then.

use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::time::timeout;

use super::session::{CONNECT_TIMEOUT, timed_out};
use super::{Conn, Db, StoreError, on};

/// How long to wait before listening again when the connection is gone.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long a listener hears nothing before it asks for a sign of life. A connection that the
/// network swallows is as silent as one on which nothing happens.
const ASK_AFTER: Duration = Duration::from_secs(2);

impl Db {
    /// Send `payload` to whoever listens on `channel`, this process among them. On SQLite there
    /// is nobody else. Not part of any transaction: a notification that is committed with other
    /// rows would make every commit wait for a lock that all of them share.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn notify(&self, channel: &str, payload: &str) -> Result<(), StoreError> {
        const SQL: &str = "select pg_notify($1, $2)";
        if let Some(readers) = self.inner.reads.of_postgres() {
            let mut conn: Conn = readers.acquire().await?;
            on!(&mut conn, |c| sqlx::query(SQL)
                .bind(channel)
                .bind(payload)
                .execute(c)
                .await
                .map(|_| ()))?;
        }
        Ok(())
    }

    /// Call `hear` with each payload that is sent on `channel`, for ever. On SQLite this never
    /// ends and never hears anything.
    pub async fn listen(&self, channel: &str, hear: impl Fn(&str)) {
        let Some(readers) = self.inner.reads.of_postgres() else {
            return std::future::pending().await;
        };
        // sqlx listens on a connection of a pool of its own only.
        let options = readers.options();
        let mut was_told = false;
        loop {
            let listened: Result<(), sqlx::Error> = async {
                let pool = PgPoolOptions::new()
                    .max_connections(1)
                    .acquire_timeout(CONNECT_TIMEOUT)
                    .connect_lazy_with(options.clone());
                let mut listener = PgListener::connect_with(&pool).await?;
                answered(listener.listen(channel)).await?;
                was_told = false;
                loop {
                    match timeout(ASK_AFTER, listener.recv()).await {
                        Ok(notification) => hear(notification?.payload()),
                        Err(_) => {
                            let asked = sqlx::raw_sql("select 1").execute(&mut listener);
                            answered(asked).await?;
                        }
                    }
                }
            }
            .await;
            if let Err(error) = listened
                && !was_told
            {
                was_told = true;
                tracing::warn!(%error, channel, "notifications cannot be heard; looking by ourselves");
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }
}

/// What `asked` answers, within [`CONNECT_TIMEOUT`].
async fn answered<T>(
    asked: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    timeout(CONNECT_TIMEOUT, asked)
        .await
        .unwrap_or_else(|_| Err(timed_out("a listener is not answered")))
}
