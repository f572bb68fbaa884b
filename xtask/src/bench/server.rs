//! The server under measurement, and how it is reached.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const PASSWORD: &str = "only for this benchmark";

/// A server under measurement.
pub(super) struct Server {
    child: Child,
    program: PathBuf,
    pub(super) port: u16,
    /// From the start of the process to its first answer.
    pub(super) took: Duration,
}

impl Server {
    /// Start one that keeps its data in `folder`, on SQLite or on the Postgres at `database`.
    pub(super) fn start(root: &Path, folder: &Path, database: Option<&str>) -> Result<Self> {
        Self::start_program(root.join("target/release/picloud"), folder, database)
    }

    /// The same with another build of it.
    pub(super) fn start_program(
        program: PathBuf,
        folder: &Path,
        database: Option<&str>,
    ) -> Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let started = Instant::now();
        let mut serve = Command::new(&program);
        serve.arg("serve");
        if let Some(url) = database {
            serve.args(["--database-url", url]);
        }
        let child = serve
            .args([
                "--log",
                "warn",
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--data-dir",
            ])
            .arg(folder.join("data"))
            .env("PICLOUD_OWNER_PASSWORD", PASSWORD)
            .stdout(Stdio::null())
            .spawn()?;
        let mut server = Self {
            child,
            program,
            port,
            took: Duration::ZERO,
        };
        while server.get("/readyz").is_err() {
            if started.elapsed() > Duration::from_secs(60) || server.child.try_wait()?.is_some() {
                bail!("the server did not start");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        server.took = started.elapsed();
        Ok(server)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn stop(&mut self) -> Result<()> {
        crate::run(Command::new("kill").arg(self.child.id().to_string()))?;
        self.child.wait()?;
        Ok(())
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(super) fn get(&self, path: &str) -> Result<String> {
        self.request(path, "")
    }

    fn request(&self, path: &str, headers: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if answer.starts_with("HTTP/1.1 200") {
            Ok(answer)
        } else {
            bail!("{answer}")
        }
    }

    /// Ask the admin API as who is signed in.
    pub(super) fn api_get(&self, folder: &Path, path: &str) -> Result<String> {
        let known = std::fs::read(folder.join("picloud/credentials.json"))?;
        let known: serde_json::Value = serde_json::from_slice(&known)?;
        let token = known["token"].as_str().context("no token")?;
        self.request(path, &format!("Authorization: Bearer {token}\r\n"))
    }

    fn cli(&self, folder: &Path) -> Command {
        let mut cli = Command::new(&self.program);
        cli.env("XDG_CONFIG_HOME", folder)
            .args(["--url", &self.url()])
            .stdout(Stdio::null());
        cli
    }

    /// Sign in, as the CLI does for what follows.
    pub(super) fn log_in(&self, folder: &Path) -> Result<()> {
        let mut login = self.cli(folder);
        let mut login = login
            .args(["login", "--password-stdin"])
            .stdin(Stdio::piped())
            .spawn()?;
        login
            .stdin
            .take()
            .context("it was piped")?
            .write_all(PASSWORD.as_bytes())?;
        login.wait()?;
        Ok(())
    }

    /// Upload a script to an app and bind it to `GET /name`.
    pub(super) fn deploy(
        &self,
        folder: &Path,
        app: &str,
        name: &str,
        source: &str,
        more: &[&str],
    ) -> Result<()> {
        let path = folder.join(format!("{name}.rhai"));
        std::fs::write(&path, source)?;
        let mut deploy = self.cli(folder);
        deploy
            .arg("deploy")
            .arg(path)
            .args(["--app", app, "--create-app"]);
        deploy.args(["--route", &format!("GET /{name}")]).args(more);
        crate::run(&mut deploy)
    }

    /// What the CLI prints for `words`, as JSON.
    pub(super) fn cli_json(&self, folder: &Path, words: &[&str]) -> Result<serde_json::Value> {
        let output = self
            .cli(folder)
            .args(words)
            .arg("--json")
            .stdout(Stdio::piped())
            .output()?;
        if !output.status.success() {
            bail!("{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// The value of a metric with exactly these labels; 0 when it is not there.
    pub(super) fn metric(&self, name: &str) -> Result<f64> {
        let answer = self.get("/metrics")?;
        let found = answer
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Ok(found.unwrap_or(0.0))
    }

    /// Its resident memory, with a page that several maps share counted once.
    pub(super) fn proportional_mib(&self) -> Result<f64> {
        self.of_proc("smaps_rollup", "Pss:")
    }

    pub(super) fn memory_mib(&self, field: &str) -> Result<f64> {
        self.of_proc("status", field)
    }

    /// A number of KiB in a file under `/proc`, in MiB.
    fn of_proc(&self, file: &str, field: &str) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id()))?;
        let line = text
            .lines()
            .find(|line| line.starts_with(field))
            .context("no such field")?;
        let kib: f64 = line
            .split_whitespace()
            .nth(1)
            .context("no number")?
            .parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
