//! A Postgres server of the tests' own, in a temporary folder.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::setup::postgres_bin;

/// A running server; dropping it stops it and removes its folder.
pub struct Postgres {
    bin: PathBuf,
    folder: PathBuf,
    /// A superuser's URL.
    pub url: String,
}

/// A command that runs as somebody else than root: Postgres refuses to run as root.
fn unprivileged(program: &Path) -> Command {
    let is_root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|id| id.stdout == b"0\n");
    if !is_root {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid=postgres",
            "--regid=postgres",
            "--clear-groups",
            "--",
        ])
        .arg(program);
    command
}

impl Postgres {
    /// Start one from the installed binaries.
    pub fn start() -> Result<Self> {
        let bin =
            postgres_bin().context("no Postgres is installed; run `cargo xtask setup --test`")?;
        let made = unprivileged(Path::new("mktemp"))
            .args(["--directory", "--tmpdir", "picloud-postgres.XXXXXX"])
            .output()?;
        if !made.status.success() {
            bail!(
                "no temporary folder: {}",
                String::from_utf8_lossy(&made.stderr)
            );
        }
        let folder = PathBuf::from(String::from_utf8(made.stdout)?.trim());
        // Taken and let go again: somebody else could take it in between, and then the start
        // fails and says so.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
        let server = Self { bin, folder, url };
        let data = server.folder.join("data");
        let mut init = unprivileged(&server.bin.join("initdb"));
        init.current_dir(&server.folder);
        init.args([
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "-D",
        ]);
        let init = init.arg(&data).output()?;
        if !init.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&init.stderr));
        }
        let options = format!(
            "-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={} \
             -c max_connections=500",
            server.folder.display()
        );
        let log = server.folder.join("log");
        let mut start = unprivileged(&server.bin.join("pg_ctl"));
        start.current_dir(&server.folder);
        start.args(["start", "--wait", "--silent", "-o", &options]);
        let start = start.arg("-D").arg(&data).arg("-l").arg(&log).status()?;
        if !start.success() {
            bail!(
                "Postgres did not start: {}",
                std::fs::read_to_string(&log).unwrap_or_default()
            );
        }
        Ok(server)
    }
}

impl Postgres {
    /// Make a database; answers its URL.
    pub fn create_database(&self, name: &str) -> Result<String> {
        let (front, _) = self.url.rsplit_once('/').context("a URL with a database")?;
        let mut create = Command::new(self.bin.join("createdb"));
        crate::run(create.args(["--maintenance-db", &self.url, name]))?;
        Ok(format!("{front}/{name}"))
    }

    /// What a shell runs to crash it and start it again where it was.
    pub fn restart_command(&self) -> String {
        let mut restart = unprivileged(&self.bin.join("pg_ctl"));
        restart
            .args(["restart", "--wait", "--silent", "--mode=immediate", "-D"])
            .arg(self.folder.join("data"))
            .arg("-l")
            .arg(self.folder.join("log"));
        let words = std::iter::once(restart.get_program()).chain(restart.get_args());
        let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
        format!("cd / && {}", words.join(" "))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let mut stop = unprivileged(&self.bin.join("pg_ctl"));
        stop.current_dir("/")
            .args(["stop", "--silent", "--mode=immediate", "-D"]);
        // Nothing to do about a server that does not stop; the system ends it with us.
        let _ = stop.arg(self.folder.join("data")).status();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
