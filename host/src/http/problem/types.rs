//! Every type of problem: what `docs/api.md` lists and the OpenAPI document promises.

use axum::http::StatusCode;

macro_rules! types {
    ($($variant:ident = $name:literal, $status:ident, $title:literal, $when:literal;)*) => {
        /// What kind of problem an answer tells of.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum ProblemType {
            $(#[doc = $when] $variant,)*
        }

        impl ProblemType {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The last part of its URN.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The status of every answer of this type.
            pub fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status,)* }
            }

            /// What is wrong, the same each time.
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }

            /// When it is answered, for the docs.
            pub fn when(self) -> &'static str {
                match self { $(Self::$variant => $when,)* }
            }
        }
    };
}

types! {
    MalformedRequest = "malformed_request", BAD_REQUEST, "The request cannot be read",
        "The body is not JSON, not UTF-8, not what its encoding says, or ends too early.";
    OidcNotBegun = "oidc_not_begun", BAD_REQUEST, "The sign-in failed",
        "The sign-in at the provider was begun in another browser, was used before, or took too long.";
    Unauthorized = "unauthorized", UNAUTHORIZED, "Sign in first",
        "There is no token, or it is not whole, unknown, expired or revoked.";
    WrongPassword = "wrong_password", UNAUTHORIZED, "Name and password do not fit",
        "Signing in: nobody has this name and this password. Which of them is wrong is not said.";
    Forbidden = "forbidden", FORBIDDEN, "You may not do this",
        "What is missing, a role or a scope, is said.";
    Csrf = "csrf", FORBIDDEN, "The request may be another page's",
        "A browser sent the cookie of a session for a page of another origin, or without `X-CSRF-Token`.";
    OidcRefused = "oidc_refused", FORBIDDEN, "The sign-in failed",
        "The provider did not sign you in, or did not take its own code.";
    OidcNotAllowed = "oidc_not_allowed", FORBIDDEN, "The sign-in failed",
        "The provider vouches for you, and you may not sign in here.";
    NotFound = "not_found", NOT_FOUND, "Not found",
        "There is nothing there, or nothing that you may see.";
    UnknownPath = "unknown_path", NOT_FOUND, "There is nothing at this address",
        "The API has no such path, or not on this host.";
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, "The method is not allowed",
        "The path takes other methods; `Allow` names them.";
    SlugTaken = "slug_taken", CONFLICT, "This conflicts with what is there",
        "Another app has the slug.";
    HostTaken = "host_taken", CONFLICT, "This conflicts with what is there",
        "Another app claims a host that overlaps.";
    WouldOrphanRoutes = "would_orphan_routes", CONFLICT, "This conflicts with what is there",
        "The `routes` would be on hosts that the app does not claim any more; `?orphan=true` does it all the same.";
    NameTaken = "name_taken", CONFLICT, "This conflicts with what is there",
        "Another one has the name.";
    VersionConflict = "version_conflict", CONFLICT, "This conflicts with what is there",
        "The script was changed since you read it; `current_version` is what it is at.";
    RouteConflict = "route_conflict", CONFLICT, "This conflicts with what is there",
        "`conflicting_route` matches the same requests equally well.";
    AlreadySettled = "already_settled", CONFLICT, "This conflicts with what is there",
        "The dead letter was replayed or resolved before; `state` says which.";
    AlreadySetUp = "already_set_up", CONFLICT, "This conflicts with what is there",
        "The instance has an owner.";
    LastOwner = "last_owner", CONFLICT, "This conflicts with what is there",
        "The instance would be left without an owner who can sign in.";
    TooMany = "too_many", CONFLICT, "This conflicts with what is there",
        "There are as many as there may be; of an app's objects `kind` and `max` say which and how many.";
    NoMasterKey = "no_master_key", CONFLICT, "This conflicts with what is there",
        "The instance has no master key to encrypt secrets with.";
    IdempotencyInProgress = "idempotency_in_progress", CONFLICT, "This conflicts with what is there",
        "A route: the first call with this Idempotency-Key has not ended yet.";
    IdempotencyAnswerNotKept = "idempotency_answer_not_kept", CONFLICT, "This conflicts with what is there",
        "A route: the first call with this Idempotency-Key has ended, and its answer is not kept.";
    BackupRunning = "backup_running", CONFLICT, "This conflicts with what is there",
        "Another backup is being taken.";
    PreconditionFailed = "precondition_failed", PRECONDITION_FAILED, "It is not what you expected",
        "Its `ETag` is none that `If-Match` named: it was changed since you read it, or is gone.";
    DeadLink = "dead_link", GONE, "The link is dead",
        "The link was used, was revoked, has expired or never was.";
    DeadCode = "dead_code", GONE, "The code is dead",
        "The code of a sign-in was used, has expired, or is not this program's.";
    AppDeleted = "app_deleted", GONE, "The app was deleted",
        "A route: its app was deleted while you waited.";
    UriTooLong = "uri_too_long", URI_TOO_LONG, "The URL is too long",
        "Path and query have more than 16 KiB.";
    HeadersTooLarge = "headers_too_large", REQUEST_HEADER_FIELDS_TOO_LARGE, "The header is too large",
        "The header fields have more than 64 KiB, or are more than 100; cookies are often why.";
    TooSlow = "too_slow", REQUEST_TIMEOUT, "The request came too slowly",
        "The body was not there in time: `client_timeout_ms`, and longer while it comes at 16 KiB/s, at most 5 minutes.";
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE, "The body is too large",
        "The body, or a value in it, has more bytes than the limit.";
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE, "The body is of another type",
        "The `Content-Type` of the body is not JSON.";
    InvalidRequest = "invalid_request", UNPROCESSABLE_ENTITY, "The request is not valid",
        "`field` has a value that it cannot have.";
    InvalidSource = "invalid_source", UNPROCESSABLE_ENTITY, "The code does not validate",
        "A script's source or component; `diagnostics` name lines and columns of a source.";
    IdempotencyKeyReused = "idempotency_key_reused", UNPROCESSABLE_ENTITY, "The key was used for another request",
        "A route: this Idempotency-Key came with another method, path, query, content type or body before.";
    TooManyAttempts = "too_many_attempts", TOO_MANY_REQUESTS, "Too many attempts",
        "From this address, or for this name; `Retry-After` says when to go on.";
    TooManyReplays = "too_many_replays", TOO_MANY_REQUESTS, "Too many replays",
        "Too many streams of one user, token or address began with what they missed; `Retry-After` says when to try again.";
    TooManyStreams = "too_many_streams", TOO_MANY_REQUESTS, "Too many streams",
        "As many streams are open as may be; `Retry-After` says when to try again.";
    Internal = "internal", INTERNAL_SERVER_ERROR, "The platform failed",
        "Our own fault; the server's log has the cause under `error_id`.";
    ScriptFailed = "script_failed", BAD_GATEWAY, "The script failed",
        "A route: its script threw, trapped or answered nonsense.";
    OidcUntrusted = "oidc_untrusted", BAD_GATEWAY, "The sign-in failed",
        "What the provider answered proves nothing; the server's log says why.";
    OidcUnreachable = "oidc_unreachable", SERVICE_UNAVAILABLE, "The sign-in failed",
        "The provider cannot be reached now.";
    Unavailable = "unavailable", SERVICE_UNAVAILABLE, "Not available now",
        "The database cannot be reached now, the node has not been able to read for too long to tell what you may do, or it is stopping; `Retry-After` says when to try again.";
    Overloaded = "overloaded", SERVICE_UNAVAILABLE, "Too much at once",
        "As many executions run as may at once, they, requests' bodies or answers that are not read hold as much memory as they may, or as much code waits to be compiled as may; all of them or those of one app or address.";
    TimedOut = "timed_out", GATEWAY_TIMEOUT, "The script took too long",
        "A route: its script took longer than its time limit.";
    QuotaUsedUp = "quota_used_up", INSUFFICIENT_STORAGE, "There is no room for it",
        "The app keeps as much of this kind of data as it may: `data` names it, and `GET /apps/{app}/usage` tells how much. Also a route: of deliveries that wait, or of kept answers.";
    FuelUsedUp = "fuel_used_up", INSUFFICIENT_STORAGE, "The script used up its fuel",
        "A route: its script used up its fuel before it answered.";
}

impl ProblemType {
    /// Its stable URN, an answer's `type`.
    pub fn urn(self) -> String {
        format!("urn:picloud:problem:{}", self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::http::tables;

    #[test]
    fn the_docs_list_every_type() {
        let mut table = "| type | status | when |\n|---|---|---|\n".to_owned();
        for one in ProblemType::ALL {
            let (name, status, when) = (one.name(), one.status().as_u16(), one.when());
            writeln!(table, "| `{name}` | {status} | {when} |").unwrap();
        }
        tables::check("api.md", &[("problems", table)]);
    }
}
