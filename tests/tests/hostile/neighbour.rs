//! A second app whose callers go on calling it while something is attacked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use picloud_tests::{App, Engine, Options, Server, report, wait_for};
use serde_json::json;

/// How long a neighbour's call may take, in 99 of 100 cases, where the server is not optimised. A
/// release must do with 100 ms: `PICLOUD_TEST_P99_MS`.
const P99_MAX: Duration = Duration::from_millis(500);
/// What slots keep of what large guests wrote beyond the interpreter's own memory: wasmtime has no way
/// to let go of it.
const KEPT_BY_SLOTS_KIB: u64 = 192 << 10;
/// How often the neighbour is called.
const EVERY: Duration = Duration::from_millis(20);
/// Within what time the memory that an attack took must be given back.
const GIVEN_BACK: Duration = Duration::from_secs(60);

/// The host of the neighbour's app, and that of the attacker's.
pub const NEIGHBOUR: &str = "neighbour.test";
pub const ATTACKER: &str = "attacker.test";

/// For how long an attack that is short goes on, round after round.
const ROUNDS_FOR: Duration = Duration::from_secs(1);

/// Attack again and again for a second.
pub fn in_rounds(mut round: impl FnMut()) {
    let began = Instant::now();
    while began.elapsed() < ROUNDS_FOR {
        round();
    }
}

/// A server with two apps.
pub struct Attacked {
    pub server: Server,
    name: String,
}

/// What an attack did.
pub struct Noticed {
    calls: usize,
    failed: Vec<String>,
    p99: Duration,
    worst: Duration,
    before_kib: u64,
    highest_kib: u64,
    after_kib: u64,
}

impl Attacked {
    /// Start one, for the test that calls this, and let it get warm.
    pub fn start(engine: Engine, name: &str) -> Self {
        Self::start_with(engine, name, &[])
    }

    /// The same with settings of its own.
    pub fn start_with(engine: Engine, name: &str, settings: &[(&'static str, &str)]) -> Self {
        Self::start_as(engine, name, Options::with(settings))
    }

    /// The same with more than settings of its own.
    pub fn start_as(engine: Engine, name: &str, mut options: Options) -> Self {
        let master_key = ("PICLOUD_MASTER_KEY", STANDARD.encode([7; 32]));
        options.environment.push(master_key);
        let server = Server::start_with(engine, options);
        for (slug, host) in [("neighbour", NEIGHBOUR), ("attacker", ATTACKER)] {
            server.app(slug);
            let hosts = server.api(
                "PATCH",
                &format!("/apps/{slug}"),
                Some(json!({ "hosts": [host] })),
            );
            assert_eq!(hosts.status, 200, "{}", hosts.text());
        }
        let attacked = Self {
            server,
            name: format!("{engine:?} {name}"),
        };
        attacked
            .server
            .known_app("neighbour")
            .serve("hello", "let all = kv::collection(\"c\"); all.has(\"k\")");
        attacked.server.known_app("neighbour").serve(
            "write",
            "let all = kv::collection(\"c\"); all.set(\"k\", 1)",
        );
        for _ in 0..50 {
            assert_eq!(attacked.call(NEIGHBOUR, "/hello"), Ok(200));
        }
        attacked
    }

    /// The attacker's app.
    pub fn attacker(&self) -> App<'_> {
        self.server.known_app("attacker")
    }

    /// Call a route, and answer the status.
    pub fn call(&self, host: &str, path: &str) -> Result<u16, String> {
        let headers = [("host", host)];
        let time = Duration::from_secs(30);
        let answer = self.server.call_within(time, "GET", path, &headers, None);
        answer.map(|answer| answer.status)
    }

    /// Call a route many times at once, and answer the statuses.
    pub fn calls_at_once(&self, path: &str, count: usize) -> Vec<Result<u16, String>> {
        std::thread::scope(|scope| {
            let calls = (0..count).map(|_| scope.spawn(|| self.call(ATTACKER, path)));
            let calls: Vec<_> = calls.collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        })
    }

    /// Attack while the neighbour is called; then wait until the memory is given back.
    pub fn during(&self, attack: impl FnOnce()) -> Noticed {
        self.during_calls_of("/hello", attack)
    }

    /// The same where the neighbour's script writes.
    pub fn during_writes(&self, attack: impl FnOnce()) -> Noticed {
        self.during_calls_of("/write", attack)
    }

    fn during_calls_of(&self, path: &str, attack: impl FnOnce()) -> Noticed {
        let before_kib = self.server.memory_kib();
        let is_over = AtomicBool::new(false);
        let (taken, failed, highest_kib) = std::thread::scope(|scope| {
            let calling = scope.spawn(|| {
                let (mut taken, mut failed) = (Vec::new(), Vec::new());
                while !is_over.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    match self.call(NEIGHBOUR, path) {
                        Ok(200) => {}
                        other => failed.push(format!("{other:?}")),
                    }
                    taken.push(began.elapsed());
                    std::thread::sleep(EVERY.saturating_sub(began.elapsed()));
                }
                (taken, failed)
            });
            let watching = scope.spawn(|| {
                let mut highest_kib = 0;
                while !is_over.load(Ordering::Relaxed) {
                    highest_kib = self.server.memory_kib().max(highest_kib);
                    std::thread::sleep(Duration::from_millis(20));
                }
                highest_kib
            });
            let _over = Over(&is_over);
            attack();
            is_over.store(true, Ordering::Relaxed);
            let (taken, failed) = calling.join().unwrap();
            (taken, failed, watching.join().unwrap())
        });
        let mut taken = taken;
        taken.sort_unstable();
        let began = Instant::now();
        let is_back = |kib: u64| kib <= kept_max(before_kib);
        while !is_back(self.server.memory_kib()) && began.elapsed() < GIVEN_BACK {
            std::thread::sleep(Duration::from_millis(100));
        }
        let noticed = Noticed {
            calls: taken.len(),
            failed,
            p99: p99(&taken),
            worst: taken[taken.len() - 1],
            before_kib,
            highest_kib,
            after_kib: self.server.memory_kib(),
        };
        report(format_args!(
            "{}: {} calls beside it, {} failed, p99 {:?}, worst {:?}; RSS {} MiB, at most {}, then {}",
            self.name,
            noticed.calls,
            noticed.failed.len(),
            noticed.p99,
            noticed.worst,
            noticed.before_kib >> 10,
            noticed.highest_kib >> 10,
            noticed.after_kib >> 10,
        ));
        noticed
    }

    /// See that nothing of the attacker is at work any more.
    pub fn until_idle(&self) {
        wait_for("the attack to be over", || {
            (self.server.metric("picloud_leases_held") == 0.0).then_some(())
        });
    }
}

impl Noticed {
    /// Nobody else noticed it, it took at most so much memory, and gave that back.
    #[track_caller]
    pub fn is_nothing(&self, more_mib_max: u64) {
        self.is_felt_for(P99_MAX, more_mib_max);
    }

    /// The same where a neighbour's calls may take longer.
    #[track_caller]
    pub fn is_felt_for(&self, p99_max: Duration, more_mib_max: u64) {
        assert!(self.failed.is_empty(), "{:?}", self.failed);
        assert!(self.calls >= 5, "{} calls say nothing", self.calls);
        let asked = std::env::var("PICLOUD_TEST_P99_MS").ok();
        let asked = asked.map(|ms| Duration::from_millis(ms.parse().expect("milliseconds")));
        assert!(self.p99 <= asked.unwrap_or(p99_max), "p99 {:?}", self.p99);
        let more_mib = self.highest_kib.saturating_sub(self.before_kib) >> 10;
        assert!(more_mib <= more_mib_max, "{more_mib} MiB more");
        assert!(
            self.after_kib <= kept_max(self.before_kib),
            "{} KiB of {} are kept",
            self.after_kib,
            self.before_kib
        );
    }
}

/// What 99 of 100 calls take at most, of times in their order. Of a few calls one does not count: what
/// the machine did once says nothing.
fn p99(taken: &[Duration]) -> Duration {
    taken[(taken.len() * 99 / 100).min(taken.len().saturating_sub(2))]
}

/// How much memory may be kept after an attack, in KiB.
fn kept_max(before_kib: u64) -> u64 {
    before_kib * 3 / 2 + KEPT_BY_SLOTS_KIB
}

/// Ends what watches, also where the attack panics.
struct Over<'o>(&'o AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
