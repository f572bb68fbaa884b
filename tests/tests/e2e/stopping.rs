//! How a node stops: not ready first, then drained, and whoever is cut off is told.

use std::time::{Duration, Instant};

use picloud_tests::{Engine, EventStream, Options, Proxy, Server, on_both_engines, wait_for};
use serde_json::json;

on_both_engines!(
    a_node_that_stops_is_not_ready_then_refuses_calls_and_lets_run_what_runs,
    whoever_waits_beyond_the_grace_is_told_to_come_back,
    a_second_signal_ends_the_process_at_once,
);

/// What the tests' servers give running scripts.
const GRACE: Duration = Duration::from_secs(2);
/// Says that its run has begun, and goes on for a while.
const SLOW: &str = r#"kv::collection("begun").set("k", 1); sleep(SECONDS); 1"#;

fn server(engine: Engine, drain_ms: u64, seconds: &str) -> Server {
    let drain = ("PICLOUD_SHUTDOWN_DRAIN_MS", drain_ms.to_string());
    let server = Server::start_with(
        engine,
        Options {
            environment: vec![drain],
            ..Options::default()
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
