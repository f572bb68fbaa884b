//! `picloud backup` and `picloud restore`.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Done;
use super::client::Client;
use super::output::{Failure, Output, table};
use super::serve::Serve;
use crate::archive::{ArchiveError, MakeError, Reader};
use crate::audit::{self, Act};
use crate::backup::{self, BackupError, Backups, Contents, RestoreError};
use crate::config::Config;
use crate::secrets::master_key::MasterKeys;

/// How often a terminal is told how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Which database a command opens by itself.
#[derive(clap::Args)]
struct Place {
    /// The folder of the instance [env: PICLOUD_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Its Postgres [env: PICLOUD_DATABASE_URL]
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// The file of settings; ./picloud.toml if it is there
    #[arg(long, value_name = "FILE", env = "PICLOUD_CONFIG")]
    config: Option<PathBuf>,
}

impl Place {
    fn config(self) -> Result<Config, Failure> {
        let flags = [
            ("data_dir", self.data_dir),
            ("database_url", self.database_url),
        ];
        let given = flags
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)));
        Serve::with(self.config, given.collect()).config()
    }
}

/// Write a backup of the whole instance, while it serves
#[derive(clap::Args)]
pub(super) struct Backup {
    /// The .zip to write
    file: PathBuf,
    /// Overwrite the file if there is one
    #[arg(long)]
    force: bool,
    /// Read the database itself, not through the API; --data-dir and --database-url mean this too
    #[arg(long)]
    direct: bool,
    #[command(flatten)]
    place: Place,
}

/// Fill an empty data_dir or an empty Postgres from a backup; no server may run on it yet
#[derive(clap::Args)]
pub(super) struct Restore {
    /// The .zip to read
    file: PathBuf,
    /// Only read the whole file, and say what is in it
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    place: Place,
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        Self::Local(error.to_string())
    }
}

impl From<MakeError> for Failure {
    fn from(error: MakeError) -> Self {
        Self::Local(error.to_string())
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        Self::Local(error.to_string())
    }
}

impl From<ArchiveError> for Failure {
    fn from(error: ArchiveError) -> Self {
        Self::Local(error.to_string())
    }
}

impl Backup {
    /// Whether it takes no server.
    pub(super) fn is_direct(&self) -> bool {
        self.direct || self.place.data_dir.is_some() || self.place.database_url.is_some()
    }

    /// Through the API.
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        let download = |to: &mut dyn Write| client.download("/instance/backup", to);
        let (contents, bytes) = written(&self.file, self.force, download, verified)?;
        show_written(&self.file, &contents, bytes, out);
        Ok(())
    }

    /// From the database.
    pub(super) fn run_direct(self, out: &Output) -> Done {
        let Config { database_url, .. } = self.place.config()?;
        let read = |to: &mut dyn Write| {
            runtime()?.block_on(async {
                let mut pieces = Backups::new(database_url.clone()).begin().await?;
                while let Some(piece) = pieces.next().await? {
                    to.write_all(&piece)?;
                }
                Ok(())
            })
        };
        let (contents, bytes) = written(&self.file, self.force, read, verified)?;
        show_written(&self.file, &contents, bytes, out);
        let [_, action] = backup::ACTIONS;
        let act = Act {
            action: action.to_owned(),
            target: self.file.display().to_string(),
            address: String::new(),
            app_id: None,
            actor: None,
            status: 200,
        };
        if let Err(error) = runtime()?.block_on(audit::note_beside(&database_url, act)) {
            eprintln!(
                "warning: the backup is whole, but it could not be written down that there is one, so `picloud doctor` does not know of it: {error}"
            );
        }
        Ok(())
    }
}

fn verified(file: File) -> Result<Contents, Failure> {
    Ok(backup::verify(&mut Reader::open(file, backup::FORMAT)?)?)
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}

/// Have an archive written, read it again, and only then give it its name. Answers what reading
/// it said, and its length.
pub(super) fn written<T>(
    path: &Path,
    force: bool,
    write: impl FnOnce(&mut dyn Write) -> Result<(), Failure>,
    check: impl FnOnce(File) -> Result<T, Failure>,
) -> Result<(T, u64), Failure> {
    let is_in_the_way = || {
        let path = path.display();
        Failure::Conflict(format!(
            "{path} is there already; overwrite it with --force"
        ))
    };
    // Before anything is asked for that takes long.
    if !force && fs::symlink_metadata(path).is_ok() {
        return Err(is_in_the_way());
    }
    let part = part_of(path);
    let about = |path: &Path, error: io::Error| {
        Failure::Local(format!("cannot write {}: {error}", path.display()))
    };
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)
        .map_err(|error| about(&part, error))?;
    let done = || -> Result<(T, u64), Failure> {
        let mut counted = Counted {
            to: io::BufWriter::new(file),
            bytes: 0,
            progress: Progress::begin(),
        };
        write(&mut counted)?;
        counted.flush()?;
        counted.progress.end();
        counted.to.get_ref().sync_all()?;
        let checked = check(File::open(&part)?)?;
        if !force && fs::symlink_metadata(path).is_ok() {
            return Err(is_in_the_way());
        }
        fs::rename(&part, path).map_err(|error| about(path, error))?;
        Ok((checked, counted.bytes))
    };
    done().inspect_err(|_| {
        let _ = fs::remove_file(&part);
    })
}

/// Say what a backup that was written has in it.
fn show_written(path: &Path, contents: &Contents, bytes: u64, out: &Output) {
    let mut shown = json!(contents);
    shown["file"] = path.display().to_string().into();
    shown["bytes"] = bytes.into();
    out.show_own(&shown, || {
        let rows: u64 = contents.rows.values().sum();
        println!(
            "{}: {}, {} tables, {rows} rows; read again, and every checksum is right.",
            path.display(),
            size(bytes),
            contents.rows.len()
        );
        let keys = &contents.secrets_by_master_key;
        if !keys.is_empty() {
            let secrets: i64 = keys.values().sum();
            println!(
                "Secrets in it: {secrets}, encrypted under the master key {}. That key is not in it: keep it elsewhere.",
                keys.keys().cloned().collect::<Vec<_>>().join(", ")
            );
        }
    });
}

fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

fn open(path: &Path) -> Result<Reader<File>, Failure> {
    let about = |problem: String| Failure::Local(format!("{}: {problem}", path.display()));
    let file = File::open(path).map_err(|error| about(error.to_string()))?;
    Reader::open(file, backup::FORMAT).map_err(|error| about(error.to_string()))
}

impl Restore {
    pub(super) fn run(self, out: &Output) -> Done {
        let mut backup = open(&self.file)?;
        if self.check {
            let contents = backup::verify(&mut backup)?;
            out.show_own(&contents, || show(&contents));
            return Ok(());
        }
        let config = self.place.config()?;
        let is_sqlite = config.database_url.starts_with("sqlite");
        if is_sqlite {
            config.make_data_dir()?;
        }
        let keys =
            MasterKeys::at_hand(&config).map_err(|error| Failure::Local(error.to_string()))?;
        let mut progress = Progress::begin();
        let restoring = backup::restore(&mut backup, &config.database_url, &keys, |table, rows| {
            progress.say(|| format!("{table}: {rows} rows"));
        });
        let restored = runtime()?.block_on(restoring)?;
        progress.end();
        out.show_own(&restored, || {
            show(&restored.contents);
            println!("Restored. Everybody signs in anew; API keys are those of that time.");
        });
        for (key, secrets) in &restored.secrets_under_missing_keys {
            let where_to = match is_sqlite {
                true => format!(
                    "put it into {} or set it as master_key",
                    config.data_dir.join("master.key").display()
                ),
                false => "set it as master_key on every node".to_owned(),
            };
            eprintln!(
                "warning: secrets encrypted under the master key {key}: {secrets}. That key is not here, and no backup has it: {where_to} before you start the server, or scripts cannot read them"
            );
        }
        Ok(())
    }
}

fn show(contents: &Contents) {
    println!(
        "A backup of {}, made by picloud {} from {} with schema {}.",
        contents.made_at.format("%Y-%m-%d %H:%M:%S UTC"),
        contents.picloud,
        contents.engine,
        contents.schema
    );
    let rows = contents.rows.iter().filter(|(_, rows)| **rows > 0);
    let rows: Vec<_> = rows
        .map(|(name, rows)| vec![name.clone(), rows.to_string()])
        .collect();
    table(&["TABLE", "ROWS"], &rows);
}

pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{} KiB", bytes.div_ceil(1024)),
        _ => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}

/// Do what takes a while and does not tell how far it is: on a terminal, say for how long it has
/// been at it.
pub(super) fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (working, is_over) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let began = Instant::now();
            let mut progress = Progress::begin();
            while is_over.recv_timeout(PROGRESS_EVERY) == Err(RecvTimeoutError::Timeout) {
                progress.say(|| format!("{what}: {} s", began.elapsed().as_secs()));
            }
            progress.end();
        });
        let done = work();
        drop(working);
        done
    })
}

/// How far it is, on a terminal.
struct Progress {
    shown_at: Option<Instant>,
}

impl Progress {
    fn begin() -> Self {
        let shown_at = io::stderr().is_terminal().then(Instant::now);
        Self { shown_at }
    }

    fn say(&mut self, text: impl FnOnce() -> String) {
        if let Some(shown_at) = &mut self.shown_at
            && shown_at.elapsed() >= PROGRESS_EVERY
        {
            *shown_at = Instant::now();
            eprint!("\r\x1b[K{}", text());
        }
    }

    fn end(&self) {
        if self.shown_at.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

/// A file, and how much was written to it.
struct Counted {
    to: io::BufWriter<File>,
    bytes: u64,
    progress: Progress,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.bytes += written as u64;
        self.progress.say(|| size(self.bytes));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
