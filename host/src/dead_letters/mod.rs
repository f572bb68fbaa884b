//! Dead letters: deliveries that used up their attempts, kept whole, so that each can be looked
//! at, put back and settled.

pub mod api;
pub mod imports;
pub mod sql;

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::apps::AppId;
use crate::dispatch::outbox::Outbox;
use crate::dispatch::retry::RetryPolicy;
use crate::dispatch::{Attempt, Delivery, DeliveryId, Payload};
use crate::executions::ExecutionId;
use crate::identity::UserId;
use crate::journal::{self, Channel, NewEntry, kinds};
use crate::json::{self, EVENT_DEPTH_MAX, Json, NotJson, Read};
use crate::sandbox::{Body, Request};
use crate::scripts::ScriptId;
use crate::store::{Db, Id, StoreError, Tx};
use crate::telemetry::trace::TraceParent;
use crate::triggers::TriggerId;
use sql::Filter;

/// The id of a dead letter.
pub type DeadLetterId = Id<DeadLetter>;

/// A delivery that used up its attempts.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct DeadLetter {
    /// Its id.
    pub id: DeadLetterId,
    /// The app.
    pub app_id: AppId,
    /// The script.
    pub script_id: ScriptId,
    /// The version that the last attempt ran; 0 when none could.
    pub script_version: u32,
    /// The trigger that made the delivery, if one did.
    pub trigger_id: Option<TriggerId>,
    /// What fired it: `http` or `kv`.
    pub source: String,
    /// What happened, as it came.
    #[serde(skip)]
    pub payload: Arc<Payload>,
    /// The request that it all began with.
    pub request_id: Uuid,
    /// The execution that caused the delivery, if one did.
    pub parent_execution_id: Option<ExecutionId>,
    /// Where the delivery was caused in the trace of that request.
    #[serde(skip)]
    pub trace: Option<TraceParent>,
    /// As whom it ran.
    pub principal_id: Option<UserId>,
    /// How many events lie between the request and the delivery.
    pub trigger_depth: u32,
    /// The policy that it was retried by.
    pub retry: RetryPolicy,
    /// The order key of the delivery.
    #[serde(skip)]
    pub order_key: Option<String>,
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// The dead letter that the delivery was a replay of.
    pub replay_of: Option<DeadLetterId>,
    /// Every attempt, oldest first.
    #[serde(skip)]
    pub history: Vec<Attempt>,
    /// How many attempts there were.
    pub attempts: u32,
    /// What went wrong at last.
    #[serde(skip)]
    pub last_error: String,
    /// When the first attempt began.
    pub first_attempt_at: DateTime<Utc>,
    /// When the last attempt began.
    pub last_attempt_at: DateTime<Utc>,
    /// Whether it still needs somebody.
    pub state: State,
    /// Whether a handler that was told of it failed.
    pub handler_failed: bool,
    /// Why it was resolved.
    pub reason: Option<Resolution>,
    /// The delivery that repeats it.
    pub replayed_as: Option<DeliveryId>,
    /// Who replayed or resolved it.
    pub settled_by: Option<UserId>,
    /// When.
    pub settled_at: Option<DateTime<Utc>>,
    /// When it died.
    pub created_at: DateTime<Utc>,
}

/// A dead letter as lists show it: without what happened and without its attempts.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct Listed(DeadLetter);

impl Listed {
    /// Its id.
    pub fn id(&self) -> DeadLetterId {
        self.0.id
    }

    /// What went wrong at last.
    pub fn last_error(&self) -> &str {
        &self.0.last_error
    }
}

impl From<DeadLetter> for Listed {
    fn from(letter: DeadLetter) -> Self {
        Self(letter)
    }
}

/// Whether a dead letter still needs somebody.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "DeadLetterState")]
pub enum State {
    /// Nobody has done anything about it.
    Unresolved,
    /// It was put back into the outbox.
    Replayed,
    /// Somebody said that it needs no further work.
    Resolved,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Unresolved, Self::Replayed, Self::Resolved];

    /// The word in the database and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unresolved => "unresolved",
            Self::Replayed => "replayed",
            Self::Resolved => "resolved",
        }
    }

    /// The state that a word names.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// Why a dead letter needs no further work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// Somebody decided that it does not matter.
    Ignored,
    /// A script did what was needed.
    HandledByScript,
}

impl Resolution {
    /// The word in the database and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ignored => "ignored",
            Self::HandledByScript => "handled_by_script",
        }
    }

    /// The reason that a word names.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Ignored, Self::HandledByScript]
            .into_iter()
            .find(|reason| reason.as_str() == word)
    }
}

/// Which version of its script a replay runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AtVersion {
    /// Whichever is current then.
    #[default]
    Latest,
    /// The one that failed.
    Pinned,
}

/// What can go wrong with dead letters.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// No such dead letter, or none of this app.
    #[error("there is no dead letter `{0}`")]
    NotFound(String),
    /// It was replayed or resolved before.
    #[error("the dead letter was {} before", .0.as_str())]
    AlreadySettled(State),
    /// Its script never ran, so there is no version to repeat.
    #[error("no version of the script ran, so none can be pinned; use `latest`")]
    NothingToPin,
    /// The edited payload is not what the source's payloads look like.
    #[error("the payload is not one of a delivery by `{source_name}`: {problem}")]
    InvalidPayload {
        /// The source.
        source_name: String,
        /// What is wrong.
        problem: String,
    },
    /// The edited payload is none that JSON can be here.
    #[error("the payload: {0}")]
    UnfitPayload(NotJson),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl DeadLetter {
    /// The dead letter of a delivery whose last attempt is the last of `history`.
    pub fn of(delivery: &Delivery, history: Vec<Attempt>, now: DateTime<Utc>) -> Self {
        let last = history.last();
        Self {
            id: DeadLetterId::new(),
            app_id: delivery.app_id,
            script_id: delivery.script_id,
            script_version: last.map_or(0, |last| last.script_version),
            trigger_id: delivery.trigger_id,
            source: match delivery.invocation_type.as_str() {
                "http_async" => "http".to_owned(),
                other => other.to_owned(),
            },
            payload: delivery.payload.clone(),
            request_id: delivery.request_id,
            parent_execution_id: delivery.parent_execution_id,
            trace: delivery.trace,
            principal_id: delivery.principal_id,
            trigger_depth: delivery.trigger_depth,
            retry: delivery.retry,
            order_key: delivery.order_key.clone(),
            delivery_id: delivery.id,
            replay_of: delivery.dead_letter_id,
            attempts: last.map_or(delivery.attempt, |last| last.attempt),
            // A guest's words; Postgres holds every character but this one.
            last_error: last.map_or_else(String::new, |last| last.error.replace('\0', "\u{fffd}")),
            first_attempt_at: history.first().map_or(now, |first| first.at),
            last_attempt_at: last.map_or(now, |last| last.at),
            history,
            state: State::Unresolved,
            handler_failed: false,
            reason: None,
            replayed_as: None,
            settled_by: None,
            settled_at: None,
            created_at: now,
        }
    }

    /// What names it where streams are told of it.
    pub fn named(&self) -> Named {
        (self.id, self.script_id)
    }

    /// What scripts see of it. It never fails, whatever the payload is.
    pub fn told(&self) -> Told<'_> {
        let Read { value, repaired } = self.original();
        Told {
            id: self.id,
            original: value,
            original_repaired: repaired,
            attempts: self.attempts,
            last_error: &self.last_error,
            trigger_id: self.trigger_id,
            script_id: self.script_id,
            first_attempt_at: self.first_attempt_at,
            last_attempt_at: self.last_attempt_at,
        }
    }

    /// The event that tells a handler of it. It never fails, whatever the payload is.
    pub fn event(&self) -> Payload {
        let event = Event {
            id: self.id,
            source: "dead_letter",
            dead_letter: self.told(),
        };
        Payload::Event(Json::written(&event).into_raw())
    }

    /// What happened, as people read and edit it: the event, or the request of a route. An event
    /// that was written before values were checked is repaired; it never fails.
    pub fn original(&self) -> Read {
        match &*self.payload {
            Payload::Event(event) => Json::read(event.get(), EVENT_DEPTH_MAX),
            Payload::Request(request) => Read {
                value: Json::written(request),
                repaired: false,
            },
        }
    }

    /// The delivery that repeats it.
    fn replay(
        &self,
        payload: Option<Arc<Payload>>,
        version: AtVersion,
    ) -> Result<Delivery, DeadLetterError> {
        let script_version = match version {
            AtVersion::Latest => None,
            AtVersion::Pinned if self.script_version == 0 => {
                return Err(DeadLetterError::NothingToPin);
            }
            AtVersion::Pinned => Some(self.script_version),
        };
        let invocation_type = match self.source.as_str() {
            "http" => "http_async",
            other => other,
        };
        Ok(Delivery {
            script_version,
            trigger_id: self.trigger_id,
            request_id: self.request_id,
            trace: self.trace,
            // Beneath the attempt that failed, in the tree of the request.
            parent_execution_id: self.history.last().and_then(|last| last.execution_id),
            principal_id: self.principal_id,
            trigger_depth: self.trigger_depth,
            dead_letter_id: Some(self.id),
            order_key: self.order_key.clone(),
            payload: payload.unwrap_or_else(|| self.payload.clone()),
            ..Delivery::new(
                self.app_id,
                self.script_id,
                invocation_type,
                Payload::nothing(),
                self.retry,
            )
        })
    }

    /// `edited`, as the payload of a delivery like this one's.
    fn edited(&self, edited: Box<RawValue>) -> Result<Payload, DeadLetterError> {
        let edited =
            Json::within(edited, EVENT_DEPTH_MAX).map_err(DeadLetterError::UnfitPayload)?;
        match &*self.payload {
            Payload::Request(_) => edited_request(edited.as_str()).map(Payload::Request),
            Payload::Event(_) if edited.as_str().starts_with('{') => {
                Ok(Payload::Event(edited.into_raw()))
            }
            Payload::Event(_) => Err("an event is an object".to_owned()),
        }
        .map_err(|problem| DeadLetterError::InvalidPayload {
            source_name: self.source.clone(),
            problem,
        })
    }
}

/// What scripts see of a dead letter.
#[derive(Debug, Serialize)]
pub struct Told<'l> {
    id: DeadLetterId,
    original: Json,
    /// That it is not as it was stored: it was written before values were checked.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    original_repaired: bool,
    attempts: u32,
    last_error: &'l str,
    trigger_id: Option<TriggerId>,
    script_id: ScriptId,
    first_attempt_at: DateTime<Utc>,
    last_attempt_at: DateTime<Utc>,
}

/// What tells a handler of a dead letter.
#[derive(Serialize)]
struct Event<'l> {
    id: DeadLetterId,
    source: &'static str,
    dead_letter: Told<'l>,
}

/// A request that somebody edited. Its body is what its type says, as when it came.
fn edited_request(text: &str) -> Result<Request, String> {
    let request: Request = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if let Some(Body {
        content_type: Some(content_type),
        bytes,
    }) = &request.body
        && json::is_content_type(content_type)
    {
        json::check_bytes(bytes).map_err(|refused| format!("its body: {refused}"))?;
    }
    Ok(request)
}

/// A dead letter and the script that it is of.
pub type Named = (DeadLetterId, ScriptId);

/// About how many bytes one bulk replay moves: its transaction holds up every other write.
const REPLAY_BYTES: usize = 1024 * 1024;

/// How many dead letters an event names.
const NAMED_MAX: usize = 20;

/// What streams are told of dead letters of one app, which may be none.
pub fn news(kind: &str, app_id: AppId, letters: &[Named]) -> NewEntry {
    let first = letters.iter().take(NAMED_MAX);
    let scripts: BTreeSet<ScriptId> = letters.iter().map(|(_, script_id)| *script_id).collect();
    let data = serde_json::json!({
        "count": letters.len(),
        "ids": first.map(|(id, _)| id).collect::<Vec<_>>(),
        "script_ids": scripts.iter().take(NAMED_MAX).collect::<Vec<_>>(),
    });
    NewEntry::event(kind, Some(app_id), &data)
}

/// Have streams told of them once the transaction is committed; the last that it does.
async fn tell(tx: &mut Tx, kind: &str, app_id: AppId, letters: &[Named]) -> Result<(), StoreError> {
    if letters.is_empty() {
        return Ok(());
    }
    let entry = news(kind, app_id, letters);
    journal::sql::append(tx, &Channel::events(), &[&entry]).await
}

/// One app's dead letters, as somebody who may manage them.
#[derive(Clone)]
pub struct DeadLetters {
    db: Db,
    outbox: Arc<Outbox>,
    app_id: AppId,
    principal_id: UserId,
}

impl DeadLetters {
    /// The dead letters of the app `app_id`, managed by `principal_id`.
    pub fn new(db: Db, outbox: Arc<Outbox>, app_id: AppId, principal_id: UserId) -> Self {
        Self {
            db,
            outbox,
            app_id,
            principal_id,
        }
    }

    /// Put a dead letter back into the outbox: once, however many ask.
    ///
    /// # Errors
    /// [`DeadLetterError`]; nothing was changed.
    pub async fn replay(
        &self,
        id: DeadLetterId,
        payload: Option<Box<RawValue>>,
        version: AtVersion,
    ) -> Result<DeliveryId, DeadLetterError> {
        let (app_id, principal_id) = (self.app_id, self.principal_id);
        let outbox = self.outbox.clone();
        let delivery_id = self.db.write(move |tx| {
            Box::pin(async move {
                let letter = sql::get(tx.conn().await?, app_id, id).await?;
                let letter = letter.ok_or_else(|| DeadLetterError::NotFound(id.to_string()))?;
                let edited = payload.map(|payload| letter.edited(payload).map(Arc::new));
                let delivery = letter.replay(edited.transpose()?, version)?;
                let (delivery_id, counted) = (delivery.id, delivery.clone());
                if !sql::replayed(tx, id, delivery_id, principal_id).await? {
                    let now = sql::get(tx.conn().await?, app_id, id).await?;
                    let state = now.map_or(letter.state, |letter| letter.state);
                    return Err(DeadLetterError::AlreadySettled(state));
                }
                crate::dispatch::sql::insert(tx, &[outbox.row(delivery, None, false)]).await?;
                tell(tx, kinds::DEAD_LETTERS_REPLAYED, app_id, &[letter.named()]).await?;
                Ok((delivery_id, counted))
            })
        });
        let (delivery_id, counted) = delivery_id.await?;
        self.outbox.count(&counted);
        self.outbox.is_behind();
        Ok(delivery_id)
    }

    /// Say that a dead letter needs no further work.
    ///
    /// # Errors
    /// [`DeadLetterError`]; nothing was changed.
    pub async fn resolve(
        &self,
        id: DeadLetterId,
        reason: Resolution,
    ) -> Result<(), DeadLetterError> {
        let (app_id, principal_id) = (self.app_id, self.principal_id);
        self.db
            .write(move |tx| {
                Box::pin(async move {
                    let known = sql::get(tx.conn().await?, app_id, id).await?;
                    let letter = known.ok_or_else(|| DeadLetterError::NotFound(id.to_string()))?;
                    if sql::resolved(tx, app_id, id, reason, principal_id).await? {
                        tell(tx, kinds::DEAD_LETTERS_RESOLVED, app_id, &[letter.named()]).await?;
                        return Ok(());
                    }
                    let now = sql::get(tx.conn().await?, app_id, id).await?;
                    let state = now.map_or(letter.state, |letter| letter.state);
                    Err(DeadLetterError::AlreadySettled(state))
                })
            })
            .await
    }

    /// Replay or resolve the oldest unresolved ones that `filter` lets through, at most `limit`,
    /// in one transaction; fewer where those to be replayed have more than [`REPLAY_BYTES`].
    /// Answers how many it were and how many are left.
    ///
    /// # Errors
    /// [`DeadLetterError`]; nothing was changed.
    pub async fn in_bulk(
        &self,
        filter: Filter,
        act: BulkAct,
        limit: i64,
    ) -> Result<(u64, i64), DeadLetterError> {
        let (app_id, principal_id) = (self.app_id, self.principal_id);
        let outbox = self.outbox.clone();
        let filter = Filter {
            state: Some(State::Unresolved),
            ..filter
        };
        let done = self.db.write(move |tx| {
            Box::pin(async move {
                let mut done = Vec::new();
                let mut rows = Vec::new();
                match act {
                    BulkAct::Resolve(reason) => {
                        let conn = tx.conn().await?;
                        for named in sql::oldest_named(conn, app_id, &filter, limit).await? {
                            if sql::resolved(tx, app_id, named.0, reason, principal_id).await? {
                                done.push(named);
                            }
                        }
                    }
                    BulkAct::Replay(version) => {
                        let bounds = sql::Bounds {
                            limit,
                            bytes_max: REPLAY_BYTES,
                        };
                        let (conn, order) = (tx.conn().await?, sql::Order::OldestFirst);
                        let read = sql::whole(conn, app_id, &filter, None, order, bounds).await?;
                        for letter in read.0 {
                            // One whose script never ran has no version: the current one then.
                            let delivery = letter
                                .replay(None, version)
                                .or_else(|_| letter.replay(None, AtVersion::Latest))?;
                            if sql::replayed(tx, letter.id, delivery.id, principal_id).await? {
                                rows.push(outbox.row(delivery, None, false));
                                done.push(letter.named());
                            }
                        }
                    }
                }
                crate::dispatch::sql::insert(tx, &rows).await?;
                let left = sql::count(tx.conn().await?, app_id, &filter).await?;
                let kind = match act {
                    BulkAct::Resolve(_) => kinds::DEAD_LETTERS_RESOLVED,
                    BulkAct::Replay(_) => kinds::DEAD_LETTERS_REPLAYED,
                };
                tell(tx, kind, app_id, &done).await?;
                Ok::<_, DeadLetterError>((done.len() as u64, left, rows))
            })
        });
        let (done, left, rows) = done.await?;
        for row in &rows {
            self.outbox.count(&row.delivery);
        }
        self.outbox.is_behind();
        Ok((done, left))
    }
}

/// What is done with many at once.
#[derive(Debug, Clone, Copy)]
pub enum BulkAct {
    /// Put them back.
    Replay(AtVersion),
    /// Say that they need no further work.
    Resolve(Resolution),
}
