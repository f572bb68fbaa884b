//! The statements of triggers.

use chrono::{DateTime, Utc};

use super::{
    DeadLetterFilter, DispatchMode, Glob, Kind, KvFilter, Op, OrderedBy, PubSubFilter, Source,
    Trigger, TriggerId,
};
use crate::apps::AppId;
use crate::dispatch::sql::RetryRow;
use crate::identity::UserId;
use crate::scripts::ScriptId;
use crate::store::{Conn, Readable, StoreError, Tx, on};

#[derive(sqlx::FromRow)]
struct TriggerRow {
    id: TriggerId,
    app_id: AppId,
    script_id: ScriptId,
    kind: String,
    name: String,
    enabled: bool,
    paused: bool,
    #[sqlx(flatten)]
    retry: RetryRow,
    ordered_by: Option<String>,
    idempotency: Option<String>,
    registered_by_principal: UserId,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    collection: Option<String>,
    ops: Option<String>,
    key: Option<String>,
    source: Option<String>,
    of_trigger_id: Option<TriggerId>,
    of_script_id: Option<ScriptId>,
    topic: Option<String>,
}

impl TryFrom<TriggerRow> for Trigger {
    type Error = StoreError;

    fn try_from(row: TriggerRow) -> Result<Self, StoreError> {
        let inconsistent = |(column, problem): (&'static str, String)| StoreError::Inconsistent {
            table: "triggers",
            column,
            id: row.id.to_string(),
            problem,
        };
        let glob = |column, text: &str| {
            text.parse::<Glob>()
                .map_err(|problem| inconsistent((column, problem)))
        };
        let json = |column, error: serde_json::Error| inconsistent((column, error.to_string()));
        let kind = match row.kind.as_str() {
            "kv" => Kind::Kv(KvFilter {
                collection: glob("collection", row.collection.as_deref().unwrap_or_default())?,
                ops: serde_json::from_str::<Vec<Op>>(row.ops.as_deref().unwrap_or_default())
                    .map_err(|error| json("ops", error))?,
                key: row.key.as_deref().map(|key| glob("key", key)).transpose()?,
            }),
            "dead_letter" => Kind::DeadLetter(DeadLetterFilter {
                source: row.source.as_deref().and_then(Source::parse),
                trigger_id: row.of_trigger_id,
                script_id: row.of_script_id,
            }),
            "pubsub" => Kind::PubSub(PubSubFilter {
                topic: glob("topic", row.topic.as_deref().unwrap_or_default())?,
            }),
            other => return Err(inconsistent(("kind", format!("`{other}`")))),
        };
        let idempotency = row.idempotency.as_deref().map(serde_json::from_str);
        Ok(Self {
            kind,
            ordered_by: row.ordered_by.as_ref().map(|_| OrderedBy::Key),
            idempotency: idempotency
                .transpose()
                .map_err(|error| json("idempotency", error))?,
            retry: row.retry.try_into().map_err(inconsistent)?,
            id: row.id,
            app_id: row.app_id,
            script_id: row.script_id,
            name: row.name,
            enabled: row.enabled,
            paused: row.paused,
            dispatch_mode: DispatchMode::Async,
            registered_by_principal: row.registered_by_principal,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

macro_rules! select_triggers {
    ($rest:literal) => {
        concat!(
            "select t.id, t.app_id, t.script_id, t.kind, t.name, t.enabled, t.paused,
                    t.attempts_max, t.backoff, t.base_ms, t.jitter_pct, t.ordered_by, t.idempotency,
                    t.registered_by_principal, t.created_at, t.updated_at,
                    kv.collection, kv.ops, kv.key, dl.source, dl.of_trigger_id, dl.of_script_id,
                    ps.topic
             from triggers t
             left join kv_triggers kv on kv.trigger_id = t.id
             left join dead_letter_triggers dl on dl.trigger_id = t.id
             left join pubsub_triggers ps on ps.trigger_id = t.id ",
            $rest
        )
    };
}

/// Every trigger of the instance, in the order of their making.
pub async fn all(conn: &mut Conn) -> Result<Readable<Trigger>, StoreError> {
    const SQL: &str = select_triggers!("order by t.id");
    let rows: Vec<TriggerRow> = on!(conn, |c| sqlx::query_as(SQL).fetch_all(c).await)?;
    Ok(rows.into_iter().map(Trigger::try_from).collect())
}

/// The names of an app's triggers.
pub async fn names(conn: &mut Conn, app_id: AppId) -> Result<Vec<String>, StoreError> {
    const SQL: &str = "select name from triggers where app_id = $1";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(app_id)
        .fetch_all(c)
        .await)?)
}

/// A page of an app's triggers in the order of their making: those after `after`.
pub async fn page(
    conn: &mut Conn,
    app_id: AppId,
    after: Option<TriggerId>,
    limit: i64,
) -> Result<Vec<Trigger>, StoreError> {
    const SQL: &str = select_triggers!("where t.app_id = $1 and t.id > $2 order by t.id limit $3");
    let after = after.unwrap_or_else(|| uuid::Uuid::nil().into());
    let rows: Vec<TriggerRow> = on!(conn, |c| {
        sqlx::query_as(SQL)
            .bind(app_id)
            .bind(after)
            .bind(limit)
            .fetch_all(c)
            .await
    })?;
    rows.into_iter().map(Trigger::try_from).collect()
}

/// One trigger.
pub async fn get(conn: &mut Conn, id: TriggerId) -> Result<Option<Trigger>, StoreError> {
    const SQL: &str = select_triggers!("where t.id = $1");
    let row: Option<TriggerRow> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(id)
        .fetch_optional(c)
        .await)?;
    row.map(Trigger::try_from).transpose()
}

/// Add a trigger, or write it over the one of its id; its kind never changes.
pub async fn upsert(tx: &mut Tx, trigger: &Trigger) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into triggers (id, app_id, script_id, kind, name, enabled, paused, dispatch_mode,
            attempts_max, backoff, base_ms, jitter_pct, ordered_by, idempotency,
            registered_by_principal, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $6, $7, 'async', $8, $9, $10, $11, $12, $13, $14, $15, $16)
        on conflict (id) do update set
            script_id = excluded.script_id, name = excluded.name, enabled = excluded.enabled,
            paused = excluded.paused, attempts_max = excluded.attempts_max,
            backoff = excluded.backoff, base_ms = excluded.base_ms,
            jitter_pct = excluded.jitter_pct, ordered_by = excluded.ordered_by,
            idempotency = excluded.idempotency, updated_at = excluded.updated_at";
    let idempotency = trigger.idempotency.as_ref().map(json);
    on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(trigger.id)
            .bind(trigger.app_id)
            .bind(trigger.script_id)
            .bind(trigger.kind.as_str())
            .bind(trigger.name.as_str())
            .bind(trigger.enabled)
            .bind(trigger.paused)
            .bind(i64::from(trigger.retry.attempts_max))
            .bind(trigger.retry.backoff.as_str())
            .bind(i64::try_from(trigger.retry.base_ms).unwrap_or(i64::MAX))
            .bind(i64::from(trigger.retry.jitter_pct))
            .bind(trigger.ordered_by.map(|OrderedBy::Key| "key"))
            .bind(idempotency)
            .bind(trigger.registered_by_principal)
            .bind(trigger.created_at)
            .bind(trigger.updated_at)
            .execute(c)
            .await
            .map(|_| ())
    })?;
    match &trigger.kind {
        Kind::Kv(filter) => upsert_kv(tx, trigger.id, filter).await,
        Kind::DeadLetter(filter) => upsert_dead_letter(tx, trigger.id, filter).await,
        Kind::PubSub(filter) => upsert_pubsub(tx, trigger.id, filter).await,
    }
}

async fn upsert_kv(tx: &mut Tx, id: TriggerId, filter: &KvFilter) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into kv_triggers (trigger_id, collection, ops, key) values ($1, $2, $3, $4)
        on conflict (trigger_id) do update set
            collection = excluded.collection, ops = excluded.ops, key = excluded.key";
    on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(id)
            .bind(filter.collection.to_string())
            .bind(json(&filter.ops))
            .bind(filter.key.as_ref().map(ToString::to_string))
            .execute(c)
            .await
            .map(|_| ())
    })?;
    Ok(())
}

async fn upsert_dead_letter(
    tx: &mut Tx,
    id: TriggerId,
    filter: &DeadLetterFilter,
) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into dead_letter_triggers (trigger_id, source, of_trigger_id, of_script_id)
        values ($1, $2, $3, $4)
        on conflict (trigger_id) do update set
            source = excluded.source, of_trigger_id = excluded.of_trigger_id,
            of_script_id = excluded.of_script_id";
    on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(id)
            .bind(filter.source.map(Source::as_str))
            .bind(filter.trigger_id)
            .bind(filter.script_id)
            .execute(c)
            .await
            .map(|_| ())
    })?;
    Ok(())
}

async fn upsert_pubsub(
    tx: &mut Tx,
    id: TriggerId,
    filter: &PubSubFilter,
) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into pubsub_triggers (trigger_id, topic) values ($1, $2)
        on conflict (trigger_id) do update set topic = excluded.topic";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(id)
        .bind(filter.topic.to_string())
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("our own types are always JSON")
}

/// Remove a trigger. Says whether there was one.
pub async fn delete(tx: &mut Tx, id: TriggerId) -> Result<bool, StoreError> {
    const SQL: &str = "delete from triggers where id = $1";
    let gone = on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(id)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(gone > 0)
}
