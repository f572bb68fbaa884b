//! Large apps: imported and deleted in batches that nobody sees, and without keeping others waiting.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;

use picloud_tests::{Engine, Options, Server, on_both_engines, wait_for};
use serde_json::{Value, json};

use super::backup::Contents;
use super::portable::succeed;

on_both_engines!(
    a_large_import_keeps_no_running_delivery_from_its_lease,
    a_file_of_twenty_mebibytes_is_imported,
    an_import_that_is_killed_leaves_nothing,
    an_import_goes_on_without_its_client_and_leaves_nothing_if_it_fails,
    a_large_app_is_gone_at_once_and_its_rows_soon,
);

/// An exported app with so many entries in its key-value store.
pub(super) fn exported(server: &Server, entries: usize) -> (PathBuf, Contents) {
    let app = server.app("small");
    app.serve("hello", "`hello of ${ctx.app_slug}`");
    app.set("c", "k", json!(1));
    succeed(&server.cli(&["export", "small", "--kv", "--output", "large.zip"]));
    let deleted = server.api("DELETE", "/apps/small", None);
    assert_eq!(deleted.status, 204, "{}", deleted.text());
    wait_for("it to be gone", || (server.rows("apps") == 0).then_some(()));
    let path = server.folder().join("large.zip");
    let mut contents = Contents::read(&path);
    let mut lines = String::new();
    for n in 0..entries {
        writeln!(lines, r#"["c","{n:08}","{n}"]"#).unwrap();
    }
    contents.set("kv.jsonl", lines.into_bytes());
    contents.write(&path);
    (path, contents)
}

/// Nothing of any app is in the database, and what could be read of one is not.
fn nothing_is_left(server: &Server) {
    for table in ["kv", "script_versions", "scripts", "apps"] {
        wait_for(table, || (server.rows(table) == 0).then_some(()));
    }
}

fn apps(server: &Server) -> Vec<Value> {
    let list = server.api("GET", "/apps", None).json();
    list["items"].as_array().unwrap().clone()
}

fn a_large_import_keeps_no_running_delivery_from_its_lease(engine: Engine) {
    let options = Options {
        environment: vec![("PICLOUD_LEASE_MS", "1000".to_owned())],
        ..Options::default()
    };
    let server = Server::start_with(engine, options);
    exported(&server, 150_000);
    let app = server.app("a");
    app.script_with(
        "long",
        r#"let c = kv::collection("c"); let begun = c.get("begun");
           c.set("begun", if begun == () { 1 } else { begun + 1 });
           while c.get("stop") == () { sleep(0.05) }
           c.set("ended", true);"#,
        json!({ "timeout_ms": 60_000 }),
    );
    app.route_with("long", "POST /long", json!({ "dispatch_mode": "async" }));
    assert_eq!(server.call("POST", "/long", &[], None).status, 202);
    wait_for("its begin", || (app.kv("c", "begun") == 1).then_some(()));
    let made = succeed(&server.cli(&["import", "large.zip", "--as", "large", "--json"]));
    assert_eq!(made["kv"], 150_000);
    app.set("c", "stop", json!(true));
    wait_for("its end", || (app.kv("c", "ended") == true).then_some(()));
    assert_eq!(app.kv("c", "begun"), 1, "it was run more than once");
}

fn a_file_of_twenty_mebibytes_is_imported(engine: Engine) {
    let server = Server::start(engine);
    let (path, mut contents) = exported(&server, 0);
    // Of random digits, which take half their length when they are packed.
    let mut lines = String::new();
    let mut random = vec![0; 250_000];
    let mut source = File::open("/dev/urandom").unwrap();
    for n in 0..90 {
        source.read_exact(&mut random).unwrap();
        let digits = random.iter().map(|byte| format!("{byte:02x}"));
        let digits = digits.collect::<String>();
        writeln!(lines, r#"["c","{n}","\"{digits}\""]"#).unwrap();
    }
    contents.set("kv.jsonl", lines.into_bytes());
    contents.write(&path);
    assert!(path.metadata().unwrap().len() > 20 << 20);
    let made = succeed(&server.cli(&["import", "large.zip", "--as", "large", "--json"]));
    assert_eq!(made["kv"], 90);
    let app = server.known_app("large");
    assert_eq!(app.kv("c", "79").as_str().map(str::len), Some(500_000));
}

fn an_import_that_is_killed_leaves_nothing(engine: Engine) {
    let mut server = Server::start(engine);
    exported(&server, 60_000);
    let mut import = server.cli_command(&["import", "large.zip", "--as", "large"]);
    let mut import = import.stderr(Stdio::null()).spawn().unwrap();
    wait_for("some of it", || (server.rows("kv") > 0).then_some(()));
    server.kill();
    assert!(!import.wait().unwrap().success());
    assert!(server.rows("kv") < 60_000, "it was done already");
    server.launch();
    assert_eq!(apps(&server), [0; 0].map(Value::from));
    assert_eq!(server.api("GET", "/apps/large", None).status, 404);
    if engine == Engine::Postgres {
        // Another node might be at it, so it is kept for a while without a sign of that.
        server.sql("update apps set remove_at = now() where remove_at is not null");
    }
    nothing_is_left(&server);
    // Its slug was never taken.
    let made = succeed(&server.cli(&["import", "large.zip", "--as", "large", "--json"]));
    assert_eq!(made["kv"], 60_000);
    assert_eq!(server.rows("kv"), 60_000);
    assert_eq!(server.get("/hello").json(), "hello of large");
}

fn an_import_goes_on_without_its_client_and_leaves_nothing_if_it_fails(engine: Engine) {
    let server = Server::start(engine);
    let (path, mut contents) = exported(&server, 60_000);
    let mut import = server.cli_command(&["import", "large.zip", "--as", "large"]);
    let mut import = import.stderr(Stdio::null()).spawn().unwrap();
    wait_for("some of it", || (server.rows("kv") > 0).then_some(()));
    import.kill().unwrap();
    import.wait().unwrap();
    wait_for("the app", || {
        (server.api("GET", "/apps/large", None).status == 200).then_some(())
    });
    assert_eq!(server.rows("kv"), 60_000);
    assert_eq!(server.api("DELETE", "/apps/large", None).status, 204);
    nothing_is_left(&server);
    assert_eq!(apps(&server), [0; 0].map(Value::from));
    // A key that is there twice shows late: the first of them is committed by then.
    let mut lines = contents.entries["kv.jsonl"].clone();
    let first = lines.split_inclusive(|byte| *byte == b'\n').next().unwrap();
    lines.extend(first.to_vec());
    contents.set("kv.jsonl", lines);
    contents.write(&path);
    let refused = server.cli(&["import", "large.zip", "--as", "large"]);
    super::portable::refused(&refused, 4, "a key is there twice");
    assert_eq!(server.api("GET", "/apps/large", None).status, 404);
    nothing_is_left(&server);
    let audit = server.api("GET", "/audit", None).json();
    let imports = audit["items"].as_array().unwrap().iter();
    let imports = imports.filter(|entry| entry["action"] == "POST /imports");
    let statuses: Vec<_> = imports
        .map(|entry| entry["status"].as_i64().unwrap_or(0))
        .collect();
    assert_eq!(statuses, [422, 201], "the newest first");
}

fn a_large_app_is_gone_at_once_and_its_rows_soon(engine: Engine) {
    let server = Server::start(engine);
    exported(&server, 20_000);
    succeed(&server.cli(&["import", "large.zip", "--as", "large"]));
    let script = server.api("GET", "/apps/large/scripts", None).json();
    let script = script["items"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(server.get("/hello").json(), "hello of large");
    assert_eq!(server.api("DELETE", "/apps/large", None).status, 204);
    for path in [
        "/apps/large",
        "/apps/large/kv",
        &format!("/scripts/{script}"),
    ] {
        assert_eq!(server.api("GET", path, None).status, 404, "{path}");
    }
    assert_eq!(server.get("/hello").status, 404);
    assert_eq!(server.api("DELETE", "/apps/large", None).status, 404);
    // Its name can be another's before its rows are gone.
    let again = server.app("large");
    again.set("c", "k", json!(1));
    for (table, rows) in [("kv", 1), ("script_versions", 0), ("apps", 1)] {
        wait_for(table, || (server.rows(table) == rows).then_some(()));
    }
}
