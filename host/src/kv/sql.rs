//! The statements of the key-value store.

use std::hash::{DefaultHasher, Hash, Hasher};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Collection, Key, PAGE_BYTES, Stored, Value};
use crate::apps::AppId;
use crate::dispatch::sql::{self as outbox, Placed};
use crate::dispatch::{Delivery, Fence};
use crate::store::{Conn, Expected, Grouped, Held, Lane, StoreError, Tx, bounded, insert_all, on};
use crate::triggers::firing::{Firing, KvEvent};

/// How many entries go into one statement on Postgres.
const INSERT_ENTRIES: usize = 1_000;

/// The value of a key.
pub async fn get(
    conn: &mut Conn,
    app_id: AppId,
    collection: &Collection,
    key: &Key,
) -> Result<Option<String>, StoreError> {
    const SQL: &str = "select value from kv where app_id = $1 and collection = $2 and key = $3";
    value(conn, SQL, app_id, collection, key).await
}

/// The value that a statement about a key answers.
async fn value(
    conn: &mut Conn,
    sql: &'static str,
    app_id: AppId,
    collection: &Collection,
    key: &Key,
) -> Result<Option<String>, StoreError> {
    Ok(on!(conn, |c| {
        let query = sqlx::query_scalar(sql).bind(app_id);
        query
            .bind(collection.as_str())
            .bind(key.as_str())
            .fetch_optional(c)
            .await
    })?)
}

/// Whether a key has a value.
pub async fn has(
    conn: &mut Conn,
    app_id: AppId,
    collection: &Collection,
    key: &Key,
) -> Result<bool, StoreError> {
    const SQL: &str = "select count(*) from kv where app_id = $1 and collection = $2 and key = $3";
    let count: i64 = on!(conn, |c| {
        let query = sqlx::query_scalar(SQL).bind(app_id);
        query
            .bind(collection.as_str())
            .bind(key.as_str())
            .fetch_one(c)
            .await
    })?;
    Ok(count > 0)
}

/// How many bytes the value of a key has; none where it has none.
pub async fn value_bytes(
    conn: &mut Conn,
    app_id: AppId,
    collection: &Collection,
    key: &Key,
) -> Result<u64, StoreError> {
    const SQL: &str = "
        select cast(octet_length(value) as bigint) from kv
        where app_id = $1 and collection = $2 and key = $3";
    let bytes: Option<i64> = on!(conn, |c| {
        let query = sqlx::query_scalar(SQL).bind(app_id);
        query
            .bind(collection.as_str())
            .bind(key.as_str())
            .fetch_optional(c)
            .await
    })?;
    Ok(bytes.unwrap_or_default().unsigned_abs())
}

/// Some entries, and whether there are more after them.
pub struct Entries<Entry> {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Whether there are more.
    pub more: bool,
}

/// An entry with how many were found before the bytes were counted.
#[derive(sqlx::FromRow)]
struct FoundRow {
    collection: String,
    key: String,
    value: String,
    found: i64,
}

/// The text of a statement that reads entries up to the one that takes them over so many bytes. A
/// macro, because a statement's text is a literal.
///
/// The sizes are summed before a value is read: on both databases the length of a stored text is
/// known without the text. `materialized` keeps SQLite from carrying the values through the sum.
macro_rules! bounded_entries {
    ($where:literal, $limit:literal, $bytes_max:literal) => {
        concat!(
            "with sized as materialized (
                select collection, key, octet_length(value) as bytes from kv
                where app_id = $1 and ",
            $where,
            " order by collection, key limit ",
            $limit,
            " + 1
            ), summed as materialized (
                select collection, key, row_number() over places as place,
                       sum(bytes) over places - bytes as before
                from sized window places as (order by collection, key)
            )
            select kv.collection, kv.key, kv.value, (select count(*) from sized) as found
            from summed cross join kv
            where kv.app_id = $1 and kv.collection = summed.collection and kv.key = summed.key
              and summed.place <= ",
            $limit,
            " and summed.before < ",
            $bytes_max,
            " order by kv.collection, kv.key"
        )
    };
}

impl<Entry> Entries<Entry> {
    fn of(rows: Vec<FoundRow>, entry: impl Fn(FoundRow) -> Entry) -> Self {
        let found = rows.first().map_or(0, |row| row.found);
        Self {
            more: found > rows.len() as i64,
            entries: rows.into_iter().map(entry).collect(),
        }
    }
}

/// The entries whose keys begin with `prefix`, after the key `after`: at most `limit`, up to the one
/// whose value takes them over `bytes_max`. What does not fit is not read.
pub async fn page(
    conn: &mut Conn,
    app_id: AppId,
    collection: &Collection,
    prefix: &str,
    after: &str,
    limit: u32,
    bytes_max: usize,
) -> Result<Entries<(String, String)>, StoreError> {
    const SQL: &str = bounded_entries!(
        "collection = $2 and key > $3 and key >= $4 and key <= $5",
        "$6",
        "$7"
    );
    // The greatest character: keys are compared as their bytes on both databases.
    let last = format!("{prefix}{}", char::MAX.to_string().repeat(4));
    let rows: Vec<FoundRow> = on!(conn, |c| {
        sqlx::query_as(SQL)
            .bind(app_id)
            .bind(collection.as_str())
            .bind(after)
            .bind(prefix)
            .bind(&last)
            .bind(i64::from(limit))
            .bind(i64::try_from(bytes_max).unwrap_or(i64::MAX))
            .fetch_all(c)
            .await
    })?;
    Ok(Entries::of(rows, |row| (row.key, row.value)))
}

/// The entries of all collections after this key of this collection, at most `limit` and as many
/// bytes as a page has, with their collections.
pub async fn page_of_all(
    conn: &mut Conn,
    app_id: AppId,
    after_collection: &str,
    after_key: &str,
    limit: u32,
) -> Result<Entries<(String, String, String)>, StoreError> {
    const SQL: &str = bounded_entries!("(collection, key) > ($2, $3)", "$4", "$5");
    let rows: Vec<FoundRow> = on!(conn, |c| {
        sqlx::query_as(SQL)
            .bind(app_id)
            .bind(after_collection)
            .bind(after_key)
            .bind(i64::from(limit))
            .bind(i64::try_from(PAGE_BYTES).unwrap_or(i64::MAX))
            .fetch_all(c)
            .await
    })?;
    Ok(Entries::of(rows, |row| {
        (row.collection, row.key, row.value)
    }))
}

/// Add entries to an app that has none of these keys; no trigger hears of it.
/// [`StoreError::Duplicate`] when it has one.
pub async fn insert(
    tx: &mut Tx,
    app_id: AppId,
    entries: &[(Collection, Key, Value)],
) -> Result<(), StoreError> {
    let now = tx.now;
    for entries in entries.chunks(INSERT_ENTRIES) {
        insert_all!(tx, "kv", entries, |entry| {
            collection: entry.0.as_str().to_owned(),
            app_id: app_id,
            key: entry.1.as_str().to_owned(),
            value: entry.2.as_str().to_owned(),
            updated_at: now,
        });
    }
    // What waits to be sent to SQLite may be refused.
    tx.conn().await.map(|_| ())
}

/// The collections of an app after the name `after`, with how many keys each has.
pub async fn collections(
    conn: &mut Conn,
    app_id: AppId,
    after: &str,
    limit: i64,
) -> Result<Vec<(String, i64)>, StoreError> {
    const SQL: &str = "
        select collection, count(*) from kv where app_id = $1 and collection > $2
        group by collection order by collection limit $3";
    Ok(on!(conn, |c| {
        sqlx::query_as(SQL)
            .bind(app_id)
            .bind(after)
            .bind(limit)
            .fetch_all(c)
            .await
    })?)
}

/// Whether the lease `$6`, `$7`, `$8` still holds, or is none. A macro, because a statement's text
/// is a literal.
macro_rules! is_held {
    () => {
        "($6 is null or exists (
            select 1 from outbox where id = $6 and attempt = $7 and lease_owner = $8))"
    };
}

/// A key that gets a value, or loses the one that it has.
pub struct Mutation {
    /// The app.
    pub app_id: AppId,
    /// The collection.
    pub collection: Collection,
    /// The key.
    pub key: Key,
    /// Its new value, if it keeps one.
    pub value: Option<Value>,
    /// What it must be before.
    pub expected: Expected,
    /// The lease that must hold, if it is written under one.
    pub fence: Option<Fence>,
    /// The triggers that listen to the key.
    pub listening: Vec<Firing>,
}

/// What a mutation did.
#[derive(Debug, Default)]
pub struct Mutated {
    /// Whether a row was written or removed.
    pub changed: bool,
    /// The delivery of each listening trigger that fired, and what became of its row.
    pub fired: Vec<Option<(Delivery, Placed)>>,
}

impl Grouped for Mutation {
    type Output = Mutated;

    /// A lane for each key keeps the order of its writes, and keeps two lanes from waiting for
    /// each other's rows.
    fn lane(&self) -> Lane {
        let mut key = DefaultHasher::new();
        (self.app_id, &self.collection, &self.key).hash(&mut key);
        Lane::Keyed(key.finish())
    }

    fn app(&self) -> Option<Uuid> {
        Some(self.app_id.uuid())
    }

    fn bytes(&self) -> usize {
        let value = self.value.as_ref().map_or(0, |value| value.as_str().len());
        value * (1 + self.listening.len())
    }

    fn is_new(&self) -> bool {
        self.value.is_some()
    }

    fn is_change(mutated: &Mutated) -> bool {
        mutated.changed
    }

    async fn apply(tx: &mut Tx, items: &[Self]) -> Result<Vec<Mutated>, StoreError> {
        let mut done = Vec::with_capacity(items.len());
        let mut rows = Vec::new();
        let mut places = Vec::new();
        for item in items {
            item.check(tx).await?;
            if item.listening.is_empty() {
                let (changed, fired) = (item.write(tx).await?, Vec::new());
                done.push(Mutated { changed, fired });
                continue;
            }
            let old_value = item.replace(tx).await?;
            let changed = item.value.is_some() || old_value.is_some();
            let mut fired = Vec::new();
            fired.resize_with(item.listening.len(), || None);
            if changed {
                let event = item.event(tx.now, old_value);
                let payload = event.payload();
                for (n, firing) in item.listening.iter().enumerate() {
                    if let Some(row) = firing.row(&event, &payload) {
                        rows.push(row);
                        places.push((done.len(), n));
                    }
                }
            }
            done.push(Mutated { changed, fired });
        }
        if rows.is_empty() {
            return Ok(done);
        }
        let placed = outbox::insert(tx, &rows).await?;
        for ((row, placed), (item, n)) in rows.into_iter().zip(placed).zip(places) {
            done[item].fired[n] = Some((row.delivery, placed));
        }
        Ok(done)
    }
}

impl Mutation {
    /// Write the value, whatever was there. Says whether a row was written or removed.
    async fn write(&self, tx: &mut Tx) -> Result<bool, StoreError> {
        const SET: &str = concat!(
            "insert into kv (app_id, collection, key, value, updated_at)
            select $1, $2, $3, $4, $5 where ",
            is_held!(),
            " on conflict (app_id, collection, key)
            do update set value = excluded.value, updated_at = excluded.updated_at"
        );
        const DELETE: &str = "delete from kv where app_id = $1 and collection = $2 and key = $3";
        let Some(value) = &self.value else {
            self.check_fence(tx).await?;
            let rows = on!(tx.conn().await?, |c| {
                let query = sqlx::query(DELETE).bind(self.app_id);
                let query = query.bind(self.collection.as_str()).bind(self.key.as_str());
                query.execute(c).await.map(|done| done.rows_affected())
            })?;
            return Ok(rows > 0);
        };
        let now = tx.now;
        let rows = on!(tx.conn().await?, |c| {
            let query = sqlx::query(SET).bind(self.app_id);
            let query = query.bind(self.collection.as_str()).bind(self.key.as_str());
            let query = query.bind(value.as_str()).bind(now);
            let query = query.bind(self.fence.map(|fence| fence.id));
            let query = query.bind(self.fence.map(|fence| i64::from(fence.attempt)));
            let query = query.bind(self.fence.map(|fence| fence.worker));
            query.execute(c).await.map(|done| done.rows_affected())
        })?;
        match rows {
            0 => Err(StoreError::NotHeld),
            _ => Ok(true),
        }
    }

    /// See that the lease still holds, where it is not a part of the statement that writes.
    async fn check_fence(&self, tx: &mut Tx) -> Result<(), StoreError> {
        const SQL: &str =
            "select 1 from outbox where id = $1 and attempt = $2 and lease_owner = $3";
        let Some(fence) = self.fence else {
            return Ok(());
        };
        let held: Option<i32> = on!(tx.conn().await?, |c| sqlx::query_scalar(SQL)
            .bind(fence.id)
            .bind(i64::from(fence.attempt))
            .bind(fence.worker)
            .fetch_optional(c)
            .await)?;
        held.map(|_| ()).ok_or(StoreError::NotHeld)
    }

    /// See that the value is as expected. Nobody else changes it until the transaction ends.
    async fn check(&self, tx: &mut Tx) -> Result<(), StoreError> {
        const SQL: &str = "select value from kv where app_id = $1 and collection = $2 and key = $3";
        const SQL_POSTGRES: &str = "
            select value from kv where app_id = $1 and collection = $2 and key = $3 for update";
        if self.expected == Expected::Anything {
            return Ok(());
        }
        let sql = tx.text(SQL, SQL_POSTGRES);
        let value = self.value_by(tx.conn().await?, sql).await?;
        let value = value.map(Stored::new);
        self.expected.check(value.as_ref())
    }

    /// The value that a statement about the key answers.
    async fn value_by(
        &self,
        conn: &mut Conn,
        sql: &'static str,
    ) -> Result<Option<String>, StoreError> {
        value(conn, sql, self.app_id, &self.collection, &self.key).await
    }

    /// Write the value and answer the one that it replaces. Nobody else writes the key in
    /// between: SQLite has one writer, and on Postgres the row is locked.
    async fn replace(&self, tx: &mut Tx) -> Result<Option<String>, StoreError> {
        const DELETE: &str = "
            delete from kv where app_id = $1 and collection = $2 and key = $3 returning value";
        const GET: &str = "select value from kv where app_id = $1 and collection = $2 and key = $3";
        let sql = if self.value.is_some() { GET } else { DELETE };
        let now = tx.now;
        if let (Some(value), Conn::Postgres(held)) = (&self.value, tx.conn().await?) {
            return self.replace_at_once(value, now, held).await;
        }
        if self.value.is_some() {
            let old_value = self.value_by(tx.conn().await?, sql).await?;
            self.write(tx).await?;
            return Ok(old_value);
        }
        self.check_fence(tx).await?;
        self.value_by(tx.conn().await?, sql).await
    }

    /// The same in one round trip.
    async fn replace_at_once(
        &self,
        value: &Value,
        now: DateTime<Utc>,
        held: &mut Held<sqlx::Postgres>,
    ) -> Result<Option<String>, StoreError> {
        // The insertion reads from the locked row, so that it comes after the lock. xmax is 0 on
        // a row that was inserted and not updated.
        const SQL: &str = concat!(
            "with old as materialized (
                select value from kv where app_id = $1 and collection = $2 and key = $3 for update
            ), new as (
                insert into kv (app_id, collection, key, value, updated_at)
                select $1, $2, $3, $4, $5 from (select count(*) from old) locked where ",
            is_held!(),
            "   on conflict (app_id, collection, key)
                do update set value = excluded.value, updated_at = excluded.updated_at
                returning (xmax = 0) as inserted
            )
            select (select value from old), (select inserted from new)"
        );
        let query = sqlx::query_as(SQL)
            .bind(self.app_id)
            .bind(self.collection.as_str())
            .bind(self.key.as_str())
            .bind(value.as_str())
            .bind(now)
            .bind(self.fence.map(|fence| fence.id))
            .bind(self.fence.map(|fence| i64::from(fence.attempt)))
            .bind(self.fence.map(|fence| fence.worker));
        let (old_value, inserted): (Option<String>, Option<bool>) =
            bounded!(held, |c| query.fetch_one(c).await)?;
        let inserted = inserted.ok_or(StoreError::NotHeld)?;
        if old_value.is_none() && !inserted {
            // Another transaction added the key after we had looked: what it was is not known.
            // The writer tries again.
            return Err(StoreError::Raced);
        }
        Ok(old_value)
    }

    fn event(&self, at: DateTime<Utc>, old_value: Option<String>) -> KvEvent<'_> {
        let value = self.value.as_ref().map(Value::json);
        let old_value = old_value.map(|text| Stored::new(text).read());
        KvEvent::new(&self.collection, &self.key, value, old_value, at)
    }
}
