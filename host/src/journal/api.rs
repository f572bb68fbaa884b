//! The stream of what happens in all apps that somebody may see.

use std::sync::Arc;

use axum::extract::{Request, State};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Channel, Entry, Told, Watch, kinds};
use crate::apps::AppId;
use crate::http::endpoints::{Api, Rule, require};
use crate::http::extract::{SignedIn, app_named};
use crate::http::problem::{Problem, ProblemType};
use crate::http::stream::{self, Credential, EventStream, query_values};
use crate::identity::Caller;
use crate::identity::capability::{self, Capability, Decision};
use crate::node::Node;

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get("/events", Rule::SignedIn, events)
        .called(
            "followEvents",
            "Stream what happens in all apps that you may see",
        )
        .may_fail(&[
            ProblemType::TooManyStreams,
            ProblemType::TooManyReplays,
            ProblemType::InvalidRequest,
            ProblemType::NotFound,
        ])
}

async fn events(
    State(node): State<Arc<Node>>,
    SignedIn(caller): SignedIn,
    request: Request,
) -> Result<EventStream, Problem> {
    let (parts, _) = request.into_parts();
    let of_app = match query_values(&parts, "app").pop() {
        Some(app) => {
            let app_id = app_named(&node.directory.picture(), &app)?.id;
            require(&node, &caller, app_id, Capability::SeeApp)?;
            Some(app_id)
        }
        None => None,
    };
    let watch = EventsWatch {
        node: node.clone(),
        caller: caller.clone(),
        credential: Credential::of(&node, &parts)?,
        of_app,
    };
    stream::of_user(&node, &caller, &parts, Channel::events(), Box::new(watch)).await
}

/// What somebody may see of what happens.
struct EventsWatch {
    node: Arc<Node>,
    caller: Caller,
    credential: Credential,
    of_app: Option<AppId>,
}

impl Watch for EventsWatch {
    fn ended(&self) -> Option<Told> {
        let caller = stream::as_of_now(&self.node, &self.caller);
        caller.is_none().then_some(Told::Expired)
    }

    fn shows(&self, entry: &Entry) -> bool {
        let Some(caller) = stream::as_of_now(&self.node, &self.caller) else {
            return false;
        };
        if self.of_app.is_some() && entry.about != self.of_app {
            return false;
        }
        let Some(app_id) = entry.about else {
            let decision = capability::on_instance(&caller, Capability::ManageInstance);
            return decision == Decision::Allowed;
        };
        let needed = match entry.kind.as_str() {
            kinds::EXECUTIONS => Capability::ReadLogs,
            kinds::CHANGED => Capability::SeeApp,
            _ => Capability::ManageDeadLetters,
        };
        require(&self.node, &caller, app_id, needed).is_ok()
    }

    fn renew(&self) -> BoxFuture<'_, bool> {
        self.credential.holds(&self.node).boxed()
    }
}
