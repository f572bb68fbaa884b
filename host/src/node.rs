//! A node: everything put together, from start to shutdown.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::apps::leaving;
use crate::backup::Backups;
use crate::config::Config;
use crate::directory::Directory;
use crate::dispatch::dispatcher::Dispatcher;
use crate::dispatch::outbox::Outbox;
use crate::executions::running::Running;
use crate::executions::tally::Tally;
use crate::fair_queue::FairQueue;
use crate::http::body::Bodies;
use crate::http::heavy;
use crate::http::seen_through::SeenThrough;
use crate::identity::guesses::Guesses;
use crate::identity::{Sessions, password};
use crate::imports::Services;
use crate::instance::NodeAbout;
use crate::journal::{Caps, Journal, Replays};
use crate::kv::KvStore;
use crate::machine;
use crate::oidc::provider::Provider;
use crate::overview::waiting;
use crate::pubsub::PubSub;
use crate::quotas::{Counts, Meter};
use crate::sandbox::{RHAI_GUEST, Sandbox, SandboxConfig};
use crate::scripts::runner::Runner;
use crate::secrets::Secrets;
use crate::secrets::master_key::MasterKeys;
use crate::stopping::{Stage, Stopping};
use crate::store::{Db, StoreError};
use crate::tasks::{Task, Tasks};
use crate::telemetry::{self, repeated};
use crate::triggers::firing::Events;

/// What probes are told while the database cannot be read or written.
const UNAVAILABLE: &str = "the database is unavailable";
/// How often the database is asked for a sign of life.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// How long it may take to give one.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// How long, after the grace, what is left to do may take: to answer whoever is cut off, to give
/// back what is leased, to say that this node ends.
const LEAVING_MAX: Duration = Duration::from_millis(1_500);
/// How long after the grace the process ends, whatever hangs.
const END_AFTER_GRACE: Duration = Duration::from_secs(2);

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
    /// Measures what apps keep in the database.
    pub quotas: Arc<Meter>,
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
    /// Requests that change something.
    pub seen_through: SeenThrough,
    /// How many streams are open.
    pub caps: Caps,
    /// How much is replayed to them.
    pub replays: Replays,
    /// Where people may sign in besides.
    pub oidc: Option<Provider>,
    /// Slows down whoever guesses.
    pub guesses: Guesses,
    /// What requests' bodies take of the memory.
    pub bodies: Bodies,
    /// Requests of the API that take a processor for long.
    pub heavy_requests: FairQueue,
    /// Exports of apps.
    pub exports: FairQueue,
    /// What runs for as long as the node does.
    pub tasks: Tasks,
    /// How far it is on its way to its end.
    pub stopping: Stopping,
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
            memory_bytes_of_all: config
                .guest_memory_bytes
                .unwrap_or_else(|| machine::memory_bytes() / 2),
            compile: config.compile,
            cache_bytes_max: config.cache_bytes_max,
            precise_clock_apps: config.precise_clock_apps.clone(),
        };
        let sandbox = tokio::task::spawn_blocking(|| Sandbox::new(sandbox_config)).await??;
        let executions_max = sandbox.executions_max() as usize;
        let counts = Counts::new(config.quotas);
        let (outbox, hand_over) = Outbox::new(
            db.clone(),
            executions_max,
            config.lease_ms,
            config.bodies_bytes_max,
            counts.clone(),
        );
        let events = Events::new(directory.clone(), outbox.clone(), config.trigger_depth_max);
        let quotas = Meter::new(db.clone(), directory.clone(), counts);
        let kv_bytes_max = config.kv_value_bytes_max;
        let kv = KvStore::new(db.clone(), events.clone(), quotas.clone(), kv_bytes_max);
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
        leaving::take_over(&db).await?;
        let sessions = Sessions::new(
            db.clone(),
            config.session_ttl_hours,
            config.session_idle_hours,
        );
        let backups = Backups::new(config.database_url.clone());
        let oidc = config.oidc.clone().map(Provider::new).transpose()?;
        let database_problem = Mutex::new(None);
        let bodies = Bodies::new(config.bodies_bytes_max);
        Ok(Arc::new(Self {
            about: NodeAbout::this(outbox.worker()),
            config,
            db,
            directory,
            runner,
            outbox,
            dispatcher,
            kv,
            quotas,
            sessions,
            secrets,
            backups,
            pubsub,
            journal,
            tally,
            running,
            seen_through: SeenThrough::new(executions_max),
            caps: Caps::default(),
            replays,
            oidc,
            guesses: Guesses::default(),
            bodies,
            heavy_requests: heavy::requests(),
            exports: heavy::exports(),
            tasks: Tasks::default(),
            stopping: Stopping::default(),
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
        drop(database);
        problems.extend(self.directory.check_age().err().map(|old| old.to_string()));
        problems.extend(self.tasks.problems());
        if self.journal.is_stale() {
            problems.push("the journal cannot be read".to_owned());
        }
        if self.stopping.stage() > Stage::Serving {
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

    /// Let this node see at once what it has just changed, if the database lets it. Others see it
    /// within a second.
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
                Ok(Err(error @ StoreError::NoRoom(_))) => {
                    let told = error.to_string();
                    Some((told.clone(), told))
                }
                Ok(Err(error)) => Some((UNAVAILABLE.to_owned(), error.to_string())),
                Err(_) => Some((
                    UNAVAILABLE.to_owned(),
                    "the database does not answer".to_owned(),
                )),
            };
            self.note_database(problem);
            tokio::time::sleep(CHECK_EVERY).await;
        }
    }

    /// Note what is wrong with it: for probes, which only need to know which part it is, and for
    /// operators, who read the cause in the log.
    fn note_database(&self, problem: Option<(String, String)>) {
        let mut known = self
            .database_problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if known.is_some() != problem.is_some() {
            match &problem {
                Some((_, cause)) => tracing::error!(problem = %cause, "not ready"),
                None => tracing::info!("ready again"),
            }
        }
        *known = problem.map(|(told, _)| told);
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
            let format = self.config.log_format;
            let how = format!(
                "no owner yet: make one on http://{address}/admin, or with `picloud setup {token}`"
            );
            telemetry::tell(format, &how, &[]);
            let line = format!("set-up token: {token}");
            telemetry::tell(format, &line, &[("setup_token", &token)]);
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

/// What tells a process to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! { _ = self.terminate.recv() => {}, _ = self.interrupt.recv() => {} }
    }
}

impl Node {
    /// Begin what runs for as long as the node does. Answers what says that it is there.
    async fn begin_tasks(self: &Arc<Self>) -> Task {
        let (tasks, db, directory) = (&self.tasks, &self.db, &self.directory);
        let node = self.clone();
        tasks.spawn("node.watch_database", move || node.clone().watch_database());
        let looked_at = db.clone();
        tasks.spawn("store.locks", move || {
            looked_at.clone().keep_looking_for_locks()
        });
        tasks.spawn("telemetry.repeated", repeated::keep_telling_what_is_over);
        let fresh = directory.clone();
        tasks.spawn("directory.keep_fresh", move || fresh.clone().keep_fresh());
        // The first owner may have been made just now. And a first start compiles for a while: the
        // directory is read once more before anybody tells how old it is.
        self.refresh_directory().await;
        let aging = directory.clone();
        tasks.spawn("directory.tell_age", move || {
            aging.clone().keep_telling_its_age()
        });
        let held = (self.outbox.clone(), directory.clone());
        tasks.spawn("dispatch.hold_while_stale", move || {
            held.0.clone().keep_held_while(held.1.staleness())
        });
        self.journal.follow(tasks);
        let tally = self.tally.clone();
        tasks.spawn("executions.tell", move || tally.clone().keep_telling());
        let seen = (db.clone(), directory.clone());
        tasks.spawn("overview.sample", move || {
            waiting::keep_sampling(seen.0.clone(), seen.1.clone())
        });
        let (swept, retention) = ((db.clone(), directory.clone()), self.config.retention);
        tasks.spawn("retention.sweep", move || {
            retention.keep_sweeping(swept.0.clone(), swept.1.clone())
        });
        let meter = self.quotas.clone();
        tasks.spawn("quotas.measure", move || meter.clone().keep_measuring());
        let runner = self.runner.clone();
        tasks.spawn("scripts.trim", move || runner.clone().keep_trimming());
        let left = db.clone();
        tasks.spawn("apps.leaving", move || leaving::keep_sweeping(left.clone()));
        let (about, said) = (self.about.clone(), db.clone());
        tasks.spawn("instance.say", move || {
            about.clone().keep_saying(said.clone())
        })
    }
}

/// Run a node until it is told to stop; `metrics` is what it shows of them.
///
/// # Errors
/// When it cannot start, or when what it cannot do without ends by itself.
pub async fn run(config: Config, metrics: PrometheusHandle) -> anyhow::Result<()> {
    let grace = Duration::from_millis(config.shutdown_grace_ms);
    let listener =
        listen(config.listen).with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr()?;
    let node = Node::start(config, metrics).await?;
    node.welcome(address).await?;
    let saying = node.begin_tasks().await;
    let mut dispatching = tokio::spawn(node.dispatcher.clone().run(node.tasks.clone(), grace));
    let mut signals = Signals::new()?;
    let url = format!("http://{address}");
    let line = format!("listening on {url}");
    telemetry::tell(node.config.log_format, &line, &[("url", &url)]);
    let mut serving = tokio::spawn(crate::http::serve(listener, node.clone()));
    tokio::select! {
        () = signals.next() => {}
        ended = &mut dispatching => {
            ended?;
            bail!("the dispatcher ended by itself");
        }
        ended = &mut serving => {
            ended?;
            bail!("the server ended by itself");
        }
    }
    stop(&node, signals, saying, dispatching, serving).await
}

/// Take a node through the [stages](Stage) of its end. No step after the grace waits without a
/// bound: the database may be away, and what is not given back is taken over by others once its
/// leases have ended.
async fn stop(
    node: &Node,
    mut signals: Signals,
    saying: Task,
    dispatching: JoinHandle<()>,
    serving: JoinHandle<()>,
) -> anyhow::Result<()> {
    let drain = Duration::from_millis(node.config.shutdown_drain_ms);
    let grace = Duration::from_millis(node.config.shutdown_grace_ms);
    tracing::info!("stopping; running scripts get up to {grace:?}");
    end_after(drain + grace + END_AFTER_GRACE);
    tokio::spawn(async move {
        signals.next().await;
        tracing::warn!("told to stop once more; ending at once");
        std::process::exit(1);
    });
    node.stopping.enter(Stage::Leaving);
    tokio::time::sleep(drain).await;
    node.stopping.enter(Stage::Refusing);
    node.dispatcher.stop();
    node.seen_through.stop();
    let grace_ends_at = Instant::now() + grace;
    let working = async {
        let (dispatched, ()) = tokio::join!(dispatching, node.seen_through.finish(grace));
        node.stopping.enter(Stage::Closed);
        // What it wrote after the node has left would bring the node back.
        saying.end();
        saying.ended().await;
        node.about.leave(&node.db).await;
        dispatched
    };
    let ending = async { tokio::join!(working, serving) };
    let too_late = async {
        tokio::time::sleep_until(grace_ends_at).await;
        node.stopping.enter(Stage::Over);
        tokio::time::sleep(LEAVING_MAX).await;
    };
    tokio::select! {
        (dispatched, served) = ending => {
            dispatched?;
            served?;
        }
        () = too_late => {
            tracing::warn!("what was to be done before the end took too long; it is left undone");
        }
    }
    Ok(())
}

/// End the process after a while, whatever keeps it: on a thread of its own, so that this needs
/// nothing that may hang.
fn end_after(longest: Duration) {
    let waiting = move || {
        std::thread::sleep(longest);
        tracing::error!("the process did not end in time; ending it");
        std::process::exit(1);
    };
    let thread = std::thread::Builder::new().name("end".to_owned());
    if let Err(error) = thread.spawn(waiting) {
        tracing::warn!(%error, "no thread watches over the end");
    }
}
