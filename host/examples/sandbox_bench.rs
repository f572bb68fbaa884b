//! What one execution costs inside the host, against native Rhai with an engine per call.
//! Prints one JSON object; `cargo xtask bench` runs it with how many runs it shall make.

use std::sync::Arc;
use std::time::{Duration, Instant};

use picloud::sandbox::{
    Code, Context, Job, Limits, NoImports, Outcome, RHAI_GUEST, Request, Sandbox, SandboxConfig,
};
use uuid::Uuid;

const SOURCE: &str = r#"
let name = ctx.request.query.get_or("name", "world");
#{ hello: name, method: ctx.request.method }
"#;
const NATIVE_SOURCE: &str = r#"
let name = request.query.name;
#{ hello: name, method: request.method }
"#;
/// As long as scripts become; a request runs a part of it.
const LONG: &str = include_str!("../../tests/bench/orders.rhai");
/// Runs before those that count.
const WARM_UP: usize = 200;
const LOOP: &str = "let sum = 0; for n in 0..1000000 { sum += n; } sum";
const LOOP_RUNS: usize = 7;

fn context() -> Arc<Context> {
    Arc::new(Context {
        app_id: Uuid::nil(),
        app_slug: "bench".into(),
        script_id: Uuid::nil(),
        script_name: "bench".into(),
        script_version: 1,
        execution_id: Uuid::nil(),
        request_id: Uuid::nil(),
        invocation_type: "http".into(),
        principal: None,
        trigger_depth: 0,
        attempt: 1,
        event: None,
    })
}

/// Answer `GET /hello?name=Ada` in a fresh instance; how long that took.
async fn run(sandbox: &Sandbox<NoImports>, source: &Arc<str>) -> Duration {
    let request = Request {
        method: "GET".into(),
        path: "/hello".into(),
        query: vec![("name".into(), "Ada".into())],
        ..Request::default()
    };
    let job = Job {
        code: Code::Rhai(source.clone()),
        request: Some(request),
        context: context(),
        limits: Limits::DEFAULT,
        imports: NoImports,
    };
    let report = sandbox.execute(job).await;
    match report.outcome {
        Outcome::Answered(answer) if answer.status == 200 => report.duration,
        other => panic!("{other:?}"),
    }
}

/// Parse a source in a fresh instance and do no more; how long that took.
async fn validate(sandbox: &Sandbox<NoImports>, source: &Arc<str>) -> Duration {
    let started = Instant::now();
    let found = sandbox.validate(source.clone(), context(), NoImports).await;
    let took = started.elapsed();
    assert!(found.is_ok_and(|found| found.is_empty()), "it is valid");
    took
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

/// A small script, and native Rhai with an engine per call, turn by turn, so that both see the
/// same machine. In microseconds.
async fn small(sandbox: &Sandbox<NoImports>, runs: usize) -> (f64, f64) {
    let source: Arc<str> = SOURCE.into();
    let (mut ours, mut baseline) = (Vec::new(), Vec::new());
    for turn in 0..runs + WARM_UP {
        let (run, native) = (run(sandbox, &source).await, native());
        if turn >= WARM_UP {
            ours.push(run);
            baseline.push(native);
        }
    }
    (median_us(ours), median_us(baseline))
}

/// A long script: fresh, compiled and run; and how much of that is its parsing. The latter is
/// what its validation takes (a fresh instance that parses it and ends) beyond the validation of
/// next to nothing. A parsed script that were kept could save no more than that: getting it into
/// a fresh instance would cost something, too. In microseconds.
async fn long(sandbox: &Sandbox<NoImports>, runs: usize) -> (f64, f64) {
    let (source, nothing): (Arc<str>, Arc<str>) = (LONG.into(), "()".into());
    let (mut whole, mut parsed, mut empty) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..runs / 5 + WARM_UP {
        let run = run(sandbox, &source).await;
        let parse = validate(sandbox, &source).await;
        let nothing = validate(sandbox, &nothing).await;
        if turn >= WARM_UP {
            whole.push(run);
            parsed.push(parse);
            empty.push(nothing);
        }
    }
    (median_us(whole), median_us(parsed) - median_us(empty))
}

/// A loop with fuel and deadline, and natively, in milliseconds.
async fn looped(sandbox: &Sandbox<NoImports>) -> (f64, f64) {
    let source: Arc<str> = LOOP.into();
    let (mut ours, mut native) = (Vec::new(), Vec::new());
    for _ in 0..LOOP_RUNS {
        ours.push(run(sandbox, &source).await);
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
    };
    let sandbox = Sandbox::new(config).expect("a sandbox");
    let (fresh, native) = small(&sandbox, runs).await;
    let (long, parse) = long(&sandbox, runs).await;
    let (looped, native_looped) = looped(&sandbox).await;
    println!(
        "{{\"fresh_us\": {fresh:.1}, \"native_engine_per_call_us\": {native:.1}, \
         \"long_us\": {long:.1}, \"long_parse_us\": {parse:.1}, \
         \"loop_ms\": {looped:.1}, \"native_loop_ms\": {native_looped:.1}}}"
    );
}
