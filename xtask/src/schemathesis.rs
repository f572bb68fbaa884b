//! Installs schemathesis, which tests the API by its OpenAPI document: tests/tests/schemathesis.rs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// What PyPI is asked for.
const WANTED: &str = "tests/schemathesis.txt";

/// Install it, unless just that is installed, in an environment of its own; answers the program.
pub fn install(root: &Path) -> Result<PathBuf> {
    let folder = root.join("target/schemathesis");
    let program = folder.join("bin/schemathesis");
    let installed = folder.join(".installed");
    let wanted = fs::read(root.join(WANTED)).context(WANTED)?;
    if fs::read(&installed).is_ok_and(|known| known == wanted) {
        return Ok(program);
    }
    crate::step("install schemathesis", || {
        let mut make = Command::new("python3");
        crate::run(make.args(["-m", "venv", "--clear"]).arg(&folder))?;
        let mut pip = Command::new(folder.join("bin/python3"));
        pip.args(["-m", "pip", "install", "--quiet"])
            .args(["--disable-pip-version-check", "--requirement"])
            .arg(root.join(WANTED));
        crate::run(&mut pip)?;
        Ok(fs::write(&installed, &wanted)?)
    })?;
    Ok(program)
}
