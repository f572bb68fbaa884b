//! A compiled program does what its tree does, answer by answer and error by error.

use crate::ctx::{self, Request};
use crate::engine;
use crate::host::HOST;
use crate::outcome::Failure;
use crate::script;

fn request(method: &str) -> Request {
    Request {
        method: method.into(),
        path: "/a/b".into(),
        params: vec![("id".into(), "7".into())],
        query: vec![("name".into(), "Ada".into())],
        headers: vec![("x-a".into(), "1".into())],
        content_type: Some("application/json".into()),
        body: Some(br#"{"items":[{"sku":"cup","count":2}],"n":3}"#.to_vec()),
        ..Request::default()
    }
}

#[track_caller]
fn compare(source: &str, method: &str) {
    let tree = engine::parse(source).unwrap_or_else(|found| panic!("{source}: {found:?}"));
    // Where bytecode would do something else, there is none.
    let Some(compiled) = script::compile(&tree) else {
        return;
    };
    let program = compiled.load();
    let program = program.unwrap_or_else(|| panic!("not loaded: {source}"));
    let tree = script::of_tree(tree);
    let of = |run: &dyn Fn() -> Result<_, _>| {
        HOST.take();
        ctx::set_request(Some(request(method)));
        let ended = run();
        let log = HOST.with_borrow(|host| host.log.clone());
        (ended, log)
    };
    let (mut by_program, by_tree) = (of(&|| engine::run(&program)), of(&|| engine::run(&tree)));
    // Where a step of `a.b.c` fails, the tree says where its dot is, the program where its name is.
    if let (Err(Failure::Threw(ours)), Err(Failure::Threw(theirs))) =
        (&mut by_program.0, &by_tree.0)
        && let (Some((_, name)), Some((_, dot))) = (&mut ours.position, theirs.position)
        && *name == dot + 1
    {
        *name = dot;
    }
    assert_eq!(by_program, by_tree, "{source}");
}

#[test]
fn every_construct_of_the_language() {
    for source in [
        "let x = 1; { let x = 2; x += 1; } x",
        "let x = (); x?.y ?? 3",
        "let a = [1, [2, 3]]; a[1][0] += 5; a[-1][1] = \"z\"; a",
        "let m = #{ a: #{ b: [1, 2] } }; m.a.b[1] += 40; m.a.c = m.a.b.len(); m",
        "const A = #{ b: 1 }; fn z() { global::A.b } z()",
        "let s = 0; for n in 0..10 { if n == 3 { continue } if n == 7 { break } s += n; } s",
        "let out = []; for (v, i) in [\"a\", \"b\"] { out.push(`${i}${v}`); } out",
        "let out = []; for c in \"h\u{e9}!\" { out.push(c); } out",
        "let out = []; for n in range(10, 0, -3) { out.push(n); } out",
        "let n = 0; loop { n += 1; if n > 4 { break n * 2 } }",
        "let n = 0; do { n += 1 } until n > 4; n",
        "let n = 9; while n > 0 { n -= 2 } n",
        "switch 3 { 3 | 4 if false => \"few\", 1..=5 => 1, _ => 2 }",
        "switch \"x\" { \"x\" => { let y = 1; y + 1 } _ => 0 }",
        "try { throw #{ code: 3 } } catch (e) { e.code }",
        "try { let a = [1]; a[7] } catch (e) { `${e}` }",
        "try { try { throw 1 } catch { throw } } catch (e) { e + 1 }",
        "fn f(n) { if n < 2 { return n } f(n - 1) + f(n - 2) } f(12)",
        "fn g() { this.x += 1; this.x } let m = #{ x: 1 }; [m.g(), m.g(), m]",
        "let f = |x| x + 1; [f.call(1), [1, 2, 3].map(f)]",
        "let sum = 0; [1, 2, 3].for_each(|n| sum += n); sum",
        "let by = 3; let mul = |n| n * by; by = 4; [1, 2].map(mul)",
        "[5, 3, 9].filter(|n| n > 4).reduce(|all, n| (all ?? 0) + n)",
        "let a = [3, 1, 2]; a.sort(|x, y| y - x); a",
        "fn twice(f, x) { f.call(f.call(x)) } twice(Fn(\"inc\"), 1) + 0; fn inc(x) { x + 1 }",
        "let add = |a, b| a + b; let five = add.curry(5); five.call(2)",
        "let a = 1; let b = a; b += 1; let c = [a, b]; c += 3; c",
        "let t = `a${1 + 1}b${\"c\"}`; t.to_upper()",
        "\"x\" in ctx || \"request\" in ctx",
        "#{ has: \"a\" in #{ a: 1 }, not: 4 !in [1, 2], sub: \"ell\" in \"hello\" }",
        "let x = 7; let y = if x > 5 { \"big\" } else { \"small\" }; y",
        "[1 + 2 * 3 - 4 / 2 % 5, 2 ** 10, 7 & 3 | 8 ^ 1, 1 << 4 >> 2, -3, !true]",
        "[1.5 + 2, 1 == 1.0, 'a' < 'b', \"a\" + 1 + 'c', () == ()]",
        "let b = blob(3, 7); b[1] = 255; b.len()",
        "fn private_one() { 1 } private fn two() { 2 } private_one() + two()",
        "print(\"a\"); debug(#{ a: 1 }); log::warn(\"w\", #{ n: 1 }); 1",
        "try { kv::collection(\"c\").get(\"\") } catch (e) { log::error(\"x\", e); }",
        "try { ctx.nope } catch (e) { log::error(e, #{ at: e.line }); `${e}` }",
        "is_def_var(\"nothing\") || is_def_fn(\"f\", 0); fn f() {}",
        "type_of(ctx.request.body) + type_of(|x| x)",
        "let x = 1; let x = x + 1; x",
        "return ctx.request.method; 1",
        "exit(5); 1",
        "let s = \"abc\"; s[1] = 'X'; s[0..2] + s.sub_string(1)",
        "let c = kv::collection(\"c\"); c.set(\"k\", #{ n: [1] }); c.get(\"k\").n[0] + c.list().entries.len()",
        "#{ statusCode: 201, headers: #{ \"x-y\": [\"1\", \"2\"] }, body: blob(2, 1) }",
    ] {
        compare(source, "POST");
    }
}

#[test]
fn every_error_with_its_place() {
    for source in [
        "nothing_there",
        "let a = 1;\n\n  a.b.c",
        "fn f(x) {\n  g(x)\n}\nfn g(x) {\n  x / 0\n}\nlet y = 1;\nf(3)",
        "throw #{ code: 7 };",
        "let a = [1];\na[9]",
        "\"a\" * 2",
        "missing(1, \"a\")",
        "let m = #{}; m.f.g",
        "let f = |x| x.nothing(); [1].map(f)",
        "fn f(n) { f(n + 1) } f(0)",
        "let x = 9223372036854775807; x + 1",
        "assert(1 == 2)",
        "json::parse(\"{\")",
        "#{ statusCode: 99 }",
        "import \"x\" as y; 1",
        "ctx.nothing",
        "const C = #{ a: 1 };\nC.a = 2",
        "let x = 5; x()",
    ] {
        compare(source, "POST");
    }
}

#[test]
fn every_example() {
    for source in [
        include_str!("../../examples/counter/counter.rhai"),
        include_str!("../../examples/form-handler/form.rhai"),
        include_str!("../../examples/hello/hello.rhai"),
        include_str!("../../examples/link-shortener/links.rhai"),
        include_str!("../../examples/webhook-receiver/webhook.rhai"),
        include_str!("../../tests/bench/orders.rhai"),
    ] {
        for method in ["GET", "POST", "PUT", "DELETE"] {
            compare(source, method);
        }
    }
}

#[test]
fn a_source_that_would_take_long_is_not_compiled() {
    let tree = engine::parse(&"let x = 1;\n".repeat(7_000)).unwrap();
    assert!(script::compile(&tree).is_none());
    assert!(engine::run(&script::of_tree(tree)).is_ok());
}
