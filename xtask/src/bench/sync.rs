//! The sync route: on both databases, and beside workerd in turns on the same machine.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::server::Server;
use super::{Load, Measure, measure as line, wrk_at};

/// Turns; what counts is the median.
const ROUNDS: u32 = 3;
/// Reads of one execution.
const READS: u32 = 1_000;

/// workerd with one worker that answers what our script answers.
pub(super) struct Workerd {
    child: Child,
    url: String,
}

impl Workerd {
    /// Start it from the folder where the peers are installed.
    pub(super) fn start(peers: &Path) -> Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let address = format!("127.0.0.1:{port}");
        let child = Command::new(peers.join("node_modules/.bin/workerd"))
            .current_dir(peers)
            .args(["serve", "workerd.capnp"])
            .arg(format!("--socket-addr=http={address}"))
            .spawn()?;
        let workerd = Self {
            child,
            url: format!("http://{address}"),
        };
        let started = Instant::now();
        while TcpStream::connect(&address).is_err() {
            if started.elapsed() > Duration::from_secs(10) {
                bail!("workerd did not start");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(workerd)
    }
}

impl Drop for Workerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median over some rounds of a number of ours ÷ theirs: of the rate, and of the p99.
fn ratios(ours: &str, theirs: &str, connections: u32, seconds: u32) -> Result<(f64, f64)> {
    let (mut rates, mut tails) = (Vec::new(), Vec::new());
    let load = |url: &str| -> Result<Load> {
        wrk_at(
            &format!("{url}/hello?name=Ada"),
            connections,
            seconds.div_ceil(ROUNDS),
        )
    };
    for _ in 0..ROUNDS {
        let (one, other) = (load(ours)?, load(theirs)?);
        rates.push(one.rate / other.rate);
        tails.push(one.p99_ms / other.p99_ms);
    }
    Ok((median(rates), median(tails)))
}

/// Beside workerd.
pub(super) fn beside_workerd(server: &Server, peers: &Path, seconds: u32) -> Result<Vec<Measure>> {
    let workerd = Workerd::start(peers)?;
    let (rate, tail) = ratios(&server.url(), &workerd.url, 32, seconds)?;
    let (wide, _) = ratios(&server.url(), &workerd.url, 128, seconds)?;
    Ok(vec![
        line("sync route ÷ workerd, 32 connections", rate, "×", 0.6),
        line("  its p99 ÷ workerd's", tail, "×", -0.3),
        line("sync route ÷ workerd, 128 connections", wide, "×", 0.6),
    ])
}

/// A server on Postgres beside one on SQLite.
pub(super) fn beside_sqlite(
    postgres: &Server,
    sqlite: &Server,
    seconds: u32,
) -> Result<Vec<Measure>> {
    let (rate, _) = ratios(&postgres.url(), &sqlite.url(), 32, seconds)?;
    let name = "sync route on Postgres ÷ on SQLite, 32 connections";
    Ok(vec![line(name, rate, "×", 0.5)])
}

/// What one read of the key-value store costs a script, in microseconds.
pub(super) fn kv_get(server: &Server, folder: &Path) -> Result<f64> {
    let script = |reads: u32| {
        format!(r#"let c = kv::collection("c"); for n in 0..{reads} {{ c.get("k"); }}"#)
    };
    server.deploy(folder, "bench", "reads", &script(READS), &[])?;
    server.deploy(folder, "bench", "no-reads", &script(0), &[])?;
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
pub(super) fn api_beside_loops(server: &Server, folder: &Path, seconds: u32) -> Result<f64> {
    server.deploy(folder, "bench", "spin", "loop {}", &[])?;
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    // It ends with its fuel, and that is an error.
                    let _ = server.get("/spin");
                }
            });
        }
        std::thread::sleep(Duration::from_millis(200));
        let waits = (0..seconds * 50).map(|_| {
            let started = Instant::now();
            server.api_get(folder, "/api/v1/apps")?;
            Ok(started.elapsed().as_secs_f64() * 1e3)
        });
        let waits: Result<Vec<f64>> = waits.collect();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        let mut waits = waits?;
        waits.sort_by(f64::total_cmp);
        Ok(waits[waits.len() * 99 / 100])
    })
}
