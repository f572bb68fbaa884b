//! `picloud deploy`: upload a script and bind it to routes. Deploying the same thing twice
//! changes nothing.

use std::path::PathBuf;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::answer::{Answer, Problem};
use super::client::{Client, encoded};
use super::output::{Failure, Output};
use super::policies::{Policies, PolicyArgs};
use super::{AppArg, Done, input, terminal};
use crate::apps::{App, HostPattern};
use crate::routes::{DispatchMode, MethodPattern, PathPattern, Route};
use crate::scripts::{Kind, Script, ScriptId, ScriptLimits};

/// Upload a script and bind it to routes.
#[derive(clap::Args)]
pub(super) struct Deploy {
    /// A Rhai source, or a WebAssembly component (.wasm)
    file: PathBuf,
    #[command(flatten)]
    app: AppArg,
    /// The script's name; the file's without its ending when left out
    #[arg(long)]
    name: Option<String>,
    /// A route, like 'POST /hello', '/files/{*rest}' or 'GET shop.example.com/'; may be repeated
    #[arg(long = "route", value_name = "ROUTE")]
    routes: Vec<RouteArg>,
    /// The routes answer 202 at once, and the script runs after
    #[arg(long = "async")]
    asynchronous: bool,
    #[command(flatten)]
    policies: PolicyArgs,
    /// Make the app if there is none
    #[arg(long)]
    create_app: bool,
    /// The script's fuel
    #[arg(long)]
    fuel: Option<u64>,
    /// The script's time limit
    #[arg(long)]
    timeout_ms: Option<u64>,
    /// The script's memory
    #[arg(long)]
    memory_bytes: Option<u64>,
}

/// `[METHOD] [HOST]/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RouteArg {
    method: MethodPattern,
    host: Option<HostPattern>,
    path: PathPattern,
}

impl FromStr for RouteArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (method, rest) = match text.split_once(char::is_whitespace) {
            Some((method, rest)) => (method.parse()?, rest.trim()),
            None => (MethodPattern::Any, text),
        };
        let slash = rest
            .find('/')
            .ok_or("a route has a path that begins with `/`, like 'POST /hello'")?;
        let (host, path) = rest.split_at(slash);
        let host = (!host.is_empty()).then(|| host.parse());
        Ok(Self {
            method,
            host: host.transpose()?,
            path: path.parse()?,
        })
    }
}

/// An app, and what it is to those who call.
#[derive(Deserialize)]
struct AppThere {
    #[serde(flatten)]
    app: App,
    is_default: bool,
}

/// A script with its source, where it has one.
#[derive(Deserialize)]
struct ScriptThere {
    #[serde(flatten)]
    script: Script,
    source: Option<String>,
}

/// A script's code and what is sent with it.
#[derive(Serialize)]
struct ScriptBody<'a> {
    #[serde(flatten)]
    code: &'a Code,
    limits: ScriptLimits,
    /// Of a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<Kind>,
    /// The version that this one follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u32>,
}

/// What runs.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Code {
    Source(String),
    WasmBase64(String),
}

/// A new route.
#[derive(Serialize)]
struct NewRoute<'a> {
    script_id: ScriptId,
    method: &'a MethodPattern,
    host: &'a Option<HostPattern>,
    path: &'a PathPattern,
    #[serde(flatten)]
    how: RouteHow,
}

/// How a route is called; what is left out stays as it is.
#[derive(Clone, Serialize)]
struct RouteHow {
    #[serde(skip_serializing_if = "Option::is_none")]
    dispatch_mode: Option<DispatchMode>,
    #[serde(flatten)]
    policies: Policies,
}

impl RouteHow {
    /// What of it is not so yet.
    fn unlike(self, known: &Route) -> Self {
        Self {
            dispatch_mode: self
                .dispatch_mode
                .filter(|mode| *mode != known.dispatch_mode),
            policies: self.policies.unlike(known),
        }
    }

    fn is_nothing(&self) -> bool {
        self.dispatch_mode.is_none() && self.policies.is_nothing()
    }
}

/// What was deployed, for programs.
#[derive(Serialize)]
struct Deployed<'a> {
    script: &'a RawValue,
    script_change: &'static str,
    routes: Vec<DeployedRoute<'a>>,
}

#[derive(Serialize)]
struct DeployedRoute<'a> {
    change: &'static str,
    route: &'a RawValue,
}

impl Deploy {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        // What was mistyped is said before anything is deployed.
        let how = self.how()?;
        let code = self.code()?;
        let stem = self
            .file
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned());
        let name = self.name.clone().or(stem).unwrap_or_default();
        let app = self.find_app(client, out)?;
        let (script, script_change) = self.put_script(client, &name, &code)?;
        out.say(format!(
            "script `{}` {script_change} (version {})",
            terminal::line(&name),
            script.script.version
        ));
        let mut routes = Vec::new();
        if !self.routes.is_empty() {
            let known = client.all::<Route>(&format!("/apps/{}/routes", encoded(&self.app.app)))?;
            for route in &self.routes {
                let (route, change) =
                    self.put_route(client, &known, script.script.id, route, &how)?;
                out.say(format!(
                    "route {} {} {change} ({})",
                    route.method,
                    terminal::line(&route.path.to_string()),
                    route.dispatch_mode.as_str()
                ));
                routes.push((route, change));
            }
        }
        if app.app.hosts.is_empty() && !app.is_default {
            eprintln!(
                "warning: the app `{0}` has no host and is not the default app, so its routes cannot be \
                 reached; add one with: picloud apps update {0} --host NAME",
                self.app.app
            );
        }
        let routes = routes.iter().map(|(route, change)| DeployedRoute {
            change,
            route: route.raw(),
        });
        let deployed = Deployed {
            script: script.raw(),
            script_change,
            routes: routes.collect(),
        };
        out.show_own(&deployed, || {});
        Ok(())
    }

    fn code(&self) -> Result<Code, Failure> {
        let bytes = input::file(&self.file)?;
        if bytes.is_empty() {
            let file = self.file.display();
            return Err(Failure::Local(format!("{file} is empty")));
        }
        match self.file.extension().is_some_and(|ending| ending == "wasm") {
            true => Ok(Code::WasmBase64(STANDARD.encode(bytes))),
            false => input::utf8(&self.file.display().to_string(), bytes).map(Code::Source),
        }
    }

    fn find_app(&self, client: &Client, out: &Output) -> Result<Answer<AppThere>, Failure> {
        match client.get(&format!("/apps/{}", encoded(&self.app.app))) {
            Err(failure) if failure.is_missing() && self.create_app => {
                let app = client.post("/apps", &json!({ "slug": self.app.app }))?;
                out.say(format!("app `{}` created", self.app.app));
                Ok(app)
            }
            Err(Failure::Problem(problem)) if problem.status == 404 => Err(Failure::Problem(
                Box::new(problem.adding("; --create-app makes it")),
            )),
            found => found,
        }
    }

    fn put_script(
        &self,
        client: &Client,
        name: &str,
        code: &Code,
    ) -> Result<(Answer<ScriptThere>, &'static str), Failure> {
        let over = |limits: ScriptLimits| ScriptLimits {
            fuel: self.fuel.or(limits.fuel),
            timeout_ms: self.timeout_ms.or(limits.timeout_ms),
            memory_bytes: self.memory_bytes.or(limits.memory_bytes),
            ..limits
        };
        let app = encoded(&self.app.app);
        let found = format!("/apps/{app}/scripts?name={}", encoded(name));
        let found = client.first::<Script>(&found, 1)?;
        let sent = if let Some(found) = found.first() {
            let path = format!("/scripts/{}", found.id);
            let known: Answer<ScriptThere> = client.get(&path)?;
            let limits = over(known.script.limits);
            let same_code =
                matches!(code, Code::Source(source) if known.source.as_ref() == Some(source));
            if same_code && limits == known.script.limits {
                return Ok((known, "unchanged"));
            }
            let body = ScriptBody {
                code,
                limits,
                name: None,
                kind: None,
                version: Some(known.script.version),
            };
            client.patch(&path, &body).map(|script| (script, "updated"))
        } else {
            let body = ScriptBody {
                code,
                limits: over(ScriptLimits::default()),
                name: Some(name),
                kind: Some(match code {
                    Code::Source(_) => Kind::Rhai,
                    Code::WasmBase64(_) => Kind::Component,
                }),
                version: None,
            };
            let path = format!("/apps/{app}/scripts");
            client.post(&path, &body).map(|script| (script, "created"))
        };
        sent.map_err(|failure| match (failure, code) {
            (Failure::Problem(problem), Code::Source(source))
                if !problem.diagnostics.is_empty() =>
            {
                self.point_at(*problem, source)
            }
            (failure, _) => failure,
        })
    }

    /// Show the lines of the source that do not validate; the problem says no more than that then.
    fn point_at(&self, problem: Problem, source: &str) -> Failure {
        for found in &problem.diagnostics {
            let (line, column) = (found.line.unwrap_or(0), found.column.unwrap_or(1));
            let message = terminal::line(&found.message);
            eprintln!("{}:{line}:{column}: {message}", self.file.display());
            if let Some(text) = source.lines().nth(line.wrapping_sub(1)) {
                let before = text.chars().take(column.saturating_sub(1));
                // A tab is as wide as the terminal has it.
                let before = before.map(|c| if c == '\t' { c } else { ' ' });
                let before: String = before.collect();
                eprintln!("  {}\n  {before}^", terminal::lines(text));
            }
        }
        Failure::Problem(Box::new(
            problem.saying("the script does not compile, so nothing was deployed"),
        ))
    }

    fn how(&self) -> Result<RouteHow, Failure> {
        Ok(RouteHow {
            dispatch_mode: Some(match self.asynchronous {
                true => DispatchMode::Async,
                false => DispatchMode::Sync,
            }),
            policies: self.policies.given()?,
        })
    }

    fn put_route(
        &self,
        client: &Client,
        known: &[Answer<Route>],
        script_id: ScriptId,
        route: &RouteArg,
        how: &RouteHow,
    ) -> Result<(Answer<Route>, &'static str), Failure> {
        let RouteArg { method, host, path } = route;
        let same = |known: &&Answer<Route>| {
            known.method == *method && known.host == *host && known.path == *path
        };
        let known = known.iter().find(same);
        let path_of = |known: &Route| format!("/routes/{}", known.id);
        let known = known.map(|known| client.get_tagged::<Route>(&path_of(known)));
        match known.transpose()? {
            // Of this very script: how it is dispatched, or who may call it, may change.
            Some((known, tag)) if known.script_id == script_id => {
                let changes = how.clone().unlike(&known);
                if changes.is_nothing() {
                    return Ok((known, "unchanged"));
                }
                let changed = client.patch_if(&path_of(&known), &changes, &tag)?;
                Ok((changed, "updated"))
            }
            _ => {
                let body = NewRoute {
                    script_id,
                    method,
                    host,
                    path,
                    how: how.clone(),
                };
                let path = format!("/apps/{}/routes", encoded(&self.app.app));
                client.post(&path, &body).map(|route| (route, "created"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_has_a_method_a_host_and_a_path_of_which_only_the_last_must_be() {
        let parse = |text: &str| text.parse::<RouteArg>();
        let parts = |text: &str| {
            let route = parse(text).unwrap();
            let host = route.host.map(|host| host.to_string());
            (route.method.to_string(), host, route.path.to_string())
        };
        assert_eq!(parts("POST /hello"), ("POST".into(), None, "/hello".into()));
        assert_eq!(
            parts("/files/{*rest}"),
            ("ANY".into(), None, "/files/{*rest}".into())
        );
        assert_eq!(
            parts("get a.b.c/x"),
            ("GET".into(), Some("a.b.c".into()), "/x".into())
        );
        assert_eq!(parts("GET A.B.c/x"), parts("GET a.b.c/x"));
        for bad in ["", "POST", "POST hello", "P@ST /x", "POST /{x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
