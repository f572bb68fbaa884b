//! A server of a test's own.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::database::{self, Database, Row};
use crate::{App, Place, wait_for};

const PASSWORD: &str = "correct horse battery";

/// Which database a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The embedded one.
    Sqlite,
    /// The one that `PICLOUD_TEST_POSTGRES_URL` names.
    Postgres,
}

/// Crash the Postgres that `PICLOUD_TEST_POSTGRES_TO_RESTART` names, and start it again.
pub fn restart_postgres() {
    let command = std::env::var("PICLOUD_TEST_POSTGRES_RESTART");
    let command = command.expect("`cargo xtask test` says how Postgres is restarted");
    let done = Command::new("sh").args(["-c", &command]).status();
    assert!(done.expect("sh").success(), "{command}");
}

/// What a server is started with.
#[derive(Default, Clone)]
pub struct Options {
    /// Another Postgres than the one that all tests share.
    pub postgres: Option<String>,
    /// Variables of its environment.
    pub environment: Vec<(&'static str, String)>,
    /// Where its data is; a temporary folder when left out.
    pub data_dir: Option<PathBuf>,
    /// What is added to its clock, `+1h` say.
    pub clock: Option<&'static str>,
    /// A port on this machine that leads to the Postgres, in place of its own.
    pub postgres_through: Option<u16>,
    /// Whether it signs in to Postgres as a role of its own, which is no superuser: those are
    /// exempt from what else may be refused.
    pub ordinary_role: bool,
    /// Whether the first owner is left to the test.
    pub without_owner: bool,
    /// Whether its compiled code is in a folder of its own, which begins with what all tests share.
    pub own_cache: bool,
}

impl Options {
    /// With these variables of the environment.
    pub fn with(environment: &[(&'static str, &str)]) -> Self {
        let environment = environment.iter();
        let environment = environment.map(|(name, value)| (*name, (*value).to_owned()));
        Self {
            environment: environment.collect(),
            ..Self::default()
        }
    }
}

/// A running server; dropping it kills it and removes its data.
pub struct Server {
    child: Option<Child>,
    /// Where it listens.
    pub url: String,
    /// Its first owner's token.
    pub token: String,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) options: Options,
    database: Option<Arc<Database>>,
    output: Arc<Mutex<String>>,
}

/// The library that gives a process another clock.
fn faketime() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten();
    let libraries = folders.map(|folder| folder.path().join("faketime/libfaketime.so.1"));
    let found = libraries.into_iter().find(|library| library.exists());
    found.expect("libfaketime is not installed; `cargo xtask setup --test` installs it")
}

pub(crate) fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("PICLOUD_BIN") {
        return path.into();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug/picloud");
    assert!(
        path.exists(),
        "the server is not built: run `cargo build -p picloud` or `cargo xtask test`"
    );
    path
}

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The header fields.
    pub headers: http::HeaderMap,
    /// The body.
    pub bytes: Vec<u8>,
}

impl Answer {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// The status; one that says "not now" says when to come again, too.
    #[track_caller]
    pub fn status_in_an_outage(&self) -> u16 {
        if self.status == 503 {
            let after = self.headers.get("retry-after");
            let after = after.and_then(|after| after.to_str().ok()?.parse::<u32>().ok());
            assert!(after.is_some_and(|s| s > 0), "{after:?}: {}", self.text());
        }
        self.status
    }

    /// The name of the problem that it is.
    pub fn problem(&self) -> String {
        let kind = self.json()["type"].as_str().unwrap_or_default().to_owned();
        assert_eq!(
            self.headers["content-type"],
            "application/problem+json",
            "{}",
            self.text()
        );
        kind.trim_start_matches("urn:picloud:problem:").to_owned()
    }
}

impl Server {
    /// Start one with nothing special.
    pub fn start(engine: Engine) -> Self {
        Self::start_with(engine, Options::default())
    }

    /// Start one.
    pub fn start_with(engine: Engine, options: Options) -> Self {
        let database = (engine == Engine::Postgres).then(|| Arc::new(Database::create(&options)));
        Self::start_on(database, options)
    }

    /// Start one on what is at this place.
    pub fn start_at(place: Place) -> Self {
        let Place { folder, database } = place;
        Self::start_in(folder, database, Options::default())
    }

    /// Start another node on the same Postgres.
    pub fn another_node(&self, options: Options) -> Self {
        assert!(self.database.is_some(), "SQLite has one node");
        Self::start_on(self.database.clone(), options)
    }

    fn start_on(database: Option<Arc<Database>>, options: Options) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self::start_in(folder, database, options)
    }

    fn start_in(
        folder: tempfile::TempDir,
        database: Option<Arc<Database>>,
        options: Options,
    ) -> Self {
        let (url, token) = (String::new(), String::new());
        let mut server = Self {
            child: None,
            url,
            token,
            folder,
            options,
            database,
            output: Arc::default(),
        };
        server.launch();
        if !server.options.without_owner {
            server.log_in();
        }
        server
    }

    /// Where its data is.
    pub fn data_dir(&self) -> PathBuf {
        self.options
            .data_dir
            .clone()
            .unwrap_or_else(|| self.folder.path().join("data"))
    }

    /// Start the process, again if need be, and wait until it is ready.
    pub fn launch(&mut self) {
        self.listen();
        wait_for("readiness", || {
            (self.get("/readyz").status == 200).then_some(())
        });
    }

    /// Start the process, and wait until it listens.
    pub fn listen(&mut self) {
        self.fill_own_cache();
        // A file that grows past a limit makes a signal that ends a process; ignored, it is an
        // error, as a full disk is. One test sets such a limit.
        let mut serve = Command::new("env");
        serve.arg("--ignore-signal=XFSZ");
        if let Some(offset) = self.options.clock {
            // Not through the program `faketime`, which would stand between us and the server.
            serve.arg(format!("LD_PRELOAD={}", faketime().display()));
            serve.arg(format!("FAKETIME={offset}"));
        }
        serve.arg(program());
        serve
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(self.data_dir())
            .arg("--cache-dir")
            .arg(self.cache_dir())
            .args(["--shutdown-grace-ms", "2000"])
            .current_dir(self.folder.path())
            .env(
                "PICLOUD_OWNER_PASSWORD",
                if self.options.without_owner {
                    ""
                } else {
                    PASSWORD
                },
            )
            .envs(
                self.options
                    .environment
                    .iter()
                    .map(|(name, value)| (name, value)),
            )
            .stdout(Stdio::piped())
            .stderr(self.log_file());
        if let Some(database) = &self.database {
            let url = database.url_through(self.options.postgres_through);
            serve.args(["--database-url", &url]);
        }
        let mut child = serve.spawn().expect("the server starts");
        let stdout = child.stdout.take().expect("it was piped");
        let (listening, heard) = mpsc::channel();
        let output = self.output.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
                writeln!(output, "{line}").expect("a text takes it");
                drop(output);
                // Where its log is JSON, so is this.
                let told: Value = serde_json::from_str(&line).unwrap_or_default();
                let text = told["fields"]["message"].as_str().unwrap_or(&line);
                if let Some(url) = text.strip_prefix("listening on ") {
                    let _ = listening.send(url.to_owned());
                }
            }
        });
        self.child = Some(child);
        let heard = heard.recv_timeout(Duration::from_secs(120));
        self.url = heard.unwrap_or_else(|_| panic!("the server did not start:\n{}", self.log()));
    }

    fn log_in(&mut self) {
        let body = json!({ "name": "owner", "password": PASSWORD });
        let answer = self.call(
            "POST",
            "/api/v1/auth/login",
            &[],
            Some(body.to_string().as_bytes()),
        );
        assert_eq!(answer.status, 200, "{}", answer.text());
        self.token = answer.json()["token"].as_str().expect("a token").to_owned();
    }

    fn log_file(&self) -> Stdio {
        let path = self.folder.path().join("server.log");
        std::fs::File::options()
            .create(true)
            .append(true)
            .open(path)
            .expect("a log")
            .into()
    }

    /// What the server logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }

    /// What the server printed so far.
    pub fn output(&self) -> String {
        let output = self.output.lock();
        output.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The owner's password.
    pub fn password(&self) -> &'static str {
        PASSWORD
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Change the server's database behind its back: for what nothing else can do.
    pub fn sql(&self, statements: &str) {
        let Some(database) = &self.database else {
            const EXECUTE: &str =
                "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(sys.argv[2])";
            let mut python = Command::new("python3");
            let python = python.args(["-c", EXECUTE]);
            let python = python.arg(self.database_file());
            assert!(python.arg(statements).status().expect("python3").success());
            return;
        };
        database.execute(statements);
    }

    /// What a query of its database answers, as text: for what nothing else can tell.
    pub fn query(&self, sql: &str) -> Vec<Row> {
        let Some(database) = &self.database else {
            const QUERY: &str = "
import json, sqlite3, sys
def text(value):
    if value is None:
        return None
    return value.hex() if isinstance(value, bytes) else str(value)
connection = sqlite3.connect('file:' + sys.argv[1] + '?mode=ro', uri=True, timeout=10)
rows = connection.execute(sys.argv[2]).fetchall()
print(json.dumps([[text(value) for value in row] for row in rows]))";
            let mut python = Command::new("python3");
            let python = python.args(["-c", QUERY]);
            let python = python.arg(self.data_dir().join("picloud.db")).arg(sql);
            let answered = python.output().expect("python3");
            let said = String::from_utf8_lossy(&answered.stderr);
            assert!(answered.status.success(), "{said}");
            return serde_json::from_slice(&answered.stdout).expect("rows");
        };
        database::rows(&mut database.client(), sql)
    }

    /// Whether its database is a Postgres.
    pub fn is_on_postgres(&self) -> bool {
        self.database.is_some()
    }

    /// A variable of its environment that the test set.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        let mut set = self.options.environment.iter().rev();
        let found = set.find(|(known, _)| *known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn postgres(&self) -> &Database {
        self.database.as_ref().expect("a Postgres")
    }

    /// How many rows a table has, behind the server's back.
    pub fn rows(&self, table: &str) -> u64 {
        let counted = self.query(&format!("select count(*) from {table}"));
        let counted = counted[0][0].as_deref().expect("a count");
        counted.parse().expect("a number")
    }

    /// The file of its database on SQLite.
    pub fn database_file(&self) -> PathBuf {
        self.data_dir().join("picloud.db")
    }

    /// Send the process a signal, `STOP` say.
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.expect("kill").success());
    }

    /// The value of a metric, all its labels together.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let of_name = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value = rest
                .rsplit_once(' ')
                .filter(|_| rest.starts_with(['{', ' ']))?
                .1;
            value.parse::<f64>().ok()
        });
        of_name.sum()
    }

    /// The app of this name, which is there already.
    pub fn known_app(&self, slug: &str) -> App<'_> {
        App {
            server: self,
            slug: slug.to_owned(),
        }
    }

    /// What is in its environment from its next start on.
    pub fn set_environment(&mut self, environment: Vec<(&'static str, String)>) {
        self.options.environment = environment;
    }

    /// Add something to its clock from its next start on.
    pub fn set_clock(&mut self, offset: &'static str) {
        self.options.clock = Some(offset);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it can be killed");
            child.wait().expect("it ends");
        }
    }

    /// SIGTERM, and wait for its end.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = child.id().to_string();
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .expect("kill");
            assert!(child.wait().expect("it ends").success(), "{}", self.log());
        }
    }

    /// Wait for the end of the process; says whether it came within a time.
    ///
    /// # Panics
    /// When the process cannot be waited for.
    pub fn ends_within(&mut self, at_most: Duration) -> bool {
        let begun = Instant::now();
        while let Some(child) = &mut self.child {
            if child.try_wait().expect("it can be waited for").is_some() {
                self.child = None;
            } else if begun.elapsed() > at_most {
                return false;
            } else {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        true
    }

    /// Wait for the end of the process, which was told to end or has a reason to. Says how it ended.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        wait_for("the process to end", || child.try_wait().expect("a child"))
    }

    /// A request with everything given.
    pub fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Answer {
        self.try_call(method, path, headers, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.log()))
    }

    /// The same, where the server may be gone.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn try_call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Result<Answer, String> {
        self.call_within(Duration::from_secs(60), method, path, headers, body)
    }

    /// The same, given up after a time.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn call_within(
        &self,
        time: Duration,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Result<Answer, String> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .max_redirects(0)
            .timeout_global(Some(time))
            .build()
            .into();
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let has_type = headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        if body.is_some() && !has_type {
            request = request.header("content-type", "application/json");
        }
        let request = request
            .body(body.unwrap_or_default().to_vec())
            .map_err(|e| e.to_string())?;
        let response = agent.run(request).map_err(|error| error.to_string())?;
        let (parts, mut body) = response.into_parts();
        let mut bytes = Vec::new();
        body.as_reader()
            .read_to_end(&mut bytes)
            .map_err(|error| error.to_string())?;
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            bytes,
        })
    }

    /// `GET path`, as anybody.
    pub fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], None)
    }

    /// `POST path` with JSON, as anybody.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.call("POST", path, &[], Some(body.to_string().as_bytes()))
    }

    /// A call of the admin API, as the owner.
    pub fn api(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.api_as(&self.token, method, path, body)
    }

    /// A call of the admin API, as whoever has a token.
    pub fn api_as(&self, token: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
        let authorization = format!("Bearer {token}");
        let body = body.map(|body| body.to_string());
        let headers = [("authorization", authorization.as_str())];
        self.call(
            method,
            &format!("/api/v1{path}"),
            &headers,
            body.as_ref().map(|body| body.as_bytes()),
        )
    }

    /// A user of this role on the instance and in apps: their id and a token.
    pub fn join(&self, name: &str, role: &str, apps: Value) -> (String, String) {
        let invitation = json!({ "role": role, "apps": apps });
        let link = self.api("POST", "/invitations", Some(invitation));
        assert_eq!(link.status, 201, "{}", link.text());
        let join = json!({ "token": link.json()["token"], "name": name, "password": PASSWORD });
        let joined = self.post("/api/v1/auth/join", &join);
        assert_eq!(joined.status, 201, "{}", joined.text());
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let joined = joined.json();
        (text(&joined["user"]["id"]), text(&joined["token"]))
    }

    /// An API key of whoever has a token.
    pub fn key(&self, token: &str, name: &str, scopes: &[&str], apps: Option<&[&str]>) -> String {
        let key = json!({ "name": name, "scopes": scopes, "apps": apps });
        let made = self.api_as(token, "POST", "/auth/keys", Some(key));
        assert_eq!(made.status, 201, "{}", made.text());
        made.json()["token"].as_str().expect("a token").to_owned()
    }

    /// Bytes as they are, and what came back before the connection ended or fell silent.
    pub fn raw(&self, bytes: &[u8]) -> String {
        let address = self.url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).expect("a connection");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a time limit");
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// An app of this name.
    pub fn app(&self, slug: &str) -> App<'_> {
        let made = self.api("POST", "/apps", Some(json!({ "slug": slug })));
        assert_eq!(made.status, 201, "{}", made.text());
        App {
            server: self,
            slug: slug.to_owned(),
        }
    }

    /// Run the CLI against this server, as the owner.
    pub fn cli(&self, words: &[&str]) -> Output {
        self.cli_as(&self.token, words)
    }

    /// The same as whoever has a token.
    pub fn cli_as(&self, token: &str, words: &[&str]) -> Output {
        let mut command = self.cli_command(words);
        let command = command.env("PICLOUD_TOKEN", token);
        command.output().expect("the CLI starts")
    }

    /// The same as the owner, to be started by the test.
    pub fn cli_command(&self, words: &[&str]) -> Command {
        let mut command = self.command(words);
        command
            .env("PICLOUD_TOKEN", &self.token)
            .stdin(Stdio::null());
        command
    }

    /// The same as nobody, with something on its standard input.
    pub fn cli_with_input(&self, words: &[&str], input: &str) -> Output {
        let path = self.folder.path().join("input");
        std::fs::write(&path, input).expect("a file");
        let input = std::fs::File::open(path).expect("the file");
        let mut command = self.command(words);
        command.stdin(input).output().expect("the CLI starts")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(words)
            .current_dir(self.folder.path())
            .env("PICLOUD_URL", &self.url)
            .env("XDG_CONFIG_HOME", self.folder.path().join("config"));
        command
    }

    /// How the CLI is told to open its database by itself.
    pub fn direct(&self) -> Vec<String> {
        match &self.database {
            Some(database) => {
                let url = database.url_through(self.options.postgres_through);
                vec!["--database-url".to_owned(), url]
            }
            None => {
                let data_dir = self.data_dir().display().to_string();
                vec!["--data-dir".to_owned(), data_dir]
            }
        }
    }

    /// A folder of this test's own.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that was killed, or has another clock, moves nothing, or not now.
        let is_running = self
            .child
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)));
        let is_looked_at = is_running && self.options.clock.is_none() && !std::thread::panicking();
        let stuck = is_looked_at.then(|| self.until_all_moves().err()).flatten();
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("── the server's log ──\n{}", self.log());
        }
        drop(self.database.take());
        if let Some(stuck) = stuck {
            panic!("at the test's end, {stuck}");
        }
    }
}
