//! Backups and exported apps that are old, large or have components in them, and readers of them
//! who go before the end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use picloud_tests::{App, Engine, Place, Server, fails, on_both_engines, report, wait_for};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::backup::Contents;
use super::portable::{refused, succeed};

on_both_engines!(
    a_backup_of_an_older_schema_is_brought_up_to_date,
    an_app_that_an_older_version_exported_is_imported,
    a_component_moves_with_its_app,
    a_download_that_breaks_off_is_no_backup_and_stops_no_other,
    an_export_while_others_write_is_one_moment,
);

/// What was made once and is kept; `tests/fixtures/README.md` says how.
fn fixture(name: &str) -> String {
    let path = format!("{}/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::canonicalize(path).unwrap().display().to_string()
}

/// What the app of both fixtures has, wherever it is.
fn check_the_shop(app: &App<'_>) {
    let server = app.server;
    let hello = server.call("GET", "/hello", &[("host", "a.shop.test")], None);
    assert_eq!(
        hello.json(),
        format!("hello of {}", app.slug),
        "{}",
        hello.text()
    );
    assert_eq!(app.kv("things", "k"), json!({ "n": [1, 2.5, null, "ü"] }));
    let shown = server
        .api("GET", &format!("/apps/{}", app.slug), None)
        .json();
    assert_eq!(shown["name"], "The shop");
    assert_eq!(shown["hide_payloads_from_viewers"], false);
    let triggers = server.api("GET", &format!("/apps/{}/triggers", app.slug), None);
    assert_eq!(triggers.json()["items"].as_array().unwrap().len(), 4);
    app.set("things", "new", json!(1));
    wait_for("the handler", || (app.kv("seen", "new") == 1).then_some(()));
}

fn a_backup_of_an_older_schema_is_brought_up_to_date(engine: Engine) {
    let place = Place::new(engine);
    let file = fixture("backup-schema-10.zip");
    let restored = place.cli(&["restore", &file, "--json"]).output().unwrap();
    assert_eq!(succeed(&restored)["schema"], 10);
    let server = Server::start_at(place);
    let app = server.known_app("shop");
    check_the_shop(&app);
    assert_eq!(app.dead_letters("").len(), 1);
    let key = "pic_JWsoO20AmmeDlvViye72OuOmSqN3qiipTqTazehdUhb2cyxLW";
    assert_eq!(server.api_as(key, "GET", "/apps", None).status, 200);
    assert!(server.get("/version").json()["schema"].as_u64() > Some(10));
    let again = server.cli(&["backup", "again.zip", "--json"]);
    assert!(succeed(&again)["schema"].as_u64() > Some(10));
}

fn an_app_that_an_older_version_exported_is_imported(engine: Engine) {
    let server = Server::start(engine);
    let file = fixture("app-format-1.zip");
    let made = succeed(&server.cli(&["import", &file, "--as", "old", "--json"]));
    assert_eq!(made["secrets_to_set"], json!(["TOKEN"]));
    check_the_shop(&server.known_app("old"));
}

fn a_component_moves_with_its_app(engine: Engine) {
    let here = Server::start(engine);
    let app = here.app("shop");
    let wasm = include_bytes!("../../fixtures/function-v1.wasm");
    let body =
        json!({ "name": "first", "kind": "component", "wasm_base64": STANDARD.encode(wasm) });
    let made = here.api("POST", "/apps/shop/scripts", Some(body));
    assert_eq!(made.status, 201, "{}", made.text());
    app.route("first", "ANY /c/{*rest}");
    succeed(&here.cli(&["export", "shop"]));
    let file = here.folder().join("shop.zip");
    let good = Contents::read(&file);
    assert_eq!(good.entries["scripts/0-1.wasm"], wasm);
    let other = match engine {
        Engine::Sqlite => Engine::Postgres,
        Engine::Postgres => Engine::Sqlite,
    };
    let there = Server::start(other);
    let bad = here.folder().join("bad.zip");
    for (code, words) in [
        (&b"garbage"[..], "not a WebAssembly component"),
        (b"\0asm\x01\0\0\0", "core WebAssembly module"),
        (b"\0asm\x0d\0\x01\0", "does not export"),
        (&wasm[..wasm.len() / 2], "not valid"),
    ] {
        let mut contents = Contents::read(&file);
        contents.set("scripts/0-1.wasm", code.to_vec());
        contents.write(&bad);
        refused(&there.cli(&["import", bad.to_str().unwrap()]), 4, words);
        assert_eq!(there.api("GET", "/apps/shop", None).status, 404);
    }
    succeed(&there.cli(&["import", file.to_str().unwrap()]));
    let answer = there.post("/c/x", &json!({ "n": 1 }));
    assert_eq!(answer.json()["path"], "/c/x", "{}", answer.text());
    assert_eq!(
        there.known_app("shop").kv("fixture", "body"),
        json!({ "n": 1 })
    );
}

/// Bytes that do not compress.
fn noise(seed: u32, length: usize) -> String {
    let mut bytes = Vec::with_capacity(length);
    for n in 0u32.. {
        if bytes.len() >= length {
            break;
        }
        bytes.extend(Sha256::digest(
            [seed.to_le_bytes(), n.to_le_bytes()].concat(),
        ));
    }
    STANDARD.encode(bytes)
}

fn a_download_that_breaks_off_is_no_backup_and_stops_no_other(engine: Engine) {
    let mut server = Server::start(engine);
    let app = server.app("shop");
    // More than all the buffers between server and reader hold.
    for n in 0..40 {
        app.set("large", &n.to_string(), json!(noise(n, 700_000)));
    }
    // A reader who is let in, and takes no more than the first words.
    let begin = |server: &Server| {
        let mut stream = TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
        let request = format!(
            "GET /api/v1/instance/backup HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {}\r\n\r\n",
            server.token
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        (head == *b"HTTP/1.1 200").then_some(stream)
    };
    let reader = begin(&server).expect("the first one");
    let second = server.api("GET", "/instance/backup", None);
    assert_eq!(
        (second.status, second.problem().as_str()),
        (409, "backup_running")
    );
    drop(reader);
    // Who leaves makes room, and long before a reader who takes nothing would.
    drop(wait_for("room for the next one", || begin(&server)));
    let audited = || {
        let log = server
            .api("GET", "/audit?action=GET%20/instance/backup", None)
            .json();
        let entries = log["items"].as_array().unwrap().clone();
        entries
            .iter()
            .map(|entry| entry["status"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    // None was sent to its end.
    assert!(
        !audited().is_empty() && !audited().contains(&200),
        "{:?}",
        audited()
    );
    wait_for("a whole one", || {
        let made = server.cli(&["backup", "whole.zip"]);
        made.status.success().then_some(())
    });
    let bytes = std::fs::metadata(server.folder().join("whole.zip"))
        .unwrap()
        .len();
    assert!(bytes > 20 << 20, "{bytes}");
    wait_for("it to be written down", || {
        audited().contains(&200).then_some(())
    });

    // The command line writes under another name until all of it is there.
    let part = server.folder().join("cut.zip.part");
    let file = server.folder().join("cut.zip");
    let mut command = server.cli_command(&["backup", "cut.zip"]);
    let child = command.stderr(Stdio::piped()).stdout(Stdio::null());
    let child = child.spawn().unwrap();
    wait_for("its beginning", || {
        std::fs::metadata(&part).ok().filter(|part| part.len() > 0)
    });
    server.kill();
    let output = child.wait_with_output().unwrap();
    let said = fails(&output, 6);
    assert!(said.contains("the answer broke off"), "{said}");
    assert!(!part.exists() && !file.exists());
}

fn an_export_while_others_write_is_one_moment(engine: Engine) {
    const ENTRIES: usize = 20_000;
    let server = Server::start(engine);
    let mut contents = Contents::read(fixture("app-format-1.zip").as_ref());
    let entry = |n: usize| format!("[\"middle\",\"{n:06}\",\"{n}\"]\n");
    let entries: String = (0..ENTRIES).map(entry).collect();
    contents.set("kv.jsonl", entries.into_bytes());
    let file = server.folder().join("many.zip");
    contents.write(&file);
    succeed(&server.cli(&["import", file.to_str().unwrap(), "--as", "shop"]));
    let app = server.known_app("shop");
    let stop = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    let (before, after) = std::thread::scope(|scope| {
        // What comes first in the file is written first, and what comes last after it.
        scope.spawn(|| {
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                app.set("a", &n.to_string(), json!(n));
                app.set("z", &n.to_string(), json!(n));
                written.fetch_add(1, Ordering::Relaxed);
            }
        });
        let so_far = || written.load(Ordering::Relaxed);
        wait_for("some writes", || (so_far() > 5).then_some(()));
        let before = so_far();
        let exported = server.cli(&["export", "shop", "--kv", "--output", "export.zip"]);
        let after = so_far();
        stop.store(true, Ordering::Relaxed);
        succeed(&exported);
        (before, after)
    });
    assert!(after > before, "nothing was written meanwhile");
    let exported = Contents::read(&server.folder().join("export.zip"));
    let text = String::from_utf8(exported.entries["kv.jsonl"].clone()).unwrap();
    let count = |collection: &str| {
        let lines = text.lines().map(serde_json::from_str::<Value>);
        let of_it = lines.filter(|line| line.as_ref().unwrap()[0] == collection);
        of_it.count() as u64
    };
    let (first, last) = (count("a"), count("z"));
    assert_eq!(count("middle"), ENTRIES as u64);
    assert!(last <= first && first <= last + 1, "{first} and {last}");
    assert!(
        (before..=after + 1).contains(&last),
        "{before} {last} {after}"
    );
    report(format_args!(
        "{engine:?}: exported {ENTRIES} entries and {first} + {last} of those that were written meanwhile ({before} before, {after} after)"
    ));
}
