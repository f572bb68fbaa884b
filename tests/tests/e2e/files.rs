//! SQLite's file under a running server: served once, noticed when it is gone, and waited for when it
//! cannot be written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use picloud_tests::{Engine, Server, err, wait_for};
use serde_json::{Value, json};

fn status_of_a_write(server: &Server) -> u16 {
    let path = "/apps/a/kv/c/k";
    server.api("PUT", path, Some(json!(1))).status
}

fn ready(server: &Server) {
    wait_for("readiness", || {
        (server.get("/readyz").status == 200).then_some(())
    });
}

fn not_ready(server: &Server) {
    wait_for("no readiness", || {
        (server.get("/readyz").status == 503).then_some(())
    });
}

/// What the server itself finds of its database.
fn finding(server: &Server) -> Value {
    let report = server.api("GET", "/doctor", None);
    assert_eq!(report.status, 200, "{}", report.text());
    let findings = report.json()["findings"].take();
    let mut findings = findings.as_array().unwrap().iter();
    let found = findings.find(|finding| finding["name"] == "database");
    found.unwrap().clone()
}

#[track_caller]
fn tells(server: &Server, words: &str) {
    not_ready(server);
    assert_eq!(status_of_a_write(server), 503);
    assert_eq!(server.get("/s").status, 503);
    let found = finding(server);
    assert_eq!(found["severity"], "error", "{found}");
    assert!(found["found"].as_str().unwrap().contains(words), "{found}");
    assert!(server.log().contains(words), "{words}");
}

#[test]
fn a_file_that_is_deleted_moved_or_replaced_is_noticed_until_it_is_back() {
    let server = Server::start(Engine::Sqlite);
    server.app("a").serve("s", "1");
    let (file, away) = (server.database_file(), server.folder().join("away.db"));
    assert_eq!(status_of_a_write(&server), 204);
    fs::rename(&file, &away).unwrap();
    // Not only once somebody looks: nothing is acknowledged that would be lost.
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(status_of_a_write(&server), 503);
    tells(&server, "was deleted or moved away");
    fs::copy(&away, &file).unwrap();
    tells(&server, "was replaced by another file");
    fs::rename(&away, &file).unwrap();
    ready(&server);
    assert_eq!(status_of_a_write(&server), 204);
    assert_eq!(server.get("/s").status, 200);
    assert_eq!(finding(&server)["severity"], "ok");
    let log = PathBuf::from(format!("{}-wal", file.display()));
    fs::rename(&log, &away).unwrap();
    tells(&server, "has lost its log");
    fs::rename(&away, &log).unwrap();
    ready(&server);
    assert_eq!(status_of_a_write(&server), 204);
}

/// Start a second server on what is there, and answer what it said when it ended.
fn second(server: &Server, data_dir: &Path) -> String {
    let mut serve = server.cli_command(&["serve", "--listen", "127.0.0.1:0", "--data-dir"]);
    serve
        .arg(data_dir)
        .arg("--cache-dir")
        .arg(server.cache_dir());
    let mut child = serve
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let started = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > std::time::Duration::from_secs(10) {
            child.kill().unwrap();
            panic!("a second server runs on {}", data_dir.display());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    err(&output)
}

#[test]
fn a_file_is_served_once_whatever_it_is_called() {
    let server = Server::start(Engine::Sqlite);
    let file = server.database_file();
    let folder = |name: &str| {
        let folder = server.folder().join(name);
        fs::create_dir(&folder).unwrap();
        folder
    };
    let symbolic = folder("symbolic");
    std::os::unix::fs::symlink(&file, symbolic.join("picloud.db")).unwrap();
    let hard = folder("hard");
    fs::hard_link(&file, hard.join("picloud.db")).unwrap();
    let whole = server.folder().join("whole");
    std::os::unix::fs::symlink(file.parent().unwrap(), &whole).unwrap();
    let other = file.parent().unwrap().join("../data/.");
    for data_dir in [symbolic, hard, whole, other] {
        let said = second(&server, &data_dir);
        assert!(said.contains("another picloud serves"), "{said}");
    }
    ready(&server);
}

/// Files that cannot be written, which is what a file system is that went read-only. Dropped, they can.
struct ReadOnly(Vec<PathBuf>);

impl ReadOnly {
    fn make(server: &Server) -> Self {
        let file = server.database_file();
        // Not the memory that its processes share (-shm): mapped, it would be a signal, which it is
        // on no file system that only refuses writes.
        let log = PathBuf::from(format!("{}-wal", file.display()));
        let folder = file.parent().unwrap().to_owned();
        let made = Self(vec![file, log, folder]);
        made.change("+i");
        made
    }

    fn change(&self, how: &str) {
        let changed = Command::new("chattr").arg(how).args(&self.0).status();
        assert!(
            changed.unwrap().success(),
            "chattr needs root, and a file system like ext4"
        );
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        self.change("-i");
    }
}

#[test]
fn a_file_system_that_goes_read_only_is_unavailable_and_is_recovered_from() {
    let server = Server::start(Engine::Sqlite);
    let app = server.app("a");
    app.serve("s", r#"kv::collection("c").set(random::uuid(), 1); 1"#);
    app.script("job", "1");
    app.route_with("job", "POST /job", json!({ "dispatch_mode": "async" }));
    app.route_with(
        "job",
        "POST /keyed",
        json!({ "idempotency": { "ttl_s": 60 } }),
    );
    assert_eq!(server.get("/s").status, 200);
    let read_only = ReadOnly::make(&server);
    let key = [("idempotency-key", "k")];
    let round = || {
        [
            server.get("/s").status,
            server.call("POST", "/job", &[], None).status,
            server.call("POST", "/keyed", &key, None).status,
            status_of_a_write(&server),
        ]
    };
    for _ in 0..10 {
        assert_eq!(round(), [503; 4]);
    }
    not_ready(&server);
    for _ in 0..10 {
        assert_eq!(round(), [503; 4]);
    }
    let found = finding(&server);
    assert_eq!(found["severity"], "error", "{found}");
    // What can be read can be read.
    assert_eq!(server.api("GET", "/apps/a/kv/c", None).status, 200);
    drop(read_only);
    ready(&server);
    assert_eq!(round(), [200, 202, 200, 204]);
    assert_eq!(finding(&server)["severity"], "ok");
}
