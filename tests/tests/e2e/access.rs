//! Every endpoint, as everybody who may and as everybody who may not.

use std::collections::HashMap;

use picloud_tests::{App, Engine, Options, Server, on_both_engines, wait_for};
use serde_json::{Value, json};

on_both_engines!(
    every_endpoint_as_every_role_and_with_every_scope,
    ids_of_another_app_in_a_body_or_a_query_are_none,
);

/// The tables of the docs, which a unit test keeps true.
const DOCS: &str = include_str!("../../../docs/access.md");
/// From the least to the greatest.
const APP_ROLES: [&str; 3] = ["viewer", "editor", "app_admin"];
const SCOPES: [&str; 7] = [
    "script:read",
    "script:write",
    "route:write",
    "domain:manage",
    "app:admin",
    "log:read",
    "instance:admin",
];

/// The rows of a table of the docs, without the backquotes.
pub fn table(mark: &str) -> Vec<Vec<String>> {
    let (_, from) = DOCS.split_once(&format!("<!-- {mark}: ")).unwrap();
    let (table, _) = from.split_once("<!-- end -->").unwrap();
    let rows = table.lines().skip(3).map(|line| {
        let cells = line.trim_matches('|').split(" | ");
        cells.map(|cell| cell.trim().replace('`', "")).collect()
    });
    rows.collect()
}

/// What a capability takes: a role in the app or on the instance, and a scope.
struct Needs {
    app_role: Option<String>,
    /// One of them is enough; any, where there is none.
    one_of: Vec<String>,
}

/// Somebody who calls.
struct Somebody {
    name: String,
    token: String,
    /// Their own, so that signing out hurts nobody.
    instance_role: &'static str,
    app_role: Option<&'static str>,
    /// Of the key that they call with.
    scopes: Option<Vec<&'static str>>,
    /// Whether that key is for another app.
    elsewhere: bool,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Expected {
    Allowed,
    SignInFirst,
    Forbidden,
    Hidden,
}

impl Somebody {
    fn expected(&self, takes: &str, path: &str, needs: &HashMap<String, Needs>) -> Expected {
        match takes {
            "nothing" => return Expected::Allowed,
            _ if self.instance_role.is_empty() => return Expected::SignInFirst,
            "a sign-in or an API key" => return Expected::Allowed,
            "a sign-in" if self.scopes.is_some() => return Expected::Forbidden,
            "a sign-in" => return Expected::Allowed,
            _ => {}
        }
        let needed = &needs[takes];
        let role = match self.instance_role {
            "member" => self.app_role,
            _ => Some("app_admin"),
        };
        let in_app = path != "/apps" && needed.app_role.is_some();
        if in_app && (role.is_none() || self.elsewhere) {
            return Expected::Hidden;
        }
        let is_in_one = |scopes: &Vec<&str>| {
            let takes = &needed.one_of;
            takes.is_empty() || takes.iter().any(|scope| scopes.contains(&scope.as_str()))
        };
        if !self.scopes.as_ref().is_none_or(is_in_one) {
            return Expected::Forbidden;
        }
        let rank = |role: &str| APP_ROLES.iter().position(|one| *one == role);
        let enough = match &needed.app_role {
            Some(least) => role.and_then(rank) >= rank(least),
            None => self.instance_role != "member" && !self.elsewhere,
        };
        match enough {
            true => Expected::Allowed,
            false => Expected::Forbidden,
        }
    }
}

/// One of each thing that a path can name.
struct Things<'s> {
    app: &'s App<'s>,
    made: std::cell::Cell<u32>,
}

impl Things<'_> {
    fn next(&self) -> u32 {
        self.made.set(self.made.get() + 1);
        self.made.get()
    }

    /// The path with what its braces name; what is to be removed is made for it.
    fn path(&self, method: &str, path: &str, who: &Somebody) -> String {
        let text = |value: &Value| value.as_str().expect("an id").to_owned();
        let n = self.next();
        let server = self.app.server;
        let id = match path.split('/').nth(1).unwrap_or_default() {
            "scripts" => self.app.script(&format!("s{n}"), "1"),
            "routes" => text(&self.app.route("broken", &format!("GET /r{n}"))["id"]),
            "triggers" => {
                let body =
                    json!({ "script": "broken", "collection": "none", "name": format!("t{n}") });
                text(&self.app.trigger("kv", body)["id"])
            }
            "executions" => text(&self.app.executions("limit=1")[0]["id"]),
            "dead-letters" => text(&self.app.dead_letters("limit=1")[0]["id"]),
            _ => uuid::Uuid::now_v7().to_string(),
        };
        let app = match (method, path) {
            // The app itself is to go: one that they have the same role in.
            ("DELETE", "/apps/{app}") => {
                let slug = format!("doomed-{n}");
                server.app(&slug);
                if let (Some(role), Some((_, name))) = (who.app_role, who.name.split_once(':')) {
                    let path = format!("/apps/{slug}/members/{name}");
                    let set = server.api("PUT", &path, Some(json!({ "role": role })));
                    assert_eq!(set.status, 204, "{}", set.text());
                }
                slug
            }
            _ => self.app.slug.clone(),
        };
        if path.contains("{key}") {
            self.app.set("c", "k", json!(1));
        }
        if path.contains("{topic}") {
            let topic = format!("/apps/{}/topics/topic", self.app.slug);
            let opened = server.api("PUT", &topic, Some(json!({ "auth_mode": "public" })));
            assert_eq!(opened.status, 200, "{}", opened.text());
        }
        if path.contains("{name}") {
            let secret = format!("/apps/{}/secrets/SECRET", self.app.slug);
            let set = server.api("PUT", &secret, Some(json!({ "value": "x" })));
            assert_eq!(set.status, 204, "{}", set.text());
        }
        let host = format!("h{n}.test");
        if path.contains("{host}") {
            let domains = format!("/apps/{}/domains", self.app.slug);
            let added = server.api("POST", &domains, Some(json!({ "host": host })));
            assert_eq!(added.status, 201, "{}", added.text());
        }
        path.replace("{app}", &app)
            .replace("{host}", &host)
            .replace("{id}", &id)
            .replace("{version}", "1")
            .replace("{collection}", "c")
            .replace("{key}", "k")
            .replace("{name}", "SECRET")
            .replace("{topic}", "topic")
            .replace("{user}", &uuid::Uuid::now_v7().to_string())
    }
}

fn everybody(server: &Server) -> Vec<Somebody> {
    let mut all = Vec::new();
    let mut add = |name: &str, token: &str, instance_role, app_role, scopes, elsewhere| {
        let (name, token) = (name.to_owned(), token.to_owned());
        all.push(Somebody {
            name,
            token,
            instance_role,
            app_role,
            scopes,
            elsewhere,
        });
    };
    add("nobody", "", "", None, None, false);
    add(
        "a guesser",
        &format!("pcs_{}", "x".repeat(49)),
        "",
        None,
        None,
        false,
    );
    add("the owner", &server.token, "owner", None, None, false);
    let (_, admin) = server.join("admin", "admin", json!({}));
    add("an admin", &admin, "admin", None, None, false);
    let (_, stranger) = server.join("stranger", "member", json!({ "other": "app_admin" }));
    add(
        "app_admin of another app:stranger",
        &stranger,
        "member",
        None,
        None,
        false,
    );
    for role in APP_ROLES {
        let (_, token) = server.join(role, "member", json!({ "shop": role }));
        add(
            &format!("{role}:{role}"),
            &token,
            "member",
            Some(role),
            None,
            false,
        );
        let key = server.key(&token, "all", &SCOPES, None);
        let all_scopes = Some(SCOPES.to_vec());
        add(
            &format!("a key of the {role}:{role}"),
            &key,
            "member",
            Some(role),
            all_scopes,
            false,
        );
    }
    for scope in SCOPES {
        let key = server.key(&server.token, scope, &[scope], None);
        add(
            &format!("a key with {scope}"),
            &key,
            "owner",
            None,
            Some(vec![scope]),
            false,
        );
    }
    let key = server.key(&server.token, "elsewhere", &SCOPES, Some(&["other"]));
    add(
        "a key for another app",
        &key,
        "owner",
        None,
        Some(SCOPES.to_vec()),
        true,
    );
    all
}

fn every_endpoint_as_every_role_and_with_every_scope(engine: Engine) {
    let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let options = Options {
        environment: vec![("PICLOUD_MASTER_KEY", key.to_owned())],
        ..Options::default()
    };
    let server = Server::start_with(engine, options);
    server.app("other");
    let app = server.app("shop");
    app.script("broken", "throw 1");
    app.route_with("broken", "GET /broken", json!({ "dispatch_mode": "async" }));
    app.trigger(
        "kv",
        json!({ "script": "broken", "collection": "things", "name": "dies",
                "retry": { "attempts_max": 1, "base_ms": 1 } }),
    );
    for n in 0..3 {
        app.set("things", &format!("k{n}"), json!(n));
    }
    wait_for("dead letters", || {
        (app.dead_letters("").len() == 3).then_some(())
    });
    let needs: HashMap<String, Needs> = table("capabilities")
        .into_iter()
        .map(|row| {
            let app_role = row[1].strip_suffix(" of the app").map(str::to_owned);
            let one_of = row[2].split(" or ").filter(|scope| *scope != "any");
            let one_of = one_of.map(str::to_owned).collect();
            (row[0].clone(), Needs { app_role, one_of })
        })
        .collect();
    let endpoints = table("endpoints");
    assert!(endpoints.len() > 60, "{}", endpoints.len());
    let things = Things {
        app: &app,
        made: 0.into(),
    };
    let mut wrong = Vec::new();
    let mut calls = 0;
    for who in everybody(&server) {
        for row in &endpoints {
            let (endpoint, takes) = (&row[0], &row[1]);
            let (method, template) = endpoint.split_once(' ').unwrap();
            if template == "/auth/login" || template == "/auth/logout" {
                // Counted by address; its own tests sign in and out.
                continue;
            }
            let expected = who.expected(takes, template, &needs);
            let path = things.path(method, template, &who);
            let body = (method != "GET" && method != "DELETE").then(|| json!({}));
            // A stream does not end; without its body it does.
            let method = match template.ends_with("/events") {
                true => "HEAD",
                false => method,
            };
            let answer = server.api_as(&who.token, method, &path, body);
            calls += 1;
            let found = match answer.status {
                401 => Expected::SignInFirst,
                403 => Expected::Forbidden,
                // Of what is not in an app, nothing was made for the path to name.
                404 if needs
                    .get(takes)
                    .is_some_and(|needs| needs.app_role.is_some())
                    && !template.contains("{user}") =>
                {
                    Expected::Hidden
                }
                404 if expected == Expected::Hidden => Expected::Hidden,
                // A link that is none, and too many attempts.
                410 | 422 | 429 => Expected::Allowed,
                status if status < 500 => Expected::Allowed,
                _ => panic!("{} {endpoint}: {}", who.name, answer.text()),
            };
            if found != expected {
                wrong.push(format!(
                    "{}: {endpoint}: {found:?}, not {expected:?}: {}",
                    who.name,
                    answer.text()
                ));
            }
        }
    }
    picloud_tests::report(format_args!(
        "{calls} calls of {} endpoints",
        endpoints.len()
    ));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(server.api("GET", "/apps/shop", None).status, 200);
}

/// Not even for the owner, who may see both apps: what belongs to one is no part of the other.
fn ids_of_another_app_in_a_body_or_a_query_are_none(engine: Engine) {
    let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let options = Options {
        environment: vec![("PICLOUD_MASTER_KEY", key.to_owned())],
        ..Options::default()
    };
    let server = Server::start_with(engine, options);
    let text = |value: &Value| value.as_str().expect("an id").to_owned();
    let furnish = |slug: &str| {
        let app = server.app(slug);
        let script = app.script("s", "throw 1");
        let route = text(&app.route("s", &format!("GET /{slug}"))["id"]);
        let kv = json!({ "script": "s", "collection": "c", "name": "t",
                         "retry": { "attempts_max": 1, "base_ms": 1 } });
        let trigger = text(&app.trigger("kv", kv)["id"]);
        app.set("c", "k", json!(1));
        wait_for("a dead letter", || app.dead_letters("").pop());
        (app, script, route, trigger)
    };
    let (mine, script, route, trigger) = furnish("mine");
    let (_, their_script, _, their_trigger) = furnish("theirs");
    let their_app = text(&server.api("GET", "/apps/theirs", None).json()["id"]);
    let (_, ann) = server.join("ann", "member", json!({ "mine": "app_admin" }));
    let kv = json!({ "script_id": their_script, "collection": "c", "name": "x" });
    let letters = |filter: Value| json!({ "script": "s", "name": "x", "filter": filter });
    let refused = [
        (
            "POST",
            "/apps/mine/routes".to_owned(),
            json!({ "script_id": their_script, "path": "/x" }),
        ),
        (
            "PATCH",
            format!("/routes/{route}"),
            json!({ "script_id": their_script }),
        ),
        ("POST", "/apps/mine/triggers/kv".to_owned(), kv),
        (
            "PATCH",
            format!("/triggers/{trigger}"),
            json!({ "script_id": their_script }),
        ),
        (
            "POST",
            "/apps/mine/triggers/dead-letter".to_owned(),
            letters(json!({ "trigger_id": their_trigger })),
        ),
        (
            "POST",
            "/apps/mine/triggers/dead-letter".to_owned(),
            letters(json!({ "script_id": their_script })),
        ),
        (
            "PUT",
            "/apps/mine/secrets/S".to_owned(),
            json!({ "value": "v", "scripts": [their_script] }),
        ),
    ];
    for token in [&server.token, &ann] {
        for (method, path, body) in &refused {
            let answer = server.api_as(token, method, path, Some(body.clone()));
            let is_none = [404, 422].contains(&answer.status);
            assert!(is_none, "{method} {path} {body}: {}", answer.text());
        }
        for (act, more) in [
            ("replay", json!({})),
            ("resolve", json!({ "reason": "ignored" })),
        ] {
            for (name, id) in [("script_id", &their_script), ("trigger_id", &their_trigger)] {
                let path = format!("/apps/mine/dead-letters/{act}");
                let mut body = more.clone();
                body[name] = json!(id);
                let done = server.api_as(token, "POST", &path, Some(body));
                let done = (done.status, done.json());
                let count = &done.1[format!("{act}{}", if act == "replay" { "ed" } else { "d" })];
                assert_eq!(
                    (done.0, count),
                    (200, &json!(0)),
                    "{act} {name}: {}",
                    done.1
                );
            }
        }
        for query in [
            format!("executions?script_id={their_script}"),
            format!("dead-letters?script_id={their_script}"),
            format!("dead-letters?trigger_id={their_trigger}"),
        ] {
            let found = server.api_as(token, "GET", &format!("/apps/mine/{query}"), None);
            assert_eq!(
                found.json()["items"],
                json!([]),
                "{query}: {}",
                found.text()
            );
        }
    }
    // Whoever may not see an app cannot make a key for it, either.
    let key = json!({ "name": "k", "scopes": ["log:read"], "apps": [their_app] });
    let answer = server.api_as(&ann, "POST", "/auth/keys", Some(key));
    assert_eq!(
        (answer.status, &answer.json()["field"]),
        (422, &json!("apps"))
    );
    // Nothing of either app was changed.
    for app in [&mine, &server.known_app("theirs")] {
        assert_eq!(
            app.dead_letters("state=unresolved").len(),
            1,
            "{}",
            app.slug
        );
    }
    let kept = server.api("GET", &format!("/routes/{route}"), None).json();
    assert_eq!(kept["script_id"], json!(script));
}
