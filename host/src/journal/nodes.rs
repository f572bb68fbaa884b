//! Between the nodes of an instance: hints of what was written, and ephemeral entries, by `NOTIFY`.
//!
//! A notification has a first line (`written` or `piece`, and whose it is) and what belongs to it.
//! Hints are coalesced and may be lost: each node also looks by itself. Ephemeral entries may be
//! larger than a notification; they go in pieces.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::Utc;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Channel, Journal, NewEntry, Written, sql};
use crate::apps::AppId;

/// Where nodes tell each other.
const CHANNEL: &str = "picloud_journal";
/// How long one notification stands for all that follow.
const PAUSE: Duration = Duration::from_millis(3);
/// Postgres takes less than 8,000 bytes.
const BYTES_MAX: usize = 7_000;
/// How many pieces wait to be sent before ephemeral entries are dropped.
const PIECES_MAX: usize = 10_000;
/// How many entries may lack a piece at once, and for how long: one that was lost never comes.
const INCOMPLETE_MAX: usize = 256;
const INCOMPLETE_FOR: Duration = Duration::from_secs(10);
/// How many pieces an entry may have. A message has far fewer.
const PIECES_OF_ONE_MAX: usize = 1_000;
/// How long to wait where other nodes cannot be told.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What waits to be told to the other nodes.
pub(super) struct Outgoing {
    node: Uuid,
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    written: HashMap<Channel, (i64, i64)>,
    pieces: Vec<String>,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self {
            node: Uuid::now_v7(),
            waiting: Mutex::default(),
            wake: Notify::new(),
        }
    }
}

/// An ephemeral entry on its way.
#[derive(Serialize, Deserialize)]
struct Carried {
    app_id: Uuid,
    topic: String,
    id: Uuid,
    kind: String,
    about: Option<AppId>,
    body: String,
}

impl Outgoing {
    pub(super) fn written(&self, written: &Written) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let range = waiting.written.entry(written.channel.clone());
        let (first, last) = range.or_insert((written.first, written.last));
        *first = (*first).min(written.first);
        *last = (*last).max(written.last);
        drop(waiting);
        self.wake.notify_one();
    }

    pub(super) fn ephemeral(&self, channel: &Channel, entry: &NewEntry) {
        let carried = Carried {
            app_id: channel.app_id,
            topic: channel.topic.to_string(),
            id: entry.id,
            kind: entry.kind.clone(),
            about: entry.about,
            body: entry.body.clone(),
        };
        let Ok(text) = serde_json::to_string(&carried) else {
            return;
        };
        let pieces = pieces(self.node, &text);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.pieces.len() + pieces.len() > PIECES_MAX {
            metrics::counter!("picloud_ephemeral_dropped_total").increment(1);
            return;
        }
        waiting.pieces.extend(pieces);
        drop(waiting);
        self.wake.notify_one();
    }

    fn take(&self) -> Vec<String> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Waiting { written, pieces } = std::mem::take(&mut *waiting);
        drop(waiting);
        let mut payloads = Vec::new();
        let head = format!("written {}", self.node);
        let mut payload = head.clone();
        for (channel, (first, last)) in written {
            let line = Written {
                channel,
                first,
                last,
            };
            let line = line.to_string();
            if payload.len() + line.len() >= BYTES_MAX {
                payloads.push(std::mem::replace(&mut payload, head.clone()));
            }
            payload.push('\n');
            payload.push_str(&line);
        }
        if payload != head {
            payloads.push(payload);
        }
        payloads.extend(pieces);
        payloads
    }
}

/// `text` in notifications.
fn pieces(node: Uuid, text: &str) -> Vec<String> {
    let id = Uuid::now_v7();
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (part, after) = rest.split_at(rest.floor_char_boundary(BYTES_MAX));
        parts.push(part);
        rest = after;
    }
    let count = parts.len();
    let piece = |(n, part)| format!("piece {node} {id} {n} {count}\n{part}");
    parts.into_iter().enumerate().map(piece).collect()
}

/// Puts pieces together.
#[derive(Default)]
struct Pieces(HashMap<Uuid, Incomplete>);

struct Incomplete {
    since: Instant,
    parts: Vec<Option<String>>,
}

impl Pieces {
    /// The whole text, if this was its last piece.
    fn add(&mut self, id: Uuid, n: usize, count: usize, part: &str) -> Option<String> {
        if count > PIECES_OF_ONE_MAX {
            return None;
        }
        if !self.0.contains_key(&id) {
            self.0
                .retain(|_, incomplete| incomplete.since.elapsed() < INCOMPLETE_FOR);
            if self.0.len() >= INCOMPLETE_MAX {
                // The oldest has lost a piece: ids sort by their making.
                let oldest = self.0.keys().min().copied()?;
                self.0.remove(&oldest);
            }
        }
        let incomplete = self.0.entry(id).or_insert_with(|| Incomplete {
            since: Instant::now(),
            parts: vec![None; count],
        });
        *incomplete.parts.get_mut(n)? = Some(part.to_owned());
        if incomplete.parts.iter().any(Option::is_none) {
            return None;
        }
        self.0.remove(&id)?.parts.into_iter().collect()
    }
}

impl Journal {
    /// Tell the other nodes what waits for them, for ever.
    pub(super) async fn tell_other_nodes(&self) {
        let Some(outgoing) = &self.outgoing else {
            return;
        };
        let mut is_failing = false;
        loop {
            outgoing.wake.notified().await;
            let mut pause = PAUSE;
            for payload in outgoing.take() {
                let Err(error) = sql::within(self.db.notify(CHANNEL, &payload)).await else {
                    is_failing = false;
                    continue;
                };
                if !is_failing {
                    tracing::warn!(%error, "other nodes could not be told");
                }
                is_failing = true;
                // What waits with it would fail as slowly, one by one. Hints may be lost, and what
                // is ephemeral is told at most once.
                metrics::counter!("picloud_ephemeral_dropped_total").increment(1);
                pause = AGAIN_AFTER;
                break;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Hear what other nodes tell, for ever.
    pub(super) async fn hear_other_nodes(self: &Arc<Self>) {
        if self.outgoing.is_none() {
            return;
        }
        let incomplete = Mutex::new(Pieces::default());
        let hear = |payload: &str| {
            // A notification that is none of ours is no concern of ours.
            let _ = self.hear(payload, &incomplete);
        };
        self.db.listen(CHANNEL, hear).await;
    }

    fn hear(self: &Arc<Self>, payload: &str, incomplete: &Mutex<Pieces>) -> Option<()> {
        let (head, rest) = payload.split_once('\n')?;
        let mut head = head.split(' ');
        let (kind, from) = (head.next()?, head.next()?);
        if from.parse() == Ok(self.outgoing.as_ref()?.node) {
            return None;
        }
        if kind == "written" {
            let written = rest.lines().filter_map(Written::parse);
            written.for_each(|written| self.look(&written));
            return Some(());
        }
        let id = head.next()?.parse().ok()?;
        let (n, count) = (head.next()?.parse().ok()?, head.next()?.parse().ok()?);
        let mut incomplete = incomplete.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = incomplete.add(id, n, count, rest)?;
        drop(incomplete);
        let carried: Carried = serde_json::from_str(&whole).ok()?;
        let channel = Channel {
            app_id: carried.app_id,
            topic: carried.topic.into(),
        };
        let entry = NewEntry {
            id: carried.id,
            kind: carried.kind,
            about: carried.about,
            body: carried.body,
        };
        let entry = entry.told(channel.clone(), None, Utc::now());
        self.fanout.send(&channel, &[Arc::new(entry)]);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_pieces_is_whole_again_in_any_order() {
        let text = "ключ🔑".repeat(3_000);
        let mut parts = pieces(Uuid::nil(), &text);
        assert!(parts.len() > 3 && parts.iter().all(|part| part.len() < 8_000));
        parts.reverse();
        let mut incomplete = Pieces::default();
        let mut whole = None;
        for part in &parts {
            assert!(whole.is_none());
            let (head, rest) = part.split_once('\n').unwrap();
            let head: Vec<&str> = head.split(' ').collect();
            let (n, count) = (head[3].parse().unwrap(), head[4].parse().unwrap());
            whole = incomplete.add(head[2].parse().unwrap(), n, count, rest);
        }
        assert_eq!(whole.unwrap(), text);
        assert!(incomplete.0.is_empty());
    }

    #[test]
    fn an_entry_that_lost_a_piece_is_forgotten() {
        let mut incomplete = Pieces::default();
        for n in 0..INCOMPLETE_MAX + 10 {
            let whole = incomplete.add(Uuid::now_v7(), n % 2, 2, "half");
            assert!(whole.is_none());
        }
        assert_eq!(incomplete.0.len(), INCOMPLETE_MAX);
        let nonsense = incomplete.add(Uuid::now_v7(), 0, usize::MAX, "half");
        assert!(nonsense.is_none());
    }

    #[test]
    fn hints_of_many_channels_fit_their_notifications() {
        let outgoing = Outgoing::default();
        for n in 0..500 {
            outgoing.written(&Written {
                channel: Channel::of_topic(AppId::new(), &format!("topic-{n}")),
                first: n,
                last: n,
            });
        }
        let payloads = outgoing.take();
        assert!(payloads.iter().all(|payload| payload.len() < 8_000));
        let lines = payloads.iter().flat_map(|payload| payload.lines().skip(1));
        assert_eq!(lines.filter_map(Written::parse).count(), 500);
        assert!(outgoing.take().is_empty());
    }
}
