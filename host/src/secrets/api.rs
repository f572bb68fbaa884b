//! The HTTP API of secrets. Nothing here answers a value.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Secret, VALUE_BYTES_MAX, sql};
use crate::http::answer::{NoContent, Page};
use crate::http::endpoints::{Api, Of, Rule};
use crate::http::etag::Tagged;
use crate::http::extract::{Body, PageQuery, Path, Query, app_named};
use crate::http::problem::{Problem, ProblemType};
use crate::identity::capability::Capability;
use crate::node::Node;
use crate::scripts::api::named_script;
use crate::store::Expected;

/// The endpoints of this room.
pub fn endpoints() -> Api {
    let manage = Rule::App(Capability::ManageSecrets, Of::App);
    Api::default()
        .get("/apps/{app}/secrets", manage, list)
        .called(
            "listSecrets",
            "List the secrets of an app, without their values",
        )
        .get("/apps/{app}/secrets/{name}", manage, show)
        .called("getSecret", "Show a secret, without its value")
        .put("/apps/{app}/secrets/{name}", manage, set)
        .called("setSecret", "Give a secret a value")
        .may_fail(&[ProblemType::TooMany, ProblemType::NoMasterKey])
        .delete("/apps/{app}/secrets/{name}", manage, remove)
        .called("deleteSecret", "Delete a secret")
        .post(
            "/secrets/rotate",
            Rule::Instance(Capability::ManageInstance),
            rotate,
        )
        .called(
            "rotateSecrets",
            "Encrypt what is under a previous master key under the current one",
        )
        .may_fail(&[ProblemType::NoMasterKey])
}

async fn list(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Secret>>, Problem> {
    let after = query.cursor.unwrap_or_default();
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let secrets = sql::page(
        &mut node.db.read().await?,
        app_id,
        &after,
        query.limit.and_one(),
    )
    .await?;
    Ok(Page::of(secrets, query.limit.get(), |secret| {
        secret.name.clone()
    }))
}

async fn show(
    State(node): State<Arc<Node>>,
    Path((app, name)): Path<(String, String)>,
) -> Result<Tagged<Json<Secret>>, Problem> {
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    Ok(Tagged::of(node.secrets.show(app_id, name).await?))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "SecretValue")]
struct NewValue {
    #[schemars(length(min = 1, max = VALUE_BYTES_MAX))]
    value: String,
    /// Names or ids.
    #[schemars(length(min = 1))]
    scripts: Option<Vec<String>>,
}

async fn set(
    State(node): State<Arc<Node>>,
    Path((app, name)): Path<(String, String)>,
    expected: Expected,
    Body(NewValue { value, scripts }): Body<NewValue>,
) -> Result<NoContent, Problem> {
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    if scripts.as_ref().is_some_and(Vec::is_empty) {
        let detail = "a secret for no script is of no use; leave it out if every script is meant";
        return Err(Problem::invalid_field("scripts", detail));
    }
    let mut ids = None;
    for named in scripts.into_iter().flatten() {
        let id = named.parse().ok();
        let by_name = Some(named.as_str()).filter(|_| id.is_none());
        let found = named_script(&node, app_id, id, by_name).await;
        let missing = || {
            let detail = format!("the app has no script `{named}`");
            Problem::invalid_field("scripts", detail)
        };
        let id = found.ok().flatten().ok_or_else(missing)?;
        ids.get_or_insert_with(Vec::new).push(id);
    }
    node.secrets
        .set(app_id, name, &value, ids, expected)
        .await?;
    Ok(NoContent)
}

async fn remove(
    State(node): State<Arc<Node>>,
    Path((app, name)): Path<(String, String)>,
    expected: Expected,
) -> Result<NoContent, Problem> {
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    super::check_name(&name)?;
    node.secrets.remove(app_id, name, expected).await?;
    Ok(NoContent)
}

/// What was encrypted anew.
#[derive(Serialize, JsonSchema)]
struct Rotated {
    /// How many secrets, and keys of subscriber tokens, came under the current key.
    rotated: u64,
    /// How many are under keys that this node does not have.
    under_missing_keys: u64,
}

/// Encrypt what is under a previous master key under the current one.
async fn rotate(State(node): State<Arc<Node>>) -> Result<Json<Rotated>, Problem> {
    let (secrets, secrets_missing) = node.secrets.rotate().await?;
    let (keys, keys_missing) = node.pubsub.reseal_keys().await?;
    Ok(Json(Rotated {
        rotated: secrets + keys,
        under_missing_keys: secrets_missing + keys_missing,
    }))
}
