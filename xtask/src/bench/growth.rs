//! What a request costs as scripts and apps become many.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Bench;
use super::load::{Target, for_each, median, wrk};
use super::report::{Row, thousands};
use super::server::Server;
use super::sync::SCRIPT;

const FEW_SCRIPTS: u32 = 10;

/// The processor time of a request with many scripts, and with many apps ÷ with few.
pub(super) fn rows(bench: &Bench) -> Result<Vec<Row>> {
    let scale = &bench.scale;
    let few = Server::start(bench, "few", &[])?;
    create_scripts(&few, FEW_SCRIPTS)?;
    let scripts = Server::start(bench, "many-scripts", &[])?;
    crate::step(&format!("make {} scripts", scale.scripts), || {
        create_scripts(&scripts, scale.scripts)
    })?;
    let apps = Server::start(bench, "many-apps", &[])?;
    crate::step(&format!("make {} apps", scale.apps), || {
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
        (&scripts, target(&scripts, "routes", scale.scripts)),
        (&apps, target(&apps, "apps", scale.apps)),
    ];
    for (_, target) in &servers {
        wrk(target, 32, 1)?;
    }
    let (mut with_scripts, mut with_apps) = (Vec::new(), Vec::new());
    for _ in 0..scale.rounds {
        let mut costs = Vec::new();
        for (server, target) in &servers {
            costs.push(cost(server, target, scale.seconds_of_a_turn)?);
        }
        with_scripts.push(costs[1] / costs[0]);
        with_apps.push(costs[2] / costs[0]);
    }
    let scripts = format!(
        "cost of a request: {} scripts ÷ {FEW_SCRIPTS}",
        thousands(scale.scripts.into())
    );
    let apps = format!(
        "cost of a request: {} apps ÷ 1",
        thousands(scale.apps.into())
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

/// The server's processor time for a request, in seconds: it does not see how much of the two
/// cores the load generator took.
fn cost(server: &Server, target: &Target, seconds: u32) -> Result<f64> {
    let before = server.cpu()?;
    let load = wrk(target, 32, seconds)?;
    Ok((server.cpu()? - before).as_secs_f64() / load.requests)
}

/// In one app, with a route each.
fn create_scripts(server: &Server, count: u32) -> Result<()> {
    let app = server.api_post("/api/v1/apps", &json!({ "slug": "grown" }))?;
    let app = id(&app)?;
    for_each(count, |n| create_script(server, app, &format!("hello-{n}")))
}

/// With a host, a script and a route each.
fn create_apps(server: &Server, count: u32) -> Result<()> {
    for_each(count, |n| {
        let slug = format!("app-{n}");
        let app = json!({ "slug": slug, "hosts": [format!("{slug}.localhost")] });
        let app = server.api_post("/api/v1/apps", &app)?;
        create_script(server, id(&app)?, "hello")
    })
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
