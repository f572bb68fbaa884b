//! The stream of what happens in all apps that somebody may see.

use std::sync::Arc;

use axum::extract::{Request, State};

use super::{Channel, Entry, Told, Watch, kinds};
use crate::apps::AppId;
use crate::http::admission::Admission;
use crate::http::endpoints::{Api, Rule, require};
use crate::http::extract::app_named;
use crate::http::problem::{Problem, ProblemType};
use crate::http::stream::{self, EventStream, query_values};
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
    admission: Admission,
    request: Request,
) -> Result<EventStream, Problem> {
    let (parts, _) = request.into_parts();
    let of_app = match query_values(&parts, "app").pop() {
        Some(app) => {
            let app_id = app_named(&node.directory.picture(), &app)?.id;
            require(&node, admission.caller(), app_id, Capability::SeeApp)?;
            Some(app_id)
        }
        None => None,
    };
    // Of an app that they may not see any more nothing would come.
    let admission = match of_app {
        Some(_) => admission.taking(Capability::SeeApp, of_app),
        None => admission,
    };
    let watch = EventsWatch {
        node: node.clone(),
        admission: admission.clone(),
        of_app,
    };
    stream::of_user(&node, admission, &parts, Channel::events(), Box::new(watch)).await
}

/// What somebody may see of what happens.
struct EventsWatch {
    node: Arc<Node>,
    admission: Admission,
    of_app: Option<AppId>,
}

impl Watch for EventsWatch {
    fn ended(&self) -> Option<Told> {
        stream::ended(&self.admission, &self.node, &Channel::events())
    }

    fn shows(&self, entry: &Entry) -> bool {
        let Ok(caller) = self.admission.caller_now(&self.node) else {
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
}
