//! Idempotency keys of routes.

use picloud_tests::{Answer, App, Engine, Server, on_both_engines, wait_for};
use serde_json::json;

on_both_engines!(
    a_sync_call_with_the_same_key_gets_the_first_answer,
    an_async_call_with_the_same_key_runs_once,
    two_calls_at_once_make_one_execution,
    a_key_without_a_policy_is_a_header_like_any_other,
);

fn call(server: &Server, path: &str, key: &str, body: &str) -> Answer {
    server.call(
        "POST",
        path,
        &[("idempotency-key", key)],
        Some(body.as_bytes()),
    )
}

const COUNT: &str = r#"let c = kv::collection("count"); let n = c.get("n"); let n = if n == () { 1 } else { n + 1 };
    c.set("n", n); sleep(0.2); #{ statusCode: 201, headers: #{ "x-n": `${n}` }, body: #{ n: n } }"#;

fn counting<'s>(server: &'s Server, more: serde_json::Value) -> App<'s> {
    let app = server.app("a");
    app.script("count", COUNT);
    app.route_with("count", "POST /count", more);
    app
}

fn a_sync_call_with_the_same_key_gets_the_first_answer(engine: Engine) {
    let server = Server::start(engine);
    let app = counting(&server, json!({ "idempotency": { "ttl_s": 60 } }));
    let first = call(&server, "/count", "k1", "{}");
    assert_eq!((first.status, first.json()["n"].clone()), (201, json!(1)));
    let again = call(&server, "/count", "k1", "{}");
    assert_eq!((again.status, again.json()), (201, first.json()));
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(again.headers["x-n"], "1");
    assert_eq!(
        again.headers["x-execution-id"],
        first.headers["x-execution-id"]
    );
    let other = call(&server, "/count", "k1", r#"{"other": true}"#);
    assert_eq!(
        (other.status, other.problem().as_str()),
        (422, "idempotency_key_reused")
    );
    assert_eq!(call(&server, "/count", "k2", "{}").json()["n"], 2);
    assert_eq!(
        server.call("POST", "/count", &[], Some(b"{}")).json()["n"],
        3
    );
    let too_long = call(&server, "/count", &"k".repeat(256), "{}");
    assert_eq!(too_long.status, 400, "{}", too_long.text());
    assert_eq!(app.kv("count", "n"), 3);
}

fn an_async_call_with_the_same_key_runs_once(engine: Engine) {
    let server = Server::start(engine);
    let app = counting(
        &server,
        json!({ "dispatch_mode": "async", "idempotency": { "ttl_s": 60 } }),
    );
    let first = call(&server, "/count", "k", "{}");
    let again = call(&server, "/count", "k", "{}");
    assert_eq!((first.status, again.status), (202, 202));
    assert_eq!(again.json()["execution_id"], first.json()["execution_id"]);
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert!(!first.headers.contains_key("idempotency-replayed"));
    wait_for("the execution", || app.executions("").pop());
    assert_eq!(app.kv("count", "n"), 1);
}

fn two_calls_at_once_make_one_execution(engine: Engine) {
    let server = Server::start(engine);
    let app = counting(&server, json!({ "idempotency": { "keep_answer": false } }));
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..10)
            .map(|_| scope.spawn(|| call(&server, "/count", "k", "{}").status))
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(
        statuses.iter().filter(|status| **status == 201).count(),
        1,
        "{statuses:?}"
    );
    assert_eq!(
        statuses.iter().filter(|status| **status == 409).count(),
        9,
        "{statuses:?}"
    );
    let late = call(&server, "/count", "k", "{}");
    assert_eq!(
        (late.status, late.problem().as_str()),
        (409, "idempotency_answer_not_kept")
    );
    assert_eq!(app.kv("count", "n"), 1);
}

fn a_key_without_a_policy_is_a_header_like_any_other(engine: Engine) {
    let server = Server::start(engine);
    let app = counting(&server, json!({}));
    call(&server, "/count", "k", "{}");
    call(&server, "/count", "k", "{}");
    assert_eq!(app.kv("count", "n"), 2);
}
