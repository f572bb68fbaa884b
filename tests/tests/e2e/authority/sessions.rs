//! Sessions and API keys, at every way in by a request or a stream, open ones included.

use std::time::Duration;

use picloud_tests::{Engine, EventStream, on_both_engines, report, wait_for};
use serde_json::json;

use super::rig::{Credential, PASSWORD, Place, Rig, text};
use super::ways::{
    FROM_A_KEY, FROM_A_SESSION, FROM_A_USER, FROM_AN_ADMIN, Left, Taken, Way, credential, heard,
};
use crate::realtime::options;

on_both_engines!(
    p4_what_was_taken_away_works_nowhere,
    p4_no_session_begins_by_a_password_that_is_being_changed,
);

/// A way in by a request.
const REQUESTS: [(&str, &str, &str, Left); 9] = [
    // The least that must be left for it to work.
    ("who calls", "GET", "/auth/me", Left::SignIn),
    ("list apps", "GET", "/apps", Left::SignIn),
    ("read", "GET", "/apps/{app}/scripts", Left::Viewer),
    ("read a value", "GET", "/apps/{app}/kv/c/k", Left::Viewer),
    ("write", "PUT", "/apps/{app}/kv/c/k", Left::Nothing),
    ("run", "POST", "/scripts/{script}/execute", Left::Nothing),
    (
        "publish",
        "POST",
        "/apps/{app}/topics/members/messages",
        Left::Nothing,
    ),
    (
        "export",
        "GET",
        "/apps/{app}/export?kv=false",
        Left::Nothing,
    ),
    ("read members", "GET", "/apps/{app}/members", Left::Nothing),
];

/// A way in by a stream; the last is on the app's own host.
const STREAMS: [(&str, &str, Left); 5] = [
    ("all events", "/api/v1/events", Left::SignIn),
    ("an app's events", "/api/v1/events?app={app}", Left::Viewer),
    (
        "an execution",
        "/api/v1/executions/{execution}/events",
        Left::Viewer,
    ),
    (
        "a topic, managed",
        "/api/v1/apps/{app}/topics/members/events",
        Left::Nothing,
    ),
    (
        "a topic, subscribed to",
        "/realtime/topics/members",
        Left::Viewer,
    ),
];

fn p4_what_was_taken_away_works_nowhere(engine: Engine) {
    let rig = Rig::start(engine);
    let of_session: Vec<&Way> = FROM_A_USER.iter().chain(&FROM_A_SESSION).collect();
    let of_key: Vec<&Way> = FROM_A_USER.iter().chain(&FROM_A_KEY).collect();
    let of_admin: Vec<&Way> = FROM_AN_ADMIN.iter().chain(&FROM_A_USER[..2]).collect();
    for (kind, role, ways) in [
        ("a session's token", "member", &of_session),
        ("a session's cookie", "member", &of_session),
        ("an API key", "member", &of_key),
        ("a session's token", "admin", &of_admin),
        ("an API key", "admin", &of_admin),
    ] {
        for (way, left, take_away) in ways {
            let at = rig.place();
            let apps = match role {
                "member" => json!({ &at.slug: "app_admin" }),
                _ => json!({}),
            };
            let who = rig.somebody(role, apps);
            let (with, id) = credential(&rig, &who, kind);
            let row = format!("{kind} of a {role}, {way}");
            taken_away(&rig, &at, &with, &row, *left, || {
                let (rig, at, who) = (&rig, &at, &who);
                take_away(&Taken {
                    rig,
                    at,
                    who,
                    id: id.clone(),
                });
            });
        }
    }
    report(format_args!(
        "{} cells of what was taken away",
        rig.cells.get()
    ));
}

/// One row of the table: every way in is open before, and as open as it should be after.
fn taken_away(
    rig: &Rig,
    at: &Place,
    with: &Credential,
    row: &str,
    left: Left,
    take_away: impl FnOnce(),
) {
    let rank = |left: Left| {
        [Left::Nothing, Left::SignIn, Left::Viewer]
            .iter()
            .position(|one| *one == left)
    };
    // Nothing suffices for what takes more than to look.
    let is_left = |least: Left| least != Left::Nothing && rank(left) >= rank(least);
    for (name, method, path, _) in REQUESTS {
        let status = rig.request(at, with, (method, path));
        assert!(status < 300, "{row}: {name}: {status} before");
    }
    // The cookie is on the instance's own hosts alone.
    let on_hosts =
        |path: &str| !(path.starts_with("/realtime") && matches!(with, Credential::Cookie { .. }));
    let streams = STREAMS.iter().filter(|(_, path, _)| on_hosts(path));
    let open: Vec<_> = streams
        .map(|(name, path, least)| {
            let stream = rig.stream(at, with, path);
            let begun = stream.next().unwrap_or_else(|| panic!("{row}: {name}"));
            assert!(
                ["ready", "log"].contains(&begun.name.as_str()),
                "{row}: {name}: {begun:?}"
            );
            (name, path, *least, stream)
        })
        .collect();
    take_away();
    for (name, method, path, least) in REQUESTS {
        let status = rig.request(at, with, (method, path));
        let works = status < 300;
        let is_refused = [401, 403, 404].contains(&status);
        let holds = if is_left(least) { works } else { is_refused };
        rig.cell(&format!("{row}: {name}"), holds, status);
    }
    for (name, path, least, _) in &open {
        let status = rig.stream(at, with, path).status;
        let holds = match is_left(*least) {
            true => status == 200,
            false => [401, 403, 404].contains(&status),
        };
        rig.cell(&format!("{row}: a new stream of {name}"), holds, status);
    }
    let is_there = rig
        .server
        .api("GET", &format!("/apps/{}", at.slug), None)
        .status
        == 200;
    if is_there {
        rig.mark(at);
    }
    for (name, path, least, stream) in &open {
        let sees = is_left(*least) && (left == Left::Viewer && is_there);
        let stays_silent = **path == "/api/v1/events" && left == Left::SignIn;
        let wait_ms = if stays_silent { 300 } else { 20_000 };
        let (has_marker, ended) = heard(stream, Duration::from_millis(wait_ms));
        let holds = match (sees, stays_silent) {
            (true, _) => has_marker,
            (false, true) => !has_marker && ended.is_none(),
            (false, false) => {
                let says_why = ended
                    .as_deref()
                    .is_some_and(|last| ["expired", "reset"].contains(&last));
                !has_marker && says_why
            }
        };
        let found = format!("marker {has_marker}, ended {ended:?}");
        rig.cell(&format!("{row}: the open stream of {name}"), holds, found);
    }
}

/// To verify a password takes long: long enough for it to be changed meanwhile.
fn p4_no_session_begins_by_a_password_that_is_being_changed(engine: Engine) {
    let rig = Rig::start(engine);
    let server = &rig.server;
    let mut begun = 0;
    for round in 0..6 {
        let who = rig.somebody("member", json!({}));
        let login = json!({ "name": who.name, "password": PASSWORD }).to_string();
        let change = json!({ "current": PASSWORD, "password": "another long password" });
        let tokens: Vec<String> = std::thread::scope(|scope| {
            let login = &login;
            let logins: Vec<_> = (0..4)
                .map(|n| {
                    scope.spawn(move || {
                        let from = format!("10.9.{round}.{n}");
                        let headers = [("x-forwarded-for", from.as_str())];
                        let body = Some(login.as_bytes());
                        server.call("POST", "/api/v1/auth/login", &headers, body)
                    })
                })
                .collect();
            let changed = server.api_as(&who.token, "POST", "/auth/password", Some(change));
            assert_eq!(changed.status, 204, "{}", changed.text());
            let answers = logins.into_iter().map(|login| login.join().unwrap());
            let fine = answers.filter(|answer| answer.status == 200);
            fine.map(|answer| text(&answer.json()["token"])).collect()
        });
        begun += tokens.len();
        for token in tokens {
            let me = server.api_as(&token, "GET", "/auth/me", None);
            assert_eq!(
                me.status,
                401,
                "a session outlived its password: {}",
                me.text()
            );
        }
    }
    report(format_args!(
        "{begun} sessions began while their password was changed"
    ));
    assert!(begun > 0, "nobody signed in before the change");
}

/// Another node looks every 15 s whether a session or a key is good, and every second who is a user.
#[test]
fn p4_what_one_node_takes_away_ends_on_another() {
    let rig = Rig::start(Engine::Postgres);
    let other = rig.server.another_node(options(&[]));
    let at = rig.place();
    rig.end(&at);
    let mut open = Vec::new();
    for (kind, (way, _, take_away)) in [
        ("a session's token", &FROM_A_SESSION[0]),
        ("an API key", &FROM_A_KEY[0]),
        ("an API key", &FROM_A_USER[0]),
    ] {
        let who = rig.somebody("member", json!({ &at.slug: "viewer" }));
        let (with, id) = credential(&rig, &who, kind);
        let Credential::Bearer(token) = with else {
            panic!("a bearer's");
        };
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str())];
        // It knows of a user who was just made within a second.
        let stream = wait_for("the other node to let them in", || {
            let stream = EventStream::open(&other.url, "/api/v1/events", &headers).unwrap();
            let begun = stream.next().filter(|_| stream.status == 200);
            begun.filter(|begun| begun.name == "ready").map(|_| stream)
        });
        let (rig, at, who) = (&rig, &at, &who);
        take_away(&Taken { rig, at, who, id });
        open.push((way, stream));
    }
    for (way, stream) in open {
        let (_, ended) = heard(&stream, Duration::from_secs(25));
        assert_eq!(ended.as_deref(), Some("expired"), "{way}");
    }
}
