//! The API does what its OpenAPI document says, whatever schemathesis thinks of sending.

use std::path::Path;
use std::process::Command;

use picloud_tests::{Engine, Options, Server, on_both_engines, wait_for};
use serde_json::json;

on_both_engines!(schemathesis_finds_nothing);

fn schemathesis_finds_nothing(engine: Engine) {
    let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let options = Options {
        environment: vec![("PICLOUD_MASTER_KEY", key.to_owned())],
        ..Options::default()
    };
    let server = Server::start_with(engine, options);
    let app = server.app("shop");
    app.script("script", "throw 1");
    app.route("script", "ANY /throws");
    app.trigger(
        "kv",
        json!({ "script": "script", "collection": "orders", "retry": { "attempts_max": 1 } }),
    );
    server.get("/throws");
    app.set("orders", "first", json!(1));
    let letter = wait_for("a dead letter", || app.dead_letters("").pop());
    let program = std::env::var("PICLOUD_SCHEMATHESIS")
        .expect("run this with `cargo xtask test --only schemathesis`, which installs it");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut run = Command::new(program);
    run.current_dir(server.folder())
        .arg("--config-file")
        .arg(folder.join("schemathesis.toml"))
        .arg("run")
        .arg(format!("{}/api/v1/openapi.json", server.url))
        .env("SCHEMATHESIS_HOOKS", folder.join("schemathesis_hooks.py"))
        .env("TOKEN", &server.token)
        .env("DEAD_LETTER", letter["id"].as_str().unwrap());
    let ran = run.output().expect("schemathesis starts");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    let counted = said.lines().filter(|line| line.contains("generated"));
    for line in counted {
        picloud_tests::report(format_args!("{engine:?}: {line}"));
    }
}
