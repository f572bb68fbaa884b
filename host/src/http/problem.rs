//! Every error as problem+json (RFC 9457), in one place.

mod types;

use axum::Json;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::apps::AppError;
use crate::dead_letters::DeadLetterError;
use crate::directory::Stale;
use crate::dispatch::dispatcher::{GateFull, Refused};
use crate::identity::IdentityError;
use crate::json::NotJson;
use crate::kv::KvError;
use crate::oidc::OidcError;
use crate::pubsub::PubSubError;
use crate::quotas::{Full, objects::TooMany};
use crate::routes::RouteError;
use crate::sandbox::Diagnostic;
use crate::scripts::ScriptError;
use crate::secrets::SecretError;
use crate::store::StoreError;
use crate::telemetry::repeated::Repeated;
use crate::telemetry::trace;
use crate::triggers::TriggerError;
pub use types::ProblemType;

/// An error as its reader gets it.
#[derive(Debug)]
pub struct Problem {
    of: ProblemType,
    detail: String,
    more: Map<String, Value>,
    headers: Vec<(header::HeaderName, String)>,
}

impl Problem {
    /// A problem. `detail` says what is wrong here and what to do.
    pub fn new(of: ProblemType, detail: impl Into<String>) -> Self {
        let (more, headers) = (Map::new(), Vec::new());
        Self {
            of,
            detail: detail.into(),
            more,
            headers,
        }
    }

    /// What kind of problem it is.
    pub fn of(&self) -> ProblemType {
        self.of
    }

    /// What kind of problem it is, for people.
    pub fn title(&self) -> &str {
        self.of.title()
    }

    /// What is wrong here, and what to do.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// With one more member.
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.more.insert(member.to_owned(), value.into());
        self
    }

    /// With a header.
    pub fn with_header(mut self, name: header::HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// A request that cannot be read (400).
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(ProblemType::MalformedRequest, detail)
    }

    /// A field with a value that it cannot have (422).
    pub fn invalid_field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(ProblemType::InvalidRequest, detail).with("field", field.into())
    }

    /// A field that is no JSON (400), or none that every reader holds (422).
    pub fn not_json(field: &str, error: &NotJson) -> Self {
        let of = match error.is_malformed() {
            true => ProblemType::MalformedRequest,
            false => ProblemType::InvalidRequest,
        };
        Self::new(of, format!("the {field}: {error}"))
            .with("field", field)
            .with("at", error.pointer.as_str())
    }

    /// Nothing there, or nothing that the caller may see (404).
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(ProblemType::NotFound, detail)
    }

    /// No token, or a dead one (401).
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(ProblemType::Unauthorized, detail).with_header(header::WWW_AUTHENTICATE, "Bearer")
    }

    /// Whether it says that the caller is not known.
    pub fn is_unauthorized(&self) -> bool {
        self.of == ProblemType::Unauthorized
    }

    /// Somebody who may not (403).
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(ProblemType::Forbidden, detail)
    }

    /// A request that another page may have made a browser send (403).
    pub fn cross_site(detail: impl Into<String>) -> Self {
        Self::new(ProblemType::Csrf, detail)
    }

    /// The path is there, the method isn't (405).
    pub fn method_not_allowed(allow: &str) -> Self {
        let detail = format!("This path takes {allow}");
        Self::new(ProblemType::MethodNotAllowed, detail).with_header(header::ALLOW, allow)
    }

    /// More bytes than the instance takes (413).
    pub fn body_too_large(bytes_max: usize) -> Self {
        let detail = format!("The body has more than {bytes_max} bytes, the limit");
        Self::new(ProblemType::BodyTooLarge, detail)
    }

    /// A client that sends too slowly (408).
    pub fn too_slow() -> Self {
        Self::new(ProblemType::TooSlow, "The body was not there in time")
            .with_header(header::CONNECTION, "close")
    }

    /// A longer path and query than the instance takes (414).
    pub fn uri_too_long(bytes_max: usize) -> Self {
        let detail = format!("Path and query have more than {bytes_max} bytes, the limit");
        Self::new(ProblemType::UriTooLong, detail)
    }

    /// More header fields than the instance takes (431).
    pub fn headers_too_large(bytes_max: usize) -> Self {
        let detail = format!("The header fields have more than {bytes_max} bytes, the limit");
        Self::new(ProblemType::HeadersTooLarge, detail)
    }

    /// A part of us cannot be reached now (503).
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(ProblemType::Unavailable, detail).with_header(header::RETRY_AFTER, "1")
    }

    /// The node stops (503); it closes the connection.
    pub fn stopping(detail: impl Into<String>) -> Self {
        Self::unavailable(detail).with_header(header::CONNECTION, "close")
    }

    /// Our own fault (500). The cause is logged under an id that the caller is told.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        let id = uuid::Uuid::now_v7();
        tracing::error!(error_id = %id, %cause, "a request failed by our fault");
        let detail = format!("This is our fault; the server's log has the cause under {id}");
        Self::new(ProblemType::Internal, detail).with("error_id", id.to_string())
    }
}

/// A mistake in a source, as the API shows it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Diagnostic")]
pub struct DiagnosticView {
    /// What is wrong.
    message: String,
    /// The line, from 1.
    line: Option<u32>,
    /// The column, from 1.
    column: Option<u32>,
}

impl From<Diagnostic> for DiagnosticView {
    fn from(found: Diagnostic) -> Self {
        Self {
            message: found.message,
            line: found.position.map(|position| position.line),
            column: found.position.map(|position| position.column),
        }
    }
}

/// Diagnostics as the API shows them.
pub fn diagnostics_json(found: Vec<Diagnostic>) -> Value {
    let views: Vec<DiagnosticView> = found.into_iter().map(Into::into).collect();
    serde_json::to_value(views).unwrap_or_default()
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = self.more;
        if let Some(at) = trace::here() {
            body.insert("trace_id".into(), at.trace_id().into());
        }
        body.insert("type".into(), self.of.urn().into());
        body.insert("title".into(), self.of.title().into());
        body.insert("status".into(), self.of.status().as_u16().into());
        body.insert("detail".into(), self.detail.into());
        let mut response = (self.of.status(), Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        for (name, value) in self.headers {
            if let Ok(value) = value.parse() {
                headers.insert(name, value);
            }
        }
        response
    }
}

static REFUSED: Repeated = Repeated::new("requests that the database was unavailable for");

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        if matches!(error, StoreError::Changed) {
            let detail = "It was changed since you read it, or is gone; read it again";
            return Self::new(ProblemType::PreconditionFailed, detail);
        }
        if matches!(error, StoreError::Unstorable) {
            return Self::new(ProblemType::InvalidRequest, error.to_string());
        }
        if matches!(
            error,
            StoreError::NoRoom(_) | StoreError::Stalled(_) | StoreError::Locked(_)
        ) {
            return Self::unavailable(error.to_string());
        }
        if error.is_unavailable() {
            match REFUSED.begins() {
                true => tracing::warn!(%error, "the database is unavailable"),
                false => tracing::debug!(%error, "the database is unavailable"),
            }
            return Self::unavailable("The database cannot be reached now; try again");
        }
        Self::internal(error)
    }
}

impl From<Stale> for Problem {
    fn from(stale: Stale) -> Self {
        let detail = format!("This node cannot tell what you may do: {stale}; try again");
        Self::unavailable(detail)
    }
}

impl From<AppError> for Problem {
    fn from(error: AppError) -> Self {
        let detail = error.to_string();
        match error {
            AppError::NotFound(_) => Self::not_found(detail),
            AppError::SlugTaken(_) => {
                Self::new(ProblemType::SlugTaken, detail).with("field", "slug")
            }
            AppError::HostTaken { .. } => {
                Self::new(ProblemType::HostTaken, detail).with("field", "hosts")
            }
            AppError::TooManyHosts | AppError::AdminHost(_) | AppError::SharedHost(_) => {
                Self::invalid_field("hosts", detail)
            }
            AppError::NotYours(_) => Self::forbidden(detail).with("field", "hosts"),
            AppError::HostNotClaimed(_) => Self::not_found(detail),
            AppError::WouldOrphan(routes) => Self::new(ProblemType::WouldOrphanRoutes, detail)
                .with("routes", serde_json::to_value(routes).unwrap_or_default()),
            AppError::Store(error) => error.into(),
        }
    }
}

impl From<ScriptError> for Problem {
    fn from(error: ScriptError) -> Self {
        let detail = error.to_string();
        match error {
            ScriptError::NotFound(_) => Self::not_found(detail),
            ScriptError::NameTaken(_) => {
                Self::new(ProblemType::NameTaken, detail).with("field", "name")
            }
            ScriptError::VersionConflict { current, .. } => {
                Self::new(ProblemType::VersionConflict, detail)
                    .with("field", "version")
                    .with("current_version", current)
            }
            ScriptError::InvalidSource(found) => Self::new(
                ProblemType::InvalidSource,
                found.first().map_or(detail, |first| match first.position {
                    Some(at) => {
                        format!("line {}, column {}: {}", at.line, at.column, first.message)
                    }
                    None => first.message.clone(),
                }),
            )
            .with("field", "source")
            .with("diagnostics", diagnostics_json(found)),
            ScriptError::InvalidComponent(problem) => {
                Self::new(ProblemType::InvalidSource, problem).with("field", "wasm_base64")
            }
            ScriptError::QueueFull { retry_after_s, .. } => {
                Self::new(ProblemType::Overloaded, detail)
                    .with_header(header::RETRY_AFTER, retry_after_s.to_string())
            }
            ScriptError::NotKept {
                execution_id,
                problem,
            } if problem.is_unavailable() => Self::unavailable(format!(
                "The script ran, but the database cannot be reached to keep its execution {execution_id}"
            )),
            ScriptError::TooMany(error) => error.into(),
            ScriptError::Full(full) => full.into(),
            ScriptError::NotKept { problem, .. } | ScriptError::Store(problem) => problem.into(),
            ScriptError::Sandbox(problem) => Self::internal(problem),
        }
    }
}

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        let detail = error.to_string();
        match error {
            RouteError::NotFound(_) => Self::not_found(detail),
            RouteError::Conflict(other) => Self::new(ProblemType::RouteConflict, detail)
                .with("field", "path")
                .with(
                    "conflicting_route",
                    serde_json::to_value(other).unwrap_or_default(),
                ),
            RouteError::HostNotClaimed(_) => Self::invalid_field("host", detail),
            RouteError::Cors(bad) => Self::invalid_field(format!("cors.{}", bad.field), detail),
            RouteError::TooMany(error) => error.into(),
            RouteError::Store(error) => error.into(),
        }
    }
}

impl From<TriggerError> for Problem {
    fn from(error: TriggerError) -> Self {
        let detail = error.to_string();
        match error {
            TriggerError::NotFound(_) => Self::not_found(detail),
            TriggerError::NameTaken(_) => {
                Self::new(ProblemType::NameTaken, detail).with("field", "name")
            }
            TriggerError::UnknownTrigger(_) => Self::invalid_field("filter.trigger_id", detail),
            TriggerError::UnknownScript(_) => Self::invalid_field("filter.script_id", detail),
            TriggerError::TooMany(error) => error.into(),
            TriggerError::Store(error) => error.into(),
        }
    }
}

impl From<DeadLetterError> for Problem {
    fn from(error: DeadLetterError) -> Self {
        let detail = error.to_string();
        match error {
            DeadLetterError::NotFound(_) => Self::not_found(detail),
            DeadLetterError::AlreadySettled(state) => {
                Self::new(ProblemType::AlreadySettled, detail).with("state", state.as_str())
            }
            DeadLetterError::NothingToPin => Self::invalid_field("at_version", detail),
            DeadLetterError::InvalidPayload { .. } => Self::invalid_field("payload", detail),
            DeadLetterError::UnfitPayload(refused) => Self::not_json("payload", &refused),
            DeadLetterError::Store(error) => error.into(),
        }
    }
}

impl From<SecretError> for Problem {
    fn from(error: SecretError) -> Self {
        let detail = error.to_string();
        match error {
            SecretError::InvalidName(_) => Self::invalid_field("name", detail),
            SecretError::InvalidValue => Self::invalid_field("value", detail),
            SecretError::NotFound(_) => Self::not_found(detail),
            SecretError::TooMany => Self::new(ProblemType::TooMany, detail),
            SecretError::NoMasterKey => Self::new(ProblemType::NoMasterKey, detail),
            SecretError::Denied(_) => Self::forbidden(detail),
            SecretError::ForeignKey(_) => Self::internal(detail),
            SecretError::Store(error) => error.into(),
        }
    }
}

impl From<KvError> for Problem {
    fn from(error: KvError) -> Self {
        let field = match &error {
            KvError::Store(_) => "",
            KvError::InvalidCollection(_) => "collection",
            KvError::InvalidKey(_) => "key",
            KvError::InvalidValue(_) | KvError::HeardByTooMany(_) => "value",
            KvError::InvalidCursor => "cursor",
            KvError::InvalidLimit(_) => "limit",
            KvError::TooLarge { what, .. } => what,
            KvError::Full(_) => "",
        };
        let detail = error.to_string();
        match error {
            KvError::Store(error) => error.into(),
            KvError::TooLarge {
                what: "value",
                bytes_max,
                ..
            } => Self::body_too_large(bytes_max).with("field", "value"),
            KvError::InvalidValue(refused) => Self::not_json("value", &refused),
            KvError::Full(full) => full.into(),
            _ => Self::invalid_field(field, detail),
        }
    }
}

impl From<PubSubError> for Problem {
    fn from(error: PubSubError) -> Self {
        let detail = error.to_string();
        match error {
            PubSubError::InvalidTopic | PubSubError::InvalidGlob(_) => {
                Self::invalid_field("topic", detail)
            }
            PubSubError::InvalidMessage(refused) => Self::not_json("message", &refused),
            PubSubError::TooLarge { bytes_max, .. } => {
                Self::body_too_large(bytes_max).with("field", "message")
            }
            PubSubError::HeardByTooMany(_) => Self::invalid_field("message", detail),
            PubSubError::TokenTopics => Self::invalid_field("topics", detail),
            PubSubError::TokenSubject => Self::invalid_field("subject", detail),
            PubSubError::NoMasterKey => Self::new(ProblemType::NoMasterKey, detail),
            PubSubError::NotOpen(_) => Self::not_found(detail),
            PubSubError::Full(full) => full.into(),
            PubSubError::TooMany(error) => error.into(),
            PubSubError::Unread(_) => Self::unavailable(detail),
            PubSubError::Store(error) => error.into(),
        }
    }
}

impl From<IdentityError> for Problem {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::WrongPassword => {
                Self::new(ProblemType::WrongPassword, error.to_string())
                    .with_header(header::WWW_AUTHENTICATE, "Bearer")
            }
            IdentityError::NoSession | IdentityError::DamagedToken => {
                Self::unauthorized(error.to_string())
            }
            IdentityError::TooManyGuesses { retry_after_s } => {
                Self::new(ProblemType::TooManyAttempts, error.to_string())
                    .with_header(header::RETRY_AFTER, retry_after_s.to_string())
            }
            IdentityError::WeakPassword(why) => Self::invalid_field("password", why),
            IdentityError::ImpossibleName(_) => Self::invalid_field("name", error.to_string()),
            IdentityError::NameTaken(_) => {
                Self::new(ProblemType::NameTaken, error.to_string()).with("field", "name")
            }
            IdentityError::NotFound { .. } => Self::not_found(error.to_string()),
            IdentityError::WrongSetupToken => Self::invalid_field("token", error.to_string()),
            IdentityError::AlreadySetUp => Self::new(ProblemType::AlreadySetUp, error.to_string()),
            IdentityError::LastOwner => Self::new(ProblemType::LastOwner, error.to_string()),
            IdentityError::OwnersOnly | IdentityError::Forbidden(_) => {
                Self::forbidden(error.to_string())
            }
            IdentityError::Disabled(_) => Self::invalid_field("id", error.to_string()),
            IdentityError::DeadLink => Self::new(ProblemType::DeadLink, error.to_string()),
            IdentityError::Hashing(problem) => Self::internal(problem),
            IdentityError::TooMany(error) => error.into(),
            IdentityError::TooManyKeys => Self::new(ProblemType::TooMany, error.to_string()),
            IdentityError::Store(error) => error.into(),
        }
    }
}

impl From<OidcError> for Problem {
    fn from(error: OidcError) -> Self {
        let detail = error.to_string();
        match error {
            OidcError::Off => Self::not_found(detail),
            OidcError::NotBegun => Self::new(ProblemType::OidcNotBegun, detail),
            OidcError::Refused(_) => Self::new(ProblemType::OidcRefused, detail),
            OidcError::Unreachable(cause) => {
                tracing::warn!(%cause, "the OpenID provider cannot be reached");
                Self::new(ProblemType::OidcUnreachable, detail)
                    .with_header(header::RETRY_AFTER, "5")
            }
            OidcError::Untrusted(cause) => {
                tracing::warn!(%cause, "the OpenID provider answered what is not valid");
                Self::new(ProblemType::OidcUntrusted, detail)
            }
            OidcError::NoRole | OidcError::Unknown | OidcError::Disabled(_) => {
                Self::new(ProblemType::OidcNotAllowed, detail)
            }
            OidcError::NameTaken(_) => Self::new(ProblemType::NameTaken, detail),
            OidcError::DamagedCode => Self::invalid_field("code", detail),
            OidcError::DeadCode => Self::new(ProblemType::DeadCode, detail),
            OidcError::Identity(error) => error.into(),
        }
    }
}

impl From<Full> for Problem {
    fn from(error: Full) -> Self {
        let detail = error.to_string();
        Self::new(ProblemType::QuotaUsedUp, detail).with("data", error.data.as_str())
    }
}

impl From<TooMany> for Problem {
    fn from(error: TooMany) -> Self {
        Self::new(ProblemType::TooMany, error.to_string())
            .with("kind", error.object.as_str())
            .with("max", error.max)
    }
}

impl From<Refused> for Problem {
    fn from(error: Refused) -> Self {
        match error {
            Refused::GateFull(error) => error.into(),
            Refused::Full(full) => full.into(),
            Refused::Store(error) => error.into(),
        }
    }
}

impl From<GateFull> for Problem {
    fn from(error: GateFull) -> Self {
        Self::new(ProblemType::Overloaded, format!("{error}; try again"))
            .with_header(header::RETRY_AFTER, "1")
    }
}
