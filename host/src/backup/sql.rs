//! Reading any table whole, and filling it again. Which tables and columns there are, the
//! database's own catalogue says: so a table that a migration adds is in the backups from then on.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use futures_util::{TryStream, TryStreamExt};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Column as _, QueryBuilder, Row, Sqlite, TypeInfo, ValueRef};
use uuid::Uuid;

use super::value::{Value, copy_field};
use crate::store::{Conn, StoreError, Tx, on};

/// How many values one statement may have on SQLite, and we stay well below it.
const SQLITE_VALUES_MAX: usize = 2_000;

/// How long the database may take for the next row of a table. The first may wait for others who are
/// at the disk.
const ROW_TIMEOUT: Duration = Duration::from_secs(60);

/// A table and its columns, in the order in which a backup has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// The names of its columns.
    pub columns: Vec<String>,
}

impl Table {
    fn quoted_columns(&self) -> String {
        let quoted: Vec<_> = self.columns.iter().map(|name| quoted(name)).collect();
        quoted.join(", ")
    }
}

/// A name as SQL takes it. The names are those of our migrations.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Every table, each after those that its rows refer to.
pub async fn tables(conn: &mut Conn) -> Result<Vec<Table>, StoreError> {
    const TABLES: &str = "
        select name from sqlite_master
        where type = 'table' and name not like 'sqlite!_%' escape '!' and name <> '_sqlx_migrations'
        order by name";
    const TABLES_POSTGRES: &str = "
        select table_name::text from information_schema.tables
        where table_schema = current_schema() and table_type = 'BASE TABLE'
          and table_name <> '_sqlx_migrations'
        order by table_name";
    const COLUMNS: &str = "select name from pragma_table_info($1) order by cid";
    const COLUMNS_POSTGRES: &str = "
        select column_name::text from information_schema.columns
        where table_schema = current_schema() and table_name = $1
        order by ordinal_position";
    const PARENTS: &str = "select \"table\" from pragma_foreign_key_list($1)";
    const PARENTS_POSTGRES: &str = "
        select parent.relname::text from pg_constraint
        join pg_class child on child.oid = conrelid
        join pg_class parent on parent.oid = confrelid
        where contype = 'f' and child.relname = $1 and connamespace = current_schema()::regnamespace";
    let sql = conn.text(TABLES, TABLES_POSTGRES);
    let names: Vec<String> = on!(&mut *conn, |c| sqlx::query_scalar(sql).fetch_all(c).await)?;
    let mut left = Vec::new();
    for name in names {
        let sql = conn.text(COLUMNS, COLUMNS_POSTGRES);
        let columns: Vec<String> = on!(&mut *conn, |c| sqlx::query_scalar(sql)
            .bind(&name)
            .fetch_all(c)
            .await)?;
        let sql = conn.text(PARENTS, PARENTS_POSTGRES);
        let parents: Vec<String> = on!(&mut *conn, |c| sqlx::query_scalar(sql)
            .bind(&name)
            .fetch_all(c)
            .await)?;
        left.push((Table { name, columns }, parents));
    }
    let mut sorted: Vec<Table> = Vec::new();
    while !left.is_empty() {
        let waits_for = |parent: &String, left: &[(Table, Vec<String>)]| {
            left.iter().any(|(table, _)| table.name == *parent)
        };
        let place = left.iter().position(|(table, parents)| {
            let mut others = parents.iter().filter(|parent| **parent != table.name);
            !others.any(|parent| waits_for(parent, &left))
        });
        // Tables that refer to each other in a circle could not be filled one after another.
        let place = place.ok_or_else(|| {
            StoreError::Unusable(format!("`{}` refers to itself in a circle", left[0].0.name))
        })?;
        sorted.push(left.remove(place).0);
    }
    Ok(sorted)
}

/// The version of the database's schema.
pub async fn schema(conn: &mut Conn) -> Result<i64, StoreError> {
    const SQL: &str = "select cast(coalesce(max(version), 0) as bigint) from _sqlx_migrations";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL).fetch_one(c).await)?)
}

/// Hand over every row of a table.
///
/// # Errors
/// What `each` answers, or [`StoreError`] as `E`.
pub async fn read<E: From<StoreError>>(
    conn: &mut Conn,
    table: &Table,
    mut each: impl AsyncFnMut(Vec<Value>) -> Result<(), E>,
) -> Result<(), E> {
    let columns = table.quoted_columns();
    let sql = format!("select {columns} from {}", quoted(&table.name));
    let sql = AssertSqlSafe(sql);
    let failed = |error: sqlx::Error| E::from(error.into());
    match conn {
        Conn::Sqlite(held) => {
            let mut rows = sqlx::query(sql).fetch(&mut **held);
            while let Some(row) = next(&mut rows).await.map_err(failed)? {
                let values = (0..row.len()).map(|place| of_sqlite(table, &row, place));
                each(values.collect::<Result<_, _>>()?).await?;
            }
        }
        Conn::Postgres(held) => {
            let mut rows = sqlx::query(sql).fetch(&mut **held);
            while let Some(row) = next(&mut rows).await.map_err(failed)? {
                let values = (0..row.len()).map(|place| of_postgres(table, &row, place));
                each(values.collect::<Result<_, _>>()?).await?;
            }
        }
    }
    Ok(())
}

/// The next row, or why there is none.
async fn next<R>(
    rows: &mut (impl TryStream<Ok = R, Error = sqlx::Error> + Unpin),
) -> Result<Option<R>, sqlx::Error> {
    let next = tokio::time::timeout(ROW_TIMEOUT, rows.try_next());
    next.await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
}

fn unknown_type(table: &Table, column: &str, kind: &str) -> StoreError {
    StoreError::Unusable(format!(
        "{}.{column} is of the type {kind}, which backups do not know yet",
        table.name
    ))
}

fn of_sqlite(table: &Table, row: &SqliteRow, place: usize) -> Result<Value, StoreError> {
    let raw = row.try_get_raw(place)?;
    if raw.is_null() {
        return Ok(Value::Null);
    }
    Ok(match raw.type_info().name() {
        "INTEGER" => Value::Integer(row.try_get_unchecked(place)?),
        "TEXT" => Value::Text(row.try_get_unchecked(place)?),
        "BLOB" => Value::Bytes(row.try_get_unchecked(place)?),
        kind => return Err(unknown_type(table, row.column(place).name(), kind)),
    })
}

/// What Postgres has a type of its own for is what SQLite keeps in its place.
fn of_postgres(table: &Table, row: &PgRow, place: usize) -> Result<Value, StoreError> {
    let raw = row.try_get_raw(place)?;
    if raw.is_null() {
        return Ok(Value::Null);
    }
    Ok(match raw.type_info().name() {
        "INT8" => Value::Integer(row.try_get(place)?),
        "BOOL" => Value::Integer(row.try_get::<bool, _>(place)?.into()),
        "TEXT" => Value::Text(row.try_get(place)?),
        "TIMESTAMPTZ" => {
            let at: DateTime<Utc> = row.try_get(place)?;
            Value::Text(at.to_rfc3339_opts(SecondsFormat::AutoSi, false))
        }
        "UUID" => Value::Bytes(row.try_get::<Uuid, _>(place)?.into_bytes().into()),
        "BYTEA" => Value::Bytes(row.try_get(place)?),
        kind => return Err(unknown_type(table, row.column(place).name(), kind)),
    })
}

/// Remove what the migrations put into these tables.
pub async fn clear(tx: &mut Tx, tables: &[Table]) -> Result<(), StoreError> {
    for table in tables.iter().rev() {
        let sql = AssertSqlSafe(format!("delete from {}", quoted(&table.name)));
        on!(tx.conn().await?, |c| sqlx::query(sql)
            .execute(c)
            .await
            .map(|_| ()))?;
    }
    Ok(())
}

/// Why rows could not be added.
#[derive(Debug)]
pub enum NotAdded {
    /// A value does not fit its column.
    Unfit(String),
    /// The database.
    Store(StoreError),
}

impl<E: Into<StoreError>> From<E> for NotAdded {
    fn from(error: E) -> Self {
        Self::Store(error.into())
    }
}

/// Add rows to a table. Each has as many values as the table has columns.
pub async fn add(tx: &mut Tx, table: &Table, rows: &[Vec<Value>]) -> Result<(), NotAdded> {
    let into = format!("{} ({})", quoted(&table.name), table.quoted_columns());
    match tx.conn().await? {
        Conn::Sqlite(held) => {
            for rows in rows.chunks((SQLITE_VALUES_MAX / table.columns.len().max(1)).max(1)) {
                let mut insert = QueryBuilder::<Sqlite>::new(format!("insert into {into} "));
                insert.push_values(rows, |mut tuple, row| {
                    for value in row {
                        match value {
                            Value::Null => tuple.push_bind(None::<i64>),
                            Value::Integer(number) => tuple.push_bind(*number),
                            Value::Text(text) => tuple.push_bind(text.as_str()),
                            Value::Bytes(bytes) => tuple.push_bind(bytes.as_slice()),
                        };
                    }
                });
                insert.build().execute(&mut **held).await?;
            }
        }
        Conn::Postgres(held) => {
            const TYPES: &str = "
                select column_name::text, data_type::text from information_schema.columns
                where table_schema = current_schema() and table_name = $1";
            let types: Vec<(String, String)> = sqlx::query_as(TYPES)
                .bind(&table.name)
                .fetch_all(&mut **held)
                .await?;
            let kind_of = |column: &String| {
                let found = types.iter().find(|(name, _)| name == column);
                found.map_or("", |(_, kind)| kind.as_str())
            };
            let kinds: Vec<&str> = table.columns.iter().map(kind_of).collect();
            let mut text = String::new();
            for row in rows {
                for (place, value) in row.iter().enumerate() {
                    if place > 0 {
                        text.push('\t');
                    }
                    copy_field(&mut text, value, kinds[place]).map_err(|problem| {
                        NotAdded::Unfit(format!("`{}` {problem}", table.columns[place]))
                    })?;
                }
                text.push('\n');
            }
            let mut copy = held.copy_in_raw(&format!("copy {into} from stdin")).await?;
            copy.send(text.into_bytes()).await?;
            copy.finish().await?;
        }
    }
    Ok(())
}
