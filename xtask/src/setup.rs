//! Finds out what is missing on this machine and installs it.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::guest;

/// What the machine is set up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// Building and running.
    Running,
    /// All the checks too.
    Testing,
    /// The benchmark.
    Measuring,
    /// Counting instructions too.
    Counting,
    /// Profiling the server under load too.
    Profiling,
}

struct Missing {
    package: &'static str,
    why: &'static str,
}

/// Whether a Debian package is installed.
pub fn has_package(name: &str) -> bool {
    let asked = Command::new("dpkg-query")
        .args(["-W", "-f", "${Status}", name])
        .output();
    asked.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains("ok installed"))
}

/// Whether a program is on the PATH.
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// Whether Python is there, and can make an environment with pip in it: Debian packs that apart.
fn can_make_environments() -> bool {
    let asked = Command::new("python3")
        .args(["-c", "import ensurepip, venv"])
        .output();
    asked.is_ok_and(|said| said.status.success())
}

/// The folder with the newest installed Postgres server, if there is one.
pub fn postgres_bin() -> Option<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse().ok()?,
                entry.path().join("bin"),
            ))
        })
        .filter(|(_, bin)| bin.join("initdb").exists())
        .collect();
    found.sort();
    let debian = found.pop().map(|(_, bin)| bin);
    debian.or_else(|| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).find(|bin| Path::new(bin).join("initdb").is_file())
    })
}

/// Install what is missing for `purpose`, asking first unless `yes`.
pub fn set_up(purpose: For, yes: bool) -> Result<()> {
    let mut missing = Vec::new();
    if !has_program("cc") {
        missing.push(Missing {
            package: "gcc",
            why: "a C compiler, for SQLite and the allocator",
        });
        missing.push(Missing {
            package: "libc6-dev",
            why: "the C library's headers",
        });
    }
    for package in guest::missing_packages() {
        missing.push(Missing {
            package,
            why: "the Rhai guest is compiled to WebAssembly with it",
        });
    }
    if matches!(purpose, For::Running | For::Testing) && !has_program("npm") {
        missing.push(Missing {
            package: "npm",
            why: "the dashboard is built with it, and @picloud/client",
        });
    }
    if purpose == For::Testing && !has_program("chromium") {
        missing.push(Missing {
            package: "chromium",
            why: "the dashboard is tested in it",
        });
    }
    if !matches!(purpose, For::Running | For::Counting) && !has_program("wrk") {
        missing.push(Missing {
            package: "wrk",
            why: "it makes the load of the benchmark",
        });
    }
    if purpose == For::Profiling && !has_program("perf") {
        missing.push(Missing {
            package: "linux-perf",
            why: "it samples what the server does",
        });
    }
    if matches!(purpose, For::Testing | For::Counting) && !has_program("valgrind") {
        missing.push(Missing {
            package: "valgrind",
            why: "it counts the instructions of an execution",
        });
    }
    if purpose == For::Testing && !has_program("faketime") {
        missing.push(Missing {
            package: "faketime",
            why: "some tests give a node a clock that is wrong",
        });
    }
    if purpose == For::Testing && !can_make_environments() {
        missing.push(Missing {
            package: "python3-venv",
            why: "schemathesis, which tests the API, is a program of Python",
        });
    }
    if purpose == For::Testing {
        // Debian has it where users' paths do not lead.
        let has_nginx = has_program("nginx") || Path::new("/usr/sbin/nginx").exists();
        let why = "streams are tested through it";
        for (package, is_there) in [("nginx-light", has_nginx), ("curl", has_program("curl"))] {
            if !is_there {
                missing.push(Missing { package, why });
            }
        }
    }
    if purpose != For::Running {
        let own_postgres = std::env::var_os("PICLOUD_TEST_POSTGRES_URL").is_some();
        if !own_postgres && postgres_bin().is_none() {
            let why = "the tests run on a real Postgres (or set PICLOUD_TEST_POSTGRES_URL)";
            missing.push(Missing {
                package: "postgresql",
                why,
            });
        }
    }
    if !missing.is_empty() {
        install(&missing, yes)?;
    }
    if purpose == For::Testing {
        for component in ["rustfmt", "clippy"] {
            if !has_program(&format!("cargo-{}", component.trim_start_matches("rust"))) {
                println!("Installing {component}: the checks use it.");
                crate::run(Command::new("rustup").args(["component", "add", component]))?;
            }
        }
        if !has_program("cargo-deny") {
            println!(
                "Installing cargo-deny: it checks licences and advisories. This takes minutes, once."
            );
            let mut install = Command::new(crate::cargo());
            // Without optimisation: it runs for seconds, and compiles for minutes.
            install.args(["install", "--locked", "--quiet", "--debug"]);
            crate::run(install.arg("cargo-deny@0.20.2"))?;
        }
    }
    Ok(())
}

fn install(missing: &[Missing], yes: bool) -> Result<()> {
    println!("Missing on this machine:");
    for item in missing {
        println!("  {:<16} {}", item.package, item.why);
    }
    if !has_program("apt-get") {
        bail!("install these with your system's package manager, then run this again");
    }
    let is_root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|id| id.stdout == b"0\n");
    let packages = missing.iter().map(|item| item.package);
    let mut words: Vec<&str> = if is_root { Vec::new() } else { vec!["sudo"] };
    words.extend(["apt-get", "install", "--yes", "--no-install-recommends"]);
    words.extend(packages);
    println!("To install them: {}", words.join(" "));
    let unattended = yes || std::env::var_os("CI").is_some();
    if !unattended {
        if !std::io::stdin().is_terminal() {
            bail!("run this again with --yes to have them installed");
        }
        print!("Shall I? [y/N] ");
        std::io::stdout().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            bail!("not installed; run the command above yourself, then this again");
        }
    }
    let mut update: Vec<&str> = if is_root { Vec::new() } else { vec!["sudo"] };
    update.extend(["apt-get", "update", "-qq"]);
    for command in [update, words] {
        crate::run(
            Command::new(command[0])
                .args(&command[1..])
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )?;
    }
    Ok(())
}
