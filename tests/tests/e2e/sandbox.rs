//! What a guest can do to us: nothing.

use std::time::{Duration, Instant};

use picloud_tests::{Engine, Server, on_both_engines};
use serde_json::json;

on_both_engines!(
    i09_a_guest_has_no_ambient_authority,
    i10_no_guest_can_stop_slow_or_crash_the_host,
    nonsense_is_502,
    a_component_of_the_first_contract_runs,
    what_is_no_function_is_refused,
    a_hundred_sleepers_wait_at_once,
);

fn i09_a_guest_has_no_ambient_authority(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.serve("open", "open_file(\"/etc/passwd\")");
    assert_eq!(server.get("/open").status, 502);
    for source in ["eval(\"1\")", "import \"/etc/passwd\" as x; 1"] {
        let script = json!({ "name": "e", "source": source });
        let refused = server.api("POST", "/apps/a/scripts", Some(script));
        assert_eq!(refused.status, 422, "{source}: {}", refused.text());
    }
}

fn i10_no_guest_can_stop_slow_or_crash_the_host(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    let hostile = [
        (
            "fuel",
            "loop {}",
            json!({ "fuel": 500_000_000, "timeout_ms": 20_000 }),
            507,
            "fuel_used_up",
        ),
        (
            "clock",
            "loop {}",
            json!({ "fuel": 400_000_000_000_u64, "timeout_ms": 700 }),
            504,
            "timed_out",
        ),
        (
            "sleep",
            "sleep(100)",
            json!({ "timeout_ms": 300 }),
            504,
            "timed_out",
        ),
        (
            "recursion",
            "fn f(n) { f(n + 1) + 1 } f(0)",
            json!({}),
            502,
            "threw",
        ),
        (
            "string",
            "let s = \"x\"; while s.len() < 100_000_000 { s += s; } s.len()",
            json!({}),
            502,
            "memory_exceeded",
        ),
        (
            "nested",
            "let a = [1]; loop { a.push(a); }",
            json!({}),
            502,
            "memory_exceeded",
        ),
        (
            "deep",
            "let a = []; loop { a = [a]; }",
            json!({}),
            507,
            "fuel_used_up",
        ),
        (
            "blob",
            "blob(5_000_000_000).len()",
            json!({}),
            502,
            "memory_exceeded",
        ),
        (
            "pad",
            "let a = []; a.pad(3_000_000_000, 0); a.len()",
            json!({}),
            502,
            "memory_exceeded",
        ),
        (
            "memory",
            "let m = #{}; let i = 0; let s = \"x\"; while s.len() < 1_000_000 { s += s; } \
             loop { m[i.to_string()] = s + i; i += 1; }",
            json!({ "fuel": 100_000_000_000_u64, "timeout_ms": 60_000, "memory_bytes": 33_554_432 }),
            502,
            "memory_exceeded",
        ),
        (
            "output",
            "let s = \"x\"; while s.len() < 2_000_000 { s += s; } s",
            json!({ "output_bytes": 1_000_000 }),
            502,
            "output_too_large",
        ),
    ];
    for (name, source, limits, status, outcome) in hostile {
        app.script_with(name, source, limits);
        app.route(name, &format!("GET /{name}"));
        let answer = server.get(&format!("/{name}"));
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        assert!(answer.json()["execution_id"].is_string(), "{name}");
        assert_eq!(
            app.last_execution()["outcome"],
            outcome,
            "{name}: {}",
            app.last_execution()
        );
    }
    app.script_with(
        "chatty",
        "for i in 0..1_000_000 { log::info(\"line\"); } 1",
        json!({ "fuel": 100_000_000_000_u64, "timeout_ms": 60_000 }),
    );
    app.route("chatty", "GET /chatty");
    assert_eq!(server.get("/chatty").status, 200);
    let execution = app.last_execution();
    assert_eq!(execution["logs_truncated"], true);
    assert!(execution["logs"].as_array().unwrap().len() < 10_001);

    // Four guests loop; the API answers as it does without them.
    app.script_with(
        "spin",
        "loop {}",
        json!({ "fuel": 400_000_000_000_u64, "timeout_ms": 3_000 }),
    );
    app.route("spin", "GET /spin");
    let median_wait = || {
        let mut waits: Vec<_> = (0..21)
            .map(|_| {
                let asked = Instant::now();
                assert_eq!(server.api("GET", "/apps/a", None).status, 200);
                asked.elapsed()
            })
            .collect();
        waits.sort();
        waits[10]
    };
    let alone = median_wait();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(server.get("/spin").status, 504));
        }
        std::thread::sleep(Duration::from_millis(500));
        let beside = median_wait();
        assert!(
            beside < 20 * alone + Duration::from_millis(20),
            "the API waits for guests: {beside:?}, and {alone:?} without them"
        );
    });
    let ready = server.get("/readyz");
    assert_eq!(ready.status, 200, "{}", ready.text());
}

fn nonsense_is_502(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    for (name, source) in [
        (
            "header",
            "#{ statusCode: 200, headers: #{ \"a b\": \"c\" } }",
        ),
        (
            "newline",
            "#{ statusCode: 200, headers: #{ a: \"b\\r\\nc: d\" } }",
        ),
        ("status", "#{ statusCode: 42 }"),
        ("early", "#{ statusCode: 101 }"),
        ("function", "#{ f: || 1 }"),
        ("nan", "0.0 / 0.0"),
        ("field", "#{ statusCode: 200, bdy: 1 }"),
    ] {
        app.serve(name, source);
        let answer = server.get(&format!("/{name}"));
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (502, "script_failed"),
            "{name}"
        );
        assert_eq!(
            app.last_execution()["outcome"],
            "invalid_response",
            "{name}"
        );
    }
}

fn upload(server: &Server, name: &str, wasm: &[u8]) -> picloud_tests::Answer {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(wasm);
    let body = json!({ "name": name, "kind": "component", "wasm_base64": text });
    server.api("POST", "/apps/a/scripts", Some(body))
}

fn a_component_of_the_first_contract_runs(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    let made = upload(
        &server,
        "first",
        include_bytes!("../../fixtures/function-v1.wasm"),
    );
    assert_eq!(made.status, 201, "{}", made.text());
    app.route("first", "ANY /c/{*rest}");
    let answer = server.post("/c/x", &json!({ "n": 1 }));
    assert_eq!(
        (answer.status, answer.json()["method"].clone()),
        (200, json!("POST")),
        "{}",
        answer.text()
    );
    assert_eq!(answer.json()["path"], "/c/x");
    assert_eq!(app.kv("fixture", "body"), json!({ "n": 1 }));
    assert_eq!(app.last_execution()["logs"][0]["message"], "handled");
    assert_eq!(server.get("/c/throw").status, 502);
    assert_eq!(app.last_execution()["error"]["message"], "asked to throw");
    assert_eq!(server.get("/c/trap").status, 502);
    assert_eq!(app.last_execution()["outcome"], "trapped");
    let looped = server.get("/c/loop");
    assert!([504, 507].contains(&looped.status), "{}", looped.text());
}

/// `(component (import "evil:thing/x" (instance)))`
const IMPORTS_EVIL: &[u8] =
    b"\0asm\x0d\0\x01\0\x07\x03\x01\x42\0\x0a\x11\x01\0\x0cevil:thing/x\x05\0";

fn what_is_no_function_is_refused(engine: Engine) {
    let server = Server::start(engine);
    server.app("a");
    let core_module = b"\0asm\x01\0\0\0";
    let empty_component = b"\0asm\x0d\0\x01\0";
    for (wasm, says) in [
        (&b"garbage"[..], "not a WebAssembly component"),
        (core_module, "core WebAssembly module"),
        (empty_component, "does not export"),
        (b"\0asm\x0d\0\x01\0\xff\xff\xff", "not valid"),
        (b"\x7fELF", "not a WebAssembly component"),
        (IMPORTS_EVIL, "imports `evil:thing/x`"),
    ] {
        let refused = upload(&server, "x", wasm);
        assert_eq!(
            (refused.status, refused.problem().as_str()),
            (422, "invalid_source")
        );
        let detail = refused.json()["detail"].to_string();
        assert!(detail.contains(says), "{detail}");
    }
}

fn a_hundred_sleepers_wait_at_once(engine: Engine) {
    let server = Server::start(engine);
    server.app("a").serve("s", "sleep(1); 1");
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| assert_eq!(server.get("/s").status, 200));
        }
    });
    assert!(
        started.elapsed().as_secs_f64() < 3.0,
        "{:?}",
        started.elapsed()
    );
}
