//! An app of a test, on its server.

use serde_json::{Value, json};

use crate::{Server, wait_for};

/// An app of a test.
pub struct App<'s> {
    /// The server that it is on.
    pub server: &'s Server,
    /// Its slug.
    pub slug: String,
}

impl App<'_> {
    /// Upload a script and answer its id.
    pub fn script(&self, name: &str, source: &str) -> String {
        self.script_with(name, source, json!({}))
    }

    /// Upload a script with limits and answer its id.
    pub fn script_with(&self, name: &str, source: &str, limits: Value) -> String {
        let body = json!({ "name": name, "source": source, "limits": limits });
        let made = self
            .server
            .api("POST", &format!("/apps/{}/scripts", self.slug), Some(body));
        assert_eq!(made.status, 201, "{}", made.text());
        made.json()["id"].as_str().expect("an id").to_owned()
    }

    /// Bind a script to a route like `POST /x`.
    pub fn route(&self, script: &str, route: &str) -> Value {
        self.route_with(script, route, json!({}))
    }

    /// Bind a script to a route with more of its members given.
    pub fn route_with(&self, script: &str, route: &str, more: Value) -> Value {
        let (method, path) = route.split_once(' ').expect("a method and a path");
        let mut body = json!({ "script": script, "method": method, "path": path });
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        let made = self
            .server
            .api("POST", &format!("/apps/{}/routes", self.slug), Some(body));
        assert_eq!(made.status, 201, "{}", made.text());
        made.json()
    }

    /// Upload a script and bind it to `ANY /name`.
    pub fn serve(&self, name: &str, source: &str) {
        self.script(name, source);
        self.route(name, &format!("ANY /{name}"));
    }

    /// The executions, newest first.
    pub fn executions(&self, query: &str) -> Vec<Value> {
        let list = self.server.api(
            "GET",
            &format!("/apps/{}/executions?{query}", self.slug),
            None,
        );
        assert_eq!(list.status, 200, "{}", list.text());
        list.json()["items"].as_array().cloned().unwrap_or_default()
    }

    /// The newest execution, in full, once there is one.
    pub fn last_execution(&self) -> Value {
        let id = wait_for("an execution", || {
            self.executions("limit=1").into_iter().next()
        });
        let id = id["id"].as_str().unwrap_or_default().to_owned();
        self.server
            .api("GET", &format!("/executions/{id}"), None)
            .json()
    }

    /// The value of a key; null when there is none.
    pub fn kv(&self, collection: &str, key: &str) -> Value {
        let path = format!("/apps/{}/kv/{collection}/{key}", self.slug);
        let answer = self.server.api("GET", &path, None);
        if answer.status == 200 {
            answer.json()
        } else {
            Value::Null
        }
    }

    /// Register a trigger and answer it.
    pub fn trigger(&self, kind: &str, body: Value) -> Value {
        let path = format!("/apps/{}/triggers/{kind}", self.slug);
        let made = self.server.api("POST", &path, Some(body));
        assert_eq!(made.status, 201, "{}", made.text());
        made.json()
    }

    /// Give a key a value, as the owner.
    pub fn set(&self, collection: &str, key: &str, value: Value) {
        let path = format!("/apps/{}/kv/{collection}/{key}", self.slug);
        let set = self.server.api("PUT", &path, Some(value));
        assert_eq!(set.status, 204, "{}", set.text());
    }

    /// The keys of a collection with their values, in the order of keys.
    pub fn entries(&self, collection: &str) -> Vec<(String, Value)> {
        let path = format!("/apps/{}/kv/{collection}?limit=200", self.slug);
        let list = self.server.api("GET", &path, None).json();
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items
            .into_iter()
            .map(|item| {
                let key = item["key"].as_str().unwrap_or_default().to_owned();
                (key, item["value"].clone())
            })
            .collect()
    }

    /// The dead letters that a query finds, newest first.
    pub fn dead_letters(&self, query: &str) -> Vec<Value> {
        let path = format!("/apps/{}/dead-letters?{query}", self.slug);
        let list = self.server.api("GET", &path, None);
        assert_eq!(list.status, 200, "{}", list.text());
        list.json()["items"].as_array().cloned().unwrap_or_default()
    }
}
