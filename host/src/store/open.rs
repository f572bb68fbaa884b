//! Opening either database: URLs, pools, pragmas, the lock on a SQLite file.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, PgPool, SqlitePool};

use super::conn::Held;
use super::{Conn, Engine, StoreError, migrate};

/// Readers of SQLite, and as many again for guests: WAL lets them run beside the writer.
const SQLITE_READERS: u32 = 4;
/// How long SQLite's log grows before it is copied into the file, and written from its beginning
/// again: 16 MiB.
const CHECKPOINT_PAGES: u32 = 4000;
/// What one page takes in the log: itself, of SQLite's usual size, and a header.
const LOGGED_PAGE_BYTES: usize = 4096 + 24;
/// What the writer on SQLite keeps of the file in memory: 16 MiB, in SQLite's notation.
const WRITER_CACHE_KIB: &str = "-16384";
/// Readers of Postgres for one node, and as many again for guests ([`super::Db::for_guests`]).
const POSTGRES_READERS: u32 = 16;
/// How long a reader waits for a connection before the database counts as unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) struct Opened {
    pub(super) reads: Reads,
    pub(super) guest_reads: Reads,
    pub(super) writes: Connector,
    pub(super) lock: Option<File>,
}

pub(super) enum Reads {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Reads {
    pub(super) async fn acquire(&self) -> Result<Conn, StoreError> {
        Ok(match self {
            Self::Sqlite(pool) => Conn::Sqlite(Held::Pooled(pool.acquire().await?)),
            Self::Postgres(pool) => Conn::Postgres(Held::Pooled(pool.acquire().await?)),
        })
    }
}

/// How a writer's lane gets its connection, at the start and after it lost one.
#[derive(Clone)]
pub(super) enum Connector {
    Sqlite(Box<SqliteConnectOptions>),
    Postgres(Box<PgConnectOptions>),
}

impl Connector {
    pub(super) async fn connect(&self) -> Result<Conn, StoreError> {
        Ok(match self {
            Self::Sqlite(options) => Conn::Sqlite(Held::Own(Box::new(options.connect().await?))),
            Self::Postgres(options) => {
                let connecting = tokio::time::timeout(ACQUIRE_TIMEOUT, options.connect());
                let mut conn = connecting.await.map_err(|_| sqlx::Error::PoolTimedOut)??;
                // What is written is found by its keys. A table that was empty when Postgres last
                // looked, and holds 100,000 rows now, must not be read as a whole for that.
                sqlx::raw_sql("set enable_seqscan = off")
                    .execute(&mut conn)
                    .await?;
                Conn::Postgres(Held::Own(Box::new(conn)))
            }
        })
    }
}

/// Where a URL leads.
pub(super) enum Place {
    Sqlite(PathBuf),
    Postgres(Box<PgConnectOptions>),
}

pub(super) fn place(url: &str) -> Result<Place, StoreError> {
    match url.split_once("://") {
        Some(("sqlite", path)) => Ok(Place::Sqlite(path.into())),
        Some(("postgres" | "postgresql", _)) => {
            let options = PgConnectOptions::from_str(url)
                .map_err(|error| StoreError::Unusable(format!("the database's URL: {error}")))?
                .application_name("picloud")
                .disable_statement_logging();
            Ok(Place::Postgres(Box::new(options)))
        }
        _ => Err(StoreError::Unusable(
            "the database's URL must begin with sqlite:// or postgres://".into(),
        )),
    }
}

pub(super) async fn open(url: &str) -> Result<Opened, StoreError> {
    match place(url)? {
        Place::Sqlite(path) => open_sqlite(&path).await,
        Place::Postgres(options) => open_postgres(*options).await,
    }
}

async fn open_sqlite(path: &Path) -> Result<Opened, StoreError> {
    let lock = lock(path)?;
    // Full durability by default: a commit survives a power cut. Group commit makes it
    // affordable. No mmap: an I/O error would be a signal instead of an error.
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(5))
        .disable_statement_logging();
    // Statements for each number of rows, joined with others: see `Tx`.
    let options = options.statement_cache_capacity(500);
    // The pages that every call changes are copied into the file once for many commits.
    let options = options.pragma("wal_autocheckpoint", CHECKPOINT_PAGES.to_string());
    let mut writer = options.connect().await?;
    migrate::run(&mut writer, Engine::Sqlite).await?;
    writer.close().await?;
    if let Err(error) = lay_out_log(path) {
        tracing::debug!(%error, "SQLite's log is not laid out ahead; it grows as it is written");
    }
    let readers = async || {
        let options = options.clone().read_only(true).create_if_missing(false);
        SqlitePoolOptions::new()
            .max_connections(SQLITE_READERS)
            .min_connections(1)
            .test_before_acquire(false)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options)
            .await
    };
    Ok(Opened {
        reads: Reads::Sqlite(readers().await?),
        guest_reads: Reads::Sqlite(readers().await?),
        writes: Connector::Sqlite(Box::new(options.pragma("cache_size", WRITER_CACHE_KIB))),
        lock: Some(lock),
    })
}

/// Make the log of a SQLite file, which nobody has open, as long as it gets before it is written
/// over, unless it is there. SQLite takes zeros for an empty log. A commit that makes its log
/// longer waits for the file system's own log as well as for the pages, which takes up to twice as
/// long.
fn lay_out_log(database: &Path) -> std::io::Result<()> {
    let log = beside(database, "-wal");
    if log.exists() {
        return Ok(());
    }
    // Whoever opens the database meanwhile finds the whole of it, or makes one; never a part that
    // is still being written.
    let laid_out = beside(database, "-wal.new");
    let page = [0; LOGGED_PAGE_BYTES];
    let written = File::create(&laid_out).and_then(|mut file| {
        file.set_permissions(database.metadata()?.permissions())?;
        (0..CHECKPOINT_PAGES).try_for_each(|_| file.write_all(&page))?;
        std::fs::hard_link(&laid_out, &log)
    });
    let removed = std::fs::remove_file(&laid_out);
    written.and(removed)
}

/// The file beside a SQLite file that has its name and this ending.
pub(super) fn beside(database: &Path, ending: &str) -> PathBuf {
    PathBuf::from(format!("{}{ending}", database.display()))
}

async fn open_postgres(options: PgConnectOptions) -> Result<Opened, StoreError> {
    let readers = || {
        PgPoolOptions::new()
            .max_connections(POSTGRES_READERS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
    };
    let reads = readers().connect_with(options.clone()).await?;
    migrate::run(&reads, Engine::Postgres).await?;
    Ok(Opened {
        reads: Reads::Postgres(reads),
        guest_reads: Reads::Postgres(readers().connect_lazy_with(options.clone())),
        writes: Connector::Postgres(Box::new(options)),
        lock: None,
    })
}

/// Lock the file next to the database for the life of this process. Two writers would be safe
/// for SQLite but not for us: a starting process takes over every lease that it finds.
pub(super) fn lock(path: &Path) -> Result<File, StoreError> {
    let unusable = |problem: String| StoreError::Unusable(problem);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .map_err(|error| unusable(format!("cannot make {}: {error}", folder.display())))?;
    }
    let lock_path = beside(path, ".lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(|error| unusable(format!("cannot open {}: {error}", lock_path.display())))?;
    file.try_lock().map_err(|_| {
        unusable(format!(
            "another picloud serves {}; stop it, or choose another data_dir",
            path.display()
        ))
    })?;
    Ok(file)
}
