//! What every request and every event needs to know of apps, scripts, routes, triggers and users,
//! in memory.
//!
//! A picture of the database at one version. A row that cannot be read is left out and told of: it is
//! no reason that a node does not start. Whoever changes one of them raises the
//! version in the same transaction ([`raise_version`]) and asks for a [`Directory::refresh`] after
//! it; other nodes notice within a second.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::apps::{self, App, AppId, HostPattern};
use crate::identity::capability::AppRole;
use crate::identity::{self, User, UserId};
use crate::pubsub::{self, OpenTopic, OpenTopics, SubscriberKey};
use crate::routes::{self, table::RouteTable};
use crate::scripts::{self, Script, ScriptId};
use crate::store::{Conn, Db, StoreError, Tx};
use crate::triggers::{self, Trigger, TriggerId};

mod sql;

/// How long a change made on another node may go unnoticed.
const POLL: Duration = Duration::from_secs(1);

/// The picture, and how it is kept true.
pub struct Directory {
    db: Db,
    picture: ArcSwap<Picture>,
    /// When the next picture may be loaded. One refresh at a time holds it, so that an older
    /// picture never replaces a newer one.
    next_load: tokio::sync::Mutex<Instant>,
    /// Counts the pictures.
    changes: watch::Sender<u64>,
}

/// All of them at one version.
#[derive(Default)]
pub struct Picture {
    version: i64,
    apps: HashMap<AppId, App>,
    by_slug: HashMap<String, AppId>,
    exact_hosts: HashMap<String, AppId>,
    /// The longest first.
    wildcard_hosts: Vec<(HostPattern, AppId)>,
    default_app: Option<AppId>,
    scripts: HashMap<ScriptId, Script>,
    tables: HashMap<AppId, RouteTable>,
    triggers: HashMap<TriggerId, Arc<Trigger>>,
    /// The enabled ones.
    kv_triggers: HashMap<AppId, Vec<Arc<Trigger>>>,
    dead_letter_triggers: HashMap<AppId, Vec<Arc<Trigger>>>,
    pubsub_triggers: HashMap<AppId, Vec<Arc<Trigger>>>,
    topics: HashMap<AppId, OpenTopics>,
    subscriber_keys: HashMap<AppId, Vec<SubscriberKey>>,
    /// Those who are not disabled.
    users: HashMap<UserId, User>,
    members: HashMap<(AppId, UserId), AppRole>,
    /// What is wrong with the rows that are left out.
    unreadable: Vec<StoreError>,
}

impl Picture {
    /// An app.
    pub fn app(&self, id: AppId) -> Option<&App> {
        self.apps.get(&id)
    }

    /// Every app, the oldest first.
    pub fn app_ids(&self) -> Vec<AppId> {
        let mut ids: Vec<AppId> = self.apps.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// The app that an id or a slug names.
    pub fn app_named(&self, id_or_slug: &str) -> Option<&App> {
        let id = id_or_slug
            .parse()
            .ok()
            .or_else(|| self.by_slug.get(id_or_slug).copied())?;
        self.app(id)
    }

    /// The app that serves `host` (lower case, without a port).
    pub fn app_for_host(&self, host: &str) -> Option<&App> {
        let wildcard = || {
            self.wildcard_hosts
                .iter()
                .find(|(pattern, _)| pattern.matches(host))
        };
        let id = self
            .exact_hosts
            .get(host)
            .or_else(|| wildcard().map(|(_, id)| id));
        self.app(*id.or(self.default_app.as_ref())?)
    }

    /// Whether the app serves the hosts that nobody claims.
    pub fn is_default(&self, id: AppId) -> bool {
        self.default_app == Some(id)
    }

    /// A script.
    pub fn script(&self, id: ScriptId) -> Option<&Script> {
        self.scripts.get(&id)
    }

    /// The routes of an app.
    pub fn routes(&self, id: AppId) -> Option<&RouteTable> {
        self.tables.get(&id)
    }

    /// A trigger.
    pub fn trigger(&self, id: TriggerId) -> Option<&Arc<Trigger>> {
        self.triggers.get(&id)
    }

    /// The enabled triggers of an app that listen to its key-value store.
    pub fn kv_triggers(&self, id: AppId) -> &[Arc<Trigger>] {
        self.kv_triggers.get(&id).map_or(&[], Vec::as_slice)
    }

    /// The enabled triggers of an app that listen to its dead letters.
    pub fn dead_letter_triggers(&self, id: AppId) -> &[Arc<Trigger>] {
        self.dead_letter_triggers
            .get(&id)
            .map_or(&[], Vec::as_slice)
    }

    /// The enabled triggers of an app that listen to topics.
    pub fn pubsub_triggers(&self, id: AppId) -> &[Arc<Trigger>] {
        self.pubsub_triggers.get(&id).map_or(&[], Vec::as_slice)
    }

    /// How a topic of an app is open to subscribers, if it is.
    pub fn open_topic(&self, id: AppId, topic: &str) -> Option<&Arc<OpenTopic>> {
        self.topics.get(&id)?.of(topic)
    }

    /// What signs the subscriber tokens of an app, the newest first.
    pub fn subscriber_keys(&self, id: AppId) -> &[SubscriberKey] {
        self.subscriber_keys.get(&id).map_or(&[], Vec::as_slice)
    }

    /// A user, unless they are disabled.
    pub fn user(&self, id: UserId) -> Option<&User> {
        self.users.get(&id)
    }

    /// The role that a user was given in an app.
    pub fn role(&self, app_id: AppId, user_id: UserId) -> Option<AppRole> {
        self.members.get(&(app_id, user_id)).copied()
    }

    /// The roles that a user was given in apps.
    pub fn roles_of(&self, user_id: UserId) -> impl Iterator<Item = (AppId, AppRole)> {
        let theirs = self
            .members
            .iter()
            .filter(move |((_, id), _)| *id == user_id);
        theirs.map(|((app_id, _), role)| (*app_id, *role))
    }

    /// Tell of the rows that are left out, but not of those that `before` left out, too.
    fn tell_unreadable(&self, before: &Self) {
        let known: Vec<String> = before.unreadable.iter().map(ToString::to_string).collect();
        for problem in self.unreadable.iter().map(ToString::to_string) {
            if !known.contains(&problem) {
                tracing::error!(problem, "a row cannot be read, and is left out");
            }
        }
    }

    async fn load(conn: &mut Conn) -> Result<Self, StoreError> {
        // The version first: what is changed while we read makes the picture newer than its
        // version says, and the next refresh looks again.
        let version = sql::version(conn).await?;
        let mut picture = Self {
            version,
            ..Self::default()
        };
        let mut unreadable = Vec::new();
        for app in apps::sql::all(conn).await?.and_tell(&mut unreadable) {
            for host in &app.hosts {
                match host {
                    HostPattern::Exact(name) => {
                        picture.exact_hosts.insert(name.clone(), app.id);
                    }
                    HostPattern::Below(_) => picture.wildcard_hosts.push((host.clone(), app.id)),
                }
            }
            if app.hosts.is_empty() && picture.default_app.is_none() {
                picture.default_app = Some(app.id);
            }
            picture.by_slug.insert(app.slug.to_string(), app.id);
            picture.apps.insert(app.id, app);
        }
        picture
            .wildcard_hosts
            .sort_by_key(|(host, _)| std::cmp::Reverse(host.to_string().len()));
        let scripts = scripts::sql::all(conn).await?;
        picture.scripts = scripts
            .and_tell(&mut unreadable)
            .into_iter()
            .map(|script| (script.id, script))
            .collect();
        let mut by_app = HashMap::<AppId, Vec<_>>::new();
        for route in routes::sql::all(conn).await?.and_tell(&mut unreadable) {
            by_app.entry(route.app_id).or_default().push(route);
        }
        picture.tables = by_app
            .into_iter()
            .map(|(id, routes)| (id, RouteTable::new(routes)))
            .collect();
        for trigger in triggers::sql::all(conn).await?.and_tell(&mut unreadable) {
            let trigger = Arc::new(trigger);
            let listening = match trigger.kind {
                triggers::Kind::Kv(_) => &mut picture.kv_triggers,
                triggers::Kind::DeadLetter(_) => &mut picture.dead_letter_triggers,
                triggers::Kind::PubSub(_) => &mut picture.pubsub_triggers,
            };
            if trigger.enabled {
                let of_app = listening.entry(trigger.app_id).or_default();
                of_app.push(trigger.clone());
            }
            picture.triggers.insert(trigger.id, trigger);
        }
        let topics = pubsub::sql::all_topics(conn).await?;
        for (app_id, topic) in topics.and_tell(&mut unreadable) {
            picture.topics.entry(app_id).or_default().add(topic);
        }
        for key in pubsub::sql::all_keys(conn).await? {
            let of_app = picture.subscriber_keys.entry(key.app_id).or_default();
            of_app.push(key);
        }
        let users = identity::sql::users::enabled(conn).await?;
        let users = users.and_tell(&mut unreadable).into_iter();
        picture.users = users.map(|user| (user.id, user)).collect();
        let members = identity::sql::members::all(conn).await?;
        picture.members = members
            .and_tell(&mut unreadable)
            .into_iter()
            .map(|(app_id, user_id, role)| ((app_id, user_id), role))
            .collect();
        picture.unreadable = unreadable;
        Ok(picture)
    }
}

/// What is wrong with the rows that a picture leaves out.
///
/// # Errors
/// When the database fails.
pub async fn unreadable(conn: &mut Conn) -> Result<Vec<StoreError>, StoreError> {
    Ok(Picture::load(conn).await?.unreadable)
}

impl Directory {
    /// Load the picture.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn open(db: Db) -> Result<Arc<Self>, StoreError> {
        let picture = Picture::load(&mut db.read().await?).await?;
        picture.tell_unreadable(&Picture::default());
        Ok(Arc::new(Self {
            db,
            picture: ArcSwap::from_pointee(picture),
            next_load: tokio::sync::Mutex::new(Instant::now()),
            changes: watch::Sender::new(0),
        }))
    }

    /// Tells when there is another picture.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The picture as it is now.
    pub fn picture(&self) -> Arc<Picture> {
        self.picture.load_full()
    }

    /// Look whether the version rose, and load the picture if so. Loading takes at most half of
    /// the time: where many change things at once, one picture then shows what all of them did.
    ///
    /// # Errors
    /// When the database fails; the picture stays as it was.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let mut next_load = self.next_load.lock().await;
        if sql::version(&mut self.db.read().await?).await? == self.picture.load().version {
            return Ok(());
        }
        tokio::time::sleep_until(*next_load).await;
        let began = Instant::now();
        let picture = Picture::load(&mut self.db.read().await?).await?;
        picture.tell_unreadable(&self.picture.load());
        self.picture.store(Arc::new(picture));
        self.changes.send_modify(|count| *count += 1);
        *next_load = Instant::now() + began.elapsed();
        Ok(())
    }

    /// Notice what other nodes change, for ever.
    pub async fn keep_fresh(self: Arc<Self>) {
        loop {
            tokio::time::sleep(POLL).await;
            if let Err(error) = self.refresh().await {
                tracing::warn!(%error, "changes by other nodes cannot be read");
            }
        }
    }
}

/// Say that what every node caches changes in this transaction.
///
/// # Errors
/// When the database fails.
pub async fn raise_version(tx: &mut Tx) -> Result<(), StoreError> {
    sql::raise_version(tx).await
}
