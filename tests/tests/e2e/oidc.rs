//! Signing in at an OpenID provider, a real one.

use picloud_tests::provider::{Browser, Provider};
use picloud_tests::{Answer, Engine, Options, Server, on_both_engines, wait_for};
use serde_json::{Value, json};

on_both_engines!(
    somebody_signs_in_and_has_what_their_groups_give,
    what_was_not_begun_here_ends_nowhere,
    an_id_token_that_proves_nothing_signs_nobody_in,
    who_may_not_does_not,
    a_provider_that_is_away_or_new_is_told_of_and_asked_again,
);

const ROLES: &str = "bosses=owner, ops=admin, shop-team=shop:editor, shop-bosses=shop:app_admin";

fn options(provider: &Provider, more: &[(&'static str, &str)]) -> Options {
    let mut environment = vec![
        ("PICLOUD_OIDC_ISSUER", provider.issuer.clone()),
        ("PICLOUD_OIDC_CLIENT_ID", "picloud".to_owned()),
        (
            "PICLOUD_OIDC_CLIENT_SECRET",
            "a secret of the test".to_owned(),
        ),
        ("PICLOUD_OIDC_ROLES", ROLES.to_owned()),
    ];
    environment.extend(
        more.iter()
            .map(|(name, value)| (*name, (*value).to_owned())),
    );
    Options {
        environment,
        ..Options::default()
    }
}

pub fn begin(engine: Engine, more: &[(&'static str, &str)]) -> (Provider, Server) {
    let provider = Provider::start();
    let server = Server::start_with(engine, options(&provider, more));
    provider.serve(&server);
    (provider, server)
}

pub fn ann(groups: &[&str]) -> Value {
    json!({ "sub": "id-of-ann", "preferred_username": "ann", "groups": groups })
}

/// Who a browser is signed in as.
fn me(server: &Server, browser: &Browser) -> Value {
    let cookie = browser.cookie(server, "picloud").expect("a session");
    let cookie = format!("picloud={cookie}");
    let answer = server.call(
        "GET",
        "/api/v1/auth/me",
        &[("cookie", cookie.as_str())],
        None,
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[track_caller]
fn refused(answer: &Answer, status: u16, words: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    let page = answer.text();
    assert!(page.contains(words), "{page}");
    assert!(page.contains("<h1>"), "{page}");
    let set = answer.headers.get_all("set-cookie").iter();
    let begins = |set: &http::HeaderValue| set.to_str().unwrap().starts_with("picloud=");
    assert!(!set.into_iter().any(begins), "nobody is signed in");
}

fn somebody_signs_in_and_has_what_their_groups_give(engine: Engine) {
    let (provider, server) = begin(engine, &[("PICLOUD_OIDC_NAME", "Acme")]);
    server.app("shop");
    server.app("blog");
    let shown = server.get("/api/v1/auth/oidc").json();
    assert_eq!(shown, json!({ "enabled": true, "name": "Acme" }));
    let mut browser = Browser::default();
    let answer = browser.sign_in(&server, &ann(&["ops", "shop-team", "shop-bosses", "other"]));
    assert_eq!(answer.status, 303, "{}", answer.text());
    assert_eq!(answer.headers["location"], "/admin/apps");
    // What the sign-in was bound to is gone.
    assert_eq!(browser.cookie(&server, "picloud-oidc"), None);
    let first = me(&server, &browser);
    assert_eq!(
        (&first["name"], &first["role"]),
        (&json!("ann"), &json!("admin"))
    );
    let roles: Vec<&Value> = first["apps"].as_object().unwrap().values().collect();
    assert_eq!(roles, ["app_admin"]);
    // At each sign-in their groups decide anew, but only of what the setting speaks of.
    let id = first["id"].as_str().unwrap();
    let given = server.api(
        "PUT",
        &format!("/apps/blog/members/{id}"),
        Some(json!({ "role": "viewer" })),
    );
    assert!(given.status < 300, "{}", given.text());
    let mut other = Browser::default();
    assert_eq!(other.sign_in(&server, &ann(&["shop-team"])).status, 303);
    let again = me(&server, &other);
    assert_eq!(
        (&again["id"], &again["role"]),
        (&first["id"], &json!("member"))
    );
    assert_eq!(again["apps"].as_object().unwrap().len(), 2);
    let mut other = Browser::default();
    assert_eq!(other.sign_in(&server, &ann(&[])).status, 303);
    let roles = me(&server, &other)["apps"].clone();
    assert_eq!(
        roles.as_object().unwrap().values().collect::<Vec<_>>(),
        ["viewer"]
    );
    // It is written down who came, and that somebody did not.
    let audit = server
        .api("GET", "/audit?action=GET%20/auth/oidc/callback", None)
        .json();
    let items = audit["items"].as_array().unwrap();
    assert_eq!(items.len(), 3, "{audit}");
    assert!(
        items
            .iter()
            .all(|item| item["who"] == "ann" && item["status"] == 303)
    );
    if engine == Engine::Postgres {
        // Begun at one node and ended at another, as behind a balancer.
        let node = server.another_node(options(&provider, &[]));
        let mut browser = Browser::default();
        let callback = browser.until_callback(&server, &ann(&[]));
        let path = callback.strip_prefix(&server.url).unwrap();
        let cookie = format!(
            "picloud-oidc={}",
            browser.cookie(&server, "picloud-oidc").unwrap()
        );
        let host = server.url.trim_start_matches("http://");
        let answer = node.call(
            "GET",
            path,
            &[("cookie", cookie.as_str()), ("host", host)],
            None,
        );
        assert_eq!(answer.status, 303, "{}", answer.text());
    }
}

fn what_was_not_begun_here_ends_nowhere(engine: Engine) {
    let (_provider, server) = begin(engine, &[]);
    let mut browser = Browser::default();
    let callback = browser.until_callback(&server, &ann(&[]));
    // Another browser, and one that began another sign-in.
    refused(
        &Browser::default().open(&callback, None),
        400,
        "not begun in this browser",
    );
    let mut other = Browser::default();
    let others = other.until_callback(&server, &ann(&[]));
    refused(
        &other.clone().open(&callback, None),
        400,
        "not begun in this browser",
    );
    // A state or a code that was changed, or is not there.
    let state = callback
        .split("state=")
        .nth(1)
        .unwrap()
        .split('&')
        .next()
        .unwrap();
    let code = callback
        .split("code=")
        .nth(1)
        .unwrap()
        .split('&')
        .next()
        .unwrap();
    for changed in [
        callback.replace(state, "x"),
        callback.replace("state=", "stat="),
        others.replace("state=", "state=A"),
    ] {
        refused(
            &browser.clone().open(&changed, None),
            400,
            "not begun in this browser",
        );
    }
    refused(
        &browser.clone().open(&callback.replace(code, "wrong"), None),
        403,
        "invalid_grant",
    );
    let without = browser
        .clone()
        .open(&callback.replace("code=", "cod="), None);
    refused(&without, 502, "not valid");
    let denied = callback.replace("code=", "error=access_denied&cod=");
    refused(&browser.clone().open(&denied, None), 403, "access_denied");
    let odd = callback.replace("code=", "error=%3Cscript%3E&cod=");
    refused(&browser.clone().open(&odd, None), 403, "an error");
    let elsewhere = callback.replace("iss=", "iss=http%3A%2F%2Fevil.test&is=");
    refused(&browser.clone().open(&elsewhere, None), 502, "not valid");
    // A code is good once, whoever kept the cookie.
    let mut kept = browser.clone();
    assert_eq!(browser.open(&callback, None).status, 303);
    refused(&kept.open(&callback, None), 403, "invalid_grant");
    refused(
        &browser.open(&callback, None),
        400,
        "not begun in this browser",
    );
    // A code of another's sign-in fits nobody else's verifier.
    let others_code = others
        .split("code=")
        .nth(1)
        .unwrap()
        .split('&')
        .next()
        .unwrap();
    let mut third = Browser::default();
    let thirds = third.until_callback(&server, &ann(&[]));
    let thirds_code = thirds
        .split("code=")
        .nth(1)
        .unwrap()
        .split('&')
        .next()
        .unwrap();
    let mixed = thirds.replace(thirds_code, others_code);
    refused(&third.open(&mixed, None), 403, "invalid_grant");
    // One comes back to the dashboard and to nowhere else.
    for bad in ["https://evil.test/", "//evil.test", "/admin/../x", "/shop"] {
        let path = format!("/api/v1/auth/oidc/login?return_to={bad}");
        let answer = server.get(&path);
        assert_eq!(
            (answer.status, &answer.json()["field"]),
            (422, &json!("return_to")),
            "{bad}"
        );
    }
}

fn an_id_token_that_proves_nothing_signs_nobody_in(engine: Engine) {
    let (provider, server) = begin(engine, &[]);
    let sign_in = |claims: &Value| Browser::default().sign_in(&server, claims);
    assert_eq!(sign_in(&ann(&[])).status, 303);
    let known = provider.prepare(&json!({}));
    let earlier = known["id_token"].as_str().unwrap().to_owned();
    let forge = |token: &str| provider.prepare(&json!({ "id_token": token }));
    let logged = |words: &str| {
        wait_for(words, || server.log().contains(words).then_some(()));
    };
    // Of an earlier sign-in.
    forge(&earlier);
    refused(&sign_in(&ann(&[])), 502, "not valid");
    logged("nonce");
    // With another's words under its signature.
    let mut parts: Vec<&str> = earlier.split('.').collect();
    let changed = format!("{}A", &parts[1][..parts[1].len() - 1]);
    parts[1] = &changed;
    forge(&parts.join("."));
    refused(&sign_in(&ann(&[])), 502, "not valid");
    // Signed by nobody.
    forge(&format!(
        "eyJhbGciOiJub25lIn0.{}.",
        earlier.split('.').nth(1).unwrap()
    ));
    refused(&sign_in(&ann(&[])), 502, "not valid");
    // Of another provider that has the same keys, and for another client.
    let other = Provider::start();
    other.prepare(&json!({ "key": known["key"] }));
    let more = [("PICLOUD_OIDC_CLIENT_ID", "another")];
    let for_other = Server::start_with(engine, options(&other, &more));
    other.serve(&for_other);
    assert_eq!(
        Browser::default().sign_in(&for_other, &ann(&[])).status,
        303
    );
    let token = other.prepare(&json!({}))["id_token"]
        .as_str()
        .unwrap()
        .to_owned();
    forge(&token);
    refused(&sign_in(&ann(&[])), 502, "not valid");
    logged("issuer");
    let for_another = Server::start_with(engine, options(&provider, &more));
    provider.prepare(&json!({ "id_token": null }));
    provider.serve(&for_another);
    assert_eq!(
        Browser::default().sign_in(&for_another, &ann(&[])).status,
        303
    );
    let token = provider.prepare(&json!({}))["id_token"]
        .as_str()
        .unwrap()
        .to_owned();
    provider.serve(&server);
    forge(&token);
    refused(&sign_in(&ann(&[])), 502, "not valid");
    logged("audience");
    // One that ended by the server's clock.
    provider.prepare(&json!({ "id_token": null }));
    let late = Options {
        clock: Some("+2h"),
        ..options(&provider, &[])
    };
    let late = Server::start_with(engine, late);
    provider.serve(&late);
    refused(
        &Browser::default().sign_in(&late, &ann(&[])),
        502,
        "not valid",
    );
    assert!(late.log().contains("Expired"), "{}", late.log());
}

fn who_may_not_does_not(engine: Engine) {
    let more = [
        ("PICLOUD_OIDC_DEFAULT_ROLE", "none"),
        ("PICLOUD_OIDC_LINK_VERIFIED_EMAIL", "true"),
    ];
    let (provider, mut server) = begin(engine, &more);
    let (bob, _) = server.join("bob@example.com", "member", json!({}));
    let sign_in = |server: &Server, claims: &Value| {
        let mut browser = Browser::default();
        (browser.sign_in(server, claims), browser)
    };
    // None of their groups is known.
    let (answer, _) = sign_in(&server, &ann(&["others"]));
    refused(&answer, 403, "none of your groups");
    // The name of somebody who signs in otherwise is theirs, unless their address is verified.
    let bobs = |verified: bool| {
        json!({ "sub": "id-of-bob", "preferred_username": "bob@example.com", "email": "bob@example.com",
                "email_verified": verified, "groups": ["ops"] })
    };
    refused(&sign_in(&server, &bobs(false)).0, 409, "bob@example.com");
    let (answer, browser) = sign_in(&server, &bobs(true));
    assert_eq!(answer.status, 303, "{}", answer.text());
    let linked = me(&server, &browser);
    assert_eq!(
        (&linked["id"], &linked["role"]),
        (&json!(bob), &json!("admin"))
    );
    // Once linked, it is what the provider calls them that counts.
    assert_eq!(sign_in(&server, &bobs(false)).0.status, 303);
    // Who is disabled here stays so.
    let path = format!("/users/{bob}");
    assert_eq!(
        server
            .api("PATCH", &path, Some(json!({ "disabled": true })))
            .status,
        200
    );
    refused(&sign_in(&server, &bobs(true)).0, 403, "is disabled");
    // The last owner stays owner.
    let (answer, browser) = sign_in(&server, &ann(&["bosses"]));
    assert_eq!(answer.status, 303, "{}", answer.text());
    let owner = me(&server, &browser);
    assert_eq!(owner["role"], "owner");
    let password_owner = server.api("GET", "/auth/me", None).json();
    let path = format!("/users/{}", password_owner["id"].as_str().unwrap());
    assert_eq!(
        server
            .api("PATCH", &path, Some(json!({ "role": "admin" })))
            .status,
        200
    );
    let (answer, browser) = sign_in(&server, &ann(&["ops"]));
    assert_eq!(answer.status, 303, "{}", answer.text());
    assert_eq!(me(&server, &browser)["role"], "owner");
    // Nobody new, where users are not made so.
    let none_made = [("PICLOUD_OIDC_CREATE_USERS", "false")];
    server.set_environment(options(&provider, &none_made).environment);
    server.kill();
    server.launch();
    provider.serve(&server);
    let claims = json!({ "sub": "id-of-eve", "preferred_username": "eve" });
    refused(
        &sign_in(&server, &claims).0,
        403,
        "nobody here is known as you",
    );
    assert_eq!(sign_in(&server, &ann(&["ops"])).0.status, 303);
}

fn a_provider_that_is_away_or_new_is_told_of_and_asked_again(engine: Engine) {
    let (provider, server) = begin(engine, &[]);
    assert_eq!(Browser::default().sign_in(&server, &ann(&[])).status, 303);
    // It signs with other keys than it told of. They are asked for anew, though not at once again.
    let asked = std::time::Instant::now();
    provider.prepare(&json!({ "key": "new" }));
    wait_for("what it told to be old enough", || {
        (asked.elapsed() > std::time::Duration::from_secs(2)).then_some(())
    });
    assert_eq!(Browser::default().sign_in(&server, &ann(&[])).status, 303);
    // It goes away between the two halves of a sign-in.
    let mut browser = Browser::default();
    let callback = browser.until_callback(&server, &ann(&[]));
    let away = options(&provider, &[]);
    drop(provider);
    refused(&browser.open(&callback, None), 503, "cannot be reached");
    // An instance starts without it, and says so to programs, too.
    let server = Server::start_with(engine, away);
    let answer = server.get("/api/v1/auth/oidc/login");
    assert_eq!(
        (answer.status, answer.problem().as_str()),
        (503, "oidc_unreachable")
    );
    assert!(
        server
            .log()
            .contains("the OpenID provider cannot be reached")
    );
    // And one that has none has nothing to say.
    let server = Server::start(engine);
    let shown = server.get("/api/v1/auth/oidc").json();
    assert_eq!(shown, json!({ "enabled": false, "name": null }));
    for path in [
        "/api/v1/auth/oidc/login",
        "/api/v1/auth/oidc/callback?code=a&state=b",
    ] {
        assert_eq!(server.get(path).problem(), "not_found");
    }
}
