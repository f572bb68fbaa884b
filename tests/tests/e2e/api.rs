//! The admin API.

use picloud_tests::{Engine, Server, on_both_engines};
use serde_json::json;

on_both_engines!(
    everything_needs_a_token,
    i12_secrets_appear_in_no_answer_and_no_log,
    another_method_is_405_with_those_that_there_are,
    apps_are_found_by_id_and_by_slug,
    a_script_that_does_not_parse_is_refused_with_its_place,
    a_script_is_changed_only_from_the_version_that_was_read,
    executions_are_filtered_and_paged,
    a_script_can_be_run_directly,
    a_draft_is_run_and_deploys_nothing,
    the_instance_tells_how_it_is,
    what_is_wrong_with_a_body_is_named,
    a_key_of_any_name_is_reached_by_the_query,
);

fn everything_needs_a_token(engine: Engine) {
    let server = Server::start(engine);
    for (method, path) in [
        ("GET", "/apps"),
        ("POST", "/apps"),
        ("GET", "/apps/a/kv/c/k"),
        ("GET", "/executions/x"),
        ("POST", "/scripts/x/execute"),
    ] {
        for authorization in ["", "Bearer ", "Bearer pcs_nonsense", "Basic b3duZXI6eA=="] {
            let path = format!("/api/v1{path}");
            let answer = server.call(method, &path, &[("authorization", authorization)], None);
            assert_eq!(
                (answer.status, answer.problem().as_str()),
                (401, "unauthorized"),
                "{method} {path}"
            );
        }
    }
    let wrong = server.post(
        "/api/v1/auth/login",
        &json!({ "name": "owner", "password": "wrong" }),
    );
    let nobody = server.post(
        "/api/v1/auth/login",
        &json!({ "name": "nobody", "password": "wrong" }),
    );
    assert_eq!((wrong.status, nobody.status), (401, 401));
    assert_eq!(
        wrong.json(),
        nobody.json(),
        "the answer must not tell whether a user exists"
    );
    assert_eq!(server.api("GET", "/auth/me", None).json()["role"], "owner");
    assert_eq!(server.api("POST", "/auth/logout", None).status, 204);
    assert_eq!(server.api("GET", "/auth/me", None).status, 401);
    assert_eq!(server.get("/api/v1/nothing").problem(), "unknown_path");
}

fn i12_secrets_appear_in_no_answer_and_no_log(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.serve("boom", "throw ctx.request.body.secret");
    let answer = server.post("/boom", &json!({ "secret": "s3cr3t-payload" }));
    assert_eq!(answer.status, 502);
    assert!(
        !answer.text().contains("s3cr3t"),
        "what a script throws is not for its callers"
    );
    let me = server.api("GET", "/auth/me", None).text();
    assert!(!me.contains("argon2") && !me.contains("hash"), "{me}");
    let log = server.log();
    for secret in [server.password(), server.token.as_str(), "s3cr3t"] {
        assert!(!log.contains(secret), "{log}");
    }
}

fn another_method_is_405_with_those_that_there_are(engine: Engine) {
    let server = Server::start(engine);
    for (method, path, allow) in [
        ("PUT", "/apps", "GET, HEAD, POST"),
        ("POST", "/auth/me", "GET, HEAD"),
        ("GET", "/auth/login", "POST"),
    ] {
        let answer = server.api(method, path, None);
        assert_eq!(answer.problem(), "method_not_allowed", "{method} {path}");
        assert_eq!(answer.headers["allow"], allow, "{method} {path}");
    }
}

fn apps_are_found_by_id_and_by_slug(engine: Engine) {
    let server = Server::start(engine);
    server.app("first");
    let app = server.api("GET", "/apps/first", None).json();
    let by_id = server
        .api(
            "GET",
            &format!("/apps/{}", app["id"].as_str().unwrap()),
            None,
        )
        .json();
    assert_eq!(app, by_id);
    assert_eq!(app["is_default"], true);
    let taken = server.api("POST", "/apps", Some(json!({ "slug": "first" })));
    assert_eq!(
        (taken.status, taken.problem().as_str()),
        (409, "slug_taken")
    );
    let renamed = server.api(
        "PATCH",
        "/apps/first",
        Some(json!({ "slug": "second", "name": "Two" })),
    );
    assert_eq!(
        (renamed.status, renamed.json()["name"].clone()),
        (200, json!("Two"))
    );
    assert_eq!(server.api("GET", "/apps/first", None).status, 404);
    for (slug, _) in [("", 0), ("Big", 0), ("a b", 0), ("-a", 0)] {
        let refused = server.api("POST", "/apps", Some(json!({ "slug": slug })));
        assert_eq!(
            (refused.status, refused.json()["field"].clone()),
            (422, json!("slug")),
            "{slug}"
        );
    }
}

fn a_script_that_does_not_parse_is_refused_with_its_place(engine: Engine) {
    let server = Server::start(engine);
    server.app("a");
    let body = json!({ "name": "s", "source": "let x = 1;\nlet y = ;\n" });
    let refused = server.api("POST", "/apps/a/scripts", Some(body.clone()));
    assert_eq!(
        (refused.status, refused.problem().as_str()),
        (422, "invalid_source")
    );
    assert_eq!(refused.json()["diagnostics"][0]["line"], 2);
    assert_eq!(refused.json()["diagnostics"][0]["column"], 9);
    let found = server.api(
        "POST",
        "/apps/a/scripts/validate",
        Some(json!({ "source": body["source"] })),
    );
    assert_eq!(found.json()["diagnostics"], refused.json()["diagnostics"]);
    let fine = server.api(
        "POST",
        "/apps/a/scripts/validate",
        Some(json!({ "source": "1" })),
    );
    assert_eq!(fine.json(), json!({ "diagnostics": [] }));
}

fn a_script_is_changed_only_from_the_version_that_was_read(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    let id = app.script("s", "1");
    app.route("s", "GET /s");
    let path = format!("/scripts/{id}");
    let change = |version: u32, source: &str| {
        server.api(
            "PATCH",
            &path,
            Some(json!({ "version": version, "source": source })),
        )
    };
    let second = change(1, "2");
    assert_eq!(
        (second.status, second.json()["version"].clone()),
        (200, json!(2))
    );
    assert_eq!(
        server.get("/s").json(),
        json!(2),
        "the new version serves at once"
    );
    let stale = change(1, "3");
    assert_eq!(
        (stale.status, stale.problem().as_str()),
        (409, "version_conflict")
    );
    assert_eq!(stale.json()["current_version"], 2);
    assert_eq!(change(2, "let").status, 422);
    let missing = server.api("PATCH", &path, Some(json!({ "source": "3" })));
    assert_eq!(
        (missing.status, missing.json()["field"].clone()),
        (422, json!("version"))
    );
    let versions = server.api("GET", &format!("{path}/versions"), None).json();
    assert_eq!(versions["items"].as_array().unwrap().len(), 2);
    assert_eq!(
        server
            .api("GET", &format!("{path}/versions/1"), None)
            .json()["source"],
        "1"
    );
    assert_eq!(
        server
            .api("GET", &format!("{path}/versions/9"), None)
            .status,
        404
    );
    let taken = server.api(
        "POST",
        "/apps/a/scripts",
        Some(json!({ "name": "s", "source": "1" })),
    );
    assert_eq!(
        (taken.status, taken.problem().as_str()),
        (409, "name_taken")
    );
    let limits = json!({ "version": 2, "limits": { "fuel": 1_000_000_000_000_000_u64 } });
    let refused = server.api("PATCH", &path, Some(limits));
    assert_eq!(
        (refused.status, refused.json()["field"].clone()),
        (422, json!("limits.fuel"))
    );
}

fn executions_are_filtered_and_paged(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.serve("fine", "1");
    app.serve("fails", "throw \"no\"");
    for _ in 0..5 {
        server.get("/fine");
        server.get("/fails");
    }
    assert_eq!(app.executions("limit=200").len(), 10);
    let threw = app.executions("outcome=threw");
    assert!(
        threw.len() == 5 && threw.iter().all(|e| e["error"]["message"] == "no"),
        "{threw:?}"
    );
    let mut cursor = String::new();
    let mut seen = Vec::new();
    loop {
        let page = server
            .api("GET", &format!("/apps/a/executions?limit=3{cursor}"), None)
            .json();
        seen.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|e| e["id"].to_string()),
        );
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let mut sorted = seen.clone();
    sorted.sort();
    sorted.dedup();
    sorted.reverse();
    assert_eq!(seen, sorted, "newest first, each once");
    assert_eq!(seen.len(), 10);
    for bad in [
        "outcome=odd",
        "limit=0",
        "limit=x",
        "cursor=x",
        "since=yesterday",
        "script_id=1",
        "colour=red",
    ] {
        let refused = server.api("GET", &format!("/apps/a/executions?{bad}"), None);
        let field = bad.split('=').next().unwrap();
        assert_eq!(
            (refused.status, refused.json()["field"].clone()),
            (422, json!(field)),
            "{bad}: {}",
            refused.text()
        );
    }
}

fn a_draft_is_run_and_deploys_nothing(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    let script = app.script("live", r#"#{ now: "live" }"#);
    app.route("live", "GET /live");
    let path = format!("/scripts/{script}");
    let before = server.api("GET", &path, None);
    let execute = format!("{path}/execute");
    let run = |source: &str| {
        let body = json!({ "source": source, "body": { "n": 7 } });
        let answer = server.api("POST", &execute, Some(body));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    };
    // It has all that is the script's.
    let draft = r#"[ctx.request.body.n, ctx.script_name, ctx.script_version]"#;
    let done = run(draft);
    assert_eq!(done["response"]["body"], r#"[7,"live",0]"#, "{done}");
    // Twice at once and one after the other: none is kept for another.
    assert_eq!(run("1")["response"]["body"], "1");
    assert_eq!(run("2")["response"]["body"], "2");
    let broken = run("let x = 1;\nlet y = ;");
    assert_eq!(broken["outcome"], "invalid_source");
    assert_eq!(broken["error"]["line"], 2, "{broken}");
    assert_eq!(broken["response"], json!(null));

    let after = server.api("GET", &path, None);
    assert_eq!(after.json(), before.json());
    assert_eq!(after.headers["etag"], before.headers["etag"]);
    let versions = server.api("GET", &format!("{path}/versions"), None).json();
    assert_eq!(versions["items"].as_array().unwrap().len(), 1);
    assert_eq!(server.get("/live").text(), r#"{"now":"live"}"#);
    let without = server.api("POST", &execute, Some(json!({}))).json();
    assert_eq!(without["response"]["body"], r#"{"now":"live"}"#);
    let kept = app.executions("invocation_type=execute");
    let of_version = |version: u32| {
        let is_it = |one: &&serde_json::Value| one["script_version"] == version;
        kept.iter().filter(is_it).count()
    };
    assert_eq!((of_version(0), of_version(1)), (4, 1));

    // Who may not deploy may not run a draft; who ran one is written down.
    let (_, viewer) = server.join("eve", "member", json!({ "a": "viewer" }));
    let body = json!({ "source": "1" });
    let refused = server.api_as(&viewer, "POST", &execute, Some(body.clone()));
    assert_eq!(refused.problem(), "forbidden");
    let (_, editor) = server.join("ada", "member", json!({ "a": "editor" }));
    assert_eq!(
        server.api_as(&editor, "POST", &execute, Some(body)).status,
        200
    );
    let audit = server.api("GET", "/apps/a/audit?limit=200", None).json();
    let acts = audit["items"].as_array().unwrap().iter();
    let acts = acts.filter(|act| act["action"] == "POST /scripts/{id}/execute");
    let acts: Vec<_> = acts
        .map(|act| (act["who"].as_str(), act["status"].as_u64()))
        .collect();
    assert_eq!(
        acts[..2],
        [(Some("ada"), Some(200)), (Some("eve"), Some(403))]
    );

    let long = "x".repeat(1024 * 1024 + 1);
    let refused = server.api("POST", &execute, Some(json!({ "source": long })));
    assert_eq!(
        (refused.status, &refused.json()["field"]),
        (422, &json!("source"))
    );
}

fn a_script_can_be_run_directly(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    let id = app.script(
        "s",
        "log::warn(\"w\"); #{ statusCode: 201, body: [ctx.request.body, ctx.invocation_type] }",
    );
    let path = format!("/scripts/{id}/execute");
    let done = server
        .api("POST", &path, Some(json!({ "body": { "a": 1 } })))
        .json();
    assert_eq!(done["outcome"], "answered");
    assert_eq!(done["response"]["status"], 201);
    assert_eq!(done["response"]["body"], r#"[{"a":1},"execute"]"#);
    assert_eq!(done["logs"][0]["level"], "warn");
    let kept = server.api(
        "GET",
        &format!("/executions/{}", done["execution_id"].as_str().unwrap()),
        None,
    );
    assert_eq!(kept.json()["invocation_type"], "execute");
    let broken = app.script("b", "let x = 1;\nfn f() { throw \"deep\" }\nf()");
    let done = server
        .api(
            "POST",
            &format!("/scripts/{broken}/execute"),
            Some(json!({})),
        )
        .json();
    assert_eq!(
        (&done["outcome"], &done["response"]),
        (&json!("threw"), &json!(null))
    );
    assert_eq!(
        done["error"],
        json!({ "message": "deep", "line": 2, "column": 10, "calls": ["f"] })
    );
}

fn the_instance_tells_how_it_is(engine: Engine) {
    let server = Server::start(engine);
    server.app("a").serve("s", "1");
    server.get("/s");
    assert_eq!(server.get("/healthz").json()["status"], "ok");
    assert_eq!(server.get("/readyz").json()["status"], "ready");
    let version = server.get("/version").json();
    for part in ["product", "sdk", "api", "schema", "wit"] {
        assert!(!version[part].is_null(), "{version}");
    }
    let metrics = server.get("/metrics").text();
    assert!(
        metrics.contains("picloud_executions_total{outcome=\"answered\"} 1"),
        "{metrics}"
    );
    assert!(server.get("/admin/").text().contains("PiCloud"));
    // Whoever visits an app learns no more than that something is there.
    server.api(
        "POST",
        "/apps",
        Some(json!({ "slug": "b", "hosts": ["b.test"] })),
    );
    let on_app = |path: &str| server.call("GET", path, &[("host", "b.test")], None);
    for path in ["/version", "/metrics"] {
        assert_eq!(on_app(path).status, 404, "{path}");
    }
    for (path, body) in [
        ("/healthz", json!({ "status": "ok" })),
        ("/readyz", json!({ "status": "ready" })),
    ] {
        let answer = on_app(path);
        assert_eq!((answer.status, answer.json()), (200, body));
    }
}

fn what_is_wrong_with_a_body_is_named(engine: Engine) {
    let server = Server::start(engine);
    server.app("a");
    for (body, status, field) in [
        ("{\"slug\": ", 400, json!(null)),
        ("", 400, json!(null)),
        ("{\"slug\": 1}", 422, json!("slug")),
        ("{}", 422, json!("slug")),
        ("{\"slug\": \"x\", \"colour\": 1}", 422, json!("colour")),
        (
            "{\"slug\": \"x\", \"hosts\": [\"http://x\"]}",
            422,
            json!("hosts[0]"),
        ),
    ] {
        let token = format!("Bearer {}", server.token);
        let answer = server.call(
            "POST",
            "/api/v1/apps",
            &[("authorization", &token)],
            Some(body.as_bytes()),
        );
        assert_eq!(
            (answer.status, answer.json()["field"].clone()),
            (status, field),
            "{body}: {}",
            answer.text()
        );
    }
}

/// Of a path, browsers take `.` and `..` out, however they are written.
fn a_key_of_any_name_is_reached_by_the_query(engine: Engine) {
    let server = Server::start(engine);
    server.app("a");
    for (collection, key) in [
        (".", "%2E%2E"),
        ("%2e%2E", "."),
        ("c", "%3Fa%26b%3D%23%2F+%25"),
        ("a%2Fb", "%C3%A4"),
    ] {
        let path = format!("/apps/a/kv-value?collection={collection}&key={key}");
        assert_eq!(server.api("GET", &path, None).status, 404);
        let token = format!("Bearer {}", server.token);
        let put = |body: &[u8], seen: &str| {
            let headers = [("authorization", token.as_str()), ("if-match", seen)];
            let headers = &headers[..if seen.is_empty() { 1 } else { 2 }];
            server.call("PUT", &format!("/api/v1{path}"), headers, Some(body))
        };
        assert_eq!(put(b"[10.0]", "").status, 204);
        let audit = server.api("GET", "/audit?limit=1", None).json();
        let entry = &audit["items"][0];
        assert_eq!(entry["action"], "PUT /apps/{app}/kv-value");
        let target = entry["target"].as_str().unwrap();
        assert!(target.ends_with(&path), "{target}");
        let shown = server.api("GET", &path, None);
        assert_eq!((shown.status, shown.text().as_str()), (200, "[10.0]"));
        let tag = shown.headers["etag"].to_str().unwrap();
        assert_eq!(put(b"2", tag).status, 204);
        assert_eq!(put(b"3", tag).status, 412);
        let list = format!("/apps/a/kv-entries?collection={collection}");
        let listed = server.api("GET", &list, None).json();
        assert_eq!(listed["items"][0]["value"], 2, "{listed}");
        let none = server.api("GET", &format!("{list}&prefix=zz"), None).json();
        assert_eq!(none["items"], json!([]));
        assert_eq!(server.api("DELETE", &path, None).status, 204);
        assert_eq!(server.api("DELETE", &path, None).status, 404);
    }
    for (path, field) in [
        ("/apps/a/kv-value?collection=c", "key"),
        ("/apps/a/kv-value?key=k", "collection"),
        ("/apps/a/kv-value?collection=c&key=", "key"),
        ("/apps/a/kv-entries", "collection"),
        ("/apps/a/kv-value?collection=c&key=k&more=1", "more"),
    ] {
        let refused = server.api("GET", path, None);
        assert_eq!(refused.status, 422, "{path}: {}", refused.text());
        assert_eq!(refused.json()["field"], field, "{path}");
    }
}
