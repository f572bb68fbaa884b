//! The statements of topics and messages.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{AuthMode, OpenTopic, SubscriberKey, Topic};
use crate::apps::AppId;
use crate::dispatch::Delivery;
use crate::dispatch::sql::{self as outbox, Placed};
use crate::journal::{self, Channel, NewEntry};
use crate::json::{DEPTH_MAX, Json};
use crate::secrets::master_key::Sealed;
use crate::store::{Conn, Grouped, Lane, Readable, StoreError, Tx, on};
use crate::triggers::Glob;
use crate::triggers::firing::{Firing, PubSubEvent};

/// A message that is published.
pub struct Publication {
    /// Who publishes it.
    pub app_id: AppId,
    /// Where streams hear of it.
    pub channel: Channel,
    /// The topic.
    pub topic: Topic,
    /// Whether streams may hear of it at all.
    pub is_open: bool,
    /// The message.
    pub entry: NewEntry,
    /// The triggers that listen.
    pub listening: Vec<Firing>,
}

/// What became of it.
#[derive(Debug)]
pub struct Published {
    /// When it was written.
    pub at: DateTime<Utc>,
    /// The delivery of each trigger, and what became of its row.
    pub fired: Vec<Option<(Delivery, Placed)>>,
}

impl Grouped for Publication {
    type Output = Published;

    /// A lane for each topic keeps two lanes from waiting for each other's rows.
    fn lane(&self) -> Lane {
        Lane::Keyed(self.channel.lane())
    }

    fn app(&self) -> Option<Uuid> {
        Some(self.app_id.uuid())
    }

    fn bytes(&self) -> usize {
        self.entry.body.len() * (1 + self.listening.len())
    }

    fn is_new(&self) -> bool {
        true
    }

    async fn apply(tx: &mut Tx, items: &[Self]) -> Result<Vec<Published>, StoreError> {
        let at = tx.now;
        let mut rows = Vec::new();
        let mut done = Vec::with_capacity(items.len());
        for item in items {
            if !item.listening.is_empty() {
                let message = Json::read(&item.entry.body, DEPTH_MAX).value;
                let event = PubSubEvent::new(&item.topic, &message, item.entry.id, at);
                let payload = event.payload();
                let firings = item.listening.iter();
                rows.extend(firings.map(|firing| firing.row_with(&payload)));
            }
            let fired = Vec::with_capacity(item.listening.len());
            done.push(Published { at, fired });
        }
        let mut placed = outbox::insert(tx, &rows).await?.into_iter();
        let mut rows = rows.into_iter();
        for (item, done) in items.iter().zip(&mut done) {
            let fired = rows
                .by_ref()
                .zip(placed.by_ref())
                .take(item.listening.len());
            done.fired
                .extend(fired.map(|(row, placed)| Some((row.delivery, placed))));
        }
        // The last, and in one order everywhere: whoever writes to a channel holds it until the
        // commit.
        let mut channels: BTreeMap<&Channel, Vec<&NewEntry>> = BTreeMap::new();
        for item in items.iter().filter(|item| item.is_open) {
            channels.entry(&item.channel).or_default().push(&item.entry);
        }
        for (channel, entries) in channels {
            journal::sql::append(tx, channel, &entries).await?;
        }
        Ok(done)
    }
}

#[derive(sqlx::FromRow)]
struct TopicRow {
    app_id: AppId,
    name: String,
    auth_mode: String,
    retention_s: i64,
    retention_messages: i64,
    cors_origins: String,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl TryFrom<TopicRow> for (AppId, OpenTopic) {
    type Error = StoreError;

    fn try_from(row: TopicRow) -> Result<Self, StoreError> {
        let inconsistent = |column, problem: String| StoreError::Inconsistent {
            table: "topics",
            column,
            id: row.name.clone(),
            problem,
        };
        let number = |column, value: i64| {
            u32::try_from(value).map_err(|error| inconsistent(column, error.to_string()))
        };
        let topic = OpenTopic {
            name: row
                .name
                .parse::<Glob>()
                .map_err(|problem| inconsistent("name", problem))?,
            auth_mode: AuthMode::parse(&row.auth_mode)
                .ok_or_else(|| inconsistent("auth_mode", row.auth_mode.clone()))?,
            retention_s: number("retention_s", row.retention_s)?,
            retention_messages: number("retention_messages", row.retention_messages)?,
            cors_origins: serde_json::from_str(&row.cors_origins)
                .map_err(|error| inconsistent("cors_origins", error.to_string()))?,
            created_at: row.created_at,
            updated_at: row.updated_at,
        };
        Ok((row.app_id, topic))
    }
}

macro_rules! select_topics {
    ($rest:literal) => {
        concat!(
            "select app_id, name, auth_mode, retention_s, retention_messages, cors_origins,
                    created_at, updated_at from topics ",
            $rest
        )
    };
}

/// Every open topic of the instance.
pub async fn all_topics(conn: &mut Conn) -> Result<Readable<(AppId, OpenTopic)>, StoreError> {
    const SQL: &str = select_topics!("order by app_id, name");
    let rows: Vec<TopicRow> = on!(conn, |c| sqlx::query_as(SQL).fetch_all(c).await)?;
    Ok(rows.into_iter().map(TryInto::try_into).collect())
}

/// A page of an app's open topics by name: those after `after`.
pub async fn page(
    conn: &mut Conn,
    app_id: AppId,
    after: &str,
    limit: i64,
) -> Result<Vec<OpenTopic>, StoreError> {
    const SQL: &str = select_topics!("where app_id = $1 and name > $2 order by name limit $3");
    let rows: Vec<TopicRow> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(app_id)
        .bind(after)
        .bind(limit)
        .fetch_all(c)
        .await)?;
    let topics = rows.into_iter().map(<(AppId, OpenTopic)>::try_from);
    topics.map(|topic| Ok(topic?.1)).collect()
}

/// An open topic by what it was opened as.
pub async fn get(
    conn: &mut Conn,
    app_id: AppId,
    name: &Glob,
) -> Result<Option<OpenTopic>, StoreError> {
    const SQL: &str = select_topics!("where app_id = $1 and name = $2");
    let row: Option<TopicRow> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(app_id)
        .bind(name.to_string())
        .fetch_optional(c)
        .await)?;
    let topic = row.map(<(AppId, OpenTopic)>::try_from).transpose()?;
    Ok(topic.map(|(_, topic)| topic))
}

/// Open a topic, or change how it is open.
pub async fn upsert(tx: &mut Tx, app_id: AppId, topic: &OpenTopic) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into topics (app_id, name, auth_mode, retention_s, retention_messages,
                            cors_origins, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8)
        on conflict (app_id, name) do update set
            auth_mode = excluded.auth_mode, retention_s = excluded.retention_s,
            retention_messages = excluded.retention_messages,
            cors_origins = excluded.cors_origins, updated_at = excluded.updated_at";
    let origins = serde_json::to_string(&topic.cors_origins).expect("a list of texts is JSON");
    on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(app_id)
            .bind(topic.name.to_string())
            .bind(topic.auth_mode.as_str())
            .bind(i64::from(topic.retention_s))
            .bind(i64::from(topic.retention_messages))
            .bind(origins.as_str())
            .bind(topic.created_at)
            .bind(topic.updated_at)
            .execute(c)
            .await
            .map(|_| ())
    })?;
    Ok(())
}

/// Close a topic. Says whether it was open.
pub async fn delete(tx: &mut Tx, app_id: AppId, name: &Glob) -> Result<bool, StoreError> {
    const SQL: &str = "delete from topics where app_id = $1 and name = $2";
    let gone = on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(app_id)
        .bind(name.to_string())
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(gone > 0)
}

#[derive(sqlx::FromRow)]
struct KeyRow {
    app_id: AppId,
    number: i64,
    key_id: Vec<u8>,
    sealed: Vec<u8>,
    good_until: Option<DateTime<Utc>>,
}

/// What signs the subscriber tokens of all apps, the newest of each first.
pub async fn all_keys(conn: &mut Conn) -> Result<Vec<SubscriberKey>, StoreError> {
    const SQL: &str = "
        select app_id, number, key_id, sealed, good_until from subscriber_keys
        order by app_id, number desc";
    let rows: Vec<KeyRow> = on!(conn, |c| sqlx::query_as(SQL).fetch_all(c).await)?;
    let key = |row: KeyRow| SubscriberKey {
        app_id: row.app_id,
        number: row.number,
        sealed: Sealed {
            key_id: row.key_id,
            bytes: row.sealed,
        },
        good_until: row.good_until,
    };
    Ok(rows.into_iter().map(key).collect())
}

/// The number of an app's newest key; 0 when it has none.
pub async fn last_key(conn: &mut Conn, app_id: AppId) -> Result<i64, StoreError> {
    const SQL: &str = "select coalesce(max(number), 0) from subscriber_keys where app_id = $1";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(app_id)
        .fetch_one(c)
        .await)?)
}

/// The keys of an app are good until then, at most. Those that are good no more go.
pub async fn retire_keys(
    tx: &mut Tx,
    app_id: AppId,
    until: DateTime<Utc>,
) -> Result<(), StoreError> {
    const RETIRE: &str = "
        update subscriber_keys set good_until = $2
        where app_id = $1 and (good_until is null or good_until > $2)";
    const FORGET: &str = "delete from subscriber_keys where app_id = $1 and good_until <= $2";
    let now = tx.now;
    for (sql, at) in [(RETIRE, until), (FORGET, now)] {
        on!(tx.conn().await?, |c| sqlx::query(sql)
            .bind(app_id)
            .bind(at)
            .execute(c)
            .await
            .map(|_| ()))?;
    }
    Ok(())
}

/// Write a key as it is encrypted now. Says whether it was still there.
pub async fn reseal_key(
    tx: &mut Tx,
    key: &SubscriberKey,
    sealed: &Sealed,
) -> Result<bool, StoreError> {
    const SQL: &str = "
        update subscriber_keys set key_id = $3, sealed = $4 where app_id = $1 and number = $2";
    let changed = on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(key.app_id)
        .bind(key.number)
        .bind(&sealed.key_id)
        .bind(&sealed.bytes)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(changed == 1)
}

/// Add a key.
pub async fn insert_key(tx: &mut Tx, key: &SubscriberKey) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into subscriber_keys (app_id, number, key_id, sealed, created_at)
        values ($1, $2, $3, $4, $5)";
    let now = tx.now;
    on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(key.app_id)
            .bind(key.number)
            .bind(&key.sealed.key_id)
            .bind(&key.sealed.bytes)
            .bind(now)
            .execute(c)
            .await
            .map(|_| ())
    })?;
    Ok(())
}
