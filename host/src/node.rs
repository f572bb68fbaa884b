//! A node: everything put together, from start to shutdown.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};

use crate::backup::Backups;
use crate::config::Config;
use crate::directory::Directory;
use crate::dispatch::dispatcher::Dispatcher;
use crate::dispatch::outbox::Outbox;
use crate::executions::running::Running;
use crate::executions::tally::Tally;
use crate::identity::guesses::Guesses;
use crate::identity::{Sessions, password};
use crate::imports::Services;
use crate::instance::NodeAbout;
use crate::journal::{Caps, Journal, Replays};
use crate::kv::KvStore;
use crate::oidc::provider::Provider;
use crate::overview::waiting;
use crate::pubsub::PubSub;
use crate::sandbox::{RHAI_GUEST, Sandbox, SandboxConfig};
use crate::scripts::runner::Runner;
use crate::secrets::Secrets;
use crate::secrets::master_key::MasterKeys;
use crate::store::Db;
use crate::tasks::Tasks;
use crate::triggers::firing::Events;

/// How often the database is asked for a sign of life.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// How long it may take to give one.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// Connections that the kernel holds for us until we accept them; `net.core.somaxconn` caps it.
const CONNECTIONS_PENDING_MAX: u32 = 4_096;

/// What the handlers work with.
pub struct Node {
    /// The configuration.
    pub config: Config,
    /// What other nodes know of this one.
    pub about: NodeAbout,
    /// The database.
    pub db: Db,
    /// Apps, scripts and routes in memory.
    pub directory: Arc<Directory>,
    /// Runs scripts.
    pub runner: Arc<Runner>,
    /// Where deliveries enter.
    pub outbox: Arc<Outbox>,
    /// Takes on deliveries.
    pub dispatcher: Arc<Dispatcher>,
    /// The key-value store.
    pub kv: KvStore,
    /// Begins and ends sessions.
    pub sessions: Sessions,
    /// The secrets of the apps.
    pub secrets: Secrets,
    /// The backups.
    pub backups: Backups,
    /// The topics of the apps.
    pub pubsub: PubSub,
    /// What is told to streams.
    pub journal: Arc<Journal>,
    /// What streams are told of executions.
    pub tally: Arc<Tally>,
    /// What executions log while they run here.
    pub running: Running,
    /// How many streams are open.
    pub caps: Caps,
    /// How much is replayed to them.
    pub replays: Replays,
    /// Where people may sign in besides.
    pub oidc: Option<Provider>,
    /// Slows down whoever guesses.
    pub guesses: Guesses,
    database_problem: Mutex<Option<String>>,
    metrics: PrometheusHandle,
}

impl Node {
    async fn start(config: Config, metrics: PrometheusHandle) -> anyhow::Result<Arc<Self>> {
        config.make_data_dir()?;
        let db = Db::open(&config.database_url)
            .await
            .context("the database")?;
        let directory = Directory::open(db.clone()).await?;
        let sandbox_config = SandboxConfig {
            guest: RHAI_GUEST,
            cache_dir: config.cache_dir.clone(),
            key: artifact_key(&config.cache_dir)?,
            executions_max: config.executions_max,
            threads: config.guest_threads,
            memory_bytes_max: config.ceiling.memory_bytes,
        };
        let sandbox = tokio::task::spawn_blocking(|| Sandbox::new(sandbox_config)).await??;
        let executions_max = sandbox.executions_max() as usize;
        let (outbox, hand_over) = Outbox::new(db.clone(), executions_max, config.lease_ms);
        let events = Events::new(directory.clone(), outbox.clone(), config.trigger_depth_max);
        let kv = KvStore::new(db.clone(), events.clone(), config.kv_value_bytes_max);
        let replays = Replays::new(config.streams.replays);
        let keys = Arc::new(MasterKeys::of(&config)?);
        let secrets = Secrets::new(db.clone(), keys.clone());
        let journal = Journal::new(db.clone());
        let pubsub = PubSub::new(
            db.clone(),
            directory.clone(),
            events,
            journal.clone(),
            keys,
            config.pubsub,
        );
        let running = Running::default();
        let runner = Arc::new(Runner::new(
            db.clone(),
            directory.clone(),
            sandbox,
            config.default_limits,
            Services {
                kv: kv.for_guests(),
                secrets: secrets.clone(),
                pubsub: pubsub.clone(),
                running: running.clone(),
            },
            outbox.clone(),
        ));
        let tally = Tally::new(journal.clone());
        let dispatcher = Dispatcher::new(outbox.clone(), hand_over, runner.clone(), tally.clone());
        dispatcher.take_over().await?;
        let sessions = Sessions::new(
            db.clone(),
            config.session_ttl_hours,
            config.session_idle_hours,
        );
        let backups = Backups::new(config.database_url.clone());
        let oidc = config.oidc.clone().map(Provider::new).transpose()?;
        let database_problem = Mutex::new(None);
        Ok(Arc::new(Self {
            about: NodeAbout::this(outbox.worker()),
            config,
            db,
            directory,
            runner,
            outbox,
            dispatcher,
            kv,
            sessions,
            secrets,
            backups,
            pubsub,
            journal,
            tally,
            running,
            caps: Caps::default(),
            replays,
            oidc,
            guesses: Guesses::default(),
            database_problem,
            metrics,
        }))
    }

    /// Whether this node can serve; if not, why.
    ///
    /// # Errors
    /// What is in the way.
    pub fn readiness(&self) -> Result<(), Vec<String>> {
        let database = self
            .database_problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut problems: Vec<String> = database.iter().cloned().collect();
        if self.dispatcher.is_stopping() {
            problems.push("shutting down".to_owned());
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }

    /// The metrics, as Prometheus reads them.
    pub fn metrics(&self) -> String {
        self.metrics.render()
    }

    /// Let this node see at once what it has just changed. Others, and this one if it fails
    /// here, see it within a second.
    pub async fn refresh_directory(&self) {
        if let Err(error) = self.directory.refresh().await {
            tracing::warn!(%error, "a change could not be read back yet");
        }
    }

    /// Ask the database for a sign of life, again and again.
    async fn watch_database(self: Arc<Self>) {
        loop {
            let asked = tokio::time::timeout(CHECK_TIMEOUT, self.db.check()).await;
            let problem = match asked {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("the database does not answer".to_owned()),
            };
            self.note_database(problem);
            tokio::time::sleep(CHECK_EVERY).await;
        }
    }

    fn note_database(&self, problem: Option<String>) {
        let mut known = self
            .database_problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if known.is_some() != problem.is_some() {
            match &problem {
                Some(problem) => tracing::error!(%problem, "not ready"),
                None => tracing::info!("ready again"),
            }
        }
        // Operators read the cause in the log; probes only need to know which part it is.
        *known = problem.map(|_| "the database is unavailable".to_owned());
    }

    /// Make the first owner, or tell whoever sees our output how to.
    async fn welcome(&self, address: SocketAddr) -> anyhow::Result<()> {
        let name = &self.config.owner_name;
        if let Some(given) = &self.config.owner_password {
            password::check(given, name).context("owner_password")?;
            self.sessions
                .create_first_owner(name, given.clone())
                .await?;
            return Ok(());
        }
        if !self.sessions.is_set_up().await? {
            let token = self.sessions.setup_token().await?;
            println!(
                "no owner yet: make one on http://{address}/admin, or with `picloud setup {token}`"
            );
            println!("set-up token: {token}");
        }
        Ok(())
    }
}

/// The key of the hash that compiled code is checked against; made once, readable by us alone.
fn artifact_key(cache_dir: &Path) -> anyhow::Result<[u8; 32]> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(cache_dir)?;
    let path = cache_dir.join("key");
    let read = || {
        fs::read(&path)
            .ok()
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
    };
    if let Some(key) = read() {
        return Ok(key);
    }
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    let temporary = cache_dir.join(format!("key.{}", std::process::id()));
    let mut file = fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(&key)?;
    // Linking fails when another process was first; then its key is ours too.
    let linked = fs::hard_link(&temporary, &path);
    fs::remove_file(&temporary)?;
    match linked {
        Ok(()) => Ok(key),
        Err(_) => read().with_context(|| format!("{} is not a key", path.display())),
    }
}

/// Listen, with room for a burst of as many connections as executions may wait; the kernel
/// resets what the usual 1,024 can't hold.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(CONNECTIONS_PENDING_MAX)
}

/// Run a node until it is told to stop; `metrics` is what it shows of them.
///
/// # Errors
/// When it cannot start.
pub async fn run(config: Config, metrics: PrometheusHandle) -> anyhow::Result<()> {
    let grace = Duration::from_millis(config.shutdown_grace_ms);
    let listener =
        listen(config.listen).with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr()?;
    let node = Node::start(config, metrics).await?;
    node.welcome(address).await?;
    node.directory.refresh().await?;
    tokio::spawn(node.clone().watch_database());
    tokio::spawn(node.directory.clone().keep_fresh());
    tokio::spawn(node.journal.clone().follow());
    tokio::spawn(node.tally.clone().keep_telling());
    let saying = tokio::spawn(node.about.clone().keep_saying(node.db.clone()));
    tokio::spawn(waiting::keep_sampling(
        node.db.clone(),
        node.directory.clone(),
    ));
    let retention = node.config.retention;
    tokio::spawn(retention.keep_sweeping(node.db.clone(), node.directory.clone()));
    let tasks = Tasks::default();
    let dispatching = tokio::spawn(node.dispatcher.clone().run(tasks, grace));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stopping = node.clone();
    let stopped = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stopping; running scripts get up to {grace:?}");
        stopping.dispatcher.stop();
    };
    println!("listening on http://{address}");
    let serving = tokio::spawn(crate::http::serve(listener, node.clone(), stopped));
    dispatching.await?;
    saying.abort();
    node.about.leave(&node.db).await;
    // Idle connections need not keep us.
    let served = tokio::time::timeout(Duration::from_secs(1), serving).await;
    if let Ok(served) = served {
        served?;
    }
    Ok(())
}
