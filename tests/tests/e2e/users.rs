//! People, their sessions and keys: joining, leaving, forgetting, guessing.

use std::time::Duration;

use picloud_tests::provider::Browser;
use picloud_tests::{Engine, Options, Server, on_both_engines, wait_for};
use serde_json::{Value, json};

use super::oidc::begin;

on_both_engines!(
    somebody_joins_forgets_and_leaves,
    the_last_owner_stays,
    sessions_are_listed_and_end,
    a_session_ends_however_much_it_is_used,
    a_key_is_shown_once_rotated_and_revoked,
    guessing_is_slowed_down,
    nobody_locks_another_out,
    names_that_look_the_same_are_one,
    a_twin_comes_by_no_other_door,
    what_changes_nothing_is_not_in_the_audit_log,
    scripts_may_what_those_who_run_them_may,
    the_audit_log_tells_who_did_what,
);

fn log_in(server: &Server, name: &str, password: &str) -> u16 {
    let body = json!({ "name": name, "password": password });
    server.post("/api/v1/auth/login", &body).status
}

fn me(server: &Server, token: &str) -> u16 {
    server.api_as(token, "GET", "/auth/me", None).status
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

fn somebody_joins_forgets_and_leaves(engine: Engine) {
    let server = Server::start(engine);
    server.app("shop");
    let invitation = json!({ "role": "member", "apps": { "shop": "editor" } });
    let link = server.api("POST", "/invitations", Some(invitation)).json();
    let listed = server.api("GET", "/invitations", None);
    assert_eq!(listed.json()["items"][0]["id"], link["id"]);
    assert!(
        !listed.text().contains(&text(&link["token"])),
        "the token is shown once"
    );
    // What is refused leaves the link as good as before.
    let join = |name: &str, password: &str| {
        let body = json!({ "token": link["token"], "name": name, "password": password });
        server.post("/api/v1/auth/join", &body)
    };
    for (name, password, status, field) in [
        ("ada", "short", 422, "password"),
        ("ada", "password1", 422, "password"),
        ("ada", "12345678", 422, "password"),
        ("adalovelace", "AdaLovelace", 422, "password"),
        ("", "a good long one", 422, "name"),
        ("owner", "a good long one", 409, "name"),
    ] {
        let refused = join(name, password);
        assert_eq!(refused.status, status, "{}", refused.text());
        assert_eq!(refused.json()["field"], field);
    }
    let joined = join("ada", "a good long one");
    assert_eq!(joined.status, 201, "{}", joined.text());
    let (id, token) = (
        text(&joined.json()["user"]["id"]),
        text(&joined.json()["token"]),
    );
    assert_eq!(join("grace", "a good long one").problem(), "dead_link");
    let seen = server.api_as(&token, "GET", "/auth/me", None).json();
    assert_eq!(
        (&seen["name"], &seen["role"]),
        (&json!("ada"), &json!("member"))
    );
    let apps = server.api_as(&token, "GET", "/apps", None).json();
    assert_eq!(apps["items"].as_array().map(Vec::len), Some(1));
    // They forget their password.
    let path = format!("/users/{id}/reset-link");
    let link = server.api("POST", &path, None).json();
    let reset = |password: &str| {
        let body = json!({ "token": link["token"], "password": password });
        server.post("/api/v1/auth/reset", &body).status
    };
    assert_eq!(reset("short"), 422);
    assert_eq!(reset("another long one"), 204);
    assert_eq!(reset("another long one"), 410, "a link is good once");
    assert_eq!(me(&server, &token), 401, "its sessions ended");
    assert_eq!(log_in(&server, "ada", "a good long one"), 401);
    assert_eq!(log_in(&server, "ada", "another long one"), 200);
    // They are disabled, enabled, removed.
    let path = format!("/users/{id}");
    let set = |body: Value| server.api("PATCH", &path, Some(body));
    assert_eq!(set(json!({ "disabled": true })).status, 200);
    assert_eq!(log_in(&server, "ada", "another long one"), 401);
    assert_eq!(set(json!({ "disabled": false })).status, 200);
    assert_eq!(log_in(&server, "ada", "another long one"), 200);
    assert_eq!(set(json!({ "role": "king" })).json()["field"], "role");
    assert_eq!(server.api("DELETE", &path, None).status, 204);
    assert_eq!(server.api("GET", &path, None).status, 404);
    assert_eq!(log_in(&server, "ada", "another long one"), 401);
}

fn the_last_owner_stays(engine: Engine) {
    let server = Server::start(engine);
    let owner = server.api("GET", "/auth/me", None).json();
    let (me, them) = (
        format!("/users/{}", text(&owner["id"])),
        server.join("second", "owner", json!({})),
    );
    let (_, admin) = server.join("admin", "admin", json!({}));
    let demote = json!({ "role": "member" });
    // Only owners decide about owners.
    let refused = server.api_as(&admin, "PATCH", &me, Some(demote.clone()));
    assert_eq!(refused.problem(), "forbidden");
    let invite = json!({ "role": "owner" });
    let refused = server.api_as(&admin, "POST", "/invitations", Some(invite));
    assert_eq!(refused.problem(), "forbidden");
    let refused = server.api_as(&admin, "POST", &format!("{me}/reset-link"), None);
    assert_eq!(refused.problem(), "forbidden");
    // With two, one may go; both at once may not.
    let theirs = format!("/users/{}", them.0);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let (server, demote) = (&server, &demote);
        let tries = [(&me, &server.token), (&theirs, &them.1)].map(|(path, token)| {
            scope.spawn(move || {
                server
                    .api_as(token, "PATCH", path, Some(demote.clone()))
                    .status
            })
        });
        tries.map(|tried| tried.join().unwrap()).to_vec()
    });
    assert!(statuses.contains(&200), "{statuses:?}");
    assert!(statuses.contains(&409), "{statuses:?}");
    let (last, token) = match statuses[0] {
        409 => (&me, &server.token),
        _ => (&theirs, &them.1),
    };
    for body in [
        demote,
        json!({ "role": "admin" }),
        json!({ "disabled": true }),
    ] {
        let refused = server.api_as(token, "PATCH", last, Some(body));
        assert_eq!(refused.problem(), "last_owner");
    }
    let refused = server.api_as(token, "DELETE", last, None);
    assert_eq!(refused.problem(), "last_owner");
    let kept = server.api_as(token, "GET", last, None).json();
    assert_eq!(kept["role"], "owner");
}

fn sessions_are_listed_and_end(engine: Engine) {
    let options = Options {
        environment: vec![("PICLOUD_SESSION_IDLE_HOURS", "2".into())],
        ..Options::default()
    };
    let mut server = Server::start_with(engine, options);
    let (_, first) = server.join("ada", "member", json!({}));
    let body = json!({ "name": "ada", "password": server.password() });
    let login = server.post("/api/v1/auth/login", &body).json();
    let second = text(&login["token"]);
    let listed = server.api_as(&second, "GET", "/auth/sessions", None).json();
    let items = listed["items"].as_array().unwrap();
    assert_eq!(items.len(), 2);
    assert_eq!(
        (&items[0]["current"], &items[1]["current"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(items[0]["address"], "127.0.0.1");
    // A new password ends the others.
    let change = |token: &str, current: &str, new: &str| {
        let body = json!({ "current": current, "password": new });
        server.api_as(token, "POST", "/auth/password", Some(body))
    };
    let wrong = change(&second, "wrong", "another long one");
    assert_eq!(
        (wrong.status, &wrong.json()["field"]),
        (422, &json!("current"))
    );
    assert_eq!(
        change(&second, server.password(), "another long one").status,
        204
    );
    assert_eq!((me(&server, &first), me(&server, &second)), (401, 200));
    // One of another user is none.
    let owners = server.api("GET", "/auth/sessions", None).json();
    let path = format!("/auth/sessions/{}", text(&owners["items"][0]["id"]));
    assert_eq!(server.api_as(&second, "DELETE", &path, None).status, 404);
    let path = format!("/auth/sessions/{}", text(&items[0]["id"]));
    assert_eq!(server.api_as(&second, "DELETE", &path, None).status, 204);
    assert_eq!(me(&server, &second), 401);
    let out = server.api("POST", "/auth/logout", None);
    assert_eq!((out.status, me(&server, &server.token)), (204, 401));
    // A session that nobody uses ends, though its time is not over.
    let body = json!({ "name": "owner", "password": server.password() });
    let token = text(&server.post("/api/v1/auth/login", &body).json()["token"]);
    assert_eq!(me(&server, &token), 200);
    server.stop();
    server.set_clock("+3h");
    server.launch();
    assert_eq!(me(&server, &token), 401);
}

fn a_session_ends_however_much_it_is_used(engine: Engine) {
    let options = Options {
        environment: vec![
            ("PICLOUD_SESSION_TTL_HOURS", "3".into()),
            ("PICLOUD_SESSION_IDLE_HOURS", "100".into()),
        ],
        ..Options::default()
    };
    let mut server = Server::start_with(engine, options);
    for (clock, status) in [("+1h", 200), ("+2h", 200), ("+4h", 401)] {
        server.stop();
        server.set_clock(clock);
        server.launch();
        assert_eq!(me(&server, &server.token), status, "{clock}");
    }
}

fn a_key_is_shown_once_rotated_and_revoked(engine: Engine) {
    let server = Server::start(engine);
    server.app("shop");
    let bad = [
        (json!({ "name": "k", "scopes": [] }), "scopes"),
        (
            json!({ "name": "k", "scopes": ["script:delete"] }),
            "scopes[0]",
        ),
        (
            json!({ "name": "k", "scopes": ["log:read"], "apps": ["none"] }),
            "apps",
        ),
        (
            json!({ "name": "k", "scopes": ["log:read"], "apps": [] }),
            "apps",
        ),
        (json!({ "name": "", "scopes": ["log:read"] }), "name"),
        (
            json!({ "name": "k", "scopes": ["log:read"], "expires_at": "2020-01-01T00:00:00Z" }),
            "expires_at",
        ),
    ];
    for (body, field) in bad {
        let refused = server.api("POST", "/auth/keys", Some(body));
        assert_eq!(
            (refused.status, refused.json()["field"].as_str()),
            (422, Some(field))
        );
    }
    let key = json!({ "name": "deploy", "scopes": ["script:read"], "apps": ["shop"] });
    let made = server.api("POST", "/auth/keys", Some(key.clone()));
    let token = text(&made.json()["token"]);
    assert!(token.starts_with("pic_"), "{token}");
    let again = server.api("POST", "/auth/keys", Some(key));
    assert_eq!(again.problem(), "name_taken");
    let listed = server.api("GET", "/auth/keys", None);
    assert!(!listed.text().contains(&token), "the token is shown once");
    let scripts = |token: &str| server.api_as(token, "GET", "/apps/shop/scripts", None);
    assert_eq!(scripts(&token).status, 200);
    let seen = server.api_as(&token, "GET", "/auth/me", None).json();
    assert_eq!(seen["api_key"]["scopes"], json!(["script:read"]));
    let used = server.api("GET", "/auth/keys", None).json();
    assert!(used["items"][0]["last_used_at"].is_string());
    // Damaged ones are told from dead ones.
    let mut typo = token.clone();
    typo.replace_range(10..11, if &token[10..11] == "a" { "b" } else { "a" });
    for damaged in [
        &typo[..],
        &token[..20],
        "pic_",
        "pic_aa",
        &format!("{token}x"),
    ] {
        let answer = scripts(damaged);
        assert_eq!(answer.status, 401);
        assert!(
            answer.text().contains("checksum"),
            "{damaged}: {}",
            answer.text()
        );
        assert!(
            !answer.text().contains(damaged),
            "no answer repeats a token"
        );
    }
    let path = format!("/auth/keys/{}", text(&made.json()["id"]));
    let rotated = server.api("POST", &format!("{path}/rotate"), None).json();
    let new = text(&rotated["token"]);
    assert_eq!((scripts(&token).status, scripts(&new).status), (401, 200));
    assert_eq!(server.api("DELETE", &path, None).status, 204);
    assert_eq!(
        (
            scripts(&new).status,
            server.api("DELETE", &path, None).status
        ),
        (401, 404)
    );
    // One of another instance.
    let other = Server::start(engine);
    let foreign = other.key(&other.token, "k", &["script:read"], None);
    assert_eq!(scripts(&foreign).status, 401);
    let text = server.log();
    assert!(
        !text.contains(&token) && !text.contains(&new),
        "i12: no token is logged"
    );
    // One that ends.
    let soon = (chrono::Utc::now() + Duration::from_millis(1_500)).to_rfc3339();
    let key = json!({ "name": "soon", "scopes": ["script:read"], "expires_at": soon });
    let made = server.api("POST", "/auth/keys", Some(key)).json();
    let token = self::text(&made["token"]);
    assert_eq!(scripts(&token).status, 200);
    wait_for("the key's end", || {
        (scripts(&token).status == 401).then_some(())
    });
}

fn guessing_is_slowed_down(engine: Engine) {
    let server = Server::start(engine);
    let statuses: Vec<u16> = (0..40).map(|_| log_in(&server, "owner", "wrong")).collect();
    let refused = statuses.iter().filter(|status| **status == 429).count();
    assert!(refused >= 20, "{statuses:?}");
    assert!(statuses.iter().all(|status| [401, 429].contains(status)));
    let body = json!({ "name": "owner", "password": server.password() });
    let refused = server.post("/api/v1/auth/login", &body);
    assert_eq!(refused.problem(), "too_many_attempts");
    let wait: u64 = refused.headers["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=10).contains(&wait), "{wait}");
    // Whoever is signed in goes on.
    assert_eq!(server.api("GET", "/auth/me", None).status, 200);
}

fn nobody_locks_another_out(engine: Engine) {
    let options = Options::with(&[("PICLOUD_TRUSTED_PROXIES", "127.0.0.1")]);
    let mut server = Server::start_with(engine, options);
    let log_in_at = |server: &Server, address: &str, password: &str| {
        let body = json!({ "name": "owner", "password": password }).to_string();
        let headers = [
            ("content-type", "application/json"),
            ("x-forwarded-for", address),
        ];
        let body = Some(body.as_bytes());
        server
            .call("POST", "/api/v1/auth/login", &headers, body)
            .status
    };
    let right = server.password();
    for (bad, good) in [
        ("203.0.113.66:4711", "198.51.100.7:81"),
        ("[2001:db8:66::1]:4711", "[2001:db8:7::1]:81"),
    ] {
        let tries: Vec<u16> = (0..15).map(|_| log_in_at(&server, bad, "wrong")).collect();
        assert!(tries.contains(&429), "{bad}: {tries:?}");
        for _ in 0..5 {
            assert_eq!(log_in_at(&server, good, right), 200, "{good}");
        }
    }
    let sessions = server.api("GET", "/auth/sessions", None).json();
    assert_eq!(sessions["items"][0]["address"], "2001:db8:7::1");
    // From everywhere: strangers together are stopped, and whoever was there before is not; nor
    // when the server has been started anew.
    for _ in 0..2 {
        let from = |n| format!("203.0.113.{n}");
        let spread = (0..130).map(|n| log_in_at(&server, &from(n), "wrong"));
        let stopped = spread.filter(|status| *status == 429).count();
        assert!(stopped > 10, "{stopped}");
        assert_eq!(log_in_at(&server, "192.0.2.9", right), 429);
        assert_eq!(log_in_at(&server, "198.51.100.7:82", right), 200);
        assert_eq!(log_in_at(&server, "[2001:db8:7::1]", right), 200);
        server.kill();
        server.launch();
    }
    assert_eq!(log_in(&server, "nobody else", "wrong"), 401);
}

fn names_that_look_the_same_are_one(engine: Engine) {
    let server = Server::start(engine);
    let join = |name: &str| {
        let invitation = json!({ "role": "member", "apps": {} });
        let link = server.api("POST", "/invitations", Some(invitation)).json();
        let join =
            json!({ "token": link["token"], "name": name, "password": "jos\u{e9} jos\u{e9}" });
        server.post("/api/v1/auth/join", &join)
    };
    let joined = join("Jos\u{e9}");
    assert_eq!(joined.status, 201, "{}", joined.text());
    assert_eq!(joined.json()["user"]["name"], "jos\u{e9}");
    for twin in [
        "Owner",
        "owner ",
        "jose\u{301}",
        "JOS\u{c9}",
        "\u{ff4f}wner",
    ] {
        let refused = join(twin);
        assert_eq!(
            (refused.status, refused.problem().as_str()),
            (409, "name_taken"),
            "{twin:?}"
        );
    }
    for odd in [
        "o\u{200b}wner",
        "\u{202e}renwo",
        "ow\u{ad}ner",
        "\u{feff}owner",
    ] {
        let refused = join(odd);
        assert_eq!(refused.status, 422, "{odd:?}: {}", refused.text());
        assert_eq!(refused.json()["field"], "name");
    }
    // However the keyboard writes it.
    assert_eq!(
        log_in(&server, "JOSE\u{301}", "jose\u{301}\u{a0}jos\u{e9}"),
        200
    );
    assert_eq!(log_in(&server, " OWNER", server.password()), 200);
    // Of a sigma, capitals do not say which of the two small ones is meant.
    let joined = join("\u{39f}\u{3b4}\u{3c5}\u{3c3}\u{3c3}\u{3b5}\u{3cd}\u{3c2}");
    assert_eq!(joined.status, 201, "{}", joined.text());
    let name = text(&joined.json()["user"]["name"]);
    assert!(name.ends_with('\u{3c2}'), "{name}");
    let stored = server.query("select name from users where name like '%\u{3c2}'");
    assert_eq!(stored, [[Some(name)]]);
    let capitals = "\u{39f}\u{394}\u{3a5}\u{3a3}\u{3a3}\u{395}\u{38e}\u{3a3}";
    assert_eq!(log_in(&server, capitals, "jos\u{e9} jos\u{e9}"), 200);
    assert_eq!(join(capitals).problem(), "name_taken");
    // What an older version let in goes on, and is told.
    join("bob");
    server.sql("update users set name = 'Owner' where name = 'bob'");
    assert_eq!(log_in(&server, "Owner", "jos\u{e9} jos\u{e9}"), 200);
    assert_eq!(log_in(&server, "owner", server.password()), 200);
    let report = server.api("GET", "/doctor", None).json();
    let mut findings = report["findings"].as_array().unwrap().iter();
    let found = findings
        .find(|finding| finding["name"] == "user_names")
        .unwrap();
    assert_eq!(found["severity"], "warning", "{found}");
    assert!(
        found["found"]
            .as_str()
            .unwrap()
            .contains("`Owner` and `owner`"),
        "{found}"
    );
}

fn a_twin_comes_by_no_other_door(engine: Engine) {
    let (_provider, server) = begin(engine, &[]);
    server.join("ann", "member", json!({}));
    for (n, twin) in ["Ann", "\u{ff41}nn", "OWNER", "ann "].iter().enumerate() {
        let claims = json!({ "sub": format!("{n}"), "preferred_username": twin });
        let refused = Browser::default().sign_in(&server, &claims);
        assert_eq!(refused.status, 409, "{twin}: {}", refused.text());
    }
    assert_eq!(server.rows("users"), 2);
    let options = Options {
        without_owner: true,
        ..Options::default()
    };
    let server = Server::start_with(engine, options);
    let output = server.output();
    let mut lines = output.lines();
    let token = lines.find_map(|line| line.strip_prefix("set-up token: "));
    let owner = json!({ "token": token, "name": "\u{ff21}da ", "password": "a good long one" });
    let made = server.post("/api/v1/setup", &owner);
    assert_eq!(made.status, 201, "{}", made.text());
    assert_eq!(made.json()["user"]["name"], "ada");
}

fn what_changes_nothing_is_not_in_the_audit_log(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.set("c", "k", json!(1));
    let last = || server.api("GET", "/audit?limit=1", None).json()["items"][0]["id"].clone();
    let before = last();
    let source = json!({ "source": "1" });
    for (path, body) in [
        ("/gc?dry_run=true", None),
        ("/apps/a/scripts/validate", Some(source)),
    ] {
        let answer = server.api("POST", path, body);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
    assert_eq!(last(), before);
    // What only has a name like that of what takes much.
    app.set("c", "backup", json!(1));
    let written = last();
    for key in ["backup", "k"] {
        let read = server.api("GET", &format!("/apps/a/kv/c/{key}"), None);
        assert_eq!(read.status, 200);
    }
    assert_eq!(last(), written);
    // What a task of its own writes is written down like the rest.
    app.script("hear", "1");
    app.trigger("kv", json!({ "script": "hear", "collection": "heard" }));
    app.trigger("pubsub", json!({ "script": "hear", "topic": "news" }));
    app.set("heard", "k", json!(1));
    let message = json!({ "message": 1 });
    let published = server.api("POST", "/apps/a/topics/news/messages", Some(message));
    assert_eq!(published.status, 200, "{}", published.text());
    let log = server.api("GET", "/audit?limit=2", None).json();
    let actions = [0, 1].map(|n| log["items"][n]["action"].clone());
    assert_eq!(
        actions,
        [
            json!("POST /apps/{app}/topics/{topic}/messages"),
            json!("PUT /apps/{app}/kv/{collection}/{key}")
        ]
    );
    let before = last();
    // Of what could not be done the failure is written down, and no success.
    let ghost = "/apps/a/kv/c/ghost";
    assert_eq!(server.api("DELETE", ghost, None).status, 404);
    let log = server.api("GET", "/audit?limit=2", None).json();
    assert_eq!(
        (&log["items"][0]["status"], &log["items"][1]["id"]),
        (&json!(404), &before)
    );
    for path in ["/apps/a/export", "/instance/backup"] {
        assert_eq!(server.api("HEAD", path, None).status, 200, "{path}");
    }
    assert_eq!(
        server.api("GET", "/audit?limit=1", None).json()["items"][0],
        log["items"][0]
    );
    let before = last();
    // What takes much with it is written down, though it is a GET; what fails is, too.
    assert_eq!(server.api("GET", "/apps/a/export", None).status, 200);
    assert_ne!(last(), before);
    // And nothing passes without a rule.
    for (method, path, allowed) in [
        ("DELETE", "/apps", "GET, HEAD, POST"),
        ("OPTIONS", "/auth/login", "POST"),
        ("PUT", "/apps/a/export", "GET, HEAD"),
    ] {
        let refused = server.api(method, path, None);
        assert_eq!(
            (refused.status, refused.problem().as_str()),
            (405, "method_not_allowed")
        );
        assert_eq!(refused.headers["allow"], allowed, "{method} {path}");
    }
}

fn scripts_may_what_those_who_run_them_may(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("shop");
    let source = r#"let c = kv::collection("c"); c.set("k", 1); c.get("k")"#;
    let id = app.script("write", source);
    let execute = |token: &str| {
        let path = format!("/scripts/{id}/execute");
        server.api_as(token, "POST", &path, Some(json!({}))).json()
    };
    let (editor_id, editor) = server.join("editor", "member", json!({ "shop": "editor" }));
    assert_eq!(execute(&editor)["outcome"], "answered");
    // Who registered a trigger and may no longer write is told so, as a failed delivery.
    let (boss_id, boss) = server.join("boss", "member", json!({ "shop": "app_admin" }));
    app.script(
        "copy",
        r#"kv::collection("copies").set(ctx.event.kv.key, 1)"#,
    );
    let trigger = json!({ "script": "copy", "collection": "things", "name": "copies",
                          "retry": { "attempts_max": 1, "base_ms": 1 } });
    let made = server.api_as(&boss, "POST", "/apps/shop/triggers/kv", Some(trigger));
    assert_eq!(made.status, 201, "{}", made.text());
    app.set("things", "a", json!(1));
    wait_for("the copy", || (app.kv("copies", "a") == 1).then_some(()));
    let path = format!("/apps/shop/members/{boss_id}");
    let demoted = server.api("PUT", &path, Some(json!({ "role": "viewer" })));
    assert_eq!(demoted.status, 204);
    app.set("things", "b", json!(1));
    let letter = wait_for("a dead letter", || app.dead_letters("").pop());
    let error = text(&letter["last_error"]);
    assert!(error.contains("may not"), "{error}");
    assert_eq!(app.kv("copies", "b"), Value::Null);
    // A key has less than its user: what it may not, the script may not either.
    let key = server.key(&editor, "writer", &["script:write"], None);
    let ended = execute(&key);
    assert_eq!(ended["outcome"], "threw", "{ended}");
    assert!(
        app.last_execution()["error"]["message"]
            .to_string()
            .contains("kv.get"),
        "{ended}"
    );
    let gone = server.api("DELETE", &format!("/apps/shop/members/{editor_id}"), None);
    assert_eq!(gone.status, 204);
    let hidden = server.api_as(&editor, "GET", "/apps/shop", None);
    assert_eq!(hidden.status, 404);
}

fn the_audit_log_tells_who_did_what(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("shop");
    let (ada_id, ada) = server.join("ada", "member", json!({ "shop": "editor" }));
    let key = server.key(&ada, "deploy", &["script:write"], None);
    let new = json!({ "name": "x", "source": "1" });
    let made = server.api_as(&key, "POST", "/apps/shop/scripts", Some(new));
    assert_eq!(made.status, 201);
    let made = text(&made.json()["id"]);
    let refused = server.api_as(&ada, "DELETE", "/apps/shop", None);
    assert_eq!(refused.status, 403);
    app.set("c", "k", json!({ "secret": "hidden value" }));
    let log = server
        .api("GET", &format!("/audit?user_id={ada_id}"), None)
        .json();
    let seen: Vec<(String, String, u64)> = log["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            let status = entry["status"].as_u64().unwrap();
            (text(&entry["who"]), text(&entry["action"]), status)
        })
        .collect();
    let of = |who: &str, action: &str, status| (who.to_owned(), action.to_owned(), status);
    assert_eq!(
        seen,
        [
            of("ada", "DELETE /apps/{app}", 403),
            of("ada/deploy", "POST /apps/{app}/scripts", 201),
            of("ada", "POST /auth/keys", 201),
            of("ada", "POST /auth/join", 201),
        ]
    );
    assert_eq!(log["items"][0]["address"], "127.0.0.1");
    let target = format!("/apps/shop/scripts/{made}");
    assert_eq!(log["items"][1]["target"], target);
    let of_app = server.api("GET", "/apps/shop/audit?format=jsonl&limit=2", None);
    let lines: Vec<Value> = of_app
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["target"], "/apps/shop/kv/c/k");
    let cursor = of_app.headers["x-next-cursor"].to_str().unwrap();
    let rest = server.api("GET", &format!("/apps/shop/audit?cursor={cursor}"), None);
    assert!(
        rest.text().contains("POST /apps/{app}/scripts"),
        "{}",
        rest.text()
    );
    assert!(
        !server
            .api("GET", "/audit", None)
            .text()
            .contains("hidden value")
    );
    // What was not there is not removed: one entry says so, and none that it was.
    let gone = format!("/apps/shop/members/{}", uuid::Uuid::now_v7());
    assert_eq!(server.api("DELETE", &gone, None).status, 404);
    let log = server.api("GET", "/audit?limit=2", None).json();
    let statuses = [0, 1].map(|n| (&log["items"][n]["target"], &log["items"][n]["status"]));
    assert_eq!(statuses[0], (&json!(gone), &json!(404)));
    assert_ne!(statuses[1].0, &json!(gone));
    // Failed sign-ins are there, too.
    log_in(&server, "ada", "wrong");
    let log = server
        .api("GET", "/audit?action=POST%20/auth/login&limit=1", None)
        .json();
    assert_eq!(
        (&log["items"][0]["status"], &log["items"][0]["who"]),
        (&json!(401), &json!(""))
    );
}
