//! The HTTP API of the key-value store, for people and tools.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{COLLECTION_BYTES_MAX, Entry, KEY_BYTES_MAX, Kv, sql};
use crate::http::answer::{NoContent, Page};
use crate::http::endpoints::{Api, Of, Rule};
use crate::http::etag::Tagged;
use crate::http::extract::{Body, Limit, PLAIN, PageQuery, Path, Query, app_named};
use crate::http::openapi::describe::{Operation, Output};
use crate::http::problem::{Problem, ProblemType};
use crate::identity::capability::Capability;
use crate::json::Read;
use crate::node::Node;
use crate::store::{ETag, Expected};
use crate::triggers::firing::Origin;

/// Says that a value was written before values were checked, and is shown as far as it can be read.
const REPAIRED: HeaderName = HeaderName::from_static("value-repaired");

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get(
            "/apps/{app}/kv",
            Rule::App(Capability::ReadKv, Of::App),
            collections,
        )
        .called("listCollections", "List the collections of an app")
        .taking_turns()
        .get(
            "/apps/{app}/kv/{collection}",
            Rule::App(Capability::ReadKv, Of::App),
            list,
        )
        .called("listKvEntries", "List the entries of a collection")
        .taking_turns()
        .get(
            "/apps/{app}/kv/{collection}/{key}",
            Rule::App(Capability::ReadKv, Of::App),
            show,
        )
        .called("getKvValue", "Read the value of a key")
        .put(
            "/apps/{app}/kv/{collection}/{key}",
            Rule::App(Capability::WriteKv, Of::App),
            set,
        )
        .called("setKvValue", "Give a key a value")
        .may_fail(&[ProblemType::QuotaUsedUp])
        .delete(
            "/apps/{app}/kv/{collection}/{key}",
            Rule::App(Capability::WriteKv, Of::App),
            remove,
        )
        .called("deleteKvValue", "Remove a key")
        .may_fail(&[ProblemType::QuotaUsedUp])
        // The same by the query: of a path, browsers take `.` and `..` out, however they are written.
        .get(
            "/apps/{app}/kv-entries",
            Rule::App(Capability::ReadKv, Of::App),
            list_named,
        )
        .called(
            "listKvEntriesOf",
            "List the entries of a collection, whatever it is called",
        )
        .taking_turns()
        .get(
            "/apps/{app}/kv-value",
            Rule::App(Capability::ReadKv, Of::App),
            show_named,
        )
        .called(
            "getKvValueOf",
            "Read the value of a key, whatever it is called",
        )
        .put(
            "/apps/{app}/kv-value",
            Rule::App(Capability::WriteKv, Of::App),
            set_named,
        )
        .named_by_query()
        .called("setKvValueOf", "Give a key a value, whatever it is called")
        .may_fail(&[ProblemType::QuotaUsedUp])
        .delete(
            "/apps/{app}/kv-value",
            Rule::App(Capability::WriteKv, Of::App),
            remove_named,
        )
        .named_by_query()
        .called("deleteKvValueOf", "Remove a key, whatever it is called")
        .may_fail(&[ProblemType::QuotaUsedUp])
}

fn kv(node: &Node, app: &str) -> Result<Kv, Problem> {
    let app_id = app_named(&node.directory.picture(), app)?.id;
    Ok(node.kv.of(app_id, Origin::act()))
}

/// A collection.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Collection")]
struct CollectionView {
    collection: String,
    /// How many keys it has.
    keys: i64,
}

async fn collections(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<CollectionView>>, Problem> {
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let after = query.cursor.unwrap_or_default();
    let rows = sql::collections(
        &mut node.db.read().await?,
        app_id,
        &after,
        query.limit.and_one(),
    )
    .await?;
    let rows = rows
        .into_iter()
        .map(|(collection, keys)| CollectionView { collection, keys });
    Ok(Page::of(rows.collect(), query.limit.get(), |row| {
        row.collection.clone()
    }))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// Keys that begin so.
    prefix: Option<String>,
    /// How many at most.
    #[serde(default)]
    limit: Limit,
    /// Where to begin: the `next_cursor` of the page before.
    cursor: Option<String>,
}

/// The same, with the collection.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EntriesQuery {
    /// The collection.
    #[schemars(length(min = 1, max = COLLECTION_BYTES_MAX), regex(pattern = PLAIN))]
    collection: String,
    /// Keys that begin so.
    prefix: Option<String>,
    /// How many at most.
    #[serde(default)]
    limit: Limit,
    /// Where to begin: the `next_cursor` of the page before.
    cursor: Option<String>,
}

/// A key of a collection.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct KeyQuery {
    /// The collection.
    #[schemars(length(min = 1, max = COLLECTION_BYTES_MAX), regex(pattern = PLAIN))]
    collection: String,
    /// The key.
    #[schemars(length(min = 1, max = KEY_BYTES_MAX), regex(pattern = PLAIN))]
    key: String,
}

async fn list_named(
    node: State<Arc<Node>>,
    Path(app): Path<String>,
    Query(query): Query<EntriesQuery>,
) -> Result<Json<Page<Entry>>, Problem> {
    let EntriesQuery {
        collection,
        prefix,
        limit,
        cursor,
    } = query;
    let query = ListQuery {
        prefix,
        limit,
        cursor,
    };
    list(node, Path((app, collection)), Query(query)).await
}

async fn show_named(
    node: State<Arc<Node>>,
    Path(app): Path<String>,
    Query(KeyQuery { collection, key }): Query<KeyQuery>,
) -> Result<Tagged<Shown>, Problem> {
    show(node, Path((app, collection, key))).await
}

async fn set_named(
    node: State<Arc<Node>>,
    Path(app): Path<String>,
    Query(KeyQuery { collection, key }): Query<KeyQuery>,
    expected: Expected,
    value: Body<Box<RawValue>>,
) -> Result<Tagged<NoContent>, Problem> {
    set(node, Path((app, collection, key)), expected, value).await
}

async fn remove_named(
    node: State<Arc<Node>>,
    Path(app): Path<String>,
    Query(KeyQuery { collection, key }): Query<KeyQuery>,
    expected: Expected,
) -> Result<NoContent, Problem> {
    remove(node, Path((app, collection, key)), expected).await
}

async fn list(
    State(node): State<Arc<Node>>,
    Path((app, collection)): Path<(String, String)>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<Entry>>, Problem> {
    let limit = u32::try_from(query.limit.get()).ok();
    let prefix = query.prefix.unwrap_or_default();
    let cursor = query.cursor.as_deref().filter(|text| !text.is_empty());
    let listed = kv(&node, &app)?
        .list(collection, &prefix, cursor, limit)
        .await?;
    Ok(Json(Page {
        items: listed.entries,
        next_cursor: listed.next.map(|cursor| cursor.to_string()),
    }))
}

fn missing(collection: &str, key: &str) -> Problem {
    Problem::not_found(format!("the collection `{collection}` has no key `{key}`"))
}

async fn show(
    State(node): State<Arc<Node>>,
    Path((app, collection, key)): Path<(String, String, String)>,
) -> Result<Tagged<Shown>, Problem> {
    let value = kv(&node, &app)?
        .get(collection.clone(), key.clone())
        .await?;
    let value = value.ok_or_else(|| missing(&collection, &key))?;
    Ok(Tagged {
        etag: value.etag(),
        answer: Shown(value.read()),
    })
}

/// A value, and a word about it where it is not as it was stored.
struct Shown(Read);

impl IntoResponse for Shown {
    fn into_response(self) -> Response {
        let Self(Read { value, repaired }) = self;
        let mut response = Json(value.into_raw()).into_response();
        if repaired {
            let headers = response.headers_mut();
            headers.insert(REPAIRED, HeaderValue::from_static("true"));
        }
        response
    }
}

impl Output for Shown {
    fn describe(operation: &mut Operation<'_>) {
        Json::<Box<RawValue>>::describe(operation);
        operation.answers_header(
            REPAIRED.as_str(),
            "`true` where the value is not as it was stored, because nobody could read that",
        );
    }
}

async fn set(
    State(node): State<Arc<Node>>,
    Path((app, collection, key)): Path<(String, String, String)>,
    expected: Expected,
    Body(value): Body<Box<RawValue>>,
) -> Result<Tagged<NoContent>, Problem> {
    let etag = ETag::of(&value);
    let kv = kv(&node, &app)?.expecting(expected);
    kv.set(collection, key, Box::<str>::from(value).into())
        .await?;
    let answer = NoContent;
    Ok(Tagged { etag, answer })
}

async fn remove(
    State(node): State<Arc<Node>>,
    Path((app, collection, key)): Path<(String, String, String)>,
    expected: Expected,
) -> Result<NoContent, Problem> {
    let kv = kv(&node, &app)?.expecting(expected);
    match kv.delete(collection.clone(), key.clone()).await? {
        true => Ok(NoContent),
        false => Err(missing(&collection, &key)),
    }
}
