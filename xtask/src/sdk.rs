//! Checks `@picloud/client`: its style, its types, its tests against the server, and the package
//! that it becomes.

use std::path::Path;

use anyhow::Result;

use crate::npm::{install, npm, tested};

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
    tests.env("PICLOUD_BIN", root.join("target/debug/picloud"));
    tested(&mut tests)
}
