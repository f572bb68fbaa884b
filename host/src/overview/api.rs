//! The HTTP API of overviews.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::waiting::{self, Backlog};
use super::{EXECUTIONS_MAX, Figures, GLANCE_MAX, STEPS_MAX, Step, WAITING_MAX, sql, steps};
use crate::apps::AppId;
use crate::dispatch;
use crate::http::answer::Page;
use crate::http::endpoints::{Api, Of, Rule, require};
use crate::http::extract::{PageQuery, Path, Query, SignedIn, app_named, instant, page_cursor};
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
    Api::default()
        .get("/overview", Rule::SignedIn, glance)
        .called("listOverviews", "See how each app did over the last hour")
        .get(
            "/apps/{app}/overview",
            Rule::App(Capability::ReadLogs, Of::App),
            show,
        )
        .called("getOverview", "See how an app did over a time")
}

/// What waits in an app.
#[derive(Serialize, JsonSchema)]
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
#[derive(Serialize, JsonSchema)]
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
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Glance>>, Problem> {
    let after: Option<AppId> = page_cursor(query.cursor.as_deref())?;
    let limit = usize::try_from(query.limit.and_one()).unwrap_or(0);
    let until = Utc::now();
    let mut conn = node.db.read().await?;
    let mut items = Vec::new();
    let picture = node.directory.picture();
    let app_ids = picture
        .app_ids()
        .into_iter()
        .filter(|id| after.is_none_or(|after| *id > after))
        .filter(|id| require(&node, &who, *id, Capability::ReadLogs).is_ok())
        .collect::<BTreeSet<_>>();
    for app_id in app_ids.into_iter().take(limit) {
        let samples = sql::samples(&mut conn, app_id, until - USUAL, until, GLANCE_MAX).await?;
        items.push(Glance {
            app_id,
            figures: Figures::of(&samples),
            truncated: samples.len() as i64 == GLANCE_MAX,
            waiting: Waiting::of(&node, &mut conn, &who, app_id).await?,
        });
    }
    Ok(Page::of(items, query.limit.get(), |glance: &Glance| {
        glance.app_id.to_string()
    }))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ShowQuery {
    /// An hour before `until` where it is left out.
    #[serde(default, deserialize_with = "instant")]
    since: Option<DateTime<Utc>>,
    /// Now where it is left out.
    #[serde(default, deserialize_with = "instant")]
    until: Option<DateTime<Utc>>,
    /// Into how many steps the time is cut.
    #[schemars(range(min = 1, max = STEPS_MAX))]
    steps: Option<u32>,
}

/// How an app did over a time.
#[derive(Serialize, JsonSchema)]
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
    let until = query.until.unwrap_or_else(Utc::now);
    let since = query.since.unwrap_or(until - USUAL);
    if since >= until {
        return Err(Problem::invalid_field("since", "it must be before `until`"));
    }
    let count = query.steps.unwrap_or(STEPS_USUAL);
    if !(1..=STEPS_MAX).contains(&count) {
        let detail = format!("steps is 1 to {STEPS_MAX}, not {count}");
        return Err(Problem::invalid_field("steps", detail));
    }
    node.dispatcher.settled().await;
    let mut conn = node.db.read().await?;
    // First, so that what it counts has its execution among the samples.
    let waiting = Waiting::of(&node, &mut conn, &who, app_id).await?;
    let samples = sql::samples(&mut conn, app_id, since, until, EXECUTIONS_MAX).await?;
    let mut backlogs = sql::backlogs(&mut conn, app_id, since - waiting::EVERY, until).await?;
    if query.until.is_none() {
        backlogs.push(Backlog {
            // Still within the last step.
            at: until - TimeDelta::microseconds(1),
            waiting: waiting.waiting,
            oldest_due_at: waiting.oldest_due_at,
        });
    }
    Ok(Json(Overview {
        since,
        until,
        figures: Figures::of(&samples),
        truncated: samples.len() as i64 == EXECUTIONS_MAX,
        steps: steps(&samples, &backlogs, since, until, count),
        waiting,
    }))
}
