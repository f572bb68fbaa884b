//! What the server does on this machine, beside what people would use instead.

mod deliveries;
mod flame;
mod growth;
mod identity;
mod load;
mod peers;
mod plot;
mod report;
mod sandbox;
mod server;
mod streams;
mod sync;
mod waiting;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

pub use flame::run as flame;
use peers::Peers;
use report::Row;
use server::Server;

use crate::postgres::Postgres;

/// How it is built, and how much is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Everything, of a release build: these figures may be told.
    Full,
    /// Little of everything, of a release build.
    Quick,
    /// As little, of the build that the tests use: it shows that the benchmark works.
    Smoke,
}

/// How much is measured.
struct Scale {
    /// Turns of all that is compared; what counts is the median.
    rounds: u32,
    seconds_of_a_turn: u32,
    seconds: u32,
    sandbox_runs: u32,
    backlog: u32,
    /// How many deliveries of one app another's single ones must get past.
    flood: u32,
    /// Rows among which a claim finds its own.
    rows: u32,
    /// Executions that wait at once.
    waiting: u32,
    /// Streams that are open and hear next to nothing.
    streams: u32,
    scripts: u32,
    apps: u32,
}

const FULL: Scale = Scale {
    rounds: 3,
    seconds_of_a_turn: 4,
    seconds: 10,
    sandbox_runs: 3_000,
    backlog: 20_000,
    flood: 100_000,
    rows: 1_000_000,
    waiting: 5_000,
    streams: 10_000,
    scripts: 10_000,
    apps: 1_000,
};
const QUICK: Scale = Scale {
    rounds: 3,
    seconds_of_a_turn: 1,
    seconds: 2,
    sandbox_runs: 500,
    backlog: 4_000,
    flood: 10_000,
    rows: 100_000,
    waiting: 5_000,
    streams: 2_000,
    scripts: 1_000,
    apps: 100,
};
const SMOKE: Scale = Scale {
    rounds: 1,
    seconds_of_a_turn: 1,
    seconds: 1,
    sandbox_runs: 50,
    backlog: 2_000,
    flood: 6_000,
    rows: 10_000,
    waiting: 500,
    streams: 200,
    scripts: 100,
    apps: 20,
};

/// What every part of it needs.
struct Bench<'a> {
    root: &'a Path,
    /// Where the programs under measurement are.
    programs: PathBuf,
    /// Where the servers keep their data, and where the results go.
    folder: PathBuf,
    scale: Scale,
}

/// Install the peers, where that can be done here.
pub fn install_peers(root: &Path) -> Result<()> {
    Peers::install(root).map(|_| ())
}

/// Measure everything; write a table, a picture and the figures.
pub fn run(root: &Path, kind: Kind) -> Result<()> {
    crate::guest::build(root)?;
    let (profile, programs, scale) = match kind {
        Kind::Full => ("release", "target/release", FULL),
        Kind::Quick => ("release", "target/release", QUICK),
        Kind::Smoke => ("dev", "target/debug", SMOKE),
    };
    crate::step("build the server and the benchmark", || {
        let mut build = Command::new(crate::cargo());
        build
            .current_dir(root)
            .args(["build", "--locked", "--bins"])
            .args(["--profile", profile])
            .args(["--example", "sandbox_bench", "--example", "claim_bench"])
            .args(["--example", "stream_bench"]);
        crate::run(&mut build)
    })?;
    // Thousands of connections need as many files; many a machine gives a thousand.
    rlimit::increase_nofile_limit(u64::MAX)?;
    let folder = root.join("target/bench");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    let bench = Bench {
        root,
        programs: root.join(programs),
        folder,
        scale,
    };
    let peers = Peers::install(root)?;
    let rows = measure(&bench, &peers)?;
    if kind == Kind::Full {
        let picture = root.join("docs/bench.svg");
        std::fs::copy(bench.folder.join("bench.svg"), picture)?;
    }
    report::report(&bench.folder, &rows)?;
    if kind == Kind::Smoke {
        println!("NOTE: one short round of a build for tests: the figures say nothing");
    }
    Ok(())
}

fn measure(bench: &Bench, peers: &Peers) -> Result<Vec<Row>> {
    let mut rows = crate::step("one execution, inside the host", || sandbox::rows(bench))?;
    let size = bench.programs.join("picloud").metadata()?.len() as f64 / 1e6;
    rows.push(
        Row::new("the binary", size, "MB")
            .at_most(60.0)
            .moonshot(40.0),
    );
    rows.extend(crate::step("starts", || starts(bench))?);

    let sqlite = Server::on(bench, "sync-SQLite", None)?;
    sqlite.deploy("bench", "hello", sync::SCRIPT, &[])?;
    let (more, mut requests) = crate::step("sync routes on SQLite", || {
        sync::on_sqlite(bench, &sqlite, peers)
    })?;
    rows.extend(more);
    let database = Postgres::start()?;
    let url = database.create_database("sync")?;
    let postgres = Server::on(bench, "sync-Postgres", Some(&url))?;
    postgres.deploy("bench", "hello", sync::SCRIPT, &[])?;
    let (more, bars) = crate::step("sync routes on Postgres", || {
        sync::on_postgres(bench, &postgres, &sqlite, peers)
    })?;
    rows.extend(more);
    requests.extend(bars);
    let reads = crate::step("reads of a script", || {
        Ok([sync::kv_get(&sqlite)?, sync::kv_get(&postgres)?])
    })?;
    drop(postgres);
    let name = "KV get from a script, SQLite";
    rows.push(Row::new(name, reads[0], "µs").at_most(60.0).moonshot(25.0));
    let name = "KV get from a script, Postgres";
    rows.push(
        Row::new(name, reads[1], "µs")
            .at_most(300.0)
            .moonshot(150.0),
    );
    let api = crate::step("the API beside guests that loop", || {
        sync::api_beside_loops(bench, &sqlite)
    })?;
    let name = "API p99 while four guests loop";
    rows.push(Row::new(name, api, "ms").at_most(50.0).moonshot(10.0));
    drop(sqlite);

    rows.extend(crate::step("executions that wait", || {
        waiting::rows(bench)
    })?);
    rows.extend(crate::step("streams", || streams::rows(bench, peers))?);
    rows.extend(crate::step("sign-ins and tokens", || {
        identity::rows(bench)
    })?);
    rows.extend(crate::step("growth", || growth::rows(bench))?);
    let (more, deliveries) = deliveries::measure(bench, &database, peers)?;
    rows.extend(more);
    let groups = vec![
        ("Requests a second, 32 connections", requests),
        ("Deliveries a second, end to end, 20 in flight", deliveries),
    ];
    plot::draw(&bench.folder.join("bench.svg"), groups)?;
    Ok(rows)
}

/// The first start, which compiles the guest, and one after it; and what the latter takes idle.
fn starts(bench: &Bench) -> Result<Vec<Row>> {
    let mut server = Server::on(bench, "starts", None)?;
    let first = server.took.as_secs_f64();
    server.stop()?;
    let server = Server::on(bench, "starts", None)?;
    server.deploy("bench", "hello", sync::SCRIPT, &[])?;
    server.get("/hello")?;
    // What it does at its start is over.
    std::thread::sleep(Duration::from_secs(1));
    let idle = server.memory_mib("VmRSS")?;
    let later = server.took.as_secs_f64();
    Ok(vec![
        Row::new("first start to first answer", first, "s").at_most(5.0),
        Row::new("second start to first answer", later, "s")
            .at_most(0.3)
            .moonshot(0.1),
        Row::new("idle memory", idle, "MiB")
            .at_most(100.0)
            .moonshot(60.0),
    ])
}
