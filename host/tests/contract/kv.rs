//! The key-value store.

use std::sync::Arc;

use chrono::TimeDelta;
use picloud::apps::{AppId, Slug, sql as apps};
use picloud::directory::Directory;
use picloud::dispatch::outbox::Outbox;
use picloud::dispatch::{Fence, WorkerId};
use picloud::kv::{Collection, Kv, KvError, KvStore, Stored, sql};
use picloud::quotas::Meter;
use picloud::store::StoreError;
use picloud::triggers::firing::{Events, Origin};

use crate::database::{Database, unlimited};
use crate::on_both_engines;
use crate::outbox::{claim, delivery, insert};

on_both_engines!(
    a_value_is_what_was_last_set,
    keys_are_listed_in_byte_order_page_by_page,
    a_page_ends_with_the_value_that_takes_it_over_its_bytes,
    i01_the_app_of_a_statement_is_the_handles,
    many_writers_of_one_key_leave_one_of_their_values,
    i03_a_stale_worker_changes_no_value,
);

async fn app(test: &Database, name: &'static str) -> Kv {
    let id = AppId::new();
    let insert = test.db.write::<_, StoreError, _>(move |tx| {
        let slug: Slug = name.parse().unwrap();
        Box::pin(async move { apps::insert(tx, id, &slug, name).await })
    });
    insert.await.unwrap();
    let directory = Directory::open(test.db.clone()).await.unwrap();
    let (outbox, _) = Outbox::new(test.db.clone(), 10, 60_000, 1 << 30, unlimited());
    store(test, directory, outbox).of(id, Origin::act())
}

fn store(test: &Database, directory: Arc<Directory>, outbox: Arc<Outbox>) -> KvStore {
    let meter = Meter::new(test.db.clone(), directory.clone(), unlimited());
    let events = Events::new(directory, outbox, 8);
    KvStore::new(test.db.clone(), events, meter, 1000)
}

async fn get(kv: &Kv, key: &str) -> Option<String> {
    let value = kv.get("c".into(), key.into()).await.unwrap();
    value.map(Stored::into_text)
}

async fn set(kv: &Kv, key: &str, value: &str) {
    kv.set("c".into(), key.into(), value.into()).await.unwrap();
}

async fn a_value_is_what_was_last_set(test: Database) {
    let kv = app(&test, "a").await;
    assert_eq!(get(&kv, "k").await, None);
    for value in [
        "123",
        "\"text\"",
        "{\"a\":[1,null,2.50]}",
        "null",
        "\"\\u0000\"",
    ] {
        set(&kv, "k", value).await;
        assert_eq!(
            get(&kv, "k").await.as_deref(),
            Some(value),
            "kept to the letter"
        );
    }
    assert!(kv.has("c".into(), "k".into()).await.unwrap());
    assert!(kv.delete("c".into(), "k".into()).await.unwrap());
    assert!(!kv.delete("c".into(), "k".into()).await.unwrap());
    assert!(!kv.has("c".into(), "k".into()).await.unwrap());
    let long = format!("\"{}\"", "x".repeat(1000));
    let refused = kv.set("c".into(), "k".into(), long).await.unwrap_err();
    assert!(matches!(
        refused,
        KvError::TooLarge {
            what: "value",
            bytes: 1002,
            bytes_max: 1000
        }
    ));
}

async fn keys_are_listed_in_byte_order_page_by_page(test: Database) {
    let kv = app(&test, "a").await;
    let mut keys = ["b", "a", "B", "a b", "ä", "z", "a/b", "é", "_", "10", "9"].map(str::to_owned);
    for key in &keys {
        set(&kv, key, "1").await;
    }
    keys.sort();
    let mut seen = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let page = kv
            .list("c".into(), "", cursor.as_deref(), Some(3))
            .await
            .unwrap();
        assert!(page.entries.len() <= 3);
        seen.extend(page.entries.into_iter().map(|entry| entry.key));
        match page.next {
            Some(next) => cursor = Some(next.to_string()),
            None => break,
        }
    }
    assert_eq!(seen, keys);
    assert!(matches!(
        kv.list("c".into(), "", None, Some(0)).await,
        Err(KvError::InvalidLimit(0))
    ));
    let other = kv.list("d".into(), "", cursor.as_deref(), None).await;
    assert!(matches!(other, Err(KvError::InvalidCursor)));
}

async fn a_page_ends_with_the_value_that_takes_it_over_its_bytes(test: Database) {
    let app_id = AppId::new();
    let (directory, (outbox, _)) = (
        Directory::open(test.db.clone()).await.unwrap(),
        Outbox::new(test.db.clone(), 10, 60_000, 1 << 30, unlimited()),
    );
    let insert = test.db.write::<_, StoreError, _>(move |tx| {
        let slug: Slug = "a".parse().unwrap();
        Box::pin(async move { apps::insert(tx, app_id, &slug, "a").await })
    });
    insert.await.unwrap();
    let kv = store(&test, directory, outbox).of(app_id, Origin::act());
    // Bytes, not characters: each value has 100.
    let value = format!("\"{}\"", "ä".repeat(49));
    for n in 0..10 {
        set(&kv, &format!("k{n}"), &value).await;
    }
    kv.set("d".into(), "other".into(), value.clone())
        .await
        .unwrap();
    let collection = Collection::parse("c".into()).unwrap();
    for (after, limit, bytes_max, count, more) in [
        ("", 20, 10_000, 10, false),
        ("", 10, 10_000, 10, false),
        ("", 9, 10_000, 9, true),
        ("", 20, 250, 3, true),
        ("", 20, 200, 2, true),
        ("", 20, 1, 1, true),
        ("", 2, 250, 2, true),
        ("k6", 20, 250, 3, false),
        ("k6", 20, 200, 2, true),
        ("k8", 20, 1, 1, false),
        ("k9", 20, 1, 0, false),
    ] {
        let mut conn = test.db.read().await.unwrap();
        let page = sql::page(&mut conn, app_id, &collection, "", after, limit, bytes_max);
        let page = page.await.unwrap();
        let what = format!("{limit} of {bytes_max} bytes after `{after}`");
        assert_eq!((page.entries.len(), page.more), (count, more), "{what}");
        let first = after
            .strip_prefix('k')
            .map_or(0, |n| n.parse().unwrap_or(0) + 1);
        for (n, (key, text)) in page.entries.iter().enumerate() {
            assert_eq!((key, text), (&format!("k{}", first + n), &value), "{what}");
        }
    }
    let mut conn = test.db.read().await.unwrap();
    let all = sql::page_of_all(&mut conn, app_id, "", "", 20)
        .await
        .unwrap();
    assert_eq!((all.entries.len(), all.more), (11, false));
    let rest = sql::page_of_all(&mut conn, app_id, "c", "k7", 2)
        .await
        .unwrap();
    let names: Vec<_> = rest
        .entries
        .iter()
        .map(|(c, k, _)| format!("{c}/{k}"))
        .collect();
    assert_eq!(
        (names, rest.more),
        (vec!["c/k8".into(), "c/k9".into()], true)
    );
}

async fn i01_the_app_of_a_statement_is_the_handles(test: Database) {
    let (one, two) = (app(&test, "one").await, app(&test, "two").await);
    set(&one, "k", "1").await;
    assert_eq!(get(&two, "k").await, None);
    assert!(!two.delete("c".into(), "k".into()).await.unwrap());
    assert!(
        two.list("c".into(), "", None, None)
            .await
            .unwrap()
            .entries
            .is_empty()
    );
    assert_eq!(get(&one, "k").await.as_deref(), Some("1"));
}

async fn many_writers_of_one_key_leave_one_of_their_values(test: Database) {
    let kv = app(&test, "a").await;
    let writers = (0..50).map(|n| {
        let kv = kv.clone();
        tokio::spawn(async move { set(&kv, "k", &n.to_string()).await })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let value: u32 = get(&kv, "k").await.unwrap().parse().unwrap();
    assert!(value < 50);
}

async fn i03_a_stale_worker_changes_no_value(test: Database) {
    let kv = app(&test, "a").await;
    let (slow, fast) = (WorkerId::new(), WorkerId::new());
    let delivery = delivery();
    insert(&test.db, &delivery, None).await;
    let under = |attempt, worker| {
        let id = delivery.id;
        kv.clone().fenced(Fence {
            id,
            attempt,
            worker,
        })
    };
    claim(&test.db, slow, TimeDelta::zero(), 1).await;
    let stale = under(1, slow);
    set(&stale, "k", "1").await;
    assert!(stale.delete("c".into(), "k".into()).await.unwrap());
    assert!(!stale.delete("c".into(), "k".into()).await.unwrap());
    set(&stale, "k", "2").await;
    claim(&test.db, fast, TimeDelta::zero(), 1).await;
    for refused in [&stale, &under(2, slow), &under(1, fast)] {
        let set = refused.set("c".into(), "k".into(), "3".into()).await;
        let deleted = refused.delete("c".into(), "k".into()).await;
        for done in [set, deleted.map(|_| ())] {
            assert!(matches!(done, Err(KvError::Store(StoreError::NotHeld))));
        }
    }
    assert_eq!(get(&kv, "k").await.as_deref(), Some("2"));
    set(&under(2, fast), "k", "4").await;
    // Others in the same moment are none the worse for it.
    let all = (0..20).map(|n| match n % 3 {
        0 => (stale.clone(), n),
        1 => (under(2, fast), n),
        _ => (kv.clone(), n),
    });
    let all = all.map(|(kv, n)| async move {
        let done = kv.set("c".into(), format!("n{n}"), n.to_string()).await;
        assert_eq!(done.is_ok(), n % 3 != 0);
    });
    futures_util::future::join_all(all).await;
    for n in 0..20 {
        let kept = get(&kv, &format!("n{n}")).await;
        assert_eq!(kept, (n % 3 != 0).then(|| n.to_string()));
    }
}
