//! A server, people and apps to take authority away from.

use std::cell::Cell;

use picloud_tests::{Answer, Engine, EventStream, Options, Server};
use serde_json::{Value, json};

use crate::realtime::options;

pub(super) const PASSWORD: &str = "a good long password";
/// All that a role in an app can do.
pub(super) const APP_SCOPES: [&str; 6] = [
    "script:read",
    "script:write",
    "route:write",
    "domain:manage",
    "app:admin",
    "log:read",
];
pub(super) const TOPICS: [(&str, &str); 2] = [("members", "session"), ("tokens", "token")];

pub(super) fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

/// A server with a provider's name (which is never asked), and what was counted.
pub(super) struct Rig {
    pub(super) server: Server,
    pub(super) made: Cell<u32>,
    pub(super) cells: Cell<u32>,
}

/// Somebody with a name, an id and a first session.
pub(super) struct Somebody {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) token: String,
}

/// An app with a host, two topics, a script that goes on until it is told to end, and its execution.
pub(super) struct Place {
    pub(super) slug: String,
    pub(super) host: String,
    pub(super) scripts: [String; 2],
    pub(super) execution: String,
}

/// How a request shows who sends it.
#[derive(Clone)]
pub(super) enum Credential {
    Bearer(String),
    Cookie { cookie: String, csrf: String },
}

impl Credential {
    pub(super) fn headers(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Bearer(token) => vec![("authorization", format!("Bearer {token}"))],
            Self::Cookie { cookie, csrf } => vec![
                ("cookie", cookie.clone()),
                ("x-csrf-token", csrf.clone()),
                ("sec-fetch-site", "same-origin".to_owned()),
            ],
        }
    }
}

impl Rig {
    pub(super) fn start(engine: Engine) -> Self {
        let mut given: Options = options(&[
            ("PICLOUD_TRUSTED_PROXIES", "127.0.0.1"),
            ("PICLOUD_OIDC_ISSUER", "http://127.0.0.1:9"),
            ("PICLOUD_OIDC_CLIENT_ID", "picloud"),
        ]);
        given
            .environment
            .push(("PICLOUD_STREAMS_PER_USER_MAX", "1000".to_owned()));
        Self {
            server: Server::start_with(engine, given),
            made: 0.into(),
            cells: 0.into(),
        }
    }

    pub(super) fn next(&self) -> u32 {
        self.made.set(self.made.get() + 1);
        self.made.get()
    }

    /// One more cell of the table holds.
    #[track_caller]
    pub(super) fn cell(&self, what: &str, holds: bool, found: impl std::fmt::Display) {
        assert!(holds, "{what}: {found}");
        self.cells.set(self.cells.get() + 1);
    }

    /// A call of a public endpoint, each from an address of its own: attempts are counted.
    pub(super) fn public(&self, path: &str, body: &Value) -> Answer {
        let n = self.next();
        let from = format!("10.0.{}.{}", n / 250, n % 250 + 1);
        let headers = [("x-forwarded-for", from.as_str())];
        let body = body.to_string();
        let path = format!("/api/v1{path}");
        self.server
            .call("POST", &path, &headers, Some(body.as_bytes()))
    }

    pub(super) fn invite(&self, by: &str, role: &str, apps: Value) -> Answer {
        let invitation = json!({ "role": role, "apps": apps });
        self.server
            .api_as(by, "POST", "/invitations", Some(invitation))
    }

    pub(super) fn join(&self, link: &Value) -> Answer {
        let name = format!("user{}", self.next());
        let join = json!({ "token": link, "name": name, "password": PASSWORD });
        self.public("/auth/join", &join)
    }

    pub(super) fn somebody(&self, role: &str, apps: Value) -> Somebody {
        let link = self.invite(&self.server.token, role, apps);
        assert_eq!(link.status, 201, "{}", link.text());
        let joined = self.join(&link.json()["token"]);
        assert_eq!(joined.status, 201, "{}", joined.text());
        let joined = joined.json();
        Somebody {
            id: text(&joined["user"]["id"]),
            name: text(&joined["user"]["name"]),
            token: text(&joined["token"]),
        }
    }

    pub(super) fn log_in(&self, name: &str, cookie: bool) -> Answer {
        let login = json!({ "name": name, "password": PASSWORD, "cookie": cookie });
        let answer = self.public("/auth/login", &login);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer
    }

    pub(super) fn bearer(&self, name: &str) -> String {
        text(&self.log_in(name, false).json()["token"])
    }

    pub(super) fn cookie(&self, name: &str) -> Credential {
        let answer = self.log_in(name, true);
        let set = answer.headers["set-cookie"].to_str().unwrap();
        Credential::Cookie {
            cookie: set.split(';').next().unwrap().to_owned(),
            csrf: text(&answer.json()["csrf_token"]),
        }
    }

    /// As the owner, what must be fine.
    #[track_caller]
    pub(super) fn owner(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let done = self.server.api(method, path, body);
        assert!(
            (200..300).contains(&done.status),
            "{method} {path}: {}",
            done.text()
        );
        done
    }

    pub(super) fn place(&self) -> Place {
        let n = self.next();
        let (slug, host) = (format!("app{n}"), format!("app{n}.test"));
        self.owner(
            "POST",
            "/apps",
            Some(json!({ "slug": slug, "hosts": [host] })),
        );
        let app = self.server.known_app(&slug);
        for (topic, mode) in TOPICS {
            let path = format!("/apps/{slug}/topics/{topic}");
            self.owner("PUT", &path, Some(json!({ "auth_mode": mode })));
        }
        let token = app.script("token", r#"pubsub::subscriber_token(["tokens"])"#);
        app.route("token", "GET /token");
        let source = r#"
            log::info("begun");
            while kv::collection("c").get("go") == () { sleep(0.02) }
            log::info("marker");"#;
        let limits = json!({ "timeout_ms": 60_000, "fuel": 50_000_000_000_i64 });
        let waits = app.script_with("waits", source, limits);
        app.route_with("waits", "GET /waits", json!({ "dispatch_mode": "async" }));
        app.set("c", "k", json!(1));
        let begun = self.server.call("GET", "/waits", &[("host", &host)], None);
        let execution = text(&begun.json()["execution_id"]);
        let scripts = [token, waits];
        Place {
            slug,
            host,
            scripts,
            execution,
        }
    }

    /// A request with a credential: its status.
    pub(super) fn request(
        &self,
        at: &Place,
        with: &Credential,
        (method, path): (&str, &str),
    ) -> u16 {
        let path = at.path(path);
        let path = format!("/api/v1{path}");
        let headers = with.headers();
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let body = match (method, path.ends_with("/messages")) {
            ("GET", _) => None,
            (_, true) => Some(json!({ "message": "by them" })),
            _ => Some(json!({})),
        };
        let body = body.map(|body| body.to_string());
        let body = body.as_ref().map(|body| body.as_bytes());
        self.server.call(method, &path, &headers, body).status
    }

    pub(super) fn stream(&self, at: &Place, with: &Credential, path: &str) -> EventStream {
        let path = at.path(path);
        let headers = with.headers();
        let mut headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        if path.starts_with("/realtime") {
            headers.push(("host", &at.host));
        }
        EventStream::open(&self.server.url, &path, &headers).unwrap()
    }

    /// Have something happen that every stream of the app tells of.
    pub(super) fn mark(&self, at: &Place) {
        let path = format!("/apps/{}/topics/members/messages", at.slug);
        self.owner("POST", &path, Some(json!({ "message": "marker" })));
        self.owner(
            "POST",
            &format!("/apps/{}/domains", at.slug),
            Some(json!({ "host": format!("marker-{}", at.host) })),
        );
        self.end(at);
    }

    /// Take its host from an app, which has another one then.
    pub(super) fn take_host(&self, from: &Place) {
        let hosts = json!({ "hosts": [format!("moved-{}", from.host)] });
        self.owner("PATCH", &format!("/apps/{}", from.slug), Some(hosts));
    }

    /// The same, and give it to another app.
    pub(super) fn give_host(&self, from: &Place, to: &Place) {
        self.take_host(from);
        let hosts = json!({ "hosts": [from.host, to.host] });
        self.owner("PATCH", &format!("/apps/{}", to.slug), Some(hosts));
    }

    /// Let the execution of a place end.
    pub(super) fn end(&self, at: &Place) {
        self.owner(
            "PUT",
            &format!("/apps/{}/kv/c/go", at.slug),
            Some(json!(true)),
        );
    }
}

impl Place {
    pub(super) fn path(&self, template: &str) -> String {
        template
            .replace("{app}", &self.slug)
            .replace("{script}", &self.scripts[0])
            .replace("{execution}", &self.execution)
    }
}
