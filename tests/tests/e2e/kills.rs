//! The server is killed again and again under load, and a ledger outside of it is compared with
//! what it says it did.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use picloud_tests::{Engine, Options, Server, on_both_engines, report, wait_for};
use serde_json::{Value, json};

on_both_engines!(kills_under_load_lose_nothing_and_double_nothing);

/// How many kills, unless `PICLOUD_TEST_KILLS` says more: `cargo xtask soak` does.
const KILLS: u64 = 30;

/// What the callers know.
#[derive(Default)]
struct Ledger {
    /// Async calls that were answered 202: number and delivery.
    accepted: BTreeMap<u64, String>,
    /// Sync calls that were answered.
    answered: BTreeSet<u64>,
    /// Sync calls that were not.
    unanswered: BTreeSet<u64>,
}

/// Numbers that look random and are the same each time for a seed (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// Call until the server is gone.
fn load(server: &Server, next: &AtomicU64, ledger: &Mutex<Ledger>, is_sync: bool) {
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        let (method, path) = match is_sync {
            true => ("GET", format!("/sync?n={n}")),
            false => ("POST", format!("/async?n={n}")),
        };
        let called = server.try_call(method, &path, &[], None);
        let mut ledger = ledger.lock().unwrap();
        match called {
            Ok(answer) if is_sync && answer.status == 200 => {
                ledger.answered.insert(n);
            }
            Ok(answer) if !is_sync && answer.status == 202 => {
                let id = answer.json()["execution_id"].as_str().unwrap().to_owned();
                ledger.accepted.insert(n, id);
            }
            Ok(answer) => panic!("{}: {}", answer.status, answer.text()),
            Err(_) => {
                if is_sync {
                    ledger.unanswered.insert(n);
                }
                return;
            }
        }
    }
}

/// Every item of a list.
fn all(server: &Server, path: &str) -> Vec<Value> {
    let mut items = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = server.api("GET", &format!("{path}?limit=200{cursor}"), None);
        let page = page.json();
        items.extend(page["items"].as_array().cloned().unwrap_or_default());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return items,
        }
    }
}

fn counts(server: &Server, collection: &str) -> BTreeMap<u64, i64> {
    let entries = all(server, &format!("/apps/a/kv/{collection}"));
    let count = |entry: Value| {
        let key = entry["key"].as_str().unwrap().parse().unwrap();
        (key, entry["value"].as_i64().unwrap())
    };
    entries.into_iter().map(count).collect()
}

fn kills_under_load_lose_nothing_and_double_nothing(engine: Engine) {
    let kills = std::env::var("PICLOUD_TEST_KILLS").map_or(KILLS, |text| text.parse().unwrap());
    let seed = std::env::var("PICLOUD_TEST_SEED").map_or_else(
        |_| u64::from(std::process::id()) | 1 << 40,
        |text| text.parse().unwrap(),
    );
    let mut random = Random(seed);
    let options = Options {
        // A delivery may lose its worker at each of its attempts.
        environment: vec![
            ("PICLOUD_LEASE_MS", "3000".to_owned()),
            ("PICLOUD_TRIGGER_RETRY_MAX_ATTEMPTS", "100".to_owned()),
            ("PICLOUD_TRIGGER_RETRY_BASE_MS", "10".to_owned()),
        ],
        ..Options::default()
    };
    let mut server = Server::start_with(engine, options);
    let trigger = {
        let app = server.app("a");
        let count = |collection: &str, n: &str| {
            format!(
                r#"let c = kv::collection("{collection}"); let n = {n}; let known = c.get(n);
                   c.set(n, if known == () {{ 1 }} else {{ known + 1 }});"#
            )
        };
        app.serve("sync", &count("sync", "ctx.request.query.n"));
        app.script("async", &count("first", "ctx.request.query.n"));
        app.route_with("async", "POST /async", json!({ "dispatch_mode": "async" }));
        app.script("second", &count("second", "ctx.event.kv.key"));
        app.trigger(
            "kv",
            json!({ "script": "second", "collection": "first", "ops": ["insert"] }),
        )
    };
    let (next, ledger) = (AtomicU64::new(1), Mutex::new(Ledger::default()));
    for life in 0..kills {
        let answered = || ledger.lock().unwrap().answered.len();
        let before = answered();
        std::thread::scope(|scope| {
            for thread in 0..6 {
                let (server, next, ledger) = (&server, &next, &ledger);
                scope.spawn(move || load(server, next, ledger, thread < 2));
            }
            // On a busy machine a life may be over before its first answer; not all of them.
            if life % 5 == 0 {
                wait_for("a sync call to be answered", || {
                    (answered() > before).then_some(())
                });
            }
            std::thread::sleep(Duration::from_millis(20 + random.below(250)));
            std::process::Command::new("kill")
                .args(["-9", &server.pid().to_string()])
                .status()
                .unwrap();
        });
        server.kill();
        server.launch();
    }
    let ledger = ledger.into_inner().unwrap();
    let path = format!("/triggers/{}", trigger["id"].as_str().unwrap());
    // On Postgres the leases of the dead pile up while the killing goes on: as long as the outbox
    // shrinks, it is on its way.
    let mut left = u64::MAX;
    while left > 0 {
        left = wait_for("the outbox to shrink", || {
            let metrics = server.get("/metrics").text();
            let mut lines = metrics.lines();
            let depth = lines.find_map(|line| line.strip_prefix("picloud_outbox_deliveries "))?;
            Some(depth.parse().unwrap()).filter(|now: &u64| *now < left)
        });
    }
    wait_for("nothing to wait for the trigger", || {
        (server.api("GET", &path, None).json()["waiting"] == 0).then_some(())
    });
    report(format_args!(
        "seed {seed}: {kills} kills, {} async accepted, {} sync answered, {} sync cut off",
        ledger.accepted.len(),
        ledger.answered.len(),
        ledger.unanswered.len()
    ));
    assert!(kills > 0 && !ledger.accepted.is_empty() && !ledger.answered.is_empty());

    let mut ended = BTreeMap::<String, u64>::new();
    for execution in all(&server, "/apps/a/executions") {
        assert_eq!(execution["outcome"], "answered", "{execution}");
        let delivery = execution["delivery_id"].as_str().unwrap().to_owned();
        *ended.entry(delivery).or_default() += 1;
    }
    let twice: Vec<_> = ended.iter().filter(|(_, count)| **count != 1).collect();
    assert!(twice.is_empty(), "completed twice: {twice:?}");
    let (first, second) = (counts(&server, "first"), counts(&server, "second"));
    for (n, delivery) in &ledger.accepted {
        assert!(
            ended.contains_key(delivery),
            "{n} was accepted and never ended"
        );
        assert!(first.contains_key(n), "{n} was accepted and never ran");
    }
    for n in first.keys() {
        assert!(second.contains_key(n), "the write of {n} fired nothing");
    }
    let sync = counts(&server, "sync");
    let twice: Vec<_> = sync.iter().filter(|(_, count)| **count != 1).collect();
    assert!(twice.is_empty(), "sync calls that ran twice: {twice:?}");
    for n in &ledger.answered {
        assert!(sync.contains_key(n), "{n} was answered and never ran");
    }
    assert!(all(&server, "/apps/a/dead-letters").is_empty());
    server.assert_nothing_stuck();
}

/// A clock that was ahead and is put right is nothing rare on a small machine.
#[test]
fn a_clock_that_is_put_back_holds_nothing_up() {
    let options = Options {
        clock: Some("+10m"),
        environment: vec![("PICLOUD_TRIGGER_RETRY_BASE_MS", "2000".to_owned())],
        ..Options::default()
    };
    let mut server = Server::start_with(Engine::Sqlite, options);
    let app = server.app("a");
    app.script(
        "flaky",
        r#"if ctx.attempt == 1 { throw "once" } kv::collection("ran").set("k", true)"#,
    );
    app.route_with("flaky", "POST /flaky", json!({ "dispatch_mode": "async" }));
    assert_eq!(server.post("/flaky", &json!({})).status, 202);
    wait_for("the first attempt", || {
        (!app.executions("").is_empty()).then_some(())
    });
    server.kill();
    server.set_clock("+0s");
    server.launch();
    let app = server.known_app("a");
    wait_for("the second attempt", || {
        (app.kv("ran", "k") == true).then_some(())
    });
}
