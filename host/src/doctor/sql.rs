//! What a database says of itself.

use chrono::{DateTime, Utc};

use crate::store::{Conn, StoreError, bounded, on};

/// A database as its checks want to know it.
#[derive(Debug, Clone)]
pub struct Facts {
    /// SQLite or Postgres, and its version.
    pub version: String,
    /// The settings on which it depends whether a commit survives a power cut, with their values.
    pub settings: Vec<(&'static str, String)>,
    /// The most connections, and what time it is there; none on SQLite, which has neither.
    pub server: Option<(i64, DateTime<Utc>)>,
    /// Whether there is a schema of ours.
    pub has_schema: bool,
}

/// Ask a database about itself.
///
/// # Errors
/// When it does not answer.
pub async fn facts(conn: &mut Conn) -> Result<Facts, StoreError> {
    const HAS_SCHEMA: &str =
        "select exists (select 1 from sqlite_master where name = '_sqlx_migrations')";
    const HAS_SCHEMA_POSTGRES: &str = "select to_regclass('_sqlx_migrations') is not null";
    const POSTGRES: &str = "
        select current_setting('server_version'), current_setting('fsync'),
            current_setting('synchronous_commit'),
            cast(current_setting('max_connections') as bigint), clock_timestamp()";
    let sql = conn.text(HAS_SCHEMA, HAS_SCHEMA_POSTGRES);
    let has_schema: bool = on!(&mut *conn, |c| sqlx::query_scalar(sql).fetch_one(c).await)?;
    Ok(match conn {
        Conn::Sqlite(held) => {
            let version = sqlx::query_scalar("select sqlite_version()");
            let version: String = bounded!(held, |c| version.fetch_one(c).await)?;
            let mode = sqlx::query_scalar("pragma journal_mode");
            let mode = bounded!(held, |c| mode.fetch_one(c).await)?;
            Facts {
                version: format!("SQLite {version}"),
                settings: vec![("journal_mode", mode)],
                server: None,
                has_schema,
            }
        }
        Conn::Postgres(held) => {
            let asked = sqlx::query_as(POSTGRES);
            let asked: (String, String, String, i64, DateTime<Utc>) =
                bounded!(held, |c| asked.fetch_one(c).await)?;
            let (version, fsync, synchronous_commit, connections_max, now) = asked;
            Facts {
                version: format!("Postgres {version}"),
                settings: vec![("fsync", fsync), ("synchronous_commit", synchronous_commit)],
                server: Some((connections_max, now)),
                has_schema,
            }
        }
    })
}

/// Read the whole of an SQLite database, and answer what is wrong with it first; none where nothing
/// is, and on Postgres, which has checksums of its own.
///
/// # Errors
/// When it cannot be read.
pub async fn damage(conn: &mut Conn) -> Result<Option<String>, StoreError> {
    let Conn::Sqlite(held) = conn else {
        return Ok(None);
    };
    let check = sqlx::query_scalar("pragma quick_check(1)");
    let said: String = check.fetch_one(&mut **held).await?;
    Ok((said != "ok").then_some(said))
}
