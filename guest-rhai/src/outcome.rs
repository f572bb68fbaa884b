//! From what a script did to what the host is told.

use rhai::{Dynamic, EvalAltResult, Map, ParseError, Position};

use crate::error::SdkError;
use crate::json;

/// What a sync caller receives.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The header fields.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// Line and column, from 1.
pub type Place = (u32, u32);

/// What is wrong with a source.
#[derive(Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// What.
    pub message: String,
    /// Where.
    pub position: Option<Place>,
}

/// An error that a script did not catch.
#[derive(Debug, PartialEq, Eq)]
pub struct Thrown {
    /// What.
    pub message: String,
    /// Where.
    pub position: Option<Place>,
    /// In which calls, innermost first.
    pub calls: Vec<String>,
}

/// Why there is no response.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// The script threw.
    Threw(Thrown),
    /// What it returned is no response.
    InvalidResponse(String),
}

fn place(position: Position) -> Option<Place> {
    let number = |n: usize| u32::try_from(n).ok();
    Some((
        number(position.line()?)?,
        number(position.position().unwrap_or(1))?,
    ))
}

/// What a parser's error says.
pub fn diagnostic(error: &ParseError) -> Diagnostic {
    diagnostic_at(error.err_type().to_string(), error.position())
}

/// What is wrong at a place.
pub fn diagnostic_at(message: impl Into<String>, position: Position) -> Diagnostic {
    Diagnostic {
        message: message.into(),
        position: place(position),
    }
}

/// What an evaluation's error says: the innermost error, its place, and the way to it.
pub fn thrown(error: EvalAltResult) -> Thrown {
    let mut calls = Vec::new();
    let mut error = error;
    let mut position = error.position();
    loop {
        match error {
            EvalAltResult::ErrorInFunctionCall(name, _, inner, at) => {
                calls.push(named(name));
                position = if inner.position().is_none() {
                    at
                } else {
                    inner.position()
                };
                error = *inner;
            }
            EvalAltResult::ErrorInModule(_, inner, _) => error = *inner,
            _ => break,
        }
    }
    // Outermost first so far.
    calls.reverse();
    let message = match &error {
        EvalAltResult::ErrorRuntime(value, _) => json::display(value),
        other => {
            // Rhai appends the place, which we tell apart.
            let mut bare = other.to_string();
            let suffix = format!(" ({position})");
            if let Some(cut) = bare.strip_suffix(&suffix) {
                bare.truncate(cut.len());
            }
            bare
        }
    };
    if let EvalAltResult::ErrorRuntime(value, _) = &error
        && let Some(call) = value.read_lock::<SdkError>().and_then(|error| error.call)
    {
        calls.insert(0, call.to_owned());
    }
    Thrown {
        message,
        position: place(position),
        calls,
    }
}

/// A function's name as people know it: Rhai names closures by itself.
fn named(name: String) -> String {
    match name.starts_with("anon$") {
        true => "a closure".to_owned(),
        false => name,
    }
}

/// Make a response of what a script returned: `#{ statusCode, headers, body }`, or any plain
/// value, which is sent as JSON with status 200.
///
/// # Errors
/// [`Failure::InvalidResponse`] names the field.
pub fn response(value: Dynamic) -> Result<Response, Failure> {
    let value = value.flatten();
    let invalid = Failure::InvalidResponse;
    match value.try_cast_result::<Map>() {
        Ok(mut map) if map.contains_key("statusCode") => {
            let status = map.remove("statusCode").unwrap_or_default().flatten();
            let status = status.as_int().map_err(|kind| {
                invalid(format!("statusCode: must be a whole number, not {kind}"))
            })?;
            let status = u16::try_from(status)
                .ok()
                .filter(|status| (200..=599).contains(status));
            let status =
                status.ok_or_else(|| invalid("statusCode: must be 200 to 599".to_owned()))?;
            let mut headers = Vec::new();
            match map
                .remove("headers")
                .unwrap_or_default()
                .flatten()
                .try_cast_result::<Map>()
            {
                Ok(fields) => {
                    for (name, value) in fields {
                        header_values(&name, value, &mut headers)?;
                    }
                }
                Err(unit) if unit.is_unit() => {}
                Err(other) => {
                    let problem = format!("headers: must be a map, not {}", other.type_name());
                    return Err(invalid(problem));
                }
            }
            let body = map.remove("body").unwrap_or_default().flatten();
            if let Some(odd) = map.keys().next() {
                return Err(invalid(format!(
                    "`{odd}`: a response has `statusCode`, `headers` and `body` only"
                )));
            }
            with_body(status, headers, body)
        }
        Ok(map) => with_body(200, Vec::new(), map.into()),
        Err(value) if value.is_unit() => {
            let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
            Ok(Response {
                status: 200,
                headers,
                body: b"null".to_vec(),
            })
        }
        Err(value) => with_body(200, Vec::new(), value),
    }
}

fn header_values(
    name: &str,
    value: Dynamic,
    headers: &mut Vec<(String, String)>,
) -> Result<(), Failure> {
    let name = name.to_ascii_lowercase();
    let invalid =
        |problem: String| Failure::InvalidResponse(format!("headers[\"{name}\"]: {problem}"));
    let values = match value.flatten().try_cast_result::<rhai::Array>() {
        Ok(values) => values,
        Err(single) => vec![single],
    };
    for value in values {
        let value = value.flatten();
        let text = match value.type_name() {
            "string" | "i64" | "bool" | "f64" | "char" => value.to_string(),
            other => return Err(invalid(format!("must be a string, not {other}"))),
        };
        if text.chars().any(|c| c != '\t' && (c.is_control())) {
            return Err(invalid("has a character that HTTP cannot carry".to_owned()));
        }
        headers.push((name.clone(), text));
    }
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(invalid("is no name for a header".to_owned()));
    }
    Ok(())
}

fn with_body(
    status: u16,
    mut headers: Vec<(String, String)>,
    body: Dynamic,
) -> Result<Response, Failure> {
    let typed = headers.iter().any(|(name, _)| name == "content-type");
    let mut type_if_missing = |ty: &str| {
        if !typed {
            headers.push(("content-type".to_owned(), ty.to_owned()));
        }
    };
    let body = if body.is_unit() {
        Vec::new()
    } else if body.is_blob() {
        type_if_missing("application/octet-stream");
        body.into_blob().unwrap_or_default()
    } else if typed && body.is_string() {
        body.into_string().unwrap_or_default().into_bytes()
    } else {
        type_if_missing("application/json");
        let text = json::stringify(&body, false)
            .map_err(|problem| Failure::InvalidResponse(format!("body: {problem}")))?;
        text.into_bytes()
    };
    Ok(Response {
        status,
        headers,
        body,
    })
}
