//! Who may have a host, and what is kept from pages that share one with the dashboard.

use picloud_tests::{Engine, Server, on_both_engines};
use serde_json::{Value, json};

on_both_engines!(
    a_host_that_is_nobodys_alone_is_given_to_no_app,
    whoever_may_not_give_a_host_asks_for_it,
    nobody_signs_in_by_cookie_where_an_app_ever_was,
    an_app_says_nothing_for_a_host_that_it_shares,
);

fn a_host_that_is_nobodys_alone_is_given_to_no_app(engine: Engine) {
    let server = Server::start(engine);
    server.app("a");
    for host in [
        "localhost",
        "*.localhost",
        "127.0.0.1",
        "::1",
        "*.com",
        "co.uk",
        "intranet",
    ] {
        let claim = server.api("POST", "/apps/a/domains", Some(json!({ "host": host })));
        assert_eq!(claim.status, 422, "{host}: {}", claim.text());
        assert_eq!(claim.json()["field"], "hosts");
        let hosts = json!({ "hosts": [host] });
        assert_eq!(server.api("PATCH", "/apps/a", Some(hosts)).status, 422);
        let new = json!({ "slug": "b", "hosts": [host] });
        assert_eq!(server.api("POST", "/apps", Some(new)).status, 422);
    }
    let fine = json!({ "host": "a.example.com" });
    let claim = server.api("POST", "/apps/a/domains", Some(fine));
    assert_eq!(claim.status, 201, "{}", claim.text());
    assert_eq!(claim.json()["state"], "claimed");
}

fn domains(server: &Server, app: &str) -> Vec<(String, String)> {
    let list = server.api("GET", &format!("/apps/{app}/domains"), None);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let items = list.json()["items"].as_array().cloned().unwrap();
    let items = items.iter();
    let pairs = items.map(|item| (text(&item["host"]), text(&item["state"])));
    pairs.collect()
}

fn whoever_may_not_give_a_host_asks_for_it(engine: Engine) {
    let server = Server::start(engine);
    server.app("a").serve("s", "\"a\"");
    server.app("b");
    let (_, member) = server.join("ada", "member", json!({ "a": "app_admin" }));
    let ask = |host: &str| {
        let body = Some(json!({ "host": host }));
        server.api_as(&member, "POST", "/apps/a/domains", body)
    };
    for _ in 0..2 {
        let asked = ask("a.example.com");
        assert_eq!(asked.status, 201, "{}", asked.text());
        assert_eq!(asked.json()["state"], "asked");
    }
    assert_eq!(ask("localhost").status, 422);
    let own = |host: &str| (host.to_owned(), "asked".to_owned());
    assert_eq!(domains(&server, "a"), [own("a.example.com")]);
    assert_eq!(
        server.api("GET", "/apps/a", None).json()["hosts"],
        json!([])
    );
    // Nor by another way.
    let change = json!({ "hosts": ["a.example.com"] });
    let refused = server.api_as(&member, "PATCH", "/apps/a", Some(change.clone()));
    assert_eq!(
        (refused.status, &refused.json()["field"]),
        (403, &json!("hosts"))
    );
    // What is asked for keeps nobody else from it.
    let other = json!({ "host": "c.example.com" });
    ask("c.example.com");
    assert_eq!(
        server.api("POST", "/apps/b/domains", Some(other)).status,
        201
    );
    // It can be taken back.
    let path = "/apps/a/domains/c.example.com";
    assert_eq!(server.api_as(&member, "DELETE", path, None).status, 204);
    // Who manages the instance gives it, and it is not asked for any more.
    let given = server.api(
        "POST",
        "/apps/a/domains",
        Some(json!({ "host": "a.example.com" })),
    );
    assert_eq!(
        (given.status, &given.json()["state"]),
        (201, &json!("claimed"))
    );
    let claimed = |host: &str| (host.to_owned(), "claimed".to_owned());
    assert_eq!(domains(&server, "a"), [claimed("a.example.com")]);
    // What the app has stays its own to keep and to give up.
    let kept = server.api_as(&member, "PATCH", "/apps/a", Some(change));
    assert_eq!(kept.status, 200, "{}", kept.text());
    let none = json!({ "hosts": [] });
    assert_eq!(
        server
            .api_as(&member, "PATCH", "/apps/a", Some(none))
            .status,
        200
    );
    assert_eq!(domains(&server, "a"), []);
}

fn nobody_signs_in_by_cookie_where_an_app_ever_was(engine: Engine) {
    let server = Server::start(engine);
    server.app("a");
    let sign_in = |host: &str| {
        let body = json!({ "name": "owner", "password": server.password(), "cookie": true });
        let body = body.to_string();
        let headers = [("host", host)];
        server.call(
            "POST",
            "/api/v1/auth/login",
            &headers,
            Some(body.as_bytes()),
        )
    };
    let signed_in = sign_in("panel.example.com");
    assert_eq!(signed_in.status, 200, "{}", signed_in.text());
    let cookie = signed_in.headers["set-cookie"].to_str().unwrap().to_owned();
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let me = || {
        let headers = [("host", "panel.example.com"), ("cookie", cookie.as_str())];
        server.call("GET", "/api/v1/auth/me", &headers, None).status
    };
    assert_eq!(me(), 200);
    let host = json!({ "host": "*.example.com" });
    assert_eq!(
        server.api("POST", "/apps/a/domains", Some(host)).status,
        201
    );
    assert_eq!(
        (me(), sign_in("panel.example.com").problem().as_str()),
        (401, "csrf")
    );
    let path = "/apps/a/domains/*.example.com";
    assert_eq!(server.api("DELETE", path, None).status, 204);
    // A service worker of the app's may still stand between the host's pages and us.
    let refused = sign_in("panel.example.com");
    assert_eq!((me(), refused.problem().as_str()), (401, "csrf"));
    assert!(refused.text().contains("admin_host"), "{}", refused.text());
    assert_eq!(sign_in("other.example.org").status, 200);
}

fn an_app_says_nothing_for_a_host_that_it_shares(engine: Engine) {
    const WHOLE: [&str; 5] = [
        "clear-site-data",
        "strict-transport-security",
        "nel",
        "report-to",
        "service-worker-allowed",
    ];
    let server = Server::start(engine);
    let app = server.app("a");
    let headers = WHOLE.map(|name| format!("\"{name}\": \"x\""));
    let source = format!(
        "#{{ statusCode: 200, headers: #{{ \"x-own\": \"1\", {} }}, body: \"x\" }}",
        headers.join(", ")
    );
    app.serve("s", &source);
    let call = |headers: &[(&str, &str)]| server.call("GET", "/s", headers, None);
    let shared = call(&[]);
    assert_eq!(shared.headers["x-own"], "1");
    assert!(WHOLE.iter().all(|name| !shared.headers.contains_key(*name)));
    let worker = call(&[("service-worker", "script")]);
    assert_eq!(
        (worker.status, worker.problem().as_str()),
        (403, "forbidden")
    );
    let host = json!({ "host": "a.example.com" });
    assert_eq!(
        server.api("POST", "/apps/a/domains", Some(host)).status,
        201
    );
    let own = ("host", "a.example.com");
    let alone = call(&[own]);
    assert!(WHOLE.iter().all(|name| alone.headers.contains_key(*name)));
    assert_eq!(call(&[own, ("service-worker", "script")]).status, 200);
}
