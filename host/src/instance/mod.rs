//! The instance as a whole: which nodes it has, what waits in its outbox, what it has on disk.

pub mod api;
pub mod sql;

use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use crate::dispatch::WorkerId;
use crate::store::{Db, Engine};

/// How often a node says that it is there.
const EVERY: Duration = Duration::from_secs(5);
/// A node that said nothing for so long is gone: it was killed, hangs, or cannot reach the database.
const GONE_AFTER: TimeDelta = TimeDelta::seconds(15);
/// How long a node that ends waits for that to be written down.
const LEAVING_MAX: Duration = Duration::from_secs(2);
/// A node of which nothing was heard for so long is forgotten.
const FORGOTTEN_AFTER: TimeDelta = TimeDelta::hours(24);
/// Beyond so many, deliveries are not counted.
pub const DELIVERIES_MAX: i64 = 100_000;

/// A process that serves this instance, from its start to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "InstanceNode")]
pub struct NodeAbout {
    /// Its id, which is on its leases; a new one at each start.
    pub id: WorkerId,
    /// The name of its machine.
    pub hostname: String,
    /// Its version.
    pub version: String,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// When it last said that it is there.
    pub seen_at: DateTime<Utc>,
}

/// Whether a node is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It says so.
    Serving,
    /// It ended without saying so, or nothing is heard of it.
    Gone,
}

/// The state of each of some nodes. Clocks of nodes differ, so the instant that counts is the last
/// at which any of them said something: whoever asks is one of them.
pub fn states(nodes: &[NodeAbout]) -> Vec<NodeState> {
    let newest = nodes.iter().map(|node| node.seen_at).max();
    let is_gone = |node: &NodeAbout| newest.is_some_and(|at| at - node.seen_at > GONE_AFTER);
    let state = |node| match is_gone(node) {
        true => NodeState::Gone,
        false => NodeState::Serving,
    };
    nodes.iter().map(state).collect()
}

/// What is in the outbox, each counted up to [`DELIVERIES_MAX`] in all.
#[derive(Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Queue {
    /// A node works on it.
    pub leased: i64,
    /// It could be claimed now.
    pub due: i64,
    /// It is due later: for the first time, or after a failure.
    pub later: i64,
    /// It waits for its trigger to be resumed.
    pub held: i64,
    /// It waits for one before it, of the same key.
    pub blocked: i64,
}

/// What there is on disk, in bytes.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Disk {
    /// The database, on whatever machine it is.
    pub database_bytes: u64,
    /// Compiled code, on the node that answers.
    pub cache_bytes: u64,
    /// Room that is left where the node that answers keeps its data; null where that cannot be known.
    pub free_bytes: Option<u64>,
}

impl NodeAbout {
    /// The node that this process is.
    pub fn this(id: WorkerId) -> Self {
        let now = Utc::now();
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
        Self {
            id,
            hostname: name.unwrap_or_default().trim().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: now,
            seen_at: now,
        }
    }

    /// Say again and again that this node is there, for ever.
    pub async fn keep_saying(self, db: Db) {
        // Its file is locked, so on SQLite nobody else is there.
        let mut is_alone = db.engine() == Engine::Sqlite;
        loop {
            let about = self.clone();
            let said = db.write(move |tx| {
                Box::pin(async move {
                    let forget = match is_alone {
                        true => tx.now,
                        false => tx.now - FORGOTTEN_AFTER,
                    };
                    sql::forget(tx, forget).await?;
                    sql::say(tx, &about).await
                })
            });
            match said.await {
                Ok(()) => is_alone = false,
                Err(error) => tracing::warn!(%error, "the node could not say that it is there"),
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Say that this node ends, once nothing says that it is there any more.
    pub async fn leave(&self, db: &Db) {
        let id = self.id;
        let left = db.write(move |tx| Box::pin(sql::leave(tx, id)));
        match tokio::time::timeout(LEAVING_MAX, left).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the node could not say that it ends"),
            Err(_) => tracing::warn!("the node could not say that it ends in time"),
        }
    }
}

/// How many bytes the files of a folder have, those of its folders included. What cannot be read
/// counts for nothing.
fn bytes_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(about) if about.is_dir() => bytes_of(&entry.path()),
        Ok(about) => about.len(),
        Err(_) => 0,
    });
    bytes.sum()
}

/// What a node has on its disk: compiled code, and room that is left.
fn on_disk(cache_dir: PathBuf, data_dir: PathBuf) -> (u64, Option<u64>) {
    let free = rustix::fs::statvfs(&data_dir).ok();
    let free = free.map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    (bytes_of(&cache_dir), free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_gone_when_the_others_have_said_more_since() {
        let node = |seconds: i64| NodeAbout {
            seen_at: DateTime::from_timestamp(1_790_000_000 + seconds, 0).unwrap(),
            ..NodeAbout::this(WorkerId::new())
        };
        // Whatever the time is here, years after those.
        assert_eq!(
            states(&[node(100), node(85), node(84)]),
            [NodeState::Serving, NodeState::Serving, NodeState::Gone]
        );
        assert_eq!(states(&[]), []);
    }

    #[test]
    fn the_files_of_a_folder_are_added_up() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), [0; 100]).unwrap();
        std::fs::create_dir(folder.path().join("b")).unwrap();
        std::fs::write(folder.path().join("b/c"), [0; 23]).unwrap();
        let (cache, free) = on_disk(folder.path().into(), folder.path().into());
        assert_eq!(cache, 123);
        assert!(free.unwrap() > 0);
        assert_eq!(bytes_of(&folder.path().join("none")), 0);
    }
}
