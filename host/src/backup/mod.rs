//! Backups: every table as it is at one moment, in a `.zip` that either database can be restored
//! from.
//!
//! An entry for each table has its rows as JSON lines, arrays of [`value::Value`]. Not in a backup:
//! sign-ins, links and nodes ([`LEFT_OUT`]), the master key, compiled code, the configuration.

pub mod api;
pub mod sql;
pub mod value;

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::sync::Arc;

use chrono::Utc;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::archive::{self, ArchiveError, Format, Giver, MakeError, Pieces, Reader};
use crate::dispatch;
use crate::secrets;
use crate::secrets::master_key::MasterKeys;
use crate::store::{Conn, Fresh, SCHEMA_VERSION, StoreError, snapshot};
use sql::{NotAdded, Table};
use value::Value;

/// What a backup is.
pub const FORMAT: Format = Format {
    name: "picloud-backup",
    title: "backup",
    version: 1,
};

/// Tables whose rows are for a while only. A sign-in or a link that was ended since the backup
/// must not come back to life with it; whoever needs one makes another. The nodes are processes.
const LEFT_OUT: [&str; 4] = ["sessions", "sign_in_codes", "links", "nodes"];

/// What the audit log calls a backup through the API, and one that was read from the database.
pub const ACTIONS: [&str; 2] = ["GET /instance/backup", "picloud backup --direct"];

/// How much of a table is written or read at once.
const PART_BYTES: usize = 256 << 10;
/// What a backup says of itself.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    engine: String,
    /// The version of the schema.
    schema: i64,
    tables: Vec<TableAbout>,
    /// How many secrets are under which master key.
    secrets_by_master_key: BTreeMap<String, i64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct TableAbout {
    #[serde(flatten)]
    table: Table,
    rows: u64,
}

/// The entry of a table.
fn entry(table: &str) -> String {
    format!("tables/{table}.jsonl")
}

/// Why a backup could not be begun.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Another one is being made.
    #[error("a backup is being made already; one at a time")]
    Busy,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The backups of a node.
pub struct Backups {
    url: String,
    one: Arc<Semaphore>,
}

impl Backups {
    /// Backups of the database at this URL.
    pub fn new(url: String) -> Self {
        let one = Arc::new(Semaphore::new(1));
        Self { url, one }
    }

    /// Begin a backup of the database as it is now.
    ///
    /// # Errors
    /// [`BackupError::Busy`], or when the database cannot be reached.
    pub async fn begin(&self) -> Result<Pieces, BackupError> {
        let permit = self.one.clone().try_acquire_owned();
        let permit = permit.map_err(|_| BackupError::Busy)?;
        let conn = snapshot(&self.url).await?;
        Ok(archive::make(async move |give| {
            let made = write(conn, give).await;
            // Whoever has the last piece may begin the next backup.
            drop(permit);
            made
        }))
    }
}

async fn write(mut conn: Conn, give: Giver) -> Result<(), MakeError> {
    let made_at = Utc::now();
    let mut archive = archive::Writer::new();
    let mut about = About {
        engine: conn.text("sqlite", "postgres").to_owned(),
        schema: sql::schema(&mut conn).await?,
        tables: Vec::new(),
        secrets_by_master_key: secrets::sql::by_key(&mut conn)
            .await?
            .into_iter()
            .map(|(key, count)| (hex::encode(key), count))
            .collect(),
    };
    let tables = sql::tables(&mut conn).await?;
    let kept = |table: &Table| !LEFT_OUT.contains(&table.name.as_str());
    for table in tables.into_iter().filter(kept) {
        archive.begin(&entry(&table.name))?;
        let mut rows = 0;
        let mut part = Vec::with_capacity(PART_BYTES);
        let reading = sql::read(&mut conn, &table, async |row: Vec<Value>| {
            serde_json::to_writer(&mut part, &row).map_err(std::io::Error::from)?;
            part.push(b'\n');
            rows += 1;
            if part.len() >= PART_BYTES {
                archive.write(&part)?;
                part.clear();
                give.piece(archive.take()).await?;
            }
            Ok::<_, MakeError>(())
        });
        reading.await?;
        archive.write(&part)?;
        about.tables.push(TableAbout { table, rows });
    }
    give.piece(archive.finish(FORMAT, made_at, &about)?).await
}

/// Why a backup could not be restored. Nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A newer PiCloud wrote it.
    #[error(
        "the backup has schema {found}, written by picloud {picloud}; this picloud ({}) knows up to schema {SCHEMA_VERSION}: use a newer one",
        env!("CARGO_PKG_VERSION")
    )]
    NewerSchema {
        /// The version of its schema.
        found: i64,
        /// Who wrote it.
        picloud: String,
    },
    /// Its tables are not those of its schema.
    #[error("the backup does not have the tables of schema {schema}: {problem}")]
    OtherTables {
        /// The version of its schema.
        schema: i64,
        /// What is wrong.
        problem: String,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a backup has in it.
#[derive(Debug, Serialize)]
pub struct Contents {
    /// When it was made.
    pub made_at: chrono::DateTime<Utc>,
    /// By which version of PiCloud.
    pub picloud: String,
    /// From which database.
    pub engine: String,
    /// The version of its schema.
    pub schema: i64,
    /// The rows of its tables.
    pub rows: BTreeMap<String, u64>,
    /// How many secrets are under which master key.
    pub secrets_by_master_key: BTreeMap<String, i64>,
}

/// Read a whole backup, and say what is in it.
///
/// # Errors
/// [`ArchiveError`] says what is damaged.
pub fn verify<R: Read + Seek>(backup: &mut Reader<R>) -> Result<Contents, RestoreError> {
    let about: About = backup.about()?;
    for TableAbout { table, .. } in &about.tables {
        backup.entry(&entry(&table.name))?;
    }
    backup.verify()?;
    let rows = about.tables.into_iter();
    Ok(Contents {
        made_at: backup.made_at(),
        picloud: backup.made_by().to_owned(),
        engine: about.engine,
        schema: about.schema,
        rows: rows.map(|one| (one.table.name, one.rows)).collect(),
        secrets_by_master_key: about.secrets_by_master_key,
    })
}

/// What came of a restoration.
#[derive(Debug, Serialize)]
pub struct Restored {
    /// What was in the backup.
    #[serde(flatten)]
    pub contents: Contents,
    /// Under which master keys there are secrets that this instance does not have, and how many.
    pub secrets_under_missing_keys: BTreeMap<String, i64>,
}

/// Fill a new database at `url` from a backup: all of it, or nothing. `progress` is told how many
/// rows of which table are done.
///
/// # Errors
/// [`RestoreError`] says why; there is no new database then.
pub async fn restore<R: Read + Seek>(
    backup: &mut Reader<R>,
    url: &str,
    keys: &MasterKeys,
    mut progress: impl FnMut(&str, u64),
) -> Result<Restored, RestoreError> {
    let about: About = backup.about()?;
    let schema = about.schema;
    if schema > SCHEMA_VERSION {
        return Err(RestoreError::NewerSchema {
            found: schema,
            picloud: backup.made_by().to_owned(),
        });
    }
    let contents = verify(backup)?;
    let mut fresh = Fresh::open(url, schema).await?;
    let tx = fresh.tx();
    let there = sql::tables(tx.conn().await?).await?;
    let tables = in_the_order_of(&there, about.tables)
        .map_err(|problem| RestoreError::OtherTables { schema, problem })?;
    sql::clear(tx, &there).await?;
    for TableAbout { table, rows } in tables {
        let mut lines = backup.entry(&entry(&table.name))?;
        let mut part = Part::default();
        let mut done = 0;
        while let Some(line) = lines.next_line()? {
            let row: Vec<Value> =
                serde_json::from_slice(&line).map_err(|error| lines.damaged(error))?;
            if row.len() != table.columns.len() {
                let problem = format!("it has {} values, not {}", row.len(), table.columns.len());
                return Err(lines.damaged(problem).into());
            }
            if let Some(full) = part.with(row, line.len()) {
                done += full.len() as u64;
                add(tx, &table, &full, &lines).await?;
                progress(&table.name, done);
            }
        }
        done += part.rows.len() as u64;
        add(tx, &table, &part.rows, &lines).await?;
        progress(&table.name, done);
        if done != rows {
            let problem = format!("it has {done} rows, and {rows} are listed");
            return Err(lines.damaged(problem).into());
        }
    }
    // Whoever worked on a delivery when the backup was made does not any more.
    dispatch::sql::release(tx, None).await?;
    let by_key = secrets::sql::by_key(tx.conn().await?).await?;
    let missing = by_key.into_iter().filter(|(key, _)| !keys.has(key));
    let secrets_under_missing_keys = missing
        .map(|(key, count)| (hex::encode(key), count))
        .collect();
    fresh.finish().await?;
    Ok(Restored {
        contents,
        secrets_under_missing_keys,
    })
}

async fn add(
    tx: &mut crate::store::Tx,
    table: &Table,
    rows: &[Vec<Value>],
    lines: &archive::Lines<'_>,
) -> Result<(), RestoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    sql::add(tx, table, rows)
        .await
        .map_err(|error| match error {
            NotAdded::Unfit(problem) => lines.damaged(problem).into(),
            NotAdded::Store(error) => error.into(),
        })
}

/// Rows that are added together.
#[derive(Default)]
struct Part {
    rows: Vec<Vec<Value>>,
    bytes: usize,
}

impl Part {
    /// With one more; answers all of them when they are enough.
    fn with(&mut self, row: Vec<Value>, bytes: usize) -> Option<Vec<Vec<Value>>> {
        self.rows.push(row);
        self.bytes += bytes;
        if self.bytes < PART_BYTES {
            return None;
        }
        self.bytes = 0;
        Some(std::mem::take(&mut self.rows))
    }
}

/// The tables of a backup in the order in which they can be filled.
fn in_the_order_of(there: &[Table], mut had: Vec<TableAbout>) -> Result<Vec<TableAbout>, String> {
    let mut sorted = Vec::new();
    for Table { name, columns } in there {
        let Some(place) = had.iter().position(|one| one.table.name == *name) else {
            if LEFT_OUT.contains(&name.as_str()) {
                continue;
            }
            return Err(format!("`{name}` is missing"));
        };
        let found = had.remove(place);
        let of = |columns: &[String]| {
            let mut columns = columns.to_vec();
            columns.sort();
            columns
        };
        if of(&found.table.columns) != of(columns) {
            return Err(format!("`{name}` has other columns"));
        }
        sorted.push(found);
    }
    match had.first() {
        Some(unknown) => Err(format!("it has a table `{}`", unknown.table.name)),
        None => Ok(sorted),
    }
}
