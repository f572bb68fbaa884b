//! Dead letters: seen, put back and settled.

use picloud_tests::{App, Engine, Options, Server, on_both_engines, wait_for};
use serde_json::{Value, json};

on_both_engines!(
    a_broken_script_is_fixed_and_its_dead_letters_replayed,
    a_replay_happens_once_however_many_ask,
    an_edited_payload_and_a_pinned_version_are_what_runs,
    i07_a_dead_letter_handler_runs_once,
    scripts_manage_dead_letters_as_somebody_only,
    an_async_routes_delivery_dies_too,
    an_error_with_any_character_ends_its_delivery,
    a_guest_that_traps_each_time_dies_and_harms_nobody,
    bad_calls_are_refused_and_change_nothing,
    what_is_past_its_retention_goes,
    an_app_keeps_no_more_bytes_of_dead_letters_than_it_may,
);

/// An app whose handler of `things` throws.
fn broken<'s>(server: &'s Server, slug: &str) -> App<'s> {
    let app = server.app(slug);
    app.script("handler", r#"throw `cannot handle ${ctx.event.kv.key}`"#);
    app.trigger(
        "kv",
        json!({ "script": "handler", "collection": "things", "name": "on-things",
                "retry": { "attempts_max": 2, "base_ms": 5, "jitter_pct": 0 } }),
    );
    app
}

fn dead(app: &App<'_>, count: usize) -> Vec<Value> {
    wait_for("dead letters", || {
        Some(app.dead_letters("state=unresolved")).filter(|all| all.len() == count)
    })
}

fn id(value: &Value) -> String {
    value["id"].as_str().expect("an id").to_owned()
}

fn update(server: &Server, app: &str, name: &str, source: &str) {
    let list = server.api("GET", &format!("/apps/{app}/scripts?name={name}"), None);
    let script = list.json()["items"][0].clone();
    let body = json!({ "version": script["version"], "source": source });
    let changed = server.api("PATCH", &format!("/scripts/{}", id(&script)), Some(body));
    assert_eq!(changed.status, 200, "{}", changed.text());
}

fn a_broken_script_is_fixed_and_its_dead_letters_replayed(engine: Engine) {
    let server = Server::start(engine);
    let app = broken(&server, "a");
    for n in 0..30 {
        app.set("things", &format!("k{n:02}"), json!({ "n": n }));
    }
    let letters = dead(&app, 30);
    let of_first = |letter: &&Value| letter["last_error"] == "cannot handle k00";
    let first = letters.iter().find(of_first).unwrap();
    let shown = server
        .api("GET", &format!("/dead-letters/{}", id(first)), None)
        .json();
    assert_eq!(shown["attempts"], 2);
    assert_eq!(shown["last_error"], "cannot handle k00", "{shown}");
    let history = shown["history"].as_array().unwrap();
    assert_eq!((history.len(), &history[1]["attempt"]), (2, &json!(2)));
    assert!(
        history
            .iter()
            .all(|attempt| attempt["fuel"].as_u64() > Some(0)
                && attempt["execution_id"].is_string()
                && attempt["error"] == "cannot handle k00")
    );
    assert_eq!(shown["payload"]["kv"]["value"], json!({ "n": 0 }));
    let counts = server
        .api("GET", "/apps/a/dead-letters/counts", None)
        .json();
    assert_eq!(counts["by_state"]["unresolved"], 30);
    // What an operator sees, and does.
    let listed = server.cli(&["dead-letters", "list", "--app", "a"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("cannot handle k00"), "{listed}");
    update(
        &server,
        "a",
        "handler",
        r#"kv::collection("handled").set(ctx.event.kv.key, ctx.event.kv.value.n);"#,
    );
    let dry = server.cli(&[
        "dead-letters",
        "replay",
        "--app",
        "a",
        "--error",
        "cannot handle",
        "--dry-run",
    ]);
    let said = String::from_utf8_lossy(&dry.stdout).into_owned();
    assert!(said.contains("30"), "{said}");
    assert_eq!(dead(&app, 30).len(), 30, "a dry run changes nothing");
    let replayed = server.cli(&[
        "dead-letters",
        "replay",
        "--app",
        "a",
        "--error",
        "cannot handle",
    ]);
    assert!(
        replayed.status.success(),
        "{}",
        String::from_utf8_lossy(&replayed.stderr)
    );
    wait_for("every one to be handled", || {
        (app.entries("handled").len() == 30).then_some(())
    });
    let counts = server
        .api("GET", "/apps/a/dead-letters/counts", None)
        .json();
    assert_eq!(
        counts["by_state"],
        json!({ "unresolved": 0, "replayed": 30, "resolved": 0 })
    );
    let settled = server
        .api("GET", &format!("/dead-letters/{}", id(first)), None)
        .json();
    assert!(
        settled["replayed_as"].is_string() && settled["settled_by"].is_string(),
        "{settled}"
    );
}

fn a_replay_happens_once_however_many_ask(engine: Engine) {
    let server = Server::start(engine);
    let app = broken(&server, "a");
    app.set("things", "k", json!(1));
    let letter = id(&dead(&app, 1)[0]);
    let path = format!("/dead-letters/{letter}/replay");
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..10)
            .map(|_| scope.spawn(|| server.api("POST", &path, Some(json!({}))).status))
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(
        statuses.iter().filter(|status| **status == 200).count(),
        1,
        "{statuses:?}"
    );
    assert_eq!(statuses.iter().filter(|status| **status == 409).count(), 9);
    // It fails again, so it dies again, and knows what it repeats.
    let again = dead(&app, 1);
    assert_eq!(again[0]["replay_of"], letter.as_str());
    assert_eq!(again[0]["retry"]["attempts_max"], 2);
    assert!(again[0]["trigger_id"].is_string());
    let resolve = format!("/dead-letters/{letter}/resolve");
    let refused = server.api("POST", &resolve, Some(json!({ "reason": "ignored" })));
    assert_eq!(
        (refused.status, refused.problem().as_str()),
        (409, "already_settled")
    );
}

fn an_edited_payload_and_a_pinned_version_are_what_runs(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    let source = |version: &str| {
        format!(
            r#"let v = ctx.event.kv.value; if v == 0 {{ throw "zero" }}
               kv::collection("handled").set("{version}", v);"#
        )
    };
    app.script("handler", &source("old"));
    app.trigger(
        "kv",
        json!({ "script": "handler", "collection": "things", "retry": { "attempts_max": 1 } }),
    );
    app.set("things", "a", json!(0));
    let first = dead(&app, 1)[0].clone();
    app.set("things", "b", json!(0));
    let second = dead(&app, 2)[0].clone();
    update(&server, "a", "handler", &source("new"));
    let mut payload = server
        .api("GET", &format!("/dead-letters/{}", id(&first)), None)
        .json()["payload"]
        .clone();
    payload["kv"]["value"] = json!(41);
    let body = json!({ "payload": payload, "at_version": "pinned" });
    let replayed = server.api(
        "POST",
        &format!("/dead-letters/{}/replay", id(&first)),
        Some(body),
    );
    assert_eq!(replayed.status, 200, "{}", replayed.text());
    payload["kv"]["value"] = json!(42);
    let body = json!({ "payload": payload });
    let replayed = server.api(
        "POST",
        &format!("/dead-letters/{}/replay", id(&second)),
        Some(body),
    );
    assert_eq!(replayed.status, 200, "{}", replayed.text());
    wait_for("both", || (app.entries("handled").len() == 2).then_some(()));
    assert_eq!(
        app.entries("handled"),
        [("new".to_owned(), json!(42)), ("old".to_owned(), json!(41))]
    );
}

fn i07_a_dead_letter_handler_runs_once(engine: Engine) {
    let server = Server::start(engine);
    let app = broken(&server, "a");
    app.script(
        "told",
        r#"let c = kv::collection("told"); let d = ctx.event.dead_letter;
           c.set(d.id, ctx.event); throw "the handler fails too""#,
    );
    let gone = app.script("gone", "1");
    app.trigger(
        "dead_letter",
        json!({ "script": "told", "filter": { "source": "kv" } }),
    );
    app.trigger(
        "dead_letter",
        json!({ "script": "told", "filter": { "source": "http" } }),
    );
    app.set("things", "k", json!({ "n": 1 }));
    let letter = wait_for("the handler's failure", || {
        app.dead_letters("handler_failed=true").pop()
    });
    let told = app.kv("told", letter["id"].as_str().unwrap());
    assert_eq!(told["source"], "dead_letter");
    let seen = &told["dead_letter"];
    assert_eq!(
        (&seen["attempts"], &seen["last_error"]),
        (&json!(2), &json!("cannot handle k"))
    );
    assert_eq!(seen["original"]["kv"]["value"], json!({ "n": 1 }));
    assert_eq!(seen["original"]["op"], "insert");
    assert_eq!(app.executions("invocation_type=dead_letter").len(), 1);
    assert_eq!(
        app.dead_letters("").len(),
        1,
        "a handler makes no dead letter"
    );
    // A handler whose script is missing is a failed handler, no more.
    let trigger = json!({ "script_id": gone, "filter": { "script_id": letter["script_id"] } });
    app.trigger("dead_letter", trigger);
    assert_eq!(
        server
            .api("DELETE", &format!("/scripts/{gone}"), None)
            .status,
        204
    );
    app.set("things", "l", json!(1));
    wait_for("both handlers", || {
        let ran = app.executions("invocation_type=dead_letter");
        let missing = ran.iter().any(|one| one["outcome"] == "script_deleted");
        (ran.len() == 3 && missing).then_some(())
    });
    assert_eq!(app.dead_letters("").len(), 2);
}

fn scripts_manage_dead_letters_as_somebody_only(engine: Engine) {
    let server = Server::start(engine);
    let app = broken(&server, "a");
    app.set("things", "k", json!(1));
    let letter = id(&dead(&app, 1)[0]);
    // A public route acts as nobody.
    app.serve("public", r#"dead_letters::list()"#);
    assert_eq!(server.get("/public").status, 502);
    let refused = app.last_execution();
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("principal"), "{message}");
    // A handler acts as who registered it.
    app.script(
        "settle",
        r#"let page = dead_letters::list();
           kv::collection("listed").set("page", page);
           dead_letters::resolve(ctx.event.kv.value, "handled_by_script");"#,
    );
    app.trigger("kv", json!({ "script": "settle", "collection": "settle" }));
    app.set("settle", "now", json!(letter));
    wait_for("the resolution", || {
        app.dead_letters("state=resolved").pop()
    });
    let page = app.kv("listed", "page");
    assert_eq!(page["entries"][0]["id"], letter.as_str(), "{page}");
    let shown = server
        .api("GET", &format!("/dead-letters/{letter}"), None)
        .json();
    assert_eq!(shown["reason"], "handled_by_script");
}

fn an_async_routes_delivery_dies_too(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script("job", r#"if ctx.request.body.n < 0 { throw "negative" } kv::collection("done").set("n", ctx.request.body.n);"#);
    app.route_with("job", "POST /job", json!({ "dispatch_mode": "async" }));
    // The instance's default is to wait a second and more; one attempt would do here.
    let accepted = server.post("/job", &json!({ "n": -1 }));
    assert_eq!(accepted.status, 202);
    let letter = dead(&app, 1)[0].clone();
    assert_eq!(
        (&letter["source"], &letter["attempts"]),
        (&json!("http"), &json!(3))
    );
    assert_eq!(letter["delivery_id"], accepted.json()["execution_id"]);
    let shown = server
        .api("GET", &format!("/dead-letters/{}", id(&letter)), None)
        .json();
    let mut payload = shown["payload"].clone();
    payload["body"]["text"] = json!(r#"{"n": 5}"#);
    let body = json!({ "payload": payload });
    let replayed = server.api(
        "POST",
        &format!("/dead-letters/{}/replay", id(&letter)),
        Some(body),
    );
    assert_eq!(replayed.status, 200, "{}", replayed.text());
    wait_for("the replay", || (app.kv("done", "n") == 5).then_some(()));
}

fn an_error_with_any_character_ends_its_delivery(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script("handler", r#"throw "nul: \x00!""#);
    app.script("keyed", "1");
    let once = json!({ "attempts_max": 1 });
    app.trigger(
        "kv",
        json!({ "script": "handler", "collection": "things", "retry": once }),
    );
    // A key that the database could not hold makes a delivery without one.
    let key = json!({ "key": "/kv/value" });
    app.trigger(
        "kv",
        json!({ "script": "keyed", "collection": "things", "idempotency": key }),
    );
    app.set("things", "k", json!("\0"));
    let letter = dead(&app, 1)[0].clone();
    assert_eq!(letter["last_error"], "nul: \u{fffd}!");
    wait_for("both handlers", || {
        (app.executions("invocation_type=kv").len() == 2).then_some(())
    });
    let found = server.api("GET", "/apps/a/dead-letters?error=%00", None);
    assert_eq!(
        (found.status, &found.json()["field"]),
        (422, &json!("error"))
    );
}

fn a_guest_that_traps_each_time_dies_and_harms_nobody(engine: Engine) {
    use base64::Engine as _;
    let options = Options {
        environment: vec![("PICLOUD_TRIGGER_RETRY_BASE_MS", "10".to_owned())],
        ..Options::default()
    };
    let server = Server::start_with(engine, options);
    let app = server.app("a");
    let wasm = include_bytes!("../../fixtures/function-v1.wasm");
    let wasm = base64::engine::general_purpose::STANDARD.encode(wasm);
    let body = json!({ "name": "poison", "kind": "component", "wasm_base64": wasm });
    let made = server.api("POST", "/apps/a/scripts", Some(body));
    assert_eq!(made.status, 201, "{}", made.text());
    app.route_with(
        "poison",
        "POST /c/{*rest}",
        json!({ "dispatch_mode": "async" }),
    );
    app.serve("fine", "1");
    assert_eq!(server.post("/c/trap", &json!({})).status, 202);
    let letter = dead(&app, 1)[0].clone();
    assert_eq!(letter["attempts"], 3);
    let path = format!("/dead-letters/{}", id(&letter));
    let shown = server.api("GET", &path, None).json();
    let history = shown["history"].as_array().unwrap();
    assert!(
        history
            .iter()
            .all(|attempt| attempt["outcome"] == "trapped"),
        "{shown}"
    );
    assert_eq!(server.get("/fine").status, 200);
}

fn bad_calls_are_refused_and_change_nothing(engine: Engine) {
    let server = Server::start(engine);
    let app = broken(&server, "a");
    app.set("things", "k", json!(1));
    let letter = id(&dead(&app, 1)[0]);
    let refused = |path: &str, body: Value, status: u16, field: &str| {
        let answer = server.api("POST", path, Some(body.clone()));
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.text());
        if !field.is_empty() {
            assert_eq!(answer.json()["field"], field, "{}", answer.text());
        }
    };
    let replay = format!("/dead-letters/{letter}/replay");
    refused("/apps/a/dead-letters/replay", json!({}), 422, "all");
    refused(
        "/apps/a/dead-letters/resolve",
        json!({ "all": true }),
        422,
        "reason",
    );
    refused(
        "/apps/a/dead-letters/resolve",
        json!({ "all": true, "reason": "bored" }),
        422,
        "reason",
    );
    refused(
        "/apps/a/dead-letters/replay",
        json!({ "all": true, "limit": 0 }),
        422,
        "limit",
    );
    refused(
        "/apps/a/dead-letters/replay",
        json!({ "since": "yesterday" }),
        422,
        "since",
    );
    refused(
        "/apps/a/dead-letters/replay",
        json!({ "script_id": "x" }),
        422,
        "script_id",
    );
    refused(&replay, json!({ "payload": 5 }), 422, "payload");
    refused(
        &replay,
        json!({ "at_version": "oldest" }),
        422,
        "at_version",
    );
    refused("/dead-letters/nonsense/replay", json!({}), 404, "");
    let not_json = server.call(
        "POST",
        &format!("/api/v1{replay}"),
        &[("authorization", &format!("Bearer {}", server.token))],
        Some(b"{\"payload\": {,}}"),
    );
    assert_eq!(not_json.status, 400, "{}", not_json.text());
    for (query, field) in [
        ("state=dead", "state"),
        ("cursor=garbage", "cursor"),
        ("source=mail", "source"),
    ] {
        let answer = server.api("GET", &format!("/apps/a/dead-letters?{query}"), None);
        assert_eq!(
            (answer.status, &answer.json()["field"]),
            (422, &json!(field))
        );
    }
    assert_eq!(dead(&app, 1).len(), 1);
    let other = server.app("other");
    assert!(other.dead_letters("").is_empty());
    // With `all`, it is what was asked for.
    let all = json!({ "all": true, "reason": "ignored" });
    let done = server
        .api("POST", "/apps/a/dead-letters/resolve", Some(all))
        .json();
    assert_eq!(
        (&done["resolved"], &done["left"]),
        (&json!(1), &json!(0)),
        "{done}"
    );
}

fn what_is_past_its_retention_goes(engine: Engine) {
    let server = Server::start(engine);
    let app = broken(&server, "a");
    app.set("things", "k", json!(1));
    dead(&app, 1);
    let dry = server.cli(&["gc", "--dry-run"]);
    let said = String::from_utf8_lossy(&dry.stdout).into_owned();
    assert!(
        dry.status.success() && said.contains("dead_letters"),
        "{said}"
    );
    let swept = server.api("POST", "/gc", None).json();
    assert_eq!(swept["removed"]["dead_letters"], 0, "nothing is old yet");
    assert_eq!(app.dead_letters("").len(), 1);
}

fn an_app_keeps_no_more_bytes_of_dead_letters_than_it_may(engine: Engine) {
    let options = Options::with(&[("PICLOUD_DEAD_LETTER_BYTES_MAX", "1MiB")]);
    let server = Server::start_with(engine, options);
    let (app, other) = (broken(&server, "a"), broken(&server, "b"));
    let long = "x".repeat(200_000);
    for n in 0..8 {
        app.set("things", &format!("k{n}"), json!(long));
        dead(&app, n + 1);
    }
    other.set("things", "k", json!(long));
    dead(&other, 1);
    let before = app.dead_letters("");
    let swept = server.api("POST", "/gc", None).json();
    let removed = swept["removed"]["dead_letters"].as_u64().unwrap();
    // A sweep of the server's own may have come before.
    let left = app.dead_letters("");
    assert!(removed <= 3 && (4..=5).contains(&left.len()), "{swept}");
    assert_eq!(left[..], before[..left.len()], "the newest are kept");
    assert_eq!(other.dead_letters("").len(), 1);
}
