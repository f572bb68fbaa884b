//! Finds what the host embeds: the packed Rhai guest, and the dashboard if it was built.

use std::path::PathBuf;

fn main() {
    // `rust-embed` notices files that change, not files that come.
    println!("cargo::rerun-if-changed=../build/dashboard");
    println!("cargo::rerun-if-env-changed=PICLOUD_GUEST_WASM");
    let path = std::env::var_os("PICLOUD_GUEST_WASM").map_or_else(
        || {
            PathBuf::from(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../build/guest-rhai.wasm"
            ))
        },
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", path.display());
    match path.canonicalize() {
        Ok(path) => println!("cargo::rustc-env=PICLOUD_GUEST_PATH={}", path.display()),
        Err(_) => {
            println!(
                "cargo::error=the Rhai guest is not built yet: run `cargo xtask guest`, then build again"
            );
        }
    }
}
