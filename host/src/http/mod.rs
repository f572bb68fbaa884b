//! The server: every path of the instance, and the routes of the apps behind them.

pub mod address;
pub(crate) mod admission;
pub mod answer;
pub mod body;
mod client;
mod coding;
pub mod connections;
pub mod cookie;
mod cors;
mod dashboard;
pub mod endpoints;
pub mod etag;
pub mod extract;
pub mod heavy;
mod objects;
pub mod openapi;
mod pace;
pub mod problem;
mod realtime;
pub mod seen_through;
pub(crate) mod stream;
mod system;
#[cfg(test)]
mod tables;
mod trace;
mod user_routes;

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{ConnectInfo, OriginalUri, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use futures_util::FutureExt;
use tokio::net::TcpListener;
use tower::ServiceExt;

use crate::node::Node;
use crate::routes::pattern;
use crate::stopping::Stage;
use crate::{
    apps, audit, backup, dead_letters, doctor, executions, identity, instance, journal, kv, oidc,
    overview, portable, pubsub, quotas, retention, routes, scripts, secrets, triggers,
};
use connections::Responder;
use problem::{Problem, ProblemType};

/// The largest body of the admin API: a component of 16 MiB as base64 fits.
pub const API_BODY_BYTES_MAX: usize = 24 * 1024 * 1024;
/// The largest body of a public endpoint, which anybody may send.
pub const PUBLIC_BODY_BYTES_MAX: usize = 64 * 1024;

/// Where the API is.
pub const API_ROOT: &str = "/api/v1";

/// Every endpoint of the API.
pub fn endpoints() -> endpoints::Api {
    endpoints::Api::default()
        .room("identity", identity::api::endpoints())
        .room("users", identity::users::api::endpoints())
        .room("oidc", oidc::api::endpoints())
        .room("apps", apps::api::endpoints())
        .room("scripts", scripts::api::endpoints())
        .room("routes", routes::api::endpoints())
        .room("executions", executions::api::endpoints())
        .room("overview", overview::api::endpoints())
        .room("instance", instance::api::endpoints())
        .room("kv", kv::api::endpoints())
        .room("triggers", triggers::api::endpoints())
        .room("dead_letters", dead_letters::api::endpoints())
        .room("quotas", quotas::api::endpoints())
        .room("retention", retention::api::endpoints())
        .room("secrets", secrets::api::endpoints())
        .room("pubsub", pubsub::api::endpoints())
        .room("journal", journal::api::endpoints())
        .room("audit", audit::api::endpoints())
        .room("doctor", doctor::api::endpoints())
        .room("backup", backup::api::endpoints())
        .room("portable", portable::api::endpoints())
        .room("openapi", openapi::endpoints())
        .room("client", client::endpoints())
}

/// What belongs to the instance itself.
fn own(node: Arc<Node>) -> Router {
    let api = endpoints().guarded(node.clone()).fallback(unknown_path);
    let on_own_host = middleware::from_fn_with_state(node.clone(), on_own_host);
    Router::new()
        .nest(API_ROOT, api)
        .route("/api", any(unknown_path))
        .route("/api/{*rest}", any(unknown_path))
        .merge(dashboard::router())
        .layer(on_own_host)
        .merge(system::router())
        .merge(realtime::router())
        .fallback(user_routes::answer)
        .layer(middleware::map_response(explained))
        .layer(middleware::from_fn(trace::name))
        .with_state(node)
}

/// Serve every path of the instance until the node is [closed](Stage::Closed), and then until what
/// is being answered is.
pub async fn serve(listener: TcpListener, node: Arc<Node>) {
    let (own, served) = (own(node.clone()), node.clone());
    let responder: Responder =
        Arc::new(move |peer, request| answer(own.clone(), served.clone(), peer, request).boxed());
    connections::serve(listener, responder, &node.config, &node.stopping).await;
}

/// The API and the dashboard are on the instance's own host, where it has one.
async fn on_own_host(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    let host = address::host(request.headers(), request.uri());
    if let Some(own) = node.config.admin_host.as_ref().filter(|own| **own != host) {
        // Routes cannot be below these paths.
        let path = request.uri().path();
        return match path.starts_with("/api/v1/") {
            true => api_is_on(own).into_response(),
            false => user_routes::no_route(path).into_response(),
        };
    }
    let is_api = request.uri().path().starts_with("/api/");
    let (parts, body) = request.into_parts();
    let is_https = address::is_https(&parts, &node.config.trusted_proxies);
    let known = etag::Known::of(&parts);
    let mut response = next.run(Request::from_parts(parts, body)).await;
    secure(response.headers_mut(), is_https);
    if is_api {
        response.headers_mut().insert(API, API_VERSION);
    }
    etag::unless_known(&known, response)
}

/// Says that it is the API that answers: whoever gets no body, or any JSON, could not tell it from
/// something else that is there.
pub(crate) const API: HeaderName = HeaderName::from_static("picloud-api");
const API_VERSION: HeaderValue = HeaderValue::from_static("v1");

/// Who calls the API on another host knew of the instance, and is told where it is.
fn api_is_on(admin_host: &str) -> Problem {
    let detail = format!("the API of this instance is on the host `{admin_host}`, not on this one");
    Problem::not_found(detail).with("admin_host", admin_host)
}

/// What the API answers is data, whatever a browser makes of it.
const DATA_POLICY: HeaderValue =
    HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; sandbox");
/// Our pages load themselves and nothing else. Styles may stand in a page: editors write them.
const PAGE_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
);

/// Say to browsers what our own answers are for. What a handler has said stands.
fn secure(headers: &mut HeaderMap, is_https: bool) {
    let kind = headers.get(header::CONTENT_TYPE);
    let is_data = kind.is_some_and(|kind| {
        let kind = kind.as_bytes();
        kind.starts_with(b"application/json") || kind.starts_with(b"application/problem+json")
    });
    let policy = if is_data { DATA_POLICY } else { PAGE_POLICY };
    let mut say = |name: HeaderName, value: HeaderValue| {
        headers.entry(name).or_insert(value);
    };
    say(header::CONTENT_SECURITY_POLICY, policy);
    say(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    say(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    say(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    let same_origin = || HeaderValue::from_static("same-origin");
    say(
        HeaderName::from_static("cross-origin-opener-policy"),
        same_origin(),
    );
    say(
        HeaderName::from_static("cross-origin-resource-policy"),
        same_origin(),
    );
    if is_data {
        say(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if is_https {
        let year = HeaderValue::from_static("max-age=31536000");
        say(header::STRICT_TRANSPORT_SECURITY, year);
    }
}

async fn unknown_path(OriginalUri(uri): OriginalUri) -> Problem {
    let detail = format!("there is nothing at `{}`", uri.path());
    Problem::new(ProblemType::UnknownPath, detail)
}

/// Path and query; the target of a redirect with a long state fits.
const URI_BYTES_MAX: usize = 16 * 1024;
/// All header fields.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// As many as hyper takes over HTTP/1.
const HEADERS_MAX: usize = 100;

/// What is asked of a server that is no proxy (RFC 9110, 9.3.6).
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

fn check_head(request: &Request) -> Result<(), Problem> {
    let path_and_query = request.uri().path_and_query();
    if path_and_query.is_some_and(|text| text.as_str().len() > URI_BYTES_MAX) {
        return Err(Problem::uri_too_long(URI_BYTES_MAX));
    }
    if request.method() == Method::CONNECT {
        return Err(Problem::method_not_allowed(METHODS));
    }
    let headers = request.headers();
    let lengths = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len());
    if headers.len() > HEADERS_MAX || lengths.sum::<usize>() > HEADER_BYTES_MAX {
        return Err(Problem::headers_too_large(HEADER_BYTES_MAX));
    }
    // A proxy may take the first for the coding, and we the last.
    if headers.get_all(header::TRANSFER_ENCODING).iter().count() > 1 {
        return Err(Problem::malformed("send one Transfer-Encoding header"));
    }
    let codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let mut codings = codings.filter(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if codings.next().is_some() {
        return Err(Problem::malformed(
            "the only Transfer-Encoding that is understood is chunked; say what a body is coded in by Content-Encoding",
        ));
    }
    let named = request
        .uri()
        .authority()
        .map(|authority| authority.as_str());
    // RFC 9112, 3.2: whoever stands before us may have meant the other one. Where none is named, as
    // HTTP/1.0 allows, nobody could tell which app is meant; probes of proxies do so, and mean none.
    let hosts = headers.get_all(header::HOST).iter().count();
    let is_missing = hosts == 0
        && match request.version() {
            Version::HTTP_11 => true,
            _ => named.is_none() && !system::is_always_answered(request.uri().path()),
        };
    if hosts > 1 || is_missing {
        return Err(Problem::malformed("send one Host header"));
    }
    let told = [
        headers.get(header::HOST).map(HeaderValue::as_bytes),
        named.map(str::as_bytes),
    ];
    if !told.into_iter().flatten().all(address::is_host_and_port) {
        return Err(Problem::malformed(
            "Host is the name or address of a host, with a port or without: `example.com:8080`",
        ));
    }
    let host = headers.get(header::HOST).map(HeaderValue::as_bytes);
    if let (Some(named), Some(host)) = (named, host)
        && !host.eq_ignore_ascii_case(named.as_bytes())
    {
        return Err(Problem::malformed(
            "the request's target names another host than Host",
        ));
    }
    Ok(())
}

/// Answer a request in its caller's trace, unless it is too large or ambiguous for anybody to look
/// at. Calls of the apps' routes do not go through axum's router, which could only tell that they
/// are none of its own: an idle one starts some 50 µs earlier so.
async fn answer(own: Router, node: Arc<Node>, peer: SocketAddr, request: Request) -> Response {
    let (method, version) = (request.method().clone(), request.version());
    let fitting = |answer: Response| fitting(&method, answer);
    trace::follow(request, async |mut request| {
        if let Err(problem) = check_head(&request) {
            let is_malformed = problem.of() == ProblemType::MalformedRequest;
            let mut response = fitting(problem.into_response());
            // Where such a request ends, and whether another one follows, is not for us to guess.
            if is_malformed && version < Version::HTTP_2 {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            return response;
        }
        let path = request.uri().path();
        if node.stopping.stage() >= Stage::Refusing && !system::is_always_answered(path) {
            return fitting(Problem::stopping("The node is stopping; try again").into_response());
        }
        request.extensions_mut().insert(ConnectInfo(peer));
        let over = node.stopping.reached(Stage::Over);
        let stopping = node.clone();
        let answered = async {
            if pattern::is_reserved(request.uri().path()) {
                let Ok(response) = own.oneshot(request).await;
                response
            } else {
                fitting(user_routes::answer(State(node), request).await)
            }
        };
        let answered = tokio::select! {
            biased;
            answered = AssertUnwindSafe(answered).catch_unwind() => answered,
            () = over => {
                let detail = "The node stops, and this had not ended in time; it may still end";
                Ok(fitting(Problem::stopping(detail).into_response()))
            }
        };
        match answered {
            Ok(response) => leaving(&stopping, version, response),
            Err(panic) => {
                let said = panic.downcast_ref::<&str>().copied().map(str::to_owned);
                let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
                let problem = Problem::internal(format!("a panic: {}", said.unwrap_or_default()));
                fitting(problem.into_response())
            }
        }
    })
    .await
}

/// An answer of a node that is to stop asks for its connection to be closed: what comes next on it
/// may find nobody. HTTP/2 says so once for all.
fn leaving(node: &Node, version: Version, mut response: Response) -> Response {
    if version < Version::HTTP_2 && node.stopping.stage() >= Stage::Leaving {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

/// An answer as its method wants it (RFC 9110, 9.3.2): to HEAD the length alone. axum's router sees to
/// it for what it routes.
fn fitting(method: &Method, mut response: Response) -> Response {
    let status = response.status();
    // RFC 9110, 15.3.5, 15.3.6 and 15.4.5: whatever a script says of them.
    let is_empty = matches!(
        status,
        StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED
    );
    if is_empty {
        *response.body_mut() = Body::empty();
        response.headers_mut().remove(header::CONTENT_LENGTH);
        if status == StatusCode::RESET_CONTENT && *method != Method::HEAD {
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
    } else if *method == Method::HEAD
        && let Some(length) = response.body().size_hint().exact()
    {
        let headers = response.headers_mut();
        headers
            .entry(header::CONTENT_LENGTH)
            .or_insert(length.into());
    }
    if *method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    response
}

/// axum answers an unknown method with an empty 405; ours say what would work.
async fn explained(response: Response) -> Response {
    let bare = response.headers().get(header::CONTENT_TYPE).is_none();
    if response.status() == StatusCode::METHOD_NOT_ALLOWED && bare {
        // axum adds `Allow` itself, but after us, and leaves one that is there.
        let detail = "This path takes other methods; `Allow` names them";
        return Problem::new(ProblemType::MethodNotAllowed, detail).into_response();
    }
    response
}
