//! Looking at a database as it is at one moment, while others go on writing.

use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;

use super::held::Held;
use super::open::{Place, place};
use super::{Conn, StoreError, on};

/// A connection of its own that sees the database at `url` as it is at this moment, however long
/// it is kept: a transaction that only reads. No lock is needed; a process that serves the
/// database goes on.
///
/// While it is kept, SQLite's log grows, and Postgres keeps the rows that others replace.
///
/// # Errors
/// When there is no such database, or it cannot be reached.
pub async fn snapshot(url: &str) -> Result<Conn, StoreError> {
    let (mut conn, begin) = match place(url)? {
        Place::Sqlite(path) => {
            if !path.exists() {
                let shown = path.display();
                return Err(StoreError::Unusable(format!(
                    "there is no database at {shown}"
                )));
            }
            let options = SqliteConnectOptions::new()
                .filename(path)
                .read_only(true)
                .disable_statement_logging();
            let conn = Conn::Sqlite(Held::own(options.connect().await?));
            // The moment is that of the first statement that reads.
            (conn, "begin; select count(*) from sqlite_master")
        }
        Place::Postgres(options) => {
            let conn = Conn::Postgres(Held::own(options.connect().await?));
            let begin = "set idle_in_transaction_session_timeout = 0; set statement_timeout = 0;
                begin isolation level repeatable read read only; select 1";
            (conn, begin)
        }
    };
    on!(&mut conn, |c| sqlx::raw_sql(begin)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(conn)
}
