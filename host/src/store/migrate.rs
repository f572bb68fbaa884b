//! The schema and how it comes up to date.

use std::borrow::Cow;

use sqlx::migrate::{Migrate, Migration, MigrationType, Migrator};
use sqlx::{Acquire, SqlSafeStr};

use super::{Engine, StoreError, Tx, on};

/// The number of the newest migration; `/version` shows it.
pub const SCHEMA_VERSION: i64 = MIGRATIONS[MIGRATIONS.len() - 1].0;

/// Number, name, and the texts for SQLite and Postgres.
const MIGRATIONS: &[(i64, &str, &str, &str)] = &[
    (
        1,
        "spine",
        include_str!("../../../migrations/sqlite/0001_spine.sql"),
        include_str!("../../../migrations/postgres/0001_spine.sql"),
    ),
    (
        2,
        "triggers",
        include_str!("../../../migrations/sqlite/0002_triggers.sql"),
        include_str!("../../../migrations/postgres/0002_triggers.sql"),
    ),
    (
        3,
        "fewer_indexes",
        include_str!("../../../migrations/sqlite/0003_fewer_indexes.sql"),
        include_str!("../../../migrations/postgres/0003_fewer_indexes.sql"),
    ),
    (
        4,
        "identity",
        include_str!("../../../migrations/sqlite/0004_identity.sql"),
        include_str!("../../../migrations/postgres/0004_identity.sql"),
    ),
    (
        5,
        "secrets",
        include_str!("../../../migrations/sqlite/0005_secrets.sql"),
        include_str!("../../../migrations/postgres/0005_secrets.sql"),
    ),
    (
        7,
        "web",
        include_str!("../../../migrations/sqlite/0007_web.sql"),
        include_str!("../../../migrations/postgres/0007_web.sql"),
    ),
    (
        9,
        "traces",
        include_str!("../../../migrations/sqlite/0009_traces.sql"),
        include_str!("../../../migrations/postgres/0009_traces.sql"),
    ),
    (
        10,
        "realtime",
        include_str!("../../../migrations/sqlite/0010_realtime.sql"),
        include_str!("../../../migrations/postgres/0010_realtime.sql"),
    ),
    (
        11,
        "waiting",
        include_str!("../../../migrations/sqlite/0011_waiting.sql"),
        include_str!("../../../migrations/postgres/0011_waiting.sql"),
    ),
    (
        12,
        "nodes",
        include_str!("../../../migrations/sqlite/0012_nodes.sql"),
        include_str!("../../../migrations/postgres/0012_nodes.sql"),
    ),
    (
        13,
        "payloads",
        include_str!("../../../migrations/sqlite/0013_payloads.sql"),
        include_str!("../../../migrations/postgres/0013_payloads.sql"),
    ),
    (
        14,
        "oidc",
        include_str!("../../../migrations/sqlite/0014_oidc.sql"),
        include_str!("../../../migrations/postgres/0014_oidc.sql"),
    ),
    (
        15,
        "cors",
        include_str!("../../../migrations/sqlite/0015_cors.sql"),
        include_str!("../../../migrations/postgres/0015_cors.sql"),
    ),
    (
        16,
        "sign_in_codes",
        include_str!("../../../migrations/sqlite/0016_sign_in_codes.sql"),
        include_str!("../../../migrations/postgres/0016_sign_in_codes.sql"),
    ),
    (
        18,
        "leaving_apps",
        include_str!("../../../migrations/sqlite/0018_leaving_apps.sql"),
        include_str!("../../../migrations/postgres/0018_leaving_apps.sql"),
    ),
    (
        19,
        "trailing_slash",
        include_str!("../../../migrations/sqlite/0019_trailing_slash.sql"),
        include_str!("../../../migrations/postgres/0019_trailing_slash.sql"),
    ),
    (
        20,
        "links_of_keys",
        include_str!("../../../migrations/sqlite/0020_links_of_keys.sql"),
        include_str!("../../../migrations/postgres/0020_links_of_keys.sql"),
    ),
    (
        21,
        "hosts",
        include_str!("../../../migrations/sqlite/0021_hosts.sql"),
        include_str!("../../../migrations/postgres/0021_hosts.sql"),
    ),
];

/// Run what is missing. On Postgres under an advisory lock, so that nodes that start together
/// do it once; on SQLite the lock on the file has kept others out already.
pub(super) async fn run<'a, A>(on: A, engine: Engine) -> Result<(), StoreError>
where
    A: Acquire<'a>,
    <A::Connection as std::ops::Deref>::Target: Migrate,
{
    run_to(SCHEMA_VERSION, on, engine).await
}

/// Run what is missing up to this version.
pub(super) async fn run_to<'a, A>(version: i64, on: A, engine: Engine) -> Result<(), StoreError>
where
    A: Acquire<'a>,
    <A::Connection as std::ops::Deref>::Target: Migrate,
{
    let migrations = MIGRATIONS
        .iter()
        .map(|&(number, name, sqlite, postgres)| {
            let text = match engine {
                Engine::Sqlite => sqlite,
                Engine::Postgres => postgres,
            };
            let text = text.into_sql_str();
            Migration::new(
                number,
                Cow::Borrowed(name),
                MigrationType::Simple,
                text,
                false,
            )
        })
        .collect();
    Migrator::with_migrations(migrations)
        .run_to(version, on)
        .await
        .map_err(|error| match error {
            sqlx::migrate::MigrateError::VersionMissing(number) => StoreError::Unusable(format!(
                "the database has migration {number}, which this version of picloud does not know: \
             it was written by a newer one. Start that one, or restore a backup"
            )),
            sqlx::migrate::MigrateError::Execute(error) => error.into(),
            other => StoreError::Unusable(format!(
                "the schema could not be brought up to date: {other}"
            )),
        })
}

/// Write something that nobody reads: a full disk or a read-only database shows here. It must
/// change the row: SQLite does not write a page that stays the same.
pub(super) async fn touch(tx: &mut Tx) -> Result<(), StoreError> {
    const SQL: &str = "update directory_version set beat = 1 - beat where id = 1";
    on!(tx.conn().await?, |c| sqlx::query(SQL)
        .execute(c)
        .await
        .map(|_| ()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_migrations_is_run() {
        for engine in ["sqlite", "postgres"] {
            let path = format!("{}/../migrations/{engine}", env!("CARGO_MANIFEST_DIR"));
            let mut files: Vec<_> = std::fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            files.sort();
            let texts: Vec<_> = files
                .iter()
                .map(|file| std::fs::read_to_string(file).unwrap())
                .collect();
            let run: Vec<_> = MIGRATIONS
                .iter()
                .map(|(_, _, sqlite, postgres)| {
                    if engine == "sqlite" {
                        *sqlite
                    } else {
                        *postgres
                    }
                })
                .collect();
            assert_eq!(texts, run, "{engine}");
        }
        assert!(MIGRATIONS.is_sorted_by(|(a, ..), (b, ..)| a < b));
    }
}
