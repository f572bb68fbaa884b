//! Requests of the API that may take a processor for long, megabytes of JSON say. They take turns, app by
//! app: whoever asks for a hundred lists at once waits for their own, and not everybody else.

use std::time::Duration;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use tokio::time::timeout;

use super::problem::{Problem, ProblemType};
use crate::apps::AppId;
use crate::fair_queue::{FairQueue, Patience, Place, QueueFull, Room};

/// How long an export waits for others to be read.
const EXPORT_PATIENCE: Duration = Duration::from_secs(20);

/// Places for as many as there are processors, one of each app.
pub fn requests() -> FairQueue {
    FairQueue::new(Room {
        places: std::thread::available_parallelism()
            .map_or(2, usize::from)
            .max(2),
        places_per_app: 1,
        waiting: 1024,
        waiting_per_app: 64,
    })
}

/// Places for exports: one of each app, each with a connection of its own for as long as it is read.
pub fn exports() -> FairQueue {
    FairQueue::new(Room {
        places: 4,
        places_per_app: 1,
        waiting: 64,
        waiting_per_app: 4,
    })
}

/// A place for an export of `app`. It may be held for as long as somebody reads one, so nobody waits for it
/// for ever.
///
/// # Errors
/// 503 where too many wait, or it takes too long.
pub async fn place_for_export(exports: &FairQueue, app: AppId) -> Result<Place, Problem> {
    let place = exports.place(app.uuid(), Patience::Bounded);
    match timeout(EXPORT_PATIENCE, place).await {
        Ok(place) => place.map_err(too_many),
        Err(_) => Err(overloaded(
            "as many exports are read as this node makes at once; try again",
        )),
    }
}

fn too_many(full: QueueFull) -> Problem {
    let waiting = full.waiting;
    overloaded(&format!(
        "{waiting} requests that take long to answer wait already; try again"
    ))
}

fn overloaded(detail: &str) -> Problem {
    Problem::new(ProblemType::Overloaded, detail).with_header(header::RETRY_AFTER, "1")
}

/// What `answering` answers, once it is the turn of `app`; at once where there is none.
///
/// A place is held until the answer is made, and not while it is read.
pub(super) async fn in_turn(
    turns: &FairQueue,
    app: Option<AppId>,
    answering: impl Future<Output = Response>,
) -> Response {
    let place = match app {
        Some(app) => turns.place(app.uuid(), Patience::Bounded).await,
        None => return answering.await,
    };
    match place {
        Ok(place) => {
            let response = answering.await;
            drop(place);
            response
        }
        Err(full) => too_many(full).into_response(),
    }
}
