//! The ways in which authority is taken away, and what is heard of what happens after it.

use std::time::Duration;

use picloud_tests::EventStream;
use serde_json::{Value, json};

use super::rig::{APP_SCOPES, Credential, PASSWORD, Place, Rig, Somebody, text};

/// What is left to somebody after something was taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing at all.
    Nothing,
    /// They may sign in, and have no role in the app.
    SignIn,
    /// They may look at the app.
    Viewer,
}

/// Whether an event tells what happened after the authority was taken away.
pub(super) fn is_marker(data: &Value) -> bool {
    data["message"] == "marker" || data["data"]["what"] == "domain"
}

/// What a stream that is open tells from now on: whether of the marker, and how it ended, if it did.
pub(super) fn heard(stream: &EventStream, at_most: Duration) -> (bool, Option<String>) {
    let (mut has_marker, mut last) = (false, String::new());
    loop {
        match stream.next_within(at_most) {
            Ok(Some(event)) => {
                has_marker |= is_marker(&event.data);
                last = event.name;
                if has_marker {
                    return (true, None);
                }
            }
            Ok(None) => return (has_marker, None),
            Err(_) => return (has_marker, Some(last)),
        }
    }
}

/// Whose credential it is, and what may be done to take it away.
pub(super) struct Taken<'r> {
    pub(super) rig: &'r Rig,
    pub(super) at: &'r Place,
    pub(super) who: &'r Somebody,
    /// The id of the session or the API key.
    pub(super) id: String,
}

impl Taken<'_> {
    pub(super) fn user(&self) -> String {
        format!("/users/{}", self.who.id)
    }

    pub(super) fn member(&self) -> String {
        format!("/apps/{}/members/{}", self.at.slug, self.who.id)
    }

    /// As the user themselves, in another session.
    #[track_caller]
    pub(super) fn themselves(&self, method: &str, path: &str, body: Option<Value>) {
        let other = self.rig.bearer(&self.who.name);
        let done = self.rig.server.api_as(&other, method, path, body);
        assert!((200..300).contains(&done.status), "{}", done.text());
    }
}

pub(super) type Way = (&'static str, Left, fn(&Taken<'_>));

pub(super) fn reset(taken: &Taken<'_>) {
    let link = taken
        .rig
        .owner("POST", &format!("{}/reset-link", taken.user()), None)
        .json();
    let body = json!({ "token": link["token"], "password": "another long password" });
    assert_eq!(taken.rig.public("/auth/reset", &body).status, 204);
}

/// What takes from a user what they may: it is gone from all of their credentials.
pub(super) const FROM_A_USER: [Way; 5] = [
    ("the user is disabled", Left::Nothing, |taken| {
        taken
            .rig
            .owner("PATCH", &taken.user(), Some(json!({ "disabled": true })));
    }),
    ("the user is deleted", Left::Nothing, |taken| {
        taken.rig.owner("DELETE", &taken.user(), None);
    }),
    ("the role is taken away", Left::SignIn, |taken| {
        taken.rig.owner("DELETE", &taken.member(), None);
    }),
    ("the role is lowered", Left::Viewer, |taken| {
        taken
            .rig
            .owner("PUT", &taken.member(), Some(json!({ "role": "viewer" })));
    }),
    ("the app is deleted", Left::SignIn, |taken| {
        taken
            .rig
            .owner("DELETE", &format!("/apps/{}", taken.at.slug), None);
    }),
];

pub(super) const FROM_A_SESSION: [Way; 3] = [
    ("the session is ended", Left::Nothing, |taken| {
        taken.themselves("DELETE", &format!("/auth/sessions/{}", taken.id), None);
    }),
    ("the password is changed", Left::Nothing, |taken| {
        let change = json!({ "current": PASSWORD, "password": "another long password" });
        taken.themselves("POST", "/auth/password", Some(change));
    }),
    ("the password is reset", Left::Nothing, reset),
];

pub(super) const FROM_A_KEY: [Way; 2] = [
    ("the key is revoked", Left::Nothing, |taken| {
        taken.themselves("DELETE", &format!("/auth/keys/{}", taken.id), None);
    }),
    ("the key is rotated", Left::Nothing, |taken| {
        taken.themselves("POST", &format!("/auth/keys/{}/rotate", taken.id), None);
    }),
];

/// Somebody who is admin of the instance, and so of every app, is made a member.
pub(super) const FROM_AN_ADMIN: [Way; 1] =
    [("the admin is made a member", Left::SignIn, |taken| {
        taken
            .rig
            .owner("PATCH", &taken.user(), Some(json!({ "role": "member" })));
    })];

/// A credential of somebody, and the id by which it is taken away.
pub(super) fn credential(rig: &Rig, who: &Somebody, kind: &str) -> (Credential, String) {
    match kind {
        "a session's token" | "a session's cookie" => {
            let with = match kind {
                "a session's token" => Credential::Bearer(rig.bearer(&who.name)),
                _ => rig.cookie(&who.name),
            };
            let headers = with.headers();
            let headers: Vec<_> = headers
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            let sessions = rig
                .server
                .call("GET", "/api/v1/auth/sessions", &headers, None)
                .json();
            let sessions = sessions["items"].as_array().unwrap().iter();
            let mut current = sessions.filter(|session| session["current"] == true);
            (with, text(&current.next().unwrap()["id"]))
        }
        _ => {
            let scopes: Vec<&str> = APP_SCOPES
                .iter()
                .copied()
                .chain(["instance:admin"])
                .collect();
            let key = json!({ "name": "k", "scopes": scopes });
            let made = rig
                .server
                .api_as(&who.token, "POST", "/auth/keys", Some(key));
            assert_eq!(made.status, 201, "{}", made.text());
            let made = made.json();
            (Credential::Bearer(text(&made["token"])), text(&made["id"]))
        }
    }
}
