//! Builds the Rhai guest and packs it: compile for wasm32-wasip1, pre-initialise, bind what it
//! imports of WASI's first preview, encode as a component.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use wasi_preview1_component_adapter_provider as adapter;
use wasmtime_wizer::{InstanceState, SnapshotVal, Wizer};

use crate::{bind, step};

const TARGET: &str = "wasm32-wasip1";
const PREVIEW1: &str = "wasi_snapshot_preview1";
/// What gives a compiler for the target on Debian where rustup cannot.
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "rust-web-src", "wasi-libc"];

/// What the packed guest is made of.
const INPUTS: [&str; 6] = [
    "guest-rhai/src",
    "guest-rhai/Cargo.toml",
    "guest-rhai/Cargo.lock",
    "wit",
    "xtask/src/guest.rs",
    "xtask/src/bind.rs",
];

/// Where the compiler for the target comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Toolchain {
    /// The toolchain in use has the target.
    Rustup,
    /// Debian's second compiler, which builds the standard library from its own source.
    Debian,
}

/// The Debian packages without which the guest cannot be built here; none where rustup has the
/// target, or can get it, which this tries.
pub fn missing_packages() -> Vec<&'static str> {
    if toolchain() == Toolchain::Rustup {
        return Vec::new();
    }
    DEBIAN_PACKAGES
        .into_iter()
        .filter(|package| !crate::setup::has_package(package))
        .collect()
}

/// What the guest is compiled with, in a word.
pub fn toolchain_name() -> &'static str {
    match toolchain() {
        Toolchain::Rustup => "rustup",
        Toolchain::Debian => "debian",
    }
}

/// `PICLOUD_GUEST_TOOLCHAIN` decides; else rustup if it has the target or can add it.
fn toolchain() -> Toolchain {
    match std::env::var("PICLOUD_GUEST_TOOLCHAIN").as_deref() {
        Ok("rustup") => return Toolchain::Rustup,
        Ok("debian") => return Toolchain::Debian,
        _ => {}
    }
    let has_target = || {
        let sysroot = Command::new("rustc")
            .args(["--print", "sysroot"])
            .output()
            .ok()?;
        let sysroot = PathBuf::from(String::from_utf8(sysroot.stdout).ok()?.trim());
        Some(
            sysroot
                .join("lib/rustlib")
                .join(TARGET)
                .join("lib")
                .is_dir(),
        )
    };
    let add_target = || {
        let adding = Command::new("rustup")
            .args(["target", "add", TARGET])
            .output();
        adding.is_ok_and(|added| added.status.success())
    };
    match has_target().unwrap_or(false) || add_target() {
        true => Toolchain::Rustup,
        false => Toolchain::Debian,
    }
}

/// Build and pack the guest if anything that it is made of changed. Answers where it is.
pub fn build(root: &Path) -> Result<PathBuf> {
    let packed = root.join("build/guest-rhai.wasm");
    let stamp = root.join("build/guest-rhai.inputs");
    let inputs = crate::inputs::hash(root, &INPUTS)?;
    if packed.exists() && fs::read_to_string(&stamp).is_ok_and(|known| known == inputs) {
        return Ok(packed);
    }
    fs::create_dir_all(root.join("build"))?;
    let module = step("build the Rhai guest", || compile(root))?;
    step("pack the Rhai guest", || {
        let module = fs::read(&module).with_context(|| format!("{}", module.display()))?;
        let module = pre_initialise(&module)?;
        let module = bind::imports_to_exports(&module, PREVIEW1)?;
        fs::write(&packed, encode(&module)?)?;
        fs::write(&stamp, inputs)?;
        Ok(())
    })?;
    Ok(packed)
}

fn compile(root: &Path) -> Result<PathBuf> {
    let mut cargo = Command::new(crate::cargo());
    cargo.current_dir(root.join("guest-rhai"));
    // The variables of the cargo that runs us are about another workspace.
    cargo.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
    cargo.args(["build", "--release", "--locked", "--target", TARGET]);
    // Rhai's hasher is seeded when it is compiled: at random, unless told. The same source is to
    // make the same guest, or no count of its instructions could be compared. The seed decides which
    // of the engine's own names collide: of seven that were tried, a small script took from 121,000
    // to 152,000 instructions, with this one the fewest.
    cargo.env("CONST_RANDOM_SEED", "b");
    if toolchain() == Toolchain::Debian {
        let rustc = debian_file("rustc-web", "bin/rustc")?;
        let crt = debian_file("wasi-libc", "crt1-reactor.o")?;
        let libc = crt
            .parent()
            .ok_or_else(|| anyhow!("wasi-libc has no folder"))?
            .to_owned();
        let linker = rust_lld()?;
        let flags = [
            "-Clink-self-contained=no".to_owned(),
            format!("-L{}", libc.display()),
            format!("-Clink-arg={}", crt.display()),
            format!("-Clinker={}", linker.display()),
        ];
        cargo
            .arg("-Zbuild-std=std,panic_abort")
            .args(["--target-dir", "target/debian"])
            .env("RUSTC", rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        crate::run(&mut cargo)?;
        return Ok(root
            .join("guest-rhai/target/debian")
            .join(TARGET)
            .join("release/guest_rhai.wasm"));
    }
    crate::run(&mut cargo)?;
    Ok(root
        .join("guest-rhai/target")
        .join(TARGET)
        .join("release/guest_rhai.wasm"))
}

/// The file of an installed Debian package whose path ends so.
fn debian_file(package: &str, end: &str) -> Result<PathBuf> {
    let listed = Command::new("dpkg").args(["-L", package]).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    let found = listed.lines().find(|line| line.ends_with(end));
    found
        .map(PathBuf::from)
        .ok_or_else(|| anyhow!("the package {package} has no {end}; run `cargo xtask setup`"))
}

/// The linker that comes with the toolchain in use.
fn rust_lld() -> Result<PathBuf> {
    let sysroot = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()?;
    let sysroot = PathBuf::from(String::from_utf8(sysroot.stdout)?.trim());
    for host in fs::read_dir(sysroot.join("lib/rustlib"))? {
        let linker = host?.path().join("bin/rust-lld");
        if linker.exists() {
            return Ok(linker);
        }
    }
    bail!("the Rust toolchain has no rust-lld");
}

/// Run `wizer-initialize` and take a snapshot: an instance then finds its engine built.
fn pre_initialise(module: &[u8]) -> Result<Vec<u8>> {
    let mut wizer = Wizer::new();
    wizer.init_func("wizer-initialize");
    let (context, instrumented) = wizer
        .instrument(module)
        .map_err(|error| anyhow!("instrumenting: {error:#}"))?;
    let engine = wasmi::Engine::default();
    let parsed = wasmi::Module::new(&engine, &instrumented[..])?;
    let mut store = wasmi::Store::new(&engine, ());
    let mut linker = wasmi::Linker::new(&engine);
    for import in parsed.imports() {
        let wasmi::ExternType::Func(ty) = import.ty() else {
            bail!(
                "the guest imports `{}`, which is no function",
                import.name()
            );
        };
        let name = format!("{}/{}", import.module(), import.name());
        let answer = match import.name() {
            // Hash seeds: constant, because they stay in the snapshot. They guard nothing: an
            // instance has one tenant, and its fuel is its own.
            "random_get" => Some(0),
            // Debian's libc asks for the preopened folders at once: there are none (EBADF).
            "fd_prestat_get" => Some(8),
            _ => None,
        };
        let stub = wasmi::Func::new(&mut store, ty.clone(), move |_, _, results| {
            let Some(answer) = answer else {
                return Err(wasmi::Error::new(format!(
                    "`{name}` was called during initialisation"
                )));
            };
            if let [result] = results {
                *result = wasmi::Val::I32(answer);
            }
            Ok(())
        });
        linker.define(import.module(), import.name(), stub)?;
    }
    let instance = linker.instantiate_and_start(&mut store, &parsed)?;
    for name in ["_initialize", "wizer-initialize"] {
        if let Some(function) = instance.get_func(&store, name) {
            function
                .call(&mut store, &[], &mut [])
                .with_context(|| name.to_owned())?;
        }
    }
    let mut initialised = Initialised { store, instance };
    let snapshot = wizer.snapshot(&context, &mut initialised);
    futures_util::FutureExt::now_or_never(snapshot)
        .context("taking a snapshot never waits")?
        .map_err(|error| anyhow!("the snapshot: {error:#}"))
}

struct Initialised {
    store: wasmi::Store<()>,
    instance: wasmi::Instance,
}

impl InstanceState for Initialised {
    async fn global_get(&mut self, name: &str, _: wasmparser::ValType) -> SnapshotVal {
        let global = self.instance.get_global(&self.store, name);
        match global.expect("Wizer exported it").get(&self.store) {
            wasmi::Val::I32(value) => SnapshotVal::I32(value),
            wasmi::Val::I64(value) => SnapshotVal::I64(value),
            wasmi::Val::F32(value) => SnapshotVal::F32(value.to_bits()),
            wasmi::Val::F64(value) => SnapshotVal::F64(value.to_bits()),
            other => panic!("a global of a type that Rust does not make: {other:?}"),
        }
    }

    async fn memory_contents(&mut self, name: &str, contents: impl FnOnce(&[u8]) + Send) {
        let memory = self.instance.get_memory(&self.store, name);
        contents(memory.expect("Wizer exported it").data(&self.store));
    }
}

/// Make a component of a core module that was built for the target. The adapter is in it only
/// where the module still imports WASI's first preview, as the fixtures do.
pub fn encode(module: &[u8]) -> Result<Vec<u8>> {
    wit_component::ComponentEncoder::default()
        .module(module)?
        .adapter(PREVIEW1, adapter::WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER)?
        .validate(true)
        .encode()
        .context("encoding the component")
}
