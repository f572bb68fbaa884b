//! A place where an instance may be, before there is one.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::database::Database;
use crate::server::program;
use crate::{Engine, Options};

/// An empty data folder, and on Postgres an empty database.
pub struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) database: Option<Arc<Database>>,
}

impl Place {
    /// An empty one.
    pub fn new(engine: Engine) -> Self {
        let options = Options::default();
        let database = (engine == Engine::Postgres).then(|| Arc::new(Database::create(&options)));
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self { folder, database }
    }

    /// Where its data is to be.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The CLI with these words, told to work on this place.
    pub fn cli(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(words)
            .arg("--data-dir")
            .arg(self.data_dir())
            .current_dir(self.folder.path())
            .env("XDG_CONFIG_HOME", self.folder.path().join("config"))
            .stdin(Stdio::null());
        if let Some(database) = &self.database {
            command.args(["--database-url", &database.url]);
        }
        command
    }

    /// Whether there is a database of PiCloud, or a part of one.
    pub fn has_database(&self) -> bool {
        match &self.database {
            Some(database) => database.has_rows("users"),
            None => self.data_dir().join("picloud.db").exists(),
        }
    }

    /// Whether rows of this table are being written now.
    pub fn is_filling(&self, table: &str) -> bool {
        match &self.database {
            Some(database) => database.is_running(&format!("copy \"{table}\"")),
            None => {
                let file = self.data_dir().join("picloud.db.restoring");
                std::fs::metadata(file).is_ok_and(|file| file.len() > 2 << 20)
            }
        }
    }
}
