//! SQLite on a disk with hardly any room: what is new is refused before nothing can be written at all,
//! what was begun ends, and what is there can be deleted.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use picloud_tests::{Engine, Options, Server, wait_for};
use serde_json::json;

use super::imports::exported;

const MIB: u64 = 1 << 20;

/// A file system of the test's own, in memory.
pub(super) struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    pub(super) fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256m", "tmpfs"])
            .arg(folder.path())
            .status();
        assert!(mounted.unwrap().success(), "to mount needs root");
        Self { folder }
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Leave all the room that there is.
    pub(super) fn empty(&self) {
        let _ = fs::remove_file(self.ballast());
    }

    /// Leave about so much room.
    pub(super) fn leave(&self, mib: u64) {
        self.empty();
        let asked = Command::new("stat")
            .args(["--file-system", "--format", "%a %S"])
            .arg(self.path())
            .output();
        let told = String::from_utf8(asked.unwrap().stdout).unwrap();
        let numbers = told.split_whitespace().map(|text| text.parse::<u64>());
        let free: u64 = numbers.map(Result::unwrap).product();
        let mut file = File::create(self.ballast()).unwrap();
        let piece = vec![1; MIB as usize];
        for _ in 0..(free / MIB).saturating_sub(mib) {
            file.write_all(&piece).unwrap();
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the server that dies with the test may still have files open.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn start(disk: &SmallDisk) -> Server {
    let options = Options {
        data_dir: Some(disk.path().join("data")),
        ..Options::default()
    };
    Server::start_with(Engine::Sqlite, options)
}

fn until_ready(server: &Server) {
    wait_for("readiness", || {
        (server.get("/readyz").status == 200).then_some(())
    });
}

#[test]
fn a_disk_with_hardly_any_room_takes_nothing_new_and_can_be_emptied() {
    let disk = SmallDisk::mount();
    let mut server = start(&disk);
    let app = server.app("a");
    app.serve("s", "1");
    app.script_with(
        "long",
        r#"let c = kv::collection("c"); while !c.has("stop") { sleep(0.05) } log::info("ended");"#,
        json!({ "timeout_ms": 60_000 }),
    );
    app.route_with("long", "POST /long", json!({ "dispatch_mode": "async" }));
    app.set("c", "k", json!("v"));
    assert_eq!(server.call("POST", "/long", &[], None).status, 202);
    disk.leave(40);
    wait_for("no readiness", || {
        let told = server.get("/readyz");
        (told.status == 503 && told.text().contains("there is no room on the disk")).then_some(())
    });
    let put = server.api("PUT", "/apps/a/kv/c/new", Some(json!(1)));
    assert_eq!(
        (put.status_in_an_outage(), put.problem().as_str()),
        (503, "unavailable")
    );
    assert!(put.text().contains("MiB are free"), "{}", put.text());
    assert_eq!(server.get("/s").status_in_an_outage(), 503);
    let long = server.call("POST", "/long", &[], None);
    assert_eq!(long.status_in_an_outage(), 503);
    // To delete is to make room.
    assert_eq!(server.api("DELETE", "/apps/a/kv/c/k", None).status, 204);
    assert_eq!(app.kv("c", "k"), json!(null));
    // And it starts on such a disk.
    server.kill();
    server.listen();
    wait_for("no readiness", || {
        let told = server.get("/readyz");
        told.text()
            .contains("there is no room on the disk")
            .then_some(())
    });
    assert_eq!(server.api("GET", "/apps", None).status, 200);
    disk.leave(100);
    until_ready(&server);
    let app = server.known_app("a");
    app.set("c", "stop", json!(true));
    assert_eq!(server.get("/s").status, 200);
    server.assert_nothing_stuck();
    let ended = app.executions("outcome=answered");
    assert!(ended.iter().any(|one| one["attempt"] == 2), "{ended:?}");
}

/// What writes would only fail there, attempt after attempt.
#[test]
fn what_is_due_waits_for_room_and_keeps_its_attempts() {
    let disk = SmallDisk::mount();
    let server = start(&disk);
    let app = server.app("a");
    app.script(
        "keep",
        r#"if ctx.attempt == 1 { throw "not yet" } kv::collection("c").set("kept", ctx.attempt);"#,
    );
    let retry =
        json!({ "attempts_max": 2, "base_ms": 10_000, "jitter_pct": 0, "backoff": "constant" });
    app.trigger(
        "kv",
        json!({ "script": "keep", "collection": "things", "retry": retry }),
    );
    app.set("things", "k", json!(1));
    wait_for("the first attempt", || {
        (app.executions("").len() == 1).then_some(())
    });
    disk.leave(40);
    wait_for("it to be overdue", || {
        (server.metric("picloud_outbox_oldest_due_seconds") > 1.5).then_some(())
    });
    assert_eq!(app.executions("").len(), 1, "it has not been tried");
    disk.leave(100);
    wait_for("the second attempt", || {
        (app.kv("c", "kept") == json!(2)).then_some(())
    });
    server.assert_nothing_stuck();
    assert!(app.dead_letters("").is_empty());
}

#[test]
fn an_import_that_does_not_fit_is_refused_and_leaves_the_disk_to_others() {
    let disk = SmallDisk::mount();
    let server = start(&disk);
    let (path, mut contents) = exported(&server, 1);
    let value = "x".repeat(500_000);
    let lines: String = (0..80)
        .map(|n| format!("[\"c\",\"{n:04}\",\"\\\"{value}\\\"\"]\n"))
        .collect();
    contents.set("kv.jsonl", lines.into_bytes());
    contents.write(&path);
    let file = fs::read(&path).unwrap();
    let import = || {
        let authorization = format!("Bearer {}", server.token);
        let headers = [
            ("content-type", "application/zip"),
            ("authorization", &*authorization),
        ];
        server.call("POST", "/api/v1/imports", &headers, Some(&file))
    };
    disk.leave(80);
    let refused = import();
    assert_eq!(refused.status_in_an_outage(), 503, "{}", refused.text());
    let problem = refused.json()["detail"].as_str().unwrap().to_owned();
    assert!(problem.contains("39 more are needed"), "{problem}");
    assert_eq!(server.get("/readyz").status, 200);
    for table in ["kv", "scripts", "apps"] {
        wait_for(table, || (server.rows(table) == 0).then_some(()));
    }
    server.app("b").set("c", "k", json!(1));
    disk.empty();
    let taken = import();
    assert_eq!(taken.status, 201, "{}", taken.text());
}
