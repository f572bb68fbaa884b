//! Checks `@picloud/client`: its style, its types, its tests against the server, and the package
//! that it becomes.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::npm::{install, npm};

/// Run all its checks; says how many tests passed and how many failed.
pub fn check(root: &Path) -> Result<(u64, u64)> {
    let folder = root.join("sdk-ts");
    install(&folder)?;
    for script in ["format", "lint", "check"] {
        crate::run(&mut npm(&folder, &["run", script]))?;
    }
    // The package comes first: some tests are pages that load it.
    for script in ["build", "package", "size", "reference"] {
        crate::run(&mut npm(&folder, &["run", script]))?;
    }
    let mut tests = npm(&folder, &["run", "test"]);
    tests
        .env("PICLOUD_BIN", root.join("target/debug/picloud"))
        .env("NO_COLOR", "1")
        .stdout(Stdio::piped());
    let mut child = tests.spawn()?;
    let stdout = child.stdout.take().context("it was piped")?;
    let mut counts = (0, 0);
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        counts = parse_result(&line).unwrap_or(counts);
        println!("{line}");
    }
    if !child.wait()?.success() {
        bail!("tests of sdk-ts failed");
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
