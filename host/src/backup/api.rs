//! The HTTP API of backups.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use chrono::Utc;
use futures_util::stream;

use super::BackupError;
use crate::archive::Pieces;
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
        }
    }
}

async fn backup(State(node): State<Arc<Node>>) -> Result<impl IntoResponse, Problem> {
    let pieces = node.backups.begin().await?;
    let name = format!("picloud-{}.zip", Utc::now().format("%Y-%m-%d"));
    Ok(download(&name, pieces))
}

/// Answer an archive as it is made. When that fails half-way, the connection breaks off.
pub fn download(name: &str, pieces: Pieces) -> impl IntoResponse + use<> {
    let pieces = stream::unfold(pieces, async |mut pieces| {
        pieces.recv().await.map(|piece| (piece, pieces))
    });
    let headers = [
        (header::CONTENT_TYPE, "application/zip".to_owned()),
        (
            header::CONTENT_DISPOSITION,
            format!("attachment; filename=\"{name}\""),
        ),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    (headers, Body::from_stream(pieces))
}
