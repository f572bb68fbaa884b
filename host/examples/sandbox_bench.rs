//! What one execution costs inside the host, against native Rhai with an engine per call.
//! Prints one JSON object; `cargo xtask bench` runs it with how many runs it shall make.

use std::sync::Arc;
use std::time::{Duration, Instant};

use picloud::sandbox::{
    Code, CompileLimits, Job, Limits, NoImports, Outcome, Program, RHAI_GUEST, Request, Sandbox,
    SandboxConfig,
};
use uuid::Uuid;

// The product's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SOURCE: &str = include_str!("../../tests/bench/hello.rhai");
const NATIVE_SOURCE: &str = r#"
let name = request.query.name;
#{ hello: name, method: request.method }
"#;
/// As long as scripts become; a request runs a part of it.
const LONG: &str = include_str!("../../tests/bench/orders.rhai");
/// What that script answers to a method that it does not know.
const REFUSING: &str = "#{ statusCode: 405, body: () }";
/// Runs before those that count.
const WARM_UP: usize = 200;
const LOOP: &str = "let sum = 0; for n in 0..1000000 { sum += n; } sum";
const LOOP_RUNS: usize = 7;

/// Answer `GET /hello?name=Ada` in a fresh instance; how long that took.
async fn run(sandbox: &Sandbox<NoImports>, program: &Program) -> Duration {
    ask(sandbox, program, "GET").await
}

/// The same with any method.
async fn ask(sandbox: &Sandbox<NoImports>, program: &Program, method: &str) -> Duration {
    let request = Request {
        method: method.into(),
        path: "/hello".into(),
        query: vec![("name".into(), "Ada".into())],
        ..Request::default()
    };
    let job = Job {
        code: Code::Rhai(program.clone()),
        request: Some(request),
        context: Arc::default(),
        limits: Limits::DEFAULT,
        imports: NoImports,
    };
    let report = sandbox.execute(job).await;
    match report.outcome {
        Outcome::Answered(_) => report.duration,
        other => panic!("{other:?}"),
    }
}

/// The program of a source, as it is kept.
async fn compile(sandbox: &Sandbox<NoImports>, source: &str) -> Program {
    let program = sandbox.program(Uuid::nil(), source.into(), NoImports).await;
    let program = program.expect("it is valid");
    assert!(matches!(program, Program::Image(_)), "it can be kept");
    program
}

fn native() -> Duration {
    let started = Instant::now();
    let engine = rhai::Engine::new();
    let query = rhai::Map::from([("name".into(), "Ada".into())]);
    let request = rhai::Map::from([
        ("query".into(), query.into()),
        ("method".into(), "GET".into()),
    ]);
    let mut scope = rhai::Scope::new();
    scope.push_constant("request", request);
    let ast = engine.compile(NATIVE_SOURCE);
    let value = ast.map(|ast| engine.eval_ast_with_scope::<rhai::Dynamic>(&mut scope, &ast));
    let took = started.elapsed();
    assert!(matches!(value, Ok(Ok(_))), "the baseline does not run");
    took
}

fn native_loop() -> Duration {
    let engine = rhai::Engine::new();
    let started = Instant::now();
    let sum = engine.eval::<i64>(LOOP);
    let took = started.elapsed();
    assert!(sum.is_ok(), "the baseline does not run");
    took
}

fn median_us(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e6
}

/// A small script, compiled for the run and kept; and native Rhai with an engine per call; turn
/// by turn, so that all see the same machine. In microseconds.
async fn small(sandbox: &Sandbox<NoImports>, runs: usize) -> (f64, f64, f64) {
    let source = Program::Source(SOURCE.into());
    let kept = compile(sandbox, SOURCE).await;
    let mut times = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..runs + WARM_UP {
        let (whole, kept) = (run(sandbox, &source).await, run(sandbox, &kept).await);
        let native = native();
        if turn >= WARM_UP {
            times.0.push(whole);
            times.1.push(kept);
            times.2.push(native);
        }
    }
    (median_us(times.0), median_us(times.1), median_us(times.2))
}

/// A long script: compiled for the run; kept; and kept with its program already in place. Getting
/// it there costs what a request that it refuses at once takes longer than with a script that
/// can do nothing else. In microseconds.
async fn long(sandbox: &Sandbox<NoImports>, runs: usize) -> (f64, f64, f64) {
    let source = Program::Source(LONG.into());
    let (long, refusing) = (
        compile(sandbox, LONG).await,
        compile(sandbox, REFUSING).await,
    );
    let mut times = <[Vec<Duration>; 4]>::default();
    for turn in 0..runs / 5 + WARM_UP {
        let all = [
            run(sandbox, &source).await,
            run(sandbox, &long).await,
            ask(sandbox, &long, "PUT").await,
            ask(sandbox, &refusing, "PUT").await,
        ];
        if turn >= WARM_UP {
            times
                .iter_mut()
                .zip(all)
                .for_each(|(times, took)| times.push(took));
        }
    }
    let [whole, kept, refused, nothing] = times.map(median_us);
    (whole, kept, kept - (refused - nothing))
}

/// A loop with fuel and deadline, and natively, in milliseconds.
async fn looped(sandbox: &Sandbox<NoImports>) -> (f64, f64) {
    let program = compile(sandbox, LOOP).await;
    let (mut ours, mut native) = (Vec::new(), Vec::new());
    for _ in 0..LOOP_RUNS {
        ours.push(run(sandbox, &program).await);
        native.push(native_loop());
    }
    (median_us(ours) / 1e3, median_us(native) / 1e3)
}

#[tokio::main]
async fn main() {
    let runs = std::env::args().nth(1).map(|runs| runs.parse());
    let runs = runs.and_then(Result::ok).unwrap_or(3_000);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = SandboxConfig {
        guest: RHAI_GUEST,
        cache_dir: folder.path().to_owned(),
        key: [7; 32],
        executions_max: 64,
        threads: 1,
        memory_bytes_max: Limits::DEFAULT.memory_bytes,
        memory_bytes_of_all: u64::MAX / 2,
        compile: CompileLimits::DEFAULT,
        cache_bytes_max: u64::MAX,
        precise_clock_apps: Vec::new(),
    };
    let sandbox = Sandbox::new(config).expect("a sandbox");
    let (fresh, kept, native) = small(&sandbox, runs).await;
    let (long, long_kept, long_in_place) = long(&sandbox, runs).await;
    let (looped, native_looped) = looped(&sandbox).await;
    println!(
        "{{\"fresh_us\": {fresh:.1}, \"kept_us\": {kept:.1}, \
         \"native_engine_per_call_us\": {native:.1}, \"long_us\": {long:.1}, \
         \"long_kept_us\": {long_kept:.1}, \"long_in_place_us\": {long_in_place:.1}, \
         \"loop_ms\": {looped:.1}, \"native_loop_ms\": {native_looped:.1}}}"
    );
}
