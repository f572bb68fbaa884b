//! Packs `@picloud/client` for the binary, which serves it, and checks it: its style, its types, its
//! tests against the server, and the package that it becomes.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::npm::{install, npm, tested};
use crate::step;

/// What the package is made of.
const INPUTS: [&str; 7] = [
    "sdk-ts/src",
    "sdk-ts/README.md",
    "sdk-ts/package.json",
    "sdk-ts/package-lock.json",
    "sdk-ts/tsconfig.json",
    "sdk-ts/tsconfig.build.json",
    "xtask/src/sdk.rs",
];

/// Pack the client to `build/sdk/client.tgz` if anything that it is made of changed.
pub fn build(root: &Path) -> Result<()> {
    let stamp = root.join("build/sdk.inputs");
    let inputs = crate::inputs::hash(root, &INPUTS)?;
    let made = root.join("build/sdk");
    let package = made.join("client.tgz");
    if package.exists() && fs::read_to_string(&stamp).is_ok_and(|known| known == inputs) {
        return Ok(());
    }
    let folder = root.join("sdk-ts");
    install(&folder)?;
    step("pack the client", || {
        fs::create_dir_all(&made)?;
        // npm compiles it first: `prepack` in its package.json.
        let mut pack = npm(&folder, &["pack", "--pack-destination"]);
        crate::run(pack.arg(&made).stdout(Stdio::null()))?;
        let version = version(&folder)?;
        fs::rename(made.join(format!("picloud-client-{version}.tgz")), package)?;
        Ok(fs::write(&stamp, inputs)?)
    })
}

/// The version that a package of npm says it has.
fn version(folder: &Path) -> Result<String> {
    let text = fs::read_to_string(folder.join("package.json"))?;
    let package: serde_json::Value = serde_json::from_str(&text)?;
    let version = package["version"].as_str();
    Ok(version.context("package.json has no version")?.to_owned())
}

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

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn the_client_has_the_version_of_the_server_that_serves_it() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk-ts");
        assert_eq!(
            super::version(&folder).unwrap(),
            env!("CARGO_PKG_VERSION"),
            "sdk-ts/package.json and the workspace's Cargo.toml"
        );
    }
}
