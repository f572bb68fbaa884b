//! The HTTP API of backups.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use chrono::Utc;
use futures_util::stream;

use super::BackupError;
use crate::archive::Pieces;
use crate::http::answer::Zip;
use crate::http::endpoints::{Api, Rule};
use crate::http::problem::{Problem, ProblemType};
use crate::identity::capability::Capability;
use crate::node::Node;

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get(
            "/instance/backup",
            Rule::Instance(Capability::ManageInstance),
            backup,
        )
        .called("backUp", "Take a backup of the instance")
        .noted()
        .may_fail(&[ProblemType::BackupRunning])
}

impl From<BackupError> for Problem {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Busy => Self::new(ProblemType::BackupRunning, error.to_string()),
            BackupError::Store(error) => error.into(),
        }
    }
}

async fn backup(State(node): State<Arc<Node>>) -> Result<Zip, Problem> {
    let pieces = node.backups.begin().await?;
    let name = format!("picloud-{}.zip", Utc::now().format("%Y-%m-%d"));
    Ok(download(name, pieces))
}

/// Answer an archive as it is made. When that fails half-way, the connection breaks off.
pub fn download(name: String, pieces: Pieces) -> Zip {
    let pieces = stream::unfold(pieces, async |mut pieces| {
        pieces.recv().await.map(|piece| (piece, pieces))
    });
    let body = Body::from_stream(pieces);
    Zip { name, body }
}
