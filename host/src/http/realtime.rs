//! The streams of topics, on the hosts of the apps.
//!
//! A page may read why it is refused, whatever its origin: a browser shows it an answer that names
//! nobody as if there were no server, and it would ask for ever. Whoever is no page reads it anyway.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::admission::{Admission, Authority, is_maker_good};
use super::cors::{self, Credentials};
use super::problem::Problem;
use super::stream::{self, Lasts, query_values};
use super::{address, endpoints};
use crate::apps::AppId;
use crate::cors::{LetIn, MAX_AGE_S, lets_in};
use crate::journal::{Cap, Channel, Entry, Told, Watch};
use crate::node::Node;
use crate::pubsub::tokens::{self, Grant};
use crate::pubsub::{AuthMode, OpenTopic, Topic};

/// The most topics of a stream.
const TOPICS_MAX: usize = 50;
/// What pages of other origins may send.
const ALLOWED_HEADERS: &str = "authorization, last-event-id, cache-control";
const ONE: &str = "/realtime/topics/";

/// These paths are on every host; no route of an app is below them.
pub(super) fn router() -> Router<Arc<Node>> {
    let stream = || get(open).options(preflight);
    Router::new()
        .route("/realtime", stream())
        .route("/realtime/topics/{topic}", stream())
}

async fn open(State(node): State<Arc<Node>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let opened = async {
        let asked = asked_for(&node, &parts)?;
        let credentials = let_in(&parts, &asked.topics)?;
        Ok((subscribe(&node, &parts, &asked).await?, credentials))
    };
    let (mut response, credentials) = match opened.await {
        Ok(opened) => opened,
        Err(problem) => (Problem::into_response(problem), Some(Credentials::Hidden)),
    };
    let headers = response.headers_mut();
    cors::vary(headers);
    if let (Some(origin), Some(credentials)) = (parts.headers.get(header::ORIGIN), credentials) {
        cors::allow(headers, origin, credentials);
    }
    response
}

/// What a page of another origin asks before it subscribes. It may always ask: its browser would
/// not show it a refusal of this.
async fn preflight(State(node): State<Arc<Node>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    cors::vary(headers);
    if let Some(origin) = parts.headers.get(header::ORIGIN) {
        let asked = asked_for(&node, &parts);
        let credentials = asked.and_then(|asked| let_in(&parts, &asked.topics));
        let credentials = credentials.ok().flatten().unwrap_or(Credentials::Hidden);
        cors::allow(headers, origin, credentials);
        cors::allow_sending(headers, "GET", ALLOWED_HEADERS, MAX_AGE_S);
    }
    response
}

/// How a page of another origin is let in by all of the topics; none where it is of this one, or no
/// page.
///
/// # Errors
/// 403 names a topic that does not let its origin in.
fn let_in(
    parts: &Parts,
    topics: &[(Topic, Arc<OpenTopic>)],
) -> Result<Option<Credentials>, Problem> {
    let Some(origin) = parts.headers.get(header::ORIGIN) else {
        return Ok(None);
    };
    let origin = origin.to_str().unwrap_or_default();
    // Whoever ends TLS before us knows the scheme, and we do not.
    let host = address::host_and_port(&parts.headers, &parts.uri);
    let is_own = origin.split_once("://").is_some_and(|(_, own)| own == host);
    let mut credentials = Some(Credentials::Shown);
    for (topic, open) in topics {
        match lets_in(&open.cors_origins, origin) {
            Some(LetIn::ByName) => {}
            Some(LetIn::WithAll) => credentials = credentials.and(Some(Credentials::Hidden)),
            None if is_own => credentials = None,
            None => {
                let topic = topic.as_str();
                let detail = format!(
                    "pages of the origin `{origin}` may not follow the topic `{topic}`: name it in the \
                     topic's `cors_origins`"
                );
                return Err(Problem::forbidden(detail).with("topic", topic));
            }
        }
    }
    Ok(credentials)
}

/// What a request asks for, as far as there is such a thing.
struct Asked {
    /// The host that it was asked on.
    host: String,
    app_id: AppId,
    /// In the order in which they were asked for, each once.
    topics: Vec<(Topic, Arc<OpenTopic>)>,
}

fn asked_for(node: &Node, parts: &Parts) -> Result<Asked, Problem> {
    let bad = |detail: String| Problem::invalid_field("topic", detail);
    let mut names = match parts.uri.path().strip_prefix(ONE) {
        Some(topic) => vec![percent_decode_str(topic).decode_utf8_lossy().into_owned()],
        None => query_values(parts, "topic"),
    };
    if !(1..=TOPICS_MAX).contains(&names.len()) {
        return Err(bad(format!(
            "a stream has 1 to {TOPICS_MAX} topics: /realtime?topic=a&topic=b"
        )));
    }
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    let picture = node.directory.picture();
    let host = address::host(&parts.headers, &parts.uri);
    let app_id = picture.app_for_host(&host).map(|app| app.id);
    let topics = names.into_iter().map(|name| {
        let topic = Topic::parse(name).map_err(|error| bad(error.to_string()))?;
        let open = app_id.and_then(|app_id| picture.open_topic(app_id, topic.as_str()));
        let nothing = || {
            let topic = topic.as_str();
            Problem::not_found(format!("there is no topic `{topic}` to subscribe to here"))
                .with("topic", topic)
        };
        let open = open.cloned().ok_or_else(nothing)?;
        Ok((topic, open))
    });
    let topics: Vec<_> = topics.collect::<Result<_, Problem>>()?;
    let app_id = app_id.ok_or_else(|| Problem::not_found("no app serves this host"))?;
    Ok(Asked {
        host,
        app_id,
        topics,
    })
}

/// Who subscribes.
enum Subscriber {
    Anybody,
    Holder(Grant),
    /// Boxed: most are none, and should not be as large.
    User(Box<Admission>),
}

async fn subscriber(node: &Node, parts: &Parts, asked: &Asked) -> Result<Subscriber, Problem> {
    let takes = |mode| asked.topics.iter().any(|(_, open)| open.auth_mode == mode);
    let (takes_token, takes_session) = (takes(AuthMode::Token), takes(AuthMode::Session));
    if !takes_token && !takes_session {
        return Ok(Subscriber::Anybody);
    }
    node.directory.check_age()?;
    let bearer = endpoints::bearer(parts).map(str::to_owned);
    let bearer = bearer.or_else(|| query_values(parts, "token").pop());
    let token = bearer.filter(|token| token.starts_with(tokens::PREFIX));
    match token {
        Some(token) => {
            let grant = node.pubsub.verify(asked.app_id, &token);
            let grant = grant.map_err(|bad| Problem::unauthorized(bad.to_string()))?;
            match is_maker_good(node, &grant).await {
                true => Ok(Subscriber::Holder(grant)),
                false => Err(Problem::unauthorized(tokens::BadToken::Unknown.to_string())),
            }
        }
        None if takes_token => Err(Problem::unauthorized(
            "this topic takes a subscriber token: `Authorization: Bearer pct_…`, or `?token=`",
        )),
        None => {
            let admission = Admission::of(node, stream::token(node, parts)?).await?;
            Ok(Subscriber::User(Box::new(admission)))
        }
    }
}

async fn subscribe(node: &Arc<Node>, parts: &Parts, asked: &Asked) -> Result<Response, Problem> {
    let begin = stream::begin(parts)?;
    let subscriber = subscriber(node, parts, asked).await?;
    let limits = node.config.streams;
    let client = address::of(parts, &node.config.trusted_proxies);
    let mut payer = Cap::Address(client);
    let mut caps = vec![
        (payer.clone(), limits.per_address),
        (Cap::App(asked.app_id), limits.per_app),
    ];
    let mut ready = Map::new();
    let topics = asked.topics.iter().map(|(topic, _)| topic.as_str());
    ready.insert("topics".to_owned(), topics.clone().collect());
    let authority = match &subscriber {
        Subscriber::Anybody => None,
        Subscriber::Holder(grant) => {
            payer = Cap::Token(grant.id);
            caps.push((payer.clone(), limits.per_token));
            ready.insert(
                "expires_at".to_owned(),
                Value::from(grant.expires_at.to_rfc3339()),
            );
            Some(Authority::Subscriber(asked.app_id, grant.clone()))
        }
        Subscriber::User(admission) => {
            payer = Cap::User(admission.caller().user.id);
            caps.push((payer.clone(), limits.per_user));
            // Each topic is looked at by itself: some may be open to anybody.
            Some(Authority::SignedIn((**admission).clone()))
        }
    };
    let lasts = match authority {
        None => Lasts::Always,
        Some(authority) => Lasts::While {
            authority: Box::new(authority),
            reset: Value::Null,
        },
    };
    let watch = TopicWatch {
        node: node.clone(),
        host: asked.host.as_str().into(),
        app_id: asked.app_id,
        topics: topics
            .map(|topic| Channel::of_topic(asked.app_id, topic))
            .collect(),
        subscriber,
    };
    watch.check()?;
    let place = node.caps.enter(caps)?;
    let channels = watch.topics.clone();
    let subscription = stream::subscribe(node, channels, &begin, Box::new(watch), payer).await?;
    Ok(stream::answer(node, lasts, subscription, place, ready)?.into_response())
}

/// Whether a stream of topics may go on.
struct TopicWatch {
    node: Arc<Node>,
    /// It goes on while the app serves the host that it was asked on.
    host: Box<str>,
    app_id: AppId,
    topics: Vec<Channel>,
    subscriber: Subscriber,
}

/// Why somebody may not hear a topic.
enum Refusal {
    /// It is not open, or not on this host.
    NotOpen(Channel),
    /// It takes another kind of credential.
    Unauthorized(Channel),
    /// The credential is not for it.
    Forbidden(Channel),
    /// The credential is good no more.
    Revoked,
}

impl TopicWatch {
    fn refusal(&self) -> Option<Refusal> {
        let picture = self.node.directory.picture();
        if let Subscriber::Holder(grant) = &self.subscriber
            && !grant.holds(&picture, self.app_id)
        {
            return Some(Refusal::Revoked);
        }
        let serving = picture.app_for_host(&self.host).map(|app| app.id);
        if serving != Some(self.app_id) {
            return self.topics.first().cloned().map(Refusal::NotOpen);
        }
        let refusal = |channel: &Channel| {
            let topic = channel.topic().unwrap_or_default();
            let Some(open) = picture.open_topic(self.app_id, topic) else {
                return Some(Refusal::NotOpen(channel.clone()));
            };
            match (open.auth_mode, &self.subscriber) {
                (AuthMode::Public, _) => None,
                (AuthMode::Token, Subscriber::Holder(grant)) => {
                    (!grant.is_for(topic)).then(|| Refusal::Forbidden(channel.clone()))
                }
                (AuthMode::Session, Subscriber::User(user)) => {
                    let caller = user.caller_now(&self.node);
                    let sees = caller
                        .is_ok_and(|caller| endpoints::may_see(&self.node, &caller, self.app_id));
                    (!sees).then(|| Refusal::Forbidden(channel.clone()))
                }
                (AuthMode::Token | AuthMode::Session, _) => {
                    Some(Refusal::Unauthorized(channel.clone()))
                }
            }
        };
        self.topics.iter().find_map(refusal)
    }

    fn check(&self) -> Result<(), Problem> {
        let topic = |channel: &Channel| channel.topic().unwrap_or_default().to_owned();
        Err(match self.refusal() {
            None => return Ok(()),
            Some(Refusal::NotOpen(channel)) => {
                let topic = topic(&channel);
                Problem::not_found(format!("there is no topic `{topic}` to subscribe to here"))
                    .with("topic", topic)
            }
            Some(Refusal::Unauthorized(channel)) => Problem::unauthorized(format!(
                "the topic `{}` takes another kind of token than the one sent",
                topic(&channel)
            ))
            .with("topic", topic(&channel)),
            Some(Refusal::Forbidden(channel)) => {
                Problem::forbidden(format!("you may not subscribe to `{}`", topic(&channel)))
                    .with("topic", topic(&channel))
            }
            Some(Refusal::Revoked) => Problem::unauthorized(tokens::BadToken::Unknown.to_string()),
        })
    }
}

impl Watch for TopicWatch {
    fn ended(&self) -> Option<Told> {
        self.refusal().map(|refusal| match refusal {
            Refusal::NotOpen(channel)
            | Refusal::Unauthorized(channel)
            | Refusal::Forbidden(channel) => Told::Reset(channel),
            Refusal::Revoked => Told::Expired,
        })
    }

    fn shows(&self, _: &Entry) -> bool {
        true
    }
}
