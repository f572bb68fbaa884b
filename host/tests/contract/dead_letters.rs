//! Dead letters: what is read of them.

use chrono::Utc;
use picloud::apps::AppId;
use picloud::dead_letters::sql::{self, Bounds, Filter, Order};
use picloud::dead_letters::{DeadLetter, State};
use picloud::dispatch::{Delivery, Payload};
use picloud::sandbox::{Body, Request};
use picloud::store::StoreError;

use crate::database::Database;
use crate::on_both_engines;
use crate::outbox::delivery;

on_both_engines!(as_many_are_read_as_their_bytes_allow);

async fn as_many_are_read_as_their_bytes_allow(test: Database) {
    let app_id = AppId::new();
    let request = Request {
        method: "POST".into(),
        body: Some(Body {
            content_type: None,
            bytes: "x".repeat(10_000).into(),
        }),
        ..Request::default()
    };
    let of_app = Delivery {
        app_id,
        payload: Payload::Request(request).into(),
        ..delivery()
    };
    let mut letters: Vec<_> = (0..6)
        .map(|_| DeadLetter::of(&of_app, Vec::new(), Utc::now()))
        .collect();
    // One of another app is never there.
    letters.push(DeadLetter::of(&delivery(), Vec::new(), Utc::now()));
    let ids: Vec<_> = letters.iter().take(6).map(|letter| letter.id).collect();
    let inserting = test.db.write::<_, StoreError, _>(move |tx| {
        Box::pin(async move {
            for letter in &letters {
                sql::insert(tx, letter).await?;
            }
            Ok(())
        })
    });
    inserting.await.unwrap();
    let filter = Filter {
        state: Some(State::Unresolved),
        ..Filter::default()
    };
    let mut conn = test.db.read().await.unwrap();
    let newest: Vec<_> = ids.iter().rev().copied().collect();
    for (order, before, limit, bytes_max, expected, more) in [
        (Order::OldestFirst, None, 10, 1 << 20, &ids[..], false),
        (Order::OldestFirst, None, 6, 1 << 20, &ids[..], false),
        (Order::OldestFirst, None, 5, 1 << 20, &ids[..5], true),
        (Order::OldestFirst, None, 10, 15_000, &ids[..2], true),
        (Order::OldestFirst, None, 10, 1, &ids[..1], true),
        (Order::NewestFirst, None, 10, 25_000, &newest[..3], true),
        (
            Order::NewestFirst,
            Some(ids[2]),
            10,
            15_000,
            &newest[4..],
            false,
        ),
        (Order::NewestFirst, Some(ids[0]), 10, 15_000, &[], false),
    ] {
        let bounds = Bounds { limit, bytes_max };
        let read = sql::whole(&mut conn, app_id, &filter, before, order, bounds);
        let (read, and_more) = read.await.unwrap();
        let read_ids: Vec<_> = read.iter().map(|letter| letter.id).collect();
        assert_eq!((&read_ids[..], and_more), (expected, more), "{bounds:?}");
        for letter in &read {
            assert!(letter.original().value.as_str().len() > 10_000);
        }
    }
    let listed = sql::page(&mut conn, app_id, &filter, None, 10)
        .await
        .unwrap();
    let listed: Vec<_> = listed.iter().map(|letter| letter.id()).collect();
    assert_eq!(listed, newest);
    let named = sql::oldest_named(&mut conn, app_id, &filter, 2)
        .await
        .unwrap();
    let named: Vec<_> = named.into_iter().map(|(id, _)| id).collect();
    assert_eq!(named, ids[..2]);
}
