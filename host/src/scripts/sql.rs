//! The statements of scripts and their versions.

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{Kind, Script, ScriptId, ScriptLimits};
use crate::apps::AppId;
use crate::store::{Conn, Readable, StoreError, Tx, on};

#[derive(sqlx::FromRow)]
struct ScriptRow {
    id: ScriptId,
    app_id: AppId,
    name: String,
    kind: String,
    version: i64,
    limits: String,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl TryFrom<ScriptRow> for Script {
    type Error = StoreError;

    fn try_from(row: ScriptRow) -> Result<Self, StoreError> {
        let inconsistent = |column, problem: String| StoreError::Inconsistent {
            table: "scripts",
            column,
            id: row.id.to_string(),
            problem,
        };
        Ok(Self {
            kind: match row.kind.as_str() {
                "rhai" => Kind::Rhai,
                "component" => Kind::Component,
                other => return Err(inconsistent("kind", format!("`{other}` is no kind"))),
            },
            version: u32::try_from(row.version)
                .map_err(|error| inconsistent("version", error.to_string()))?,
            limits: serde_json::from_str::<ScriptLimits>(&row.limits)
                .map_err(|error| inconsistent("limits", error.to_string()))?,
            id: row.id,
            app_id: row.app_id,
            name: row.name,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

macro_rules! select_scripts {
    ($rest:literal) => {
        concat!(
            "select id, app_id, name, kind, version, limits, created_at, updated_at from scripts ",
            $rest
        )
    };
}

/// Every script of the instance, but for those of apps that nobody sees.
pub async fn all(conn: &mut Conn) -> Result<Readable<Script>, StoreError> {
    const SQL: &str =
        select_scripts!("where app_id not in (select id from apps where remove_at is not null)");
    let rows: Vec<ScriptRow> = on!(conn, |c| sqlx::query_as(SQL).fetch_all(c).await)?;
    Ok(rows.into_iter().map(Script::try_from).collect())
}

/// A page of an app's scripts in the order of their making: those after `after`, and only the
/// one of `name` if a name is given.
pub async fn page(
    conn: &mut Conn,
    app_id: AppId,
    name: Option<&str>,
    after: Option<ScriptId>,
    limit: i64,
) -> Result<Vec<Script>, StoreError> {
    const SQL: &str = select_scripts!(
        "where app_id = $1 and ($2 is null or name = $2) and ($3 is null or id > $3)
         order by id limit $4"
    );
    // Postgres cannot tell the type of a parameter that is only compared with null.
    const SQL_POSTGRES: &str = select_scripts!(
        "where app_id = $1 and ($2::text is null or name = $2) and ($3::uuid is null or id > $3)
         order by id limit $4"
    );
    let sql = conn.text(SQL, SQL_POSTGRES);
    let rows: Vec<ScriptRow> = on!(conn, |c| {
        let query = sqlx::query_as(sql)
            .bind(app_id)
            .bind(name)
            .bind(after)
            .bind(limit);
        query.fetch_all(c).await
    })?;
    rows.into_iter().map(Script::try_from).collect()
}

/// One script, unless it is of an app that nobody sees.
pub async fn get(conn: &mut Conn, id: ScriptId) -> Result<Option<Script>, StoreError> {
    const SQL: &str = select_scripts!(
        "where id = $1 and app_id not in (select id from apps where remove_at is not null)"
    );
    let row: Option<ScriptRow> = on!(conn, |c| sqlx::query_as(SQL)
        .bind(id)
        .fetch_optional(c)
        .await)?;
    row.map(Script::try_from).transpose()
}

/// Add a script with its first version. [`StoreError::Duplicate`] when the name is taken.
pub async fn insert(tx: &mut Tx, script: &Script, code: &[u8]) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into scripts (id, app_id, name, kind, version, limits, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $6, $7, $7)";
    let limits = limits_text(script);
    on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(script.id)
            .bind(script.app_id)
            .bind(&script.name)
            .bind(script.kind.as_str())
            .bind(i64::from(script.version))
            .bind(&limits)
            .bind(script.created_at)
            .execute(c)
            .await
            .map(|_| ())
    })?;
    insert_version(tx, script, code).await
}

/// Write `script` over the row whose version is `expected`. Says whether there was one.
pub async fn update(tx: &mut Tx, script: &Script, expected: u32) -> Result<bool, StoreError> {
    const SQL: &str = "
        update scripts set name = $2, version = $3, limits = $4, updated_at = $5
        where id = $1 and version = $6";
    let limits = limits_text(script);
    let changed = on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(script.id)
            .bind(&script.name)
            .bind(i64::from(script.version))
            .bind(&limits)
            .bind(script.updated_at)
            .bind(i64::from(expected))
            .execute(c)
            .await
            .map(|done| done.rows_affected())
    })?;
    Ok(changed == 1)
}

/// Add the code of the script's current version.
pub async fn insert_version(tx: &mut Tx, script: &Script, code: &[u8]) -> Result<(), StoreError> {
    const SQL: &str = "
        insert into script_versions (script_id, version, code, created_at)
        values ($1, $2, $3, $4)";
    on!(tx.conn().await?, |c| {
        sqlx::query(SQL)
            .bind(script.id)
            .bind(i64::from(script.version))
            .bind(code)
            .bind(script.updated_at)
            .execute(c)
            .await
            .map(|_| ())
    })?;
    Ok(())
}

/// How many bytes the code of a version has; none where it is gone.
pub async fn code_bytes(
    conn: &mut Conn,
    script_id: ScriptId,
    version: u32,
) -> Result<usize, StoreError> {
    const SQL: &str = "
        select cast(octet_length(code) as bigint) from script_versions
        where script_id = $1 and version = $2";
    let bytes: Option<i64> = on!(conn, |c| sqlx::query_scalar(SQL)
        .bind(script_id)
        .bind(i64::from(version))
        .fetch_optional(c)
        .await)?;
    Ok(usize::try_from(bytes.unwrap_or_default()).unwrap_or_default())
}

/// The code of a version.
pub async fn code(
    conn: &mut Conn,
    id: ScriptId,
    version: u32,
) -> Result<Option<Bytes>, StoreError> {
    const SQL: &str = "select code from script_versions where script_id = $1 and version = $2";
    let code: Option<Vec<u8>> = on!(conn, |c| {
        sqlx::query_scalar(SQL)
            .bind(id)
            .bind(i64::from(version))
            .fetch_optional(c)
            .await
    })?;
    Ok(code.map(Bytes::from))
}

/// The versions of a script, newest first: those before `before`.
pub async fn versions(
    conn: &mut Conn,
    id: ScriptId,
    before: u32,
    limit: i64,
) -> Result<Vec<(i64, DateTime<Utc>)>, StoreError> {
    const SQL: &str = "
        select version, created_at from script_versions
        where script_id = $1 and version < $2 order by version desc limit $3";
    Ok(on!(conn, |c| {
        let query = sqlx::query_as(SQL)
            .bind(id)
            .bind(i64::from(before))
            .bind(limit);
        query.fetch_all(c).await
    })?)
}

/// Remove a script and its versions. Says whether there was one.
pub async fn delete(tx: &mut Tx, id: ScriptId) -> Result<bool, StoreError> {
    const SQL: &str = "delete from scripts where id = $1";
    let gone = on!(tx.conn().await?, |c| sqlx::query(SQL)
        .bind(id)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(gone > 0)
}

fn limits_text(script: &Script) -> String {
    serde_json::to_string(&script.limits).expect("five numbers are always JSON")
}
