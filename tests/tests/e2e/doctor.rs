//! `picloud doctor`: what is wrong with a set-up, and how to mend it. Each test breaks one.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use picloud_tests::{Engine, Options, Place, Server, on_both_engines, wait_for};
use serde_json::{Value, json};

on_both_engines!(
    a_server_checks_itself_and_says_how_to_mend_what_is_wrong,
    a_machine_is_checked_with_its_server_down,
    a_limit_that_is_too_low_is_found,
    a_lost_master_key_is_found,
    a_clock_that_was_wrong_is_found,
    settings_that_cannot_be_are_a_finding,
    a_row_that_cannot_be_read_is_left_out_and_told_of,
    deliveries_that_nobody_moves_are_found,
    deliveries_that_are_held_for_nothing_are_counted,
);

const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

/// What a command line answered as JSON, and its exit code.
#[track_caller]
fn told(output: &Output) -> (Value, Option<i32>) {
    let report = serde_json::from_slice(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = report.unwrap_or_else(|error| panic!("{error}: {said}"));
    let is_error = report["severity"] == "error";
    assert_eq!(output.status.code(), Some(i32::from(is_error)), "{report}");
    (report, output.status.code())
}

/// The finding of a check, which says how to mend it exactly if something is wrong.
#[track_caller]
fn finding<'r>(report: &'r Value, name: &str) -> &'r Value {
    let findings = report["findings"].as_array().expect("findings");
    let found = findings.iter().find(|finding| finding["name"] == name);
    let found = found.unwrap_or_else(|| panic!("{name} is not in {report}"));
    let is_ok = found["severity"] == "ok";
    assert_eq!(found["fix"].is_null(), is_ok, "{found}");
    assert!(found["command"].is_null() || !is_ok, "{found}");
    found
}

#[track_caller]
fn expect(report: &Value, expected: &[(&str, &str)]) {
    for (name, severity) in expected {
        let found = finding(report, name);
        assert_eq!(found["severity"], *severity, "{found}");
    }
}

fn mode(path: &Path, bits: u32) {
    set_permissions(path, Permissions::from_mode(bits)).unwrap();
}

fn a_server_checks_itself_and_says_how_to_mend_what_is_wrong(engine: Engine) {
    let environment = vec![("PICLOUD_CONNECTIONS_MAX", "100".to_owned())];
    let options = Options {
        environment,
        ..Options::default()
    };
    let mut server = Server::start_with(engine, options);
    let ask = |server: &Server, headers: &[(&str, &str)]| {
        let bearer = format!("Bearer {}", server.token);
        let headers = [headers, &[("authorization", bearer.as_str())]].concat();
        let answer = server.call("GET", "/api/v1/doctor", &headers, None);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    };
    let first = ask(&server, &[]);
    expect(
        &first,
        &[
            ("tls", "ok"),
            ("trusted_proxies", "ok"),
            ("admin_host", "warning"),
            ("data_dir", "ok"),
            ("cache_dir", "ok"),
            ("cache_key", "ok"),
            ("open_files", "ok"),
            ("database", "ok"),
            ("schema", "ok"),
            ("clock", "ok"),
            ("backup", "ok"),
        ],
    );
    // A warning where the kernel has no Landlock.
    assert_ne!(finding(&first, "compiler")["severity"], "error");
    let is_postgres = engine == Engine::Postgres;
    let key = if is_postgres { "warning" } else { "ok" };
    expect(&first, &[("master_key", key)]);
    let detail = finding(&first, "database")["found"].as_str().unwrap();
    let product = if is_postgres {
        "Postgres 1"
    } else {
        "SQLite 3"
    };
    assert!(detail.starts_with(product), "{detail}");
    assert!(!first.to_string().contains(server.password()));
    // A backup is known from then on, whether it was taken through the API or beside the server.
    let not_yet = finding(&first, "backup")["found"].to_string();
    assert!(not_yet.contains("none was taken"), "{not_yet}");
    let direct = server.direct();
    let mut words = vec!["backup", "a.zip"];
    words.extend(direct.iter().map(String::as_str));
    let taken = server.cli(&words);
    assert!(
        taken.status.success() && taken.stderr.is_empty(),
        "{taken:?}"
    );
    let last = finding(&ask(&server, &[]), "backup")["found"].to_string();
    assert!(last.contains("was taken at 20"), "{last}");
    let audit = server.api("GET", "/audit?limit=1", None).json();
    let noted = (&audit["items"][0]["action"], &audit["items"][0]["target"]);
    assert_eq!(noted, (&json!("picloud backup --direct"), &json!("a.zip")));
    assert!(server.cli(&["backup", "b.zip"]).status.success());
    // A proxy that nobody named.
    let proxied = [("x-forwarded-proto", "https")];
    let found = ask(&server, &proxied);
    expect(
        &found,
        &[("trusted_proxies", "warning"), ("tls", "warning")],
    );
    // Others may look into the data: that is an error, and its command mends it.
    let data_dir = server.folder().join("data");
    mode(&data_dir, 0o755);
    let (found, _) = told(&server.cli(&["doctor", "--json"]));
    expect(&found, &[("data_dir", "error")]);
    let unwell = server.cli(&["doctor"]);
    assert_eq!(unwell.status.code(), Some(1));
    let text = String::from_utf8_lossy(&unwell.stdout).into_owned();
    assert!(text.contains("error    data_dir: "), "{text}");
    let command = finding(&found, "data_dir")["command"].as_str().unwrap();
    assert!(text.contains(&format!("$ {command}\n")), "{text}");
    assert!(
        Command::new("sh")
            .args(["-c", command])
            .status()
            .unwrap()
            .success()
    );
    let (found, code) = told(&server.cli(&["doctor", "--json"]));
    assert_eq!((&found["severity"], code), (&json!("warning"), Some(0)));
    expect(&found, &[("data_dir", "ok")]);
    // What is set right is well.
    server.set_environment(vec![
        ("PICLOUD_ADMIN_HOST", "127.0.0.1".to_owned()),
        ("PICLOUD_TRUSTED_PROXIES", "127.0.0.1".to_owned()),
    ]);
    server.kill();
    server.launch();
    let mended = ask(&server, &proxied);
    expect(
        &mended,
        &[
            ("trusted_proxies", "ok"),
            ("tls", "ok"),
            ("admin_host", "ok"),
        ],
    );
}

/// The command line, looking at a place by itself.
fn direct(place: &Place, more: &[&str]) -> (Value, Option<i32>) {
    let words = [&["doctor", "--json"], more].concat();
    told(&place.cli(&words).output().unwrap())
}

/// A place where a server has run, with its compiled code.
fn used(engine: Engine, options: Options) -> (Server, PathBuf) {
    let mut server = Server::start_with(engine, options);
    server.app("a");
    server.stop();
    let data_dir = server.folder().join("data");
    (server, data_dir)
}

/// The command line, looking at where a server ran.
fn look(server: &Server, more: &[&str]) -> Value {
    let place = server.direct();
    let mut words = vec!["doctor", "--json"];
    words.extend(place.iter().map(String::as_str));
    words.extend(more);
    told(&server.cli(&words)).0
}

fn a_machine_is_checked_with_its_server_down(engine: Engine) {
    // Before there is anything.
    let place = Place::new(engine);
    let (found, code) = direct(&place, &[]);
    assert_eq!(code, Some(0), "{found}");
    expect(
        &found,
        &[
            ("configuration", "ok"),
            ("data_dir", "ok"),
            ("database", "ok"),
        ],
    );
    assert!(!place.data_dir().exists() && !place.has_database());

    let (server, data_dir) = used(engine, Options::default());
    let cache = std::fs::canonicalize(server.cache_dir()).unwrap();
    let cache = cache.to_str().unwrap().to_owned();
    let well = look(&server, &["--cache-dir", &cache]);
    expect(
        &well,
        &[
            ("configuration", "ok"),
            ("tls", "ok"),
            ("data_dir", "ok"),
            ("cache_dir", "ok"),
            ("cache_key", "ok"),
            ("guest", "ok"),
            ("database", "ok"),
            ("schema", "ok"),
            ("clock", "ok"),
            ("backup", "ok"),
        ],
    );
    let guest = finding(&well, "guest")["found"].as_str().unwrap();
    assert!(guest.contains("loads"), "{guest}");
    let public = look(&server, &["--listen", "0.0.0.0:1"]);
    expect(&public, &[("tls", "warning")]);
    let local = ["--listen", "0.0.0.0:1", "--trusted-proxies", "10.0.0.0/8"];
    expect(&look(&server, &local), &[("tls", "ok")]);
    mode(&data_dir, 0o750);
    expect(&look(&server, &[]), &[("data_dir", "error")]);
    mode(&data_dir, 0o700);

    // Compiled code that somebody changed.
    let own = server.folder().join("cache");
    std::fs::create_dir(&own).unwrap();
    mode(&own, 0o700);
    for entry in std::fs::read_dir(&cache).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), own.join(entry.file_name())).unwrap();
    }
    let own_text = own.to_str().unwrap();
    expect(
        &look(&server, &["--cache-dir", own_text]),
        &[("guest", "ok")],
    );
    for entry in std::fs::read_dir(&own).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "cwasm") {
            let mut bytes = std::fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
    }
    expect(
        &look(&server, &["--cache-dir", own_text]),
        &[("guest", "warning")],
    );
    mode(&own.join("key"), 0o644);
    expect(
        &look(&server, &["--cache-dir", own_text]),
        &[("cache_key", "error")],
    );

    // A settings file with a password in it.
    let file = server.folder().join("settings.toml");
    std::fs::write(&file, format!("master_key = \"{KEY}\"\n")).unwrap();
    let file_text = file.to_str().unwrap();
    mode(&file, 0o644);
    let found = look(&server, &["--config", file_text]);
    expect(
        &found,
        &[("configuration", "warning"), ("master_key", "ok")],
    );
    assert!(!found.to_string().contains(KEY));
    mode(&file, 0o640);
    expect(
        &look(&server, &["--config", file_text]),
        &[("configuration", "ok")],
    );

    // A database that is damaged, or is not there.
    match engine {
        Engine::Sqlite => {
            expect(&well, &[("integrity", "ok")]);
            let path = data_dir.join("picloud.db");
            let mut bytes = std::fs::read(&path).unwrap();
            let whole = bytes.clone();
            for page in bytes.chunks_mut(4096).skip(2).step_by(2) {
                page[..64].fill(0xa5);
            }
            std::fs::write(&path, bytes).unwrap();
            let damaged = look(&server, &[]);
            let found = damaged["findings"].as_array().unwrap();
            let is_told = |name: &str| {
                found
                    .iter()
                    .any(|one| one["name"] == name && one["severity"] == "error")
            };
            assert!(is_told("integrity") || is_told("database"), "{damaged}");
            std::fs::write(&path, whole).unwrap();
            expect(&look(&server, &[]), &[("integrity", "ok")]);
        }
        Engine::Postgres => {
            let words = [
                "doctor",
                "--json",
                "--database-url",
                "postgres://127.0.0.1:1/x",
            ];
            let (gone, _) = told(&server.cli(&words));
            expect(&gone, &[("database", "error")]);
            server.sql("update _sqlx_migrations set version = 999 where version = 1");
            expect(&look(&server, &[]), &[("schema", "error")]);
            server.sql("delete from _sqlx_migrations where version > 5");
            expect(&look(&server, &[]), &[("schema", "warning")]);
        }
    }
}

fn a_limit_that_is_too_low_is_found(engine: Engine) {
    let place = Place::new(engine);
    let maps = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    let maps: u64 = maps.trim().parse().unwrap();
    // As many executions as no kernel's default allows.
    let (found, _) = direct(&place, &["--executions-max", "100000"]);
    let few = finding(&found, "max_map_count");
    let needed = 100_000 * 12 + 4_000;
    assert_eq!(few["severity"] == "warning", maps < needed, "{few}");
    if maps < needed {
        assert_eq!(
            few["command"],
            format!("sysctl -w vm.max_map_count={needed}")
        );
    }
    let (found, _) = direct(&place, &["--executions-max", "20"]);
    expect(&found, &[("max_map_count", "ok")]);
    // A process that may open few files.
    let command = place.cli(&["doctor", "--json", "--connections-max", "1000"]);
    let mut limited = Command::new("prlimit");
    limited.arg("--nofile=500:500").arg(command.get_program());
    limited.args(command.get_args());
    let (found, _) = told(&limited.output().unwrap());
    expect(&found, &[("open_files", "warning")]);
    let (found, _) = direct(&place, &["--connections-max", "10"]);
    expect(&found, &[("open_files", "ok")]);
}

fn a_lost_master_key_is_found(engine: Engine) {
    let options = match engine {
        Engine::Sqlite => Options::default(),
        Engine::Postgres => Options {
            environment: vec![("PICLOUD_MASTER_KEY", KEY.to_owned())],
            ..Options::default()
        },
    };
    let mut server = Server::start_with(engine, options);
    server.app("shop");
    let set = Some(json!({ "value": "s3cret-of-mine" }));
    let set = server.api("PUT", "/apps/shop/secrets/TOKEN", set);
    assert_eq!(set.status, 204, "{}", set.text());
    let ask = |server: &Server| server.api("GET", "/doctor", None).json();
    expect(&ask(&server), &[("master_key", "ok")]);
    if engine == Engine::Sqlite {
        let key = server.folder().join("data/master.key");
        let elsewhere = server.folder().join("kept");
        mode(&key, 0o644);
        expect(&ask(&server), &[("master_key", "error")]);
        mode(&key, 0o600);
        // The server has it in memory still, and its next start would not.
        std::fs::rename(&key, &elsewhere).unwrap();
        expect(&ask(&server), &[("master_key", "error")]);
        std::fs::write(&key, "nonsense").unwrap();
        mode(&key, 0o600);
        expect(&ask(&server), &[("master_key", "error")]);
        std::fs::rename(&elsewhere, &key).unwrap();
        expect(&ask(&server), &[("master_key", "ok")]);
        std::fs::remove_file(&key).unwrap();
    }
    server.stop();
    // What the command line's environment does not say, it does not know.
    let lost = look(&server, &[]);
    expect(&lost, &[("master_key", "error")]);
    let found = finding(&lost, "master_key")["found"].as_str().unwrap();
    assert!(found.contains("encrypted under the key"), "{found}");
    assert!(!lost.to_string().contains("s3cret"));
}

fn a_clock_that_was_wrong_is_found(engine: Engine) {
    let options = Options {
        clock: Some("+1h"),
        ..Options::default()
    };
    let mut server = Server::start_with(engine, options);
    let ask = |server: &Server| server.api("GET", "/doctor", None).json();
    let now = ask(&server);
    // Postgres has a clock of its own; SQLite's is the server's, and was not wrong before.
    let severity = match engine {
        Engine::Sqlite => "ok",
        Engine::Postgres => "error",
    };
    expect(&now, &[("clock", severity)]);
    server.app("a");
    server.stop();
    server.set_clock("+0s");
    server.launch();
    let severity = match engine {
        Engine::Sqlite => "error",
        Engine::Postgres => "ok",
    };
    expect(&ask(&server), &[("clock", severity)]);
}

fn settings_that_cannot_be_are_a_finding(engine: Engine) {
    let place = Place::new(engine);
    let (found, code) = direct(&place, &["--lease-ms", "soon"]);
    assert_eq!(code, Some(1));
    expect(&found, &[("configuration", "error")]);
    let said = finding(&found, "configuration")["found"].as_str().unwrap();
    assert!(said.starts_with("lease_ms (from --lease-ms): "), "{said}");
    let mut misspelt = place.cli(&["doctor", "--json"]);
    let misspelt = misspelt.env("PICLOUD_LISTN", "x").output().unwrap();
    let (found, _) = told(&misspelt);
    expect(&found, &[("environment", "warning")]);
    // Without a server and without a place, it says what else there is.
    let mut alone = Command::new(place.cli(&[]).get_program());
    alone.args(["doctor", "--url", "http://127.0.0.1:1"]);
    let alone = alone.output().unwrap();
    assert_eq!(alone.status.code(), Some(6));
    let said = String::from_utf8_lossy(&alone.stderr).into_owned();
    assert!(said.contains("picloud doctor --direct"), "{said}");
}

fn a_row_that_cannot_be_read_is_left_out_and_told_of(engine: Engine) {
    let mut server = Server::start(engine);
    let policy = json!({ "cors": { "origins": ["https://a.test"] } });
    let odd_route = {
        let shop = server.app("shop");
        shop.serve("well", "1");
        shop.script("odd", "2");
        for topic in ["well", "odd"] {
            let path = format!("/apps/shop/topics/{topic}");
            let opened = server.api("PUT", &path, Some(json!({ "auth_mode": "public" })));
            assert_eq!(opened.status, 200, "{}", opened.text());
        }
        let trigger = json!({ "script": "odd", "collection": "c", "name": "odd" });
        shop.trigger("kv", trigger);
        server.app("odd");
        let claim = json!({ "host": "odd.test" });
        let claimed = server.api("POST", "/apps/odd/domains", Some(claim));
        assert_eq!(claimed.status, 201, "{}", claimed.text());
        server.join("odd", "member", json!({ "shop": "editor" }));
        let route = shop.route_with("well", "GET /odd", policy);
        route["id"].as_str().unwrap().to_owned()
    };
    server.stop();
    // What an earlier version took, say, and this one does not.
    server.sql(
        "update routes set cors = '{\"origins\":[\"https://A.test/\"]}' where path = '/odd';
         update topics set cors_origins = '[\"null\"]' where name = 'odd';
         update kv_triggers set ops = '[\"burn\"]';
         update scripts set limits = '{\"fuel\":\"much\"}' where name = 'odd';
         update app_hosts set host = '*.*';
         update members set role = 'king';
         update users set role = 'king' where name = 'odd';",
    );
    server.launch();
    assert_eq!(server.get("/well").json(), json!(1));
    assert_eq!(server.get("/odd").problem(), "not_found");
    let apps = server.api("GET", "/apps", None).json();
    assert_eq!(apps["items"].as_array().unwrap().len(), 1, "{apps}");
    assert_eq!(apps["items"][0]["slug"], "shop");
    let topic = |name: &str| server.call("HEAD", &format!("/realtime/topics/{name}"), &[], None);
    assert_eq!((topic("well").status, topic("odd").status), (200, 404));
    let found = server.api("GET", "/doctor", None).json();
    expect(&found, &[("rows", "error")]);
    let rows = finding(&found, "rows")["found"].to_string();
    assert!(rows.contains("and 6 more"), "{rows}");
    let log = server.log();
    for place in [
        "app_hosts.host",
        "routes.cors",
        "scripts.limits",
        "triggers.ops",
        "topics.cors_origins",
        "members.role",
        "users.role",
    ] {
        assert_eq!(log.matches(place).count(), 1, "{place}: {log}");
    }
    assert!(log.contains(&odd_route));
    // A change loads all anew, and does not tell it again. What can be removed mends it.
    let remove = |path: &str| server.api("DELETE", path, None).status;
    assert_eq!(remove(&format!("/routes/{odd_route}")), 204);
    assert_eq!(remove("/apps/shop/topics/odd"), 204);
    assert_eq!(server.get("/well").json(), json!(1));
    let found = server.api("GET", "/doctor", None).json();
    let rows = finding(&found, "rows")["found"].to_string();
    assert!(rows.contains("and 4 more"), "{rows}");
    assert_eq!(server.log().matches("scripts.limits").count(), 1);
    // With the server down it is found, too.
    server.stop();
    expect(&look(&server, &[]), &[("rows", "error")]);
}

fn deliveries_that_nobody_moves_are_found(engine: Engine) {
    let mut server = Server::start(engine);
    let app = server.app("a");
    app.script_with(
        "long",
        r#"if ctx.attempt == 1 { sleep(50.0) }"#,
        json!({ "timeout_ms": 60_000 }),
    );
    app.route_with("long", "POST /long", json!({ "dispatch_mode": "async" }));
    assert_eq!(server.call("POST", "/long", &[], None).status, 202);
    assert_eq!(server.rows("outbox"), 1);
    server.kill();
    server.sql("update outbox set due_at = '2020-01-01T00:00:00.000000Z'");
    let found = look(&server, &[]);
    let outbox = finding(&found, "outbox");
    assert_eq!(outbox["severity"], "error", "{found}");
    let words = outbox["found"].as_str().unwrap();
    assert!(words.contains("1 whose lease ended"), "{words}");
    server.launch();
    server.assert_nothing_stuck();
    expect(&look(&server, &[]), &[("outbox", "ok")]);
    wait_for("the metric to tell", || {
        let is_counted = server
            .get("/metrics")
            .text()
            .contains("picloud_outbox_stuck{");
        (is_counted && server.metric("picloud_outbox_stuck") == 0.0).then_some(())
    });
}

fn deliveries_that_are_held_for_nothing_are_counted(engine: Engine) {
    let mut server = Server::start(engine);
    let app = server.app("a");
    app.script("s", r#"kv::collection("ran").set(ctx.event.kv.key, 1)"#);
    let trigger = app.trigger("kv", json!({ "script": "s", "collection": "c" }));
    let pause = format!("/triggers/{}/pause", trigger["id"].as_str().unwrap());
    assert_eq!(server.api("POST", &pause, None).status, 200);
    app.set("c", "k", json!(1));
    // Resumed behind its back. What is mended in a moment is held again until it was counted.
    server.sql("update triggers set paused = false");
    let later = "due_at = '2100-01-01T00:00:00.000000Z'";
    let hold = format!("update outbox set held = true, {later}");
    let stuck = || server.metric("picloud_outbox_stuck");
    wait_for("the metric to count it", || {
        server.sql(&hold);
        (stuck() == 1.0).then_some(())
    });
    wait_for("it to be mended, and counted no more", || {
        (stuck() == 0.0).then_some(())
    });
    server.kill();
    server.sql(&hold.replace("2100", "2020"));
    let found = look(&server, &[]);
    let outbox = finding(&found, "outbox");
    assert_eq!(outbox["severity"], "error", "{found}");
    let words = outbox["found"].as_str().unwrap();
    assert!(words.contains("1 held for a trigger"), "{words}");
    server.launch();
    wait_for("it to run", || {
        let app = server.known_app("a");
        (app.kv("ran", "k") == 1).then_some(())
    });
    expect(&look(&server, &[]), &[("outbox", "ok")]);
}

/// On a clock that runs ten times as fast: it takes more than a minute until this is odd.
#[test]
fn a_delivery_whose_outcome_cannot_be_written_is_found() {
    let options = Options {
        environment: vec![
            ("PICLOUD_DEFAULT_TIMEOUT_MS", "10000".to_owned()),
            ("PICLOUD_MAX_TIMEOUT_MS", "10000".to_owned()),
        ],
        clock: Some("+0 x10"),
        ordinary_role: true,
        ..Options::default()
    };
    let server = Server::start_with(Engine::Postgres, options);
    let app = server.app("a");
    app.script("job", r#"kv::collection("c").set("ran", 1)"#);
    app.route_with("job", "POST /job", json!({ "dispatch_mode": "async" }));
    let leases = || {
        let report = server.api("GET", "/doctor", None);
        assert_eq!(report.status, 200, "{}", report.text());
        finding(&report.json(), "leases").clone()
    };
    assert_eq!(leases()["severity"], "ok");
    server.allow_writes_to("executions", false);
    assert_eq!(server.call("POST", "/job", &[], None).status, 202);
    let found = wait_for("the finding", || {
        let found = leases();
        (found["severity"] == "error").then_some(found)
    });
    let says = found["found"].as_str().unwrap();
    let seconds = says.split_once("a delivery has been worked on for ");
    let seconds = seconds.and_then(|(_, rest)| rest.split(' ').next());
    let seconds: Option<u64> = seconds.and_then(|seconds| seconds.parse().ok());
    assert!(seconds >= Some(70), "{says}");
    assert!(
        says.contains("no script may run for longer than 10 s"),
        "{says}"
    );
    // Counted now and then.
    wait_for("the metric", || {
        (server.metric("picloud_leases_oldest_seconds") > 70.0).then_some(())
    });
    assert_eq!(server.metric("picloud_leases_held"), 1.0);
    let (report, code) = told(&server.cli(&["doctor", "--json"]));
    assert_eq!(
        (finding(&report, "leases")["severity"].as_str(), code),
        (Some("error"), Some(1))
    );
    server.allow_writes_to("executions", true);
    wait_for("it to be over", || {
        (leases()["severity"] == "ok" && app.executions("outcome=answered").len() == 1)
            .then_some(())
    });
    assert_eq!(app.kv("c", "ran"), json!(1));
    server.assert_nothing_stuck();
    wait_for("the metric", || {
        (server.metric("picloud_leases_held") == 0.0).then_some(())
    });
    assert_eq!(server.metric("picloud_leases_oldest_seconds"), 0.0);
}
