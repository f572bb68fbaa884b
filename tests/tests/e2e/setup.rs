//! The first owner of a fresh instance.

use picloud_tests::{Engine, Options, Server, on_both_engines};
use serde_json::{Value, json};

on_both_engines!(
    whoever_has_the_printed_token_makes_the_owner_and_nobody_after,
    an_owner_is_made_with_the_command_line,
    two_who_set_up_at_once_make_one_owner,
    with_a_password_in_the_environment_there_is_nothing_to_set_up,
);

fn fresh(engine: Engine) -> Server {
    Server::start_with(
        engine,
        Options {
            without_owner: true,
            ..Options::default()
        },
    )
}

/// The token that the server printed last.
fn printed(server: &Server) -> String {
    let output = server.output();
    let mut tokens = output
        .lines()
        .filter_map(|line| line.strip_prefix("set-up token: "));
    tokens.next_back().expect(&output).to_owned()
}

fn set_up(server: &Server, token: &str, name: &str, password: &str) -> picloud_tests::Answer {
    let body = json!({ "token": token, "name": name, "password": password });
    server.post("/api/v1/setup", &body)
}

fn whoever_has_the_printed_token_makes_the_owner_and_nobody_after(engine: Engine) {
    let mut server = fresh(engine);
    let has_owner = |server: &Server| server.get("/api/v1/setup").json()["has_owner"].clone();
    assert_eq!(has_owner(&server), json!(false));
    let first = printed(&server);
    let (good, long) = ("a good long one", server.password());
    let damaged = format!("{}0", &first[..first.len() - 1]);
    let foreign = printed(&fresh(Engine::Sqlite));
    for token in ["", "pcu_", &damaged, &foreign, &"x".repeat(60_000)] {
        let refused = set_up(&server, token, "ada", good);
        assert_eq!(
            (refused.status, &refused.json()["field"]),
            (422, &json!("token"))
        );
    }
    for (name, password, field) in [
        ("", good, "name"),
        ("ada", "short", "password"),
        ("adalovelace", "AdaLovelace", "password"),
    ] {
        let refused = set_up(&server, &first, name, password);
        assert_eq!(
            (refused.status, &refused.json()["field"]),
            (422, &json!(field))
        );
    }
    assert_eq!(server.post("/api/v1/setup", &json!({})).status, 422);
    // The token is nothing else.
    assert_eq!(server.api_as(&first, "GET", "/auth/me", None).status, 401);
    // A restart prints another; the first stays good.
    server.kill();
    server.launch();
    assert_ne!(printed(&server), first);
    let made = set_up(&server, &first, "ada", good);
    assert_eq!(made.status, 201, "{}", made.text());
    assert_eq!(made.json()["user"]["role"], "owner");
    let token = made.json()["token"].as_str().unwrap().to_owned();
    assert_eq!(server.api_as(&token, "GET", "/users", None).status, 200);
    assert_eq!(has_owner(&server), json!(true));
    for token in [&first, &printed(&server), "nonsense"] {
        let refused = set_up(&server, token, "eve", long);
        assert_eq!(
            (refused.status, refused.problem().as_str()),
            (409, "already_set_up")
        );
    }
    // Nor does a restart print a token then.
    let before = server.output().matches("set-up token").count();
    server.kill();
    server.launch();
    assert_eq!(server.output().matches("set-up token").count(), before);
    assert!(!server.log().contains(&first), "a token is not in the log");
    // Who did it is in the audit log.
    let audit = server
        .api_as(&token, "GET", "/audit?action=POST%20/setup", None)
        .json();
    let done = audit["items"].as_array().unwrap().iter();
    let done: Vec<&Value> = done.filter(|entry| entry["status"] == 201).collect();
    assert_eq!((done.len(), &done[0]["who"]), (1, &json!("ada")));
}

fn an_owner_is_made_with_the_command_line(engine: Engine) {
    let server = fresh(engine);
    let token = printed(&server);
    let cli = |words: &[&str]| {
        let done = server.cli_with_input(words, "a good long one\n");
        let text = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        (done.status.code(), text)
    };
    let wrong = cli(&["setup", "pcu_0", "--password-stdin"]);
    assert_eq!(wrong.0, Some(4), "{}", wrong.1);
    let (code, text) = cli(&["setup", &token, "--name", "ada", "--password-stdin"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("as ada"), "{text}");
    // And is signed in.
    assert_eq!(cli(&["apps", "create", "shop"]).0, Some(0));
    let again = cli(&["setup", &token, "--password-stdin"]);
    assert_eq!(again.0, Some(4), "{}", again.1);
}

fn two_who_set_up_at_once_make_one_owner(engine: Engine) {
    let server = fresh(engine);
    let token = printed(&server);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let tries = ["ada", "eve", "bob", "kim"].map(|name| {
            let (server, token) = (&server, &token);
            scope.spawn(move || set_up(server, token, name, "a good long one").status)
        });
        tries.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let mut statuses = statuses;
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409]);
}

fn with_a_password_in_the_environment_there_is_nothing_to_set_up(engine: Engine) {
    let server = Server::start(engine);
    assert!(
        !server.output().contains("set-up token"),
        "{}",
        server.output()
    );
    assert_eq!(
        server.get("/api/v1/setup").json(),
        json!({ "has_owner": true })
    );
    assert_eq!(
        set_up(&server, "x", "eve", "a good long one").problem(),
        "already_set_up"
    );
}
