//! What happens when things break.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use picloud_tests::{
    Engine, EventStream, Options, Proxy, Server, on_both_engines, report, restart_postgres,
    wait_for,
};
use serde_json::json;

on_both_engines!(
    a_kill_loses_nothing_and_doubles_nothing,
    rows_that_no_reader_holds_go_through_restarts,
    a_stop_lets_scripts_finish
);

fn a_kill_loses_nothing_and_doubles_nothing(engine: Engine) {
    let lease = [("PICLOUD_LEASE_MS", "2000".to_owned())];
    let mut server = Server::start_with(
        engine,
        Options {
            environment: lease.to_vec(),
            ..Options::default()
        },
    );
    {
        let app = server.app("a");
        let source = r#"let c = kv::collection(ctx.invocation_type); let id = ctx.request.query.n;
                        let begun = c.get(id); c.set(id, if begun == () { 1 } else { begun + 1 });
                        sleep(1.5); kv::collection("done").set(id, true);"#;
        app.script("slow", source);
        app.route("slow", "GET /sync");
        app.route_with("slow", "POST /async", json!({ "dispatch_mode": "async" }));
    }
    std::thread::scope(|scope| {
        for n in 0..50 {
            let server = &server;
            scope.spawn(move || {
                server
                    .try_call("GET", &format!("/sync?n=s{n}"), &[], None)
                    .is_ok()
            });
        }
        for n in 0..50 {
            assert_eq!(
                server
                    .call("POST", &format!("/async?n=a{n}"), &[], None)
                    .status,
                202
            );
        }
        wait_for("every sync call to be running", || {
            let page = server.api("GET", "/apps/a/kv/http?limit=200", None).json();
            (page["items"].as_array()?.len() == 50).then_some(())
        });
        std::process::Command::new("kill")
            .args(["-9", &server.pid().to_string()])
            .status()
            .unwrap();
    });
    server.kill();
    server.launch();
    // Every accepted async delivery ends, at least once run to its end.
    wait_for("every async delivery to end", || {
        let page = server.api("GET", "/apps/a/kv/done?limit=200", None).json();
        let done = page["items"].as_array()?.iter();
        let done = done.filter(|item| item["key"].as_str().is_some_and(|key| key.starts_with('a')));
        (done.count() == 50).then_some(())
    });
    // Every sync one is recorded as abandoned, once, and was not run again.
    let abandoned = wait_for("the abandoned executions", || {
        let page = server
            .api("GET", "/apps/a/abandoned-executions?limit=200", None)
            .json();
        let items = page["items"].as_array().cloned().unwrap_or_default();
        (items.len() >= 50).then_some(items)
    });
    assert_eq!(abandoned.len(), 50);
    assert!(
        abandoned.iter().all(|row| row["reason"] == "lease_expired"),
        "{abandoned:?}"
    );
    let begun = server.api("GET", "/apps/a/kv/http?limit=200", None).json();
    assert!(
        begun["items"]
            .as_array()
            .unwrap()
            .iter()
            .all(|item| item["value"] == 1),
        "{begun}"
    );
    // Nothing is left: a clean stop has nothing to give back, and a new start finds nothing.
    server.stop();
    server.launch();
    assert!(
        !server.log().contains("deliveries given back"),
        "{}",
        server.log()
    );
    server.assert_nothing_stuck();
    assert_eq!(
        server
            .api("GET", "/apps/a/abandoned-executions?limit=200", None)
            .json()["items"]
            .as_array()
            .unwrap()
            .len(),
        50
    );
}

/// As an older version stored them: a value that is refused today, and what came after it on the
/// same key.
fn rows_that_no_reader_holds_go_through_restarts(engine: Engine) {
    const ODD: [&str; 3] = [r#"{"a":"\ud83d"}"#, r#"{"x":1e999}"#, "[[DEEP]]"];
    let mut server = Server::start(engine);
    let app = server.app("a");
    let source = r#"if ctx.event.kv.value.type_of() != "i64" { throw "no number" }
                    kv::collection("handled").set(ctx.event.kv.key, ctx.event.kv.value);"#;
    app.script("handler", source);
    let once = json!({ "attempts_max": 1 });
    let body = json!({ "script": "handler", "collection": "things", "ordered_by": "key",
                       "retry": once });
    let trigger = app.trigger("kv", body);
    let pause = format!("/triggers/{}/pause", trigger["id"].as_str().unwrap());
    assert_eq!(server.api("POST", &pause, None).status, 200);
    let mut plant =
        "update triggers set paused = false; update outbox set held = false;".to_owned();
    for (n, odd) in ODD.iter().enumerate() {
        app.set("things", &format!("k{n}"), json!(format!("POISON{n}")));
        app.set("things", &format!("k{n}"), json!(n));
        let odd = odd.replace("DEEP", &format!("{}{}", "[".repeat(200), "]".repeat(200)));
        let replace =
            format!("update outbox set payload = replace(payload, '\"POISON{n}\"', '{odd}');");
        plant.push_str(&replace);
    }
    server.stop();
    server.sql(&plant);
    server.launch();
    server.kill();
    server.launch();
    let app = server.known_app("a");
    let handled = wait_for("what comes after on the same keys", || {
        Some(app.entries("handled")).filter(|all| all.len() == ODD.len())
    });
    let expected = (0..ODD.len()).map(|n| (format!("k{n}"), json!(n)));
    assert_eq!(handled, expected.collect::<Vec<_>>());
    server.stop();
    server.launch();
    let app = server.known_app("a");
    let letters = app.dead_letters("state=unresolved");
    assert_eq!(letters.len(), ODD.len(), "{letters:?}");
    for letter in letters {
        let path = format!("/dead-letters/{}", letter["id"].as_str().unwrap());
        let shown = server.api("GET", &path, None);
        assert_eq!(shown.status, 200, "{}", shown.text());
        assert_eq!(shown.json()["payload_repaired"], true);
    }
    server.assert_nothing_stuck();
}

fn a_stop_lets_scripts_finish(engine: Engine) {
    let mut server = Server::start(engine);
    server.app("a").serve("s", "sleep(0.7); 1");
    let answer = std::thread::scope(|scope| {
        let call = scope.spawn(|| server.get("/s").status);
        std::thread::sleep(Duration::from_millis(200));
        server.signal("TERM");
        call.join().unwrap()
    });
    assert_eq!(answer, 200);
    assert!(server.wait_for_end().success(), "{}", server.log());
}

/// A limit on the size of files is as good as a full disk: writes to the log of SQLite fail.
fn limit_files(server: &Server, bytes: &str) {
    let (pid, limit) = (
        server.pid().to_string(),
        format!("--fsize={bytes}:unlimited"),
    );
    let limited = std::process::Command::new("prlimit")
        .args(["--pid", &pid, &limit])
        .status();
    assert!(limited.unwrap().success());
}

#[test]
fn a_full_disk_is_said_and_recovered_from() {
    let mut server = Server::start(Engine::Sqlite);
    server
        .app("a")
        .serve("s", "kv::collection(\"c\").set(random::uuid(), \"x\"); 1");
    assert_eq!(server.get("/s").status, 200);
    limit_files(&server, "4096");
    wait_for("an error", || {
        let status = server.get("/s").status_in_an_outage();
        (status == 503).then_some(())
    });
    wait_for("not ready", || {
        (server.get("/readyz").status == 503).then_some(())
    });
    assert_eq!(server.get("/healthz").status, 200);
    limit_files(&server, "unlimited");
    wait_for("ready again", || {
        (server.get("/readyz").status == 200).then_some(())
    });
    assert_eq!(server.get("/s").status, 200);
    server.stop();
}

#[test]
fn a_lost_postgres_is_said_and_recovered_from() {
    // The connections pass through a proxy of ours, which can be cut without touching the
    // server that the other tests use.
    let proxy = Proxy::start();
    let options = Options {
        postgres_through: Some(proxy.port),
        ..Options::default()
    };
    let server = Server::start_with(Engine::Postgres, options);
    let app = server.app("a");
    let script = app.script("s", "kv::collection(\"c\").set(\"k\", 1); 1");
    app.route("s", "ANY /s");
    let open = server.api(
        "PUT",
        "/apps/a/topics/t",
        Some(json!({ "auth_mode": "public" })),
    );
    assert_eq!(open.status, 200, "{}", open.text());
    let sign_in = json!({ "name": "owner", "password": server.password() });
    let execute = format!("/scripts/{script}/execute");
    let token = format!("Bearer {}", server.token);
    let streams = ["/realtime/topics/t", "/api/v1/events"];
    // Each way in, and each way to open a stream.
    let ways = || {
        let mut statuses = vec![
            server.get("/s").status_in_an_outage(),
            server
                .post("/api/v1/auth/login", &sign_in)
                .status_in_an_outage(),
            server
                .api("POST", &execute, Some(json!({})))
                .status_in_an_outage(),
        ];
        for path in streams {
            let headers = [("authorization", token.as_str())];
            let stream = EventStream::open(&server.url, path, &headers).unwrap();
            let says_when = stream.header.contains("\r\nretry-after: ");
            assert_eq!(stream.status == 503, says_when, "{path}: {}", stream.header);
            statuses.push(stream.status);
        }
        statuses
    };
    assert_eq!(ways(), [200; 5]);
    proxy.cut();
    assert_eq!(ways(), [503; 5]);
    wait_for("not ready", || {
        (server.get("/readyz").status == 503).then_some(())
    });
    assert_eq!(server.get("/healthz").status, 200);
    assert_eq!(ways(), [503; 5]);
    proxy.mend();
    wait_for("ready again", || {
        (server.get("/readyz").status == 200).then_some(())
    });
    wait_for("an answer", || {
        let status = server.get("/s").status_in_an_outage();
        (status == 200).then_some(())
    });
    assert_eq!(ways(), [200; 5]);
}

/// How long one state of a broken database lasts; longer in the soak.
fn a_while() -> Duration {
    let seconds = std::env::var("PICLOUD_TEST_BROKEN_SECS").ok();
    Duration::from_secs(seconds.map_or(1, |text| text.parse().expect("seconds")))
}

/// A server whose deliveries are tried often enough to outlive what is broken here.
fn persistent(engine: Engine, options: Options) -> Server {
    let environment = vec![
        ("PICLOUD_LEASE_MS", "2000".to_owned()),
        ("PICLOUD_TRIGGER_RETRY_MAX_ATTEMPTS", "100".to_owned()),
        ("PICLOUD_TRIGGER_RETRY_BASE_MS", "50".to_owned()),
        ("PICLOUD_TRIGGER_RETRY_BACKOFF", "linear".to_owned()),
    ];
    Server::start_with(
        engine,
        Options {
            environment,
            ..options
        },
    )
}

/// Async calls from four threads, while `breaking` breaks and mends: each one accepted is run,
/// and those that are not are refused.
fn what_was_accepted_is_run(server: &Server, breaking: impl FnOnce()) {
    let app = server.app("a");
    app.script(
        "job",
        r#"kv::collection("ran").set(ctx.request.query.n, true);"#,
    );
    app.route_with("job", "POST /job", json!({ "dispatch_mode": "async" }));
    let over = AtomicBool::new(false);
    let call = |thread: u32| {
        let (mut accepted, mut refused) = (Vec::new(), 0);
        for n in 0.. {
            let key = format!("{thread}-{n}");
            let path = format!("/job?n={key}");
            let answer = server.call("POST", &path, &[], None);
            match answer.status_in_an_outage() {
                202 => accepted.push(key),
                // It says so; then nothing was accepted.
                503 => refused += 1,
                other => panic!("{other}"),
            }
            if over.load(Ordering::Relaxed) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        (accepted, refused)
    };
    let (accepted, refused) = std::thread::scope(|scope| {
        let call = &call;
        let calls: Vec<_> = (0..4).map(|n| scope.spawn(move || call(n))).collect();
        breaking();
        over.store(true, Ordering::Relaxed);
        let (mut accepted, mut refused) = (Vec::new(), 0);
        for call in calls {
            let (more, no) = call.join().unwrap();
            accepted.extend(more);
            refused += no;
        }
        (accepted, refused)
    });
    report(format_args!(
        "a database that broke: {} accepted, {refused} refused",
        accepted.len()
    ));
    // A short outage need not be seen by any caller; the server says that there was one.
    assert!(!accepted.is_empty() && server.log().contains("the database cannot be"));
    wait_for("every accepted one", || {
        let list = server.api("GET", "/apps/a/kv", None).json();
        let ran = list["items"][0]["keys"].as_u64().unwrap_or(0);
        (ran >= accepted.len() as u64).then_some(())
    });
    for key in &accepted {
        assert_eq!(app.kv("ran", key), true, "{key} was accepted and never ran");
    }
    assert!(app.dead_letters("").is_empty());
    server.assert_nothing_stuck();
}

#[test]
fn what_was_accepted_survives_a_postgres_that_is_cut_slow_or_ends_connections() {
    let proxy = Proxy::start();
    let options = Options {
        postgres_through: Some(proxy.port),
        ..Options::default()
    };
    let server = persistent(Engine::Postgres, options);
    let pause = || std::thread::sleep(a_while());
    what_was_accepted_is_run(&server, || {
        pause();
        proxy.cut();
        pause();
        proxy.mend();
        pause();
        proxy.slow_down(Duration::from_millis(150));
        pause();
        pause();
        proxy.slow_down(Duration::ZERO);
        pause();
        assert!(server.end_database_connections() > 0);
        pause();
    });
}

#[test]
fn what_was_accepted_survives_a_postgres_that_crashes_and_starts_again() {
    let url = std::env::var("PICLOUD_TEST_POSTGRES_TO_RESTART").ok();
    let url =
        url.expect("`cargo xtask test` starts a Postgres that may be restarted, and names it");
    let options = Options {
        postgres: Some(url),
        ..Options::default()
    };
    let server = persistent(Engine::Postgres, options);
    // As on a slow disk, many a commit is not on it when the server crashes: its id is given anew,
    // and what became of another transaction must not be taken for what became of this one.
    for setting in [
        "commit_delay = 20000",
        "commit_siblings = 0",
        "wal_writer_delay = 10000",
    ] {
        server.query(&format!("alter system set {setting}"));
    }
    server.query("select pg_reload_conf()");
    what_was_accepted_is_run(&server, || {
        for _ in 0..4 {
            std::thread::sleep(a_while());
            restart_postgres();
            wait_for("ready again", || {
                (server.get("/readyz").status == 200).then_some(())
            });
        }
        std::thread::sleep(a_while());
    });
}

#[test]
fn what_was_accepted_survives_a_full_disk() {
    let server = persistent(Engine::Sqlite, Options::default());
    what_was_accepted_is_run(&server, || {
        for _ in 0..2 {
            std::thread::sleep(a_while());
            limit_files(&server, "4096");
            wait_for("not ready", || {
                (server.get("/readyz").status == 503).then_some(())
            });
            std::thread::sleep(a_while());
            limit_files(&server, "unlimited");
        }
        std::thread::sleep(a_while());
    });
}
