//! Builds the dashboard to the static files that the binary embeds, and checks it. Nothing of npm is
//! needed at run time.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::Result;

use crate::npm::{install, npm, tested};
use crate::step;

/// What the built files are made of.
const INPUTS: [&str; 7] = [
    "dashboard/src",
    "dashboard/static",
    "dashboard/package.json",
    "dashboard/package-lock.json",
    "dashboard/tsconfig.json",
    "dashboard/vite.config.ts",
    "xtask/src/dashboard.rs",
];

/// Build the dashboard if anything that it is made of changed.
pub fn build(root: &Path) -> Result<()> {
    let stamp = root.join("build/dashboard.inputs");
    let inputs = crate::inputs::hash(root, &INPUTS)?;
    let page = root.join("build/dashboard/index.html");
    if page.exists() && fs::read_to_string(&stamp).is_ok_and(|known| known == inputs) {
        return Ok(());
    }
    let folder = root.join("dashboard");
    install(&folder)?;
    step("build the dashboard", || {
        let mut build = npm(&folder, &["run", "build"]);
        // Its output is a list of two hundred files.
        build.stdout(Stdio::null());
        crate::run(build.env("PICLOUD_DASHBOARD_VERSION", &inputs[..16]))?;
        Ok(fs::write(&stamp, inputs)?)
    })
}

/// Check its types, with those of the API made of the built binary, and its style, and run its unit
/// tests; says how many passed and how many failed.
pub fn check(root: &Path) -> Result<(u64, u64)> {
    let folder = root.join("dashboard");
    install(&folder)?;
    let mut types = npm(&folder, &["run", "types"]);
    crate::run(types.env("PICLOUD_BIN", root.join("target/debug/picloud")))?;
    crate::run(&mut npm(&folder, &["run", "check"]))?;
    tested(&mut npm(&folder, &["run", "test"]))
}

/// Drive it in a browser, against the binary; screenshots go to `target/screenshots`.
pub fn browse(root: &Path) -> Result<(u64, u64)> {
    let folder = root.join("dashboard");
    install(&folder)?;
    install(&root.join("tests/oidc"))?;
    let mut tests = npm(&folder, &["run", "e2e"]);
    tests.env("PICLOUD_BIN", root.join("target/debug/picloud"));
    tests.env("PICLOUD_SCREENSHOTS", root.join("target/screenshots"));
    tested(&mut tests)
}
