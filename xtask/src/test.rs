//! Every check, in the order in which they are cheap.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::postgres::Postgres;
use crate::{cargo, dashboard, guest, instructions, npm, schemathesis, sdk, setup};

/// Names of the steps, for `--only`.
pub const STEPS: [&str; 14] = [
    "fmt",
    "clippy",
    "deny",
    "build",
    "guest",
    "dashboard",
    "unit",
    "e2e",
    "hostile",
    "schemathesis",
    "browser",
    "sdk",
    "instructions",
    "bench",
];

/// Steps that run only where they are named: minutes, in which what is measured says nothing. `soak`
/// runs them, too.
const ASKED_FOR: [&str; 1] = ["bench"];

/// Targets that `--all-targets` and a plain `cargo test` leave out: they have steps of their own.
const APART: [&str; 4] = ["--test", "hostile", "--test", "schemathesis"];

#[derive(Default)]
struct Counts {
    passed: u64,
    failed: u64,
}

/// Run the steps whose names are in `only`, or all, with the tests whose names contain one of
/// `filters`, or all; the end-to-end tests with more environment. A step that fails does not keep
/// the next from running: whoever waits an hour for a run wants to know all that is wrong.
pub fn run(
    root: &Path,
    only: &[String],
    filters: &[&str],
    environment: &[(&str, String)],
) -> Result<()> {
    if let Some(odd) = only.iter().find(|name| !STEPS.contains(&name.as_str())) {
        bail!(
            "there is no step `{odd}`; the steps are {}",
            STEPS.join(", ")
        );
    }
    guest::build(root)?;
    dashboard::build(root)?;
    sdk::build(root)?;
    let mut counts = Counts::default();
    let mut summary = Vec::new();
    let mut postgres = None;
    let mut failed = Vec::new();
    for name in STEPS {
        let is_wanted = match only {
            [] => !ASKED_FOR.contains(&name),
            only => only.iter().any(|wanted| wanted == name),
        };
        if !is_wanted {
            continue;
        }
        eprintln!("── {name} …");
        let started = Instant::now();
        let done = step(root, name, filters, environment, &mut counts, &mut postgres);
        summary.push((name, started.elapsed().as_secs_f64(), done.is_ok()));
        if let Err(error) = done {
            eprintln!("{name} failed: {error:#}\nrerun it with: cargo xtask test --only {name}");
            failed.push(name);
        }
    }
    print_summary(&summary);
    drop(postgres);
    if failed.is_empty() {
        println!("{} passed, 0 failed", counts.passed);
        return Ok(());
    }
    println!("{} passed, {} failed", counts.passed, counts.failed.max(1));
    bail!("failed: {}", failed.join(", "))
}

fn print_summary(summary: &[(&str, f64, bool)]) {
    eprintln!();
    for (name, seconds, fine) in summary {
        eprintln!(
            "{name:<12} {seconds:>7.1} s  {}",
            if *fine { "ok" } else { "FAILED" }
        );
    }
}

fn step(
    root: &Path,
    name: &str,
    filters: &[&str],
    environment: &[(&str, String)],
    counts: &mut Counts,
    postgres: &mut Option<Postgres>,
) -> Result<()> {
    let cargo_in = |folder: &str, words: &[&str]| {
        let mut command = Command::new(cargo());
        command.current_dir(root.join(folder)).args(words);
        command
    };
    match name {
        "fmt" => {
            crate::run(&mut cargo_in("", &["fmt", "--all", "--check"]))?;
            crate::run(&mut cargo_in("guest-rhai", &["fmt", "--check"]))
        }
        "clippy" => {
            let lint = |folder: &str, targets: &[&str]| {
                let mut command = cargo_in(folder, &["clippy", "--locked"]);
                command.args(targets).args(["--", "-D", "warnings"]);
                crate::run(&mut command)
            };
            lint("", &["--all-targets"])?;
            lint("", &APART)?;
            lint("", &["--all-targets", "--package", "xtask"])?;
            lint("guest-rhai", &["--all-targets"])
        }
        "deny" => deny(root),
        // All at once: while one core is busy with a large crate, the other has the next.
        "build" => {
            let build = ["test", "--locked", "--no-run"];
            crate::run(&mut cargo_in("", &build))?;
            crate::run(cargo_in("", &build).args(APART))
        }
        "guest" => {
            let mut tests = cargo_in("guest-rhai", &["test", "--locked"]);
            tests.envs(environment.iter().map(|(name, value)| (name, value)));
            tested(&mut tests, filters, counts)
        }
        "unit" => {
            let url = postgres_url(postgres)?;
            let mut own = cargo_in("", &["test", "--locked", "--package", "xtask"]);
            let own = tested(&mut own, filters, counts);
            let words = ["test", "--locked", "--no-fail-fast", "--lib", "--bins"];
            let mut tests = cargo_in("", &words);
            tests.args(["--test", "contract", "--test", "sandbox"]);
            tested(tests.env("PICLOUD_TEST_POSTGRES_URL", url), filters, counts)?;
            own
        }
        "e2e" => {
            let url = postgres_url(postgres)?;
            build_server(root)?;
            npm::install(&root.join("tests/oidc"))?;
            let mut tests = cargo_in("", &["test", "--locked", "--test", "e2e"]);
            // More than there are cores: many wait, for a lease to end or a database to come back.
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            tests.env("RUST_TEST_THREADS", (cores + cores.div_ceil(2)).to_string());
            tests.env("PICLOUD_TEST_POSTGRES_URL", url);
            tests.env("PICLOUD_BIN", root.join("target/debug/picloud"));
            let to_restart = Postgres::start()?;
            tests.env("PICLOUD_TEST_POSTGRES_TO_RESTART", &to_restart.url);
            tests.env(
                "PICLOUD_TEST_POSTGRES_RESTART",
                to_restart.restart_command(),
            );
            tests.envs(environment.iter().map(|(name, value)| (name, value)));
            tested(&mut tests, filters, counts)
        }
        // One after another: what they measure is what a neighbour notices.
        "hostile" => {
            let url = postgres_url(postgres)?;
            build_server(root)?;
            let mut tests = cargo_in("", &["test", "--locked", "--test", "hostile"]);
            tests.env("PICLOUD_TEST_POSTGRES_URL", url);
            tests.env("PICLOUD_BIN", root.join("target/debug/picloud"));
            tests.env("RUST_TEST_THREADS", "1");
            tests.envs(environment.iter().map(|(name, value)| (name, value)));
            // Most attacks touch no database; `soak` has all of them on both.
            let short = ["sqlite::", "stored::postgres::", "computing::postgres::"];
            tested(
                &mut tests,
                if filters.is_empty() { &short } else { filters },
                counts,
            )
        }
        "schemathesis" => {
            let program = schemathesis::install(root)?;
            let url = postgres_url(postgres)?;
            build_server(root)?;
            let mut tests = cargo_in("", &["test", "--locked", "--test", "schemathesis"]);
            tests.env("PICLOUD_TEST_POSTGRES_URL", url);
            tests.env("PICLOUD_BIN", root.join("target/debug/picloud"));
            tests.env("PICLOUD_SCHEMATHESIS", program);
            tested(&mut tests, filters, counts)
        }
        // A filter names tests of Rust.
        "dashboard" | "browser" | "sdk" if !filters.is_empty() => Ok(()),
        "dashboard" | "browser" | "sdk" => {
            build_server(root)?;
            let done = match name {
                "dashboard" => dashboard::check(root)?,
                "browser" => dashboard::browse(root)?,
                _ => sdk::check(root, &postgres_url(postgres)?)?,
            };
            counted(done, counts)
        }
        // These have no tests to filter.
        "bench" if !filters.is_empty() => Ok(()),
        "bench" => crate::bench::run(root, crate::bench::Kind::Smoke),
        "instructions" if !filters.is_empty() => Ok(()),
        "instructions" => instructions::run(root, instructions::Build::Tests, false),
        other => bail!("there is no step `{other}`"),
    }
}

/// Build what the tests start. With an example, because only then cargo gives the dependencies the
/// features that they have in tests: without, it would compile wasmtime and sqlx once more.
fn build_server(root: &Path) -> Result<()> {
    let mut build = Command::new(cargo());
    build
        .current_dir(root)
        .args(["build", "--locked", "--bins", "--example", "count_bench"]);
    crate::run(&mut build)
}

/// Add how many tests passed and how many failed.
fn counted((passed, failed): (u64, u64), counts: &mut Counts) -> Result<()> {
    counts.passed += passed;
    counts.failed += failed;
    Ok(())
}

/// The Postgres that the environment names, or one of our own that lasts for this run.
fn postgres_url(postgres: &mut Option<Postgres>) -> Result<String> {
    if let Ok(url) = std::env::var("PICLOUD_TEST_POSTGRES_URL") {
        return Ok(url);
    }
    if postgres.is_none() {
        *postgres = Some(Postgres::start()?);
    }
    Ok(postgres
        .as_ref()
        .map(|server| server.url.clone())
        .unwrap_or_default())
}

/// Licences, sources and bans need nothing from outside; advisories need a database that is
/// fetched from a git host.
fn deny(root: &Path) -> Result<()> {
    if !setup::has_program("cargo-deny") {
        eprintln!("cargo-deny is not installed; `cargo xtask setup --test` installs it");
        bail!("cargo-deny is missing");
    }
    let check = |what: &[&str]| {
        let mut command = Command::new(cargo());
        command
            .current_dir(root)
            .args(["deny", "--all-features", "check"])
            .args(what);
        command
    };
    crate::run(&mut check(&["bans", "licenses", "sources"]))?;
    let fetched = Command::new(cargo())
        .current_dir(root)
        .args(["deny", "fetch", "db"])
        .output();
    if fetched.is_ok_and(|fetched| fetched.status.success()) {
        return crate::run(&mut check(&["advisories"]));
    }
    eprintln!("NOTE: advisories were not checked: their database cannot be fetched from here");
    Ok(())
}

/// Run tests, pass their output through and count their results.
fn tested(command: &mut Command, filters: &[&str], counts: &mut Counts) -> Result<()> {
    // cargo takes one filter, the tests themselves any number.
    command.arg("--").args(filters).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    for line in child
        .stdout
        .take()
        .map(BufReader::new)
        .into_iter()
        .flat_map(BufRead::lines)
    {
        let line = line?;
        if let Some((passed, failed)) = parse_result(&line) {
            counts.passed += passed;
            counts.failed += failed;
        }
        println!("{line}");
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("tests failed ({status})");
    }
    Ok(())
}

/// The numbers of a line like `test result: ok. 3 passed; 0 failed; …`.
fn parse_result(line: &str) -> Option<(u64, u64)> {
    let rest = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let number = |what: &str| {
        let part = rest.split("; ").find(|part| part.trim().ends_with(what))?;
        part.split(' ').next()?.parse().ok()
    };
    Some((number("passed")?, number("failed")?))
}

#[cfg(test)]
mod tests {
    use super::parse_result;

    #[test]
    fn results_are_counted() {
        let line = "test result: ok. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(parse_result(line), Some((3, 1)));
        assert_eq!(parse_result("test a ... ok"), None);
    }
}
