//! SQLite's file under a running server: served once, noticed when it is gone, and waited for when it
//! cannot be written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use picloud_tests::{Engine, Server, err, wait_for};
use serde_json::{Value, json};

fn status_of_a_write(server: &Server) -> u16 {
    let path = "/apps/a/kv/c/k";
    let answer = server.api("PUT", path, Some(json!(1)));
    answer.status_in_an_outage()
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
    assert_eq!(server.get("/s").status_in_an_outage(), 503);
    let found = finding(server);
    assert_eq!(found["severity"], "error", "{found}");
    assert!(found["found"].as_str().unwrap().contains(words), "{found}");
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
    assert!(server.log().contains("was deleted or moved away"));
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

/// What is unlinked cannot be put back, only a copy of it. Nothing may be acknowledged after that.
#[test]
fn files_that_are_unlinked_take_no_more_writes_and_a_copy_has_all_of_them() {
    let [file, log, shared] = ["", "-wal", "-shm"];
    for unlinked in [&[file][..], &[log], &[file, log, shared]] {
        let mut server = Server::start(Engine::Sqlite);
        let app = server.app("a");
        app.serve("s", "1");
        let path = |end: &str| PathBuf::from(format!("{}{end}", server.database_file().display()));
        let copy = |end: &str| server.folder().join(format!("copy{end}"));
        assert_eq!(status_of_a_write(&server), 204);
        for end in unlinked {
            // What a process has open can still be read there, as an operator would.
            let open = open_file(&server, &path(end));
            fs::remove_file(path(end)).unwrap();
            fs::copy(open, copy(end)).unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(status_of_a_write(&server), 503, "{unlinked:?}");
        let is_only_the_log = unlinked == [log];
        tells(
            &server,
            match is_only_the_log {
                true => "has lost its log",
                false => "was deleted or moved away",
            },
        );
        server.signal("TERM");
        let grace_and_two_more = std::time::Duration::from_secs(4);
        assert!(server.ends_within(grace_and_two_more), "{unlinked:?}");
        for end in unlinked {
            let path = format!("{}{end}", server.database_file().display());
            fs::copy(server.folder().join(format!("copy{end}")), path).unwrap();
        }
        server.launch();
        assert_eq!(server.known_app("a").kv("c", "k"), json!(1), "{unlinked:?}");
        assert_eq!(status_of_a_write(&server), 204);
        server.assert_nothing_stuck();
    }
}

/// Where a file that the server has open can be read, whatever becomes of its name.
fn open_file(server: &Server, path: &Path) -> PathBuf {
    let open = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let mut open = open.map(|entry| entry.unwrap().path());
    let is_it = |entry: &PathBuf| fs::read_link(entry).is_ok_and(|target| target == path);
    let found = open.find(is_it);
    found.unwrap_or_else(|| panic!("{} is not open", path.display()))
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
pub(super) struct ReadOnly(Vec<PathBuf>);

impl ReadOnly {
    pub(super) fn make(server: &Server) -> Self {
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
            server.get("/s").status_in_an_outage(),
            server.call("POST", "/job", &[], None).status_in_an_outage(),
            server
                .call("POST", "/keyed", &key, None)
                .status_in_an_outage(),
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

#[test]
fn nobody_else_reads_the_database_whoever_made_its_files() {
    use std::os::unix::fs::PermissionsExt;
    let mut server = Server::start(Engine::Sqlite);
    server.app("a").serve("s", "1");
    let file = server.database_file();
    let files = ["", "-wal", "-shm"].map(|end| PathBuf::from(format!("{}{end}", file.display())));
    let modes = || {
        let there = files.iter().filter(|file| file.exists());
        let mode = |file: &PathBuf| fs::metadata(file).unwrap().permissions().mode() & 0o777;
        there.map(mode).collect::<Vec<_>>()
    };
    assert_eq!(modes(), [0o600; 3]);
    // As older versions made them.
    server.kill();
    for file in &files {
        fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
    }
    server.launch();
    assert_eq!(status_of_a_write(&server), 204);
    assert_eq!(modes(), [0o600; 3]);
}
