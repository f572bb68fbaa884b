//! The HTTP API of topics, for people and tools. The streams are in `http/realtime.rs`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::tokens::{Rotated, Rotation};
use super::topics::parse_glob;
use super::{AuthMode, OpenTopic, PubSubError, Topic, sql};
use crate::apps::AppId;
use crate::directory;
use crate::http::answer::{NoContent, Page};
use crate::http::endpoints::{Api, Of, Rule, require};
use crate::http::etag::Tagged;
use crate::http::extract::{Body, PageQuery, Path, Query, SignedIn, app_named};
use crate::http::problem::{Problem, ProblemType};
use crate::http::stream::{self, Credential, EventStream};
use crate::identity::Caller;
use crate::identity::capability::Capability;
use crate::journal::{Channel, Entry, Told, Watch};
use crate::node::Node;
use crate::store::Expected;
use crate::triggers::firing::Origin;

/// For how long the journal keeps messages when nobody says: a day.
const RETENTION_S: u32 = 86_400;
/// The longest: 30 days.
const RETENTION_S_MAX: u32 = 30 * 86_400;
/// How many it keeps of a topic when nobody says.
const RETENTION_MESSAGES: u32 = 10_000;
/// The most.
const RETENTION_MESSAGES_MAX: u32 = 1_000_000;
/// What an origin looks like.
const ORIGIN: &str = r#"^(\*|https?://[!$%&()+-.0-;<=>\[\]^_`a-z{|}~]+)$"#;
/// The most origins of a topic.
const ORIGINS_MAX: usize = 50;

/// The endpoints of this room.
pub fn endpoints() -> Api {
    let manage = Rule::App(Capability::ManageTopics, Of::App);
    Api::default()
        .get("/apps/{app}/topics", manage, list)
        .called("listTopics", "List the topics that are open to subscribers")
        .get("/apps/{app}/topics/{topic}", manage, show)
        .called("getTopic", "Show how a topic is open to subscribers")
        .put("/apps/{app}/topics/{topic}", manage, open)
        .called("openTopic", "Let clients subscribe to a topic")
        .delete("/apps/{app}/topics/{topic}", manage, close)
        .called("closeTopic", "Let nobody subscribe to a topic any more")
        .post(
            "/apps/{app}/topics/{topic}/messages",
            Rule::App(Capability::Publish, Of::App),
            publish,
        )
        .called("publishMessage", "Publish a message to a topic")
        .get("/apps/{app}/topics/{topic}/events", manage, follow)
        .called(
            "followTopic",
            "Stream the messages of an open topic, whoever else may subscribe",
        )
        .may_fail(&[
            ProblemType::TooManyStreams,
            ProblemType::TooManyReplays,
            ProblemType::InvalidRequest,
        ])
        .post("/apps/{app}/subscriber-keys/rotate", manage, rotate)
        .called(
            "rotateSubscriberKeys",
            "Sign subscriber tokens with a new key",
        )
        .may_fail(&[ProblemType::NoMasterKey])
}

async fn list(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<OpenTopic>>, Problem> {
    let after = query.cursor.unwrap_or_default();
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let limit = query.limit;
    let topics = sql::page(&mut node.db.read().await?, app_id, &after, limit.and_one()).await?;
    Ok(Page::of(topics, limit.get(), |topic| {
        topic.name.to_string()
    }))
}

async fn show(
    State(node): State<Arc<Node>>,
    Path((app, topic)): Path<(String, String)>,
) -> Result<Tagged<Json<OpenTopic>>, Problem> {
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let name = parse_glob(&topic)?;
    let known = sql::get(&mut node.db.read().await?, app_id, &name).await?;
    Ok(Tagged::of(known.ok_or(PubSubError::NotOpen(topic))?))
}

/// How a topic is opened. What is left out is the default, also where it is open already.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "TopicOpening")]
struct Opening {
    auth_mode: AuthMode,
    #[schemars(range(min = 1, max = RETENTION_S_MAX))]
    retention_s: Option<u32>,
    #[schemars(range(min = 1, max = RETENTION_MESSAGES_MAX))]
    retention_messages: Option<u32>,
    #[serde(default)]
    #[schemars(length(max = ORIGINS_MAX), inner(regex(pattern = ORIGIN)))]
    cors_origins: Vec<String>,
}

async fn open(
    State(node): State<Arc<Node>>,
    Path((app, topic)): Path<(String, String)>,
    expected: Expected,
    Body(opening): Body<Opening>,
) -> Result<Tagged<Json<OpenTopic>>, Problem> {
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let name = parse_glob(&topic)?;
    let now = Utc::now();
    let mut topic = OpenTopic {
        name,
        auth_mode: opening.auth_mode,
        retention_s: opening.retention_s.unwrap_or(RETENTION_S),
        retention_messages: opening.retention_messages.unwrap_or(RETENTION_MESSAGES),
        cors_origins: opening.cors_origins,
        created_at: now,
        updated_at: now,
    };
    check_opening(&topic)?;
    let opened = node.db.write::<_, PubSubError, _>(move |tx| {
        Box::pin(async move {
            directory::raise_version(tx).await?;
            let known = sql::get(tx.conn().await?, app_id, &topic.name).await?;
            expected.check(known.as_ref())?;
            topic.created_at = known.map_or(tx.now, |known| known.created_at);
            topic.updated_at = tx.now;
            sql::upsert(tx, app_id, &topic).await?;
            Ok(topic)
        })
    });
    let topic = opened.await?;
    node.refresh_directory().await;
    Ok(Tagged::of(topic))
}

/// Check how a topic is to be open.
///
/// # Errors
/// 422 that names what is wrong.
pub fn check_opening(topic: &OpenTopic) -> Result<(), Problem> {
    for (field, given, most) in [
        ("retention_s", topic.retention_s, RETENTION_S_MAX),
        (
            "retention_messages",
            topic.retention_messages,
            RETENTION_MESSAGES_MAX,
        ),
    ] {
        if !(1..=most).contains(&given) {
            let detail = format!("{field} is 1 to {most}, not {given}");
            return Err(Problem::invalid_field(field, detail));
        }
    }
    check_origins(&topic.cors_origins)
}

fn check_origins(origins: &[String]) -> Result<(), Problem> {
    let field = "cors_origins";
    if origins.len() > ORIGINS_MAX {
        let detail = format!("a topic has at most {ORIGINS_MAX} origins; `*` means all");
        return Err(Problem::invalid_field(field, detail));
    }
    let is_origin = |origin: &str| {
        let host = origin
            .strip_prefix("https://")
            .or_else(|| origin.strip_prefix("http://"));
        let plain = |host: &str| {
            let of_hosts = |c: char| c.is_ascii_graphic() && !"/?#@\\\"',*".contains(c);
            !host.is_empty() && host.chars().all(of_hosts) && host == host.to_ascii_lowercase()
        };
        origin == "*" || host.is_some_and(plain)
    };
    match origins.iter().find(|origin| !is_origin(origin)) {
        Some(odd) => {
            let detail = format!(
                "an origin is `https://shop.example.com`, without a path and in lower case, or `*`; not `{odd}`"
            );
            Err(Problem::invalid_field(field, detail))
        }
        None => Ok(()),
    }
}

async fn close(
    State(node): State<Arc<Node>>,
    Path((app, topic)): Path<(String, String)>,
    expected: Expected,
) -> Result<NoContent, Problem> {
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let name = parse_glob(&topic)?;
    let closed = node.db.write(move |tx| {
        Box::pin(async move {
            directory::raise_version(tx).await?;
            let known = sql::get(tx.conn().await?, app_id, &name).await?;
            expected.check(known.as_ref())?;
            match sql::delete(tx, app_id, &name).await? {
                true => Ok(()),
                false => Err(PubSubError::NotOpen(topic)),
            }
        })
    });
    closed.await?;
    node.refresh_directory().await;
    Ok(NoContent)
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NewMessage")]
struct NewMessage {
    /// Any JSON.
    #[schemars(with = "serde_json::Value")]
    message: Box<RawValue>,
    #[serde(default)]
    ephemeral: bool,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MessageReceipt")]
struct ReceiptView {
    message_id: Uuid,
    published_at: DateTime<Utc>,
}

async fn publish(
    State(node): State<Arc<Node>>,
    Path((app, topic)): Path<(String, String)>,
    Body(new): Body<NewMessage>,
) -> Result<Json<ReceiptView>, Problem> {
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let message = new.message.get();
    let receipt = match new.ephemeral {
        true => node.pubsub.publish_ephemeral(app_id, topic, message)?,
        false => {
            let origin = Origin::act();
            node.pubsub
                .publish_durable(app_id, topic, message, origin)
                .await?
        }
    };
    Ok(Json(ReceiptView {
        message_id: receipt.message_id,
        published_at: receipt.published_at,
    }))
}

/// The messages of a topic for whoever manages it: `/realtime` is on the hosts of the app, for
/// those whom its mode lets in.
async fn follow(
    State(node): State<Arc<Node>>,
    SignedIn(caller): SignedIn,
    Path((app, topic)): Path<(String, String)>,
    request: Request,
) -> Result<EventStream, Problem> {
    let (parts, _) = request.into_parts();
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let topic = Topic::parse(topic)?;
    let channel = Channel::of_topic(app_id, topic.as_str());
    let watch = ManagerWatch {
        node: node.clone(),
        caller: caller.clone(),
        credential: Credential::of(&parts),
        app_id,
        topic,
    };
    if !watch.is_open() {
        return Err(PubSubError::NotOpen(watch.topic.as_str().to_owned()).into());
    }
    stream::of_user(&node, &caller, &parts, channel, Box::new(watch)).await
}

/// Whether somebody who manages topics may hear one, still.
struct ManagerWatch {
    node: Arc<Node>,
    caller: Caller,
    credential: Credential,
    app_id: AppId,
    topic: Topic,
}

impl ManagerWatch {
    fn is_open(&self) -> bool {
        let picture = self.node.directory.picture();
        let open = picture.open_topic(self.app_id, self.topic.as_str());
        open.is_some()
    }
}

impl Watch for ManagerWatch {
    fn ended(&self) -> Option<Told> {
        let Some(caller) = stream::as_of_now(&self.node, &self.caller) else {
            return Some(Told::Expired);
        };
        let manages = require(&self.node, &caller, self.app_id, Capability::ManageTopics).is_ok();
        let reset = || Told::Reset(Channel::of_topic(self.app_id, self.topic.as_str()));
        (!manages || !self.is_open()).then(reset)
    }

    fn shows(&self, _: &Entry) -> bool {
        true
    }

    fn renew(&self) -> BoxFuture<'_, bool> {
        self.credential.holds(&self.node).boxed()
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "SubscriberKeyRotation")]
struct RotateFields {
    #[serde(default)]
    revoke: bool,
}

async fn rotate(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Body(fields): Body<RotateFields>,
) -> Result<Json<Rotated>, Problem> {
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let rotation = match fields.revoke {
        true => Rotation::Revoke,
        false => Rotation::Overlap,
    };
    Ok(Json(node.pubsub.rotate(app_id, rotation).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_and_a_host() {
        let check = |origin: &str| check_origins(&[origin.to_owned()]).is_ok();
        for fine in [
            "*",
            "https://shop.example.com",
            "http://localhost:5173",
            "http://[::1]:80",
        ] {
            assert!(check(fine), "{fine}");
        }
        for odd in [
            "",
            "null",
            "shop.example.com",
            "https://",
            "https://a/",
            "https://A.example",
            "https://*.a",
        ] {
            assert!(!check(odd), "{odd}");
        }
    }
}
