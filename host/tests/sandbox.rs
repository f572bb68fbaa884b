//! The sandbox by itself: what only shows where no gate stands before it.

#![allow(
    clippy::unwrap_used,
    reason = "a test may end where it finds something odd"
)]

use std::sync::Arc;

use picloud::sandbox::{
    Code, CompileLimits, Job, Limits, NoImports, Outcome, Program, ProgramError, RHAI_GUEST,
    Sandbox, SandboxConfig,
};
use uuid::Uuid;

fn job(program: Program) -> Job<NoImports> {
    Job {
        code: Code::Rhai(program),
        request: None,
        context: Arc::default(),
        limits: Limits::DEFAULT,
        imports: NoImports,
    }
}

fn source(text: &str) -> Program {
    Program::Source(text.into())
}

fn sandbox(folder: &tempfile::TempDir, executions_max: u32) -> Sandbox<NoImports> {
    Sandbox::new(SandboxConfig {
        guest: RHAI_GUEST,
        cache_dir: folder.path().to_owned(),
        key: [7; 32],
        executions_max,
        threads: 2,
        memory_bytes_max: Limits::DEFAULT.memory_bytes,
        memory_bytes_of_all: u64::MAX / 2,
        compile: CompileLimits::DEFAULT,
        cache_bytes_max: u64::MAX,
        precise_clock_apps: Vec::new(),
    })
    .unwrap()
}

#[tokio::test]
async fn an_exhausted_pool_is_said_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let sandbox = Arc::new(sandbox(&folder, 1));
    let running: Vec<_> = (0..200)
        .map(|_| {
            let sandbox = sandbox.clone();
            tokio::spawn(async move { sandbox.execute(job(source("sleep(2); 1"))).await.outcome })
        })
        .collect();
    let (mut answered, mut refused) = (0, 0);
    for outcome in running {
        match outcome.await.unwrap() {
            Outcome::Answered(_) => answered += 1,
            Outcome::NoCapacity => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(answered > 0 && refused > 0, "{answered} / {refused}");
    let after = sandbox.execute(job(source("1"))).await.outcome;
    assert!(matches!(after, Outcome::Answered(_)), "{after:?}");
}

#[tokio::test]
async fn a_kept_program_begins_the_same_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let sandbox = sandbox(&folder, 8);
    // Each leaves behind whatever it can: changed literals, long strings, many small values.
    let sources: Vec<String> = (0..4)
        .map(|n| {
            format!(
                r#"fn grow(a) {{ for i in 0..200 {{ a.push(`${{i}} of {n}`); }} a }}
                   let m = #{{ name: "script {n}", list: [{n}] }};
                   m.name += "!"; m.list += grow([]); m.more = m.list.map(|x| `<${{x}}>`);
                   [m.name, m.list.len(), m.more[200], m.list[0]]"#
            )
        })
        .collect();
    let mut programs = Vec::new();
    for text in &sources {
        let program = sandbox
            .program(Uuid::nil(), text.as_str().into(), NoImports)
            .await;
        let program = program.unwrap();
        assert!(matches!(program, Program::Image(_)));
        programs.push(program);
    }
    for turn in 0..40 {
        let n = turn % programs.len();
        // Instances that compile, and run from the source, use the same slots between.
        if turn % 7 == 0 {
            let whole = sandbox.execute(job(source(&sources[n]))).await.outcome;
            assert!(matches!(whole, Outcome::Answered(_)), "{whole:?}");
        }
        let Outcome::Answered(answer) = sandbox.execute(job(programs[n].clone())).await.outcome
        else {
            panic!("turn {turn} has no answer");
        };
        let expected = format!(r#"["script {n}!",201,"<199 of {n}>",{n}]"#);
        assert_eq!(String::from_utf8_lossy(&answer.body), expected);
    }
}

#[tokio::test]
async fn a_source_that_is_not_compiled_runs_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let sandbox = sandbox(&folder, 1);
    let text = "let n = 1;\n".repeat(60_000) + "n + 1";
    let program = sandbox
        .program(Uuid::nil(), text.into(), NoImports)
        .await
        .unwrap();
    assert!(matches!(program, Program::Source(_)));
    let Outcome::Answered(answer) = sandbox.execute(job(program)).await.outcome else {
        panic!("no answer");
    };
    assert_eq!(answer.body, "2");
    let invalid = sandbox
        .program(Uuid::nil(), "let n = ;".into(), NoImports)
        .await;
    assert!(matches!(invalid, Err(ProgramError::Invalid(found)) if found.len() == 1));
    let unlike = sandbox.execute(job(source("let n = ;"))).await.outcome;
    assert!(matches!(unlike, Outcome::InvalidSource(_)), "{unlike:?}");
}

/// The answer's body as text, or how it ended, and the fuel that it took.
async fn ended(sandbox: &Sandbox<NoImports>, program: Program) -> (String, u64) {
    let report = sandbox.execute(job(program)).await;
    let told = match report.outcome {
        Outcome::Answered(answer) => String::from_utf8_lossy(&answer.body).into_owned(),
        other => format!("{other:?}"),
    };
    (told, report.fuel_used)
}

#[tokio::test]
async fn a_script_answers_the_same_from_its_image_and_from_its_source() {
    let folder = tempfile::tempdir().unwrap();
    let sandbox = sandbox(&folder, 4);
    for (text, is) in [
        ("fn f(x) { x * 2 } [1, 2].map(f)", "[2,4]"),
        (
            "fn cmp(a, b) { b - a } let a = [1, 3, 2]; a.sort(cmp); a",
            "[3,2,1]",
        ),
        (
            "fn f(x) { x + 1 } [f.call(3), f.curry(1).call(), f.name]",
            "[4,2,\"f\"]",
        ),
        ("fn f() { [1].map(|x| x + ctx.attempt) } f()", "[1]"),
        (
            "let a = []; for i in 0..3 { a.push(`${i}`); a[i] += \"!\"; } a",
            "[\"0!\",\"1!\",\"2!\"]",
        ),
        (
            "let a = 1; let f = |x| { this += a + x }; try { a.call(f, 1) } catch { return \"thrown\" } a",
            "\"thrown\"",
        ),
        (
            "let by = 3; let mul = |n| n * by; by = 4; [1, 2].map(mul)",
            "[4,8]",
        ),
        ("\u{feff}log::debug(\"x\"); 1", "1"),
        // What docs/rhai-sdk.md says of addresses of 32 bits.
        (
            "let end = 4_294_967_297; let text = \"hello\"; let list = [1, 2, 3];
             [text[1..end], text[1..], text.sub_string(1..end), list.extract(1..end), end in 0..end + 1]",
            r#"["","ello","ello",[2,3],true]"#,
        ),
        (
            "let x = 1; x.tag = 30_000;
             try { x.tag = 70_000 } catch (e) { return [x.tag, e.message] }",
            r#"[30000,"70000 is too large to fit into a tag (must be between -32768 and 32767)"]"#,
        ),
        // As deep through callbacks as natively: see expectations.txt.
        (
            "fn f(n) { if n == 0 { 0 } else { [n].map(|x| f(x - 1))[0] + 1 } } f(21)",
            "21",
        ),
        (
            "fn g(n) { f(n - 1) } fn f(n) { if n == 0 { 0 } else { g.call(n) + 1 } } f(31)",
            "31",
        ),
    ] {
        let program = sandbox.program(Uuid::nil(), text.into(), NoImports).await.unwrap();
        assert!(matches!(program, Program::Image(_)), "{text}");
        for program in [program, source(text)] {
            assert_eq!(ended(&sandbox, program).await.0, is, "{text}");
        }
    }
}

#[tokio::test]
async fn a_large_source_is_compiled_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let sandbox = sandbox(&folder, 1);
    let members: Vec<_> = (0..3_000).map(|n| format!("k{n}: {n}")).collect();
    let map = format!("let m = #{{ {} }}; m.len()", members.join(", "));
    let lines = format!("let x = 0;\n{}x", "x += 1;\n".repeat(9_000));
    for (text, is) in [(map, "3000"), (lines, "9000")] {
        let program = sandbox
            .program(Uuid::nil(), text.into(), NoImports)
            .await
            .unwrap();
        assert_eq!(ended(&sandbox, program).await.0, is);
    }
    let functions = |count| {
        let functions: Vec<_> = (0..count)
            .map(|n| format!("fn f{n}(x) {{ x + {n} }}\n"))
            .collect();
        functions.concat() + "f1(1)"
    };
    let mut fuel = Vec::new();
    for count in [300, 900] {
        let program = sandbox
            .program(Uuid::nil(), functions(count).into(), NoImports)
            .await
            .unwrap();
        let (told, took) = ended(&sandbox, program).await;
        assert_eq!(told, "2");
        fuel.push(took);
    }
    println!("300 and 900 functions: fuel {fuel:?}");
    assert!(fuel[1] < 10 * fuel[0], "{fuel:?}");
}

#[tokio::test]
async fn to_add_something_takes_as_long_however_much_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let sandbox = sandbox(&folder, 1);
    for (grown, by, length) in [
        ("[]", "it.push(#{ i: i })", "it.len()"),
        ("#{}", "it[`k${i}`] = i", "it.len()"),
        ("#{ a: #{ b: [] } }", "it.a.b.push(i)", "it.a.b.len()"),
        ("\"\"", "it += \"x\"", "it.len()"),
        ("\"\"", "it.append(\"x\")", "it.len()"),
        ("#{ s: \"\" }", "it.s += \"x\"", "it.s.len()"),
        ("blob()", "it.push(7)", "it.len()"),
    ] {
        let mut fuel = Vec::new();
        for count in [20_000, 40_000] {
            let text = format!("let it = {grown}; for i in 0..{count} {{ {by}; }} {length}");
            let program = sandbox
                .program(Uuid::nil(), text.into(), NoImports)
                .await
                .unwrap();
            let (told, took) = ended(&sandbox, program).await;
            assert_eq!(told, count.to_string(), "{by}");
            fuel.push(took);
        }
        println!("20,000 and 40,000 times `{by}`: fuel {fuel:?}");
        let is_linear = 10 * fuel[1] < 25 * fuel[0] && fuel[1] < Limits::DEFAULT.fuel / 2;
        assert!(is_linear, "{by}: {fuel:?}");
    }
}

#[tokio::test]
async fn what_calls_itself_too_deeply_throws_as_natively() {
    let folder = tempfile::tempdir().unwrap();
    let sandbox = sandbox(&folder, 1);
    for text in [
        "fn f(n) { if n == 0 { 0 } else { [n].map(|x| f(x - 1))[0] + 1 } } f(22)",
        "fn g(n) { f(n - 1) } fn f(n) { if n == 0 { 0 } else { g.call(n) + 1 } } f(32)",
    ] {
        let program = sandbox.program(Uuid::nil(), text.into(), NoImports).await;
        for program in [program.unwrap(), source(text)] {
            let told = ended(&sandbox, program).await.0;
            assert!(told.contains("Stack overflow"), "{text}: {told}");
        }
    }
}

#[tokio::test]
async fn a_value_that_is_deep_ends_in_no_trap() {
    let folder = tempfile::tempdir().unwrap();
    let sandbox = sandbox(&folder, 1);
    for depth in [700, 1_000, 1_300] {
        for around in ["[v]", "#{ m: v }", "[#{ m: v }]"] {
            for then in ["v", "let w = v; w == v", "print(v); 1", "throw v"] {
                let text = format!("let v = (); for n in 0..{depth} {{ v = {around}; }} {then}");
                let program = sandbox
                    .program(Uuid::nil(), text.as_str().into(), NoImports)
                    .await;
                for program in [program.unwrap(), source(&text)] {
                    let outcome = sandbox.execute(job(program)).await.outcome;
                    let is_told = matches!(
                        outcome,
                        Outcome::Answered(_)
                            | Outcome::InvalidResponse(_)
                            | Outcome::StackOverflow
                            | Outcome::Threw(_)
                    );
                    assert!(is_told, "{text}: {outcome:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn what_grows_without_bound_ends_at_a_bound() {
    let folder = tempfile::tempdir().unwrap();
    let sandbox = sandbox(&folder, 1);
    for (text, is) in [
        ("let s = \"x\"; loop { s += s; }", "MemoryExceeded"),
        ("let a = [1]; loop { a.push(a); }", "MemoryExceeded"),
        ("let a = []; loop { a.push(0); }", "FuelUsedUp"),
        (
            "let m = #{ a: 1 }; loop { m.b = m; m.a = m; }",
            "MemoryExceeded",
        ),
        ("blob(5_000_000_000)", "MemoryExceeded"),
        ("let a = []; a.pad(3_000_000_000, 0);", "MemoryExceeded"),
        ("let s = \"\"; s.pad(4_000_000_000, 'x');", "MemoryExceeded"),
        ("let a = []; loop { a = [a]; }", "FuelUsedUp"),
        ("let m = #{}; loop { m = #{ m: m }; }", "StackOverflow"),
    ] {
        for program in [
            sandbox
                .program(Uuid::nil(), text.into(), NoImports)
                .await
                .unwrap(),
            source(text),
        ] {
            assert_eq!(ended(&sandbox, program).await.0, is, "{text}");
        }
    }
    assert_eq!(ended(&sandbox, source("1")).await.0, "1");
}
