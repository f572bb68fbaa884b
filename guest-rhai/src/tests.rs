//! What a script sees and what becomes of it, rule by rule.

use crate::ctx::{self, Request};
use crate::engine;
use crate::host::{self, HOST, Level};
use crate::outcome::{Failure, Response, Thrown};
use crate::script;

fn run(source: &str) -> Result<Response, Failure> {
    let tree = engine::parse(source).unwrap();
    engine::run(&match script::compile(&tree) {
        Some(compiled) => compiled.load().expect("it is well formed"),
        None => script::of_tree(tree),
    })
}

/// The body of the answer to a request with `body` of type `content_type`.
fn answer_to(content_type: &str, body: &[u8], source: &str) -> String {
    ctx::set_request(Some(Request {
        method: "POST".into(),
        path: "/a/b".into(),
        params: vec![("id".into(), "7".into())],
        query: vec![("tag".into(), "x".into()), ("tag".into(), "y".into())],
        headers: vec![("x-a".into(), "1".into())],
        content_type: Some(content_type.into()),
        body: Some(body.to_vec()),
        ..Request::default()
    }));
    answer(source)
}

#[track_caller]
fn answer(source: &str) -> String {
    String::from_utf8(run(source).unwrap().body).unwrap()
}

#[track_caller]
fn throws(source: &str) -> Thrown {
    match run(source) {
        Err(Failure::Threw(thrown)) => thrown,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn invalid(source: &str) -> String {
    match run(source) {
        Err(Failure::InvalidResponse(problem)) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_plain_value_is_json_with_status_200() {
    for (source, body) in [
        ("1 + 1", "2"),
        ("\"a\\\"b\"", r#""a\"b""#),
        ("#{ a: [1, 2.5, (), true] }", r#"{"a":[1,2.5,null,true]}"#),
        ("let x = 1;", "null"),
    ] {
        let response = run(source).unwrap();
        assert_eq!(String::from_utf8(response.body).unwrap(), body);
        assert_eq!(response.status, 200);
        assert_eq!(
            response.headers,
            [("content-type".into(), "application/json".into())]
        );
    }
}

#[test]
fn a_response_map_sets_status_headers_and_body() {
    let response = run(r##"#{ statusCode: 201, headers: #{ "Content-Type": "text/html", "X-N": [1, "b"] }, body: "<p>" }"##).unwrap();
    assert_eq!(response.status, 201);
    let headers: Vec<_> = response
        .headers
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect();
    assert_eq!(
        headers,
        [("content-type", "text/html"), ("x-n", "1"), ("x-n", "b")]
    );
    assert_eq!(response.body, b"<p>");
    assert_eq!(
        run("#{ statusCode: 204 }").unwrap(),
        Response {
            status: 204,
            headers: vec![],
            body: vec![]
        }
    );
    let blob = run("let b = blob(3, 7); #{ statusCode: 200, body: b }").unwrap();
    assert_eq!(
        (blob.body, blob.headers[0].1.as_str()),
        (vec![7; 3], "application/octet-stream")
    );
}

#[test]
fn nonsense_is_named() {
    for (source, says) in [
        ("#{ statusCode: 42 }", "statusCode: must be 200 to 599"),
        (
            "#{ statusCode: \"200\" }",
            "statusCode: must be a whole number",
        ),
        ("#{ statusCode: 200, headers: 1 }", "headers: must be a map"),
        (
            "#{ statusCode: 200, headers: #{ \"a b\": \"c\" } }",
            "is no name for a header",
        ),
        (
            "#{ statusCode: 200, headers: #{ a: \"x\\ny\" } }",
            "cannot carry",
        ),
        ("#{ statusCode: 200, boddy: 1 }", "`boddy`"),
        ("#{ a: [|| 1] }", "`a[0]` is a function"),
        ("0.0 / 0.0", "NaN"),
    ] {
        let problem = invalid(source);
        assert!(problem.contains(says), "{source}: {problem}");
    }
}

#[test]
fn the_request_is_seen_in_functions_too() {
    let seen = answer_to(
        "application/json; charset=utf-8",
        b"{\"n\": [1, 2]}",
        "fn f() { ctx.request.body.n[1] } [f(), ctx.request.method, ctx.request.params.id, \
         ctx.request.query.tag, ctx.request.query_all(\"tag\"), ctx.request.header(\"X-A\"), ctx.request.rest]",
    );
    assert_eq!(seen, r#"[2,"POST","7","y",["x","y"],"1",null]"#);
}

#[test]
fn a_body_is_what_its_type_says() {
    assert_eq!(answer_to("text/plain", b"hi", "ctx.request.body"), "\"hi\"");
    let form = answer_to(
        "application/x-www-form-urlencoded",
        b"a=1&b=x+y",
        "ctx.request.body",
    );
    assert_eq!(form, r#"{"a":"1","b":"x y"}"#);
    assert_eq!(
        answer_to("image/png", b"\xff\x00", "ctx.request.body.len()"),
        "2"
    );
    assert_eq!(
        answer_to("application/json", b"{", "ctx.request.body"),
        "\"{\""
    );
}

#[test]
fn an_event_is_there_only_when_there_is_one() {
    ctx::set_request(None);
    assert_eq!(
        answer("[\"event\" in ctx, \"request\" in ctx, \"app_id\" in ctx]"),
        "[false,false,true]"
    );
    HOST.with_borrow_mut(|host| host.context.event = Some("{\"source\":\"kv\"}".into()));
    ctx::set_request(None);
    assert_eq!(answer("if \"event\" in ctx { ctx.event.source }"), "\"kv\"");
    HOST.with_borrow_mut(|host| host.context.event = None);
    ctx::set_request(None);
    assert!(throws("ctx.event").message.contains("`ctx` has no `event`"));
}

#[test]
fn kv_keeps_values_and_a_missing_key_is_unit() {
    let source = r#"
        let c = kv::collection("c");
        c.set("b", #{ n: 1 }); c.set("a", [1, 2]);
        let page = c.list((), 1);
        [c.get("a"), c.get("zz"), c.has("a"), c.delete("a"), c.delete("a"), c.has("a"),
         page.entries[0].key, c.list(page.cursor).entries[0].value.n, c.list().cursor]"#;
    assert_eq!(
        answer(source),
        r#"[[1,2],null,true,true,false,false,"a",1,null]"#
    );
}

#[test]
fn a_failed_call_says_which_and_can_be_caught() {
    let thrown = throws("fn f(c) {\n  c.get(\"\")\n}\nf(kv::collection(\"c\"))");
    assert_eq!(thrown.message, "kv.get: the key is empty");
    assert_eq!(thrown.position, Some((2, 5)));
    assert_eq!(thrown.calls, ["kv.get", "f"]);
    let caught = "let r = (); try { kv::collection(\"c\").get(\"\") } catch (e) { r = e; } r";
    assert_eq!(answer(caught), "\"kv.get: the key is empty\"");
    assert!(
        throws("kv::collection(\"c\").set(\"k\", || 1)")
            .message
            .starts_with("kv.set: the value: ")
    );
}

#[test]
fn what_is_thrown_is_read_as_text() {
    assert_eq!(throws("throw #{ code: 7 };").message, "{\"code\":7}");
    assert_eq!(throws("\n  throw \"no\";").position, Some((2, 3)));
    assert!(throws("nothing_there").message.contains("nothing_there"));
}

#[test]
fn a_source_that_does_not_parse_has_a_place() {
    let found = engine::parse("let x = ;\n").unwrap_err();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].position, Some((1, 9)));
    assert!(engine::parse("let x = 1; x").is_ok());
    assert!(engine::parse("eval(\"1\")").is_err());
}

#[test]
fn nothing_grows_without_bound() {
    // Maps and arrays are not among these: natively, their limits are beyond a test's patience.
    // Fuel and the memory limit of the sandbox end them.
    for source in [
        "fn f(n) { f(n + 1) } f(0)",
        "import \"x\" as y; 1",
    ] {
        throws(source);
    }
}

#[test]
fn log_lines_carry_level_and_fields() {
    answer("log::warn(\"careful\", #{ n: 1 }); print(\"hi\"); log::info(#{ a: 1 })");
    let lines = HOST.with_borrow_mut(|host| std::mem::take(&mut host.log));
    assert_eq!(
        lines[0],
        (
            Level::Warn,
            "careful".into(),
            vec![("n".into(), "1".into())]
        )
    );
    assert_eq!((lines[1].0, lines[1].1.as_str()), (Level::Info, "hi"));
    assert_eq!(lines[2].1, "{\"a\":1}");
}

#[test]
fn the_modules_do_what_the_reference_says() {
    for (source, says) in [
        (r#"regex::is_match("^a+$", "aaa")"#, "true"),
        (
            r#"regex::captures("(?<y>\\d+)-(\\d+)", "on 20-30")"#,
            r#"{"0":"20-30","1":"20","2":"30","y":"20"}"#,
        ),
        (r#"regex::find_all("\\w", "a b")"#, r#"["a","b"]"#),
        (r#"regex::replace("(\\w)", "ab", "<$1>")"#, r#""<a><b>""#),
        (r#"regex::split(",\\s*", "a, b")"#, r#"["a","b"]"#),
        (r#"json::parse("{\"a\": 1}").a"#, "1"),
        (r#"json::stringify([1, "x"])"#, r#""[1,\"x\"]""#),
        (
            r#"base64::encode("hi") + base64::decode_text("aGk=")"#,
            r#""aGk=hi""#,
        ),
        (
            r#"base64::decode_url(base64::encode_url("a?b>")).as_string()"#,
            r#""a?b>""#,
        ),
        (
            r#"hex::encode("hi") + hex::decode("6869").len()"#,
            r#""68692""#,
        ),
        (
            r#"url::encode("a b/ä") + url::decode("%20")"#,
            r#""a%20b%2F%C3%A4 ""#,
        ),
        (r#"url::parse_query("?a=1&b=x+y").b"#, r#""x y""#),
        (
            r#"url::build_query(#{ a: [1, 2], b: "x y" })"#,
            r#""a=1&a=2&b=x+y""#,
        ),
        (
            r#"time::format(time::parse("2026-01-31T12:00:00+01:00"))"#,
            r#""2026-01-31T11:00:00.000Z""#,
        ),
        (r#"time::format(0, "%Y")"#, r#""1970""#),
        (
            r#"random::uuid().len() + random::text(4).len() + random::bytes(3).len()"#,
            "43",
        ),
        (
            r#"let n = random::int(-1, 1); n >= -1 && n <= 1 && random::float() < 1.0"#,
            "true",
        ),
        (r#"random::pick([5])"#, "5"),
        (r#"sleep(0); sleep(0.001); 1"#, "1"),
        (
            r#"pubsub::publish_durable("a", #{ n: 1 }).contains("message-")
               && pubsub::publish_ephemeral("a", ()).contains("message-")"#,
            "true",
        ),
        (
            r#"pubsub::subscriber_token(["a", "b:*"], 60, "ada")"#,
            r#""token [\"a\", \"b:*\"] Some(\"ada\") Some(60)""#,
        ),
        (
            r#"pubsub::subscriber_token(["a"]).contains("None None")"#,
            "true",
        ),
    ] {
        assert_eq!(answer(source), says, "{source}");
    }
    for (source, call) in [
        (r#"regex::find("(", "")"#, "regex::find"),
        (r#"json::parse("{")"#, "json::parse"),
        (r#"base64::decode("*")"#, "base64::decode"),
        (r#"hex::decode("x")"#, "hex::decode"),
        (r#"url::decode("%ff")"#, "url::decode"),
        (r#"time::parse("yesterday")"#, "time::parse"),
        (r#"time::format(0, "%!")"#, "time::format"),
        (r#"random::int(2, 1)"#, "random::int"),
        (r#"random::pick([])"#, "random::pick"),
        (r#"dead_letters::replay("x")"#, "dead_letters::replay"),
        (
            r#"dead_letters::resolve("x", "why")"#,
            "dead_letters::resolve",
        ),
        (r#"sleep(-1)"#, "sleep"),
        (
            r#"pubsub::subscriber_token("a")"#,
            "pubsub::subscriber_token",
        ),
        (
            r#"pubsub::subscriber_token([1])"#,
            "pubsub::subscriber_token",
        ),
        (
            r#"pubsub::publish_durable("a", Fn("x"))"#,
            "pubsub::publish_durable",
        ),
    ] {
        let thrown = throws(source);
        assert!(
            thrown.message.starts_with(&format!("{call}: ")),
            "{source}: {}",
            thrown.message
        );
    }
    let _ = host::context();
}
