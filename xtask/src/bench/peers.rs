//! What people would use instead: installed, started, stopped. One that cannot be had here is
//! left out, with a note.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Scale;
use super::load::Target;

pub(super) const WORKERD: &str = "workerd";
pub(super) const WASMTIME: &str = "wasmtime serve";
pub(super) const RESTATE: &str = "Restate";
const NATS: &str = "NATS";
/// How long a peer may take to start.
const START: Duration = Duration::from_secs(30);

/// The folder where they are installed.
pub(super) struct Peers {
    folder: PathBuf,
}

/// One that runs until it is dropped.
pub(super) struct Peer {
    processes: Processes,
    pub(super) target: Target,
}

impl Peer {
    /// Where it listens.
    pub(super) fn address(&self) -> &str {
        let address = self.target.url.trim_start_matches("http://");
        address.split('/').next().unwrap_or_default()
    }
}

/// They end when this is dropped.
struct Processes(Vec<Child>);

impl Drop for Processes {
    fn drop(&mut self) {
        for process in &mut self.0 {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// What a job queue did, in jobs a second.
pub(super) struct Queue {
    /// Enqueued one by one with 20 in flight, and done.
    pub(super) end_to_end: f64,
    /// A backlog drained.
    pub(super) drain: f64,
}

/// A port of the system's choice.
pub(super) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn note(peer: &str, error: &anyhow::Error) {
    eprintln!("NOTE: {peer} is left out: {error:#}");
}

impl Peers {
    /// Install with npm and pip what is not installed yet.
    pub(super) fn install(root: &Path) -> Result<Self> {
        let folder = root.join("target/bench-peers");
        std::fs::create_dir_all(&folder)?;
        for file in std::fs::read_dir(root.join("tests/bench"))? {
            let file = file?;
            std::fs::copy(file.path(), folder.join(file.file_name()))?;
        }
        let peers = Self { folder };
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--silent"]);
        peers.install_once("package.json", &mut npm);
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--upgrade"])
            .args(["--disable-pip-version-check", "--root-user-action=ignore"])
            .args(["--target", "python", "-r", "requirements.txt"]);
        peers.install_once("requirements.txt", &mut pip);
        // Made again when what it is made of changed.
        let mut componentize = peers.node("wasmtime.mjs");
        peers.install_once("wasmtime.mjs", &mut componentize);
        Ok(peers)
    }

    /// Run an installer unless it ran before with this very list.
    fn install_once(&self, list: &str, install: &mut Command) {
        let done = self.folder.join(format!("{list}.installed"));
        let wanted = std::fs::read(self.folder.join(list)).ok();
        if wanted.is_some() && std::fs::read(&done).ok() == wanted {
            return;
        }
        let installed = crate::step(&format!("install the peers of {list}"), || {
            crate::run(install.current_dir(&self.folder).stdout(Stdio::null()))?;
            Ok(std::fs::copy(self.folder.join(list), &done)?)
        });
        if let Err(error) = installed {
            eprintln!("NOTE: the peers of {list} could not be installed: {error:#}");
        }
    }

    fn installed(&self, path: &str) -> Result<PathBuf> {
        let path = self.folder.join(path);
        if !path.exists() {
            bail!("it is not installed");
        }
        Ok(path)
    }

    /// A script of `tests/bench`, run by the Node that npm brought.
    fn node(&self, script: &str) -> Command {
        let mut node = Command::new(self.folder.join("node_modules/.bin/node"));
        node.current_dir(&self.folder).arg(script);
        node
    }

    /// workerd with one worker that answers what our script answers: one isolate for all, and
    /// nothing durable.
    pub(super) fn workerd(&self) -> Option<Peer> {
        self.started(WORKERD, || {
            let port = free_port()?;
            let process = Command::new(self.installed("node_modules/.bin/workerd")?)
                .current_dir(&self.folder)
                .args(["serve", "workerd.capnp"])
                .arg(format!("--socket-addr=http=127.0.0.1:{port}"))
                .stdout(Stdio::null())
                .spawn()?;
            Ok(Peer {
                processes: Processes(vec![process]),
                target: get(WORKERD, port),
            })
        })
    }

    /// `wasmtime serve` with the same as a component with a JavaScript interpreter: a fresh
    /// instance for each request, and nothing durable.
    pub(super) fn wasmtime(&self) -> Option<Peer> {
        self.started(WASMTIME, || {
            let port = free_port()?;
            let component = self.installed("wasmtime.wasm")?;
            let log = std::fs::File::create(self.folder.join("wasmtime.log"))?;
            let program = self.installed("python/wasmtime_cli/wasmtime")?;
            executable(&program)?;
            let process = Command::new(program)
                .args(["serve", "-S", "cli", "--addr"])
                .arg(format!("127.0.0.1:{port}"))
                .arg(component)
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()?;
            Ok(Peer {
                processes: Processes(vec![process]),
                target: get(WASMTIME, port),
            })
        })
    }

    /// NATS, which tells subscribers what is published and keeps nothing.
    pub(super) fn nats(&self) -> Option<Peer> {
        self.started(NATS, || {
            let port = free_port()?;
            let log = std::fs::File::create(self.folder.join("nats.log"))?;
            let process = Command::new(self.installed("python/bin/nats-server")?)
                .args(["--addr", "127.0.0.1", "--port", &port.to_string()])
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()?;
            Ok(Peer {
                processes: Processes(vec![process]),
                target: get(NATS, port),
            })
        })
    }

    /// Restate with a service in Node: a durable request and response through its ingress.
    pub(super) fn restate(&self) -> Option<Peer> {
        self.started(RESTATE, || {
            let (ingress, admin, node) = (free_port()?, free_port()?, free_port()?);
            let data = self.folder.join("restate-data");
            let _ = std::fs::remove_dir_all(&data);
            let program = format!("@restatedev/restate-server-linux-{}", architecture());
            let program = format!("node_modules/{program}/bin/restate-server");
            let log = std::fs::File::create(self.folder.join("restate.log"))?;
            let at = |port: u16| format!("127.0.0.1:{port}");
            let server = Command::new(self.installed(&program)?)
                .args(["--no-logo", "--log-filter", "warn", "--listen-mode", "tcp"])
                .arg("--base-dir")
                .arg(data)
                .env("RESTATE_DISABLE_TELEMETRY", "true")
                .env("RESTATE_BIND_ADDRESS", at(free_port()?))
                .env("RESTATE_INGRESS__BIND_ADDRESS", at(ingress))
                .env("RESTATE_ADMIN__BIND_ADDRESS", at(admin))
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()?;
            let mut processes = Processes(vec![server]);
            let log = std::fs::File::create(self.folder.join("restate-service.log"))?;
            let mut service = self.node("restate.mjs");
            let service = service
                .env("PEER_PORT", node.to_string())
                .env("PEER_ADMIN", format!("http://{}", at(admin)))
                .env("RESTATE_LOGGING", "WARN")
                .stdout(log.try_clone()?)
                .stderr(log);
            processes.0.push(service.spawn()?);
            let url = format!("http://{}/bench/hello", at(ingress));
            let begun = Instant::now();
            while ureq::post(&url).send_json("Ada").is_err() {
                if begun.elapsed() > START {
                    bail!("it did not answer");
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            let script = self.folder.join("restate.lua");
            Ok(Peer {
                processes,
                target: Target::new(RESTATE, url).scripted(script, &[]),
            })
        })
    }

    /// Start one and wait until it listens.
    fn started(&self, name: &str, start: impl FnOnce() -> Result<Peer>) -> Option<Peer> {
        let start = || -> Result<Peer> {
            let mut peer = start()?;
            let address = peer.address().to_owned();
            let begun = Instant::now();
            while TcpStream::connect(&address).is_err() {
                for process in &mut peer.processes.0 {
                    if let Some(status) = process.try_wait()? {
                        bail!("it ended ({status})");
                    }
                }
                if begun.elapsed() > START {
                    bail!("it did not start");
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(peer)
        };
        start().map_err(|error| note(name, &error)).ok()
    }

    /// One round of a job queue on the Postgres at `url`, with handlers that do nothing.
    pub(super) fn queue(&self, name: &str, url: &str, scale: &Scale) -> Option<Queue> {
        let round = || -> Result<Queue> {
            self.installed("node_modules/.bin/node")?;
            let output = self
                .node("queues.mjs")
                .arg(name)
                .env("PEER_URL", url)
                .env("PEER_SECONDS", scale.seconds_of_a_turn.to_string())
                .env("PEER_BACKLOG", scale.backlog.to_string())
                .output()?;
            let said: Value = serde_json::from_slice(&output.stdout)
                .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
            let number = |name: &str| said[name].as_f64().context("no number");
            Ok(Queue {
                end_to_end: number("endToEnd")?,
                drain: number("drain")?,
            })
        };
        round().map_err(|error| note(name, &error)).ok()
    }
}

fn get(name: &'static str, port: u16) -> Target {
    Target::new(name, format!("http://127.0.0.1:{port}/hello?name=Ada"))
}

/// The processor's name in the names of npm's packages.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "x64",
    }
}

/// pip leaves a program that is package data without the permission to run it.
fn executable(program: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let permissions = std::fs::Permissions::from_mode(0o755);
    Ok(std::fs::set_permissions(program, permissions)?)
}
