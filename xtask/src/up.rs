//! From a clone to a running server with an example on it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long the server may take to be ready: the first time it compiles the guest.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// The host of the example app. Browsers and curl lead all of `localhost` to this machine. On the
/// dashboard's host an app's pages have no origin, and can call nothing.
const EXAMPLE_HOST: &str = "example.localhost";

/// Start the server in `data` on `port`, load the example the first time, and stay until it ends.
pub fn run(root: &Path, port: u16, data: &Path) -> Result<()> {
    if TcpListener::bind(("127.0.0.1", port)).is_err() {
        bail!("something listens on port {port} already; stop it, or choose another with --port");
    }
    crate::guest::build(root)?;
    crate::dashboard::build(root)?;
    crate::sdk::build(root)?;
    crate::step("build the server", || {
        let mut build = Command::new(crate::cargo());
        crate::run(build.current_dir(root).args([
            "build",
            "--release",
            "--locked",
            "--package",
            "picloud",
        ]))
    })?;
    let program = root.join("target/release/picloud");
    let first_time = !data.join("picloud.db").exists();
    let password = match (first_time, std::env::var("PICLOUD_OWNER_PASSWORD")) {
        (true, Err(_)) => Some(made_up_password()?),
        _ => None,
    };
    let url = format!("http://127.0.0.1:{port}");
    let mut serve = Command::new(&program);
    serve
        .arg("serve")
        .arg("--data-dir")
        .arg(data)
        .args(["--listen", &format!("127.0.0.1:{port}")]);
    if let Some(password) = &password {
        serve.env("PICLOUD_OWNER_PASSWORD", password);
    }
    let mut server = serve
        .spawn()
        .with_context(|| format!("{}", program.display()))?;
    let ready = crate::step("start the server", || wait_until_ready(&mut server, port));
    if let Err(error) = ready {
        let _ = server.kill();
        return Err(error);
    }
    if first_time {
        let known = password
            .clone()
            .or_else(|| std::env::var("PICLOUD_OWNER_PASSWORD").ok());
        let loaded = crate::step("load the example app", || {
            let password = known.as_deref().unwrap_or_default();
            load_example(root, &program, &url, password)
        });
        if let Err(error) = loaded {
            let _ = server.kill();
            return Err(error);
        }
    }
    println!("\nPiCloud runs on {url}; its data is in {}", data.display());
    println!("Its dashboard is {url}/admin");
    if let Some(password) = password {
        println!("Its owner is `owner`, with the password {password} (shown this once).");
    }
    println!("\n{}", to_try(&program, port));
    // Ctrl-C reaches the server too, which then finishes what runs.
    server.wait()?;
    Ok(())
}

/// Made of the system's randomness; nobody has to remember it for long.
fn made_up_password() -> Result<String> {
    let mut bytes = [0; 10];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(hex::encode(bytes))
}

fn wait_until_ready(server: &mut Child, port: u16) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < READY_WITHIN {
        if let Some(status) = server.try_wait()? {
            bail!("the server ended at once ({status}); what it said stands above");
        }
        if is_ready(port).unwrap_or(false) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!(
        "the server was not ready after {} s",
        READY_WITHIN.as_secs()
    );
}

fn is_ready(port: u16) -> Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split(' ').nth(1) == Some("200"))
}

fn load_example(root: &Path, program: &Path, url: &str, password: &str) -> Result<()> {
    let mut login = Command::new(program);
    login
        .args(["--url", url, "login", "--password-stdin"])
        .stdin(Stdio::piped());
    let mut login = login.spawn()?;
    if let Some(mut input) = login.stdin.take() {
        input.write_all(password.as_bytes())?;
    }
    if !login.wait()?.success() {
        bail!("signing in failed");
    }
    let mut deploy = Command::new(program);
    deploy
        .args(["--url", url, "deploy"])
        .arg(root.join("examples/hello/hello.rhai"));
    deploy.args(["--app", "example", "--create-app", "--route", "ANY /hello"]);
    crate::run(&mut deploy)?;
    let mut claim = Command::new(program);
    crate::run(claim.args(claiming(url)).stdout(Stdio::null()))
}

/// What the command line is told so that the example has a host of its own.
fn claiming(url: &str) -> [&str; 7] {
    [
        "--url",
        url,
        "domains",
        "add",
        EXAMPLE_HOST,
        "--app",
        "example",
    ]
}

/// What somebody who has just begun can do.
fn to_try(program: &Path, port: u16) -> String {
    format!(
        "Try:\n  curl 'http://{EXAMPLE_HOST}:{port}/hello?name=Ada'\n  {} logs --app example\n\nCtrl-C stops it.",
        program.display()
    )
}
