//! The connections to Postgres that are only read from.
//!
//! sqlx's pool pings a connection on its return and before it is handed out, without a time limit:
//! one that the network swallows keeps its place for ever, and the others are handed out although
//! they went the same way. This one hands out what was used a moment ago as it is, and once one is
//! lost, none that was idle then.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection, Postgres};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::held::{Beside, Held, Home};
use super::open::PostgresConnector;
use super::session::timed_out;
use super::{Conn, StoreError};

/// How long a reader waits for a connection before the database counts as unavailable.
pub(super) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// What was idle for longer is tried before it is handed out.
const TRUSTED_FOR: Duration = Duration::from_secs(2);
/// How long that may take.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// A pool of connections for reading.
#[derive(Clone)]
pub(super) struct Readers(Arc<Pool>);

pub(super) struct Pool {
    connector: PostgresConnector,
    places: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    conn: Box<PgConnection>,
    beside: Option<Beside>,
    since: Instant,
}

/// A place in the pool; where the connection that has it goes back to.
struct PlaceOf {
    pool: Arc<Pool>,
    _place: OwnedSemaphorePermit,
}

impl Readers {
    pub(super) fn new(connector: PostgresConnector, most: u32) -> Self {
        let pool = Arc::new(Pool {
            connector: connector.clone(),
            places: Arc::new(Semaphore::new(most as usize)),
            idle: Mutex::default(),
        });
        connector.makes_room_in(&pool);
        Self(pool)
    }

    /// How connections are made.
    pub(super) fn options(&self) -> PgConnectOptions {
        self.0.connector.options.as_ref().clone()
    }

    pub(super) async fn acquire(&self) -> Result<Conn, StoreError> {
        let pool = &self.0;
        let place = timeout(ACQUIRE_TIMEOUT, pool.places.clone().acquire_owned()).await;
        let place = place.map_err(|_| timed_out("every connection for reading is in use"))?;
        let home = Arc::new(PlaceOf {
            pool: pool.clone(),
            _place: place.map_err(|_| StoreError::Closed)?,
        });
        while let Some(mut idle) = pool.pop() {
            if idle.since.elapsed() > TRUSTED_FOR {
                let pinged = timeout(PING_TIMEOUT, idle.conn.ping()).await;
                if !matches!(pinged, Ok(Ok(()))) {
                    pool.forget_idle();
                    continue;
                }
            }
            return Ok(Conn::Postgres(Held::of_home(idle.conn, idle.beside, home)));
        }
        let (conn, beside) = pool.connector.connect().await?;
        let held = Held::of_home(Box::new(conn), Some(beside), home);
        Ok(Conn::Postgres(held))
    }
}

impl Pool {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        // A panic while it was held cannot have left a push half-done.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that was used last.
    fn pop(&self) -> Option<Idle> {
        self.idle().pop()
    }

    /// Close those that nobody uses.
    pub(super) fn forget_idle(&self) {
        self.idle().clear();
    }
}

impl Home<Postgres> for PlaceOf {
    fn take_back(&self, conn: Box<PgConnection>, beside: Option<Beside>) {
        let since = Instant::now();
        self.pool.idle().push(Idle {
            conn,
            beside,
            since,
        });
    }

    fn lost_one(&self) {
        self.pool.forget_idle();
    }
}
