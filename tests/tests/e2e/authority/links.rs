//! Invitations, links to a new password, and codes of sign-ins.

use std::time::Duration;

use picloud_tests::{Answer, Engine, on_both_engines, report, wait_for};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::rig::{PASSWORD, Rig, Somebody, text};

on_both_engines!(p4_links_end_with_what_made_them);

/// What takes something away from somebody.
type Take<'a> = &'a dyn Fn(&Somebody);

fn p4_links_end_with_what_made_them(engine: Engine) {
    let rig = Rig::start(engine);
    let owner = rig.server.token.clone();
    let admin = || rig.somebody("admin", json!({}));
    let user = |who: &Somebody| format!("/users/{}", who.id);
    let set = |who: &Somebody, body: Value| {
        rig.owner("PATCH", &user(who), Some(body));
    };
    let is_dead = |row: &str, answer: &Answer| {
        rig.cell(
            row,
            answer.status == 410 && answer.problem() == "dead_link",
            answer.text(),
        );
    };
    let is_listed = |id: &Value| {
        let listed = rig.owner("GET", "/invitations?limit=200", None).json();
        listed["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|link| link["id"] == *id)
    };

    // Invitations end with whoever made them, and nothing brings them back.
    let undone = json!({ "disabled": false, "role": "admin" });
    let ways: [(&str, Take<'_>, bool); 3] = [
        (
            "its maker is disabled",
            &|who| set(who, json!({ "disabled": true })),
            true,
        ),
        (
            "its maker is made a member",
            &|who| set(who, json!({ "role": "member" })),
            true,
        ),
        (
            "its maker is deleted",
            &|who| drop(rig.owner("DELETE", &user(who), None)),
            false,
        ),
    ];
    for (way, take_away, can_be_undone) in &ways {
        let maker = admin();
        let link = rig.invite(&maker.token, "member", json!({})).json();
        assert!(is_listed(&link["id"]), "{way}");
        take_away(&maker);
        is_dead(&format!("an invitation, {way}"), &rig.join(&link["token"]));
        rig.cell(
            &format!("an invitation, {way}: the list"),
            !is_listed(&link["id"]),
            "listed",
        );
        if *can_be_undone {
            set(&maker, undone.clone());
            is_dead(
                &format!("an invitation, {way} and back"),
                &rig.join(&link["token"]),
            );
        }
    }
    // Whoever is no owner any more makes none.
    let former = rig.somebody("owner", json!({}));
    let link = rig.invite(&former.token, "owner", json!({})).json();
    let lesser = rig.invite(&former.token, "admin", json!({})).json();
    set(&former, json!({ "role": "admin" }));
    is_dead(
        "an owner's invitation, its maker is made admin",
        &rig.join(&link["token"]),
    );
    let joined = rig.join(&lesser["token"]);
    rig.cell(
        "an admin's invitation, its maker is made admin",
        joined.status == 201,
        joined.text(),
    );
    let link = rig.invite(&owner, "member", json!({})).json();
    rig.owner(
        "DELETE",
        &format!("/invitations/{}", text(&link["id"])),
        None,
    );
    is_dead(
        "an invitation that was taken back",
        &rig.join(&link["token"]),
    );
    let link = rig.invite(&owner, "member", json!({})).json();
    assert_eq!(rig.join(&link["token"]).status, 201);
    is_dead("an invitation that was used", &rig.join(&link["token"]));
    // Of an app that is gone it gives nothing.
    let (stays, goes) = (rig.place(), rig.place());
    let apps = json!({ &stays.slug: "viewer", &goes.slug: "viewer" });
    let link = rig.invite(&owner, "member", apps).json();
    rig.end(&stays);
    rig.owner("DELETE", &format!("/apps/{}", goes.slug), None);
    let joined = rig.join(&link["token"]);
    assert_eq!(joined.status, 201, "{}", joined.text());
    let token = text(&joined.json()["token"]);
    let roles = rig.server.api_as(&token, "GET", "/auth/me", None).json();
    let roles = roles["apps"].as_object().unwrap();
    rig.cell(
        "an invitation into a deleted app",
        roles.len() == 1,
        format!("{roles:?}"),
    );

    // Those that an API key made end with the key.
    for (way, method, act) in [("revoked", "DELETE", ""), ("rotated", "POST", "/rotate")] {
        let maker = admin();
        let key = json!({ "name": "k", "scopes": ["instance:admin"] });
        let key = rig
            .server
            .api_as(&maker.token, "POST", "/auth/keys", Some(key))
            .json();
        let link = rig.invite(&text(&key["token"]), "member", json!({})).json();
        let of_sign_in = rig.invite(&maker.token, "member", json!({})).json();
        let path = format!("/auth/keys/{}{act}", text(&key["id"]));
        assert!(rig.server.api_as(&maker.token, method, &path, None).status < 300);
        is_dead(
            &format!("an invitation of a key that is {way}"),
            &rig.join(&link["token"]),
        );
        let joined = rig.join(&of_sign_in["token"]);
        rig.cell(
            &format!("its user's own, the key is {way}"),
            joined.status == 201,
            joined.text(),
        );
    }
    let maker = admin();
    let soon = (chrono::Utc::now() + Duration::from_secs(10)).to_rfc3339();
    let key = json!({ "name": "k", "scopes": ["instance:admin"], "expires_at": soon });
    let key = rig
        .server
        .api_as(&maker.token, "POST", "/auth/keys", Some(key))
        .json();
    let link = rig.invite(&text(&key["token"]), "member", json!({})).json();
    wait_for("the key's end", || {
        let me = rig
            .server
            .api_as(&text(&key["token"]), "GET", "/auth/me", None);
        (me.status == 401).then_some(())
    });
    is_dead(
        "an invitation of a key that has ended",
        &rig.join(&link["token"]),
    );

    // Links to a new password.
    let reset_link = |by: &str, of: &Somebody| {
        let made = rig
            .server
            .api_as(by, "POST", &format!("{}/reset-link", user(of)), None);
        assert_eq!(made.status, 201, "{}", made.text());
        made.json()["token"].clone()
    };
    let follow = |token: &Value| {
        let body = json!({ "token": token, "password": "another long password" });
        rig.public("/auth/reset", &body)
    };
    for (way, take_away, _) in &ways {
        let (maker, target) = (admin(), rig.somebody("member", json!({})));
        let link = reset_link(&maker.token, &target);
        take_away(&maker);
        is_dead(&format!("a reset link, {way}"), &follow(&link));
    }
    type Act<'a> = &'a dyn Fn(&Somebody, &Value);
    let of_target: [(&str, &str, Act<'_>); 8] = [
        ("member", "its user is made admin", &|who, _| {
            set(who, json!({ "role": "admin" }))
        }),
        ("member", "its user is made owner", &|who, _| {
            set(who, json!({ "role": "owner" }))
        }),
        ("admin", "its user is made owner", &|who, _| {
            set(who, json!({ "role": "owner" }))
        }),
        ("member", "its user is disabled", &|who, _| {
            set(who, json!({ "disabled": true }))
        }),
        ("member", "its user is deleted", &|who, _| {
            drop(rig.owner("DELETE", &user(who), None))
        }),
        ("member", "another is made", &|who, _| {
            drop(reset_link(&owner, who))
        }),
        ("member", "it was used", &|_, link| {
            assert_eq!(follow(link).status, 204)
        }),
        ("member", "its user changes the password", &|who, _| {
            let change = json!({ "current": PASSWORD, "password": "yet another password" });
            let done = rig
                .server
                .api_as(&who.token, "POST", "/auth/password", Some(change));
            assert_eq!(done.status, 204, "{}", done.text());
        }),
    ];
    for (role, way, take_away) in of_target {
        let target = rig.somebody(role, json!({}));
        let link = reset_link(&owner, &target);
        take_away(&target, &link);
        is_dead(&format!("a reset link of a {role}, {way}"), &follow(&link));
        if way != "its user is deleted" {
            set(&target, json!({ "disabled": false, "role": role }));
            is_dead(
                &format!("a reset link of a {role}, {way} and back"),
                &follow(&link),
            );
        }
    }
    // Of two the second one is good, and one for somebody who became less is, too.
    let target = rig.somebody("admin", json!({}));
    let first = reset_link(&owner, &target);
    let second = reset_link(&owner, &target);
    set(&target, json!({ "role": "member" }));
    is_dead("the first of two reset links", &follow(&first));
    let followed = follow(&second);
    rig.cell(
        "the second of two reset links",
        followed.status == 204,
        followed.text(),
    );
    set(&target, json!({ "disabled": true }));
    let refused = rig
        .server
        .api("POST", &format!("{}/reset-link", user(&target)), None);
    rig.cell(
        "a reset link of who is disabled",
        refused.status == 422,
        refused.text(),
    );

    // Codes that a program makes a session of.
    let codes: [(&str, &str, Take<'_>); 4] = [
        ("its user is disabled", "oidc_not_allowed", &|who| {
            set(who, json!({ "disabled": true }))
        }),
        ("its user is disabled and enabled", "dead_code", &|who| {
            set(who, json!({ "disabled": true }));
            set(who, json!({ "disabled": false }));
        }),
        ("its user is deleted", "dead_code", &|who| {
            drop(rig.owner("DELETE", &user(who), None))
        }),
        ("the password is reset", "dead_code", &|who| {
            assert_eq!(follow(&reset_link(&owner, who)).status, 204);
        }),
    ];
    for (way, problem, take_away) in codes {
        let target = rig.somebody("member", json!({}));
        let code = sign_in_code(&rig, &target);
        take_away(&target);
        let refused = redeem(&rig, &code);
        let row = format!("the code of a sign-in, {way}");
        rig.cell(&row, refused.problem() == problem, refused.text());
    }
    let target = rig.somebody("member", json!({}));
    assert_eq!(
        redeem(&rig, &sign_in_code(&rig, &target)).status,
        200,
        "one is good else"
    );
    report(format_args!("{} cells of links and codes", rig.cells.get()));
}

/// The example of RFC 7636.
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

fn redeem(rig: &Rig, code: &str) -> Answer {
    let body = json!({ "code": code, "code_verifier": VERIFIER });
    rig.public("/auth/oidc/session", &body)
}

/// A code as a sign-in at a provider leaves it.
fn sign_in_code(rig: &Rig, who: &Somebody) -> String {
    let body = format!("pcc_{:0>43}", rig.next());
    let code = format!("{body}{}", checksum(&body));
    let hash = hex::encode(Sha256::digest(&code));
    let id = who.id.replace('-', "");
    let (hash, id) = match rig.server.is_on_postgres() {
        true => (format!("'\\x{hash}'"), format!("'{}'", who.id)),
        false => (format!("x'{hash}'"), format!("x'{id}'")),
    };
    let now = chrono::Utc::now();
    let ends = now + Duration::from_secs(300);
    rig.server.sql(&format!(
        "insert into sign_in_codes (code_hash, user_id, code_challenge, created_at, expires_at)
         values ({hash}, {id}, '{CHALLENGE}', '{}', '{}')",
        now.to_rfc3339(),
        ends.to_rfc3339()
    ));
    code
}

/// The last characters of a token: a CRC-32 in base 62.
fn checksum(text: &str) -> String {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let crc = text.bytes().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    });
    let mut rest = !crc;
    let mut digits = Vec::new();
    for _ in 0..6 {
        digits.push(char::from(ALPHABET[rest as usize % 62]));
        rest /= 62;
    }
    digits.iter().rev().collect()
}
