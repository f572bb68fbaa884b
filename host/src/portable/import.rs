//! An app from such a file: read whole, and then written in batches that nobody sees.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use chrono::Utc;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;

use crate::apps::{self, App, AppError, AppId, Slug, domains, leaving};
use crate::archive::{ArchiveError, Reader};
use crate::identity::UserId;
use crate::kv::{self, Collection, Key, KvError, Value};
use crate::pubsub::topics::parse_glob;
use crate::pubsub::{self, OpenTopic};
use crate::quotas::objects::{self, Object, TooMany};
use crate::quotas::{Counts, Full, ROW_BYTES, Size};
use crate::routes::{self, Route, RouteError, RouteId};
use crate::scripts::{self, Script, ScriptId};
use crate::store::{Db, StoreError, Tx};
use crate::triggers::{self, DeadLetterFilter, KvFilter, Op, PubSubFilter, Trigger, TriggerId};
use crate::{directory, store};

use super::*;

/// Why an app cannot be imported. Nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file is damaged, or none of ours.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The file has something that no app can have.
    #[error("{place}: {problem}")]
    Impossible {
        /// Where in the file.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// The slug or a host is taken.
    #[error(transparent)]
    App(#[from] AppError),
    /// A route is in the way of another.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The file has more versions of scripts than an app may keep.
    #[error(transparent)]
    Full(#[from] Full),
    /// The file has more of something than an app may have.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// The sweep took it for one that nobody was at any more.
    #[error(
        "the database was too slow: a part of the app took longer to write than it is waited for"
    )]
    TooSlow,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn impossible(place: impl Into<String>, problem: impl ToString) -> ImportError {
    ImportError::Impossible {
        place: place.into(),
        problem: problem.to_string(),
    }
}

/// An app that was read from a file and may be written: all ids are new, every name is known.
pub struct Import {
    /// The app.
    pub app: App,
    /// Its scripts with the code of each version, the current one first.
    pub scripts: Vec<(Script, Vec<(u32, Bytes)>)>,
    /// Its routes.
    pub routes: Vec<Route>,
    /// Its triggers.
    pub triggers: Vec<Trigger>,
    /// The topics that are open to subscribers.
    pub topics: Vec<OpenTopic>,
    /// The entries of its key-value store.
    pub kv: Vec<(Collection, Key, Value)>,
    /// The names of the secrets that it had.
    pub secrets: Vec<String>,
}

/// What the importing instance says.
pub struct Terms {
    /// The app's slug, in place of its own.
    pub slug: Option<Slug>,
    /// Whether it claims its hosts.
    pub with_domains: bool,
    /// Whose its triggers are.
    pub by: UserId,
    /// The largest value of the key-value store.
    pub kv_value_bytes_max: usize,
}

impl Import {
    /// Read a file.
    ///
    /// # Errors
    /// [`ImportError`] says what is wrong and where.
    pub fn read(file: Bytes, terms: Terms) -> Result<Self, ImportError> {
        let mut archive = Reader::open(Cursor::new(file), FORMAT)?;
        if archive.bytes() > CONTENT_BYTES_MAX {
            let problem = format!("it has more than {CONTENT_BYTES_MAX} bytes");
            return Err(impossible("the file", problem));
        }
        let about: PortableApp = archive.about()?;
        let now = store::micros(Utc::now());
        let (created_at, updated_at) = (now, now);
        let app_id = AppId::new();
        let app = App {
            id: app_id,
            slug: terms.slug.unwrap_or(about.slug),
            name: about.name,
            hosts: match terms.with_domains {
                true => about.hosts,
                false => Vec::new(),
            },
            hide_payloads_from_viewers: about.hide_payloads_from_viewers,
            created_at,
            updated_at,
        };
        let mut scripts = Vec::new();
        let mut script_ids = HashMap::new();
        for (place, portable) in about.scripts.into_iter().enumerate() {
            let PortableScript {
                name,
                kind,
                limits,
                version,
                versions,
            } = portable;
            let id = ScriptId::new();
            let named = format!("the script `{name}`");
            if script_ids.insert(name.clone(), id).is_some() {
                return Err(impossible(named, "it is there twice"));
            }
            let mut codes = Vec::new();
            for version in versions {
                let entry = archive.entry(&PortableScript::entry(place, version, kind))?;
                codes.push((version, Bytes::from(entry.all(CODE_BYTES_MAX)?)));
            }
            // The newest first, which is the current one.
            codes.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
            let numbers = codes.windows(2).all(|pair| pair[0].0 > pair[1].0);
            if !numbers || codes.first().is_none_or(|(newest, _)| *newest != version) {
                return Err(impossible(
                    named,
                    "its versions do not end with the current one",
                ));
            }
            let script = Script {
                id,
                app_id,
                name,
                kind,
                version,
                limits,
                created_at,
                updated_at,
            };
            scripts.push((script, codes));
        }
        // One whose script is gone keeps being so: this id is nobody's.
        let script_id = |name: Option<String>| match name {
            None => Ok(ScriptId::new()),
            Some(name) => script_ids
                .get(&name)
                .copied()
                .ok_or_else(|| impossible(format!("the script `{name}`"), "it is not in the file")),
        };
        let mut routes = Vec::new();
        for portable in about.routes {
            let PortableRoute {
                script,
                method,
                host,
                path,
                dispatch_mode,
                trailing_slash,
                idempotency,
                cors,
            } = portable;
            routes.push(Route {
                id: RouteId::new(),
                app_id,
                script_id: script_id(script)?,
                method,
                host,
                path,
                dispatch_mode,
                trailing_slash,
                idempotency,
                cors,
                created_at,
                updated_at,
            });
        }
        let mut trigger_ids = HashMap::new();
        for trigger in &about.triggers {
            let known = trigger_ids.insert(trigger.name.clone(), TriggerId::new());
            if known.is_some() {
                let named = format!("the trigger `{}`", trigger.name);
                return Err(impossible(named, "it is there twice"));
            }
        }
        let mut triggers = Vec::new();
        for portable in about.triggers {
            let named = format!("the trigger `{}`", portable.name);
            let PortableTrigger {
                name,
                script,
                enabled,
                paused,
                dispatch_mode,
                retry,
                ordered_by,
                idempotency,
                listens_to,
            } = portable;
            if !retry.is_possible() {
                return Err(impossible(named, "its retry policy is out of bounds"));
            }
            let kind = match listens_to {
                ListensTo::Kv { ops, .. } if ops.is_empty() => {
                    return Err(impossible(named, "it listens to no `ops`"));
                }
                ListensTo::Kv {
                    collection,
                    ops,
                    key,
                } => triggers::Kind::Kv(KvFilter {
                    collection,
                    ops: Op::ALL.into_iter().filter(|op| ops.contains(op)).collect(),
                    key,
                }),
                ListensTo::DeadLetter {
                    source,
                    trigger,
                    script,
                } => triggers::Kind::DeadLetter(DeadLetterFilter {
                    source,
                    // One that is not in the file is nobody's.
                    trigger_id: trigger.map(|name| {
                        let known = trigger_ids.get(&name).copied();
                        known.unwrap_or_else(TriggerId::new)
                    }),
                    script_id: script
                        .map(|name| script_id(Some(name).filter(|name| !name.is_empty())))
                        .transpose()?,
                }),
                ListensTo::PubSub { topic } => triggers::Kind::PubSub(PubSubFilter { topic }),
            };
            triggers.push(Trigger {
                id: trigger_ids[&name],
                app_id,
                script_id: script_id(script)?,
                name,
                kind,
                enabled,
                paused,
                dispatch_mode,
                retry,
                ordered_by,
                idempotency,
                registered_by_principal: terms.by,
                created_at,
                updated_at,
            });
        }
        let topics = about.topics.into_iter().map(|portable| {
            let PortableTopic {
                name,
                auth_mode,
                retention_s,
                retention_messages,
                cors_origins,
            } = portable;
            let name = parse_glob(&name)
                .map_err(|error| impossible(format!("the topic `{name}`"), error))?;
            Ok(OpenTopic {
                name,
                auth_mode,
                retention_s,
                retention_messages,
                cors_origins,
                created_at,
                updated_at,
            })
        });
        let topics = topics.collect::<Result<_, ImportError>>()?;
        let kv = read_kv(&mut archive, terms.kv_value_bytes_max)?;
        Ok(Self {
            app,
            scripts,
            routes,
            triggers,
            topics,
            kv,
            secrets: about.secrets,
        })
    }

    /// Write the app: all that belongs to it in batches that nobody sees, and at last, in one
    /// transaction, what makes it an app. Whoever drops this before that gives the import up.
    ///
    /// # Errors
    /// When its slug or a host is taken, or the database fails. The sweep removes what was written.
    pub async fn write(self: Arc<Self>, db: &Db) -> Result<(), ImportError> {
        let mut begun = Begun {
            db: db.clone(),
            app: self.app.id,
            is_shown: false,
        };
        store::unwitnessed(self.write_batches(db)).await?;
        let import = self.clone();
        let shown = db.write(move |tx| Box::pin(async move { import.show(tx).await }));
        shown.await?;
        begun.is_shown = true;
        Ok(())
    }

    /// Refuse an app that has more than the quotas allow. Its keys and values are not refused, and count
    /// after.
    ///
    /// # Errors
    /// [`ImportError::Full`], [`ImportError::TooMany`].
    pub fn check_quotas(&self, counts: &Counts) -> Result<(), ImportError> {
        for (object, count) in [
            (Object::Scripts, self.scripts.len()),
            (Object::Routes, self.routes.len()),
            (Object::Triggers, self.triggers.len()),
            (Object::Topics, self.topics.len()),
        ] {
            objects::check_count(object, count as u64, counts.quotas().objects)?;
        }
        Ok(counts.script_versions.check(self.app.id, self.versions())?)
    }

    /// How much its versions of scripts take.
    pub fn versions(&self) -> Size {
        let versions = self.scripts.iter().flat_map(|(_, versions)| versions);
        versions.fold(Size::default(), |size, (_, code)| Size {
            rows: size.rows + 1,
            bytes: size.bytes + code.len() as u64 + ROW_BYTES,
        })
    }

    async fn write_batches(self: &Arc<Self>, db: &Db) -> Result<(), ImportError> {
        db.check_room_for(self.bytes())?;
        let import = self.clone();
        let begun = db.write(move |tx| Box::pin(async move { import.begin(tx).await }));
        begun.await?;
        for (place, (_, versions)) in self.scripts.iter().enumerate() {
            for range in batches(versions, BATCH_ROWS, |(_, code)| code.len()) {
                self.batch(db, move |import, tx| {
                    Box::pin(import.write_versions(tx, place, range))
                })
                .await?;
            }
        }
        for range in batches(&self.kv, BATCH_ROWS, entry_bytes) {
            self.batch(db, |import, tx| Box::pin(import.write_kv(tx, range)))
                .await?;
        }
        for range in batches(&self.routes, BATCH_PARTS, |_| 0) {
            self.batch(db, |import, tx| Box::pin(import.write_routes(tx, range)))
                .await?;
        }
        for range in batches(&self.triggers, BATCH_PARTS, |_| 0) {
            self.batch(db, |import, tx| Box::pin(import.write_triggers(tx, range)))
                .await?;
        }
        for range in batches(&self.topics, BATCH_PARTS, |_| 0) {
            self.batch(db, |import, tx| Box::pin(import.write_topics(tx, range)))
                .await?;
        }
        Ok(())
    }

    /// Write a part of it in a transaction of its own, if it is still kept.
    async fn batch<W>(self: &Arc<Self>, db: &Db, write: W) -> Result<(), ImportError>
    where
        W: for<'t> FnOnce(&'t Self, &'t mut Tx) -> BoxFuture<'t, Result<(), ImportError>>
            + Send
            + 'static,
    {
        // Others write meanwhile.
        db.check_room_for(BATCH_BYTES as u64)?;
        let import = self.clone();
        let batch = db.write(move |tx| {
            Box::pin(async move {
                match leaving::keep(tx, import.app.id).await? {
                    true => write(&import, tx).await,
                    false => Err(ImportError::TooSlow),
                }
            })
        });
        batch.await
    }

    /// What its code and its values take, which is nearly all of it.
    fn bytes(&self) -> u64 {
        let versions = self.scripts.iter().flat_map(|(_, versions)| versions);
        let code: usize = versions.map(|(_, code)| code.len()).sum();
        let values: usize = self.kv.iter().map(entry_bytes).sum();
        (code + values) as u64
    }

    /// Begin, unless it is plain already that the app cannot be shown in the end.
    async fn begin(&self, tx: &mut Tx) -> Result<(), ImportError> {
        let App {
            id, slug, hosts, ..
        } = &self.app;
        let others = apps::sql::all(tx.conn().await?).await?.or_fail()?;
        if others.iter().any(|other| other.slug == *slug) {
            return Err(AppError::SlugTaken(slug.clone()).into());
        }
        domains::check(hosts, &others)?;
        for route in &self.routes {
            routes::check_host(route, hosts)?;
        }
        Ok(leaving::begin(tx, *id).await?)
    }

    async fn write_versions(
        &self,
        tx: &mut Tx,
        place: usize,
        range: Range<usize>,
    ) -> Result<(), ImportError> {
        let (script, versions) = &self.scripts[place];
        let first = range.start;
        for (n, (version, code)) in versions[range].iter().enumerate() {
            if first + n == 0 {
                // The script itself comes with its current version.
                scripts::sql::insert(tx, script, code).await?;
                continue;
            }
            let version = *version;
            let script = Script {
                version,
                ..script.clone()
            };
            scripts::sql::insert_version(tx, &script, code).await?;
        }
        Ok(())
    }

    async fn write_kv(&self, tx: &mut Tx, range: Range<usize>) -> Result<(), ImportError> {
        let inserted = kv::sql::insert(tx, self.app.id, &self.kv[range]).await;
        inserted.map_err(|error| match error {
            StoreError::Duplicate => impossible(KV, "a key is there twice"),
            error => error.into(),
        })
    }

    async fn write_routes(&self, tx: &mut Tx, range: Range<usize>) -> Result<(), ImportError> {
        for route in &self.routes[range] {
            routes::put(tx, route).await?;
        }
        Ok(())
    }

    async fn write_triggers(&self, tx: &mut Tx, range: Range<usize>) -> Result<(), ImportError> {
        for trigger in &self.triggers[range] {
            triggers::sql::upsert(tx, trigger).await?;
        }
        Ok(())
    }

    async fn write_topics(&self, tx: &mut Tx, range: Range<usize>) -> Result<(), ImportError> {
        for topic in &self.topics[range] {
            pubsub::sql::upsert(tx, self.app.id, topic).await?;
        }
        Ok(())
    }

    /// Make it an app that everybody sees.
    async fn show(&self, tx: &mut Tx) -> Result<(), ImportError> {
        let App {
            id, slug, hosts, ..
        } = &self.app;
        // It raises the directory's version first, so that such changes wait for each other.
        directory::raise_version(tx).await?;
        if !apps::sql::leaving::show(tx, *id).await? {
            return Err(ImportError::TooSlow);
        }
        let named = apps::sql::update(tx, &self.app).await;
        named.map_err(|error| AppError::of_slug(error, slug))?;
        domains::claim(tx, *id, hosts, false).await?;
        tx.creates(*id);
        Ok(())
    }
}

/// An app that is being imported. Dropped before it is shown, it is given up.
struct Begun {
    db: Db,
    app: AppId,
    is_shown: bool,
}

impl Drop for Begun {
    fn drop(&mut self) {
        if self.is_shown {
            return;
        }
        let (db, app) = (self.db.clone(), self.app);
        // If it was shown after all, and only the answer was lost, it stays as it is.
        let giving_up = async move {
            if let Err(error) = leaving::give_up(&db, app).await {
                tracing::warn!(%error, "what was imported of an app is removed later");
            }
        };
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(giving_up);
        }
    }
}

fn entry_bytes((collection, key, value): &(Collection, Key, Value)) -> usize {
    collection.as_str().len() + key.as_str().len() + value.as_str().len()
}

/// Cut `items` into runs of which each is written in one transaction: of `rows_max` and about
/// [`BATCH_BYTES`] at most.
fn batches<T>(items: &[T], rows_max: usize, bytes_of: impl Fn(&T) -> usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut bytes = 0;
    for (place, item) in items.iter().enumerate() {
        bytes += bytes_of(item);
        match runs.last_mut() {
            Some(run) if run.len() < rows_max && bytes <= BATCH_BYTES => run.end = place + 1,
            _ => {
                bytes = bytes_of(item);
                runs.push(place..place + 1);
            }
        }
    }
    runs
}

/// What an entry takes in memory besides its bytes.
const ENTRY_OVERHEAD_BYTES: usize = 160;
/// What all entries of an import may take in memory.
const KV_BYTES_MAX: usize = 256 << 20;

fn read_kv(
    archive: &mut Reader<Cursor<Bytes>>,
    value_bytes_max: usize,
) -> Result<Vec<(Collection, Key, Value)>, ImportError> {
    if !archive.names().any(|name| name == KV) {
        return Ok(Vec::new());
    }
    let mut lines = archive.entry(KV)?;
    let mut entries = Vec::new();
    let mut taken = 0;
    while let Some(line) = lines.next_line()? {
        let parsed: Result<(String, String, String), _> = serde_json::from_slice(&line);
        let (collection, key, value) = parsed.map_err(|error| lines.damaged(error))?;
        let entry = || -> Result<_, KvError> {
            let collection = Collection::parse(collection)?;
            let key = Key::parse(key)?;
            Ok((collection, key, Value::parse(value, value_bytes_max)?))
        };
        let entry = entry().map_err(|error| lines.damaged(error))?;
        // Small ones take more than they have bytes, and a file of a few kilobytes may have millions.
        taken += entry_bytes(&entry) + ENTRY_OVERHEAD_BYTES;
        if taken > KV_BYTES_MAX {
            let problem = "there are more entries than an import takes; write them with `picloud kv`, or through a script";
            return Err(lines.damaged(problem).into());
        }
        entries.push(entry);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_bounded_by_rows_and_by_bytes() {
        let lengths = |items: &[usize]| -> Vec<usize> {
            let runs = batches(items, 500, |bytes| *bytes);
            let mut next = 0;
            for run in &runs {
                assert_eq!(run.start, next);
                next = run.end;
            }
            assert_eq!(next, items.len());
            runs.iter().map(ExactSizeIterator::len).collect()
        };
        assert_eq!(lengths(&[]), [0; 0]);
        assert_eq!(lengths(&[1; 1201]), [500, 500, 201]);
        let half = BATCH_BYTES / 2;
        assert_eq!(lengths(&[half, half, half, 1]), [2, 2]);
        // One that is larger by itself goes alone.
        assert_eq!(lengths(&[1, BATCH_BYTES * 9, 1, 1]), [1, 1, 2]);
    }
}
