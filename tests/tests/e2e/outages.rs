//! What every way in answers while the database is away or cannot be written: that it is not now,
//! and when to come again.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use picloud_tests::{Answer, Engine, Options, Proxy, Server, on_both_engines, wait_for};
use serde_json::{Value, json};

use super::access::table;
use super::files::ReadOnly;
use super::realtime::{open, options};
use super::small_disk::SmallDisk;

on_both_engines!(
    each_way_in_says_when_to_come_again_while_nothing_can_be_written,
    a_sign_in_during_an_outage_is_no_guess,
    an_outage_is_told_of_once,
);

/// How long an answer that says so may take.
const SAID_WITHIN: Duration = Duration::from_secs(10);
/// The same where something has run, whose record is tried to be kept for fifteen seconds.
const SEEN_THROUGH_WITHIN: Duration = Duration::from_secs(20);

/// What is called, as the owner where it is the API and with these headers.
#[derive(Clone)]
struct Way {
    method: &'static str,
    path: String,
    body: Option<Vec<u8>>,
    headers: Vec<(&'static str, &'static str)>,
}

fn way(method: &'static str, path: impl Into<String>, body: Option<Value>) -> Way {
    Way {
        method,
        path: path.into(),
        body: body.map(|body| body.to_string().into_bytes()),
        headers: Vec::new(),
    }
}

impl Way {
    fn call(&self, server: &Server) -> Answer {
        let authorization = format!("Bearer {}", server.token);
        let mut headers = self.headers.clone();
        if self.path.starts_with("/api/") {
            headers.push(("authorization", &authorization));
        }
        server.call(self.method, &self.path, &headers, self.body.as_deref())
    }
}

/// An app with something for every way in that writes what is new.
fn ways_that_add(server: &Server) -> Vec<Way> {
    let app = server.app("a");
    app.script("s", "1");
    app.route("s", "GET /s");
    app.route_with("s", "POST /job", json!({ "dispatch_mode": "async" }));
    let idempotency = json!({ "idempotency": { "ttl_s": 60 } });
    app.route_with("s", "POST /keyed", idempotency);
    app.set("c", "k", json!(1));
    open(&app, "t", json!({ "auth_mode": "public" }));
    let mut keyed = way("POST", "/keyed", None);
    keyed.headers.push(("idempotency-key", "k"));
    let message = json!({ "message": 1 });
    vec![
        way("GET", "/s", None),
        way("POST", "/job", None),
        keyed,
        way("PUT", "/api/v1/apps/a/kv/c/k", Some(json!(2))),
        way("PUT", "/api/v1/apps/a/kv/c/new", Some(json!(2))),
        way("POST", "/api/v1/apps/a/topics/t/messages", Some(message)),
    ]
}

/// What people do, and what is deleted.
fn other_ways_that_write(server: &Server) -> Vec<Way> {
    let script = id_of_the_script(server);
    let script = format!("/api/v1/scripts/{script}");
    let login = json!({ "name": "owner", "password": server.password() });
    let change = json!({ "version": 1, "source": "2" });
    let topic = json!({ "auth_mode": "public" });
    let key = json!({ "name": "k", "scopes": ["log:read"] });
    let secret = json!({ "value": "v" });
    vec![
        way("DELETE", "/api/v1/apps/a/kv/c/k", None),
        way("POST", "/api/v1/apps", Some(json!({ "slug": "b" }))),
        way("PATCH", script, Some(change)),
        way("PUT", "/api/v1/apps/a/topics/u", Some(topic)),
        way("PUT", "/api/v1/apps/a/secrets/s", Some(secret)),
        way("POST", "/api/v1/auth/login", Some(login)),
        way("POST", "/api/v1/auth/keys", Some(key)),
    ]
}

fn id_of_the_script(server: &Server) -> String {
    let list = server.api("GET", "/apps/a/scripts", None).json();
    list["items"][0]["id"].as_str().unwrap().to_owned()
}

fn execute(server: &Server) -> Way {
    let path = format!("/api/v1/scripts/{}/execute", id_of_the_script(server));
    way("POST", path, Some(json!({})))
}

/// What answers without a database: what is the same for all, and that there is no provider.
const NEED_NO_DATABASE: &[&str] = &[
    "GET /auth/oidc",
    "GET /auth/oidc/login",
    "GET /auth/oidc/callback",
    "POST /auth/oidc/session",
    "GET /openapi.json",
    "GET /docs",
    "GET /docs.css",
    "GET /sdk/client.tgz",
];
/// What is no `GET` and writes nothing: there is an owner, and no secret is under another key.
const WRITE_NOTHING: &[&str] = &[
    "POST /setup",
    "POST /apps/{app}/scripts/validate",
    "POST /secrets/rotate",
];
/// What is called by itself.
const TAKES_LONGER: &str = "POST /scripts/{id}/execute";

/// The whole API, as the docs list it, each with what it would take if it could.
struct Api<'s> {
    server: &'s Server,
    /// What begins with this, and is said by an id, has this one.
    ids: Vec<(&'static str, String)>,
    invitation: Value,
    reset: Value,
    export: Vec<u8>,
}

impl<'s> Api<'s> {
    /// Of the app of [`ways_that_add`], with one of everything in it.
    fn of(server: &'s Server) -> Self {
        let app = server.known_app("a");
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let made = |path: &str, body: Value| {
            let made = server.api("POST", path, Some(body));
            assert_eq!(made.status, 201, "{path}: {}", made.text());
            made.json()
        };
        app.script("dies", "throw 1");
        let once = json!({ "script": "dies", "collection": "in", "name": "dies",
                           "retry": { "attempts_max": 1, "base_ms": 1 } });
        let trigger = app.trigger("kv", once);
        app.set("in", "k", json!(1));
        let letter = wait_for("a dead letter", || app.dead_letters("").pop());
        let (user, _) = server.join("ada", "member", json!({ "a": "viewer" }));
        // Of another app, because routes are only on the hosts that an app has.
        made("/apps", json!({ "slug": "hosted", "hosts": ["h.test"] }));
        let secret = json!({ "value": "v" });
        assert_eq!(
            server.api("PUT", "/apps/a/secrets/S", Some(secret)).status,
            204
        );
        let key = made(
            "/auth/keys",
            json!({ "name": "kept", "scopes": ["log:read"] }),
        );
        let invitation = made("/invitations", json!({ "role": "member" }));
        let reset = server.api("POST", &format!("/users/{user}/reset-link"), None);
        let reset = reset.json()["token"].clone();
        let login = json!({ "name": "owner", "password": server.password() });
        assert_eq!(server.post("/api/v1/auth/login", &login).status, 200);
        let sessions = server.api("GET", "/auth/sessions", None).json();
        let mut sessions = sessions["items"].as_array().unwrap().iter();
        let session = sessions.find(|one| one["current"] == false).unwrap();
        let ids = vec![
            ("/auth/sessions", text(&session["id"])),
            ("/auth/keys", text(&key["id"])),
            ("/users", user),
            ("/invitations", text(&invitation["id"])),
            ("/scripts", id_of_the_script(server)),
            ("/routes", text(&app.route("s", "GET /more")["id"])),
            ("/triggers", text(&trigger["id"])),
            ("/executions", text(&app.last_execution()["id"])),
            ("/dead-letters", text(&letter["id"])),
        ];
        let export = server.api("GET", "/apps/a/export", None).bytes;
        let invitation = invitation["token"].clone();
        Self {
            server,
            ids,
            invitation,
            reset,
            export,
        }
    }

    fn body(&self, endpoint: &str) -> Option<Value> {
        let password = self.server.password();
        let owner = json!({ "name": "owner", "password": password });
        let trigger = json!({ "script": "s", "kind": "kv", "collection": "c", "topic": "t" });
        let trigger = |taken: &[&str]| {
            let members = trigger.as_object().unwrap().clone().into_iter();
            members
                .filter(|(name, _)| taken.contains(&&**name))
                .collect::<Value>()
        };
        Some(match endpoint {
            "POST /setup" => json!({ "token": "t", "name": "eve", "password": password }),
            "POST /auth/login" => owner,
            "POST /auth/password" => json!({ "current": password, "password": "another long one" }),
            "POST /auth/join" => {
                json!({ "token": self.invitation, "name": "eve", "password": password })
            }
            "POST /auth/reset" => json!({ "token": self.reset, "password": "another long one" }),
            "POST /auth/keys" => json!({ "name": "new", "scopes": ["log:read"] }),
            "PATCH /users/{id}" => json!({ "role": "admin" }),
            "POST /invitations" => json!({ "role": "member" }),
            "PUT /apps/{app}/members/{user}" => json!({ "role": "editor" }),
            "POST /apps" => json!({ "slug": "new" }),
            "PATCH /apps/{app}" => json!({ "name": "new" }),
            "POST /apps/{app}/domains" => json!({ "host": "new.test" }),
            "POST /apps/{app}/scripts" => json!({ "name": "new", "source": "1" }),
            "POST /apps/{app}/scripts/validate" => json!({ "source": "1" }),
            "PATCH /scripts/{id}" => json!({ "version": 1, "source": "2" }),
            "POST /apps/{app}/routes" => json!({ "script": "s", "path": "/new" }),
            "PATCH /routes/{id}" => json!({ "path": "/new" }),
            "PUT /apps/{app}/kv/{collection}/{key}" | "PUT /apps/{app}/kv-value" => json!(3),
            "POST /apps/{app}/triggers" => trigger(&["script", "kind", "collection"]),
            "POST /apps/{app}/triggers/kv" => trigger(&["script", "collection"]),
            "POST /apps/{app}/triggers/dead_letter" => trigger(&["script"]),
            "POST /apps/{app}/triggers/pubsub" => trigger(&["script", "topic"]),
            "PATCH /triggers/{id}" => json!({ "name": "new" }),
            "POST /dead-letters/{id}/replay" | "POST /apps/{app}/subscriber-keys/rotate" => {
                json!({})
            }
            "POST /dead-letters/{id}/resolve" => json!({ "reason": "ignored" }),
            "POST /apps/{app}/dead-letters/replay" => json!({ "all": true }),
            "POST /apps/{app}/dead-letters/resolve" => json!({ "all": true, "reason": "ignored" }),
            "PUT /apps/{app}/secrets/{name}" => json!({ "value": "w" }),
            "PUT /apps/{app}/topics/{topic}" => json!({ "auth_mode": "token" }),
            "POST /apps/{app}/topics/{topic}/messages" => json!({ "message": 1 }),
            _ => return None,
        })
    }

    fn way(&self, endpoint: &str) -> Way {
        let (method, template) = endpoint.split_once(' ').unwrap();
        let id = self
            .ids
            .iter()
            .find(|(begin, _)| template.starts_with(begin));
        let app = if template.contains("/domains") {
            "hosted"
        } else {
            "a"
        };
        let path = template
            .replace("{id}", id.map_or("", |(_, id)| id))
            .replace("{app}", app)
            .replace("{user}", "ada")
            .replace("{host}", "h.test")
            .replace("{version}", "1")
            .replace("{collection}", "c")
            .replace("{key}", "k")
            .replace("{name}", "S")
            .replace("{topic}", "t");
        let query = match template.rsplit('/').next().unwrap_or_default() {
            "kv-value" => "?collection=c&key=k",
            "kv-entries" => "?collection=c",
            "match" => "?path=/s",
            "imports" => "?slug=imported",
            _ => "",
        };
        let methods = ["GET", "POST", "PUT", "PATCH", "DELETE"];
        let method = methods.into_iter().find(|known| *known == method).unwrap();
        // A stream that begins does not end; without its body it does.
        let method = if template.ends_with("/events") {
            "HEAD"
        } else {
            method
        };
        let mut way = way(method, format!("/api/v1{path}{query}"), self.body(endpoint));
        if template == "/imports" {
            way.body = Some(self.export.clone());
            way.headers.push(("content-type", "application/zip"));
        }
        way
    }

    /// All that need the database, or those of them that write.
    fn ways(&self, only_what_writes: bool) -> Vec<Way> {
        let endpoints = table("endpoints").into_iter().map(|row| row[0].clone());
        let ways = endpoints.filter(|endpoint| {
            let endpoint = endpoint.as_str();
            let writes = !endpoint.starts_with("GET ") && !WRITE_NOTHING.contains(&endpoint);
            let is_asked = writes || !only_what_writes;
            is_asked && endpoint != TAKES_LONGER && !NEED_NO_DATABASE.contains(&endpoint)
        });
        let mut ways: Vec<Way> = ways.map(|endpoint| self.way(&endpoint)).collect();
        let wasm = STANDARD.encode(include_bytes!("../../fixtures/function-v1.wasm"));
        let upload = json!({ "name": "component", "kind": "component", "wasm_base64": wasm });
        ways.push(way("POST", "/api/v1/apps/a/scripts", Some(upload)));
        let least = if only_what_writes { 45 } else { 90 };
        assert!(ways.len() >= least, "{}", ways.len());
        ways
    }
}

fn ways_that_only_read() -> Vec<Way> {
    let paths = [
        "kv/c",
        "kv/c/k",
        "executions",
        "dead-letters",
        "abandoned-executions",
        "export",
    ];
    let of_app = paths.map(|path| way("GET", format!("/api/v1/apps/a/{path}"), None));
    let of_instance = ["/api/v1/audit", "/api/v1/users"].map(|path| way("GET", path, None));
    of_app.into_iter().chain(of_instance).collect()
}

/// Call each, and see that it says when to come again.
fn not_now(server: &Server, within: Duration, ways: &[Way]) {
    let mut odd = Vec::new();
    for way in ways {
        let began = Instant::now();
        let answer = way.call(server);
        let after = began.elapsed();
        if answer.status_in_an_outage() != 503 || after > within {
            let (method, path, status) = (way.method, &way.path, answer.status);
            let text = answer.text();
            odd.push(format!("{method} {path}: {status} after {after:?}: {text}"));
        }
    }
    assert!(odd.is_empty(), "{}", odd.join("\n"));
}

fn until_ready_is(server: &Server, status: u16) {
    wait_for("readiness to change", || {
        (server.get("/readyz").status == status).then_some(())
    });
}

fn each_way_in_says_when_to_come_again_while_nothing_can_be_written(engine: Engine) {
    let server = Server::start_with(engine, options(&[]));
    let mut ways = ways_that_add(&server);
    ways.extend(other_ways_that_write(&server));
    let execute = execute(&server);
    let api = Api::of(&server).ways(true);
    let outage = Outage::begin(&server, engine);
    // Before it is known, and after.
    not_now(&server, SAID_WITHIN, &ways);
    until_ready_is(&server, 503);
    not_now(&server, SAID_WITHIN, &ways);
    not_now(&server, SAID_WITHIN, &api);
    not_now(&server, SEEN_THROUGH_WITHIN, &[execute]);
    drop(outage);
    until_ready_is(&server, 200);
}

/// A database that takes no writes, until this is dropped.
enum Outage<'s> {
    Files(#[expect(dead_code, reason = "its drop is what counts")] ReadOnly),
    Server(&'s Server),
}

impl<'s> Outage<'s> {
    fn begin(server: &'s Server, engine: Engine) -> Self {
        match engine {
            Engine::Sqlite => Self::Files(ReadOnly::make(server)),
            Engine::Postgres => {
                server.make_database_read_only(true);
                Self::Server(server)
            }
        }
    }
}

impl Drop for Outage<'_> {
    fn drop(&mut self) {
        if let Self::Server(server) = self {
            server.make_database_read_only(false);
        }
    }
}

/// Nobody looked whether the password was right.
fn a_sign_in_during_an_outage_is_no_guess(engine: Engine) {
    /// More than one address may try at one name at once.
    const TRIES: usize = 15;
    let server = Server::start(engine);
    let login = json!({ "name": "owner", "password": server.password() });
    let log_in = || server.post("/api/v1/auth/login", &login);
    let outage = Outage::begin(&server, engine);
    until_ready_is(&server, 503);
    for _ in 0..TRIES {
        let answer = log_in();
        assert_eq!(answer.status_in_an_outage(), 503, "{}", answer.text());
    }
    drop(outage);
    until_ready_is(&server, 200);
    let answer = log_in();
    assert_eq!(answer.status, 200, "{}", answer.text());
    // What is wrong is a guess as ever.
    let wrong = json!({ "name": "owner", "password": "another long one" });
    let refused =
        (0..2 * TRIES).filter(|_| server.post("/api/v1/auth/login", &wrong).status == 429);
    assert!(refused.count() > 0, "nobody slows a guess down");
}

/// Not once for each call and each change that is refused: when it begins, and, with their number, when
/// it is over.
fn an_outage_is_told_of_once(engine: Engine) {
    const CALLS: usize = 10;
    let server = Server::start(engine);
    let app = server.app("a");
    app.script("s", "1");
    app.route_with("s", "POST /job", json!({ "dispatch_mode": "async" }));
    let outage = Outage::begin(&server, engine);
    until_ready_is(&server, 503);
    let before = server.log().len();
    let calls = [
        way("POST", "/job", None),
        way("PUT", "/api/v1/apps/a/kv/c/k", Some(json!(2))),
    ];
    (0..CALLS).for_each(|_| not_now(&server, SAID_WITHIN, &calls));
    drop(outage);
    let log = wait_for("the end of an outage in the log", || {
        let log = server.log()[before..].to_owned();
        let over = ["requests that the database", "entries of the audit log"];
        let is_over = |what: &&str| log.contains(&format!("over: {what}"));
        over.iter().all(is_over).then_some(log)
    });
    for said in [
        "picloud::http::problem: the database is unavailable",
        "picloud::audit: the audit log could not be written",
    ] {
        assert_eq!(log.matches(said).count(), 1, "{said}: {log}");
    }
    let counted = log.lines().find(|line| line.contains("over: requests"));
    let counted = counted.unwrap_or_default();
    assert!(
        counted.contains(&format!("count={}", 2 * CALLS)),
        "{counted}"
    );
}

#[test]
fn each_way_in_says_when_to_come_again_while_the_database_is_away() {
    let proxy = Proxy::start();
    let options = Options {
        postgres_through: Some(proxy.port),
        ..options(&[])
    };
    let server = Server::start_with(Engine::Postgres, options);
    let mut ways = ways_that_add(&server);
    ways.extend(other_ways_that_write(&server));
    ways.extend(ways_that_only_read());
    ways.push(execute(&server));
    let api = Api::of(&server).ways(false);
    proxy.cut();
    not_now(&server, SAID_WITHIN, &ways);
    until_ready_is(&server, 503);
    not_now(&server, SAID_WITHIN, &ways);
    not_now(&server, SAID_WITHIN, &api);
    proxy.mend();
    until_ready_is(&server, 200);
}

#[test]
fn each_way_in_says_when_to_come_again_on_a_full_disk() {
    let disk = SmallDisk::mount();
    let options = Options {
        data_dir: Some(disk.path().join("data")),
        ..Options::default()
    };
    let server = Server::start_with(Engine::Sqlite, options);
    let ways = ways_that_add(&server);
    let mut others = other_ways_that_write(&server);
    others.push(execute(&server));
    disk.leave(0);
    until_ready_is(&server, 503);
    not_now(&server, SAID_WITHIN, &ways);
    for way in others {
        // Small ones find room in the log that there is.
        let answer = way.call(&server);
        let status = answer.status_in_an_outage();
        let (method, path, text) = (way.method, way.path, answer.text());
        assert!(
            status < 300 || status == 503,
            "{method} {path}: {status}: {text}"
        );
    }
    not_now(&server, SAID_WITHIN, &ways);
    disk.empty();
    until_ready_is(&server, 200);
}
