//! Checks `@picloud/client`: its style, its types, its tests against the server, and the package
//! that it becomes.

use std::path::Path;

use anyhow::Result;

use crate::npm::{install, npm, tested};

/// Run all its checks, those that need a server on both databases; says how many tests passed and
/// how many failed.
pub fn check(root: &Path, postgres_url: &str) -> Result<(u64, u64)> {
    let folder = root.join("sdk-ts");
    install(&folder)?;
    for script in ["format", "lint", "check"] {
        crate::run(&mut npm(&folder, &["run", script]))?;
    }
    // The package comes first: some tests are pages that load it.
    for script in ["build", "package", "size", "reference"] {
        crate::run(&mut npm(&folder, &["run", script]))?;
    }
    let run = |script: &str, postgres_url: Option<&str>| {
        let mut tests = npm(&folder, &["run", script]);
        tests.env("PICLOUD_BIN", root.join("target/debug/picloud"));
        tests.envs(postgres_url.map(|url| ("PICLOUD_TEST_SDK_POSTGRES_URL", url)));
        tested(&mut tests)
    };
    let embedded = run("test", None)?;
    let postgres = run("test:postgres", Some(postgres_url))?;
    Ok((embedded.0 + postgres.0, embedded.1 + postgres.1))
}
