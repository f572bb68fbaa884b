//! Secrets: read by scripts, by nobody else, and under another master key after a rotation.

use picloud_tests::{App, Engine, EventStream, Options, Server, on_both_engines, wait_for};
use serde_json::{Value, json};

on_both_engines!(
    i12_a_secret_is_read_by_scripts_and_shown_by_nothing,
    a_secret_is_for_the_scripts_that_it_names,
    bad_secrets_are_refused,
    a_master_key_is_rotated,
);

/// Two keys of 32 bytes.
const KEY_1: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const KEY_2: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
const VALUE: &str = "sk-live-51-xyzzy";

fn with_keys(keys: &[(&'static str, &str)]) -> Options {
    let environment = keys.iter().map(|(name, key)| (*name, (*key).to_owned()));
    Options {
        environment: environment.collect(),
        ..Options::default()
    }
}

fn start(engine: Engine) -> Server {
    Server::start_with(engine, with_keys(&[("PICLOUD_MASTER_KEY", KEY_1)]))
}

fn set(app: &App<'_>, name: &str, body: Value) -> (u16, Value) {
    let path = format!("/apps/{}/secrets/{name}", app.slug);
    let answer = app.server.api("PUT", &path, Some(body));
    (answer.status, answer.json())
}

/// Whether a file below the folder holds the bytes.
fn holds(folder: &std::path::Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => holds(&path, bytes),
            false => std::fs::read(&path)
                .is_ok_and(|held| held.windows(bytes.len()).any(|window| window == bytes)),
        }
    })
}

fn i12_a_secret_is_read_by_scripts_and_shown_by_nothing(engine: Engine) {
    let server = start(engine);
    let (app, other) = (server.app("shop"), server.app("other"));
    assert_eq!(set(&app, "STRIPE_KEY", json!({ "value": VALUE })).0, 204);
    app.serve("length", r#"secrets::get("STRIPE_KEY").len()"#);
    assert_eq!(server.get("/length").text(), VALUE.len().to_string());
    app.serve(
        "careless",
        r#"let key = secrets::get("STRIPE_KEY");
           log::info(`the key is ${key}`, #{ nested: [#{ key: key }] }); print(key);
           throw `bad key ${key}!`"#,
    );
    let answer = server.get("/careless");
    assert_eq!(answer.status, 502);
    let execution = app.last_execution();
    assert_eq!(execution["error"]["message"], "bad key ***!");
    assert_eq!(execution["logs"][0]["message"], "the key is ***");
    assert_eq!(execution["logs"][0]["fields"]["nested"][0]["key"], "***");
    assert_eq!(execution["logs"][1]["message"], "***");
    // Nor where it is escaped, or a name.
    let pem = "-----BEGIN KEY-----\nMIIx\n-----END KEY-----\n";
    assert_eq!(set(&app, "PEM", json!({ "value": pem })).0, 204);
    app.serve(
        "escaped",
        r#"let key = secrets::get("PEM"); let named = #{}; named[key] = 1;
           log::info(`${#{ key: key }}`, named); print(json::stringify([key]));
           throw #{ key: key }"#,
    );
    assert_eq!(server.get("/escaped").status, 502);
    let execution = app.last_execution().to_string();
    assert!(!execution.contains("MIIx"), "{execution}");
    // Nor does a line that is cut in the middle of it show its beginning.
    let long = r#"let key = secrets::get("STRIPE_KEY"); let s = ""; s.pad(953, 'x'); log::info(s + key); 1"#;
    app.script_with("cut-long", long, json!({ "log_bytes": 1_024 }));
    app.route("cut-long", "GET /cut-long");
    assert_eq!(server.get("/cut-long").status, 200);
    let logs = app.last_execution()["logs"].to_string();
    assert!(
        logs.contains("xxx") && !logs.contains(&VALUE[..4]),
        "{logs}"
    );
    // Of another app there is none.
    other.script("peek", r#"secrets::get("STRIPE_KEY")"#);
    let scripts = server.api("GET", "/apps/other/scripts", None).json();
    let path = format!(
        "/scripts/{}/execute",
        scripts["items"][0]["id"].as_str().unwrap()
    );
    let peeked = server.api("POST", &path, Some(json!({}))).json();
    assert_eq!(peeked["response"]["body"], "null", "{peeked}");
    // Nothing shows it: no answer, no log, no metric, no file.
    let listed = server.api("GET", "/apps/shop/secrets", None);
    assert_eq!(listed.json()["items"][1]["name"], "STRIPE_KEY");
    let audit = server.api("GET", "/audit", None).text();
    for text in [
        listed.text(),
        answer.text(),
        audit,
        server.log(),
        server.get("/metrics").text(),
    ] {
        assert!(!text.contains(VALUE), "{text}");
    }
    assert!(!holds(server.folder(), VALUE.as_bytes()));
    assert_eq!(
        holds(server.folder(), b"STRIPE_KEY"),
        engine == Engine::Sqlite,
        "it looks at files"
    );
    let gone = server.api("DELETE", "/apps/shop/secrets/STRIPE_KEY", None);
    let again = server.api("DELETE", "/apps/shop/secrets/STRIPE_KEY", None);
    assert_eq!((gone.status, again.status), (204, 404));
    assert_eq!(server.get("/length").status, 502);
}

fn a_secret_is_for_the_scripts_that_it_names(engine: Engine) {
    let server = start(engine);
    let app = server.app("shop");
    app.serve("allowed", r#"secrets::get("KEY")"#);
    app.serve("refused", r#"secrets::get("KEY")"#);
    assert_eq!(
        set(
            &app,
            "KEY",
            json!({ "value": VALUE, "scripts": ["allowed"] })
        )
        .0,
        204
    );
    assert_eq!(server.get("/allowed").json(), json!(VALUE));
    assert_eq!(server.get("/refused").status, 502);
    let message = app.last_execution()["error"]["message"].clone();
    assert_eq!(message, "secrets::get: the secret is for other scripts");
}

fn bad_secrets_are_refused(engine: Engine) {
    let server = start(engine);
    let app = server.app("shop");
    for (name, body, field) in [
        ("1ST", json!({ "value": "x" }), "name"),
        ("A-B", json!({ "value": "x" }), "name"),
        ("KEY", json!({ "value": "" }), "value"),
        ("KEY", json!({ "value": "x".repeat(70_000) }), "value"),
        ("KEY", json!({}), "value"),
        (
            "KEY",
            json!({ "value": "x", "scripts": ["none"] }),
            "scripts",
        ),
    ] {
        let (status, problem) = set(&app, name, body);
        assert_eq!(
            (status, problem["field"].as_str()),
            (422, Some(field)),
            "{problem}"
        );
    }
    // An empty list must not mean every script.
    let (status, problem) = set(&app, "KEY", json!({ "value": "x", "scripts": [] }));
    assert_eq!((status, &problem["field"]), (422, &json!("scripts")));
    let listed = server.api("GET", "/apps/shop/secrets", None).json();
    assert_eq!(listed["items"], json!([]));
    app.serve(
        "odd",
        r#"let said = ();
           try { secrets::get("a b"); } catch (e) { said = `${e}`; }
           [secrets::get("NONE"), said]"#,
    );
    let answer = server.get("/odd").json();
    assert_eq!(answer[0], Value::Null);
    assert!(
        answer[1].to_string().contains("begins with no digit"),
        "{answer}"
    );
}

fn a_master_key_is_rotated(engine: Engine) {
    if engine == Engine::Postgres {
        // Several nodes must be told: none makes a key of its own.
        let server = Server::start(engine);
        let app = server.app("shop");
        let (status, problem) = set(&app, "KEY", json!({ "value": VALUE }));
        assert_eq!(
            (status, problem["type"].as_str()),
            (409, Some("urn:picloud:problem:no_master_key"))
        );
    }
    let mut server = start(engine);
    let app = server.app("shop");
    app.serve("read", r#"secrets::get("KEY")"#);
    assert_eq!(set(&app, "KEY", json!({ "value": VALUE })).0, 204);
    app.serve("token", r#"pubsub::subscriber_token(["news"])"#);
    let opened = json!({ "auth_mode": "token" });
    let opened = server.api("PUT", "/apps/shop/topics/news", Some(opened));
    assert_eq!(opened.status, 200, "{}", opened.text());
    let token = server.get("/token").json();
    let lets_in = |server: &Server, token: &Value| {
        let path = format!("/realtime/topics/news?token={}", token.as_str().unwrap());
        EventStream::open(&server.url, &path, &[]).unwrap().status == 200
    };
    assert!(lets_in(&server, &token));
    let restart = |server: &mut Server, keys: &[(&'static str, &str)]| {
        server.stop();
        server.set_environment(with_keys(keys).environment);
        server.launch();
        server.get("/read")
    };
    // A key that is not there is no panic and no lie.
    let lost = restart(&mut server, &[("PICLOUD_MASTER_KEY", KEY_2)]);
    assert_eq!(lost.status, 502);
    assert!(!lets_in(&server, &token));
    let both = [
        ("PICLOUD_MASTER_KEY", KEY_2),
        ("PICLOUD_MASTER_KEY_PREVIOUS", KEY_1),
    ];
    assert_eq!(restart(&mut server, &both).json(), json!(VALUE));
    let done = server.api("POST", "/secrets/rotate", None).json();
    assert_eq!(
        done,
        json!({ "rotated": 2, "under_missing_keys": 0 }),
        "the secret and the key of tokens"
    );
    let done = server.api("POST", "/secrets/rotate", None).json();
    assert_eq!(done["rotated"], 0);
    server.stop();
    server.set_environment(with_keys(&[("PICLOUD_MASTER_KEY", KEY_2)]).environment);
    server.launch();
    wait_for("the secret", || {
        (server.get("/read").json() == json!(VALUE)).then_some(())
    });
    // Tokens of before are good, and so are new ones.
    assert!(lets_in(&server, &token));
    assert!(lets_in(&server, &server.get("/token").json()));
}
