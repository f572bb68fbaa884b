//! Several nodes on one Postgres.

use std::time::{Duration, Instant};

use picloud_tests::{Engine, Options, Proxy, Server, report, wait_for};
use serde_json::{Value, json};

/// How long a lease lasts here.
const LEASE: Duration = Duration::from_secs(2);
/// How soon after its end somebody else has what was leased.
const TAKEN_OVER: Duration = Duration::from_secs(2);

fn options() -> Options {
    Options {
        environment: vec![
            ("PICLOUD_LEASE_MS", LEASE.as_millis().to_string()),
            // Tokens are one node's affair here; time is not.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ],
        ..Options::default()
    }
}

/// Counts its runs in `begun`, takes a while, and counts them again in `ended`.
const SLOW: &str = r#"
    let count = |name| { let c = kv::collection(name); let n = c.get("n"); c.set("n", if n == () { 1 } else { n + 1 }); };
    count.call("begun"); sleep(SECONDS); count.call("ended");"#;

#[test]
fn a_frozen_nodes_late_completion_is_refused() {
    let frozen = Server::start_with(Engine::Postgres, options());
    let app = frozen.app("a");
    app.script("slow", &SLOW.replace("SECONDS", "1.5"));
    app.route_with("slow", "POST /slow", json!({ "dispatch_mode": "async" }));
    let other = frozen.another_node(options());
    let accepted = frozen.post("/slow", &json!({}));
    assert_eq!(accepted.status, 202);
    wait_for("the first attempt", || {
        (app.kv("begun", "n") == 1).then_some(())
    });
    frozen.signal("STOP");
    let frozen_at = Instant::now();
    let seen = other.known_app("a");
    wait_for("another node to take it on", || {
        (seen.kv("begun", "n") == 2).then_some(())
    });
    let took = frozen_at.elapsed();
    report(format_args!(
        "a frozen node's delivery was taken over after {took:?}"
    ));
    assert!(took < LEASE + TAKEN_OVER, "{took:?}");
    wait_for("another node to end it", || {
        (seen.kv("ended", "n") == 1).then_some(())
    });
    frozen.signal("CONT");
    wait_for("the late completion to be refused", || {
        (frozen.metric("picloud_completions_refused_total") >= 1.0).then_some(())
    });
    let delivery = accepted.json()["execution_id"].as_str().unwrap().to_owned();
    let executions = wait_for("the execution", || {
        let all = seen.executions(&format!("delivery_id={delivery}"));
        Some(all).filter(|all| !all.is_empty())
    });
    assert_eq!(executions.len(), 1, "{executions:?}");
    assert_eq!(executions[0]["attempt"], 2);
    assert!(other.metric("picloud_leases_reclaimed_total") >= 1.0);
    assert!(seen.dead_letters("").is_empty());
    other.assert_nothing_stuck();
}

#[test]
fn a_killed_nodes_delivery_is_taken_over_long_before_its_lease_ends() {
    const WITHIN: Duration = Duration::from_secs(5);
    // The lease is the one of every instance: 15 s.
    let one = Server::start(Engine::Postgres);
    let app = one.app("a");
    app.script("slow", &SLOW.replace("SECONDS", "4"));
    app.route_with("slow", "POST /slow", json!({ "dispatch_mode": "async" }));
    let mut killed = one.another_node(Options::default());
    let alive = "select 1 from pg_locks where locktype = 'advisory' and objsubid = 2
        and database = (select oid from pg_database where datname = current_database())";
    wait_for("both nodes to show that they live", || {
        (one.query(alive).len() == 2).then_some(())
    });
    let shown_at = Instant::now();
    assert_eq!(killed.post("/slow", &json!({})).status, 202);
    wait_for("the first attempt", || {
        // Who lives is looked at twice a second, and only who was seen is missed.
        let is_seen = shown_at.elapsed() > Duration::from_secs(1);
        (is_seen && app.kv("begun", "n") == 1).then_some(())
    });
    killed.kill();
    let killed_at = Instant::now();
    wait_for("another node to take it on", || {
        (app.kv("begun", "n") == 2).then_some(())
    });
    let took = killed_at.elapsed();
    report(format_args!(
        "a killed node's delivery was taken over after {took:?}"
    ));
    assert!(took < WITHIN, "{took:?}");
    assert!(one.metric("picloud_leases_taken_over_total") >= 1.0);
    wait_for("its end", || (app.kv("ended", "n") == 1).then_some(()));
    one.assert_nothing_stuck();
}

#[test]
fn a_script_is_stopped_whose_lease_its_node_cannot_renew() {
    let proxy = Proxy::start();
    let cut_off = Server::start_with(
        Engine::Postgres,
        Options {
            postgres_through: Some(proxy.port),
            ..options()
        },
    );
    let app = cut_off.app("a");
    app.script("slow", &SLOW.replace("SECONDS", "6"));
    app.route_with("slow", "POST /slow", json!({ "dispatch_mode": "async" }));
    let other = cut_off.another_node(options());
    let accepted = cut_off.post("/slow", &json!({}));
    assert_eq!(accepted.status, 202);
    wait_for("the first attempt", || {
        (app.kv("begun", "n") == 1).then_some(())
    });
    assert!(proxy.black_hole_all() > 0);
    let cut_at = Instant::now();
    let seen = other.known_app("a");
    let (mut stopped, mut begun) = (None, None);
    wait_for("one to stop and the other to begin", || {
        if stopped.is_none() && cut_off.metric("picloud_leases_lost_total") >= 1.0 {
            stopped = Some(cut_at.elapsed());
        }
        if begun.is_none() && seen.kv("begun", "n") == 2 {
            begun = Some(cut_at.elapsed());
        }
        stopped.zip(begun)
    });
    let (stopped, begun) = stopped.zip(begun).expect("it was waited for");
    report(format_args!(
        "a node without its database stopped a script after {stopped:?}, another began it after {begun:?}"
    ));
    assert!(begun < LEASE + TAKEN_OVER, "{begun:?}");
    // Each is seen some time after it happened: two servers are asked, one after the other.
    let both = stopped.saturating_sub(begun);
    assert!(both < Duration::from_millis(500), "both ran for {both:?}");
    wait_for("its end", || (seen.kv("ended", "n") == 1).then_some(()));
    proxy.mend();
    wait_for("the node to be back", || {
        (cut_off.get("/readyz").status == 200).then_some(())
    });
    let delivery = accepted.json()["execution_id"].as_str().unwrap().to_owned();
    let executions = wait_for("the execution", || {
        let all = seen.executions(&format!("delivery_id={delivery}"));
        Some(all).filter(|all| !all.is_empty())
    });
    assert_eq!(executions.len(), 1, "{executions:?}");
    assert_eq!(executions[0]["attempt"], 2);
    other.assert_nothing_stuck();
    assert_eq!(seen.kv("ended", "n"), 1, "the one that was stopped went on");
}

#[test]
fn every_node_is_shown_with_its_version_and_one_that_was_killed_as_gone() {
    let one = Server::start_with(Engine::Postgres, options());
    let mut killed = one.another_node(options());
    let mut stopped = one.another_node(options());
    let nodes = |server: &Server| -> Vec<Value> {
        let instance = server.api("GET", "/instance", None).json();
        instance["nodes"].as_array().unwrap().clone()
    };
    let id_of = |server: &Server| {
        let seen = wait_for("the node to say that it is there", || {
            let mut nodes = nodes(server).into_iter();
            nodes.find(|node| node["is_this"] == true)
        });
        seen["id"].clone()
    };
    let ids = [&one, &killed, &stopped].map(id_of);
    let state_of = |n: usize| {
        let found = nodes(&one).into_iter().find(|node| node["id"] == ids[n]);
        found.map(|node| node["state"].as_str().unwrap().to_owned())
    };
    let version = one.get("/version").json()["product"].clone();
    let seen = nodes(&one);
    assert_eq!(seen.len(), 3, "{seen:?}");
    for node in &seen {
        assert!(ids.contains(&node["id"]), "{node}");
        assert_eq!(
            (&node["version"], &node["state"]),
            (&version, &json!("serving"))
        );
        assert!(!node["hostname"].as_str().unwrap().is_empty(), "{node}");
    }
    killed.kill();
    stopped.stop();
    // It said that it ends.
    assert_eq!(state_of(2), None);
    wait_for("the other to be gone", || {
        (state_of(1).as_deref() == Some("gone")).then_some(())
    });
    assert_eq!(state_of(0).as_deref(), Some("serving"));
}

#[test]
fn a_long_script_keeps_its_lease() {
    let one = Server::start_with(Engine::Postgres, options());
    let other = one.another_node(options());
    let app = one.app("a");
    app.script("slow", &SLOW.replace("SECONDS", "5"));
    app.route_with("slow", "POST /slow", json!({ "dispatch_mode": "async" }));
    assert_eq!(one.post("/slow", &json!({})).status, 202);
    wait_for("its end", || (app.kv("ended", "n") == 1).then_some(()));
    assert_eq!(
        app.kv("begun", "n"),
        1,
        "more than twice its lease, and nobody took it"
    );
    one.assert_nothing_stuck();
    drop(other);
}

fn a_clock_that_is_off(clock: &'static str) {
    let right = Server::start_with(Engine::Postgres, options());
    let wrong = right.another_node(Options {
        clock: Some(clock),
        ..options()
    });
    let app = right.app("a");
    app.script(
        "flaky",
        r#"let c = kv::collection("tries"); let id = ctx.request.query.n; let n = c.get(id);
           c.set(id, if n == () { 1 } else { n + 1 }); if n == () { throw "first" } "#,
    );
    app.route_with("flaky", "POST /flaky", json!({ "dispatch_mode": "async" }));
    app.script("slow", &SLOW.replace("SECONDS", "3"));
    app.route_with("slow", "POST /slow", json!({ "dispatch_mode": "async" }));
    // The other node has seen the routes.
    wait_for("the routes", || {
        (wrong.post("/slow", &json!({})).status == 202).then_some(())
    });
    let at = |node: &Server| {
        let accepted = node.post("/flaky?n=clock", &json!({})).json();
        let text = accepted["accepted_at"].as_str().unwrap().to_owned();
        chrono::DateTime::parse_from_rfc3339(&text).unwrap()
    };
    let apart = (at(&wrong) - at(&right)).num_minutes().abs();
    assert!(
        (58..=62).contains(&apart),
        "the clocks are {apart} minutes apart"
    );
    let started = Instant::now();
    for n in 0..10 {
        let node = if n % 2 == 0 { &right } else { &wrong };
        assert_eq!(node.post(&format!("/flaky?n={n}"), &json!({})).status, 202);
    }
    let tried = || {
        let mut tried = app.entries("tries");
        tried.retain(|(n, _)| n != "clock");
        tried
    };
    wait_for("every retry", || {
        let twice = tried().iter().filter(|(_, count)| *count == 2).count();
        if twice > 0 {
            let took = started.elapsed();
            assert!(took > Duration::from_millis(750), "early: {took:?}");
        }
        (twice == 10).then_some(())
    });
    assert!(started.elapsed() < Duration::from_secs(10), "late");
    wait_for("the long script", || {
        (app.kv("ended", "n") == 1).then_some(())
    });
    assert_eq!(app.kv("begun", "n"), 1, "nobody took it over");
    let tried = tried();
    assert!(
        tried.iter().all(|(_, count)| *count == 2),
        "doubled: {tried:?}"
    );
    assert!(app.dead_letters("").is_empty());
    right.assert_nothing_stuck();
}

#[test]
fn a_clock_an_hour_ahead_changes_nothing() {
    a_clock_that_is_off("+1h");
}

#[test]
fn a_clock_an_hour_behind_changes_nothing() {
    a_clock_that_is_off("-1h");
}

#[test]
fn what_one_node_has_no_room_for_another_takes_on() {
    let narrow = |executions: &str| Options {
        environment: vec![("PICLOUD_EXECUTIONS_MAX", executions.to_owned())],
        ..Options::default()
    };
    let full = Server::start_with(Engine::Postgres, narrow("4"));
    let roomy = full.another_node(narrow("400"));
    let app = full.app("a");
    app.script(
        "slow",
        r#"sleep(0.5); kv::collection("ended").set(ctx.request.query.n, 1);"#,
    );
    app.route_with("slow", "POST /slow", json!({ "dispatch_mode": "async" }));
    wait_for("the route", || {
        (roomy.post("/slow?n=first", &json!({})).status == 202).then_some(())
    });
    let started = Instant::now();
    for n in 0..40 {
        assert_eq!(full.post(&format!("/slow?n={n}"), &json!({})).status, 202);
    }
    wait_for("all of them", || {
        (app.entries("ended").len() == 41).then_some(())
    });
    // One at a time, it would have been twenty seconds.
    assert!(
        started.elapsed() < Duration::from_secs(6),
        "{:?}",
        started.elapsed()
    );
}
