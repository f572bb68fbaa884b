//! The handle and its writer.

use std::sync::Arc;

use picloud::apps::sql as apps;
use picloud::apps::{AppId, Slug};
use picloud::identity::Sessions;
use picloud::store::{Conn, Db, Durability, Engine, Grouped, StoreError, Tx};

use crate::database::{self, Database};
use crate::on_both_engines;

on_both_engines!(
    what_answers_ok_is_there_and_what_answers_err_is_not,
    one_bad_item_does_not_fail_its_group,
    a_caller_who_leaves_does_not_break_the_writer,
    a_write_that_panics_ends_no_other,
    opening_again_finds_what_was_written,
    a_second_first_owner_is_not_made,
    a_check_says_that_it_works,
    a_commit_waits_for_the_disk_unless_all_of_it_need_not,
);

/// An app to be; a slug that is taken makes its insert fail.
struct NewApp(Slug);

impl Grouped for NewApp {
    type Output = AppId;

    async fn apply(tx: &mut Tx, items: &[Self]) -> Result<Vec<AppId>, StoreError> {
        let mut ids = Vec::new();
        for NewApp(slug) in items {
            let id = AppId::new();
            apps::insert(tx, id, slug, "x").await?;
            ids.push(id);
        }
        Ok(ids)
    }
}

fn slug(text: &str) -> Slug {
    text.parse().unwrap()
}

async fn slugs(db: &Db) -> Vec<String> {
    let all = apps::all(&mut db.read().await.unwrap()).await.unwrap();
    let all = all.or_fail().unwrap();
    let mut slugs: Vec<_> = all.into_iter().map(|app| app.slug.to_string()).collect();
    slugs.sort();
    slugs
}

async fn what_answers_ok_is_there_and_what_answers_err_is_not(test: Database) {
    let add = |name: &'static str, fails: bool| {
        test.db.write::<(), StoreError, _>(move |tx| {
            Box::pin(async move {
                apps::insert(tx, AppId::new(), &slug(name), "x").await?;
                if fails {
                    Err(StoreError::Closed)
                } else {
                    Ok(())
                }
            })
        })
    };
    add("kept", false).await.unwrap();
    add("lost", true).await.unwrap_err();
    assert!(matches!(
        add("kept", false).await,
        Err(StoreError::Duplicate)
    ));
    assert_eq!(slugs(&test.db).await, ["kept"]);
}

async fn one_bad_item_does_not_fail_its_group(test: Database) {
    test.db.write_grouped(NewApp(slug("taken"))).await.unwrap();
    let writes = (0..100).map(|n| {
        let db = test.db.clone();
        let name = if n % 10 == 0 {
            "taken".to_owned()
        } else {
            format!("app-{n}")
        };
        tokio::spawn(async move { db.write_grouped(NewApp(slug(&name))).await.is_ok() })
    });
    let mut fine = 0;
    for write in writes.collect::<Vec<_>>() {
        fine += usize::from(write.await.unwrap());
    }
    assert_eq!(fine, 90);
    assert_eq!(slugs(&test.db).await.len(), 91);
}

async fn a_caller_who_leaves_does_not_break_the_writer(test: Database) {
    for n in 0..200_u64 {
        let write = test.db.write_grouped(NewApp(slug(&format!("app-{n}"))));
        // Dropped at some point between queueing and commit.
        let _ = tokio::time::timeout(std::time::Duration::from_micros(n * 10), write).await;
    }
    test.db.write_grouped(NewApp(slug("last"))).await.unwrap();
    test.db.check().await.unwrap();
    if test.db.engine() == Engine::Postgres {
        use sqlx::Connection;
        let mut conn = sqlx::PgConnection::connect(&test.url).await.unwrap();
        let idle: i64 = sqlx::query_scalar(
            "select count(*) from pg_stat_activity
             where datname = current_database() and state like 'idle in transaction%'",
        )
        .fetch_one(&mut conn)
        .await
        .unwrap();
        assert_eq!(
            idle, 0,
            "a connection is stuck in a transaction (sqlx#4393)"
        );
    }
}

async fn a_write_that_panics_ends_no_other(test: Database) {
    let panicked = test.db.write::<(), StoreError, _>(|tx| {
        Box::pin(async move {
            apps::insert(tx, AppId::new(), &slug("half"), "x").await?;
            panic!("as the test wants")
        })
    });
    assert!(matches!(panicked.await, Err(StoreError::Panicked)));
    test.db.write_grouped(NewApp(slug("after"))).await.unwrap();
    assert_eq!(slugs(&test.db).await, ["after"]);
}

async fn opening_again_finds_what_was_written(test: Database) {
    test.db.write_grouped(NewApp(slug("kept"))).await.unwrap();
    if test.db.engine() == Engine::Sqlite {
        let second = Db::open(&test.url).await;
        let refusal = second
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        assert!(refusal.contains("another picloud serves"), "{refusal}");
        return;
    }
    let again = Db::open(&test.url).await.unwrap();
    assert_eq!(slugs(&again).await, ["kept"]);
}

/// A log that was laid out ahead is found again, with what was written into it, in what a killed
/// process leaves: the files as they stand.
#[test]
fn sqlites_log_is_laid_out_ahead_and_read_after_a_kill() {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    const LAID_OUT: u64 = 4_000 * (4_096 + 24);
    let log = |database: &Path| database.with_extension("db-wal");
    let length = |database: &Path| log(database).metadata().unwrap().len();
    database::with(database::Engine::Sqlite, async |test| {
        let served = Path::new(test.url.strip_prefix("sqlite://").unwrap());
        assert_eq!(length(served), LAID_OUT);
        test.db.write_grouped(NewApp(slug("kept"))).await.unwrap();
        assert_eq!(length(served), LAID_OUT);

        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join("left.db");
        fs::copy(served, &left).unwrap();
        fs::copy(log(served), log(&left)).unwrap();
        fs::set_permissions(&left, PermissionsExt::from_mode(0o600)).unwrap();
        let again = Db::open(&format!("sqlite://{}", left.display())).await;
        assert_eq!(slugs(&again.unwrap()).await, ["kept"]);
        assert_eq!(length(&left), LAID_OUT);
        let mode = log(&left).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "it may be read as the database may");
        assert!(!left.with_extension("db-wal.new").exists());
    });
}

async fn a_second_first_owner_is_not_made(test: Database) {
    let sessions = Arc::new(Sessions::new(test.db.clone(), 1, 1));
    let make = |name: &'static str| {
        let sessions = sessions.clone();
        async move {
            sessions
                .create_first_owner(name, "a password".into())
                .await
                .unwrap()
        }
    };
    let made = tokio::join!(make("one"), make("two"));
    assert!(made.0 ^ made.1, "{made:?}");
    assert!(!make("three").await);
}

async fn a_check_says_that_it_works(test: Database) {
    test.db.check().await.unwrap();
}

/// Asks the database what its transaction waits for.
struct Probe(Durability);

impl Grouped for Probe {
    type Output = bool;

    fn durability(&self) -> Durability {
        self.0
    }

    async fn apply(tx: &mut Tx, items: &[Self]) -> Result<Vec<bool>, StoreError> {
        let waits = match tx.conn().await? {
            Conn::Sqlite(held) => {
                let level: i64 = sqlx::query_scalar("pragma synchronous")
                    .fetch_one(&mut **held)
                    .await?;
                level == 2
            }
            Conn::Postgres(held) => {
                let level: String = sqlx::query_scalar("show synchronous_commit")
                    .fetch_one(&mut **held)
                    .await?;
                level == "on"
            }
        };
        Ok(vec![waits; items.len()])
    }
}

async fn a_commit_waits_for_the_disk_unless_all_of_it_need_not(test: Database) {
    let waits = async |durability| test.db.write_grouped(Probe(durability)).await.unwrap();
    for _ in 0..2 {
        let mut last = true;
        for _ in 0..10 {
            last = waits(Durability::Kill).await;
        }
        assert!(!last, "it is told at last that it need not");
        assert!(waits(Durability::PowerCut).await);
    }
    // Many at once share commits, of which each waits that has one item that must.
    for _ in 0..10 {
        waits(Durability::Kill).await;
    }
    let mixed = (0..100).map(|n| match n % 10 {
        0 => Durability::PowerCut,
        _ => Durability::Kill,
    });
    let probes = mixed.map(|durability| {
        let db = test.db.clone();
        tokio::spawn(async move { (durability, db.write_grouped(Probe(durability)).await) })
    });
    for probe in futures_util::future::join_all(probes.collect::<Vec<_>>()).await {
        let (durability, waited) = probe.unwrap();
        assert!(durability == Durability::Kill || waited.unwrap());
    }
}
