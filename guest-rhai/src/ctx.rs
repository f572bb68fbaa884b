//! `ctx`: what a script knows of its execution and its request.
//!
//! `ctx` is one constant, visible in functions too. It is not a map but looks like one, so that
//! nothing is built or parsed that the script never reads.

use std::cell::RefCell;

use rhai::{Array, Dynamic, Engine, ImmutableString, Map, NativeCallContext};

use crate::error::no_such_member;
use crate::{host, json};

/// The constant `ctx`. All its values live in [`CURRENT`]: an instance has one execution.
#[derive(Clone, Copy)]
pub struct Ctx;

/// `ctx.request`, where there is a request.
#[derive(Clone, Default)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The route's parameters.
    pub params: Vec<(String, String)>,
    /// The query's pairs.
    pub query: Vec<(String, String)>,
    /// What the route's rest matched.
    pub rest: Option<String>,
    /// The header fields.
    pub headers: Vec<(String, String)>,
    /// The body's type.
    pub content_type: Option<String>,
    /// The body.
    pub body: Option<Vec<u8>>,
}

#[derive(Default)]
struct Current {
    request: Option<Request>,
    context: Option<host::Context>,
    body: Option<Dynamic>,
    event: Option<Dynamic>,
}

thread_local! {
    static CURRENT: RefCell<Current> = RefCell::default();
}

/// Begin an execution.
pub fn set_request(request: Option<Request>) {
    CURRENT.set(Current {
        request,
        ..Current::default()
    });
}

const FIELDS: [&str; 14] = [
    "request",
    "execution_id",
    "request_id",
    "app_id",
    "app_slug",
    "script_id",
    "script_name",
    "script_version",
    "sdk_version",
    "invocation_type",
    "principal",
    "trigger_depth",
    "attempt",
    "event",
];

impl Ctx {
    fn get(name: &str) -> Option<Dynamic> {
        CURRENT.with_borrow_mut(|current| {
            if name == "request" {
                return current.request.is_some().then(|| Dynamic::from(RequestRef));
            }
            let known = current.context.get_or_insert_with(host::context);
            Some(match name {
                "execution_id" => known.execution_id.clone().into(),
                "request_id" => known.request_id.clone().into(),
                "app_id" => known.app_id.clone().into(),
                "app_slug" => known.app_slug.clone().into(),
                "script_id" => known.script_id.clone().into(),
                "script_name" => known.script_name.clone().into(),
                "script_version" => i64::from(known.script_version).into(),
                "sdk_version" => known.sdk_version.clone().into(),
                "invocation_type" => known.invocation_type.clone().into(),
                "trigger_depth" => i64::from(known.trigger_depth).into(),
                "attempt" => i64::from(known.attempt).into(),
                "principal" => match &known.principal {
                    None => Dynamic::UNIT,
                    Some((id, name, kind)) => Map::from([
                        ("id".into(), id.clone().into()),
                        ("name".into(), name.clone().into()),
                        ("kind".into(), kind.clone().into()),
                    ])
                    .into(),
                },
                "event" => {
                    let text = known.event.as_ref()?;
                    // The host made it; a text that is no JSON would still tell something.
                    let parse = || json::parse_told(text).unwrap_or_else(|_| text.into());
                    current.event.get_or_insert_with(parse).clone()
                }
                _ => return None,
            })
        })
    }

    /// All of it, for whoever wants to see it.
    pub fn to_map(self) -> Map {
        let mut map = Map::new();
        for name in FIELDS {
            if let Some(value) = Self::get(name) {
                let is_request = value.is::<RequestRef>();
                let value = if is_request {
                    RequestRef::to_map().into()
                } else {
                    value
                };
                map.insert(name.into(), value);
            }
        }
        map
    }
}

/// `ctx.request` as a script holds it.
#[derive(Clone, Copy)]
pub struct RequestRef;

impl RequestRef {
    fn with<T>(read: impl FnOnce(&Request) -> T) -> Option<T> {
        CURRENT.with_borrow(|current| current.request.as_ref().map(read))
    }

    fn get(name: &str) -> Option<Dynamic> {
        if name == "body" {
            return Some(Self::body());
        }
        Self::with(|request| {
            Some(match name {
                "method" => request.method.clone().into(),
                "path" => request.path.clone().into(),
                "rest" => request.rest.clone().map_or(Dynamic::UNIT, Dynamic::from),
                "params" => pairs(&request.params).into(),
                "query" => pairs(&request.query).into(),
                "headers" => pairs(&request.headers).into(),
                "raw_body" => match &request.body {
                    Some(bytes) => Dynamic::from_blob(bytes.clone()),
                    None => Dynamic::UNIT,
                },
                _ => return None,
            })
        })?
    }

    /// The body as what its type says it is, parsed when it is first read.
    fn body() -> Dynamic {
        CURRENT.with_borrow_mut(|current| {
            if let Some(body) = &current.body {
                return body.clone();
            }
            let Some(request) = &current.request else {
                return Dynamic::UNIT;
            };
            let Some(bytes) = &request.body else {
                return Dynamic::UNIT;
            };
            let value = body_value(&request.essence(), bytes);
            current.body.insert(value).clone()
        })
    }

    /// All of it.
    pub fn to_map() -> Map {
        [
            "method", "path", "params", "query", "rest", "headers", "body",
        ]
        .iter()
        .filter_map(|name| Some(((*name).into(), Self::get(name)?)))
        .collect()
    }
}

impl Request {
    /// The type of the body, without its parameters.
    fn essence(&self) -> String {
        let named = self.content_type.as_deref().unwrap_or("");
        let essence = named.split(';').next().unwrap_or("");
        essence.trim().to_ascii_lowercase()
    }

    /// The fields of a form, in their order.
    fn form(&self) -> Vec<(String, String)> {
        match &self.body {
            Some(bytes) if self.essence() == FORM => fields(bytes),
            _ => Vec::new(),
        }
    }
}

const FORM: &str = "application/x-www-form-urlencoded";

fn fields(bytes: &[u8]) -> Vec<(String, String)> {
    form_urlencoded::parse(bytes).into_owned().collect()
}

/// JSON as its value, forms as a map, text as a string, anything else as a blob.
fn body_value(essence: &str, bytes: &[u8]) -> Dynamic {
    let as_text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => Dynamic::from_blob(bytes.to_vec()),
    };
    if essence == "application/json" || essence.ends_with("+json") {
        // The host refused a body that is no JSON; a direct caller's may still be none.
        let parsed = std::str::from_utf8(bytes)
            .ok()
            .and_then(|text| json::parse(text).ok());
        return parsed.unwrap_or_else(|| as_text(bytes));
    }
    if essence == FORM {
        return pairs(&fields(bytes)).into();
    }
    if essence.is_empty() || essence.starts_with("text/") || essence == "application/xml" {
        return as_text(bytes);
    }
    Dynamic::from_blob(bytes.to_vec())
}

/// A map of the pairs; a name that stands several times has its last value.
fn pairs(pairs: &[(String, String)]) -> Map {
    pairs
        .iter()
        .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
        .collect()
}

fn all(pairs: &[(String, String)], name: &str) -> Array {
    pairs
        .iter()
        .filter(|(known, _)| known == name)
        .map(|(_, value)| value.as_str().into())
        .collect()
}

/// Teach the engine `ctx`.
pub fn register(engine: &mut Engine) {
    engine
        .register_type_with_name::<Ctx>("Ctx")
        .register_indexer_get(|context: NativeCallContext<'_>, _: &mut Ctx, name: &str| {
            Ctx::get(name).ok_or_else(|| no_such_member(&context, "`ctx`", name))
        })
        .register_fn("contains", |_: &mut Ctx, name: &str| {
            Ctx::get(name).is_some()
        })
        .register_fn("keys", |ctx: &mut Ctx| -> Array {
            ctx.to_map()
                .into_keys()
                .map(|name| name.as_str().into())
                .collect()
        })
        .register_fn("to_map", |ctx: &mut Ctx| ctx.to_map())
        .register_fn("to_string", |ctx: &mut Ctx| {
            json::display(&ctx.to_map().into())
        })
        .register_fn("to_debug", |ctx: &mut Ctx| {
            json::display(&ctx.to_map().into())
        });
    engine
        .register_type_with_name::<RequestRef>("Request")
        .register_indexer_get(
            |context: NativeCallContext<'_>, _: &mut RequestRef, name: &str| {
                RequestRef::get(name).ok_or_else(|| no_such_member(&context, "`ctx.request`", name))
            },
        )
        .register_fn("contains", |_: &mut RequestRef, name: &str| {
            RequestRef::get(name).is_some()
        })
        .register_fn("query_all", |_: &mut RequestRef, name: &str| {
            RequestRef::with(|request| all(&request.query, name)).unwrap_or_default()
        })
        .register_fn("form_all", |_: &mut RequestRef, name: &str| {
            RequestRef::with(|request| all(&request.form(), name)).unwrap_or_default()
        })
        .register_fn("headers_all", |_: &mut RequestRef, name: &str| {
            let name = name.to_ascii_lowercase();
            RequestRef::with(|request| all(&request.headers, &name)).unwrap_or_default()
        })
        .register_fn("header", |_: &mut RequestRef, name: &str| -> Dynamic {
            let name = name.to_ascii_lowercase();
            let found = RequestRef::with(|request| all(&request.headers, &name).pop()).flatten();
            found.unwrap_or(Dynamic::UNIT)
        })
        .register_fn("to_map", |_: &mut RequestRef| RequestRef::to_map())
        .register_fn("to_string", |_: &mut RequestRef| {
            json::display(&RequestRef::to_map().into())
        })
        .register_fn("to_debug", |_: &mut RequestRef| {
            json::display(&RequestRef::to_map().into())
        });
    let mut module = rhai::Module::new();
    module.set_var("ctx", Dynamic::from(Ctx));
    engine.register_global_module(module.into());
    // Maps that came from outside have keys that are no identifiers: `headers["x-y"]`.
    engine.register_fn(
        "get_or",
        |map: &mut Map, name: ImmutableString, other: Dynamic| {
            map.get(name.as_str()).cloned().unwrap_or(other)
        },
    );
}
