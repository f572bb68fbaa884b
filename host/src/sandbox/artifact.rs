//! Cached code on disk: found by what it was compiled from, loaded only if we wrote it.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

/// How much of a file is hashed at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// For how long a file that is not whole yet is somebody's who is writing it.
const WRITTEN_WITHIN: Duration = Duration::from_secs(3600);

/// How compiled code is, as it is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cached {
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
        let taking = |component: &Component| Ok::<_, E>(component.clone());
        let (component, published) = self.publish(engine, wasm, &compile(wasm)?, taking)?;
        published.keep();
        Ok(component)
    }

    /// Put the code that `wasm` was compiled to into the folder, if `check` takes it: what is
    /// refused is never there. Answers what `check` made of it.
    pub(super) fn publish<T, E: From<std::io::Error> + From<wasmtime::Error>>(
        &self,
        engine: &Engine,
        wasm: &[u8],
        code: &[u8],
        check: impl FnOnce(&Component) -> Result<T, E>,
    ) -> Result<(T, Published), E> {
        let path = self.path_of(engine, wasm);
        let temporary = Temporary::write(&path, code)?;
        let checked = check(&deserialize(engine, &temporary.path)?)?;
        let tag = self.mac().chain_update(code).finalize().into_bytes();
        // The hash first: code without its hash is found to be changed, and compiled anew.
        Temporary::write(&tag_of(&path), &tag)?.publish()?;
        temporary.publish()?;
        let path = Some(path);
        Ok((checked, Published { path }))
    }

    /// The component that `wasm` compiles to, if it is in the folder and ours.
    pub(super) fn load(&self, engine: &Engine, wasm: &[u8]) -> Option<Component> {
        let path = self.path_of(engine, wasm);
        match self.is_ours(&path) {
            Ok(true) => match deserialize(engine, &path) {
                Ok(component) => {
                    touch(&path);
                    return Some(component);
                }
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
    ) -> Result<Cached, E> {
        let path = self.path_of(engine, wasm);
        match self.is_ours(&path) {
            Ok(true) => {
                deserialize(engine, &path)?;
                Ok(Cached::Loads)
            }
            Ok(false) => Ok(Cached::Changed),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Cached::Missing),
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

    fn path_of(&self, engine: &Engine, wasm: &[u8]) -> PathBuf {
        self.folder.join(file_name(engine, wasm))
    }

    /// Remove what was used longest ago until the rest has at most `bytes_max`, but for the code of
    /// `kept`; and what was left half-written by a process that ended. Whoever has removed code
    /// loaded keeps it; whoever wants it next has it compiled anew.
    pub(super) fn sweep(&self, engine: &Engine, kept: &[u8], bytes_max: u64) {
        let kept = self.path_of(engine, kept);
        if let Err(error) = self.swept(&kept, bytes_max) {
            tracing::warn!(%error, "the folder of compiled code cannot be kept to its size");
        }
    }

    fn swept(&self, kept: &Path, bytes_max: u64) -> std::io::Result<()> {
        let now = SystemTime::now();
        let mut codes = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            // Another may have removed it.
            let Ok(about) = fs::metadata(&path) else {
                continue;
            };
            let used_at = about.modified()?;
            let age = now.duration_since(used_at).unwrap_or_default();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("cwasm") => codes.push((used_at, path, about.len())),
                Some("new") if age > WRITTEN_WITHIN => remove(&path)?,
                Some("hmac") if age > WRITTEN_WITHIN && !code_of(&path).exists() => remove(&path)?,
                _ => {}
            }
        }
        let mut bytes: u64 = codes.iter().map(|(_, _, bytes)| bytes).sum();
        codes.sort();
        for (_, path, of_file) in codes {
            if bytes > bytes_max && path != kept {
                remove(&path)?;
                remove(&tag_of(&path))?;
                bytes -= of_file;
            }
        }
        Ok(())
    }

    fn mac(&self) -> Hmac<Sha256> {
        let mac = Hmac::<Sha256>::new_from_slice(&self.key);
        mac.expect("HMAC takes keys of any length")
    }
}

/// Code that was put into the folder. Dropped, it is removed again, unless it is [kept](Self::keep).
#[derive(Debug)]
pub(super) struct Published {
    path: Option<PathBuf>,
}

impl Published {
    /// What it was compiled for is there to stay.
    pub(super) fn keep(mut self) {
        self.path = None;
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let removed = remove(path).and_then(|()| remove(&tag_of(path)));
            if let Err(error) = removed {
                tracing::warn!(%error, file = %path.display(), "compiled code of what was refused cannot be removed");
            }
        }
    }
}

/// Remove a file if it is there.
fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Note that a file is used now.
fn touch(path: &Path) {
    let touched = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::debug!(%error, "the time of use of compiled code cannot be noted");
    }
}

/// Where the hash of a file is kept.
fn tag_of(path: &Path) -> PathBuf {
    path.with_extension("hmac")
}

/// The file that a hash is of.
fn code_of(tag: &Path) -> PathBuf {
    tag.with_extension("cwasm")
}

/// A file that is whole, and not where it is looked for yet; removed when it is dropped. Whoever else
/// writes the same at this moment has a temporary file of its own: what was renamed, and may be
/// mapped, is written to by nobody.
struct Temporary {
    path: PathBuf,
    /// Where it is to be.
    target: PathBuf,
}

impl Temporary {
    fn write(target: &Path, bytes: &[u8]) -> std::io::Result<Self> {
        static WRITTEN: AtomicU64 = AtomicU64::new(0);
        let mut name = target.as_os_str().to_owned();
        let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
        name.push(format!(".{}.{number}.new", std::process::id()));
        let temporary = Self {
            path: PathBuf::from(name),
            target: target.to_owned(),
        };
        let mut file: File = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary.path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(temporary)
    }

    fn publish(self) -> std::io::Result<()> {
        fs::rename(&self.path, &self.target)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It is not there any more once it is published.
        remove(&self.path).ok();
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
            let write = || scope.spawn(|| Temporary::write(&path, &bytes)?.publish());
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
        assert_eq!(look(), Cached::Missing);
        assert!(compiled(1));
        assert!(!compiled(1));
        assert_eq!(look(), Cached::Loads);
        let path = folder.path().join(file_name(&engine, wasm));
        let whole = fs::read(&path).unwrap();
        let mut changed = whole.clone();
        *changed.last_mut().unwrap() ^= 1;
        for tampered in [&changed[..], &whole[..whole.len() - 1], &whole[..9], b""] {
            // Not into the file itself, which the component before is mapped from.
            Temporary::write(&path, tampered)
                .and_then(Temporary::publish)
                .unwrap();
            assert_eq!(look(), Cached::Changed);
            assert!(compiled(1), "{} bytes were loaded", tampered.len());
            assert!(!compiled(1));
        }
        fs::remove_file(tag_of(&path)).unwrap();
        assert!(compiled(1));
        // Written under another key: not ours.
        assert!(compiled(2));
    }

    #[test]
    fn what_is_refused_is_never_there() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::new(&super::super::engine::engine_config()).unwrap();
        let artifacts = Artifacts::open(folder.path().to_owned(), [1; 32]).unwrap();
        let wasm = b"\0asm\x0d\0\x01\0";
        let code = engine.precompile_component(wasm).unwrap();
        let files = || fs::read_dir(folder.path()).unwrap().count();
        let refused = artifacts.publish(&engine, wasm, &code, |_| {
            assert_eq!(files(), 1, "it is looked at before it is there");
            Err::<(), _>(anyhow::anyhow!("refused"))
        });
        assert_eq!(refused.unwrap_err().to_string(), "refused");
        assert_eq!(files(), 0);
        let take = |_: &Component| Ok::<_, anyhow::Error>(());
        // Damaged on its way from the compiler.
        assert!(artifacts.publish(&engine, wasm, &code[..9], take).is_err());
        assert_eq!(files(), 0);
        // Taken, and then not wanted.
        let ((), published) = artifacts.publish(&engine, wasm, &code, take).unwrap();
        assert_eq!(files(), 2);
        drop(published);
        assert_eq!(files(), 0);
        let ((), published) = artifacts.publish(&engine, wasm, &code, take).unwrap();
        published.keep();
        assert!(artifacts.load(&engine, wasm).is_some());
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::new(&super::super::engine::engine_config()).unwrap();
        let artifacts = Artifacts::open(folder.path().to_owned(), [1; 32]).unwrap();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let make = |name: &str, used: SystemTime| {
            let file = File::create(folder.path().join(name)).unwrap();
            file.set_len(100).unwrap();
            file.set_modified(used).unwrap();
        };
        let kept = b"kept";
        let kept_name = file_name(&engine, kept);
        make(&kept_name, at(0));
        for (name, used) in [("b", 2), ("a", 3), ("d", 1), ("c", 4)] {
            make(&format!("{name}.cwasm"), at(used));
            make(&format!("{name}.hmac"), at(used));
        }
        make("orphan.hmac", at(1));
        make("old.cwasm.1.1.new", at(1));
        make("young.cwasm.1.2.new", SystemTime::now());
        make("young.hmac", SystemTime::now());
        make("key", at(0));
        artifacts.sweep(&engine, kept, 300);
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let mut expected = [
            "a.cwasm",
            "a.hmac",
            "c.cwasm",
            "c.hmac",
            "key",
            "young.cwasm.1.2.new",
            "young.hmac",
            &kept_name,
        ];
        expected.sort();
        assert_eq!(names, expected);
    }
}
