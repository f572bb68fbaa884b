//! The HTTP API of triggers.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    DeadLetterFilter, DispatchMode, Glob, Kind, KvFilter, Op, OrderedBy, PubSubFilter, Trigger,
    TriggerError, TriggerId, default_name, sql,
};
use crate::apps::{AppId, NAME_BYTES_MAX};
use crate::directory;
use crate::dispatch::retry::{ATTEMPTS_MAX, Backoff, PAUSE_MS_MAX, RetryPolicy};
use crate::dispatch::sql as outbox;
use crate::http::answer::{Created, NoContent, Page};
use crate::http::endpoints::{Api, Of, Rule};
use crate::http::etag::Tagged;
use crate::http::extract::{
    Body, NAME, PageQuery, Path, Query, SignedIn, app_named, check_ttl, checked_name, given,
    page_cursor,
};
use crate::http::problem::{Problem, ProblemType};
use crate::idempotency::EventPolicy;
use crate::identity::UserId;
use crate::identity::capability::Capability;
use crate::node::Node;
use crate::quotas::objects::{self, Object};
use crate::scripts::ScriptId;
use crate::scripts::api::named_script;
use crate::store::{ETag, Expected, StoreError, Tx};

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get(
            "/apps/{app}/triggers",
            Rule::App(Capability::ManageTriggers, Of::App),
            list,
        )
        .called("listTriggers", "List the triggers of an app")
        .post(
            "/apps/{app}/triggers",
            Rule::App(Capability::ManageTriggers, Of::App),
            create_any,
        )
        .called("createTrigger", "Register a trigger of any kind")
        .may_fail(&[ProblemType::NameTaken, ProblemType::TooMany])
        .post(
            "/apps/{app}/triggers/kv",
            Rule::App(Capability::ManageTriggers, Of::App),
            create_kv,
        )
        .called(
            "createKvTrigger",
            "Register a trigger on the key-value store",
        )
        .may_fail(&[ProblemType::NameTaken, ProblemType::TooMany])
        .post(
            "/apps/{app}/triggers/dead_letter",
            Rule::App(Capability::ManageTriggers, Of::App),
            create_dead_letter,
        )
        .called(
            "createDeadLetterTrigger",
            "Register a trigger on dead letters",
        )
        .may_fail(&[ProblemType::NameTaken, ProblemType::TooMany])
        .post(
            "/apps/{app}/triggers/pubsub",
            Rule::App(Capability::ManageTriggers, Of::App),
            create_pubsub,
        )
        .called("createPubSubTrigger", "Register a trigger on topics")
        .may_fail(&[ProblemType::NameTaken, ProblemType::TooMany])
        .get(
            "/triggers/{id}",
            Rule::App(Capability::ManageTriggers, Of::Trigger),
            show,
        )
        .called("getTrigger", "Show a trigger")
        .patch(
            "/triggers/{id}",
            Rule::App(Capability::ManageTriggers, Of::Trigger),
            change,
        )
        .called("changeTrigger", "Change a trigger")
        .may_fail(&[ProblemType::NameTaken])
        .delete(
            "/triggers/{id}",
            Rule::App(Capability::ManageTriggers, Of::Trigger),
            remove,
        )
        .called(
            "deleteTrigger",
            "Delete a trigger; what waits for it becomes dead letters",
        )
        .post(
            "/triggers/{id}/pause",
            Rule::App(Capability::ManageTriggers, Of::Trigger),
            pause,
        )
        .called("pauseTrigger", "Keep a trigger's deliveries for later")
        .post(
            "/triggers/{id}/resume",
            Rule::App(Capability::ManageTriggers, Of::Trigger),
            resume,
        )
        .called("resumeTrigger", "Let a trigger's deliveries go on")
}

/// A trigger and how many of its deliveries are in the outbox.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Trigger")]
struct TriggerView {
    #[serde(flatten)]
    trigger: Trigger,
    waiting: i64,
}

async fn view(node: &Node, trigger: Trigger) -> Result<TriggerView, Problem> {
    let waiting = outbox::waiting_of(&mut node.db.read().await?, trigger.id).await?;
    Ok(TriggerView { trigger, waiting })
}

/// How many wait changes by itself, and is no part of its tag.
async fn tagged(node: &Node, trigger: Trigger) -> Result<Tagged<Json<TriggerView>>, Problem> {
    Ok(Tagged {
        etag: ETag::of(&trigger),
        answer: Json(view(node, trigger).await?),
    })
}

async fn list(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<TriggerView>>, Problem> {
    let after = page_cursor(query.cursor.as_deref())?;
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let mut conn = node.db.read().await?;
    let mut views = Vec::new();
    for trigger in sql::page(&mut conn, app_id, after, query.limit.and_one()).await? {
        let waiting = outbox::waiting_of(&mut conn, trigger.id).await?;
        views.push(TriggerView { trigger, waiting });
    }
    Ok(Page::of(views, query.limit.get(), |view| {
        view.trigger.id.to_string()
    }))
}

/// A kind by its name.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "TriggerKind")]
enum KindName {
    Kv,
    DeadLetter,
    #[serde(rename = "pubsub")]
    PubSub,
}

impl KindName {
    /// The kind with a filter that lets everything through.
    fn everything(self) -> Kind {
        match self {
            Self::Kv => Kind::Kv(KvFilter {
                collection: Glob::any(),
                ops: Op::ALL.to_vec(),
                key: None,
            }),
            Self::DeadLetter => Kind::DeadLetter(DeadLetterFilter::default()),
            Self::PubSub => Kind::PubSub(PubSubFilter { topic: Glob::any() }),
        }
    }
}

/// What a body says of a trigger, new or changed. Retry fields that a new one leaves out take the
/// instance's defaults.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "TriggerFields")]
struct Fields {
    /// Where the path does not say it; elsewhere it may be said.
    kind: Option<KindName>,
    #[schemars(extend("maxLength" = NAME_BYTES_MAX, "pattern" = NAME))]
    name: Option<String>,
    script_id: Option<ScriptId>,
    script: Option<String>,
    enabled: Option<bool>,
    /// There is one only; it may be said.
    #[serde(rename = "dispatch_mode")]
    _dispatch_mode: Option<DispatchMode>,
    retry: Option<RetryFields>,
    #[serde(default, deserialize_with = "given")]
    idempotency: Option<Option<EventPolicy>>,
    collection: Option<Glob>,
    #[schemars(length(min = 1))]
    ops: Option<Vec<Op>>,
    #[serde(default, deserialize_with = "given")]
    key: Option<Option<Glob>>,
    #[serde(default, deserialize_with = "given")]
    ordered_by: Option<Option<OrderedBy>>,
    filter: Option<DeadLetterFilter>,
    topic: Option<Glob>,
}

impl Fields {
    /// See that the fields are of this kind and have values that they can have.
    fn check(&self, kind: &Kind) -> Result<(), Problem> {
        let of_some_kinds: [(_, _, &[&str]); 6] = [
            ("collection", self.collection.is_some(), &["kv"]),
            ("ops", self.ops.is_some(), &["kv"]),
            ("key", self.key.is_some(), &["kv"]),
            ("ordered_by", self.ordered_by.is_some(), &["kv", "pubsub"]),
            ("filter", self.filter.is_some(), &["dead_letter"]),
            ("topic", self.topic.is_some(), &["pubsub"]),
        ];
        if let Some(named) = self.kind
            && named.everything().as_str() != kind.as_str()
        {
            let detail = format!("this is a trigger of the kind `{}`", kind.as_str());
            return Err(Problem::invalid_field("kind", detail));
        }
        let misplaced = of_some_kinds
            .iter()
            .find(|(_, given, kinds)| *given && !kinds.contains(&kind.as_str()));
        if let Some((field, ..)) = misplaced {
            let detail = format!("a trigger of the kind `{}` has no `{field}`", kind.as_str());
            return Err(Problem::invalid_field(*field, detail));
        }
        if let Some(name) = &self.name {
            checked_name("name", name)?;
        }
        if self.ops.as_ref().is_some_and(Vec::is_empty) {
            let detail = "give at least one of insert, update, delete; or leave `ops` out for all";
            return Err(Problem::invalid_field("ops", detail));
        }
        if let Some(Some(policy)) = &self.idempotency {
            check_idempotency(policy)?;
        }
        Ok(())
    }

    /// Write what was given over `trigger`. The retry fields and the script, which need looking
    /// up, are not among it.
    fn over(self, trigger: &mut Trigger) {
        if let Some(name) = self.name {
            trigger.name = name;
        }
        trigger.enabled = self.enabled.unwrap_or(trigger.enabled);
        if let Some(idempotency) = self.idempotency {
            trigger.idempotency = idempotency;
        }
        trigger.ordered_by = self.ordered_by.unwrap_or(trigger.ordered_by);
        match &mut trigger.kind {
            Kind::Kv(filter) => {
                if let Some(collection) = self.collection {
                    filter.collection = collection;
                }
                if let Some(ops) = self.ops {
                    // Each once, in one order.
                    filter.ops = Op::ALL.into_iter().filter(|op| ops.contains(op)).collect();
                }
                if let Some(key) = self.key {
                    filter.key = key;
                }
            }
            Kind::DeadLetter(filter) => {
                if let Some(given) = self.filter {
                    *filter = given;
                }
            }
            Kind::PubSub(filter) => {
                if let Some(topic) = self.topic {
                    filter.topic = topic;
                }
            }
        }
    }
}

/// Retry fields as a body has them.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RetryFields {
    #[schemars(range(min = 1, max = ATTEMPTS_MAX))]
    attempts_max: Option<i64>,
    backoff: Option<Backoff>,
    #[schemars(range(min = 0, max = PAUSE_MS_MAX))]
    base_ms: Option<i64>,
    #[schemars(range(min = 0, max = 100))]
    jitter_pct: Option<i64>,
}

impl RetryFields {
    /// `policy` with what was given.
    fn over(&self, policy: RetryPolicy) -> Result<RetryPolicy, Problem> {
        let number = |field: &str, given: Option<i64>, kept: u64, least: u64, most: u64| {
            let Some(given) = given else { return Ok(kept) };
            let fitting = u64::try_from(given).ok();
            let fitting = fitting.filter(|given| (least..=most).contains(given));
            fitting.ok_or_else(|| {
                let field = format!("retry.{field}");
                let detail = format!("{field} is {least} to {most}, not {given}");
                Problem::invalid_field(field, detail)
            })
        };
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let attempts_max = number(
            "attempts_max",
            self.attempts_max,
            policy.attempts_max.into(),
            1,
            ATTEMPTS_MAX.into(),
        )?;
        let jitter_pct = number(
            "jitter_pct",
            self.jitter_pct,
            policy.jitter_pct.into(),
            0,
            100,
        )?;
        Ok(RetryPolicy {
            attempts_max: narrow(attempts_max),
            backoff: self.backoff.unwrap_or(policy.backoff),
            base_ms: number("base_ms", self.base_ms, policy.base_ms, 0, PAUSE_MS_MAX)?,
            jitter_pct: narrow(jitter_pct),
        })
    }
}

/// See that a trigger may have this policy.
///
/// # Errors
/// 422 names what it may not.
pub fn check_idempotency(policy: &EventPolicy) -> Result<(), Problem> {
    if !policy.key.starts_with('/') {
        return Err(Problem::invalid_field(
            "idempotency.key",
            "a key is a JSON pointer into the event, like `/kv/key` or `/kv/value/order_id`",
        ));
    }
    check_ttl(policy.ttl_s)
}

async fn create_any(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(app): Path<String>,
    Body(fields): Body<Fields>,
) -> Result<Created<TriggerView>, Problem> {
    let kind = fields.kind.ok_or_else(|| {
        Problem::invalid_field(
            "kind",
            "missing field `kind`: `kv`, `dead_letter` or `pubsub`",
        )
    })?;
    create(&node, who.user.id, &app, fields, kind).await
}

async fn create_kv(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(app): Path<String>,
    Body(fields): Body<Fields>,
) -> Result<Created<TriggerView>, Problem> {
    create(&node, who.user.id, &app, fields, KindName::Kv).await
}

async fn create_dead_letter(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(app): Path<String>,
    Body(fields): Body<Fields>,
) -> Result<Created<TriggerView>, Problem> {
    create(&node, who.user.id, &app, fields, KindName::DeadLetter).await
}

async fn create_pubsub(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(app): Path<String>,
    Body(fields): Body<Fields>,
) -> Result<Created<TriggerView>, Problem> {
    create(&node, who.user.id, &app, fields, KindName::PubSub).await
}

async fn create(
    node: &Node,
    by: UserId,
    app: &str,
    fields: Fields,
    kind: KindName,
) -> Result<Created<TriggerView>, Problem> {
    let app_id = app_named(&node.directory.picture(), app)?.id;
    let kind = kind.everything();
    fields.check(&kind)?;
    if matches!(kind, Kind::Kv(_)) && fields.collection.is_none() {
        let detail = "missing field `collection`; `*` means every collection";
        return Err(Problem::invalid_field("collection", detail));
    }
    if matches!(kind, Kind::PubSub(_)) && fields.topic.is_none() {
        let detail = "missing field `topic`; `*` means every topic";
        return Err(Problem::invalid_field("topic", detail));
    }
    let script = fields.script.as_deref();
    let script_id = named_script(node, app_id, fields.script_id, script).await?;
    let script_id = script_id.ok_or_else(|| {
        Problem::invalid_field(
            "script_id",
            "missing field `script_id` (or `script`, a name)",
        )
    })?;
    let retry = fields.retry.as_ref();
    let retry = retry.map_or(Ok(node.config.retry), |retry| retry.over(node.config.retry))?;
    let triggers_max = node.quotas.quotas().objects;
    let trigger = node.db.write(move |tx| {
        Box::pin(async move {
            directory::raise_version(tx).await?;
            objects::check::<TriggerError>(tx, app_id, Object::Triggers, triggers_max).await?;
            let mut trigger = Trigger {
                id: TriggerId::new(),
                app_id,
                script_id,
                name: String::new(),
                kind,
                enabled: true,
                paused: false,
                dispatch_mode: DispatchMode::Async,
                retry,
                ordered_by: None,
                idempotency: None,
                registered_by_principal: by,
                created_at: tx.now,
                updated_at: tx.now,
            };
            fields.over(&mut trigger);
            if trigger.name.is_empty() {
                let conn = tx.conn().await?;
                let script = crate::scripts::sql::get(conn, script_id).await?;
                let script = script.map(|script| script.name).unwrap_or_default();
                let taken = sql::names(conn, app_id).await?;
                trigger.name = default_name(&script, &trigger.kind, &taken);
            }
            put(tx, &trigger).await?;
            tx.creates(trigger.id);
            Ok::<_, TriggerError>(trigger)
        })
    });
    let trigger = trigger.await?;
    node.refresh_directory().await;
    Ok(Created(view(node, trigger).await?))
}

/// What a filter on dead letters names must be of the same app.
async fn check_filter(tx: &mut Tx, app_id: AppId, kind: &Kind) -> Result<(), TriggerError> {
    let Kind::DeadLetter(filter) = kind else {
        return Ok(());
    };
    if let Some(id) = filter.trigger_id {
        let known = sql::get(tx.conn().await?, id).await?;
        if known.is_none_or(|trigger| trigger.app_id != app_id) {
            return Err(TriggerError::UnknownTrigger(id));
        }
    }
    if let Some(id) = filter.script_id {
        let known = crate::scripts::sql::get(tx.conn().await?, id).await?;
        if known.is_none_or(|script| script.app_id != app_id) {
            return Err(TriggerError::UnknownScript(id));
        }
    }
    Ok(())
}

async fn put(tx: &mut Tx, trigger: &Trigger) -> Result<(), TriggerError> {
    check_filter(tx, trigger.app_id, &trigger.kind).await?;
    sql::upsert(tx, trigger).await.map_err(|error| match error {
        StoreError::Duplicate => TriggerError::NameTaken(trigger.name.clone()),
        error => error.into(),
    })
}

async fn show(
    State(node): State<Arc<Node>>,
    Path(id): Path<TriggerId>,
) -> Result<Tagged<Json<TriggerView>>, Problem> {
    let trigger = sql::get(&mut node.db.read().await?, id).await?;
    let trigger = trigger.ok_or_else(|| TriggerError::NotFound(id.to_string()))?;
    tagged(&node, trigger).await
}

/// A trigger as it is, if that is as expected, while nobody else changes it.
async fn changeable(
    tx: &mut Tx,
    id: TriggerId,
    expected: &Expected,
) -> Result<Trigger, TriggerError> {
    directory::raise_version(tx).await?;
    let known = sql::get(tx.conn().await?, id).await?;
    expected.check(known.as_ref())?;
    known.ok_or_else(|| TriggerError::NotFound(id.to_string()))
}

async fn change(
    State(node): State<Arc<Node>>,
    Path(id): Path<TriggerId>,
    expected: Expected,
    Body(fields): Body<Fields>,
) -> Result<Tagged<Json<TriggerView>>, Problem> {
    let known = sql::get(&mut node.db.read().await?, id).await?;
    let known = known.ok_or_else(|| TriggerError::NotFound(id.to_string()))?;
    fields.check(&known.kind)?;
    let retry = fields.retry.as_ref();
    let retry = retry.map(|retry| retry.over(known.retry)).transpose()?;
    let script = fields.script.as_deref();
    let script_id = named_script(&node, known.app_id, fields.script_id, script).await?;
    let changed = node.db.write(move |tx| {
        Box::pin(async move {
            let mut trigger = changeable(tx, id, &expected).await?;
            trigger.script_id = script_id.unwrap_or(trigger.script_id);
            trigger.retry = retry.unwrap_or(trigger.retry);
            fields.over(&mut trigger);
            trigger.updated_at = tx.now;
            put(tx, &trigger).await?;
            Ok::<_, TriggerError>(trigger)
        })
    });
    let trigger = changed.await?;
    node.refresh_directory().await;
    tagged(&node, trigger).await
}

async fn remove(
    State(node): State<Arc<Node>>,
    Path(id): Path<TriggerId>,
    expected: Expected,
) -> Result<NoContent, Problem> {
    let removed = node.db.write(move |tx| {
        Box::pin(async move {
            changeable(tx, id, &expected).await?;
            sql::delete(tx, id).await?;
            Ok::<_, TriggerError>(())
        })
    });
    removed.await?;
    node.refresh_directory().await;
    // What waits for it goes on, and dead-letters: nothing is lost.
    hold_all(&node, id, false).await?;
    Ok(NoContent)
}

async fn pause(
    State(node): State<Arc<Node>>,
    Path(id): Path<TriggerId>,
    expected: Expected,
) -> Result<Tagged<Json<TriggerView>>, Problem> {
    set_paused(&node, id, expected, true).await
}

async fn resume(
    State(node): State<Arc<Node>>,
    Path(id): Path<TriggerId>,
    expected: Expected,
) -> Result<Tagged<Json<TriggerView>>, Problem> {
    set_paused(&node, id, expected, false).await
}

async fn set_paused(
    node: &Arc<Node>,
    id: TriggerId,
    expected: Expected,
    paused: bool,
) -> Result<Tagged<Json<TriggerView>>, Problem> {
    let changed = node.db.write(move |tx| {
        Box::pin(async move {
            let mut trigger = changeable(tx, id, &expected).await?;
            if trigger.paused != paused {
                trigger.paused = paused;
                trigger.updated_at = tx.now;
                put(tx, &trigger).await?;
            }
            Ok::<_, TriggerError>(trigger)
        })
    });
    let trigger = changed.await?;
    node.refresh_directory().await;
    hold_all(node, id, paused).await?;
    tagged(node, trigger).await
}

/// Keep every delivery of a trigger for later, or let them go on, batch by batch: others write in
/// between. Should we end in the middle, the dispatcher holds or mends the rest.
async fn hold_all(node: &Node, id: TriggerId, held: bool) -> Result<(), StoreError> {
    loop {
        let batch = node.db.write::<_, StoreError, _>(move |tx| {
            Box::pin(async move { outbox::hold(tx, id, held).await })
        });
        let rows = batch.await?;
        if !held {
            node.outbox.is_behind();
        }
        if rows < outbox::HOLD_BATCH {
            return Ok(());
        }
    }
}
