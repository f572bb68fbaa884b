//! Runs npm in a folder of ours. What it installs there brings its own Node, so that Debian's,
//! which is old, is enough to start with.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

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
