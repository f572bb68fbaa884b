//! An app as a file: its scripts with all their versions, routes, triggers, open topics and hosts,
//! and its key-value store if wanted. Things in it go by name, so that it can become an app of any instance.
//!
//! Not in it: the values of secrets, members, and what happened (executions, deliveries, dead
//! letters, messages).

pub mod api;
mod import;

pub use import::{Import, ImportError, Terms};

use chrono::Utc;
use serde::{Deserialize, Serialize};

use crate::apps::{self, App, AppId, HostPattern, Slug};
use crate::archive::{Format, Giver, MakeError, Writer};
use crate::cors;
use crate::dispatch::retry::RetryPolicy;
use crate::idempotency::{EventPolicy, RoutePolicy};
use crate::kv::{self, Stored};
use crate::pubsub::{self, AuthMode, OpenTopic};
use crate::routes::{self, DispatchMode, MethodPattern, PathPattern, Route, TrailingSlash};
use crate::scripts::{self, Kind, ScriptId, ScriptLimits};
use crate::secrets;
use crate::store::{Conn, StoreError};
use crate::triggers::{
    self, DeadLetterFilter, Glob, KvFilter, Op, OrderedBy, PubSubFilter, Source, Trigger, TriggerId,
};

/// What an exported app is.
pub const FORMAT: Format = Format {
    name: "picloud-app",
    title: "exported app",
    version: 1,
};

/// The largest file that is imported, in bytes.
pub const IMPORT_BYTES_MAX: usize = 64 << 20;
/// The most that may be in it, in bytes.
const CONTENT_BYTES_MAX: u64 = 256 << 20;
/// The largest code of a script, in bytes; what is a script, the sandbox decides.
const CODE_BYTES_MAX: usize = 16 << 20;
/// Entries of the key-value store that are read at once.
const KV_PAGE: u32 = 500;

/// How many rows one transaction of an import writes, and about how many bytes: others wait for it.
const BATCH_ROWS: usize = 500;
const BATCH_BYTES: usize = 256 << 10;
/// How many routes, triggers or topics one writes: each takes statements of its own.
const BATCH_PARTS: usize = 20;

const KV: &str = "kv.jsonl";

/// What the file says of the app.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortableApp {
    slug: Slug,
    name: String,
    hosts: Vec<HostPattern>,
    /// Left out where it is not so: older versions know no such member.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    hide_payloads_from_viewers: bool,
    scripts: Vec<PortableScript>,
    routes: Vec<PortableRoute>,
    triggers: Vec<PortableTrigger>,
    /// Files of before there were topics have none.
    #[serde(default)]
    topics: Vec<PortableTopic>,
    /// The names of its secrets.
    secrets: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortableScript {
    name: String,
    kind: Kind,
    limits: ScriptLimits,
    /// The current one.
    version: u32,
    versions: Vec<u32>,
}

impl PortableScript {
    /// The entry of a version's code, of the script that is listed at this place.
    fn entry(place: usize, version: u32, kind: Kind) -> String {
        let ending = match kind {
            Kind::Rhai => "rhai",
            Kind::Component => "wasm",
        };
        format!("scripts/{place}-{version}.{ending}")
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortableRoute {
    /// None: the script is gone, and the route answers 404.
    script: Option<String>,
    method: MethodPattern,
    host: Option<HostPattern>,
    path: PathPattern,
    dispatch_mode: DispatchMode,
    /// Files of older versions do not say.
    #[serde(default)]
    trailing_slash: TrailingSlash,
    idempotency: Option<RoutePolicy>,
    cors: Option<cors::Policy>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortableTrigger {
    name: String,
    /// None: the script is gone.
    script: Option<String>,
    enabled: bool,
    paused: bool,
    dispatch_mode: triggers::DispatchMode,
    retry: RetryPolicy,
    ordered_by: Option<OrderedBy>,
    idempotency: Option<EventPolicy>,
    listens_to: ListensTo,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum ListensTo {
    Kv {
        collection: Glob,
        ops: Vec<Op>,
        key: Option<Glob>,
    },
    DeadLetter {
        source: Option<Source>,
        /// Empty where it is one that was deleted: such a filter hears nothing.
        trigger: Option<String>,
        /// The same.
        script: Option<String>,
    },
    #[serde(rename = "pubsub")]
    PubSub { topic: Glob },
}

/// A topic that is open to subscribers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortableTopic {
    /// A topic, or the beginning of topics and `*`.
    name: String,
    auth_mode: AuthMode,
    retention_s: u32,
    retention_messages: u32,
    cors_origins: Vec<cors::Origin>,
}

/// Write an app, seen through a connection that sees one moment.
///
/// # Errors
/// When the database fails, or nobody takes the pieces.
pub async fn export(
    mut conn: Conn,
    app: AppId,
    with_kv: bool,
    give: Giver,
) -> Result<(), MakeError> {
    let made_at = Utc::now();
    let conn = &mut conn;
    let found = apps::sql::get(conn, app).await?;
    let gone = || StoreError::Unusable("the app was just deleted".to_owned());
    // By name, as routes and triggers are below.
    let App {
        id: _,
        slug,
        name,
        hosts,
        hide_payloads_from_viewers,
        created_at: _,
        updated_at: _,
    } = found.ok_or_else(gone)?;
    let mut archive = Writer::new();
    let known = scripts::sql::page(conn, app, None, None, i64::MAX).await?;
    let mut portable = Vec::new();
    for (place, script) in known.iter().enumerate() {
        let mut versions = Vec::new();
        for (version, _) in scripts::sql::versions(conn, script.id, u32::MAX, i64::MAX).await? {
            let version = u32::try_from(version).unwrap_or_default();
            let code = scripts::sql::code(conn, script.id, version).await?;
            archive.begin(&PortableScript::entry(place, version, script.kind))?;
            archive.write(&code.unwrap_or_default())?;
            give.piece(archive.take()).await?;
            versions.push(version);
        }
        portable.push(PortableScript {
            name: script.name.clone(),
            kind: script.kind,
            limits: script.limits,
            version: script.version,
            versions,
        });
    }
    let script_named = |id: ScriptId| {
        let found = known.iter().find(|script| script.id == id);
        found.map(|script| script.name.clone())
    };
    let routes = routes::sql::page(conn, app, None, i64::MAX).await?;
    let all = triggers::sql::page(conn, app, None, i64::MAX).await?;
    let trigger_named = |id: TriggerId| {
        let found = all.iter().find(|trigger| trigger.id == id);
        found.map(|trigger| trigger.name.clone())
    };
    let about = PortableApp {
        slug,
        name,
        hosts,
        hide_payloads_from_viewers,
        scripts: portable,
        routes: routes
            .into_iter()
            .map(|route| portable_route(route, script_named))
            .collect(),
        triggers: all
            .iter()
            .map(|trigger| portable_trigger(trigger.clone(), script_named, trigger_named))
            .collect(),
        topics: pubsub::sql::page(conn, app, "", i64::MAX)
            .await?
            .into_iter()
            .map(portable_topic)
            .collect(),
        secrets: secrets::sql::names(conn, app).await?,
    };
    if with_kv {
        archive.begin(KV)?;
        let mut after = (String::new(), String::new());
        loop {
            let page = kv::sql::page_of_all(conn, app, &after.0, &after.1, KV_PAGE).await?;
            let Some((collection, key, _)) = page.entries.last() else {
                break;
            };
            after = (collection.clone(), key.clone());
            let mut lines = Vec::new();
            // As they are read: a file has no value that an import refuses.
            for (collection, key, value) in page.entries {
                let entry = (collection, key, Stored::new(value).into_text());
                serde_json::to_writer(&mut lines, &entry).map_err(std::io::Error::from)?;
                lines.push(b'\n');
            }
            archive.write(&lines)?;
            give.piece(archive.take()).await?;
        }
    }
    give.piece(archive.finish(FORMAT, made_at, &about)?).await
}

// They take everything apart by name: whoever gives a route, a trigger or a topic another member
// learns here that exports need it, too.

fn portable_route(
    route: Route,
    script_named: impl Fn(ScriptId) -> Option<String>,
) -> PortableRoute {
    let Route {
        id: _,
        app_id: _,
        script_id,
        method,
        host,
        path,
        dispatch_mode,
        trailing_slash,
        idempotency,
        cors,
        created_at: _,
        updated_at: _,
    } = route;
    PortableRoute {
        script: script_named(script_id),
        method,
        host,
        path,
        dispatch_mode,
        trailing_slash,
        idempotency,
        cors,
    }
}

fn portable_trigger(
    trigger: Trigger,
    script_named: impl Fn(ScriptId) -> Option<String>,
    trigger_named: impl Fn(TriggerId) -> Option<String>,
) -> PortableTrigger {
    let Trigger {
        id: _,
        app_id: _,
        script_id,
        name,
        kind,
        enabled,
        paused,
        dispatch_mode,
        retry,
        ordered_by,
        idempotency,
        registered_by_principal: _,
        created_at: _,
        updated_at: _,
    } = trigger;
    let listens_to = match kind {
        triggers::Kind::Kv(KvFilter {
            collection,
            ops,
            key,
        }) => ListensTo::Kv {
            collection,
            ops,
            key,
        },
        triggers::Kind::DeadLetter(DeadLetterFilter {
            source,
            trigger_id,
            script_id,
        }) => ListensTo::DeadLetter {
            source,
            trigger: trigger_id.map(|id| trigger_named(id).unwrap_or_default()),
            script: script_id.map(|id| script_named(id).unwrap_or_default()),
        },
        triggers::Kind::PubSub(PubSubFilter { topic }) => ListensTo::PubSub { topic },
    };
    PortableTrigger {
        name,
        script: script_named(script_id),
        enabled,
        paused,
        dispatch_mode,
        retry,
        ordered_by,
        idempotency,
        listens_to,
    }
}

fn portable_topic(topic: OpenTopic) -> PortableTopic {
    let OpenTopic {
        name,
        auth_mode,
        retention_s,
        retention_messages,
        cors_origins,
        created_at: _,
        updated_at: _,
    } = topic;
    PortableTopic {
        name: name.to_string(),
        auth_mode,
        retention_s,
        retention_messages,
        cors_origins,
    }
}
