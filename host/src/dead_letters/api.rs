//! The HTTP API of dead letters.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::sql::{self, Filter};
use super::{
    AtVersion, BulkAct, DeadLetter, DeadLetterError, DeadLetterId, DeadLetters, Listed, Resolution,
    State as Settled,
};
use crate::apps::AppId;
use crate::dispatch::{Attempt, DeliveryId};
use crate::http::answer::Page;
use crate::http::endpoints::{Api, Of, Rule, hides_payloads};
use crate::http::extract::{
    Body, Limit, PLAIN, Path, Query, SignedIn, app_named, instant, page_cursor,
};
use crate::http::problem::{Problem, ProblemType};
use crate::identity::Caller;
use crate::identity::capability::Capability;
use crate::json;
use crate::node::Node;
use crate::scripts::ScriptId;
use crate::triggers::{Source, TriggerId};

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get(
            "/apps/{app}/dead-letters",
            Rule::App(Capability::ManageDeadLetters, Of::App),
            list,
        )
        .called(
            "listDeadLetters",
            "List the dead letters of an app, newest first",
        )
        .taking_turns()
        .get(
            "/apps/{app}/dead-letters/counts",
            Rule::App(Capability::ManageDeadLetters, Of::App),
            counts,
        )
        .called("countDeadLetters", "Count the dead letters of an app")
        .post(
            "/apps/{app}/dead-letters/replay",
            Rule::App(Capability::ManageDeadLetters, Of::App),
            replay_many,
        )
        .called("replayDeadLetters", "Replay a batch of dead letters")
        .post(
            "/apps/{app}/dead-letters/resolve",
            Rule::App(Capability::ManageDeadLetters, Of::App),
            resolve_many,
        )
        .called("resolveDeadLetters", "Resolve a batch of dead letters")
        .get(
            "/dead-letters/{id}",
            Rule::App(Capability::ManageDeadLetters, Of::DeadLetter),
            show,
        )
        .called(
            "getDeadLetter",
            "Show a dead letter with what happened and every attempt",
        )
        .taking_turns()
        .post(
            "/dead-letters/{id}/replay",
            Rule::App(Capability::ManageDeadLetters, Of::DeadLetter),
            replay,
        )
        .called("replayDeadLetter", "Put a dead letter back into the outbox")
        .may_fail(&[ProblemType::AlreadySettled])
        .post(
            "/dead-letters/{id}/resolve",
            Rule::App(Capability::ManageDeadLetters, Of::DeadLetter),
            resolve,
        )
        .called(
            "resolveDeadLetter",
            "Say that a dead letter needs no further work",
        )
        .may_fail(&[ProblemType::AlreadySettled])
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    state: Option<Settled>,
    source: Option<Source>,
    script_id: Option<ScriptId>,
    trigger_id: Option<TriggerId>,
    /// Text anywhere in `last_error`.
    error: Option<ErrorText>,
    handler_failed: Option<bool>,
    /// Not before.
    #[serde(default, deserialize_with = "instant")]
    since: Option<DateTime<Utc>>,
    /// Before.
    #[serde(default, deserialize_with = "instant")]
    until: Option<DateTime<Utc>>,
    /// How many at most.
    #[serde(default)]
    limit: Limit,
    /// Where to begin: the `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Text to look for in errors. Control characters are in none.
#[derive(Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend("pattern" = PLAIN))]
struct ErrorText(String);

impl TryFrom<String> for ErrorText {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.contains(char::is_control) {
            true => Err("this is text without control characters"),
            false => Ok(Self(text)),
        }
    }
}

impl ErrorText {
    /// None when there is nothing to look for.
    fn into_filter(self) -> Option<String> {
        Some(self.0).filter(|text| !text.is_empty())
    }
}

/// A dead letter as a caller may see it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DeadLetter")]
struct DeadLetterView {
    #[serde(flatten)]
    #[schemars(with = "DeadLetter")]
    letter: Listed,
    /// What went wrong at last; null where that is kept from you.
    last_error: Option<String>,
    /// Whether what happened and what went wrong is kept from you: the app hides it from viewers.
    payloads_hidden: bool,
}

impl DeadLetterView {
    fn of(letter: Listed, payloads_hidden: bool) -> Self {
        let last_error = (!payloads_hidden).then(|| letter.last_error().to_owned());
        Self {
            letter,
            last_error,
            payloads_hidden,
        }
    }
}

/// Refuse to look for errors that are kept from whoever asks: what is found would tell.
fn check_filter(
    node: &Node,
    who: &Caller,
    app_id: AppId,
    error: Option<&String>,
) -> Result<(), Problem> {
    match error.is_some() && hides_payloads(node, who, app_id) {
        true => Err(Problem::forbidden(
            "the app hides errors from you, so you cannot look for them",
        )),
        false => Ok(()),
    }
}

async fn list(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(app): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<DeadLetterView>>, Problem> {
    let before = page_cursor(query.cursor.as_deref())?;
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let filter = Filter {
        state: query.state,
        source: query.source.map(|source| source.as_str().to_owned()),
        script_id: query.script_id,
        trigger_id: query.trigger_id,
        error: query.error.and_then(ErrorText::into_filter),
        handler_failed: query.handler_failed,
        since: query.since,
        until: query.until,
        up_to: None,
    };
    check_filter(&node, &who, app_id, filter.error.as_ref())?;
    let letters = sql::page(
        &mut node.db.read().await?,
        app_id,
        &filter,
        before,
        query.limit.and_one(),
    )
    .await?;
    let hidden = hides_payloads(&node, &who, app_id);
    let views = letters.into_iter();
    let views = views.map(|letter| DeadLetterView::of(letter, hidden));
    Ok(Page::of(
        views.collect(),
        query.limit.get(),
        |view: &DeadLetterView| view.letter.id().to_string(),
    ))
}

/// How many dead letters there are.
#[derive(Serialize, JsonSchema)]
struct DeadLetterCounts {
    by_state: BTreeMap<Settled, i64>,
    unresolved_by_source: BTreeMap<String, i64>,
}

async fn counts(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
) -> Result<Json<DeadLetterCounts>, Problem> {
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let rows = sql::counts(&mut node.db.read().await?, app_id).await?;
    let mut by_state: BTreeMap<Settled, i64> = Settled::ALL.map(|state| (state, 0)).into();
    let mut unresolved_by_source = BTreeMap::new();
    for (state, source, count) in rows {
        if let Some(state) = Settled::parse(&state) {
            *by_state.entry(state).or_default() += count;
            if state == Settled::Unresolved {
                unresolved_by_source.insert(source, count);
            }
        }
    }
    Ok(Json(DeadLetterCounts {
        by_state,
        unresolved_by_source,
    }))
}

fn not_found(id: DeadLetterId) -> Problem {
    DeadLetterError::NotFound(id.to_string()).into()
}

/// The app that a dead letter belongs to.
async fn app_of(node: &Node, id: DeadLetterId) -> Result<AppId, Problem> {
    let app_id = sql::app_of(&mut node.db.read().await?, id).await?;
    // The dead letters of an app that is gone are gone with it, though their rows stay a while.
    let app_id = app_id.filter(|id| node.directory.picture().app(*id).is_some());
    app_id.ok_or_else(|| not_found(id))
}

/// A dead letter with what happened and every attempt.
#[derive(Serialize, JsonSchema)]
struct DeadLetterWithHistory {
    #[serde(flatten)]
    view: DeadLetterView,
    /// What happened, verbatim; null where that is kept from you.
    #[schemars(with = "Value")]
    payload: Option<json::Json>,
    /// Whether the payload is not as it was stored: what an older version took and no reader
    /// holds is repaired.
    payload_repaired: bool,
    /// Every attempt, oldest first; none where they are kept from you.
    history: Vec<Attempt>,
}

async fn whole(
    node: &Node,
    who: &Caller,
    app_id: AppId,
    id: DeadLetterId,
) -> Result<Json<DeadLetterWithHistory>, Problem> {
    let letter = sql::get(&mut node.db.read().await?, app_id, id).await?;
    let letter = letter.ok_or_else(|| not_found(id))?;
    let hidden = hides_payloads(node, who, app_id);
    let (payload, history) = match hidden {
        true => (None, Vec::new()),
        false => (Some(letter.original()), letter.history.clone()),
    };
    Ok(Json(DeadLetterWithHistory {
        view: DeadLetterView::of(letter.into(), hidden),
        payload_repaired: payload.as_ref().is_some_and(|read| read.repaired),
        payload: payload.map(|read| read.value),
        history,
    }))
}

async fn show(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(id): Path<DeadLetterId>,
) -> Result<Json<DeadLetterWithHistory>, Problem> {
    whole(&node, &who, app_of(&node, id).await?, id).await
}

fn managed(node: &Node, app_id: AppId, who: &Caller) -> DeadLetters {
    DeadLetters::new(node.db.clone(), node.outbox.clone(), app_id, who.user.id)
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Replay {
    payload: Option<Box<RawValue>>,
    #[serde(default)]
    at_version: AtVersion,
}

/// The delivery that repeats a dead letter.
#[derive(Serialize, JsonSchema)]
struct Replayed {
    delivery_id: DeliveryId,
}

async fn replay(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(id): Path<DeadLetterId>,
    Body(replay): Body<Replay>,
) -> Result<Json<Replayed>, Problem> {
    let app_id = app_of(&node, id).await?;
    let delivery_id = managed(&node, app_id, &who)
        .replay(id, replay.payload, replay.at_version)
        .await?;
    Ok(Json(Replayed { delivery_id }))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Resolve {
    reason: Resolution,
}

async fn resolve(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(id): Path<DeadLetterId>,
    Body(resolve): Body<Resolve>,
) -> Result<Json<DeadLetterWithHistory>, Problem> {
    let app_id = app_of(&node, id).await?;
    managed(&node, app_id, &who)
        .resolve(id, resolve.reason)
        .await?;
    whole(&node, &who, app_id, id).await
}

/// A batch that a bulk call settles, with one thing more that says how.
macro_rules! batch {
    ($(#[$attribute:meta])* $name:ident, $(#[$more:meta])* $how:ident: $type:ty) => {
        $(#[$attribute])*
        #[derive(Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        struct $name {
            source: Option<Source>,
            script_id: Option<ScriptId>,
            trigger_id: Option<TriggerId>,
            /// Text anywhere in `last_error`.
            error: Option<ErrorText>,
            handler_failed: Option<bool>,
            /// Not before.
            since: Option<DateTime<Utc>>,
            /// Before.
            until: Option<DateTime<Utc>>,
            /// That no filter is meant to be given.
            #[serde(default)]
            all: bool,
            /// Only say how many there are.
            #[serde(default)]
            dry_run: bool,
            /// Those that were there when the first call was made; it answers it.
            up_to: Option<DeadLetterId>,
            /// How many at most.
            #[serde(default)]
            limit: BatchLimit,
            $(#[$more])*
            $how: $type,
        }

        impl $name {
            fn batch(self) -> Result<Batch, Problem> {
                let mut filter = Filter {
                    state: None,
                    source: self.source.map(|source| source.as_str().to_owned()),
                    script_id: self.script_id,
                    trigger_id: self.trigger_id,
                    error: self.error.and_then(ErrorText::into_filter),
                    handler_failed: self.handler_failed,
                    since: self.since,
                    until: self.until,
                    up_to: None,
                };
                if filter.is_empty() && !self.all {
                    let detail =
                        "give a filter, or `\"all\": true` if every unresolved one is meant";
                    return Err(Problem::invalid_field("all", detail));
                }
                filter.state = Some(Settled::Unresolved);
                filter.up_to = self.up_to;
                Ok(Batch {
                    filter,
                    limit: self.limit.0,
                    dry_run: self.dry_run,
                })
            }
        }
    };
}

batch! {
    /// Which dead letters to replay.
    ReplayBatch, #[serde(default)] at_version: AtVersion
}
batch! {
    /// Which dead letters to resolve.
    ResolveBatch, reason: Resolution
}

struct Batch {
    filter: Filter,
    limit: i64,
    dry_run: bool,
}

/// How many one bulk call settles: one transaction.
#[derive(Deserialize, JsonSchema)]
#[serde(try_from = "i64")]
#[schemars(extend("minimum" = 1, "maximum" = Self::MAX))]
struct BatchLimit(i64);

impl BatchLimit {
    const MAX: i64 = 1_000;
}

impl Default for BatchLimit {
    fn default() -> Self {
        Self(500)
    }
}

impl TryFrom<i64> for BatchLimit {
    type Error = String;

    fn try_from(limit: i64) -> Result<Self, String> {
        match (1..=Self::MAX).contains(&limit) {
            true => Ok(Self(limit)),
            false => Err(format!("limit is 1 to {}, not {limit}", Self::MAX)),
        }
    }
}

/// What a bulk call replayed.
#[derive(Serialize, JsonSchema)]
struct BatchReplayed {
    replayed: u64,
    #[serde(flatten)]
    rest: BatchLeft,
}

/// What a bulk call resolved.
#[derive(Serialize, JsonSchema)]
struct BatchResolved {
    resolved: u64,
    #[serde(flatten)]
    rest: BatchLeft,
}

/// What a bulk call left to do.
#[derive(Serialize, JsonSchema)]
struct BatchLeft {
    /// How many are left.
    left: i64,
    /// For the next call, so that it goes on with the same ones.
    up_to: Option<DeadLetterId>,
    dry_run: bool,
}

async fn replay_many(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(app): Path<String>,
    Body(batch): Body<ReplayBatch>,
) -> Result<Json<BatchReplayed>, Problem> {
    let act = BulkAct::Replay(batch.at_version);
    let (replayed, rest) = in_bulk(&node, &who, &app, batch.batch()?, act).await?;
    Ok(Json(BatchReplayed { replayed, rest }))
}

async fn resolve_many(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(app): Path<String>,
    Body(batch): Body<ResolveBatch>,
) -> Result<Json<BatchResolved>, Problem> {
    let act = BulkAct::Resolve(batch.reason);
    let (resolved, rest) = in_bulk(&node, &who, &app, batch.batch()?, act).await?;
    Ok(Json(BatchResolved { resolved, rest }))
}

async fn in_bulk(
    node: &Node,
    who: &Caller,
    app: &str,
    batch: Batch,
    act: BulkAct,
) -> Result<(u64, BatchLeft), Problem> {
    let app_id = app_named(&node.directory.picture(), app)?.id;
    let Batch {
        mut filter,
        limit,
        dry_run,
    } = batch;
    check_filter(node, who, app_id, filter.error.as_ref())?;
    let mut conn = node.db.read().await?;
    if filter.up_to.is_none() {
        filter.up_to = sql::newest(&mut conn, app_id, &filter).await?;
    }
    let up_to = filter.up_to;
    if dry_run || up_to.is_none() {
        let left = sql::count(&mut conn, app_id, &filter).await?;
        let rest = BatchLeft {
            left,
            up_to,
            dry_run,
        };
        return Ok((0, rest));
    }
    drop(conn);
    let managed = managed(node, app_id, who);
    let (done, left) = managed.in_bulk(filter, act, limit).await?;
    let rest = BatchLeft {
        left,
        up_to,
        dry_run,
    };
    Ok((done, rest))
}
