//! What a claim costs with a thousand rows in the outbox that are not due, and with many more.
//! Prints one JSON object; `cargo xtask bench` runs it with the URLs of two empty databases and how
//! many are many.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use chrono::{TimeDelta, Utc};
use picloud::apps::AppId;
use picloud::dispatch::retry::RetryPolicy;
use picloud::dispatch::sql::{self, NewDelivery};
use picloud::dispatch::{Delivery, Payload, WorkerId};
use picloud::sandbox::Request;
use picloud::scripts::ScriptId;
use picloud::store::{Db, StoreError};
use sqlx::{Connection, PgConnection, SqliteConnection};

const FEW: i64 = 1_000;
/// How many rows are due, and claimed at once.
const DUE: usize = 64;
const ROUNDS: usize = 50;

/// Rows of ten apps, due in an hour. They are spread over ids and apps as real ones would be.
const FILL_SQLITE: &str = "
    with recursive n (i) as (select 1 union all select i + 1 from n where i < $1)
    insert into outbox (id, app_id, script_id, invocation_type, payload, request_id, trigger_depth,
                        attempt, attempts_max, due_at, created_at)
    select randomblob(16), unhex(printf('%032d', i % 10)), randomblob(16), 'kv', '{\"event\":null}',
           randomblob(16), 0, 1, 3, $2, $2
    from n";
const FILL_POSTGRES: &str = "
    insert into outbox (id, app_id, script_id, invocation_type, payload, request_id, trigger_depth,
                        attempt, attempts_max, due_at, created_at)
    select gen_random_uuid(), lpad((i % 10)::text, 32, '0')::uuid, gen_random_uuid(), 'kv',
           '{\"event\":null}', gen_random_uuid(), 0, 1, 3, $2, $2
    from generate_series(1, $1) i";

async fn fill(url: &str, count: i64) -> Result<()> {
    let due_at = Utc::now() + TimeDelta::hours(1);
    if url.starts_with("sqlite") {
        let mut conn = SqliteConnection::connect(url).await?;
        sqlx::query(FILL_SQLITE)
            .bind(count)
            .bind(due_at)
            .execute(&mut conn)
            .await?;
        sqlx::query("analyze").execute(&mut conn).await?;
    } else {
        let mut conn = PgConnection::connect(url).await?;
        sqlx::query(FILL_POSTGRES)
            .bind(count)
            .bind(due_at)
            .execute(&mut conn)
            .await?;
        sqlx::query("vacuum analyze outbox")
            .execute(&mut conn)
            .await?;
    }
    Ok(())
}

/// Make `DUE` rows due and claim them, as the dispatcher does; how long the claim takes.
async fn claim(db: &Db) -> Result<Duration> {
    let app_id = AppId::new();
    let due = (0..DUE).map(|_| {
        let payload = Payload::Request(Request::default());
        let (script_id, retry) = (ScriptId::new(), RetryPolicy::DEFAULT);
        db.write_grouped(NewDelivery {
            delivery: Delivery::new(app_id, script_id, "http_async", payload, retry),
            born_claimed: None,
            held: false,
            key: None,
        })
    });
    futures_util::future::try_join_all(due).await?;
    let worker = WorkerId::new();
    let started = Instant::now();
    let claimed = db
        .write::<_, StoreError, _>(move |tx| {
            Box::pin(async move {
                let mut claimed = 0;
                for (app_id, due_at) in sql::apps_waiting(tx).await? {
                    if due_at <= tx.now {
                        let lease = TimeDelta::seconds(60);
                        claimed += sql::claim(tx, app_id, worker, lease, DUE, u64::MAX)
                            .await?
                            .len();
                    }
                }
                Ok(claimed)
            })
        })
        .await?;
    let took = started.elapsed();
    anyhow::ensure!(claimed == DUE, "{claimed} of {DUE} were claimed");
    Ok(took)
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e6
}

#[tokio::main]
async fn main() -> Result<()> {
    let [few, many, rows]: [String; 3] = std::env::args()
        .skip(1)
        .collect::<Vec<_>>()
        .try_into()
        .ok()
        .context("usage: claim_bench URL_OF_ONE_DATABASE URL_OF_ANOTHER ROWS")?;
    let (small, large) = (Db::open(&few).await?, Db::open(&many).await?);
    fill(&few, FEW).await?;
    fill(&many, rows.parse()?).await?;
    let (mut among_few, mut among_many) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        among_few.push(claim(&small).await?);
        among_many.push(claim(&large).await?);
    }
    println!(
        "{{\"few_us\": {:.1}, \"many_us\": {:.1}}}",
        median(among_few),
        median(among_many)
    );
    Ok(())
}
