//! The nodes of an instance, and what is in its outbox.

use chrono::{TimeDelta, Utc};
use picloud::dispatch::WorkerId;
use picloud::instance::{NodeAbout, Queue, sql};
use picloud::store::{Db, StoreError};

use crate::database::Database;
use crate::on_both_engines;
use crate::outbox::{LEASE, claim, delivery, insert};

on_both_engines!(
    a_node_is_known_once_it_says_so_until_it_leaves_or_is_forgotten,
    what_is_in_the_outbox_is_counted_by_what_it_waits_for,
    a_database_has_a_size,
);

fn node(name: &str, minutes_ago: i64) -> NodeAbout {
    NodeAbout {
        hostname: name.to_owned(),
        // Rows keep microseconds.
        started_at: Utc::now()
            .date_naive()
            .and_hms_opt(12, 0, 0)
            .unwrap()
            .and_utc()
            - TimeDelta::minutes(minutes_ago),
        ..NodeAbout::this(WorkerId::new())
    }
}

async fn say(db: &Db, node: &NodeAbout) {
    let node = node.clone();
    db.write::<_, StoreError, _>(move |tx| Box::pin(async move { sql::say(tx, &node).await }))
        .await
        .unwrap();
}

async fn known(db: &Db) -> Vec<NodeAbout> {
    sql::nodes(&mut db.read().await.unwrap()).await.unwrap()
}

async fn a_node_is_known_once_it_says_so_until_it_leaves_or_is_forgotten(test: Database) {
    let (older, newer) = (node("older", 5), node("newer", 1));
    say(&test.db, &older).await;
    say(&test.db, &newer).await;
    let first = known(&test.db).await;
    let names: Vec<&str> = first.iter().map(|node| node.hostname.as_str()).collect();
    assert_eq!(names, ["newer", "older"]);
    assert_eq!(
        (first[1].id, &first[1].version, first[1].started_at),
        (older.id, &older.version, older.started_at)
    );
    // Saying it again changes when it was heard, and nothing else.
    say(&test.db, &older).await;
    let again = known(&test.db).await;
    assert_eq!(again.len(), 2);
    assert!(again[1].seen_at > first[1].seen_at);
    assert_eq!(again[0], first[0]);
    assert_eq!(again[1].started_at, first[1].started_at);

    let before = again[1].seen_at;
    let forgotten = test.db.write::<_, StoreError, _>(move |tx| {
        Box::pin(async move { sql::forget(tx, before).await })
    });
    forgotten.await.unwrap();
    assert_eq!(known(&test.db).await, again[1..]);
    let left = test
        .db
        .write::<_, StoreError, _>(move |tx| Box::pin(sql::leave(tx, older.id)));
    left.await.unwrap();
    assert_eq!(known(&test.db).await, []);
}

async fn what_is_in_the_outbox_is_counted_by_what_it_waits_for(test: Database) {
    let now = Utc::now();
    let (mine, other) = (WorkerId::new(), WorkerId::new());
    for _ in 0..3 {
        insert(&test.db, &delivery(), Some((other, LEASE))).await;
    }
    insert(&test.db, &delivery(), None).await;
    assert_eq!(claim(&test.db, mine, LEASE, 1).await.len(), 1);
    insert(&test.db, &delivery(), None).await;
    insert(&test.db, &delivery(), None).await;
    test.execute("update outbox set held = true where id in (select id from outbox where lease_owner is null limit 1)")
        .await;
    let mut conn = test.db.read().await.unwrap();
    let later = now + TimeDelta::minutes(1);
    let queue = sql::queue(&mut conn, later).await.unwrap();
    let expected = Queue {
        leased: 4,
        due: 1,
        held: 1,
        ..Queue::default()
    };
    assert_eq!(queue, expected);
    // A minute before, nothing was due.
    let before = sql::queue(&mut conn, now - TimeDelta::minutes(1))
        .await
        .unwrap();
    assert_eq!((before.due, before.later, before.held), (0, 1, 1));
    let leases = sql::leases(&mut conn).await.unwrap();
    assert_eq!((leases.len(), leases[&other], leases[&mine]), (2, 3, 1));
    drop(conn);
    test.execute("update outbox set held = false, blocked = true where held")
        .await;
    let mut conn = test.db.read().await.unwrap();
    let queue = sql::queue(&mut conn, later).await.unwrap();
    assert_eq!((queue.due, queue.held, queue.blocked), (1, 0, 1));
}

async fn a_database_has_a_size(test: Database) {
    let mut conn = test.db.read().await.unwrap();
    let bytes = sql::database_bytes(&mut conn).await.unwrap();
    assert!((10_000..1_000_000_000).contains(&bytes), "{bytes}");
}
