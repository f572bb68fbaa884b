//! A flame graph of the sync route: what the server's threads do while it is under load.

use std::io::BufReader;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use inferno::collapse::Collapse;
use inferno::collapse::perf::{self, Folder};
use inferno::flamegraph::color::MultiPalette;
use inferno::flamegraph::{self, Options, Palette, TextTruncateDirection};

use super::load::wrk;
use super::server::Server;
use super::sync::SCRIPT;
use super::{Bench, QUICK};

const CONNECTIONS: u32 = 32;
/// Samples of each thread that runs, per second; no divisor of the rates at which things tick.
const SAMPLES_PER_SECOND: u32 = 999;
/// In percent of all samples: narrower frames could not be read, and make the file large.
const NARROWEST_FRAME: f64 = 0.15;

/// Profile a server on SQLite under load for some seconds, and draw `tests/bench/flame.svg`.
pub fn run(root: &Path, seconds: u32) -> Result<()> {
    crate::guest::build(root)?;
    crate::step("build the server with frame pointers", || build(root))?;
    let folder = root.join("target/flame/data");
    let _ = std::fs::remove_dir_all(&folder);
    let bench = Bench {
        root,
        programs: root.join("target/flame/release"),
        folder: folder.clone(),
        scale: QUICK,
    };
    let server = Server::on(&bench, "server", None)?;
    server.deploy("bench", "hello", SCRIPT, &[])?;
    let target = server.target("hello", "/hello?name=Ada");
    wrk(&target, CONNECTIONS, 2)?;
    let profile = folder.join("perf.data");
    crate::step("profile the server under load", || {
        record(&server, &target.url, &profile, seconds)
    })?;
    drop(server);
    let svg = root.join("tests/bench/flame.svg");
    crate::step("draw the flame graph", || {
        let folded = fold(&profile)?;
        let mut stacks: Vec<String> = folded.lines().map(tidy).collect();
        stacks.sort();
        draw(&stacks, &svg, seconds)
    })?;
    println!("written to {}", svg.display());
    Ok(())
}

/// The release with frame pointers, because unwinding by tables loses the frames below a guest's,
/// and copying stacks for it costs more than the server's own work.
fn build(root: &Path) -> Result<()> {
    let mut build = Command::new(crate::cargo());
    build
        .current_dir(root)
        .args([
            "build",
            "--release",
            "--locked",
            "--target-dir",
            "target/flame",
        ])
        .args(["--package", "picloud", "--bin", "picloud"])
        .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
        .env("RUSTFLAGS", "-Cforce-frame-pointers=yes")
        .env("CFLAGS", "-fno-omit-frame-pointer");
    crate::run(&mut build)
}

/// Sample the server for as long as wrk runs. By a timer of the kernel's, because a virtual
/// machine often has no counter of cycles.
fn record(server: &Server, url: &str, profile: &Path, seconds: u32) -> Result<()> {
    let mut perf = Command::new("perf");
    perf.args(["record", "--quiet", "--event", "cpu-clock"])
        .args(["--freq", &SAMPLES_PER_SECOND.to_string()])
        .args(["--call-graph", "fp"])
        .args(["--pid", &server.pid().to_string()])
        .arg("--output")
        .arg(profile)
        .args(["--", "wrk", "-t1", &format!("-c{CONNECTIONS}")])
        .arg(format!("-d{seconds}s"))
        .arg(url);
    crate::run(&mut perf).context("perf needs root, or kernel.perf_event_paranoid at 1 or less")
}

/// One line for each stack that was seen, `thread;outermost;…;innermost 12`; in nanoseconds.
fn fold(profile: &Path) -> Result<String> {
    let mut script = Command::new("perf")
        // The names of inlined functions would take it minutes.
        .args(["script", "--no-inline", "--input"])
        .arg(profile)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let output = script.stdout.take().context("it was piped")?;
    let mut folded = Vec::new();
    let mut options = perf::Options::default();
    options.annotate_kernel = true;
    Folder::from(options).collapse(BufReader::new(output), &mut folded)?;
    let status = script.wait()?;
    if !status.success() {
        bail!("perf script failed ({status})");
    }
    Ok(String::from_utf8(folded)?)
}

/// A stack without what every thread begins with, and with one frame for all of the guest's: its
/// functions have no names.
fn tidy(stack: &str) -> String {
    let (stack, weight) = stack.rsplit_once(' ').unwrap_or((stack, "0"));
    let (thread, frames) = stack.split_once(';').unwrap_or((stack, ""));
    let begun = frames.split_once("__rust_begin_short_backtrace;");
    let frames = begun.map_or(frames, |(_, inside)| inside);
    let named = frames.split(';').map(|frame| {
        // perf expects the names of code that is in no file in a file `perf-<pid>.map`.
        let unnamed = frame.starts_with("[perf-") && frame.ends_with(".map]");
        if unnamed { "[guest]" } else { frame }
    });
    let mut kept: Vec<&str> = std::iter::once(thread).chain(named).collect();
    kept.dedup_by(|next, last| next == last && *last == "[guest]");
    format!("{} {weight}", kept.join(";"))
}

fn draw(stacks: &[String], svg: &Path, seconds: u32) -> Result<()> {
    let mut options = Options::default();
    options.title = format!("The sync route, SQLite, {CONNECTIONS} connections");
    options.subtitle = Some(format!(
        "CPU time by thread, of {seconds} s of wall time; `_[k]` is the kernel; drawn by `cargo xtask flame`"
    ));
    options.count_name = "ms".to_owned();
    options.factor = 1e-6;
    options.min_width = NARROWEST_FRAME;
    options.colors = Palette::Multi(MultiPalette::Rust);
    options.deterministic = true;
    options.text_truncate_direction = TextTruncateDirection::Right;
    let mut drawn = Vec::new();
    let lines = stacks.iter().map(String::as_str);
    flamegraph::from_lines(&mut options, lines, &mut drawn)?;
    std::fs::write(svg, drawn)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::tidy;

    #[test]
    fn a_stack_begins_where_its_thread_works_and_names_the_guest_once() {
        let stack = "worker;start_thread;std::__rust_begin_short_backtrace;run;[perf-12.map];\
                     [perf-12.map];import;[perf-12.map] 1001001";
        assert_eq!(tidy(stack), "worker;run;[guest];import;[guest] 1001001");
        assert_eq!(tidy("epoch;idle_[k] 7"), "epoch;idle_[k] 7");
    }
}
