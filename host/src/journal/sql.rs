//! The statements of the journal.

use std::io;
use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::sweep::Keep;
use super::{Appended, Channel, Entry, NewEntry, Written};
use crate::apps::AppId;
use crate::json::{DEPTH_MAX, Json};
use crate::store::{Conn, StoreError, Tx, bounded, insert_all, on};

/// How many entries are read at once.
const PAGE: i64 = 256;
/// About how many characters of bodies are read at once.
const PAGE_CHARACTERS: i64 = 1024 * 1024;
/// How long the journal may take to answer a reader. Longer than the store lets one statement and
/// the connection for it take: this bounds what it does not.
const READ_WITHIN: Duration = Duration::from_secs(11);

/// What `read` answers, unless it takes so long that the connection must be taken for dead.
pub(super) async fn within<T>(
    read: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let read = tokio::time::timeout(READ_WITHIN, read).await;
    read.unwrap_or_else(|_| {
        let problem = format!("it did not answer a read of the journal within {READ_WITHIN:?}");
        let error = io::Error::new(io::ErrorKind::TimedOut, problem);
        Err(sqlx::Error::Io(error).into())
    })
}

struct Row<'e> {
    channel: &'e Channel,
    seq: i64,
    entry: &'e NewEntry,
}

/// Write entries to a channel, in their order, and have streams told once they are committed.
/// Let it be the last that a transaction does: until the commit, others who write to the channel
/// wait.
pub async fn append(
    tx: &mut Tx,
    channel: &Channel,
    entries: &[&NewEntry],
) -> Result<(), StoreError> {
    // A channel begins at the microsecond of its first entry. So the numbers of a topic that was
    // closed and opened again are above those of before: an id of that time is seen to be old.
    const NUMBER: &str = "
        insert into channels (app_id, topic, begin_seq, swept_seq, last_seq)
        values ($1, $2, $3, $3, $3 + $4)
        on conflict (app_id, topic) do update set last_seq = channels.last_seq + $4
        returning last_seq, begin_seq";
    let Ok(count @ 1..) = i64::try_from(entries.len()) else {
        return Ok(());
    };
    let now = tx.now;
    let (last, begin): (i64, i64) = on!(tx.conn().await?, |c| sqlx::query_as(NUMBER)
        .bind(channel.app_id)
        .bind(&*channel.topic)
        .bind(now.timestamp_micros())
        .bind(count)
        .fetch_one(c)
        .await)?;
    let first = last - count + 1;
    let rows: Vec<Row<'_>> = (first..)
        .zip(entries)
        .map(|(seq, entry)| Row {
            channel,
            seq,
            entry,
        })
        .collect();
    insert_all!(tx, "journal", &rows, |row| {
        app_id: row.channel.app_id,
        topic: &*row.channel.topic,
        seq: row.seq,
        id: row.entry.id,
        kind: row.entry.kind.as_str(),
        about: row.entry.about,
        body: row.entry.body.as_str(),
        written_at: now,
    });
    let written = Written {
        channel: channel.clone(),
        first,
        last,
    };
    tx.announce(Appended {
        written,
        begins: first == begin + 1,
        entries: entries.iter().copied().cloned().collect(),
        at: now,
    });
    Ok(())
}

#[derive(sqlx::FromRow)]
struct EntryRow {
    seq: i64,
    id: Uuid,
    kind: String,
    about: Option<AppId>,
    body: String,
    written_at: DateTime<Utc>,
}

/// Some entries, in their order.
pub(super) struct Page {
    /// The entries; none only if there are none.
    pub entries: Vec<Entry>,
    /// Whether there are more.
    pub has_more: bool,
}

/// The entries of a channel after a number.
pub(super) async fn after(
    conn: &mut Conn,
    channel: &Channel,
    seq: i64,
) -> Result<Page, StoreError> {
    // The sum is over what the limit let through, so that few large bodies end a page.
    const SQL: &str = "
        select seq, id, kind, about, body, written_at from (
            select seq, id, kind, about, body, written_at,
                   sum(length(body)) over (order by seq) - length(body) as characters_before
            from (select seq, id, kind, about, body, written_at from journal
                  where app_id = $1 and topic = $2 and seq > $3 order by seq limit $4) page
        ) measured where characters_before < $5 order by seq";
    let rows: Vec<EntryRow> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(channel.app_id)
        .bind(&*channel.topic)
        .bind(seq)
        .bind(PAGE)
        .bind(PAGE_CHARACTERS)
        .fetch_all(c)
        .await)?;
    let bytes: usize = rows.iter().map(|row| row.body.len()).sum();
    let is_full = |filled: usize, most: i64| i64::try_from(filled).is_ok_and(|n| n >= most);
    let has_more = is_full(rows.len(), PAGE) || is_full(bytes, PAGE_CHARACTERS);
    let told = rows.into_iter().map(|row| {
        let entry = NewEntry {
            id: row.id,
            kind: row.kind,
            about: row.about,
            // Written before messages were checked, perhaps.
            body: Json::read(&row.body, DEPTH_MAX).value.into(),
        };
        entry.told(channel.clone(), Some(row.seq), row.written_at)
    });
    let entries = told.collect();
    Ok(Page { entries, has_more })
}

/// How far a channel reaches.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
pub struct Head {
    /// The number before the first.
    pub begin_seq: i64,
    /// The last number that was removed.
    pub swept_seq: i64,
    /// The last number.
    pub last_seq: i64,
}

/// How far a channel reaches; none while nothing was written to it.
pub async fn head(conn: &mut Conn, channel: &Channel) -> Result<Option<Head>, StoreError> {
    const SQL: &str = "
        select begin_seq, swept_seq, last_seq from channels where app_id = $1 and topic = $2";
    Ok(on!(conn, |c| sqlx::query_as(SQL)
        .bind(channel.app_id)
        .bind(&*channel.topic)
        .fetch_optional(c)
        .await)?)
}

/// The last numbers of some channels. On SQLite nobody else writes, and nobody asks.
pub(super) async fn last_of(
    conn: &mut Conn,
    channels: &[Channel],
) -> Result<Vec<Written>, StoreError> {
    const SQL: &str = "
        select app_id, topic, last_seq from channels
        where (app_id, topic) in (select * from unnest($1::uuid[], $2::text[]))";
    let Conn::Postgres(held) = conn else {
        return Ok(Vec::new());
    };
    let ids: Vec<Uuid> = channels.iter().map(|channel| channel.app_id).collect();
    let topics: Vec<&str> = channels.iter().map(|channel| &*channel.topic).collect();
    let asked = sqlx::query_as(SQL).bind(ids).bind(topics);
    let rows: Vec<(Uuid, String, i64)> = bounded!(held, |c| asked.fetch_all(c).await)?;
    let written = rows.into_iter().map(|(app_id, topic, last)| Written {
        channel: Channel {
            app_id,
            topic: topic.into(),
        },
        first: last,
        last,
    });
    Ok(written.collect())
}

/// Channels in their order: those after `after`.
pub(super) async fn channels(
    conn: &mut Conn,
    after: Option<&Channel>,
    limit: i64,
) -> Result<Vec<Channel>, StoreError> {
    const SQL: &str = "
        select app_id, topic from channels
        where app_id > $1 or (app_id = $1 and topic > $2)
        order by app_id, topic limit $3";
    const ALL: &str = "select app_id, topic from channels order by app_id, topic limit $1";
    let rows: Vec<(Uuid, String)> = on!(conn, |c| {
        let query = match after {
            Some(after) => sqlx::query_as(SQL).bind(after.app_id).bind(&*after.topic),
            None => sqlx::query_as(ALL),
        };
        query.bind(limit).fetch_all(c).await
    })?;
    let channel = |(app_id, topic): (Uuid, String)| Channel {
        app_id,
        topic: topic.into(),
    };
    Ok(rows.into_iter().map(channel).collect())
}

/// The oldest entry of a channel.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
pub(super) struct Oldest {
    seq: i64,
    last_seq: i64,
    written_at: DateTime<Utc>,
}

impl Oldest {
    /// Whether it is past its retention; everything is where nothing is kept.
    pub(super) fn is_over(&self, keep: Option<Keep>) -> bool {
        keep.is_none_or(|keep| {
            self.seq <= self.last_seq - keep.entries || self.written_at < Utc::now() - keep.age
        })
    }
}

/// The oldest entry of a channel, if it has one.
pub(super) async fn oldest(
    conn: &mut Conn,
    channel: &Channel,
) -> Result<Option<Oldest>, StoreError> {
    const SQL: &str = "
        select j.seq, c.last_seq, j.written_at
        from channels c join journal j on j.app_id = c.app_id and j.topic = c.topic
        where c.app_id = $1 and c.topic = $2 order by j.seq limit 1";
    Ok(on!(conn, |c| sqlx::query_as(SQL)
        .bind(channel.app_id)
        .bind(&*channel.topic)
        .fetch_optional(c)
        .await)?)
}

/// Remove entries that are past their retention, the oldest first, at most `limit`; and the channel
/// once it is empty where nothing is kept. Answers how many entries went.
pub(super) async fn remove(
    tx: &mut Tx,
    channel: &Channel,
    keep: Option<Keep>,
    limit: i64,
) -> Result<u64, StoreError> {
    const REMOVE: &str = "
        delete from journal where app_id = $1 and topic = $2
          and seq in (select seq from journal where app_id = $1 and topic = $2
                      order by seq limit $3)
          and (seq <= $4 or written_at < $5)
        returning seq";
    const NOTE: &str = "
        update channels set swept_seq = $3
        where app_id = $1 and topic = $2 and swept_seq < $3";
    const FORGET: &str = "
        delete from channels where app_id = $1 and topic = $2 and last_seq = $3 and not exists (
            select 1 from journal where app_id = $1 and topic = $2)";
    let Some(head) = head(tx.conn().await?, channel).await? else {
        return Ok(0);
    };
    let (up_to, before) = match keep {
        Some(keep) => (head.last_seq - keep.entries, tx.now - keep.age),
        None => (i64::MAX, tx.now),
    };
    let removed: Vec<i64> = on!(tx.conn().await?, |c| sqlx::query_scalar(REMOVE)
        .bind(channel.app_id)
        .bind(&*channel.topic)
        .bind(limit)
        .bind(up_to)
        .bind(before)
        .fetch_all(c)
        .await)?;
    let is_empty = removed.len() < usize::try_from(limit).unwrap_or(usize::MAX);
    if let Some(last) = removed.iter().max() {
        on!(tx.conn().await?, |c| sqlx::query(NOTE)
            .bind(channel.app_id)
            .bind(&*channel.topic)
            .bind(last)
            .execute(c)
            .await
            .map(|_| ()))?;
    }
    if keep.is_none() && is_empty {
        // The number shows whether somebody wrote to it meanwhile.
        on!(tx.conn().await?, |c| sqlx::query(FORGET)
            .bind(channel.app_id)
            .bind(&*channel.topic)
            .bind(head.last_seq)
            .execute(c)
            .await
            .map(|_| ()))?;
    }
    Ok(removed.len() as u64)
}
