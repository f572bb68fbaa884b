//! What the server does on this machine: a table for people, JSON for comparing.

mod deliveries;
mod flame;
mod server;
mod sync;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use flame::run as flame;
use server::Server;

use crate::postgres::Postgres;

const SCRIPT: &str = r#"
let name = ctx.request.query.get_or("name", "world");
#{ hello: name, method: ctx.request.method }
"#;
/// Requests that wait inside the sandbox at once.
const SLEEPERS: usize = 2_000;

/// One line of the table.
struct Measure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    /// What it must be: at least if positive, at most if negative, whatever it is if zero.
    goal: f64,
}

/// Measure everything; shorter with `quick`.
pub fn run(root: &Path, quick: bool) -> Result<()> {
    crate::guest::build(root)?;
    crate::step("build the server and the benchmark", || {
        let mut build = Command::new(crate::cargo());
        build
            .current_dir(root)
            .args(["build", "--release", "--locked", "--package", "picloud"])
            .args(["--bins"])
            .args(["--example", "sandbox_bench", "--example", "claim_bench"]);
        crate::run(&mut build)
    })?;
    let folder = root.join("target/bench");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    let seconds = if quick { 2 } else { 10 };
    let mut measures = Vec::new();

    let sandbox = crate::step("one execution, inside the host", || {
        let program = root.join("target/release/examples/sandbox_bench");
        let output = Command::new(program).output()?;
        Ok(String::from_utf8(output.stdout)?)
    })?;
    let ours = number_after(&sandbox, "\"fresh_us\": ")?;
    let native = number_after(&sandbox, "\"native_engine_per_call_us\": ")?;
    measures.push(measure(
        "fresh instance, compile, run: median",
        ours,
        "µs",
        -150.0,
    ));
    measures.push(measure(
        "native Rhai, an engine per call ÷ that",
        native / ours,
        "×",
        2.0,
    ));

    let looped = number_after(&sandbox, "\"loop_ms\": ")?;
    let native_loop = number_after(&sandbox, "\"native_loop_ms\": ")?;
    let name = "a loop of 1,000,000 turns, fuel and deadline on ÷ native Rhai";
    measures.push(measure(name, looped / native_loop, "×", -1.6));

    let mut server = Server::start(root, &folder, None)?;
    measures.push(measure(
        "first start to first answer",
        server.took.as_secs_f64(),
        "s",
        -5.0,
    ));
    server.stop()?;
    let server = Server::start(root, &folder, None)?;
    measures.push(measure(
        "second start to first answer",
        server.took.as_secs_f64(),
        "s",
        -0.5,
    ));
    server.log_in(&folder)?;
    server.deploy(&folder, "bench", "hello", SCRIPT, &[])?;
    server.deploy(&folder, "bench", "sleep", "sleep(1); 1", &[])?;
    server.get("/hello?name=Ada")?;
    std::thread::sleep(Duration::from_secs(1));
    measures.push(measure(
        "idle memory",
        server.memory_mib("VmRSS")?,
        "MiB",
        -120.0,
    ));

    let many = crate::step("sync route, 32 connections", || wrk(&server, 32, seconds))?;
    measures.push(measure(
        "sync route, 32 connections",
        many.rate,
        "requests/s",
        5_000.0,
    ));
    measures.push(measure("  its p50", many.p50_ms, "ms", -5.0));
    measures.push(measure("  its p99", many.p99_ms, "ms", -25.0));
    let one = crate::step("sync route, 1 connection", || wrk(&server, 1, seconds))?;
    measures.push(measure(
        "sync route, 1 connection: p50",
        one.p50_ms,
        "ms",
        -0.5,
    ));

    let peers = install_peers(root, &folder)?;
    if let Some(peers) = &peers {
        measures.extend(crate::step("beside workerd", || {
            sync::beside_workerd(&server, peers, seconds)
        })?);
    }
    let postgres = Postgres::start()?;
    let on_postgres = {
        let own = folder.join("sync-on-postgres");
        std::fs::create_dir_all(&own)?;
        let url = postgres.create_database("sync")?;
        let on_postgres = Server::start(root, &own, Some(&url))?;
        on_postgres.log_in(&own)?;
        on_postgres.deploy(&own, "bench", "hello", SCRIPT, &[])?;
        measures.extend(crate::step("Postgres beside SQLite", || {
            sync::beside_sqlite(&on_postgres, &server, seconds)
        })?);
        crate::step("reads of a script", || sync::kv_get(&on_postgres, &own))?
    };
    let name = "KV get from a script, SQLite";
    let on_sqlite = sync::kv_get(&server, &folder)?;
    measures.push(measure(name, on_sqlite, "µs", -60.0));
    let name = "KV get from a script, Postgres";
    measures.push(measure(name, on_postgres, "µs", -300.0));
    let api = crate::step("the API beside guests that loop", || {
        sync::api_beside_loops(&server, &folder, seconds)
    })?;
    let name = "API p99 while four guests loop";
    measures.push(measure(name, api, "ms", -50.0));

    // Before the first of them: what they leave in their slots stays resident for the next.
    let idle = server.proportional_mib()?;
    let slept = crate::step("2,000 requests that wait 1 s at once", || sleepers(&server))?;
    measures.push(measure(
        "2,000 × sleep(1) at once: all answered",
        slept.as_secs_f64(),
        "s",
        -3.0,
    ));
    measures.push(measure(
        "  the server's peak memory",
        server.memory_mib("VmHWM")?,
        "MiB",
        -1_536.0,
    ));
    let each = crate::step("the memory of each", || memory_of_sleepers(&server, idle))?;
    let name = "  memory of each while it waits (pages that are shared count once)";
    measures.push(measure(name, each, "KiB", -400.0));
    drop(server);
    measures.extend(deliveries::measure(
        root,
        &folder,
        &postgres,
        peers.as_deref(),
        seconds,
    )?);

    report(&folder.join("bench.json"), &measures)
}

/// Install what people would use instead; nothing where there is no npm.
fn install_peers(root: &Path, folder: &Path) -> Result<Option<PathBuf>> {
    let peers = folder.join("peers");
    std::fs::create_dir_all(&peers)?;
    for file in std::fs::read_dir(root.join("tests/bench"))? {
        let file = file?;
        std::fs::copy(file.path(), peers.join(file.file_name()))?;
    }
    let mut install = Command::new("npm");
    install
        .current_dir(&peers)
        .args(["install", "--no-audit", "--no-fund", "--silent"]);
    if !install.status().is_ok_and(|status| status.success()) {
        eprintln!("NOTE: the peers could not be installed with npm; they are left out");
        return Ok(None);
    }
    Ok(Some(peers))
}

fn measure(name: &'static str, value: f64, unit: &'static str, goal: f64) -> Measure {
    Measure {
        name,
        value,
        unit,
        goal,
    }
}

fn report(path: &Path, measures: &[Measure]) -> Result<()> {
    let mut json = Vec::new();
    println!(
        "\n{:<62} {:>12}  {:<11} {:>12}",
        "what", "measured", "", "goal"
    );
    for Measure {
        name,
        value,
        unit,
        goal,
    } in measures
    {
        let met = match *goal {
            goal if goal > 0.0 => *value >= goal,
            goal if goal < 0.0 => *value <= -goal,
            _ => true,
        };
        let mark = if met { "" } else { "  MISSED" };
        let bound = match *goal {
            goal if goal > 0.0 => format!("≥ {goal:>10}"),
            goal if goal < 0.0 => format!("≤ {:>10}", -goal),
            _ => String::new(),
        };
        println!("{name:<62} {value:>12.2}  {unit:<11} {bound}{mark}");
        json.push(format!(
            "  {{\"name\": \"{}\", \"value\": {value}, \"unit\": \"{unit}\", \"met\": {met}}}",
            name.trim()
        ));
    }
    std::fs::write(path, format!("[\n{}\n]\n", json.join(",\n")))?;
    println!("\nwritten to {}", path.display());
    Ok(())
}

fn number_after(text: &str, start: &str) -> Result<f64> {
    let (_, rest) = text
        .split_once(start)
        .with_context(|| format!("no `{start}` in {text}"))?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    Ok(rest[..end].parse()?)
}

struct Load {
    requests: f64,
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// Let wrk call `/hello`; one thread of it, for it shares the cores with the server.
fn wrk(server: &Server, connections: u32, seconds: u32) -> Result<Load> {
    let url = format!("{}/hello?name=Ada", server.url());
    wrk_at(&url, connections, seconds)
}

fn wrk_at(url: &str, connections: u32, seconds: u32) -> Result<Load> {
    let call = |seconds: u32| -> Result<String> {
        let output = Command::new("wrk")
            .args([
                "--latency",
                "-t1",
                &format!("-c{connections}"),
                &format!("-d{seconds}s"),
            ])
            .arg(url)
            .output()
            .context("wrk is not installed; run `cargo xtask setup --bench`")?;
        Ok(String::from_utf8(output.stdout)?)
    };
    call(1)?;
    let said = call(seconds)?;
    if said.contains("Non-2xx") {
        bail!("not every answer was 200:\n{said}");
    }
    let after = |start: &str| -> Result<&str> {
        let found = said
            .lines()
            .find_map(|line| line.trim().strip_prefix(start));
        found
            .map(str::trim)
            .with_context(|| format!("no `{start}` in:\n{said}"))
    };
    let requests = said
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .and_then(|(count, _)| count.parse().ok())
        .with_context(|| format!("no number of requests in:\n{said}"))?;
    Ok(Load {
        requests,
        rate: after("Requests/sec:")?.parse()?,
        p50_ms: milliseconds(after("50%")?)?,
        p99_ms: milliseconds(after("99%")?)?,
    })
}

/// `614.00us`, `3.31ms`, `1.02s`.
fn milliseconds(text: &str) -> Result<f64> {
    for (unit, factor) in [("us", 0.001), ("ms", 1.0), ("s", 1_000.0)] {
        if let Some(number) = text
            .strip_suffix(unit)
            .and_then(|number| number.parse::<f64>().ok())
        {
            return Ok(number * factor);
        }
    }
    bail!("`{text}` is no time")
}

/// What the server needs more for each of them than when it was idle, in KiB, at the worst moment.
fn memory_of_sleepers(server: &Server, idle: f64) -> Result<f64> {
    let most = std::thread::scope(|scope| {
        let calls = scope.spawn(|| sleepers(server));
        let mut most = idle;
        while !calls.is_finished() {
            most = server.proportional_mib()?.max(most);
            std::thread::sleep(Duration::from_millis(50));
        }
        calls.join().expect("it does not panic").map(|_| most)
    })?;
    Ok((most - idle) * 1024.0 / SLEEPERS as f64)
}

/// All at once, each on a connection of its own; how long until the last is answered.
fn sleepers(server: &Server) -> Result<Duration> {
    let started = Instant::now();
    let failed = std::thread::scope(|scope| {
        let call = || server.get("/sleep");
        let calls: Vec<_> = (0..SLEEPERS)
            .map(|_| {
                std::thread::Builder::new()
                    .stack_size(128 * 1024)
                    .spawn_scoped(scope, call)
            })
            .collect();
        let failures = calls.into_iter().map(|call| match call {
            Ok(call) => call.join().map_or(Some("a panic".to_owned()), |done| {
                done.err().map(|e| e.to_string())
            }),
            Err(error) => Some(error.to_string()),
        });
        failures.flatten().collect::<Vec<_>>()
    });
    if let Some(first) = failed.first() {
        bail!(
            "{} of {SLEEPERS} failed, the first with: {first}",
            failed.len()
        );
    }
    Ok(started.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrks_times_are_read() {
        for (text, ms) in [("614.00us", 0.614), ("3.31ms", 3.31), ("1.02s", 1020.0)] {
            assert!((milliseconds(text).unwrap() - ms).abs() < 1e-9, "{text}");
        }
        assert!(milliseconds("soon").is_err());
    }
}
