//! Subscriber tokens, by which somebody hears topics who is no user.

use std::time::Duration;

use picloud_tests::{Engine, EventStream, on_both_engines, report};
use serde_json::json;

use super::rig::{Credential, Place, Rig, text};
use super::ways::{FROM_A_KEY, FROM_A_USER, Taken, credential, heard};

on_both_engines!(
    p4_what_lets_others_hear_topics_ends,
    p4_streams_end_with_the_host_that_they_were_asked_on,
);

fn p4_streams_end_with_the_host_that_they_were_asked_on(engine: Engine) {
    let rig = Rig::start(engine);
    let (at, other) = (rig.place(), rig.place());
    let public = json!({ "auth_mode": "public" });
    rig.owner(
        "PUT",
        &format!("/apps/{}/topics/all", at.slug),
        Some(public),
    );
    let who = rig.somebody("member", json!({ &at.slug: "viewer" }));
    let open = |path: &str, headers: &[(&str, &str)]| {
        let headers = [&[("host", at.host.as_str())], headers].concat();
        EventStream::open(&rig.server.url, path, &headers).unwrap()
    };
    let bearer = format!("Bearer {}", who.token);
    let streams = [
        ("anybody", open("/realtime/topics/all", &[])),
        (
            "all of two",
            open(
                "/realtime?topic=all&topic=members",
                &[("authorization", &bearer)],
            ),
        ),
        (
            "a user",
            open("/realtime/topics/members", &[("authorization", &bearer)]),
        ),
    ];
    for (_, stream) in &streams {
        stream.expect("ready");
    }
    rig.give_host(&at, &other);
    for (name, stream) in &streams {
        let (_, ended) = heard(stream, Duration::from_secs(20));
        rig.cell(
            name,
            ended.as_deref() == Some("reset"),
            format!("{ended:?}"),
        );
    }
    assert_eq!(open("/realtime/topics/all", &[]).status, 404);
    rig.end(&at);
    rig.end(&other);
}

fn p4_what_lets_others_hear_topics_ends(engine: Engine) {
    let rig = Rig::start(engine);
    let app = |at: &Place, rest: &str| format!("/apps/{}{rest}", at.slug);
    let by_route = |at: &Place, _: &Credential| {
        let made = rig
            .server
            .call("GET", "/token", &[("host", &at.host)], None);
        text(&made.json())
    };
    // A script that somebody runs acts for them, and so does what it makes.
    let by_execute = |at: &Place, with: &Credential| {
        let Credential::Bearer(token) = with else {
            panic!("a bearer's");
        };
        let path = format!("/scripts/{}/execute", at.scripts[0]);
        let ended = rig
            .server
            .api_as(token, "POST", &path, Some(json!({})))
            .json();
        let body = &ended["response"]["body"];
        let found = body
            .as_str()
            .filter(|text| text.starts_with("pct_"))
            .map(str::to_owned);
        found.unwrap_or_else(|| {
            let text = ended.to_string();
            let (_, rest) = text.split_once("pct_").unwrap_or_else(|| panic!("{text}"));
            let token = rest.split(['"', '\\']).next().unwrap();
            format!("pct_{token}")
        })
    };
    type Make<'a> = &'a dyn Fn(&Place, &Credential) -> String;
    let both: [(&str, Make<'_>); 2] = [("by a route", &by_route), ("for somebody", &by_execute)];
    type Take<'a> = (&'a str, &'a dyn Fn(&Taken<'_>), bool);
    let user_ways = FROM_A_USER.map(|(way, _, take_away)| (way, take_away));
    let of_app: [Take<'_>; 5] = [
        (
            "its key is revoked",
            &|taken| {
                let body = json!({ "revoke": true });
                rig.owner(
                    "POST",
                    &app(taken.at, "/subscriber-keys/rotate"),
                    Some(body),
                );
            },
            true,
        ),
        (
            "the topic is closed",
            &|taken| drop(rig.owner("DELETE", &app(taken.at, "/topics/tokens"), None)),
            true,
        ),
        (
            "the app is deleted",
            &|taken| drop(rig.owner("DELETE", &app(taken.at, ""), None)),
            true,
        ),
        (
            "its host is taken away",
            &|taken| rig.take_host(taken.at),
            true,
        ),
        (
            "its host is given to another app",
            &|taken| {
                let other = rig.place();
                rig.give_host(taken.at, &other);
                rig.end(&other);
            },
            true,
        ),
    ];
    let try_one = |name: &str,
                   kind: &str,
                   make: Make<'_>,
                   take_away: &dyn Fn(&Taken<'_>),
                   way: &str,
                   ends: bool| {
        let at = rig.place();
        let who = rig.somebody("member", json!({ &at.slug: "app_admin" }));
        let (with, id) = credential(&rig, &who, kind);
        let token = make(&at, &with);
        let open = || {
            let bearer = format!("Bearer {token}");
            let headers = [
                ("authorization", bearer.as_str()),
                ("host", at.host.as_str()),
            ];
            EventStream::open(&rig.server.url, "/realtime/topics/tokens", &headers).unwrap()
        };
        let stream = open();
        stream.expect("ready");
        let taken = Taken {
            rig: &rig,
            at: &at,
            who: &who,
            id,
        };
        take_away(&taken);
        let row = format!("a subscriber token, made {name}, {way}");
        let status = open().status;
        rig.cell(
            &format!("{row}: a new stream"),
            (status == 200) != ends,
            status,
        );
        if ends {
            let (_, ended) = heard(&stream, Duration::from_secs(20));
            let says_why = ended
                .as_deref()
                .is_some_and(|last| ["expired", "reset"].contains(&last));
            rig.cell(
                &format!("{row}: the open stream"),
                says_why,
                format!("{ended:?}"),
            );
        } else {
            let path = app(&at, "/topics/tokens/messages");
            rig.owner("POST", &path, Some(json!({ "message": "marker" })));
            let (has_marker, ended) = heard(&stream, Duration::from_secs(20));
            rig.cell(
                &format!("{row}: the open stream"),
                has_marker,
                format!("{ended:?}"),
            );
        }
        if rig.server.api("GET", &app(&at, ""), None).status == 200 {
            rig.end(&at);
        }
    };
    for (name, make) in both {
        for (way, take_away, ends) in of_app {
            try_one(name, "a session's token", make, take_away, way, ends);
        }
        for (way, take_away) in user_ways {
            // One that an app's own gate gave belongs to nobody; the app went in any case.
            let ends = name == "for somebody" || way == "the app is deleted";
            try_one(
                name,
                "a session's token",
                make,
                &|taken| take_away(taken),
                way,
                ends,
            );
        }
    }
    for (way, _, take_away) in FROM_A_KEY {
        // To rotate a key gives the same one another token.
        let ends = way == "the key is revoked";
        try_one(
            "with a key",
            "an API key",
            &by_execute,
            &|taken| take_away(taken),
            way,
            ends,
        );
    }
    report(format_args!(
        "{} cells of subscriber tokens",
        rig.cells.get()
    ));
}
