//! Which request goes to which script.

use std::process::Command;

use picloud_tests::{Engine, Server, on_both_engines};
use serde_json::json;

on_both_engines!(
    http_2_is_as_http_1_to_scripts,
    the_instances_own_paths_lead_to_no_app,
    a_transfer_coding_that_nobody_undoes_is_refused,
    the_most_specific_route_wins,
    a_conflicting_route_is_refused_and_names_the_other,
    an_unknown_method_is_405_with_allow,
    head_is_answered_with_the_length_alone,
    head_takes_the_route_that_get_would_take,
    what_has_no_body_has_no_length,
    a_slash_at_the_end_counts_or_is_redirected,
    a_coded_body_is_decoded_and_its_length_fits,
    a_form_is_read_whole_and_every_body_as_it_came,
    cookies_in_many_fields_are_one,
    several_apps_live_side_by_side_by_host,
    a_claim_does_not_go_while_routes_are_on_it,
    a_path_is_taken_as_it_was_sent,
    a_script_of_another_app_is_none,
    a_deleted_script_behind_a_live_route_is_404,
    a_deleted_app_is_gone,
);

fn the_most_specific_route_wins(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    for (name, route) in [
        ("literal", "GET /x/y"),
        ("param", "GET /x/{p}"),
        ("rest", "ANY /x/{*rest}"),
        ("any", "ANY /x/y"),
    ] {
        app.script(name, "ctx.script_name");
        app.route(name, route);
    }
    let who = |method: &str, path: &str| server.call(method, path, &[], None).json();
    assert_eq!(who("GET", "/x/y"), "literal");
    assert_eq!(who("GET", "/x/z"), "param");
    assert_eq!(who("GET", "/x/y/z"), "rest");
    assert_eq!(who("POST", "/x/y"), "any");
    assert_eq!(who("POST", "/x/z"), "rest");
}

fn a_conflicting_route_is_refused_and_names_the_other(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script("s", "1");
    let known = app.route("s", "GET /a/{x}");
    let body = json!({ "script": "s", "method": "GET", "path": "/a/{other}" });
    let refused = server.api("POST", "/apps/a/routes", Some(body));
    assert_eq!(
        (refused.status, refused.problem().as_str()),
        (409, "route_conflict")
    );
    assert_eq!(refused.json()["conflicting_route"]["id"], known["id"]);
    app.route("s", "POST /a/{other}");
    app.route_with("s", "GET /a/{x}", json!({ "host": "h.test" }));
}

fn an_unknown_method_is_405_with_allow(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script("s", "1");
    app.route("s", "POST /s");
    app.route("s", "PUT /s");
    let answer = server.get("/s");
    assert_eq!(
        (answer.status, answer.problem().as_str()),
        (405, "method_not_allowed")
    );
    assert_eq!(answer.headers["allow"], "POST, PUT");
    assert_eq!(server.get("/nothing").status, 404);
    let answer = server.call("DELETE", "/healthz", &[], None);
    assert_eq!(answer.problem(), "method_not_allowed");
    assert_eq!(answer.headers["allow"], "GET,HEAD");
}

fn head_is_answered_with_the_length_alone(engine: Engine) {
    let server = Server::start(engine);
    server.app("a").serve("s", "`some text`");
    for path in ["/s", "/nothing", "/healthz", "/api/v1/nothing"] {
        let url = format!("{}{path}", server.url);
        let length = format!("content-length: {}\r\n", server.get(path).text().len());
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            // A body that comes all the same is a failure to curl, over HTTP/2.
            let asked = Command::new("curl")
                .args(["-sSI", "--max-time", "10", version, &url])
                .output()
                .unwrap();
            assert!(asked.status.success(), "{path} {version}: {asked:?}");
            let head = String::from_utf8(asked.stdout).unwrap().to_lowercase();
            assert!(head.contains(&length), "{path} {version}: {head}");
        }
    }
    // Nobody knows how long a stream gets.
    let stream = server.api("HEAD", "/events", None);
    assert_eq!(stream.status, 200);
    assert!(!stream.headers.contains_key("content-length"));
}

fn http_2_is_as_http_1_to_scripts(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.serve("s", "ctx.request.header(\"host\")");
    let curl = |more: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "10", "--http2-prior-knowledge"]);
        let url = format!("{}/s", server.url);
        let answered = curl.args(more).arg(url).output().unwrap();
        String::from_utf8(answered.stdout).unwrap()
    };
    let host = server.url.trim_start_matches("http://");
    assert_eq!(curl(&[]), json!(host).to_string());
    // There a browser sends each cookie in a field of its own (RFC 9113, 8.2.3).
    app.serve("cookies", "ctx.request.headers.cookie");
    let mut cookies = Command::new("curl");
    cookies.args(["-sS", "--max-time", "10", "--http2-prior-knowledge"]);
    cookies.args(["-Hcookie: a=1", "-Hcookie: b=2; c=3", "-Hcookie: d=4"]);
    let answered = cookies.arg(format!("{}/cookies", server.url)).output();
    let answered = String::from_utf8(answered.unwrap().stdout).unwrap();
    assert_eq!(answered, "\"a=1; b=2; c=3; d=4\"");
    let many: Vec<String> = (0..101).map(|n| format!("-Hx-{n}: 1")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(curl(&many).contains("headers_too_large"));
}

fn the_instances_own_paths_lead_to_no_app(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script("s", "1");
    app.route("s", "ANY /{*rest}");
    assert_eq!(server.get("/else").status, 200);
    for path in [
        "/api/",
        "/healthz/x",
        "/metrics/x",
        "/readyz/x",
        "/version/x",
        "/realtime/",
        "/realtime/x",
    ] {
        assert_eq!(server.get(path).status, 404, "{path}");
        let path = format!("/apps/a/routes/match?path={path}&method=GET");
        assert_eq!(server.api("GET", &path, None).json()["route"], json!(null));
    }
}

fn a_transfer_coding_that_nobody_undoes_is_refused(engine: Engine) {
    let server = Server::start(engine);
    server.app("a").serve("s", "ctx.request.raw_body");
    let head = "POST /s HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: ";
    let answer = server.raw(format!("{head}gzip, chunked\r\n\r\n0\r\n\r\n").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let body = json!({ "slug": "coded" }).to_string();
    let (path, body) = ("/api/v1/apps", gzip(body.as_bytes()));
    let token = format!("Bearer {}", server.token);
    let headers = [("authorization", &*token), ("content-encoding", "gzip")];
    let made = server.call("POST", path, &headers, Some(&body));
    assert_eq!(made.status, 201, "{}", made.text());
}

fn several_apps_live_side_by_side_by_host(engine: Engine) {
    let server = Server::start(engine);
    server.app("first").serve("s", "ctx.app_slug");
    server.app("second").serve("s", "ctx.app_slug");
    let call = |host: &str| server.call("GET", "/s", &[("host", host)], None).json();
    assert_eq!(
        call("anything.test"),
        "first",
        "the oldest app without hosts is the default"
    );
    let claim = |app: &str, hosts: serde_json::Value| {
        server.api(
            "PATCH",
            &format!("/apps/{app}"),
            Some(json!({ "hosts": hosts })),
        )
    };
    assert_eq!(
        claim("second", json!(["*.b.in.test", "b.in.test"])).status,
        200
    );
    assert_eq!(call("b.in.test"), "second");
    assert_eq!(call("x.y.B.in.test:8080"), "second");
    assert_eq!(call("notb.in.test"), "first");
    let taken = claim("first", json!(["b.in.test"]));
    assert_eq!(
        (taken.status, taken.problem().as_str()),
        (409, "host_taken")
    );
    // What overlaps is taken, too, either way round.
    for overlapping in ["x.b.in.test", "*.x.b.in.test", "*.in.test"] {
        let taken = claim("first", json!([overlapping]));
        assert_eq!(taken.problem(), "host_taken", "{overlapping}");
    }
    let body = json!({ "script": "s", "path": "/t", "host": "c.test" });
    let outside = server.api("POST", "/apps/second/routes", Some(body));
    assert_eq!(
        (outside.status, outside.json()["field"].clone()),
        (422, json!("host"))
    );
}

fn a_claim_does_not_go_while_routes_are_on_it(engine: Engine) {
    let server = Server::start(engine);
    server.app("other");
    let app = server.app("shop");
    app.script("s", "1");
    let domains = |method: &str, path: &str, body| {
        server.api(method, &format!("/apps/shop/domains{path}"), body)
    };
    for host in ["a.test", "*.b.test"] {
        let added = domains("POST", "", Some(json!({ "host": host })));
        assert_eq!(added.status, 201, "{}", added.text());
    }
    let body = json!({ "host": "c.b.test" });
    let taken = server.api("POST", "/apps/other/domains", Some(body));
    assert_eq!(taken.problem(), "host_taken");
    let bad = domains("POST", "", Some(json!({ "host": "http://x" })));
    assert_eq!((bad.status, &bad.json()["field"]), (422, &json!("host")));
    let listed = domains("GET", "", None).json();
    assert_eq!(
        listed["items"],
        json!([{ "host": "*.b.test", "state": "claimed" }, { "host": "a.test", "state": "claimed" }])
    );
    app.route_with("s", "GET /on-a", json!({ "host": "a.test" }));
    let on_b = app.route_with("s", "GET /on-b", json!({ "host": "x.b.test" }));
    let refused = domains("DELETE", "/*.b.test", None);
    assert_eq!(refused.problem(), "would_orphan_routes");
    let orphans = refused.json()["routes"].clone();
    assert_eq!(orphans.as_array().map(Vec::len), Some(1), "{orphans}");
    assert_eq!(orphans[0]["id"], on_b["id"]);
    let patch = |query: &str| {
        let body = json!({ "hosts": ["a.test"] });
        server.api("PATCH", &format!("/apps/shop{query}"), Some(body))
    };
    assert_eq!(patch("").problem(), "would_orphan_routes");
    assert_eq!(
        domains("GET", "", None).json(),
        listed,
        "nothing was changed"
    );
    assert_eq!(patch("?orphan=true").status, 200);
    assert_eq!(domains("DELETE", "/*.b.test", None).status, 404);
    let answer = server.call("GET", "/on-a", &[("host", "a.test")], None);
    assert_eq!(answer.status, 200);
}

fn a_path_is_taken_as_it_was_sent(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script("s", "[ctx.request.path, ctx.request.rest]");
    app.route("s", "GET /f/{*rest}");
    let seen = |path: &str| {
        let answer = server
            .raw(format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").as_bytes());
        answer
            .rsplit("\r\n\r\n")
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    assert_eq!(seen("/f/a%2Fb/../c"), r#"["/f/a%2Fb/../c","a/b/../c"]"#);
    assert_eq!(seen("/f/caf%C3%A9"), r#"["/f/caf%C3%A9","café"]"#);
    assert_eq!(seen("/f//x"), r#"["/f//x","/x"]"#);
    let long = format!("/f/{}", "x".repeat(8 * 1024));
    assert!(seen(&long).contains("xxxx"));
    assert!(seen("/f/%ff").contains("not UTF-8"));
    assert!(seen("/f/%zz").contains("%zz"));
    assert!(
        server
            .raw(format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(100_000)).as_bytes())
            .starts_with("HTTP/1.1 414")
    );
}

fn a_script_of_another_app_is_none(engine: Engine) {
    let server = Server::start(engine);
    let mine = server.app("mine").script("s", "1");
    server.app("other");
    let body = json!({ "script_id": mine, "path": "/steal" });
    let refused = server.api("POST", "/apps/other/routes", Some(body));
    assert_eq!(
        (refused.status, refused.problem().as_str()),
        (404, "not_found")
    );
    assert_eq!(server.api("GET", "/scripts/not-an-id", None).status, 404);
}

fn a_deleted_script_behind_a_live_route_is_404(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    let id = app.script("s", "1");
    app.route("s", "GET /s");
    assert_eq!(server.get("/s").status, 200);
    assert_eq!(
        server.api("DELETE", &format!("/scripts/{id}"), None).status,
        204
    );
    let answer = server.get("/s");
    assert_eq!(
        (answer.status, answer.problem().as_str()),
        (404, "not_found")
    );
}

fn a_deleted_app_is_gone(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.serve("slow", r#"sleep(1); kv::collection("c").has("k")"#);
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.get("/slow").status);
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(server.api("DELETE", "/apps/a", None).status, 204);
        waiting.join().unwrap()
    });
    assert_eq!(waiting, 200, "what runs already is let finish");
    assert_eq!(server.get("/slow").status, 404);
    assert_eq!(server.api("GET", "/apps/a", None).status, 404);
}

fn head_takes_the_route_that_get_would_take(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    for (name, route) in [
        ("get", "GET /x"),
        ("any", "ANY /x"),
        ("head", "HEAD /y"),
        ("get2", "GET /y"),
    ] {
        app.script(
            name,
            r#"#{ statusCode: 200, headers: #{ "x-who": ctx.script_name }, body: "x" }"#,
        );
        app.route(name, route);
    }
    let who = |method: &str, path: &str| {
        server.call(method, path, &[], None).headers["x-who"]
            .to_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(who("GET", "/x"), "get");
    assert_eq!(who("HEAD", "/x"), "get");
    assert_eq!(who("POST", "/x"), "any");
    assert_eq!(who("HEAD", "/y"), "head");
}

fn what_has_no_body_has_no_length(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    for status in [204, 205, 304] {
        let source = format!("#{{ statusCode: {status}, body: \"not to be seen\" }}");
        app.serve(&format!("s{status}"), &source);
        for method in ["GET", "HEAD"] {
            let answer = server.call(method, &format!("/s{status}"), &[], None);
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (status, ""),
                "{method}"
            );
            let length = answer.headers.get("content-length").cloned();
            // RFC 9110, 15.3.6: whoever reads a 205 is to see that nothing follows.
            let told = (method == "GET" && status == 205).then(|| "0".parse().unwrap());
            assert_eq!(length, told, "{method} {status}");
        }
    }
    // On the wire, the next answer begins where this one ends.
    let request = "GET /s205 HTTP/1.1\r\nHost: h\r\n\r\nGET /s204 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let raw = server.raw(request.as_bytes());
    assert!(!raw.contains("not to be seen"), "{raw}");
    assert_eq!(raw.matches("HTTP/1.1 20").count(), 2, "{raw}");
}

fn a_slash_at_the_end_counts_or_is_redirected(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.script("s", "ctx.request.path");
    app.route("s", "ANY /strict");
    let soft = json!({ "trailing_slash": "redirect" });
    let route = app.route_with("s", "ANY /soft/{x}", soft.clone());
    assert_eq!(route["trailing_slash"], "redirect");
    app.route_with("s", "ANY /folder/", soft.clone());
    app.route_with("s", "ANY /both", soft);
    app.route("s", "ANY /both/");
    let call = |path: &str| server.call("POST", path, &[], Some(b"1"));
    assert_eq!(call("/strict").status, 200);
    assert_eq!(call("/strict/").status, 404);
    for (path, found) in [
        ("/strict", "/strict"),
        ("/strict/", ""),
        ("/both/", "/both/"),
    ] {
        let path = format!("/apps/a/routes/match?method=POST&path={path}");
        let told = server.api("GET", &path, None).json();
        assert_eq!(
            told["route"]["path"].as_str().unwrap_or_default(),
            found,
            "{told}"
        );
    }
    for (path, to) in [
        ("/soft/a/?b=c&d", "/soft/a?b=c&d"),
        ("/soft/%2Fx/", "/soft/%2Fx"),
        ("/folder", "/folder/"),
    ] {
        let answer = call(path);
        assert_eq!(answer.status, 308, "{path}: {}", answer.text());
        assert_eq!(answer.headers["location"], to);
    }
    assert_eq!(call("/both/").json(), "/both/");
    assert_eq!(call("/soft/a").json(), "/soft/a");
    assert_eq!(call("//evil.test/").status, 404);
    assert_eq!(call("/").status, 404);
    // A page of another origin may follow: browsers ask before the first path, too.
    let open = json!({ "trailing_slash": "redirect", "cors": { "origins": ["*"] } });
    app.route_with("s", "POST /open", open);
    let origin = ("origin", "https://shop.test");
    let ask = [origin, ("access-control-request-method", "POST")];
    let asked = server.call("OPTIONS", "/open/", &ask, None);
    assert_eq!((asked.status, &*asked.text()), (204, ""));
    for answer in [asked, server.call("POST", "/open/", &[origin], Some(b"1"))] {
        assert_eq!(answer.headers["access-control-allow-origin"], origin.1);
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut gzip = Command::new("gzip")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    gzip.stdin.take().unwrap().write_all(bytes).unwrap();
    gzip.wait_with_output().unwrap().stdout
}

/// `{"hello":"hello … hello"}` with forty of them, as Node.js 20 codes it for `br`
/// (`zlib.brotliCompressSync`).
const BROTLI: &str =
    "1bfa00f81d09764ce237144f0c6519da5ee9f4358808db9b1644115e16930638904a37b51a049e01";
/// The same by `zstd -19 --no-check`, version 1.5.4.
const ZSTD: &str = "28b52ffd0068ad0000607b2268656c6c6f223a20227d0200e6142a0ef708";

fn a_coded_body_is_decoded_and_its_length_fits(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.serve(
        "s",
        r#"let h = ctx.request.headers;
           #{ body: ctx.request.body, length: h["content-length"], coding: h["content-encoding"] }"#,
    );
    let body = json!({ "hello": "hello ".repeat(40).trim_end() }).to_string();
    let call = |coding: &str, bytes: &[u8]| {
        let headers = [
            ("content-type", "application/json"),
            ("content-encoding", coding),
        ];
        server.call("POST", "/s", &headers, Some(bytes))
    };
    let zipped = gzip(body.as_bytes());
    let [brotli, zstd] = [BROTLI, ZSTD].map(|coded| hex::decode(coded).unwrap());
    for (coding, bytes) in [
        ("GZip", zipped.clone()),
        ("x-gzip", zipped.clone()),
        ("gzip, identity", zipped.clone()),
        ("gzip, gzip", gzip(&zipped)),
        ("br", brotli.clone()),
        ("Zstd", zstd.clone()),
        ("br, gzip", gzip(&brotli)),
    ] {
        let answer = call(coding, &bytes);
        assert_eq!(answer.status, 200, "{coding}: {}", answer.text());
        let seen = answer.json();
        assert_eq!(
            seen["body"],
            serde_json::from_str::<serde_json::Value>(&body).unwrap()
        );
        assert_eq!(seen["length"], body.len().to_string());
        assert_eq!(seen["coding"], json!(null), "{coding}");
    }
    // What ends too early is no shorter body.
    for (coding, bytes) in [("gzip", &zipped), ("br", &brotli), ("zstd", &zstd)] {
        for bytes in [&bytes[..bytes.len() - 3], body.as_bytes()] {
            let refused = call(coding, bytes);
            assert_eq!(refused.status, 400, "{coding}: {}", refused.text());
        }
    }
    let refused = call("compress", body.as_bytes());
    assert_eq!(
        (refused.status, refused.problem().as_str()),
        (415, "unsupported_media_type")
    );
    assert_eq!(refused.headers["accept-encoding"], "gzip, br, zstd");
}

fn cookies_in_many_fields_are_one(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.serve("s", "ctx.request.headers.cookie");
    let cookies = [
        ("cookie", "a=1"),
        ("cookie", "b=2; c=3"),
        ("cookie", "picloud=pcs_x"),
    ];
    assert_eq!(
        server.call("GET", "/s", &cookies, None).json(),
        "a=1; b=2; c=3"
    );
}

fn a_form_is_read_whole_and_every_body_as_it_came(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.serve(
        "form",
        r#"#{ tags: ctx.request.form_all("tag"), none: ctx.request.form_all("other"),
              last: ctx.request.body.tag, raw: ctx.request.raw_body.as_string() }"#,
    );
    let form = "tag=a&x=1&tag=b+c&tag=&tag=%C3%A9%26";
    let typed = |ty| [("content-type", ty)];
    for ty in [
        "application/x-www-form-urlencoded",
        "Application/X-WWW-Form-Urlencoded; charset=utf-8",
    ] {
        let answer = server.call("POST", "/form", &typed(ty), Some(form.as_bytes()));
        let seen = json!({ "tags": ["a", "b c", "", "é&"], "none": [], "last": "é&", "raw": form });
        assert_eq!(answer.json(), seen, "{ty}: {}", answer.text());
    }
    // What a signature is of: not one byte is otherwise, whatever the type.
    app.serve("raw", "hex::encode(ctx.request.raw_body)");
    for (ty, body) in [
        (
            "application/json",
            &b" {\"b\": 1.0, \"a\":1e2,\"a\" :\"\\u00e9\"}\r\n"[..],
        ),
        ("text/plain; charset=utf-8", "é\r\n\u{feff}".as_bytes()),
        ("application/octet-stream", b"\0\xff\xfe"),
        ("image/png", b"\x89PNG"),
        ("application/x-www-form-urlencoded", b"a=%e9&&=;"),
    ] {
        let answer = server.call("POST", "/raw", &typed(ty), Some(body));
        assert_eq!(answer.json(), hex::encode(body), "{ty}: {}", answer.text());
    }
    app.serve("nothing", "ctx.request.raw_body == ()");
    assert_eq!(server.call("POST", "/nothing", &[], None).json(), true);
}
