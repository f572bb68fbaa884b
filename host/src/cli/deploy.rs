//! `picloud deploy`: upload a script and bind it to routes. Deploying the same thing twice
//! changes nothing.

use std::path::PathBuf;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::client::{Client, encoded};
use super::cors::CorsArgs;
use super::output::{Failure, Output};
use super::{AppArg, Done};
use crate::routes::{MethodPattern, PathPattern};

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
    cors: CorsArgs,
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
    host: Option<String>,
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
        let host = (!host.is_empty()).then(|| host.to_owned());
        Ok(Self {
            method,
            host,
            path: path.parse()?,
        })
    }
}

impl Deploy {
    pub(super) fn run(self, client: &Client, out: &Output) -> Done {
        let bytes = std::fs::read(&self.file)
            .map_err(|error| Failure::Usage(format!("{}: {error}", self.file.display())))?;
        let stem = self
            .file
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned());
        let name = self.name.clone().or(stem).unwrap_or_default();
        let app = self.find_app(client, out)?;
        let (script, script_change) = self.put_script(client, &name, &bytes)?;
        out.say(format!(
            "script `{name}` {script_change} (version {})",
            script["version"]
        ));
        let known = client.all(&format!("/apps/{}/routes", encoded(&self.app.app)))?;
        let mut routes = Vec::new();
        for route in &self.routes {
            let (route, change) = self.put_route(client, &known, &script, route)?;
            let (method, path) = (&route["method"], &route["path"]);
            out.say(format!(
                "route {} {} {change} ({})",
                method.as_str().unwrap_or_default(),
                path.as_str().unwrap_or_default(),
                route["dispatch_mode"].as_str().unwrap_or_default()
            ));
            routes.push(json!({ "change": change, "route": route }));
        }
        let hostless = app["hosts"].as_array().is_some_and(Vec::is_empty);
        if hostless && app["is_default"] == false {
            eprintln!(
                "warning: the app `{0}` has no host and is not the default app, so its routes cannot be \
                 reached; add one with: picloud apps update {0} --host NAME",
                self.app.app
            );
        }
        out.show(
            &json!({ "script": script, "script_change": script_change, "routes": routes }),
            |_| {},
        );
        Ok(())
    }

    fn find_app(&self, client: &Client, out: &Output) -> Result<Value, Failure> {
        match client.get(&format!("/apps/{}", encoded(&self.app.app))) {
            Err(Failure::Problem(problem)) if problem["status"] == 404 && self.create_app => {
                let app = client.post("/apps", &json!({ "slug": self.app.app }))?;
                out.say(format!("app `{}` created", self.app.app));
                Ok(app)
            }
            Err(Failure::Problem(problem)) if problem["status"] == 404 => {
                let mut problem = problem;
                let detail = problem["detail"].as_str().unwrap_or_default();
                problem["detail"] = format!("{detail}; --create-app makes it").into();
                Err(Failure::Problem(problem))
            }
            found => found,
        }
    }

    fn put_script(
        &self,
        client: &Client,
        name: &str,
        bytes: &[u8],
    ) -> Result<(Value, &'static str), Failure> {
        let component = self.file.extension().is_some_and(|ending| ending == "wasm");
        let mut code = Map::new();
        if component {
            code.insert("wasm_base64".into(), STANDARD.encode(bytes).into());
        } else {
            let source = String::from_utf8(bytes.to_vec())
                .map_err(|_| Failure::Usage(format!("{} is not UTF-8", self.file.display())))?;
            code.insert("source".into(), source.into());
        }
        let given = [
            ("fuel", self.fuel),
            ("timeout_ms", self.timeout_ms),
            ("memory_bytes", self.memory_bytes),
        ];
        let given: Map<String, Value> = given
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.into())))
            .collect();
        let app = encoded(&self.app.app);
        let found = client.get(&format!("/apps/{app}/scripts?name={}", encoded(name)))?;
        let sent = if let Some(id) = found["items"][0]["id"].as_str() {
            let known = client.get(&format!("/scripts/{id}"))?;
            let mut limits = known["limits"].clone();
            for (name, value) in &given {
                limits[name] = value.clone();
            }
            let same_code = !component && known["source"] == code["source"];
            if same_code && limits == known["limits"] {
                return Ok((known, "unchanged"));
            }
            let mut body = code;
            body.insert("version".into(), known["version"].clone());
            body.insert("limits".into(), limits);
            client
                .patch(&format!("/scripts/{id}"), &body.into())
                .map(|script| (script, "updated"))
        } else {
            let mut body = code;
            body.insert("name".into(), name.into());
            body.insert(
                "kind".into(),
                if component { "component" } else { "rhai" }.into(),
            );
            body.insert("limits".into(), given.into());
            let path = format!("/apps/{app}/scripts");
            client
                .post(&path, &body.into())
                .map(|script| (script, "created"))
        };
        sent.inspect_err(|failure| self.point_at(failure, bytes))
    }

    /// Show the lines of the source that do not validate.
    fn point_at(&self, failure: &Failure, source: &[u8]) {
        let Failure::Problem(problem) = failure else {
            return;
        };
        let source = String::from_utf8_lossy(source);
        for diagnostic in problem["diagnostics"].as_array().into_iter().flatten() {
            let number = |key: &str| {
                diagnostic[key]
                    .as_u64()
                    .and_then(|n| usize::try_from(n).ok())
            };
            let (line, column) = (number("line").unwrap_or(0), number("column").unwrap_or(1));
            let message = diagnostic["message"].as_str().unwrap_or_default();
            eprintln!("{}:{line}:{column}: {message}", self.file.display());
            if let Some(text) = source.lines().nth(line.wrapping_sub(1)) {
                eprintln!("  {text}\n  {}^", " ".repeat(column.saturating_sub(1)));
            }
        }
    }

    fn put_route(
        &self,
        client: &Client,
        known: &[Value],
        script: &Value,
        route: &RouteArg,
    ) -> Result<(Value, &'static str), Failure> {
        let mode = if self.asynchronous { "async" } else { "sync" };
        let mut body = json!({
            "script_id": script["id"],
            "method": route.method,
            "host": route.host,
            "path": route.path,
            "dispatch_mode": mode,
        });
        if let Some(cors) = self.cors.given()? {
            body["cors"] = cors;
        }
        let same = |known: &&Value| {
            ["method", "host", "path"]
                .iter()
                .all(|field| known[*field] == body[*field])
        };
        let path_of =
            |known: &Value| format!("/routes/{}", known["id"].as_str().unwrap_or_default());
        let known = known.iter().find(same);
        let known = known.map(|known| client.get_tagged(&path_of(known)));
        match known.transpose()? {
            // Of this very script: how it is dispatched, or who may call it, may change.
            Some((known, tag)) if known["script_id"] == script["id"] => {
                let given = ["dispatch_mode", "cors"].into_iter();
                let given = given.filter_map(|field| Some((field, body.get(field)?)));
                let changes: Map<String, Value> = given
                    .filter(|(field, value)| known[*field] != **value)
                    .map(|(field, value)| (field.to_owned(), value.clone()))
                    .collect();
                if changes.is_empty() {
                    return Ok((known, "unchanged"));
                }
                let changed = client.patch_if(&path_of(&known), &changes.into(), &tag)?;
                Ok((changed, "updated"))
            }
            _ => {
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
            (route.method.to_string(), route.host, route.path.to_string())
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
        for bad in ["", "POST", "POST hello", "P@ST /x", "POST /{x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
