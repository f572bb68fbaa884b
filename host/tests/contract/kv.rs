//! The key-value store.

use chrono::TimeDelta;
use picloud::apps::{AppId, Slug, sql as apps};
use picloud::directory::Directory;
use picloud::dispatch::outbox::Outbox;
use picloud::dispatch::{Fence, WorkerId};
use picloud::kv::{Kv, KvError, KvStore, Stored};
use picloud::store::StoreError;
use picloud::triggers::firing::{Events, Origin};

use crate::database::Database;
use crate::on_both_engines;
use crate::outbox::{claim, delivery, insert};

on_both_engines!(
    a_value_is_what_was_last_set,
    keys_are_listed_in_byte_order_page_by_page,
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
    let (outbox, _) = Outbox::new(test.db.clone(), 10, 60_000);
    let events = Events::new(directory, outbox, 8);
    KvStore::new(test.db.clone(), events, 1000).of(id, Origin::act())
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
