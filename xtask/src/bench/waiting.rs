//! Executions that wait inside the sandbox, many at once.

use std::time::Duration;

use anyhow::Result;

use super::Bench;
use super::load::{Load, Target, wrk};
use super::report::{Row, thousands};
use super::server::Server;

/// How many wait at once where only time and the peak count.
const SLEEPERS: u32 = 2_000;
/// The longest that one of them sleeps, twice, and time to begin.
const SECONDS: u32 = 6;

/// So many calls of a route that sleeps, over and over, on connections of their own. The memory
/// is what the server needs more for each than when it was idle, at the worst moment.
fn at_once(server: &Server, target: &Target, count: u32, idle_mib: f64) -> Result<(Load, f64)> {
    std::thread::scope(|scope| {
        let calls = scope.spawn(|| wrk(target, count, SECONDS));
        let mut most = idle_mib;
        while !calls.is_finished() {
            most = server.proportional_mib()?.max(most);
            std::thread::sleep(Duration::from_millis(200));
        }
        let load = calls.join().expect("it does not panic")?;
        Ok((load, (most - idle_mib) * 1024.0 / f64::from(count)))
    })
}

/// On a server of its own: what waits leaves its slots resident for what comes after.
pub(super) fn rows(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for count in [bench.scale.waiting, bench.scale.waiting / 2] {
        // Its gate admits a few more, for what else goes on.
        let most = (count + count / 50).to_string();
        let server = Server::start(bench, "waiting", &[("executions-max", &most)])?;
        server.deploy("bench", "sleep", "sleep(2); 1", &[])?;
        server.get("/sleep")?;
        let idle = server.proportional_mib()?;
        let target = server.target("sleep", "/sleep");
        match at_once(&server, &target, count, idle) {
            Ok((_, each)) => {
                let name = format!(
                    "{} executions that wait at once: memory of each",
                    thousands(count.into())
                );
                rows.push(Row::new(name, each, "KiB").at_most(400.0).moonshot(150.0));
                break;
            }
            // The server admits fewer where the kernel's limit on memory maps is low.
            Err(error) => {
                eprintln!("NOTE: {count} did not wait at once, half of them try: {error:#}")
            }
        }
    }

    let server = Server::start(bench, "sleepers", &[])?;
    server.deploy("bench", "sleep", "sleep(1); 1", &[])?;
    let target = server.target("sleep", "/sleep");
    let load = wrk(&target, SLEEPERS, SECONDS)?;
    let name = format!(
        "{} × sleep(1) at once: the last answer",
        thousands(SLEEPERS.into())
    );
    rows.push(Row::new(name, load.max_ms / 1e3, "s").at_most(3.0));
    let peak = server.memory_mib("VmHWM")?;
    rows.push(Row::new("  the server's peak memory", peak, "MiB").at_most(1_536.0));
    Ok(rows)
}
