//! What API keys may give to others, and to whoever has them.

use picloud_tests::{Engine, on_both_engines, report};
use serde_json::json;

use super::rig::{APP_SCOPES, Rig, text};

on_both_engines!(p4_keys_lead_to_no_more_than_their_scopes);

fn p4_keys_lead_to_no_more_than_their_scopes(engine: Engine) {
    let rig = Rig::start(engine);
    let server = &rig.server;
    let at = rig.place();
    rig.end(&at);
    let owner = rig.owner("GET", "/auth/me", None).json();
    let (boss, ann) = (
        rig.somebody("admin", json!({})),
        rig.somebody("member", json!({})),
    );
    let off = rig.somebody("admin", json!({}));
    rig.owner(
        "PATCH",
        &format!("/users/{}", off.id),
        Some(json!({ "disabled": true })),
    );
    let all: Vec<&str> = APP_SCOPES
        .iter()
        .copied()
        .chain(["instance:admin"])
        .collect();
    let narrow = server.key(
        &server.token,
        "narrow",
        &["instance:admin", "app:admin"],
        None,
    );
    let wide = server.key(&server.token, "wide", &all, None);
    let member = format!("/apps/{}/members/{}", at.slug, ann.id);
    let into = |role: &str| json!({ "role": "member", "apps": { &at.slug: role } });
    let owner_id = text(&owner["id"]);
    let user = |id: &str, rest: &str| format!("/users/{id}{rest}");
    for (what, method, path, body, by_narrow, by_wide) in [
        (
            "a reset link of its own user",
            "POST",
            user(&owner_id, "/reset-link"),
            json!({}),
            403,
            403,
        ),
        (
            "a reset link of an admin",
            "POST",
            user(&boss.id, "/reset-link"),
            json!({}),
            403,
            403,
        ),
        (
            "a reset link of a member",
            "POST",
            user(&ann.id, "/reset-link"),
            json!({}),
            403,
            403,
        ),
        (
            "an invitation of an owner",
            "POST",
            "/invitations".to_owned(),
            json!({ "role": "owner" }),
            403,
            403,
        ),
        (
            "an invitation of an admin",
            "POST",
            "/invitations".to_owned(),
            json!({ "role": "admin" }),
            403,
            403,
        ),
        (
            "an invitation of an editor",
            "POST",
            "/invitations".to_owned(),
            into("editor"),
            403,
            201,
        ),
        (
            "an invitation of an app_admin",
            "POST",
            "/invitations".to_owned(),
            into("app_admin"),
            403,
            201,
        ),
        (
            "an invitation of a member",
            "POST",
            "/invitations".to_owned(),
            json!({}),
            201,
            201,
        ),
        (
            "a member is made admin",
            "PATCH",
            user(&ann.id, ""),
            json!({ "role": "admin" }),
            403,
            403,
        ),
        (
            "an admin is enabled",
            "PATCH",
            user(&off.id, ""),
            json!({ "disabled": false }),
            403,
            403,
        ),
        (
            "a role in an app",
            "PUT",
            member.clone(),
            json!({ "role": "viewer" }),
            403,
            204,
        ),
        (
            "a greater role in an app",
            "PUT",
            member.clone(),
            json!({ "role": "app_admin" }),
            403,
            204,
        ),
        (
            "a key",
            "POST",
            "/auth/keys".to_owned(),
            json!({ "name": "x", "scopes": ["log:read"] }),
            403,
            403,
        ),
        (
            "a password",
            "POST",
            "/auth/password".to_owned(),
            json!({ "current": server.password(), "password": "x" }),
            403,
            403,
        ),
        (
            "the sessions",
            "GET",
            "/auth/sessions".to_owned(),
            json!(null),
            403,
            403,
        ),
        // What takes away needs no more.
        (
            "a lesser role in an app",
            "PUT",
            member,
            json!({ "role": "viewer" }),
            204,
            204,
        ),
        (
            "an admin is made a member",
            "PATCH",
            user(&boss.id, ""),
            json!({ "role": "member" }),
            200,
            200,
        ),
        (
            "a member is disabled",
            "PATCH",
            user(&boss.id, ""),
            json!({ "disabled": true }),
            200,
            200,
        ),
        (
            "a member is enabled",
            "PATCH",
            user(&boss.id, ""),
            json!({ "disabled": false }),
            200,
            200,
        ),
    ] {
        for (kind, key, expected) in [("narrow", &narrow, by_narrow), ("wide", &wide, by_wide)] {
            let body = (method != "GET").then(|| body.clone());
            let answer = server.api_as(key, method, &path, body);
            let row = format!("a {kind} key: {what}");
            rig.cell(&row, answer.status == expected, answer.text());
            if answer.status == 403 {
                let says_what_to_do =
                    answer.text().contains("sign in") || answer.text().contains("sign-in");
                rig.cell(&row, says_what_to_do, answer.text());
            }
        }
    }
    report(format_args!("{} cells of keys", rig.cells.get()));
}
