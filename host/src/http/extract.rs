//! What handlers take out of a request, with errors that name the field.

use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, OriginalUri, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use super::admission::Admission;
use super::body::Allowance;
use super::coding;
use super::endpoints::Address;
use super::objects::Objects;
use super::problem::{Problem, ProblemType};
use crate::apps::App;
use crate::directory::Picture;
use crate::idempotency::TTL_S_MAX;
use crate::identity::Caller;
use crate::identity::guesses::Counted;
use crate::json;
use crate::node::Node;
use crate::portable::IMPORT_BYTES_MAX;

/// Who calls, as the endpoint's rule found.
pub struct SignedIn(pub Caller);

impl FromRequestParts<Arc<Node>> for SignedIn {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Node>) -> Result<Self, Problem> {
        let admission = parts.extensions.get::<Admission>();
        let missing = || Problem::internal("a public endpoint asks who calls");
        let caller = admission.map(|admission| admission.caller().clone());
        caller.map(Self).ok_or_else(missing)
    }
}

/// A JSON body, read into a `T`. What does not fit is named: 400 when it is no JSON, 422 when a
/// field is wrong.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Node>> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &Arc<Node>) -> Result<Self, Problem> {
        check_content_type(request.headers())?;
        let (parts, body) = request.into_parts();
        let allowance = allowance(&parts)?;
        let bytes = super::body::read(body, &allowance).await?;
        let bytes = match coding::decoded(&parts.headers, &bytes, allowance.bytes_max)? {
            Some(decoded) => allowance.counted(decoded)?,
            None => bytes,
        };
        parse_json(&bytes).map(Self)
    }
}

/// What the guard of the endpoints allows a body to be.
///
/// # Errors
/// Where it was not asked, which is our own fault.
fn allowance(parts: &Parts) -> Result<Allowance, Problem> {
    let allowance = parts.extensions.get::<Allowance>().cloned();
    allowance.ok_or_else(|| Problem::internal("a body is read without its allowance"))
}

/// An attempt at a password, a link or a token, counted by its address before anything of its body is
/// read.
pub struct Guess(pub Address, pub Counted);

impl FromRequestParts<Arc<Node>> for Guess {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, node: &Arc<Node>) -> Result<Self, Problem> {
        let address = parts.extensions.get::<Address>().cloned();
        let address = address.ok_or_else(|| Problem::internal("an attempt without an address"))?;
        let counted = parts.extensions.get::<Counted>().cloned();
        let counted = counted.unwrap_or_default();
        node.guesses.count(&address.0, &counted)?;
        Ok(Self(address, counted))
    }
}

/// A body that is an archive: the file of an app.
pub struct Archive(pub axum::body::Bytes);

impl FromRequest<Arc<Node>> for Archive {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &Arc<Node>) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let allowance = Allowance {
            bytes_max: IMPORT_BYTES_MAX,
            ..allowance(&parts)?
        };
        super::body::read(body, &allowance).await.map(Self)
    }
}

/// A body that says nothing of itself is taken for JSON.
fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let text = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
    let essence = text.split(';').next().unwrap_or_default().trim();
    if json::is_media_type(essence) {
        return Ok(());
    }
    let detail = format!("send `Content-Type: application/json`, not `{essence}`");
    Err(Problem::new(ProblemType::UnsupportedMediaType, detail))
}

fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(Objects(&mut deserializer)).map_err(|error| {
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
            // To the parser it is a mistake of writing, too, where a type expects another beginning.
            _ if std::str::from_utf8(bytes).is_ok_and(|text| json::check(text).is_ok()) => {
                Problem::invalid_field(path, "a value of another type is expected here")
            }
            _ => Problem::malformed(format!("the body is not JSON: {error}")),
        }
    })?;
    deserializer
        .end()
        .map_err(|error| Problem::malformed(format!("the body is not JSON: {error}")))?;
    Ok(parsed)
}

/// The query, read into a `T`.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Arc<Node>> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, node: &Arc<Node>) -> Result<Self, Problem> {
        let pairs = parts.uri.query().unwrap_or_default().split('&');
        if let Some(odd) = pairs.into_iter().find(|pair| pair.contains("%00")) {
            let field = odd.split('=').next().unwrap_or_default();
            return Err(Problem::invalid_field(field, "no text has a NUL in it"));
        }
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

/// That there is nothing where a request looks.
pub fn nothing_at(parts: &Parts) -> Problem {
    let detail = format!("there is nothing at `{}`", path_of(parts));
    Problem::new(ProblemType::UnknownPath, detail)
}

fn path_of(parts: &Parts) -> &str {
    // Within the API's router the path has lost what all of it has in common.
    let whole = parts.extensions.get::<OriginalUri>();
    whole.map_or(parts.uri.path(), |OriginalUri(uri)| uri.path())
}

/// A part of the path, decoded. One that cannot be what it stands for, no id or no UTF-8, is a
/// 404 like any other unknown name.
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<Node>> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, node: &Arc<Node>) -> Result<Self, Problem> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, node).await;
        path.map(|axum::extract::Path(path)| Self(path))
            .map_err(|_| Problem::not_found(format!("there is nothing at `{}`", path_of(parts))))
    }
}

/// The pattern of text without control characters.
pub const PLAIN: &str = r"^[^\u0000-\u001F\u007F-\u009F]*$";

/// The pattern of any text in a query: Postgres holds every character but this one.
pub const WITHOUT_NUL: &str = r"^[^\u0000]*$";

/// The pattern of a name.
pub const NAME: &str = r"^[^\u0000-\u001F\u007F-\u009F]*[^\s\u0000-\u001F\u007F-\u009F][^\u0000-\u001F\u007F-\u009F]*$";

/// What every list takes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    /// How many at most.
    #[serde(default)]
    pub limit: Limit,
    /// Where to begin: the `next_cursor` of the page before.
    pub cursor: Option<String>,
}

/// How many items a page has at most: 1 to 200.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend("type" = "integer", "minimum" = 1, "maximum" = Self::MAX))]
pub struct Limit(i64);

impl Limit {
    const MAX: i64 = 200;

    /// The number.
    pub fn get(self) -> i64 {
        self.0
    }

    /// One more: whether there is another page shows in it.
    pub fn and_one(self) -> i64 {
        self.0 + 1
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self(50)
    }
}

impl TryFrom<String> for Limit {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let limit = text.parse().ok();
        let limit = limit.filter(|limit| (1..=Self::MAX).contains(limit));
        limit
            .map(Self)
            .ok_or_else(|| format!("limit is 1 to {}, not `{text}`", Self::MAX))
    }
}

/// The id in a cursor; an empty one is none.
///
/// # Errors
/// 422 when it is none.
pub fn page_cursor<T: std::str::FromStr>(cursor: Option<&str>) -> Result<Option<T>, Problem> {
    let parsed = cursor
        .filter(|text| !text.is_empty())
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

/// For an instant of a query, which says what it must look like.
///
/// # Errors
/// When it is none as RFC 3339 writes it.
pub fn instant<'de, D: Deserializer<'de>>(from: D) -> Result<Option<DateTime<Utc>>, D::Error> {
    let text = String::deserialize(from)?;
    let at = DateTime::parse_from_rfc3339(&text).map_err(|_| {
        let looks = "an instant like 2026-01-31T12:00:00Z";
        serde::de::Error::custom(format!("this is {looks}, not `{text}`"))
    })?;
    Ok(Some(at.to_utc()))
}
