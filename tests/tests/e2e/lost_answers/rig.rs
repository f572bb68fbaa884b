//! A server behind a proxy that loses answers, an app on it with something for every path that
//! writes, and what is known of it from outside.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use picloud_tests::{Answer, Engine, EventStream, Options, Proxy, Server};
use serde_json::{Value, json};

use super::lasting::{BROKEN, broken_for};

/// How long a call may take before the server counts as hanging. Nothing that is lost here lasts.
pub(super) const CALL: Duration = Duration::from_secs(15);
/// What was accepted has its outcome after one lease and this.
const SETTLED_AFTER_LEASE: Duration = Duration::from_secs(5);
/// How soon the server must take calls again after the one that broke.
const BACK: Duration = Duration::from_secs(10);
pub(super) const LEASE_MS: u64 = 2_000;

/// What went wrong, in words.
pub(super) type Told<T = ()> = Result<T, String>;

/// A node and its way to the database. The node goes first: it is looked at once more when it does.
pub(super) struct Rig {
    pub(super) server: Server,
    pub(super) proxy: Proxy,
    /// What calls were answered with 502: a script failed because of what it called.
    pub(super) failed: Mutex<Vec<String>>,
    lease_ms: u64,
}

fn environment(lease_ms: u64) -> Vec<(&'static str, String)> {
    // Tried for longer than anything is broken here: what is buried before that has its outcome, but
    // not the one that is looked for.
    vec![
        ("PICLOUD_LEASE_MS", lease_ms.to_string()),
        ("PICLOUD_TRIGGER_RETRY_MAX_ATTEMPTS", "100".to_owned()),
        ("PICLOUD_TRIGGER_RETRY_BASE_MS", "100".to_owned()),
        ("PICLOUD_TRIGGER_RETRY_BACKOFF", "constant".to_owned()),
    ]
}

/// What the app's scripts do; each writes down what it was called for.
const SCRIPTS: [(&str, &str); 10] = [
    (
        "count",
        r#"let c = kv::collection(ctx.request.query.c); let n = ctx.request.query.n;
           let known = c.get(n); c.set(n, if known == () { 1 } else { known + 1 }); n"#,
    ),
    (
        "flaky",
        r#"let c = kv::collection("flaky"); let n = ctx.request.query.n; let known = c.get(n);
           c.set(n, if known == () { 1 } else { known + 1 }); if known == () { throw "once" }"#,
    ),
    (
        "slow",
        r#"let c = kv::collection("slow"); let n = ctx.request.query.n;
           sleep(parse_float(ctx.request.query.s)); c.set(n, true);"#,
    ),
    ("doomed", r#"throw "never""#),
    (
        "mourn",
        r#"kv::collection("mourned").set(ctx.event.dead_letter.id, true);"#,
    ),
    (
        "hear",
        r#"let e = ctx.event.kv; let to = kv::collection("heard");
           to.set(`${e.collection}-${e.key}-${ctx.event.op}`, true);"#,
    ),
    (
        "hear-too",
        r#"kv::collection("heard-too").set(ctx.event.kv.key, 1);"#,
    ),
    (
        "append",
        r#"let e = ctx.event.kv; let to = kv::collection("order"); let list = to.get(e.key);
           if list == () { list = []; } list.push(e.value); to.set(e.key, list);"#,
    ),
    (
        "news",
        r#"kv::collection("news").set(`${ctx.event.pubsub.message.n}`, true);"#,
    ),
    (
        "publish",
        r#"pubsub::publish_durable("news", #{ n: ctx.request.query.n })"#,
    ),
];

impl Rig {
    /// A new one, with a database of its own.
    pub(super) fn start() -> Self {
        Self::start_with(LEASE_MS, Options::default())
    }

    /// The same, whose server signs in to Postgres as an ordinary role.
    pub(super) fn ordinary() -> Self {
        let ordinary_role = true;
        Self::start_with(
            LEASE_MS,
            Options {
                ordinary_role,
                ..Options::default()
            },
        )
    }

    pub(super) fn start_with(lease_ms: u64, options: Options) -> Self {
        let proxy = Proxy::start();
        let server = Server::start_with(
            Engine::Postgres,
            Options {
                environment: environment(lease_ms),
                postgres_through: Some(proxy.port),
                ..options
            },
        );
        furnish(&server);
        Self {
            server,
            proxy,
            failed: Mutex::default(),
            lease_ms,
        }
    }

    /// One on SQLite, with its data in this folder, if one is given. Its proxy leads nowhere.
    pub(super) fn on_sqlite(data_dir: Option<PathBuf>) -> Self {
        let options = Options {
            environment: environment(LEASE_MS),
            data_dir,
            ..Options::default()
        };
        let server = Server::start_with(Engine::Sqlite, options);
        furnish(&server);
        Self {
            server,
            proxy: Proxy::to("127.0.0.1:1"),
            failed: Mutex::default(),
            lease_ms: LEASE_MS,
        }
    }

    /// Another node of the same instance, on a way of its own.
    pub(super) fn another(&self) -> Self {
        let proxy = Proxy::start();
        let lease_ms = self.lease_ms;
        let server = self.server.another_node(Options {
            environment: environment(lease_ms),
            postgres_through: Some(proxy.port),
            ..Options::default()
        });
        Self {
            server,
            proxy,
            failed: Mutex::default(),
            lease_ms,
        }
    }

    /// After this, what was accepted has its outcome.
    pub(super) fn settled(&self) -> Duration {
        Duration::from_millis(self.lease_ms) + SETTLED_AFTER_LEASE
    }

    /// What the node is called where leases are, once it has said that it is there.
    pub(super) fn worker(&self) -> Told<String> {
        self.eventually("a node to say that it is there", || {
            let instance = self.ask("/instance")?;
            let mut nodes = instance["nodes"].as_array().into_iter().flatten();
            let this = nodes.find(|node| node["is_this"] == true);
            Ok(this.and_then(|node| node["id"].as_str().map(str::to_owned)))
        })
    }

    /// A call of a route, or of the API as its owner, which must be answered in time.
    pub(super) fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Told<Answer> {
        let body = body.map(Value::to_string);
        self.send(method, path, &[], body.as_deref().map(str::as_bytes))
    }

    pub(super) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Told<Answer> {
        let authorization = format!("Bearer {}", self.server.token);
        let mut all = headers.to_vec();
        if path.starts_with("/api/") {
            all.push(("authorization", &authorization));
        }
        // In the soak a call waits for longer for what is broken for longer.
        let within = CALL + broken_for().saturating_sub(BROKEN);
        let answered = self.server.call_within(within, method, path, &all, body);
        if let Ok(answer) = &answered
            && answer.status == 502
        {
            self.failed.lock().unwrap().push(answer.text());
        }
        answered.map_err(|error| format!("{method} {path} was not answered: {error}"))
    }

    /// The same again and again while the server says that it cannot: what was lost may have been
    /// done, so these statuses are as good as success, too.
    pub(super) fn insist(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        done_before: &[u16],
    ) -> Told<Answer> {
        let begun = Instant::now();
        loop {
            let answer = self.call(method, path, body)?;
            let status = answer.status;
            if status < 300 || done_before.contains(&status) {
                return Ok(answer);
            }
            // Who signs in as often as the walk does is asked to wait.
            let (may_pass, at_most) = match status {
                429 => (true, 2 * BACK),
                _ => (status >= 500, BACK),
            };
            if !may_pass || begun.elapsed() > at_most {
                let text = answer.text();
                return Err(format!("{method} {path} is answered {status}: {text}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the API answers to a question.
    pub(super) fn ask(&self, path: &str) -> Told<Value> {
        let answer = self.insist("GET", &format!("/api/v1{path}"), None, &[404])?;
        Ok(match answer.status {
            404 => Value::Null,
            _ => answer.json(),
        })
    }

    /// The value of a key of the app; null when there is none.
    pub(super) fn kv(&self, collection: &str, key: &str) -> Told<Value> {
        self.ask(&format!("/apps/a/kv/{collection}/{key}"))
    }

    /// Write a value as the owner. Says whether it was taken; if not, it may have been written.
    pub(super) fn put(&self, collection: &str, key: &str, value: &Value) -> Told<bool> {
        let path = format!("/api/v1/apps/a/kv/{collection}/{key}");
        let answer = self.call("PUT", &path, Some(value))?;
        accepted(&answer, 204)
    }

    /// Wait until a question has an answer, as long as anything that was accepted may take.
    pub(super) fn eventually<T>(
        &self,
        what: &str,
        mut look: impl FnMut() -> Told<Option<T>>,
    ) -> Told<T> {
        let begun = Instant::now();
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            if begun.elapsed() > self.settled() {
                return Err(format!("waited in vain for {what}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Wait until the server is ready, as it must be soon.
    pub(super) fn until_ready(&self) -> Told<Duration> {
        let begun = Instant::now();
        loop {
            if self.call("GET", "/readyz", None)?.status == 200 {
                return Ok(begun.elapsed());
            }
            if begun.elapsed() > BACK {
                return Err("it is not ready again".to_owned());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The executions of the app's calls that were recorded as abandoned.
    pub(super) fn abandoned(&self) -> Told<Vec<String>> {
        let mut found = Vec::new();
        let mut cursor = String::new();
        loop {
            let list = format!("/apps/a/abandoned-executions?limit=200{cursor}");
            let page = self.ask(&list)?;
            for item in page["items"].as_array().into_iter().flatten() {
                found.extend(item["execution_id"].as_str().map(str::to_owned));
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(found),
            }
        }
    }
}

/// Whether a call was taken; one that was not must say that it is the server's fault.
pub(super) fn accepted(answer: &Answer, status: u16) -> Told<bool> {
    match answer.status_in_an_outage() {
        taken if taken == status => Ok(true),
        503 => Ok(false),
        // The script failed, because what it called did, or took too long.
        502 | 504 => Ok(false),
        other => Err(format!("answered {other}: {}", answer.text())),
    }
}

/// The app, with something for every path that writes.
fn furnish(server: &Server) {
    let app = server.app("a");
    for (name, source) in SCRIPTS {
        app.script(name, source);
    }
    app.route("count", "GET /sync");
    app.route_with("count", "POST /async", json!({ "dispatch_mode": "async" }));
    app.route_with(
        "count",
        "POST /keyed",
        json!({ "idempotency": { "ttl_s": 600 } }),
    );
    app.route_with("flaky", "POST /flaky", json!({ "dispatch_mode": "async" }));
    app.route_with("slow", "POST /slow", json!({ "dispatch_mode": "async" }));
    app.route("slow", "GET /slow");
    app.route("publish", "POST /publish");
    let once = json!({ "attempts_max": 1 });
    app.trigger(
        "kv",
        json!({ "script": "doomed", "collection": "doomed", "retry": once }),
    );
    app.trigger("dead_letter", json!({ "script": "mourn" }));
    app.trigger("kv", json!({ "script": "hear", "collection": "things" }));
    app.trigger("kv", json!({ "script": "hear", "collection": "twice" }));
    app.trigger("kv", json!({ "script": "hear-too", "collection": "twice" }));
    app.trigger(
        "kv",
        json!({ "script": "hear", "collection": "paused", "name": "paused" }),
    );
    app.trigger(
        "kv",
        json!({ "script": "append", "collection": "ordered", "ordered_by": "key" }),
    );
    app.trigger("pubsub", json!({ "script": "news", "topic": "news" }));
    let opened = server.api(
        "PUT",
        "/apps/a/topics/news",
        Some(json!({ "auth_mode": "public" })),
    );
    assert_eq!(opened.status, 200, "{}", opened.text());
    // Nothing of it works: not even the handler of its dead letters.
    let unlucky = server.app("unlucky");
    unlucky.script("doomed", r#"throw "never""#);
    unlucky.trigger(
        "kv",
        json!({ "script": "doomed", "collection": "doomed", "retry": once }),
    );
    unlucky.trigger("dead_letter", json!({ "script": "doomed", "retry": once }));
    let tiny = server.app("tiny");
    tiny.script("s", "1");
    tiny.route("s", "GET /s");
    tiny.trigger("kv", json!({ "script": "s", "collection": "c" }));
    for n in 0..3 {
        tiny.set("c", &format!("k{n}"), json!(n));
    }
}

/// A listener to the topic, which comes back with the last id when it is cut off; it counts how
/// often it heard each message.
pub(super) struct Listener {
    heard: Arc<Mutex<BTreeMap<String, u64>>>,
    is_over: Arc<AtomicBool>,
}

impl Listener {
    pub(super) fn start(server: &Server) -> Self {
        let heard = Arc::<Mutex<BTreeMap<String, u64>>>::default();
        let is_over = Arc::<AtomicBool>::default();
        let (url, counted, over) = (server.url.clone(), heard.clone(), is_over.clone());
        let (tell, begun) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut last: Option<String> = None;
            while !over.load(Ordering::Relaxed) {
                let headers: Vec<(&str, &str)> =
                    last.iter().map(|id| ("last-event-id", &**id)).collect();
                let stream = EventStream::open(&url, "/realtime/topics/news", &headers);
                let Some(stream) = stream.ok().filter(|stream| stream.status == 200) else {
                    std::thread::sleep(Duration::from_millis(50));
                    continue;
                };
                while !over.load(Ordering::Relaxed) {
                    match stream.next_within(Duration::from_millis(50)) {
                        Ok(None) => {}
                        Ok(Some(event)) => {
                            if event.name == "ready" {
                                let _ = tell.send(());
                            }
                            if event.name == "message" {
                                let id = event.data["id"].as_str().unwrap_or_default().to_owned();
                                *counted.lock().unwrap().entry(id).or_default() += 1;
                            }
                            last = event.id.or(last);
                        }
                        Err(_) => break,
                    }
                }
            }
        });
        begun
            .recv_timeout(Duration::from_secs(30))
            .expect("a stream");
        Self { heard, is_over }
    }

    /// How often it heard a message.
    pub(super) fn heard(&self, id: &str) -> u64 {
        self.heard.lock().unwrap().get(id).copied().unwrap_or(0)
    }

    /// The messages that it heard more than once.
    pub(super) fn twice(&self) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        let twice = heard.iter().filter(|(_, count)| **count > 1);
        twice.map(|(id, _)| id.clone()).collect()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Nobody waits for its thread, which may wait for an answer.
        self.is_over.store(true, Ordering::Relaxed);
    }
}
