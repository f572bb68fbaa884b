//! Who listens on this node, and the telling of what was written.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Appended, Channel, Entry, Journal, NewEntry, Written, sql};

/// How many entries wait for one stream before it counts as too slow.
const QUEUE: usize = 512;
/// How many bytes of them do. What waits is shared among the streams of a channel, but each slow
/// reader may hold on to others.
const QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// How long to wait before reading again when the database did not answer: at first, and at most.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(2);
/// How often is looked whether a notification was lost.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a reader may take over one page before another begins beside it, on another
/// connection: its own may never answer.
const READER_PATIENCE: Duration = Duration::from_secs(2);
/// How long this node may not know what was written before it says so.
const STALE_AFTER: Duration = Duration::from_secs(10);

/// Who listens.
pub(super) struct Fanout {
    listening: Mutex<Listening>,
    next: AtomicU64,
}

struct Listening {
    channels: HashMap<Channel, Listened>,
    /// The streams that take what they are told, by their numbers. One that is too slow, for
    /// whichever of its channels, is removed: that drops its only sender, so that it ends for all
    /// of them.
    streams: HashMap<u64, Listener>,
    /// When the database last told how far the channels are.
    looked_at: Instant,
}

/// A channel that somebody listens to.
struct Listened {
    /// The numbers of its streams. Some may be cut off.
    streams: HashSet<u64>,
    /// The last number that was told; 0 while none was.
    told: i64,
    /// The last number that was heard of.
    heard: i64,
    /// Who reads what is between the two.
    reader: Option<Reader>,
    /// Since when nothing of what is between the two was told.
    waiting_since: Instant,
}

/// A task that reads a channel.
struct Reader {
    number: u64,
    /// When it began the page that it is at.
    began_at: Instant,
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
        let mut listening = self.journal.fanout.locked();
        listening.streams.remove(&self.number);
        for channel in &self.channels {
            if let Some(listened) = listening.channels.get_mut(channel) {
                listened.streams.remove(&self.number);
                if listened.streams.is_empty() {
                    listening.channels.remove(channel);
                }
            }
        }
    }
}

impl Default for Fanout {
    fn default() -> Self {
        let listening = Listening {
            channels: HashMap::new(),
            streams: HashMap::new(),
            looked_at: Instant::now(),
        };
        Self {
            listening: Mutex::new(listening),
            next: AtomicU64::new(0),
        }
    }
}

impl Fanout {
    fn locked(&self) -> MutexGuard<'_, Listening> {
        self.listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that no other stream or reader has.
    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Tell entries of a channel to whoever listens. Whoever does not take them in time is cut off.
    pub(super) fn send(&self, channel: &Channel, entries: &[Arc<Entry>]) {
        self.locked().send(channel, entries);
    }
}

impl Listening {
    fn send(&mut self, channel: &Channel, entries: &[Arc<Entry>]) {
        let streams = &mut self.streams;
        let Some(listened) = self.channels.get_mut(channel) else {
            return;
        };
        let before = listened.told;
        for entry in entries {
            listened.streams.retain(|number| {
                let Some(listener) = streams.get(number) else {
                    return false;
                };
                let told = listener.tell(entry);
                if !told {
                    streams.remove(number);
                    metrics::counter!("picloud_streams_cut_off_total").increment(1);
                }
                told
            });
            listened.told = listened.told.max(entry.seq.unwrap_or_default());
        }
        if listened.told > before {
            listened.waiting_since = Instant::now();
        }
    }
}

impl Listener {
    /// Tell it an entry, if it has room for it.
    fn tell(&self, entry: &Arc<Entry>) -> bool {
        let bytes = entry.data.len();
        let waiting = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = waiting + bytes <= QUEUE_BYTES || waiting == 0;
        fits && self.inbox.try_send(entry.clone()).is_ok()
    }
}

impl Default for Listened {
    fn default() -> Self {
        Self {
            streams: HashSet::new(),
            told: 0,
            heard: 0,
            reader: None,
            waiting_since: Instant::now(),
        }
    }
}

impl Listened {
    fn is_behind(&self) -> bool {
        self.heard > self.told
    }

    /// Whether somebody is to read and nobody does, or not as it seems.
    fn lacks_reader(&self) -> bool {
        let reads = |reader: &Reader| reader.began_at.elapsed() < READER_PATIENCE;
        self.is_behind() && !self.reader.as_ref().is_some_and(reads)
    }

    /// What a reader reads after; none where it is to stop.
    fn reads_after(&mut self, number: u64) -> Option<i64> {
        let is_behind = self.is_behind();
        // Another has taken over from a reader that has another number.
        let reader = self.reader.as_mut().filter(|it| it.number == number)?;
        if is_behind {
            reader.began_at = Instant::now();
            Some(self.told)
        } else {
            self.reader = None;
            None
        }
    }
}

/// A reader at work. However it ends, by a panic too, another may begin.
struct Reading {
    journal: Arc<Journal>,
    channel: Channel,
    number: u64,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut listening = self.journal.fanout.locked();
        if let Some(listened) = listening.channels.get_mut(&self.channel)
            && let Some(reader) = &listened.reader
            && reader.number == self.number
        {
            listened.reader = None;
        }
    }
}

impl Reading {
    /// Read and tell what was written to the channel until there is no more.
    async fn go_on(self) {
        let fanout = &self.journal.fanout;
        let mut pause = AGAIN_AFTER;
        loop {
            let to_read = match fanout.locked().channels.get_mut(&self.channel) {
                Some(listened) => listened.reads_after(self.number),
                None => None,
            };
            let Some(told) = to_read else {
                return;
            };
            let read = sql::within(async {
                let mut conn = self.journal.db.read().await?;
                sql::after(&mut conn, &self.channel, told).await
            });
            match read.await {
                Ok(page) => {
                    pause = AGAIN_AFTER;
                    let entries: Vec<Arc<Entry>> = page.entries.into_iter().map(Arc::new).collect();
                    let mut listening = fanout.locked();
                    listening.send(&self.channel, &entries);
                    if entries.is_empty()
                        && let Some(listened) = listening.channels.get_mut(&self.channel)
                    {
                        // The sweep was faster; streams find out by themselves.
                        listened.told = listened.heard;
                    }
                }
                Err(error) => {
                    if pause == AGAIN_AFTER {
                        tracing::warn!(%error, "the journal cannot be read yet");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(AGAIN_AFTER_MAX);
                }
            }
        }
    }
}

impl Journal {
    /// Hear what is told on these channels from now on.
    pub(super) fn listen(self: &Arc<Self>, channels: Vec<Channel>) -> Inbox {
        let (inbox, entries) = mpsc::channel(QUEUE);
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let number = self.fanout.number();
        let listener = Listener {
            inbox,
            waiting_bytes: waiting_bytes.clone(),
        };
        let mut listening = self.fanout.locked();
        listening.streams.insert(number, listener);
        for channel in &channels {
            let listened = listening.channels.entry(channel.clone()).or_default();
            listened.streams.insert(number);
        }
        drop(listening);
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
        let mut listening = self.fanout.locked();
        if let Some(listened) = listening.channels.get(&written.channel)
            && listened.reader.is_none()
            && [0, written.first - 1].contains(&listened.told)
        {
            let told = |(seq, entry): (i64, NewEntry)| {
                let is_first = begins && seq == written.first;
                let entry = entry.told(written.channel.clone(), Some(seq), at);
                Arc::new(Entry { is_first, ..entry })
            };
            let entries: Vec<_> = (written.first..).zip(entries).map(told).collect();
            return listening.send(&written.channel, &entries);
        }
        drop(listening);
        self.look(&written);
    }

    /// Something was written: have it read and told, if anybody listens here.
    pub(super) fn look(self: &Arc<Self>, written: &Written) {
        let mut listening = self.fanout.locked();
        let Some(listened) = listening.channels.get_mut(&written.channel) else {
            return;
        };
        if listened.told == 0 {
            // Streams know where they begin; what is told too much or too little, they notice.
            listened.told = written.first - 1;
        }
        if !listened.is_behind() {
            listened.waiting_since = Instant::now();
        }
        listened.heard = listened.heard.max(written.last);
        if listened.lacks_reader() {
            self.have_read(written.channel.clone(), listened);
        }
    }

    /// Have a channel read by a new reader.
    fn have_read(self: &Arc<Self>, channel: Channel, listened: &mut Listened) {
        let number = self.fanout.number();
        let began_at = Instant::now();
        listened.reader = Some(Reader { number, began_at });
        let reading = Reading {
            journal: self.clone(),
            channel,
            number,
        };
        tokio::spawn(reading.go_on());
    }

    /// Look now and then whether something was written of which no notification came, or that
    /// nobody reads, for ever.
    pub(super) async fn look_by_itself(self: &Arc<Self>) {
        let mut is_failing = false;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let channels = self.listened();
            let looked = sql::within(async {
                if channels.is_empty() || self.outgoing.is_none() {
                    // Nobody listens, or nobody else writes.
                    return Ok(Vec::new());
                }
                let mut conn = self.db.read().await?;
                sql::last_of(&mut conn, &channels).await
            });
            match looked.await {
                Ok(written) => {
                    is_failing = false;
                    self.fanout.locked().looked_at = Instant::now();
                    written.iter().for_each(|written| self.look(written));
                }
                Err(error) => {
                    if !is_failing {
                        tracing::warn!(%error, "the journal cannot be looked at");
                    }
                    is_failing = true;
                }
            }
        }
    }

    /// The channels that somebody listens to. Those that nobody reads and somebody should are read
    /// from now on.
    fn listened(self: &Arc<Self>) -> Vec<Channel> {
        let mut listening = self.fanout.locked();
        for (channel, listened) in &mut listening.channels {
            if listened.lacks_reader() {
                self.have_read(channel.clone(), listened);
            }
        }
        listening.channels.keys().cloned().collect()
    }

    /// Whether what was written for streams of this node has not been read for so long that the
    /// node should say so.
    pub fn is_stale(&self) -> bool {
        let is_long_ago = |at: Instant| at.elapsed() > STALE_AFTER;
        let listening = self.fanout.locked();
        let mut channels = listening.channels.values();
        is_long_ago(listening.looked_at)
            || channels.any(|it| it.is_behind() && is_long_ago(it.waiting_since))
    }
}
