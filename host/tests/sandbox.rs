//! The sandbox by itself: what only shows where no gate stands before it.

#![allow(
    clippy::unwrap_used,
    reason = "a test may end where it finds something odd"
)]

use std::sync::Arc;

use picloud::sandbox::{
    Code, Job, Limits, NoImports, Outcome, Program, ProgramError, RHAI_GUEST, Sandbox,
    SandboxConfig,
};

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
        let program = sandbox.program(text.as_str().into(), NoImports).await;
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
    let text = "let n = 1;\n".repeat(10_000) + "n + 1";
    let program = sandbox.program(text.into(), NoImports).await.unwrap();
    assert!(matches!(program, Program::Source(_)));
    let Outcome::Answered(answer) = sandbox.execute(job(program)).await.outcome else {
        panic!("no answer");
    };
    assert_eq!(answer.body, "2");
    let invalid = sandbox.program("let n = ;".into(), NoImports).await;
    assert!(matches!(invalid, Err(ProgramError::Invalid(found)) if found.len() == 1));
    let unlike = sandbox.execute(job(source("let n = ;"))).await.outcome;
    assert!(matches!(unlike, Outcome::InvalidSource(_)), "{unlike:?}");
}
