//! `ctx`: what a script knows of its execution and its request.
//!
//! `ctx` is one constant, visible in functions too. It is not a map but looks like one, so that
//! nothing is built or parsed that the script never reads.

use std::cell::RefCell;
use std::fmt;

use rhai::{Array, Dynamic, Engine, EvalAltResult, ImmutableString, Map, NativeCallContext};

use crate::error::{no_such_member, unreadable_member};
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

/// A member that is to be JSON and is none. It stays away: as a text, say, it would be taken for what
/// was sent.
#[derive(Debug)]
pub struct Unreadable {
    member: &'static str,
    problem: String,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { member, problem } = self;
        write!(f, "`{member}` is not the JSON that it should be: {problem}")
    }
}

/// A member as it is read; none where there is no such member.
type Member = Option<Result<Dynamic, Unreadable>>;

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
    fn get(name: &str) -> Member {
        CURRENT.with_borrow_mut(|current| {
            if name == "request" {
                let request = Ok(Dynamic::from(RequestRef));
                return current.request.is_some().then_some(request);
            }
            let known = current.context.get_or_insert_with(host::context);
            Some(Ok(match name {
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
                    let read = || {
                        json::parse_told(text).map_err(|problem| Unreadable {
                            member: "ctx.event",
                            problem,
                        })
                    };
                    return Some(kept(&mut current.event, read));
                }
                _ => return None,
            }))
        })
    }

    fn members() -> impl Iterator<Item = (&'static str, Result<Dynamic, Unreadable>)> {
        let members = FIELDS.into_iter();
        members.filter_map(|name| Some((name, Self::get(name)?)))
    }

    /// All of it, with the request as a map.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn to_map(self) -> Result<Map, Unreadable> {
        let whole = |member: Dynamic| match member.is::<RequestRef>() {
            true => RequestRef::to_map().map(Dynamic::from),
            false => Ok(member),
        };
        Self::members()
            .map(|(name, member)| Ok((name.into(), whole(member?)?)))
            .collect()
    }

    /// All of it, for people: what cannot be read says so.
    pub fn shown(self) -> Map {
        let whole = |member: Dynamic| match member.is::<RequestRef>() {
            true => RequestRef::shown().into(),
            false => member,
        };
        Self::members()
            .map(|(name, member)| (name.into(), whole(or_problem(member))))
            .collect()
    }
}

/// What `kept` has, or what `read` answers and is kept.
fn kept(
    kept: &mut Option<Dynamic>,
    read: impl FnOnce() -> Result<Dynamic, Unreadable>,
) -> Result<Dynamic, Unreadable> {
    match kept {
        Some(value) => Ok(value.clone()),
        None => Ok(kept.insert(read()?).clone()),
    }
}

fn or_problem(member: Result<Dynamic, Unreadable>) -> Dynamic {
    member.unwrap_or_else(|unreadable| unreadable.to_string().into())
}

/// `ctx.request` as a script holds it.
#[derive(Clone, Copy)]
pub struct RequestRef;

impl RequestRef {
    fn with<T>(read: impl FnOnce(&Request) -> T) -> Option<T> {
        CURRENT.with_borrow(|current| current.request.as_ref().map(read))
    }

    fn get(name: &str) -> Member {
        if name == "body" {
            return Some(Self::body());
        }
        let member = Self::with(|request| {
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
        });
        member.flatten().map(Ok)
    }

    /// The body as what its type says it is, parsed when it is first read.
    fn body() -> Result<Dynamic, Unreadable> {
        CURRENT.with_borrow_mut(|current| match &current.request {
            Some(request) => match &request.body {
                Some(bytes) => {
                    let read = || body_value(&request.essence(), bytes);
                    kept(&mut current.body, read)
                }
                None => Ok(Dynamic::UNIT),
            },
            None => Ok(Dynamic::UNIT),
        })
    }

    fn members() -> impl Iterator<Item = (&'static str, Result<Dynamic, Unreadable>)> {
        let members = [
            "method", "path", "params", "query", "rest", "headers", "body",
        ];
        let members = members.into_iter();
        members.filter_map(|name| Some((name, Self::get(name)?)))
    }

    /// All of it.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn to_map() -> Result<Map, Unreadable> {
        Self::members()
            .map(|(name, member)| Ok((name.into(), member?)))
            .collect()
    }

    /// All of it, for people: a body that cannot be read says so.
    pub fn shown() -> Map {
        Self::members()
            .map(|(name, member)| (name.into(), or_problem(member)))
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
fn body_value(essence: &str, bytes: &[u8]) -> Result<Dynamic, Unreadable> {
    if essence == "application/json" || essence.ends_with("+json") {
        // A route refuses what is no JSON; what an older version accepted may be none.
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string());
        let read = text.and_then(json::parse);
        return read.map_err(|problem| Unreadable {
            member: "ctx.request.body",
            problem,
        });
    }
    if essence == FORM {
        return Ok(pairs(&fields(bytes)).into());
    }
    let is_text =
        essence.is_empty() || essence.starts_with("text/") || essence == "application/xml";
    if is_text && let Ok(text) = std::str::from_utf8(bytes) {
        return Ok(text.into());
    }
    Ok(Dynamic::from_blob(bytes.to_vec()))
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

/// What a script gets of a member.
fn told(
    context: &NativeCallContext<'_>,
    owner: &str,
    name: &str,
    member: Member,
) -> Result<Dynamic, Box<EvalAltResult>> {
    let member = member.ok_or_else(|| no_such_member(context, owner, name))?;
    member.map_err(|unreadable| unreadable_member(context, &unreadable))
}

/// Teach the engine `ctx`.
pub fn register(engine: &mut Engine) {
    type Call<'a> = NativeCallContext<'a>;
    engine
        .register_type_with_name::<Ctx>("Ctx")
        .register_indexer_get(|context: Call<'_>, _: &mut Ctx, name: &str| {
            told(&context, "`ctx`", name, Ctx::get(name))
        })
        .register_fn("contains", |_: &mut Ctx, name: &str| {
            Ctx::get(name).is_some()
        })
        .register_fn("keys", |ctx: &mut Ctx| -> Array {
            ctx.shown()
                .into_keys()
                .map(|name| name.as_str().into())
                .collect()
        })
        .register_fn("to_map", |context: Call<'_>, ctx: &mut Ctx| {
            let map = ctx.to_map();
            map.map_err(|unreadable| unreadable_member(&context, &unreadable))
        })
        .register_fn("to_string", |ctx: &mut Ctx| {
            json::display(&ctx.shown().into())
        })
        .register_fn("to_debug", |ctx: &mut Ctx| {
            json::display(&ctx.shown().into())
        });
    engine
        .register_type_with_name::<RequestRef>("Request")
        .register_indexer_get(|context: Call<'_>, _: &mut RequestRef, name: &str| {
            told(&context, "`ctx.request`", name, RequestRef::get(name))
        })
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
        .register_fn("to_map", |context: Call<'_>, _: &mut RequestRef| {
            let map = RequestRef::to_map();
            map.map_err(|unreadable| unreadable_member(&context, &unreadable))
        })
        .register_fn("to_string", |_: &mut RequestRef| {
            json::display(&RequestRef::shown().into())
        })
        .register_fn("to_debug", |_: &mut RequestRef| {
            json::display(&RequestRef::shown().into())
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
