//! What every request and every event needs to know of apps, scripts, routes, triggers and users,
//! in memory.
//!
//! A picture of the database at one version. A row that cannot be read is left out and told of: it is
//! no reason that a node does not start. Whoever changes one of them raises the
//! version in the same transaction ([`raise_version`]) and asks for a [`Directory::refresh`] after
//! it; other nodes notice within a second.
//!
//! The picture has an age: the time since it was last known to be true. While the database cannot
//! be read it only grows. Then public routes go on being served as they were known, but beyond
//! [`AGE_MAX`] nothing is decided by it that takes authority, which may have been taken away
//! meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
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
/// How old the picture may be where it decides who may do what.
pub const AGE_MAX: Duration = Duration::from_secs(10);
/// How long one look at the database may take, loading included: so short that after a database
/// that hung another one ends before [`AGE_MAX`] has passed again.
const LOOK_MAX: Duration = Duration::from_secs(8);
/// How long whoever asks for a refresh waits for it.
const REFRESH_MAX: Duration = Duration::from_secs(5);

/// The picture, and how it is kept true.
pub struct Directory {
    db: Db,
    picture: ArcSwap<Picture>,
    began: Instant,
    /// When the picture was last known to be true, in microseconds after `began`.
    known_us: AtomicU64,
    /// Whether the picture is too old for what takes authority.
    is_stale: watch::Sender<bool>,
    /// How many refreshes were asked for.
    asked: AtomicU64,
    /// Wakes whoever keeps it fresh.
    wake: Notify,
    /// How many of those refreshes are done.
    refreshed: watch::Sender<u64>,
    /// Counts the pictures.
    changes: watch::Sender<u64>,
}

/// The picture is older than [`AGE_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the directory is {} s old: the database cannot be read", age.as_secs())]
pub struct Stale {
    age: Duration,
}

/// What was changed could not be read back in time. It is read as soon as the database answers.
#[derive(Debug, thiserror::Error)]
#[error("the directory could not be read within {} s", REFRESH_MAX.as_secs())]
pub struct Unread;

/// All of them at one version.
#[derive(Default)]
pub struct Picture {
    version: i64,
    apps: HashMap<AppId, App>,
    by_slug: HashMap<String, AppId>,
    exact_hosts: HashMap<String, AppId>,
    /// The longest first.
    wildcard_hosts: Vec<(HostPattern, AppId)>,
    /// Hosts that apps were given once.
    given_hosts: Vec<HostPattern>,
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

    /// Whether an app has or ever had a host to itself: browsers may keep something of its pages.
    pub fn was_given(&self, host: &str) -> bool {
        self.given_hosts.iter().any(|given| given.matches(host))
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

    /// How many users can sign in.
    pub fn users(&self) -> usize {
        self.users.len()
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
        picture.given_hosts = apps::sql::given_hosts(conn).await?;
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
    /// Load the picture. It is kept true once somebody [keeps it fresh](Self::keep_fresh).
    ///
    /// # Errors
    /// When the database fails.
    pub async fn open(db: Db) -> Result<Arc<Self>, StoreError> {
        let began = Instant::now();
        let picture = Picture::load(&mut db.read().await?).await?;
        picture.tell_unreadable(&Picture::default());
        Ok(Arc::new(Self {
            db,
            picture: ArcSwap::from_pointee(picture),
            began,
            known_us: AtomicU64::new(0),
            is_stale: watch::Sender::new(false),
            asked: AtomicU64::new(0),
            wake: Notify::new(),
            refreshed: watch::Sender::new(0),
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

    /// For how long the picture is not known to be true.
    pub fn age(&self) -> Duration {
        let known = Duration::from_micros(self.known_us.load(Ordering::Acquire));
        self.began.elapsed().saturating_sub(known)
    }

    /// Refuse to decide by the picture who may do what, where it is too old for that.
    ///
    /// # Errors
    /// [`Stale`], which says how old it is.
    pub fn check_age(&self) -> Result<(), Stale> {
        let age = self.age();
        match age > AGE_MAX {
            true => Err(Stale { age }),
            false => Ok(()),
        }
    }

    /// Whether the picture is too old for what takes authority, as that changes.
    pub fn staleness(&self) -> watch::Receiver<bool> {
        self.is_stale.subscribe()
    }

    /// Comes back once the picture is too old for what takes authority.
    pub fn stale(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut is_stale = self.staleness();
        async move {
            // The sender goes only with the process.
            let _ = is_stale.wait_for(|is_stale| *is_stale).await;
        }
    }

    /// Wait until the picture shows what is committed now, or a while.
    ///
    /// # Errors
    /// [`Unread`] when that takes too long. The picture may still be as it was.
    pub async fn refresh(&self) -> Result<(), Unread> {
        let number = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        self.wake.notify_one();
        let mut refreshed = self.refreshed.subscribe();
        let refreshed = refreshed.wait_for(|refreshed| *refreshed >= number);
        match tokio::time::timeout(REFRESH_MAX, refreshed).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Unread),
        }
    }

    /// Look again and again whether the version rose, and at once where a refresh is asked for,
    /// for ever. Nobody else loads pictures, so that an older one never replaces a newer one and
    /// that a read which hangs holds up nobody but this.
    ///
    /// Loading takes at most half of the time: where many change things at once, one picture then
    /// shows what all of them did.
    pub async fn keep_fresh(self: Arc<Self>) {
        let mut next_load = Instant::now();
        let mut is_told = false;
        loop {
            // What is asked for from now on may be about what this look does not see.
            let asked = self.asked.load(Ordering::Acquire);
            let looked = tokio::time::timeout(LOOK_MAX, self.look(&mut next_load)).await;
            match looked {
                Ok(Ok(())) => {
                    self.refreshed.send_replace(asked);
                    is_told = false;
                }
                failed if !is_told => {
                    let why = failed.map_or("nothing answers".to_owned(), |read| {
                        read.err()
                            .map(|error| error.to_string())
                            .unwrap_or_default()
                    });
                    tracing::warn!(%why, "the directory cannot be read");
                    is_told = true;
                }
                _ => {}
            }
            // Where it failed, whoever asked still waits: they wake it no more.
            let _ = tokio::time::timeout(POLL, self.wake.notified()).await;
        }
    }

    /// Look whether the version rose, and load the picture if so.
    async fn look(&self, next_load: &mut Instant) -> Result<(), StoreError> {
        let looked = Instant::now();
        let mut conn = self.db.read().await?;
        let version = sql::version(&mut conn).await?;
        drop(conn);
        if version == self.picture.load().version {
            self.known(looked);
            return Ok(());
        }
        tokio::time::sleep_until(*next_load).await;
        let began = Instant::now();
        let picture = Picture::load(&mut self.db.read().await?).await?;
        picture.tell_unreadable(&self.picture.load());
        self.picture.store(Arc::new(picture));
        // After the picture: whoever sees the age sees a picture that is no older.
        self.known(began);
        self.changes.send_modify(|count| *count += 1);
        *next_load = Instant::now() + began.elapsed();
        Ok(())
    }

    /// The picture was true at this instant.
    fn known(&self, at: Instant) {
        let us = at.saturating_duration_since(self.began).as_micros();
        let us = u64::try_from(us).unwrap_or(u64::MAX);
        self.known_us.fetch_max(us, Ordering::AcqRel);
    }

    /// Tell how old the picture is, and of its being too old as soon as it is, for ever.
    pub async fn keep_telling_its_age(self: Arc<Self>) {
        loop {
            let age = self.age();
            metrics::gauge!("picloud_directory_age_seconds").set(age.as_secs_f64());
            let stale = self.check_age();
            let changed = self.is_stale.send_if_modified(|is_stale| {
                std::mem::replace(is_stale, stale.is_err()) != stale.is_err()
            });
            match stale {
                Err(stale) if changed => {
                    tracing::error!(problem = %stale, "what takes authority is refused");
                }
                Ok(()) if changed => tracing::info!("the directory is fresh again"),
                _ => {}
            }
            let left = (AGE_MAX + Duration::from_millis(1)).saturating_sub(age);
            let pause = match left.is_zero() {
                true => POLL,
                false => left.min(POLL),
            };
            tokio::time::sleep(pause).await;
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
