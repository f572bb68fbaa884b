//! Set-up, builds and test runs, in plain Rust: `cargo xtask --help`.

mod bench;
mod bind;
mod dashboard;
mod guest;
mod inputs;
mod instructions;
mod npm;
mod postgres;
mod schemathesis;
mod sdk;
mod setup;
mod test;
#[cfg(test)]
mod tidy;
mod up;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Sets PiCloud up, builds it, runs it and tests it"
)]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing on this machine
    Setup {
        /// What the tests need too
        #[arg(long)]
        test: bool,
        /// What the benchmark needs too
        #[arg(long)]
        bench: bool,
        /// Install without asking
        #[arg(long)]
        yes: bool,
    },
    /// Build the Rhai guest; needed before a plain `cargo build`
    Guest,
    /// Build the dashboard, which the next `cargo build` embeds
    Dashboard,
    /// Pack the TypeScript client to build/sdk/client.tgz, which the next `cargo build` embeds
    Sdk,
    /// Make a component of a core module that was built for wasm32-wasip1
    Component {
        /// The core module
        module: PathBuf,
        /// Where the component goes
        component: PathBuf,
    },
    /// From a clone to a running server with an example on it
    Up {
        /// Where it listens on 127.0.0.1
        #[arg(long, default_value_t = 8080)]
        port: u16,
        /// Where it keeps everything
        #[arg(long, default_value = "./data")]
        data: PathBuf,
        /// Install what is missing without asking
        #[arg(long)]
        yes: bool,
    },
    /// Measure the server on this machine, beside what people would use instead
    Bench {
        /// Shorter: less of everything, within three minutes
        #[arg(long)]
        quick: bool,
        /// Shortest, on the build of the tests: it only shows that the benchmark works
        #[arg(long, conflicts_with = "quick")]
        smoke: bool,
        /// Install what is missing without asking
        #[arg(long)]
        yes: bool,
    },
    /// Count the instructions of one execution under callgrind, and compare with the baseline in
    /// tests/bench/instructions.json: an error above 5 % more
    Instructions {
        /// Make the count the new baseline
        #[arg(long)]
        accept: bool,
        /// Count the build that the tests use, as `cargo xtask test` does
        #[arg(long)]
        smoke: bool,
        /// Install what is missing without asking
        #[arg(long)]
        yes: bool,
    },
    /// Profile a server under load and draw tests/bench/flame.svg
    Flame {
        /// For how long
        #[arg(long, default_value_t = 10)]
        seconds: u32,
        /// Install what is missing without asking
        #[arg(long)]
        yes: bool,
    },
    /// Kill a server under load, break its database and lose its answers, for hours, and compare
    /// with a ledger outside of it; attack it beside an app that goes on; hold scripts, and Rhai's own
    /// suite where it can be had, against native Rhai. `PICLOUD_TEST_SEED` repeats a run
    Soak {
        /// How often, on each database
        #[arg(long, default_value_t = 1_000)]
        kills: u32,
        /// How many answers of the database are lost at random: on one node, on two, and on four
        #[arg(long, default_value_t = 1_000)]
        lost_answers: u32,
        /// How many generated scripts are held against native Rhai
        #[arg(long, default_value_t = 100_000)]
        scripts: u32,
        /// Install what is missing without asking
        #[arg(long)]
        yes: bool,
    },
    /// Check everything: format, lints, licences, unit, contract and end-to-end tests
    Test {
        /// Only tests whose name contains this
        filter: Option<String>,
        /// Only these steps: fmt, clippy, deny, build, guest, dashboard, unit, e2e, hostile, schemathesis, browser, sdk, instructions, and bench, which runs only where it is named
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// Install what is missing without asking
        #[arg(long)]
        yes: bool,
    },
}

fn main() -> ExitCode {
    match perform(Args::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    let root = root()?;
    match task {
        Task::Setup { test, bench, yes } => {
            setup::set_up(setup::For::Running, yes)?;
            if test {
                setup::set_up(setup::For::Testing, yes)?;
            }
            if bench {
                setup::set_up(setup::For::Measuring, yes)?;
                bench::install_peers(&root)?;
            }
            Ok(())
        }
        Task::Guest => {
            setup::set_up(setup::For::Running, false)?;
            guest::build(&root).map(|_| ())
        }
        Task::Dashboard => {
            setup::set_up(setup::For::Running, false)?;
            dashboard::build(&root)
        }
        Task::Sdk => {
            setup::set_up(setup::For::Running, false)?;
            sdk::build(&root)
        }
        Task::Component { module, component } => {
            std::fs::write(component, guest::encode(&std::fs::read(module)?)?)?;
            Ok(())
        }
        Task::Up { port, data, yes } => {
            setup::set_up(setup::For::Running, yes)?;
            up::run(&root, port, &data)
        }
        Task::Bench { quick, smoke, yes } => {
            setup::set_up(setup::For::Measuring, yes)?;
            let kind = match (quick, smoke) {
                (true, _) => bench::Kind::Quick,
                (_, true) => bench::Kind::Smoke,
                _ => bench::Kind::Full,
            };
            bench::run(&root, kind)
        }
        Task::Instructions { accept, smoke, yes } => {
            setup::set_up(setup::For::Counting, yes)?;
            let build = match smoke {
                true => instructions::Build::Tests,
                false => instructions::Build::Release,
            };
            instructions::run(&root, build, accept)
        }
        Task::Flame { seconds, yes } => {
            setup::set_up(setup::For::Profiling, yes)?;
            bench::flame(&root, seconds)
        }
        Task::Soak {
            kills,
            lost_answers,
            scripts,
            yes,
        } => {
            setup::set_up(setup::For::Testing, yes)?;
            let mut longer = vec![
                ("PICLOUD_TEST_KILLS", kills.to_string()),
                ("PICLOUD_TEST_CUTS", "1000".to_owned()),
                ("PICLOUD_TEST_BROKEN_SECS", "15".to_owned()),
                ("PICLOUD_TEST_LOST_ANSWERS", lost_answers.to_string()),
                ("PICLOUD_RHAI_CASES", scripts.to_string()),
            ];
            if let Some(suite) = rhai_suite(&root)? {
                longer.push(("PICLOUD_RHAI_SUITE", suite.display().to_string()));
            }
            let filters = [
                "p1_",
                "p2_",
                "p3_",
                "p5_",
                "kills::",
                "cuts_of_",
                "what_was_accepted",
                "lost_answers::",
                "generated_scripts",
                "upstream_suites_scripts",
            ];
            let steps = ["guest", "e2e", "hostile"].map(str::to_owned);
            test::run(&root, &steps, &filters, &longer)?;
            test::run(&root, &["bench".to_owned()], &[], &[])
        }
        Task::Test { filter, only, yes } => {
            setup::set_up(setup::For::Testing, yes)?;
            let filters: Vec<&str> = filter.as_deref().into_iter().collect();
            test::run(&root, &only, &filters, &[])
        }
    }
}

/// Rhai's own suite, where it can be had from here.
fn rhai_suite(root: &Path) -> Result<Option<PathBuf>> {
    let folder = root.join("target/rhai-suite");
    step("take Rhai's suite", || {
        let mut take = Command::new(root.join("tests/rhai/take-suite.sh"));
        run(take.arg(&folder))
    })?;
    Ok(folder.join("tests").is_dir().then_some(folder))
}

/// The folder of the workspace.
fn root() -> Result<PathBuf> {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(xtask
        .parent()
        .context("xtask lies in the workspace")?
        .to_owned())
}

/// The cargo that runs us.
fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Run a command to its end; its output goes where ours goes.
fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
    if !status.success() {
        let words: Vec<_> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy())
            .collect();
        bail!("`{}` failed ({status})", words.join(" "));
    }
    Ok(())
}

/// Do something that takes a while, and say so.
fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("── {name} …");
    let started = Instant::now();
    let done = work().with_context(|| name.to_owned())?;
    eprintln!("── {name}: {:.1} s", started.elapsed().as_secs_f64());
    Ok(done)
}
