//! Opening either database: URLs, pools, pragmas, the lock on a SQLite file.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::sync::Notify;

use super::file::{self, Served};
use super::held::{Beside, Held};
use super::locks::Locks;
use super::readers::{ACQUIRE_TIMEOUT, Pool, Readers};
use super::reading::Reads;
use super::session::{self, Sessions};
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
/// Connections to Postgres of one node, where it has room for so many.
pub const CONNECTIONS_MAX: u32 = 43;
/// Readers of Postgres for one node, and as many again for guests ([`super::Db::for_guests`]).
const READERS_MAX: u32 = 16;
/// How long nobody connects to Postgres again after a connection could not be made; it doubles.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
/// The longest such pause.
const CONNECT_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often room is made for a connection before it counts as refused.
const ROOM_TRIES: u32 = 10;
/// How long Postgres has each time to notice that others were closed.
const ROOM_PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Opened {
    pub(super) reads: Reads,
    pub(super) guest_reads: Reads,
    pub(super) writes: Connector,
    /// Lanes for [`Lane::Keyed`](super::Lane::Keyed).
    pub(super) keyed_lanes: usize,
    pub(super) file: Option<Arc<Served>>,
    pub(super) locks: Arc<Locks>,
}

/// How a writer's lane gets its connection, at the start and after it lost one.
#[derive(Clone)]
pub(super) enum Connector {
    Sqlite(Box<SqliteConnectOptions>),
    Postgres(PostgresConnector),
}

impl Connector {
    pub(super) async fn connect(&self) -> Result<Conn, StoreError> {
        Ok(match self {
            Self::Sqlite(options) => {
                let mut conn = options.connect().await?;
                file::refuse_read_only(&mut conn).await?;
                Conn::Sqlite(Held::own(conn))
            }
            Self::Postgres(connector) => {
                let (mut conn, beside) = connector.connect().await?;
                // What is written is found by its keys. A table that was empty when Postgres last
                // looked, and holds 100,000 rows now, must not be read as a whole for that.
                let settings = sqlx::raw_sql("set enable_seqscan = off").execute(&mut conn);
                let set = tokio::time::timeout(session::CONNECT_TIMEOUT, settings).await;
                set.map_err(|_| session::timed_out("a new connection is not answered"))??;
                Conn::Postgres(Held::own_beside(conn, beside))
            }
        })
    }
}

/// Makes connections to Postgres. While none can be made, it says so at once to all who ask within
/// the pause, which grows: hundreds of attempts at once would keep a server busy that has just
/// come back.
#[derive(Clone)]
pub(super) struct PostgresConnector {
    pub(super) options: Box<PgConnectOptions>,
    sessions: Arc<Sessions>,
    locks: Arc<Locks>,
    failed: Arc<Mutex<Option<Failed>>>,
    crowded: Arc<Crowded>,
}

/// What closes idle connections when Postgres has no room for another.
#[derive(Default)]
struct Crowded {
    pools: Mutex<Vec<Weak<Pool>>>,
    lanes: Notify,
}

/// Why the last connection could not be made.
struct Failed {
    error: StoreError,
    pause: Duration,
    again_at: Instant,
}

impl PostgresConnector {
    fn new(options: PgConnectOptions) -> Self {
        Self {
            sessions: Sessions::new(options.clone()),
            options: Box::new(options),
            locks: Arc::default(),
            failed: Arc::default(),
            crowded: Arc::default(),
        }
    }

    /// Close what is idle in `pool` when there is no room for another connection.
    pub(super) fn makes_room_in(&self, pool: &Arc<Pool>) {
        let mut pools = self.crowded.pools.lock();
        if let Ok(pools) = &mut pools {
            pools.push(Arc::downgrade(pool));
        }
    }

    /// Wait until there is no room for another connection: what is idle is to be closed.
    pub(super) async fn is_crowded(&self) {
        self.crowded.lanes.notified().await;
    }

    /// Close what is idle.
    fn make_room(&self) {
        self.crowded.lanes.notify_waiters();
        if let Ok(pools) = self.crowded.pools.lock() {
            pools
                .iter()
                .filter_map(Weak::upgrade)
                .for_each(|pool| pool.forget_idle());
        }
    }

    pub(super) async fn connect(&self) -> Result<(PgConnection, Beside), StoreError> {
        if let Some(failed) = &*self.failed()
            && Instant::now() < failed.again_at
        {
            return Err(failed.error.clone());
        }
        let connected = async || {
            let mut conn = session::connect(&self.options).await?;
            let session = session::begin(&mut conn).await?;
            Ok::<_, sqlx::Error>((conn, session))
        };
        let mut made = connected().await;
        for _ in 0..ROOM_TRIES {
            if !made.as_ref().is_err_and(session::is_crowded) {
                break;
            }
            self.make_room();
            tokio::time::sleep(ROOM_PAUSE).await;
            made = connected().await;
        }
        match made {
            Ok((conn, session)) => {
                if self.failed().take().is_some() {
                    tracing::info!("the database can be reached again");
                }
                let beside = Beside {
                    session,
                    sessions: self.sessions.clone(),
                    locks: self.locks.clone(),
                };
                Ok((conn, beside))
            }
            Err(error) => {
                let error = StoreError::from(error);
                let mut failed = self.failed();
                if failed.is_none() {
                    tracing::warn!(%error, "the database cannot be reached; trying again");
                }
                let pause = failed.as_ref().map_or(CONNECT_PAUSE, |failed| {
                    (failed.pause * 2).min(CONNECT_PAUSE_MAX)
                });
                *failed = Some(Failed {
                    error: error.clone(),
                    pause,
                    again_at: Instant::now() + pause,
                });
                Err(error)
            }
        }
    }

    fn failed(&self) -> std::sync::MutexGuard<'_, Option<Failed>> {
        // A panic while it was held cannot have left it half-written.
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
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
    let path = &resolved(path)?;
    let served = Served::claim(path.clone(), lock)?;
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
    let served = Arc::new(served.with_log());
    let readers = async || {
        // The pool must not hold the lock beyond the handle on the database.
        let served = Arc::downgrade(&served);
        let options = options.clone().read_only(true).create_if_missing(false);
        SqlitePoolOptions::new()
            .max_connections(SQLITE_READERS)
            .min_connections(1)
            .test_before_acquire(false)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A file that took the place of ours is another database.
            .after_connect(move |_, _| {
                let checked = served.upgrade().map_or(Ok(()), |served| served.check());
                std::future::ready(checked).boxed()
            })
            .connect_with(options)
            .await
    };
    Ok(Opened {
        reads: Reads::sqlite(readers().await?, SQLITE_READERS),
        guest_reads: Reads::sqlite(readers().await?, SQLITE_READERS),
        writes: Connector::Sqlite(Box::new(options.pragma("cache_size", WRITER_CACHE_KIB))),
        keyed_lanes: 1,
        file: Some(served),
        locks: Arc::default(),
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
    let mut conn = session::connect(&options).await?;
    migrate::run(&mut conn, Engine::Postgres).await?;
    let sizes = Sizes::within(room(&mut conn).await?);
    conn.close().await?;
    let connector = PostgresConnector::new(options);
    let readers = || {
        let readers = Readers::new(connector.clone(), sizes.readers);
        Reads::postgres(readers, sizes.readers)
    };
    let locks = connector.locks.clone();
    Ok(Opened {
        reads: readers(),
        guest_reads: readers(),
        writes: Connector::Postgres(connector),
        keyed_lanes: sizes.keyed_lanes as usize,
        file: None,
        locks,
    })
}

/// How many connections Postgres may let this node have: what the server, the database and the role
/// allow.
async fn room(conn: &mut PgConnection) -> Result<u32, StoreError> {
    const SQL: &str = "
        select least(
            cast(current_setting('max_connections') as bigint)
                - cast(current_setting('superuser_reserved_connections') as bigint),
            (select nullif(datconnlimit, -1) from pg_database where datname = current_database()),
            (select nullif(rolconnlimit, -1) from pg_roles where rolname = current_user))";
    let room: i64 = sqlx::query_scalar(SQL).fetch_one(conn).await?;
    let room = u32::try_from(room).unwrap_or(0);
    if room < Sizes::LEAST.connections() {
        tracing::warn!(
            room,
            needed = Sizes::LEAST.connections(),
            "Postgres allows fewer connections than a node needs: some work will wait for others"
        );
    }
    Ok(room)
}

/// How many connections a node has of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sizes {
    /// For reading, and as many again for guests.
    readers: u32,
    keyed_lanes: u32,
}

impl Sizes {
    /// Where there is no room for more.
    const LEAST: Self = Self {
        readers: 1,
        keyed_lanes: 1,
    };

    /// The most that `room` allows.
    fn within(room: u32) -> Self {
        let room = room.min(CONNECTIONS_MAX);
        let keyed_lanes = (room / 10).clamp(1, super::writer::KEYED_LANES as u32);
        let others = Self {
            readers: 0,
            keyed_lanes,
        };
        let readers = room.saturating_sub(others.connections()) / 2;
        Self {
            readers: readers.clamp(1, READERS_MAX),
            keyed_lanes,
        }
    }

    /// All of them: four more lanes, two that listen, and one to ask the server about the others.
    const fn connections(self) -> u32 {
        2 * self.readers + self.keyed_lanes + 4 + 2 + 1
    }
}

fn resolved(path: &Path) -> Result<PathBuf, StoreError> {
    file::resolve(path)
        .map_err(|error| StoreError::Unusable(format!("cannot find {}: {error}", path.display())))
}

/// Lock the file next to the database for the life of this process. Two writers would be safe
/// for SQLite but not for us: a starting process takes over every lease that it finds.
pub(super) fn lock(path: &Path) -> Result<File, StoreError> {
    let unusable = |problem: String| StoreError::Unusable(problem);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .map_err(|error| unusable(format!("cannot make {}: {error}", folder.display())))?;
    }
    let lock_path = beside(&resolved(path)?, ".lock");
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

#[cfg(test)]
mod tests {
    use super::Sizes;

    #[test]
    fn connections_fit_what_postgres_allows() {
        for room in Sizes::LEAST.connections()..200 {
            let sizes = Sizes::within(room);
            assert!(sizes.connections() <= room, "{room}: {sizes:?}");
        }
        let usual = Sizes {
            readers: 16,
            keyed_lanes: 4,
        };
        assert_eq!(Sizes::within(97), usual);
        assert_eq!(Sizes::within(10), Sizes::LEAST);
    }
}
