//! Runs npm in a folder of ours. What it installs there brings its own Node, so that Debian's,
//! which is old, is enough to start with.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// An npm command in this folder.
pub fn npm(folder: &Path, words: &[&str]) -> Command {
    let mut npm = Command::new("npm");
    npm.current_dir(folder)
        .args(["--loglevel", "error"])
        .args(words);
    npm
}

/// Install what the folder's lock file names, unless just that is installed.
pub fn install(folder: &Path) -> Result<()> {
    let lock = folder.join("package-lock.json");
    let installed = folder.join("node_modules/.installed");
    let wanted = fs::read(&lock).with_context(|| format!("{}", lock.display()))?;
    if fs::read(&installed).is_ok_and(|known| known == wanted) {
        return Ok(());
    }
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    crate::step(&format!("install what {name} is built with"), || {
        crate::run(&mut npm(folder, &["ci", "--no-audit", "--no-fund"]))?;
        Ok(fs::write(&installed, &wanted)?)
    })
}

/// Run tests of vitest; says how many passed and how many failed.
pub fn tested(tests: &mut Command) -> Result<(u64, u64)> {
    tests.env("NO_COLOR", "1").stdout(Stdio::piped());
    let mut child = tests.spawn()?;
    let stdout = child.stdout.take().context("it was piped")?;
    let mut counts = (0, 0);
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        counts = parse_result(&line).unwrap_or(counts);
        println!("{line}");
    }
    if !child.wait()?.success() {
        bail!("tests failed");
    }
    Ok(counts)
}

/// The numbers of vitest's line, `Tests  1 failed | 57 passed (58)`.
fn parse_result(line: &str) -> Option<(u64, u64)> {
    let rest = line.trim().strip_prefix("Tests ")?;
    let number = |what: &str| {
        let mut words = rest.split([' ', '|']).filter(|word| !word.is_empty());
        let mut last = None;
        words.find_map(|word| {
            let before = last.replace(word);
            (word == what).then(|| before?.parse().ok()).flatten()
        })
    };
    Some((number("passed").unwrap_or(0), number("failed").unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::parse_result;

    #[test]
    fn results_are_counted() {
        let line = "      Tests  1 failed | 57 passed (58)";
        assert_eq!(parse_result(line), Some((57, 1)));
        assert_eq!(parse_result("  Tests  58 passed (58)"), Some((58, 0)));
        assert_eq!(parse_result(" Test Files  3 passed (3)"), None);
    }
}
