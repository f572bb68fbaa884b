//! Triggers: from a mutation to a handler.

use std::time::{Duration, Instant};

use picloud_tests::{App, Engine, Options, Server, on_both_engines, wait_for};
use serde_json::{Value, json};

on_both_engines!(
    a_mutation_reaches_its_handlers,
    globs_and_ops_choose_what_is_heard,
    i02_a_mutation_and_its_deliveries_commit_together,
    i08_a_loop_of_events_stops_at_the_depth_limit,
    i13_a_handler_runs_as_who_registered_it,
    a_failed_delivery_is_tried_again_after_its_backoff,
    what_waits_for_a_deleted_app_ends_with_it,
    whoever_waits_for_a_script_that_fails_without_its_app_is_told,
    a_paused_trigger_keeps_its_deliveries,
    deliveries_of_one_key_keep_their_order,
    one_apps_flood_delays_no_other_app,
    a_tree_shows_what_a_request_led_to,
    an_events_key_makes_one_delivery,
    keys_of_events_are_as_different_as_they_are_written,
    bad_triggers_are_refused_and_named,
);

/// Retries at once, or nearly.
fn quick() -> Value {
    json!({ "attempts_max": 2, "base_ms": 10, "jitter_pct": 0, "backoff": "constant" })
}

fn heard(app: &App<'_>, collection: &str, key: &str) -> Value {
    wait_for("a handler", || {
        Some(app.kv(collection, key)).filter(|value| !value.is_null())
    })
}

/// Wait until so many handlers ran, and see that it were no more.
#[track_caller]
fn ran(app: &App<'_>, count: usize) {
    wait_for("every handler's end", || {
        let ran = app.executions("invocation_type=kv").len();
        assert!(ran <= count, "{ran} handlers ran");
        (ran == count).then_some(())
    });
}

fn a_mutation_reaches_its_handlers(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script(
        "listen",
        r#"let e = ctx.event;
           kv::collection("heard").set(`${e.kv.key}-${e.op}`, #{ event: e, request: "request" in ctx,
               type: ctx.invocation_type });"#,
    );
    app.serve(
        "write",
        r#"let c = kv::collection("things"); c.set("k", 1); c.set("k", #{ n: 2 }); c.delete("k");
           c.delete("k"); "written""#,
    );
    app.trigger("kv", json!({ "script": "listen", "collection": "things" }));
    assert_eq!(server.get("/write").status, 200);
    let inserted = heard(&app, "heard", "k-insert");
    assert_eq!(inserted["event"]["source"], "kv");
    assert_eq!(
        inserted["event"]["kv"],
        json!({ "collection": "things", "key": "k", "value": 1, "old_value": null })
    );
    assert_eq!(
        (&inserted["request"], &inserted["type"]),
        (&json!(false), &json!("kv"))
    );
    let updated = heard(&app, "heard", "k-update");
    assert_eq!(updated["event"]["kv"]["value"], json!({ "n": 2 }));
    assert_eq!(updated["event"]["kv"]["old_value"], 1);
    let deleted = heard(&app, "heard", "k-delete");
    assert_eq!(deleted["event"]["kv"]["value"], Value::Null);
    assert_eq!(deleted["event"]["kv"]["old_value"], json!({ "n": 2 }));
    // The API and the CLI are heard as scripts are.
    app.set("things", "api", json!(true));
    heard(&app, "heard", "api-insert");
    let set = server.cli(&["kv", "set", "things", "cli", "1", "--app", "a"]);
    assert!(set.status.success());
    heard(&app, "heard", "cli-insert");
    // One that removed nothing was no event.
    ran(&app, 5);
}

fn globs_and_ops_choose_what_is_heard(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script(
        "listen",
        r#"let e = ctx.event.kv; kv::collection("heard").set(`${e.collection}-${e.key}`, ctx.event.op);"#,
    );
    app.trigger(
        "kv",
        json!({ "script": "listen", "collection": "orders:*", "key": "eu/*", "ops": ["delete", "insert"] }),
    );
    let disabled = app.trigger(
        "kv",
        json!({ "script": "listen", "collection": "*", "enabled": false }),
    );
    assert_eq!(disabled["enabled"], false);
    app.set("orders", "eu%2F1", json!(1));
    app.set("orders:new", "us%2F1", json!(1));
    app.set("orders:new", "eu%2F1", json!(1));
    app.set("orders:new", "eu%2F1", json!(2));
    app.set("orders:old", "eu%2F2", json!(1));
    heard(&app, "heard", "orders:old-eu%2F2");
    assert_eq!(heard(&app, "heard", "orders:new-eu%2F1"), "insert");
    ran(&app, 2);
}

fn i02_a_mutation_and_its_deliveries_commit_together(engine: Engine) {
    let mut server = Server::start(engine);
    {
        let app = server.app("a");
        app.script(
            "listen",
            r#"kv::collection("heard").set(ctx.event.kv.key, true);"#,
        );
        app.trigger("kv", json!({ "script": "listen", "collection": "things" }));
    }
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let server = &server;
            scope.spawn(move || {
                let token = format!("Bearer {}", server.token);
                for n in 0..500 {
                    let path = format!("/api/v1/apps/a/kv/things/{thread}-{n}");
                    let headers = [("authorization", token.as_str())];
                    if server.try_call("PUT", &path, &headers, Some(b"1")).is_err() {
                        return;
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_millis(150));
        std::process::Command::new("kill")
            .args(["-9", &server.pid().to_string()])
            .status()
            .unwrap();
    });
    server.kill();
    server.launch();
    let count = |collection: &str| {
        let list = server.api("GET", "/apps/a/kv", None).json();
        let found = list["items"].as_array().into_iter().flatten();
        let mut found = found.filter(|item| item["collection"] == collection);
        found
            .next()
            .map_or(0, |item| item["keys"].as_i64().unwrap())
    };
    let written = count("things");
    assert!(written > 0, "nothing was written before the kill");
    wait_for("every written key to be heard", || {
        (count("heard") == written).then_some(())
    });
}

fn i08_a_loop_of_events_stops_at_the_depth_limit(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script(
        "loop",
        r#"let c = kv::collection("loop"); c.set("n", ctx.event.kv.value + 1);"#,
    );
    app.trigger("kv", json!({ "script": "loop", "collection": "loop" }));
    app.set("loop", "n", json!(0));
    wait_for("the depth limit", || {
        (app.kv("loop", "n") == 8).then_some(())
    });
    let metrics = wait_for("the counter", || {
        let text = server.get("/metrics").text();
        text.contains("picloud_deliveries_dropped_total")
            .then_some(text)
    });
    assert!(
        metrics.contains(r#"picloud_deliveries_dropped_total{why="depth"} 1"#),
        "{metrics}"
    );
    ran(&app, 8);
    assert!(app.dead_letters("").is_empty());
}

fn i13_a_handler_runs_as_who_registered_it(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script(
        "listen",
        r#"kv::collection("heard").set("who", ctx.principal);"#,
    );
    let trigger = app.trigger("kv", json!({ "script": "listen", "collection": "things" }));
    app.set("things", "k", json!(1));
    let who = heard(&app, "heard", "who");
    assert_eq!(who["id"], trigger["registered_by_principal"]);
    assert_eq!(who["name"], "owner");
}

/// Nothing disables a user yet but the database itself, so on Postgres only.
#[test]
fn i13_who_is_disabled_has_no_triggers_run() {
    let server = Server::start(Engine::Postgres);
    let app = server.app("a");
    app.script("listen", r#"kv::collection("heard").set("k", 1);"#);
    app.serve("write", r#"kv::collection("things").set("k", 1);"#);
    app.trigger("kv", json!({ "script": "listen", "collection": "things" }));
    let disable = |at: &str| {
        server.sql(&format!(
            "update users set disabled_at = {at}; update directory_version set version = version + 1"
        ));
    };
    disable("now()");
    wait_for("the owner to be shut out", || {
        (server.api("GET", "/apps", None).status == 401).then_some(())
    });
    // Other nodes, and this one, hear of it within a second.
    wait_for("a delivery that dies", || {
        assert_eq!(server.get("/write").status, 200);
        (server.metric("picloud_deliveries_total") >= 1.0
            && server.get("/metrics").text().contains(r#"outcome="dead""#))
        .then_some(())
    });
    disable("null");
    let dead = wait_for("the dead letter", || app.dead_letters("").pop());
    assert_eq!(
        (&dead["last_error"], &dead["attempts"]),
        (
            &json!("the user who registered the trigger was removed or disabled"),
            &json!(1)
        )
    );
}

fn a_failed_delivery_is_tried_again_after_its_backoff(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script(
        "flaky",
        r#"let c = kv::collection("tries"); let n = c.get("n"); let n = if n == () { 1 } else { n + 1 };
           c.set("n", n); if n < 3 { throw `try ${n}` } c.set("attempt", ctx.attempt);"#,
    );
    app.trigger(
        "kv",
        json!({ "script": "flaky", "collection": "things",
                "retry": { "attempts_max": 3, "base_ms": 300, "jitter_pct": 0, "backoff": "linear" } }),
    );
    let started = Instant::now();
    app.set("things", "k", json!(1));
    assert_eq!(heard(&app, "tries", "attempt"), 3);
    // 300 and 600 ms of pauses; the claims in between are due, not polled for.
    let took = started.elapsed();
    assert!(
        (Duration::from_millis(900)..Duration::from_millis(1_800)).contains(&took),
        "{took:?}"
    );
    let executions = wait_for("three executions", || {
        Some(app.executions("invocation_type=kv")).filter(|all| all.len() == 3)
    });
    let delivery = &executions[0]["delivery_id"];
    assert!(executions.iter().all(|one| &one["delivery_id"] == delivery));
    assert!(app.dead_letters("").is_empty());
}

fn what_waits_for_a_deleted_app_ends_with_it(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script("fail", "throw 1");
    let trigger = app.trigger(
        "kv",
        json!({ "script": "fail", "collection": "things",
                "retry": { "attempts_max": 5, "base_ms": 500, "jitter_pct": 0, "backoff": "constant" } }),
    );
    app.set("things", "k", json!(1));
    let outcome = |name: &str| {
        let metric = format!(r#"picloud_deliveries_total{{outcome="{name}",source="kv"}}"#);
        server
            .get("/metrics")
            .text()
            .contains(&metric)
            .then_some(())
    };
    wait_for("a failed attempt", || outcome("retried"));
    assert_eq!(server.api("DELETE", "/apps/a", None).status, 204);
    wait_for("its end", || outcome("app_deleted"));
    let path = format!("/triggers/{}", trigger["id"].as_str().unwrap());
    assert_eq!(server.api("GET", &path, None).status, 404);
    assert!(outcome("dead").is_none());
}

/// What runs is let finish; but that it failed may be for want of its app.
fn whoever_waits_for_a_script_that_fails_without_its_app_is_told(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.serve(
        "s",
        r#"let c = kv::collection("c"); c.set("began", 1); sleep(5.0); throw "no app""#,
    );
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.get("/s"));
        wait_for("the script to begin", || {
            (app.kv("c", "began") == json!(1)).then_some(())
        });
        assert_eq!(server.api("DELETE", "/apps/a", None).status, 204);
        let told = waiting.join().unwrap();
        assert_eq!(
            (told.status, told.problem().as_str()),
            (410, "app_deleted"),
            "{}",
            told.text()
        );
    });
}

fn a_paused_trigger_keeps_its_deliveries(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script(
        "listen",
        r#"kv::collection("heard").set(ctx.event.kv.key, true);"#,
    );
    let trigger = app.trigger("kv", json!({ "script": "listen", "collection": "things" }));
    let path = format!("/triggers/{}", trigger["id"].as_str().unwrap());
    let paused = server.api("POST", &format!("{path}/pause"), None);
    assert_eq!(paused.json()["paused"], true, "{}", paused.text());
    for n in 0..5 {
        app.set("things", &n.to_string(), json!(n));
    }
    let shown = server.api("GET", &path, None).json();
    assert_eq!(shown["waiting"], 5, "{shown}");
    assert!(app.entries("heard").is_empty());
    let resumed = server.api("POST", &format!("{path}/resume"), None);
    assert_eq!(resumed.json()["paused"], false, "{}", resumed.text());
    wait_for("what waited", || {
        (app.entries("heard").len() == 5).then_some(())
    });
    wait_for("nothing to wait", || {
        (server.api("GET", &path, None).json()["waiting"] == 0).then_some(())
    });
    // What waits for a trigger that is deleted dies, and is not lost.
    server.api("POST", &format!("{path}/pause"), None);
    app.set("things", "late", json!(1));
    assert_eq!(server.api("DELETE", &path, None).status, 204);
    let dead = wait_for("a dead letter", || app.dead_letters("").pop());
    assert_eq!(dead["last_error"], "the trigger was deleted");
}

fn deliveries_of_one_key_keep_their_order(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    // The first attempt at the second value fails: what comes after it waits for it all the same.
    app.script(
        "listen",
        r#"let e = ctx.event.kv; sleep(0.02);
           if e.value == 2 && ctx.attempt == 1 { throw "not yet" }
           let c = kv::collection("order"); let seen = c.get(e.key);
           if seen == () { seen = []; } seen.push(e.value); c.set(e.key, seen);"#,
    );
    app.trigger(
        "kv",
        json!({ "script": "listen", "collection": "things", "ordered_by": "key", "retry": quick() }),
    );
    app.serve(
        "write",
        r#"let c = kv::collection("things");
           for n in 1..11 { for key in ["a", "b", "c"] { c.set(key, n); } }"#,
    );
    assert_eq!(server.get("/write").status, 200);
    let expected = json!([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    for key in ["a", "b", "c"] {
        wait_for("every value in its order", || {
            let seen = app.kv("order", key);
            let count = seen.as_array().map_or(0, Vec::len);
            (count == 10).then(|| assert_eq!(seen, expected))
        });
    }
}

fn one_apps_flood_delays_no_other_app(engine: Engine) {
    let options = Options {
        environment: vec![("PICLOUD_EXECUTIONS_MAX", "64".to_owned())],
        ..Options::default()
    };
    let server = Server::start_with(engine, options);
    let flood = server.app("flood");
    flood.script("slow", "sleep(0.05);");
    flood.trigger("kv", json!({ "script": "slow", "collection": "things" }));
    flood.script_with(
        "write",
        r#"let c = kv::collection("things"); for n in 0..1500 { c.set(`${n}`, n); }"#,
        json!({ "timeout_ms": 60_000 }),
    );
    flood.route("write", "GET /write");
    let quiet = server.app("quiet");
    quiet.script(
        "listen",
        r#"kv::collection("heard").set(ctx.event.kv.key, true);"#,
    );
    quiet.trigger("kv", json!({ "script": "listen", "collection": "things" }));
    assert_eq!(server.get("/write").status, 200);
    let started = Instant::now();
    quiet.set("things", "k", json!(1));
    heard(&quiet, "heard", "k");
    let took = started.elapsed();
    let waiting = flood.executions("limit=200&invocation_type=kv").len();
    // The flood needs 1,500 × 50 ms ÷ 12 places: more than six seconds.
    assert!(
        took < Duration::from_secs(2),
        "{took:?}, {waiting} of the flood ran"
    );
}

fn a_tree_shows_what_a_request_led_to(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.serve("write", r#"kv::collection("things").set("k", 1);"#);
    app.script("fail", r#"throw "as the test wants""#);
    app.script(
        "handle",
        r#"kv::collection("heard").set("dead", ctx.event.dead_letter.last_error);"#,
    );
    app.trigger(
        "kv",
        json!({ "script": "fail", "collection": "things", "retry": quick() }),
    );
    app.trigger("dead_letter", json!({ "script": "handle" }));
    let answer = server.get("/write");
    let root = answer.headers["x-execution-id"]
        .to_str()
        .unwrap()
        .to_owned();
    heard(&app, "heard", "dead");
    let tree = wait_for("the whole tree", || {
        let tree = server.api("GET", &format!("/executions/{root}/tree"), None);
        let tree = tree.json();
        let whole =
            tree["roots"][0]["children"][1]["children"][0]["invocation_type"] == "dead_letter";
        whole.then_some(tree)
    });
    assert_eq!(tree["roots"][0]["id"], root.as_str());
    let attempts = tree["roots"][0]["children"].as_array().unwrap();
    assert_eq!(attempts.len(), 2, "{tree}");
    assert!(attempts.iter().all(|one| one["outcome"] == "threw"));
    let shown = server.cli(&["executions", "tree", &root]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        shown.contains("dead_letter") && shown.contains("threw"),
        "{shown}"
    );
}

fn an_events_key_makes_one_delivery(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script(
        "charge",
        r#"let c = kv::collection("charged"); let id = `${ctx.event.kv.value.order}`;
           let n = c.get(id); c.set(id, if n == () { 1 } else { n + 1 });"#,
    );
    app.trigger(
        "kv",
        json!({ "script": "charge", "collection": "orders",
                "idempotency": { "key": "/kv/value/order", "ttl_s": 60 } }),
    );
    for (key, order) in [("a", 7), ("b", 7), ("c", 8), ("a", 7)] {
        app.set("orders", key, json!({ "order": order }));
    }
    heard(&app, "charged", "7");
    heard(&app, "charged", "8");
    assert_eq!(
        app.entries("charged"),
        [("7".to_owned(), json!(1)), ("8".to_owned(), json!(1))]
    );
}

/// As they are written: JSON of ours would make doubles of the last two.
fn keys_of_events_are_as_different_as_they_are_written(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script(
        "charge",
        r#"kv::collection("charged").set(ctx.event.id, ctx.event.kv.key);"#,
    );
    app.trigger(
        "kv",
        json!({ "script": "charge", "collection": "orders",
                "idempotency": { "key": "/kv/value/order", "ttl_s": 60 } }),
    );
    let token = format!("Bearer {}", server.token);
    let orders = ["1", "\"1\"", "18446744073709551616", "18446744073709551617"];
    // Each once more: of the same key there is one delivery.
    for turn in ["first", "again"] {
        for (n, order) in orders.iter().enumerate() {
            let path = format!("/api/v1/apps/a/kv/orders/{turn}-{n}");
            let body = format!("{{\"order\": {order}}}");
            let headers = [("authorization", token.as_str())];
            let put = server.call("PUT", &path, &headers, Some(body.as_bytes()));
            assert_eq!(put.status, 204, "{}", put.text());
        }
    }
    let charged = || {
        let mut keys: Vec<_> = app.entries("charged");
        keys.sort_by_key(|(_, key)| key.to_string());
        keys.into_iter().map(|(_, key)| key).collect::<Vec<_>>()
    };
    wait_for("four deliveries", || {
        (charged().len() >= orders.len()).then_some(())
    });
    server.assert_nothing_stuck();
    assert_eq!(charged(), ["first-0", "first-1", "first-2", "first-3"]);
    assert_eq!(app.executions("invocation_type=kv").len(), 4);
}

fn bad_triggers_are_refused_and_named(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script("s", "1");
    let other = server.app("other");
    let foreign = other.script("s", "1");
    let cases = [
        ("kv", json!({ "script": "s" }), "collection"),
        (
            "kv",
            json!({ "script": "s", "collection": "" }),
            "collection",
        ),
        (
            "kv",
            json!({ "script": "s", "collection": "a*b" }),
            "collection",
        ),
        (
            "kv",
            json!({ "script": "s", "collection": "*", "ops": [] }),
            "ops",
        ),
        (
            "kv",
            json!({ "script": "s", "collection": "*", "ops": ["upsert"] }),
            "ops[0]",
        ),
        (
            "kv",
            json!({ "script": "s", "collection": "*", "retry": { "attempts_max": 0 } }),
            "retry.attempts_max",
        ),
        (
            "kv",
            json!({ "script": "s", "collection": "*", "retry": { "attempts_max": 101 } }),
            "retry.attempts_max",
        ),
        (
            "kv",
            json!({ "script": "s", "collection": "*", "retry": { "base_ms": -1 } }),
            "retry.base_ms",
        ),
        (
            "kv",
            json!({ "script": "s", "collection": "*", "retry": { "jitter_pct": 101 } }),
            "retry.jitter_pct",
        ),
        (
            "kv",
            json!({ "script": "s", "collection": "*", "colection": "x" }),
            "colection",
        ),
        (
            "kv",
            json!({ "script": "s", "collection": "*", "filter": {} }),
            "filter",
        ),
        (
            "kv",
            json!({ "script": "s", "collection": "*", "idempotency": { "key": "kv" } }),
            "idempotency.key",
        ),
        (
            "kv",
            json!({ "script": "s", "collection": "*", "idempotency": { "key": "/kv", "ttl_s": 0 } }),
            "idempotency.ttl_s",
        ),
        ("kv", json!({ "collection": "*" }), "script_id"),
        (
            "dead_letter",
            json!({ "script": "s", "collection": "*" }),
            "collection",
        ),
        (
            "dead_letter",
            json!({ "script": "s", "filter": { "source": "mail" } }),
            "filter.source",
        ),
        (
            "dead_letter",
            json!({ "script": "s", "filter": { "trigger_id": "01980000-0000-7000-8000-000000000000" } }),
            "filter.trigger_id",
        ),
        (
            "dead_letter",
            json!({ "script": "s", "filter": { "script_id": foreign } }),
            "filter.script_id",
        ),
    ];
    for (kind, body, field) in cases {
        let refused = server.api(
            "POST",
            &format!("/apps/a/triggers/{kind}"),
            Some(body.clone()),
        );
        assert_eq!(refused.status, 422, "{body}: {}", refused.text());
        assert_eq!(refused.json()["field"], field, "{body}: {}", refused.text());
    }
    let refused = |body: Value| {
        let answer = server.api("POST", "/apps/a/triggers", Some(body));
        assert_eq!(
            (answer.status, &answer.json()["field"]),
            (422, &json!("kind"))
        );
    };
    refused(json!({ "script": "s", "collection": "*" }));
    refused(json!({ "kind": "mail", "script": "s" }));
    let foreign = json!({ "script_id": foreign, "collection": "*" });
    assert_eq!(
        server
            .api("POST", "/apps/a/triggers/kv", Some(foreign))
            .status,
        404
    );
    let unknown = json!({ "script": "nobody", "collection": "*" });
    assert_eq!(
        server
            .api("POST", "/apps/a/triggers/kv", Some(unknown))
            .status,
        404
    );
    assert_eq!(
        server
            .api("POST", "/apps/a/triggers/mail", Some(json!({})))
            .status,
        404
    );
    assert_eq!(server.api("GET", "/triggers/nonsense", None).status, 404);
    let list = server.api("GET", "/apps/a/triggers", None).json();
    assert_eq!(list["items"], json!([]), "nothing was made");
    // A name is taken once; what is changed keeps the rest.
    let body = json!({ "kind": "kv", "script": "s", "collection": "*", "name": "all" });
    let made = server.api("POST", "/apps/a/triggers", Some(body));
    assert_eq!(made.status, 201, "{}", made.text());
    let made = made.json();
    assert_eq!(
        made["retry"]["attempts_max"], 3,
        "the instance's default, in the row"
    );
    let again = json!({ "script": "s", "collection": "x", "name": "all" });
    let taken = server.api("POST", "/apps/a/triggers/kv", Some(again));
    assert_eq!(
        (taken.status, taken.problem().as_str()),
        (409, "name_taken")
    );
    let path = format!("/triggers/{}", made["id"].as_str().unwrap());
    let change = json!({ "ops": ["delete"], "retry": { "base_ms": 5 } });
    let changed = server.api("PATCH", &path, Some(change)).json();
    assert_eq!(changed["filter"]["ops"], json!(["delete"]), "{changed}");
    assert_eq!(changed["retry"]["base_ms"], 5);
    assert_eq!(changed["retry"]["attempts_max"], 3);
    let misplaced = server.api("PATCH", &path, Some(json!({ "filter": {} })));
    assert_eq!(
        (misplaced.status, &misplaced.json()["field"]),
        (422, &json!("filter"))
    );
}
