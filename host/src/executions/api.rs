//! The HTTP API of executions.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::sse::Event;
use chrono::{DateTime, Utc};
use futures_util::stream::unfold;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use uuid::Uuid;

use super::sql::Ended;
use super::sql::{self, Filter};
use super::{AbandonedExecution, Execution, ExecutionId, Log, OutcomeKind};
use crate::apps::AppId;
use crate::dispatch::sql as outbox;
use crate::http::admission::{Admission, Authority};
use crate::http::answer::Page;
use crate::http::endpoints::{Api, Of, Rule, hides_payloads};
use crate::http::extract::{
    Limit, PageQuery, Path, Query, SignedIn, app_named, instant, page_cursor,
};
use crate::http::problem::{Problem, ProblemType};
use crate::http::stream::{self, EventStream, Lasts};
use crate::identity::capability::Capability;
use crate::journal::{Cap, Place};
use crate::node::Node;
use crate::sandbox::LogLine;
use crate::scripts::ScriptId;
use crate::store::{Conn, StoreError};

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get(
            "/apps/{app}/executions",
            Rule::App(Capability::ReadLogs, Of::App),
            list,
        )
        .called("listExecutions", "List what ran, newest first")
        .taking_turns()
        .get(
            "/apps/{app}/abandoned-executions",
            Rule::App(Capability::ReadLogs, Of::App),
            abandoned,
        )
        .called(
            "listAbandonedExecutions",
            "List the executions whose callers did not get the outcome, newest first",
        )
        .get(
            "/executions/{id}",
            Rule::App(Capability::ReadLogs, Of::Execution),
            show,
        )
        .called("getExecution", "Show an execution with its log")
        .taking_turns()
        .get(
            "/executions/{id}/tree",
            Rule::App(Capability::ReadLogs, Of::Execution),
            tree,
        )
        .called(
            "getExecutionTree",
            "Show all that the request of an execution led to",
        )
        .taking_turns()
        .get(
            "/executions/{id}/events",
            Rule::App(Capability::ReadLogs, Of::Execution),
            events,
        )
        .called(
            "followExecution",
            "Stream the log lines of an execution as they come, and its outcome",
        )
        .may_fail(&[ProblemType::TooManyStreams, ProblemType::InvalidRequest])
}

/// A connection that sees the outcome of every call that this node has answered.
async fn settled(node: &Node) -> Result<Conn, StoreError> {
    node.dispatcher.settled().await;
    node.db.read().await
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    script_id: Option<ScriptId>,
    outcome: Option<OutcomeKind>,
    request_id: Option<Uuid>,
    trace_id: Option<TraceId>,
    delivery_id: Option<Uuid>,
    invocation_type: Option<String>,
    /// Not before.
    #[serde(default, deserialize_with = "instant")]
    since: Option<DateTime<Utc>>,
    /// Before.
    #[serde(default, deserialize_with = "instant")]
    until: Option<DateTime<Utc>>,
    /// How many at most.
    #[serde(default)]
    limit: Limit,
    /// Where to begin: the `next_cursor` of the page before.
    cursor: Option<String>,
}

/// 32 hexadecimal digits, as a `traceparent` has them.
#[derive(Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend("pattern" = "^[0-9a-f]{32}$"))]
struct TraceId(String);

impl TryFrom<String> for TraceId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        match text.len() == 32 && text.bytes().all(is_hex) {
            true => Ok(Self(text)),
            false => Err("a trace's id is 32 hexadecimal digits, in lower case"),
        }
    }
}

/// An execution as a caller may see it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Execution")]
struct ExecutionView {
    #[serde(flatten)]
    execution: Execution,
    /// Whether its error and its log are kept from you: the app hides them from viewers.
    payloads_hidden: bool,
}

impl ExecutionView {
    fn of(mut execution: Execution, payloads_hidden: bool) -> Self {
        if payloads_hidden {
            execution.error = None;
        }
        Self {
            execution,
            payloads_hidden,
        }
    }
}

async fn list(
    State(node): State<Arc<Node>>,
    SignedIn(caller): SignedIn,
    Path(app): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<ExecutionView>>, Problem> {
    let before = page_cursor(query.cursor.as_deref())?;
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let filter = Filter {
        script_id: query.script_id,
        outcome: query.outcome,
        request_id: query.request_id,
        trace_id: query.trace_id.map(|id| id.0),
        delivery_id: query.delivery_id,
        invocation_type: query.invocation_type,
        since: query.since,
        until: query.until,
    };
    let mut conn = settled(&node).await?;
    let executions = sql::page(&mut conn, app_id, &filter, before, query.limit.and_one()).await?;
    let hidden = hides_payloads(&node, &caller, app_id);
    let views = executions.into_iter();
    let views = views.map(|execution| ExecutionView::of(execution, hidden));
    Ok(Page::of(
        views.collect(),
        query.limit.get(),
        |view: &ExecutionView| view.execution.id.to_string(),
    ))
}

/// An execution with its log.
#[derive(Serialize, JsonSchema)]
struct ExecutionWithLog {
    #[serde(flatten)]
    view: ExecutionView,
    logs: Vec<LogLine>,
    /// Whether lines were dropped at a limit.
    logs_truncated: bool,
}

impl ExecutionWithLog {
    fn of(ended: Ended, payloads_hidden: bool) -> Self {
        let Log { lines, truncated } = ended.log;
        Self {
            view: ExecutionView::of(ended.execution, payloads_hidden),
            logs: if payloads_hidden { Vec::new() } else { lines },
            logs_truncated: truncated,
        }
    }
}

fn missing(id: ExecutionId) -> Problem {
    Problem::not_found(format!("there is no execution `{id}`"))
}

async fn show(
    State(node): State<Arc<Node>>,
    SignedIn(caller): SignedIn,
    Path(id): Path<ExecutionId>,
) -> Result<Json<ExecutionWithLog>, Problem> {
    let ended = sql::get(&mut settled(&node).await?, id).await?;
    let ended = ended.ok_or_else(|| missing(id))?;
    let hidden = hides_payloads(&node, &caller, ended.execution.app_id);
    Ok(Json(ExecutionWithLog::of(ended, hidden)))
}

/// How long is waited before looking again whether an execution has ended: at first, and at most.
/// It may run on any node, and its record is the only thing that all of them see.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(500);
/// The id of the event that tells the outcome.
const LAST_ID: &str = "end";

/// The log lines of an execution, as they come where it runs on this node, and its outcome.
async fn events(
    State(node): State<Arc<Node>>,
    admission: Admission,
    Path(id): Path<ExecutionId>,
    request: Request,
) -> Result<EventStream, Problem> {
    let (parts, _) = request.into_parts();
    let seen = match stream::last_event_id(&parts).as_str() {
        "" => 0,
        LAST_ID => usize::MAX,
        number => number.parse().map_err(|_| stream::bad_id())?,
    };
    let user = Cap::User(admission.caller().user.id);
    let place = node
        .caps
        .enter(vec![(user, node.config.streams.per_user)])?;
    let watcher = Watcher {
        node: node.clone(),
        admission: admission.clone(),
        id,
        seen,
        told: VecDeque::new(),
        has_ended: false,
        pause: LOOK_AGAIN,
        _place: place,
    };
    let events = unfold(watcher, async |mut watcher| {
        let event = watcher.next().await?;
        Some((Ok(event), watcher))
    });
    let lasts = Lasts::While {
        authority: Box::new(Authority::SignedIn(admission)),
        reset: serde_json::json!({}),
    };
    stream::response(&node, lasts, events)
}

/// Somebody who watches an execution.
struct Watcher {
    node: Arc<Node>,
    admission: Admission,
    id: ExecutionId,
    /// How many lines they have seen.
    seen: usize,
    /// What they have not been told yet.
    told: VecDeque<Event>,
    has_ended: bool,
    /// How long is waited before looking again.
    pause: Duration,
    _place: Place,
}

impl Watcher {
    /// What comes next; none when the stream ends.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.told.pop_front() {
                return Some(event);
            }
            if self.has_ended {
                return None;
            }
            match self.node.running.lines(self.id) {
                Some((app_id, lines)) => self.follow(app_id, lines).await?,
                None => self.look().await?,
            }
        }
    }

    /// Take the lines that are new, or wait for some.
    async fn follow(
        &mut self,
        app_id: AppId,
        mut lines: watch::Receiver<Vec<LogLine>>,
    ) -> Option<()> {
        let caller = self.admission.caller_now(&self.node).ok()?;
        let new = lines
            .borrow_and_update()
            .get(self.seen..)
            .map(<[_]>::to_vec);
        let hidden = hides_payloads(&self.node, &caller, app_id);
        let new = new.filter(|_| !hidden).unwrap_or_default();
        if new.is_empty() {
            // Whether it logged, ended, or nothing happened, the next look tells.
            let _ = tokio::time::timeout(LOOK_AGAIN_MAX, lines.changed()).await;
        }
        self.tell(&new);
        Some(())
    }

    /// Look for the record; none where its delivery went without one.
    async fn look(&mut self) -> Option<()> {
        let mut conn = settled(&self.node).await.ok()?;
        // In this order: what has left the outbox has its record.
        let waits = outbox::app_of(&mut conn, self.id.of())
            .await
            .ok()?
            .is_some();
        let ended = sql::get(&mut conn, self.id).await.ok()?;
        drop(conn);
        if let Some(ended) = ended {
            let app_id = ended.execution.app_id;
            let caller = self.admission.caller_now(&self.node).ok()?;
            let hidden = hides_payloads(&self.node, &caller, app_id);
            let ended = ExecutionWithLog::of(ended, hidden);
            self.tell(ended.logs.get(self.seen..).unwrap_or_default());
            if self.seen != usize::MAX {
                self.told.push_back(outcome(&ended));
            }
            self.has_ended = true;
            return Some(());
        }
        if !waits {
            return None;
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LOOK_AGAIN_MAX);
        Some(())
    }

    fn tell(&mut self, lines: &[LogLine]) {
        for line in lines {
            self.seen += 1;
            let data = serde_json::to_string(line).unwrap_or_default();
            let event = Event::default().event("log").id(self.seen.to_string());
            self.told.push_back(event.data(data));
        }
    }
}

fn outcome(ended: &ExecutionWithLog) -> Event {
    let mut outcome = serde_json::to_value(&ended.view).unwrap_or_default();
    outcome["logs_truncated"] = ended.logs_truncated.into();
    let data = outcome.to_string();
    Event::default().event("outcome").id(LAST_ID).data(data)
}

/// The most executions that a tree shows.
const TREE_MAX: i64 = 1_000;

/// Everything that a request led to.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ExecutionTree")]
struct Tree {
    request_id: Uuid,
    roots: Vec<Branch>,
    /// Whether there were more executions than a tree shows.
    truncated: bool,
}

/// An execution and those beneath it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ExecutionBranch")]
struct Branch {
    #[serde(flatten)]
    view: ExecutionView,
    children: Vec<Branch>,
}

async fn tree(
    State(node): State<Arc<Node>>,
    SignedIn(caller): SignedIn,
    Path(id): Path<ExecutionId>,
) -> Result<Json<Tree>, Problem> {
    let mut conn = settled(&node).await?;
    let ended = sql::get(&mut conn, id).await?.ok_or_else(|| missing(id))?;
    let Execution {
        app_id, request_id, ..
    } = ended.execution;
    let mut all = sql::of_request(&mut conn, app_id, request_id, TREE_MAX + 1).await?;
    let truncated = all.len() > TREE_MAX as usize;
    all.truncate(TREE_MAX as usize);
    let known: HashSet<ExecutionId> = all.iter().map(|execution| execution.id).collect();
    let hidden = hides_payloads(&node, &caller, app_id);
    let mut children = HashMap::<Option<ExecutionId>, Vec<ExecutionView>>::new();
    for execution in all {
        // One whose parent is not kept any more stands at the top.
        let parent = execution.parent_id.filter(|id| known.contains(id));
        let view = ExecutionView::of(execution, hidden);
        children.entry(parent).or_default().push(view);
    }
    Ok(Json(Tree {
        request_id,
        roots: branches(&mut children, None),
        truncated,
    }))
}

/// The executions beneath `parent`, each with those beneath it. They are as deep as events go,
/// which is not deep.
fn branches(
    children: &mut HashMap<Option<ExecutionId>, Vec<ExecutionView>>,
    parent: Option<ExecutionId>,
) -> Vec<Branch> {
    let views = children.remove(&parent).unwrap_or_default();
    let branch = |view: ExecutionView| Branch {
        children: branches(children, Some(view.execution.id)),
        view,
    };
    views.into_iter().map(branch).collect()
}

async fn abandoned(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<AbandonedExecution>>, Problem> {
    let before = page_cursor(query.cursor.as_deref())?.unwrap_or_else(|| Uuid::max().into());
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let rows = sql::abandoned_page(
        &mut settled(&node).await?,
        app_id,
        before,
        query.limit.and_one(),
    )
    .await?;
    Ok(Page::of(rows, query.limit.get(), |row| row.id.to_string()))
}
