//! The HTTP API of scripts.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::named::{self, Named};
use super::{Kind, Script, ScriptError, ScriptId, ScriptLimits, sql};
use crate::apps::{AppId, NAME_BYTES_MAX};
use crate::directory;
use crate::dispatch::Answer;
use crate::executions::{ExecutionError, ExecutionId, OutcomeKind};
use crate::http::answer::{Created, NoContent, Page};
use crate::http::endpoints::{Api, Of, Rule};
use crate::http::etag::Tagged;
use crate::http::extract::{
    Body, Limit, NAME, PageQuery, Path, Query, SignedIn, app_named, checked_name, page_cursor,
};
use crate::http::problem::{DiagnosticView, Problem, ProblemType};
use crate::identity::capability::Capability;
use crate::json;
use crate::node::Node;
use crate::quotas::objects::{self, Object};
use crate::sandbox::{self, LogLine, Outcome};
use crate::store::{ETag, Expected, StoreError};

/// The largest source, in bytes.
const SOURCE_BYTES_MAX: usize = 1024 * 1024;

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get(
            "/apps/{app}/scripts",
            Rule::App(Capability::ReadScripts, Of::App),
            list,
        )
        .called("listScripts", "List the scripts of an app")
        .post(
            "/apps/{app}/scripts",
            Rule::App(Capability::WriteScripts, Of::App),
            create,
        )
        .called("createScript", "Add a script to an app")
        .may_fail(&[
            ProblemType::NameTaken,
            ProblemType::InvalidSource,
            ProblemType::Overloaded,
            ProblemType::TooMany,
            ProblemType::QuotaUsedUp,
        ])
        .post(
            "/apps/{app}/scripts/validate",
            Rule::App(Capability::WriteScripts, Of::App),
            validate,
        )
        .called("validateSource", "Look for mistakes in a source")
        .may_fail(&[ProblemType::Overloaded])
        .get(
            "/scripts/{id}",
            Rule::App(Capability::ReadScripts, Of::Script),
            show,
        )
        .called("getScript", "Show a script with its source")
        .patch(
            "/scripts/{id}",
            Rule::App(Capability::WriteScripts, Of::Script),
            change,
        )
        .called("changeScript", "Make a new version of a script")
        .may_fail(&[
            ProblemType::NameTaken,
            ProblemType::VersionConflict,
            ProblemType::InvalidSource,
            ProblemType::Overloaded,
            ProblemType::QuotaUsedUp,
        ])
        .delete(
            "/scripts/{id}",
            Rule::App(Capability::WriteScripts, Of::Script),
            remove,
        )
        .called("deleteScript", "Delete a script")
        .get(
            "/scripts/{id}/versions",
            Rule::App(Capability::ReadScripts, Of::Script),
            versions,
        )
        .called(
            "listScriptVersions",
            "List the versions of a script, newest first",
        )
        .get(
            "/scripts/{id}/versions/{version}",
            Rule::App(Capability::ReadScripts, Of::Script),
            version,
        )
        .called("getScriptVersion", "Show a version of a script")
        .post(
            "/scripts/{id}/execute",
            Rule::App(Capability::WriteScripts, Of::Script),
            execute,
        )
        .called(
            "executeScript",
            "Run a script now, or a draft of it, as you",
        )
        .may_fail(&[ProblemType::Overloaded])
}

/// A script with the source of one of its versions, if it has a source.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ScriptWithSource")]
struct ScriptView {
    #[serde(flatten)]
    script: Script,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
}

/// A script with the source of its current version, which no other source ever has.
async fn tagged(node: &Node, script: Script) -> Result<Tagged<Json<ScriptView>>, Problem> {
    let source = source_of(node, &script, script.version).await?;
    Ok(Tagged {
        etag: ETag::of(&script),
        answer: Json(ScriptView { script, source }),
    })
}

async fn known(node: &Node, id: ScriptId) -> Result<Script, Problem> {
    let script = sql::get(&mut node.db.read().await?, id).await?;
    script.ok_or_else(|| ScriptError::NotFound(id.to_string()).into())
}

/// The script that a body names by id or by name; one of another app is none.
///
/// # Errors
/// 404 when there is none, 422 when both are given.
pub async fn named_script(
    node: &Node,
    app_id: AppId,
    id: Option<ScriptId>,
    name: Option<&str>,
) -> Result<Option<ScriptId>, Problem> {
    let mut conn = node.db.read().await?;
    let (found, named) = match (id, name) {
        (Some(_), Some(_)) => {
            return Err(Problem::invalid_field(
                "script",
                "give `script_id` or `script`, not both",
            ));
        }
        (Some(id), None) => (sql::get(&mut conn, id).await?, id.to_string()),
        (None, Some(name)) => {
            let found = sql::page(&mut conn, app_id, Some(name), None, 1).await?;
            (found.into_iter().next(), name.to_owned())
        }
        (None, None) => return Ok(None),
    };
    let found = found.filter(|script| script.app_id == app_id);
    found
        .map(|script| Some(script.id))
        .ok_or_else(|| ScriptError::NotFound(named).into())
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    name: Option<String>,
    /// How many at most.
    #[serde(default)]
    limit: Limit,
    /// Where to begin: the `next_cursor` of the page before.
    cursor: Option<String>,
}

async fn list(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<Script>>, Problem> {
    let after = page_cursor(query.cursor.as_deref())?;
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let mut conn = node.db.read().await?;
    let scripts = sql::page(
        &mut conn,
        app_id,
        query.name.as_deref(),
        after,
        query.limit.and_one(),
    )
    .await?;
    Ok(Page::of(scripts, query.limit.get(), |script| {
        script.id.to_string()
    }))
}

/// See that these bytes can be a source; whether it validates, the runner says.
///
/// # Errors
/// 422 when it is too long or no UTF-8.
pub fn checked_source(source: &[u8]) -> Result<(), Problem> {
    if source.len() > SOURCE_BYTES_MAX {
        let detail = format!("a source has at most {SOURCE_BYTES_MAX} bytes");
        return Err(Problem::invalid_field("source", detail));
    }
    let utf8 = std::str::from_utf8(source).map(|_| ());
    utf8.map_err(|error| Problem::invalid_field("source", error.to_string()))
}

/// What was given as code: a source, or a component.
fn code(
    kind: Kind,
    source: Option<String>,
    wasm_base64: Option<String>,
) -> Result<Option<Bytes>, Problem> {
    match (kind, source, wasm_base64) {
        (_, None, None) => Ok(None),
        (Kind::Rhai, Some(source), None) => {
            checked_source(source.as_bytes())?;
            Ok(Some(source.into()))
        }
        (Kind::Component, None, Some(text)) => {
            let wasm = STANDARD.decode(text);
            let wasm =
                wasm.map_err(|error| Problem::invalid_field("wasm_base64", error.to_string()))?;
            Ok(Some(wasm.into()))
        }
        (Kind::Rhai, _, Some(_)) => Err(Problem::invalid_field(
            "wasm_base64",
            "a script of the kind `rhai` has a `source`",
        )),
        (Kind::Component, Some(_), _) => {
            let detail =
                "a script of the kind `component` has `wasm_base64`, the component's bytes";
            Err(Problem::invalid_field("source", detail))
        }
    }
}

/// See that a script may have these limits.
///
/// # Errors
/// 422 names the one that is above the instance's ceiling.
pub fn checked_limits(node: &Node, limits: &ScriptLimits) -> Result<(), Problem> {
    match limits.first_outside(&node.config.ceiling) {
        None => Ok(()),
        Some((field, most)) => Err(Problem::invalid_field(
            field,
            format!("must be 1 to {most}, the instance's ceiling"),
        )),
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NewScript {
    #[schemars(extend("maxLength" = NAME_BYTES_MAX, "pattern" = NAME))]
    name: String,
    #[serde(default = "rhai")]
    kind: Kind,
    source: Option<String>,
    wasm_base64: Option<String>,
    #[serde(default)]
    limits: ScriptLimits,
}

fn rhai() -> Kind {
    Kind::Rhai
}

async fn create(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Body(new): Body<NewScript>,
) -> Result<Created<ScriptView>, Problem> {
    let app = app_named(&node.directory.picture(), &app)?.clone();
    let NewScript {
        name,
        kind,
        source,
        wasm_base64,
        limits,
    } = new;
    checked_name("name", &name)?;
    checked_limits(&node, &limits)?;
    let code = code(kind, source.clone(), wasm_base64)?.ok_or_else(|| match kind {
        Kind::Rhai => Problem::invalid_field("source", "missing field `source`"),
        Kind::Component => Problem::invalid_field("wasm_base64", "missing field `wasm_base64`"),
    })?;
    let checked = node.runner.check(&app, kind, &code).await?;
    let (app_id, bytes, scripts_max) = (app.id, code.len(), node.quotas.quotas().objects);
    let old = node
        .quotas
        .room_for_version::<ScriptError>(app_id, bytes)
        .await?;
    let removed = old.clone();
    let script = node
        .db
        .write(move |tx| {
            Box::pin(async move {
                let id = ScriptId::new();
                directory::raise_version(tx).await?;
                objects::check::<ScriptError>(tx, app_id, Object::Scripts, scripts_max).await?;
                old.remove(tx).await?;
                let (created_at, updated_at) = (tx.now, tx.now);
                let script = Script {
                    id,
                    app_id,
                    name,
                    kind,
                    version: 1,
                    limits,
                    created_at,
                    updated_at,
                };
                let inserted = sql::insert(tx, &script, &code).await;
                inserted.map_err(|error| name_taken(error, &script.name))?;
                tx.creates(id);
                Ok::<_, ScriptError>(script)
            })
        })
        .await?;
    node.quotas.note_version(app_id, bytes, &removed);
    checked.keep();
    node.refresh_directory().await;
    Ok(Created(ScriptView { script, source }))
}

fn name_taken(error: StoreError, name: &str) -> ScriptError {
    match error {
        StoreError::Duplicate => ScriptError::NameTaken(name.to_owned()),
        error => error.into(),
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Source {
    source: String,
}

#[derive(Serialize, JsonSchema)]
struct Diagnosis {
    /// None when the source is fine.
    diagnostics: Vec<DiagnosticView>,
}

async fn validate(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Body(Source { source }): Body<Source>,
) -> Result<Json<Diagnosis>, Problem> {
    let app = app_named(&node.directory.picture(), &app)?.clone();
    code(Kind::Rhai, Some(source.clone()), None)?;
    let found = node.runner.diagnose(&app, &source).await?;
    let diagnostics = found.into_iter().map(Into::into).collect();
    Ok(Json(Diagnosis { diagnostics }))
}

async fn show(
    State(node): State<Arc<Node>>,
    Path(id): Path<ScriptId>,
) -> Result<Tagged<Json<ScriptView>>, Problem> {
    tagged(&node, known(&node, id).await?).await
}

async fn source_of(node: &Node, script: &Script, version: u32) -> Result<Option<String>, Problem> {
    let code = sql::code(&mut node.db.read().await?, script.id, version).await?;
    let code = code.ok_or_else(|| {
        Problem::not_found(format!(
            "the script `{}` has no version {version}",
            script.name
        ))
    })?;
    Ok((script.kind == Kind::Rhai).then(|| String::from_utf8_lossy(&code).into_owned()))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ScriptChange")]
struct Change {
    version: u32,
    #[schemars(extend("maxLength" = NAME_BYTES_MAX, "pattern" = NAME))]
    name: Option<String>,
    source: Option<String>,
    wasm_base64: Option<String>,
    limits: Option<ScriptLimits>,
}

async fn change(
    State(node): State<Arc<Node>>,
    Path(id): Path<ScriptId>,
    expected: Expected,
    Body(change): Body<Change>,
) -> Result<Tagged<Json<ScriptView>>, Problem> {
    let script = known(&node, id).await?;
    if let Some(name) = &change.name {
        checked_name("name", name)?;
    }
    if let Some(limits) = &change.limits {
        checked_limits(&node, limits)?;
    }
    let new = code(
        script.kind,
        change.source.clone(),
        change.wasm_base64.clone(),
    )?;
    let checked = match &new {
        None => None,
        Some(new) => {
            let picture = node.directory.picture();
            let app = picture.app(script.app_id);
            let app = app.ok_or_else(|| Problem::from(ScriptError::NotFound(id.to_string())))?;
            Some(node.runner.check(app, script.kind, new).await?)
        }
    };
    let bytes = match &new {
        Some(new) => new.len(),
        // A version of its own all the same, with the same code.
        None => sql::code_bytes(&mut node.db.read().await?, id, script.version).await?,
    };
    let old = node
        .quotas
        .room_for_version::<ScriptError>(script.app_id, bytes)
        .await?;
    let removed = old.clone();
    let read_version = change.version;
    let script = node
        .db
        .write(move |tx| {
            Box::pin(async move {
                directory::raise_version(tx).await?;
                let known = sql::get(tx.conn().await?, id).await?;
                expected.check(known.as_ref())?;
                let mut script = known.ok_or_else(|| ScriptError::NotFound(id.to_string()))?;
                let current = script.version;
                if current != read_version {
                    return Err(ScriptError::VersionConflict {
                        expected: read_version,
                        current,
                    });
                }
                let current_code = sql::code(tx.conn().await?, id, current).await?;
                let new = code(script.kind, change.source, change.wasm_base64)
                    .ok()
                    .flatten();
                let bytes = new
                    .or(current_code)
                    .ok_or_else(|| ScriptError::NotFound(id.to_string()))?;
                old.remove(tx).await?;
                script.name = change.name.unwrap_or(script.name);
                script.limits = change.limits.unwrap_or(script.limits);
                script.version += 1;
                script.updated_at = tx.now;
                let updated = sql::update(tx, &script, current).await;
                if !updated.map_err(|error| name_taken(error, &script.name))? {
                    return Err(ScriptError::VersionConflict {
                        expected: current,
                        current: current + 1,
                    });
                }
                sql::insert_version(tx, &script, &bytes).await?;
                Ok(script)
            })
        })
        .await?;
    node.quotas.note_version(script.app_id, bytes, &removed);
    if let Some(checked) = checked {
        checked.keep();
    }
    node.refresh_directory().await;
    tagged(&node, script).await
}

async fn remove(
    State(node): State<Arc<Node>>,
    Path(id): Path<ScriptId>,
    expected: Expected,
) -> Result<NoContent, Problem> {
    node.db
        .write(move |tx| {
            Box::pin(async move {
                directory::raise_version(tx).await?;
                expected.check(sql::get(tx.conn().await?, id).await?.as_ref())?;
                match sql::delete(tx, id).await? {
                    true => Ok(()),
                    false => Err(ScriptError::NotFound(id.to_string())),
                }
            })
        })
        .await?;
    node.refresh_directory().await;
    Ok(NoContent)
}

/// One of the versions of a script.
#[derive(Serialize, JsonSchema)]
struct ScriptVersion {
    version: i64,
    created_at: DateTime<Utc>,
}

async fn versions(
    State(node): State<Arc<Node>>,
    Path(id): Path<ScriptId>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<ScriptVersion>>, Problem> {
    let before = page_cursor(query.cursor.as_deref())?.unwrap_or(u32::MAX);
    let script = known(&node, id).await?;
    let mut conn = node.db.read().await?;
    let versions = sql::versions(&mut conn, script.id, before, query.limit.and_one()).await?;
    let versions = versions.into_iter();
    let versions = versions.map(|(version, created_at)| ScriptVersion {
        version,
        created_at,
    });
    Ok(Page::of(versions.collect(), query.limit.get(), |one| {
        one.version.to_string()
    }))
}

/// The code of a version; a component has no source to show.
#[derive(Serialize, JsonSchema)]
struct ScriptCode {
    version: u32,
    kind: Kind,
    source: Option<String>,
}

async fn version(
    State(node): State<Arc<Node>>,
    Path((id, version)): Path<(ScriptId, u32)>,
) -> Result<Json<ScriptCode>, Problem> {
    let script = known(&node, id).await?;
    let source = source_of(&node, &script, version).await?;
    Ok(Json(ScriptCode {
        version,
        kind: script.kind,
        source,
    }))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Execute {
    #[serde(default = "post_method")]
    method: String,
    #[serde(default = "root_path")]
    path: String,
    #[serde(default)]
    query: Named,
    #[serde(default)]
    headers: Named,
    /// Any JSON.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Option<serde_json::Value>")]
    body: Option<Box<RawValue>>,
    /// A draft: it is run in place of the script's own source, and not kept.
    source: Option<String>,
}

fn post_method() -> String {
    "POST".to_owned()
}

fn root_path() -> String {
    "/".to_owned()
}

/// `null` is a body; only an absent one is none.
fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(from).map(Some)
}

/// What a script answered.
#[derive(Serialize, JsonSchema)]
struct ScriptAnswer {
    status: u16,
    /// Names and values.
    headers: Vec<(String, String)>,
    /// The body, where it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    /// The body, where it is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

impl From<sandbox::Response> for ScriptAnswer {
    fn from(response: sandbox::Response) -> Self {
        let (body, body_base64) = match std::str::from_utf8(&response.body) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(STANDARD.encode(&response.body))),
        };
        Self {
            status: response.status,
            headers: response.headers,
            body,
            body_base64,
        }
    }
}

/// What became of a run.
#[derive(Serialize, JsonSchema)]
struct Executed {
    execution_id: ExecutionId,
    outcome: OutcomeKind,
    /// What the script answered, if it did.
    response: Option<ScriptAnswer>,
    error: Option<ExecutionError>,
    fuel: u64,
    duration_us: u64,
    logs: Vec<LogLine>,
    /// Whether lines were dropped at a limit.
    logs_truncated: bool,
}

async fn execute(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(id): Path<ScriptId>,
    Body(call): Body<Execute>,
) -> Result<Json<Executed>, Problem> {
    let headers: Vec<(String, String)> = named::pairs(call.headers)
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .collect();
    let given = headers.iter().find(|(name, _)| name == "content-type");
    let content_type = given.map_or("application/json".to_owned(), |(_, ty)| ty.clone());
    let body = call.body.map(json::Json::of).transpose();
    let body = body.map_err(|refused| Problem::not_json("body", &refused))?;
    let body = body.map(|body| sandbox::Body {
        // Text of another type than JSON is sent as it is.
        bytes: match serde_json::from_str::<String>(body.as_str()) {
            Ok(text) if !json::is_content_type(&content_type) => text.into(),
            _ => String::from(body).into(),
        },
        content_type: Some(content_type),
    });
    let request = sandbox::Request {
        method: call.method.to_ascii_uppercase(),
        path: call.path,
        query: named::pairs(call.query).collect(),
        headers,
        body,
        ..sandbox::Request::default()
    };
    let script = known(&node, id).await?;
    let draft = code(script.kind, call.source, None)?;
    node.db.check_for_call()?;
    // Held until the guest has ended, whether or not the client stays: see `http/seen_through.rs`.
    let permit = node.dispatcher.enter(script.app_id)?;
    let (ended, answer) = node.runner.execute(script.id, who, request, draft).await?;
    node.tally.count(&ended.execution);
    drop(permit);
    let response = match answer {
        Answer::Outcome(Outcome::Answered(response)) => Some(response.into()),
        _ => None,
    };
    let execution = ended.execution;
    Ok(Json(Executed {
        execution_id: execution.id,
        outcome: execution.outcome,
        response,
        error: execution.error,
        fuel: execution.fuel,
        duration_us: execution.duration_us,
        logs: ended.log.lines,
        logs_truncated: ended.log.truncated,
    }))
}
