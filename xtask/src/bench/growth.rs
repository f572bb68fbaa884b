//! What a request costs as scripts and apps become many.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Bench;
use super::load::{for_each, median, wrk};
use super::report::{Row, thousands};
use super::server::Server;
use super::sync::SCRIPT;

const FEW_SCRIPTS: u32 = 10;
/// How long the making of many may take: with each script, making the next takes longer.
const MAKING: Duration = Duration::from_secs(300);

/// The processor time of a request with many scripts, and with many apps ÷ with few.
pub(super) fn rows(bench: &Bench) -> Result<Vec<Row>> {
    let scale = &bench.scale;
    let few = Server::start(bench, "few", &[])?;
    create_scripts(&few, FEW_SCRIPTS)?;
    let scripts = Server::start(bench, "many-scripts", &[])?;
    let script_count = crate::step(&format!("make {} scripts", scale.scripts), || {
        create_scripts(&scripts, scale.scripts)
    })?;
    let apps = Server::start(bench, "many-apps", &[])?;
    let app_count = crate::step(&format!("make {} apps", scale.apps), || {
        create_apps(&apps, scale.apps)
    })?;
    let spread = bench.root.join("tests/bench/spread.lua");
    let target = |server: &Server, what: &str, count: u32| {
        let count = count.to_string();
        let target = server.target("growth", "/hello");
        target.scripted(spread.clone(), &[what, &count])
    };
    let servers = [
        (&few, target(&few, "routes", FEW_SCRIPTS)),
        (&scripts, target(&scripts, "routes", script_count)),
        (&apps, target(&apps, "apps", app_count)),
    ];
    for (_, target) in &servers {
        wrk(target, 32, 1)?;
    }
    let (mut with_scripts, mut with_apps) = (Vec::new(), Vec::new());
    for _ in 0..scale.rounds {
        let mut costs = Vec::new();
        for (server, target) in &servers {
            costs.push(server.cost(target, scale.seconds_of_a_turn)?);
        }
        with_scripts.push(costs[1] / costs[0]);
        with_apps.push(costs[2] / costs[0]);
    }
    let scripts = format!(
        "cost of a request: {} scripts ÷ {FEW_SCRIPTS}",
        thousands(script_count.into())
    );
    let apps = format!(
        "cost of a request: {} apps ÷ 1",
        thousands(app_count.into())
    );
    Ok([(scripts, with_scripts), (apps, with_apps)]
        .into_iter()
        .map(|(name, ratios)| {
            Row::new(name, median(ratios), "×")
                .at_most(1.3)
                .moonshot(1.0)
        })
        .collect())
}

/// In one app, with a route each; how many were made.
fn create_scripts(server: &Server, count: u32) -> Result<u32> {
    let app = server.api_post("/api/v1/apps", &json!({ "slug": "grown" }))?;
    let app = id(&app)?;
    in_time(count, |n| create_script(server, app, &format!("hello-{n}")))
}

/// With a host, a script and a route each; how many were made.
fn create_apps(server: &Server, count: u32) -> Result<u32> {
    in_time(count, |n| {
        let slug = format!("app-{n}");
        let app = json!({ "slug": slug, "hosts": [format!("{slug}.localhost")] });
        let app = server.api_post("/api/v1/apps", &app)?;
        create_script(server, id(&app)?, "hello")
    })
}

/// Make the first of so many, as far as the time goes; how many that were.
fn in_time(count: u32, make: impl Fn(u32) -> Result<()> + Sync) -> Result<u32> {
    let begun = Instant::now();
    let made = AtomicU32::new(0);
    for_each(count, |n| {
        if begun.elapsed() < MAKING {
            make(n)?;
            made.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })?;
    let made = made.into_inner();
    if made < count {
        eprintln!("NOTE: only {made} of {count} could be made in {MAKING:?}");
    }
    Ok(made)
}

fn create_script(server: &Server, app: &str, name: &str) -> Result<()> {
    // No two sources are the same.
    let source = format!("// {app} {name}\n{SCRIPT}");
    let path = format!("/api/v1/apps/{app}/scripts");
    let script = server.api_post(&path, &json!({ "name": name, "source": source }))?;
    let route = json!({ "script_id": id(&script)?, "method": "GET", "path": format!("/{name}") });
    server.api_post(&format!("/api/v1/apps/{app}/routes"), &route)?;
    Ok(())
}

fn id(made: &Value) -> Result<&str> {
    made["id"].as_str().context("no id")
}
