//! The end of an attempt, and the statements that write it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use chrono::TimeDelta;

use super::{NewDelivery, insert, lock_order_key};
use crate::apps::AppId;
use crate::dead_letters::{self, DeadLetter, DeadLetterId, Named};
use crate::dispatch::{Attempt, DeliveryId, Payload, WorkerId};
use crate::executions::sql::{Ended, insert as insert_executions, insert_abandoned, insert_leased};
use crate::executions::{AbandonedExecution, ExecutionError, ExecutionId, Log};
use crate::idempotency::{self, KeptAnswer, Key};
use crate::journal::{self, Channel, kinds};
use crate::sandbox::LogLine;
use crate::store::{
    Conn, Durability, Engine, Grouped, Lane, StoreError, Tx, bounded, chunks, on, tuples,
};

/// The end of an attempt: what is kept of it, and what becomes of its row.
#[derive(Debug, Clone)]
pub struct Completion {
    /// The delivery.
    pub id: DeliveryId,
    /// The claim under which it was worked on.
    pub attempt: u32,
    /// The worker that holds the lease.
    pub worker: WorkerId,
    /// The execution, if there was one.
    pub ended: Option<Ended>,
    /// Whether it is the end of a sync call.
    pub is_sync: bool,
    /// Whether somebody waits until it is written: a caller who may call again with the same key,
    /// or the next delivery of its order key.
    pub is_awaited: bool,
    /// What becomes of the row.
    pub then: Then,
    /// The order key, whose next delivery may run once this row is gone.
    pub order_key: Option<String>,
    /// What else is written with it.
    pub also: Vec<Also>,
}

/// What becomes of a delivery's row after an attempt.
#[derive(Debug, Clone)]
pub enum Then {
    /// It goes: the delivery has its outcome.
    Gone,
    /// It is due again after a while.
    DueAfter(TimeDelta, Vec<Attempt>),
    /// It waits for its trigger to be resumed; the attempt was none.
    Held,
    /// It is due again after a while; the attempt was none.
    PutBack(TimeDelta),
}

/// What is written together with the end of an attempt.
#[derive(Debug, Clone)]
pub enum Also {
    /// Nobody received the outcome.
    Abandoned(AbandonedExecution),
    /// The delivery used up its attempts.
    DeadLetter(Box<DeadLetter>),
    /// Somebody is told of that.
    Enqueue(Box<NewDelivery>),
    /// A handler of a dead letter failed.
    HandlerFailed(DeadLetterId),
    /// The answer is kept for whoever calls with the same key.
    Keep(AppId, Key, ExecutionId, KeptAnswer),
    /// The key is free again: nothing was run.
    Forget(AppId, Key, ExecutionId),
}

/// What stands for words that the database did not take.
const NOT_STORED: &str = "the details could not be stored";

impl Completion {
    /// The same without the words of the guest.
    pub fn trimmed(&self) -> Self {
        let mut trimmed = self.clone();
        if let Some(ended) = &mut trimmed.ended {
            ended.log = Log {
                lines: Vec::new(),
                truncated: true,
            };
            ended.execution.error = Some(ExecutionError::new(NOT_STORED));
        }
        for also in &mut trimmed.also {
            if let Also::DeadLetter(letter) = also {
                letter.last_error = NOT_STORED.to_owned();
                for attempt in &mut letter.history {
                    attempt.error = NOT_STORED.to_owned();
                }
            }
        }
        if let Then::DueAfter(_, history) = &mut trimmed.then {
            for attempt in history {
                attempt.error = NOT_STORED.to_owned();
            }
        }
        trimmed
    }

    /// Only what becomes of the row, in a form that the database takes whatever it is about: a dead
    /// letter's payload is its text, and nobody is told.
    pub fn bare(&self) -> Self {
        let mut bare = self.trimmed();
        bare.ended = None;
        bare.also
            .retain(|also| !matches!(also, Also::Enqueue(_) | Also::Keep(..)));
        for also in &mut bare.also {
            if let Also::DeadLetter(letter) = also {
                letter.payload = Arc::new(Payload::of_text(&letter.payload.json()));
                letter.history.clear();
            }
        }
        bare
    }
}

impl Grouped for Arc<Completion> {
    /// Whether the lease still held; if not, nothing was written.
    type Output = bool;

    fn lane(&self) -> Lane {
        match self.is_awaited {
            true => Lane::Urgent,
            false => Lane::Patient,
        }
    }

    fn bytes(&self) -> usize {
        let logged = self.ended.iter().flat_map(|ended| &ended.log.lines);
        let fields = |line: &LogLine| -> usize {
            let fields = line.fields.values();
            fields.map(|field| field.as_str().len()).sum()
        };
        let logged: usize = logged.map(|line| line.message.len() + fields(line)).sum();
        let letters = self.also.iter().map(|also| match also {
            Also::DeadLetter(letter) => letter.payload.bytes(),
            _ => 0,
        });
        logged + letters.sum::<usize>()
    }

    /// As [`NewDelivery`]: of a sync delivery a power cut may leave the row, which then is
    /// recorded as abandoned, instead of the execution.
    fn durability(&self) -> Durability {
        match self.is_sync && self.also.is_empty() {
            true => Durability::Kill,
            false => Durability::PowerCut,
        }
    }

    fn may_commit() -> bool {
        true
    }

    async fn apply(tx: &mut Tx, items: &[Self]) -> Result<Vec<bool>, StoreError> {
        if let Some(worker) = only_end(tx, items) {
            let held: HashSet<_> = end(tx, items, worker).await?.into_iter().collect();
            return Ok(items.iter().map(|item| held.contains(&item.id)).collect());
        }
        let fenced = fence(tx, items).await?;
        let kept: Vec<&Self> = items
            .iter()
            .zip(&fenced)
            .filter_map(|(item, held)| held.then_some(item))
            .collect();
        insert_executions(tx, kept.iter().filter_map(|item| item.ended.as_ref())).await?;
        for item in &kept {
            also(tx, &item.also).await?;
        }
        unblock_next(tx, &kept).await?;
        tell_of_dead_letters(tx, &kept).await?;
        Ok(fenced)
    }
}

/// Delete the rows of `items`, or put them back. Answers for each whether its lease still held: of one
/// delivery there may be several, of a worker whose lease was over and of those who claimed it since.
async fn fence(tx: &mut Tx, items: &[Arc<Completion>]) -> Result<Vec<bool>, StoreError> {
    let mut fenced = vec![false; items.len()];
    let mut left: Vec<usize> = (0..items.len())
        .filter(|place| matches!(items[*place].then, Then::Gone))
        .collect();
    // What a statement answers tells deliveries apart, and not the attempts of one.
    while !left.is_empty() {
        let mut seen = HashSet::with_capacity(left.len());
        let (once, again): (Vec<_>, Vec<_>) = left
            .into_iter()
            .partition(|place| seen.insert(items[*place].id));
        let gone: Vec<_> = once.iter().map(|place| &items[*place]).collect();
        let held: HashSet<_> = delete_fenced(tx, &gone).await?.into_iter().collect();
        for place in once {
            fenced[place] = held.contains(&items[place].id);
        }
        left = again;
    }
    for (item, fenced) in items.iter().zip(&mut fenced) {
        *fenced |= put_back(tx, item).await?;
    }
    Ok(fenced)
}

/// The worker of `items`, if on SQLite all that is written of them is that they ran and go, each of
/// another delivery.
fn only_end(tx: &Tx, items: &[Arc<Completion>]) -> Option<WorkerId> {
    let worker = items.first()?.worker;
    let ran = |item: &Completion| {
        let execution = item.ended.as_ref().map(|ended| &ended.execution);
        execution.is_some_and(|execution| {
            (execution.delivery_id, execution.attempt) == (Some(item.id.uuid()), item.attempt)
        })
    };
    let only_ends = |item: &Arc<Completion>| {
        item.worker == worker
            && ran(item)
            && matches!(item.then, Then::Gone)
            && item.order_key.is_none()
            && item.also.is_empty()
    };
    let mut seen = HashSet::with_capacity(items.len());
    let is_other = |item: &Arc<Completion>| seen.insert(item.id);
    let is_sqlite = tx.engine() == Engine::Sqlite;
    (is_sqlite && items.iter().all(only_ends) && items.iter().all(is_other)).then_some(worker)
}

/// Keep the executions and delete the rows of those of `items` whose leases still hold, in one
/// sending for each of [`chunks`]: SQLite looks at the fence for both. Answers which.
async fn end(
    tx: &mut Tx,
    items: &[Arc<Completion>],
    worker: WorkerId,
) -> Result<Vec<DeliveryId>, StoreError> {
    let mut held = Vec::with_capacity(items.len());
    let mut chunks = chunks(items).peekable();
    while let Some(chunk) = chunks.next() {
        let ended = chunk.iter().filter_map(|item| item.ended.as_ref());
        insert_leased(tx, ended, Some(worker)).await?;
        push_deletion(tx, chunk).await?;
        held.extend(match chunks.peek() {
            Some(_) => tx.sqlite_rows::<DeliveryId>().await?,
            None => tx.sqlite_last_rows().await?,
        });
    }
    Ok(held)
}

/// Write the deletion of the rows of [`chunks`] of completions whose leases still hold, for SQLite.
async fn push_deletion<C: AsRef<Completion>>(tx: &mut Tx, items: &[C]) -> Result<(), StoreError> {
    let tuples = tuples(items.len());
    let query = tx.sqlite_statement(tuples).await?;
    query.push("delete from outbox where ");
    let mut fences = query.separated(" or ");
    for place in 0..tuples {
        let item = items.get(place).map(AsRef::as_ref);
        fences
            .push("(id = ")
            .push_bind_unseparated(item.map(|item| item.id))
            .push_unseparated(" and attempt = ")
            .push_bind_unseparated(item.map(|item| i64::from(item.attempt)))
            .push_unseparated(" and lease_owner = ")
            .push_bind_unseparated(item.map(|item| item.worker))
            .push_unseparated(")");
    }
    query.push(" returning id");
    Ok(())
}

/// Delete the rows of those of `items` whose leases still hold. Answers which.
async fn delete_fenced(
    tx: &mut Tx,
    items: &[&Arc<Completion>],
) -> Result<Vec<DeliveryId>, StoreError> {
    // No join: where statistics say that the outbox is empty, as they often do, Postgres would read
    // all of it for each of these rows.
    const ARRAYS: &str = "
        delete from outbox where id = any($1)
          and attempt = ($2)[array_position($1, id)]
          and lease_owner = ($3)[array_position($1, id)]
        returning id";
    let mut deleted = Vec::with_capacity(items.len());
    match tx.engine() {
        Engine::Sqlite => {
            for chunk in chunks(items) {
                push_deletion(tx, chunk).await?;
                deleted.extend(tx.sqlite_rows::<DeliveryId>().await?);
            }
        }
        Engine::Postgres if items.is_empty() => {}
        Engine::Postgres => {
            let ids: Vec<_> = items.iter().map(|item| item.id).collect();
            let attempts: Vec<_> = items.iter().map(|item| i64::from(item.attempt)).collect();
            let workers: Vec<_> = items.iter().map(|item| item.worker).collect();
            let query = sqlx::query_scalar(ARRAYS)
                .bind(ids)
                .bind(attempts)
                .bind(workers);
            if let Conn::Postgres(held) = tx.conn().await? {
                deleted = bounded!(held, |c| query.fetch_all(c).await)?;
            }
        }
    }
    Ok(deleted)
}

/// Put a row back that does not go. Says whether it was put back.
async fn put_back(tx: &mut Tx, item: &Completion) -> Result<bool, StoreError> {
    const DUE: &str = "
        update outbox set lease_owner = null, due_at = $4, history = $5
        where id = $1 and attempt = $2 and lease_owner = $3";
    const NOT_ATTEMPTED: &str = "
        update outbox set lease_owner = null, due_at = $4, held = $5, attempt = attempt - 1
        where id = $1 and attempt = $2 and lease_owner = $3";
    let mut held = None;
    let (sql, due_at, history) = match &item.then {
        Then::Gone => return Ok(false),
        Then::DueAfter(pause, history) => (DUE, tx.now + *pause, Some(json(history))),
        Then::Held => {
            held = Some(true);
            (NOT_ATTEMPTED, tx.now, None)
        }
        Then::PutBack(pause) => {
            held = Some(false);
            (NOT_ATTEMPTED, tx.now + *pause, None)
        }
    };
    let rows = on!(tx.conn().await?, |c| {
        let query = sqlx::query(sql).bind(item.id).bind(i64::from(item.attempt));
        let mut query = query.bind(item.worker).bind(due_at);
        if let Some(history) = history {
            query = query.bind(history);
        }
        if let Some(held) = held {
            query = query.bind(held);
        }
        query.execute(c).await.map(|done| done.rows_affected())
    })?;
    Ok(rows > 0)
}

async fn also(tx: &mut Tx, also: &[Also]) -> Result<(), StoreError> {
    for also in also {
        match also {
            Also::Abandoned(row) => insert_abandoned(tx, row).await?,
            Also::DeadLetter(letter) => dead_letters::sql::insert(tx, letter).await?,
            Also::Enqueue(new) => {
                insert(tx, std::slice::from_ref(&**new)).await?;
            }
            Also::HandlerFailed(id) => dead_letters::sql::handler_failed(tx, *id).await?,
            Also::Keep(app_id, key, execution_id, answer) => {
                idempotency::sql::keep(tx, *app_id, key, *execution_id, answer).await?;
            }
            Also::Forget(app_id, key, execution_id) => {
                idempotency::sql::forget(tx, *app_id, key, *execution_id).await?;
            }
        }
    }
    Ok(())
}

/// Have streams told of the dead letters among it: one event for each app, however many there are.
async fn tell_of_dead_letters(tx: &mut Tx, kept: &[&Arc<Completion>]) -> Result<(), StoreError> {
    let mut by_app: BTreeMap<AppId, Vec<Named>> = BTreeMap::new();
    for also in kept.iter().flat_map(|item| &item.also) {
        if let Also::DeadLetter(letter) = also {
            by_app
                .entry(letter.app_id)
                .or_default()
                .push(letter.named());
        }
    }
    let events = by_app
        .iter()
        .map(|(app_id, letters)| dead_letters::news(kinds::DEAD_LETTERS_CREATED, *app_id, letters));
    let events: Vec<_> = events.collect();
    let events: Vec<_> = events.iter().collect();
    journal::sql::append(tx, &Channel::events(), &events).await
}

/// Let the next delivery of each order key run whose row before it went.
async fn unblock_next(tx: &mut Tx, kept: &[&Arc<Completion>]) -> Result<(), StoreError> {
    let gone = kept.iter().filter(|item| matches!(item.then, Then::Gone));
    let keys: BTreeSet<&str> = gone.filter_map(|item| item.order_key.as_deref()).collect();
    for key in keys {
        const SQL: &str = "
            update outbox set blocked = false, due_at = $2
            where order_key = $1 and blocked
              and order_seq = (select min(order_seq) from outbox where order_key = $1)";
        lock_order_key(tx, key).await?;
        let now = tx.now;
        on!(tx.conn().await?, |c| sqlx::query(SQL)
            .bind(key)
            .bind(now)
            .execute(c)
            .await
            .map(|_| ()))?;
    }
    Ok(())
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("our own types are always JSON")
}
