//! Signing in from a browser: a cookie that only the dashboard can use.

use picloud_tests::{Answer, Engine, Options, Server, on_both_engines};
use serde_json::{Value, json};

on_both_engines!(
    a_browser_signs_in_with_a_cookie,
    other_pages_cannot_use_the_cookie,
    over_tls_the_cookie_is_for_tls_only,
    apps_neither_see_nor_set_nor_ride_the_cookie,
    with_an_admin_host_nothing_else_is_there_and_it_is_nowhere_else,
);

/// Sign in as a page does: the cookie as it is sent back, and the answer.
fn sign_in(server: &Server, headers: &[(&str, &str)]) -> (String, Answer) {
    let body = json!({ "name": "owner", "password": server.password(), "cookie": true });
    let body = body.to_string();
    let answer = server.call("POST", "/api/v1/auth/login", headers, Some(body.as_bytes()));
    assert_eq!(answer.status, 200, "{}", answer.text());
    (set_cookie(&answer), answer)
}

/// The name and value that an answer has a browser keep.
fn set_cookie(answer: &Answer) -> String {
    let set = answer.headers["set-cookie"].to_str().unwrap();
    set.split(';').next().unwrap().to_owned()
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

fn a_browser_signs_in_with_a_cookie(engine: Engine) {
    let server = Server::start(engine);
    let (cookie, answer) = sign_in(&server, &[("sec-fetch-site", "same-origin")]);
    let set = answer.headers["set-cookie"].to_str().unwrap();
    let (_, attributes) = set.split_once("; ").unwrap();
    assert_eq!(
        attributes.split("Max-Age=").next(),
        Some("Path=/api; "),
        "{set}"
    );
    assert!(attributes.ends_with("; HttpOnly; SameSite=Strict"), "{set}");
    assert!(cookie.starts_with("picloud=pcs_"), "{cookie}");
    let begun = answer.json();
    assert_eq!(begun["token"], Value::Null, "no page learns it");
    assert_eq!(begun["user"]["name"], "owner");
    let csrf = text(&begun["csrf_token"]);
    // Looking takes the cookie, changing the word against other pages too.
    let call = |method: &str, path: &str, more: &[(&str, &str)], body: Option<Value>| {
        let headers = [&[("cookie", cookie.as_str())], more].concat();
        let body = body.map(|body| body.to_string());
        let path = format!("/api/v1{path}");
        server.call(method, &path, &headers, body.as_ref().map(|b| b.as_bytes()))
    };
    let me = call("GET", "/auth/me", &[], None);
    assert_eq!(me.json()["name"], "owner");
    let app = json!({ "slug": "shop" });
    let none = call("POST", "/apps", &[], Some(app.clone()));
    assert_eq!((none.status, none.problem().as_str()), (403, "csrf"));
    let wrong = "0".repeat(csrf.len());
    let wrong = call(
        "POST",
        "/apps",
        &[("x-csrf-token", &wrong)],
        Some(app.clone()),
    );
    assert_eq!(wrong.problem(), "csrf");
    let good = [("x-csrf-token", csrf.as_str())];
    assert_eq!(call("POST", "/apps", &good, Some(app)).status, 201);
    assert_eq!(call("DELETE", "/apps/shop", &[], None).problem(), "csrf");
    // A page that was loaded anew asks for the word.
    let asked = call("GET", "/auth/csrf", &[("x-csrf-token", "fetch")], None);
    assert_eq!(asked.json()["csrf_token"], csrf.as_str());
    assert_eq!(asked.headers["cache-control"], "no-store");
    let unasked = call("GET", "/auth/csrf", &[], None);
    assert_eq!(unasked.problem(), "csrf", "another page can send this");
    // The word of one session is no good for another.
    let (other, _) = sign_in(&server, &[]);
    let headers = [("cookie", other.as_str()), ("x-csrf-token", csrf.as_str())];
    let crossed = server.call("DELETE", "/api/v1/apps/shop", &headers, None);
    assert_eq!(crossed.problem(), "csrf");
    // Who is invited may begin with a cookie as well.
    let link = server.api("POST", "/invitations", Some(json!({}))).json();
    let join = json!({ "token": link["token"], "name": "ada", "password": server.password(),
                       "cookie": true });
    let joined = server.post("/api/v1/auth/join", &join);
    assert_eq!(joined.status, 201, "{}", joined.text());
    assert_eq!(joined.json()["token"], Value::Null);
    assert!(set_cookie(&joined).starts_with("picloud=pcs_"));
    // Signing out ends the session and clears the cookie.
    assert_eq!(call("POST", "/auth/logout", &[], None).problem(), "csrf");
    let out = call("POST", "/auth/logout", &good, None);
    assert_eq!(out.status, 204);
    let cleared = out.headers["set-cookie"].to_str().unwrap();
    assert!(
        cleared.starts_with("picloud=; Path=/api; Max-Age=0;"),
        "{cleared}"
    );
    assert_eq!(call("GET", "/auth/me", &[], None).status, 401);
    // A bearer needs none of this.
    assert_eq!(server.api("DELETE", "/apps/shop", None).status, 204);
}

fn other_pages_cannot_use_the_cookie(engine: Engine) {
    let server = Server::start(engine);
    let (cookie, answer) = sign_in(&server, &[]);
    let csrf = text(&answer.json()["csrf_token"]);
    let own = server.url.clone();
    let call = |method: &str, path: &str, headers: &[(&str, &str)]| {
        let headers = [
            &[("cookie", cookie.as_str()), ("x-csrf-token", csrf.as_str())],
            headers,
        ];
        let body = (method == "POST").then_some(&b"{\"slug\": \"shop\"}"[..]);
        server.call(method, path, &headers.concat(), body)
    };
    for page in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("origin", "https://evil.test"),
        ("origin", "null"),
    ] {
        for (method, path) in [
            ("GET", "/api/v1/auth/me"),
            ("POST", "/api/v1/apps"),
            ("GET", "/api/v1/auth/csrf"),
        ] {
            let refused = call(method, path, &[page]);
            assert_eq!(refused.problem(), "csrf", "{page:?} {method} {path}");
        }
        // Nor may it sign somebody in as somebody else.
        let body = json!({ "name": "owner", "password": server.password(), "cookie": true });
        let body = body.to_string();
        let login = server.call("POST", "/api/v1/auth/login", &[page], Some(body.as_bytes()));
        assert_eq!(login.problem(), "csrf", "{page:?}");
    }
    for page in [
        ("sec-fetch-site", "same-origin"),
        ("sec-fetch-site", "none"),
        ("origin", own.as_str()),
    ] {
        assert_eq!(
            call("GET", "/api/v1/auth/me", &[page]).status,
            200,
            "{page:?}"
        );
    }
    // What somebody else put there is not taken for ours.
    let twice = format!("{cookie}; {cookie}");
    for odd in [
        twice.as_str(),
        "picloud=",
        "picloud=pcs_x",
        "picloud",
        "=",
        &"a=b; ".repeat(500),
    ] {
        let answer = server.call("GET", "/api/v1/auth/me", &[("cookie", odd)], None);
        assert_eq!(answer.status, 401, "{odd}: {}", answer.text());
    }
    let key = server.key(&server.token, "k", &["instance:admin"], None);
    let key = format!("picloud={key}");
    let answer = server.call("GET", "/api/v1/auth/me", &[("cookie", &key)], None);
    assert_eq!(answer.status, 401, "a key is no cookie");
    // What comes beside a bearer does not count.
    let bearer = format!("Bearer {}", server.token);
    let headers = [("cookie", "picloud=x"), ("authorization", bearer.as_str())];
    assert_eq!(
        server.call("GET", "/api/v1/auth/me", &headers, None).status,
        200
    );
}

fn over_tls_the_cookie_is_for_tls_only(engine: Engine) {
    let mut server = Server::start_with(
        engine,
        Options {
            environment: vec![("PICLOUD_TRUSTED_PROXIES", "127.0.0.1".to_owned())],
            ..Options::default()
        },
    );
    let tls = ("x-forwarded-proto", "https");
    let (cookie, answer) = sign_in(&server, &[tls]);
    assert!(cookie.starts_with("__Secure-picloud=pcs_"), "{cookie}");
    let set = answer.headers["set-cookie"].to_str().unwrap();
    assert!(
        set.ends_with("; HttpOnly; SameSite=Strict; Secure"),
        "{set}"
    );
    assert!(set.contains("; Path=/api; "), "{set}");
    let me = |headers: &[(&str, &str)]| server.call("GET", "/api/v1/auth/me", headers, None).status;
    assert_eq!(me(&[("cookie", &cookie), tls]), 200);
    assert_eq!(me(&[("cookie", &cookie)]), 401, "not without TLS");
    let plain = cookie.replace("__Secure-", "");
    assert_eq!(
        me(&[("cookie", &plain), tls]),
        401,
        "a page without TLS can set this one"
    );
    assert_eq!(me(&[("cookie", &plain)]), 200);
    let origin = server.url.clone();
    let headers = [
        ("cookie", cookie.as_str()),
        tls,
        ("origin", origin.as_str()),
    ];
    assert_eq!(
        me(&headers),
        403,
        "the same host without TLS is another origin"
    );
    // Where nobody is trusted, a header makes no TLS.
    server.set_environment(vec![]);
    server.kill();
    server.launch();
    assert!(sign_in(&server, &[tls]).0.starts_with("picloud="));
}

fn apps_neither_see_nor_set_nor_ride_the_cookie(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("shop");
    app.serve(
        "echo",
        r#"#{ statusCode: 200,
              headers: #{ "content-type": "text/html", "set-cookie": ["picloud=evil; Path=/api", "sid=1"],
                          "content-security-policy": "default-src 'self'" },
              body: ctx.request.headers.get("cookie") ?? "none" }"#,
    );
    let (cookie, _) = sign_in(&server, &[]);
    let call = |cookies: &str, host: &str| {
        let headers = [("cookie", cookies), ("host", host)];
        server.call("GET", "/echo", &headers, None)
    };
    let answer = call(&format!("theme=dark; {cookie}"), "any.test");
    assert_eq!(answer.text(), "theme=dark");
    assert_eq!(call(&cookie, "any.test").text(), "none");
    let all = |answer: &Answer, name: &str| -> Vec<String> {
        let values = answer.headers.get_all(name).iter();
        values
            .map(|value| value.to_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(all(&answer, "set-cookie"), ["sid=1"]);
    // Its pages get an origin of their own, whatever else they say.
    let policies = all(&answer, "content-security-policy");
    assert_eq!(policies[0], "default-src 'self'");
    assert!(policies[1].starts_with("sandbox "), "{policies:?}");
    assert!(!policies[1].contains("allow-same-origin"), "{policies:?}");
    // On a host of its own an app has its origin for itself, and nobody signs in there.
    let claim = server.api(
        "POST",
        "/apps/shop/domains",
        Some(json!({ "host": "shop.test" })),
    );
    assert_eq!(claim.status, 201, "{}", claim.text());
    let own = call(&cookie, "shop.test");
    assert_eq!(all(&own, "content-security-policy"), ["default-src 'self'"]);
    assert_eq!(own.text(), "none");
    let there = ("host", "shop.test");
    let metrics = |host: &str| server.call("GET", "/metrics", &[("host", host)], None);
    assert_eq!(metrics("shop.test").problem(), "not_found");
    let whole = metrics("any.test");
    assert_eq!(whole.status, 200);
    assert!(whole.text().contains("picloud_"), "{}", whole.text());
    let me = |headers: &[(&str, &str)]| server.call("GET", "/api/v1/auth/me", headers, None).status;
    assert_eq!(me(&[("cookie", &cookie), there]), 401);
    assert_eq!(me(&[("cookie", &cookie)]), 200);
    let bearer = format!("Bearer {}", server.token);
    assert_eq!(me(&[("authorization", &bearer), there]), 200);
    let body = json!({ "name": "owner", "password": server.password(), "cookie": true });
    let body = body.to_string();
    let login = server.call(
        "POST",
        "/api/v1/auth/login",
        &[there],
        Some(body.as_bytes()),
    );
    assert_eq!(login.problem(), "csrf");
    assert!(login.text().contains("admin_host"), "{}", login.text());
}

fn with_an_admin_host_nothing_else_is_there_and_it_is_nowhere_else(engine: Engine) {
    let mut server = Server::start(engine);
    let app = server.app("shop");
    app.serve(
        "page",
        r#"#{ statusCode: 200, headers: #{ "content-type": "text/plain" }, body: "hello" }"#,
    );
    server.set_environment(vec![
        ("PICLOUD_ADMIN_HOST", "Admin.own.test".to_owned()),
        ("PICLOUD_TRUSTED_PROXIES", "127.0.0.1".to_owned()),
    ]);
    server.kill();
    server.launch();
    let on = |host: &str, path: &str| server.call("GET", path, &[("host", host)], None);
    for path in ["/api/v1/auth/me", "/api/v1", "/api", "/admin", "/admin/"] {
        assert_eq!(on("admin.own.test", "/page").status, 404);
        let elsewhere = on("any.test", path);
        assert_eq!(
            (elsewhere.status, elsewhere.problem().as_str()),
            (404, "not_found")
        );
    }
    assert_eq!(on("admin.own.test:8080", "/api/v1/auth/me").status, 401);
    assert_eq!(
        on("admin.own.test", "/admin").status,
        308,
        "to the dashboard"
    );
    let page = on("any.test", "/page");
    assert_eq!((page.status, page.text().as_str()), (200, "hello"));
    assert!(!page.headers.contains_key("content-security-policy"));
    assert_eq!(on("any.test", "/readyz").status, 200, "probes know no host");
    for path in ["/metrics", "/version"] {
        assert_eq!(on("any.test", path).status, 404);
        assert_eq!(on("admin.own.test", path).status, 200);
    }
    let here = ("host", "admin.own.test");
    let tls = ("x-forwarded-proto", "https");
    let (cookie, answer) = sign_in(&server, &[here, tls]);
    assert!(cookie.starts_with("__Host-picloud=pcs_"), "{cookie}");
    let set = answer.headers["set-cookie"].to_str().unwrap();
    assert!(
        set.contains("; Path=/; ") && set.ends_with("; Secure"),
        "{set}"
    );
    let csrf = text(&answer.json()["csrf_token"]);
    let claim = |host: &str| {
        let headers = [
            here,
            tls,
            ("cookie", cookie.as_str()),
            ("x-csrf-token", csrf.as_str()),
            ("origin", "https://admin.own.test"),
        ];
        let body = json!({ "host": host }).to_string();
        server.call(
            "POST",
            "/api/v1/apps/shop/domains",
            &headers,
            Some(body.as_bytes()),
        )
    };
    let refused = claim("admin.own.test");
    assert_eq!(
        (refused.status, &refused.json()["field"]),
        (422, &json!("hosts"))
    );
    // Around it is fine: the instance goes before.
    assert_eq!(claim("*.own.test").status, 201);
    assert_eq!(on("admin.own.test", "/page").status, 404);
    assert_eq!(on("any.own.test", "/page").status, 200);
}
