//! The way of a request, from upload to answer.

use std::time::{Duration, Instant};

use picloud_tests::{Engine, Server, on_both_engines, wait_for};
use serde_json::json;

on_both_engines!(
    a_script_answers_and_what_it_wrote_is_there,
    an_async_route_answers_202_and_runs_after,
    the_request_reaches_the_script_as_it_was,
    i01_two_apps_never_see_each_others_keys,
    i11_nothing_survives_from_one_execution_to_the_next,
    i13_a_public_route_runs_as_nobody,
    the_examples_work,
    a_node_that_has_nothing_to_do_stays_ready,
);

/// Longer than a picture of the database may be old.
const IDLE: Duration = Duration::from_secs(12);

fn a_node_that_has_nothing_to_do_stays_ready(engine: Engine) {
    let server = Server::start(engine);
    let begun = Instant::now();
    while begun.elapsed() < IDLE {
        let ready = server.get("/readyz");
        assert_eq!(ready.status, 200, "{:?}: {}", begun.elapsed(), ready.text());
        std::thread::sleep(Duration::from_millis(250));
    }
}

fn a_script_answers_and_what_it_wrote_is_there(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("shop");
    app.script(
        "add",
        r#"let c = kv::collection("items"); c.set(ctx.request.body.id, ctx.request.body);
           log::info("added", #{ id: ctx.request.body.id }); #{ statusCode: 201, body: #{ ok: true } }"#,
    );
    app.route("add", "POST /items");
    let answer = server.post("/items", &json!({ "id": "a", "price": 2.5 }));
    assert_eq!((answer.status, answer.json()), (201, json!({ "ok": true })));
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(app.kv("items", "a"), json!({ "id": "a", "price": 2.5 }));
    let execution = app.last_execution();
    assert_eq!(
        execution["id"],
        answer.headers["x-execution-id"].to_str().unwrap()
    );
    assert_eq!(execution["outcome"], "answered");
    assert_eq!(execution["status"], 201);
    assert_eq!(execution["invocation_type"], "http");
    assert!(execution["fuel"].as_u64().unwrap() > 1000);
    assert_eq!(execution["logs"][0]["message"], "added");
    assert_eq!(execution["logs"][0]["fields"], json!({ "id": "a" }));
}

fn an_async_route_answers_202_and_runs_after(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script(
        "slow",
        r#"sleep(0.2); kv::collection("c").set("done", ctx.execution_id);"#,
    );
    app.route_with("slow", "POST /slow", json!({ "dispatch_mode": "async" }));
    let answer = server.post("/slow", &json!({}));
    assert_eq!(answer.status, 202);
    assert!(answer.json()["accepted_at"].is_string());
    let id = answer.json()["execution_id"].clone();
    let done = wait_for("the script's write", || {
        Some(app.kv("c", "done")).filter(|v| !v.is_null())
    });
    assert_eq!(done, id);
    let execution = app.last_execution();
    assert_eq!(
        (&execution["id"], &execution["invocation_type"]),
        (&id, &json!("http_async"))
    );
}

fn the_request_reaches_the_script_as_it_was(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script(
        "echo",
        r#"let r = ctx.request;
           [r.method, r.path, r.params.id, r.rest, r.query_all("t"), r.header("X-Name"), r.body,
            ctx.invocation_type, ctx.script_name, "event" in ctx, ctx.sdk_version]"#,
    );
    app.route("echo", "PUT /e/{id}/{*rest}");
    let answer = server.call(
        "PUT",
        "/e/a%2Fb/x/y?t=1&t=%C3%A9",
        &[("x-name", "n")],
        Some(b"[1]"),
    );
    let seen = json!([
        "PUT",
        "/e/a%2Fb/x/y",
        "a/b",
        "x/y",
        ["1", "é"],
        "n",
        [1],
        "http",
        "echo",
        false,
        "1.3.0"
    ]);
    assert_eq!(answer.json(), seen, "{}", answer.text());
    let typed = |ty: &str, body: &[u8]| {
        server
            .call("PUT", "/e/a/b", &[("content-type", ty)], Some(body))
            .json()[6]
            .clone()
    };
    assert_eq!(typed("text/plain", b"hi"), "hi");
    assert_eq!(
        typed("application/x-www-form-urlencoded", b"a=1&b=+"),
        json!({ "a": "1", "b": " " })
    );
}

fn i01_two_apps_never_see_each_others_keys(engine: Engine) {
    let server = Server::start(engine);
    let source =
        r#"let c = kv::collection("c"); let old = c.get("k"); c.set("k", ctx.app_slug); old"#;
    for slug in ["one", "two"] {
        let app = server.app(slug);
        let host = json!({ "hosts": [format!("{slug}.test")] });
        assert_eq!(
            server
                .api("PATCH", &format!("/apps/{slug}"), Some(host))
                .status,
            200
        );
        app.serve("swap", source);
    }
    let call = |host: &str| server.call("GET", "/swap", &[("host", host)], None).json();
    assert_eq!(call("one.test"), json!(null));
    assert_eq!(call("two.test:80"), json!(null));
    assert_eq!(call("one.test"), json!("one"));
    assert_eq!(call("two.test"), json!("two"));
}

fn i11_nothing_survives_from_one_execution_to_the_next(engine: Engine) {
    let server = Server::start(engine);
    server.app("a").serve(
        "s",
        r#"let seen = "before" in ctx; let before = 1; [seen, random::uuid()]"#,
    );
    let answers: Vec<_> = (0..20).map(|_| server.get("/s").json()).collect();
    let mut uuids: Vec<_> = answers.iter().map(|answer| answer[1].to_string()).collect();
    uuids.sort();
    uuids.dedup();
    assert_eq!(
        uuids.len(),
        20,
        "randomness is frozen in the snapshot: {uuids:?}"
    );
    assert!(answers.iter().all(|answer| answer[0] == false));
}

fn i13_a_public_route_runs_as_nobody(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    let source = r#"
        let refused = ();
        try { dead_letters::replay("01900000-0000-7000-8000-000000000000"); } catch (e) { refused = e; }
        [ctx.principal, refused]"#;
    let id = app.script("who", source);
    app.route("who", "GET /who");
    let answer = server.get("/who").json();
    assert_eq!(answer[0], json!(null));
    assert!(
        answer[1].as_str().unwrap().contains("there is none"),
        "{answer}"
    );
    let done = server
        .api("POST", &format!("/scripts/{id}/execute"), Some(json!({})))
        .json();
    let body: serde_json::Value =
        serde_json::from_str(done["response"]["body"].as_str().unwrap()).unwrap();
    assert_eq!(body[0]["name"], "owner");
    assert!(
        body[1]
            .as_str()
            .unwrap()
            .contains("no dead letter of this id"),
        "{body}"
    );
}

fn the_examples_work(engine: Engine) {
    let server = Server::start(engine);
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let deploy = |file: &str, words: &[&str]| {
        let path = format!("{root}/{file}");
        let mut all = vec!["deploy", path.as_str(), "--app", "examples", "--create-app"];
        all.extend(words);
        let done = server.cli(&all);
        assert!(
            done.status.success(),
            "{file}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    };
    deploy("hello/hello.rhai", &["--route", "ANY /hello"]);
    assert_eq!(
        server.get("/hello?name=Ada").json(),
        json!({ "hello": "Ada", "count": 1 })
    );
    assert_eq!(
        server.get("/hello").json(),
        json!({ "hello": "world", "count": 2 })
    );

    deploy("counter/counter.rhai", &["--route", "ANY /counters/{name}"]);
    assert_eq!(
        server.get("/counters/x").json(),
        json!({ "name": "x", "count": 0 })
    );
    assert_eq!(
        server.post("/counters/x", &json!({ "by": 5 })).json()["count"],
        5
    );
    assert_eq!(
        server.call("POST", "/counters/x", &[], None).json()["count"],
        6
    );
    assert_eq!(
        server.post("/counters/x", &json!({ "by": "many" })).status,
        422
    );
    assert_eq!(server.call("DELETE", "/counters/x", &[], None).status, 204);
    assert_eq!(server.get("/counters/x").json()["count"], 0);

    deploy(
        "link-shortener/links.rhai",
        &[
            "--route",
            "POST /links",
            "--route",
            "GET /l/{code}",
            "--route",
            "GET /links",
        ],
    );
    let made = server.post("/links", &json!({ "url": "https://example.com/a?b=c" }));
    assert_eq!(made.status, 201, "{}", made.text());
    let short = made.json()["path"].as_str().unwrap().to_owned();
    let followed = server.get(&short);
    assert_eq!(
        (
            followed.status,
            followed.headers["location"].to_str().unwrap()
        ),
        (302, "https://example.com/a?b=c")
    );
    assert_eq!(server.get("/links").json()["links"][0]["hits"], 1);
    assert_eq!(server.get("/l/nothing").status, 404);
    assert_eq!(
        server
            .post("/links", &json!({ "url": "javascript:alert(1)" }))
            .status,
        422
    );

    deploy(
        "form-handler/form.rhai",
        &["--route", "GET /contact", "--route", "POST /contact"],
    );
    assert!(server.get("/contact").text().contains("<form"));
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let sent = server.call(
        "POST",
        "/contact",
        &form,
        Some(b"name=%3Cb%3EEve&message=hi"),
    );
    assert_eq!(sent.status, 200, "{}", sent.text());
    assert!(sent.text().contains("&lt;b&gt;Eve"), "{}", sent.text());
    assert_eq!(
        server
            .call("POST", "/contact", &form, Some(b"name="))
            .status,
        422
    );

    deploy(
        "webhook-receiver/webhook.rhai",
        &["--route", "POST /webhooks/{source}", "--async"],
    );
    let accepted = server.post(
        "/webhooks/billing",
        &json!({ "id": "evt_1", "type": "paid" }),
    );
    assert_eq!(accepted.status, 202);
    let stored = wait_for("the webhook", || {
        let value = server.api("GET", "/apps/examples/kv/webhooks.billing/evt_1", None);
        (value.status == 200).then(|| value.json())
    });
    assert_eq!(stored["payload"]["type"], "paid");
}
