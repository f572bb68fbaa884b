//! An OpenID provider, and a browser that signs in at it.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::{Answer, Server};

/// Where a provider sends browsers back to.
const CALLBACK: &str = "/api/v1/auth/oidc/callback";

/// A running provider; dropping it ends it.
pub struct Provider {
    child: Child,
    /// What `oidc_issuer` is set to.
    pub issuer: String,
}

impl Provider {
    /// Start one.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("oidc");
        let node = folder.join("node_modules/.bin/node");
        assert!(
            node.exists(),
            "the provider is not installed: run `cargo xtask test`, or `npm ci` in tests/oidc"
        );
        let mut child = Command::new(node)
            .arg("provider.mjs")
            .current_dir(&folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the provider starts");
        let stdout = child.stdout.take().expect("it was piped");
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let issuer = lines.find(|line| line.starts_with("http://"));
        let issuer = issuer.expect("the provider says where it listens");
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, issuer }
    }

    /// Prepare it, as `oidc/provider.mjs` says.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn prepare(&self, set: &Value) -> Value {
        let answer = send(
            "POST",
            &format!("{}/test", self.issuer),
            &[],
            Some(set.to_string()),
        );
        answer.json()
    }

    /// Send browsers back to this server.
    pub fn serve(&self, server: &Server) {
        self.prepare(
            &serde_json::json!({ "redirect_uris": [format!("{}{CALLBACK}", server.url)] }),
        );
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send(method: &str, url: &str, headers: &[(&str, String)], body: Option<String>) -> Answer {
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .build()
        .new_agent();
    let mut request = http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let request = request.body(body.unwrap_or_default()).expect("a request");
    let (parts, mut body) = agent.run(request).expect("an answer").into_parts();
    let mut bytes = Vec::new();
    body.as_reader().read_to_end(&mut bytes).expect("a body");
    Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        bytes,
    }
}

/// A browser: it keeps cookies and follows redirects.
#[derive(Default, Clone)]
pub struct Browser {
    /// By the origin that set them, and their names.
    cookies: HashMap<(String, String), String>,
}

fn origin(url: &str) -> String {
    url.splitn(4, '/').take(3).collect::<Vec<_>>().join("/")
}

impl Browser {
    /// One step: no redirect is followed.
    pub fn open(&mut self, url: &str, form: Option<&str>) -> Answer {
        let here = origin(url);
        let of_here = self.cookies.iter().filter(|((at, _), _)| *at == here);
        let cookies: Vec<String> = of_here
            .map(|((_, name), value)| format!("{name}={value}"))
            .collect();
        let mut headers = vec![("accept", "text/html".to_owned())];
        if !cookies.is_empty() {
            headers.push(("cookie", cookies.join("; ")));
        }
        let method = if form.is_some() { "POST" } else { "GET" };
        if form.is_some() {
            headers.push((
                "content-type",
                "application/x-www-form-urlencoded".to_owned(),
            ));
        }
        let answer = send(method, url, &headers, form.map(str::to_owned));
        for set in answer.headers.get_all("set-cookie") {
            let set = set.to_str().expect("a cookie");
            let (name, value) = set
                .split(';')
                .next()
                .unwrap_or_default()
                .split_once('=')
                .expect("a cookie");
            self.cookies
                .insert((here.clone(), name.to_owned()), value.to_owned());
        }
        answer
    }

    /// The value of a cookie of a server.
    pub fn cookie(&self, server: &Server, name: &str) -> Option<&str> {
        let key = (server.url.clone(), name.to_owned());
        let value = self.cookies.get(&key).map(String::as_str);
        value.filter(|value| !value.is_empty())
    }

    /// Begin to sign in as somebody with these claims, and go on until the provider sends us
    /// back. Answers the address that it sends us to.
    ///
    /// # Panics
    /// When it does not.
    pub fn until_callback(&mut self, server: &Server, claims: &Value) -> String {
        let begin = format!(
            "{}/api/v1/auth/oidc/login?return_to=/admin/apps",
            server.url
        );
        self.until_callback_from(&begin, claims)
    }

    /// The same, from another beginning.
    ///
    /// # Panics
    /// When it does not.
    pub fn until_callback_from(&mut self, begin: &str, claims: &Value) -> String {
        let mut url = begin.to_owned();
        let mut form = None;
        for _ in 0..20 {
            let answer = self.open(&url, form.take().as_deref());
            if let Some(to) = answer.headers.get("location") {
                let to = to.to_str().expect("an address");
                url = match to.starts_with("http") {
                    true => to.to_owned(),
                    false => format!("{}{to}", origin(&url)),
                };
                if url.contains(CALLBACK) {
                    return url;
                }
                continue;
            }
            let page = answer.text();
            assert_eq!(answer.status, 200, "{url}: {page}");
            let action = page.split("action=\"").nth(1).expect("a form");
            let action = action.split('"').next().unwrap_or_default();
            url = match action.starts_with("http") {
                true => action.to_owned(),
                false => format!("{}{action}", origin(&url)),
            };
            form = Some(match page.contains("name=\"login\"") {
                true => {
                    let people = format!("{}/people", origin(&url));
                    send("POST", &people, &[], Some(claims.to_string()));
                    let name = claims["sub"].as_str().expect("a name");
                    format!("prompt=login&login={name}&password=any")
                }
                false => "prompt=consent".to_owned(),
            });
        }
        panic!("too many steps; the last was {url}")
    }

    /// Sign in as somebody with these claims. Answers what the server says at the end.
    pub fn sign_in(&mut self, server: &Server, claims: &Value) -> Answer {
        let callback = self.until_callback(server, claims);
        self.open(&callback, None)
    }
}
