//! Requests of the API that may take a processor for long, megabytes of JSON say. They take turns, app by
//! app: whoever asks for a hundred lists at once waits for their own, and not everybody else.

use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::problem::{Problem, ProblemType};
use crate::apps::AppId;
use crate::fair_queue::{FairQueue, Patience, QueueFull, Room};

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

/// The answer where too many such requests wait already.
pub fn too_many(full: QueueFull) -> Problem {
    let detail = format!(
        "{} requests that take long to answer wait already; try again",
        full.waiting
    );
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
