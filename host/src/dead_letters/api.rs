//! The HTTP API of dead letters.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use uuid::Uuid;

use super::sql::{self, Filter};
use super::{
    AtVersion, BulkAct, DeadLetter, DeadLetterError, DeadLetterId, DeadLetters, Resolution,
    State as Settled,
};
use crate::apps::AppId;
use crate::http::endpoints::{Api, Of, Rule};
use crate::http::extract::{
    Body, INSTANT, Path, Query, SignedIn, app_named, instant, page, page_cursor, page_limit, parsed,
};
use crate::http::problem::Problem;
use crate::identity::Caller;
use crate::identity::capability::Capability;
use crate::node::Node;
use crate::triggers::Source;

/// How many one bulk call settles when it says nothing, and at most: one transaction each.
const BULK: i64 = 500;
const BULK_MAX: i64 = 1_000;

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get(
            "/apps/{app}/dead-letters",
            Rule::App(Capability::ManageDeadLetters, Of::App),
            list,
        )
        .get(
            "/apps/{app}/dead-letters/counts",
            Rule::App(Capability::ManageDeadLetters, Of::App),
            counts,
        )
        .post(
            "/apps/{app}/dead-letters/replay",
            Rule::App(Capability::ManageDeadLetters, Of::App),
            replay_many,
        )
        .post(
            "/apps/{app}/dead-letters/resolve",
            Rule::App(Capability::ManageDeadLetters, Of::App),
            resolve_many,
        )
        .get(
            "/dead-letters/{id}",
            Rule::App(Capability::ManageDeadLetters, Of::DeadLetter),
            show,
        )
        .post(
            "/dead-letters/{id}/replay",
            Rule::App(Capability::ManageDeadLetters, Of::DeadLetter),
            replay,
        )
        .post(
            "/dead-letters/{id}/resolve",
            Rule::App(Capability::ManageDeadLetters, Of::DeadLetter),
            resolve,
        )
}

/// The filters, as a query and a bulk body have them.
struct FilterFields {
    state: Option<String>,
    source: Option<String>,
    script_id: Option<String>,
    trigger_id: Option<String>,
    error: Option<String>,
    handler_failed: Option<String>,
    since: Option<String>,
    until: Option<String>,
}

impl FilterFields {
    fn filter(self) -> Result<Filter, Problem> {
        let uuid = |text: &str| text.parse::<Uuid>().ok();
        Ok(Filter {
            state: parsed(
                "state",
                self.state.as_deref(),
                Settled::parse,
                "one of unresolved, replayed, resolved",
            )?,
            source: parsed(
                "source",
                self.source.as_deref(),
                Source::parse,
                "one of http, kv",
            )?
            .map(|source| source.as_str().to_owned()),
            script_id: parsed("script_id", self.script_id.as_deref(), uuid, "a UUID")?
                .map(Into::into),
            trigger_id: parsed("trigger_id", self.trigger_id.as_deref(), uuid, "a UUID")?
                .map(Into::into),
            error: parsed(
                "error",
                self.error.as_deref(),
                |text| (!text.contains(char::is_control)).then(|| text.to_owned()),
                "text without control characters",
            )?
            .filter(|error| !error.is_empty()),
            handler_failed: parsed(
                "handler_failed",
                self.handler_failed.as_deref(),
                |text| text.parse().ok(),
                "true or false",
            )?,
            since: parsed("since", self.since.as_deref(), instant, INSTANT)?,
            until: parsed("until", self.until.as_deref(), instant, INSTANT)?,
            up_to: None,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    state: Option<String>,
    source: Option<String>,
    script_id: Option<String>,
    trigger_id: Option<String>,
    error: Option<String>,
    handler_failed: Option<String>,
    since: Option<String>,
    until: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

async fn list(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, Problem> {
    let limit = page_limit(query.limit.as_deref())?;
    let before = page_cursor(query.cursor.as_deref())?;
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let fields = FilterFields {
        state: query.state,
        source: query.source,
        script_id: query.script_id,
        trigger_id: query.trigger_id,
        error: query.error,
        handler_failed: query.handler_failed,
        since: query.since,
        until: query.until,
    };
    let filter = fields.filter()?;
    let letters = sql::page(
        &mut node.db.read().await?,
        app_id,
        &filter,
        before,
        limit + 1,
    )
    .await?;
    Ok(page(letters, limit, |letter| letter.id.to_string()))
}

async fn counts(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
) -> Result<Json<Value>, Problem> {
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let rows = sql::counts(&mut node.db.read().await?, app_id).await?;
    let mut by_state = json!({ "unresolved": 0, "replayed": 0, "resolved": 0 });
    let mut by_source = serde_json::Map::new();
    for (state, source, count) in rows {
        by_state[&state] = (by_state[&state].as_i64().unwrap_or(0) + count).into();
        if state == Settled::Unresolved.as_str() {
            by_source.insert(source, count.into());
        }
    }
    Ok(Json(
        json!({ "by_state": by_state, "unresolved_by_source": by_source }),
    ))
}

fn not_found(id: &str) -> Problem {
    DeadLetterError::NotFound(id.to_owned()).into()
}

/// A dead letter and the app that it belongs to.
async fn named(node: &Node, id: &str) -> Result<(AppId, DeadLetterId), Problem> {
    let parsed = id.parse().map_err(|_| not_found(id))?;
    let app_id = sql::app_of(&mut node.db.read().await?, parsed).await?;
    // The dead letters of an app that is gone are gone with it, though their rows stay a while.
    let app_id = app_id.filter(|id| node.directory.picture().app(*id).is_some());
    Ok((app_id.ok_or_else(|| not_found(id))?, parsed))
}

/// A dead letter with what happened and every attempt.
fn whole(letter: &DeadLetter) -> Result<Value, Problem> {
    let mut shown = serde_json::to_value(letter).map_err(Problem::internal)?;
    shown["payload"] = letter.original();
    shown["history"] = serde_json::to_value(&letter.history).map_err(Problem::internal)?;
    Ok(shown)
}

async fn show(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let (app_id, letter_id) = named(&node, &id).await?;
    let letter = sql::get(&mut node.db.read().await?, app_id, letter_id).await?;
    Ok(Json(whole(&letter.ok_or_else(|| not_found(&id))?)?))
}

fn managed(node: &Node, app_id: AppId, who: &Caller) -> DeadLetters {
    DeadLetters::new(node.db.clone(), node.outbox.clone(), app_id, who.user.id)
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Replay {
    payload: Option<Box<RawValue>>,
    #[serde(default)]
    at_version: AtVersion,
}

async fn replay(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(id): Path<String>,
    Body(replay): Body<Replay>,
) -> Result<Json<Value>, Problem> {
    let (app_id, letter_id) = named(&node, &id).await?;
    let delivery_id = managed(&node, app_id, &who)
        .replay(letter_id, replay.payload, replay.at_version)
        .await?;
    Ok(Json(json!({ "delivery_id": delivery_id })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resolve {
    reason: Resolution,
}

async fn resolve(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(id): Path<String>,
    Body(resolve): Body<Resolve>,
) -> Result<Json<Value>, Problem> {
    let (app_id, letter_id) = named(&node, &id).await?;
    managed(&node, app_id, &who)
        .resolve(letter_id, resolve.reason)
        .await?;
    let letter = sql::get(&mut node.db.read().await?, app_id, letter_id).await?;
    Ok(Json(whole(&letter.ok_or_else(|| not_found(&id))?)?))
}

/// What a bulk call settles, and how.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bulk {
    source: Option<String>,
    script_id: Option<String>,
    trigger_id: Option<String>,
    error: Option<String>,
    handler_failed: Option<bool>,
    since: Option<String>,
    until: Option<String>,
    /// That no filter is meant to be given.
    #[serde(default)]
    all: bool,
    #[serde(default)]
    dry_run: bool,
    /// Those that were there when the first call was made; it answers it.
    up_to: Option<DeadLetterId>,
    limit: Option<i64>,
    at_version: Option<AtVersion>,
    reason: Option<Resolution>,
}

async fn replay_many(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(app): Path<String>,
    Body(bulk): Body<Bulk>,
) -> Result<Json<Value>, Problem> {
    if bulk.reason.is_some() {
        return Err(Problem::invalid_field("reason", "a replay has no reason"));
    }
    let act = BulkAct::Replay(bulk.at_version.unwrap_or_default());
    in_bulk(&node, &who, &app, bulk, act, "replayed").await
}

async fn resolve_many(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(app): Path<String>,
    Body(bulk): Body<Bulk>,
) -> Result<Json<Value>, Problem> {
    if bulk.at_version.is_some() {
        let detail = "a resolution runs nothing, so no version";
        return Err(Problem::invalid_field("at_version", detail));
    }
    let reason = bulk.reason.ok_or_else(|| {
        let detail = "missing field `reason`: `ignored` or `handled_by_script`";
        Problem::invalid_field("reason", detail)
    })?;
    in_bulk(
        &node,
        &who,
        &app,
        bulk,
        BulkAct::Resolve(reason),
        "resolved",
    )
    .await
}

async fn in_bulk(
    node: &Node,
    who: &Caller,
    app: &str,
    bulk: Bulk,
    act: BulkAct,
    did: &str,
) -> Result<Json<Value>, Problem> {
    let app_id = app_named(&node.directory.picture(), app)?.id;
    let limit = bulk.limit.unwrap_or(BULK);
    if !(1..=BULK_MAX).contains(&limit) {
        let detail = format!("limit is 1 to {BULK_MAX}, not {limit}");
        return Err(Problem::invalid_field("limit", detail));
    }
    let fields = FilterFields {
        state: None,
        source: bulk.source,
        script_id: bulk.script_id,
        trigger_id: bulk.trigger_id,
        error: bulk.error,
        handler_failed: bulk.handler_failed.map(|failed| failed.to_string()),
        since: bulk.since,
        until: bulk.until,
    };
    let mut filter = fields.filter()?;
    if filter.is_empty() && !bulk.all {
        let detail = "give a filter, or `\"all\": true` if every unresolved one is meant";
        return Err(Problem::invalid_field("all", detail));
    }
    filter.state = Some(Settled::Unresolved);
    filter.up_to = bulk.up_to;
    let mut conn = node.db.read().await?;
    if filter.up_to.is_none() {
        filter.up_to = sql::newest(&mut conn, app_id, &filter).await?;
    }
    let up_to = filter.up_to;
    if bulk.dry_run || up_to.is_none() {
        let left = sql::count(&mut conn, app_id, &filter).await?;
        return Ok(Json(
            json!({ did: 0, "left": left, "up_to": up_to, "dry_run": bulk.dry_run }),
        ));
    }
    drop(conn);
    let managed = managed(node, app_id, who);
    let (done, left) = managed.in_bulk(filter, act, limit).await?;
    Ok(Json(
        json!({ did: done, "left": left, "up_to": up_to, "dry_run": false }),
    ))
}
