//! Writing a little into a database that another process may serve.

use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;

use super::held::Held;
use super::open::{Place, place};
use super::{Conn, Durability, StoreError, Tx};

/// How long the writer of a process that serves SQLite is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Do `work` in a transaction of its own on the database at `url`. Nothing of it may be what a
/// serving process keeps in memory.
///
/// # Errors
/// When there is no such database, it cannot be written, or `work` fails; nothing is written then.
pub async fn write_beside(
    url: &str,
    work: impl AsyncFnOnce(&mut Tx) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let conn = match place(url)? {
        Place::Sqlite(path) => {
            let options = SqliteConnectOptions::new()
                .filename(path)
                .foreign_keys(true)
                .busy_timeout(PATIENCE)
                .disable_statement_logging();
            Conn::Sqlite(Held::own(options.connect().await?))
        }
        Place::Postgres(options) => Conn::Postgres(Held::own(options.connect().await?)),
    };
    let mut tx = Tx::begin(conn, Durability::PowerCut).await?;
    work(&mut tx).await?;
    tx.commit().await?;
    tx.conn.close().await
}
