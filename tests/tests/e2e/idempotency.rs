//! Idempotency keys of routes.

use picloud_tests::{Answer, App, Engine, Options, Server, on_both_engines, wait_for};
use serde_json::json;

on_both_engines!(
    a_sync_call_with_the_same_key_gets_the_first_answer,
    an_async_call_with_the_same_key_runs_once,
    two_calls_at_once_make_one_execution,
    a_key_without_a_policy_is_a_header_like_any_other,
    nobody_gets_an_answer_or_a_cookie_of_another_caller,
    callers_without_credentials_share_their_keys,
    a_call_that_never_began_does_not_hold_its_key,
    a_call_that_found_no_room_does_not_hold_its_key,
    callers_and_requests_are_compared_by_their_bytes,
    a_tenants_host_has_keys_of_its_own,
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
    let first = call(&server, "/count", "k", "{}");
    call(&server, "/count", "k", "{}");
    assert_eq!(app.kv("count", "n"), 2);
    // And whoever relies on it can see that.
    assert_eq!(first.headers["idempotency-ignored"], "true");
    let without = server.call("POST", "/count", &[], Some(b"{}"));
    assert!(!without.headers.contains_key("idempotency-ignored"));
}

fn nobody_gets_an_answer_or_a_cookie_of_another_caller(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script(
        "who",
        r#"let who = ctx.request.headers.authorization;
           if who == () { who = ctx.request.headers.cookie }
           #{ statusCode: 200, headers: #{ "set-cookie": `session=${who}`, "x-who": `${who}` }, body: who }"#,
    );
    app.route_with(
        "who",
        "POST /who",
        json!({ "idempotency": { "ttl_s": 60 } }),
    );
    let call = |headers: &[(&str, &str)]| {
        let mut all = vec![("idempotency-key", "1")];
        all.extend(headers);
        server.call("POST", "/who", &all, Some(b"{}"))
    };
    for caller in [
        ("authorization", "Bearer a"),
        ("authorization", "Bearer b"),
        ("cookie", "session=c"),
        ("cookie", "session=d"),
    ] {
        let first = call(&[caller]);
        assert!(!first.headers.contains_key("idempotency-replayed"));
        assert_eq!(first.json(), caller.1);
        assert!(first.headers.contains_key("set-cookie"));
        let again = call(&[caller]);
        assert_eq!(again.headers["idempotency-replayed"], "true");
        assert_eq!(again.json(), caller.1);
        assert_eq!(again.headers["x-who"], caller.1);
        assert!(!again.headers.contains_key("set-cookie"), "{caller:?}");
    }
}

/// As docs/api.md says: a session of an app's own in another header is none that counts, and neither
/// does an address.
fn callers_without_credentials_share_their_keys(engine: Engine) {
    let environment = vec![("PICLOUD_TRUSTED_PROXIES", "127.0.0.1".to_owned())];
    let options = Options {
        environment,
        ..Options::default()
    };
    let server = Server::start_with(engine, options);
    let app = counting(&server, json!({ "idempotency": { "ttl_s": 60 } }));
    let call = |headers: &[(&str, &str)]| {
        let mut all = vec![("idempotency-key", "k")];
        all.extend(headers);
        let answer = server.call("POST", "/count", &all, Some(b"{}"));
        assert_eq!(answer.status, 201, "{}", answer.text());
        let is_replayed = answer.headers.contains_key("idempotency-replayed");
        (answer.json()["n"].clone(), is_replayed)
    };
    let session = ("x-session", "a");
    assert_eq!(
        call(&[session, ("x-forwarded-for", "203.0.113.1")]),
        (json!(1), false)
    );
    for same in [
        &[("x-session", "b"), ("x-forwarded-for", "203.0.113.1")][..],
        &[session, ("x-forwarded-for", "203.0.113.2")],
        &[],
    ] {
        assert_eq!(call(same), (json!(1), true), "{same:?}");
    }
    for (n, credential) in [
        ("authorization", "Bearer a"),
        ("cookie", "session=a"),
        ("x-api-key", "a"),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(
            call(&[session, credential]),
            (json!(n + 2), false),
            "{credential:?}"
        );
        assert_eq!(
            call(&[("x-session", "b"), credential]),
            (json!(n + 2), true)
        );
    }
    assert_eq!(app.kv("count", "n"), 4);
}

fn a_call_that_never_began_does_not_hold_its_key(engine: Engine) {
    let server = Server::start(engine);
    counting(&server, json!({ "idempotency": { "ttl_s": 60 } }));
    let code = match engine {
        Engine::Sqlite => "cast('let x = ;' as blob)",
        Engine::Postgres => "convert_to('let x = ;', 'UTF8')",
    };
    server.sql(&format!("update script_versions set code = {code}"));
    let first = call(&server, "/count", "k", "{}");
    assert_eq!(
        (first.status, first.problem().as_str()),
        (422, "invalid_source"),
        "{}",
        first.text()
    );
    let list = server.api("GET", "/apps/a/scripts?name=count", None).json();
    let path = format!("/scripts/{}", list["items"][0]["id"].as_str().unwrap());
    let mended = json!({ "version": 1, "source": COUNT });
    assert_eq!(server.api("PATCH", &path, Some(mended)).status, 200);
    let second = call(&server, "/count", "k", "{}");
    assert_eq!((second.status, second.json()["n"].clone()), (201, json!(1)));
}

fn a_call_that_found_no_room_does_not_hold_its_key(engine: Engine) {
    let environment = vec![("PICLOUD_EXECUTIONS_MAX", "1".to_owned())];
    let options = Options {
        environment,
        ..Options::default()
    };
    let server = Server::start_with(engine, options);
    let app = counting(&server, json!({ "idempotency": { "ttl_s": 60 } }));
    app.serve(
        "stay",
        r#"let c = kv::collection("stay"); c.set("begun", true);
           while !c.has("may-go") { sleep(0.05); }"#,
    );
    std::thread::scope(|scope| {
        let staying = scope.spawn(|| server.get("/stay").status);
        wait_for("the only place to be taken", || {
            (app.kv("stay", "begun") == true).then_some(())
        });
        // Whoever tries again is told the same again, not that the key is taken.
        for _ in 0..2 {
            let refused = call(&server, "/count", "k", "{}");
            let problem = refused.problem();
            assert_eq!(
                (refused.status_in_an_outage(), &*problem),
                (503, "overloaded")
            );
            assert!(!refused.headers.contains_key("idempotency-replayed"));
        }
        app.set("stay", "may-go", json!(true));
        assert_eq!(staying.join().unwrap(), 200);
    });
    // The place is given back after the answer.
    let answer = wait_for("room", || {
        let answer = call(&server, "/count", "k", "{}");
        (answer.status != 503).then_some(answer)
    });
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!(answer.json()["n"], 1);
    assert!(!answer.headers.contains_key("idempotency-replayed"));
    let again = call(&server, "/count", "k", "{}");
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(app.kv("count", "n"), 1);
}

fn callers_and_requests_are_compared_by_their_bytes(engine: Engine) {
    let server = Server::start(engine);
    counting(&server, json!({ "idempotency": { "ttl_s": 60 } }));
    // Clients of another century write Latin-1: neither of the two is UTF-8.
    let n = |query: &[u8], header: &[u8]| {
        let request = [
            &b"POST /count?"[..],
            query,
            b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n",
            header,
            b"\r\nContent-Length: 0\r\n\r\n",
        ];
        let answer = server.raw(&request.concat());
        let status = answer.split(' ').nth(1).unwrap().to_owned();
        let n = answer
            .split("x-n: ")
            .nth(1)
            .map(|rest| rest[..1].to_owned());
        (status, n)
    };
    let ran = |n: &str| ("201".to_owned(), Some(n.to_owned()));
    let with = |header: &[u8]| [b"Idempotency-Key: k\r\n", header].concat();
    assert_eq!(n(b"", &with(b"Cookie: sid=\xe9")), ran("1"));
    assert_eq!(n(b"", &with(b"Cookie: sid=\xe8")), ran("2"));
    assert_eq!(n(b"", &with(b"Cookie: sid=\xe9")), ran("1"));
    assert_eq!(n(b"", &with(b"X-Api-Key: \xff\x80")), ran("3"));
    assert_eq!(n(b"", &with(b"X-Api-Key: \xfe\x81")), ran("4"));
    assert_eq!(n(b"", b"Idempotency-Key: \xe9"), ran("5"));
    assert_eq!(n(b"", b"Idempotency-Key: \xe8"), ran("6"));
    assert_eq!(n(b"name=J%F6rg", b"Idempotency-Key: q"), ran("7"));
    let refused = ("422".to_owned(), None);
    assert_eq!(n(b"name=J%FCrg", b"Idempotency-Key: q"), refused);
    let typed = |ty: &str| format!("Idempotency-Key: t\r\nContent-Type: {ty}");
    assert_eq!(n(b"", typed("text/plain").as_bytes()), ran("8"));
    assert_eq!(n(b"", typed("application/xml").as_bytes()), refused);
}

fn a_tenants_host_has_keys_of_its_own(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("wild");
    let hosts = json!({ "hosts": ["*.tenants.test"] });
    let claimed = server.api("PATCH", "/apps/wild", Some(hosts));
    assert_eq!(claimed.status, 200, "{}", claimed.text());
    app.script("who", "#{ tenant: ctx.request.header(\"host\") }");
    let policy = json!({ "host": "*.tenants.test", "idempotency": { "ttl_s": 60 } });
    app.route_with("who", "POST /order", policy);
    for tenant in [
        "acme.tenants.test",
        "globex.tenants.test",
        "acme.tenants.test",
    ] {
        let headers = [("host", tenant), ("idempotency-key", "order-1")];
        let answer = server.call("POST", "/order", &headers, Some(b"{}"));
        assert_eq!(answer.json()["tenant"], tenant, "{}", answer.text());
    }
}
