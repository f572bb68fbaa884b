//! Runs one small script again and again, so that `cargo xtask instructions` can count under
//! callgrind what an execution takes: a fresh instance, the program put into it, its run.

use std::path::PathBuf;
use std::sync::Arc;

use picloud::sandbox::{
    Code, CompileLimits, Job, Limits, NoImports, Outcome, Program, RHAI_GUEST, Request, Sandbox,
    SandboxConfig,
};
use uuid::Uuid;

/// What the server uses: allocating is part of what is counted.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The script of the benchmark.
const SOURCE: &str = include_str!("../../tests/bench/hello.rhai");

fn job(program: &Program) -> Job<NoImports> {
    let request = Request {
        method: "GET".into(),
        path: "/hello".into(),
        query: vec![("name".into(), "Ada".into())],
        ..Request::default()
    };
    Job {
        code: Code::Rhai(program.clone()),
        request: Some(request),
        context: Arc::default(),
        // Under valgrind everything takes fifty times as long.
        limits: Limits {
            timeout_ms: 60_000,
            ..Limits::DEFAULT
        },
        imports: NoImports,
    }
}

fn main() {
    let mut words = std::env::args().skip(1);
    let (Some(runs), Some(cache_dir)) = (words.next(), words.next()) else {
        panic!("say how many executions, and where compiled code is kept");
    };
    let runs: usize = runs.parse().expect("a number of executions");
    let config = SandboxConfig {
        guest: RHAI_GUEST,
        cache_dir: PathBuf::from(cache_dir),
        key: [7; 32],
        // The pool reserves addresses for each, and valgrind has few of them.
        executions_max: 1,
        threads: 1,
        memory_bytes_max: Limits::DEFAULT.memory_bytes,
        memory_bytes_of_all: u64::MAX / 2,
        compile: CompileLimits::DEFAULT,
        cache_bytes_max: u64::MAX,
        precise_clock_apps: Vec::new(),
    };
    let sandbox = Sandbox::with_spare(config, 1).expect("a sandbox");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let program = runtime
        .block_on(sandbox.program(Uuid::nil(), SOURCE.into(), NoImports))
        .expect("a program");
    for _ in 0..runs {
        let report = runtime.block_on(sandbox.execute(job(&program)));
        assert!(
            matches!(report.outcome, Outcome::Answered(_)),
            "{:?}",
            report.outcome
        );
    }
}
