//! What handlers answer: types that say the status, so that the OpenAPI document can.

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

/// 201 with what was made.
pub struct Created<T>(pub T);

impl<T: Serialize> IntoResponse for Created<T> {
    fn into_response(self) -> Response {
        (StatusCode::CREATED, Json(self.0)).into_response()
    }
}

/// 204: it is done, and there is nothing to tell.
pub struct NoContent;

impl IntoResponse for NoContent {
    fn into_response(self) -> Response {
        StatusCode::NO_CONTENT.into_response()
    }
}

/// An answer with one header more, where there is one.
pub struct With<T> {
    /// The answer.
    pub answer: T,
    /// The header.
    pub header: Option<(HeaderName, HeaderValue)>,
}

impl<T: IntoResponse> IntoResponse for With<T> {
    fn into_response(self) -> Response {
        let mut response = self.answer.into_response();
        response.headers_mut().extend(self.header);
        response
    }
}

/// A zip file to keep, as it is made.
pub struct Zip {
    /// The name of the file.
    pub name: String,
    /// Its bytes.
    pub body: Body,
}

impl Zip {
    /// The answer to whoever asks for its head only: nothing is made for them.
    pub fn head(name: String) -> Self {
        let body = Body::empty();
        Self { name, body }
    }
}

impl IntoResponse for Zip {
    fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, "application/zip".to_owned()),
            (
                header::CONTENT_DISPOSITION,
                format!("attachment; filename=\"{}\"", self.name),
            ),
            (header::CACHE_CONTROL, "no-store".to_owned()),
        ];
        (headers, self.body).into_response()
    }
}

/// A page of a list.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PageOf{T}")]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// Where the next page begins; null when this is the last.
    pub next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// A page of items, one more than `limit` when there is another page.
    pub fn of(mut items: Vec<T>, limit: i64, cursor_of: impl Fn(&T) -> String) -> Json<Self> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = items.last().filter(|_| more).map(cursor_of);
        Json(Self { items, next_cursor })
    }
}
