//! The HTTP API of apps.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    App, AppError, AppId, HOSTS_MAX, HostPattern, NAME_BYTES_MAX, Slug, claimable_host,
    claimable_hosts, domains, sql,
};
use crate::directory;
use crate::http::answer::{Created, NoContent, Page};
use crate::http::endpoints::{Api, Of, Rule, may_see, require};
use crate::http::etag::Tagged;
use crate::http::extract::{
    Body, NAME, PageQuery, Path, Query, SignedIn, app_named, checked_name, page_cursor,
};
use crate::http::problem::{Problem, ProblemType};
use crate::identity::Caller;
use crate::identity::capability::{self, Capability, Decision};
use crate::node::Node;
use crate::store::{ETag, Expected, Tx};

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get("/apps", Rule::SignedIn, list)
        .called("listApps", "List the apps that you may see")
        .post("/apps", Rule::Instance(Capability::CreateApps), create)
        .called("createApp", "Make an app")
        .may_fail(&[ProblemType::SlugTaken, ProblemType::HostTaken])
        .get("/apps/{app}", Rule::App(Capability::SeeApp, Of::App), show)
        .called("getApp", "Show an app")
        .patch(
            "/apps/{app}",
            Rule::App(Capability::ManageApp, Of::App),
            change,
        )
        .called("changeApp", "Change an app")
        .may_fail(&[
            ProblemType::SlugTaken,
            ProblemType::HostTaken,
            ProblemType::WouldOrphanRoutes,
        ])
        .delete(
            "/apps/{app}",
            Rule::App(Capability::ManageApp, Of::App),
            remove,
        )
        .called("deleteApp", "Delete an app with all that belongs to it")
        .get(
            "/apps/{app}/domains",
            Rule::App(Capability::SeeApp, Of::App),
            list_domains,
        )
        .called("listDomains", "List the hosts that an app claims, and those that were asked for")
        .post(
            "/apps/{app}/domains",
            Rule::App(Capability::ManageDomains, Of::App),
            add_domain,
        )
        .called("addDomain", "Give a host to an app, or ask for it: whoever may not give it asks who manages the instance")
        .may_fail(&[ProblemType::HostTaken])
        .delete(
            "/apps/{app}/domains/{host}",
            Rule::App(Capability::ManageDomains, Of::App),
            remove_domain,
        )
        .called("removeDomain", "Give a host up, or do not ask for it any more")
        .may_fail(&[ProblemType::WouldOrphanRoutes])
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "App")]
struct AppView {
    #[serde(flatten)]
    app: App,
    is_default: bool,
}

fn view(node: &Node, app: App) -> AppView {
    let is_default = node.directory.picture().is_default(app.id);
    AppView { app, is_default }
}

/// Whether it is the default app depends on others, and is no part of its tag.
fn tagged(node: &Node, app: App) -> Tagged<Json<AppView>> {
    Tagged {
        etag: ETag::of(&app),
        answer: Json(view(node, app)),
    }
}

async fn list(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<AppView>>, Problem> {
    let after: Option<AppId> = page_cursor(query.cursor.as_deref())?;
    let apps = sql::all(&mut node.db.read().await?).await?;
    let apps = apps
        .or_skip()
        .into_iter()
        .filter(|app| after.is_none_or(|after| app.id > after))
        .filter(|app| may_see(&node, &who, app.id));
    let views = apps
        .take(usize::try_from(query.limit.and_one()).unwrap_or(0))
        .map(|app| view(&node, app));
    Ok(Page::of(
        views.collect(),
        query.limit.get(),
        |view: &AppView| view.app.id.to_string(),
    ))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NewApp {
    slug: Slug,
    #[schemars(extend("maxLength" = NAME_BYTES_MAX, "pattern" = NAME))]
    name: Option<String>,
    #[serde(default)]
    #[schemars(schema_with = "claimable_hosts")]
    hosts: Option<Vec<HostPattern>>,
}

async fn create(
    State(node): State<Arc<Node>>,
    Body(new): Body<NewApp>,
) -> Result<Created<AppView>, Problem> {
    let NewApp { slug, name, hosts } = new;
    let name = name.unwrap_or_else(|| slug.to_string());
    checked_name("name", &name)?;
    let hosts = checked_hosts(&node, hosts.unwrap_or_default())?;
    let app = node
        .db
        .write(move |tx| {
            Box::pin(async move {
                let app = App {
                    id: AppId::new(),
                    slug,
                    name,
                    hosts,
                    hide_payloads_from_viewers: false,
                    created_at: tx.now,
                    updated_at: tx.now,
                };
                let inserted = sql::insert(tx, app.id, &app.slug, &app.name).await;
                inserted.map_err(|error| AppError::of_slug(error, &app.slug))?;
                domains::claim(tx, app.id, &app.hosts, false).await?;
                tx.creates(app.id);
                Ok::<_, AppError>(app)
            })
        })
        .await?;
    node.refresh_directory().await;
    Ok(Created(view(&node, app)))
}

/// See that an app may claim these hosts, each once; whether others do, the database says.
///
/// # Errors
/// When there are too many, or one is the instance's own.
pub fn checked_hosts(
    node: &Node,
    mut hosts: Vec<HostPattern>,
) -> Result<Vec<HostPattern>, AppError> {
    hosts.sort();
    hosts.dedup();
    if hosts.len() > HOSTS_MAX {
        return Err(AppError::TooManyHosts);
    }
    hosts.iter().try_for_each(|host| check_host(node, host))?;
    Ok(hosts)
}

/// Refuse the instance's own host, and what cannot be one app's. A wildcard around the instance's is
/// fine: the instance goes before.
fn check_host(node: &Node, host: &HostPattern) -> Result<(), AppError> {
    match (host, &node.config.admin_host) {
        (HostPattern::Exact(name), Some(own)) if name == own => {
            Err(AppError::AdminHost(host.clone()))
        }
        _ if !host.is_ones_own() => Err(AppError::SharedHost(host.clone())),
        _ => Ok(()),
    }
}

/// Whether somebody may give hosts to apps. Who has a host has what browsers keep for it, so it is not
/// for an app's own people to take one.
fn gives_hosts(who: &Caller) -> bool {
    capability::on_instance(who, Capability::ManageInstance) == Decision::Allowed
}

async fn show(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
) -> Result<Tagged<Json<AppView>>, Problem> {
    let app = app_named(&node.directory.picture(), &app)?.clone();
    Ok(tagged(&node, app))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "AppChange")]
struct Change {
    slug: Option<Slug>,
    #[schemars(extend("maxLength" = NAME_BYTES_MAX, "pattern" = NAME))]
    name: Option<String>,
    #[serde(default)]
    #[schemars(schema_with = "claimable_hosts")]
    hosts: Option<Vec<HostPattern>>,
    hide_payloads_from_viewers: Option<bool>,
}

async fn change(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(app): Path<String>,
    Query(query): Query<OrphanQuery>,
    expected: Expected,
    Body(change): Body<Change>,
) -> Result<Tagged<Json<AppView>>, Problem> {
    let id = app_named(&node.directory.picture(), &app)?.id;
    if let Some(name) = &change.name {
        checked_name("name", name)?;
    }
    if change.hosts.is_some() {
        require(&node, &who, id, Capability::ManageDomains)?;
    }
    let gives_hosts = gives_hosts(&who);
    let (hosts, checking) = (change.hosts, node.clone());
    let app = node
        .db
        .write(move |tx| {
            Box::pin(async move {
                directory::raise_version(tx).await?;
                let known = sql::get(tx.conn().await?, id).await?;
                expected.check(known.as_ref())?;
                let mut app = known.ok_or_else(|| AppError::NotFound(app))?;
                app.slug = change.slug.unwrap_or(app.slug);
                app.name = change.name.unwrap_or(app.name);
                let hides = change.hide_payloads_from_viewers;
                app.hide_payloads_from_viewers = hides.unwrap_or(app.hide_payloads_from_viewers);
                app.updated_at = tx.now;
                let updated = sql::update(tx, &app).await;
                updated.map_err(|error| AppError::of_slug(error, &app.slug))?;
                if let Some(hosts) = hosts {
                    let hosts = changed_hosts(&checking, gives_hosts, &app.hosts, hosts)?;
                    domains::claim(tx, id, &hosts, query.orphan).await?;
                    app.hosts = hosts;
                }
                Ok::<_, AppError>(app)
            })
        })
        .await?;
    node.refresh_directory().await;
    Ok(tagged(&node, app))
}

/// The hosts that somebody gives an app in place of those that it has. What it has it may keep, whatever
/// would be said of it today.
fn changed_hosts(
    node: &Node,
    gives_hosts: bool,
    before: &[HostPattern],
    mut hosts: Vec<HostPattern>,
) -> Result<Vec<HostPattern>, AppError> {
    let new = hosts.iter().filter(|host| !before.contains(host)).cloned();
    let new = checked_hosts(node, new.collect())?;
    if let Some(host) = new.into_iter().next().filter(|_| !gives_hosts) {
        return Err(AppError::NotYours(host));
    }
    hosts.sort();
    hosts.dedup();
    match hosts.len() > HOSTS_MAX {
        true => Err(AppError::TooManyHosts),
        false => Ok(hosts),
    }
}

/// For what takes hosts away.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OrphanQuery {
    /// That routes may be left on hosts that the app does not claim.
    #[serde(default)]
    orphan: bool,
}

/// A host for an app.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NewDomain {
    /// The host.
    #[schemars(schema_with = "claimable_host")]
    host: HostPattern,
}

/// A host of an app, or for one.
#[derive(Serialize, JsonSchema)]
struct Domain {
    /// The host.
    host: HostPattern,
    /// Whether the app has it.
    state: DomainState,
}

/// Whether an app has a host.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DomainState {
    /// It does: the host's requests come to it.
    Claimed,
    /// It was asked for, and who manages the instance has not given it yet.
    Asked,
}

async fn list_domains(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Domain>>, Problem> {
    let after: Option<HostPattern> = page_cursor(query.cursor.as_deref())?;
    let after = after.map(|host| host.to_string()).unwrap_or_default();
    let (id, claimed) = {
        let picture = node.directory.picture();
        let app = app_named(&picture, &app)?;
        (app.id, app.hosts.clone())
    };
    let asked = sql::asked::of(&mut node.db.read().await?, id).await?;
    let claimed = claimed.into_iter().map(|host| Domain {
        host,
        state: DomainState::Claimed,
    });
    let asked = asked.into_iter().map(|host| Domain {
        host,
        state: DomainState::Asked,
    });
    let mut domains: Vec<Domain> = claimed.chain(asked).collect();
    domains.sort_by_key(|domain| domain.host.to_string());
    let domains = domains
        .into_iter()
        .filter(|domain| domain.host.to_string() > after)
        .take(usize::try_from(query.limit.and_one()).unwrap_or(0));
    Ok(Page::of(domains.collect(), query.limit.get(), |domain| {
        domain.host.to_string()
    }))
}

async fn add_domain(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Path(app): Path<String>,
    Body(NewDomain { host }): Body<NewDomain>,
) -> Result<Created<Domain>, Problem> {
    let (app, has_it) = {
        let picture = node.directory.picture();
        let app = app_named(&picture, &app)?;
        (app.id, app.hosts.contains(&host))
    };
    check_host(&node, &host)?;
    let gives = gives_hosts(&who);
    if !has_it && !gives {
        ask(&node, app, host.clone()).await?;
        let state = DomainState::Asked;
        return Ok(Created(Domain { host, state }));
    }
    let shown = Domain {
        host: host.clone(),
        state: DomainState::Claimed,
    };
    change_hosts(&node, app, false, move |tx, mut hosts| {
        if !gives && !hosts.contains(&host) {
            // It was taken away a moment ago.
            return Err(AppError::HostNotClaimed(host));
        }
        tx.creates(&host);
        hosts.push(host);
        Ok(hosts)
    })
    .await?;
    Ok(Created(shown))
}

async fn remove_domain(
    State(node): State<Arc<Node>>,
    Path((app, host)): Path<(String, String)>,
    Query(query): Query<OrphanQuery>,
) -> Result<NoContent, Problem> {
    let app = app_named(&node.directory.picture(), &app)?.id;
    let host: HostPattern = host
        .parse()
        .map_err(|problem: String| Problem::not_found(problem))?;
    let asked = sql::asked::of(&mut node.db.read().await?, app).await?;
    if asked.contains(&host) {
        let answered = node.db.write(move |tx| {
            Box::pin(async move {
                match sql::asked::answer(tx, app, &host).await? {
                    true => Ok(()),
                    // It was given or taken back a moment ago.
                    false => Err(AppError::HostNotClaimed(host)),
                }
            })
        });
        answered.await?;
        return Ok(NoContent);
    }
    change_hosts(&node, app, query.orphan, move |_, mut hosts| {
        match hosts.iter().position(|known| *known == host) {
            Some(place) => hosts.remove(place),
            None => return Err(AppError::HostNotClaimed(host)),
        };
        Ok(hosts)
    })
    .await?;
    Ok(NoContent)
}

/// Ask for a host for an app.
async fn ask(node: &Node, app: AppId, host: HostPattern) -> Result<(), AppError> {
    node.db
        .write(move |tx| {
            Box::pin(async move {
                tx.creates(&host);
                if sql::asked::of(tx.conn().await?, app).await?.len() >= HOSTS_MAX {
                    return Err(AppError::TooManyHosts);
                }
                Ok(sql::asked::ask(tx, app, &host).await?)
            })
        })
        .await
}

/// Change the hosts of an app from what they are at that moment.
async fn change_hosts(
    node: &Node,
    app: AppId,
    orphan: bool,
    change: impl FnOnce(&mut Tx, Vec<HostPattern>) -> Result<Vec<HostPattern>, AppError>
    + Send
    + 'static,
) -> Result<(), Problem> {
    let changed = node.db.write(move |tx| {
        Box::pin(async move {
            directory::raise_version(tx).await?;
            let known = sql::get(tx.conn().await?, app).await?;
            let known = known.ok_or_else(|| AppError::NotFound(app.to_string()))?;
            let mut hosts = change(tx, known.hosts)?;
            hosts.sort();
            hosts.dedup();
            if hosts.len() > HOSTS_MAX {
                return Err(AppError::TooManyHosts);
            }
            domains::claim(tx, app, &hosts, orphan).await
        })
    });
    changed.await?;
    node.refresh_directory().await;
    Ok(())
}

async fn remove(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    expected: Expected,
) -> Result<NoContent, Problem> {
    let id = app_named(&node.directory.picture(), &app)?.id;
    node.db
        .write(move |tx| {
            Box::pin(async move {
                directory::raise_version(tx).await?;
                expected.check(sql::get(tx.conn().await?, id).await?.as_ref())?;
                match sql::leaving::hide(tx, id).await? {
                    true => Ok(()),
                    false => Err(AppError::NotFound(app)),
                }
            })
        })
        .await?;
    node.refresh_directory().await;
    Ok(NoContent)
}
