//! Compiled code on disk: found by what it was compiled from, loaded only if we wrote it.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

/// The bytes of the hash that stands before the code in a file.
const TAG_BYTES: usize = 32;

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
        let path = self.folder.join(file_name(engine, wasm));
        match self.read(&path) {
            Ok(Some(code)) => match deserialize(engine, &code) {
                Ok(component) => return Ok(component),
                Err(error) => tracing::warn!(%error, "compiled code does not load; compiling anew"),
            },
            Ok(None) => {
                tracing::warn!(file = %path.display(), "compiled code was changed; compiling anew")
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "compiled code cannot be read; compiling anew"),
        }
        let code = compile(wasm)?;
        self.write(&path, &code)?;
        Ok(deserialize(engine, &code)?)
    }

    /// The code of a file, if its hash shows that we wrote it.
    fn read(&self, path: &Path) -> std::io::Result<Option<Vec<u8>>> {
        let mut bytes = fs::read(path)?;
        if bytes.len() < TAG_BYTES {
            return Ok(None);
        }
        let code = bytes.split_off(TAG_BYTES);
        Ok(self.mac(&code).verify_slice(&bytes).is_ok().then_some(code))
    }

    fn write(&self, path: &Path, code: &[u8]) -> std::io::Result<()> {
        let temporary = path.with_extension(format!("{}.new", std::process::id()));
        let mut file: File = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&self.mac(code).finalize().into_bytes())?;
        file.write_all(code)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    }

    fn mac(&self, code: &[u8]) -> Hmac<Sha256> {
        let mac = Hmac::<Sha256>::new_from_slice(&self.key);
        mac.expect("HMAC takes keys of any length")
            .chain_update(code)
    }
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

/// Load compiled code.
#[expect(
    unsafe_code,
    reason = "wasmtime cannot check compiled code; we do, see below"
)]
fn deserialize(engine: &Engine, code: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: the code must come from wasmtime's compiler unchanged. It was compiled by this
    // process or by a child of it a moment ago, or it was read from a folder of mode 0700 and
    // its HMAC, under a key that only we have, matched. wasmtime itself refuses code of another
    // version or of other settings.
    unsafe { Component::deserialize(engine, code) }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(compiled(1));
        assert!(!compiled(1));
        let path = folder.path().join(file_name(&engine, wasm));
        let whole = fs::read(&path).unwrap();
        let mut changed = whole.clone();
        *changed.last_mut().unwrap() ^= 1;
        for tampered in [&changed[..], &whole[..whole.len() - 1], &whole[..9], b""] {
            fs::write(&path, tampered).unwrap();
            assert!(compiled(1), "{} bytes were loaded", tampered.len());
            assert!(!compiled(1));
        }
        // Written under another key: not ours.
        assert!(compiled(2));
    }
}
