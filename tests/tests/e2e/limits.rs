//! What a client may not do to the server: too much, too slowly, too many, two things at once.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use picloud_tests::{Engine, Options, Server, on_both_engines, report, wait_for};
use serde_json::json;

on_both_engines!(
    a_request_that_could_be_read_in_two_ways_is_refused,
    a_request_that_hides_in_another_is_never_run,
    what_is_too_large_is_refused_by_name,
    json_that_is_made_to_hurt_is_refused,
    who_keeps_us_waiting_is_let_go,
    one_address_may_not_take_all_connections,
    our_own_answers_tell_browsers_what_they_are,
    ten_thousand_attempts_at_signing_in_cost_little,
    forwarded_tells_who_called_where_a_proxy_of_ours_says_so,
);

fn start(engine: Engine, environment: &[(&'static str, &str)]) -> Server {
    Server::start_with(engine, Options::with(environment))
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

fn a_request_that_could_be_read_in_two_ways_is_refused(engine: Engine) {
    let server = start(engine, &[("PICLOUD_CLIENT_TIMEOUT_MS", "1000")]);
    server.app("a").serve("s", "ctx.request.body");
    // A second request hides in each body: it must never be answered.
    let hidden = "GET /version HTTP/1.1\r\nHost: h\r\n\r\n";
    for (what, head) in [
        (
            "both lengths",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "both, the other way",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        ),
        (
            "two lengths",
            "Content-Length: 0\r\nContent-Length: 39\r\n\r\n",
        ),
        ("a list of lengths", "Content-Length: 0, 39\r\n\r\n"),
        ("a signed length", "Content-Length: +0\r\n\r\n"),
        ("no length", "Content-Length: \r\n\r\n"),
        (
            "a huge length",
            "Content-Length: 99999999999999999999\r\n\r\n",
        ),
        ("a space before the colon", "Content-Length : 0\r\n\r\n"),
        ("a folded line", "X-A: 1\r\n Content-Length: 39\r\n\r\n"),
        (
            "chunked is not last",
            "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        ),
        (
            "another coding",
            "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        ),
        ("a zero byte", "X-A: \0\r\n\r\n"),
        (
            "a chunk without size",
            "Transfer-Encoding: chunked\r\n\r\n\r\n\r\n",
        ),
        (
            "a signed chunk",
            "Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        ),
        (
            "a huge chunk",
            "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n\r\n",
        ),
        (
            "two hosts",
            "Host: b\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        ),
        (
            "two codings",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "two codings, one of them nobody's",
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
    ] {
        let answer =
            server.raw(format!("POST /s HTTP/1.1\r\nHost: h\r\n{head}{hidden}").as_bytes());
        // RFC 9112, 6.3: chunks go before a length, and nothing may follow.
        let is_chunks = what.starts_with("both") && answer.contains("connection: close");
        assert!(
            answer.is_empty() || is_chunks || status(&answer) == "400",
            "{what}: {answer}"
        );
        assert!(!answer.contains("\"product\""), "{what}: {answer}");
    }
    for (what, request) in [
        ("no host", "GET /s HTTP/1.1\r\nConnection: close\r\n\r\n"),
        ("no host over HTTP/1.0", "GET /s HTTP/1.0\r\n\r\n"),
        ("no host, and the API", "GET /api/v1/setup HTTP/1.0\r\n\r\n"),
        ("a probe over HTTP/1.1", "GET /readyz HTTP/1.1\r\n\r\n"),
        (
            "another host in the target",
            "GET http://b/s HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        ),
    ] {
        assert_eq!(status(&server.raw(request.as_bytes())), "400", "{what}");
    }
    for host in [
        "user@h",
        "user:password@h",
        "a,b",
        "a, b",
        "a b",
        "h:80:90",
        "h:http",
        "h/",
        "h?x",
        "[::1",
        "[h]",
        "[::1]x",
        "h\u{e9}",
    ] {
        let request = format!("GET /s HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        assert_eq!(status(&server.raw(request.as_bytes())), "400", "{host}");
    }
    let in_target = "GET http://user@h/s HTTP/1.1\r\nHost: user@h\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&server.raw(in_target.as_bytes())), "400");
    for host in [
        "",
        "h",
        "h:",
        "H.test.:8080",
        "127.0.0.1",
        "[::1]:80",
        "a_b-c~d",
    ] {
        let request = format!("GET /s HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        assert_eq!(status(&server.raw(request.as_bytes())), "200", "{host}");
    }
    for fine in [
        "GET http://h/s HTTP/1.1\r\nHost: H\r\nConnection: close\r\n\r\n",
        "GET /s HTTP/1.0\r\nHost: h\r\n\r\n",
        "GET http://h/s HTTP/1.0\r\n\r\n",
        // As proxies probe.
        "GET /readyz HTTP/1.0\r\n\r\n",
        "GET /healthz HTTP/1.0\r\n\r\n",
    ] {
        assert_eq!(status(&server.raw(fine.as_bytes())), "200", "{fine}");
    }
}

/// A proxy in front may go by the length where we go by the chunks, or the other way round. RFC 9112,
/// 6.3, lets a server take such a request by its chunks if it closes the connection after it.
fn a_request_that_hides_in_another_is_never_run(engine: Engine) {
    let server = start(engine, &[("PICLOUD_CLIENT_TIMEOUT_MS", "1000")]);
    let app = server.app("a");
    app.serve("s", "ctx.request.body");
    app.serve("hidden", "1");
    let hidden = "POST /hidden HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n";
    let size = hidden.len();
    let after = format!("0\r\n\r\n{hidden}");
    let within = format!("{size:x}\r\n{hidden}\r\n0\r\n\r\n");
    let (all, first_line) = (after.len(), format!("{size:x}\r\n").len());
    for (lengths, body, may_run) in [
        (
            format!("Content-Length: {all}\r\nTransfer-Encoding: chunked"),
            &after,
            true,
        ),
        (
            format!("Transfer-Encoding: chunked\r\nContent-Length: {all}"),
            &after,
            true,
        ),
        (
            format!("Transfer-Encoding: chunked\r\nContent-Length: {first_line}"),
            &within,
            true,
        ),
        (
            format!("Content-Length: {first_line}\r\nTransfer-Encoding: chunked"),
            &within,
            true,
        ),
        (
            format!("Content-Length: {all}\r\nTransfer-Encoding : chunked"),
            &after,
            false,
        ),
        (
            format!("Content-Length: {first_line}\r\nTransfer-Encoding: xchunked"),
            &within,
            false,
        ),
        (
            format!("Content-Length: {first_line}\r\nTransfer-Encoding: chunked, identity"),
            &within,
            false,
        ),
        (
            format!("Content-Length: {first_line}\r\nTransfer-Encoding:\x0bchunked"),
            &within,
            false,
        ),
    ] {
        let request = format!(
            "POST /s HTTP/1.1\r\nHost: h\r\nContent-Type: text/plain\r\n{lengths}\r\n\r\n{body}"
        );
        let answer = server.raw(request.as_bytes());
        let answers = answer.matches("HTTP/1.1 ").count();
        assert_eq!(answers, 1, "{lengths:?}: {answer}");
        let expected = if may_run { "200" } else { "400" };
        assert_eq!(status(&answer), expected, "{lengths:?}: {answer}");
    }
    let script = server.api("GET", "/apps/a/scripts", None).json();
    let scripts = script["items"].as_array().unwrap().iter();
    let of_hidden = scripts.filter(|script| script["name"] == "hidden");
    let id = of_hidden
        .map(|script| script["id"].as_str().unwrap())
        .next();
    let run = app.executions(&format!("script_id={}", id.unwrap()));
    assert_eq!(run.len(), 0, "{run:?}");
    assert!(!app.executions("").is_empty());
}

fn what_is_too_large_is_refused_by_name(engine: Engine) {
    let server = Server::start(engine);
    server.app("a").serve("s", "1");
    let cookie = format!("a={}", "x".repeat(70_000));
    for path in ["/s", "/api/v1/auth/me", "/admin", "/readyz"] {
        let large = server.call("GET", path, &[("cookie", &cookie)], None);
        assert_eq!(
            (large.status, large.problem().as_str()),
            (431, "headers_too_large")
        );
        let long = server.get(&format!("{path}?q={}", "x".repeat(17_000)));
        assert_eq!(
            (long.status, long.problem().as_str()),
            (414, "uri_too_long")
        );
        let fits = server.call("GET", path, &[("cookie", &cookie[..60_000])], None);
        assert!([200, 308, 401].contains(&fits.status), "{}", fits.text());
    }
    // A body that says that it is too large is not read at all.
    let announced = server.raw(
        b"POST /s HTTP/1.1\r\nHost: h\r\nContent-Length: 4194305\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(status(&announced), "413", "{announced}");
}

fn json_that_is_made_to_hurt_is_refused(engine: Engine) {
    let server = Server::start(engine);
    server.app("a").serve("s", "ctx.request.body");
    let nested = |open: &str, close: &str, depth: usize| {
        format!("{}1{}", open.repeat(depth), close.repeat(depth))
    };
    for (what, body) in [
        ("deep lists", nested("[", "]", 1_000_000)),
        ("deep objects", nested("{\"a\":", "}", 300_000)),
        ("unclosed lists", "[".repeat(2_000_000)),
        ("a huge exponent", "1e999999999".to_owned()),
        ("a million digits", "9".repeat(1_000_000)),
        (
            "a million keys that are the same",
            format!("{{{}\"a\":1}}", "\"a\":1,".repeat(500_000)),
        ),
    ] {
        for (path, token) in [
            ("/s", ""),
            ("/api/v1/auth/login", ""),
            ("/api/v1/apps", &server.token),
        ] {
            let bearer = format!("Bearer {token}");
            let headers = [("authorization", bearer.as_str())];
            let answer = match server.try_call("POST", path, &headers, Some(body.as_bytes())) {
                Ok(answer) => answer,
                // What anybody may send is short: the rest is not waited for, and a client that
                // still sends may not see why.
                Err(_) if path == "/api/v1/auth/login" && body.len() > 64 << 10 => continue,
                Err(error) => panic!("{what} to {path}: {error}"),
            };
            // A script may take what is JSON, and then fails on its own limits.
            let script_failed = path == "/s" && [200, 502, 504, 507].contains(&answer.status);
            assert!(
                script_failed || [400, 413, 422].contains(&answer.status),
                "{what} {path}: {}",
                answer.status
            );
        }
    }
    // Also where a connection ended: the server goes on.
    assert_eq!(server.post("/s", &json!([1])).json(), json!([1]));
}

fn who_keeps_us_waiting_is_let_go(engine: Engine) {
    let server = start(engine, &[("PICLOUD_CLIENT_TIMEOUT_MS", "500")]);
    let app = server.app("a");
    app.serve("s", "1");
    app.script_with(
        "large",
        r#"let s = "0123456789abcdef"; while s.len() < 8_000_000 { s += s; } s"#,
        json!({ "output_bytes": 32 << 20 }),
    );
    app.route("large", "GET /large");
    let address = server.url.trim_start_matches("http://").to_owned();
    let said = |what: &str, bytes: &[u8]| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(bytes).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut answer = Vec::new();
        let started = Instant::now();
        let ended = stream.read_to_end(&mut answer);
        let is_silent = ended.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        assert!(
            !is_silent,
            "{what}: still open after {:?}",
            started.elapsed()
        );
        String::from_utf8_lossy(&answer).into_owned()
    };
    for (what, bytes) in [
        ("nothing", &b""[..]),
        ("a letter", b"P"),
        ("half a head", b"GET /s HTTP/1.1\r\nHost: h\r\nX-A"),
        ("half of HTTP/2's beginning", b"PRI * HTTP/2.0\r\n"),
    ] {
        let answer = said(what, bytes);
        assert!(
            answer.is_empty() || ["400", "408"].contains(&status(&answer)),
            "{what}: {answer}"
        );
    }
    for path in ["/s", "/api/v1/auth/login"] {
        let half = format!(
            "POST {path} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{{"
        );
        let answer = said("half a body", half.as_bytes());
        assert_eq!(status(&answer), "408", "{answer}");
        assert!(answer.contains("urn:picloud:problem:too_slow"), "{answer}");
    }
    // One that asks and is done is let go as well, after its answer.
    let idle = said("an idle one", b"GET /s HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(status(&idle), "200");
    // One that does not read what it asked for does not keep it.
    let mut deaf = TcpStream::connect(&address).unwrap();
    deaf.write_all(b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    wait_for("its execution", || {
        (!app.executions("limit=1").is_empty()).then_some(())
    });
    wait_for("the end of its connection", || {
        // The one that asks is there, too.
        (server.metric("picloud_connections") <= 1.0).then_some(())
    });
    // One that reads slowly and does read gets all of it.
    let mut slow = TcpStream::connect(&address).unwrap();
    slow.write_all(b"GET /large HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    slow.read_to_end(&mut answer).unwrap();
    assert!(
        answer.len() > 8_000_000,
        "{}",
        String::from_utf8_lossy(&answer[..500.min(answer.len())])
    );
}

fn one_address_may_not_take_all_connections(engine: Engine) {
    let server = start(engine, &[("PICLOUD_CONNECTIONS_PER_ADDRESS_MAX", "5")]);
    let address = server.url.trim_start_matches("http://").to_owned();
    let mut held: Vec<TcpStream> = Vec::new();
    // Those of the harness may still be closing.
    wait_for("five connections that are kept", || {
        while held.len() < 5 {
            held.push(TcpStream::connect(&address).unwrap());
        }
        held.retain_mut(|stream| {
            stream
                .set_read_timeout(Some(Duration::from_millis(100)))
                .unwrap();
            // Silence is a connection that is kept, an end one that was refused.
            stream.read(&mut [0]).is_err()
        });
        (held.len() == 5).then_some(())
    });
    assert!(server.try_call("GET", "/readyz", &[], None).is_err());
    held.pop();
    wait_for("a place", || {
        server.try_call("GET", "/readyz", &[], None).ok()
    });
    drop(held);
    wait_for("the count", || {
        let metrics = server.try_call("GET", "/metrics", &[], None).ok()?;
        metrics
            .text()
            .contains("picloud_connections_refused_total")
            .then_some(())
    });
}

fn our_own_answers_tell_browsers_what_they_are(engine: Engine) {
    let server = start(engine, &[("PICLOUD_TRUSTED_PROXIES", "127.0.0.1")]);
    server.app("a").serve("s", "1");
    let answer = |path: &str, headers: &[(&str, &str)]| server.call("GET", path, headers, None);
    let said = |path: &str, name: &str| {
        let answer = answer(path, &[]);
        let value = answer.headers.get(name);
        value
            .map(|value| value.to_str().unwrap().to_owned())
            .unwrap_or_default()
    };
    for path in [
        "/api/v1/auth/me",
        "/api/v1/setup",
        "/api/v1/nothing",
        "/api",
        "/admin",
    ] {
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
            ("strict-transport-security", ""),
        ] {
            assert_eq!(said(path, name), value, "{path} {name}");
        }
        let policy = said(path, "content-security-policy");
        assert!(
            policy.contains("frame-ancestors 'none'"),
            "{path}: {policy}"
        );
        let tls = answer(path, &[("x-forwarded-proto", "https")]);
        assert_eq!(tls.headers["strict-transport-security"], "max-age=31536000");
    }
    assert!(said("/admin", "content-security-policy").starts_with("default-src 'self';"));
    assert!(!said("/admin", "content-security-policy").contains("script-src"));
    assert!(said("/api/v1/setup", "content-security-policy").starts_with("default-src 'none';"));
    assert_eq!(said("/api/v1/setup", "cache-control"), "no-store");
    // What an app answers is the app's.
    assert_eq!(said("/s", "x-frame-options"), "");
}

/// The memory of the server's process in MiB.
fn resident_mib(server: &Server) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        / 1024
}

fn ten_thousand_attempts_at_signing_in_cost_little(engine: Engine) {
    let server = Server::start(engine);
    let address = server.url.trim_start_matches("http://").to_owned();
    let before = resident_mib(&server);
    let started = Instant::now();
    // Each with a name of its own, and a long one: what is remembered of them counts.
    let guess = |from: usize| {
        let mut stream = TcpStream::connect(&address).unwrap();
        let mut looked_at = 0;
        for n in from..from + 2_500 {
            let name = format!("{n}{}", "x".repeat(2_000));
            let body = json!({ "name": name, "password": "guess" }).to_string();
            let request = format!(
                "POST /api/v1/auth/login HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = vec![0; 8192];
            let count = stream.read(&mut answer).unwrap();
            let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
            match status(&answer) {
                "429" => assert!(answer.contains("retry-after: "), "{answer}"),
                "401" => looked_at += 1,
                _ => panic!("{answer}"),
            }
        }
        looked_at
    };
    let looked_at: u64 = std::thread::scope(|scope| {
        let all = [0, 2_500, 5_000, 7_500].map(|from| scope.spawn(move || guess(from)));
        all.into_iter().map(|one| one.join().unwrap()).sum()
    });
    let took = started.elapsed();
    let grown = resident_mib(&server).saturating_sub(before);
    report(format_args!(
        "10,000 attempts in {took:?}: {looked_at} looked at, {grown} MiB more"
    ));
    // 30 at once, then one in 2 s.
    assert!(
        looked_at <= 31 + took.as_secs() / 2,
        "{looked_at} in {took:?}"
    );
    assert!(grown < 64, "{grown} MiB");
    let right = json!({ "name": "owner", "password": server.password() });
    let refused = server.post("/api/v1/auth/login", &right);
    assert_eq!(
        refused.problem(),
        "too_many_attempts",
        "the address waits like the others"
    );
    assert_eq!(server.api("GET", "/auth/me", None).status, 200);
}

fn forwarded_tells_who_called_where_a_proxy_of_ours_says_so(engine: Engine) {
    let behind = start(engine, &[("PICLOUD_TRUSTED_PROXIES", "127.0.0.1")]);
    let direct = start(engine, &[]);
    let mut count = 0;
    let mut address = |server: &Server, headers: &[(&str, &str)]| {
        count += 1;
        let bearer = format!("Bearer {}", server.token);
        let mut all = vec![("authorization", bearer.as_str())];
        all.extend(headers);
        let body = json!({ "slug": format!("app-{count}") }).to_string();
        let made = server.call("POST", "/api/v1/apps", &all, Some(body.as_bytes()));
        assert_eq!(made.status, 201, "{}", made.text());
        let audit = server.api("GET", "/audit?limit=1", None).json();
        audit["items"][0]["address"].as_str().unwrap().to_owned()
    };
    let proxy = "127.0.0.1";
    for (forwarded, is) in [
        ("for=203.0.113.8", "203.0.113.8"),
        (
            "proto=https;For=\"203.0.113.8:4711\";by=10.0.0.1",
            "203.0.113.8",
        ),
        ("for=\"[2001:db8::1]:80\"", "2001:db8::1"),
        ("for=\"[2001:db8::2]\"", "2001:db8::2"),
        // What the caller wrote comes first, and is no proxy's word.
        ("for=192.0.2.1, for=203.0.113.9", "203.0.113.9"),
        ("for=192.0.2.1, for=127.0.0.1", "192.0.2.1"),
        ("for=unknown", proxy),
        ("for=_hidden, proto=https", proxy),
    ] {
        assert_eq!(
            address(&behind, &[("forwarded", forwarded)]),
            is,
            "{forwarded}"
        );
        assert_eq!(
            address(&direct, &[("forwarded", forwarded)]),
            proxy,
            "{forwarded}"
        );
    }
    let both = |other| {
        [
            ("forwarded", "for=\"203.0.113.8:1\""),
            ("x-forwarded-for", other),
        ]
    };
    assert_eq!(address(&behind, &both("203.0.113.8:2")), "203.0.113.8");
    assert_eq!(address(&behind, &both("192.0.2.1")), proxy);
    // So nobody shares a limit with a stranger, whatever the port.
    let log_in = |forwarded: &str, password: &str| {
        let body = json!({ "name": "owner", "password": password }).to_string();
        let headers = [("forwarded", forwarded)];
        let path = "/api/v1/auth/login";
        behind
            .call("POST", path, &headers, Some(body.as_bytes()))
            .status
    };
    let tries = (0..15).map(|n| log_in(&format!("for=\"[2001:db8:6::6]:{}\"", 4000 + n), "wrong"));
    let tries: Vec<u16> = tries.collect();
    assert!(tries.contains(&429), "{tries:?}");
    for port in 1..=5 {
        let from = format!("for=\"[2001:db8:7::7]:{port}\"");
        assert_eq!(log_in(&from, behind.password()), 200);
    }
}
