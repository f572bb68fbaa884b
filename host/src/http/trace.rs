//! The trace of a request: `traceparent` in, `traceresponse` out, and the span in between.

use std::fmt;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use crate::telemetry::trace::{self, Span, TraceParent};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Where in the trace the answer was made (W3C Trace Context, a draft): the caller finds it again.
const TRACERESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// Have `next` answer a request as a part of its caller's trace. Where there is none and none is
/// exported, nothing else is done.
pub(super) async fn follow(
    request: Request,
    next: impl AsyncFnOnce(Request) -> Response,
) -> Response {
    let parent = sent(request.headers());
    if parent.is_none() && !trace::is_exported() {
        return next(request).await;
    }
    let span = Span::serve(parent, request.method());
    if span.is_exported() {
        span.set("http.request.method", request.method().to_string());
        span.set("url.path", request.uri().path().to_owned());
    }
    let at = span.at();
    let mut response = span.clone().around(next(request)).await;
    let status = response.status();
    span.set("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.failed(status.as_str().to_owned());
    }
    if let Some(value) = at.and_then(|at| HeaderValue::try_from(at.to_string()).ok()) {
        response.headers_mut().insert(TRACERESPONSE, value);
    }
    response
}

/// Name the span of a request to the instance itself.
pub(super) async fn name(request: Request, next: Next) -> Response {
    if let Some(path) = request.extensions().get::<MatchedPath>() {
        let method = request.method().as_str();
        matched(&Span::current(), method, &path.as_str());
    }
    next.run(request).await
}

/// Name the span of a request after the path pattern that it matched.
pub(super) fn matched(span: &Span, method: &str, pattern: &impl fmt::Display) {
    if span.is_exported() {
        span.rename(format!("{method} {pattern}"));
        span.set("http.route", pattern.to_string());
    }
}

/// What a caller says of their trace; more than one `traceparent` is none.
fn sent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut all = headers.get_all(TRACEPARENT).iter();
    let (first, None) = (all.next()?, all.next()) else {
        return None;
    };
    TraceParent::parse(first.to_str().ok()?.trim())
}
