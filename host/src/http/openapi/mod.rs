//! The OpenAPI document, generated from the endpoints and the types of their handlers, and a page
//! to read it on.

pub mod describe;
mod links;
mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use axum::Json;
use serde_json::{Map, Value, json};

use super::endpoints::{Api, Endpoint, Rule};
use super::problem::ProblemType;
use describe::{INPUTS, Operation, SCHEMAS, Schemas};

/// The endpoints of the document itself.
pub fn endpoints() -> Api {
    Api::default()
        .get("/openapi.json", Rule::Public, show)
        .called("getOpenApi", "This document")
        .get("/docs", Rule::Public, page::show)
        .called("getDocs", "This document as a page to read")
        .get("/docs.css", Rule::Public, page::style)
        .called("getDocsStyle", "How that page looks")
}

/// The document of this build.
pub fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(|| build(super::endpoints().endpoints()))
}

async fn show() -> Json<Map<String, Value>> {
    Json(document().as_object().cloned().unwrap_or_default())
}

fn build(endpoints: &[Endpoint]) -> Value {
    let mut schemas = Schemas::default();
    let mut paths = Map::new();
    let mut tags = BTreeSet::new();
    for endpoint in endpoints {
        tags.insert(endpoint.room);
        let path = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        path[endpoint.method.as_str().to_ascii_lowercase()] = operation(endpoint, &mut schemas);
    }
    links::add(&mut paths);
    let mut paths = Value::Object(paths);
    let mut components = joined(schemas, &mut paths);
    components.insert("Problem".into(), problem_schema());
    let alone = ProblemType::ALL
        .iter()
        .map(|problem| (problem.name().to_owned(), problem_answer(&[*problem])));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "PiCloud",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Everything that the CLI and the dashboard do.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": super::API_ROOT }],
        "tags": tags.into_iter().map(|name| json!({ "name": name })).collect::<Vec<_>>(),
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": alone.collect::<Map<String, Value>>(),
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "What POST /auth/login gives, or an API key (`pic_…`)",
                },
                "cookie": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "picloud",
                    "description": "What POST /auth/login sets with `\"cookie\": true`; what changes something needs `X-CSRF-Token` too. Over TLS its name begins with `__Secure-` or `__Host-`",
                },
            },
        },
    })
}

fn operation(endpoint: &Endpoint, schemas: &mut Schemas) -> Value {
    let mut operation = Operation {
        schemas,
        method: &endpoint.method,
        path: endpoint.path,
        parameters: Vec::new(),
        body: None,
        answers: BTreeMap::new(),
        problems: BTreeSet::from([
            ProblemType::UriTooLong,
            ProblemType::HeadersTooLarge,
            ProblemType::Internal,
            ProblemType::Unavailable,
        ]),
    };
    (endpoint.describe)(&mut operation);
    operation.problems.extend(endpoint.problems);
    operation.problems.extend(match endpoint.rule {
        Rule::Public => &[][..],
        Rule::SignedIn => &[ProblemType::Unauthorized],
        _ => &[ProblemType::Unauthorized, ProblemType::Forbidden],
    });
    let takes_cookie = !matches!(endpoint.rule, Rule::Public);
    if takes_cookie {
        operation.may_fail(ProblemType::Csrf);
    }
    if endpoint.takes_turns {
        operation.may_fail(ProblemType::Overloaded);
    }
    if endpoint.path.contains('{') {
        operation.problems.insert(ProblemType::NotFound);
    }
    let mut by_status = BTreeMap::<u16, Vec<ProblemType>>::new();
    for problem in operation.problems {
        let of = by_status.entry(problem.status().as_u16()).or_default();
        of.push(problem);
    }
    for (status, problems) in by_status {
        let answer = match problems.as_slice() {
            [only] => json!({ "$ref": format!("#/components/responses/{}", only.name()) }),
            several => problem_answer(several),
        };
        operation.answers.insert(status, answer);
    }
    let answers = operation.answers.into_iter();
    let answers: Map<String, Value> = answers
        .map(|(at, answer)| (at.to_string(), answer))
        .collect();
    let mut shown = json!({
        "operationId": endpoint.id,
        "summary": endpoint.summary,
        "description": format!("Takes {}.", endpoint.rule.takes()),
        "tags": [endpoint.room],
        "security": match endpoint.rule {
            Rule::Public => json!([]),
            _ => json!([{ "bearer": [] }, { "cookie": [] }]),
        },
        "parameters": operation.parameters,
        "responses": answers,
    });
    if let Some(body) = operation.body {
        shown["requestBody"] = body;
    }
    shown
}

/// The answer of one status that tells of one of these problems.
fn problem_answer(problems: &[ProblemType]) -> Value {
    let said: Vec<String> = problems
        .iter()
        .map(|problem| format!("`{}`: {}", problem.name(), problem.when()))
        .collect();
    let types: Vec<String> = problems.iter().map(|problem| problem.urn()).collect();
    let mut answer = json!({
        "description": said.join("\n\n"),
        "content": { "application/problem+json": { "schema": {
            "$ref": format!("{SCHEMAS}Problem"),
            "properties": { "type": { "enum": types } },
        } } },
    });
    let headers = problems.iter().filter_map(|problem| match problem {
        ProblemType::Unauthorized => Some(("WWW-Authenticate", "Which scheme to use")),
        ProblemType::TooManyAttempts | ProblemType::Overloaded | ProblemType::Unavailable => {
            Some(("Retry-After", "After how many seconds to try again"))
        }
        _ => None,
    });
    for (name, description) in headers {
        answer["headers"][name] =
            json!({ "description": description, "schema": { "type": "string" } });
    }
    answer
}

fn problem_schema() -> Value {
    let types: Vec<String> = ProblemType::ALL.iter().map(|one| one.urn()).collect();
    json!({
        "type": "object",
        "description": "What went wrong (RFC 9457)",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": { "type": "string", "enum": types, "description": "Which problem; it stays the same" },
            "title": { "type": "string", "description": "The same in words" },
            "status": { "type": "integer", "description": "The status of the answer" },
            "detail": { "type": "string", "description": "What is wrong here, and what to do" },
            "field": { "type": "string", "description": "The field of the request that is wrong" },
            "at": { "type": "string", "description": "The place in the JSON of the field, as a JSON pointer (RFC 6901)" },
            "execution_id": { "type": "string", "format": "uuid", "description": "The execution, where there was one" },
        },
    })
}

/// The schemas of inputs and outputs in one place. What differs is there twice, as `X` and
/// `XInput`.
fn joined(schemas: Schemas, paths: &mut Value) -> Map<String, Value> {
    let Schemas {
        mut inputs,
        mut outputs,
    } = schemas;
    let mut inputs = inputs.take_definitions(true);
    let mut all = outputs.take_definitions(true);
    let as_output = |schema: &Value| {
        let mut schema = schema.clone();
        each_reference(&mut schema, &mut |name| {
            name.strip_prefix(INPUTS)
                .map(|name| format!("{SCHEMAS}{name}"))
        });
        schema
    };
    let mut differ: BTreeSet<String> = BTreeSet::new();
    // Whatever has a member that differs differs itself.
    loop {
        let before = differ.len();
        for (name, schema) in &mut inputs {
            let mut refers = false;
            each_reference(schema, &mut |reference| {
                refers |= reference
                    .strip_prefix(INPUTS)
                    .is_some_and(|to| differ.contains(to));
                None
            });
            let known = all.get(name);
            if known.is_some_and(|known| refers || *known != as_output(schema)) {
                differ.insert(name.clone());
            }
        }
        if differ.len() == before {
            break;
        }
    }
    let mut settle = |reference: &str| {
        let name = reference.strip_prefix(INPUTS)?;
        let more = if differ.contains(name) { "Input" } else { "" };
        Some(format!("{SCHEMAS}{name}{more}"))
    };
    each_reference(paths, &mut settle);
    for (name, mut schema) in inputs {
        each_reference(&mut schema, &mut settle);
        match differ.contains(&name) {
            true => all.insert(format!("{name}Input"), schema),
            false => all.insert(name, schema),
        };
    }
    all
}

/// Let `change` see every reference, and write what it answers in its place.
fn each_reference(within: &mut Value, change: &mut impl FnMut(&str) -> Option<String>) {
    match within {
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(reference) if name == "$ref" => {
                        if let Some(other) = change(reference) {
                            *reference = other;
                        }
                    }
                    member => each_reference(member, change),
                }
            }
        }
        Value::Array(items) => items
            .iter_mut()
            .for_each(|item| each_reference(item, change)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each operation with its method and path.
    fn operations() -> impl Iterator<Item = (String, &'static Value)> {
        let paths = document()["paths"].as_object().into_iter().flatten();
        paths.flat_map(|(path, methods)| {
            let methods = methods.as_object().into_iter().flatten();
            methods.map(move |(method, operation)| (format!("{method} {path}"), operation))
        })
    }

    /// The schema that a reference leads to.
    fn resolved(schema: &'static Value) -> &'static Value {
        let reference = schema["$ref"].as_str();
        reference.map_or(schema, |reference| {
            let name = reference.strip_prefix(SCHEMAS).unwrap();
            &document()["components"]["schemas"][name]
        })
    }

    fn parameters<'o>(operation: &'o Value, within: &str) -> BTreeSet<&'o str> {
        let all = operation["parameters"].as_array().unwrap().iter();
        let within = all.filter(|parameter| parameter["in"] == within);
        within.map(|one| one["name"].as_str().unwrap()).collect()
    }

    #[test]
    fn every_operation_has_an_id_of_its_own_and_says_what_it_does() {
        let mut ids = BTreeSet::new();
        for (name, operation) in operations() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(
                !id.is_empty(),
                "{name}: give it a name with `.called(id, summary)`"
            );
            assert!(ids.insert(id), "two operations are called {id}");
            assert_ne!(operation["summary"], "", "{name}");
            let described = parameters(operation, "path");
            let (_, path) = name.split_once(' ').unwrap();
            assert_eq!(described, describe::names(path).collect(), "{name}");
        }
    }

    #[test]
    fn every_body_says_what_it_is() {
        for (name, operation) in operations() {
            let answers = operation["responses"].as_object().unwrap().values();
            let bodies = answers.chain(operation.get("requestBody"));
            for body in bodies {
                let says_nothing = body["content"]["application/json"]["schema"] == true;
                let is_value = ["/kv/{collection}/{key}", "/kv-value"];
                let is_value = is_value.iter().any(|path| name.ends_with(path));
                assert!(is_value || !says_nothing, "{name}");
            }
        }
    }

    #[test]
    fn every_list_is_paged_the_same_way() {
        let mut lists = 0;
        for (name, operation) in operations() {
            let answer = operation.pointer("/responses/200/content/application~1json/schema");
            let schema = resolved(answer.unwrap_or(&Value::Null));
            assert_ne!(schema["type"], "array", "{name}: answer a `Page`");
            let id = operation["operationId"].as_str().unwrap();
            let is_page = !schema["properties"]["next_cursor"].is_null();
            assert_eq!(id.starts_with("list"), is_page, "{name}");
            if is_page {
                let query = parameters(operation, "query");
                assert!(
                    query.is_superset(&BTreeSet::from(["limit", "cursor"])),
                    "{name}"
                );
                assert!(!schema["properties"]["items"].is_null(), "{name}");
                lists += 1;
            }
        }
        assert!(lists > 10, "{lists}");
    }

    /// What nothing can be changed of: it is made, and it is removed.
    const NEVER_CHANGED: [&str; 3] = [
        "/apps/{app}/domains/{host}",
        "/auth/sessions/{id}",
        "/invitations/{id}",
    ];

    #[test]
    fn what_can_be_changed_has_an_etag_and_is_changed_as_expected() {
        let mut resources = 0;
        for (path, methods) in document()["paths"].as_object().unwrap() {
            let changes = ["put", "patch", "delete"].map(|method| (method, &methods[method]));
            let changes = changes.iter().filter(|(_, operation)| !operation.is_null());
            if changes.clone().count() == 0 || NEVER_CHANGED.contains(&path.as_str()) {
                continue;
            }
            let read = &methods["get"];
            assert!(
                !read["responses"]["200"]["headers"]["ETag"].is_null(),
                "{path}: let its GET answer a `Tagged`"
            );
            assert!(
                parameters(read, "header").contains("If-None-Match"),
                "{path}"
            );
            assert!(!read["responses"]["304"].is_null(), "{path}");
            for (method, operation) in changes {
                assert!(
                    parameters(operation, "header").contains("If-Match")
                        && !operation["responses"]["412"].is_null(),
                    "{method} {path}: take an `Expected`, and check it in the transaction"
                );
                let shown = &operation["responses"]["200"];
                assert!(
                    shown.is_null() || !shown["headers"]["ETag"].is_null(),
                    "{method} {path}: answer a `Tagged`"
                );
            }
            resources += 1;
        }
        assert!(resources >= 10, "{resources}");
    }

    #[test]
    fn every_schema_has_a_name_of_its_own() {
        for name in document()["components"]["schemas"]
            .as_object()
            .unwrap()
            .keys()
        {
            assert!(
                !name.ends_with(|last: char| last.is_ascii_digit()),
                "two types are called {name}; give one another with `#[schemars(rename)]`"
            );
        }
        let text = document().to_string();
        assert!(!text.contains(INPUTS));
        for reference in text.split(SCHEMAS).skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(
                !document()["components"]["schemas"][name].is_null(),
                "{name}"
            );
        }
    }
}
