//! The stream of what happens in all apps that somebody may see.

use std::sync::Arc;

use axum::extract::{Request, State};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Map;

use super::{Cap, Channel, Entry, Told, Until, Watch, kinds};
use crate::apps::AppId;
use crate::http::endpoints::{Api, Rule, require};
use crate::http::extract::{SignedIn, app_named};
use crate::http::problem::{Problem, ProblemType};
use crate::http::stream::{self, Credential, EventStream, RENEW_EVERY, query_values};
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
    let begin = stream::begin(&parts)?;
    let of_app = match query_values(&parts, "app").pop() {
        Some(app) => {
            let app_id = app_named(&node.directory.picture(), &app)?.id;
            require(&node, &caller, app_id, Capability::SeeApp)?;
            Some(app_id)
        }
        None => None,
    };
    let user = Cap::User(caller.user.id);
    let place = node
        .caps
        .enter(vec![(user, node.config.streams.per_user)])?;
    let watch = EventsWatch {
        node: node.clone(),
        caller,
        credential: Credential::of(&parts),
        of_app,
    };
    let (until, changes) = (Until::Renewed(RENEW_EVERY), node.directory.changes());
    let channels = vec![Channel::events()];
    let subscription = node
        .journal
        .subscribe(channels, &begin, until, changes, Box::new(watch));
    Ok(stream::answer(subscription.await?, place, Map::new()))
}

/// What somebody may see of what happens.
struct EventsWatch {
    node: Arc<Node>,
    caller: Caller,
    credential: Credential,
    of_app: Option<AppId>,
}

impl EventsWatch {
    /// Whoever listens, with the role that they have now; none when they may not sign in any more.
    fn now(&self) -> Option<Caller> {
        let picture = self.node.directory.picture();
        let user = picture.user(self.caller.user.id)?.clone();
        let via = self.caller.via.clone();
        Some(Caller { user, via })
    }
}

impl Watch for EventsWatch {
    fn ended(&self) -> Option<Told> {
        self.now().is_none().then_some(Told::Expired)
    }

    fn shows(&self, entry: &Entry) -> bool {
        let Some(caller) = self.now() else {
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
