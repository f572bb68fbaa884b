//! What was changed meanwhile is not changed by whoever has not seen it.

use std::sync::Barrier;

use picloud_tests::{Answer, Engine, Options, Server, on_both_engines};
use serde_json::{Value, json};

on_both_engines!(
    what_changed_meanwhile_is_neither_changed_nor_removed,
    of_those_who_read_the_same_one_writes,
    what_is_known_is_not_sent_again,
    what_changes_by_itself_is_no_change,
    an_if_match_that_is_none_is_refused,
);

/// Something that can be changed: its path, how it is changed, and two ways to change it.
struct Resource {
    path: String,
    method: &'static str,
    changes: [Value; 2],
}

impl Resource {
    fn new(path: impl Into<String>, method: &'static str, changes: [Value; 2]) -> Self {
        let path = path.into();
        Self {
            path,
            method,
            changes,
        }
    }

    fn change(&self, server: &Server, n: usize, if_match: &str) -> Answer {
        call(
            server,
            self.method,
            &self.path,
            if_match,
            Some(&self.changes[n]),
        )
    }
}

fn call(server: &Server, method: &str, path: &str, tag: &str, body: Option<&Value>) -> Answer {
    let token = format!("Bearer {}", server.token);
    let name = match method {
        "GET" | "HEAD" => "if-none-match",
        _ => "if-match",
    };
    let headers = [("authorization", token.as_str()), (name, tag)];
    let body = body.map(Value::to_string);
    let body = body.as_ref().map(String::as_bytes);
    server.call(method, &format!("/api/v1{path}"), &headers, body)
}

fn etag(answer: &Answer) -> String {
    let tag = answer.headers.get("etag");
    let tag = tag.unwrap_or_else(|| panic!("no ETag: {}", answer.text()));
    tag.to_str().unwrap().to_owned()
}

fn read(server: &Server, path: &str) -> (String, Value) {
    let answer = server.api("GET", path, None);
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    (etag(&answer), answer.json())
}

fn start(engine: Engine) -> Server {
    let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let options = Options {
        environment: vec![("PICLOUD_MASTER_KEY", key.to_owned())],
        ..Options::default()
    };
    Server::start_with(engine, options)
}

/// One of each kind.
fn resources(server: &Server) -> Vec<Resource> {
    let app = server.app("shop");
    let script = app.script("script", "1");
    let route = app.route("script", "GET /r");
    let trigger = app.trigger(
        "kv",
        json!({ "script": "script", "collection": "none", "name": "t" }),
    );
    let (user, _) = server.join("user", "member", json!({ "shop": "viewer" }));
    let id = |of: &Value| of["id"].as_str().unwrap().to_owned();
    app.set("c", "k", json!(0));
    let put = |path: &str, body: Value| {
        let made = server.api("PUT", path, Some(body));
        assert!(made.status < 300, "{path}: {}", made.text());
    };
    put("/apps/shop/secrets/SECRET", json!({ "value": "a" }));
    put("/apps/shop/topics/topic", json!({ "auth_mode": "public" }));
    vec![
        Resource::new(
            format!("/routes/{}", id(&route)),
            "PATCH",
            [json!({ "path": "/s" }), json!({ "path": "/t" })],
        ),
        Resource::new(
            format!("/triggers/{}", id(&trigger)),
            "PATCH",
            [json!({ "key": "a*" }), json!({ "key": null })],
        ),
        Resource::new(
            "/apps/shop/kv/c/k",
            "PUT",
            [json!({ "a": 1 }), json!([1.50, "x"])],
        ),
        Resource::new(
            "/apps/shop/secrets/SECRET",
            "PUT",
            [json!({ "value": "b" }), json!({ "value": "c" })],
        ),
        Resource::new(
            "/apps/shop/topics/topic",
            "PUT",
            [
                json!({ "auth_mode": "token" }),
                json!({ "auth_mode": "public", "retention_s": 60 }),
            ],
        ),
        Resource::new(
            "/apps/shop/members/user",
            "PUT",
            [json!({ "role": "editor" }), json!({ "role": "app_admin" })],
        ),
        Resource::new(
            format!("/users/{user}"),
            "PATCH",
            [json!({ "role": "admin" }), json!({ "disabled": true })],
        ),
        // What runs it goes with it.
        Resource::new(
            format!("/scripts/{script}"),
            "PATCH",
            [
                json!({ "version": 1, "source": "2" }),
                json!({ "version": 2, "source": "3" }),
            ],
        ),
        // The last: the others are of it.
        Resource::new(
            "/apps/shop",
            "PATCH",
            [
                json!({ "name": "One", "hosts": ["b.test", "*.a.test"] }),
                json!({ "name": "Two" }),
            ],
        ),
    ]
}

fn what_changed_meanwhile_is_neither_changed_nor_removed(engine: Engine) {
    let server = start(engine);
    for resource in resources(&server) {
        let path = &resource.path;
        let (first, _) = read(&server, path);
        let changed = resource.change(&server, 0, &first);
        assert!(changed.status < 300, "{path}: {}", changed.text());
        let (second, shown) = read(&server, path);
        assert_ne!(first, second, "{path}");
        if changed.headers.contains_key("etag") {
            assert_eq!(etag(&changed), second, "{path}");
        }
        let stale = [
            resource.change(&server, 1, &first),
            resource.change(&server, 1, &format!("W/{second}")),
            call(&server, "DELETE", path, &first, None),
        ];
        for refused in stale {
            assert_eq!(
                (refused.status, refused.problem().as_str()),
                (412, "precondition_failed"),
                "{path}: {}",
                refused.text()
            );
        }
        assert_eq!(read(&server, path), (second.clone(), shown), "{path}");
        let both = format!("{first}, {second}");
        let changed = resource.change(&server, 1, &both);
        assert!(changed.status < 300, "{path}: {}", changed.text());
        let (third, _) = read(&server, path);
        assert_ne!(second, third, "{path}");
        let removed = call(&server, "DELETE", path, &third, None);
        assert_eq!(removed.status, 204, "{path}: {}", removed.text());
        // What is gone is not made again by whoever thinks that it is there.
        for tag in [third.as_str(), "*"] {
            let gone = resource.change(&server, 1, tag);
            assert!(matches!(gone.status, 404 | 412), "{path}: {}", gone.text());
        }
        assert_eq!(server.api("GET", path, None).status, 404, "{path}");
    }
    let made = server.key(&server.token, "key", &["log:read"], None);
    let keys = server.api("GET", "/auth/keys", None).json();
    let path = format!("/auth/keys/{}", keys["items"][0]["id"].as_str().unwrap());
    let (first, key) = read(&server, &path);
    assert!(key["token"].is_null(), "{key}");
    let rotate = format!("{path}/rotate");
    let rotated = call(&server, "POST", &rotate, &first, None);
    assert_eq!(rotated.status, 200, "{}", rotated.text());
    assert_eq!(etag(&rotated), read(&server, &path).0);
    assert_ne!(rotated.json()["token"], made);
    assert_eq!(call(&server, "POST", &rotate, &first, None).status, 412);
    assert_eq!(call(&server, "DELETE", &path, &first, None).status, 412);
    let token = rotated.json()["token"].as_str().unwrap().to_owned();
    assert_eq!(server.api_as(&token, "GET", "/auth/me", None).status, 200);
    assert_eq!(
        call(&server, "DELETE", &path, &etag(&rotated), None).status,
        204
    );
}

/// How many write at once.
const WRITERS: usize = 20;

fn of_those_who_read_the_same_one_writes(engine: Engine) {
    let server = start(engine);
    for resource in resources(&server) {
        let (tag, _) = read(&server, &resource.path);
        let together = Barrier::new(WRITERS);
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let write = || {
                together.wait();
                resource.change(&server, 0, &tag).status
            };
            let writers: Vec<_> = (0..WRITERS).map(|_| scope.spawn(write)).collect();
            let done = writers.into_iter().map(|writer| writer.join().unwrap());
            done.collect()
        });
        let won = statuses.iter().filter(|status| **status < 300).count();
        let refused = statuses.iter().filter(|status| **status == 412).count();
        assert_eq!(
            (won, refused),
            (1, WRITERS - 1),
            "{}: {statuses:?}",
            resource.path
        );
    }
}

fn what_is_known_is_not_sent_again(engine: Engine) {
    let server = start(engine);
    for resource in resources(&server) {
        let path = &resource.path;
        let (tag, _) = read(&server, path);
        for known in [tag.clone(), format!("\"other\", W/{tag}"), "*".to_owned()] {
            let answer = call(&server, "GET", path, &known, None);
            assert_eq!(
                (answer.status, answer.text()),
                (304, String::new()),
                "{path}"
            );
            assert_eq!(etag(&answer), tag);
        }
        let changed = resource.change(&server, 0, "*");
        assert!(changed.status < 300, "{path}: {}", changed.text());
        let answer = call(&server, "GET", path, &tag, None);
        assert_eq!(answer.status, 200, "{path}");
        assert_ne!(etag(&answer), tag, "{path}");
    }
}

fn what_changes_by_itself_is_no_change(engine: Engine) {
    let server = start(engine);
    server.app("first");
    let app = server.app("shop");
    let (shop, shown) = read(&server, "/apps/shop");
    assert_eq!(shown["is_default"], false);
    assert_eq!(server.api("DELETE", "/apps/first", None).status, 204);
    let (now, shown) = read(&server, "/apps/shop");
    assert_eq!((shown["is_default"].clone(), now), (json!(true), shop));
    app.script("s", "1");
    let trigger = app.trigger(
        "kv",
        json!({ "script": "s", "collection": "c", "name": "t" }),
    );
    let path = format!("/triggers/{}", trigger["id"].as_str().unwrap());
    let paused = server.api("POST", &format!("{path}/pause"), None);
    let tag = etag(&paused);
    app.set("c", "k", json!(1));
    let (now, shown) = read(&server, &path);
    assert_eq!((shown["waiting"].clone(), now), (json!(1), tag));
    let stale = call(
        &server,
        "POST",
        &format!("{path}/resume"),
        "\"other\"",
        None,
    );
    assert_eq!(stale.status, 412, "{}", stale.text());
    let key = server.key(&server.token, "key", &["log:read"], None);
    let keys = server.api("GET", "/auth/keys", None).json();
    let path = format!("/auth/keys/{}", keys["items"][0]["id"].as_str().unwrap());
    let (tag, unused) = read(&server, &path);
    assert!(unused["last_used_at"].is_null(), "{unused}");
    assert_eq!(server.api_as(&key, "GET", "/auth/me", None).status, 200);
    let used = picloud_tests::wait_for("the use of the key", || {
        let (tag, key) = read(&server, &path);
        (!key["last_used_at"].is_null()).then_some(tag)
    });
    assert_eq!(used, tag);
}

fn an_if_match_that_is_none_is_refused(engine: Engine) {
    let server = start(engine);
    let app = server.app("shop");
    app.set("c", "k", json!(0));
    for odd in ["", "x", "\"x", "\"x\" \"y\"", "*, \"x\""] {
        let refused = call(&server, "PUT", "/apps/shop/kv/c/k", odd, Some(&json!(1)));
        assert_eq!(
            (refused.status, refused.json()["field"].clone()),
            (400, json!("If-Match")),
            "{odd}: {}",
            refused.text()
        );
    }
    assert_eq!(app.kv("c", "k"), json!(0));
}
