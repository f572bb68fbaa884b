//! What the command line shows and passes on of values and of other people's text.

use std::process::{Command, Stdio};

use picloud_tests::{App, Engine, Server, doubles, fine, on_both_engines, out, wait_for};
use serde_json::{Value, json};

on_both_engines!(
    numbers_are_passed_on_as_they_are,
    a_dead_letters_numbers_are_shown_and_replayed_as_they_are,
    a_text_of_somebody_else_moves_no_terminal,
    json_on_a_terminal_is_the_same_value,
    a_long_value_is_shown_whole,
    a_bad_value_hides_no_others,
    every_key_that_can_be_is_reached,
);

/// Numbers whose last digit, size or form is lost where they pass through a double that is read
/// or written carelessly.
fn numbers() -> String {
    let doubles = doubles(0x9E37_79B9_7F4A_7C15).take(300);
    let doubles: Vec<String> = doubles.map(|double| format!("{double:e}")).collect();
    format!(
        r#"{{"b":9007199254740993,"a":10.0,"c":[18446744073709551616,-0.0,1E+2,0.30000000000000004],"d":[{}]}}"#,
        doubles.join(",")
    )
}

fn numbers_are_passed_on_as_they_are(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    let numbers = numbers();
    fine(server.cli(&["kv", "set", "c", "k", &numbers, "--app", "a"]));
    let read = || fine(server.cli(&["kv", "get", "c", "k", "--app", "a"]));
    assert_eq!(read().trim_end(), numbers);
    let listed = fine(server.cli(&["kv", "list", "c", "--app", "a", "--json"]));
    assert!(listed.contains(&numbers), "{listed}");
    let listed = fine(server.cli(&["kv", "list", "c", "--app", "a"]));
    assert!(listed.contains(&numbers), "{listed}");
    // Through a script, which has integers of 64 bits and doubles.
    app.script(
        "echo",
        "log::info(\"n\", #{ n: ctx.request.body.n }); ctx.request.body",
    );
    let body = r#"{"f":0.30000000000000004,"n":9007199254740993}"#;
    let invoke = ["invoke", "echo", "--app", "a", "--data", body];
    assert_eq!(fine(server.cli(&invoke)).lines().last(), Some(body));
    let logs = fine(server.cli(&["logs", "--app", "a"]));
    assert!(logs.contains("n=9007199254740993"), "{logs}");
    fine(server.cli(&["topics", "open", "t", "--auth", "public", "--app", "a"]));
    fine(server.cli(&["publish", "t", &numbers, "--app", "a"]));
}

fn a_dead_letters_numbers_are_shown_and_replayed_as_they_are(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script("broken", "throw 1");
    let retry = json!({ "attempts_max": 1, "base_ms": 1 });
    app.trigger(
        "kv",
        json!({ "script": "broken", "collection": "in", "retry": retry }),
    );
    let numbers = numbers();
    fine(server.cli(&["kv", "set", "in", "k", &numbers, "--app", "a"]));
    let id = wait_for("a dead letter", || {
        let letters = app.dead_letters("");
        Some(letters.first()?["id"].as_str()?.to_owned())
    });
    let shown = fine(server.cli(&["dead-letters", "show", &id, "--json"]));
    assert!(shown.contains(&numbers), "{shown}");
    let shown = fine(server.cli(&["dead-letters", "show", &id]));
    for number in ["9007199254740993", "18446744073709551616", "10.0", "1E+2"] {
        assert!(shown.contains(number), "{shown}");
    }
    let payload = r#"{"kv":{"value":[9007199254740993,10.0]}}"#;
    std::fs::write(server.folder().join("payload.json"), payload).unwrap();
    let replay = ["dead-letters", "replay", &id, "--payload", "payload.json"];
    fine(server.cli(&replay));
    let again = wait_for("it dies again", || {
        let letters = app.dead_letters("state=unresolved");
        Some(letters.first()?["id"].as_str()?.to_owned())
    });
    let shown = fine(server.cli(&["dead-letters", "show", &again, "--json"]));
    assert!(shown.contains("[9007199254740993,10.0]"), "{shown}");
}

/// What a caller sends so that it looks like more log, or like less.
const EVIL: &str = "x\u{1b}[2J\u{1b}]0;owned\u{7}\r\n  ERROR another line\u{9b}31m\u{202e}";

fn a_text_of_somebody_else_moves_no_terminal(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script(
        "s",
        "log::info(ctx.request.body, #{ f: ctx.request.body }); throw ctx.request.body",
    );
    app.route_with("s", "POST /s", json!({ "dispatch_mode": "async" }));
    app.script("of-event", "throw ctx.event.kv.value");
    app.trigger(
        "kv",
        json!({ "script": "of-event", "collection": "in", "name": "t",
                "retry": { "attempts_max": 1, "base_ms": 1 } }),
    );
    let made = server.api(
        "POST",
        "/apps",
        Some(json!({ "slug": "other", "name": "o\u{202e}" })),
    );
    assert_eq!(made.status, 201, "{}", made.text());
    app.set("in", "k", json!(EVIL));
    server.post("/s", &json!(EVIL));
    let id = wait_for("a dead letter", || {
        let letters = app.dead_letters("source=kv");
        Some(letters.first()?["id"].as_str()?.to_owned())
    });
    wait_for("its log", || {
        let logs = fine(server.cli(&["logs", "--app", "a"]));
        logs.contains("another line").then_some(())
    });
    let invoked = server.cli(&["invoke", "s", "--app", "a", "--data", EVIL, "--text"]);
    assert_eq!(invoked.status.code(), Some(1));
    for (words, least) in [
        (&["logs", "--app", "a"][..], 2),
        (&["kv", "list", "in", "--app", "a"], 2),
        (&["dead-letters", "list", "--app", "a"], 2),
        (&["dead-letters", "show", &id], 10),
        (&["executions", "list", "--app", "a"], 2),
        (&["apps", "list"], 3),
        (&["apps", "show", "other"], 3),
        (&["triggers", "list", "--app", "a"], 2),
        (&["audit"], 3),
    ] {
        shows_nothing_raw(&fine(server.cli(words)), least, words);
    }
    shows_nothing_raw(&out(&invoked), 2, &["invoke"]);
    let logs = fine(server.cli(&["logs", "--app", "a"]));
    assert!(
        logs.contains(r"x\u{1b}[2J\u{1b}]0;owned\u{7}\r\n"),
        "{logs}"
    );
    let missing = server.cli(&["apps", "show", EVIL]);
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    shows_nothing_raw(&said, 1, &["apps", "show"]);
}

fn shows_nothing_raw(text: &str, least: usize, words: &[&str]) {
    assert!(text.lines().count() >= least, "{words:?}: {text}");
    let raw = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    assert!(!text.contains(raw), "{words:?}: {text:?}");
    let forged = text.lines().any(|line| line.starts_with("  ERROR another"));
    assert!(!forged, "{words:?}: {text}");
}

/// Run a command on a terminal, and answer what reaches it.
fn on_a_terminal(server: &Server, words: &[&str]) -> String {
    let program = server.cli_command(&[]).get_program().to_owned();
    let quoted = |word: &&str| format!("'{word}'");
    let words: Vec<String> = words.iter().map(quoted).collect();
    let line = format!("'{}' {}", program.to_string_lossy(), words.join(" "));
    // Of util-linux: it gives a command a terminal and copies what it writes.
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env("PICLOUD_URL", &server.url)
        .env("PICLOUD_TOKEN", &server.token)
        .env("XDG_CONFIG_HOME", server.folder().join("config"))
        .current_dir(server.folder())
        .stdin(Stdio::null())
        .output()
        .expect("`script` of util-linux");
    fine(output)
}

fn json_on_a_terminal_is_the_same_value(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    let value = json!({ "a\u{9b}31m": "\u{202e}\u{7f}\u{e0041}", "n": 10.0 });
    app.set("c", "k", value.clone());
    for words in [
        &["kv", "get", "c", "k", "--app", "a"][..],
        &["kv", "list", "c", "--app", "a", "--json"],
    ] {
        // Into a pipe it goes as it is.
        let piped = fine(server.cli(words));
        assert!(piped.contains('\u{9b}'), "{piped:?}");
        let shown = on_a_terminal(&server, words);
        let raw = |c: char| c.is_control() && !"\r\n".contains(c) || c == '\u{202e}';
        assert!(!shown.contains(raw), "{shown:?}");
        let read: Value = serde_json::from_str(shown.trim()).unwrap();
        let read = read.pointer("/0/value").unwrap_or(&read);
        assert_eq!(*read, value);
    }
    app.script("s", "print(1); // \u{1b}[2J\n`a\u{9b}b`");
    let shown = on_a_terminal(&server, &["scripts", "show", "s", "--app", "a"]);
    assert!(
        shown.contains(r"// \u{1b}[2J") && shown.contains(r"a\u{9b}b"),
        "{shown:?}"
    );
    let shown = on_a_terminal(&server, &["invoke", "s", "--app", "a"]);
    assert!(!shown.contains('\u{9b}'), "{shown:?}");
}

fn a_long_value_is_shown_whole(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    let long = "x".repeat(70_000);
    app.set("c", "long", json!(long));
    app.set("c", "short", json!(1));
    app.set(&"k".repeat(80), "k", json!(1));
    let listed = fine(server.cli(&["kv", "list", "c", "--app", "a"]));
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 3, "{}", listed.len());
    assert!(lines[1].ends_with(&long), "{}", listed.len());
    // It does not push what the others have.
    assert_eq!(lines[2], "short  1");
    let collections = fine(server.cli(&["kv", "list", "--app", "a"]));
    let short = collections
        .lines()
        .find(|line| line.starts_with("c "))
        .unwrap();
    assert!(short.len() < 80, "{collections}");
}

fn every_key_that_can_be_is_reached(engine: Engine) {
    let server = Server::start(engine);
    server.app("a");
    for key in [
        ".",
        "..",
        "a/../b",
        "%2e",
        "a b",
        "?",
        "#",
        "ä\u{1F600}",
        "-k",
    ] {
        let words = |verb: &'static str| vec!["kv", verb, "--app", "a", "--", "c", key];
        let mut set = words("set");
        set.push("[10.0]");
        fine(server.cli(&set));
        assert_eq!(fine(server.cli(&words("get"))).trim(), "[10.0]", "{key}");
        fine(server.cli(&words("delete")));
        assert_eq!(server.cli(&words("get")).status.code(), Some(3), "{key}");
    }
    for collection in [".", ".."] {
        fine(server.cli(&["kv", "set", collection, "k", "1", "--app", "a"]));
        let listed = fine(server.cli(&["kv", "list", collection, "--app", "a"]));
        assert!(listed.contains("k    1"), "{listed}");
    }
    // A number is no flag.
    fine(server.cli(&["kv", "set", "c", "n", "-5", "--app", "a"]));
}

/// Put a value where an older version, or a hand, may have left it.
fn store(app: &App<'_>, key: &str, value: &str) {
    app.set("c", key, json!(0));
    app.server.sql(&format!(
        "update kv set value = '{value}' where key = '{key}'"
    ));
}

fn a_bad_value_hides_no_others(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.set("c", "a", json!("before"));
    app.set("c", "z", json!("after"));
    store(&app, "m1", r#"{"x":1e999}"#);
    store(&app, "m2", "no JSON at all");
    store(&app, "m3", &"[".repeat(300));
    let listed = fine(server.cli(&["kv", "list", "c", "--app", "a"]));
    for shown in ["before", "after", "1e999", "no JSON at all", "m3"] {
        assert!(listed.contains(shown), "{shown}: {listed}");
    }
    assert_eq!(listed.lines().count(), 6, "{listed}");
    let listed = fine(server.cli(&["kv", "list", "c", "--app", "a", "--json"]));
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let marked = |entry: &Value| entry["value_repaired"] == true;
    let marked: Vec<_> = listed.as_array().unwrap().iter().map(marked).collect();
    assert_eq!(marked, [false, true, true, true, false]);
    let header = |key: &str| {
        let answer = server.api("GET", &format!("/apps/a/kv/c/{key}"), None);
        answer.headers.get("value-repaired").cloned()
    };
    assert_eq!(header("a"), None);
    assert_eq!(header("m1").unwrap(), "true");
}
