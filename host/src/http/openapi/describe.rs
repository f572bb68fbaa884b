//! How the types of a handler describe its operation: what it takes out of a request, and what
//! it answers. A handler whose types do not is no endpoint, says the compiler.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::{Extension, Json};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::http::admission::Admission;
use crate::http::answer::{Created, NoContent, With, Zip};
use crate::http::cookie::Browser;
use crate::http::extract::{Archive, Body, Guess, PLAIN, Path, Query, SignedIn, WITHOUT_NUL};
use crate::http::problem::{Problem, ProblemType};
use crate::http::stream::EventStream;
use crate::node::Node;
use crate::{kv, pubsub, secrets};

/// An argument of a handler.
pub trait Input {
    /// Say what it takes. Most of what is no part of the request takes nothing.
    fn describe(_: &mut Operation<'_>) {}
}

/// What a handler answers.
pub trait Output {
    /// Say what it answers.
    fn describe(operation: &mut Operation<'_>);
}

/// A handler whose arguments and answer describe themselves. `T` is all their types.
pub trait Described<T> {
    /// Say what it takes and answers.
    fn describe(operation: &mut Operation<'_>);
}

macro_rules! described {
    ($($argument:ident),*) => {
        impl<F, Answer, Answered, $($argument),*> Described<(Answered, $($argument,)*)> for F
        where
            F: Fn($($argument),*) -> Answer,
            Answer: Future<Output = Answered>,
            Answered: Output,
            $($argument: Input),*
        {
            fn describe(operation: &mut Operation<'_>) {
                $($argument::describe(operation);)*
                Answered::describe(operation);
            }
        }
    };
}

described!();
described!(A);
described!(A, B);
described!(A, B, C);
described!(A, B, C, D);
described!(A, B, C, D, E);
described!(A, B, C, D, E, G);

/// The schemas of everything: what is read and what is written may differ for one type, where a
/// member has a default, say.
pub struct Schemas {
    pub(super) inputs: SchemaGenerator,
    pub(super) outputs: SchemaGenerator,
}

/// Where the schemas of inputs are until all are known.
pub(super) const INPUTS: &str = "#/components/inputs/";
/// Where schemas are.
pub(super) const SCHEMAS: &str = "#/components/schemas/";

impl Default for Schemas {
    fn default() -> Self {
        let at = |path: &'static str| {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = path.trim_start_matches('#').into();
                settings.meta_schema = None;
            })
        };
        Self {
            inputs: at(INPUTS).for_deserialize().into_generator(),
            outputs: at(SCHEMAS).for_serialize().into_generator(),
        }
    }
}

/// One operation, as its handler's types describe it.
pub struct Operation<'s> {
    pub(super) schemas: &'s mut Schemas,
    pub(super) method: &'s Method,
    pub(super) path: &'static str,
    pub(super) parameters: Vec<Value>,
    pub(super) body: Option<Value>,
    pub(super) answers: BTreeMap<u16, Value>,
    pub(super) problems: BTreeSet<ProblemType>,
}

impl Operation<'_> {
    /// It may answer problems of this type.
    pub fn may_fail(&mut self, with: ProblemType) {
        self.problems.insert(with);
    }

    /// It takes a header, which may be left out.
    pub fn header(&mut self, name: &str, description: &str, schema: Value) {
        self.parameters.push(json!({
            "name": name,
            "in": "header",
            "description": description,
            "schema": schema,
        }));
    }

    /// Each of its answers so far has a header.
    pub fn answers_header(&mut self, name: &str, description: &str) {
        for answer in self.answers.values_mut() {
            answer["headers"][name] = json!({
                "description": description,
                "required": true,
                "schema": { "type": "string" },
            });
        }
    }

    /// Whether it is a `GET`.
    pub fn is_read(&self) -> bool {
        self.method == Method::GET
    }

    /// It answers a body of this content type and schema.
    pub fn answers(&mut self, status: StatusCode, content_type: &str, schema: Value) {
        let answer = self.answer(status);
        answer["content"][content_type] = json!({ "schema": schema });
    }

    /// It answers a `T` as JSON.
    pub fn answers_json<T: JsonSchema>(&mut self, status: StatusCode) {
        let schema = self.schemas.outputs.subschema_for::<T>().to_value();
        self.answers(status, "application/json", schema);
    }

    /// An answer that begins as its status alone.
    pub fn answer(&mut self, status: StatusCode) -> &mut Value {
        let text = status.canonical_reason().unwrap_or_default();
        let answer = self.answers.entry(status.as_u16());
        answer.or_insert_with(|| json!({ "description": text }))
    }
}

/// A schema without `null`: neither a query nor a path can say that.
fn without_null(mut schema: Value) -> Value {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|one| one != "null");
        if let [only] = types.as_slice() {
            schema["type"] = only.clone();
        }
    }
    if let Some(Value::Array(kinds)) = schema.get_mut("anyOf") {
        kinds.retain(|one| one["type"] != "null");
        if let [only] = kinds.as_mut_slice()
            && let Value::Object(only) = only.take()
            && let Some(schema) = schema.as_object_mut()
        {
            schema.remove("anyOf");
            schema.extend(only);
        }
    }
    schema
}

impl Input for State<Arc<Node>> {}
impl Input for HeaderMap {}
impl Input for Method {}
/// A stream looks at all of it.
impl Input for axum::extract::Request {}
impl<T> Input for Extension<T> {}
impl Input for SignedIn {}
impl Input for Admission {}

impl Input for Guess {
    fn describe(operation: &mut Operation<'_>) {
        operation.may_fail(ProblemType::TooManyAttempts);
    }
}

impl Input for Browser {
    fn describe(operation: &mut Operation<'_>) {
        operation.may_fail(ProblemType::Csrf);
    }
}

impl<T: JsonSchema> Input for Body<T> {
    fn describe(operation: &mut Operation<'_>) {
        let schema = operation.schemas.inputs.subschema_for::<T>();
        operation.body = Some(json!({
            "required": true,
            "content": { "application/json": { "schema": schema } },
        }));
        operation.problems.extend([
            ProblemType::MalformedRequest,
            ProblemType::UnsupportedMediaType,
            ProblemType::TooSlow,
            ProblemType::BodyTooLarge,
            ProblemType::Overloaded,
            ProblemType::InvalidRequest,
        ]);
    }
}

/// The one body that is taken as it comes is an archive.
impl Input for Archive {
    fn describe(operation: &mut Operation<'_>) {
        let bytes = json!({ "type": "string", "format": "binary" });
        operation.body = Some(json!({
            "required": true,
            "content": { "application/zip": { "schema": bytes } },
        }));
        let problems = [
            ProblemType::BodyTooLarge,
            ProblemType::InvalidRequest,
            ProblemType::Overloaded,
        ];
        operation.problems.extend(problems);
    }
}

impl<T: JsonSchema> Input for Query<T> {
    fn describe(operation: &mut Operation<'_>) {
        let mut schema = T::json_schema(&mut operation.schemas.inputs).to_value();
        let required = schema["required"].take();
        let properties = match schema["properties"].take() {
            Value::Object(properties) => properties,
            _ => Map::new(),
        };
        for (name, schema) in properties {
            let mut schema = without_null(schema);
            let says_more = ["pattern", "format", "enum"].map(|member| !schema[member].is_null());
            if schema["type"] == "string" && !says_more.contains(&true) {
                schema["pattern"] = WITHOUT_NUL.into();
            }
            let description = schema.as_object_mut();
            let description = description.and_then(|schema| schema.remove("description"));
            let names = required.as_array().into_iter().flatten();
            let is_required = names.into_iter().any(|one| *one == name);
            operation.parameters.push(json!({
                "name": name,
                "in": "query",
                "required": is_required,
                "description": description.unwrap_or_default(),
                "schema": schema,
            }));
        }
        operation.problems.insert(ProblemType::InvalidRequest);
    }
}

/// The parts of a path.
pub trait PathParts {
    /// The schema of each.
    fn schemas(generator: &mut SchemaGenerator) -> Vec<Value>;
}

/// A part of a path.
pub trait PathPart: JsonSchema {}
impl PathPart for String {}
impl PathPart for u32 {}
impl<T> PathPart for crate::store::Id<T> {}

impl<T: PathPart> PathParts for T {
    fn schemas(generator: &mut SchemaGenerator) -> Vec<Value> {
        vec![generator.subschema_for::<T>().to_value()]
    }
}

macro_rules! path_parts {
    ($($part:ident),*) => {
        impl<$($part: PathPart),*> PathParts for ($($part,)*) {
            fn schemas(generator: &mut SchemaGenerator) -> Vec<Value> {
                vec![$(generator.subschema_for::<$part>().to_value()),*]
            }
        }
    };
}

path_parts!(A, B);
path_parts!(A, B, C);

/// The names in braces of a path.
pub(super) fn names(path: &str) -> impl Iterator<Item = &str> {
    let parts = path.split('/');
    parts.filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

impl<T: PathParts> Input for Path<T> {
    fn describe(operation: &mut Operation<'_>) {
        let schemas = T::schemas(&mut operation.schemas.inputs);
        for (name, schema) in names(operation.path).zip(schemas) {
            let mut parameter = json!({
                "name": name,
                "in": "path",
                "required": true,
                "schema": schema,
            });
            match name {
                "app" => parameter["description"] = "The app's id or slug".into(),
                "user" => parameter["description"] = "The user's id or name".into(),
                _ => {}
            }
            let text = match name {
                "collection" => Some((PLAIN, kv::COLLECTION_BYTES_MAX)),
                "key" => Some((PLAIN, kv::KEY_BYTES_MAX)),
                "name" => Some((secrets::NAME_PATTERN, secrets::NAME_BYTES_MAX)),
                "topic" if !operation.path.ends_with("{topic}") => {
                    Some((pubsub::TOPIC_PATTERN, pubsub::TOPIC_BYTES_MAX))
                }
                "topic" => Some((pubsub::TOPICS_PATTERN, pubsub::TOPIC_BYTES_MAX)),
                _ => None,
            };
            if let Some((pattern, length_max)) = text {
                parameter["schema"]["minLength"] = 1.into();
                parameter["schema"]["maxLength"] = length_max.into();
                parameter["schema"]["pattern"] = pattern.into();
                operation.problems.insert(ProblemType::InvalidRequest);
            }
            operation.parameters.push(parameter);
        }
    }
}

impl<T: Output> Output for Result<T, Problem> {
    fn describe(operation: &mut Operation<'_>) {
        T::describe(operation);
    }
}

impl<T: JsonSchema> Output for Json<T> {
    fn describe(operation: &mut Operation<'_>) {
        operation.answers_json::<T>(StatusCode::OK);
    }
}

impl<T: JsonSchema> Output for Created<T> {
    fn describe(operation: &mut Operation<'_>) {
        operation.answers_json::<T>(StatusCode::CREATED);
    }
}

impl<T: Output> Output for With<T> {
    fn describe(operation: &mut Operation<'_>) {
        T::describe(operation);
    }
}

impl Output for Zip {
    fn describe(operation: &mut Operation<'_>) {
        let bytes = json!({ "type": "string", "format": "binary" });
        operation.answers(StatusCode::OK, "application/zip", bytes);
    }
}

impl Output for EventStream {
    fn describe(operation: &mut Operation<'_>) {
        let text = json!({ "type": "string" });
        let event = json!({
            "type": "object",
            "description": "One event of the stream",
            "properties": { "event": text, "id": text, "data": text },
        });
        operation.answers(StatusCode::OK, "text/event-stream", event);
    }
}

impl Output for NoContent {
    fn describe(operation: &mut Operation<'_>) {
        operation.answer(StatusCode::NO_CONTENT);
    }
}
