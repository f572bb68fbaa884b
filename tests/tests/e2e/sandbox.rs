//! What a guest can do to us: nothing.

use std::time::{Duration, Instant};

use picloud_tests::{Engine, Server, on_both_engines};
use serde_json::json;

on_both_engines!(
    i09_a_guest_has_no_ambient_authority,
    i10_no_guest_can_stop_slow_or_crash_the_host,
    nonsense_is_502,
    a_head_counts_to_what_is_answered,
    guests_clocks_go_in_steps_of_a_millisecond,
    a_component_of_the_first_contract_runs,
    what_is_no_function_is_refused,
    a_hundred_sleepers_wait_at_once,
    nine_hundred_records_are_listed_at_once,
    thousands_of_objects_are_read_and_answered,
    a_source_that_is_long_answers_like_any_other,
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
    // Its place is told, and nothing of it stays: neither of a new script nor of a new version.
    let import = "let a = 1;\nimport \"x\" as y; a";
    let script = json!({ "name": "e", "source": import });
    let id = app.script("kept", "1");
    let version = json!({ "version": 1, "source": import });
    for (method, path, body) in [
        ("POST", "/apps/a/scripts", script),
        ("PATCH", &format!("/scripts/{id}"), version),
    ] {
        let refused = server.api(method, path, Some(body));
        assert_eq!(refused.problem(), "invalid_source");
        assert_eq!(refused.status, 422);
        let at = &refused.json()["diagnostics"][0];
        assert_eq!((&at["line"], &at["column"]), (&json!(2), &json!(1)), "{at}");
        assert!(at["message"].as_str().unwrap().contains("import"), "{at}");
    }
    let named = server.api("GET", "/apps/a/scripts?name=e", None).json();
    assert_eq!(named["items"], json!([]));
    let kept = server.api("GET", &format!("/scripts/{id}"), None).json();
    assert_eq!(kept["version"], 1);
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
            "compared",
            "let m = #{}; for n in 0..1_300 { m = #{ m: m }; } let same = m; same == m",
            json!({}),
            502,
            "stack_overflow",
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
        (
            "headers",
            "let h = #{}; for n in 0..65 { h[`x-${n}`] = \"\"; } #{ statusCode: 200, headers: h }",
        ),
        (
            "too-many-headers",
            "let h = #{}; for n in 0..33000 { h[`x${n}`] = \"\"; } #{ statusCode: 200, headers: h }",
        ),
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

fn a_head_counts_to_what_is_answered(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    let source = r#"
        let n = parse_int(ctx.request.query.n);
        let filler = "";
        filler.pad(n, 'x');
        #{ statusCode: 200, headers: #{ "x-filler": filler }, body: "done" }"#;
    app.script_with("s", source, json!({ "output_bytes": 1_000 }));
    app.route("s", "GET /s");
    let fits = server.get("/s?n=900");
    assert_eq!(fits.status, 200, "{}", fits.text());
    assert_eq!(fits.headers["x-filler"].len(), 900);
    let answer = server.get("/s?n=1000");
    assert_eq!(
        (answer.status, answer.problem().as_str()),
        (502, "script_failed")
    );
    assert_eq!(app.last_execution()["outcome"], "output_too_large");
}

fn guests_clocks_go_in_steps_of_a_millisecond(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    // In seconds, by the monotonic clock.
    let source = r#"
        let began = timestamp();
        let all = [];
        for n in 0..20 { sleep(0.0012); all.push(began.elapsed) }
        #{ elapsed: all, now: time::now() }"#;
    app.serve("now", source);
    let answer = server.get("/now");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let told = answer.json();
    let elapsed = told["elapsed"].as_array().unwrap().iter();
    let elapsed: Vec<f64> = elapsed.map(|s| s.as_f64().unwrap() * 1_000.0).collect();
    assert_eq!(elapsed.len(), 20, "{told}");
    for ms in &elapsed {
        assert!((ms - ms.round()).abs() < 1e-6, "{ms} ms");
    }
    assert!(elapsed[19] >= 20.0, "and they go: {elapsed:?}");
    let now = told["now"].as_str().unwrap();
    let fraction = now.split('.').nth(1).unwrap_or_default();
    let digits = fraction.trim_end_matches('Z').trim_end_matches('0');
    assert!(digits.len() <= 3, "{now}");
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

/// What once took more fuel to make bytecode of than there was, and what is never made bytecode of.
fn a_source_that_is_long_answers_like_any_other(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    let map = |members| {
        let members: Vec<_> = (0..members).map(|n| format!("k{n}: {n}")).collect();
        format!("let m = #{{ {} }}; m.len() + m.k1", members.join(", "))
    };
    let lines = |count| format!("let x = 0;\n{}x", "x += 1;\n".repeat(count));
    for (name, source, is) in [
        ("map", map(1_375), 1_376),
        ("lines", lines(4_792), 4_792),
        ("larger", map(5_000), 5_001),
        ("longer", lines(20_000), 20_000),
    ] {
        let id = app.script(name, &source);
        app.route(name, &format!("GET /{name}"));
        let answer = server.get(&format!("/{name}"));
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        assert_eq!(answer.json(), is, "{name}");
        // As a draft, too, which is compiled at each call.
        let draft = json!({ "source": format!("{source} + 1") });
        let ran = server.api("POST", &format!("/scripts/{id}/execute"), Some(draft));
        let ran = ran.json();
        let text = (is + 1).to_string();
        assert_eq!(ran["response"]["body"], text, "{name}: {}", ran["error"]);
    }
}

fn nine_hundred_records_are_listed_at_once(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.serve(
        "fill",
        r#"let c = kv::collection("records");
           for n in 0..900 {
               let record = #{};
               for field in 0..10 { record[`field_${field}`] = #{ n: n, text: `text ${n}` }; }
               c.set(`${n}`.pad_left(3, '0'), record);
           }"#,
    );
    app.serve(
        "read",
        r#"let page = kv::collection("records").list((), 900);
           let last = page.entries[899].value;
           [page.entries.len(), page.cursor, last.len(), last.field_9.text]"#,
    );
    let filled = server.get("/fill");
    assert_eq!(filled.status, 200, "{}", filled.text());
    let read = server.get("/read");
    assert_eq!(read.json(), json!([900, null, 10, "text 899"]));
}

fn thousands_of_objects_are_read_and_answered(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    app.serve(
        "s",
        r#"let all = ctx.request.body;
           for i in 0..all.len() { all[i].n += 1; }
           all.push(all[2_500].name);
           all"#,
    );
    let records = |first: u32| {
        let of = |n: u32| json!({ "n": n + first, "name": format!("the record number {n:04}"), "tags": ["a", "b"] });
        (0..2_501).map(of).collect::<Vec<_>>()
    };
    let sent = json!(records(0));
    let size = sent.to_string().len();
    assert!((140_000..160_000).contains(&size), "{size}");
    let answer = server.post("/s", &sent);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let mut answered = records(1);
    answered.push(json!("the record number 2500"));
    assert!(answer.json() == json!(answered), "{}", answer.text());
}
