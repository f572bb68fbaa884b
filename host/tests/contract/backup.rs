//! What a schema must be like for every table to be in the backups.

use sqlx::{Connection, PgConnection, SqliteConnection};

use crate::database::Database;
use crate::on_both_engines;

on_both_engines!(every_column_is_of_a_type_that_backups_know);

async fn every_column_is_of_a_type_that_backups_know(test: Database) {
    // A sequence would begin anew in what is restored.
    const POSTGRES: &str = "
        select table_name || '.' || column_name || ' ' || data_type from information_schema.columns
        where table_schema = 'public' and table_name <> '_sqlx_migrations'
          and (data_type not in ('uuid', 'bytea', 'text', 'timestamp with time zone', 'bigint', 'boolean')
               or is_identity = 'YES' or column_default like 'nextval%' or is_generated <> 'NEVER')";
    const SQLITE: &str = "
        select t.name || '.' || c.name || ' ' || c.type
        from sqlite_master t, pragma_table_info(t.name) c
        where t.type = 'table' and t.name not in ('_sqlx_migrations', 'sqlite_sequence')
          and lower(c.type) not in ('blob', 'text', 'integer')";
    let odd: Vec<String> = if test.url.starts_with("sqlite") {
        let mut conn = SqliteConnection::connect(&test.url).await.unwrap();
        sqlx::query_scalar(SQLITE).fetch_all(&mut conn).await
    } else {
        let mut conn = PgConnection::connect(&test.url).await.unwrap();
        sqlx::query_scalar(POSTGRES).fetch_all(&mut conn).await
    }
    .unwrap();
    assert!(
        odd.is_empty(),
        "host/src/backup/sql.rs does not know these: {odd:?}"
    );
}
