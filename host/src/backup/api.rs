//! The HTTP API of backups.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use chrono::Utc;
use futures_util::{FutureExt, stream};

use super::{ACTIONS, BackupError};
use crate::archive::{MakeError, Pieces};
use crate::audit::{self, Act, Actor};
use crate::http::API_ROOT;
use crate::http::answer::Zip;
use crate::http::endpoints::{Address, Api, Rule, Told};
use crate::http::extract::SignedIn;
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

async fn backup(
    State(node): State<Arc<Node>>,
    method: Method,
    Extension(Address(address)): Extension<Address>,
    SignedIn(caller): SignedIn,
) -> Result<(Extension<Told>, Zip), Problem> {
    let name = format!("picloud-{}.zip", Utc::now().format("%Y-%m-%d"));
    // It is begun; that it was taken is written down when it was sent to its end.
    let begun = Extension(Told(StatusCode::ACCEPTED));
    if method == Method::HEAD {
        return Ok((begun, Zip::head(name)));
    }
    let pieces = node.backups.begin().await?;
    let act = Act {
        action: ACTIONS[0].to_owned(),
        target: format!("{API_ROOT}/instance/backup"),
        address,
        app_id: None,
        actor: Some(Actor::of(&caller)),
        status: 200,
    };
    let sent = async move { audit::note(&node.db, act).await };
    Ok((begun, download(name, pieces, sent)))
}

/// Answer an archive as it is made, and do what is to follow once it was `sent` to its end. When it
/// fails half-way, the connection breaks off.
pub fn download(
    name: String,
    pieces: Pieces,
    sent: impl Future<Output = ()> + Send + 'static,
) -> Zip {
    let pieces = stream::try_unfold(
        (pieces, sent.boxed()),
        async |(mut pieces, sent)| match pieces.next().await? {
            Some(piece) => Ok(Some((piece, (pieces, sent)))),
            None => {
                sent.await;
                Ok::<_, MakeError>(None)
            }
        },
    );
    let body = Body::from_stream(pieces);
    Zip { name, body }
}
