//! The statements that measure what apps keep.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::objects::Object;
use super::{Data, Size};
use crate::apps::AppId;
use crate::scripts::ScriptId;
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
pub(super) struct Step<K, S = Size> {
    pub(super) size: S,
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

/// What a row of the outbox, a version of a script or an idempotency key takes besides its text: most have
/// little of it.
pub const ROW_BYTES: u64 = 200;

/// A walk through a table whose keys are pairs.
macro_rules! pairs_step {
    ($what:literal, $key:literal, $value:literal) => {
        concat!(
            "select count(*) over (), cast(sum(bytes) over () as bigint), ",
            $key,
            ", ",
            $value,
            " from (select ",
            $key,
            ", ",
            $value,
            ", ",
            $what,
            " as step order by ",
            $key,
            " desc, ",
            $value,
            " desc limit 1"
        )
    };
}

/// The first idempotency keys of an app after a key of a scope; none after the last.
pub(super) async fn idempotency_keys_step(
    conn: &mut Conn,
    app_id: AppId,
    (scope, key): &(Uuid, String),
) -> Result<Option<Step<(Uuid, String)>>, StoreError> {
    const SQL: &str = pairs_step!(
        "octet_length(key) + coalesce(octet_length(answer), 0) + $5 as bytes
         from idempotency_keys where app_id = $1 and (scope, key) > ($2, $3)
         order by scope, key limit $4)",
        "scope",
        "key"
    );
    let row: Option<(i64, i64, Uuid, String)> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(app_id)
        .bind(scope)
        .bind(key)
        .bind(STEP_ROWS)
        .bind(ROW_BYTES.cast_signed())
        .fetch_optional(c)
        .await)?;
    Ok(row.map(|(rows, bytes, scope, key)| Step {
        size: size(rows, bytes),
        last: (scope, key),
    }))
}

/// The first versions of an app's scripts after a version of a script; none after the last.
pub(super) async fn versions_step(
    conn: &mut Conn,
    app_id: AppId,
    (script_id, version): &(Uuid, i64),
) -> Result<Option<Step<(Uuid, i64)>>, StoreError> {
    const SQL: &str = pairs_step!(
        "octet_length(code) + $5 as bytes from script_versions
         where script_id in (select id from scripts where app_id = $1)
           and (script_id, version) > ($2, $3)
         order by script_id, version limit $4)",
        "script_id",
        "version"
    );
    let row: Option<(i64, i64, Uuid, i64)> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(app_id)
        .bind(script_id)
        .bind(version)
        .bind(STEP_ROWS)
        .bind(ROW_BYTES.cast_signed())
        .fetch_optional(c)
        .await)?;
    Ok(row.map(|(rows, bytes, script_id, version)| Step {
        size: size(rows, bytes),
        last: (script_id, version),
    }))
}

/// How many bytes the versions of an app's scripts have.
pub(super) async fn versions_bytes(conn: &mut Conn, app_id: AppId) -> Result<u64, StoreError> {
    const SQL: &str = "
        select cast(coalesce(sum(octet_length(v.code) + $2), 0) as bigint)
        from script_versions v join scripts s on s.id = v.script_id where s.app_id = $1";
    let bytes: i64 = on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(app_id)
        .bind(ROW_BYTES.cast_signed())
        .fetch_one(c)
        .await)?;
    Ok(bytes.unsigned_abs())
}

/// The oldest versions of an app's scripts that make room for `bytes`, or all where that is not enough, at
/// most `limit`, with the bytes of each: none that is current, that a delivery waits for, or that an unresolved dead letter may
/// be replayed with.
pub(super) async fn versions_to_remove(
    conn: &mut Conn,
    app_id: AppId,
    bytes: u64,
    limit: i64,
) -> Result<Vec<(ScriptId, i64, i64)>, StoreError> {
    const SQL: &str = "
        with kept (script_id, version) as materialized (
            select script_id, script_version from outbox
            where app_id = $1 and script_version is not null
            union
            select script_id, script_version from dead_letters
            where app_id = $1 and state = 'unresolved'
        ), old as materialized (
            select v.script_id, v.version, v.created_at, octet_length(v.code) + $3 as bytes
            from script_versions v join scripts s on s.id = v.script_id
            where s.app_id = $1 and v.version <> s.version and not exists (
                select 1 from kept k where k.script_id = v.script_id and k.version = v.version)
        )
        select script_id, version, cast(bytes as bigint) from (
            select script_id, version, created_at, bytes,
                   sum(bytes) over (order by created_at, script_id, version) - bytes as before
            from old) as summed
        where before < $2 order by created_at, script_id, version limit $4";
    Ok(on!(conn, |c| sqlx::query_as(SQL)
        .bind(app_id)
        .bind(i64::try_from(bytes).unwrap_or(i64::MAX))
        .bind(ROW_BYTES.cast_signed())
        .bind(limit)
        .fetch_all(c)
        .await)?)
}

/// Remove a version of a script, unless it is the current one.
pub(super) async fn remove_version(
    tx: &mut Tx,
    script_id: ScriptId,
    version: i64,
) -> Result<(), StoreError> {
    const SQL: &str = "
        delete from script_versions where script_id = $1 and version = $2
            and version <> (select version from scripts where id = $1)";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(script_id)
        .bind(version)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}

/// The last id in the outbox; the nil one where it is empty.
pub(super) async fn last_delivery(conn: &mut Conn) -> Result<Uuid, StoreError> {
    const SQL: &str = "select id from outbox order by id desc limit 1";
    let last: Option<Uuid> = on!(conn, |c| sqlx::query_scalar(SQL).fetch_optional(c).await)?;
    Ok(last.unwrap_or_default())
}

/// The first rows of the outbox after an id and up to another, of each app those for which no caller waits; none after the
/// last. In the order of the primary key: an index for each app would be one more to write to for
/// each delivery.
pub(super) async fn outbox_step(
    conn: &mut Conn,
    after: Uuid,
    until: Uuid,
) -> Result<Option<Step<Uuid, Vec<(AppId, Size)>>>, StoreError> {
    const SQL: &str = "
        with step as materialized (
            select id, app_id, reply_to, octet_length(payload) + octet_length(history) as bytes
            from outbox where id > $1 and id <= $4 order by id limit $2)
        select app_id, sum(case when reply_to is null then 1 else 0 end),
               cast(sum(case when reply_to is null then bytes + $3 else 0 end) as bigint),
               (select id from step order by id desc limit 1)
        from step group by app_id";
    let rows: Vec<(AppId, i64, i64, Uuid)> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(after)
        .bind(STEP_ROWS)
        .bind(ROW_BYTES.cast_signed())
        .bind(until)
        .fetch_all(c)
        .await)?;
    let Some((.., last)) = rows.last() else {
        return Ok(None);
    };
    let last = *last;
    let sizes = rows.into_iter();
    let sizes = sizes.map(|(app_id, rows, bytes, _)| (app_id, size(rows, bytes)));
    Ok(Some(Step {
        size: sizes.collect(),
        last,
    }))
}

/// How many objects of a kind an app has.
pub(super) async fn objects(
    conn: &mut Conn,
    app_id: AppId,
    object: Object,
) -> Result<u64, StoreError> {
    let sql = match object {
        Object::Scripts => "select count(*) from scripts where app_id = $1",
        Object::Routes => "select count(*) from routes where app_id = $1",
        Object::Triggers => "select count(*) from triggers where app_id = $1",
        Object::Topics => "select count(*) from topics where app_id = $1",
        Object::Members => "select count(*) from members where app_id = $1",
        Object::SubscriberKeys => "select count(*) from subscriber_keys where app_id = $1",
    };
    let count: i64 = on!(conn, |c| sqlx::query_scalar(sql)
        .bind(app_id)
        .fetch_one(c)
        .await)?;
    Ok(count.unsigned_abs())
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
