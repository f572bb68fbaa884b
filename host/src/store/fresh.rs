//! Filling a new database: whole, or not at all.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteLockingMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection};

use super::held::Held;
use super::open::{Place, beside, lock, place};
use super::{Conn, Durability, Engine, StoreError, Tx, migrate};

/// The one table that has a row before anybody wrote one.
const BORN_WITH_A_ROW: &str = "directory_version";

/// A new database in one transaction. On SQLite it is also a file under another name, which gets
/// its own when all is done; so a process that is killed leaves nothing that looks like a database.
pub struct Fresh {
    tx: Tx,
    file: Option<NewFile>,
}

/// The file that a new SQLite database is until it is done; dropping it removes it.
struct NewFile {
    path: PathBuf,
    named: PathBuf,
    _lock: File,
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // Renamed, it is not there any more.
        let _ = fs::remove_file(&self.path);
    }
}

impl Fresh {
    /// A new database at `url` whose schema has this version.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] when there is something already; the text says what.
    pub async fn open(url: &str, schema: i64) -> Result<Self, StoreError> {
        match place(url)? {
            Place::Sqlite(path) => {
                let file = new_file(&path)?;
                // What a crash leaves of it is thrown away: it needs no journal.
                let mut conn = SqliteConnectOptions::new()
                    .filename(&file.path)
                    .create_if_missing(true)
                    .journal_mode(SqliteJournalMode::Off)
                    .synchronous(SqliteSynchronous::Off)
                    .locking_mode(SqliteLockingMode::Exclusive)
                    .foreign_keys(true)
                    .disable_statement_logging()
                    .connect()
                    .await?;
                migrate::run_to(schema, &mut conn, Engine::Sqlite).await?;
                let conn = Conn::Sqlite(Held::own(conn));
                let tx = Tx::begin(conn, Durability::PowerCut).await?;
                Ok(Self {
                    tx,
                    file: Some(file),
                })
            }
            Place::Postgres(options) => {
                let mut conn = options.connect().await?;
                refuse_what_is_not_empty(&mut conn).await?;
                migrate::run_to(schema, &mut conn, Engine::Postgres).await?;
                let conn = Conn::Postgres(Held::own(conn));
                let tx = Tx::begin(conn, Durability::PowerCut).await?;
                Ok(Self { tx, file: None })
            }
        }
    }

    /// The transaction that fills it.
    pub fn tx(&mut self) -> &mut Tx {
        &mut self.tx
    }

    /// Commit, and bring its schema up to date.
    ///
    /// # Errors
    /// When that fails. On Postgres, what was committed stays, and a server that is started on it
    /// brings the schema up to date.
    pub async fn finish(mut self) -> Result<(), StoreError> {
        self.tx.commit().await?;
        let mut conn = self.tx.conn;
        match &mut conn {
            Conn::Sqlite(held) => migrate::run(&mut **held, Engine::Sqlite).await?,
            Conn::Postgres(held) => migrate::run(&mut **held, Engine::Postgres).await?,
        }
        conn.close().await?;
        match &self.file {
            Some(file) => file.keep(),
            None => Ok(()),
        }
    }
}

impl NewFile {
    /// Give it its name, for good: a power cut does not take it back.
    fn keep(&self) -> Result<(), StoreError> {
        let kept = File::open(&self.path)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&self.path, &self.named))
            .and_then(|()| match self.named.parent() {
                Some(folder) => File::open(folder)?.sync_all(),
                None => Ok(()),
            });
        kept.map_err(|error| {
            StoreError::Unusable(format!("cannot make {}: {error}", self.named.display()))
        })
    }
}

fn new_file(named: &Path) -> Result<NewFile, StoreError> {
    let lock = lock(named)?;
    // A log without its file would be read into the new one.
    for path in [named.to_owned(), beside(named, "-wal")] {
        if path.exists() {
            return Err(StoreError::Unusable(format!(
                "{} is there already; choose another data_dir, or move it away",
                path.display()
            )));
        }
    }
    let path = beside(named, ".restoring");
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let shown = path.display();
            return Err(StoreError::Unusable(format!(
                "cannot remove {shown}: {error}"
            )));
        }
        _ => {}
    }
    // SQLite would make it everybody's to read.
    let made = fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path);
    made.map_err(|error| StoreError::Unusable(format!("cannot make {}: {error}", path.display())))?;
    Ok(NewFile {
        path,
        named: named.to_owned(),
        _lock: lock,
    })
}

async fn refuse_what_is_not_empty(conn: &mut PgConnection) -> Result<(), StoreError> {
    const TABLES: &str = "
        select table_name::text from information_schema.tables
        where table_schema = current_schema() and table_type = 'BASE TABLE' order by 1";
    let tables: Vec<String> = sqlx::query_scalar(TABLES).fetch_all(&mut *conn).await?;
    let migrations = |name: &String| name == "_sqlx_migrations";
    if !tables.is_empty() && !tables.iter().any(migrations) {
        return Err(StoreError::Unusable(format!(
            "the database has tables that are not PiCloud's (`{}`); choose an empty one",
            tables[0]
        )));
    }
    for table in tables {
        if migrations(&table) || table == BORN_WITH_A_ROW {
            continue;
        }
        let sql = format!("select exists (select 1 from \"{table}\")");
        let any: bool = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(&mut *conn)
            .await?;
        if any {
            return Err(StoreError::Unusable(format!(
                "the database is not empty (`{table}` has rows); choose an empty one"
            )));
        }
    }
    Ok(())
}
