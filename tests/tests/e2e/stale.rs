//! A node that cannot read who may do what: it says so, decides nothing by it, and goes on serving
//! what is everybody's.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use picloud_tests::{Engine, EventStream, Options, Server, wait_for};
use serde_json::json;

/// What a node asks to see whether its directory is true.
const LOOK: &[u8] = b"select version from directory_version";

/// A way to the test Postgres on which, while it is bad, a connection that looks at the directory
/// is swallowed: nothing passes any more and it stays open, as behind a router that lost it.
struct Way {
    port: u16,
    is_bad: Arc<AtomicBool>,
}

impl Way {
    fn start() -> Self {
        let url = std::env::var("PICLOUD_TEST_POSTGRES_URL").expect("`cargo xtask test` sets it");
        let mut parts = url.split(['@', '/']);
        let target = parts.find(|part| part.contains(':') && !part.ends_with(':'));
        let target = target.expect("a host and a port").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let is_bad = Arc::new(AtomicBool::new(false));
        let bad = is_bad.clone();
        std::thread::spawn(move || {
            for inside in listener.incoming().map_while(Result::ok) {
                let Ok(outside) = TcpStream::connect(&target) else {
                    continue;
                };
                let back = (outside.try_clone().unwrap(), inside.try_clone().unwrap());
                std::thread::spawn(move || carry(back.0, back.1, |_| false));
                let bad = bad.clone();
                std::thread::spawn(move || {
                    let looks = |sent: &[u8]| sent.windows(LOOK.len()).any(|text| text == LOOK);
                    carry(inside, outside, |sent| {
                        bad.load(Ordering::Relaxed) && looks(sent)
                    });
                });
            }
        });
        Self { port, is_bad }
    }

    /// Let looks at the directory be swallowed, or let them pass on connections that are made now.
    fn set_bad(&self, is_bad: bool) {
        self.is_bad.store(is_bad, Ordering::Relaxed);
    }
}

/// Carry bytes until some are to be swallowed, and then nothing more.
fn carry(mut from: TcpStream, mut to: TcpStream, swallows: impl Fn(&[u8]) -> bool) {
    let mut piece = [0; 16 * 1024];
    let mut is_swallowed = false;
    while let Ok(length @ 1..) = from.read(&mut piece) {
        is_swallowed = is_swallowed || swallows(&piece[..length]);
        if !is_swallowed && to.write_all(&piece[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

#[test]
fn a_node_that_cannot_read_its_directory_says_so_and_decides_nothing_by_it() {
    let way = Way::start();
    let options = Options {
        postgres_through: Some(way.port),
        ..Options::default()
    };
    let stale = Server::start_with(Engine::Postgres, options);
    // Its database's address is the other way; so is this node's, whose looks are swallowed, too.
    let app = stale.app("a");
    let script = app.script("s", "1");
    app.route("s", "GET /s");
    app.serve("tell", r#"kv::collection("told").set("k", 1); 1"#);
    app.script("heard", r#"kv::collection("heard").set("k", 1)"#);
    app.trigger("kv", json!({ "script": "heard", "collection": "told" }));
    for (topic, auth_mode) in [("open", "public"), ("ours", "session")] {
        let path = format!("/apps/a/topics/{topic}");
        let opened = stale.api("PUT", &path, Some(json!({ "auth_mode": auth_mode })));
        assert_eq!(opened.status, 200, "{}", opened.text());
    }
    let (reader, token) = stale.join("reader", "member", json!({ "a": "viewer" }));
    let read = || stale.api_as(&token, "GET", "/apps/a/scripts", None);
    assert_eq!(read().status, 200);
    let bearer = format!("Bearer {}", stale.token);
    let listen = |path: &str| {
        let headers = [("authorization", bearer.as_str())];
        EventStream::open(&stale.url, path, &headers).unwrap()
    };
    let [public, ours, events] = [
        "/realtime?topic=open",
        "/realtime?topic=ours",
        "/api/v1/events",
    ]
    .map(listen);
    for stream in [&public, &ours, &events] {
        stream.expect("ready");
    }

    way.set_bad(true);
    // Connections that have the statement prepared would send its name only.
    stale.end_database_connections();
    let began = Instant::now();
    // What another node does.
    stale.sql(&format!(
        "delete from members where user_id = '{reader}';
         update directory_version set version = version + 1"
    ));
    let problem = wait_for("the node to say how old its directory is", || {
        let told = stale.get("/readyz");
        let problems = told.json()["problems"].to_string();
        (told.status == 503 && problems.contains("the directory is 1")).then_some(problems)
    });
    assert!(problem.contains("s old"), "{problem}");
    let after = began.elapsed();
    assert!(after < Duration::from_secs(14), "{after:?}");
    for refused in [
        read(),
        stale.api("GET", "/apps", None),
        stale.api(
            "POST",
            &format!("/scripts/{script}/execute"),
            Some(json!({})),
        ),
        stale.call(
            "GET",
            "/realtime?topic=ours",
            &[("authorization", &bearer)],
            None,
        ),
    ] {
        assert_eq!(refused.status, 503, "{}", refused.text());
        assert_eq!(refused.problem(), "unavailable");
        assert_eq!(refused.headers["retry-after"], "1");
        assert!(
            refused.text().contains("the directory is"),
            "{}",
            refused.text()
        );
    }
    // Who may hear these is not known any more. They end without a word: there is an id to come
    // back with.
    assert_eq!((ours.next(), events.next()), (None, None));
    // This is everybody's.
    assert_eq!(stale.get("/s").status, 200);
    assert_eq!(stale.get("/healthz").status, 200);
    // A trigger acts for somebody: it waits for a node that knows whether they still may.
    assert_eq!(stale.get("/tell").status, 200);
    let rows = || (stale.rows("outbox"), stale.rows("kv"));
    wait_for("the call's own row to be gone", || {
        (rows().0 == 1).then_some(())
    });
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(rows(), (1, 1), "the event waits, and was not handled");
    assert_eq!(listen("/realtime?topic=open").expect("ready").name, "ready");

    way.set_bad(false);
    let began = Instant::now();
    wait_for("the node to be ready again", || {
        (stale.get("/readyz").status == 200).then_some(())
    });
    let after = began.elapsed();
    assert!(after < Duration::from_secs(10), "{after:?}");
    assert_eq!(read().status, 404, "the role was taken away");
    assert_eq!(stale.api("GET", "/apps", None).status, 200);
    wait_for("the trigger", || (rows() == (0, 2)).then_some(()));
    drop(public);
}

#[test]
fn a_node_whose_writes_wait_for_a_lock_says_so() {
    let server = Server::start(Engine::Postgres);
    server.app("a").serve("s", "1");
    std::thread::scope(|scope| {
        let locked = scope.spawn(|| server.query(&lock("executions", 12)));
        let problem = wait_for("the node to say so", || {
            let within = Duration::from_millis(500);
            // The end of a call is written after its answer.
            let _ = server.call_within(within, "GET", "/s", &[], None);
            let told = server.get("/readyz");
            (told.status == 503).then(|| told.text())
        });
        assert!(problem.contains("unavailable"), "{problem}");
        wait_for("the log to say why", || {
            let says = "a write has not been answered for";
            server.log().contains(says).then_some(())
        });
        locked.join().unwrap();
    });
    wait_for("the node to be ready again", || {
        (server.get("/readyz").status == 200).then_some(())
    });
    server.assert_nothing_stuck();
}

/// Lock a table as VACUUM FULL does, or a migration, for so many seconds.
fn lock(table: &str, seconds: u32) -> String {
    format!("lock table {table} in access exclusive mode; select pg_sleep({seconds})")
}

fn until_locked(server: &Server, table: &str) {
    let locks = format!(
        "select 1 from pg_locks where relation = '{table}'::regclass and granted
         and mode = 'AccessExclusiveLock'"
    );
    wait_for("the lock", || {
        (!server.query(&locks).is_empty()).then_some(())
    });
}

#[test]
fn a_call_that_could_not_begin_in_time_is_told_so_and_never_begins() {
    let server = Server::start(Engine::Postgres);
    let app = server.app("a");
    let limits = json!({ "timeout_ms": 500 });
    app.script_with("s", r#"kv::collection("c").set("ran", 1)"#, limits);
    app.route_with("s", "POST /s", json!({ "idempotency": { "ttl_s": 60 } }));
    let key = [("idempotency-key", "k")];
    std::thread::scope(|scope| {
        let locked = scope.spawn(|| server.query(&lock("outbox", 9)));
        until_locked(&server, "outbox");
        let told = server.call("POST", "/s", &key, None);
        assert_eq!(
            (told.status, told.problem().as_str()),
            (503, "unavailable"),
            "{}",
            told.text()
        );
        assert!(told.headers.contains_key("retry-after"));
        locked.join().unwrap();
    });
    server.assert_nothing_stuck();
    assert_eq!(app.kv("c", "ran"), json!(null));
    assert!(app.executions("").is_empty());
    // What its late commit wrote is taken back a moment after.
    wait_for("the key to be free", || {
        let again = server.call("POST", "/s", &key, None);
        // That the lock is gone may not be known yet.
        let status = again.status_in_an_outage();
        assert!([200, 409, 503].contains(&status), "{}", again.text());
        (again.status == 200).then_some(())
    });
    assert_eq!(app.kv("c", "ran"), json!(1));
}

#[test]
fn the_checks_end_while_somebody_holds_a_lock() {
    let server = Server::start(Engine::Postgres);
    let lock = server.lock("audit");
    let report = server.api("GET", "/doctor", None);
    drop(lock);
    let told = report.json();
    let findings = told["findings"].as_array().unwrap();
    let database = findings.iter().find(|one| one["name"] == "database");
    let database = database.unwrap_or_else(|| panic!("{told}"));
    assert_eq!(database["severity"], "error", "{told}");
    let found = database["found"].as_str().unwrap();
    assert!(found.contains("did not answer"), "{found}");
}

/// Whichever it is: what reads or writes it fails, though the rest works.
#[test]
fn a_table_that_is_closed_to_the_server_is_told() {
    let options = Options {
        ordinary_role: true,
        ..Options::default()
    };
    let server = Server::start_with(Engine::Postgres, options);
    for table in ["channels", "idempotency_keys", "nodes", "oidc_subjects"] {
        server.allow_writes_to(table, false);
        wait_for("the node to say so", || {
            (server.get("/readyz").status == 503).then_some(())
        });
        let says = format!("its role may not read and write the table {table}");
        assert!(server.log().contains(&says), "{}", server.log());
        server.allow_writes_to(table, true);
        wait_for("the node to be ready again", || {
            (server.get("/readyz").status == 200).then_some(())
        });
    }
}

/// A time for which no clock has a number: reading it fails in a way that is nobody's answer. The
/// server never writes one, and it is the only way from outside that is known to end a task.
#[test]
fn a_time_that_no_reader_holds_makes_a_node_unready_and_ends_no_task() {
    let server = Server::start(Engine::Postgres);
    server.app("a").serve("s", "1");
    let set = |time: &str| {
        server.sql(&format!(
            "update apps set created_at = {time};
             update directory_version set version = version + 1"
        ));
    };
    set("'infinity'");
    wait_for("the node not to be ready", || {
        (server.get("/readyz").status == 503).then_some(())
    });
    let restarts = r#"picloud_task_restarts_total{task="directory.keep_fresh"}"#;
    assert_eq!(server.metric(restarts), 0.0);
    assert_eq!(server.get("/s").status, 200, "what is known is served");
    set("now()");
    let began = Instant::now();
    wait_for("the node to be ready again", || {
        (server.get("/readyz").status == 200).then_some(())
    });
    let after = began.elapsed();
    assert!(after < Duration::from_secs(12), "{after:?}");
    assert_eq!(server.api("GET", "/apps", None).status, 200);
}
