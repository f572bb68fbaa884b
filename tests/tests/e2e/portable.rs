//! An app as a file: exported here, imported there, the same.

use std::path::Path;
use std::process::Output;

use picloud_tests::{App, Engine, EventStream, Server, err, fails, on_both_engines, wait_for};
use serde_json::{Value, json};

on_both_engines!(
    an_app_moves_to_another_instance_and_works_there,
    what_stands_in_the_way_of_an_import_is_named,
    a_file_that_is_no_app_is_refused,
    a_filter_for_what_was_deleted_still_hears_nothing,
);

#[track_caller]
pub fn succeed(output: &Output) -> Value {
    assert!(output.status.success(), "{}", err(output));
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

#[track_caller]
pub fn refused(output: &Output, code: i32, words: &str) {
    let said = fails(output, code);
    assert!(said.contains(words), "{words}: {said}");
}

/// What an app has, without what is of its instance: ids, dates and people.
fn shape(app: &App<'_>) -> Value {
    let list = |path: &str| {
        let list = app
            .server
            .api("GET", &format!("/apps/{}/{path}", app.slug), None);
        list.json()["items"].as_array().cloned().unwrap_or_default()
    };
    let scripts = list("scripts");
    let name_of = |id: &Value| {
        let found = scripts.iter().find(|script| script["id"] == *id);
        found.map_or(Value::Null, |script| script["name"].clone())
    };
    let versions = |script: &Value| -> Vec<Value> {
        let id = script["id"].as_str().unwrap();
        let version = |n: u64| {
            let path = format!("/scripts/{id}/versions/{n}");
            app.server.api("GET", &path, None).json()["source"].clone()
        };
        (1..=script["version"].as_u64().unwrap())
            .map(version)
            .collect()
    };
    let triggers = list("triggers");
    let trigger_of = |id: &Value| {
        let found = triggers.iter().find(|trigger| trigger["id"] == *id);
        found.map_or(Value::Null, |trigger| trigger["name"].clone())
    };
    let trigger = |trigger: &Value| {
        let mut shown = trigger.clone();
        let members = shown.as_object_mut().unwrap();
        for own in [
            "id",
            "app_id",
            "registered_by_principal",
            "created_at",
            "updated_at",
            "waiting",
        ] {
            members.remove(own);
        }
        shown["script_id"] = name_of(&trigger["script_id"]);
        if let Some(filter) = shown["filter"].as_object_mut()
            && filter.contains_key("trigger_id")
        {
            filter.insert(
                "trigger_id".into(),
                trigger_of(&trigger["filter"]["trigger_id"]),
            );
            filter.insert("script_id".into(), name_of(&trigger["filter"]["script_id"]));
        }
        shown
    };
    let route = |route: &Value| {
        json!([
            name_of(&route["script_id"]),
            route["method"],
            route["host"],
            route["path"],
            route["dispatch_mode"],
            route["idempotency"],
            route["cors"],
            route["trailing_slash"]
        ])
    };
    let topic = |topic: &Value| {
        json!([
            topic["name"],
            topic["auth_mode"],
            topic["retention_s"],
            topic["retention_messages"],
            topic["cors_origins"]
        ])
    };
    let script = |script: &Value| {
        json!([
            script["name"],
            script["kind"],
            script["version"],
            script["limits"],
            versions(script)
        ])
    };
    json!({
        "name": app.server.api("GET", &format!("/apps/{}", app.slug), None).json()["name"],
        "domains": list("domains"),
        "scripts": scripts.iter().map(script).collect::<Vec<_>>(),
        "routes": list("routes").iter().map(route).collect::<Vec<_>>(),
        "triggers": triggers.iter().map(trigger).collect::<Vec<_>>(),
        "topics": list("topics").iter().map(topic).collect::<Vec<_>>(),
        "kv": list("kv"),
        "things": app.entries("things"),
    })
}

/// An app with everything that an export has.
fn furnish(server: &Server) -> App<'_> {
    let app = server.app("shop");
    let hello = app.script_with("hello", "1", json!({ "timeout_ms": 1234 }));
    let second = json!({ "version": 1, "source": "`hello of ${ctx.app_slug}`" });
    let changed = server.api("PATCH", &format!("/scripts/{hello}"), Some(second));
    assert_eq!(changed.status, 200, "{}", changed.text());
    app.script(
        "listen/../it",
        r#"kv::collection("seen").set(ctx.event.kv.key, 1);"#,
    );
    let gone = app.script("gone", "1");
    let policy = json!({ "idempotency": { "ttl_s": 60, "keep_answer": false } });
    app.route_with("hello", "POST /hello/{name}", policy);
    let cors = json!({ "origins": ["https://shop.example.com"], "credentials": true });
    let more = json!({ "cors": cors, "trailing_slash": "redirect" });
    app.route_with("hello", "GET /hello", more);
    app.route("gone", "GET /gone");
    app.trigger(
        "kv",
        json!({ "script": "listen/../it", "collection": "things*", "name": "listens", "ops": ["insert"],
                "ordered_by": "key", "retry": { "attempts_max": 7, "base_ms": 5 } }),
    );
    let listens = server.api("GET", "/apps/shop/triggers", None).json()["items"][0]["id"].clone();
    let filter = json!({ "source": "kv", "trigger_id": listens });
    app.trigger(
        "dead_letter",
        json!({ "script": "hello", "name": "buries", "filter": filter }),
    );
    for n in 0..250 {
        app.set(
            "others",
            &format!("{n:03}"),
            json!({ "n": n, "text": "a\n\"b\" ü" }),
        );
    }
    app.set("things", "k", json!([1, 2.5, null]));
    wait_for("the handler", || (app.kv("seen", "k") == 1).then_some(()));
    for (topic, opening) in [
        ("news", json!({ "auth_mode": "public" })),
        (
            "room:*",
            json!({ "auth_mode": "token", "retention_s": 60, "retention_messages": 7,
                    "cors_origins": ["https://shop.test"] }),
        ),
    ] {
        super::realtime::open(&app, topic, opening);
    }
    super::realtime::publish(&app, "news", json!("stays here"));
    let removed = server.api("DELETE", &format!("/scripts/{gone}"), None);
    assert_eq!(removed.status, 204);
    let added = server.api(
        "POST",
        "/apps/shop/domains",
        Some(json!({ "host": "*.shop.test" })),
    );
    assert_eq!(added.status, 201, "{}", added.text());
    app
}

fn bytes_of(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

fn an_app_moves_to_another_instance_and_works_there(engine: Engine) {
    let here = Server::start(engine);
    let app = furnish(&here);
    succeed(&here.cli(&["export", "shop", "--kv", "--output", "app.zip"]));
    succeed(&here.cli(&["export", "shop"]));
    let with_kv = bytes_of(&here.folder().join("app.zip"));
    assert!(bytes_of(&here.folder().join("shop.zip")).len() < with_kv.len());
    let other = match engine {
        Engine::Sqlite => Engine::Postgres,
        Engine::Postgres => Engine::Sqlite,
    };
    let there = Server::start(other);
    let path = here.folder().join("app.zip");
    let path = path.to_str().unwrap();
    let made = succeed(&there.cli(&["import", path, "--as", "store", "--json"]));
    let counts = ["scripts", "routes", "triggers", "topics", "kv"];
    let counts = counts.map(|name| made[name].as_u64().unwrap());
    assert_eq!(counts, [2, 3, 2, 2, 252], "{made}");
    let moved = there.known_app("store");
    assert_eq!(shape(&app), shape(&moved));
    // It works, under its own name, and its triggers hear what is new and not what was imported.
    let hello = there.call("GET", "/hello", &[("host", "a.shop.test")], None);
    assert_eq!(hello.json(), "hello of store");
    assert_eq!(moved.executions("invocation_type=kv").len(), 0);
    moved.set("things", "new", json!(1));
    wait_for("the handler there", || {
        (moved.kv("seen", "new") == 1).then_some(())
    });
    assert_eq!(app.kv("seen", "new"), Value::Null);
    // Its topics are open, and have no message of before.
    let path = "/realtime/topics/news?last_event_id=earliest";
    let headers = [("host", "a.shop.test")];
    let stream = EventStream::open(&there.url, path, &headers).unwrap();
    stream.expect("ready");
    super::realtime::publish(&moved, "news", json!("new"));
    assert_eq!(stream.messages(1), ["new"]);
    // Beside itself: without its hosts, and without its data.
    let copied = here.cli(&["import", "shop.zip", "--as", "copy", "--without-domains"]);
    succeed(&copied);
    let copy = here.known_app("copy");
    let (mut had, mut has) = (shape(&app), shape(&copy));
    for member in ["domains", "kv", "things"] {
        had[member].take();
        has[member].take();
    }
    assert_eq!(had, has);
    assert_eq!(copy.kv("things", "k"), Value::Null);
}

fn what_stands_in_the_way_of_an_import_is_named(engine: Engine) {
    let server = Server::start(engine);
    let app = furnish(&server);
    let secret = json!({ "value": "x" });
    server.api("PUT", "/apps/shop/secrets/TOKEN", Some(secret));
    succeed(&server.cli(&["export", "shop", "--kv"]));
    let apps = || {
        server.api("GET", "/apps", None).json()["items"]
            .as_array()
            .unwrap()
            .len()
    };
    let before = (apps(), shape(&app));
    refused(
        &server.cli(&["import", "shop.zip"]),
        4,
        "has the slug `shop`",
    );
    refused(
        &server.cli(&["import", "shop.zip", "--as", "copy"]),
        4,
        "another app claims `*.shop.test`",
    );
    refused(
        &server.cli(&["import", "shop.zip", "--as", "No Slug"]),
        4,
        "a slug is",
    );
    refused(&server.cli(&["import", "none.zip"]), 1, "none.zip");
    refused(&server.cli(&["export", "none"]), 3, "none");
    assert_eq!((apps(), shape(&app)), before);
    let (_, member) = server.join("ada", "member", json!({ "shop": "app_admin" }));
    let file = bytes_of(&server.folder().join("shop.zip"));
    let send = |token: &str, query: &str| {
        let authorization = format!("Bearer {token}");
        let headers = [
            ("authorization", authorization.as_str()),
            ("content-type", "application/zip"),
        ];
        server.call(
            "POST",
            &format!("/api/v1/imports?{query}"),
            &headers,
            Some(&file),
        )
    };
    assert_eq!(send(&member, "slug=mine").status, 403);
    assert_eq!(
        send(&server.token, "slug=mine&domain=false").problem(),
        "invalid_request"
    );
    let made = send(&server.token, "slug=mine&domains=false");
    assert_eq!(made.status, 201, "{}", made.text());
    let has_key = server.api("GET", "/apps/shop/secrets", None).json()["items"][0]["name"].clone();
    let expected: Vec<Value> = [has_key].into_iter().filter(Value::is_string).collect();
    assert_eq!(made.json()["secrets_to_set"], json!(expected));
}

fn a_file_that_is_no_app_is_refused(engine: Engine) {
    let server = Server::start(engine);
    furnish(&server);
    succeed(&server.cli(&["backup", "backup.zip"]));
    succeed(&server.cli(&["export", "shop", "--kv"]));
    let file = |name: &str| server.folder().join(name);
    refused(
        &server.cli(&["import", "backup.zip", "--as", "x"]),
        4,
        "its format is `picloud-backup`",
    );
    let good = bytes_of(&file("shop.zip"));
    std::fs::write(file("cut.zip"), &good[..good.len() / 2]).unwrap();
    refused(
        &server.cli(&["import", "cut.zip", "--as", "x"]),
        4,
        "cut off",
    );
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 10] = [
        ("unknown field `evil`", |about| about["evil"] = 1.into()),
        ("its retry policy is out of bounds", |about| {
            about["triggers"][0]["retry"]["attempts_max"] = 100_000.into();
        }),
        ("must be 1 to", |about| {
            about["scripts"][0]["limits"]["fuel"] = 0.into()
        }),
        ("the script `nobody`", |about| {
            about["routes"][0]["script"] = "nobody".into()
        }),
        ("it is there twice", |about| {
            let first = about["triggers"][0].clone();
            about["triggers"].as_array_mut().unwrap().push(first);
        }),
        ("conflicts with", |about| {
            let first = about["routes"][0].clone();
            about["routes"].as_array_mut().unwrap().push(first);
        }),
        ("the topic `a b`", |about| {
            about["topics"][0]["name"] = "a b".into()
        }),
        ("retention_s is 1 to", |about| {
            about["topics"][0]["retention_s"] = 0.into()
        }),
        ("a path", |about| {
            about["routes"][0]["path"] = "no path".into()
        }),
        ("its versions do not end", |about| {
            about["scripts"][0]["version"] = 9.into()
        }),
    ];
    for (words, change) in changes {
        let mut contents = super::backup::Contents::read(&file("shop.zip"));
        change(&mut contents.manifest["about"]);
        contents.write(&file("bad.zip"));
        let output = server.cli(&["import", "bad.zip", "--as", "x", "--without-domains"]);
        refused(&output, 4, words);
    }
    let mut contents = super::backup::Contents::read(&file("shop.zip"));
    let kv = String::from_utf8(contents.entries["kv.jsonl"].clone()).unwrap();
    let first = kv.lines().next().unwrap();
    contents.set("kv.jsonl", format!("{kv}{first}\n").into_bytes());
    contents.write(&file("bad.zip"));
    let output = server.cli(&["import", "bad.zip", "--as", "x", "--without-domains"]);
    refused(&output, 4, "a key is there twice");
    contents.set("kv.jsonl", b"[\"c\",\"k\",\"no json\"]\n".to_vec());
    contents.write(&file("bad.zip"));
    let output = server.cli(&["import", "bad.zip", "--as", "x", "--without-domains"]);
    refused(&output, 4, "line 1");
    assert_eq!(server.api("GET", "/apps/x", None).status, 404);
}

fn a_filter_for_what_was_deleted_still_hears_nothing(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    for name in ["doomed", "gone", "hear"] {
        app.script(
            name,
            if name == "hear" {
                r#"kv::collection("heard").set("k", 1)"#
            } else {
                "throw 1"
            },
        );
    }
    let once = json!({ "attempts_max": 1 });
    app.trigger(
        "kv",
        json!({ "script": "doomed", "collection": "c", "retry": once }),
    );
    let gone = app.trigger(
        "kv",
        json!({ "script": "doomed", "collection": "gone", "name": "gone" }),
    );
    let gone = gone["id"].as_str().unwrap();
    app.trigger(
        "dead_letter",
        json!({ "script": "hear", "filter": { "trigger_id": gone }, "name": "of trigger" }),
    );
    let script = app
        .server
        .api("GET", "/apps/a/scripts?name=gone", None)
        .json();
    let script = script["items"][0]["id"].as_str().unwrap().to_owned();
    app.trigger(
        "dead_letter",
        json!({ "script": "hear", "filter": { "script_id": script }, "name": "of script" }),
    );
    for path in [format!("/triggers/{gone}"), format!("/scripts/{script}")] {
        assert_eq!(server.api("DELETE", &path, None).status, 204);
    }
    succeed(&server.cli(&["export", "a", "--output", "a.zip"]));
    succeed(&server.cli(&["import", "a.zip", "--as", "b", "--json"]));
    for slug in ["a", "b"] {
        let app = server.known_app(slug);
        app.set("c", "k", json!(1));
        wait_for("a dead letter", || {
            (!app.dead_letters("").is_empty()).then_some(())
        });
        server.assert_nothing_stuck();
        assert_eq!(
            app.kv("heard", "k"),
            json!(null),
            "{slug} hears more than before"
        );
    }
}

#[test]
fn a_small_file_that_unpacks_to_millions_takes_no_more_than_it_may() {
    let server = Server::start(Engine::Sqlite);
    server.app("shop").set("c", "k", json!(1));
    succeed(&server.cli(&["export", "shop", "--kv"]));
    let file = |name: &str| server.folder().join(name);
    let mut contents = super::backup::Contents::read(&file("shop.zip"));
    let lines = (0..1_700_000).map(|n| format!("[\"c\",\"{n}\",\"1\"]\n"));
    contents.set("kv.jsonl", lines.collect::<String>().into_bytes());
    contents.write(&file("many.zip"));
    let before = server.memory_kib();
    let output = server.cli(&["import", "many.zip", "--as", "x", "--without-domains"]);
    refused(&output, 4, "more entries than an import takes");
    let peak = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let peak = peak.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|line| line.split_whitespace().next());
    let peak: u64 = peak.unwrap().parse().unwrap();
    let more_mib = peak.saturating_sub(before) >> 10;
    assert!(more_mib < 450, "{more_mib} MiB more");
    assert_eq!(server.api("GET", "/apps/x", None).status, 404);
}
