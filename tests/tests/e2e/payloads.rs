//! What an app hides from viewers: what its requests and events carried, and what its scripts said
//! of it, wherever it would get out.

use picloud_tests::{App, Engine, EventStream, Server, on_both_engines, wait_for};
use serde_json::{Value, json};

use super::access::table;

on_both_engines!(a_viewer_sees_no_payload_anywhere);

/// What every payload has in it, and nothing else.
const CANARY: &str = "canary-7f3a91";

/// An app whose requests and events all carry the canary, in bodies, headers, errors and logs.
fn furnish(server: &Server) -> App<'_> {
    let app = server.app("shop");
    app.script(
        "logs",
        r#"log::info(ctx.request.body, #{ header: ctx.request.headers["x-canary"] }); ctx.request.body"#,
    );
    app.route("logs", "POST /logs");
    app.script("throws", "throw ctx.request.body");
    app.route("throws", "POST /throws");
    app.route_with("throws", "POST /later", json!({ "dispatch_mode": "async" }));
    app.script("slow", "log::info(ctx.request.body); sleep(1); 1");
    app.route_with("slow", "POST /slow", json!({ "dispatch_mode": "async" }));
    app.script("dies", "throw ctx.event.kv.value");
    app.trigger(
        "kv",
        json!({ "script": "dies", "collection": "things", "name": "dies", "ops": ["insert"],
                "retry": { "attempts_max": 2, "base_ms": 1 } }),
    );
    for path in ["/logs", "/throws", "/later"] {
        let headers = [("x-canary", CANARY)];
        server.call(
            "POST",
            path,
            &headers,
            Some(format!("\"{CANARY}\"").as_bytes()),
        );
    }
    app.set("things", "k", json!(CANARY));
    wait_for("a dead letter", || app.dead_letters("source=kv").pop());
    // The key-value store is the app's data, and is not hidden: there is to be nothing in it.
    let deleted = server.api("DELETE", "/apps/shop/kv/things/k", None);
    assert_eq!(deleted.status, 204);
    wait_for("the failure of the async route", || {
        app.executions("invocation_type=http_async").pop()
    });
    app
}

/// The paths that an endpoint has, for everything that there is in the app.
fn paths(app: &App<'_>, template: &str) -> Vec<String> {
    let list = |path: &str| -> Vec<Value> {
        let list = app.server.api("GET", &format!("/apps/shop/{path}"), None);
        list.json()["items"].as_array().cloned().unwrap_or_default()
    };
    let things = match template.split('/').nth(1).unwrap_or_default() {
        "scripts" => list("scripts"),
        "routes" => list("routes"),
        "triggers" => list("triggers"),
        "executions" => list("executions?limit=200"),
        "dead-letters" => list("dead-letters"),
        _ => vec![json!({ "id": uuid::Uuid::nil() })],
    };
    let path = |thing: &Value| {
        template
            .replace("{id}", thing["id"].as_str().unwrap_or_default())
            .replace("{app}", "shop")
            .replace("{version}", "1")
            .replace("{collection}", "things")
            .replace("{key}", "k")
            .replace("{topic}", "topic")
    };
    things.iter().map(path).collect()
}

/// Everything that every GET endpoint answers somebody, as one text, and how many endpoints that
/// were.
fn everything(app: &App<'_>, token: &str) -> (String, usize) {
    let mut all = String::new();
    let mut count = 0;
    for row in table("endpoints") {
        let Some(template) = row[0].strip_prefix("GET ") else {
            continue;
        };
        count += 1;
        for path in paths(app, template) {
            // These streams do not end by themselves; what they tell is read below.
            if template == "/events" || template.ends_with("{topic}/events") {
                continue;
            }
            let answer = app.server.api_as(token, "GET", &path, None);
            assert!(answer.status < 500, "{path}: {}", answer.text());
            all.push_str(&format!("{path}: {}\n", answer.text()));
        }
    }
    (all, count)
}

/// All events of the instance until the app is changed, as one text.
fn events(app: &App<'_>, token: &str) -> String {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    let path = "/api/v1/events?last_event_id=earliest";
    let stream = EventStream::open(&app.server.url, path, &headers).unwrap();
    assert_eq!(stream.status, 200, "{}", stream.header);
    let server = app.server;
    server.call(
        "POST",
        "/throws",
        &[("x-canary", CANARY)],
        Some(format!("\"{CANARY}\"").as_bytes()),
    );
    let name = format!("shop {}", uuid::Uuid::now_v7());
    let mut all = String::new();
    let mut has_executions = false;
    loop {
        let event = stream.next().expect("an event");
        all.push_str(&event.data.to_string());
        has_executions |= event.data["type"] == "executions";
        let is_last = event.data["data"]["action"] == "PATCH /apps/{app}" && has_executions;
        if has_executions && !is_last {
            // The summary of executions comes once a second, so the change is made after it.
            server.api("PATCH", "/apps/shop", Some(json!({ "name": name })));
        }
        if is_last {
            return all;
        }
    }
}

fn a_viewer_sees_no_payload_anywhere(engine: Engine) {
    let server = Server::start(engine);
    let app = furnish(&server);
    let (_, viewer) = server.join("vic", "member", json!({ "shop": "viewer" }));
    let (_, editor) = server.join("eve", "member", json!({ "shop": "editor" }));
    let reading = ["script:read", "log:read", "app:admin", "route:write"];
    let reading = server.key(&server.token, "reading", &reading, None);
    let writing = server.key(
        &server.token,
        "writing",
        &["log:read", "script:write"],
        None,
    );
    let sees = |token: &str| everything(&app, token).0.contains(CANARY);
    // Unless an app says so, nothing is hidden.
    for token in [&viewer, &editor, &reading, &writing, &server.token] {
        assert!(sees(token));
    }
    let set = [
        "apps",
        "update",
        "shop",
        "--hide-payloads-from-viewers",
        "true",
    ];
    assert!(server.cli(&set).status.success());
    let shown = server.api("GET", "/apps/shop", None).json();
    assert_eq!(shown["hide_payloads_from_viewers"], true);
    for (who, token) in [("a viewer", &viewer), ("a key that reads", &reading)] {
        let (all, endpoints) = everything(&app, token);
        assert!(endpoints > 35, "{endpoints}");
        let leak = all.lines().find(|line| line.contains(CANARY));
        assert_eq!(leak, None, "{who}");
        assert!(!events(&app, token).contains(CANARY), "{who}");
    }
    for token in [&editor, &writing, &server.token] {
        assert!(sees(token));
    }

    // Nor while it runs, when lines are told as they come.
    let followed = |token: &str| {
        let body = format!("\"{CANARY}\"");
        let accepted = server.call("POST", "/slow", &[], Some(body.as_bytes()));
        let id = accepted.json()["execution_id"].clone();
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str())];
        let path = format!("/api/v1/executions/{}/events", id.as_str().unwrap());
        let stream = EventStream::open(&server.url, &path, &headers).unwrap();
        let events = std::iter::from_fn(|| stream.next());
        events.map(|event| event.name).collect::<Vec<_>>()
    };
    assert_eq!(followed(&viewer), ["outcome"]);
    assert_eq!(followed(&editor), ["log", "outcome"]);

    // What is absent says so, and all else is there.
    let get = |token: &str, path: &str| server.api_as(token, "GET", path, None).json();
    let failed = get(&viewer, "/apps/shop/executions?outcome=threw");
    let failed = failed["items"].as_array().unwrap();
    assert!(!failed.is_empty());
    for execution in failed {
        assert_eq!(execution["payloads_hidden"], true, "{execution}");
        assert!(execution["error"].is_null() && execution["fuel"].as_u64() > Some(0));
    }
    let logged = app.executions("outcome=answered&invocation_type=http")[0]["id"].clone();
    let path = format!("/executions/{}", logged.as_str().unwrap());
    let hidden = get(&viewer, &path);
    assert_eq!(
        (&hidden["logs"], &hidden["payloads_hidden"]),
        (&json!([]), &json!(true))
    );
    let whole = get(&editor, &path);
    assert_eq!(whole["logs"][0]["message"], CANARY);
    assert_eq!(whole["logs"][0]["fields"]["header"], CANARY);
    assert_eq!(whole["payloads_hidden"], false);
    let letter = app.dead_letters("source=kv")[0]["id"].clone();
    let path = format!("/dead-letters/{}", letter.as_str().unwrap());
    let hidden = get(&reading, &path);
    for member in ["payload", "last_error"] {
        assert!(hidden[member].is_null(), "{hidden}");
    }
    assert_eq!(
        (&hidden["history"], &hidden["payloads_hidden"]),
        (&json!([]), &json!(true))
    );
    let whole = get(&server.token, &path);
    assert_eq!(whole["history"].as_array().unwrap().len(), 2);
    assert_eq!(whole["last_error"], CANARY);
    // Looking for an error would tell whether there is one.
    for (method, path, body) in [
        ("GET", "/apps/shop/dead-letters?error=canary", None),
        (
            "POST",
            "/apps/shop/dead-letters/replay",
            Some(json!({ "error": "canary", "dry_run": true })),
        ),
        (
            "POST",
            "/apps/shop/dead-letters/resolve",
            Some(json!({ "error": "canary", "dry_run": true, "reason": "ignored" })),
        ),
    ] {
        let refused = server.api_as(&reading, method, path, body.clone());
        assert_eq!(refused.status, 403, "{path}: {}", refused.text());
        assert_eq!(
            server
                .api("GET", "/apps/shop/dead-letters?error=canary", None)
                .status,
            200
        );
        assert_eq!(server.api(method, path, body).status, 200);
    }
    let said = server.cli_as(&viewer, &["logs", "--app", "shop"]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("hides log and error from viewers"), "{said}");
    assert!(!said.contains(CANARY), "{said}");

    // An editor may not change it, an exported app keeps it, and it can be taken back.
    let change = |shows: bool| Some(json!({ "hide_payloads_from_viewers": shows }));
    assert_eq!(
        server
            .api_as(&editor, "PATCH", "/apps/shop", change(false))
            .status,
        403
    );
    assert!(server.cli(&["export", "shop"]).status.success());
    assert!(
        server
            .cli(&["import", "shop.zip", "--as", "copy"])
            .status
            .success()
    );
    let copy = server.api("GET", "/apps/copy", None).json();
    assert_eq!(copy["hide_payloads_from_viewers"], true);
    assert_eq!(server.api("PATCH", "/apps/shop", change(false)).status, 200);
    assert!(sees(&viewer));
}
