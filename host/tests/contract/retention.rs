//! What is past its retention goes, and nothing else.

use chrono::{TimeDelta, Utc};
use picloud::apps::AppId;
use picloud::dispatch::record::never_ran;
use picloud::dispatch::retry::RetryPolicy;
use picloud::dispatch::{Delivery, Payload};
use picloud::executions::{ExecutionError, ExecutionId, OutcomeKind, sql as executions};
use picloud::retention::{Retention, Swept};
use picloud::sandbox::Request;
use picloud::scripts::ScriptId;

use crate::database::Database;
use crate::on_both_engines;

on_both_engines!(what_is_old_goes_in_batches_and_what_is_not_stays);

fn id_of_age(days: u64, n: u64) -> ExecutionId {
    let millis = Utc::now().timestamp_millis().unsigned_abs() - days * 86_400_000;
    let mut bytes = [0; 10];
    bytes[2..].copy_from_slice(&n.to_be_bytes());
    uuid::Builder::from_unix_timestamp_millis(millis, &bytes)
        .into_uuid()
        .into()
}

async fn what_is_old_goes_in_batches_and_what_is_not_stays(test: Database) {
    let nothing = Payload::Request(Request::default());
    let delivery = Delivery::new(
        AppId::new(),
        ScriptId::new(),
        "kv",
        nothing,
        RetryPolicy::ONCE,
    );
    let ended = |days, n| {
        let error = ExecutionError::new("x");
        let id = id_of_age(days, n);
        never_ran(&delivery, id, OutcomeKind::Threw, error, Utc::now())
    };
    // More than two batches of 500.
    for n in 0..1_200 {
        test.db.write_grouped(ended(15, n)).await.unwrap();
    }
    for n in 0..3 {
        test.db.write_grouped(ended(13, n)).await.unwrap();
    }
    let days = TimeDelta::days;
    let retention = Retention {
        dead_letters: days(30),
        abandoned_executions: days(7),
        executions: days(14),
        audit: days(365),
    };
    let expected = Swept {
        executions: 1_200,
        ..Swept::default()
    };
    assert_eq!(retention.dry_run(&test.db).await.unwrap(), expected);
    // Two nodes at once: together they remove each row once.
    let (one, other) = tokio::join!(retention.sweep(&test.db), retention.sweep(&test.db));
    let removed = one.unwrap().executions + other.unwrap().executions;
    assert_eq!(removed, 1_200);
    assert_eq!(retention.sweep(&test.db).await.unwrap(), Swept::default());
    let mut conn = test.db.read().await.unwrap();
    let filter = executions::Filter::default();
    let left = executions::page(&mut conn, delivery.app_id, &filter, None, 10).await;
    assert_eq!(left.unwrap().len(), 3);
}
