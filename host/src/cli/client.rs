//! Talking to a server, and remembering which.

use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::output::{Failure, Output};

const DEFAULT_URL: &str = "http://127.0.0.1:8080";
/// Longer than any script may run by default.
const TIMEOUT: Duration = Duration::from_secs(330);

/// What is remembered of a sign-in.
#[derive(Serialize, Deserialize)]
struct Credentials {
    url: String,
    token: String,
    user: String,
}

impl Credentials {
    fn path() -> Option<PathBuf> {
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
        let folder = std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(home)?;
        Some(folder.join("picloud").join("credentials.json"))
    }

    fn load() -> Option<Self> {
        serde_json::from_slice(&std::fs::read(Self::path()?).ok()?).ok()
    }

    fn save(&self) -> Result<(), Failure> {
        let path = Self::path().ok_or_else(|| {
            Failure::Local(
                "neither XDG_CONFIG_HOME nor HOME is set: nowhere to keep the token".into(),
            )
        })?;
        let failed = |error: std::io::Error| {
            Failure::Local(format!("cannot write {}: {error}", path.display()))
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let mut options = std::fs::File::options();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        serde_json::to_writer(&mut file, self).map_err(|error| failed(error.into()))
    }

    fn forget() -> Result<(), Failure> {
        match Self::path().map(std::fs::remove_file) {
            Some(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// A server and who talks to it.
pub(super) struct Client {
    agent: ureq::Agent,
    url: String,
    token: Option<String>,
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .build()
        .into()
}

impl Client {
    /// The server at `url`, or the one of the last sign-in.
    pub(super) fn new(url: Option<String>, token: Option<String>) -> Result<Self, Failure> {
        // A variable that is set to nothing is not set.
        let (url, token) = (
            url.filter(|url| !url.is_empty()),
            token.filter(|token| !token.is_empty()),
        );
        let saved = Credentials::load();
        // A remembered token goes to the server that gave it, and to no other.
        let token = token.or_else(|| {
            let saved = saved.as_ref()?;
            let same = url
                .as_ref()
                .is_none_or(|url| url.trim_end_matches('/') == saved.url);
            same.then(|| saved.token.clone())
        });
        let url = url
            .or(saved.map(|saved| saved.url))
            .unwrap_or_else(|| DEFAULT_URL.to_owned());
        Ok(Self {
            agent: agent(),
            url: url.trim_end_matches('/').to_owned(),
            token,
        })
    }

    /// Nobody yet, at `url`.
    pub(super) fn nobody(url: Option<&str>) -> Self {
        let url = url.filter(|url| !url.is_empty());
        Self {
            agent: agent(),
            url: url.unwrap_or(DEFAULT_URL).trim_end_matches('/').to_owned(),
            token: None,
        }
    }

    /// Where it is.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Keep a session that began.
    pub(super) fn remember(&self, session: &Value, out: &Output) -> Result<(), Failure> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let credentials = Credentials {
            url: self.url.clone(),
            token: text(&session["token"]),
            user: text(&session["user"]["name"]),
        };
        credentials.save()?;
        let shown = json!({ "url": self.url, "user": session["user"],
                            "expires_at": session["expires_at"] });
        out.show(&shown, |_| {
            println!("Signed in to {} as {}.", self.url, credentials.user);
        });
        Ok(())
    }

    pub(super) fn get(&self, path: &str) -> Result<Value, Failure> {
        self.call("GET", path, None)
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call("POST", path, Some(body.to_string()))
    }

    pub(super) fn patch(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call("PATCH", path, Some(body.to_string()))
    }

    pub(super) fn put_text(&self, path: &str, body: String) -> Result<Value, Failure> {
        self.call("PUT", path, Some(body))
    }

    pub(super) fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.call("DELETE", path, None)
    }

    /// Every item of a list, page after page.
    pub(super) fn all(&self, path: &str) -> Result<Vec<Value>, Failure> {
        self.first(path, usize::MAX)
    }

    /// The first `most` items of a list.
    pub(super) fn first(&self, path: &str, most: usize) -> Result<Vec<Value>, Failure> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let joint = if path.contains('?') { '&' } else { '?' };
            let mut page = match &cursor {
                None => self.get(&format!("{path}{joint}limit=200"))?,
                Some(cursor) => self.get(&format!(
                    "{path}{joint}limit=200&cursor={}",
                    encoded(cursor)
                ))?,
            };
            if let Some(Value::Array(more)) = page.get_mut("items").map(Value::take) {
                items.extend(more);
            }
            match page["next_cursor"].as_str() {
                Some(next) if items.len() < most => cursor = Some(next.to_owned()),
                _ => {
                    items.truncate(most);
                    return Ok(items);
                }
            }
        }
    }

    /// Write the body of an answer to `to`, however long that takes.
    pub(super) fn download(&self, path: &str, to: &mut dyn Write) -> Result<(), Failure> {
        let response = self.ask("GET", path, None, None, None)?;
        if response.status().as_u16() >= 400 {
            return read(response).map(|_| ());
        }
        let mut body = response.into_body();
        let copied = std::io::copy(&mut body.as_reader(), to);
        copied
            .map(|_| ())
            .map_err(|error| Failure::Unreachable(format!("the answer broke off: {error}")))
    }

    /// Send a file, however long that takes.
    pub(super) fn upload(&self, path: &str, file: Vec<u8>) -> Result<Value, Failure> {
        read(self.ask("POST", path, Some(("application/zip", file)), None, None)?)
    }

    /// What is there, with its ETag: for [`Self::patch_if`].
    pub(super) fn get_tagged(&self, path: &str) -> Result<(Value, String), Failure> {
        let response = self.ask("GET", path, None, Some(TIMEOUT), None)?;
        let tag = response.headers().get(http::header::ETAG);
        let tag = tag.and_then(|tag| tag.to_str().ok()).unwrap_or("*");
        let tag = tag.to_owned();
        Ok((read(response)?, tag))
    }

    /// Change what was read with this ETag, unless somebody else was faster.
    pub(super) fn patch_if(&self, path: &str, body: &Value, tag: &str) -> Result<Value, Failure> {
        let body = ("application/json", body.to_string().into_bytes());
        read(self.ask("PATCH", path, Some(body), Some(TIMEOUT), Some(tag))?)
    }

    fn call(&self, method: &str, path: &str, body: Option<String>) -> Result<Value, Failure> {
        let body = body.map(|text| ("application/json", text.into_bytes()));
        read(self.ask(method, path, body, Some(TIMEOUT), None)?)
    }

    /// Send a request; answers as soon as the head of the answer is there.
    fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, Vec<u8>)>,
        timeout: Option<Duration>,
        if_match: Option<&str>,
    ) -> Result<http::Response<ureq::Body>, Failure> {
        if !self.url.starts_with("http://") && !self.url.starts_with("https://") {
            let detail = "is not the URL of a server; write it like https://picloud.example.com";
            return Err(Failure::Usage(format!("`{}` {detail}", self.url)));
        }
        let url = format!("{}/api/v1{path}", self.url);
        let mut request = http::Request::builder().method(method).uri(&url);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(tag) = if_match {
            request = request.header("if-match", tag);
        }
        if let Some((kind, _)) = &body {
            request = request.header("content-type", *kind);
        }
        let request = request
            .body(body.map(|(_, bytes)| bytes).unwrap_or_default())
            .map_err(|error| Failure::Usage(format!("{url} is no URL: {error}")))?;
        let request = self.agent.configure_request(request);
        let request = request.timeout_global(timeout).build();
        self.agent.run(request).map_err(|error| {
            Failure::Unreachable(format!(
                "{} cannot be reached ({error}); is the server running? `picloud serve` starts one",
                self.url
            ))
        })
    }

    pub(super) fn log_out(&self, out: &Output) -> Result<(), Failure> {
        let ended = self.call("POST", "/auth/logout", None);
        Credentials::forget()?;
        match ended {
            Ok(_) => {}
            // The token is dead already.
            Err(Failure::Problem(problem)) if problem["status"] == 401 => {}
            Err(failure) => return Err(failure),
        }
        out.say("Signed out.");
        Ok(())
    }
}

/// The body of an answer, or the problem that it is.
fn read(response: http::Response<ureq::Body>) -> Result<Value, Failure> {
    let status = response.status().as_u16();
    let text = response
        .into_body()
        .with_config()
        .limit(256 * 1024 * 1024)
        .read_to_string()
        .map_err(|error| Failure::Unreachable(format!("the answer broke off: {error}")))?;
    let value: Value = match text.is_empty() {
        true => Value::Null,
        false => serde_json::from_str(&text).unwrap_or(Value::String(text)),
    };
    if status >= 400 {
        let bare = json!({ "status": status, "title": format!("the server answered {status}") });
        return Err(Failure::Problem(if value["status"].is_null() {
            bare
        } else {
            value
        }));
    }
    Ok(value)
}

/// A part of a path or a query.
pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// A password from standard input, or asked for on the terminal.
pub(super) fn password(from_stdin: bool, ask: &str) -> Result<String, Failure> {
    if from_stdin {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text.trim_end_matches(['\r', '\n']).to_owned());
    }
    if !std::io::stdin().is_terminal() {
        let detail = "no terminal to ask on; say that standard input has it (see --help)";
        return Err(Failure::Usage(detail.into()));
    }
    eprint!("{ask}");
    std::io::stderr().flush()?;
    Ok(rpassword::read_password()?)
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
    pub(super) fn run(self, url: Option<&str>, out: &Output) -> Result<(), Failure> {
        let client = Client::nobody(url);
        if client.get("/setup")?["has_owner"] == true {
            let detail = "this instance has an owner already; sign in with: picloud login";
            return Err(Failure::Usage(detail.into()));
        }
        let ask = format!("New password of {} on {}: ", self.name, client.url);
        let password = password(self.password_stdin, &ask)?;
        let body = json!({ "token": self.setup_token, "name": self.name, "password": password });
        let session = client.post("/setup", &body)?;
        client.remember(&session, out)
    }
}
