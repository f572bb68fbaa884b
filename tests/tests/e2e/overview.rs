//! How apps do: what the dashboard shows at a glance and over a time.

use picloud_tests::{Engine, Options, Server, on_both_engines, wait_for};
use serde_json::{Value, json};

on_both_engines!(
    an_overview_counts_what_ran_and_what_waits,
    a_glance_shows_what_may_be_seen,
    a_request_is_matched_without_being_sent,
    a_collection_is_searched_by_prefix
);

fn an_overview_counts_what_ran_and_what_waits(engine: Engine) {
    let server = Server::start_with(engine, Options::default());
    let app = server.app("shop");
    app.script("fine", "#{ body: 1 }");
    app.script("broken", "throw 1");
    app.route("fine", "GET /fine");
    app.route("broken", "GET /broken");
    app.trigger(
        "kv",
        json!({ "script": "broken", "collection": "things", "name": "dies",
                "retry": { "attempts_max": 1, "base_ms": 1 } }),
    );
    for _ in 0..3 {
        assert_eq!(server.get("/fine").status, 200);
    }
    assert_eq!(server.get("/broken").status, 502);
    app.set("things", "k", json!(1));
    let seen = wait_for("the dead letter", || {
        let seen = server
            .api("GET", "/apps/shop/overview?steps=6", None)
            .json();
        (seen["unresolved_dead_letters"] == 1).then_some(seen)
    });
    assert_eq!(seen["executions"], 5, "{seen}");
    assert_eq!(seen["failed"], 2);
    assert_eq!(seen["truncated"], false);
    assert_eq!(
        (&seen["waiting"], &seen["oldest_due_at"]),
        (&json!(0), &Value::Null)
    );
    assert!(seen["p50_us"].as_u64() <= seen["p99_us"].as_u64());
    let steps = seen["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 6);
    // All of it was just now.
    let last = steps.last().unwrap();
    assert_eq!(last["by_outcome"], json!({ "answered": 3, "threw": 2 }));
    assert_eq!(steps[0]["executions"], 0);
    assert_eq!(steps[0]["p50_us"], Value::Null);
    assert_eq!(last["waiting"], 0);

    // What waits now is in the last step.
    app.trigger(
        "kv",
        json!({ "script": "broken", "collection": "patient", "name": "waits",
                "retry": { "attempts_max": 2, "base_ms": 3_600_000 } }),
    );
    app.set("patient", "k", json!(1));
    let waits = wait_for("the delivery to wait", || {
        let seen = server
            .api("GET", "/apps/shop/overview?steps=6", None)
            .json();
        let failed = seen["failed"] == 3 && seen["waiting"] == 1;
        failed.then(|| seen["steps"][5].clone())
    });
    assert_eq!(
        (&waits["waiting"], &waits["overdue_us"]),
        (&json!(1), &json!(0))
    );

    let since = "since=2020-01-01T00:00:00Z&until=2020-01-02T00:00:00Z";
    let before = server.api("GET", &format!("/apps/shop/overview?{since}"), None);
    assert_eq!(before.json()["executions"], 0);
    for wrong in [
        "steps=0",
        "steps=201",
        "since=yesterday",
        "since=2999-01-01T00:00:00Z",
    ] {
        let answer = server.api("GET", &format!("/apps/shop/overview?{wrong}"), None);
        assert_eq!(answer.problem(), "invalid_request", "{wrong}");
        assert_eq!(answer.json()["field"], wrong.split('=').next().unwrap());
    }
}

fn a_glance_shows_what_may_be_seen(engine: Engine) {
    let server = Server::start_with(engine, Options::default());
    let shop = server.app("shop");
    server.app("hidden");
    shop.script("fine", "#{ body: 1 }");
    shop.route("fine", "GET /fine");
    assert_eq!(server.get("/fine").status, 200);
    let glance = |token: &str| {
        wait_for("the execution to be written", || {
            let answer = server.api_as(token, "GET", "/overview", None).json();
            let items = answer["items"].as_array().unwrap().clone();
            (items[0]["executions"] == 1).then_some(items)
        })
    };
    let all = glance(&server.token);
    assert_eq!(all.len(), 2, "{all:?}");
    assert_eq!(all[0]["unresolved_dead_letters"], 0);
    let (_, viewer) = server.join("viewer", "member", json!({ "shop": "viewer" }));
    let seen = glance(&viewer);
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(seen[0]["failed"], 0);
    assert_eq!(seen[0]["unresolved_dead_letters"], Value::Null);
}

fn a_request_is_matched_without_being_sent(engine: Engine) {
    let server = Server::start_with(engine, Options::default());
    let app = server.app("shop");
    app.script("show", "throw `it ran`");
    app.route("show", "GET /orders/{id}");
    app.route("show", "GET /files/{*rest}");
    let matched = |query: &str| {
        let path = format!("/apps/shop/routes/match?{query}");
        let answer = server.api("GET", &path, None);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    };
    let found = matched("path=/orders/7");
    assert_eq!(found["route"]["path"], "/orders/{id}");
    assert_eq!(found["params"], json!({ "id": "7" }));
    assert_eq!(matched("path=/files/a/b")["rest"], "a/b");
    let other = matched("method=post&path=/orders/7");
    assert_eq!(
        (&other["route"], &other["allow"]),
        (&Value::Null, &json!(["GET"]))
    );
    assert_eq!(matched("path=/nothing")["allow"], json!([]));
    assert!(app.executions("").is_empty());
}

fn a_collection_is_searched_by_prefix(engine: Engine) {
    let server = Server::start_with(engine, Options::default());
    let app = server.app("shop");
    for key in ["a", "user:1", "user:2", "user:é", "usher", "z"] {
        app.set("people", key, json!(1));
    }
    let keys = |query: &str| -> (Vec<String>, Value) {
        let path = format!("/apps/shop/kv/people?{query}");
        let page = server.api("GET", &path, None).json();
        let keys = page["items"].as_array().unwrap().iter();
        let keys = keys.map(|entry| entry["key"].as_str().unwrap().to_owned());
        (keys.collect(), page["next_cursor"].clone())
    };
    assert_eq!(keys("prefix=user:").0, ["user:1", "user:2", "user:é"]);
    assert_eq!(keys("").0.len(), 6);
    assert_eq!(keys("prefix=none").0, Vec::<String>::new());
    let (first, cursor) = keys("prefix=us&limit=3");
    assert_eq!(first, ["user:1", "user:2", "user:é"]);
    let cursor = cursor.as_str().expect("there is one more");
    let (rest, end) = keys(&format!("prefix=us&limit=3&cursor={cursor}"));
    assert_eq!((rest, end), (vec!["usher".to_owned()], Value::Null));
}
