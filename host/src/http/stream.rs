//! Streams as Server-Sent Events, and who is let in; `docs/protocol.md` describes them.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::future::Either;
use futures_util::{Stream, StreamExt, stream};
use serde_json::{Map, Value, json};

use super::admission::{Admission, Authority, Doubt, Ended};
use super::endpoints;
use super::pace::Endless;
use super::problem::{Problem, ProblemType};
use crate::journal::{
    Begin, Cap, Channel, Cursors, Place, Subscription, Told, TooMany, TooManyReplays, Watch,
};
use crate::node::Node;
use crate::stopping::Stage;

/// How long a stream may be silent: shorter than what proxies wait for (nginx: 60 s).
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// When to try again for a place under a cap, in seconds.
const RETRY_AFTER_S: &str = "5";
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The values of a query's parameter, decoded.
pub(crate) fn query_values(parts: &Parts, name: &str) -> Vec<String> {
    let query = parts.uri.query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes())
        .filter(|(known, _)| known == name)
        .map(|(_, value)| value.into_owned())
        .collect()
}

/// The last id that a client saw; empty when it says none.
pub(crate) fn last_event_id(parts: &Parts) -> String {
    match parts.headers.get(LAST_EVENT_ID) {
        Some(value) => value.to_str().unwrap_or("?").to_owned(),
        None => query_values(parts, "last_event_id")
            .pop()
            .unwrap_or_default(),
    }
}

/// What is wrong with an id that no stream gave.
pub(crate) fn bad_id() -> Problem {
    let detail = "this is no id that a stream gave; begin without one, or with `earliest`";
    Problem::invalid_field("last_event_id", detail)
}

/// Where a client wants its stream to begin.
///
/// # Errors
/// 422 when that is no id of a stream.
pub(crate) fn begin(parts: &Parts) -> Result<Begin, Problem> {
    Begin::parse(&last_event_id(parts)).ok_or_else(bad_id)
}

/// The token of whoever asks for a stream: in its query, if it says nothing in its headers.
///
/// # Errors
/// As [`endpoints::token`].
pub(super) fn token(node: &Node, parts: &Parts) -> Result<String, Problem> {
    match query_values(parts, "token").pop() {
        Some(token) if !parts.headers.contains_key(header::AUTHORIZATION) => Ok(token),
        _ => endpoints::token(node, parts),
    }
}

/// Begin a stream of these channels. What it missed is replayed on the account of `payer`.
///
/// # Errors
/// 429 when too much is replayed for them, and when the database fails.
pub(crate) async fn subscribe(
    node: &Node,
    channels: Vec<Channel>,
    begin: &Begin,
    watch: Box<dyn Watch>,
    payer: Cap,
) -> Result<Subscription, Problem> {
    let changes = node.directory.changes();
    let subscription = node.journal.subscribe(channels, begin, changes, watch);
    let mut subscription = subscription.await?;
    if subscription.is_replay() {
        subscription.replays(node.replays.begin(payer)?);
    }
    Ok(subscription)
}

/// For how long a stream goes on, at most. A client whose stream ends comes back with its id, to
/// this node or to another.
pub(crate) enum Lasts {
    /// Until the node stops: anybody may hear it.
    Always,
    /// And only while the node knows well enough who may hear it, and they may.
    While {
        /// By what they are let in.
        authority: Box<Authority>,
        /// What they are told they may not hear any more, where they lose a role.
        reset: Value,
    },
}

/// A stream as it is answered; it holds its place until it ends. `ready` is what its first event
/// says.
///
/// # Errors
/// As [`response`].
pub(crate) fn answer(
    node: &Arc<Node>,
    lasts: Lasts,
    subscription: Subscription,
    place: Place,
    ready: Map<String, Value>,
) -> Result<EventStream, Problem> {
    // Boxed: the closure's future has room for it twice.
    let state = (Box::new(subscription), place, Some(ready));
    let events = stream::unfold(state, async |(mut subscription, place, mut ready)| {
        let told = subscription.next().await?;
        let event = event(told, &mut ready);
        Some((Ok::<_, Infallible>(event), (subscription, place, ready)))
    });
    response(node, lasts, events)
}

/// Events as they are answered: the one place that decides when a stream ends, whatever it is of.
///
/// # Errors
/// 503 when the node is about to stop: the stream would end at once, and its client come back.
pub(crate) fn response(
    node: &Arc<Node>,
    lasts: Lasts,
    events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
) -> Result<EventStream, Problem> {
    if node.stopping.stage() >= Stage::Leaving {
        return Err(Problem::stopping("The node is stopping; try again"));
    }
    let stopping = node.stopping.reached(Stage::Leaving);
    // Boxed where more is waited for: streams of topics that everybody may hear should stay small.
    let events = match lasts {
        Lasts::Always => Either::Left(events.take_until(stopping)),
        Lasts::While { authority, reset } => {
            let stale = node.directory.stale();
            let doubt = Doubt::default();
            let ended = authority.ended(node.clone(), doubt.clone());
            let last = async move {
                tokio::select! {
                    () = stopping => None,
                    () = stale => None,
                    ended = ended => Some(Ok(match ended {
                        Ended::Token => named("expired", None, "{}"),
                        Ended::Role => named("reset", None, &reset.to_string()),
                    })),
                }
            };
            Either::Right(ended_by(events, last, doubt))
        }
    };
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    response.extensions_mut().insert(Endless);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    Ok(EventStream(response))
}

/// Events until `last` comes, which is looked at before each of them; none while there is `doubt`.
fn ended_by<E: Send + 'static>(
    events: impl Stream<Item = E> + Send + 'static,
    last: impl Future<Output = Option<E>> + Send + 'static,
    doubt: Doubt,
) -> impl Stream<Item = E> + Send {
    let (mut events, mut last) = (Box::pin(events), Box::pin(last));
    let mut is_over = false;
    stream::poll_fn(move |cx| {
        if is_over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(last) = last.as_mut().poll(cx) {
            is_over = true;
            return Poll::Ready(last);
        }
        // What ends the doubt has just been polled, and wakes us.
        match doubt.is_there() {
            true => Poll::Pending,
            false => events.as_mut().poll_next(cx),
        }
    })
}

/// A stream of Server-Sent Events.
pub(crate) struct EventStream(Response);

impl IntoResponse for EventStream {
    fn into_response(self) -> Response {
        self.0
    }
}

fn named(name: &str, id: Option<Cursors>, data: &str) -> Event {
    let event = Event::default().event(name);
    let event = match id {
        Some(id) => event.id(id.to_string()),
        None => event,
    };
    event.data(data)
}

/// Which channel an event is about.
fn of_channel(channel: &Channel) -> Value {
    match channel.topic() {
        Some(topic) => json!({ "topic": topic }),
        None => json!({}),
    }
}

fn event(told: Told, ready: &mut Option<Map<String, Value>>) -> Event {
    match told {
        Told::Ready(id) => {
            let data = Value::from(ready.take().unwrap_or_default());
            named("ready", Some(id), &data.to_string())
        }
        Told::Entry(id, entry) => named("message", id, &entry.data),
        Told::Gap(id, channel) => named("gap", Some(id), &of_channel(&channel).to_string()),
        Told::Reset(channel) => named("reset", None, &of_channel(&channel).to_string()),
        Told::Expired => named("expired", None, "{}"),
    }
}

impl From<TooMany> for Problem {
    fn from(error: TooMany) -> Self {
        Self::new(ProblemType::TooManyStreams, error.to_string())
            .with_header(header::RETRY_AFTER, RETRY_AFTER_S)
    }
}

impl From<TooManyReplays> for Problem {
    fn from(error: TooManyReplays) -> Self {
        let retry_after_s = error.retry_after_s.to_string();
        Self::new(ProblemType::TooManyReplays, error.to_string())
            .with_header(header::RETRY_AFTER, retry_after_s)
    }
}

/// What ends the stream of a channel for somebody who is signed in, as far as the directory knows. It
/// is asked before each entry: none is shown by a role that was lost a moment ago.
pub(crate) fn ended(admission: &Admission, node: &Node, channel: &Channel) -> Option<Told> {
    match admission.caller_now(node) {
        Ok(_) => None,
        Err(Ended::Token) => Some(Told::Expired),
        Err(Ended::Role) => Some(Told::Reset(channel.clone())),
    }
}

/// The stream of a channel for somebody who is signed in, for as long as they are and have what it
/// takes.
pub(crate) async fn of_user(
    node: &Arc<Node>,
    admission: Admission,
    parts: &Parts,
    channel: Channel,
    watch: Box<dyn Watch>,
) -> Result<EventStream, Problem> {
    let begin = begin(parts)?;
    let user = Cap::User(admission.caller().user.id);
    let place = node
        .caps
        .enter(vec![(user.clone(), node.config.streams.per_user)])?;
    let lasts = Lasts::While {
        authority: Box::new(Authority::SignedIn(admission)),
        reset: of_channel(&channel),
    };
    let subscription = subscribe(node, vec![channel], &begin, watch, user).await?;
    answer(node, lasts, subscription, place, Map::new())
}
