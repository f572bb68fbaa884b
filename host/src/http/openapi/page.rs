//! The document as a page to read: plain HTML with nothing from outside, so that it works under
//! the strictest policy.

use std::fmt::Write as _;
use std::sync::OnceLock;

use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Value, json};

use super::describe::{Operation, Output};
use super::document;

pub(super) async fn show() -> Html<&'static str> {
    static PAGE: OnceLock<String> = OnceLock::new();
    Html(PAGE.get_or_init(|| page(document())))
}

/// A style sheet.
pub(super) struct Css(&'static str);

impl IntoResponse for Css {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], self.0).into_response()
    }
}

pub(super) async fn style() -> Css {
    Css(include_str!("docs.css"))
}

impl Output for Html<&'static str> {
    fn describe(operation: &mut Operation<'_>) {
        operation.answers(StatusCode::OK, "text/html", json!({ "type": "string" }));
    }
}

impl Output for Css {
    fn describe(operation: &mut Operation<'_>) {
        operation.answers(StatusCode::OK, "text/css", json!({ "type": "string" }));
    }
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

fn text<'v>(value: &'v Value, member: &str) -> &'v str {
    value[member].as_str().unwrap_or_default()
}

fn items<'v>(value: &'v Value, member: &str) -> impl Iterator<Item = &'v Value> {
    value[member].as_array().into_iter().flatten()
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// A schema in a few words: a link where it has a name.
fn type_of(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = escaped(reference.rsplit('/').next().unwrap_or_default());
        return format!("<a href=\"#{name}\">{name}</a>");
    }
    for several in ["anyOf", "oneOf", "allOf"] {
        if schema[several].is_array() {
            let kinds: Vec<String> = items(schema, several).map(type_of).collect();
            return kinds.join(if several == "allOf" { " and " } else { " or " });
        }
    }
    if schema["enum"].is_array() {
        let words: Vec<String> = items(schema, "enum").map(code).collect();
        return words.join(", ");
    }
    if !schema["const"].is_null() {
        return code(&schema["const"]);
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => return "any JSON".to_owned(),
    };
    let named = types.into_iter().map(|one| match one {
        "array" => format!("list of {}", type_of(&schema["items"])),
        "object" if schema["additionalProperties"].is_object() => {
            format!("map of {}", type_of(&schema["additionalProperties"]))
        }
        one => match schema["format"].as_str() {
            Some(format) if one == "string" => escaped(format),
            _ => one.to_owned(),
        },
    });
    named.collect::<Vec<_>>().join(" or ")
}

fn code(value: &Value) -> String {
    format!("<code>{}</code>", escaped(&value.to_string()))
}

fn row(into: &mut String, cells: [&str; 3]) {
    let [first, second, third] = cells;
    let _ = writeln!(
        into,
        "<tr><th>{first}</th><td>{second}</td><td>{third}</td></tr>"
    );
}

fn page(document: &Value) -> String {
    let mut body = String::new();
    for tag in items(document, "tags") {
        let tag = text(tag, "name");
        let _ = writeln!(body, "<h2 id=\"{tag}\">{tag}</h2>", tag = escaped(tag));
        for (path, methods) in members(&document["paths"]) {
            for (method, operation) in members(methods) {
                if items(operation, "tags").any(|of| of == tag) {
                    show_operation(&mut body, path, method, operation);
                }
            }
        }
    }
    body.push_str("<h2 id=\"schemas\">Schemas</h2>\n");
    for (name, schema) in members(&document["components"]["schemas"]) {
        show_schema(&mut body, name, schema);
    }
    let tags: Vec<String> = items(document, "tags")
        .map(|tag| escaped(text(tag, "name")))
        .map(|tag| format!("<a href=\"#{tag}\">{tag}</a>"))
        .collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>PiCloud API</title>\n\
         <link rel=\"stylesheet\" href=\"docs.css\">\n<h1>PiCloud API {version}</h1>\n\
         <p>All paths are below <code>{root}</code>. The same for tools: \
         <a href=\"openapi.json\">openapi.json</a>.</p>\n<nav>{tags} <a href=\"#schemas\">Schemas</a></nav>\n\
         {body}</html>\n",
        version = escaped(text(&document["info"], "version")),
        root = escaped(text(&document["servers"][0], "url")),
        tags = tags.join(" "),
    )
}

fn show_operation(into: &mut String, path: &str, method: &str, operation: &Value) {
    let _ = writeln!(
        into,
        "<details id=\"{id}\"><summary><b>{method}</b> <code>{path}</code> {summary}</summary>\n\
         <p>{description}</p>\n<table>",
        id = escaped(text(operation, "operationId")),
        method = escaped(&method.to_ascii_uppercase()),
        path = escaped(path),
        summary = escaped(text(operation, "summary")),
        description = escaped(text(operation, "description")),
    );
    for parameter in items(operation, "parameters") {
        let name = format!(
            "{} <small>{}</small>",
            escaped(text(parameter, "name")),
            escaped(text(parameter, "in"))
        );
        let description = escaped(text(parameter, "description"));
        row(into, [&name, &type_of(&parameter["schema"]), &description]);
    }
    for (_, content) in members(&operation["requestBody"]["content"]) {
        row(into, ["body", &type_of(&content["schema"]), ""]);
    }
    for (status, answer) in members(&operation["responses"]) {
        let name = answer["$ref"].as_str().and_then(|to| to.rsplit('/').next());
        let answer = name.map_or(answer, |name| &document()["components"]["responses"][name]);
        let contents = members(&answer["content"]);
        let shown: Vec<String> = contents.map(|(_, c)| type_of(&c["schema"])).collect();
        let description = escaped(text(answer, "description"));
        row(into, [status, &shown.join(" or "), &description]);
    }
    into.push_str("</table></details>\n");
}

fn show_schema(into: &mut String, name: &str, schema: &Value) {
    let _ = writeln!(
        into,
        "<details id=\"{name}\"><summary><b>{name}</b> {description}</summary>\n<table>",
        name = escaped(name),
        description = escaped(text(schema, "description")),
    );
    if !schema["properties"].is_object() {
        row(into, ["", &type_of(schema), ""]);
    }
    for (name, property) in members(&schema["properties"]) {
        let needed = items(schema, "required").any(|one| one == name);
        let name = format!("{}{}", escaped(name), if needed { "" } else { "?" });
        let description = escaped(text(property, "description"));
        row(into, [&name, &type_of(property), &description]);
    }
    into.push_str("</table></details>\n");
}
