//! The file of a SQLite database under a running process: that nobody else serves it, and that it
//! is still where it was.
//!
//! A file that is deleted, moved or replaced stays open, and SQLite goes on writing to what nobody
//! finds after a restart. So the path is looked at again and again, and as soon as it leads
//! elsewhere, no write is acknowledged any more.

use std::fs::{self, File, Metadata, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use sqlx::SqliteConnection;

use super::StoreError;
use super::open::beside;

/// How many symbolic links are followed from one to the next, as Linux does.
const LINKS_MAX: usize = 40;
/// For how many milliseconds a look at the path is good for the writes of that time.
const LOOK_LASTS_MS: u64 = 10;
/// What is left free on the disk for ending what was begun, for deleting, and for a start. SQLite's
/// log is copied into the file before it is written over: where the file cannot grow by as much as
/// the log has, every write fails until somebody makes room by other means.
pub(super) const ROOM_KEPT_BYTES: u64 = 64 << 20;

/// The path of a database without symbolic links, whether there is a file yet or not: where
/// SQLite puts its log, and where the lock is.
///
/// # Errors
/// When there is no such folder.
pub(super) fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut path = std::path::absolute(path)?;
    for _ in 0..LINKS_MAX {
        let Ok(target) = fs::read_link(&path) else {
            break;
        };
        path.pop();
        path.push(target);
    }
    match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) => Ok(fs::canonicalize(folder)?.join(name)),
        _ => Ok(path),
    }
}

/// Refuse a connection that cannot write. SQLite makes one, without a word, while it may only read
/// the file, and the connection stays so when that is over: the lane that kept it would never
/// write again.
pub(super) async fn refuse_read_only(conn: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    const SQL: &str = "
        begin immediate; update directory_version set beat = beat where id = 1; rollback";
    sqlx::raw_sql(SQL).execute(conn).await.map(drop)
}

/// The file that this process serves. It is locked until this is dropped, whatever name others know
/// it by (a hard link). The lock is of `flock(2)`, which neither sees nor hinders those of SQLite
/// (`fcntl(2)`). But to close a file takes away all locks of the second kind that the process has on
/// it: this must outlive the connections, and nothing else in the process may open the file.
pub(super) struct Served {
    path: PathBuf,
    file: File,
    /// Whether SQLite has a log beside it: not on every file system.
    has_log: bool,
    began: Instant,
    /// When the path was last found to be right, in milliseconds after `began`.
    looked_at_ms: AtomicU64,
    /// Whether [`ROOM_KEPT_BYTES`] were free at the last look.
    has_room: AtomicBool,
    _lock: File,
}

/// Let nobody else read or change a SQLite file that older versions made, nor what is beside it. SQLite
/// gives what it makes anew there the file's own permissions.
fn keep_private(database: &Path) {
    for path in ["", "-wal", "-shm"].map(|ending| beside(database, ending)) {
        // By its path: to open it and close it would drop SQLite's locks.
        let about = fs::metadata(&path);
        let is_open = about.is_ok_and(|about| about.permissions().mode() & 0o077 != 0);
        if is_open && let Err(error) = fs::set_permissions(&path, Permissions::from_mode(0o600)) {
            tracing::warn!(path = %path.display(), %error, "others may read this file, and its permissions cannot be changed");
        }
    }
}

impl Served {
    /// Lock a file, which is made if need be, before SQLite opens it. `lock` is that on its name.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] when another process serves it.
    pub(super) fn claim(path: PathBuf, lock: File) -> Result<Self, StoreError> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| {
                StoreError::Unusable(format!("cannot open {}: {error}", path.display()))
            })?;
        keep_private(&path);
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Unusable(format!(
                    "another picloud serves {}, perhaps under another name; stop it, or choose another data_dir",
                    path.display()
                )));
            }
            // Not every file system has such locks; the one on its name is held.
            Err(TryLockError::Error(error)) => {
                tracing::debug!(%error, "the database's file itself cannot be locked");
            }
        }
        Ok(Self {
            path,
            file,
            has_log: false,
            began: Instant::now(),
            looked_at_ms: AtomicU64::new(0),
            has_room: AtomicBool::new(true),
            _lock: lock,
        })
    }

    /// From now on, while connections are open, SQLite's log belongs to it, if there is one.
    pub(super) fn with_log(mut self) -> Self {
        self.has_log = beside(&self.path, "-wal").exists();
        self
    }

    /// See that the path still leads to the file.
    ///
    /// # Errors
    /// What is wrong, as an error of reaching the database: it ends when the file is back.
    pub(super) fn check(&self) -> Result<(), sqlx::Error> {
        // Before the look: it says nothing of what happens after it.
        let ms = self.ms_after_begin();
        let found = self.look();
        // A file system that cannot be asked fails at the write, if it does.
        let free = self.free_bytes().unwrap_or(u64::MAX);
        self.has_room
            .store(free >= ROOM_KEPT_BYTES, Ordering::Relaxed);
        // 0: look again.
        let looked_at = if found.is_ok() { ms } else { 0 };
        self.looked_at_ms.store(looked_at, Ordering::Relaxed);
        found.map_err(sqlx::Error::Io)
    }

    /// The same, where a look of a moment ago will do: many writes a second ask.
    pub(super) fn check_for_write(&self) -> Result<(), sqlx::Error> {
        let looked_at = self.looked_at_ms.load(Ordering::Relaxed);
        if looked_at > 0 && self.ms_after_begin() < looked_at + LOOK_LASTS_MS {
            return Ok(());
        }
        self.check()
    }

    /// See that there is room for something new, by the last [`Self::check`].
    ///
    /// # Errors
    /// [`StoreError::NoRoom`], which ends when there is more.
    pub(super) fn check_room(&self) -> Result<(), StoreError> {
        match self.has_room.load(Ordering::Relaxed) {
            true => Ok(()),
            false => self.check_room_for(0),
        }
    }

    /// The same for so many bytes, by the room that there is now.
    pub(super) fn check_room_for(&self, bytes: u64) -> Result<(), StoreError> {
        let free = self
            .free_bytes()
            .map_err(|error| sqlx::Error::Io(error.into()))?;
        if free >= bytes.saturating_add(ROOM_KEPT_BYTES) {
            return Ok(());
        }
        let needed = match bytes {
            0 => String::new(),
            bytes => format!(", {} more are needed", (bytes >> 20) + 1),
        };
        Err(StoreError::NoRoom(format!(
            "{} MiB are free{needed}, and {} are kept for ending what was begun and for deleting",
            free >> 20,
            ROOM_KEPT_BYTES >> 20
        )))
    }

    fn free_bytes(&self) -> rustix::io::Result<u64> {
        let disk = rustix::fs::fstatvfs(&self.file)?;
        Ok(match disk.f_blocks {
            // A file system that does not tell.
            0 => u64::MAX,
            _ => disk.f_bavail.saturating_mul(disk.f_frsize),
        })
    }

    fn ms_after_begin(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn look(&self) -> io::Result<()> {
        let path = self.path.display();
        let other = |what: &str| {
            Err(io::Error::other(format!(
                "{path} {what} while it is served: what is written now would be lost. Put back the file that was there; else stop the server, and restore a backup"
            )))
        };
        match fs::metadata(&self.path) {
            Ok(found) if !self.is(&found)? => return other("was replaced by another file"),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return other("was deleted or moved away");
            }
            Err(error) => return Err(error),
        }
        // While a connection is open, and one always is, SQLite leaves its log where it is.
        match self.has_log && !beside(&self.path, "-wal").exists() {
            true => other("has lost its log (-wal), which was deleted or moved away"),
            false => Ok(()),
        }
    }

    fn is(&self, found: &Metadata) -> io::Result<bool> {
        let ours = self.file.metadata()?;
        Ok((found.dev(), found.ino()) == (ours.dev(), ours.ino()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn claim(path: &Path) -> Result<Served, StoreError> {
        let lock = File::create(beside(path, ".lock")).unwrap();
        Served::claim(path.to_owned(), lock)
    }

    #[test]
    fn a_path_is_resolved_with_its_links_whether_the_file_is_there_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir(root.join("real")).unwrap();
        symlink("real", root.join("linked")).unwrap();
        symlink("../real/b.db", root.join("real/a.db")).unwrap();
        symlink(root.join("linked/a.db"), root.join("chain.db")).unwrap();
        let file = root.join("real/b.db");
        for _ in 0..2 {
            for spelling in [
                "real/b.db",
                "linked/b.db",
                "linked/../real/a.db",
                "chain.db",
            ] {
                assert_eq!(resolve(&root.join(spelling)).unwrap(), file, "{spelling}");
            }
            File::create(&file).unwrap();
        }
        assert!(resolve(&root.join("none/b.db")).is_err());
    }

    #[test]
    fn a_file_is_served_once_under_all_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("a.db"), folder.path().join("b.db"));
        let served = claim(&path).unwrap();
        fs::hard_link(&path, &other).unwrap();
        assert!(matches!(claim(&other), Err(StoreError::Unusable(_))));
        drop(served);
        claim(&other).unwrap();
    }

    #[test]
    fn a_file_that_is_replaced_or_loses_its_log_is_told_until_it_is_back() {
        let folder = tempfile::tempdir().unwrap();
        let (path, away) = (folder.path().join("a.db"), folder.path().join("away"));
        let log = beside(&path, "-wal");
        File::create(&log).unwrap();
        let served = claim(&path).unwrap().with_log();
        let problem = || served.check().err().map(|error| error.to_string());
        let told = |words: &str| problem().is_some_and(|problem| problem.contains(words));
        assert_eq!(problem(), None);
        fs::rename(&path, &away).unwrap();
        assert!(told("was deleted or moved away"));
        assert!(served.check_for_write().is_err());
        File::create(&path).unwrap();
        assert!(told("was replaced"));
        fs::rename(&away, &path).unwrap();
        assert_eq!(problem(), None);
        assert!(served.check_for_write().is_ok());
        fs::remove_file(log).unwrap();
        assert!(told("has lost its log"));
    }
}
