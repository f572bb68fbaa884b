//! Streams: what an idle one takes, and how soon a message reaches all who listen; beside NATS,
//! which keeps nothing and tells no browser.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::Bench;
use super::load::median;
use super::peers::{Peer, Peers};
use super::report::{Row, thousands};
use super::server::Server;

/// The streams of the steady load, the messages a second, and who publishes them.
const STREAMS: u32 = 100;
const PER_SECOND: u32 = 1_000;
const PUBLISHERS: u32 = 16;
/// The open dashboards.
const DASHBOARDS: u32 = 200;
/// Calls of one script whose time is taken.
const CALLS: u32 = 200;
/// Streams that are opened and closed before, so that what comes once is there.
const FIRST: u32 = 50;

/// What stands for a message's number in what is published.
const NUMBER: &str = "#######";
/// What stands before it in what is heard.
const MARK: &str = r#""message":"#;

/// How often and for how long.
struct Beat {
    messages: u32,
    per_second: Option<u32>,
}

/// What the streams heard in one turn.
struct Heard {
    p50_ms: f64,
    p99_ms: f64,
    lost: f64,
    seconds: f64,
}

/// Streams that are open, in a process of their own (`host/examples/stream_bench.rs`).
struct Streams {
    process: Child,
    turns: ChildStdin,
    said: BufReader<ChildStdout>,
}

impl Drop for Streams {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Streams {
    fn open(bench: &Bench, plan: &Value) -> Result<Self> {
        let mut process = Command::new(bench.programs.join("examples/stream_bench"))
            .arg(plan.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let turns = process.stdin.take().context("it was piped")?;
        let said = BufReader::new(process.stdout.take().context("it was piped")?);
        let mut streams = Self {
            process,
            turns,
            said,
        };
        streams.answer()?;
        Ok(streams)
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.said.read_line(&mut line)? == 0 {
            bail!("the streams could not be measured");
        }
        Ok(serde_json::from_str(&line)?)
    }

    fn hear(&mut self, beat: &Beat) -> Result<Heard> {
        let turn = json!({ "messages": beat.messages, "per_second": beat.per_second });
        writeln!(self.turns, "{turn}")?;
        let said = self.answer()?;
        let number = |name: &str| said[name].as_f64().with_context(|| format!("no {name}"));
        Ok(Heard {
            p50_ms: number("p50_ms")?,
            p99_ms: number("p99_ms")?,
            lost: number("lost")?,
            seconds: number("seconds")?,
        })
    }
}

/// A request in the name of whoever administers the server.
fn request(server: &Server, head: &str, body: &str) -> String {
    let (token, length) = (server.token(), body.len());
    format!(
        "{head} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// Streams of a topic that is open to all.
fn of_topic(server: &Server, streams: u32) -> Value {
    let path = "/api/v1/apps/bench/topics/news/messages";
    let body = format!(r#"{{"message":{NUMBER}}}"#);
    json!({
        "address": format!("127.0.0.1:{}", server.port),
        "streams": streams,
        "subscribe": "GET /realtime/topics/news HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        "subscribed": "event: ready",
        "mark": MARK,
        "publishers": PUBLISHERS,
        "publish": request(server, &format!("POST {path}"), &body),
        "published": ["HTTP/1.1 200", "}"],
    })
}

/// Dashboards, which are told of each change that an administrator makes: a secret that gets
/// another value.
fn of_dashboards(server: &Server, streams: u32) -> Value {
    let body = format!(r#"{{"value":"{NUMBER}"}}"#);
    let path = "/api/v1/apps/bench/secrets/CHANGED";
    json!({
        "address": format!("127.0.0.1:{}", server.port),
        "streams": streams,
        "subscribe": request(server, "GET /api/v1/events", ""),
        "subscribed": "event: ready",
        "mark": r#""type":"changed""#,
        "publishers": 1,
        "publish": request(server, &format!("PUT {path}"), &body),
        "published": ["HTTP/1.1 204", "\r\n\r\n"],
    })
}

/// The same number of subscribers and of bytes, without HTTP and without a disk.
fn of_nats(address: &str, streams: u32) -> Value {
    // What a stream of ours hears for a message has as many bytes around its number.
    let message = format!("{}{MARK}{NUMBER}", "x".repeat(180));
    let hello = "CONNECT {\"verbose\":false}\r\nPING\r\n";
    json!({
        "address": address,
        "streams": streams,
        "subscribe": format!("CONNECT {{\"verbose\":false}}\r\nSUB news 1\r\nPING\r\n"),
        "subscribed": "PONG",
        "mark": MARK,
        "publishers": PUBLISHERS,
        "hello": [hello, "PONG\r\n"],
        "publish": format!("PUB news {}\r\n{message}\r\nPING\r\n", message.len()),
        "published": ["PONG", "\r\n"],
    })
}

/// Open streams; says what the server takes for each, in KiB.
fn weighed(bench: &Bench, server: &Server, plan: &Value, streams: u32) -> Result<(Streams, f64)> {
    let mut first = plan.clone();
    first["streams"] = FIRST.into();
    drop(Streams::open(bench, &first)?);
    let before = server.proportional_mib()?;
    let open = Streams::open(bench, plan)?;
    let each = (server.proportional_mib()? - before) * 1024.0 / f64::from(streams);
    Ok((open, each))
}

/// The medians over turns of what one hears, beside what another does in the same turns.
struct Beside {
    p50_ms: f64,
    p99_ms: f64,
    lost: f64,
    /// Its p50 and its p99 ÷ the other's.
    ratios: Option<[f64; 2]>,
}

fn beside(
    bench: &Bench,
    ours: &mut Streams,
    theirs: Option<&mut Streams>,
    beat: &Beat,
) -> Result<Beside> {
    let mut theirs = theirs;
    let (mut p50, mut p99, mut lost) = (Vec::new(), Vec::new(), 0.0);
    let mut ratios = [Vec::new(), Vec::new()];
    for _ in 0..bench.scale.rounds {
        let heard = ours.hear(beat)?;
        if let Some(theirs) = &mut theirs {
            let other = theirs.hear(beat)?;
            ratios[0].push(heard.p50_ms / other.p50_ms);
            ratios[1].push(heard.p99_ms / other.p99_ms);
        }
        p50.push(heard.p50_ms);
        p99.push(heard.p99_ms);
        lost += heard.lost;
    }
    let ratios = theirs.is_some().then(|| ratios.map(median));
    let (p50_ms, p99_ms) = (median(p50), median(p99));
    Ok(Beside {
        p50_ms,
        p99_ms,
        lost,
        ratios,
    })
}

/// Many idle streams, and a message now and then to all of them.
fn idle(bench: &Bench, server: &Server, nats: Option<&str>) -> Result<Vec<Row>> {
    let streams = bench.scale.streams;
    let (mut ours, each) = weighed(bench, server, &of_topic(server, streams), streams)?;
    let theirs = nats.map(|address| Streams::open(bench, &of_nats(address, streams)));
    let mut theirs = theirs.transpose()?;
    let beat = Beat {
        messages: 3,
        per_second: Some(1),
    };
    let heard = beside(bench, &mut ours, theirs.as_mut(), &beat)?;
    let name = format!("{} idle streams: memory of each", thousands(streams.into()));
    let mut rows = vec![
        Row::new(name, each, "KiB").at_most(20.0).moonshot(10.0),
        Row::new("  one message to all of them: p99", heard.p99_ms, "ms")
            .at_most(250.0)
            .moonshot(100.0),
    ];
    if let Some([_, p99]) = heard.ratios {
        rows.push(Row::new("  ÷ NATS, nothing kept", p99, "×"));
    }
    Ok(rows)
}

/// A steady load that every stream hears.
fn steady(bench: &Bench, server: &Server, nats: Option<&str>) -> Result<Vec<Row>> {
    let mut ours = Streams::open(bench, &of_topic(server, STREAMS))?;
    let theirs = nats.map(|address| Streams::open(bench, &of_nats(address, STREAMS)));
    let mut theirs = theirs.transpose()?;
    let messages = PER_SECOND * bench.scale.seconds_of_a_turn;
    let beat = Beat {
        messages,
        per_second: Some(PER_SECOND),
    };
    let heard = beside(bench, &mut ours, theirs.as_mut(), &beat)?;
    let name = format!(
        "{STREAMS} streams, {} messages/s: p50",
        thousands(PER_SECOND.into())
    );
    let mut rows = vec![
        Row::new(name, heard.p50_ms, "ms")
            .at_most(5.0)
            .moonshot(2.0),
        Row::new("  its p99", heard.p99_ms, "ms")
            .at_most(50.0)
            .moonshot(10.0),
        Row::new("  lost", heard.lost, "messages").at_most(0.0),
    ];
    if let Some([p50, p99]) = heard.ratios {
        rows.push(Row::new("  its p50 ÷ NATS's, nothing kept", p50, "×"));
        rows.push(Row::new("  its p99 ÷ NATS's, nothing kept", p99, "×"));
    }
    Ok(rows)
}

/// Open dashboards: changes one by one, and as fast as they can be made.
fn dashboards(bench: &Bench, server: &Server) -> Result<Vec<Row>> {
    // So few are not seen among what else the server needs memory for.
    let many = bench.scale.streams;
    let (_, each) = weighed(bench, server, &of_dashboards(server, many), many)?;
    let mut streams = Streams::open(bench, &of_dashboards(server, DASHBOARDS))?;
    let seconds = bench.scale.seconds_of_a_turn;
    let paced = streams.hear(&Beat {
        messages: 50 * seconds,
        per_second: Some(50),
    })?;
    let messages = 200 * seconds;
    let full = streams.hear(&Beat {
        messages,
        per_second: None,
    })?;
    let told = f64::from(messages * DASHBOARDS) / full.seconds;
    Ok(vec![
        Row::new(
            format!("{DASHBOARDS} dashboards: events told, one change after another"),
            told,
            "/s",
        ),
        Row::new(
            "  a change reaches them, 50 a second: p50",
            paced.p50_ms,
            "ms",
        ),
        Row::new("  its p99", paced.p99_ms, "ms"),
        Row::new("  lost", paced.lost + full.lost, "events").at_most(0.0),
        Row::new("  memory of each", each, "KiB").at_most(20.0),
    ])
}

/// What a script waits for a durable publish that no stream hears ÷ a write of the key-value
/// store.
fn publish_beside_write(bench: &Bench, server: &Server) -> Result<f64> {
    let calls = |what: &str| format!("for n in 0..{CALLS} {{ {what} }}");
    let publish = calls(r#"pubsub::publish_durable("news", n);"#);
    let write = calls(r#"kv::collection("c").set("k", n);"#);
    server.deploy("bench", "publish", &publish, &[])?;
    server.deploy("bench", "write", &write, &[])?;
    let timed = |path: &str| -> Result<f64> {
        let started = Instant::now();
        server.get(path)?;
        Ok(started.elapsed().as_secs_f64())
    };
    let turn = || Ok(timed("/publish")? / timed("/write")?);
    turn()?;
    let ratios = (0..3 * bench.scale.rounds).map(|_| turn());
    Ok(median(ratios.collect::<Result<_>>()?))
}

/// Measure all of it, on the embedded database.
pub(super) fn rows(bench: &Bench, peers: &Peers) -> Result<Vec<Row>> {
    let many = "100000";
    let limits = [
        "streams-per-address-max",
        "connections-per-address-max",
        "streams-per-user-max",
    ];
    let server = Server::start(bench, "streams", &limits.map(|limit| (limit, many)))?;
    server.deploy("bench", "hello", super::sync::SCRIPT, &[])?;
    server.cli_json(&[
        "topics", "open", "news", "--auth", "public", "--app", "bench",
    ])?;
    let ratio = publish_beside_write(bench, &server)?;
    let nats = peers.nats();
    let address = nats.as_ref().map(Peer::address);
    let mut rows = idle(bench, &server, address)?;
    rows.extend(steady(bench, &server, address)?);
    rows.push(
        Row::new("a durable publish to 0 streams ÷ a KV write", ratio, "×")
            .at_most(1.3)
            .moonshot(1.0),
    );
    rows.extend(dashboards(bench, &server)?);
    Ok(rows)
}
