//! What one execution costs inside the host, against native Rhai with an engine per call.
//! Prints one JSON object; `cargo xtask bench` runs it.

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
const RUNS: usize = 3_000;
const LOOP: &str = "let sum = 0; for n in 0..1000000 { sum += n; } sum";
const LOOP_RUNS: usize = 7;

fn job(source: &Arc<str>) -> Job<NoImports> {
    let request = Request {
        method: "GET".into(),
        path: "/hello".into(),
        query: vec![("name".into(), "Ada".into())],
        ..Request::default()
    };
    let context = Context {
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
    };
    Job {
        code: Code::Rhai(source.clone()),
        request: Some(request),
        context: Arc::new(context),
        limits: Limits::DEFAULT,
        imports: NoImports,
    }
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

#[tokio::main]
async fn main() {
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
    let source: Arc<str> = SOURCE.into();
    let (mut ours, mut baseline) = (Vec::new(), Vec::new());
    // Turn by turn, so that both see the same machine.
    for turn in 0..RUNS + 200 {
        let report = sandbox.execute(job(&source)).await;
        assert!(
            matches!(report.outcome, Outcome::Answered(_)),
            "{:?}",
            report.outcome
        );
        let native = native();
        if turn >= 200 {
            ours.push(report.duration);
            baseline.push(native);
        }
    }
    let source: Arc<str> = LOOP.into();
    let (mut looped, mut native_looped) = (Vec::new(), Vec::new());
    for _ in 0..LOOP_RUNS {
        let report = sandbox.execute(job(&source)).await;
        assert!(
            matches!(report.outcome, Outcome::Answered(_)),
            "{:?}",
            report.outcome
        );
        looped.push(report.duration);
        native_looped.push(native_loop());
    }
    let (ours, baseline) = (median_us(ours), median_us(baseline));
    let (looped, native_looped) = (median_us(looped) / 1e3, median_us(native_looped) / 1e3);
    println!(
        "{{\"fresh_us\": {ours:.1}, \"native_engine_per_call_us\": {baseline:.1}, \
         \"loop_ms\": {looped:.1}, \"native_loop_ms\": {native_looped:.1}}}"
    );
}
