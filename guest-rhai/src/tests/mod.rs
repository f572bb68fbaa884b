//! What a script sees and what becomes of it, rule by rule.

use crate::ctx::{self, Request};
use crate::engine;
use crate::host::{self, HOST, Level};
use crate::outcome::{Failure, Response, Thrown};
use crate::script;

mod errors;

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
    let repeated = answer_to(
        "application/x-www-form-urlencoded",
        b"a=1&a=2&b=%20",
        "let r = ctx.request; [r.body.a, r.form_all(\"a\"), r.form_all(\"c\"), r.raw_body.len(), r.body.b]",
    );
    assert_eq!(repeated, r#"["2",["1","2"],[],13," "]"#);
    let raw = "let r = ctx.request; [r.body.a, r.raw_body.as_string(), r.form_all(\"a\")]";
    assert_eq!(
        answer_to("application/json", b"{ \"a\" : 1.0 }", raw),
        r#"[1.0,"{ \"a\" : 1.0 }",[]]"#
    );
    assert_eq!(
        answer_to("image/png", b"\xff\x00", "ctx.request.body.len()"),
        "2"
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
fn a_list_says_which_values_were_repaired() {
    HOST.take();
    HOST.with_borrow_mut(|host| host.repaired.push("b".into()));
    let source = r#"
        let c = kv::collection("c");
        c.set("a", 1); c.set("b", "2");
        c.list().entries"#;
    assert_eq!(
        answer(source),
        r#"[{"key":"a","value":1},{"key":"b","value":"2","value_repaired":true}]"#
    );
    HOST.take();
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
    for source in ["fn f(n) { f(n + 1) } f(0)", "import \"x\" as y; 1"] {
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
        // ASCII's letters and digits, and the borders of words of them.
        (
            r#"[regex::is_match("^\\w+$", "naïve"), regex::is_match("^[\\wï]+$", "naïve"), regex::is_match("\\d", "٣"),
                regex::find_all("\\b\\w", "été"), regex::is_match("(?i)É", "é"), regex::find("^.", "été")]"#,
            r#"[false,true,false,["t"],false,"é"]"#,
        ),
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
        (r#"regex::find("\\p{L}", "é")"#, "regex::find"),
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

#[test]
fn functions_are_values_by_their_name() {
    for (source, is) in [
        ("fn f(x) { x * 2 } [1, 2].map(f)", "[2,4]"),
        (
            "fn cmp(a, b) { b - a } let a = [1, 3, 2]; a.sort(cmp); a",
            "[3,2,1]",
        ),
        ("fn f(x) { x + 1 } f.call(3)", "4"),
        ("fn f(a, b) { a - b } f.curry(1).call(3)", "-2"),
        ("fn f(x) { x } f.name", r#""f""#),
        ("fn big(x) { x > 1 } [1, 2, 3].filter(big)", "[2,3]"),
        ("fn add(a, b) { a + b } [1, 2, 3].reduce(add, 0)", "6"),
        (
            "fn f(x) { x * 2 } fn apply(g, x) { g.call(x) } apply(f, 4)",
            "8",
        ),
        ("fn f(x) { x * 2 } let m = #{ g: f }; m.g.call(5)", "10"),
        ("fn f(x) { x } let g = f; type_of(g)", r#""Fn""#),
        ("fn f(x) { x * 3 } [1].map(Fn(\"f\"))", "[3]"),
        (
            "let x = 1.5; try { x[0] = 1; } catch { return \"thrown\"; } x",
            r#""thrown""#,
        ),
    ] {
        assert_eq!(answer(source), is, "{source}");
        // Length makes no difference.
        let long = format!("{source}{}", " ".repeat(70_000));
        assert_eq!(answer(&long), is, "{source}");
    }
}

#[test]
fn closures_see_ctx() {
    let seen = answer_to(
        "application/json",
        b"{\"n\": 2}",
        "fn f() { [1].map(|x| x + ctx.request.body.n) }
         let k = 10;
         [f(), [1].map(|x| x + ctx.request.body.n + k), (|| ctx.request.method).call(),
          [1].map(|ctx| ctx), { let ctx = 5; [1].map(|x| x + ctx) }]",
    );
    assert_eq!(seen, r#"[[3],[13],"POST",[1],[6]]"#);
    assert!(engine::parse("let ctx = 1; ctx").is_ok());
}

#[test]
fn closures_in_the_history_are_called_closures() {
    let thrown = throws("fn f() { [1].map(|x| x.nothing()) }\nf()");
    assert_eq!(thrown.calls, ["a closure", "map", "f"], "{thrown:?}");
    assert!(!thrown.message.contains("anon$"), "{thrown:?}");
}

#[test]
fn a_data_race_throws() {
    let thrown = throws("let a = 1; let f = |x| { this += a + x }; a.call(f, 1)");
    assert!(thrown.message.contains("ata race"), "{thrown:?}");
}

#[test]
fn what_a_word_processor_leaves_is_no_error() {
    assert_eq!(answer("\u{feff}let a = 1;\r\na + 1"), "2");
    assert_eq!(
        engine::parse("\u{feff}let x = ;").unwrap_err()[0].position,
        Some((1, 9))
    );
    assert_eq!(answer("let a = 1;\ra + 1"), "2");
}

#[test]
fn a_word_of_rhais_is_a_name_after_a_path() {
    HOST.take();
    assert_eq!(answer("log::debug(\"x\", #{ a: 1 }); debug(\"y\"); 1"), "1");
    let lines = HOST.take().log;
    assert_eq!((lines[0].0, lines[0].1.as_str()), (Level::Debug, "x"));
    assert_eq!((lines[1].0, lines[1].1.as_str()), (Level::Debug, "\"y\""));
}

#[test]
fn an_import_is_refused_before_it_runs() {
    let tree = engine::parse("let a = 1;\nif false { import \"x\" as y; }").unwrap();
    let found = script::check(&tree).unwrap_err();
    assert_eq!(found[0].position, Some((2, 12)), "{found:?}");
    assert!(found[0].message.contains("nothing to import"));
    // One that was deployed before this was refused runs as it did.
    assert!(engine::run(&script::of_tree(tree)).is_ok());
}

#[test]
fn integers_keep_their_digits() {
    let seen = answer_to(
        "application/json",
        br#"{"a": 9223372036854775808, "b": 9223372036854775809, "c": 9007199254740993}"#,
        "let b = ctx.request.body; [b, `${b.a}`, b.a == b.b, type_of(b.a), b.c + 1, b.a + 1]",
    );
    assert_eq!(
        seen,
        r#"[{"a":9223372036854775808,"b":9223372036854775809,"c":9007199254740993},"9223372036854775808",false,"decimal",9007199254740994,9223372036854775809]"#
    );
}

#[test]
fn a_negative_zero_is_a_float_whatever_stands_beside_it() {
    for text in [r#"[-0, 0, 1]"#, r#"[-0, 0, "12345678901234567890"]"#] {
        let told = "[type_of(v[0]), v[0], type_of(v[1])]";
        let is = r#"["f64",-0.0,"i64"]"#;
        let body = format!("let v = ctx.request.body; {told}");
        assert_eq!(answer_to("application/json", text.as_bytes(), &body), is);
        let parsed = format!("let v = json::parse(`{text}`); {told}");
        assert_eq!(answer(&parsed), is);
        let event = format!("{{\"kv\":{{\"value\":{text}}}}}");
        HOST.with_borrow_mut(|host| host.context.event = Some(event));
        ctx::set_request(None);
        assert_eq!(answer(&format!("let v = ctx.event.kv.value; {told}")), is);
        HOST.take();
    }
}

#[test]
fn what_every_script_missed() {
    for (source, is) in [
        (
            r#"[[1, "a", 'b', (), 2.5, true, [1]].join("-"), ["a", "b"].join()]"#,
            r#"["1-a-\"b\"--2.5-true-[1]","ab"]"#,
        ),
        (
            "[[1, 2].sum(), [1, 0.5].sum(), [].sum(), [parse_decimal(\"0.10\"), 1].sum()]",
            "[3,1.5,0,1.10]",
        ),
        (
            "[[1, 2].first(), [1, 2].last(), [].first(), [].last()]",
            "[1,2,null,null]",
        ),
        (
            "[[1, [2, [3]]].flatten(), [1, [2, [3]]].flatten(5)]",
            "[[1,2,[3]],[1,2,3]]",
        ),
        (
            r#"[1, "1", 1, 1.0, [1], [1.0], #{ a: 1 }, #{ a: 1 }].unique()"#,
            r#"[1,"1",[1],{"a":1}]"#,
        ),
        (
            r#"[[0.0, -0.0, 0].unique(), ["a", 'a'].unique(), [0.1 + 0.2, 0.3].unique().len(),
                [parse_decimal("1.0"), parse_decimal("1.00"), 1].unique(),
                [0.0 / 0.0, 0.0 / 0.0, 0].unique().len(), [Fn("f"), Fn("f")].unique().len()]"#,
            r#"[[0.0],["a"],1,[1.0],3,2]"#,
        ),
        (
            "fn deep(x) { for i in 0..20 { x = [x]; } x }
             [[deep(1), deep(1.0)].unique().len(), [deep(1), deep(2)].unique().len()]",
            "[1,2]",
        ),
        ("[1, 2, 3].group_by(|x| x % 2)", r#"{"0":[2],"1":[1,3]}"#),
        (
            r#"[#{ n: "b" }, #{ n: "a" }].order_by_key(|x| x.n).map(|x| x.n)"#,
            r#"["a","b"]"#,
        ),
        ("let a = [3, 1.5, 2]; a.sort_by_key(|x| -x); a", "[3,2,1.5]"),
        (
            "#{ b: 2, a: 1 }.entries()",
            r#"[{"key":"a","value":1},{"key":"b","value":2}]"#,
        ),
        (
            r#"["ab".repeat(3), "ab".repeat(0), "7".pad_left(3, '0'), "7".pad_left(3), "abc".pad_left(2)]"#,
            r#"["ababab","","007","  7","abc"]"#,
        ),
        (
            r#"let s = "aba"; [s.replaced("a", "x"), s]"#,
            r#"["xbx","aba"]"#,
        ),
        (
            "[round(2.345, 2), round(1.005, 2), round(-2.5, 0), round(7, 2), round(1e300, 2)]",
            "[2.35,1.01,-3.0,7,1e+300]",
        ),
        (
            r#"[num::format(1234567.891, 2), num::format(-1234), num::format(999, 2), num::format(1234567.5, 1, ".", ","), num::format(0.1)]"#,
            r#"["1,234,567.89","-1,234","999.00","1.234.567,5","0.1"]"#,
        ),
        (
            "[parse_decimal(\"0.1\") + parse_decimal(\"0.2\") == parse_decimal(\"0.3\"), parse_decimal(\"10.50\")]",
            "[true,10.50]",
        ),
        (
            "let a = uuid::v7(); let b = uuid::v4(); [a.len(), a[14], b[14], a != uuid::v7()]",
            r#"[36,"7","4",true]"#,
        ),
    ] {
        assert_eq!(answer(source), is, "{source}");
    }
    for (source, says) in [
        ("[1, \"a\"].sum()", "sum: item 1 is no number but string"),
        ("[1, \"a\"].order_by_key(|x| x)", "order_by_key: "),
        (
            "\"ab\".repeat(1_000_000_000)",
            "repeat: the text would have more",
        ),
        (
            "\"ab\".pad_left(9_000_000_000)",
            "pad_left: the text would have more",
        ),
        ("num::format(\"x\")", "num::format: the value is no number"),
        ("round(1.5, 99)", "round: the digits are 0 to 28"),
    ] {
        let message = throws(source).message;
        assert!(message.starts_with(says), "{source}: {message}");
    }
}

#[test]
fn unique_does_not_compare_each_item_with_each() {
    for (item, is) in [
        ("`k${i}`", 20_000),
        ("i % 7", 7),
        (
            "if i == 0 { 0.5 } else { 1_700_000_000_000_000_000 + i }",
            20_000,
        ),
        ("#{ id: 9_007_199_254_740_000 + i, price: 9.99 }", 20_000),
    ] {
        let source =
            format!("let a = []; for i in 0..20_000 {{ a.push({item}); }} a.unique().len()");
        assert_eq!(answer(&source), is.to_string(), "{item}");
    }
}

#[test]
fn large_data_can_be_read() {
    let item = r#"{"a":1,"b":"x","c":[1,2],"d":null}"#;
    let many = format!("[{}]", vec![item; 5_000].join(","));
    let seen = answer_to(
        "application/json",
        many.as_bytes(),
        "ctx.request.body.len()",
    );
    assert_eq!(seen, "5000");
    let source = "let m = #{}; for i in 0..20_000 { m[`k${i}`] = #{ i: i }; } let a = []; for i in 0..50_000 { a.push(i); } [m.len(), a.len()]";
    assert_eq!(answer(source), "[20000,50000]");
}
