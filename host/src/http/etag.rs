//! ETags of resources: what is answered with one, and what is asked with one.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use super::openapi::describe::{Input, Operation, Output};
use super::problem::{Problem, ProblemType};
use crate::node::Node;
use crate::store::{ETag, Expected, entity_tags};

/// What an `If-Match` looks like.
const IF_MATCH_PATTERN: &str = r#"^(\*|(W/)?"[!#-~]*"( *, *(W/)?"[!#-~]*")*)$"#;

/// The values of a header that may be there several times, as one list.
fn list(headers: &HeaderMap, name: HeaderName) -> Option<Vec<u8>> {
    let values: Vec<&[u8]> = headers
        .get_all(name)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    (!values.is_empty()).then(|| values.join(&b", "[..]))
}

impl FromRequestParts<Arc<Node>> for Expected {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Node>) -> Result<Self, Problem> {
        let Some(value) = list(&parts.headers, header::IF_MATCH) else {
            return Ok(Self::Anything);
        };
        let parsed = String::from_utf8_lossy(&value).parse();
        parsed.map_err(|problem| {
            Problem::malformed(format!("If-Match: {problem}")).with("field", "If-Match")
        })
    }
}

impl Input for Expected {
    fn describe(operation: &mut Operation<'_>) {
        operation.header(
            "If-Match",
            "An `ETag` that was answered: without effect where it is another one by now",
            json!({ "type": "string", "pattern": IF_MATCH_PATTERN }),
        );
        operation.may_fail(ProblemType::MalformedRequest);
        operation.may_fail(ProblemType::PreconditionFailed);
    }
}

/// An answer with the ETag of the resource that it shows, or that it leaves behind.
pub struct Tagged<A> {
    /// The tag.
    pub etag: ETag,
    /// The answer.
    pub answer: A,
}

impl<T: Serialize> Tagged<Json<T>> {
    /// A resource of which nothing changes by itself.
    pub fn of(resource: T) -> Self {
        Self {
            etag: ETag::of(&resource),
            answer: Json(resource),
        }
    }
}

impl<A: IntoResponse> IntoResponse for Tagged<A> {
    fn into_response(self) -> Response {
        let mut response = self.answer.into_response();
        if let Ok(etag) = self.etag.as_str().parse() {
            response.headers_mut().insert(header::ETAG, etag);
        }
        response
    }
}

impl<A: Output> Output for Tagged<A> {
    fn describe(operation: &mut Operation<'_>) {
        A::describe(operation);
        if operation.is_read() {
            let what = "An `ETag` that was answered: 304 where it is still the same";
            operation.header("If-None-Match", what, json!({ "type": "string" }));
            operation.answer(StatusCode::NOT_MODIFIED);
        }
        operation.answers_header(
            "ETag",
            "Of what can be changed of it: another one after every change, for `If-Match`",
        );
    }
}

/// What whoever reads knows already: the tags that `If-None-Match` names.
pub struct Known(Option<String>);

impl Known {
    /// What a request says.
    pub fn of(request: &Parts) -> Self {
        let reads = matches!(request.method, Method::GET | Method::HEAD);
        let value = list(&request.headers, header::IF_NONE_MATCH).filter(|_| reads);
        Self(value.and_then(|value| String::from_utf8(value).ok()))
    }

    fn has(&self, tag: &str) -> bool {
        let Some(known) = &self.0 else { return false };
        let mut tags = entity_tags(known).unwrap_or_default().into_iter();
        known.trim() == "*" || tags.any(|known| known.trim_start_matches("W/") == tag)
    }
}

/// 304 in place of what the caller has as it is.
pub fn unless_known(known: &Known, response: Response) -> Response {
    let tag = response.headers().get(header::ETAG);
    let tag = tag.and_then(|tag| tag.to_str().ok());
    let is_known = tag.is_some_and(|tag| known.has(tag));
    if response.status() != StatusCode::OK || !is_known {
        return response;
    }
    let (mut parts, _) = response.into_parts();
    parts.status = StatusCode::NOT_MODIFIED;
    parts.headers.remove(header::CONTENT_TYPE);
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::empty())
}
