//! The HTTP API of overviews.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{EXECUTIONS_MAX, Figures, GLANCE_MAX, STEPS_MAX, Step, WAITING_MAX, sql, steps};
use crate::apps::AppId;
use crate::dispatch;
use crate::http::endpoints::{Api, Of, Rule, require};
use crate::http::extract::{INSTANT, Path, Query, SignedIn, app_named, instant, parsed};
use crate::http::problem::Problem;
use crate::identity::Caller;
use crate::identity::capability::Capability;
use crate::node::Node;
use crate::store::Conn;

/// The time that is shown where none is asked for.
const USUAL: TimeDelta = TimeDelta::hours(1);
/// The steps into which it is cut where no number is given.
const STEPS_USUAL: u32 = 60;

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default().get("/overview", Rule::SignedIn, glance).get(
        "/apps/{app}/overview",
        Rule::App(Capability::ReadLogs, Of::App),
        show,
    )
}

/// What waits in an app.
#[derive(Serialize)]
struct Waiting {
    /// Deliveries in the outbox that may be claimed now or later, counted up to 10,000.
    waiting: i64,
    /// When the first of them is or was due.
    oldest_due_at: Option<DateTime<Utc>>,
    /// Dead letters that nobody settled, counted up to 10,000; null for whoever may not see them.
    unresolved_dead_letters: Option<i64>,
}

impl Waiting {
    async fn of(
        node: &Node,
        conn: &mut Conn,
        caller: &Caller,
        app_id: AppId,
    ) -> Result<Self, Problem> {
        let may_see = require(node, caller, app_id, Capability::ManageDeadLetters).is_ok();
        let unresolved_dead_letters = match may_see {
            true => Some(sql::unresolved(conn, app_id).await?),
            false => None,
        };
        let (waiting, oldest_due_at) = dispatch::sql::backlog(conn, app_id, WAITING_MAX).await?;
        Ok(Self {
            waiting,
            oldest_due_at,
            unresolved_dead_letters,
        })
    }
}

/// An app at a glance.
#[derive(Serialize)]
struct Glance {
    app_id: AppId,
    #[serde(flatten)]
    figures: Figures,
    /// Whether there were more executions than were looked at.
    truncated: bool,
    #[serde(flatten)]
    waiting: Waiting,
}

/// Every app whose executions the caller may see, over the last hour.
async fn glance(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
) -> Result<Json<Value>, Problem> {
    let until = Utc::now();
    let mut conn = node.db.read().await?;
    let mut items = Vec::new();
    for app_id in node.directory.picture().app_ids() {
        if require(&node, &who, app_id, Capability::ReadLogs).is_err() {
            continue;
        }
        let samples = sql::samples(&mut conn, app_id, until - USUAL, until, GLANCE_MAX).await?;
        items.push(Glance {
            app_id,
            figures: Figures::of(&samples),
            truncated: samples.len() as i64 == GLANCE_MAX,
            waiting: Waiting::of(&node, &mut conn, &who, app_id).await?,
        });
    }
    Ok(Json(json!({ "items": items })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShowQuery {
    since: Option<String>,
    until: Option<String>,
    steps: Option<String>,
}

/// How an app did over a time.
#[derive(Serialize)]
struct Overview {
    since: DateTime<Utc>,
    until: DateTime<Utc>,
    #[serde(flatten)]
    figures: Figures,
    /// Whether there were more executions than were looked at: the older ones are left out.
    truncated: bool,
    steps: Vec<Step>,
    #[serde(flatten)]
    waiting: Waiting,
}

async fn show(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(app): Path<String>,
    Query(query): Query<ShowQuery>,
) -> Result<Json<Overview>, Problem> {
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let until = parsed("until", query.until.as_deref(), instant, INSTANT)?;
    let until = until.unwrap_or_else(Utc::now);
    let since = parsed("since", query.since.as_deref(), instant, INSTANT)?;
    let since = since.unwrap_or(until - USUAL);
    if since >= until {
        return Err(Problem::invalid_field("since", "it must be before `until`"));
    }
    let count = |text: &str| text.parse().ok().filter(|n| (1..=STEPS_MAX).contains(n));
    let wanted = format!("a number from 1 to {STEPS_MAX}");
    let count = parsed("steps", query.steps.as_deref(), count, &wanted)?.unwrap_or(STEPS_USUAL);
    node.dispatcher.settled().await;
    let mut conn = node.db.read().await?;
    let samples = sql::samples(&mut conn, app_id, since, until, EXECUTIONS_MAX).await?;
    Ok(Json(Overview {
        since,
        until,
        figures: Figures::of(&samples),
        truncated: samples.len() as i64 == EXECUTIONS_MAX,
        steps: steps(&samples, since, until, count),
        waiting: Waiting::of(&node, &mut conn, &who, app_id).await?,
    }))
}
