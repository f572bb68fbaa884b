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
/// How many deliveries of one app another's single ones must get past.
const FLOOD: f64 = 100_000.0;
/// Calls a second for the time from the call to the start of the script.
const PACE: u64 = 500;
/// Calls in flight when they are enqueued one by one.
const IN_FLIGHT: u32 = 20;

/// Measure all of it.
pub(super) fn measure(
    root: &Path,
    folder: &Path,
    postgres: &Postgres,
    peers: Option<&Path>,
    seconds: u32,
) -> Result<Vec<Measure>> {
    let mut measures = Vec::new();
    let queues = peers.map(|peers| {
        crate::step("graphile-worker and pg-boss", || {
            queues(peers, &postgres.url, seconds)
        })
    });
    let mut on_postgres = 0.0;
    for (name, database) in [
        ("SQLite", None),
        ("Postgres", Some(postgres.create_database("deliveries")?)),
    ] {
        let own = folder.join(name);
        std::fs::create_dir_all(&own)?;
        let server = Server::start(root, &own, database.as_deref())?;
        server.log_in(&own)?;
        server.deploy(&own, "bench", "nothing", "()", &["--async"])?;
        let rate = crate::step(&format!("deliveries on {name}"), || {
            end_to_end(&server, seconds)
        })?;
        let waits = crate::step(&format!("enqueue → start on {name}"), || {
            let count = PACE * u64::from(seconds.min(4));
            enqueue_to_start(&server, &own, "bench", "/nothing", PACE, count)
        })?;
        let drained = crate::step(&format!("a backlog on {name}"), || drain(&server, &own))?;
        let ratio = crate::step(&format!("a write that fires on {name}"), || {
            firing(&server, &own, seconds)
        })?;
        let worst = crate::step(&format!("beside a flood on {name}"), || {
            beside_a_flood(&server, &own)
        })?;
        let claims = crate::step(&format!("claims on {name}"), || {
            let databases = match database {
                None => ["few", "many"].map(|n| Ok(format!("sqlite://{}/{n}.db", own.display()))),
                Some(_) => ["few", "many"].map(|name| postgres.create_database(name)),
            };
            let [few, many] = databases;
            claims(root, &few?, &many?)
        })?;
        let names: [&'static str; 7] = match database {
            None => [
                "deliveries end to end, SQLite",
                "enqueue → start at 500/s, SQLite: p50",
                "  its p99, SQLite",
                "a backlog of 20,000 drains, SQLite",
                "a KV write that fires ÷ one that does not, SQLite",
                "beside a flood of 100,000, worst of 40, SQLite",
                "a claim among 1,000,000 rows ÷ 1,000, SQLite",
            ],
            Some(_) => {
                on_postgres = rate;
                [
                    "deliveries end to end, Postgres",
                    "enqueue → start at 500/s, Postgres: p50",
                    "  its p99, Postgres",
                    "a backlog of 20,000 drains, Postgres",
                    "a KV write that fires ÷ one that does not, Postgres",
                    "beside a flood of 100,000, worst of 40, Postgres",
                    "a claim among 1,000,000 rows ÷ 1,000, Postgres",
                ]
            }
        };
        let (p50, p99) = (at(&waits, 0.5), at(&waits, 0.99));
        let values = [rate, p50, p99, drained, ratio, worst, claims];
        let units = ["/s", "ms", "ms", "/s", "×", "ms", "×"];
        let goals = [3_000.0, -2.0, -20.0, 5_000.0, -1.3, -100.0, -2.0];
        for (n, name) in names.into_iter().enumerate() {
            measures.push(line(name, values[n], units[n], goals[n]));
        }
    }
    let Some([graphile, boss]) = queues.transpose()? else {
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

/// End to end and drain, of graphile-worker and of pg-boss.
fn queues(peers: &Path, url: &str, seconds: u32) -> Result<[(f64, f64); 2]> {
    let mut found = Vec::new();
    for peer in ["graphile-worker", "pg-boss"] {
        let output = Command::new(peers.join("node_modules/.bin/node"))
            .current_dir(peers)
            .args(["peers.mjs", peer])
            .env("PEER_URL", url)
            .env("PEER_SECONDS", seconds.to_string())
            .output()?;
        let said: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let number = |name: &str| said[name].as_f64().unwrap_or(0.0);
        found.push((number("endToEnd"), number("drain")));
    }
    Ok([found[0], found[1]])
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
    let load = wrk_at(&format!("{}/nothing", server.url()), IN_FLIGHT, seconds)?;
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

/// From the moment before the call to the start of its script, `pace` times a second: the
/// milliseconds, sorted.
fn enqueue_to_start(
    server: &Server,
    folder: &Path,
    app: &str,
    path: &str,
    pace: u64,
    count: u64,
) -> Result<Vec<f64>> {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", server.port))?);
    let begun = Instant::now();
    let mut sent = std::collections::HashMap::new();
    for n in 0..count {
        let due = Duration::from_micros(n * 1_000_000 / pace);
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {app}.localhost\r\n\r\n");
        stream.get_mut().write_all(request.as_bytes())?;
        let accepted: Value = serde_json::from_str(&answer(&mut stream)?)?;
        let id = accepted["execution_id"]
            .as_str()
            .context("no id")?
            .to_owned();
        sent.insert(id, at.as_micros() as f64);
    }
    std::thread::sleep(Duration::from_millis(300));
    let most = (count + 100).to_string();
    let list = ["executions", "list", "--app", app, "--limit", &most];
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
    Ok(waits)
}

/// The value below which `part` of the sorted ones lie.
fn at(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * part) as usize]
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
    server.deploy(folder, "bench", "fill", fill, &[])?;
    server.deploy(folder, "bench", "handle", "()", &[])?;
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
    fill_paused(server, folder, id, BACKLOG)?;
    let before = done(server, "kv")?;
    let started = Instant::now();
    server.cli_json(folder, &["triggers", "resume", id])?;
    until_done(server, "kv", before + BACKLOG)?;
    Ok(BACKLOG / started.elapsed().as_secs_f64())
}

/// Pause a trigger and let so many deliveries wait for it.
fn fill_paused(server: &Server, folder: &Path, trigger: &str, count: f64) -> Result<()> {
    server.cli_json(folder, &["triggers", "pause", trigger])?;
    for _ in 0..(count / 2_000.0) as u32 {
        server.get("/fill")?;
    }
    Ok(())
}

/// The longest of 40 single deliveries of one app, from the call to the start of the script,
/// while another app's flood runs.
fn beside_a_flood(server: &Server, folder: &Path) -> Result<f64> {
    server.deploy(folder, "other", "single", "()", &["--async"])?;
    let host = ["apps", "update", "other", "--host", "other.localhost"];
    server.cli_json(folder, &host)?;
    let triggers = server.cli_json(folder, &["triggers", "list", "--app", "bench"])?;
    let of_backlog = |trigger: &&Value| trigger["filter"]["collection"] == "backlog";
    let trigger = triggers.as_array().into_iter().flatten().find(of_backlog);
    let id = trigger.and_then(|trigger| trigger["id"].as_str());
    let id = id.context("the trigger of the backlog")?;
    fill_paused(server, folder, id, FLOOD)?;
    let before = done(server, "kv")?;
    let waits = std::thread::scope(|scope| {
        let resume = scope.spawn(|| server.cli_json(folder, &["triggers", "resume", id]));
        let waits = enqueue_to_start(server, folder, "other", "/single", 20, 40);
        resume.join().expect("it does not panic").and(waits)
    })?;
    if done(server, "kv")? >= before + FLOOD {
        bail!("the flood was over before the single deliveries were");
    }
    until_done(server, "kv", before + FLOOD)?;
    Ok(at(&waits, 1.0))
}

/// The median time of a claim among a million rows that are not due ÷ that among a thousand.
fn claims(root: &Path, few: &str, many: &str) -> Result<f64> {
    let program = root.join("target/release/examples/claim_bench");
    let output = Command::new(program).args([few, many]).output()?;
    let said: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let number = |name: &str| said[name].as_f64().context("no number");
    Ok(number("many_us")? / number("few_us")?)
}

/// The median time of a route whose script writes a key that a trigger listens to, and one that
/// nobody listens to, in turns.
fn firing(server: &Server, folder: &Path, seconds: u32) -> Result<f64> {
    let write = |collection: &str| format!(r#"kv::collection("{collection}").set("k", 1);"#);
    server.deploy(folder, "bench", "loud", &write("loud"), &[])?;
    server.deploy(folder, "bench", "quiet", &write("quiet"), &[])?;
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
        let time = |path: &str| {
            let load = wrk_at(&format!("{}{path}", server.url()), 1, seconds.div_ceil(3));
            load.map(|load| load.p50_ms)
        };
        let quiet = time("/quiet")?;
        ratios.push(time("/loud")? / quiet);
    }
    ratios.sort_by(f64::total_cmp);
    Ok(ratios[1])
}
