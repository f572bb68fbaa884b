//! The sandbox by itself: what only shows where no gate stands before it.

#![allow(
    clippy::unwrap_used,
    reason = "a test may end where it finds something odd"
)]

use std::sync::Arc;

use picloud::sandbox::{
    Code, Context, Job, Limits, NoImports, Outcome, RHAI_GUEST, Sandbox, SandboxConfig,
};
use uuid::Uuid;

fn job(source: &str) -> Job<NoImports> {
    let context = Context {
        app_id: Uuid::nil(),
        app_slug: "test".into(),
        script_id: Uuid::nil(),
        script_name: "test".into(),
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
        code: Code::Rhai(source.into()),
        request: None,
        context: Arc::new(context),
        limits: Limits::DEFAULT,
        imports: NoImports,
    }
}

#[tokio::test]
async fn an_exhausted_pool_is_said_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let sandbox = Arc::new(
        Sandbox::new(SandboxConfig {
            guest: RHAI_GUEST,
            cache_dir: folder.path().to_owned(),
            key: [7; 32],
            executions_max: 1,
            threads: 2,
            memory_bytes_max: Limits::DEFAULT.memory_bytes,
        })
        .unwrap(),
    );
    let running: Vec<_> = (0..200)
        .map(|_| {
            let sandbox = sandbox.clone();
            tokio::spawn(async move { sandbox.execute(job("sleep(2); 1")).await.outcome })
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
    let after = sandbox.execute(job("1")).await.outcome;
    assert!(matches!(after, Outcome::Answered(_)), "{after:?}");
}
