//! Deliveries: from the call that is answered 202 to the end of the script, on both databases,
//! beside the queues that people would use instead on the same Postgres.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Bench;
use super::load::{Turns, at, for_each, median, wrk};
use super::peers::{Peers, Queue};
use super::plot::Bar;
use super::report::{Row, thousands};
use super::server::Server;
use crate::postgres::Postgres;

/// How many deliveries one call of the script that fills a backlog makes.
const FILL: u32 = 500;
/// Calls a second for the time from the call to the start of the script: with something to do,
/// and idle, where each is over long before the next.
const PACE: u64 = 500;
const IDLE_PACE: u64 = 50;
/// Calls in flight when they are enqueued one by one.
const IN_FLIGHT: u32 = 20;

/// Measure all of it; the bars compare what the queues do end to end.
pub(super) fn measure(
    bench: &Bench,
    postgres: &Postgres,
    peers: &Peers,
) -> Result<(Vec<Row>, Vec<Bar>)> {
    let mut rows = on(bench, "SQLite", None)?;
    let database = postgres.create_database("deliveries")?;
    rows.extend(on(bench, "Postgres", Some((postgres, &database)))?);
    let (beside, bars) = crate::step("deliveries beside graphile-worker and pg-boss", || {
        beside_queues(bench, postgres, peers)
    })?;
    rows.extend(beside);
    Ok((rows, bars))
}

/// What is measured on each of the databases.
fn on(bench: &Bench, on: &str, database: Option<(&Postgres, &str)>) -> Result<Vec<Row>> {
    let scale = &bench.scale;
    let folder = format!("deliveries-{on}");
    let server = Server::on(bench, &folder, database.map(|(_, url)| url))?;
    server.deploy("bench", "nothing", "()", &["--async"])?;
    let step = |what: &str| format!("{what}, {on}");
    let idle = crate::step(&step("enqueue → start, idle"), || {
        let count = IDLE_PACE * u64::from(scale.seconds.min(4));
        enqueue_to_start(&server, "bench", "/nothing", IDLE_PACE, count)
    })?;
    let kept = pages_kept(&bench.folder)?;
    let paced = crate::step(&step("enqueue → start"), || {
        let count = PACE * u64::from(scale.seconds.min(4));
        enqueue_to_start(&server, "bench", "/nothing", PACE, count)
    })?;
    let backlog = Backlog::new(&server)?;
    let (mut rates, mut drains) = (Vec::new(), Vec::new());
    crate::step(&step("deliveries and a backlog"), || {
        for _ in 0..scale.rounds {
            rates.push(end_to_end(&server, scale.seconds_of_a_turn)?);
            drains.push(backlog.drain(scale.backlog)?);
        }
        Ok(())
    })?;
    let ratio = crate::step(&step("a write that fires"), || firing(bench, &server))?;
    let worst = crate::step(&step("beside a flood"), || {
        beside_a_flood(&server, &backlog, scale.flood)
    })?;
    let claims = crate::step(&step("claims"), || {
        let [few, many] = ["few", "many"].map(|name| match database {
            None => Ok(format!("sqlite://{}/{name}.db", server.folder.display())),
            Some((postgres, _)) => postgres.create_database(name),
        });
        claims(bench, &few?, &many?)
    })?;
    let count = |count: u32| thousands(count.into());
    Ok(vec![
        Row::new(step("deliveries end to end"), median(rates), "/s").at_least(3_000.0),
        Row::new(step("enqueue → start, idle: p50"), at(&idle, 0.5), "ms")
            .at_most(1.0)
            .moonshot(0.3),
        Row::new(
            "  of it, the disk keeps a page (fsync)",
            at(&kept, 0.5),
            "ms",
        ),
        Row::new(step("enqueue → start at 500/s: p50"), at(&paced, 0.5), "ms").at_most(2.0),
        Row::new("  its p99", at(&paced, 0.99), "ms").at_most(20.0),
        Row::new(
            step(&format!("a backlog of {} drains", count(scale.backlog))),
            median(drains),
            "/s",
        )
        .at_least(5_000.0),
        Row::new(
            step("a KV write that fires ÷ one that does not"),
            ratio,
            "×",
        )
        .at_most(1.3),
        Row::new(
            step(&format!(
                "beside a flood of {}, worst of 40",
                count(scale.flood)
            )),
            worst,
            "ms",
        )
        .at_most(100.0),
        Row::new(
            step(&format!("a claim among {} rows ÷ 1,000", count(scale.rows))),
            claims,
            "×",
        )
        .at_most(2.0),
    ])
}

/// Ours and the queues in turns, on one Postgres.
fn beside_queues(
    bench: &Bench,
    postgres: &Postgres,
    peers: &Peers,
) -> Result<(Vec<Row>, Vec<Bar>)> {
    let scale = &bench.scale;
    let ours = postgres.create_database("beside")?;
    let theirs = postgres.create_database("queues")?;
    let server = Server::on(bench, "beside-queues", Some(&ours))?;
    server.deploy("bench", "nothing", "()", &["--async"])?;
    let backlog = Backlog::new(&server)?;
    let mut rounds: Vec<(Queue, Queue, Queue)> = Vec::new();
    for _ in 0..scale.rounds {
        let ours = Queue {
            end_to_end: end_to_end(&server, scale.seconds_of_a_turn)?,
            drain: backlog.drain(scale.backlog)?,
        };
        let graphile = peers.queue("graphile-worker", &theirs, scale);
        let boss = peers.queue("pg-boss", &theirs, scale);
        let (Some(graphile), Some(boss)) = (graphile, boss) else {
            return Ok((Vec::new(), Vec::new()));
        };
        rounds.push((ours, graphile, boss));
    }
    let over = |figure: &dyn Fn(&(Queue, Queue, Queue)) -> f64| {
        median(rounds.iter().map(figure).collect())
    };
    let bars = vec![
        Bar::new("PiCloud on Postgres", over(&|(ours, _, _)| ours.end_to_end)),
        Bar::new("pg-boss, no sandbox", over(&|(_, _, boss)| boss.end_to_end)),
        Bar::new(
            "graphile-worker, no sandbox",
            over(&|(_, graphile, _)| graphile.end_to_end),
        ),
    ];
    let ratio =
        over(&|(ours, graphile, boss)| ours.end_to_end / graphile.end_to_end.max(boss.end_to_end));
    let drain = over(&|(ours, graphile, _)| ours.drain / graphile.drain);
    let name = "deliveries on Postgres ÷ the better of graphile-worker, pg-boss";
    let drain_name = "a backlog drains, Postgres ÷ graphile-worker's local queue of 500";
    let rows = vec![
        Row::new(
            "graphile-worker end to end",
            over(&|(_, graphile, _)| graphile.end_to_end),
            "/s",
        ),
        Row::new(
            "  its drain, a local queue of 500",
            over(&|(_, graphile, _)| graphile.drain),
            "/s",
        ),
        Row::new(
            "pg-boss end to end",
            over(&|(_, _, boss)| boss.end_to_end),
            "/s",
        ),
        Row::new("  its drain", over(&|(_, _, boss)| boss.drain), "/s"),
        Row::new(name, ratio, "×").at_least(3.0).moonshot(8.0),
        Row::new(drain_name, drain, "×")
            .at_least(0.25)
            .moonshot(0.6),
    ];
    Ok((rows, bars))
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
    let before = done(server, "http_async")?;
    let started = Instant::now();
    let load = wrk(&server.target("nothing", "/nothing"), IN_FLIGHT, seconds)?;
    until_done(server, "http_async", before + load.requests)?;
    Ok((done(server, "http_async")? - before) / started.elapsed().as_secs_f64())
}

/// From the moment before the call to the start of its script, `pace` times a second: the
/// milliseconds, sorted.
fn enqueue_to_start(
    server: &Server,
    app: &str,
    path: &str,
    pace: u64,
    count: u64,
) -> Result<Vec<f64>> {
    let before = done(server, "http_async")?;
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
    until_done(server, "http_async", before + count as f64)?;
    let most = (count + 100).to_string();
    let list = ["executions", "list", "--app", app, "--limit", &most];
    let executions = server.cli_json(&list)?;
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

/// How long the disk takes to keep a page at the same pace: the milliseconds, sorted. Nothing
/// durable starts sooner.
fn pages_kept(folder: &Path) -> Result<Vec<f64>> {
    let mut file = File::create(folder.join("pages"))?;
    let mut waits = Vec::new();
    for _ in 0..2 * IDLE_PACE {
        std::thread::sleep(Duration::from_secs(1) / IDLE_PACE as u32);
        let begun = Instant::now();
        file.write_all(&[1; 4096])?;
        file.sync_all()?;
        waits.push(begun.elapsed().as_secs_f64() * 1_000.0);
    }
    waits.sort_by(f64::total_cmp);
    Ok(waits)
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

/// Deliveries that wait for a trigger that is paused.
struct Backlog<'a> {
    server: &'a Server,
    /// The trigger.
    id: String,
}

impl<'a> Backlog<'a> {
    /// A script that handles them, and one whose calls make them.
    fn new(server: &'a Server) -> Result<Self> {
        let fill = format!(
            r#"let c = kv::collection("backlog"); for n in 0..{FILL} {{ c.set(`${{n}}`, n); }}"#
        );
        server.deploy("bench", "fill", &fill, &[])?;
        server.deploy("bench", "handle", "()", &[])?;
        let trigger = ["triggers", "create-kv", "handle", "--collection", "backlog"];
        let trigger = server.cli_json(&[&trigger[..], &["--app", "bench"]].concat())?;
        let id = trigger["id"].as_str().context("no id")?.to_owned();
        Ok(Self { server, id })
    }

    /// Pause the trigger and let so many deliveries wait for it.
    fn fill(&self, count: u32) -> Result<()> {
        self.server.cli_json(&["triggers", "pause", &self.id])?;
        // Several at once share their commits.
        for_each(count / FILL, |_| self.server.get("/fill").map(|_| ()))
    }

    fn resume(&self) -> Result<()> {
        self.server.cli_json(&["triggers", "resume", &self.id])?;
        Ok(())
    }

    /// So many wait and the trigger is resumed: how many end a second.
    fn drain(&self, count: u32) -> Result<f64> {
        self.fill(count)?;
        let count = f64::from(count);
        let before = done(self.server, "kv")?;
        let started = Instant::now();
        self.resume()?;
        until_done(self.server, "kv", before + count)?;
        Ok(count / started.elapsed().as_secs_f64())
    }
}

/// The longest of 40 single deliveries of one app, from the call to the start of the script,
/// while another app's flood runs.
fn beside_a_flood(server: &Server, backlog: &Backlog, flood: u32) -> Result<f64> {
    server.deploy("other", "single", "()", &["--async"])?;
    server.cli_json(&["apps", "update", "other", "--host", "other.localhost"])?;
    backlog.fill(flood)?;
    let end = done(server, "kv")? + f64::from(flood);
    let waits = std::thread::scope(|scope| {
        let resume = scope.spawn(|| backlog.resume());
        let waits = enqueue_to_start(server, "other", "/single", 20, 40);
        resume.join().expect("it does not panic").and(waits)
    })?;
    if done(server, "kv")? >= end {
        eprintln!("NOTE: the flood was over before the single deliveries were");
    }
    until_done(server, "kv", end)?;
    Ok(at(&waits, 1.0))
}

/// The median time of a claim among many rows that are not due ÷ that among a thousand.
fn claims(bench: &Bench, few: &str, many: &str) -> Result<f64> {
    let output = Command::new(bench.programs.join("examples/claim_bench"))
        .args([few, many, &bench.scale.rows.to_string()])
        .output()?;
    let said: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let number = |name: &str| said[name].as_f64().context("no number");
    Ok(number("many_us")? / number("few_us")?)
}

/// The median time of a route whose script writes a key that a trigger listens to, and one that
/// nobody listens to, in turns.
fn firing(bench: &Bench, server: &Server) -> Result<f64> {
    let write = |collection: &str| format!(r#"kv::collection("{collection}").set("k", 1);"#);
    server.deploy("bench", "loud", &write("loud"), &[])?;
    server.deploy("bench", "quiet", &write("quiet"), &[])?;
    let trigger = ["triggers", "create-kv", "handle", "--collection", "loud"];
    server.cli_json(&[&trigger[..], &["--app", "bench"]].concat())?;
    let (loud, quiet) = (
        server.target("loud", "/loud"),
        server.target("quiet", "/quiet"),
    );
    let turns = Turns::run(&[&quiet, &loud], 1, &bench.scale)?;
    let ratio = turns.ratio("loud", "quiet", |load| load.p50_ms);
    ratio.context("both were called")
}
