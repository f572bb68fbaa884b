//! The routes of the apps: from a request to a delivery, and from its outcome to an answer.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use serde_json::json;

use super::body::{self, Allowance};
use super::problem::{Problem, ProblemType, diagnostics_json};
use super::{address, coding, cookie, cors, trace};
use crate::apps::AppId;
use crate::directory::Picture;
use crate::dispatch::dispatcher::Order;
use crate::dispatch::retry::RetryPolicy;
use crate::dispatch::sql::Placed;
use crate::dispatch::{Answer, Delivery, Payload};
use crate::idempotency::{KEY_BYTES_MAX, Key, Known, is_key};
use crate::json;
use crate::node::Node;
use crate::routes::table::{Match, NoMatch};
use crate::routes::{DispatchMode, TrailingSlash, pattern};
use crate::sandbox::{self, Outcome};
use crate::stopping::Stage;
use crate::store::micros;
use crate::telemetry::trace::Span;

const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Says that an answer is an earlier call's, with the same `Idempotency-Key`.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Says that the route does not look at the `Idempotency-Key` that came.
const IGNORED: HeaderName = HeaderName::from_static("idempotency-ignored");

/// What the pages of an app may do in a browser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pages {
    /// All that pages may: nobody signs in on their host.
    Free,
    /// Nothing with what else is on their host, where people sign in to the dashboard: a browser
    /// gives them an origin of their own.
    Sandboxed,
}

/// All that pages may, but `allow-same-origin`.
const SANDBOX: HeaderValue = HeaderValue::from_static(
    "sandbox allow-downloads allow-forms allow-modals allow-popups \
     allow-popups-to-escape-sandbox allow-scripts allow-top-navigation-by-user-activation",
);

/// Answer a request that is none of the instance's own.
pub(super) async fn answer(State(node): State<Arc<Node>>, request: Request) -> Response {
    // A page asks before it calls. Where the route that it will call says who may, nothing runs.
    if let Some(method) = cors::asked_method(&request)
        && let Ok(bound) = find(&node, method, &request)
        && let Some(policy) = &bound.found.route.cors
    {
        matched(&request, &bound);
        return cors::preflight(policy, method, request.headers());
    }
    let bound = match find(&node, request.method().as_str(), &request) {
        Ok(bound) => bound,
        Err(problem) => return problem.into_response(),
    };
    matched(&request, &bound);
    let policy = bound.found.route.cors.as_ref();
    let words = policy.map(|policy| cors::Words::of(policy, &request));
    let has_ignored_key =
        bound.found.route.idempotency.is_none() && request.headers().contains_key(IDEMPOTENCY_KEY);
    let answered = match &bound.at {
        Some(path) => moved(path, request.uri().query()),
        None => deliver(&node, bound, request).await,
    };
    let mut response = answered.unwrap_or_else(IntoResponse::into_response);
    if has_ignored_key {
        let headers = response.headers_mut();
        headers.insert(IGNORED, HeaderValue::from_static("true"));
    }
    if let Some(words) = words {
        words.say(response.headers_mut());
    }
    response
}

/// What is answered where an app has no route.
pub(super) fn no_route(path: &str) -> Problem {
    Problem::not_found(format!("no route matches `{path}` on this host"))
}

/// The route that a request takes.
struct Bound {
    picture: Arc<Picture>,
    app_id: AppId,
    pages: Pages,
    found: Match,
    /// The path that the request leads to, where it has not the route's own.
    at: Option<String>,
    /// The host that it is for, where the app has hosts: elsewhere it is any name of the node.
    host: Option<String>,
}

/// The route that a request takes, or would take with this method.
fn find(node: &Node, method: &str, request: &Request) -> Result<Bound, Problem> {
    let host = address::host(request.headers(), request.uri());
    let picture = node.directory.picture();
    let path = request.uri().path();
    let nothing = || no_route(path);
    // The instance's own paths lead to no app, whatever its routes match.
    if node.config.admin_host.as_ref() == Some(&host) || pattern::is_reserved(path) {
        return Err(nothing());
    }
    let app = picture.app_for_host(&host).ok_or_else(nothing)?;
    let pages = match node.config.admin_host.is_some() || app.claims_hosts() {
        true => Pages::Free,
        false => Pages::Sandboxed,
    };
    // It would stand between the host's every page and its server, and stay when the app is gone.
    if pages == Pages::Sandboxed && request.headers().contains_key(SERVICE_WORKER) {
        let detail = "a service worker takes a host that the app has to itself";
        return Err(Problem::forbidden(detail));
    }
    let (app_id, claims_hosts) = (app.id, app.claims_hosts());
    let table = picture.routes(app_id).ok_or_else(nothing)?;
    let mut found = table.find(method, &host, path);
    let mut at = None;
    if matches!(found, Err(NoMatch::Path))
        && let Some(other) = other_slash(path)
        && let Ok(beside) = table.find(method, &host, &other)
        && beside.route.trailing_slash == TrailingSlash::Redirect
    {
        found = Ok(beside);
        at = Some(other);
    }
    let found = found.map_err(|no| match no {
        NoMatch::Path => nothing(),
        NoMatch::Method(allow) => {
            Problem::method_not_allowed(&allow.into_iter().collect::<Vec<_>>().join(", "))
        }
        NoMatch::Undecodable => Problem::malformed("the path is not UTF-8 once decoded"),
    })?;
    Ok(Bound {
        picture,
        app_id,
        pages,
        found,
        at,
        host: claims_hosts.then(|| host.to_string()),
    })
}

/// A path with a slash at its end, without it; and the other way round.
fn other_slash(path: &str) -> Option<String> {
    match path.strip_suffix('/') {
        Some("") => None,
        Some(without) => Some(without.to_owned()),
        None => Some(format!("{path}/")),
    }
}

/// Lead a client to another path of the same host, with the same method and body.
fn moved(path: &str, query: Option<&str>) -> Result<Response, Problem> {
    // `//host` would be another host's, and to browsers so would `/\\host`.
    let path = path.trim_start_matches('/').replace('\\', "%5C");
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    match HeaderValue::try_from(format!("/{path}{query}")) {
        Ok(to) => Ok((StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, to)]).into_response()),
        Err(_) => Err(no_route(&path)),
    }
}

/// What a browser sends with its request for the script of a service worker.
const SERVICE_WORKER: HeaderName = HeaderName::from_static("service-worker");

/// What browsers keep for the whole host: not for an app to say that has it not to itself.
const OF_WHOLE_HOSTS: [&str; 16] = [
    "accept-ch",
    "alt-svc",
    "clear-site-data",
    "critical-ch",
    "expect-ct",
    "nel",
    "origin-agent-cluster",
    "public-key-pins",
    "report-to",
    "reporting-endpoints",
    "sec-session-registration",
    "secure-session-registration",
    "service-worker-allowed",
    "set-login",
    "strict-transport-security",
    "use-as-dictionary",
];

/// Name the span of a request after its route.
fn matched(request: &Request, bound: &Bound) {
    let method = request.method().as_str();
    trace::matched(&Span::current(), method, &bound.found.route.path);
}

async fn deliver(node: &Arc<Node>, bound: Bound, request: Request) -> Result<Response, Problem> {
    let Bound {
        picture,
        app_id,
        pages,
        found,
        at: _,
        host,
    } = bound;
    let script = picture.script(found.route.script_id);
    let script = script
        .filter(|script| script.app_id == app_id)
        .ok_or_else(|| Problem::not_found("the script of this route was deleted"))?;
    let timeout = Duration::from_millis(node.runner.limits(script).timeout_ms);
    let (script_id, mode) = (script.id, found.route.dispatch_mode);
    let (route_id, idempotency) = (found.route.id, found.route.idempotency);
    drop(picture);

    let (parts, body) = request.into_parts();
    let address = address::of(&parts, &node.config.trusted_proxies);
    let answers = node.bodies.hold(&address, Some(app_id));
    answers.check()?;
    let request = Request::from_parts(parts, body);
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default();
    let query = form_urlencoded::parse(query.as_bytes())
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    let method = request.method().as_str().to_owned();
    let (parts, body) = body_of(node, (&address, app_id), request).await?;
    let headers = header_pairs(&parts);
    let raw_query = parts.uri.query().unwrap_or_default();
    // The body may have taken long to come. What enters the outbox after the dispatcher has given
    // back what it holds would wait for the end of its lease.
    if node.stopping.stage() >= Stage::Refusing {
        return Err(Problem::stopping("The node is stopping; try again"));
    }
    let request = sandbox::Request {
        method,
        path,
        params: found.params,
        query,
        rest: found.rest,
        headers,
        body,
    };
    let key = match idempotency {
        Some(policy) => idempotency_key(&request)?.map(|key| {
            (
                Key::of_request(
                    route_id.uuid(),
                    key,
                    &request,
                    (host.as_deref(), raw_query),
                    policy,
                ),
                policy,
            )
        }),
        None => None,
    };
    let payload = Payload::Request(request);
    match mode {
        DispatchMode::Sync => {
            let delivery = Delivery::new(app_id, script_id, "http", payload, RetryPolicy::ONCE);
            let execution_id = delivery.id.to_string();
            let key = key.map(|(key, policy)| (key, policy.keep_answer));
            let order = Order {
                delivery,
                timeout,
                key,
            };
            let answer = node.dispatcher.call(order).await?;
            // `None` means the wait timed out: while this future lives, the caller is connected.
            let answer = answer.unwrap_or(Answer::Outcome(Outcome::TimedOut));
            let response = respond(answer, &execution_id, pages)?;
            Ok(response.map(|body| body::answered(body, &answers)))
        }
        DispatchMode::Async => {
            let retry = node.config.retry;
            let delivery = Delivery::new(app_id, script_id, "http_async", payload, retry);
            let accepted = |execution_id| {
                let accepted =
                    json!({ "accepted_at": micros(Utc::now()), "execution_id": execution_id });
                (StatusCode::ACCEPTED, Json(accepted)).into_response()
            };
            let execution_id = delivery.id.of();
            let key = key.map(|(key, _)| key);
            match node.dispatcher.enqueue(delivery, key).await? {
                Placed::Known(known) if !known.same_request => Err(other_request(&known)),
                Placed::Known(known) => Ok(replayed(accepted(known.execution_id))),
                _ => Ok(accepted(execution_id)),
            }
        }
    }
}

/// The request's `Idempotency-Key`, if it has one.
fn idempotency_key(request: &sandbox::Request) -> Result<Option<String>, Problem> {
    let mut keys = request
        .headers
        .iter()
        .filter(|(name, _)| name == IDEMPOTENCY_KEY)
        .map(|(_, value)| value);
    let Some(key) = keys.next() else {
        return Ok(None);
    };
    if !is_key(key) || keys.next().is_some() {
        let detail = format!(
            "send one Idempotency-Key of 1 to {KEY_BYTES_MAX} bytes without control characters"
        );
        return Err(Problem::malformed(detail).with("field", "Idempotency-Key"));
    }
    Ok(Some(key.clone()))
}

fn replayed(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

fn other_request(known: &Known) -> Problem {
    Problem::new(
        ProblemType::IdempotencyKeyReused,
        "This Idempotency-Key came with another request before; a new request needs a new key",
    )
    .with("field", "Idempotency-Key")
    .with("execution_id", known.execution_id.to_string())
}

/// What a caller gets whose key was used before.
fn known_answer(known: Known, pages: Pages) -> Result<Response, Problem> {
    if !known.same_request {
        return Err(other_request(&known));
    }
    let execution_id = known.execution_id.to_string();
    let problem = match (known.answer, known.done) {
        (Some(answer), _) => {
            return Ok(replayed(script_response(
                answer.into(),
                &execution_id,
                pages,
            )));
        }
        (None, false) => Problem::new(
            ProblemType::IdempotencyInProgress,
            "The first call with this Idempotency-Key has not ended yet; try again",
        )
        .with_header(header::RETRY_AFTER, "1"),
        (None, true) => Problem::new(
            ProblemType::IdempotencyAnswerNotKept,
            "The first call with this Idempotency-Key has ended, and its answer is not kept",
        ),
    };
    Err(problem.with("execution_id", execution_id))
}

/// A field's value: in UTF-8 or, as HTTP had it before, in Latin-1 (RFC 9110, 5.5), so that two
/// values are one text only where they say the same.
fn field_text(value: &HeaderValue) -> String {
    let bytes = value.as_bytes();
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().copied().map(char::from).collect(),
    }
}

fn header_pairs(Parts { headers, uri, .. }: &Parts) -> Vec<(String, String)> {
    let text = field_text;
    let mut pairs: Vec<(String, String)> = headers
        .iter()
        .filter(|(name, _)| **name != header::COOKIE)
        .map(|(name, value)| (name.as_str().to_owned(), text(value)))
        .collect();
    // Over HTTP/2 each cookie may come in a field of its own; to whoever reads them they are one
    // (RFC 9113, 8.2.3).
    let cookies: Vec<String> = headers.get_all(header::COOKIE).iter().map(text).collect();
    if !cookies.is_empty()
        && let Some(cookies) = cookie::without_ours(cookies.join("; "))
    {
        pairs.push((header::COOKIE.as_str().to_owned(), cookies));
    }
    // Over HTTP/2 it is a part of the target (RFC 9113, 8.3.1).
    if !headers.contains_key(header::HOST)
        && let Some(host) = uri.authority()
    {
        pairs.push((header::HOST.as_str().to_owned(), host.to_string()));
    }
    pairs
}

/// The body within its limit, if it is what its content type says, and the rest of the request,
/// which fits it.
async fn body_of(
    node: &Node,
    (address, app_id): (&str, AppId),
    request: Request,
) -> Result<(Parts, Option<sandbox::Body>), Problem> {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let content_type = content_type.map(|ty| String::from_utf8_lossy(ty.as_bytes()).into_owned());
    let (mut parts, body) = request.into_parts();
    if body.is_end_stream() {
        return Ok((parts, None));
    }
    let config = &node.config;
    let allowance = Allowance {
        bytes_max: config.body_bytes_max,
        patience_ms: config.client_timeout_ms,
        hold: node.bodies.hold(address, Some(app_id)),
    };
    let bytes = body::read(body, &allowance).await?;
    if bytes.is_empty() {
        return Ok((parts, None));
    }
    let bytes = match coding::decoded(&parts.headers, &bytes, allowance.bytes_max)? {
        Some(decoded) => {
            coding::say_length(&mut parts.headers, decoded.len());
            decoded
        }
        None => bytes,
    };
    if let Some(content_type) = &content_type {
        check_body(content_type, &bytes)?;
    }
    // Counted for as long as the call has it, or its delivery once the caller was told.
    let bytes = allowance.counted(bytes)?;
    let body = sandbox::Body {
        content_type,
        bytes,
    };
    Ok((parts, Some(body)))
}

fn check_body(content_type: &str, bytes: &[u8]) -> Result<(), Problem> {
    let essence = content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    let is_json = json::is_media_type(&essence);
    let form = essence == "application/x-www-form-urlencoded";
    // Text may name another charset; JSON (RFC 8259) and forms may not.
    let text =
        essence.starts_with("text/") && !content_type.to_ascii_lowercase().contains("charset");
    if (is_json || form || text) && std::str::from_utf8(bytes).is_err() {
        return Err(Problem::malformed(format!(
            "the body is not UTF-8, as `{essence}` is"
        )));
    }
    match is_json {
        true => json::check_bytes(bytes).map_err(|refused| Problem::not_json("body", &refused)),
        false => Ok(()),
    }
}

/// What a sync caller gets.
fn respond(answer: Answer, execution_id: &str, pages: Pages) -> Result<Response, Problem> {
    let problem = match answer {
        Answer::Outcome(Outcome::Answered(response)) => {
            return Ok(script_response(response, execution_id, pages));
        }
        Answer::Outcome(outcome) => failed(outcome),
        Answer::Known(known) => return known_answer(known, pages),
        Answer::ScriptDeleted => Problem::not_found("the script of this route was deleted"),
        Answer::AppDeleted => Problem::new(ProblemType::AppDeleted, "The app was deleted"),
        Answer::Unavailable => {
            Problem::unavailable("The database cannot be reached now; the call was not completed")
        }
        Answer::Stopped => Problem::new(
            ProblemType::TimedOut,
            "The script was stopped, because the database was away for too long; it may have run in part",
        ),
        Answer::PlatformFault => Problem::internal(format!("execution {execution_id}")),
    };
    Err(problem.with("execution_id", execution_id))
}

/// What an outcome that is no answer means for the caller. What the script said of itself stays
/// in its log: the caller is the public.
fn failed(outcome: Outcome) -> Problem {
    let script = |detail: &str| Problem::new(ProblemType::ScriptFailed, detail);
    match outcome {
        Outcome::Answered(_) => script("the script answered"),
        Outcome::InvalidSource(found) => {
            Problem::new(ProblemType::InvalidSource, "The script does not validate")
                .with("diagnostics", diagnostics_json(found))
        }
        Outcome::Threw(_) => script("The script threw an error; its execution's log has it"),
        Outcome::InvalidResponse(_) => {
            script("The script's response is not valid; its execution says why")
        }
        Outcome::MemoryExceeded => script("The script wanted more memory than its limit"),
        Outcome::StackOverflow => script("The script called too deeply"),
        Outcome::OutputTooLarge { .. } => script("The script's response is larger than its limit"),
        Outcome::HostCallsExceeded(_) => script("The script called the host too often"),
        Outcome::Trapped(_) => script("The script trapped"),
        Outcome::FuelUsedUp => Problem::new(
            ProblemType::FuelUsedUp,
            "The script used up its fuel before it answered",
        ),
        Outcome::TimedOut => Problem::new(
            ProblemType::TimedOut,
            "The script took longer than its time limit",
        ),
        Outcome::NoCapacity => crate::dispatch::dispatcher::GateFull.into(),
        Outcome::NoMemory(_) => Problem::new(
            ProblemType::Overloaded,
            "Executions hold as much memory as they may, all of them or this app's; try again",
        )
        .with_header(header::RETRY_AFTER, "1"),
        Outcome::Platform(problem) => Problem::internal(problem),
    }
}

fn script_response(response: sandbox::Response, execution_id: &str, pages: Pages) -> Response {
    let mut answer = Response::new(Body::from(response.body));
    // The sandbox let only 200 to 599 through.
    *answer.status_mut() = StatusCode::from_u16(response.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = answer.headers_mut();
    for (name, value) in response.headers {
        let parsed = (
            name.parse::<HeaderName>(),
            HeaderValue::from_bytes(value.as_bytes()),
        );
        if let (Ok(name), Ok(value)) = parsed
            && !(name == header::SET_COOKIE && cookie::sets_ours(&value))
            && !(pages == Pages::Sandboxed && OF_WHOLE_HOSTS.contains(&name.as_str()))
        {
            headers.append(name, value);
        }
    }
    if pages == Pages::Sandboxed {
        // Beside what the script says itself: a browser obeys all such policies at once.
        headers.append(header::CONTENT_SECURITY_POLICY, SANDBOX);
    }
    if let Ok(id) = HeaderValue::from_str(execution_id) {
        headers.insert(HeaderName::from_static("x-execution-id"), id);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_what_its_type_says_or_400() {
        for (content_type, body, fine) in [
            ("application/json", &b"{\"a\": 1}"[..], true),
            ("application/json", b"{\"a\": ", false),
            ("application/json", b"\"\\ud83d\"", false),
            ("application/problem+json; x=y", b"[", false),
            ("application/json", b"\"\xff\"", false),
            ("text/plain", b"\xff", false),
            ("text/plain; charset=latin1", b"\xff", true),
            ("application/x-www-form-urlencoded", b"a=\xff", false),
            ("image/png", b"\xff", true),
        ] {
            assert_eq!(
                check_body(content_type, body).is_ok(),
                fine,
                "{content_type}"
            );
        }
    }
}
