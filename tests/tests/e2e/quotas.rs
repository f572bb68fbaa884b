//! Quotas: how much an app keeps in the database, and what happens beyond.

use picloud_tests::{Answer, App, Engine, Options, Server, fails, fine, on_both_engines, wait_for};
use serde_json::{Value, json};

use crate::realtime::{open, publish, ready, subscribe};

on_both_engines!(
    an_app_that_keeps_as_much_as_it_may_writes_no_more_until_it_removes_some,
    a_value_that_takes_the_place_of_another_is_not_counted_beside_it,
    beyond_their_quotas_the_oldest_executions_go,
    beyond_their_quota_the_oldest_messages_go,
    what_an_event_carries_is_counted_while_its_delivery_runs,
    a_value_that_goes_to_many_triggers_is_bounded_with_them,
    a_message_that_goes_to_many_triggers_is_bounded_with_them,
    an_app_whose_outbox_is_full_takes_no_new_events_and_loses_none,
    deliveries_are_bounded_by_their_bytes_too,
    a_fork_bomb_of_events_ends_at_the_limit_and_disturbs_no_neighbour,
    the_oldest_versions_that_nothing_needs_make_room_for_new_ones,
    beyond_the_quota_of_kept_answers_new_keys_are_refused_and_known_ones_answered,
    an_app_has_only_so_many_objects_of_each_kind,
);

const KIB: usize = 1024;

fn of_size(bytes: usize) -> Value {
    json!("x".repeat(bytes - 2))
}

fn put(app: &App<'_>, key: &str, value: &Value) -> u16 {
    let path = format!("/apps/{}/kv/things/{key}", app.slug);
    app.server.api("PUT", &path, Some(value.clone())).status
}

/// What the app keeps of one kind of data.
fn kept(app: &App<'_>, data: &str) -> Value {
    let path = format!("/apps/{}/usage", app.slug);
    let usage = app.server.api("GET", &path, None).json();
    assert!(usage["measured_at"].is_string(), "{usage}");
    let stored = usage["stored"].as_array().unwrap();
    let found = stored.iter().find(|kept| kept["data"] == data);
    found.unwrap().clone()
}

fn collect(server: &Server) {
    assert_eq!(server.api("POST", "/gc", None).status, 200);
}

fn an_app_that_keeps_as_much_as_it_may_writes_no_more_until_it_removes_some(engine: Engine) {
    let options = Options::with(&[("PICLOUD_KV_BYTES_MAX", "256KiB")]);
    let server = Server::start_with(engine, options);
    let (app, other) = (server.app("full"), server.app("other"));
    let value = of_size(8 * KIB);
    let written = (0..100).take_while(|n| put(&app, &format!("k{n}"), &value) == 204);
    let written = written.count();
    // An eighth more, where it was not measured in between.
    assert!((31..=36).contains(&written), "{written}");
    let refused = server.api("PUT", "/apps/full/kv/things/more", Some(value.clone()));
    assert_eq!(
        (refused.status, refused.problem().as_str()),
        (507, "quota_used_up")
    );
    assert!(
        refused.text().contains("kv_bytes_max"),
        "{}",
        refused.text()
    );
    // A script can do something about it.
    app.serve(
        "save",
        r#"let said = "saved";
           try { kv::collection("things").set("more", "x".repeat(8192)) }
           catch (err) { said = err.kind }
           said"#,
    );
    assert_eq!(server.get("/save").json(), "too_large");
    assert_eq!(
        put(&other, "k", &value),
        204,
        "its neighbour's room is its own"
    );
    collect(&server);
    let full = kept(&app, "kv");
    assert_eq!(full["rows"], written, "{full}");
    assert!(
        full["bytes"].as_u64().unwrap() >= (written * 8 * KIB) as u64,
        "{full}"
    );
    assert_eq!(full["bytes_max"], 256 * KIB);
    let doctor = server.api("GET", "/doctor", None).json();
    let mut findings = doctor["findings"].as_array().unwrap().iter();
    let stored = findings.find(|one| one["name"] == "stored_data").unwrap();
    assert_eq!(stored["severity"], "warning", "{stored}");
    assert!(
        stored["found"].as_str().unwrap().contains("full uses"),
        "{stored}"
    );
    let said = fine(server.cli(&["apps", "usage", "full"]));
    assert!(
        said.contains("kv_bytes_max") && said.contains("% of 262144"),
        "{said}"
    );
    assert!(server.metric(r#"picloud_stored_quota_used{data="kv"}"#) >= 0.9);
    for n in 0..8 {
        let removed = server.api("DELETE", &format!("/apps/full/kv/things/k{n}"), None);
        assert_eq!(removed.status, 204);
    }
    wait_for("room for a value", || {
        (put(&app, "more", &value) == 204).then_some(())
    });
}

fn a_value_that_takes_the_place_of_another_is_not_counted_beside_it(engine: Engine) {
    let options = Options::with(&[("PICLOUD_KV_BYTES_MAX", "256KiB")]);
    let server = Server::start_with(engine, options);
    let app = server.app("same");
    let value = of_size(32 * KIB);
    for _ in 0..40 {
        // Where it looks full, it is measured, and is not.
        wait_for("the value to be written", || {
            (put(&app, "one", &value) == 204).then_some(())
        });
    }
}

fn beyond_their_quotas_the_oldest_executions_go(engine: Engine) {
    let options = Options::with(&[("PICLOUD_EXECUTION_BYTES_MAX", "128KiB")]);
    let server = Server::start_with(engine, options);
    let (app, other) = (server.app("talks"), server.app("quiet"));
    app.serve(
        "talk",
        r#"log::info("x".repeat(4096)); ctx.request.query.n"#,
    );
    for n in 0..60 {
        assert_eq!(server.get(&format!("/talk?n={n}")).status, 200);
    }
    let all = wait_for("all executions", || {
        Some(app.executions("limit=100")).filter(|all| all.len() == 60)
    });
    collect(&server);
    let left = app.executions("limit=100");
    assert!((25..=31).contains(&left.len()), "{}", left.len());
    assert_eq!(left[..], all[..left.len()], "the newest are kept");
    let size = kept(&app, "executions");
    assert!(
        size["bytes"].as_u64().unwrap() <= 128 * KIB as u64,
        "{size}"
    );
    assert_eq!(size["rows"], left.len());
    assert_eq!(kept(&other, "executions")["rows"], 0);
}

fn beyond_their_quota_the_oldest_messages_go(engine: Engine) {
    let options = Options::with(&[("PICLOUD_MESSAGE_BYTES_KEPT_MAX", "128KiB")]);
    let server = Server::start_with(engine, options);
    let app = server.app("news");
    let kept_long =
        json!({ "auth_mode": "public", "retention_s": 3600, "retention_messages": 1000 });
    open(&app, "a", kept_long.clone());
    open(&app, "b", kept_long);
    let path = "/realtime/topics/a";
    let stream = subscribe(&server, path, &[]);
    let begin = ready(&stream);
    drop(stream);
    let long = "x".repeat(4 * KIB);
    for n in 0..30 {
        publish(&app, "a", json!([n, long]));
        publish(&app, "b", json!([n, long]));
    }
    collect(&server);
    let size = kept(&app, "messages");
    assert!(
        size["bytes"].as_u64().unwrap() <= 128 * KIB as u64,
        "{size}"
    );
    // Whoever comes back is told that something is missing, and hears the newest.
    let resumed = subscribe(&server, path, &[("last-event-id", &begin)]);
    ready(&resumed);
    resumed.expect("gap");
    let first = resumed.expect("message").data["message"][0]
        .as_u64()
        .unwrap();
    assert!((14..=17).contains(&first), "{first}");
    let newest = resumed.messages(usize::try_from(29 - first).unwrap());
    assert_eq!(newest.last().unwrap()[0], 29);
    // One that is larger than all there may be.
    publish(&app, "a", json!("x".repeat(200 * KIB)));
    collect(&server);
    assert_eq!(kept(&app, "messages")["rows"], 0);
}

fn what_an_event_carries_is_counted_while_its_delivery_runs(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("shop");
    app.script("slow", "sleep(2)");
    app.trigger(
        "kv",
        json!({ "script": "slow", "collection": "things", "name": "hears" }),
    );
    assert_eq!(put(&app, "k", &of_size(500 * KIB)), 204);
    let bytes = || server.metric("picloud_payloads_bytes");
    wait_for("the event to be counted", || {
        (bytes() > 500.0 * KIB as f64).then_some(())
    });
    wait_for("it to be given back", || (bytes() == 0.0).then_some(()));
}

fn a_value_that_goes_to_many_triggers_is_bounded_with_them(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("shop");
    app.script("hears", "1");
    assert_eq!(put(&app, "old", &of_size(500 * KIB)), 204);
    for n in 0..40 {
        let trigger = app.trigger(
            "kv",
            json!({ "script": "hears", "collection": "things", "name": format!("t{n}") }),
        );
        let pause = format!("/triggers/{}/pause", trigger["id"].as_str().unwrap());
        assert_eq!(server.api("POST", &pause, None).status, 200);
    }
    let path = "/apps/shop/kv/things/k";
    let refused = server.api("PUT", path, Some(of_size(500 * KIB)));
    assert_eq!(
        (refused.status, refused.json()["field"].as_str()),
        (422, Some("value"))
    );
    let detail = refused.json()["detail"].to_string();
    assert!(detail.contains("all triggers that hear of it"), "{detail}");
    // They are told of the value that a key had, too.
    assert_eq!(put(&app, "old", &json!(1)), 422);
    let old = "/apps/shop/kv/things/old";
    assert_eq!(server.api("DELETE", old, None).status, 422);
    assert_eq!(put(&app, "k", &of_size(300 * KIB)), 204);
    app.serve("writes", r#"let long = ""; long.pad(500000, "x"); let kind = (); try { kv::collection("things").set("k", long) } catch (e) { kind = e.kind } kind"#);
    assert_eq!(server.get("/writes").json(), "too_large");
}

fn a_message_that_goes_to_many_triggers_is_bounded_with_them(engine: Engine) {
    let options = Options::with(&[("PICLOUD_MESSAGE_BYTES_MAX", "1MiB")]);
    let server = Server::start_with(engine, options);
    let app = server.app("shop");
    app.script("hears", "1");
    for n in 0..40 {
        let trigger = app.trigger(
            "pubsub",
            json!({ "script": "hears", "topic": "t*", "name": format!("t{n}") }),
        );
        let pause = format!("/triggers/{}/pause", trigger["id"].as_str().unwrap());
        assert_eq!(server.api("POST", &pause, None).status, 200);
    }
    let published = |topic: &str, message: Value, ephemeral: bool| {
        let path = format!("/apps/shop/topics/{topic}/messages");
        let body = json!({ "message": message, "ephemeral": ephemeral });
        server.api("POST", &path, Some(body))
    };
    let refused = published("t", of_size(500 * KIB), false);
    assert_eq!(
        (refused.status, refused.json()["field"].as_str()),
        (422, Some("message"))
    );
    let detail = refused.json()["detail"].to_string();
    assert!(detail.contains("all triggers that hear of it"), "{detail}");
    assert_eq!(server.rows("outbox"), 0, "nothing was published");
    // What no trigger hears of is bounded by its own limit alone.
    assert_eq!(published("t", of_size(500 * KIB), true).status, 200);
    assert_eq!(published("other", of_size(500 * KIB), false).status, 200);
    assert_eq!(published("t", of_size(300 * KIB), false).status, 200);
    assert_eq!(server.rows("outbox"), 40);
    app.serve("writes", r#"let long = ""; long.pad(500000, "x"); let said = (); try { pubsub::publish_durable("t", long) } catch (e) { said = `${e.kind}: ${e.message}` } said"#);
    let said = server.get("/writes").json().to_string();
    assert!(
        said.contains("invalid: ") && said.contains("16777216"),
        "{said}"
    );
}

#[track_caller]
fn beyond(refused: &Answer, setting: &str) {
    let problem = (refused.status, refused.problem());
    assert_eq!(problem, (507, "quota_used_up".to_owned()));
    assert!(refused.text().contains(setting), "{}", refused.text());
}

fn paused(app: &App<'_>, kind: &str, body: Value) -> String {
    let id = app.trigger(kind, body)["id"].as_str().unwrap().to_owned();
    let path = format!("/triggers/{id}/pause");
    assert_eq!(app.server.api("POST", &path, None).status, 200);
    id
}

fn resume(server: &Server, trigger: &str) {
    let path = format!("/triggers/{trigger}/resume");
    assert_eq!(server.api("POST", &path, None).status, 200);
}

fn an_app_whose_outbox_is_full_takes_no_new_events_and_loses_none(engine: Engine) {
    let options = Options::with(&[
        ("PICLOUD_DELIVERIES_MAX", "50"),
        ("PICLOUD_TRIGGER_RETRY_MAX_ATTEMPTS", "1"),
    ]);
    let server = Server::start_with(engine, options);
    let (app, other) = (server.app("full"), server.app("other"));
    app.script(
        "count",
        r#"kv::collection("seen").set(ctx.event.kv.key, 1)"#,
    );
    app.script("fails", "throw 1");
    app.script(
        "hears",
        r#"kv::collection("told").set(`${ctx.event.dead_letter.id}`, 1)"#,
    );
    app.route_with("fails", "POST /fails", json!({ "dispatch_mode": "async" }));
    app.trigger(
        "dead_letter",
        json!({ "script": "hears", "name": "letters" }),
    );
    let trigger = paused(
        &app,
        "kv",
        json!({ "script": "count", "collection": "things", "name": "kv" }),
    );
    app.trigger(
        "pubsub",
        json!({ "script": "fails", "topic": "news", "name": "news" }),
    );
    assert_eq!(server.post("/fails", &json!({})).status, 202);
    wait_for("its dead letter to be told of", || {
        (app.entries("told").len() == 1).then_some(())
    });
    wait_for("nothing else to wait", || {
        (server.rows("outbox") == 0).then_some(())
    });
    let mut keys = (0..).map(|n| format!("k{n}"));
    // What is written while it is measured may count twice for a moment.
    let mut key = keys.next().unwrap();
    wait_for("the outbox to be full", || {
        if put(&app, &key, &json!(1)) == 204 {
            key = keys.next().unwrap();
        }
        (server.rows("outbox") >= 50).then_some(())
    });
    assert_eq!(server.rows("outbox"), 50);
    // What nobody hears of, and what somebody waits for, goes on.
    app.set("unheard", "k", json!(1));
    app.serve(
        "tries",
        r#"let said = [];
           try { kv::collection("things").set("more", 1) } catch (err) { said.push(err.kind) }
           try { kv::collection("things").delete("k0") } catch (err) { said.push(err.kind) }
           try { pubsub::publish_durable("news", 1) } catch (err) { said.push(err.kind) }
           said"#,
    );
    assert_eq!(
        server.get("/tries").json(),
        json!(["too_large", "too_large", "too_large"])
    );
    beyond(
        &server.api("PUT", "/apps/full/kv/things/more", Some(json!(1))),
        "deliveries_max",
    );
    beyond(&server.post("/fails", &json!({})), "deliveries_max");
    let message = Some(json!({ "message": 1 }));
    beyond(
        &server.api("POST", "/apps/full/topics/news/messages", message),
        "deliveries_max",
    );
    other.script("hears", "1");
    other.trigger(
        "kv",
        json!({ "script": "hears", "collection": "things", "name": "kv" }),
    );
    assert_eq!(
        put(&other, "k", &json!(1)),
        204,
        "its neighbour's room is its own"
    );
    // An operator's replay is no new work: it becomes a dead letter again, of which somebody is told.
    let letter = app.dead_letters("state=unresolved")[0]["id"].clone();
    let path = format!("/dead-letters/{}/replay", letter.as_str().unwrap());
    assert_eq!(server.api("POST", &path, Some(json!({}))).status, 200);
    wait_for("its dead letter to be told of", || {
        (app.entries("told").len() == 2).then_some(())
    });
    collect(&server);
    let full = kept(&app, "deliveries");
    assert_eq!((&full["rows"], &full["rows_max"]), (&json!(50), &json!(50)));
    assert_eq!(
        server.metric(r#"picloud_stored_quota_used{data="deliveries"}"#),
        1.0
    );
    let doctor = server.api("GET", "/doctor", None).text();
    assert!(
        doctor.contains("full uses 100 % of deliveries_max"),
        "{doctor}"
    );
    let said = fine(server.cli(&["apps", "usage", "full"]));
    assert!(said.contains("50 of 50"), "{said}");
    resume(&server, &trigger);
    wait_for("all of them to be delivered", || {
        (app.entries("seen").len() == 50).then_some(())
    });
    assert_eq!(put(&app, "more", &json!(1)), 204);
    assert_eq!(server.post("/fails", &json!({})).status, 202);
}

fn deliveries_are_bounded_by_their_bytes_too(engine: Engine) {
    let options = Options::with(&[("PICLOUD_DELIVERY_BYTES_MAX", "256KiB")]);
    let server = Server::start_with(engine, options);
    let app = server.app("full");
    app.script("hears", "1");
    let trigger = paused(
        &app,
        "kv",
        json!({ "script": "hears", "collection": "things", "name": "kv" }),
    );
    let value = of_size(32 * KIB);
    let written = (0..20).take_while(|n| put(&app, &format!("k{n}"), &value) == 204);
    assert_eq!(written.count(), 7);
    beyond(
        &server.api("PUT", "/apps/full/kv/things/more", Some(value.clone())),
        "delivery_bytes_max",
    );
    assert_eq!(put(&app, "small", &json!(1)), 204);
    // It is known after a restart, too, once it is measured.
    collect(&server);
    assert_eq!(kept(&app, "deliveries")["rows"], 8);
    resume(&server, &trigger);
    wait_for("room for a value", || {
        (put(&app, "more", &value) == 204).then_some(())
    });
}

fn a_fork_bomb_of_events_ends_at_the_limit_and_disturbs_no_neighbour(engine: Engine) {
    const MOST: u64 = 300;
    // Each that runs when the limit is reached may be writing an event that was let in before.
    let options = Options::with(&[
        ("PICLOUD_EXECUTIONS_MAX", "100"),
        ("PICLOUD_DELIVERIES_MAX", "300"),
        ("PICLOUD_MAX_TRIGGER_DEPTH", "64"),
        ("PICLOUD_TRIGGER_RETRY_MAX_ATTEMPTS", "1"),
    ]);
    let server = Server::start_with(engine, options);
    let neighbour = server.app("neighbour");
    neighbour.serve("hello", r#""hello""#);
    let app = server.app("bomb");
    let id = app.script(
        "forks",
        r#"let c = kv::collection("bomb"); let key = ctx.event.kv.key;
           c.set(key + "0", 1); c.set(key + "1", 1)"#,
    );
    app.trigger(
        "kv",
        json!({ "script": "forks", "collection": "bomb", "name": "kv" }),
    );
    let light = || server.api("PUT", "/apps/bomb/kv/bomb/k", Some(json!(1)));
    assert_eq!(light().status, 204);
    let mut longest = 0;
    let (mut refusals, mut looked) = (0, 0);
    wait_for("the bomb to be stopped again and again", || {
        let hello = server.get("/hello");
        assert_eq!((hello.status, hello.json()), (200, json!("hello")));
        looked += 1;
        if looked % 10 == 0 {
            longest = longest.max(server.rows("outbox"));
        }
        let lit = light();
        match lit.status {
            204 => {}
            _ => beyond(&lit, "deliveries_max"),
        }
        refusals += u32::from(lit.status == 507);
        (refusals >= 30).then_some(())
    });
    assert!(longest <= MOST + 100, "{longest}");
    let change = json!({ "version": 1, "source": "1" });
    let changed = server.api("PATCH", &format!("/scripts/{id}"), Some(change));
    assert_eq!(changed.status, 200, "{}", changed.text());
    wait_for("the flood to be drained", || {
        (server.rows("outbox") == 0).then_some(())
    });
    wait_for("room again", || (light().status == 204).then_some(()));
    for _ in 0..100 {
        assert_eq!(server.get("/hello").status, 200);
    }
}

fn the_oldest_versions_that_nothing_needs_make_room_for_new_ones(engine: Engine) {
    let options = Options::with(&[
        ("PICLOUD_SCRIPT_VERSION_BYTES_MAX", "64KiB"),
        ("PICLOUD_TRIGGER_RETRY_MAX_ATTEMPTS", "1"),
    ]);
    let server = Server::start_with(engine, options);
    let app = server.app("versions");
    let source = |says: &str| format!("{says} // {}", "x".repeat(10 * KIB));
    let id = app.script("long", &source("throw 1;"));
    app.route_with("long", "POST /long", json!({ "dispatch_mode": "async" }));
    assert_eq!(server.post("/long", &json!({})).status, 202);
    wait_for("its dead letter", || {
        (app.dead_letters("").len() == 1).then_some(())
    });
    let path = format!("/scripts/{id}");
    for version in 1..20 {
        let change = json!({ "version": version, "source": source(&format!("{version};")) });
        let changed = server.api("PATCH", &path, Some(change));
        assert_eq!(changed.status, 200, "{}", changed.text());
    }
    let versions = server.api("GET", &format!("{path}/versions"), None).json();
    let left = versions["items"].as_array().unwrap().iter();
    let left: Vec<u64> = left.map(|one| one["version"].as_u64().unwrap()).collect();
    assert_eq!(
        left,
        [20, 19, 18, 17, 16, 1],
        "the newest, and what the dead letter may be replayed with"
    );
    // Scripts that are current are nobody's to remove.
    let create = |name: &str| {
        let new = json!({ "name": name, "source": source("1") });
        server.api("POST", "/apps/versions/scripts", Some(new))
    };
    let made = (0..9).take_while(|n| create(&format!("s{n}")).status == 201);
    assert_eq!(made.count(), 4);
    let refused = create("more");
    beyond(&refused, "script_version_bytes_max");
    let change = json!({ "version": 20, "limits": { "timeout_ms": 500 } });
    beyond(
        &server.api("PATCH", &path, Some(change)),
        "script_version_bytes_max",
    );
    collect(&server);
    assert_eq!(kept(&app, "script_versions")["rows"], 6);
    let at = "/apps/versions/scripts?name=s0";
    let script = server.api("GET", at, None).json()["items"][0]["id"].clone();
    let path = format!("/scripts/{}", script.as_str().unwrap());
    assert_eq!(server.api("DELETE", &path, None).status, 204);
    assert_eq!(create("more").status, 201);
}

fn beyond_the_quota_of_kept_answers_new_keys_are_refused_and_known_ones_answered(engine: Engine) {
    let options = Options::with(&[("PICLOUD_IDEMPOTENCY_BYTES_MAX", "64KiB")]);
    let server = Server::start_with(engine, options);
    let app = server.app("orders");
    app.script(
        "order",
        r#"kv::collection("runs").set(ctx.execution_id, 1); "x".repeat(8192)"#,
    );
    let policy = json!({ "ttl_s": 600 });
    app.route_with("order", "POST /order", json!({ "idempotency": policy }));
    app.route_with(
        "order",
        "POST /later",
        json!({ "idempotency": policy, "dispatch_mode": "async" }),
    );
    let call = |path: &str, key: &str| server.call("POST", path, &[("idempotency-key", key)], None);
    assert_eq!(call("/later", "first").status, 202);
    let answered = (0..20).take_while(|n| call("/order", &format!("k{n}")).status == 200);
    let answered = answered.count();
    assert!((7..=9).contains(&answered), "{answered}");
    let ran = || app.entries("runs").len();
    wait_for("the async call to have run", || {
        (ran() == answered + 1).then_some(())
    });
    beyond(&call("/order", "new"), "idempotency_bytes_max");
    beyond(&call("/later", "new"), "idempotency_bytes_max");
    assert_eq!(ran(), answered + 1, "what is refused is not run");
    let again = call("/order", "k0");
    assert_eq!(
        (
            again.status,
            again.headers["idempotency-replayed"] == "true"
        ),
        (200, true)
    );
    let again = call("/later", "first");
    assert_eq!(
        (
            again.status,
            again.headers["idempotency-replayed"] == "true"
        ),
        (202, true)
    );
    assert_eq!(
        server.post("/order", &json!({})).status,
        200,
        "a call without a key"
    );
    server.sql("update idempotency_keys set expires_at = '2020-01-01T00:00:00+00:00'");
    collect(&server);
    assert_eq!(call("/order", "new").status, 200);
}

fn an_app_has_only_so_many_objects_of_each_kind(engine: Engine) {
    let options = Options::with(&[
        ("PICLOUD_OBJECTS_PER_APP_MAX", "2"),
        (
            "PICLOUD_MASTER_KEY",
            "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
        ),
    ]);
    let server = Server::start_with(engine, options);
    let (_, elsewhere) = (server.app("full"), Server::start(engine));
    let (one, _) = server.join("one", "member", json!({}));
    let (two, _) = server.join("two", "member", json!({}));
    let (three, _) = server.join("three", "member", json!({}));
    let script = |n: usize| json!({ "name": format!("s{n}"), "source": "1" });
    let route = |n: usize| json!({ "script": "s0", "method": "GET", "path": format!("/r{n}") });
    let trigger = |n: usize| json!({ "script": "s0", "collection": "c", "name": format!("t{n}") });
    let topic = |_: usize| json!({ "auth_mode": "public" });
    let member = |_: usize| json!({ "role": "viewer" });
    let members = [one, two, three];
    let make = |kind: &str, n: usize| match kind {
        "scripts" => server.api("POST", "/apps/full/scripts", Some(script(n))),
        "routes" => server.api("POST", "/apps/full/routes", Some(route(n))),
        "triggers" => server.api("POST", "/apps/full/triggers/kv", Some(trigger(n))),
        "topics" => server.api("PUT", &format!("/apps/full/topics/t{n}"), Some(topic(n))),
        "members" => {
            let path = format!("/apps/full/members/{}", members[n]);
            server.api("PUT", &path, Some(member(n)))
        }
        _ => server.api("POST", "/apps/full/subscriber-keys/rotate", Some(json!({}))),
    };
    for kind in [
        "scripts",
        "routes",
        "triggers",
        "topics",
        "members",
        "subscriber_keys",
    ] {
        for n in 0..2 {
            let made = make(kind, n);
            assert!(made.status < 300, "{kind}: {}", made.text());
        }
        let refused = make(kind, 2);
        let problem = refused.json();
        assert_eq!(
            (refused.status, refused.problem()),
            (409, "too_many".to_owned())
        );
        assert_eq!(
            (&problem["kind"], &problem["max"]),
            (&json!(kind), &json!(2))
        );
        assert!(
            refused.text().contains("objects_per_app_max"),
            "{}",
            refused.text()
        );
    }
    // What is there can be changed.
    for kind in ["topics", "members"] {
        assert!(make(kind, 1).status < 300, "{kind}");
    }
    collect(&server);
    let usage = server.api("GET", "/apps/full/usage", None).json();
    let objects = usage["objects"].as_array().unwrap();
    assert!(
        objects
            .iter()
            .all(|one| one["count"] == 2 && one["max"] == 2),
        "{usage}"
    );
    assert_eq!(objects.len(), 6);
    let doctor = server.api("GET", "/doctor", None).text();
    assert!(doctor.contains("100 % of objects_per_app_max"), "{doctor}");
    assert_eq!(
        server.metric(r#"picloud_objects_limit_used{kind="routes"}"#),
        1.0
    );
    // An app that has more is not imported.
    let large = elsewhere.app("large");
    for n in 0..3 {
        large.script(&format!("s{n}"), "1");
    }
    fine(elsewhere.cli(&["export", "large"]));
    let file = elsewhere.folder().join("large.zip");
    let said = fails(&server.cli(&["import", file.to_str().unwrap()]), 4);
    assert!(said.contains("objects_per_app_max"), "{said}");
}
