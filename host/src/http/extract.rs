//! What handlers take out of a request, with errors that name the field.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use super::problem::Problem;
use crate::apps::App;
use crate::directory::Picture;
use crate::idempotency::TTL_S_MAX;
use crate::identity::Caller;
use crate::node::Node;

/// Who calls, as the endpoint's rule found.
pub struct SignedIn(pub Caller);

impl FromRequestParts<Arc<Node>> for SignedIn {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Node>) -> Result<Self, Problem> {
        let caller = parts.extensions.get::<Caller>().cloned();
        let missing = || Problem::internal("a public endpoint asks who calls");
        caller.map(Self).ok_or_else(missing)
    }
}

/// A JSON body, read into a `T`. What does not fit is named: 400 when it is no JSON, 422 when a
/// field is wrong.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Node>> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, node: &Arc<Node>) -> Result<Self, Problem> {
        let bytes =
            Bytes::from_request(request, node)
                .await
                .map_err(|rejection| match rejection.status() {
                    StatusCode::PAYLOAD_TOO_LARGE => {
                        Problem::body_too_large(super::API_BODY_BYTES_MAX)
                    }
                    _ => Problem::bad_request("the body could not be read to its end"),
                })?;
        parse_json(&bytes).map(Self)
    }
}

fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        match error.classify() {
            serde_json::error::Category::Data => {
                let text = error.to_string();
                let text = text.split(" at line ").next().unwrap_or(&text);
                // An unknown or missing field is named in the text; elsewhere the path names it.
                let named = text.split('`').nth(1).filter(|_| text.contains(" field `"));
                let field = named.map_or(path, str::to_owned);
                Problem::invalid_field(field, text)
            }
            _ => Problem::bad_request(format!("the body is not JSON: {error}")),
        }
    })?;
    deserializer
        .end()
        .map_err(|error| Problem::bad_request(format!("the body is not JSON: {error}")))?;
    Ok(parsed)
}

/// The query, read into a `T`.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Arc<Node>> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, node: &Arc<Node>) -> Result<Self, Problem> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, node).await;
        query
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(|rejection| {
                let text = rejection.body_text();
                let text = text.trim_start_matches("Failed to deserialize query string: ");
                let field = text.split(':').next().filter(|field| !field.contains(' '));
                let field = field.or_else(|| text.split('`').nth(1)).unwrap_or_default();
                Problem::invalid_field(field, text)
            })
    }
}

/// A part of the path, decoded. One that is no UTF-8 is a 404 like any other unknown name.
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<Node>> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, node: &Arc<Node>) -> Result<Self, Problem> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, node).await;
        path.map(|axum::extract::Path(path)| Self(path))
            .map_err(|_| Problem::not_found(format!("there is nothing at `{}`", parts.uri.path())))
    }
}

/// What every list takes.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    /// How many at most.
    pub limit: Option<String>,
    /// Where to begin.
    pub cursor: Option<String>,
}

/// The items of a page when nothing else was asked for, and the most.
const PAGE: i64 = 50;
const PAGE_MAX: i64 = 200;

/// The limit of a list.
///
/// # Errors
/// 422 when it is no number from 1 to 200.
pub fn page_limit(limit: Option<&str>) -> Result<i64, Problem> {
    let Some(text) = limit else { return Ok(PAGE) };
    let limit = text
        .parse()
        .ok()
        .filter(|limit| (1..=PAGE_MAX).contains(limit));
    limit.ok_or_else(|| {
        Problem::invalid_field("limit", format!("limit is 1 to {PAGE_MAX}, not `{text}`"))
    })
}

/// The id in a cursor.
///
/// # Errors
/// 422 when it is none.
pub fn page_cursor<T: std::str::FromStr>(cursor: Option<&str>) -> Result<Option<T>, Problem> {
    let parsed = cursor
        .map(|text| text.parse().map_err(|_| invalid_cursor()))
        .transpose()?;
    Ok(parsed)
}

fn invalid_cursor() -> Problem {
    Problem::invalid_field(
        "cursor",
        "the cursor is not one that this list gave; begin without one",
    )
}

/// A page as the API answers it. `items` holds one more than `limit` when there is another page.
pub fn page<T: serde::Serialize>(
    mut items: Vec<T>,
    limit: i64,
    cursor_of: impl Fn(&T) -> String,
) -> axum::Json<serde_json::Value> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(cursor_of);
    axum::Json(serde_json::json!({ "items": items, "next_cursor": next }))
}

/// The app that `{app}` names.
///
/// # Errors
/// 404 when there is none.
pub fn app_named<'p>(picture: &'p Picture, id_or_slug: &str) -> Result<&'p App, Problem> {
    picture
        .app_named(id_or_slug)
        .ok_or_else(|| Problem::not_found(format!("there is no app `{id_or_slug}`")))
}

/// A name as the API takes it.
///
/// # Errors
/// 422 when it is empty, too long, or has control characters.
pub fn checked_name(field: &str, name: &str) -> Result<(), Problem> {
    let bytes_max = crate::apps::NAME_BYTES_MAX;
    if name.trim().is_empty() || name.len() > bytes_max || name.contains(char::is_control) {
        let detail = format!("a name has 1 to {bytes_max} bytes and no control characters");
        return Err(Problem::invalid_field(field, detail));
    }
    Ok(())
}

/// For how long an idempotency key may hold.
///
/// # Errors
/// 422 when it is nothing or too long.
pub fn check_ttl(ttl_s: u64) -> Result<(), Problem> {
    if !(1..=TTL_S_MAX).contains(&ttl_s) {
        let detail = format!("idempotency.ttl_s is 1 to {TTL_S_MAX} seconds, not {ttl_s}");
        return Err(Problem::invalid_field("idempotency.ttl_s", detail));
    }
    Ok(())
}

/// For a field of a change where `null` takes the value away and absent leaves it as it was.
///
/// # Errors
/// When the value is none of a `T`.
pub fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(from).map(Some)
}

/// A filter's value.
///
/// # Errors
/// 422 that says what it must look like.
pub fn parsed<T>(
    field: &str,
    text: Option<&str>,
    parse: impl FnOnce(&str) -> Option<T>,
    looks: &str,
) -> Result<Option<T>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let problem = || Problem::invalid_field(field, format!("{field} is {looks}, not `{text}`"));
    parse(text).map(Some).ok_or_else(problem)
}

/// What an instant looks like.
pub const INSTANT: &str = "an instant like 2026-01-31T12:00:00Z";

/// An instant as RFC 3339 writes it.
pub fn instant(text: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(text)
        .ok()
        .map(|at| at.to_utc())
}
