//! A database of a test's own, on either engine.

use std::future::Future;
use std::sync::Arc;

use picloud::quotas::{Counts, Quotas};
use picloud::store::Db;
use sqlx::{Connection, Executor, PgConnection};

/// An opened database; it goes with the test.
pub struct Database {
    pub db: Db,
    pub url: String,
    _folder: Option<tempfile::TempDir>,
}

impl Database {
    /// Change the database behind the back of its handle.
    pub async fn execute(&self, sql: &'static str) {
        if self.url.starts_with("sqlite") {
            let mut conn = sqlx::SqliteConnection::connect(&self.url).await.unwrap();
            conn.execute(sql).await.unwrap();
        } else {
            let mut conn = PgConnection::connect(&self.url).await.unwrap();
            conn.execute(sql).await.unwrap();
        }
    }
}

/// Apps without quotas.
pub fn unlimited() -> Arc<Counts> {
    Counts::new(Quotas::UNLIMITED)
}

/// Which engine a test runs on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

async fn open(engine: Engine) -> Database {
    match engine {
        Engine::Sqlite => {
            let folder = tempfile::tempdir().unwrap();
            let url = format!("sqlite://{}", folder.path().join("test.db").display());
            let db = Db::open(&url).await.unwrap();
            Database {
                db,
                url,
                _folder: Some(folder),
            }
        }
        Engine::Postgres => {
            let admin = std::env::var("PICLOUD_TEST_POSTGRES_URL").expect(
                "PICLOUD_TEST_POSTGRES_URL is not set; `cargo xtask test` starts a Postgres and sets it",
            );
            let name = format!("contract_{}", uuid::Uuid::now_v7().simple());
            let mut conn = PgConnection::connect(&admin).await.unwrap();
            let create = sqlx::AssertSqlSafe(format!("create database {name}"));
            conn.execute(create).await.unwrap();
            let url = format!("{}/{name}", admin.rsplit_once('/').unwrap().0);
            let db = Db::open(&url).await.unwrap();
            Database {
                db,
                url,
                _folder: None,
            }
        }
    }
}

/// Run a test with a database of its own.
pub fn with<F: Future<Output = ()>>(engine: Engine, test: impl FnOnce(Database) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime
        .unwrap()
        .block_on(async { test(open(engine).await).await });
}

/// Make two tests of each function, one for each database.
#[macro_export]
macro_rules! on_both_engines {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            use $crate::database::{Engine, with};
            $(#[test] fn $name() { with(Engine::Sqlite, super::$name); })*
        }
        mod postgres {
            use $crate::database::{Engine, with};
            $(#[test] fn $name() { with(Engine::Postgres, super::$name); })*
        }
    };
}
