//! Quotas: how much an app keeps in the database, and what happens beyond.

use picloud_tests::{App, Engine, Options, Server, fine, on_both_engines, wait_for};
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
