//! Deliveries: from the call that is answered 202 to the end of the script, on both databases,
//! beside the queues that people would use instead on the same Postgres.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::server::Server;
use super::{Measure, measure as line, wrk_at};
use crate::postgres::Postgres;

/// How many deliveries wait before the drain begins.
const BACKLOG: f64 = 20_000.0;
/// Calls a second for the time from the call to the start of the script.
const PACE: u64 = 500;
/// Calls in flight when they are enqueued one by one.
const IN_FLIGHT: u32 = 20;

/// Measure all of it.
pub(super) fn measure(root: &Path, folder: &Path, seconds: u32) -> Result<Vec<Measure>> {
    let postgres = Postgres::start()?;
    let mut measures = Vec::new();
    let peers = crate::step("the peers", || peers(root, folder, &postgres.url, seconds))?;
    let mut on_postgres = 0.0;
    for (name, database) in [("SQLite", None), ("Postgres", Some(postgres.url.as_str()))] {
        let own = folder.join(name);
        std::fs::create_dir_all(&own)?;
        let server = Server::start(root, &own, database)?;
        server.log_in(&own)?;
        server.deploy(&own, "nothing", "()", &["--async"])?;
        let rate = crate::step(&format!("deliveries on {name}"), || {
            end_to_end(&server, seconds)
        })?;
        let (p50, p99) = crate::step(&format!("enqueue → start on {name}"), || {
            enqueue_to_start(&server, &own, seconds)
        })?;
        let drained = crate::step(&format!("a backlog on {name}"), || drain(&server, &own))?;
        let ratio = crate::step(&format!("a write that fires on {name}"), || {
            firing(&server, &own, seconds)
        })?;
        let names: [&'static str; 5] = match database {
            None => [
                "deliveries end to end, SQLite",
                "enqueue → start at 500/s, SQLite: p50",
                "  its p99, SQLite",
                "a backlog of 20,000 drains, SQLite",
                "a KV write that fires ÷ one that does not, SQLite",
            ],
            Some(_) => {
                on_postgres = rate;
                [
                    "deliveries end to end, Postgres",
                    "enqueue → start at 500/s, Postgres: p50",
                    "  its p99, Postgres",
                    "a backlog of 20,000 drains, Postgres",
                    "a KV write that fires ÷ one that does not, Postgres",
                ]
            }
        };
        let values = [rate, p50, p99, drained, ratio];
        let units = ["/s", "ms", "ms", "/s", "×"];
        let goals = [3_000.0, -2.0, -20.0, 5_000.0, -1.3];
        for (n, name) in names.into_iter().enumerate() {
            measures.push(line(name, values[n], units[n], goals[n]));
        }
    }
    let Some([graphile, boss]) = peers else {
        return Ok(measures);
    };
    // What they do is told; what is held to a goal is ours beside the better of them.
    measures.push(line(
        "graphile-worker end to end, Postgres",
        graphile.0,
        "/s",
        0.0,
    ));
    measures.push(line("  its drain of 20,000 jobs", graphile.1, "/s", 0.0));
    measures.push(line("pg-boss end to end, Postgres", boss.0, "/s", 0.0));
    measures.push(line("  its drain of 20,000 jobs", boss.1, "/s", 0.0));
    let better = graphile.0.max(boss.0);
    let name = "deliveries on Postgres ÷ the better of the two";
    measures.push(line(name, on_postgres / better, "×", 2.5));
    Ok(measures)
}

/// End to end and drain, of graphile-worker and of pg-boss; nothing where there is no npm.
fn peers(root: &Path, folder: &Path, url: &str, seconds: u32) -> Result<Option<[(f64, f64); 2]>> {
    let own = folder.join("peers");
    std::fs::create_dir_all(&own)?;
    for file in ["package.json", "peers.mjs"] {
        std::fs::copy(root.join("tests/bench").join(file), own.join(file))?;
    }
    let mut install = Command::new("npm");
    install
        .current_dir(&own)
        .args(["install", "--no-audit", "--no-fund", "--silent"]);
    if !install.status().is_ok_and(|status| status.success()) {
        eprintln!("NOTE: the peers could not be installed with npm; they are left out");
        return Ok(None);
    }
    let mut found = Vec::new();
    for peer in ["graphile-worker", "pg-boss"] {
        let output = Command::new(own.join("node_modules/.bin/node"))
            .current_dir(&own)
            .args(["peers.mjs", peer])
            .env("PEER_URL", url)
            .env("PEER_SECONDS", seconds.to_string())
            .output()?;
        let said: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let number = |name: &str| said[name].as_f64().unwrap_or(0.0);
        found.push((number("endToEnd"), number("drain")));
    }
    Ok(Some([found[0], found[1]]))
}

/// How many deliveries have ended, of async routes or of triggers.
fn done(server: &Server, source: &str) -> Result<f64> {
    server.metric(&format!(
        r#"picloud_deliveries_total{{outcome="done",source="{source}"}}"#
    ))
}

fn until_done(server: &Server, source: &str, count: f64) -> Result<()> {
    let started = Instant::now();
    while done(server, source)? < count {
        if started.elapsed() > Duration::from_secs(120) {
            bail!("deliveries are stuck");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Enqueued one by one, 20 in flight: how many a second, the last one's end included.
fn end_to_end(server: &Server, seconds: u32) -> Result<f64> {
    // wrk warms up with a second of its own.
    let before = done(server, "http_async")?;
    let started = Instant::now();
    let load = wrk_at(server, "/nothing", IN_FLIGHT, seconds)?;
    let after = started.elapsed();
    std::thread::sleep(Duration::from_millis(50));
    let ended = done(server, "http_async")?;
    // Both seconds and both loads count: what the second left over is in the time, too.
    let all = ended - before;
    if ended < before + load.requests {
        let left = Instant::now();
        until_done(server, "http_async", before + load.requests)?;
        return Ok((done(server, "http_async")? - before) / (after + left.elapsed()).as_secs_f64());
    }
    Ok(all / after.as_secs_f64())
}

/// From the moment before the call to the start of its script, at a steady pace: p50 and p99.
fn enqueue_to_start(server: &Server, folder: &Path, seconds: u32) -> Result<(f64, f64)> {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", server.port))?);
    let count = PACE * u64::from(seconds.min(4));
    let begun = Instant::now();
    let mut sent = std::collections::HashMap::new();
    for n in 0..count {
        let due = Duration::from_micros(n * 1_000_000 / PACE);
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        stream
            .get_mut()
            .write_all(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let accepted: Value = serde_json::from_str(&answer(&mut stream)?)?;
        let id = accepted["execution_id"]
            .as_str()
            .context("no id")?
            .to_owned();
        sent.insert(id, at.as_micros() as f64);
    }
    std::thread::sleep(Duration::from_millis(300));
    let most = (count + 100).to_string();
    let list = ["executions", "list", "--app", "bench", "--limit", &most];
    let executions = server.cli_json(folder, &list)?;
    let mut waits = Vec::new();
    for execution in executions.as_array().into_iter().flatten() {
        let Some(sent) = execution["id"].as_str().and_then(|id| sent.get(id)) else {
            continue;
        };
        let started = execution["started_at"].as_str().context("no start")?;
        waits.push((micros(started)? - sent) / 1_000.0);
    }
    if waits.len() < sent.len() / 2 {
        bail!("{} of {} executions were found", waits.len(), sent.len());
    }
    waits.sort_by(f64::total_cmp);
    let at = |part: f64| waits[((waits.len() - 1) as f64 * part) as usize];
    Ok((at(0.5), at(0.99)))
}

/// The body of one HTTP answer.
fn answer(stream: &mut BufReader<TcpStream>) -> Result<String> {
    let mut length = 0;
    loop {
        let mut header = String::new();
        stream.read_line(&mut header)?;
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(String::from_utf8(body)?)
}

/// Microseconds since 1970 of an instant like `2026-01-31T12:00:00.123456Z`.
fn micros(instant: &str) -> Result<f64> {
    Ok(chrono::DateTime::parse_from_rfc3339(instant)?.timestamp_micros() as f64)
}

/// A paused trigger is resumed: how many of its deliveries end a second.
fn drain(server: &Server, folder: &Path) -> Result<f64> {
    let fill = r#"let c = kv::collection("backlog"); for n in 0..2000 { c.set(`${n}`, n); }"#;
    server.deploy(folder, "fill", fill, &[])?;
    server.deploy(folder, "handle", "()", &[])?;
    let trigger = [
        "triggers",
        "create-kv",
        "handle",
        "--collection",
        "backlog",
        "--app",
        "bench",
    ];
    let trigger = server.cli_json(folder, &trigger)?;
    let id = trigger["id"].as_str().context("no id")?;
    server.cli_json(folder, &["triggers", "pause", id])?;
    for _ in 0..(BACKLOG / 2_000.0) as u32 {
        server.get("/fill")?;
    }
    let before = done(server, "kv")?;
    let started = Instant::now();
    server.cli_json(folder, &["triggers", "resume", id])?;
    until_done(server, "kv", before + BACKLOG)?;
    Ok(BACKLOG / started.elapsed().as_secs_f64())
}

/// The median time of a route whose script writes a key that a trigger listens to, and one that
/// nobody listens to, in turns.
fn firing(server: &Server, folder: &Path, seconds: u32) -> Result<f64> {
    let write = |collection: &str| format!(r#"kv::collection("{collection}").set("k", 1);"#);
    server.deploy(folder, "loud", &write("loud"), &[])?;
    server.deploy(folder, "quiet", &write("quiet"), &[])?;
    let trigger = [
        "triggers",
        "create-kv",
        "handle",
        "--collection",
        "loud",
        "--app",
        "bench",
    ];
    server.cli_json(folder, &trigger)?;
    let mut ratios = Vec::new();
    for _ in 0..3 {
        let quiet = wrk_at(server, "/quiet", 1, seconds.div_ceil(3))?.p50_ms;
        ratios.push(wrk_at(server, "/loud", 1, seconds.div_ceil(3))?.p50_ms / quiet);
    }
    ratios.sort_by(f64::total_cmp);
    Ok(ratios[1])
}
