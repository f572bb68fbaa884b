//! What the command line says, whose sign-in it uses, and what it deploys.

use std::path::Path;

use picloud_tests::{Engine, Home, Options, Server, err, fails, fine, on_both_engines};
use serde_json::{Value, json};

on_both_engines!(
    a_wrong_name_is_named,
    a_wrong_password_is_called_one,
    signing_in_on_another_host_names_the_admin_host,
    what_was_mistyped_is_asked_about,
    a_mistake_in_a_script_is_told_once,
    a_file_that_is_there_is_not_overwritten,
    what_a_server_says_at_its_start_is_for_its_reader,
    everybody_learns_who_they_are,
    each_profile_is_a_sign_in_of_its_own,
    a_damaged_file_of_sign_ins_is_said,
    a_token_may_end_with_a_line_break,
    a_trigger_has_a_name_that_says_what_it_does,
    a_byte_order_mark_is_no_part_of_a_script,
    a_secret_from_standard_input_loses_one_line_break,
    the_documented_key_deploys,
    a_route_is_called_as_its_flags_say,
    codes_agree,
);

fn write(server: &Server, name: &str, bytes: &[u8]) {
    std::fs::write(server.folder().join(name), bytes).unwrap();
}

fn a_wrong_name_is_named(engine: Engine) {
    let server = Server::start(engine);
    server.app("shop");
    let (_, member) = server.join("ada", "member", json!({ "shop": "viewer" }));
    server.app("secret");
    let no_id = "0190a000-0000-7000-8000-000000000000";
    for (words, names) in [
        (
            &["kv", "list", "--app", "shoop"][..],
            "there is no app `shoop`",
        ),
        (&["logs", "--app", "shoop"], "there is no app `shoop`"),
        (
            &["scripts", "list", "--app", "secret"],
            "there is no app `secret`",
        ),
        (
            &["triggers", "show", no_id],
            "there is no trigger `0190a000",
        ),
        (&["executions", "show", "x"], "there is no execution `x`"),
        (
            &["dead-letters", "show", "x"],
            "there is no dead letter `x`",
        ),
        (&["routes", "delete", "x"], "there is no route `x`"),
        (
            &["invoke", "s", "--app", "shop"],
            "the app `shop` has no script `s`",
        ),
    ] {
        let said = fails(&server.cli_as(&member, words), 3);
        assert!(
            said.contains(names) && !said.contains("/api/"),
            "{words:?}: {said}"
        );
    }
}

fn a_wrong_password_is_called_one(engine: Engine) {
    let server = Server::start(engine);
    let home = Home::default();
    let login = ["login", "--url", &server.url, "--password-stdin"];
    let said = fails(&home.run_with(&login, "wrong"), 5);
    assert!(said.contains("the name or the password is wrong"), "{said}");
    assert!(!said.to_lowercase().contains("sign in"), "{said}");
    let mut words = login.to_vec();
    words.push("--json");
    let problem = err(&home.run_with(&words, "wrong"));
    let problem: Value = serde_json::from_str(&problem).unwrap();
    assert_eq!(problem["type"], "urn:picloud:problem:wrong_password");
    assert_eq!(problem["title"], "Name and password do not fit");
    assert!(!home.credentials().exists());
    let said = fails(&home.run(&["apps", "list", "--url", &server.url]), 5);
    assert!(said.contains("sign in with: picloud login"), "{said}");
}

fn signing_in_on_another_host_names_the_admin_host(engine: Engine) {
    let mut server = Server::start(engine);
    server.set_environment(vec![("PICLOUD_ADMIN_HOST", "localhost".to_owned())]);
    server.kill();
    server.launch();
    let home = Home::default();
    let said = fails(&home.log_in(&server, &[]), 3);
    let there = server.url.replace("127.0.0.1", "localhost");
    assert!(
        said.contains(&format!("picloud login --url {there}")),
        "{said}"
    );
    let login = ["login", "--url", &there, "--password-stdin"];
    fine(home.run_with(&login, server.password()));
    fine(home.run(&["apps", "list"]));
}

fn what_was_mistyped_is_asked_about(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    let set = ["kv", "set", "c", "k", "{\"n\": 1,}", "--app", "a"];
    let said = fails(&server.cli(&set), 2);
    assert!(
        said.contains("line 1, column") && said.contains("--text"),
        "{said}"
    );
    let kept = server.cli(&["kv", "get", "c", "k", "--app", "a"]);
    fails(&kept, 3);
    let mut words = set.to_vec();
    words.push("--text");
    fine(server.cli(&words));
    assert_eq!(app.kv("c", "k"), json!("{\"n\": 1,}"));
    fine(server.cli(&["kv", "set", "c", "n", "42", "--app", "a", "--text"]));
    assert_eq!(app.kv("c", "n"), json!("42"));
    let mut piped = server.cli_command(&["kv", "set", "c", "p", "-", "--app", "a"]);
    write(&server, "in", b"[1, 2\n");
    let input = std::fs::File::open(server.folder().join("in")).unwrap();
    fails(&piped.stdin(input).output().unwrap(), 2);
    app.script("s", "ctx.request.body");
    let said = fails(
        &server.cli(&["invoke", "s", "--app", "a", "--data", "[1"]),
        2,
    );
    assert!(said.contains("--text"), "{said}");
}

fn a_mistake_in_a_script_is_told_once(engine: Engine) {
    let server = Server::start(engine);
    write(&server, "bad.rhai", b"let x = 1;\n\tlet y = ;\n");
    let said = fails(
        &server.cli(&["deploy", "bad.rhai", "--app", "a", "--create-app"]),
        4,
    );
    let (_, mistake) = said.split_once("bad.rhai:2:").expect(&said);
    let mistake = mistake.split_once(": ").unwrap().1;
    let mistake = mistake.lines().next().unwrap();
    assert_eq!(said.matches(mistake).count(), 1, "{said}");
    assert!(said.contains("  \tlet y = ;\n  \t        ^"), "{said}");
    assert!(
        said.contains("error: the script does not compile"),
        "{said}"
    );
}

fn a_file_that_is_there_is_not_overwritten(engine: Engine) {
    let server = Server::start(engine);
    server.app("a");
    let direct = server.direct();
    let direct: Vec<&str> = direct.iter().map(String::as_str).collect();
    let mut from_database = vec!["backup", "kept.zip"];
    from_database.extend(direct);
    for words in [
        vec!["backup", "kept.zip"],
        from_database,
        vec!["export", "a", "--output", "kept.zip"],
    ] {
        write(&server, "kept.zip", b"precious");
        let said = fails(&server.cli(&words), 4);
        assert!(said.contains("--force"), "{said}");
        let kept = server.folder().join("kept.zip");
        assert_eq!(std::fs::read(&kept).unwrap(), b"precious");
        let mut forced = words.clone();
        forced.push("--force");
        fine(server.cli(&forced));
        assert!(
            std::fs::read(&kept).unwrap().starts_with(b"PK"),
            "{words:?}"
        );
        std::fs::remove_file(&kept).unwrap();
        fine(server.cli(&words));
    }
}

fn what_a_server_says_at_its_start_is_for_its_reader(engine: Engine) {
    let mut server = Server::start_with(
        engine,
        Options {
            without_owner: true,
            // Which is no setting, and said to be none.
            environment: vec![("PICLOUD_LISTN", "here".to_owned())],
            ..Options::default()
        },
    );
    // Its log goes into a file.
    assert!(
        !server.log().is_empty() && !server.log().contains('\u{1b}'),
        "{}",
        server.log()
    );
    assert!(
        server.output().contains("\nlistening on http://"),
        "{}",
        server.output()
    );
    let before = server.output().len();
    server.set_environment(vec![("PICLOUD_LOG_FORMAT", "json".to_owned())]);
    server.kill();
    server.launch();
    let output = server.output();
    let lines: Vec<Value> = output[before..]
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    let fields = |name: &str| {
        let fields = lines.iter().map(|line| &line["fields"]);
        fields.filter(|fields| fields[name].is_string()).count()
    };
    assert_eq!((fields("url"), fields("setup_token")), (1, 1), "{output}");
    for line in &lines {
        assert_eq!(line["level"], "INFO");
        let at = line["timestamp"].as_str().unwrap();
        assert!(at.parse::<chrono::DateTime<chrono::Utc>>().is_ok(), "{at}");
    }
}

fn everybody_learns_who_they_are(engine: Engine) {
    let server = Server::start(engine);
    server.app("shop");
    server.app("other");
    let home = Home::default();
    let said = fails(&home.run(&["whoami", "--url", &server.url]), 5);
    assert!(said.contains("nobody is signed in"), "{said}");
    fine(home.log_in(&server, &["--profile", "here"]));
    let said = fine(home.run(&["whoami"]));
    for part in ["owner on http", &server.url, "profile  here", "every one"] {
        assert!(said.contains(part), "{said}");
    }
    let (_, token) = server.join("ada", "member", json!({ "shop": "editor" }));
    let said = fine(server.cli_as(&token, &["whoami"]));
    for part in ["ada on ", "role     member", "shop as editor"] {
        assert!(said.contains(part), "{said}");
    }
    let key = server.key(&token, "ci", &["script:write"], Some(&["shop"]));
    let said = fine(server.cli_as(&key, &["whoami"]));
    for part in ["API key  ci", "script:write", "only in  shop"] {
        assert!(said.contains(part), "{said}");
    }
    let said = fine(server.cli_as(&key, &["whoami", "--json"]));
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["me"]["api_key"]["name"], "ci");
    assert_eq!(
        (&said["url"], &said["profile"]),
        (&json!(server.url), &Value::Null)
    );
    fails(&server.cli_as("pcs_dead", &["whoami"]), 5);
}

fn each_profile_is_a_sign_in_of_its_own(engine: Engine) {
    let (one, two) = (Server::start(engine), Server::start(engine));
    one.app("one");
    two.app("two");
    let home = Home::default();
    fine(home.log_in(&one, &[]));
    fine(home.log_in(&two, &["--profile", "two"]));
    let apps = |words: &[&str]| fine(home.run(&[&["apps", "list"], words].concat()));
    assert!(apps(&[]).contains("one"));
    assert!(apps(&["--profile", "two"]).contains("two"));
    // An address finds the sign-in that belongs to it.
    assert!(apps(&["--url", &two.url]).contains("two"));
    // Whoever names a profile means it, whatever is in the environment.
    let mut command = home.command(&["apps", "list", "--profile", "two"]);
    command
        .env("PICLOUD_URL", &one.url)
        .env("PICLOUD_TOKEN", &one.token);
    assert!(fine(command.output().unwrap()).contains("two"));
    let mut command = home.command(&["apps", "list"]);
    command.env("PICLOUD_PROFILE", "two");
    assert!(fine(command.output().unwrap()).contains("two"));
    let mut command = home.command(&["apps", "list"]);
    command.env("PICLOUD_PROFILE", "");
    assert!(fine(command.output().unwrap()).contains("one"));
    let listed = fine(home.run(&["profiles", "list"]));
    assert!(
        listed.contains("*  default") && listed.contains(&two.url),
        "{listed}"
    );
    let listed = fine(home.run(&["profiles", "list", "--json"]));
    assert!(!listed.contains("pcs_"), "{listed}");
    fine(home.run(&["profiles", "use", "two"]));
    assert!(apps(&[]).contains("two"));
    let said = fails(&home.run(&["apps", "list", "--profile", "three"]), 5);
    assert!(
        said.contains("default, two") && said.contains("login --profile three"),
        "{said}"
    );
    fails(&home.run(&["profiles", "use", "three"]), 5);
    fails(&home.run(&["apps", "list", "--profile", "a b"]), 2);
    // Signing out takes this one and leaves the other.
    fine(home.run(&["logout"]));
    fails(&home.run(&["apps", "list", "--profile", "two"]), 5);
    assert!(apps(&["--profile", "default"]).contains("one"));
    // Anew: the profile knows where.
    let login = ["login", "--profile", "default", "--password-stdin"];
    fine(home.run_with(&login, one.password()));
    assert!(apps(&["--profile", "default"]).contains("one"));

    // What was kept before there were profiles.
    let old = json!({ "url": two.url, "token": two.token, "user": "owner" });
    std::fs::write(home.credentials(), old.to_string()).unwrap();
    assert!(apps(&[]).contains("two"));
}

fn a_damaged_file_of_sign_ins_is_said(engine: Engine) {
    let server = Server::start(engine);
    let home = Home::default();
    fine(home.log_in(&server, &[]));
    let whole = std::fs::read(home.credentials()).unwrap();
    std::fs::write(home.credentials(), &whole[..whole.len() / 2]).unwrap();
    for words in [
        &["apps", "list"][..],
        &["whoami"],
        &["logout"],
        &["profiles", "list"],
    ] {
        let said = fails(&home.run(words), 1);
        assert!(said.contains("credentials.json is damaged"), "{said}");
    }
    let said = fails(&home.log_in(&server, &[]), 1);
    assert!(said.contains("is damaged"), "{said}");
    // Who needs none of it does not read it.
    let given = [
        "apps",
        "list",
        "--url",
        &server.url,
        "--token",
        &server.token,
    ];
    fine(home.run(&given));
    std::fs::remove_file(home.credentials()).unwrap();
    fine(home.log_in(&server, &[]));
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&home.credentials()), 0o600);
}

fn a_token_may_end_with_a_line_break(engine: Engine) {
    let server = Server::start(engine);
    for token in [
        format!("{}\n", server.token),
        format!(" {}\r\n", server.token),
    ] {
        fine(server.cli_as(&token, &["apps", "list"]));
    }
    let (begin, end) = server.token.split_at(10);
    let said = fails(
        &server.cli_as(&format!("{begin}\n{end}"), &["apps", "list"]),
        2,
    );
    assert!(
        said.contains("line breaks") && !said.contains(begin),
        "{said}"
    );
}

fn a_trigger_has_a_name_that_says_what_it_does(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script("notify", "1");
    let make = |words: &[&str]| {
        let words = [&["triggers"], words, &["--app", "a", "--json"]].concat();
        let made: Value = serde_json::from_str(&fine(server.cli(&words))).unwrap();
        made["name"].as_str().unwrap().to_owned()
    };
    let kv = ["create-kv", "notify", "--collection", "people"];
    assert_eq!(make(&kv), "notify on people");
    assert_eq!(make(&kv), "notify on people 2");
    assert_eq!(
        make(&["create-pubsub", "notify", "--topic", "t:*"]),
        "notify on topic t:*"
    );
    assert_eq!(
        make(&["create-dead-letter", "notify"]),
        "notify on dead letters"
    );
    let mut named = kv.to_vec();
    named.extend(["--name", "mine"]);
    assert_eq!(make(&named), "mine");
    let long = "é".repeat(60);
    assert!(make(&["create-kv", "notify", "--collection", &long]).len() <= 100);
}

fn a_byte_order_mark_is_no_part_of_a_script(engine: Engine) {
    let server = Server::start(engine);
    let deploy = ["deploy", "s.rhai", "--app", "a", "--create-app"];
    write(&server, "s.rhai", b"\xef\xbb\xbflet x = 42; x");
    fine(server.cli(&deploy));
    let source = fine(server.cli(&["scripts", "show", "s", "--app", "a"]));
    assert_eq!(source, "let x = 42; x");
    assert!(fine(server.cli(&deploy)).contains("unchanged"));
    write(&server, "s.rhai", b"\xff\xfe4\x002\x00");
    let said = fails(&server.cli(&deploy), 1);
    assert!(said.contains("UTF-16"), "{said}");
    fails(&server.cli(&["deploy", "none.rhai", "--app", "a"]), 1);
}

fn a_secret_from_standard_input_loses_one_line_break(engine: Engine) {
    let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let server = Server::start_with(
        engine,
        Options {
            environment: vec![("PICLOUD_MASTER_KEY", key.to_owned())],
            ..Options::default()
        },
    );
    let app = server.app("a");
    app.serve("length", r#"secrets::get("S").len()"#);
    for (given, length) in [
        ("ab", 2),
        ("ab\n", 2),
        ("ab\r\n", 2),
        ("ab\n\n", 3),
        ("a\nb\n", 3),
    ] {
        write(&server, "secret", given.as_bytes());
        let mut set = server.cli_command(&["secrets", "set", "S", "--stdin", "--app", "a"]);
        let input = std::fs::File::open(server.folder().join("secret")).unwrap();
        fine(set.stdin(input).output().unwrap());
        assert_eq!(
            server.get("/length").text(),
            length.to_string(),
            "{given:?}"
        );
    }
}

fn the_documented_key_deploys(engine: Engine) {
    let server = Server::start(engine);
    server.app("shop");
    // As docs/access.md has it.
    let docs = include_str!("../../../docs/access.md");
    let (_, words) = docs.split_once("`picloud keys create ").unwrap();
    let (words, _) = words.split_once('`').unwrap();
    let mut create = vec!["keys", "create"];
    create.extend(words.split(' '));
    let key = fine(server.cli(&create));
    let deploy = ["deploy", "s.rhai", "--app", "shop", "--route", "GET /s"];
    for (source, change) in [("1", "created"), ("1", "unchanged"), ("2", "updated")] {
        write(&server, "s.rhai", source.as_bytes());
        let said = fine(server.cli_as(key.trim(), &deploy));
        assert!(said.contains(&format!("script `s` {change}")), "{said}");
    }
    assert_eq!(server.get("/s").text(), "2");
    // Reading comes with writing, and nothing else does.
    for words in [
        &["logs", "--app", "shop"][..],
        &["triggers", "list", "--app", "shop"],
        &["apps", "create", "mine"],
    ] {
        fails(&server.cli_as(key.trim(), words), 5);
    }
    let routes = server.key(&server.token, "routes", &["route:write"], None);
    fine(server.cli_as(&routes, &["routes", "list", "--app", "shop"]));
    let said = fails(
        &server.cli_as(&routes, &["scripts", "list", "--app", "shop"]),
        5,
    );
    assert!(said.contains("`script:read` or `script:write`"), "{said}");
}

fn a_route_is_called_as_its_flags_say(engine: Engine) {
    let server = Server::start(engine);
    write(&server, "s.rhai", b"1");
    let deploy = |more: &[&str]| {
        let words = [
            &[
                "deploy",
                "s.rhai",
                "--app",
                "a",
                "--create-app",
                "--route",
                "POST /s",
                "--json",
            ][..],
            more,
        ];
        let said = fine(server.cli(&words.concat()));
        let said: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        said["routes"][0].clone()
    };
    let made = deploy(&["--idempotent"]);
    assert_eq!(made["change"], "created");
    let day = made["route"]["idempotency"]["ttl_s"].clone();
    assert!(day.is_u64(), "{made}");
    let id = made["route"]["id"].as_str().unwrap().to_owned();
    assert_eq!(deploy(&[])["change"], "unchanged");
    assert_eq!(deploy(&["--idempotent"])["change"], "unchanged");
    let changed = deploy(&["--idempotent=60"]);
    assert_eq!(changed["change"], "updated");
    assert_eq!(changed["route"]["idempotency"]["ttl_s"], 60);
    let update = |flag: &str| {
        let said = fine(server.cli(&["routes", "update", &id, flag, "--json"]));
        serde_json::from_str::<Value>(&said).unwrap()
    };
    assert_eq!(update("--no-idempotent")["idempotency"], Value::Null);
    assert_eq!(update("--idempotent=120")["idempotency"]["ttl_s"], 120);
    let redirected = update("--trailing-slash=redirect");
    assert_eq!(redirected["trailing_slash"], "redirect");
    assert_eq!(
        deploy(&["--trailing-slash=redirect"])["change"],
        "unchanged"
    );
    assert_eq!(deploy(&["--trailing-slash=strict"])["change"], "updated");
    let call = || {
        let key = [("idempotency-key", "k")];
        server.call("POST", "/s", &key, Some(b"1")).headers
    };
    call();
    assert!(call().contains_key("idempotency-replayed"));
    assert_eq!(deploy(&["--no-idempotent"])["change"], "updated");
    // What is mistyped is said before anything is deployed.
    write(&server, "new.rhai", b"1");
    for wrong in ["--idempotent=abc", "--idempotent=2592001"] {
        let words = ["deploy", "new.rhai", "--app", "a", "--route", "GET /new"];
        fails(&server.cli(&[&words[..], &[wrong]].concat()), 2);
    }
    let scripts = server.api("GET", "/apps/a/scripts", None).text();
    assert!(!scripts.contains("\"new\""), "{scripts}");
    for wrong in [
        "--idempotent=0",
        "--idempotent=soon",
        "--trailing-slash=maybe",
    ] {
        fails(&server.cli(&["routes", "update", &id, wrong]), 2);
    }
    fails(&server.cli(&["routes", "update", &id]), 2);
}

fn codes_agree(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script("s", "throw 1");
    app.script("fine", "1");
    server.join("ada", "member", json!({ "a": "viewer" }));
    let (_, viewer) = server.join("bob", "member", json!({ "a": "viewer" }));
    let docs = include_str!("../../../docs/cli.md");
    let help = fine(server.cli(&["--help"]));
    let codes: Vec<&str> = help
        .split_once("Exit codes:\n")
        .unwrap()
        .1
        .lines()
        .collect();
    assert_eq!(codes.len(), 8);
    for line in codes {
        let (code, meaning) = line.trim().split_once("  ").unwrap();
        assert!(docs.contains(&format!("| {code} | {meaning} |")), "{line}");
    }
    for (words, code) in [
        // What ran failed, and what is on this machine.
        (&["invoke", "s", "--app", "a"][..], 1),
        (&["deploy", "none.rhai", "--app", "a"], 1),
        (&["import", "none.zip"], 1),
        (&["restore", "none.zip", "--check"], 1),
        (
            &["dead-letters", "replay", "x", "--payload", "none.json"],
            1,
        ),
        // The command.
        (&["frobnicate"], 2),
        (&["apps", "delete", "a"], 2),
        (&["apps", "list", "--url", "h"], 2),
        (&["kv", "set", "c", "k", "{", "--app", "a"], 2),
        // What is not there.
        (&["apps", "show", "none"], 3),
        (&["apps", "delete", "none", "--yes"], 3),
        (&["kv", "get", "c", "none", "--app", "a"], 3),
        (&["scripts", "delete", "none", "--app", "a", "--yes"], 3),
        (&["users", "disable", "none"], 3),
        (&["keys", "revoke", "none"], 3),
        (&["dead-letters", "show", "none"], 3),
        (&["login", "--oidc"], 3),
        (
            &[
                "triggers",
                "create-kv",
                "none",
                "--collection",
                "c",
                "--app",
                "a",
            ],
            3,
        ),
        // What is in the way, or not right.
        (&["apps", "create", "a"], 4),
        (&["apps", "create", "Not A Slug"], 4),
        (&["users", "set-role", "owner", "member"], 4),
        (&["setup", "token", "--password-stdin"], 4),
        // Who may not.
        (&["apps", "list", "--token", "wrong"], 5),
        // Nobody there.
        (&["apps", "list", "--url", "http://127.0.0.1:9"], 6),
        (
            &["apps", "list", "--url", &format!("{}/api", server.url)],
            6,
        ),
    ] {
        let output = server.cli(words);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{words:?}: {}",
            err(&output)
        );
        assert!(!err(&output).is_empty() || code == 1, "{words:?}");
    }
    fails(
        &server.cli_as(&viewer, &["apps", "delete", "a", "--yes"]),
        5,
    );
    fails(
        &server.cli_as(&viewer, &["kv", "set", "c", "k", "1", "--app", "a"]),
        5,
    );
}
