//! Backups: one moment, whole, and restored into either database or not at all.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use picloud_tests::{App, Engine, Options, Place, Server, err, on_both_engines, report, wait_for};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::portable::succeed;

on_both_engines!(
    a_backup_under_load_is_one_moment_and_restores_into_either_database,
    a_damaged_backup_is_refused_and_leaves_nothing,
    a_restore_that_is_killed_leaves_nothing,
    a_missing_master_key_is_told,
);

/// What a backup file has in it.
pub struct Contents {
    pub manifest: Value,
    pub entries: BTreeMap<String, Vec<u8>>,
}

type Row = Map<String, Value>;

impl Contents {
    pub fn read(path: &Path) -> Self {
        let mut zip = zip::ZipArchive::new(File::open(path).unwrap()).unwrap();
        let mut entries = BTreeMap::new();
        for place in 0..zip.len() {
            let mut entry = zip.by_index(place).unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            entries.insert(entry.name().unwrap().into_owned(), bytes);
        }
        let manifest = entries.remove("manifest.json").expect("a manifest");
        let manifest = serde_json::from_slice(&manifest).unwrap();
        Self { manifest, entries }
    }

    pub fn write(&self, path: &Path) {
        let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
        let options = zip::write::SimpleFileOptions::default();
        for (name, bytes) in &self.entries {
            zip.start_file(name, options).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.start_file("manifest.json", options).unwrap();
        zip.write_all(self.manifest.to_string().as_bytes()).unwrap();
        zip.finish().unwrap();
    }

    /// Change an entry, and the manifest with it.
    pub fn set(&mut self, name: &str, bytes: Vec<u8>) {
        let listed = self.manifest["entries"].as_array_mut().unwrap();
        let listed = listed.iter_mut().find(|entry| entry["name"] == name);
        let listed = listed.unwrap();
        listed["bytes"] = bytes.len().into();
        listed["sha256"] = hex::encode(Sha256::digest(&bytes)).into();
        self.entries.insert(name.to_owned(), bytes);
    }

    fn tables(&self) -> impl Iterator<Item = &Value> {
        self.manifest["about"]["tables"].as_array().unwrap().iter()
    }

    /// The rows of a table, sorted.
    fn rows(&self, table: &str) -> Vec<Row> {
        let about = self.tables().find(|one| one["name"] == table).unwrap();
        let columns = about["columns"].as_array().unwrap();
        let text = std::str::from_utf8(&self.entries[&format!("tables/{table}.jsonl")]).unwrap();
        let row = |line: &str| -> Row {
            let values: Vec<Value> = serde_json::from_str(line).unwrap();
            assert_eq!(values.len(), columns.len());
            let names = columns.iter().map(|name| name.as_str().unwrap().to_owned());
            names.zip(values).collect()
        };
        let mut rows: Vec<Row> = text.lines().map(row).collect();
        assert_eq!(about["rows"], rows.len());
        rows.sort_by_key(|row| Value::from(row.clone()).to_string());
        rows
    }

    fn count(&self, table: &str, wanted: impl Fn(&Row) -> bool) -> usize {
        self.rows(table).iter().filter(|row| wanted(row)).count()
    }
}

/// How many keys a collection has.
fn keys(app: &App<'_>, collection: &str) -> u64 {
    let path = format!("/apps/{}/kv", app.slug);
    let list = app.server.api("GET", &path, None).json();
    let items = list["items"].as_array().unwrap().iter();
    let mut found = items.filter(|item| item["collection"] == collection);
    found
        .next()
        .map_or(0, |item| item["keys"].as_u64().unwrap())
}

/// An instance with something in most tables.
fn furnished(engine: Engine) -> Server {
    let server = Server::start(engine);
    let app = server.app("shop");
    app.script(
        "listen",
        r#"kv::collection("seen").set(ctx.event.kv.key, 1);"#,
    );
    app.trigger(
        "kv",
        json!({ "script": "listen", "collection": "things", "name": "listens" }),
    );
    app.script("broken", "throw 1");
    app.trigger(
        "kv",
        json!({ "script": "broken", "collection": "doomed", "name": "dies",
                "retry": { "attempts_max": 1, "base_ms": 1 } }),
    );
    app.trigger(
        "dead_letter",
        json!({ "script": "listen", "name": "buries" }),
    );
    app.set("doomed", "k", json!("ünïcode \\ \"quoted\" \n\t line"));
    app.serve("hello", "`hello`");
    let with_key = json!({ "idempotency": { "ttl_s": 3600 } });
    app.route_with("hello", "POST /once", with_key);
    let domain = json!({ "host": "*.shop.test" });
    let added = server.api("POST", "/apps/shop/domains", Some(domain));
    assert_eq!(added.status, 201, "{}", added.text());
    server.join("member", "member", json!({ "shop": "editor" }));
    wait_for("a dead letter", || app.dead_letters("").pop());
    server
}

/// The rows of a table without what a restoration changes: nobody works on a delivery after it.
fn comparable(contents: &Contents, table: &str) -> Vec<Row> {
    let mut rows = contents.rows(table);
    if table == "outbox" {
        for row in &mut rows {
            row.remove("lease_owner");
            row.remove("due_at");
        }
    }
    rows.sort_by_key(|row| Value::from(row.clone()).to_string());
    rows
}

fn a_backup_under_load_is_one_moment_and_restores_into_either_database(engine: Engine) {
    let server = furnished(engine);
    let app = server.known_app("shop");
    let key = server.key(&server.token, "deploys", &["script:read"], None);
    let stop = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    let file = |name: &str| server.folder().join(name);
    std::thread::scope(|scope| {
        for writer in 0..3 {
            let (app, stop, written) = (&app, &stop, &written);
            scope.spawn(move || {
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    app.set("things", &format!("{writer}-{n}"), json!(n));
                    written.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let direct = server.direct();
        let direct: Vec<&str> = direct.iter().map(String::as_str).collect();
        for (name, how) in [
            ("a.zip", &[][..]),
            ("b.zip", &direct[..]),
            ("c.zip", &[][..]),
        ] {
            let before = written.load(Ordering::Relaxed);
            wait_for("more writes", || {
                (written.load(Ordering::Relaxed) > before + 20).then_some(())
            });
            let made = server.cli(&[&["backup", name, "--json"][..], how].concat());
            let made = succeed(&made);
            let bytes = std::fs::metadata(file(name)).unwrap().len();
            assert_eq!(made["bytes"], bytes);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let mut things_before = 0;
    for name in ["a.zip", "b.zip", "c.zip"] {
        let contents = Contents::read(&file(name));
        // A mutation and its delivery are committed together, and so are a delivery's end and its
        // execution: at any one moment the sums are equal.
        let fired = |row: &Row| row["trigger_id"] == trigger_id(&contents, "listens");
        let things = contents.count("kv", |row| row["collection"] == "things");
        let waiting = contents.count("outbox", fired);
        let ended = contents.count("executions", fired);
        assert_eq!(
            things,
            waiting + ended,
            "{name}: {waiting} wait, {ended} ended"
        );
        assert!(things > things_before, "{things} after {things_before}");
        things_before = things;
        let apps: Vec<Value> = contents
            .rows("apps")
            .iter()
            .map(|row| row["id"].clone())
            .collect();
        for table in [
            "scripts",
            "routes",
            "triggers",
            "kv",
            "members",
            "app_hosts",
        ] {
            assert!(!contents.rows(table).is_empty(), "{table}");
            assert_eq!(
                contents.count(table, |row| !apps.contains(&row["app_id"])),
                0,
                "{table}"
            );
        }
        assert!(contents.tables().all(|table| table["name"] != "sessions"));
    }
    for other in [Engine::Sqlite, Engine::Postgres] {
        let place = Place::new(other);
        let backup = file("c.zip").display().to_string();
        succeed(&place.cli(&["restore", &backup]).output().unwrap());
        let again = file("again.zip").display().to_string();
        let backup = ["backup", &again, "--direct", "--force"];
        succeed(&place.cli(&backup).output().unwrap());
        let (had, has) = (
            Contents::read(&file("c.zip")),
            Contents::read(&file("again.zip")),
        );
        assert_eq!(had.tables().count(), has.tables().count());
        for table in had.tables() {
            let name = table["name"].as_str().unwrap();
            assert_eq!(comparable(&had, name), comparable(&has, name), "{name}");
        }
        // It serves, knows people and keys, and works on what was waiting.
        let restored = Server::start_at(place);
        let app = restored.known_app("shop");
        let things = keys(&app, "things");
        assert_eq!(things, things_before as u64);
        wait_for("what was waiting", || {
            (keys(&app, "seen") >= things).then_some(())
        });
        let hello = restored.call("GET", "/hello", &[("host", "a.shop.test")], None);
        assert_eq!(hello.json(), "hello", "{}", hello.text());
        let signed_in = |token: &str| restored.api_as(token, "GET", "/apps", None).status;
        assert_eq!((signed_in(&key), signed_in(&server.token)), (200, 401));
    }
}

fn trigger_id(contents: &Contents, name: &str) -> Value {
    let rows = contents.rows("triggers");
    let found = rows.iter().find(|row| row["name"] == name);
    found.unwrap()["id"].clone()
}

/// Restore, see it refused with these words, and nothing there.
#[track_caller]
fn refused(place: &Place, backup: &Path, words: &str) {
    let backup = backup.display().to_string();
    let output = place.cli(&["restore", &backup]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{words}: {}", err(&output));
    assert!(err(&output).contains(words), "{words}: {}", err(&output));
    assert!(!place.has_database(), "{words}");
}

fn a_damaged_backup_is_refused_and_leaves_nothing(engine: Engine) {
    let mut server = furnished(engine);
    succeed(&server.cli(&["backup", "good.zip"]));
    let good = server.folder().join("good.zip");
    let bad = server.folder().join("bad.zip");
    let place = Place::new(engine);
    let bytes = std::fs::read(&good).unwrap();
    for (cut, words) in [
        (b"hello".to_vec(), "no zip file, or it was cut off"),
        (
            bytes[..bytes.len() / 2].to_vec(),
            "no zip file, or it was cut off",
        ),
        (bytes[..bytes.len() - 1].to_vec(), "cut off"),
    ] {
        std::fs::write(&bad, cut).unwrap();
        refused(&place, &bad, words);
    }
    let name = b"tables/executions.jsonl";
    let at = bytes.windows(name.len()).position(|window| window == name);
    let mut flipped = bytes.clone();
    flipped[at.unwrap() + name.len() + 60] ^= 0x10;
    std::fs::write(&bad, flipped).unwrap();
    refused(&place, &bad, "`tables/executions.jsonl` is damaged");
    let users = "tables/users.jsonl";
    type Change = fn(&mut Contents);
    let changes: [(&str, Change); 13] = [
        ("its SHA-256 is not the one", |it| {
            let users = it.entries.get_mut("tables/users.jsonl").unwrap();
            let last = users.len() - 9;
            users[last] = if users[last] == b'1' { b'2' } else { b'1' };
        }),
        ("it has more than", |it| {
            it.entries
                .get_mut("tables/users.jsonl")
                .unwrap()
                .extend(b"\n");
        }),
        ("it has fewer than", |it| {
            it.entries.get_mut("tables/users.jsonl").unwrap().pop();
        }),
        ("entry `../../evil` does not belong here", |it| {
            it.entries.insert("../../evil".to_owned(), b"x".to_vec());
        }),
        ("entry `tables/kv.jsonl` is missing", |it| {
            it.entries.remove("tables/kv.jsonl");
        }),
        ("reads up to format 1", |it| {
            it.manifest["format_version"] = 99.into()
        }),
        ("knows up to schema", |it| {
            it.manifest["about"]["schema"] = 999.into()
        }),
        ("its format is `picloud-app`", |it| {
            it.manifest["format"] = "picloud-app".into()
        }),
        ("has no `manifest.json`", |it| {
            it.manifest = Value::Null;
        }),
        ("`kv` is missing", |it| {
            it.manifest["about"]["tables"]
                .as_array_mut()
                .unwrap()
                .retain(|one| one["name"] != "kv");
        }),
        ("`users` has other columns", |it| {
            let tables = it.manifest["about"]["tables"].as_array_mut().unwrap();
            let users = tables
                .iter_mut()
                .find(|one| one["name"] == "users")
                .unwrap();
            users["columns"][0] = "evil\" from users; --".into();
        }),
        ("line 1: it has 1 values, not", |it| {
            it.set("tables/users.jsonl", b"[1]\n".to_vec());
        }),
        ("tables/users.jsonl` is damaged: line 1", |it| {
            it.set("tables/users.jsonl", b"[1.5]\n".to_vec());
        }),
    ];
    let count = changes.len();
    for (words, change) in changes {
        let mut contents = Contents::read(&good);
        assert!(contents.entries[users].len() > 9);
        change(&mut contents);
        contents.write(&bad);
        if contents.manifest.is_null() {
            let mut zip = zip::ZipWriter::new(File::create(&bad).unwrap());
            zip.start_file("x", zip::write::SimpleFileOptions::default())
                .unwrap();
            zip.finish().unwrap();
        }
        refused(&place, &bad, words);
    }
    // A name where an id belongs.
    let mut contents = Contents::read(&good);
    let text = String::from_utf8(contents.entries[users].clone()).unwrap();
    let id = contents.rows("users")[0]["id"].to_string();
    assert!(text.contains(&id), "{text}");
    contents.set(users, text.replace(&id, "\"owner\"").into_bytes());
    contents.write(&bad);
    refused(&place, &bad, "users");
    report(format_args!("{} damaged backups were refused", count + 5));

    let good = good.display().to_string();
    let check = place.cli(&["restore", &good, "--check"]).output().unwrap();
    assert!(err(&check).is_empty() && check.status.success());
    assert!(!place.has_database());
    succeed(&place.cli(&["restore", &good]).output().unwrap());
    let again = place.cli(&["restore", &good]).output().unwrap();
    let words = match engine {
        Engine::Sqlite => "is there already; choose another data_dir",
        Engine::Postgres => "the database is not empty (`",
    };
    assert!(err(&again).contains(words), "{}", err(&again));
    let direct = server.direct();
    let words: Vec<&str> = direct.iter().map(String::as_str).collect();
    let over = server.cli(&[&["restore", &good][..], &words].concat());
    assert_eq!(
        over.status.code(),
        Some(1),
        "a served instance was restored over"
    );
    server.stop();
    let over = server.cli(&[&["restore", &good][..], &words].concat());
    assert_eq!(over.status.code(), Some(1), "an instance was restored over");
}

/// A backup with this many entries in the key-value store.
fn large(server: &Server, rows: usize) -> std::path::PathBuf {
    succeed(&server.cli(&["backup", "small.zip"]));
    let mut contents = Contents::read(&server.folder().join("small.zip"));
    let app = contents.rows("apps")[0]["id"].clone();
    let tables = contents.manifest["about"]["tables"].as_array_mut().unwrap();
    let kv = tables.iter_mut().find(|one| one["name"] == "kv").unwrap();
    kv["rows"] = rows.into();
    let columns = kv["columns"].as_array().unwrap().clone();
    let mut text = Vec::new();
    for n in 0..rows {
        // What does not compress to nothing.
        let value = STANDARD.encode(Sha256::digest(n.to_string()));
        let value = json!({ "customer": n, "token": value, "items": [1, 2, 3] }).to_string();
        let of = |column: &Value| match column.as_str().unwrap() {
            "app_id" => app.clone(),
            "collection" => "orders".into(),
            "key" => format!("order-{n:08}").into(),
            "value" => value.as_str().into(),
            "updated_at" => "2026-01-02T03:04:05.678901+00:00".into(),
            other => panic!("kv has a column {other}"),
        };
        let row: Vec<Value> = columns.iter().map(of).collect();
        serde_json::to_writer(&mut text, &row).unwrap();
        text.push(b'\n');
    }
    contents.set("tables/kv.jsonl", text);
    let path = server.folder().join("large.zip");
    contents.write(&path);
    path
}

fn a_restore_that_is_killed_leaves_nothing(engine: Engine) {
    const ROWS: usize = 100_000;
    let server = Server::start(engine);
    server.app("shop");
    let large = large(&server, ROWS);
    let bytes = std::fs::metadata(&large).unwrap().len();
    let large = large.display().to_string();
    let place = Place::new(engine);
    let mut restoring: Command = place.cli(&["restore", &large]);
    let restoring = restoring.stdout(Stdio::null()).stderr(Stdio::null());
    for _ in 0..3 {
        let mut child = restoring.spawn().unwrap();
        wait_for("rows that are written", || {
            place.is_filling("kv").then_some(())
        });
        assert!(
            child.try_wait().unwrap().is_none(),
            "it was too quick to be killed"
        );
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!place.has_database());
    }
    let begun = Instant::now();
    succeed(&place.cli(&["restore", &large]).output().unwrap());
    let restored = begun.elapsed();
    let begun = Instant::now();
    let again = place
        .cli(&["backup", "again.zip", "--direct", "--json"])
        .output()
        .unwrap();
    let made = begun.elapsed();
    assert_eq!(succeed(&again)["rows"]["kv"], ROWS);
    report(format_args!(
        "{engine:?}: {ROWS} rows, {bytes} bytes; restored in {restored:.1?}, backed up in {made:.1?}"
    ));
    let restored = Server::start_at(place);
    assert_eq!(keys(&restored.known_app("shop"), "orders"), ROWS as u64);
}

fn a_missing_master_key_is_told(engine: Engine) {
    let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let options = Options {
        environment: vec![("PICLOUD_MASTER_KEY", key.to_owned())],
        ..Options::default()
    };
    let server = Server::start_with(engine, options);
    let app = server.app("shop");
    let set = json!({ "value": "s3cret-of-mine" });
    assert_eq!(
        server
            .api("PUT", "/apps/shop/secrets/TOKEN", Some(set))
            .status,
        204
    );
    succeed(&server.cli(&["backup", "a.zip"]));
    let path = server.folder().join("a.zip");
    let contents = Contents::read(&path);
    for bytes in contents.entries.values() {
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains("s3cret") && !text.contains(key), "{text}");
    }
    let id = hex::encode(&Sha256::digest([1; 32])[..8]);
    assert_eq!(
        contents.manifest["about"]["secrets_by_master_key"],
        json!({ &id: 1 })
    );
    let path = path.display().to_string();
    let without = Place::new(engine)
        .cli(&["restore", &path])
        .output()
        .unwrap();
    assert!(without.status.success());
    assert!(
        err(&without).contains(&format!("the master key {id}")),
        "{}",
        err(&without)
    );
    let place = Place::new(engine);
    let mut with = place.cli(&["restore", &path]);
    let with = with.env("PICLOUD_MASTER_KEY", key).output().unwrap();
    assert!(
        with.status.success() && err(&with).is_empty(),
        "{}",
        err(&with)
    );
    assert_eq!(keys(&app, "none"), 0);
}
