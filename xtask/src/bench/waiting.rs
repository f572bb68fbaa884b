//! Executions that wait inside the sandbox, many at once.

use std::time::Duration;

use anyhow::Result;

use super::Bench;
use super::load::wrk;
use super::report::{Row, thousands};
use super::server::Server;

/// How many wait at once where only time and the peak count.
const SLEEPERS: u32 = 2_000;
/// How long those wait whose memory is measured, and how long they are looked at. So each
/// connection carries one request: a next one could come before the place of the one before is free.
const NAP: &str = "sleep(6); 1";
const LOOK_SECONDS: u32 = 5;
/// No single app may take all places of a node.
const APPS: u32 = 2;

/// What a server needs more for each of so many that wait than when it was idle, at the worst
/// moment, in KiB.
fn memory_of_each(bench: &Bench, count: u32) -> Result<f64> {
    // Its gate admits a few more, for what else goes on.
    let most = (count + count / 50).to_string();
    let server = Server::start(bench, "waiting", &[("executions-max", &most)])?;
    for n in 0..APPS {
        let (app, host) = (format!("app-{n}"), format!("app-{n}.localhost"));
        server.deploy(&app, "nap", NAP, &[])?;
        server.cli_json(&["apps", "update", &app, "--host", &host])?;
    }
    let spread = bench.root.join("tests/bench/spread.lua");
    let target = server.target("naps", "/nap");
    let target = target.scripted(spread, &["apps", &APPS.to_string()]);
    let idle = server.proportional_mib()?;
    let mut most = idle;
    std::thread::scope(|scope| {
        let calls = scope.spawn(|| wrk(&target, count, LOOK_SECONDS));
        while !calls.is_finished() {
            most = server.proportional_mib()?.max(most);
            std::thread::sleep(Duration::from_millis(200));
        }
        calls.join().expect("it does not panic")
    })?;
    Ok((most - idle) * 1024.0 / f64::from(count))
}

/// On a server of its own: what waits leaves its slots resident for what comes after.
pub(super) fn rows(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for count in [bench.scale.waiting, bench.scale.waiting / 2] {
        match memory_of_each(bench, count) {
            Ok(each) => {
                let count = thousands(count.into());
                let name = format!("{count} executions that wait at once: memory of each");
                rows.push(Row::new(name, each, "KiB").at_most(400.0).moonshot(150.0));
                break;
            }
            // The server admits fewer where the kernel's limit on memory maps is low.
            Err(error) => {
                eprintln!("NOTE: {count} could not wait at once, so half of them do: {error:#}");
            }
        }
    }

    let server = Server::start(bench, "sleepers", &[])?;
    server.deploy("bench", "sleep", "sleep(1); 1", &[])?;
    let target = server.target("sleep", "/sleep");
    let load = wrk(&target, SLEEPERS, LOOK_SECONDS)?;
    let name = format!(
        "{} × sleep(1) at once: the last answer",
        thousands(SLEEPERS.into())
    );
    rows.push(Row::new(name, load.max_ms / 1e3, "s").at_most(3.0));
    let peak = server.memory_mib("VmHWM")?;
    rows.push(Row::new("  the server's peak memory", peak, "MiB").at_most(1_536.0));
    Ok(rows)
}
