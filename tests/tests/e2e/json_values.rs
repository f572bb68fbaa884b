//! What a JSON value may be: refused where it enters, and read whatever an older version kept.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use picloud_tests::{Answer, App, Engine, Server, on_both_engines, wait_for};
use serde_json::{Value, json};

use super::backup::Contents;
use super::portable::{refused, succeed};
use super::realtime::{public, publish, ready, subscribe};

on_both_engines!(
    what_no_reader_holds_is_refused_where_it_enters,
    what_a_guest_writes_is_refused_with_its_place,
    the_deepest_value_goes_everywhere,
    a_stored_value_is_read_and_corrected,
    a_stored_delivery_dies_and_is_settled,
    what_is_no_json_at_all_is_shown,
    a_stored_message_is_told,
    numbers_stay_as_they_are_written,
    a_script_lists_what_is_no_json_at_all,
);

/// A value that some reader does not hold, its place, what is said of it, and how it is read
/// where an older version stored it.
struct Odd {
    text: String,
    place: String,
    says: &'static str,
    read: Value,
}

fn odd_values() -> [Odd; 6] {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    // What is deeper than anybody reads is read as text.
    let deep = |left: usize| (0..100).fold(json!(nested(left)), |deep, _| json!([deep]));
    [
        Odd {
            text: r#"{"a":["\ud83d"]}"#.to_owned(),
            place: "/a/0".to_owned(),
            says: "\\ud83d is half of a surrogate pair",
            read: json!({ "a": ["\u{fffd}"] }),
        },
        Odd {
            text: r#"{"x":1e999}"#.to_owned(),
            place: "/x".to_owned(),
            says: "1e999 is beyond what a double holds",
            read: json!({ "x": "1e999" }),
        },
        Odd {
            text: r#"[0,-1e400]"#.to_owned(),
            place: "/1".to_owned(),
            says: "-1e400 is beyond what a double holds",
            read: json!([0, "-1e400"]),
        },
        Odd {
            text: r#"{"n":[-79228162514264337593543950336]}"#.to_owned(),
            place: "/n/0".to_owned(),
            says: "is beyond what every reader holds",
            read: json!({ "n": ["-79228162514264337593543950336"] }),
        },
        Odd {
            text: nested(101),
            place: "/0".repeat(100),
            says: "nested more than 10",
            read: deep(1),
        },
        Odd {
            text: nested(200),
            place: "/0".repeat(100),
            says: "nested more than 10",
            read: deep(100),
        },
    ]
}

/// A call of the API with a body that is no `Value`.
pub fn api(server: &Server, method: &str, path: &str, body: &str) -> Answer {
    let token = format!("Bearer {}", server.token);
    let headers = [("authorization", token.as_str())];
    let path = format!("/api/v1{path}");
    server.call(method, &path, &headers, Some(body.as_bytes()))
}

#[track_caller]
fn is_refused(answer: &Answer, field: &str, place: &str, says: &str) {
    let problem = (answer.status, answer.problem());
    assert_eq!(
        problem,
        (422, "invalid_request".to_owned()),
        "{}",
        answer.text()
    );
    let problem = answer.json();
    assert_eq!(problem["field"], field, "{problem}");
    assert_eq!(problem["at"], place, "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(says), "{detail}");
    assert!(detail.contains(place) || detail.contains('…'), "{detail}");
}

/// Handlers of `things`, in the order of each key, and of what is not handled.
fn handlers(app: &App<'_>) {
    app.script(
        "handler",
        r#"let kv = ctx.event.kv;
           if kv.value.type_of() != "i64" { throw "no number" }
           // As text: around the deepest value there is no room for a map.
           let was = json::stringify(kv.old_value);
           let repaired = kv.get_or("old_value_repaired", false);
           kv::collection("handled").set(kv.key, #{ value: kv.value, was: was, repaired: repaired });"#,
    );
    app.script(
        "told",
        r#"let told = ctx.event.dead_letter;
           kv::collection("told").set(told.original.kv.key, told.original.contains("kv"));"#,
    );
    app.trigger("dead_letter", json!({ "script": "told" }));
    app.trigger(
        "kv",
        json!({ "script": "handler", "collection": "things", "name": "things",
                "ordered_by": "key", "retry": { "attempts_max": 1 } }),
    );
}

/// The old value that the handler was told.
fn was(handled: &Value) -> Value {
    serde_json::from_str(handled["was"].as_str().unwrap()).unwrap()
}

fn what_no_reader_holds_is_refused_where_it_enters(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    handlers(&app);
    app.set("things", "dead", json!("no number"));
    let letter = wait_for("a dead letter", || app.dead_letters("").pop());
    let replay = format!("/dead-letters/{}/replay", letter["id"].as_str().unwrap());
    app.serve("s", "1");
    let asynchronous = json!({ "dispatch_mode": "async" });
    app.route_with("s", "POST /later", asynchronous);
    let script = server.api("GET", "/apps/a/scripts?name=s", None).json()["items"][0].clone();
    let execute = format!("/scripts/{}/execute", script["id"].as_str().unwrap());
    for Odd {
        text, place, says, ..
    } in &odd_values()
    {
        let put = api(&server, "PUT", "/apps/a/kv/things/k", text);
        is_refused(&put, "value", place, says);
        for ephemeral in [true, false] {
            let message = format!(r#"{{"message":{text},"ephemeral":{ephemeral}}}"#);
            let published = api(&server, "POST", "/apps/a/topics/t/messages", &message);
            is_refused(&published, "message", place, says);
        }
        let executed = api(&server, "POST", &execute, &format!(r#"{{"body":{text}}}"#));
        is_refused(&executed, "body", place, says);
        for route in ["/s", "/later"] {
            let called = server.call("POST", route, &[], Some(text.as_bytes()));
            is_refused(&called, "body", place, says);
        }
        let edited = format!(r#"{{"payload":{{"kv":{{"value":{text}}}}}}}"#);
        let replayed = api(&server, "POST", &replay, &edited);
        is_refused(&replayed, "payload", &format!("/kv/value{place}"), says);
        for words in [
            &["kv", "set", "things", "k", text, "--app", "a"][..],
            &["publish", "t", text, "--app", "a"],
            &["invoke", "s", "--data", text, "--app", "a"],
        ] {
            refused(&server.cli(words), 2, says);
        }
    }
    for path in ["/apps/a/kv/things/k", "/s", "/later"] {
        let answer = match path.starts_with("/apps") {
            true => api(&server, "PUT", path, "{\"a\": "),
            false => server.call("POST", path, &[], Some(b"{\"a\": ")),
        };
        assert_eq!(
            (answer.status, answer.problem()),
            (400, "malformed_request".to_owned())
        );
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(
            detail.contains("line 1") && detail.contains("column"),
            "{detail}"
        );
    }
    // Of another type than JSON it is nobody's business.
    let text = [("content-type", "text/plain")];
    let odd = &odd_values()[0].text;
    assert_eq!(
        server
            .call("POST", "/s", &text, Some(odd.as_bytes()))
            .status,
        200
    );
    assert_eq!(app.kv("things", "k"), Value::Null);
    // A file, too, that was made elsewhere.
    app.set("things", "k", json!("POISON"));
    succeed(&server.cli(&["export", "a", "--kv"]));
    let file = server.folder().join("a.zip");
    let bad = server.folder().join("bad.zip");
    for Odd {
        text, place, says, ..
    } in &odd_values()
    {
        let mut contents = Contents::read(&file);
        let entries = String::from_utf8(contents.entries["kv.jsonl"].clone()).unwrap();
        let line = json!(["things", "k", text]).to_string();
        let good = json!(["things", "k", "\"POISON\""]).to_string();
        contents.set("kv.jsonl", entries.replace(&good, &line).into());
        contents.write(&bad);
        let import = server.cli(&["import", bad.to_str().unwrap(), "--as", "b"]);
        refused(&import, 4, says);
        refused(&import, 4, place);
    }
    assert_eq!(server.api("GET", "/apps/b", None).status, 404);
}

fn what_a_guest_writes_is_refused_with_its_place(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.serve(
        "rhai",
        r#"let said = [];
           let deep = []; for i in 0..100 { deep = [deep]; }
           for odd in [#{ x: [1.0 / 0.0] }, #{ x: -(0.0 / 0.0) }, #{ x: deep }] {
               try { kv::collection("c").set("k", odd) } catch (e) { said.push(e); }
               try { pubsub::publish_durable("t", odd) } catch (e) { said.push(e); }
           }
           try { json::parse("1e999") } catch (e) { said.push(e); }
           try { json::parse("\"\\ud83d\"") } catch (e) { said.push(e); }
           said"#,
    );
    let said = server.get("/rhai").json();
    let said: Vec<&str> = said
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for (n, says) in [
        (0, "kv.set: the value: `x[0]` is the number inf"),
        (
            1,
            "pubsub::publish_durable: the message: `x[0]` is the number inf",
        ),
        (2, "`x` is the number NaN"),
        (4, "kv.set: the value: `x[0]"),
        (4, "nested more than 100 deep"),
        (5, "pubsub::publish_durable: the message: `x[0]"),
        (6, "number out of range"),
        (7, "hex escape"),
    ] {
        assert!(said[n].contains(says), "{n}: {said:?}");
    }
    let wasm = include_bytes!("../../fixtures/function-v1.wasm");
    let component =
        json!({ "name": "first", "kind": "component", "wasm_base64": STANDARD.encode(wasm) });
    let made = server.api("POST", "/apps/a/scripts", Some(component));
    assert_eq!(made.status, 201, "{}", made.text());
    app.route("first", "POST /component");
    for Odd {
        text, place, says, ..
    } in &odd_values()
    {
        let plain = [("content-type", "application/octet-stream")];
        let failed = server.call("POST", "/component", &plain, Some(text.as_bytes()));
        assert_eq!(failed.problem(), "script_failed");
        let id = failed.json()["execution_id"].as_str().unwrap().to_owned();
        let kept = server.api("GET", &format!("/executions/{id}"), None).json();
        let error = kept["error"]["message"]
            .as_str()
            .unwrap()
            .replace("\\\\", "\\");
        assert!(
            error.contains("invalid-value") || error.contains("InvalidValue"),
            "{error}"
        );
        assert!(error.contains(says) && error.contains(place), "{error}");
    }
    assert_eq!(app.entries("fixture"), []);
}

fn the_deepest_value_goes_everywhere(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    handlers(&app);
    app.serve("list", r#"kv::collection("things").get("k")"#);
    let mut deepest = json!([]);
    for _ in 1..100 {
        deepest = json!({ "a": deepest });
    }
    app.set("things", "k", deepest.clone());
    // The handler throws: the value is in the event of a dead letter.
    let told = wait_for("the handler of dead letters", || {
        Some(app.kv("told", "k")).filter(|told| !told.is_null())
    });
    assert_eq!(told, true);
    let letter = app.dead_letters("").pop().unwrap();
    let path = format!("/dead-letters/{}", letter["id"].as_str().unwrap());
    let shown = server.api("GET", &path, None).json();
    assert_eq!(shown["payload"]["kv"]["value"], deepest);
    assert_eq!(shown["payload_repaired"], false);
    let edited = json!({ "payload": shown["payload"] });
    let replayed = server.api("POST", &format!("{path}/replay"), Some(edited));
    assert_eq!(replayed.status, 200, "{}", replayed.text());
    assert_eq!(server.get("/list").json(), deepest);
    // The next event has it as the old value.
    app.set("things", "k", json!(1));
    let handled = wait_for("the handler", || {
        Some(app.kv("handled", "k")).filter(|kv| !kv.is_null())
    });
    assert_eq!(
        (was(&handled), &handled["repaired"]),
        (deepest, &json!(false))
    );
}

fn a_stored_value_is_read_and_corrected(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    handlers(&app);
    app.serve("get", r#"kv::collection("things").get(ctx.request.body)"#);
    app.serve(
        "list",
        r#"kv::collection("things").list().entries.map(|e| json::stringify(e.value))"#,
    );
    app.serve(
        "marks",
        r#"["things", "whole"].map(|name| kv::collection(name).list().entries
               .map(|e| e.get_or("value_repaired", false)))"#,
    );
    let odd = odd_values();
    let mut statements = String::new();
    for (n, Odd { text, .. }) in odd.iter().enumerate() {
        app.set("other", &format!("k{n}"), json!(0));
        writeln!(
            statements,
            "update kv set collection = 'things', value = '{text}' where key = 'k{n}';"
        )
        .unwrap();
    }
    server.sql(&statements);
    let read: Vec<Value> = odd.iter().map(|odd| odd.read.clone()).collect();
    let listed = server.api("GET", "/apps/a/kv/things", None);
    assert_eq!(listed.status, 200, "{}", listed.text());
    let listed: Vec<Value> = app
        .entries("things")
        .into_iter()
        .map(|entry| entry.1)
        .collect();
    assert_eq!(listed, read);
    let texts: Vec<String> = read.iter().map(Value::to_string).collect();
    assert_eq!(server.get("/list").json(), json!(texts));
    app.set("whole", "k", json!(1));
    let marks = json!([vec![true; odd.len()], [false]]);
    assert_eq!(server.get("/marks").json(), marks);
    // What is exported can be imported.
    succeed(&server.cli(&["export", "a", "--kv"]));
    succeed(&server.cli(&["import", "a.zip", "--as", "b", "--without-domains"]));
    let imported = server.known_app("b").entries("things");
    assert_eq!(
        imported
            .into_iter()
            .map(|entry| entry.1)
            .collect::<Vec<_>>(),
        read
    );
    for (n, read) in read.iter().enumerate() {
        let key = format!("k{n}");
        assert_eq!(server.post("/get", &json!(key)).json(), *read);
        let path = format!("/apps/a/kv/things/{key}");
        let shown = server.api("GET", &path, None);
        assert_eq!((shown.status, shown.json()), (200, read.clone()));
        // It is corrected by whoever has seen it, and the event tells what it was.
        let tag = shown.headers["etag"].to_str().unwrap();
        let token = format!("Bearer {}", server.token);
        let headers = [("authorization", token.as_str()), ("if-match", tag)];
        let put = server.call("PUT", &format!("/api/v1{path}"), &headers, Some(b"7"));
        assert_eq!(put.status, 204, "{}", put.text());
        let handled = wait_for("the handler", || {
            Some(app.kv("handled", &key)).filter(|kv| !kv.is_null())
        });
        assert_eq!((&handled["value"], &was(&handled)), (&json!(7), read));
        assert_eq!(handled["repaired"], true);
    }
    assert_eq!(app.dead_letters(""), Vec::<Value>::new());
}

fn a_stored_delivery_dies_and_is_settled(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    handlers(&app);
    app.script(
        "lister",
        "dead_letters::list().entries.map(|e| e.original.kv.key)",
    );
    let trigger = server.api("GET", "/apps/a/triggers", None).json()["items"].clone();
    let trigger = trigger
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["name"] == "things");
    let trigger = format!("/triggers/{}", trigger.unwrap()["id"].as_str().unwrap());
    let paused = server.api("POST", &format!("{trigger}/pause"), None);
    assert_eq!(paused.status, 200, "{}", paused.text());
    let odd = odd_values();
    // As the version before wrote them: an odd value, and what came after it on the same key.
    let mut statements = String::new();
    for (n, Odd { text, .. }) in odd.iter().enumerate() {
        let key = format!("k{n}");
        app.set("things", &key, json!(format!("POISON{n}")));
        app.set("things", &key, json!(n));
        writeln!(
            statements,
            "update outbox set payload = replace(payload, '\"POISON{n}\"', '{text}');"
        )
        .unwrap();
    }
    server.sql(&statements);
    let resumed = server.api("POST", &format!("{trigger}/resume"), None);
    assert_eq!(resumed.status, 200, "{}", resumed.text());
    let handled = wait_for("what comes after on the same keys", || {
        Some(app.entries("handled")).filter(|all| all.len() == odd.len())
    });
    for ((_, kv), odd) in handled.iter().zip(&odd) {
        assert_eq!(was(kv), odd.read);
    }
    wait_for("the handlers of dead letters", || {
        let told = app.entries("told");
        (told.len() == odd.len() && told.iter().all(|(_, told)| *told == true)).then_some(())
    });
    let letters = app.dead_letters("state=unresolved");
    assert_eq!(letters.len(), odd.len());
    assert!(
        letters
            .iter()
            .all(|letter| letter["handler_failed"] == false),
        "{letters:?}"
    );
    let lister = server
        .api("GET", "/apps/a/scripts?name=lister", None)
        .json()["items"][0]
        .clone();
    let execute = format!("/scripts/{}/execute", lister["id"].as_str().unwrap());
    let listed = server.api("POST", &execute, Some(json!({}))).json();
    assert_eq!(listed["outcome"], "answered", "{listed}");
    for letter in &letters {
        let path = format!("/dead-letters/{}", letter["id"].as_str().unwrap());
        let shown = server.api("GET", &path, None);
        assert_eq!(shown.status, 200, "{}", shown.text());
        let shown = shown.json();
        let key = shown["payload"]["kv"]["key"].as_str().unwrap().to_owned();
        let n: usize = key[1..].parse().unwrap();
        assert_eq!(shown["payload"]["kv"]["value"], odd[n].read);
        assert_eq!(shown["payload_repaired"], true);
        // One is put back as it is, one is put back corrected, one is resolved.
        let settled = match n {
            0 => server.api("POST", &format!("{path}/replay"), Some(json!({}))),
            1 => {
                let mut payload = shown["payload"].clone();
                payload["kv"]["value"] = json!(41);
                let body = json!({ "payload": payload });
                server.api("POST", &format!("{path}/replay"), Some(body))
            }
            _ => server.api(
                "POST",
                &format!("{path}/resolve"),
                Some(json!({ "reason": "ignored" })),
            ),
        };
        assert_eq!(settled.status, 200, "{}", settled.text());
    }
    wait_for("the corrected one", || {
        (app.kv("handled", "k1")["value"] == 41).then_some(())
    });
    // It fails again, and is a dead letter again.
    let again = wait_for("a dead letter", || {
        app.dead_letters("state=unresolved").pop()
    });
    assert!(again["replay_of"].is_string(), "{again}");
    let resolve = json!({ "reason": "ignored", "all": true });
    let resolved = server.api("POST", "/apps/a/dead-letters/resolve", Some(resolve));
    assert_eq!(resolved.json()["resolved"], 1, "{}", resolved.text());
}

fn what_is_no_json_at_all_is_shown(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    handlers(&app);
    app.set("things", "k", json!("no number"));
    let letter = wait_for("a dead letter", || app.dead_letters("").pop());
    app.serve("logs", r#"log::warn("said", #{ x: "POISON" }); 1"#);
    assert_eq!(server.get("/logs").status, 200);
    let logged = wait_for("its execution", || {
        let all = app.executions("invocation_type=http");
        all.into_iter().next()
    });
    server.sql(
        "update dead_letters set payload = 'nonsense', history = '{';
         update kv set value = '{\"a\":' where collection = 'things';
         update executions set logs = replace(logs, '\"POISON\"', '[1e999]'), error = 'nonsense'
         where invocation_type = 'http';",
    );
    let path = format!("/dead-letters/{}", letter["id"].as_str().unwrap());
    let shown = server.api("GET", &path, None);
    assert_eq!(shown.status, 200, "{}", shown.text());
    assert_eq!(shown.json()["payload"], "nonsense");
    assert_eq!(app.dead_letters("").len(), 1);
    let resolve = json!({ "reason": "ignored" });
    let resolved = server.api("POST", &format!("{path}/resolve"), Some(resolve));
    assert_eq!(resolved.status, 200, "{}", resolved.text());
    let found = server.api("GET", "/apps/a/kv/things/k", None);
    assert_eq!((found.status, found.json()), (200, json!("{\"a\":")));
    let tag = found.headers["etag"].to_str().unwrap();
    let token = format!("Bearer {}", server.token);
    let headers = [("authorization", token.as_str()), ("if-match", tag)];
    let put = server.call("PUT", "/api/v1/apps/a/kv/things/k", &headers, Some(b"7"));
    assert_eq!(put.status, 204, "{}", put.text());
    wait_for("the handler", || {
        (app.kv("handled", "k")["value"] == 7).then_some(())
    });
    let path = format!("/executions/{}", logged["id"].as_str().unwrap());
    let shown = server.api("GET", &path, None);
    assert_eq!(shown.status, 200, "{}", shown.text());
    assert_eq!(shown.json()["logs"][0]["fields"]["x"], json!(["1e999"]));
    assert_eq!(shown.json()["error"]["message"], "nonsense");
}

fn a_stored_message_is_told(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    public(&app, "t");
    let path = "/realtime/topics/t";
    let begin = ready(&subscribe(&server, path, &[]));
    let odd = odd_values();
    let mut statements = String::new();
    for (n, Odd { text, .. }) in odd.iter().enumerate() {
        publish(&app, "t", json!(format!("POISON{n}")));
        writeln!(
            statements,
            "update journal set body = replace(body, '\"POISON{n}\"', '{text}');"
        )
        .unwrap();
    }
    server.sql(&statements);
    let stream = subscribe(&server, path, &[("last-event-id", &begin)]);
    ready(&stream);
    let read: Vec<Value> = odd.iter().map(|odd| odd.read.clone()).collect();
    assert_eq!(stream.messages(odd.len()), read);
}

/// Numbers as they are written, of which a reader that makes doubles of them changes each but the
/// first.
const NUMBERS: &str = r#"[1,10.0,9007199254740993,18446744073709551617,0.1e1,1E+2,-0.0,5e-324,123456789.123456789012345]"#;

fn numbers_stay_as_they_are_written(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script("doomed", "throw 1");
    let once = json!({ "attempts_max": 1 });
    app.trigger(
        "kv",
        json!({ "script": "doomed", "collection": "c", "retry": once }),
    );
    app.script(
        "hear",
        r#"let seen = kv::collection("seen"); seen.set("event", ctx.event.kv.value[1])"#,
    );
    app.trigger("kv", json!({ "script": "hear", "collection": "c" }));
    let path = "/apps/a/kv/c/k";
    assert_eq!(api(&server, "PUT", path, NUMBERS).status, 204);
    let shows = |path: &str| {
        let answer = api(&server, "GET", path, "");
        let text = answer.text();
        assert!(text.replace(' ', "").contains(NUMBERS), "{path}: {text}");
    };
    shows(path);
    shows("/apps/a/kv/c");
    let letter = wait_for("a dead letter", || app.dead_letters("").pop());
    let letter = format!("/dead-letters/{}", letter["id"].as_str().unwrap());
    shows(&letter);
    // What is corrected is what is replayed.
    let event = api(&server, "GET", &letter, "").text();
    let event: Value = serde_json::from_str(&event).unwrap();
    let mut corrected = event["payload"].clone();
    corrected["kv"]["value"] = json!("HERE");
    let corrected = corrected.to_string().replace("\"HERE\"", NUMBERS);
    let body = format!("{{\"payload\": {corrected}}}");
    let replayed = api(&server, "POST", &format!("{letter}/replay"), &body);
    assert_eq!(replayed.status, 200, "{}", replayed.text());
    let again = wait_for("another dead letter", || {
        app.dead_letters("state=unresolved").pop()
    });
    shows(&format!("/dead-letters/{}", again["id"].as_str().unwrap()));
    wait_for("the handler", || {
        (app.kv("seen", "event") != json!(null)).then_some(())
    });
    let seen = api(&server, "GET", "/apps/a/kv/seen/event", "").text();
    assert_eq!(seen, "10.0");
    // The last digit of a double, through a script and back.
    app.serve("echo", "#{ statusCode: 200, body: ctx.request.body }");
    for n in 1..200_u32 {
        let written = f64::from(n) * 0.1 + 0.3;
        let body = written.to_string();
        let headers = [("content-type", "application/json")];
        let answer = server.call("POST", "/echo", &headers, Some(body.as_bytes()));
        let read: f64 = answer.text().parse().unwrap();
        assert_eq!(read.to_bits(), written.to_bits(), "{body}");
        let set = api(&server, "PUT", "/apps/a/kv/n/n", &body);
        assert_eq!(set.status, 204);
        assert_eq!(api(&server, "GET", "/apps/a/kv/n/n", "").text(), body);
    }
}

fn a_script_lists_what_is_no_json_at_all(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.set("c", "a", json!({ "n": 1 }));
    for (key, text) in [("m1", "{\"a\":"), ("m2", "no JSON at all"), ("m3", "1 2")] {
        app.set("c", key, json!(0));
        server.sql(&format!(
            "update kv set value = '{text}' where key = '{key}'"
        ));
    }
    app.set("c", "z", json!("after"));
    let all = json!([
        ["a", { "n": 1 }, false],
        ["m1", "{\"a\":", true],
        ["m2", "no JSON at all", true],
        ["m3", "1 2", true],
        ["z", "after", false],
    ]);
    app.serve(
        "list",
        r#"kv::collection("c").list().entries.map(|e| [e.key, e.value, e.get_or("value_repaired", false)])"#,
    );
    let listed = server.get("/list");
    assert_eq!(listed.json(), all, "{}", listed.text());
    // One on a page: a bad one is not the end.
    app.serve(
        "pages",
        r#"let c = kv::collection("c"); let keys = []; let cursor = ();
           loop {
               let page = c.list(cursor, 1);
               for e in page.entries { keys.push(e.key); }
               cursor = page.cursor;
               if cursor == () { break keys }
           }"#,
    );
    let paged = server.get("/pages");
    assert_eq!(
        paged.json(),
        json!(["a", "m1", "m2", "m3", "z"]),
        "{}",
        paged.text()
    );
    app.serve(
        "get",
        r#"["m1", "m2", "m3"].map(|key| kv::collection("c").get(key))"#,
    );
    let got = server.get("/get");
    let texts = json!(["{\"a\":", "no JSON at all", "1 2"]);
    assert_eq!(got.json(), texts, "{}", got.text());
}
