//! The server under measurement, and how it is reached.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::Bench;
use super::load::{Target, wrk};
use super::peers::free_port;

const PASSWORD: &str = "only for this benchmark";

/// A server under measurement, and who administers it.
pub(super) struct Server {
    child: Child,
    program: PathBuf,
    /// Its data, and the CLI's credentials.
    pub(super) folder: PathBuf,
    pub(super) port: u16,
    /// From the start of the process to its first answer.
    pub(super) took: Duration,
    agent: ureq::Agent,
    token: String,
}

impl Server {
    /// Start one with these settings that keeps its data in the folder `name`, and sign in.
    pub(super) fn start(bench: &Bench, name: &str, settings: &[(&str, &str)]) -> Result<Self> {
        let program = bench.programs.join("picloud");
        let folder = bench.folder.join(name);
        std::fs::create_dir_all(&folder)?;
        let port = free_port()?;
        let mut serve = Command::new(&program);
        serve
            .args(["serve", "--log", "warn", "--listen"])
            .arg(format!("127.0.0.1:{port}"))
            .arg("--data-dir")
            .arg(folder.join("data"))
            // Only the very first compiles the guest.
            .arg("--cache-dir")
            .arg(bench.folder.join("cache"))
            .env("PICLOUD_OWNER_PASSWORD", PASSWORD)
            .stdout(Stdio::null());
        for (name, value) in settings {
            serve.arg(format!("--{name}")).arg(value);
        }
        let started = Instant::now();
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(30)))
            .build();
        let mut server = Self {
            child: serve.spawn()?,
            program,
            folder,
            port,
            took: Duration::ZERO,
            agent: agent.into(),
            token: String::new(),
        };
        while server.get("/readyz").is_err() {
            if started.elapsed() > Duration::from_secs(60) || server.child.try_wait()?.is_some() {
                bail!("the server did not start");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        server.took = started.elapsed();
        server.log_in()?;
        Ok(server)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Start one on a database of its own.
    pub(super) fn on(bench: &Bench, name: &str, database: Option<&str>) -> Result<Self> {
        match database {
            None => Self::start(bench, name, &[]),
            Some(url) => Self::start(bench, name, &[("database-url", url)]),
        }
    }

    fn log_in(&mut self) -> Result<()> {
        let mut login = self
            .cli()
            .args(["login", "--password-stdin"])
            .stdin(Stdio::piped())
            .spawn()?;
        let mut stdin = login.stdin.take().context("it was piped")?;
        stdin.write_all(PASSWORD.as_bytes())?;
        drop(stdin);
        login.wait()?;
        let known = std::fs::read(self.folder.join("picloud/credentials.json"))?;
        let known: Value = serde_json::from_slice(&known)?;
        known["profiles"]["default"]["token"]
            .as_str()
            .context("no token")?
            .clone_into(&mut self.token);
        Ok(())
    }

    /// The token of whoever administers it.
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// Sign in with the password once more, and forget the session.
    pub(super) fn sign_in(&self) -> Result<()> {
        let body = json!({ "name": "owner", "password": PASSWORD });
        let call = self.agent.post(self.url("/api/v1/auth/login"));
        call.send_json(&body)?.body_mut().read_to_vec()?;
        Ok(())
    }

    /// End it as an operator would.
    pub(super) fn stop(&mut self) -> Result<()> {
        crate::run(Command::new("kill").arg(self.child.id().to_string()))?;
        self.child.wait()?;
        Ok(())
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// A route of it under load.
    pub(super) fn target(&self, name: &'static str, path: &str) -> Target {
        Target::new(name, self.url(path))
    }

    /// The body of a GET.
    pub(super) fn get(&self, path: &str) -> Result<String> {
        let mut answer = self.agent.get(self.url(path)).call()?;
        Ok(answer.body_mut().read_to_string()?)
    }

    /// Ask the admin API.
    pub(super) fn api_get(&self, path: &str) -> Result<Value> {
        let call = self.agent.get(self.url(path));
        let call = call.header("authorization", format!("Bearer {}", self.token));
        Ok(call.call()?.body_mut().read_json()?)
    }

    /// Tell the admin API to make something.
    pub(super) fn api_post(&self, path: &str, body: &Value) -> Result<Value> {
        let call = self.agent.post(self.url(path));
        let call = call.header("authorization", format!("Bearer {}", self.token));
        let answer = call.send_json(body).with_context(|| path.to_owned());
        Ok(answer?.body_mut().read_json()?)
    }

    fn cli(&self) -> Command {
        let mut cli = Command::new(&self.program);
        cli.env("XDG_CONFIG_HOME", &self.folder)
            .args(["--url", &self.url("")])
            .stdout(Stdio::null());
        cli
    }

    /// Upload a script to an app and bind it to `GET /name`.
    pub(super) fn deploy(&self, app: &str, name: &str, source: &str, more: &[&str]) -> Result<()> {
        let path = self.folder.join(format!("{name}.rhai"));
        std::fs::write(&path, source)?;
        let mut deploy = self.cli();
        deploy
            .arg("deploy")
            .arg(path)
            .args(["--app", app, "--create-app"]);
        deploy.args(["--route", &format!("GET /{name}")]).args(more);
        crate::run(&mut deploy)
    }

    /// What the CLI prints for `words`, as JSON.
    pub(super) fn cli_json(&self, words: &[&str]) -> Result<Value> {
        let mut cli = self.cli();
        let cli = cli.args(words).arg("--json").stdout(Stdio::piped());
        let output = cli.output()?;
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

    /// The processor time that it has used.
    pub(super) fn cpu(&self) -> Result<Duration> {
        /// `sysconf(_SC_CLK_TCK)`, the same on every Linux.
        const TICKS_A_SECOND: f64 = 100.0;
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // What comes before is the program's name, in brackets; utime and stime are fields 14 and 15.
        let (_, rest) = text.rsplit_once(')').context("no name")?;
        let ticks = rest.split_whitespace().skip(11).take(2);
        let ticks: Vec<f64> = ticks.map(str::parse).collect::<Result<_, _>>()?;
        Ok(Duration::from_secs_f64(
            ticks.iter().sum::<f64>() / TICKS_A_SECOND,
        ))
    }

    /// Its processor time for a request, in seconds: it does not see how much of the two cores the
    /// load generator took.
    pub(super) fn cost(&self, target: &Target, seconds: u32) -> Result<f64> {
        let before = self.cpu()?;
        let load = wrk(target, 32, seconds)?;
        Ok((self.cpu()? - before).as_secs_f64() / load.requests)
    }

    /// Its resident memory, with a page that several maps share counted once.
    pub(super) fn proportional_mib(&self) -> Result<f64> {
        self.of_proc("smaps_rollup", "Pss:")
    }

    /// A field of `/proc/…/status`.
    pub(super) fn memory_mib(&self, field: &str) -> Result<f64> {
        self.of_proc("status", field)
    }

    /// A number of KiB in a file under `/proc`, in MiB.
    fn of_proc(&self, file: &str, field: &str) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id()))?;
        let line = text.lines().find(|line| line.starts_with(field));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        let kib: f64 = number.context("no such field")?.parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
