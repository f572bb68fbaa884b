//! The statements that measure what apps keep.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Data, Size};
use crate::apps::AppId;
use crate::store::{Conn, StoreError, Tx, on};

/// How many rows are measured with one statement. Of a large text both databases know the length without
/// reading it.
pub(super) const STEP_ROWS: i64 = 5_000;

/// Data whose rows have an age: their ids are UUIDs of version 7, which begin with the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aged {
    DeadLetters,
    Executions,
}

impl Aged {
    pub(super) fn data(self) -> Data {
        match self {
            Self::DeadLetters => Data::DeadLetters,
            Self::Executions => Data::Executions,
        }
    }
}

/// Some rows, in the order of their keys.
pub(super) struct Step<K> {
    pub(super) size: Size,
    /// The key of the last of them.
    pub(super) last: K,
}

fn size(rows: i64, bytes: i64) -> Size {
    Size {
        rows: rows.unsigned_abs(),
        bytes: bytes.unsigned_abs(),
    }
}

/// The bytes of a dead letter or an execution: a macro, because a statement's text is a literal.
macro_rules! bytes_of {
    (dead_letters) => {
        "octet_length(payload) + octet_length(history)"
    };
    // What has a fixed size takes about 300 bytes, and most executions have nothing else.
    (executions) => {
        "octet_length(logs) + coalesce(octet_length(error), 0) + 300"
    };
}

/// The first rows of a key-value store after a key of a collection; none after the last.
pub(super) async fn kv_step(
    conn: &mut Conn,
    app_id: AppId,
    (collection, key): &(String, String),
) -> Result<Option<Step<(String, String)>>, StoreError> {
    const SQL: &str = "
        select count(*) over (), cast(sum(bytes) over () as bigint), collection, key from (
            select collection, key,
                   octet_length(collection) + octet_length(key) + octet_length(value) as bytes
            from kv where app_id = $1 and (collection, key) > ($2, $3)
            order by collection, key limit $4) as step
        order by collection desc, key desc limit 1";
    let row: Option<(i64, i64, String, String)> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(app_id)
        .bind(collection)
        .bind(key)
        .bind(STEP_ROWS)
        .fetch_optional(c)
        .await)?;
    Ok(row.map(|(rows, bytes, collection, key)| Step {
        size: size(rows, bytes),
        last: (collection, key),
    }))
}

/// The first messages of an app after a number of a topic; none after the last.
pub(super) async fn messages_step(
    conn: &mut Conn,
    app_id: AppId,
    (topic, seq): &(String, i64),
) -> Result<Option<Step<(String, i64)>>, StoreError> {
    const SQL: &str = "
        select count(*) over (), cast(sum(bytes) over () as bigint), topic, seq from (
            select topic, seq, octet_length(body) as bytes
            from journal where app_id = $1 and (topic, seq) > ($2, $3)
            order by topic, seq limit $4) as step
        order by topic desc, seq desc limit 1";
    let row: Option<(i64, i64, String, i64)> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(app_id)
        .bind(topic)
        .bind(seq)
        .bind(STEP_ROWS)
        .fetch_optional(c)
        .await)?;
    Ok(row.map(|(rows, bytes, topic, seq)| Step {
        size: size(rows, bytes),
        last: (topic, seq),
    }))
}

/// When the oldest of the newest messages of an app was written that are at most `bytes_max` bytes
/// together; none where not even the newest is.
pub(super) async fn oldest_kept_message(
    conn: &mut Conn,
    app_id: AppId,
    bytes_max: u64,
) -> Result<Option<DateTime<Utc>>, StoreError> {
    const SQL: &str = "
        select written_at from (
            select written_at, sum(octet_length(body))
                over (order by written_at desc, topic desc, seq desc rows unbounded preceding) as kept
            from journal where app_id = $1) as messages
        where kept <= $2 order by kept desc limit 1";
    let bytes_max = i64::try_from(bytes_max).unwrap_or(i64::MAX);
    Ok(on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(app_id)
        .bind(bytes_max)
        .fetch_optional(c)
        .await)?)
}

/// The newest rows of an app before an id; none before the first.
pub(super) async fn aged_step(
    conn: &mut Conn,
    app_id: AppId,
    aged: Aged,
    before: Uuid,
) -> Result<Option<Step<Uuid>>, StoreError> {
    macro_rules! text {
        ($table:ident) => {
            concat!(
                "select count(*) over (), cast(sum(bytes) over () as bigint), id from (select id, ",
                bytes_of!($table),
                " as bytes from ",
                stringify!($table),
                " where app_id = $1 and id < $2 order by id desc limit $3) as step
                order by id limit 1"
            )
        };
    }
    let sql = match aged {
        Aged::DeadLetters => text!(dead_letters),
        Aged::Executions => text!(executions),
    };
    let row: Option<(i64, i64, Uuid)> = on!(conn, |c| sqlx::query_as(sql)
        .bind(app_id)
        .bind(before)
        .bind(STEP_ROWS)
        .fetch_optional(c)
        .await)?;
    Ok(row.map(|(rows, bytes, last)| Step {
        size: size(rows, bytes),
        last,
    }))
}

/// The newest row of a step before an id for which there is no room in `bytes`.
pub(super) async fn aged_beyond(
    conn: &mut Conn,
    app_id: AppId,
    aged: Aged,
    before: Uuid,
    bytes: u64,
) -> Result<Option<Uuid>, StoreError> {
    macro_rules! text {
        ($table:ident) => {
            concat!(
                "select id from (
                    select id, sum(bytes) over (order by id desc rows unbounded preceding) as so_far
                    from (select id, ",
                bytes_of!($table),
                " as bytes from ",
                stringify!($table),
                " where app_id = $1 and id < $2 order by id desc limit $3) as step) as summed
                where so_far > $4 order by id desc limit 1"
            )
        };
    }
    let sql = match aged {
        Aged::DeadLetters => text!(dead_letters),
        Aged::Executions => text!(executions),
    };
    Ok(on!(conn, |c| sqlx::query_scalar(sql)
        .bind(app_id)
        .bind(before)
        .bind(STEP_ROWS)
        .bind(i64::try_from(bytes).unwrap_or(i64::MAX))
        .fetch_optional(c)
        .await)?)
}

/// Remove rows of an app up to this one, the oldest first, at most `limit`. Answers their sizes in bytes.
pub(super) async fn remove_aged(
    tx: &mut Tx,
    app_id: AppId,
    aged: Aged,
    last: Uuid,
    limit: i64,
) -> Result<Vec<u64>, StoreError> {
    macro_rules! text {
        ($table:ident, $lock:literal) => {
            concat!(
                "delete from ",
                stringify!($table),
                " where id in (select id from ",
                stringify!($table),
                " where app_id = $1 and id <= $2 order by id limit $3 ",
                $lock,
                ") returning cast(",
                bytes_of!($table),
                " as bigint)"
            )
        };
    }
    macro_rules! texts {
        ($table:ident) => {
            tx.text(text!($table, ""), text!($table, "for update skip locked"))
        };
    }
    let sql = match aged {
        Aged::DeadLetters => texts!(dead_letters),
        Aged::Executions => texts!(executions),
    };
    let sizes: Vec<i64> = on!(tx.conn().await?, |c| sqlx::query_scalar(sql)
        .bind(app_id)
        .bind(last)
        .bind(limit)
        .fetch_all(c)
        .await)?;
    Ok(sizes.into_iter().map(i64::unsigned_abs).collect())
}
