//! What should not be sent, and what it gets.

use picloud_tests::{Engine, Options, Server, on_both_engines};
use serde_json::json;

on_both_engines!(
    a_body_over_the_limit_is_413,
    a_body_that_is_not_what_it_claims_is_400,
    odd_headers_are_carried_or_refused,
    odd_keys_and_values_are_refused_and_named,
    a_cursor_of_another_list_is_refused,
    an_app_that_is_full_says_503,
    no_name_in_a_path_has_a_nul,
    a_nul_in_a_body_is_kept_or_refused,
);

fn a_body_over_the_limit_is_413(engine: Engine) {
    let limit = [("PICLOUD_BODY_BYTES_MAX", "64KiB".to_owned())];
    let server = Server::start_with(
        engine,
        Options {
            environment: limit.to_vec(),
            ..Options::default()
        },
    );
    server.app("a").serve("s", "ctx.request.body.len()");
    let fits = server.call(
        "POST",
        "/s",
        &[("content-type", "text/plain")],
        Some(&[b'x'; 65_536]),
    );
    assert_eq!(fits.json(), json!(65_536));
    let refused = server.call(
        "POST",
        "/s",
        &[("content-type", "text/plain")],
        Some(&[b'x'; 65_537]),
    );
    assert_eq!(
        (refused.status, refused.problem().as_str()),
        (413, "body_too_large")
    );
}

fn a_body_that_is_not_what_it_claims_is_400(engine: Engine) {
    let server = Server::start(engine);
    server.app("a").serve("s", "1");
    for body in [
        &b"{\"a\": [1, 2"[..],
        b"\"\xff\xfe\"",
        b"nonsense",
        b"{} {}",
    ] {
        let answer = server.call("POST", "/s", &[], Some(body));
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (400, "malformed_request")
        );
    }
    // What is JSON, and of another type than it must be, names its field.
    for body in [json!({ "role": 1 }), json!({ "role": [] })] {
        let answer = server.api("POST", "/invitations", Some(body));
        assert_eq!(
            (answer.status, &answer.json()["field"]),
            (422, &json!("role")),
            "{}",
            answer.text()
        );
    }
    let gzip = [("content-encoding", "gzip")];
    assert_eq!(server.call("POST", "/s", &gzip, Some(b"{}")).status, 400);
    let cut = server.raw(b"POST /s HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n{}");
    assert!(cut.is_empty() || cut.starts_with("HTTP/1.1 400"), "{cut}");
}

fn odd_headers_are_carried_or_refused(engine: Engine) {
    let server = Server::start(engine);
    server
        .app("a")
        .serve("s", "ctx.request.headers_all(\"x-a\")");
    let twice =
        server.raw(b"GET /s HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nx-a: 2\r\nConnection: close\r\n\r\n");
    assert!(twice.ends_with("[\"1\",\"2\"]"), "{twice}");
    let huge = format!(
        "GET /s HTTP/1.1\r\nHost: h\r\nX-A: {}\r\n\r\n",
        "x".repeat(1_000_000)
    );
    assert!(server.raw(huge.as_bytes()).starts_with("HTTP/1.1 431"));
    let many: String = (0..500).map(|n| format!("X-{n}: 1\r\n")).collect();
    let answer = server.raw(format!("GET /s HTTP/1.1\r\nHost: h\r\n{many}\r\n").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let bytes = server.raw(b"GET /s HTTP/1.1\r\nHost: h\r\nX-A: \xff\r\nConnection: close\r\n\r\n");
    assert!(bytes.ends_with("[\"\u{ff}\"]"), "{bytes}");
    assert!(server.raw(b"NONSENSE\r\n\r\n").starts_with("HTTP/1.1 400"));
    let connect = server.raw(b"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n");
    assert!(connect.starts_with("HTTP/1.1 405"), "{connect}");
    assert_eq!(server.get("/s").status, 200);
}

fn odd_keys_and_values_are_refused_and_named(engine: Engine) {
    let limit = [("PICLOUD_KV_VALUE_BYTES_MAX", "64KiB".to_owned())];
    let server = Server::start_with(
        engine,
        Options {
            environment: limit.to_vec(),
            ..Options::default()
        },
    );
    let app = server.app("a");
    app.serve(
        "kv",
        r#"let b = ctx.request.body; let said = ();
           let s = "x"; while s.len() < b.bytes { s += s; }
           try { kv::collection(b.collection).set(if b.long_key { s } else { b.key }, s) } catch (e) { said = e; } said"#,
    );
    for (body, says) in [
        (
            json!({ "collection": "", "key": "k" }),
            "kv.set: the collection's name is empty",
        ),
        (
            json!({ "collection": "c", "key": "" }),
            "kv.set: the key is empty",
        ),
        (
            json!({ "collection": "c\u{0}", "key": "k" }),
            "kv.set: the collection's name has a control character",
        ),
        (
            json!({ "collection": "c", "key": "k", "bytes": 100_000 }),
            "kv.set: the value has 131074 bytes; the limit is 65536",
        ),
        (
            json!({ "collection": "c", "key": "k", "bytes": 1_000_000, "long_key": true }),
            "bytes; the limit is",
        ),
    ] {
        let mut body = body;
        for (name, value) in [("bytes", json!(1)), ("long_key", json!(false))] {
            if body[name].is_null() {
                body[name] = value;
            }
        }
        let answer = server.post("/kv", &body);
        assert!(answer.text().contains(says), "{body}: {}", answer.text());
    }
    assert_eq!(
        server.api("GET", "/apps/a/kv", None).json()["items"],
        json!([]),
        "nothing was written"
    );
    let put = |path: &str, body: &str| {
        let token = format!("Bearer {}", server.token);
        server.call(
            "PUT",
            &format!("/api/v1/apps/a/kv{path}"),
            &[("authorization", &token)],
            Some(body.as_bytes()),
        )
    };
    assert_eq!(
        put(&format!("/c/{}", "k".repeat(2000)), "1").json()["field"],
        "key"
    );
    assert_eq!(put("/c/k", "{").status, 400);
    let large = format!("\"{}\"", "x".repeat(70_000));
    assert_eq!(put("/c/k", &large).problem(), "body_too_large");
    assert_eq!(put("/c/a%2Fb", "{\"x\": [1]}").status, 204);
    assert_eq!(
        server.api("GET", "/apps/a/kv/c/a%2Fb", None).json(),
        json!({ "x": [1] })
    );
    assert_eq!(server.api("DELETE", "/apps/a/kv/c/a%2Fb", None).status, 204);
    assert_eq!(server.api("DELETE", "/apps/a/kv/c/a%2Fb", None).status, 404);
}

fn a_cursor_of_another_list_is_refused(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.serve(
        "fill",
        r#"for c in ["one", "two"] { let c = kv::collection(c); for i in 0..5 { c.set(`k${i}`, i); } }
           let page = kv::collection("one").list((), 2); let said = ();
           try { kv::collection("two").list(page.cursor) } catch (e) { said = e; }
           [page.entries.len(), said]"#,
    );
    let answer = server.get("/fill").json();
    assert_eq!(answer[0], 2);
    assert!(answer[1].as_str().unwrap().contains("cursor"), "{answer}");
    let page = server.api("GET", "/apps/a/kv/one?limit=2", None).json();
    let cursor = page["next_cursor"].as_str().unwrap();
    let next = server
        .api(
            "GET",
            &format!("/apps/a/kv/one?limit=2&cursor={cursor}"),
            None,
        )
        .json();
    assert_eq!(next["items"][0]["key"], "k2");
    let first = server.api("GET", "/apps/a/kv/two?limit=2&cursor=", None);
    assert_eq!(first.json()["items"][0]["key"], "k0", "{}", first.text());
    for cursor in [cursor, "garbage", "!!"] {
        let refused = server.api("GET", &format!("/apps/a/kv/two?cursor={cursor}"), None);
        assert_eq!(
            (refused.status, refused.json()["field"].clone()),
            (422, json!("cursor")),
            "{cursor}"
        );
    }
}

fn an_app_that_is_full_says_503(engine: Engine) {
    let limit = [("PICLOUD_EXECUTIONS_MAX", "2".to_owned())];
    let server = Server::start_with(
        engine,
        Options {
            environment: limit.to_vec(),
            ..Options::default()
        },
    );
    server.app("a").serve("s", "sleep(1); 1");
    let answers: Vec<_> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..6).map(|_| scope.spawn(|| server.get("/s"))).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let full: Vec<_> = answers
        .iter()
        .filter(|answer| answer.status == 503)
        .collect();
    assert_eq!(full.len(), 4);
    assert!(
        full.iter()
            .all(|answer| answer.problem() == "overloaded" && answer.headers["retry-after"] == "1")
    );
    assert_eq!(server.get("/s").status, 200);
}

fn no_name_in_a_path_has_a_nul(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.serve("s", "1");
    let made = |path: &str| server.api("GET", path, None).json()["items"][0]["id"].clone();
    let script = made("/apps/a/scripts").as_str().unwrap().to_owned();
    let mut calls = 0;
    for row in super::access::table("endpoints") {
        let Some(template) = row[0].strip_prefix("GET ") else {
            continue;
        };
        let parts: Vec<&str> = template.split('/').collect();
        let named = (0..parts.len()).filter(|at| parts[*at].starts_with('{'));
        for at in named {
            for odd in ["%00", "a%00b", "%ff", "%c0%80", "%ed%a0%80"] {
                let path = parts.iter().enumerate().map(|(n, part)| match *part {
                    _ if n == at => odd,
                    "{app}" => "a",
                    "{id}" => &script,
                    "{version}" => "1",
                    part if part.starts_with('{') => "x",
                    part => part,
                });
                let path = path.collect::<Vec<_>>().join("/");
                // A stream would not end.
                let method = match path.ends_with("/events") {
                    true => "HEAD",
                    false => "GET",
                };
                let answer = server.api(method, &path, None);
                assert!(
                    (400..500).contains(&answer.status),
                    "{path}: {}",
                    answer.text()
                );
                calls += 1;
            }
        }
    }
    assert!(calls > 100, "{calls}");
    for path in ["/%00", "/s/%00", "/s?a=%00", "/realtime/topics/%00"] {
        let status = server.get(path).status;
        assert!(status < 500, "{path}: {status}");
    }
}

fn a_nul_in_a_body_is_kept_or_refused(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    let odd = "a\u{0}b";
    app.script("echo", "1");
    for (method, path, body) in [
        (
            "POST",
            "/auth/login",
            json!({ "name": odd, "password": odd }),
        ),
        (
            "POST",
            "/auth/join",
            json!({ "token": odd, "name": "n", "password": odd }),
        ),
        (
            "POST",
            "/auth/reset",
            json!({ "token": odd, "password": odd }),
        ),
        (
            "POST",
            "/auth/password",
            json!({ "current": odd, "password": odd }),
        ),
        (
            "POST",
            "/auth/keys",
            json!({ "name": odd, "scopes": ["log:read"] }),
        ),
        (
            "POST",
            "/auth/keys",
            json!({ "name": "k", "scopes": ["log:read"], "apps": [odd] }),
        ),
        ("POST", "/apps", json!({ "slug": odd })),
        ("PATCH", "/apps/a", json!({ "name": odd })),
        ("POST", "/apps/a/domains", json!({ "host": odd })),
        (
            "POST",
            "/apps/a/scripts",
            json!({ "name": odd, "source": "1" }),
        ),
        ("POST", "/apps/a/scripts/validate", json!({ "source": odd })),
        (
            "POST",
            "/apps/a/routes",
            json!({ "script": odd, "method": "GET", "path": "/x" }),
        ),
        (
            "POST",
            "/apps/a/routes",
            json!({ "script": "echo", "method": odd, "path": "/x" }),
        ),
        (
            "POST",
            "/apps/a/routes",
            json!({ "script": "echo", "method": "GET", "path": odd }),
        ),
        (
            "POST",
            "/apps/a/triggers/kv",
            json!({ "script": "echo", "collection": odd, "name": "t" }),
        ),
        (
            "POST",
            "/apps/a/triggers/kv",
            json!({ "script": "echo", "collection": "c", "name": odd }),
        ),
        (
            "POST",
            "/apps/a/triggers/pubsub",
            json!({ "script": odd, "topic": "c", "name": "t" }),
        ),
        ("PUT", "/apps/a/secrets/S", json!({ "value": odd })),
        ("PUT", "/apps/a/members/owner", json!({ "role": odd })),
        (
            "POST",
            "/invitations",
            json!({ "role": "member", "apps": { odd: "viewer" } }),
        ),
        (
            "POST",
            "/apps/a/topics/t/messages",
            json!({ "message": { odd: odd } }),
        ),
        ("PUT", "/apps/a/kv/c/k", json!({ odd: odd })),
    ] {
        let answer = server.api(method, path, Some(body));
        assert!(answer.status < 500, "{method} {path}: {}", answer.text());
    }
    // What is JSON keeps it.
    assert_eq!(app.kv("c", "k"), json!({ odd: odd }));
    // A source, what a script says, throws, answers and keeps.
    let source = r#"let odd = ctx.request.body; log::info(odd); log::info("x", #{ odd: odd });
        kv::collection("c").set("said", odd); // NUL
        if ctx.request.method == "PUT" { throw odd; } odd"#;
    app.serve("say", &source.replace("NUL", odd));
    let said = server.post("/say", &json!(odd));
    assert_eq!(
        (said.status, said.json()),
        (200, json!(odd)),
        "{}",
        said.text()
    );
    let failed = server.call("PUT", "/say", &[], Some(json!(odd).to_string().as_bytes()));
    assert_eq!(failed.problem(), "script_failed");
    let found = app.last_execution();
    assert!(
        found["error"]["message"].as_str().unwrap().contains(odd),
        "{found}"
    );
    assert_eq!(app.kv("c", "said"), json!(odd));
}
