//! The sync route: on both databases, and beside what answers requests without an outbox, and
//! with a durable log of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Bench;
use super::load::{Load, Turns, at, median};
use super::peers::{Peers, RESTATE, WASMTIME, WORKERD};
use super::plot::Bar;
use super::report::Row;
use super::server::Server;

/// What is answered: ours, and by every peer.
pub(super) const SCRIPT: &str = include_str!("../../../tests/bench/hello.rhai");
const ROUTE: &str = "/hello?name=Ada";
const SQLITE: &str = "PiCloud on SQLite";
const POSTGRES: &str = "PiCloud on Postgres";
/// Reads of one execution.
const READS: u32 = 1_000;

fn rate(load: &Load) -> f64 {
    load.rate
}

/// A bar for each of these targets, with a label that says what it is, unless it was left out.
fn bars(turns: &Turns, labels: &[(&str, &'static str)]) -> Vec<Bar> {
    let bar = |&(name, label)| Some(Bar::new(label, turns.median(name, rate)?));
    labels.iter().filter_map(bar).collect()
}

/// On SQLite, beside peers that keep nothing.
pub(super) fn on_sqlite(
    bench: &Bench,
    server: &Server,
    peers: &Peers,
) -> Result<(Vec<Row>, Vec<Bar>)> {
    let ours = server.target(SQLITE, ROUTE);
    let (workerd, wasmtime) = (peers.workerd(), peers.wasmtime());
    let mut rows = Vec::new();

    let mut targets = vec![&ours];
    targets.extend(workerd.iter().chain(&wasmtime).map(|peer| &peer.target));
    let turns = Turns::run(&targets, 32, &bench.scale)?;
    let bars = bars(
        &turns,
        &[
            (SQLITE, SQLITE),
            (WORKERD, "workerd, one isolate, nothing durable"),
            (WASMTIME, "wasmtime serve, JavaScript, nothing durable"),
        ],
    );
    let of_ours = |figure: fn(&Load) -> f64| turns.median(SQLITE, figure).unwrap_or_default();
    let name = "sync route, SQLite, 32 connections";
    rows.push(Row::new(name, of_ours(rate), "requests/s").at_least(5_000.0));
    rows.push(Row::new("  its p50", of_ours(|load| load.p50_ms), "ms").at_most(5.0));
    rows.push(Row::new("  its p99", of_ours(|load| load.p99_ms), "ms").at_most(25.0));
    if let Some(ratio) = turns.ratio(SQLITE, WORKERD, rate) {
        let name = "sync route ÷ workerd, 32 connections";
        rows.push(Row::new(name, ratio, "×").at_least(0.6).moonshot(1.0));
    }
    if let Some(ratio) = turns.ratio(SQLITE, WORKERD, |load| load.p99_ms) {
        let name = "  its p99 ÷ workerd's";
        rows.push(Row::new(name, ratio, "×").at_most(0.3).moonshot(0.05));
    }
    if let Some(ratio) = turns.ratio(SQLITE, WASMTIME, rate) {
        let name = "sync route ÷ wasmtime serve with a JavaScript interpreter";
        rows.push(Row::new(name, ratio, "×").at_least(3.0).moonshot(6.0));
    }
    drop(wasmtime);

    if let Some(workerd) = &workerd {
        let turns = Turns::run(&[&ours, &workerd.target], 128, &bench.scale)?;
        if let Some(ratio) = turns.ratio(SQLITE, WORKERD, rate) {
            let name = "sync route ÷ workerd, 128 connections";
            rows.push(Row::new(name, ratio, "×").at_least(0.6).moonshot(1.0));
        }
    }
    let turns = Turns::run(&[&ours], 1, &bench.scale)?;
    let p50 = turns.median(SQLITE, |load| load.p50_ms).unwrap_or_default();
    let name = "sync route, SQLite, 1 connection: p50";
    rows.push(Row::new(name, p50, "ms").at_most(0.5).moonshot(0.25));
    Ok((rows, bars))
}

/// On Postgres, beside SQLite and beside a peer that is durable too.
pub(super) fn on_postgres(
    bench: &Bench,
    postgres: &Server,
    sqlite: &Server,
    peers: &Peers,
) -> Result<(Vec<Row>, Vec<Bar>)> {
    let ours = postgres.target(POSTGRES, ROUTE);
    let other = sqlite.target(SQLITE, ROUTE);
    let restate = peers.restate();
    let mut targets = vec![&ours, &other];
    targets.extend(restate.iter().map(|peer| &peer.target));
    let turns = Turns::run(&targets, 32, &bench.scale)?;
    let mut rows = Vec::new();
    if let Some(ratio) = turns.ratio(POSTGRES, SQLITE, rate) {
        let name = "sync route on Postgres ÷ on SQLite, 32 connections";
        rows.push(Row::new(name, ratio, "×").at_least(0.5).moonshot(0.9));
    }
    if let Some(ratio) = turns.ratio(POSTGRES, RESTATE, rate) {
        let name = "sync route on Postgres ÷ Restate's request and response";
        rows.push(Row::new(name, ratio, "×").at_least(3.0).moonshot(8.0));
    }
    let labels = [
        (POSTGRES, POSTGRES),
        (RESTATE, "Restate, durable, no sandbox"),
    ];
    Ok((rows, bars(&turns, &labels)))
}

/// What one read of the key-value store costs a script, in microseconds.
pub(super) fn kv_get(server: &Server) -> Result<f64> {
    let script = |reads: u32| {
        format!(r#"let c = kv::collection("c"); for n in 0..{reads} {{ c.get("k"); }}"#)
    };
    server.deploy("bench", "reads", &script(READS), &[])?;
    server.deploy("bench", "no-reads", &script(0), &[])?;
    let timed = |path: &str| -> Result<f64> {
        let times = (0..11).map(|_| {
            let started = Instant::now();
            server.get(path)?;
            Ok(started.elapsed().as_secs_f64() * 1e6)
        });
        Ok(median(times.collect::<Result<_>>()?))
    };
    Ok((timed("/reads")? - timed("/no-reads")?) / f64::from(READS))
}

/// The p99 of the admin API in milliseconds while four guests compute for ever on two cores.
pub(super) fn api_beside_loops(bench: &Bench, server: &Server) -> Result<f64> {
    server.deploy("bench", "spin", "loop {}", &[])?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    // It ends with its fuel, and that is an error.
                    let _ = server.get("/spin");
                }
            });
        }
        std::thread::sleep(Duration::from_millis(200));
        let waits = (0..bench.scale.seconds * 50).map(|_| {
            let started = Instant::now();
            server.api_get("/api/v1/apps")?;
            Ok(started.elapsed().as_secs_f64() * 1e3)
        });
        let waits: Result<Vec<f64>> = waits.collect();
        over.store(true, Ordering::Relaxed);
        let mut waits = waits?;
        waits.sort_by(f64::total_cmp);
        Ok(at(&waits, 0.99))
    })
}
