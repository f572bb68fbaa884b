//! How a node stops: not ready first, then drained, and whoever is cut off is told.

use std::time::{Duration, Instant};

use picloud_tests::{
    Engine, EventStream, Options, Proxy, Server, on_both_engines, report, wait_for,
};
use serde_json::json;

use super::files::ReadOnly;
use super::small_disk::SmallDisk;

on_both_engines!(
    a_node_that_stops_is_not_ready_then_refuses_calls_and_lets_run_what_runs,
    whoever_waits_beyond_the_grace_is_told_to_come_back,
    a_second_signal_ends_the_process_at_once,
    a_node_whose_database_takes_no_writes_ends_all_the_same,
    a_node_whose_deliveries_are_locked_ends_all_the_same,
);

/// What the tests' servers give running scripts.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// What the end itself may take after it.
pub(super) const END_TAKES: Duration = Duration::from_secs(2);
/// Says that its run has begun, and goes on for a while.
const SLOW: &str = r#"kv::collection("begun").set("k", 1); sleep(SECONDS); 1"#;

fn server(engine: Engine, drain_ms: u64, seconds: &str) -> Server {
    server_with(engine, Options::default(), drain_ms, seconds)
}

fn server_with(engine: Engine, options: Options, drain_ms: u64, seconds: &str) -> Server {
    let drain = ("PICLOUD_SHUTDOWN_DRAIN_MS", drain_ms.to_string());
    let server = Server::start_with(
        engine,
        Options {
            environment: vec![drain],
            ..options
        },
    );
    let app = server.app("a");
    app.serve("slow", &SLOW.replace("SECONDS", seconds));
    app.serve("fast", "1");
    server
}

fn wait_until_begun(server: &Server) {
    let app = server.known_app("a");
    wait_for("the script to begin", || {
        (app.kv("begun", "k") == 1).then_some(())
    });
}

fn a_node_that_stops_is_not_ready_then_refuses_calls_and_lets_run_what_runs(engine: Engine) {
    let mut server = server(engine, 1_000, "2.5");
    let opened = json!({ "auth_mode": "public" });
    let opened = server.api("PUT", "/apps/a/topics/t", Some(opened));
    assert_eq!(opened.status, 200);
    let app = json!({ "slug": "b", "hosts": ["b.test"] });
    assert_eq!(server.api("POST", "/apps", Some(app)).status, 201);
    let stream = EventStream::open(&server.url, "/realtime?topic=t", &[]).unwrap();
    stream.expect("ready");
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| server.get("/slow"));
        wait_until_begun(&server);
        server.signal("TERM");
        let told = wait_for("readiness to be gone", || {
            let told = server.get("/readyz");
            (told.status == 503).then_some(told)
        });
        assert_eq!(told.json()["problems"], json!(["shutting down"]));
        // Why is not for an app's visitors; that it is so is for probes, whatever host they name.
        let on_app = server.call("GET", "/readyz", &[("host", "b.test")], None);
        assert_eq!(
            (on_app.status, on_app.json()),
            (503, json!({ "status": "not ready" }))
        );
        // Whoever has not noticed yet is served, and asked to go elsewhere with the next call.
        let fast = server.get("/fast");
        assert_eq!(
            (fast.status, &fast.headers["connection"]),
            (200, &"close".parse().unwrap())
        );
        assert_eq!(
            stream.next(),
            None,
            "the stream has ended, and holds up nothing"
        );
        let refused = wait_for("calls to be refused", || {
            let refused = server.get("/fast");
            (refused.status != 200).then_some(refused)
        });
        assert_eq!(
            (refused.status, refused.problem()),
            (503, "unavailable".to_owned())
        );
        assert_eq!(refused.headers["retry-after"], "1");
        assert_eq!(refused.headers["connection"], "close");
        assert_eq!(server.api("GET", "/apps", None).status, 503);
        assert_eq!(server.get("/healthz").status, 200);
        assert_eq!(server.get("/readyz").status, 503);
        assert_eq!(slow.join().unwrap().status, 200, "what ran has ended");
    });
    assert!(server.wait_for_end().success(), "{}", server.log());
}

fn whoever_waits_beyond_the_grace_is_told_to_come_back(engine: Engine) {
    let mut server = server(engine, 0, "30");
    let mut began = Instant::now();
    std::thread::scope(|scope| {
        let script = server.known_app("a").script("other", "sleep(30); 1");
        let calls = [
            scope.spawn(|| server.try_call("GET", "/slow", &[], None)),
            scope.spawn({
                let (server, path) = (&server, format!("/api/v1/scripts/{script}/execute"));
                let bearer = format!("Bearer {}", server.token);
                move || {
                    let headers = [("authorization", bearer.as_str())];
                    server.try_call("POST", &path, &headers, Some(b"{}"))
                }
            }),
        ];
        wait_until_begun(&server);
        wait_for("both to run", || {
            (server.metric("picloud_connections") >= 3.0).then_some(())
        });
        began = Instant::now();
        server.signal("TERM");
        for call in calls {
            let answer = call.join().unwrap().expect("an answer");
            assert_eq!(
                (answer.status, answer.problem()),
                (503, "unavailable".to_owned())
            );
            assert_eq!(answer.headers["retry-after"], "1");
        }
    });
    assert!(server.wait_for_end().success(), "{}", server.log());
    let took = began.elapsed();
    assert!(
        (GRACE..GRACE + Duration::from_secs(3)).contains(&took),
        "{took:?}"
    );
}

fn a_second_signal_ends_the_process_at_once(engine: Engine) {
    let mut server = server(engine, 0, "30");
    let mut began = Instant::now();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| server.try_call("GET", "/slow", &[], None));
        wait_until_begun(&server);
        server.signal("TERM");
        wait_for("readiness to be gone", || {
            (server.get("/readyz").status == 503).then_some(())
        });
        began = Instant::now();
        server.signal("INT");
        assert!(slow.join().unwrap().is_err(), "nobody is left to answer");
    });
    assert!(!server.wait_for_end().success());
    let took = began.elapsed();
    assert!(took < GRACE / 2, "{took:?}");
}

fn a_node_whose_database_takes_no_writes_ends_all_the_same(engine: Engine) {
    let mut read_only = None;
    ends_in_its_grace(server(engine, 0, "1"), |server, is_broken| match engine {
        Engine::Sqlite => read_only = is_broken.then(|| ReadOnly::make(server)),
        Engine::Postgres => server.make_database_read_only(is_broken),
    });
}

fn a_node_whose_deliveries_are_locked_ends_all_the_same(engine: Engine) {
    let mut lock = None;
    ends_in_its_grace(server(engine, 0, "1"), |server, is_broken| {
        lock = is_broken.then(|| server.lock("outbox"));
    });
    drop(lock);
}

#[test]
fn a_node_that_may_have_one_connection_ends_all_the_same() {
    let options = Options {
        ordinary_role: true,
        ..Options::default()
    };
    let server = server_with(Engine::Postgres, options, 0, "1");
    ends_in_its_grace(server, |server, is_broken| {
        server.limit_database_connections(is_broken.then_some(1));
    });
}

#[test]
fn a_node_whose_database_is_away_ends_all_the_same() {
    let proxy = Proxy::start();
    let options = Options {
        postgres_through: Some(proxy.port),
        ..Options::default()
    };
    let server = server_with(Engine::Postgres, options, 0, "1");
    ends_in_its_grace(server, |_, is_broken| match is_broken {
        true => proxy.cut(),
        false => proxy.mend(),
    });
}

#[test]
fn a_node_whose_disk_is_full_ends_all_the_same() {
    let disk = SmallDisk::mount();
    let options = Options {
        data_dir: Some(disk.path().join("data")),
        ..Options::default()
    };
    let server = server_with(Engine::Sqlite, options, 0, "1");
    ends_in_its_grace(server, |_, is_broken| match is_broken {
        true => disk.leave(0),
        false => disk.empty(),
    });
}

/// Stop a server while something is broken and something runs; mended, what was accepted before is
/// run.
fn ends_in_its_grace(mut server: Server, mut set_broken: impl FnMut(&Server, bool)) {
    let app = server.known_app("a");
    app.route_with("slow", "POST /job", json!({ "dispatch_mode": "async" }));
    app.serve("quiet", "sleep(1.0); 1");
    // Something runs whose outcome cannot be written, and something whose caller waits for it.
    assert_eq!(server.call("POST", "/job", &[], None).status, 202);
    wait_until_begun(&server);
    let mut began = Instant::now();
    std::thread::scope(|scope| {
        let quiet = scope.spawn(|| server.try_call("GET", "/quiet", &[], None));
        wait_for("both to run", || {
            (server.metric("picloud_connections") >= 2.0).then_some(())
        });
        set_broken(&server, true);
        wait_for("not ready", || {
            (server.get("/readyz").status == 503).then_some(())
        });
        server.signal("TERM");
        began = Instant::now();
        let answer = quiet.join().unwrap().expect("an answer");
        let status = answer.status_in_an_outage();
        assert!([200, 503].contains(&status), "{status}: {}", answer.text());
    });
    let ended = server.ends_within(GRACE + END_TAKES);
    let after = began.elapsed();
    assert!(
        ended && after < GRACE + END_TAKES,
        "{after:?}: {}",
        server.log()
    );
    report(format_args!("a stop while much is broken: {after:?}"));
    set_broken(&server, false);
    server.launch();
    server.assert_nothing_stuck();
    let ran = server.known_app("a").executions("outcome=answered");
    let is_there = ran.iter().any(|one| one["invocation_type"] == "http_async");
    assert!(is_there, "{ran:?}");
}

#[test]
fn a_node_whose_database_hangs_ends_all_the_same() {
    let proxy = Proxy::start();
    let options = Options {
        postgres_through: Some(proxy.port),
        ..Options::default()
    };
    let mut server = Server::start_with(Engine::Postgres, options);
    server.app("a").serve("fast", "1");
    assert_eq!(server.get("/fast").status, 200);
    // What comes now is on its way for longer than anybody waits.
    proxy.slow_down(Duration::from_secs(600));
    let began = Instant::now();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| server.try_call("GET", "/fast", &[], None));
        wait_for("not ready", || {
            (server.get("/readyz").status == 503).then_some(())
        });
        server.signal("TERM");
        let answer = call.join().unwrap().expect("an answer");
        assert!(
            [500, 503, 504].contains(&answer.status),
            "{}",
            answer.text()
        );
    });
    let readiness = began.elapsed();
    assert!(server.wait_for_end().success(), "{}", server.log());
    let took = began.elapsed() - readiness;
    assert!(took < GRACE + Duration::from_secs(3), "{took:?}");
}
