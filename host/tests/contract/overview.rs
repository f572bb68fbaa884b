//! What waited, minute by minute.

use chrono::{DateTime, TimeDelta, Utc};
use picloud::apps::AppId;
use picloud::overview::sql;
use picloud::overview::waiting::{Backlog, sample};
use picloud::store::StoreError;

use crate::database::Database;
use crate::on_both_engines;

on_both_engines!(what_waited_is_kept_once_a_minute_and_forgotten_after_days);

async fn what_waited_is_kept_once_a_minute_and_forgotten_after_days(test: Database) {
    let (app_id, other) = (AppId::new(), AppId::new());
    let at = |minute: i64| DateTime::<Utc>::from_timestamp(1_790_000_040 + minute * 60, 0).unwrap();
    let backlog = |minute, waiting| Backlog {
        at: at(minute),
        waiting,
        oldest_due_at: Some(at(minute) - TimeDelta::seconds(5)),
    };
    let looks = [
        (app_id, backlog(0, 7)),
        (app_id, backlog(1, 8)),
        // Another node comes second.
        (app_id, backlog(1, 9)),
        (other, backlog(1, 1)),
        (app_id, backlog(2, 3)),
    ];
    let kept = test.db.write::<_, StoreError, _>(move |tx| {
        Box::pin(async move {
            for (app_id, backlog) in &looks {
                sql::keep(tx, *app_id, backlog).await?;
            }
            Ok(())
        })
    });
    kept.await.unwrap();
    let mut conn = test.db.read().await.unwrap();
    let seen = sql::backlogs(&mut conn, app_id, at(0), at(2))
        .await
        .unwrap();
    assert_eq!(seen, [backlog(0, 7), backlog(1, 8)]);
    drop(conn);
    // Eight days later the first minute is forgotten; nothing waits in an app that is not there.
    sample(&test.db, vec![AppId::new()], at(1) + TimeDelta::days(8))
        .await
        .unwrap();
    let mut conn = test.db.read().await.unwrap();
    let seen = sql::backlogs(&mut conn, app_id, at(0), at(9))
        .await
        .unwrap();
    assert_eq!(seen, [backlog(1, 8), backlog(2, 3)]);
}
