//! The endpoints of the API with what each takes: an endpoint cannot be added without saying so,
//! and all of them are guarded here, before a handler runs.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath, RawPathParams, Request, State};
use axum::handler::Handler;
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{self, MethodRouter};
use axum::{Extension, Router};

use super::admission::Admission;
use super::body::{self, Allowance};
use super::extract::nothing_at;
use super::heavy;
use super::openapi::describe::{Described, Operation, Output};
use super::pace::Endless;
use super::problem::{Problem, ProblemType};
use crate::apps::AppId;
use crate::audit::{self, Act, Acting, Actor};
use crate::dispatch::sql as outbox;
use crate::executions::ExecutionId;
use crate::identity::capability::{self, Capability, Decision};
use crate::identity::guesses::Counted;
use crate::identity::{Caller, Via};
use crate::node::Node;
use crate::store::witnessed;
use crate::{dead_letters, executions, routes};

/// What an endpoint takes.
#[derive(Debug, Clone, Copy)]
pub enum Rule {
    /// Nothing: anybody may call it.
    Public,
    /// That somebody signed in, or sent an API key.
    SignedIn,
    /// That somebody signed in: an API key will not do.
    Session,
    /// A capability on the instance.
    Instance(Capability),
    /// A capability in the app that the path names, or that what it names belongs to.
    App(Capability, Of),
}

/// What a path names, below which an endpoint is.
#[derive(Debug, Clone, Copy)]
pub enum Of {
    /// The app itself, by id or slug.
    App,
    /// A script.
    Script,
    /// A route.
    Route,
    /// A trigger.
    Trigger,
    /// An execution.
    Execution,
    /// A dead letter.
    DeadLetter,
}

impl Of {
    /// How every path begins that names one.
    #[cfg(test)]
    fn beginning(self) -> &'static str {
        match self {
            Self::App => "/apps/{app}",
            Self::Script => "/scripts/{id}",
            Self::Route => "/routes/{id}",
            Self::Trigger => "/triggers/{id}",
            Self::Execution => "/executions/{id}",
            Self::DeadLetter => "/dead-letters/{id}",
        }
    }

    /// The parameter that names it.
    fn parameter(self) -> &'static str {
        match self {
            Self::App => "app",
            _ => "id",
        }
    }

    /// What it is called.
    fn word(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Script => "script",
            Self::Route => "route",
            Self::Trigger => "trigger",
            Self::Execution => "execution",
            Self::DeadLetter => "dead letter",
        }
    }
}

impl Rule {
    /// The same in words, for the docs.
    pub fn takes(self) -> String {
        match self {
            Self::Public => "nothing".to_owned(),
            Self::SignedIn => "a sign-in or an API key".to_owned(),
            Self::Session => "a sign-in".to_owned(),
            Self::Instance(capability) | Self::App(capability, _) => {
                format!("`{}`", capability.as_str())
            }
        }
    }
}

/// One endpoint.
#[derive(Clone)]
pub struct Endpoint {
    /// Its method.
    pub method: Method,
    /// Its path below `/api/v1`.
    pub path: &'static str,
    /// What it takes.
    pub rule: Rule,
    /// Whether each use is written down, also where it changes nothing.
    pub is_noted: bool,
    /// Whether its query says what it is about: the audit log has that, too.
    pub is_named_by_query: bool,
    /// Whether it may take a processor for long: requests for an app take turns.
    pub takes_turns: bool,
    /// Its name in the OpenAPI document, and so in what is generated from that.
    pub id: &'static str,
    /// What it does, in a few words.
    pub summary: &'static str,
    /// The room that it is of.
    pub room: &'static str,
    /// What can go wrong, besides what its rule and its handler's types say.
    pub problems: &'static [ProblemType],
    /// What its handler's types say of it.
    pub describe: fn(&mut Operation<'_>),
}

/// Endpoints, and the router that serves them.
#[derive(Default)]
pub struct Api {
    router: Router<Arc<Node>>,
    endpoints: Vec<Endpoint>,
}

macro_rules! methods {
    ($($name:ident => $method:ident),*) => {
        $(
            /// Add an endpoint of this method.
            pub fn $name<H, T: 'static, D>(
                self,
                path: &'static str,
                rule: Rule,
                handler: H,
            ) -> Self
            where
                H: Handler<T, Arc<Node>> + Described<D>,
            {
                let endpoint = Endpoint {
                    method: Method::$method,
                    path,
                    rule,
                    is_noted: false,
                    is_named_by_query: false,
                    takes_turns: false,
                    id: "",
                    summary: "",
                    room: "",
                    problems: &[],
                    describe: <H as Described<D>>::describe,
                };
                self.add(endpoint, routing::$name(handler))
            }
        )*
    };
}

impl Api {
    methods!(get => GET, post => POST, put => PUT, patch => PATCH, delete => DELETE);

    fn add(mut self, endpoint: Endpoint, handler: MethodRouter<Arc<Node>>) -> Self {
        self.router = self.router.route(endpoint.path, handler);
        self.endpoints.push(endpoint);
        self
    }

    /// What the endpoint that was just added is called in the OpenAPI document, and what it does.
    pub fn called(mut self, id: &'static str, summary: &'static str) -> Self {
        if let Some(last) = self.endpoints.last_mut() {
            (last.id, last.summary) = (id, summary);
        }
        self
    }

    /// Write each use of the endpoint that was just added into the audit log: it takes much with it,
    /// or lets somebody in.
    pub fn noted(mut self) -> Self {
        if let Some(last) = self.endpoints.last_mut() {
            last.is_noted = true;
        }
        self
    }

    /// What the endpoint that was just added is about stands in its query.
    pub fn named_by_query(mut self) -> Self {
        if let Some(last) = self.endpoints.last_mut() {
            last.is_named_by_query = true;
        }
        self
    }

    /// The endpoint that was just added may take a processor for long: see [`heavy`].
    pub fn taking_turns(mut self) -> Self {
        if let Some(last) = self.endpoints.last_mut() {
            last.takes_turns = true;
        }
        self
    }

    /// What can go wrong in the endpoint that was just added, besides what its rule and its
    /// handler's types say.
    pub fn may_fail(mut self, with: &'static [ProblemType]) -> Self {
        if let Some(last) = self.endpoints.last_mut() {
            last.problems = with;
        }
        self
    }

    /// These and the endpoints of a room.
    pub fn room(mut self, name: &'static str, mut of: Self) -> Self {
        of.endpoints
            .iter_mut()
            .for_each(|endpoint| endpoint.room = name);
        self.router = self.router.merge(of.router);
        self.endpoints.extend(of.endpoints);
        self
    }

    /// All endpoints.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// A router that lets through what the rules allow, and writes down who changed what.
    pub fn guarded(self, node: Arc<Node>) -> Router<Arc<Node>> {
        let mut rules = HashMap::<&'static str, Vec<(Method, Guarded)>>::new();
        for endpoint in self.endpoints {
            let guarded = Guarded {
                rule: endpoint.rule,
                is_noted: endpoint.is_noted,
                is_named_by_query: endpoint.is_named_by_query,
                takes_turns: endpoint.takes_turns,
            };
            let of_path = rules.entry(endpoint.path).or_default();
            of_path.push((endpoint.method, guarded));
        }
        let rules = Arc::new(rules);
        let guard = Guard { node, rules };
        self.router
            .route_layer(middleware::from_fn_with_state(guard, guard_endpoint))
    }
}

#[derive(Clone)]
struct Guard {
    node: Arc<Node>,
    /// Those of each path.
    rules: Arc<HashMap<&'static str, Vec<(Method, Guarded)>>>,
}

/// What the guard knows of an endpoint.
#[derive(Debug, Clone, Copy)]
struct Guarded {
    rule: Rule,
    is_noted: bool,
    is_named_by_query: bool,
    takes_turns: bool,
}

/// The address that a request came from.
#[derive(Debug, Clone)]
pub struct Address(pub String);

/// What it comes to, for the audit log, where that is another status than the answer's: a browser
/// is only sent on, or the answer is not sent yet.
#[derive(Debug, Clone, Copy)]
pub struct Told(pub StatusCode);

impl<A: Output> Output for (Extension<Told>, A) {
    fn describe(operation: &mut Operation<'_>) {
        A::describe(operation);
    }
}

async fn guard_endpoint(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let path = parts.extensions.get::<MatchedPath>().cloned();
    let template = path.as_ref().map_or("", MatchedPath::as_str);
    let template = template.strip_prefix(super::API_ROOT).unwrap_or(template);
    let method = match parts.method {
        Method::HEAD => Method::GET,
        ref method => method.clone(),
    };
    let of_path = guard.rules.get(template).map_or(&[][..], Vec::as_slice);
    let Some((_, guarded)) = of_path.iter().find(|(known, _)| *known == method) else {
        // Nothing passes without a rule.
        return method_not_allowed(of_path).into_response();
    };
    let Guarded {
        rule,
        is_noted,
        is_named_by_query,
        takes_turns,
    } = *guarded;
    let address = super::address::of(&parts, &guard.node.config.trusted_proxies);
    parts.extensions.insert(Address(address.clone()));
    let guesses = Counted::default();
    parts.extensions.insert(guesses.clone());
    let hold = guard.node.bodies.hold(&address, None);
    let answers = hold.another();
    parts.extensions.insert(Allowance {
        bytes_max: match rule {
            Rule::Public => super::PUBLIC_BODY_BYTES_MAX,
            _ => super::API_BODY_BYTES_MAX,
        },
        patience_ms: guard.node.config.client_timeout_ms,
        hold: hold.clone(),
    });
    // What anybody may call answers little, or what is in memory anyway.
    let is_counted = !matches!(rule, Rule::Public);
    if is_counted && let Err(exceeded) = answers.check() {
        return Problem::from(exceeded).into_response();
    }
    let allowed = allow(&guard.node, rule, &mut parts).await;
    let may_change = method != Method::GET;
    // Who asks for the head of an answer gets nothing that is worth a note.
    let is_looked_at = is_noted && parts.method != Method::HEAD || may_change;
    let mut act = Act {
        action: format!("{method} {template}"),
        target: match parts.uri.path_and_query() {
            Some(whole) if is_named_by_query => whole.as_str().to_owned(),
            _ => parts.uri.path().to_owned(),
        },
        address,
        app_id: None,
        actor: None,
        status: match method {
            Method::PUT | Method::DELETE => 204,
            _ => 200,
        },
    };
    let (node, is_public) = (guard.node.clone(), matches!(rule, Rule::Public));
    let counted = move |response: Response| {
        let is_endless = response.extensions().get::<Endless>().is_some();
        match is_counted && !is_endless {
            true => response.map(|body| body::answered(body, &answers)),
            false => response,
        }
    };
    let answering = async move {
        let response = match allowed {
            Ok(admission) => {
                if let Some(admission) = admission {
                    act.app_id = admission.app_id();
                    act.actor = Some(Actor::of(admission.caller()));
                    parts.extensions.insert(admission);
                }
                let app = act.app_id.filter(|_| takes_turns);
                let answering = next.run(Request::from_parts(parts, body));
                let answering = heavy::in_turn(&node.heavy_requests, app, answering);
                if is_looked_at && act.actor.is_some() {
                    let acting = Arc::new(Acting::new(act.clone()));
                    let response = witnessed(acting.clone(), answering).await;
                    // What was changed is written down with it; a dry run or a validation has changed
                    // nothing.
                    let is_done = acting.is_noted() || !is_noted;
                    if is_done && response.status().is_success() {
                        return counted(response);
                    }
                    response
                } else {
                    answering.await
                }
            }
            Err(Refused {
                caller,
                app_id,
                problem,
            }) => {
                act.actor = caller.as_ref().map(Actor::of);
                act.app_id = app_id;
                problem.into_response()
            }
        };
        // Who signs in with this very request is known to its handler only.
        let named = response.extensions().get::<Actor>().cloned();
        act.actor = named.or(act.actor);
        // What strangers try is written down where attempts are counted, and no oftener: a flood
        // of them is not to fill the disk.
        let is_known = act.actor.is_some();
        let is_too_often = response.status() == StatusCode::TOO_MANY_REQUESTS;
        let told = response.extensions().get::<Told>();
        let status = told.map_or(response.status(), |Told(status)| *status);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            guesses.give_back();
        }
        if is_looked_at && (is_known || is_public && !is_too_often) {
            act.status = status.as_u16();
            audit::note(&node.db, act).await;
        }
        // What was made of the body is about as large.
        drop(hold);
        counted(response)
    };
    match is_looked_at {
        // What it does, and that it is written down, does not depend on a client who stays.
        true => guard.node.seen_through.see_through(answering).await,
        false => answering.await,
    }
}

fn method_not_allowed(of_path: &[(Method, Guarded)]) -> Problem {
    let mut allowed: Vec<&str> = of_path.iter().map(|(method, _)| method.as_str()).collect();
    if allowed.contains(&"GET") {
        allowed.push("HEAD");
    }
    allowed.sort_unstable();
    Problem::method_not_allowed(&allowed.join(", "))
}

struct Refused {
    caller: Option<Caller>,
    app_id: Option<AppId>,
    problem: Problem,
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        let (caller, app_id) = (None, None);
        Self {
            caller,
            app_id,
            problem,
        }
    }
}

/// Who is let in by a rule; nobody in particular where anybody is.
async fn allow(node: &Node, rule: Rule, parts: &mut Parts) -> Result<Option<Admission>, Refused> {
    if matches!(rule, Rule::Public) {
        return Ok(None);
    }
    // Before the database is asked, which may be away, and after: that may have taken long.
    node.directory.check_age().map_err(Problem::from)?;
    let admission = Admission::of(node, token(node, parts)?).await?;
    node.directory.check_age().map_err(Problem::from)?;
    let caller = admission.caller();
    let refused_in = |app_id, problem| Refused {
        caller: Some(caller.clone()),
        app_id,
        problem,
    };
    let refused = |problem| refused_in(None, problem);
    match rule {
        Rule::Public | Rule::SignedIn => Ok(Some(admission)),
        Rule::Session => {
            if matches!(caller.via, Via::ApiKey(_)) {
                let detail = "this takes a sign-in; an API key cannot do it";
                return Err(refused(Problem::forbidden(detail)));
            }
            Ok(Some(admission))
        }
        Rule::Instance(capability) => match capability::on_instance(caller, capability) {
            Decision::Allowed => Ok(Some(admission.taking(capability, None))),
            Decision::Denied(why) => Err(refused(Problem::forbidden(why))),
            Decision::Hidden => Err(refused(nothing_at(parts))),
        },
        Rule::App(capability, of) => {
            let params = RawPathParams::from_request_parts(parts, &()).await;
            let named = params.ok().and_then(|params| {
                let mut named = params.iter().filter(|(name, _)| *name == of.parameter());
                named.next().map(|(_, value)| value.to_owned())
            });
            let app_id = match &named {
                Some(named) => app_of(node, of, named).await.map_err(&refused)?,
                None => None,
            };
            // What is not there and what may not be seen look the same.
            let missing = || match &named {
                Some(named) => Problem::not_found(format!("there is no {} `{named}`", of.word())),
                None => nothing_at(parts),
            };
            let app_id = app_id.ok_or_else(|| refused(missing()))?;
            in_app(node, caller, app_id, capability).map_err(|problem| {
                let problem = problem.unwrap_or_else(missing);
                refused_in(Some(app_id), problem)
            })?;
            Ok(Some(admission.taking(capability, Some(app_id))))
        }
    }
}

/// Whether a caller has a capability in an app. The error is none where they may not know of the
/// app.
fn in_app(
    node: &Node,
    caller: &Caller,
    app_id: AppId,
    capability: Capability,
) -> Result<(), Option<Problem>> {
    let role = node.directory.picture().role(app_id, caller.user.id);
    match capability::in_app(caller, role, app_id, capability) {
        Decision::Allowed => Ok(()),
        Decision::Denied(why) => Err(Some(Problem::forbidden(why))),
        Decision::Hidden => Err(None),
    }
}

/// The app that something belongs to; none when there is no such thing.
async fn app_of(node: &Node, of: Of, named: &str) -> Result<Option<AppId>, Problem> {
    let picture = node.directory.picture();
    let app_id = match of {
        Of::App => picture.app_named(named).map(|app| app.id),
        Of::Script => {
            let id = named.parse().ok();
            id.and_then(|id| picture.script(id))
                .map(|script| script.app_id)
        }
        Of::Trigger => {
            let id = named.parse().ok();
            id.and_then(|id| picture.trigger(id))
                .map(|trigger| trigger.app_id)
        }
        Of::Route => match named.parse() {
            Ok(id) => routes::sql::app_of(&mut node.db.read().await?, id).await?,
            Err(_) => None,
        },
        Of::Execution => match named.parse::<ExecutionId>() {
            Ok(id) => {
                node.dispatcher.settled().await;
                let mut conn = node.db.read().await?;
                // One that waits or runs is known by its delivery only.
                match outbox::app_of(&mut conn, id.of()).await? {
                    Some(app_id) => Some(app_id),
                    None => executions::sql::app_of(&mut conn, id).await?,
                }
            }
            Err(_) => None,
        },
        Of::DeadLetter => match named.parse() {
            Ok(id) => dead_letters::sql::app_of(&mut node.db.read().await?, id).await?,
            Err(_) => None,
        },
    };
    // What belonged to an app that is gone is gone with it, though its rows may stay a while.
    Ok(app_id.filter(|id| picture.app(*id).is_some()))
}

/// The bearer token of a request.
pub(super) fn bearer(parts: &Parts) -> Option<&str> {
    let value = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// What shows who sent a request: its bearer token, or else that of its cookie.
///
/// # Errors
/// 401 when it has neither, 403 when the cookie came with what another page sent.
pub(super) fn token(node: &Node, parts: &Parts) -> Result<String, Problem> {
    let token = match bearer(parts) {
        Some(token) => Some(token.to_owned()),
        None => super::cookie::token(node, parts)?,
    };
    token.ok_or_else(|| {
        Problem::unauthorized(
            "Send `Authorization: Bearer <token>`: an API key, or what POST /api/v1/auth/login gives",
        )
    })
}

/// Refuse what a caller may not do in an app, where an endpoint's rule is not all.
///
/// # Errors
/// 403, or 404 where they may not know of the app.
pub fn require(
    node: &Node,
    caller: &Caller,
    app_id: AppId,
    capability: Capability,
) -> Result<(), Problem> {
    in_app(node, caller, app_id, capability)
        .map_err(|problem| problem.unwrap_or_else(|| Problem::not_found("there is no such app")))
}

/// Whether an app keeps from a caller what its requests and events carried, and what its scripts
/// said of it: the one place that decides that.
pub fn hides_payloads(node: &Node, caller: &Caller, app_id: AppId) -> bool {
    let picture = node.directory.picture();
    let app = picture.app(app_id);
    app.is_none_or(|app| app.hide_payloads_from_viewers)
        && in_app(node, caller, app_id, Capability::ReadPayloads).is_err()
}

/// Whether a caller may know of an app.
pub fn may_see(node: &Node, caller: &Caller, app_id: AppId) -> bool {
    in_app(node, caller, app_id, Capability::SeeApp).is_ok()
}

/// The address of the other end of the connection.
pub fn peer(parts: &Parts) -> Option<SocketAddr> {
    let info = parts.extensions.get::<ConnectInfo<SocketAddr>>();
    info.map(|ConnectInfo(address)| *address)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::http::tables;

    fn endpoint_table() -> String {
        let mut table = "| endpoint | takes |\n|---|---|\n".to_owned();
        for endpoint in super::super::endpoints().endpoints() {
            let Endpoint {
                method, path, rule, ..
            } = endpoint;
            let takes = rule.takes();
            writeln!(table, "| `{method} {path}` | {takes} |").unwrap();
        }
        table
    }

    #[test]
    fn the_docs_say_what_each_endpoint_takes() {
        let capabilities = ("capabilities", capability::table());
        tables::check(
            "access.md",
            &[capabilities, ("endpoints", endpoint_table())],
        );
    }

    #[test]
    fn the_app_of_an_endpoint_is_found_by_what_its_path_names() {
        for endpoint in super::super::endpoints().endpoints() {
            let Rule::App(_, of) = endpoint.rule else {
                continue;
            };
            let rest = endpoint.path.strip_prefix(of.beginning());
            let is_below = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            assert!(is_below, "{} names no {of:?}", endpoint.path);
            let parameter = format!("{{{}}}", of.parameter());
            assert!(of.beginning().ends_with(&parameter));
        }
    }

    #[test]
    fn what_takes_much_or_lets_in_by_a_get_is_written_down() {
        let all = super::super::endpoints();
        let noted = all.endpoints().iter().filter(|endpoint| endpoint.is_noted);
        let noted: Vec<&str> = noted.map(|endpoint| endpoint.path).collect();
        let expected = [
            crate::oidc::api::CALLBACK,
            "/instance/backup",
            "/apps/{app}/export",
        ];
        assert_eq!(noted, expected);
    }

    #[test]
    fn only_these_are_public() {
        let all = super::super::endpoints();
        let public = all
            .endpoints()
            .iter()
            .filter(|endpoint| matches!(endpoint.rule, Rule::Public));
        let public: Vec<&str> = public.map(|endpoint| endpoint.path).collect();
        let expected = [
            "/setup",
            "/setup",
            "/auth/login",
            "/auth/join",
            "/auth/reset",
            "/auth/oidc",
            "/auth/oidc/login",
            crate::oidc::api::CALLBACK,
            "/auth/oidc/session",
            "/openapi.json",
            "/docs",
            "/docs.css",
            "/sdk/client.tgz",
        ];
        assert_eq!(public, expected);
    }
}
