//! One stream: what the journal has after the client's id, then what is told, without a hole and
//! without a double at the seam.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::watch;

use super::fanout::Inbox;
use super::sql::{self, Head};
use super::{Begin, Channel, Cursors, Entry, Journal, Replay, cursors};
use crate::store::StoreError;

/// How far behind a stream may begin.
const BEHIND_MAX: i64 = 10_000;

/// What a stream is told.
#[derive(Debug)]
pub enum Told {
    /// It has begun; the id to come back with until something else comes.
    Ready(Cursors),
    /// An entry; an ephemeral one has no id to come back with.
    Entry(Option<Cursors>, Arc<Entry>),
    /// Entries are missing here and cannot be had.
    Gap(Cursors, Channel),
    /// The channel may not be heard any more. The stream ends.
    Reset(Channel),
    /// Whoever hears it was let in until now. The stream ends.
    Expired,
}

/// What ends a stream from outside, and what it does not show.
pub trait Watch: Send + Sync {
    /// What ends the stream now: asked for whenever something may have changed.
    fn ended(&self) -> Option<Told>;

    /// Whether this entry may be shown.
    fn shows(&self, entry: &Entry) -> bool;
}

/// A stream.
pub struct Subscription {
    journal: Arc<Journal>,
    places: Vec<Spot>,
    inbox: Inbox,
    /// What was read and not told yet.
    read: VecDeque<Told>,
    /// The place that is the first to be read from next, if it is behind. They take turns: one
    /// that is written to faster than the stream is read would keep it from all others.
    turn: usize,
    has_ended: bool,
    /// What it holds until it has told what was written before it began.
    replay: Option<Replay>,
    /// Whether the journal counts it among those who hear the events of the instance.
    is_counted: bool,
    changes: watch::Receiver<u64>,
    watch: Box<dyn Watch>,
}

/// Where a stream is in a channel.
struct Spot {
    channel: Channel,
    name: [u8; 8],
    /// The last number that was told; 0: before the first of all.
    cursor: i64,
    /// Whether the journal may have what was not told.
    is_behind: bool,
}

impl Journal {
    /// Begin a stream of these channels, which is looked at anew whenever `changes` say so.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn subscribe(
        self: &Arc<Self>,
        channels: Vec<Channel>,
        begin: &Begin,
        changes: watch::Receiver<u64>,
        watch: Box<dyn Watch>,
    ) -> Result<Subscription, StoreError> {
        // Listen first: what is written while we read is in the inbox.
        let inbox = self.listen(channels.clone());
        let mut subscription = Subscription {
            journal: self.clone(),
            places: Vec::with_capacity(channels.len()),
            inbox,
            read: VecDeque::new(),
            turn: 0,
            has_ended: false,
            replay: None,
            is_counted: false,
            changes,
            watch,
        };
        let heads = sql::within(async {
            let mut conn = self.db.read().await?;
            let mut heads = Vec::with_capacity(channels.len());
            for channel in &channels {
                heads.push(sql::head(&mut conn, channel).await?);
            }
            Ok(heads)
        });
        let heads = heads.await?;
        let mut gaps = Vec::new();
        for (channel, head) in channels.into_iter().zip(heads) {
            let (cursor, has_gap) = start(begin, &channel, head);
            let is_behind = head.is_some_and(|head| cursor < head.last_seq);
            if has_gap {
                gaps.push(channel.clone());
            }
            subscription.places.push(Spot {
                name: cursors::name(&channel),
                channel,
                cursor,
                is_behind,
            });
        }
        if subscription.hears_events() {
            self.watching.fetch_add(1, Ordering::Relaxed);
            subscription.is_counted = true;
        }
        let cursors = subscription.cursors();
        let told = std::iter::once(Told::Ready(cursors.clone())).chain(
            gaps.into_iter()
                .map(|channel| Told::Gap(cursors.clone(), channel)),
        );
        subscription.read = told.collect();
        Ok(subscription)
    }
}

/// Which number is before the first that a stream is told, and whether some before it are missing.
fn start(begin: &Begin, channel: &Channel, head: Option<Head>) -> (i64, bool) {
    let known = match begin {
        Begin::Now => None,
        Begin::Earliest => Some(head.map_or(0, |head| head.swept_seq)),
        Begin::After(cursors) => cursors.of(channel),
    };
    let Some(head) = head else {
        // Should it have been written to once, the first number to come tells.
        return (known.unwrap_or(0), false);
    };
    let oldest = head.swept_seq.max(head.last_seq - BEHIND_MAX);
    match known {
        None => (head.last_seq, false),
        Some(0) => (oldest, oldest > head.begin_seq),
        // Of a journal that is not this one: a backup was restored.
        Some(cursor) if cursor > head.last_seq => (head.last_seq, true),
        Some(cursor) => (
            cursor.max(oldest),
            cursor < oldest && *begin != Begin::Earliest,
        ),
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if self.is_counted {
            self.journal.watching.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Subscription {
    /// Whether it begins with what was written before.
    pub fn is_replay(&self) -> bool {
        self.places.iter().any(|spot| spot.is_behind)
    }

    /// Hold this until what was written before is told.
    pub fn replays(&mut self, replay: Replay) {
        self.replay = Some(replay);
    }

    /// What comes next; none when the stream ends.
    pub async fn next(&mut self) -> Option<Told> {
        loop {
            if self.has_ended {
                return None;
            }
            if let Some(ended) = self.watch.ended() {
                self.has_ended = true;
                return Some(ended);
            }
            while let Some(told) = self.read.pop_front() {
                if self.is_shown(&told) {
                    return Some(told);
                }
            }
            if let Some(spot) = self.next_behind() {
                // Boxed: the stream is idle for most of its life, and should be small then.
                if let Err(error) = Box::pin(self.read_on(spot)).await {
                    tracing::warn!(%error, "a stream ends: the journal cannot be read");
                    return None;
                }
                continue;
            }
            // An idle stream is small.
            self.read = VecDeque::new();
            self.replay = None;
            let entry = tokio::select! {
                biased;
                // Whoever changes things goes only with the process.
                changed = self.changes.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return None,
                },
                entry = self.inbox.next() => entry?,
            };
            if let Some(told) = self.told(entry)
                && self.is_shown(&told)
            {
                return Some(told);
            }
        }
    }

    /// Which place is to be read from next.
    fn next_behind(&self) -> Option<usize> {
        let (before, after) = self.places.split_at(self.turn);
        let behind = |places: &[Spot]| places.iter().position(|spot| spot.is_behind);
        let after = behind(after).map(|n| self.turn + n);
        after.or_else(|| behind(before))
    }

    fn hears_events(&self) -> bool {
        let events = Channel::events();
        self.places.iter().any(|spot| spot.channel == events)
    }

    fn is_shown(&self, told: &Told) -> bool {
        match told {
            Told::Entry(_, entry) => self.watch.shows(entry),
            _ => true,
        }
    }

    /// What an entry means that was told to all: nothing if it was read before, and that there is
    /// something to read if one before it is missing.
    fn told(&mut self, entry: Arc<Entry>) -> Option<Told> {
        let Some(seq) = entry.seq else {
            return Some(Told::Entry(None, entry));
        };
        let spot = self.places.iter_mut();
        let spot = spot
            .into_iter()
            .find(|spot| spot.channel == entry.channel)?;
        if seq <= spot.cursor {
            return None;
        }
        // Who knows no number because there was none misses nothing before the first.
        let follows = seq == spot.cursor + 1 || (spot.cursor == 0 && entry.is_first);
        if !follows {
            spot.is_behind = true;
            return None;
        }
        spot.cursor = seq;
        Some(Told::Entry(Some(self.cursors()), entry))
    }

    /// Read a page of what a channel has after the cursor.
    async fn read_on(&mut self, spot: usize) -> Result<(), StoreError> {
        let channel = self.places[spot].channel.clone();
        let before = self.places[spot].cursor;
        let read = sql::within(async {
            let mut conn = self.journal.db.read().await?;
            let page = sql::after(&mut conn, &channel, before).await?;
            let head = match (before, page.entries.is_empty()) {
                (1.., false) => None,
                _ => sql::head(&mut conn, &channel).await?,
            };
            Ok((page, head))
        });
        let (sql::Page { entries, has_more }, head) = read.await?;
        self.turn = spot + 1;
        // Numbers are without holes: one that does not follow shows what the sweep took.
        let expected = match before {
            0 => head.map_or(1, |head| head.begin_seq + 1),
            before => before + 1,
        };
        let first = match entries.first() {
            Some(entry) => entry.seq.unwrap_or(expected),
            None => head.map_or(expected, |head| head.swept_seq + 1),
        };
        if first > expected {
            self.places[spot].cursor = first - 1;
            let gap = Told::Gap(self.cursors(), channel);
            self.read.push_back(gap);
        }
        self.places[spot].is_behind = has_more;
        for entry in entries {
            self.places[spot].cursor = entry.seq.unwrap_or_default();
            let entry = Told::Entry(Some(self.cursors()), Arc::new(entry));
            self.read.push_back(entry);
        }
        let has_caught_up = self.places.iter().all(|spot| !spot.is_behind);
        if has_caught_up && self.inbox.is_cut_off() {
            // More was told meanwhile than the inbox takes. It is in the journal, all of it.
            let channels = self.places.iter().map(|spot| spot.channel.clone());
            self.inbox = self.journal.listen(channels.collect());
            self.places
                .iter_mut()
                .for_each(|spot| spot.is_behind = true);
        }
        Ok(())
    }

    fn cursors(&self) -> Cursors {
        let places = self.places.iter();
        places.map(|spot| (&spot.name, spot.cursor)).collect()
    }
}
