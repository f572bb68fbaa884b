//! The command line.

use std::process::Stdio;

use picloud_tests::{Engine, Server, err, fails, fine, on_both_engines, out, wait_for};
use serde_json::{Value, json};

on_both_engines!(
    deploying_twice_changes_nothing,
    a_mistake_in_a_script_is_shown_at_its_place,
    the_store_is_read_and_written,
    a_script_is_invoked_and_its_log_shown,
    a_log_that_is_followed_moves_no_terminal,
    exit_codes_tell_what_happened,
    signing_in_is_remembered,
    the_configuration_is_explained,
    whoever_reads_no_further_hears_no_complaint,
);

fn write(server: &Server, name: &str, text: &str) {
    std::fs::write(server.folder().join(name), text).unwrap();
}

fn whoever_reads_no_further_hears_no_complaint(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    for n in 0..300 {
        app.set("c", &n.to_string(), json!("x".repeat(1_000)));
    }
    // Each prints more than a pipe holds.
    for words in [
        &["openapi"][..],
        &["kv", "list", "c", "--app", "a"],
        &["kv", "list", "c", "--app", "a", "--json"],
    ] {
        let mut command = server.cli_command(words);
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        // As a shell says it of what SIGPIPE ended.
        assert_eq!(
            output.status.code(),
            Some(141),
            "{words:?}: {}",
            err(&output)
        );
        assert_eq!(err(&output), "", "{words:?}");
    }
}

fn deploying_twice_changes_nothing(engine: Engine) {
    let server = Server::start(engine);
    write(&server, "hello.rhai", "#{ hello: ctx.request.body }");
    let deploy = [
        "deploy",
        "hello.rhai",
        "--app",
        "a",
        "--route",
        "POST /hello",
        "--timeout-ms",
        "5000",
    ];
    let refused = server.cli(&deploy);
    assert_eq!(refused.status.code(), Some(3));
    assert!(err(&refused).contains("--create-app"), "{}", err(&refused));
    let mut create = deploy.to_vec();
    create.push("--create-app");
    let said = fine(server.cli(&create));
    assert!(
        said.contains("script `hello` created (version 1)"),
        "{said}"
    );
    assert_eq!(
        server.post("/hello", &json!("x")).json(),
        json!({ "hello": "x" })
    );
    let said = fine(server.cli(&deploy));
    assert!(
        said.contains("script `hello` unchanged (version 1)") && said.contains("/hello unchanged"),
        "{said}"
    );
    write(&server, "hello.rhai", "#{ hi: 1 }");
    let mut json_deploy = deploy.to_vec();
    json_deploy.push("--json");
    let said: Value = serde_json::from_str(&fine(server.cli(&json_deploy))).unwrap();
    assert_eq!(
        (&said["script_change"], &said["script"]["version"]),
        (&json!("updated"), &json!(2))
    );
    assert_eq!(said["script"]["limits"]["timeout_ms"], 5000);
    assert_eq!(
        server.post("/hello", &json!("x")).json(),
        json!({ "hi": 1 })
    );
}

fn a_mistake_in_a_script_is_shown_at_its_place(engine: Engine) {
    let server = Server::start(engine);
    write(&server, "bad.rhai", "let x = 1;\nlet y = ;\n");
    let refused = server.cli(&["deploy", "bad.rhai", "--app", "a", "--create-app"]);
    assert_eq!(refused.status.code(), Some(4));
    let said = err(&refused);
    assert!(
        said.contains("bad.rhai:2:9: ") && said.contains("  let y = ;\n          ^"),
        "{said}"
    );
    write(&server, "import.rhai", "let x = 1;\n  import \"y\" as y;\n");
    let said = fails(&server.cli(&["deploy", "import.rhai", "--app", "a"]), 4);
    assert!(
        said.contains("import.rhai:2:3: ") && said.contains("    import \"y\" as y;\n    ^"),
        "{said}"
    );
    let scripts = server.api("GET", "/apps/a/scripts", None).json();
    assert_eq!(scripts["items"], json!([]));
}

fn the_store_is_read_and_written(engine: Engine) {
    let server = Server::start(engine);
    server.app("a");
    assert!(fine(server.cli(&["kv", "list", "--app", "a"])).contains("No collections yet"));
    fine(server.cli(&["kv", "set", "c", "a/ä", "{\"n\": 1}", "--app", "a"]));
    fine(server.cli(&["kv", "set", "c", "text", "plain words", "--app", "a"]));
    assert_eq!(
        fine(server.cli(&["kv", "get", "c", "a/ä", "--app", "a"])).trim(),
        r#"{"n": 1}"#
    );
    assert_eq!(
        fine(server.cli(&["kv", "get", "c", "text", "--app", "a"])).trim(),
        r#""plain words""#
    );
    let listed: Value = serde_json::from_str(&fine(
        server.cli(&["kv", "list", "c", "--app", "a", "--json"]),
    ))
    .unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    fine(server.cli(&["kv", "delete", "c", "text", "--app", "a"]));
    assert_eq!(
        server
            .cli(&["kv", "get", "c", "text", "--app", "a"])
            .status
            .code(),
        Some(3)
    );
}

fn a_script_is_invoked_and_its_log_shown(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script(
        "s",
        "log::info(\"seen\", #{ n: ctx.request.body.n }); ctx.request.body.n + 1",
    );
    app.script("t", "throw \"boom\"");
    let done = server.cli(&["invoke", "s", "--app", "a", "--data", "{\"n\": 41}"]);
    assert!(fine(done).contains("42"));
    app.script(
        "q",
        r#"[ctx.request.query_all("t"), ctx.request.headers_all("x-a")]"#,
    );
    let mut twice = vec!["invoke", "q", "--app", "a"];
    twice.extend(["--query", "t=1", "--query", "t=2", "--header", "x-a: 3"]);
    let done = fine(server.cli(&twice));
    assert!(done.contains(r#"[["1","2"],["3"]]"#), "{done}");
    let failed = server.cli(&["invoke", "t", "--app", "a"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(out(&failed).contains("boom"), "{}", out(&failed));
    let logs = fine(server.cli(&["logs", "--app", "a"]));
    assert!(
        logs.contains("seen n=41") && logs.contains("error: boom (line 1, column 1)"),
        "{logs}"
    );
    let threw = fine(server.cli(&["logs", "--app", "a", "--outcome", "threw", "--json"]));
    assert_eq!(threw.lines().count(), 1);

    let log = std::fs::File::create(server.folder().join("follow")).unwrap();
    let mut follow =
        std::process::Command::new(std::env::var("PICLOUD_BIN").unwrap_or_else(|_| {
            concat!(env!("CARGO_MANIFEST_DIR"), "/../target/debug/picloud").to_owned()
        }))
        .args([
            "logs",
            "--app",
            "a",
            "--follow",
            "--json",
            "--url",
            &server.url,
            "--token",
            &server.token,
        ])
        .stdout(log)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let lines = || {
        std::fs::read_to_string(server.folder().join("follow"))
            .unwrap_or_default()
            .lines()
            .count()
    };
    wait_for("what was there", || (lines() == 3).then_some(()));
    for _ in 0..3 {
        server.cli(&["invoke", "s", "--app", "a", "--data", "{\"n\": 1}"]);
    }
    wait_for("what is new", || (lines() == 6).then_some(()));
    follow.kill().unwrap();
    follow.wait().unwrap();
}

fn a_log_that_is_followed_moves_no_terminal(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.serve("s", "log::info(ctx.request.body); throw ctx.request.body");
    let evil = json!("x\u{1b}[2J\u{1b}]0;owned\u{7}\r\n  ERROR forged\u{9b}31m\u{202e}");
    let log = server.folder().join("followed");
    let mut follow = server.cli_command(&["logs", "--app", "a", "--follow"]);
    let follow = follow.stdout(std::fs::File::create(&log).unwrap());
    let mut follow = follow.stderr(Stdio::null()).spawn().unwrap();
    // What was there, and what comes while it is followed.
    for seen in [2, 4] {
        server.post("/s", &evil);
        wait_for("what the log tells", || {
            let told = std::fs::read_to_string(&log).unwrap();
            (told
                .matches(r"x\u{1b}[2J\u{1b}]0;owned\u{7}\r\n  ERROR")
                .count()
                == seen)
                .then_some(())
        });
    }
    follow.kill().unwrap();
    follow.wait().unwrap();
    let told = std::fs::read_to_string(&log).unwrap();
    let moves = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    assert!(!told.contains(moves), "{told:?}");
    assert!(!told.contains("\n  ERROR forged"), "{told:?}");
}

fn exit_codes_tell_what_happened(engine: Engine) {
    let server = Server::start(engine);
    server.app("a");
    let code = |words: &[&str]| server.cli(words).status.code();
    assert_eq!(code(&["apps", "list"]), Some(0));
    assert_eq!(code(&["apps", "show", "nothing"]), Some(3));
    assert_eq!(code(&["apps", "create", "a"]), Some(4));
    assert_eq!(code(&["apps", "delete", "a"]), Some(2));
    assert_eq!(code(&["frobnicate"]), Some(2));
    assert_eq!(code(&["apps", "list", "--token", "wrong"]), Some(5));
    assert_eq!(
        code(&["apps", "list", "--url", "http://127.0.0.1:9"]),
        Some(6)
    );
    let odd = server.cli(&["apps", "list", "--url", "picloud.example.com"]);
    assert_eq!(odd.status.code(), Some(2));
    assert!(
        err(&odd).contains("write it like https://"),
        "{}",
        err(&odd)
    );
    let json = server.cli(&["apps", "show", "nothing", "--json"]);
    let problem: Value = serde_json::from_str(&err(&json)).unwrap();
    assert_eq!(problem["status"], 404);
    assert!(fine(server.cli(&["completions", "bash"])).contains("picloud"));
    assert!(fine(server.cli(&["--help"])).contains("Exit codes"));
}

fn signing_in_is_remembered(engine: Engine) {
    use std::io::Write;
    let server = Server::start(engine);
    server.app("a");
    let program = std::env::var("PICLOUD_BIN").unwrap_or_else(|_| {
        concat!(env!("CARGO_MANIFEST_DIR"), "/../target/debug/picloud").to_owned()
    });
    let run = |words: &[&str], input: &str| {
        let mut command = std::process::Command::new(&program);
        command
            .args(words)
            .env("XDG_CONFIG_HOME", server.folder().join("conf"));
        command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped());
        let mut child = command
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        child.wait_with_output().unwrap()
    };
    let login = ["--url", &server.url, "login", "--password-stdin"];
    assert_eq!(run(&login, "wrong password").status.code(), Some(5));
    fine(run(&login, &format!("{}\n", server.password())));
    assert!(fine(run(&["apps", "list"], "")).contains('a'));
    let path = server.folder().join("conf/picloud/credentials.json");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    // Neither does one stay open that somebody copied, nor what a run left that was killed.
    let open = || std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(&path, open()).unwrap();
    fine(run(&["apps", "list"], ""));
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    let part = path.with_extension("part");
    std::fs::write(&part, "").unwrap();
    std::fs::set_permissions(&part, open()).unwrap();
    fine(run(&login, &format!("{}\n", server.password())));
    assert_eq!((mode(), part.exists()), (0o600, false));
    // The token goes to nobody but the server that gave it.
    assert_eq!(
        run(
            &[
                "--url",
                &server.url.replace("127.0.0.1", "localhost"),
                "apps",
                "list"
            ],
            ""
        )
        .status
        .code(),
        Some(5)
    );
    fine(run(&["logout"], ""));
    assert!(!path.exists());
}

fn the_configuration_is_explained(engine: Engine) {
    let server = Server::start(engine);
    write(&server, "picloud.toml", "executions_max = 7\n");
    let shown: Value = serde_json::from_str(&fine(server.cli(&[
        "config",
        "--json",
        "--lease-ms",
        "3000",
    ])))
    .unwrap();
    assert_eq!(
        shown["executions_max"],
        json!({ "value": "7", "source": "picloud.toml" })
    );
    assert_eq!(shown["lease_ms"]["source"], "--lease-ms");
    assert_eq!(shown["listen"]["source"], "default");
    // Not even where it stands where few look for one.
    let url = "postgres://me:hunter2@db/x?password=hunter3&sslmode=require";
    let shown = fine(server.cli(&["config", "--database-url", url]));
    let without = "postgres://me:***@db/x?password=***&sslmode=require";
    assert!(
        !shown.contains("hunter") && shown.contains(without),
        "{shown}"
    );
    write(&server, "picloud.toml", "executons_max = 7\n");
    let refused = server.cli(&["config"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        err(&refused).contains("did you mean `executions_max`?"),
        "{}",
        err(&refused)
    );
    write(&server, "picloud.toml", "lease_ms = 1\n");
    assert!(err(&server.cli(&["config"])).contains("lease_ms (from picloud.toml): must be"));
}
