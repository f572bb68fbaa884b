//! What a script is told of what failed, and what it can do with it.

use super::*;

#[test]
fn a_failed_call_says_which_and_can_be_caught() {
    let thrown = throws("fn f(c) {\n  c.get(\"\")\n}\nf(kv::collection(\"c\"))");
    assert_eq!(thrown.message, "kv.get: the key is empty");
    assert_eq!(thrown.position, Some((2, 5)));
    assert_eq!(thrown.calls, ["kv.get", "f"]);
    let caught = "let r = (); try { kv::collection(\"c\").get(\"\") } catch (e) { r = e; } r";
    assert_eq!(answer(caught), "\"kv.get: the key is empty\"");
    assert_eq!(thrown.calls.len(), 2, "no call is told that was none");
    let thrown = throws("fn f() {\n  throw \"a.b: c\"\n}\nf()");
    assert_eq!(
        (thrown.message.as_str(), thrown.calls),
        ("a.b: c", vec!["f".to_owned()])
    );
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
fn an_error_of_a_module_has_its_place() {
    let thrown = throws("fn f(text) {\n  let a = 1;\n  json::parse(text)\n}\n\nf(\"{\")");
    assert_eq!(thrown.position, Some((3, 9)), "{thrown:?}");
    assert_eq!(thrown.calls, ["json::parse", "f"]);
    assert_eq!(
        throws("\n\nregex::find(\"(\", \"\")").position,
        Some((3, 8))
    );
    assert_eq!(throws("sleep(-1)").position, Some((1, 1)));
}

#[test]
fn a_caught_error_has_members_and_is_used_as_its_text() {
    let of = |code: &str, told: &str| {
        answer(&format!("try {{ {code} }} catch (e) {{ return {told}; }}"))
    };
    let sdk = "\nkv::collection(\"c\").get(\"\")";
    for (told, is) in [
        (
            "[e.message, e.kind, e.call, e.line]",
            r#"["kv.get: the key is empty","invalid","kv.get",2]"#,
        ),
        ("e.position", "21"),
        ("e == \"kv.get: the key is empty\"", "true"),
        ("e != \"kv.get: the key is empty\"", "false"),
        ("\"kv.get: the key is empty\" == e", "true"),
        (
            "e.contains(\"empty\") && \"empty\" in e && e.starts_with(\"kv.get\")",
            "true",
        ),
        ("`failed: ${e}`", r#""failed: kv.get: the key is empty""#),
        (
            "\"failed: \" + e + \"!\"",
            r#""failed: kv.get: the key is empty!""#,
        ),
        (
            "{ let s = \"x \"; s += e; s }",
            r#""x kv.get: the key is empty""#,
        ),
        (
            "e.split(\": \")[1] + e.len() + e.index_of(\"key\")",
            r#""the key is empty2412""#,
        ),
        ("#{ error: e }", r#"{"error":"kv.get: the key is empty"}"#),
        (
            "e.sub_string(0, 2) + e.sub_string(-5) + e.to_upper().len()",
            r#""kvempty24""#,
        ),
        ("type_of(e)", r#""Error""#),
        ("e[\"call\"] + e?.call", r#""kv.getkv.get""#),
        ("[e, e.message, e].unique().len()", "1"),
    ] {
        assert_eq!(of(sdk, told), is, "{told}");
    }
    // What the language throws is a map; the same names work.
    assert_eq!(
        of("\n 1 / 0", "[e.message, e.kind, e.call, e.line, e.error]"),
        r#"["Division by zero: 1 / 0",null,null,2,"ErrorArithmetic"]"#
    );
    let again = throws("try { json::parse(\"{\") } catch (e) { throw e; }");
    assert!(again.message.starts_with("json::parse: "), "{again:?}");
}

#[test]
fn a_member_that_is_not_there_is_an_error_as_any_other() {
    let sdk = "try { json::parse(\"{\") } catch (e) {";
    for (code, message) in [
        ("\n  ctx.nope", "`ctx` has no `nope`"),
        ("\n  ctx[\"nope\"]", "`ctx` has no `nope`"),
        ("\n  ctx.event", "`ctx` has no `event`"),
        ("\n  ctx.request.nope", "`ctx.request` has no `nope`"),
        (&format!("{sdk}\n  e.nope }}"), "an error has no `nope`"),
    ] {
        let told = "[e.message, e.kind, e.call, e.line, e.error, e.position > 2, type_of(e), \
                    `told: ${e}` == \"told: \" + e, e == e.message, e.contains(\" has no \")]";
        let seen = answer_to(
            "text/plain",
            b"",
            &format!("try {{ {code} }} catch (e) {{ return {told}; }}"),
        );
        let is =
            format!(r#"["{message}","invalid",null,2,"ErrorRuntime",true,"Error",true,true,true]"#);
        assert_eq!(seen, is, "{code}");
        let thrown = throws(&format!("fn f() {{ {code} }} f()"));
        assert_eq!(
            (thrown.message.as_str(), thrown.calls),
            (message, vec!["f".to_owned()])
        );
        assert_eq!(thrown.position.unwrap().0, 2, "{code}");
    }
}

/// Neither comes from a route: an older version may have stored it.
#[test]
fn what_is_not_the_json_that_it_should_be_throws_and_is_never_something_else() {
    let run_with = |code: &str| {
        HOST.with_borrow_mut(|host| host.context.event = Some("{\"kv\":".into()));
        answer_to("application/json", b"{", code)
    };
    let body = "`ctx.request.body` is not the JSON that it should be: \
                EOF while parsing an object at line 1 column 1";
    let event = "`ctx.event` is not the JSON that it should be: \
                 EOF while parsing a value at line 1 column 6";
    for (code, message) in [
        ("\n  ctx.request.body", body),
        ("\n  ctx.request.body.name", body),
        ("\n  ctx.request.to_map()", body),
        ("\n  ctx.event", event),
        ("\n  ctx[\"event\"].kv", event),
    ] {
        let told = "[e.message, e.kind, e.call, e.line, e.error, type_of(e)]";
        let is = format!(r#"["{message}","invalid",null,2,"ErrorRuntime","Error"]"#);
        let seen = run_with(&format!("try {{ {code} }} catch (e) {{ return {told}; }}"));
        assert_eq!(seen, is, "{code}");
    }
    // What is there is there, and its bytes can be read.
    assert_eq!(
        run_with("[\"event\" in ctx, \"body\" in ctx.request, ctx.request.raw_body.as_string()]"),
        "[true,true,\"{\"]"
    );
    assert!(run_with("ctx.keys()").contains("\"event\""));
    for code in ["json::stringify(ctx)", "json::stringify(ctx.request)"] {
        let thrown = throws(&format!("{code};"));
        assert!(thrown.message.contains("not the JSON"), "{thrown:?}");
    }
    // People are told so, too.
    run_with("print(ctx); log::info(\"x\", ctx.request); log::info(ctx.request)");
    for line in HOST.take().log {
        let told = format!("{}{:?}", line.1, line.2);
        assert!(told.contains(body), "{told}");
    }
}

#[test]
fn whatever_is_caught_can_be_logged() {
    for (code, fields) in [
        (
            "kv::collection(\"c\").get(\"\")",
            "call=\"kv.get\" error=\"ErrorRuntime\" kind=\"invalid\" line=2 \
             message=\"kv.get: the key is empty\" position=21",
        ),
        (
            "1 / 0",
            "error=\"ErrorArithmetic\" line=2 message=\"Division by zero: 1 / 0\" position=3",
        ),
        ("throw #{ code: 7 }", "code=7"),
        ("throw \"no\"", "value=\"no\""),
        ("throw [1, ()]", "value=[1,null]"),
        ("throw", "value=null"),
        ("throw Fn(\"f\")", "value=\"Fn(f)\""),
        (
            "throw ctx.request",
            "body=\"hi\" headers={\"x-a\":\"1\"} method=\"POST\"",
        ),
    ] {
        HOST.take();
        let source = format!("try {{\n{code} }} catch (e) {{ log::error(\"x\", e); }}");
        answer_to("text/plain", b"hi", &source);
        let (level, message, logged) = HOST.take().log.remove(0);
        assert_eq!((level, message.as_str()), (Level::Error, "x"));
        let logged: Vec<_> = logged
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert!(logged.join(" ").starts_with(fields), "{code}: {logged:?}");
    }
    answer("log::info(\"x\", ctx)");
    let fields = HOST.take().log.remove(0).2;
    assert!(
        fields.iter().any(|(name, _)| name == "script_name"),
        "{fields:?}"
    );
}
