//! How many instructions one execution takes, counted by callgrind. Unlike time it hardly varies,
//! so it can guard against regressions on any machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{guest, step};

/// The executions of the two runs that are compared. What both do, starting above all, cancels
/// out; ten are enough for caches to be warm.
const RUNS: [u64; 2] = [10, 510];
/// How far a count may be from its baseline, in percent.
const MARGIN_PERCENT: f64 = 5.0;
/// Where the baselines are kept.
const BASELINES: &str = "tests/bench/instructions.json";

/// How what is counted is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// A release: what the counts that are told come from. Building it takes ten minutes.
    Release,
    /// As the tests are, whose build is there anyway. The guest's code is the same; the host's takes
    /// some times as much, and shows its regressions all the same.
    Tests,
}

impl Build {
    fn profile(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Tests => "dev",
        }
    }

    /// What makes its count the new baseline.
    fn accepting(self) -> &'static str {
        match self {
            Self::Release => "cargo xtask instructions --accept",
            Self::Tests => "cargo xtask instructions --smoke --accept",
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Release => "target/release/examples",
            Self::Tests => "target/debug/examples",
        }
    }
}

/// What one execution takes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Count {
    /// Instructions of the host: wasmtime, the allocator and the C library among them.
    host: u64,
    /// Instructions of the guest's machine code.
    guest: u64,
}

impl Count {
    fn total(self) -> u64 {
        self.host + self.guest
    }
}

/// A count, and the compiler of the host that it was measured with.
#[derive(Debug, Serialize, Deserialize)]
struct Baseline {
    rustc: String,
    #[serde(flatten)]
    count: Count,
}

/// Count, and compare with the baseline of this processor's architecture, the guest's toolchain
/// and the build; or, to `accept`, make it the baseline.
///
/// Valgrind shows a program a processor of its own: wasmtime and the C library use what the real
/// one has only up to AVX2. So the counts of machines with AVX2 agree, and one without it needs a
/// look at the numbers rather than a new baseline.
pub fn run(root: &Path, build: Build, accept: bool) -> Result<()> {
    guest::build(root)?;
    step("build the counted program", || build_program(root, build))?;
    let program = root.join(build.folder()).join("count_bench");
    let count = step("count the instructions of an execution", || {
        count(root, &program)
    })?;
    let path = root.join(BASELINES);
    let mut baselines: BTreeMap<String, Baseline> = match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| BASELINES.to_owned())?,
        Err(_) => BTreeMap::new(),
    };
    let (arch, guest) = (std::env::consts::ARCH, guest::toolchain_name());
    let name = format!("{arch}-{guest}-{}", build.profile());
    let rustc = rustc_version()?;
    println!(
        "One execution takes {} instructions: {} of the host, {} of the guest.",
        count.total(),
        count.host,
        count.guest
    );
    if accept {
        baselines.insert(name, Baseline { rustc, count });
        let text = serde_json::to_string_pretty(&baselines)?;
        std::fs::write(&path, text + "\n")?;
        println!("That is the baseline now: commit {BASELINES}.");
        return Ok(());
    }
    let Some(baseline) = baselines.get(&name) else {
        println!(
            "{BASELINES} has no baseline for `{name}`, so nothing was compared; \
             `{}` writes one.",
            build.accepting()
        );
        return Ok(());
    };
    if baseline.rustc != rustc {
        println!(
            "The baseline was measured with rustc {}, this is {rustc}.",
            baseline.rustc
        );
    }
    println!("{}", compare(build, baseline.count, count)?);
    Ok(())
}

/// What to tell of a count beside its baseline; an error when it is too high.
fn compare(build: Build, baseline: Count, count: Count) -> Result<String> {
    let accepting = build.accepting();
    let (before, now) = (baseline.total(), count.total());
    let percent = (now as f64 - before as f64) / before as f64 * 100.0;
    if percent > MARGIN_PERCENT {
        bail!(
            "one execution takes {now} instructions ({} of the host, {} of the guest), the \
             baseline is {before} ({}, {}): {percent:+.1} %, and {MARGIN_PERCENT} % are allowed. \
             Find what costs so much; if it is worth it, run `{accepting}`, \
             commit {BASELINES} and say why",
            count.host,
            count.guest,
            baseline.host,
            baseline.guest
        );
    }
    let verdict = format!("That is {percent:+.1} % beside the baseline of {before}.");
    if percent < -MARGIN_PERCENT {
        return Ok(format!(
            "{verdict} Keep the gain: run `{accepting}` and commit {BASELINES}."
        ));
    }
    Ok(verdict)
}

fn build_program(root: &Path, build: Build) -> Result<()> {
    let mut cargo = Command::new(crate::cargo());
    cargo.current_dir(root).args([
        "build",
        "--profile",
        build.profile(),
        "--locked",
        "--example",
        "count_bench",
    ]);
    crate::run(&mut cargo)
}

fn count(root: &Path, program: &Path) -> Result<Count> {
    let folder = root.join("target/instructions");
    std::fs::create_dir_all(&folder)?;
    let run = |tool: &[&str], runs: u64| {
        let mut valgrind = Command::new("valgrind");
        valgrind
            .current_dir(&folder)
            .args(tool)
            .args(["--quiet", "--log-file=valgrind.log"])
            .arg(program)
            .args([&runs.to_string(), "cache"])
            .stdout(Stdio::null());
        crate::run(&mut valgrind).with_context(|| {
            let said = std::fs::read_to_string(folder.join("valgrind.log"));
            said.unwrap_or_default()
        })
    };
    // Compiles the guest, for the processor that valgrind shows: the slowest part, and the tool
    // that counts nothing is the fastest.
    run(&["--tool=none"], 1)?;
    let mut counts = Vec::new();
    for runs in RUNS {
        let out = ["--tool=callgrind", "--callgrind-out-file=callgrind.out"];
        let plain = ["--compress-strings=no", "--compress-pos=no"];
        run(&[out, plain].concat(), runs)?;
        counts.push(sum(&std::fs::read_to_string(
            folder.join("callgrind.out"),
        )?)?);
    }
    let each = |of: fn(Count) -> u64| {
        let more = of(counts[1]).checked_sub(of(counts[0]));
        Ok::<_, anyhow::Error>(more.context("more executions took less")? / (RUNS[1] - RUNS[0]))
    };
    Ok(Count {
        host: each(|count| count.host)?,
        guest: each(|count| count.guest)?,
    })
}

/// The sums of a profile of callgrind's, written with uncompressed names and positions.
fn sum(profile: &str) -> Result<Count> {
    if !profile.lines().any(|line| line == "events: Ir") {
        bail!("callgrind did not count instructions");
    }
    let mut count = Count { host: 0, guest: 0 };
    let mut in_guest = false;
    let mut lines = profile.lines();
    while let Some(line) = lines.next() {
        if let Some(object) = line.strip_prefix("ob=") {
            // Code that no file was mapped for was made by wasmtime.
            in_guest = object == "???";
        } else if line.starts_with("calls=") {
            // The next line has what the callees took, which they have under their own names.
            lines.next();
        } else if line.starts_with(|first: char| first.is_ascii_digit()) {
            let cost: u64 = line
                .split(' ')
                .nth(1)
                .with_context(|| format!("no cost in `{line}`"))?
                .parse()?;
            match in_guest {
                true => count.guest += cost,
                false => count.host += cost,
            }
        }
    }
    Ok(count)
}

fn rustc_version() -> Result<String> {
    let output = Command::new("rustc").arg("--version").output()?;
    let said = String::from_utf8(output.stdout)?;
    let version = said.split(' ').nth(1).context("rustc has no version")?;
    Ok(version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest_of(guest: u64) -> Count {
        Count {
            host: 50_000,
            guest,
        }
    }

    #[test]
    fn five_percent_more_are_allowed_and_no_more() {
        let baseline = guest_of(50_000);
        assert!(compare(Build::Tests, baseline, guest_of(55_000)).is_ok());
        let error = compare(Build::Tests, baseline, guest_of(55_100))
            .unwrap_err()
            .to_string();
        for part in ["105100", "100000", "+5.1 %", "--accept"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_gain_is_to_be_kept() {
        let baseline = guest_of(50_000);
        let said = |guest| compare(Build::Tests, baseline, guest_of(guest)).unwrap();
        assert!(!said(45_000).contains("--accept"));
        assert!(said(44_000).contains("--accept"));
    }

    #[test]
    fn a_profile_is_summed_without_what_callees_took() {
        let profile = "events: Ir\n\nob=/bin/a\nfl=???\nfn=main\n0 7\ncob=???\ncfn=0x1234\n\
                       calls=2 0\n0 90\n0 1\n\nob=???\nfl=???\nfn=0x1234\n0 90\n\ntotals: 98\n";
        let count = Count { host: 8, guest: 90 };
        assert_eq!(sum(profile).unwrap(), count);
    }
}
