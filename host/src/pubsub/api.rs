//! The HTTP API of topics, for people and tools. The streams are in `http/realtime.rs`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::tokens::{Rotated, Rotation};
use super::topics::parse_glob;
use super::{AuthMode, OpenTopic, PubSubError, Topic, sql};
use crate::apps::AppId;
use crate::cors::{self, LIST_MAX};
use crate::directory;
use crate::http::admission::Admission;
use crate::http::answer::{NoContent, Page};
use crate::http::endpoints::{Api, Of, Rule};
use crate::http::etag::Tagged;
use crate::http::extract::{Body, PageQuery, Path, Query, app_named};
use crate::http::problem::{Problem, ProblemType};
use crate::http::stream::{self, EventStream};
use crate::identity::capability::Capability;
use crate::journal::{Channel, Entry, Told, Watch};
use crate::node::Node;
use crate::quotas::objects::{self, Object};
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
        .may_fail(&[ProblemType::TooMany])
        .delete("/apps/{app}/topics/{topic}", manage, close)
        .called("closeTopic", "Let nobody subscribe to a topic any more")
        .post(
            "/apps/{app}/topics/{topic}/messages",
            Rule::App(Capability::Publish, Of::App),
            publish,
        )
        .called("publishMessage", "Publish a message to a topic")
        .may_fail(&[ProblemType::QuotaUsedUp])
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
        .may_fail(&[ProblemType::NoMasterKey, ProblemType::TooMany])
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
    #[schemars(length(max = LIST_MAX))]
    cors_origins: Vec<cors::Origin>,
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
    let topics_max = node.quotas.quotas().objects;
    let opened = node.db.write::<_, PubSubError, _>(move |tx| {
        Box::pin(async move {
            directory::raise_version(tx).await?;
            let known = sql::get(tx.conn().await?, app_id, &topic.name).await?;
            expected.check(known.as_ref())?;
            if known.is_none() {
                objects::check::<PubSubError>(tx, app_id, Object::Topics, topics_max).await?;
            }
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
    if topic.cors_origins.len() > LIST_MAX {
        let detail = format!("a topic has at most {LIST_MAX} origins; `*` means all");
        return Err(Problem::invalid_field("cors_origins", detail));
    }
    Ok(())
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
            // One that cannot be read can be closed, too.
            if expected != Expected::Anything {
                let known = sql::get(tx.conn().await?, app_id, &name).await?;
                expected.check(known.as_ref())?;
            }
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
    let message = node.pubsub.read(topic, new.message.get())?;
    let receipt = match new.ephemeral {
        true => node.pubsub.publish_ephemeral(app_id, message),
        false => {
            let origin = Origin::act();
            node.pubsub.publish_durable(app_id, message, origin).await?
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
    admission: Admission,
    Path((app, topic)): Path<(String, String)>,
    request: Request,
) -> Result<EventStream, Problem> {
    let (parts, _) = request.into_parts();
    let app_id = app_named(&node.directory.picture(), &app)?.id;
    let topic = Topic::parse(topic)?;
    let channel = Channel::of_topic(app_id, topic.as_str());
    let watch = ManagerWatch {
        node: node.clone(),
        admission: admission.clone(),
        app_id,
        topic,
    };
    if !watch.is_open() {
        return Err(PubSubError::NotOpen(watch.topic.as_str().to_owned()).into());
    }
    stream::of_user(&node, admission, &parts, channel, Box::new(watch)).await
}

/// Whether somebody who manages topics may hear one, still.
struct ManagerWatch {
    node: Arc<Node>,
    admission: Admission,
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
        let channel = Channel::of_topic(self.app_id, self.topic.as_str());
        let ended = stream::ended(&self.admission, &self.node, &channel);
        ended.or_else(|| (!self.is_open()).then_some(Told::Reset(channel)))
    }

    fn shows(&self, _: &Entry) -> bool {
        true
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
