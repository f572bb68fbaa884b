//! Rows of the outbox that wait: for their trigger to be resumed, or for another of their key.

use chrono::{TimeDelta, Utc};
use picloud::apps::{AppId, sql as apps};
use picloud::dispatch::retry::RetryPolicy;
use picloud::dispatch::sql::{self, Completion, NewDelivery, Placed, Then};
use picloud::dispatch::{Delivery, WorkerId};
use picloud::scripts::ScriptId;
use picloud::store::{Id, StoreError};
use picloud::triggers::{
    DeadLetterFilter, DispatchMode, Kind, Trigger, TriggerId, sql as triggers,
};

use crate::database::Database;
use crate::on_both_engines;
use crate::outbox::{LEASE, claim, complete, completion, delivery, insert, rows};

on_both_engines!(
    what_is_held_or_blocked_is_not_claimed,
    what_waits_for_nothing_goes_on,
    deliveries_of_one_key_run_one_after_another,
);

async fn what_is_held_or_blocked_is_not_claimed(test: Database) {
    let worker = WorkerId::new();
    let trigger_id = Default::default();
    let held = NewDelivery {
        delivery: Delivery {
            trigger_id: Some(trigger_id),
            ..delivery()
        },
        born_claimed: Some((worker, LEASE)),
        held: true,
        key: None,
    };
    let placed = test.db.write_grouped(held.clone()).await.unwrap();
    assert!(matches!(placed, Placed::Waiting));
    assert!(claim(&test.db, worker, LEASE, 9).await.is_empty());
    // No such trigger is paused, so it goes on.
    let mended = test
        .db
        .write::<_, StoreError, _>(|tx| Box::pin(async move { sql::mend(tx).await }));
    assert_eq!(mended.await.unwrap(), 1);
    let claimed = claim(&test.db, worker, LEASE, 9).await;
    assert_eq!((claimed.len(), claimed[0].attempt), (1, 1));
    let put_back = Completion {
        ended: None,
        then: Then::Held,
        ..completion(&held.delivery, 1, worker)
    };
    assert!(complete(&test.db, put_back).await);
    assert!(claim(&test.db, worker, LEASE, 9).await.is_empty());
    let release = test.db.write::<_, StoreError, _>(move |tx| {
        Box::pin(async move { sql::hold(tx, trigger_id, false).await })
    });
    assert_eq!(release.await.unwrap(), 1);
    let claimed = claim(&test.db, worker, LEASE, 9).await;
    assert_eq!(claimed[0].attempt, 1, "being held is no attempt");
}

async fn what_waits_for_nothing_goes_on(test: Database) {
    let paused = TriggerId::new();
    insert_trigger(&test, paused).await;
    let gone = [TriggerId::new(), TriggerId::new()];
    for trigger_id in [gone[0], paused, gone[1], paused] {
        let held = NewDelivery {
            delivery: Delivery {
                trigger_id: Some(trigger_id),
                ..delivery()
            },
            born_claimed: None,
            held: true,
            key: None,
        };
        test.db.write_grouped(held).await.unwrap();
    }
    // Of the key `a` the first is blocked, though nothing is before it; of `b` the second.
    for key in ["a", "a", "b", "b"] {
        let next = Delivery {
            order_key: Some(key.into()),
            ..delivery()
        };
        insert(&test.db, &next, None).await;
    }
    test.execute("update outbox set blocked = true where order_key = 'a'")
        .await;
    let mended = || {
        let mend = test
            .db
            .write::<_, StoreError, _>(|tx| Box::pin(async move { sql::mend(tx).await }));
        async move { mend.await.unwrap() }
    };
    assert_eq!(mended().await, 3, "two held for nothing, one blocked");
    assert_eq!(mended().await, 0);
    let claimed = claim(&test.db, WorkerId::new(), LEASE, 9).await;
    let claimed: Vec<_> = claimed.into_iter().map(|c| c.delivery.unwrap()).collect();
    let mut keys: Vec<_> = claimed
        .iter()
        .filter_map(|d| d.order_key.as_deref())
        .collect();
    keys.sort_unstable();
    assert_eq!((claimed.len(), keys), (4, vec!["a", "b"]));
    assert!(claimed.iter().all(|d| d.trigger_id != Some(paused)));
}

/// A paused trigger.
async fn insert_trigger(test: &Database, id: TriggerId) {
    let trigger = Trigger {
        id,
        app_id: AppId::new(),
        script_id: ScriptId::new(),
        name: "t".into(),
        kind: Kind::DeadLetter(DeadLetterFilter::default()),
        enabled: true,
        paused: true,
        dispatch_mode: DispatchMode::Async,
        retry: RetryPolicy::DEFAULT,
        ordered_by: None,
        idempotency: None,
        registered_by_principal: Id::new(),
        created_at: Utc::now(),
        updated_at: Utc::now(),
    };
    let insert = test.db.write::<_, StoreError, _>(move |tx| {
        Box::pin(async move {
            apps::insert(tx, trigger.app_id, &"a".parse().unwrap(), "x").await?;
            triggers::upsert(tx, &trigger).await
        })
    });
    insert.await.unwrap();
}

async fn deliveries_of_one_key_run_one_after_another(test: Database) {
    let worker = WorkerId::new();
    let app = delivery();
    let in_order: Vec<Delivery> = (0..4)
        .map(|_| Delivery {
            app_id: app.app_id,
            order_key: Some("k".into()),
            ..delivery()
        })
        .collect();
    let first = insert(&test.db, &in_order[0], Some((worker, LEASE))).await;
    assert!(matches!(first, Placed::Claimed));
    for next in &in_order[1..] {
        let placed = insert(&test.db, next, Some((worker, LEASE))).await;
        assert!(matches!(placed, Placed::Waiting));
    }
    assert!(claim(&test.db, worker, LEASE, 9).await.is_empty());
    // A retry keeps the key; only its end lets the next one go.
    let again = Completion {
        ended: None,
        then: Then::DueAfter(TimeDelta::zero(), Vec::new()),
        ..completion(&in_order[0], 0, worker)
    };
    assert!(complete(&test.db, again).await);
    for (n, expected) in in_order.iter().enumerate() {
        let claimed = claim(&test.db, worker, LEASE, 9).await;
        let ids: Vec<_> = claimed.iter().map(|claimed| claimed.id).collect();
        assert_eq!(ids, [expected.id], "number {n}");
        let attempt = claimed[0].attempt;
        assert!(complete(&test.db, completion(expected, attempt, worker)).await);
    }
    assert_eq!(rows(&test.db).await, 0);
}
