//! Compiled code on disk: found by what it was compiled from, loaded only if we wrote it.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

/// How much of a file is hashed at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// How compiled code is, as it is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compiled {
    /// It is ours, and it loads.
    Loads,
    /// There is none, for this version at least.
    Missing,
    /// It is not what we wrote.
    Changed,
}

/// The folder of compiled code.
pub(super) struct Artifacts {
    folder: PathBuf,
    key: [u8; 32],
}

impl Artifacts {
    /// Use `folder`, making it if it isn't there.
    pub(super) fn open(folder: PathBuf, key: [u8; 32]) -> std::io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)?;
        Ok(Self { folder, key })
    }

    /// The component that `wasm` compiles to, from the folder if it is there and ours.
    pub(super) fn load_or_compile<E: From<std::io::Error> + From<wasmtime::Error>>(
        &self,
        engine: &Engine,
        wasm: &[u8],
        compile: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Result<Component, E> {
        if let Some(component) = self.load(engine, wasm) {
            return Ok(component);
        }
        let path = self.folder.join(file_name(engine, wasm));
        self.write(&path, &compile(wasm)?)?;
        Ok(deserialize(engine, &path)?)
    }

    /// The component that `wasm` compiles to, if it is in the folder and ours.
    pub(super) fn load(&self, engine: &Engine, wasm: &[u8]) -> Option<Component> {
        let path = self.folder.join(file_name(engine, wasm));
        match self.is_ours(&path) {
            Ok(true) => match deserialize(engine, &path) {
                Ok(component) => return Some(component),
                Err(error) => tracing::warn!(%error, "compiled code does not load; compiling anew"),
            },
            Ok(false) => {
                tracing::warn!(file = %path.display(), "compiled code was changed; compiling anew")
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "compiled code cannot be read; compiling anew"),
        }
        None
    }

    /// How the code that `wasm` compiles to is in the folder.
    pub(super) fn look<E: From<std::io::Error> + From<wasmtime::Error>>(
        &self,
        engine: &Engine,
        wasm: &[u8],
    ) -> Result<Compiled, E> {
        let path = self.folder.join(file_name(engine, wasm));
        match self.is_ours(&path) {
            Ok(true) => {
                deserialize(engine, &path)?;
                Ok(Compiled::Loads)
            }
            Ok(false) => Ok(Compiled::Changed),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Compiled::Missing),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the hash of a file shows that we wrote it. It is read piece by piece: what is
    /// loaded is mapped, and needs no copy of it on the heap.
    fn is_ours(&self, path: &Path) -> std::io::Result<bool> {
        let mut code = File::open(path)?;
        let tag = fs::read(tag_of(path))?;
        let mut mac = self.mac();
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match code.read(&mut chunk)? {
                0 => return Ok(mac.verify_slice(&tag).is_ok()),
                bytes => mac.update(&chunk[..bytes]),
            }
        }
    }

    /// The hash first: code without its hash is found to be changed, and compiled anew.
    fn write(&self, path: &Path, code: &[u8]) -> std::io::Result<()> {
        let tag = self.mac().chain_update(code).finalize().into_bytes();
        write_whole(&tag_of(path), &tag)?;
        write_whole(path, code)
    }

    fn mac(&self) -> Hmac<Sha256> {
        let mac = Hmac::<Sha256>::new_from_slice(&self.key);
        mac.expect("HMAC takes keys of any length")
    }
}

/// Where the hash of a file is kept.
fn tag_of(path: &Path) -> PathBuf {
    path.with_extension("hmac")
}

/// Write a file that is there whole or not at all, and never changed once it is. Whoever else
/// writes the same at this moment has a temporary file of its own: what was renamed, and may be
/// mapped, is written to by nobody.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let mut name = path.as_os_str().to_owned();
    let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
    name.push(format!(".{}.{number}.new", std::process::id()));
    let temporary = PathBuf::from(name);
    let mut file: File = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

/// What code was compiled from and for: the input, and everything of the engine that matters
/// (its version, its settings and the processor's features among it).
fn file_name(engine: &Engine, wasm: &[u8]) -> String {
    let mut compatibility = DefaultHasher::new();
    engine
        .precompile_compatibility_hash()
        .hash(&mut compatibility);
    format!(
        "{}-{:016x}.cwasm",
        hex::encode(&Sha256::digest(wasm)[..16]),
        compatibility.finish()
    )
}

/// Load compiled code, mapped from its file: pages that nothing runs are never read.
#[expect(
    unsafe_code,
    reason = "wasmtime cannot check compiled code; we do, see below"
)]
fn deserialize(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
    // SAFETY: the code must come from wasmtime's compiler unchanged, and the file must not change
    // while it is mapped. It was compiled by this process or by a child of it a moment ago, or its
    // HMAC, under a key that only we have, matched; it is in a folder of mode 0700, where files
    // are replaced by renaming and never written to. wasmtime itself refuses code of another
    // version or of other settings.
    unsafe { Component::deserialize_file(engine, path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_code_may_be_written_many_times_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("code");
        let bytes = vec![7; 1 << 20];
        std::thread::scope(|scope| {
            let write = || scope.spawn(|| write_whole(&path, &bytes));
            let writing: Vec<_> = (0..8).map(|_| write()).collect();
            writing
                .into_iter()
                .for_each(|written| written.join().unwrap().unwrap());
        });
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn code_that_we_did_not_write_is_compiled_anew() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::new(&super::super::engine::engine_config()).unwrap();
        let wasm = b"\0asm\x0d\0\x01\0";
        let compiled = |key: u8| {
            let artifacts = Artifacts::open(folder.path().to_owned(), [key; 32]).unwrap();
            let mut compiled = false;
            artifacts
                .load_or_compile(&engine, wasm, |wasm| {
                    compiled = true;
                    Ok::<_, anyhow::Error>(engine.precompile_component(wasm)?)
                })
                .unwrap();
            compiled
        };
        let look = || {
            let artifacts = Artifacts::open(folder.path().to_owned(), [1; 32]).unwrap();
            artifacts.look::<anyhow::Error>(&engine, wasm).unwrap()
        };
        assert_eq!(look(), Compiled::Missing);
        assert!(compiled(1));
        assert!(!compiled(1));
        assert_eq!(look(), Compiled::Loads);
        let path = folder.path().join(file_name(&engine, wasm));
        let whole = fs::read(&path).unwrap();
        let mut changed = whole.clone();
        *changed.last_mut().unwrap() ^= 1;
        for tampered in [&changed[..], &whole[..whole.len() - 1], &whole[..9], b""] {
            // Not into the file itself, which the component before is mapped from.
            write_whole(&path, tampered).unwrap();
            assert_eq!(look(), Compiled::Changed);
            assert!(compiled(1), "{} bytes were loaded", tampered.len());
            assert!(!compiled(1));
        }
        fs::remove_file(tag_of(&path)).unwrap();
        assert!(compiled(1));
        // Written under another key: not ours.
        assert!(compiled(2));
    }
}
