//! `picloud setup`, `login` and `whoami`: who somebody is at a server.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::answer::Answer;
use super::client::Client;
use super::input::secret;
use super::output::{Failure, Output};
use super::profile::Name;
use super::{Common, Done, terminal};
use crate::apps::{App, AppId};
use crate::identity::capability::{AppRole, Role};
use crate::identity::{KeyGrant, User};
use crate::oidc::handover::{Challenge, new_verifier};

/// The longest request of a browser that is read.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// How long a browser may take to send it.
const PATIENCE: Duration = Duration::from_secs(10);

/// A session that began.
#[derive(Deserialize)]
struct Session {
    token: String,
    expires_at: DateTime<Utc>,
    user: User,
}

/// Keep a session that began, and say so.
fn remember(client: &Client, session: &Session, out: &Output) -> Done {
    let Session {
        token,
        expires_at,
        user,
    } = session;
    let profile = client.remember(token, &user.name)?.as_str();
    let url = client.url();
    let shown = json!({ "url": url, "profile": profile, "user": user, "expires_at": expires_at });
    out.show_own(&shown, || {
        println!("Signed in to {url} as {}.", terminal::line(&user.name));
    });
    Ok(())
}

/// Where the API is on a host of its own and not on this one, say where.
fn name_the_host(client: &Client, failure: Failure) -> Failure {
    let Failure::Problem(problem) = failure else {
        return failure;
    };
    let url = client.url();
    let Some(host) = &problem.admin_host else {
        return Failure::Problem(problem);
    };
    let scheme = url.split("://").next().unwrap_or("https");
    let port = url.rsplit_once(':').map(|(_, port)| port);
    let port = port.filter(|port| port.chars().all(|c| c.is_ascii_digit()));
    let port = port.map_or(String::new(), |port| format!(":{port}"));
    let more = format!("; sign in there with: picloud login --url {scheme}://{host}{port}");
    Failure::Problem(Box::new(problem.adding(&more)))
}

/// What there is to do before anybody can sign in.
#[derive(Deserialize)]
struct SetupState {
    has_owner: bool,
}

/// Make the first owner of a server, and sign in as them.
#[derive(clap::Args)]
pub(super) struct Setup {
    /// The set-up token that the server printed when it started
    #[arg(value_name = "SET-UP TOKEN")]
    setup_token: String,
    /// The name of the owner
    #[arg(long, default_value = "owner")]
    name: String,
    /// Read the new password from standard input
    #[arg(long)]
    password_stdin: bool,
}

impl Setup {
    pub(super) fn run(self, common: &Common, out: &Output) -> Done {
        let client = Client::nobody(common)?;
        let state: Answer<SetupState> = client
            .get("/setup")
            .map_err(|failure| name_the_host(&client, failure))?;
        if state.has_owner {
            let detail = "this instance has an owner already; sign in with: picloud login";
            return Err(Failure::Conflict(detail.into()));
        }
        let ask = format!("New password of {} on {}: ", self.name, client.url());
        let password = secret(self.password_stdin, &ask)?;
        let body = json!({ "token": self.setup_token, "name": self.name, "password": password });
        let session: Answer<Session> = client.post("/setup", &body)?;
        remember(&client, &session, out)
    }
}

/// Sign in.
#[derive(clap::Args)]
pub(super) struct Login {
    /// The name to sign in with
    #[arg(long, default_value = "owner")]
    user: String,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Sign in in a browser, at the OpenID provider of the instance
    #[arg(long, conflicts_with_all = ["user", "password_stdin"])]
    oidc: bool,
    /// Where no browser is: only print the address, and ask for the code that is shown in the end
    #[arg(long, requires = "oidc")]
    no_browser: bool,
    /// How many seconds to wait for the browser
    #[arg(long, requires = "oidc", value_name = "SECONDS", default_value_t = 600)]
    timeout_s: u64,
}

/// How one can sign in in a browser.
#[derive(Deserialize)]
struct Provider {
    enabled: bool,
}

impl Login {
    pub(super) fn run(self, common: &Common, out: &Output) -> Done {
        let client = Client::nobody(common)?;
        let session = self.session(&client);
        let session = session.map_err(|failure| name_the_host(&client, failure))?;
        remember(&client, &session, out)
    }

    fn session(&self, client: &Client) -> Result<Answer<Session>, Failure> {
        if self.oidc {
            return self.in_browser(client);
        }
        // Before a password is asked for, and sent: is that a PiCloud at all?
        client.get::<Provider>("/auth/oidc")?;
        let ask = format!("Password of {} on {}: ", self.user, client.url());
        let password = secret(self.password_stdin, &ask)?;
        let body = json!({ "name": self.user, "password": password });
        client.post("/auth/login", &body)
    }

    fn in_browser(&self, client: &Client) -> Result<Answer<Session>, Failure> {
        if !client.get::<Provider>("/auth/oidc")?.enabled {
            return Err(Failure::Missing(format!(
                "{} has no OpenID provider; sign in with a password: picloud login --user NAME",
                client.url()
            )));
        }
        let verifier = new_verifier().map_err(|error| Failure::Local(error.to_string()))?;
        let challenge = Challenge::of(&verifier);
        let page = format!(
            "{}/api/v1/auth/oidc/login?code_challenge={}",
            client.url(),
            challenge.as_str()
        );
        let code = match self.no_browser {
            true => {
                eprint!("Open this address in a browser anywhere:\n  {page}\nThe code: ");
                std::io::stderr().flush()?;
                let mut code = String::new();
                std::io::stdin().read_line(&mut code)?;
                code
            }
            false => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
                let page = format!("{page}&port={}", listener.local_addr()?.port());
                eprintln!(
                    "Sign in in your browser. If it does not open, go to:\n  {page}\n\
                     Without a browser on this machine: picloud login --oidc --no-browser"
                );
                open(&page);
                let timeout = Duration::from_secs(self.timeout_s);
                code_from(listener, challenge, timeout)?
            }
        };
        let body = json!({ "code": code.trim(), "code_verifier": verifier });
        client.post("/auth/oidc/session", &body)
    }
}

/// Try to show somebody an address; they were told it, too.
fn open(address: &str) {
    let opener = match cfg!(target_os = "macos") {
        true => "open",
        false => "xdg-open",
    };
    let mut open = Command::new(opener);
    open.arg(address)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // Some openers end when the browser does.
    thread::spawn(move || open.status());
}

/// Wait for the browser that comes back with a code, or with why there is none.
fn code_from(
    listener: TcpListener,
    challenge: Challenge,
    timeout: Duration,
) -> Result<String, Failure> {
    let (tell, told) = mpsc::channel();
    // The threads end with the program. A browser may open connections before it needs them, so
    // none waits for another.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (tell, challenge) = (tell.clone(), challenge.clone());
            thread::spawn(move || {
                if let Some(answer) = answer(stream, challenge.as_str()) {
                    let _ = tell.send(answer);
                }
            });
        }
    });
    let answer = told.recv_timeout(timeout).map_err(|_| {
        let waited = timeout.as_secs();
        Failure::Local(format!(
            "nobody signed in within {waited} s; what went wrong may stand in the browser"
        ))
    })?;
    answer.map_err(Failure::SignIn)
}

/// What a browser that comes back brings: a code, or why there is none. None when it is not the
/// one that was sent.
fn answer(mut stream: TcpStream, state: &str) -> Option<Result<String, String>> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let length = stream.read(&mut part).ok().filter(|length| *length > 0)?;
        request.extend(part.get(..length)?);
        if request.len() > REQUEST_BYTES_MAX {
            return None;
        }
    }
    let request = String::from_utf8_lossy(&request);
    let brought = brought(request.lines().next().unwrap_or_default(), state);
    let (status, says) = match &brought {
        Some(Ok(_)) => ("200 OK", "Go back to the terminal."),
        Some(Err(_)) => ("200 OK", "You are not signed in; the terminal says why."),
        None => ("404 Not Found", "There is nothing here."),
    };
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>PiCloud</title><p>{says}</p></html>"
    );
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\n\
         Content-Security-Policy: default-src 'none'\r\nCache-Control: no-store\r\n\
         Connection: close\r\n\r\n",
        page.len()
    );
    // That somebody closed the page is no reason to throw the code away.
    let _ = stream.write_all(format!("{head}{page}").as_bytes());
    brought
}

/// What the first line of a request brings.
fn brought(line: &str, state: &str) -> Option<Result<String, String>> {
    let target = line.strip_prefix("GET /?")?;
    let query = target.split(' ').next()?;
    let value = |name: &str| {
        let mut pairs = form_urlencoded::parse(query.as_bytes());
        let found = pairs.find(|(key, _)| key == name);
        found.map(|(_, value)| value.into_owned())
    };
    if value("state")? != state {
        return None;
    }
    match value("error") {
        Some(error) => Some(Err(value("error_description").unwrap_or(error))),
        None => value("code").map(Ok),
    }
}

/// Who calls, and what they may.
#[derive(Deserialize)]
struct Me {
    name: String,
    role: Role,
    /// The role in each app.
    apps: BTreeMap<AppId, AppRole>,
    api_key: Option<KeyGrant>,
}

/// The same, and where that was asked.
#[derive(Serialize)]
struct MeThere<'a> {
    url: &'a str,
    profile: Option<&'a str>,
    me: &'a RawValue,
}

/// Show who calls.
pub(super) fn who_am_i(client: &Client, out: &Output) -> Done {
    if !client.has_token() {
        return Err(Failure::SignIn(format!(
            "nobody is signed in to {}; sign in with: picloud login",
            client.url()
        )));
    }
    let me: Answer<Me> = client.get("/auth/me")?;
    let apps = client.all::<App>("/apps")?;
    let slug = |id: &AppId| {
        let known = apps.iter().find(|app| app.id == *id);
        known.map_or(id.to_string(), |app| app.slug.as_str().to_owned())
    };
    let url = &client.url();
    let profile = client.profile().map(Name::as_str);
    let there = MeThere {
        url,
        profile,
        me: me.raw(),
    };
    out.show_own(&there, || {
        println!("{} on {url}", terminal::line(&me.name));
        let mut rows = Vec::new();
        if let Some(profile) = profile {
            rows.push(("profile", profile.to_owned()));
        }
        if let Some(key) = &me.api_key {
            rows.push(("API key", terminal::line(&key.name).into_owned()));
            let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.as_str()).collect();
            rows.push(("scopes", scopes.join(", ")));
            if let Some(only) = &key.apps {
                let only: Vec<String> = only.iter().map(slug).collect();
                rows.push(("only in", only.join(", ")));
            }
        }
        rows.push(("role", me.role.as_str().to_owned()));
        match me.role {
            Role::Owner | Role::Admin => rows.push(("apps", "every one, as app_admin".to_owned())),
            Role::Member => {
                let apps = me.apps.iter();
                rows.extend(
                    apps.map(|(id, role)| ("app", format!("{} as {}", slug(id), role.as_str()))),
                );
            }
        }
        for (name, value) in rows {
            println!("  {name:<8} {value}");
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_browser_that_was_sent_brings_something() {
        let brought = |line| brought(line, "s");
        let code = |code: &str| Some(Ok(code.to_owned()));
        assert_eq!(brought("GET /?code=c%20d&state=s HTTP/1.1"), code("c d"));
        assert_eq!(brought("GET /?state=s&code=c HTTP/1.1"), code("c"));
        assert_eq!(
            brought("GET /?error=e&error_description=why+not&state=s HTTP/1.1"),
            Some(Err("why not".to_owned()))
        );
        for nothing in [
            "",
            "GET / HTTP/1.1",
            "GET /favicon.ico HTTP/1.1",
            "GET /?state=s HTTP/1.1",
            "GET /?code=c HTTP/1.1",
            "GET /?code=c&state=other HTTP/1.1",
            "POST /?code=c&state=s HTTP/1.1",
        ] {
            assert_eq!(brought(nothing), None, "{nothing}");
        }
    }
}
