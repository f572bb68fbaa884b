//! The journal: what is appended is told in its order, without a hole and without a double,
//! whatever commits late, was swept, or came from another node.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use picloud::apps::AppId;
use picloud::journal::sweep::{Keep, sweep};
use picloud::journal::{
    Begin, Channel, Cursors, Entry, Journal, NewEntry, Subscription, Told, Watch, sql,
};
use picloud::pubsub::Topic;
use picloud::pubsub::sql::Publication;
use picloud::store::{Db, StoreError};
use picloud::tasks::Tasks;
use serde_json::Value;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::database::Database;
use crate::on_both_engines;

on_both_engines!(
    what_is_appended_is_replayed_in_its_order_and_then_told,
    a_stream_resumes_at_its_id,
    what_was_swept_by_count_or_age_is_a_gap,
    a_channel_that_was_forgotten_begins_above_its_old_numbers,
    a_late_commit_is_not_missed_by_whoever_reads_on,
    a_write_that_is_rolled_back_leaves_no_hole,
    publications_of_one_commit_have_numbers_of_their_own,
    whoever_is_too_slow_is_cut_off_and_resumes,
    two_writers_make_one_order_that_every_node_sees,
);

/// Lets everybody hear everything.
struct Anybody;

impl Watch for Anybody {
    fn ended(&self) -> Option<Told> {
        None
    }

    fn shows(&self, _: &Entry) -> bool {
        true
    }
}

struct Stream {
    subscription: Subscription,
    _changes: watch::Sender<u64>,
}

fn following(db: &Db) -> Arc<Journal> {
    let journal = Journal::new(db.clone());
    journal.follow(&Tasks::default());
    journal
}

async fn stream(journal: &Arc<Journal>, channel: &Channel, begin: Begin) -> Stream {
    let (_changes, changes) = watch::channel(0);
    let channels = vec![channel.clone()];
    let subscription = journal.subscribe(channels, &begin, changes, Box::new(Anybody));
    let mut stream = Stream {
        subscription: subscription.await.unwrap(),
        _changes,
    };
    assert!(matches!(stream.next().await, Told::Ready(_)));
    stream
}

/// As a client comes back with it.
fn after(cursors: &Cursors) -> Begin {
    Begin::parse(&cursors.to_string()).unwrap()
}

impl Stream {
    async fn next(&mut self) -> Told {
        let next = tokio::time::timeout(Duration::from_secs(20), self.subscription.next());
        next.await.expect("something comes").expect("it goes on")
    }

    /// The next entry: what it says, its number, and the id to come back with.
    async fn entry(&mut self) -> (i64, i64, Cursors) {
        let told = self.next().await;
        let Told::Entry(Some(cursors), entry) = told else {
            panic!("{told:?}");
        };
        let data: Value = serde_json::from_str(&entry.data).unwrap();
        (
            data["message"].as_i64().unwrap(),
            entry.seq.unwrap(),
            cursors,
        )
    }

    /// The next entries say `expected`, and have numbers without a hole.
    async fn expect(&mut self, expected: impl IntoIterator<Item = i64>) -> Vec<i64> {
        let mut seqs: Vec<i64> = Vec::new();
        for says in expected {
            let (said, seq, _) = self.entry().await;
            assert_eq!(said, says, "after {:?}", seqs.last());
            assert!(seqs.last().is_none_or(|last| seq == last + 1), "{seq}");
            seqs.push(seq);
        }
        seqs
    }

    async fn is_silent(&mut self) -> bool {
        let next = self.subscription.next();
        tokio::time::timeout(Duration::from_millis(300), next)
            .await
            .is_err()
    }
}

fn entry(says: i64) -> NewEntry {
    NewEntry {
        id: Uuid::now_v7(),
        kind: "message".to_owned(),
        about: None,
        body: says.to_string(),
    }
}

async fn append(db: &Db, channel: &Channel, says: impl IntoIterator<Item = i64>) {
    let channel = channel.clone();
    let entries: Vec<NewEntry> = says.into_iter().map(entry).collect();
    let written = db.write::<_, StoreError, _>(move |tx| {
        Box::pin(async move {
            let entries: Vec<&NewEntry> = entries.iter().collect();
            sql::append(tx, &channel, &entries).await
        })
    });
    written.await.unwrap();
}

fn a_channel() -> Channel {
    Channel::of_topic(AppId::new(), "news")
}

fn keep(age: TimeDelta, entries: i64) -> Keep {
    Keep { age, entries }
}

async fn what_is_appended_is_replayed_in_its_order_and_then_told(test: Database) {
    let (channel, other) = (a_channel(), a_channel());
    let journal = following(&test.db);
    // Several pages, and some entries of another channel between.
    for n in 0..5 {
        append(&test.db, &channel, n * 100..(n + 1) * 100).await;
        append(&test.db, &other, [n]).await;
    }
    let mut all = stream(&journal, &channel, Begin::Earliest).await;
    let mut live = stream(&journal, &channel, Begin::Now).await;
    // Written while one of them still reads what was before.
    append(&test.db, &channel, 500..505).await;
    let replayed = all.expect(0..505).await;
    assert_eq!(live.expect(500..505).await, replayed[500..]);
    append(&test.db, &channel, 505..600).await;
    all.expect(505..600).await;
    live.expect(505..600).await;
    assert!(all.is_silent().await && live.is_silent().await);
    let mut others = stream(&journal, &other, Begin::Earliest).await;
    others.expect(0..5).await;
}

async fn a_stream_resumes_at_its_id(test: Database) {
    let (channel, journal) = (a_channel(), following(&test.db));
    let mut first = stream(&journal, &channel, Begin::Now).await;
    append(&test.db, &channel, 0..300).await;
    for n in 0..300 {
        let (said, _, cursors) = first.entry().await;
        assert_eq!(said, n);
        if [0, 1, 150, 298].contains(&n) {
            let mut resumed = stream(&journal, &channel, after(&cursors)).await;
            resumed.expect(n + 1..300).await;
            assert!(resumed.is_silent().await, "after {n}");
        }
    }
}

async fn what_was_swept_by_count_or_age_is_a_gap(test: Database) {
    let (channel, journal) = (a_channel(), following(&test.db));
    let mut first = stream(&journal, &channel, Begin::Now).await;
    append(&test.db, &channel, 0..1_200).await;
    let mut ids = Vec::new();
    for n in 0..500 {
        let (said, _, cursors) = first.entry().await;
        assert_eq!(said, n);
        ids.push(cursors);
    }
    // More than two batches go.
    let long = TimeDelta::days(1);
    let removed = sweep(&test.db, |_| Some(keep(long, 100))).await.unwrap();
    assert_eq!(removed, 1_100);
    let again = sweep(&test.db, |_| Some(keep(long, 100))).await.unwrap();
    assert_eq!(again, 0);
    let mut resumed = stream(&journal, &channel, after(&ids[5])).await;
    assert!(matches!(resumed.next().await, Told::Gap(_, of) if of == channel));
    resumed.expect(1_100..1_200).await;
    // Whoever asks for what there is misses nothing.
    let mut earliest = stream(&journal, &channel, Begin::Earliest).await;
    earliest.expect(1_100..1_200).await;
    // All of it is older than nothing.
    let removed = sweep(&test.db, |_| Some(keep(TimeDelta::zero(), 100))).await;
    assert_eq!(removed.unwrap(), 100);
    let mut resumed = stream(&journal, &channel, after(&ids[499])).await;
    let Told::Gap(cursors, _) = resumed.next().await else {
        panic!("there is a gap");
    };
    // Whoever was told of a gap is not told of it again.
    let mut again = stream(&journal, &channel, after(&cursors)).await;
    append(&test.db, &channel, [7]).await;
    resumed.expect([7]).await;
    again.expect([7]).await;
}

async fn a_channel_that_was_forgotten_begins_above_its_old_numbers(test: Database) {
    let (channel, journal) = (a_channel(), following(&test.db));
    let mut before = stream(&journal, &channel, Begin::Now).await;
    append(&test.db, &channel, 0..10).await;
    let (_, old, cursors) = before.entry().await;
    drop(before);
    assert_eq!(sweep(&test.db, |_| None).await.unwrap(), 10);
    let head = sql::head(&mut test.db.read().await.unwrap(), &channel).await;
    assert!(head.unwrap().is_none(), "nothing of it is left");
    append(&test.db, &channel, [1]).await;
    let mut resumed = stream(&journal, &channel, after(&cursors)).await;
    assert!(matches!(resumed.next().await, Told::Gap(..)));
    let seqs = resumed.expect([1]).await;
    assert!(seqs[0] > old + 9, "{} after {old}", seqs[0]);
}

/// A node of its own on the same database, where there can be one.
async fn another_node(test: &Database) -> Db {
    match test.url.starts_with("sqlite") {
        true => test.db.clone(),
        false => Db::open(&test.url).await.unwrap(),
    }
}

async fn a_late_commit_is_not_missed_by_whoever_reads_on(test: Database) {
    let (channel, journal) = (a_channel(), following(&test.db));
    append(&test.db, &channel, [0]).await;
    let mut reader = stream(&journal, &channel, Begin::Earliest).await;
    reader.expect([0]).await;
    // It has its number, and does not commit yet.
    let (wrote, may_commit) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (late, in_late, told, hold) = (
        test.db.clone(),
        channel.clone(),
        wrote.clone(),
        may_commit.clone(),
    );
    let late = tokio::spawn(async move {
        let written = late.write::<_, StoreError, _>(move |tx| {
            Box::pin(async move {
                sql::append(tx, &in_late, &[&entry(1)]).await?;
                told.notify_one();
                hold.notified().await;
                Ok(())
            })
        });
        written.await.unwrap();
    });
    wrote.notified().await;
    // Another node writes after it. If that could commit first, a reader would pass the number of
    // the first and never come back for it.
    let (other, in_other) = (another_node(&test).await, channel.clone());
    let early = tokio::spawn(async move { append(&other, &in_other, [2]).await });
    assert!(reader.is_silent().await);
    let mut joined = stream(&journal, &channel, Begin::Earliest).await;
    joined.expect([0]).await;
    assert!(joined.is_silent().await && !early.is_finished());
    may_commit.notify_one();
    late.await.unwrap();
    early.await.unwrap();
    for stream in [&mut reader, &mut joined] {
        stream.expect([1, 2]).await;
    }
}

async fn a_write_that_is_rolled_back_leaves_no_hole(test: Database) {
    let (channel, journal) = (a_channel(), following(&test.db));
    let mut reader = stream(&journal, &channel, Begin::Earliest).await;
    append(&test.db, &channel, [0]).await;
    let in_failing = channel.clone();
    let failing = test.db.write::<(), StoreError, _>(move |tx| {
        Box::pin(async move {
            sql::append(tx, &in_failing, &[&entry(-1), &entry(-2)]).await?;
            Err(StoreError::Closed)
        })
    });
    assert!(failing.await.is_err());
    append(&test.db, &channel, [1]).await;
    // Their numbers follow each other.
    reader.expect([0, 1]).await;
    let mut later = stream(&journal, &channel, Begin::Earliest).await;
    later.expect([0, 1]).await;
}

async fn publications_of_one_commit_have_numbers_of_their_own(test: Database) {
    const COUNT: i64 = 2_000;
    let (app_id, journal) = (AppId::new(), following(&test.db));
    let channel = Channel::of_topic(app_id, "news");
    let publishing: Vec<_> = (0..COUNT)
        .map(|says| {
            let publication = Publication {
                app_id,
                channel: channel.clone(),
                topic: Topic::parse("news".to_owned()).unwrap(),
                is_open: true,
                entry: entry(says),
                listening: Vec::new(),
            };
            let db = test.db.clone();
            tokio::spawn(async move { db.write_grouped(publication).await })
        })
        .collect();
    for published in publishing {
        published.await.unwrap().unwrap();
    }
    let mut reader = stream(&journal, &channel, Begin::Earliest).await;
    let (mut said, mut last) = (Vec::new(), None);
    for _ in 0..COUNT {
        let (says, seq, _) = reader.entry().await;
        assert!(last.is_none_or(|last| seq == last + 1), "{seq}");
        last = Some(seq);
        said.push(says);
    }
    said.sort_unstable();
    assert!(said.into_iter().eq(0..COUNT), "each of them, once");
}

async fn whoever_is_too_slow_is_cut_off_and_resumes(test: Database) {
    let (channel, journal) = (a_channel(), following(&test.db));
    append(&test.db, &channel, [-1]).await;
    let mut slow = stream(&journal, &channel, Begin::Now).await;
    let mut quick = stream(&journal, &channel, Begin::Now).await;
    for n in 0..20 {
        append(&test.db, &channel, n * 100..(n + 1) * 100).await;
        quick.expect(n * 100..(n + 1) * 100).await;
    }
    // What waited for it comes, in its order; then it ends.
    let (mut heard, mut last) = (0, None);
    let patience = Duration::from_secs(20);
    let next =
        async |slow: &mut Stream| tokio::time::timeout(patience, slow.subscription.next()).await;
    while let Some(told) = next(&mut slow).await.expect("it ends") {
        let Told::Entry(Some(cursors), _) = told else {
            panic!("{told:?}");
        };
        (heard, last) = (heard + 1, Some(cursors));
    }
    assert!(
        (1..2_000).contains(&heard),
        "{heard}: what waits is bounded"
    );
    let mut resumed = stream(&journal, &channel, after(&last.unwrap())).await;
    resumed.expect(heard..2_000).await;
}

async fn two_writers_make_one_order_that_every_node_sees(test: Database) {
    const EACH: i64 = 200;
    let (channel, here) = (a_channel(), following(&test.db));
    let other = another_node(&test).await;
    // On SQLite there is one node, which has two streams then.
    let there = match test.url.starts_with("sqlite") {
        true => here.clone(),
        false => following(&other),
    };
    let mut streams = [
        stream(&here, &channel, Begin::Now).await,
        stream(&there, &channel, Begin::Now).await,
    ];
    let writing = [(test.db.clone(), 0), (other, EACH)].map(|(db, first)| {
        let channel = channel.clone();
        tokio::spawn(async move {
            for says in first..first + EACH {
                append(&db, &channel, [says]).await;
            }
        })
    });
    let mut orders = Vec::new();
    for stream in &mut streams {
        let mut order: Vec<(i64, i64)> = Vec::new();
        for _ in 0..2 * EACH {
            let (says, seq, _) = stream.entry().await;
            assert!(
                order.last().is_none_or(|(_, last)| seq == last + 1),
                "{seq}"
            );
            order.push((says, seq));
        }
        assert!(stream.is_silent().await);
        orders.push(order);
    }
    for written in writing {
        written.await.unwrap();
    }
    assert_eq!(orders[0], orders[1]);
    // Each writer's own entries are in its own order.
    for first in [0, EACH] {
        let says = orders[0].iter().map(|(says, _)| *says);
        let of_one = says.filter(|says| (first..first + EACH).contains(says));
        assert!(of_one.eq(first..first + EACH));
    }
}
