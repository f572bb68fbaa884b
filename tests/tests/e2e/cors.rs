//! Which pages of other origins may call a route.

use picloud_tests::{Answer, App, Engine, Options, Server, fine, on_both_engines};
use serde_json::{Value, json};

on_both_engines!(
    a_preflight_is_answered_without_a_script,
    every_answer_says_who_may_read_it,
    without_a_policy_nothing_is_said_and_scripts_say_what_they_like,
    a_policy_that_no_route_can_have_is_refused_with_what_to_do,
    the_command_line_gives_a_policy_and_takes_it_away,
);

const SHOP: &str = "https://shop.example.com";
const OTHER: &str = "https://other.example.com";

/// All values of a header, in one text.
fn of(answer: &Answer, name: &str) -> String {
    let values = answer.headers.get_all(name).iter();
    let values: Vec<&str> = values.map(|value| value.to_str().unwrap()).collect();
    values.join(" | ")
}

fn preflight(server: &Server, path: &str, origin: &str, method: &str, names: &str) -> Answer {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", method),
        ("access-control-request-headers", names),
    ];
    server.call("OPTIONS", path, &headers, None)
}

/// What a preflight says of origin, methods, headers, credentials and time.
fn told(answer: &Answer) -> [String; 5] {
    assert_eq!(answer.status, 204, "{}", answer.text());
    assert_eq!(of(answer, "vary"), "origin");
    [
        "allow-origin",
        "allow-methods",
        "allow-headers",
        "allow-credentials",
        "max-age",
    ]
    .map(|name| of(answer, &format!("access-control-{name}")))
}

fn serve(app: &App<'_>, name: &str, route: &str, source: &str, cors: Value) -> Value {
    app.script(name, source);
    app.route_with(name, route, json!({ "cors": cors }))
}

fn a_preflight_is_answered_without_a_script(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    let made = serve(
        &app,
        "hello",
        "POST /hello",
        "1",
        json!({ "origins": [SHOP] }),
    );
    let whole = json!({
        "origins": [SHOP], "methods": null, "credentials": false, "max_age_s": 600,
        "headers": ["authorization", "content-type", "idempotency-key"],
        "exposed_headers": ["idempotency-ignored", "idempotency-replayed", "retry-after", "x-execution-id"],
    });
    assert_eq!(made["cors"], whole);
    let usual = "authorization, content-type, idempotency-key";
    assert_eq!(
        told(&preflight(&server, "/hello", SHOP, "POST", "content-type")),
        [SHOP, "POST", usual, "", "600"]
    );
    for stranger in [OTHER, "null", "https://shop.example.com.evil", ""] {
        let nothing = ["", "", "", "", ""];
        assert_eq!(
            told(&preflight(&server, "/hello", stranger, "POST", "")),
            nothing,
            "{stranger}"
        );
    }
    // All origins, any header, some methods of a route that takes all.
    let open =
        json!({ "origins": ["*"], "headers": ["*"], "methods": ["GET", "PUT"], "max_age_s": 0 });
    serve(&app, "open", "ANY /open/{x}", "1", open);
    assert_eq!(
        told(&preflight(
            &server,
            "/open/1",
            "null",
            "PUT",
            "x-a, authorization"
        )),
        ["null", "GET, PUT", "x-a, authorization", "", "0"]
    );
    // With cookies.
    let own = json!({ "origins": [OTHER, SHOP], "credentials": true, "headers": [] });
    serve(&app, "own", "ANY /own", "1", own);
    assert_eq!(
        told(&preflight(&server, "/own", SHOP, "DELETE", "")),
        [SHOP, "DELETE", "", "true", "600"]
    );
    // It is the route that the method to come takes which says so, before any route for OPTIONS;
    // where it says nothing, and where nobody asks for a page, that is served as ever.
    app.script("options", r#"#{ statusCode: 200, body: "options" }"#);
    app.route("options", "OPTIONS /own");
    app.route("options", "OPTIONS /hello");
    assert_eq!(preflight(&server, "/own", SHOP, "GET", "").status, 204);
    assert_eq!(preflight(&server, "/hello", SHOP, "POST", "").status, 204);
    assert!(app.executions("").is_empty(), "nothing ran");
    let by_script = preflight(&server, "/hello", SHOP, "PUT", "");
    assert_eq!(
        (by_script.status, by_script.json()),
        (200, json!("options"))
    );
    let plain = server.call("OPTIONS", "/own", &[("origin", SHOP)], None);
    assert_eq!((plain.status, plain.json()), (200, json!("options")));
    assert_eq!(of(&plain, "access-control-allow-origin"), "");
}

fn every_answer_says_who_may_read_it(engine: Engine) {
    let limit = [("PICLOUD_EXECUTIONS_MAX", "2".to_owned())];
    let options = Options {
        environment: limit.to_vec(),
        ..Options::default()
    };
    let server = Server::start_with(engine, options);
    let app = server.app("a");
    let cors = json!({ "origins": [SHOP], "exposed_headers": ["x-a", "x-b"] });
    let says = r#"#{ statusCode: 200, body: 1, headers: #{ "Access-Control-Allow-Origin": "https://evil",
                     "access-control-allow-credentials": "true", "vary": "accept" } }"#;
    serve(&app, "says", "ANY /says", says, cors.clone());
    serve(&app, "throws", "POST /throws", "throw 1", cors.clone());
    serve(&app, "slow", "GET /slow", "sleep(1); 1", cors.clone());
    let gone = app.script("gone", "1");
    app.route_with("gone", "GET /gone", json!({ "cors": cors }));
    let only = json!({ "origins": [SHOP], "methods": ["GET"], "credentials": true });
    app.route_with("says", "ANY /only", json!({ "cors": only }));
    let later = json!({ "dispatch_mode": "async", "cors": cors });
    app.route_with("says", "POST /later", later);
    let removed = server.api("DELETE", &format!("/scripts/{gone}"), None);
    assert_eq!(removed.status, 204);
    let call = |method: &str, path: &str, origin: &str, body: Option<&[u8]>| {
        server.call(method, path, &[("origin", origin)], body)
    };
    let read_by = |answer: &Answer| {
        assert!(of(answer, "vary").contains("origin"), "{}", answer.text());
        of(answer, "access-control-allow-origin")
    };
    let answers = [
        (200, call("GET", "/says", SHOP, None)),
        (200, call("HEAD", "/says", SHOP, None)),
        (400, call("POST", "/says", SHOP, Some(b"{"))),
        (502, call("POST", "/throws", SHOP, None)),
        (404, call("GET", "/gone", SHOP, None)),
        (202, call("POST", "/later", SHOP, None)),
    ];
    for (status, answer) in &answers {
        assert_eq!(answer.status, *status, "{}", answer.text());
        assert_eq!(read_by(answer), SHOP, "{status}");
        assert_eq!(of(answer, "access-control-expose-headers"), "x-a, x-b");
        assert_eq!(of(answer, "access-control-allow-credentials"), "");
    }
    assert_eq!(of(&answers[0].1, "vary"), "accept | origin");
    let full: Vec<Answer> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..6)
            .map(|_| scope.spawn(|| call("GET", "/slow", SHOP, None)))
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert!(full.iter().any(|answer| answer.status == 503));
    assert!(full.iter().all(|answer| read_by(answer) == SHOP));
    // Of strangers, and of what is no page, the same but for that; what the script says of it does not count.
    for answer in [
        call("GET", "/says", OTHER, None),
        call("POST", "/throws", "null", None),
        server.get("/says"),
    ] {
        assert_eq!(read_by(&answer), "", "{}", answer.text());
    }
    let only = |method: &str| call(method, "/only", SHOP, None);
    assert_eq!(read_by(&only("GET")), SHOP);
    assert_eq!(of(&only("GET"), "access-control-allow-credentials"), "true");
    assert_eq!(read_by(&only("POST")), "");
}

fn without_a_policy_nothing_is_said_and_scripts_say_what_they_like(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.serve(
        "own",
        r#"#{ statusCode: 200, body: ctx.request.method, headers: #{ "access-control-allow-origin": "*" } }"#,
    );
    app.script("plain", "1");
    let plain = app.route("plain", "GET /plain");
    assert_eq!(plain["cors"], Value::Null);
    let answer = preflight(&server, "/own", SHOP, "GET", "");
    assert_eq!((answer.status, answer.json()), (200, json!("OPTIONS")));
    assert_eq!(of(&answer, "access-control-allow-origin"), "*");
    let answer = preflight(&server, "/plain", SHOP, "GET", "");
    assert_eq!(answer.status, 405);
    let read = server.call("GET", "/plain", &[("origin", SHOP)], None);
    for answer in [answer, read] {
        let names = answer.headers.keys().map(|name| name.as_str());
        let said: Vec<&str> = names
            .filter(|name| name.starts_with("access-control") || *name == "vary")
            .collect();
        assert!(said.is_empty(), "{said:?}");
    }
}

fn a_policy_that_no_route_can_have_is_refused_with_what_to_do(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    let id = serve(&app, "s", "GET /s", "1", json!({ "origins": [SHOP] }))["id"].clone();
    let path = format!("/routes/{}", id.as_str().unwrap());
    for (change, field, words) in [
        (json!({ "cors": {} }), "origins", "missing field"),
        (
            json!({ "cors": { "origins": [] } }),
            "cors.origins",
            "`\"cors\": null`",
        ),
        (
            json!({ "cors": { "origins": [SHOP, "https://shop.example.com/"] } }),
            "cors.origins[1]",
            "it has a path",
        ),
        (
            json!({ "cors": { "origins": ["null"] } }),
            "cors.origins[0]",
            "`*` for all",
        ),
        (
            json!({ "cors": { "origins": ["*"], "credentials": true } }),
            "cors.credentials",
            "list them by name in cors.origins, or set cors.credentials to false",
        ),
        (
            json!({ "cors": { "origins": ["*"], "methods": ["PUT"] } }),
            "cors.methods",
            "the route takes GET and no PUT",
        ),
        (
            json!({ "cors": { "origins": ["*"], "headers": ["a\r\nb"] } }),
            "cors.headers",
            "no name of a header",
        ),
        (
            json!({ "cors": { "origins": ["*"], "max_age_s": 90_000 } }),
            "cors.max_age_s",
            "86400",
        ),
        (
            json!({ "cors": { "origins": ["*"], "max_age": 1 } }),
            "max_age",
            "unknown field",
        ),
    ] {
        let refused = server.api("PATCH", &path, Some(change.clone()));
        let problem = refused.json();
        assert_eq!(refused.status, 422, "{change}: {problem}");
        assert_eq!(problem["field"], field, "{change}: {problem}");
        assert!(
            problem["detail"].as_str().unwrap().contains(words),
            "{problem}"
        );
    }
    // A method that leaves the policy's behind is refused, too; one with it is not.
    let patch = |change: Value| server.api("PATCH", &path, Some(change));
    assert_eq!(
        patch(json!({ "cors": { "origins": ["*"], "methods": ["GET"] } })).status,
        200
    );
    assert_eq!(
        patch(json!({ "method": "POST" })).json()["field"],
        "cors.methods"
    );
    // What is left out stays; null takes it away.
    assert_eq!(
        patch(json!({ "dispatch_mode": "sync" })).json()["cors"]["origins"],
        json!(["*"])
    );
    assert_eq!(patch(json!({ "cors": null })).json()["cors"], Value::Null);
    assert_eq!(preflight(&server, "/s", SHOP, "GET", "").status, 405);
}

fn the_command_line_gives_a_policy_and_takes_it_away(engine: Engine) {
    let server = Server::start(engine);
    server.app("a");
    std::fs::write(server.folder().join("hello.rhai"), "1").unwrap();
    let deploy = |more: &[&str]| {
        let words = [
            "deploy",
            "hello.rhai",
            "--app",
            "a",
            "--route",
            "GET /hello",
            "--json",
        ];
        let made = fine(server.cli(&[&words, more].concat()));
        let made: Value = serde_json::from_str(&made).unwrap();
        let route = &made["routes"][0];
        (route["change"].clone(), route["route"].clone())
    };
    let given = [
        "--cors-origin",
        SHOP,
        "--cors-origin",
        OTHER,
        "--cors-credentials",
    ];
    let (change, route) = deploy(&given);
    assert_eq!(
        (change, &route["cors"]["origins"]),
        (json!("created"), &json!([SHOP, OTHER]))
    );
    assert_eq!(route["cors"]["credentials"], true);
    assert_eq!(deploy(&given).0, "unchanged");
    // Who says nothing of it changes nothing of it.
    assert_eq!(deploy(&[]).0, "unchanged");
    let (change, route) = deploy(&[
        "--cors-origin",
        "*",
        "--cors-header",
        "x-a",
        "--cors-max-age-s",
        "5",
    ]);
    assert_eq!(
        (change, &route["cors"]["headers"]),
        (json!("updated"), &json!(["x-a"]))
    );
    let id = route["id"].as_str().unwrap();
    let (change, route) = deploy(&["--no-cors"]);
    assert_eq!((change, &route["cors"]), (json!("updated"), &Value::Null));
    let updated = server.cli(&["routes", "update", id, "--cors-origin", SHOP]);
    assert!(updated.status.success());
    assert_eq!(preflight(&server, "/hello", SHOP, "GET", "").status, 204);
    for (words, code, said) in [
        (&["--cors-origin", "shop"][..], 2, "no origin"),
        (&["--cors-credentials"], 2, "--cors-origin"),
        (&["--cors-origin", SHOP, "--no-cors"], 2, "cannot be used"),
        (&[], 2, "--no-cors"),
        (
            &["--cors-origin", "*", "--cors-credentials"],
            4,
            "cors.credentials",
        ),
    ] {
        let refused = server.cli(&[&["routes", "update", id], words].concat());
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(code), "{words:?}: {error}");
        assert!(error.contains(said), "{words:?}: {error}");
    }
}
