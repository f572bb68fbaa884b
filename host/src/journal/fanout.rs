//! Who listens on this node, and the telling of what was written.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Appended, Channel, Entry, Journal, NewEntry, Written, sql};

/// How many entries wait for one stream before it counts as too slow.
const QUEUE: usize = 512;
/// How many bytes of them do. What waits is shared among the streams of a channel, but each slow
/// reader may hold on to others.
const QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// How long to wait before reading again when the database did not answer.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
/// How often is looked whether a notification was lost.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Who listens.
#[derive(Default)]
pub(super) struct Fanout {
    channels: Mutex<HashMap<Channel, Listened>>,
    next: AtomicU64,
}

/// A channel that somebody listens to.
#[derive(Default)]
struct Listened {
    listeners: HashMap<u64, Listener>,
    /// The last number that was told; 0 while none was.
    told: i64,
    /// The last number that was heard of.
    heard: i64,
    /// Whether a task reads what is between the two.
    is_read: bool,
}

struct Listener {
    inbox: mpsc::Sender<Arc<Entry>>,
    waiting_bytes: Arc<AtomicUsize>,
}

/// What a stream is told. Its end means that it was too slow.
pub(super) struct Inbox {
    entries: mpsc::Receiver<Arc<Entry>>,
    waiting_bytes: Arc<AtomicUsize>,
    number: u64,
    channels: Vec<Channel>,
    journal: Arc<Journal>,
}

impl Inbox {
    /// The next entry; none once what came before the end was taken.
    pub(super) async fn next(&mut self) -> Option<Arc<Entry>> {
        let entry = self.entries.recv().await?;
        let bytes = entry.data.len();
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        Some(entry)
    }

    /// Whether it was too slow.
    pub(super) fn is_cut_off(&self) -> bool {
        self.entries.is_closed()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let mut channels = self.journal.fanout.locked();
        for channel in &self.channels {
            if let Some(listened) = channels.get_mut(channel) {
                listened.listeners.remove(&self.number);
                if listened.listeners.is_empty() {
                    channels.remove(channel);
                }
            }
        }
    }
}

impl Fanout {
    fn locked(&self) -> MutexGuard<'_, HashMap<Channel, Listened>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tell entries of a channel to whoever listens. Whoever does not take them in time is cut off.
    pub(super) fn send(&self, channel: &Channel, entries: &[Arc<Entry>]) {
        if let Some(listened) = self.locked().get_mut(channel) {
            listened.send(entries);
        }
    }
}

impl Listened {
    fn send(&mut self, entries: &[Arc<Entry>]) {
        for entry in entries {
            let bytes = entry.data.len();
            self.listeners.retain(|_, listener| {
                let waiting = listener.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
                let fits = waiting + bytes <= QUEUE_BYTES || waiting == 0;
                let told = fits && listener.inbox.try_send(entry.clone()).is_ok();
                if !told {
                    metrics::counter!("picloud_streams_cut_off_total").increment(1);
                }
                told
            });
            self.told = self.told.max(entry.seq.unwrap_or_default());
        }
    }
}

impl Journal {
    /// Hear what is told on these channels from now on.
    pub(super) fn listen(self: &Arc<Self>, channels: Vec<Channel>) -> Inbox {
        let (inbox, entries) = mpsc::channel(QUEUE);
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let number = self.fanout.next.fetch_add(1, Ordering::Relaxed);
        let mut listened = self.fanout.locked();
        for channel in &channels {
            let listened = listened.entry(channel.clone()).or_default();
            let (inbox, waiting_bytes) = (inbox.clone(), waiting_bytes.clone());
            let listener = Listener {
                inbox,
                waiting_bytes,
            };
            listened.listeners.insert(number, listener);
        }
        drop(listened);
        Inbox {
            entries,
            waiting_bytes,
            number,
            channels,
            journal: self.clone(),
        }
    }

    /// Entries were written here: tell them as they are where the one before them was told, and
    /// have them read where it was not.
    pub(super) fn tell(self: &Arc<Self>, appended: Appended) {
        let Appended {
            written,
            begins,
            entries,
            at,
        } = appended;
        if let Some(listened) = self.fanout.locked().get_mut(&written.channel)
            && !listened.is_read
            && [0, written.first - 1].contains(&listened.told)
        {
            let told = |(seq, entry): (i64, NewEntry)| {
                let is_first = begins && seq == written.first;
                let entry = entry.told(written.channel.clone(), Some(seq), at);
                Arc::new(Entry { is_first, ..entry })
            };
            let entries: Vec<_> = (written.first..).zip(entries).map(told).collect();
            return listened.send(&entries);
        }
        self.look(&written);
    }

    /// Something was written: have it read and told, if anybody listens here.
    pub(super) fn look(self: &Arc<Self>, written: &Written) {
        let mut channels = self.fanout.locked();
        let Some(listened) = channels.get_mut(&written.channel) else {
            return;
        };
        if listened.told == 0 {
            // Streams know where they begin; what is told too much or too little, they notice.
            listened.told = written.first - 1;
        }
        listened.heard = listened.heard.max(written.last);
        if listened.heard > listened.told && !listened.is_read {
            listened.is_read = true;
            tokio::spawn(self.clone().read(written.channel.clone()));
        }
    }

    /// Read and tell what was written to a channel until there is no more.
    async fn read(self: Arc<Self>, channel: Channel) {
        loop {
            let told = match self.fanout.locked().get_mut(&channel) {
                Some(listened) if listened.heard > listened.told => listened.told,
                Some(listened) => {
                    listened.is_read = false;
                    return;
                }
                None => return,
            };
            let read = async {
                let mut conn = self.db.read().await?;
                sql::after(&mut conn, &channel, told).await
            };
            match read.await {
                Ok(page) => {
                    let entries: Vec<Arc<Entry>> = page.entries.into_iter().map(Arc::new).collect();
                    let mut channels = self.fanout.locked();
                    if let Some(listened) = channels.get_mut(&channel) {
                        listened.send(&entries);
                        if entries.is_empty() {
                            // The sweep was faster; streams find out by themselves.
                            listened.told = listened.heard;
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the journal cannot be read yet");
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
            }
        }
    }

    /// Look now and then whether something was written of which no notification came, for ever.
    pub(super) async fn look_by_itself(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let channels: Vec<Channel> = self.fanout.locked().keys().cloned().collect();
            if channels.is_empty() {
                continue;
            }
            let looked = async {
                let mut conn = self.db.read().await?;
                sql::last_of(&mut conn, &channels).await
            };
            match looked.await {
                Ok(written) => written.iter().for_each(|written| self.look(written)),
                Err(error) => tracing::warn!(%error, "the journal cannot be looked at"),
            }
        }
    }
}
