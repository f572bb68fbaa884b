//! A `.zip` that tells when it is damaged: `manifest.json` names what it is and lists every other
//! entry with its length and SHA-256. Backups and exported apps are such files.

use std::collections::BTreeSet;
use std::future::Future;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use zip::result::ZipError;
use zip::write::{SimpleFileOptions, StreamWriter};
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::store::StoreError;

const MANIFEST: &str = "manifest.json";
/// The largest manifest, in bytes: it is read as a whole.
const MANIFEST_BYTES_MAX: u64 = 16 << 20;
/// The longest line of an entry, in bytes: a component of 16 MiB in base64 fits, and so does every
/// payload and value.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// Pieces that wait for whoever takes them.
const PIECES: usize = 8;
/// How long a piece waits for whoever takes it: what is written comes from one moment of the
/// database, which is held for so long.
const STALL: Duration = Duration::from_secs(120);

/// What an archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// Its name in the manifest.
    pub name: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// The newest version that this PiCloud writes and reads.
    pub version: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: String,
    format_version: u32,
    picloud: String,
    made_at: DateTime<Utc>,
    /// What this kind of archive says of itself. As it is written: a tree of a few megabytes would
    /// take a hundred times as much.
    about: Box<RawValue>,
    entries: Vec<Entry>,
}

/// One entry of an archive.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    name: String,
    bytes: u64,
    sha256: String,
}

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It is no zip, or its end is missing.
    #[error("this is no zip file, or it was cut off ({0})")]
    NoZip(String),
    /// It has no manifest, or one that is none.
    #[error("this is no {wanted}: {problem}")]
    NoManifest {
        /// What was wanted.
        wanted: &'static str,
        /// What is wrong with the manifest.
        problem: String,
    },
    /// A newer PiCloud wrote it.
    #[error(
        "this {title} has format {found}, written by picloud {picloud}; this picloud ({}) reads up to format {known}: use a newer one",
        env!("CARGO_PKG_VERSION")
    )]
    Newer {
        /// What it is.
        title: &'static str,
        /// Its version.
        found: u32,
        /// The newest that is known here.
        known: u32,
        /// Who wrote it.
        picloud: String,
    },
    /// It has an entry that the manifest does not list, or has one twice.
    #[error("the entry `{0}` does not belong here; the file was changed after it was made")]
    Unexpected(String),
    /// An entry is missing.
    #[error("the entry `{0}` is missing; the file was changed after it was made")]
    Missing(String),
    /// An entry is not what was written.
    #[error("the entry `{name}` is damaged: {problem}")]
    Damaged {
        /// Which.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Why an archive could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// Nobody took what was made.
    #[error("what was made was not taken away, so it was given up")]
    NotTaken,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It could not be put together.
    #[error("it could not be put together: {0}")]
    Io(#[from] io::Error),
}

/// An archive as it is made.
pub struct Pieces {
    pieces: mpsc::Receiver<Bytes>,
    /// What became of it, once there are no more pieces.
    made: oneshot::Receiver<Result<(), MakeError>>,
}

impl Pieces {
    /// The next piece; none once it is whole.
    ///
    /// # Errors
    /// Why there are no more, though it is not whole.
    pub async fn next(&mut self) -> Result<Option<Bytes>, MakeError> {
        if let Some(piece) = self.pieces.recv().await {
            return Ok(Some(piece));
        }
        let broke_off = || MakeError::Io(io::Error::other("it broke off"));
        let made = (&mut self.made).await.unwrap_or_else(|_| Err(broke_off()));
        made.map(|()| None)
    }
}

/// Hands over an archive piece by piece.
pub struct Giver(mpsc::Sender<Bytes>);

impl Giver {
    /// Hand over a piece, once there is room for it.
    ///
    /// # Errors
    /// [`MakeError::NotTaken`].
    pub async fn piece(&self, piece: Bytes) -> Result<(), MakeError> {
        let given = self.0.send_timeout(piece, STALL).await;
        given.map_err(|_| MakeError::NotTaken)
    }
}

/// Have an archive made on a thread of its own: compressing would keep one from what else it
/// serves.
pub fn make<W, F>(work: W) -> Pieces
where
    W: FnOnce(Giver) -> F + Send + 'static,
    F: Future<Output = Result<(), MakeError>>,
{
    let (giver, pieces) = mpsc::channel(PIECES);
    let (tell, made) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let made = Handle::current().block_on(work(Giver(giver)));
        if let Err(error) = &made {
            tracing::warn!(%error, "an archive could not be made");
        }
        // Whoever has left does not want to know.
        let _ = tell.send(made);
    });
    Pieces { pieces, made }
}

/// Bytes that were written and not yet taken away.
#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn take(&self) -> Bytes {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        mem::take(&mut *bytes).into()
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes an archive piece by piece: whoever calls takes the pieces away, to a file or a caller.
pub struct Writer {
    zip: ZipWriter<StreamWriter<Buffer>>,
    made: Buffer,
    entries: Vec<Entry>,
    sha256: Sha256,
}

impl Writer {
    /// One without entries.
    pub fn new() -> Self {
        let made = Buffer::default();
        Self {
            zip: ZipWriter::new_stream(made.clone()),
            made,
            entries: Vec::new(),
            sha256: Sha256::new(),
        }
    }

    fn options() -> SimpleFileOptions {
        SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .large_file(true)
    }

    /// Begin an entry; what is written next is its content.
    ///
    /// # Errors
    /// When there is an entry of this name.
    pub fn begin(&mut self, name: &str) -> io::Result<()> {
        self.end();
        self.zip.start_file(name, Self::options())?;
        self.entries.push(Entry {
            name: name.to_owned(),
            bytes: 0,
            sha256: String::new(),
        });
        Ok(())
    }

    /// Write a part of the entry that was begun last.
    ///
    /// # Errors
    /// When none was begun.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.zip.write_all(bytes)?;
        self.sha256.update(bytes);
        if let Some(entry) = self.entries.last_mut() {
            entry.bytes += bytes.len() as u64;
        }
        Ok(())
    }

    fn end(&mut self) {
        if let Some(entry) = self.entries.last_mut() {
            entry.sha256 = hex::encode(mem::take(&mut self.sha256).finalize());
        }
    }

    /// What was made since this was asked last.
    pub fn take(&self) -> Bytes {
        self.made.take()
    }

    /// Write the manifest, and answer what was made since it was asked last.
    ///
    /// # Errors
    /// When `about` is no JSON.
    pub fn finish(
        mut self,
        format: Format,
        made_at: DateTime<Utc>,
        about: &impl Serialize,
    ) -> io::Result<Bytes> {
        self.end();
        let manifest = Manifest {
            format: format.name.to_owned(),
            format_version: format.version,
            picloud: env!("CARGO_PKG_VERSION").to_owned(),
            made_at,
            about: serde_json::value::to_raw_value(about)?,
            entries: self.entries,
        };
        self.zip.start_file(MANIFEST, Self::options())?;
        serde_json::to_writer_pretty(&mut self.zip, &manifest)?;
        self.zip.finish()?;
        Ok(self.made.take())
    }
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

/// An archive that is read. Nothing in it is believed: what is not listed, longer than listed or
/// of another checksum is an error.
pub struct Reader<R> {
    zip: ZipArchive<R>,
    manifest: Manifest,
}

impl<R: Read + Seek> Reader<R> {
    /// Open an archive of this format.
    ///
    /// # Errors
    /// [`ArchiveError`] says what is wrong with it.
    pub fn open(file: R, format: Format) -> Result<Self, ArchiveError> {
        let no_zip = |error: ZipError| ArchiveError::NoZip(error.to_string());
        let mut zip = ZipArchive::new(file).map_err(no_zip)?;
        let wanted = format.title;
        let no_manifest = |problem: String| ArchiveError::NoManifest { wanted, problem };
        let entry = zip.by_name(MANIFEST);
        let entry = entry.map_err(|_| no_manifest(format!("it has no `{MANIFEST}`")))?;
        let limited = entry.take(MANIFEST_BYTES_MAX);
        let manifest: Manifest = serde_json::from_reader(BufReader::new(limited))
            .map_err(|error| no_manifest(format!("`{MANIFEST}`: {error}")))?;
        if manifest.format != format.name {
            let problem = format!("its format is `{}`", manifest.format);
            return Err(no_manifest(problem));
        }
        if manifest.format_version > format.version {
            return Err(ArchiveError::Newer {
                title: format.title,
                found: manifest.format_version,
                known: format.version,
                picloud: manifest.picloud,
            });
        }
        let listed = manifest.entries.iter().map(|entry| entry.name.clone());
        let mut missing: BTreeSet<String> = listed.collect();
        if missing.len() != manifest.entries.len() {
            return Err(no_manifest("it lists an entry twice".to_owned()));
        }
        for name in zip.file_names() {
            let name = name.map_err(no_zip)?;
            if name != MANIFEST && !missing.remove(&*name) {
                return Err(ArchiveError::Unexpected(name.into_owned()));
            }
        }
        match missing.pop_first() {
            Some(name) => Err(ArchiveError::Missing(name)),
            None => Ok(Self { zip, manifest }),
        }
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// When that is not what archives of this format say.
    pub fn about<T: DeserializeOwned>(&self) -> Result<T, ArchiveError> {
        serde_json::from_str(self.manifest.about.get()).map_err(|error| ArchiveError::Damaged {
            name: MANIFEST.to_owned(),
            problem: error.to_string(),
        })
    }

    /// When it was made.
    pub fn made_at(&self) -> DateTime<Utc> {
        self.manifest.made_at
    }

    /// The version of the PiCloud that made it.
    pub fn made_by(&self) -> &str {
        &self.manifest.picloud
    }

    /// How many bytes its entries have, as it says.
    pub fn bytes(&self) -> u64 {
        let entries = self.manifest.entries.iter();
        entries.fold(0, |sum, entry| sum.saturating_add(entry.bytes))
    }

    /// The names of its entries.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.manifest
            .entries
            .iter()
            .map(|entry| entry.name.as_str())
    }

    /// An entry, as lines.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn entry(&mut self, name: &str) -> Result<Lines<'_>, ArchiveError> {
        let listed = self
            .manifest
            .entries
            .iter()
            .find(|entry| entry.name == name);
        let listed = listed.ok_or_else(|| ArchiveError::Missing(name.to_owned()))?;
        let damaged = |error: ZipError| ArchiveError::Damaged {
            name: name.to_owned(),
            problem: error.to_string(),
        };
        let content = self.zip.by_name(name).map_err(damaged)?;
        // One more than is listed shows that there is more.
        let content = content.take(listed.bytes.saturating_add(1));
        Ok(Lines {
            content: BufReader::with_capacity(256 << 10, Box::new(content)),
            listed: listed.clone(),
            read: 0,
            number: 0,
            sha256: Sha256::new(),
        })
    }

    /// Read all of it once, so that whatever is damaged shows before anything is done with it.
    ///
    /// # Errors
    /// [`ArchiveError::Damaged`] names the entry.
    pub fn verify(&mut self) -> Result<(), ArchiveError> {
        let names: Vec<String> = self.names().map(str::to_owned).collect();
        for name in names {
            let mut lines = self.entry(&name)?;
            while lines.next_line()?.is_some() {}
        }
        Ok(())
    }
}

/// The lines of an entry. After the last one its length and checksum are compared.
pub struct Lines<'a> {
    content: BufReader<Box<dyn Read + 'a>>,
    listed: Entry,
    read: u64,
    number: u64,
    sha256: Sha256,
}

impl Lines<'_> {
    /// Say what is wrong with the line that was read last.
    pub fn damaged(&self, problem: impl ToString) -> ArchiveError {
        ArchiveError::Damaged {
            name: self.listed.name.clone(),
            problem: match self.number {
                0 => problem.to_string(),
                line => format!("line {line}: {}", problem.to_string()),
            },
        }
    }

    /// The next line, with the byte that ends it; none at the end, if all is as listed.
    ///
    /// # Errors
    /// [`ArchiveError::Damaged`].
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, ArchiveError> {
        let mut line = Vec::new();
        let mut limited = (&mut self.content).take(LINE_BYTES_MAX);
        let read = limited.read_until(b'\n', &mut line);
        let read = read.map_err(|error| self.damaged(error))? as u64;
        if read == LINE_BYTES_MAX {
            let problem = format!("after line {}: a line is too long", self.number);
            return Err(self.damaged(problem));
        }
        self.read += read;
        self.number += 1;
        self.sha256.update(&line);
        if read > 0 {
            return Ok(Some(line));
        }
        self.number = 0;
        let Entry { bytes, sha256, .. } = &self.listed;
        if self.read != *bytes {
            let than = if self.read > *bytes { "more" } else { "fewer" };
            return Err(self.damaged(format!(
                "it has {than} than the {bytes} bytes that are listed"
            )));
        }
        if hex::encode(mem::take(&mut self.sha256).finalize()) != *sha256 {
            return Err(self.damaged("its SHA-256 is not the one that is listed"));
        }
        Ok(None)
    }

    /// All of it.
    ///
    /// # Errors
    /// [`ArchiveError::Damaged`], also when it is longer than `bytes_max`.
    pub fn all(mut self, bytes_max: usize) -> Result<Vec<u8>, ArchiveError> {
        let mut all = Vec::new();
        while let Some(line) = self.next_line()? {
            if all.len() + line.len() > bytes_max {
                self.number = 0;
                return Err(self.damaged(format!("it has more than {bytes_max} bytes")));
            }
            all.extend(line);
        }
        Ok(all)
    }
}
