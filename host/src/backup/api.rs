//! The HTTP API of backups.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use chrono::Utc;
use futures_util::stream;

use super::BackupError;
use crate::http::endpoints::{Api, Rule};
use crate::http::problem::Problem;
use crate::identity::capability::Capability;
use crate::node::Node;

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default().get(
        "/instance/backup",
        Rule::Instance(Capability::ManageInstance),
        backup,
    )
}

impl From<BackupError> for Problem {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Busy => Self::conflict("conflict", error.to_string()),
            BackupError::Store(error) => error.into(),
            BackupError::NotTaken | BackupError::Archive(_) => Self::internal(error),
        }
    }
}

/// The backup, as it is made. When it fails half-way, the connection breaks off.
async fn backup(State(node): State<Arc<Node>>) -> Result<impl IntoResponse, Problem> {
    let pieces = node.backups.begin().await?;
    let pieces = stream::unfold(pieces, async |mut pieces| {
        pieces.recv().await.map(|piece| (piece, pieces))
    });
    let name = format!("picloud-{}.zip", Utc::now().format("%Y-%m-%d"));
    let headers = [
        (header::CONTENT_TYPE, "application/zip".to_owned()),
        (
            header::CONTENT_DISPOSITION,
            format!("attachment; filename=\"{name}\""),
        ),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    Ok((headers, Body::from_stream(pieces)))
}
