//! Finds what the host embeds: the packed Rhai guest, and the dashboard and the client if they were
//! built.

use std::path::{Path, PathBuf};

fn main() {
    // `rust-embed` notices files that change, not files that come. What is missing would have this run
    // each time: the folder above it changes when it comes.
    for folder in ["../build/dashboard", "../build/sdk"] {
        let is_built = Path::new(folder).exists();
        let watched = if is_built { folder } else { "../build" };
        println!("cargo::rerun-if-changed={watched}");
    }
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
