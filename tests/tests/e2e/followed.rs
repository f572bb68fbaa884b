//! What people who are signed in follow as it happens: the events of their apps, one execution, an
//! open topic.

use picloud_tests::{Engine, EventStream, on_both_engines};
use serde_json::{Value, json};

use crate::realtime::{publish, ready, start, subscribe};

on_both_engines!(
    the_dashboard_hears_what_its_user_may_see,
    an_execution_is_followed_while_it_runs,
    whoever_manages_topics_hears_an_open_one,
);

fn the_dashboard_hears_what_its_user_may_see(engine: Engine) {
    let server = start(engine);
    let (shop, other) = (server.app("shop"), server.app("other"));
    let (id, ada) = server.join("ada", "member", json!({ "shop": "app_admin" }));
    let events = |token: &str, query: &str| {
        let bearer = format!("Bearer {token}");
        let path = format!("/api/v1/events{query}");
        subscribe(&server, &path, &[("authorization", &bearer)])
    };
    assert_eq!(server.get("/api/v1/events").status, 401);
    let (owners, adas) = (events(&server.token, ""), events(&ada, ""));
    let begin = ready(&adas);
    ready(&owners);
    // What is coalesced may come at any time.
    let next = |stream: &EventStream| loop {
        let event = stream.expect("message");
        if event.data["type"] != "executions" {
            return event;
        }
    };
    other.script("s", "1");
    shop.script("s", "1");
    let event = next(&adas);
    assert_eq!(event.data["type"], "changed");
    assert_eq!(event.data["data"]["what"], "script");
    assert_eq!(event.data["data"]["by"], "owner");
    let shop_id = server.api("GET", "/apps/shop", None).json()["id"].clone();
    assert_eq!(event.data["app_id"], shop_id);
    assert_ne!(
        next(&owners).data["app_id"],
        shop_id,
        "the other app's came first"
    );
    shop.script("dies", "throw 1");
    shop.route_with("dies", "POST /dies", json!({ "dispatch_mode": "async" }));
    shop.trigger(
        "kv",
        json!({ "script": "dies", "collection": "c", "retry": { "attempts_max": 1, "base_ms": 1 } }),
    );
    for _ in 0..3 {
        assert_eq!(next(&adas).data["type"], "changed");
    }
    shop.set("c", "k", json!(1));
    let created = next(&adas);
    assert_eq!(created.data["type"], "dead_letters.created");
    assert_eq!(created.data["data"]["count"], 1);
    let letter = created.data["data"]["ids"][0].as_str().unwrap().to_owned();
    let resolve = json!({ "reason": "ignored" });
    let path = format!("/dead-letters/{letter}/resolve");
    assert_eq!(server.api("POST", &path, Some(resolve)).status, 200);
    let resolved = next(&adas);
    assert_eq!(resolved.data["type"], "dead_letters.resolved");
    assert_eq!(resolved.data["data"]["ids"], json!([letter]));
    // Executions are summed up.
    shop.serve("fine", "1");
    assert_eq!(next(&adas).data["type"], "changed");
    assert_eq!(next(&adas).data["type"], "changed");
    server.get("/fine");
    let summary = loop {
        let event = adas.expect("message");
        if event.data["type"] == "executions" && event.data["data"]["by_outcome"]["answered"] == 1 {
            break event;
        }
    };
    assert!(summary.id.is_none());
    // Somebody who comes back has all that they may see, and no more.
    let path = format!("?last_event_id={begin}&app=shop");
    let again = events(&ada, &path);
    ready(&again);
    let types: Vec<Value> = (0..8).map(|_| next(&again).data["type"].clone()).collect();
    assert_eq!(types.iter().filter(|kind| **kind == "changed").count(), 6);
    // Without the role nothing is heard any more, at once.
    let removed = server.api("DELETE", &format!("/apps/shop/members/{id}"), None);
    assert_eq!(removed.status, 204, "{}", removed.text());
    shop.script("unseen", "1");
    let after = events(&ada, &format!("?last_event_id={begin}"));
    ready(&after);
    assert!(after.is_silent(500));
    assert_eq!(events(&ada, "?app=shop").status, 404);
}

fn an_execution_is_followed_while_it_runs(engine: Engine) {
    let server = start(engine);
    let app = server.app("shop");
    app.script(
        "waits",
        r#"
        log::info("first", #{ n: 1 });
        while kv::collection("c").get("go") == () { sleep(0.02) }
        log::warn("second");
        "#,
    );
    app.route_with("waits", "GET /waits", json!({ "dispatch_mode": "async" }));
    let id = server.get("/waits").json()["execution_id"].clone();
    let path = format!("/api/v1/executions/{}/events", id.as_str().unwrap());
    let bearer = format!("Bearer {}", server.token);
    let follow = |last: &str| {
        let headers = [("authorization", &*bearer), ("last-event-id", last)];
        subscribe(&server, &path, &headers)
    };
    let stayed = follow("");
    let first = stayed.expect("log");
    assert_eq!(first.id.as_deref(), Some("1"));
    assert_eq!(first.data["message"], "first");
    assert_eq!(first.data["fields"], json!({ "n": 1 }));
    // Somebody who comes in the middle has the same lines.
    let late = follow("");
    assert_eq!(late.expect("log"), first);
    let back = follow("1");
    app.set("c", "go", json!(true));
    for stream in [stayed, late, back] {
        let second = stream.expect("log");
        assert_eq!(second.id.as_deref(), Some("2"));
        assert_eq!(second.data["message"], "second");
        assert_eq!(stream.expect("outcome").data["id"], id);
        assert_eq!(stream.next(), None);
    }
    let after = follow("");
    assert_eq!(after.expect("log"), first);
    after.expect("log");
    after.expect("outcome");
    assert_eq!(follow("end").next(), None);
}

fn whoever_manages_topics_hears_an_open_one(engine: Engine) {
    let server = start(engine);
    let app = server.app("shop");
    let (id, ada) = server.join("ada", "member", json!({ "shop": "app_admin" }));
    let (_, eve) = server.join("eve", "member", json!({ "shop": "editor" }));
    let follow = |token: &str, topic: &str| {
        let bearer = format!("Bearer {token}");
        let path = format!("/api/v1/apps/shop/topics/{topic}/events?last_event_id=earliest");
        subscribe(&server, &path, &[("authorization", &bearer)])
    };
    assert_eq!(follow(&ada, "room:1").status, 404, "nobody opened it");
    let opened = json!({ "auth_mode": "token" });
    let open = server.api("PUT", "/apps/shop/topics/room:*", Some(opened));
    assert_eq!(open.status, 200, "{}", open.text());
    assert_eq!(follow(&eve, "room:1").status, 403);
    assert_eq!(follow(&ada, "room%20").status, 422);
    publish(&app, "room:1", json!("kept"));
    let stream = follow(&ada, "room:1");
    ready(&stream);
    publish(&app, "room:1", json!("live"));
    assert_eq!(stream.messages(2), ["kept", "live"]);
    // It ends with the role, and with the topic.
    let owners = follow(&server.token, "room:1");
    ready(&owners);
    let removed = server.api("DELETE", &format!("/apps/shop/members/{id}"), None);
    assert_eq!(removed.status, 204, "{}", removed.text());
    stream.expect("reset");
    assert_eq!(stream.next(), None);
    let closed = server.api("DELETE", "/apps/shop/topics/room:*", None);
    assert_eq!(closed.status, 204, "{}", closed.text());
    assert_eq!(owners.messages(2), ["kept", "live"]);
    owners.expect("reset");
}
