//! The HTTP API of exported apps.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{Method, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FORMAT, Import, ImportError, Terms, export};
use crate::apps::api::checked_hosts;
use crate::apps::{AppId, HostPattern, Slug};
use crate::archive;
use crate::http::API_ROOT;
use crate::http::answer::{Created, With, Zip};
use crate::http::endpoints::{Api, Of, Rule};
use crate::http::extract::{Archive, Path, Query, SignedIn, app_named, check_ttl, checked_name};
use crate::http::heavy;
use crate::http::problem::{Problem, ProblemType};
use crate::identity::capability::Capability;
use crate::node::Node;
use crate::pubsub::api::check_opening;
use crate::scripts::Kind;
use crate::scripts::api::{checked_limits, checked_source};
use crate::scripts::runner::CheckedCode;
use crate::store::{StoreError, snapshot};
use crate::triggers::api::check_idempotency;

/// The endpoints of this room.
pub fn endpoints() -> Api {
    Api::default()
        .get(
            "/apps/{app}/export",
            Rule::App(Capability::ManageApp, Of::App),
            export_app,
        )
        .called("exportApp", "Export an app into a zip file")
        .may_fail(&[ProblemType::Overloaded])
        .noted()
        .post(
            "/imports",
            Rule::Instance(Capability::CreateApps),
            import_app,
        )
        .called("importApp", "Make an app of an exported one")
        .may_fail(&[
            ProblemType::SlugTaken,
            ProblemType::HostTaken,
            ProblemType::RouteConflict,
            ProblemType::NameTaken,
            ProblemType::InvalidSource,
            ProblemType::Overloaded,
            ProblemType::TooMany,
            ProblemType::QuotaUsedUp,
        ])
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ExportQuery {
    /// With the key-value store.
    #[serde(default)]
    kv: bool,
}

async fn export_app(
    State(node): State<Arc<Node>>,
    method: Method,
    Path(app): Path<String>,
    Query(ExportQuery { kv }): Query<ExportQuery>,
) -> Result<Zip, Problem> {
    let (id, slug) = {
        let picture = node.directory.picture();
        let app = app_named(&picture, &app)?;
        (app.id, app.slug.clone())
    };
    let name = format!("{slug}.zip");
    if method == Method::HEAD {
        return Ok(Zip::head(name));
    }
    let place = heavy::place_for_export(&node.exports, id).await?;
    let conn = snapshot(&node.config.database_url).await?;
    let pieces = archive::make(move |give| async move {
        let _place = place;
        export(conn, id, kv, give).await
    });
    Ok(crate::backup::api::download(name, pieces, async {}))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ImportQuery {
    /// The app's slug, in place of the one in the file.
    slug: Option<Slug>,
    /// Whether it claims the hosts in the file.
    #[serde(default = "yes")]
    domains: bool,
}

fn yes() -> bool {
    true
}

impl From<ImportError> for Problem {
    fn from(error: ImportError) -> Self {
        match error {
            ImportError::App(error) => error.into(),
            ImportError::Route(error) => error.into(),
            ImportError::Full(full) => full.into(),
            ImportError::TooMany(error) => error.into(),
            ImportError::Store(StoreError::Duplicate) => Self::new(
                ProblemType::NameTaken,
                "the app, or a part of it, was just made by another",
            ),
            ImportError::Store(error) => error.into(),
            error @ ImportError::TooSlow => {
                let detail = format!("{error}; try again when less is going on");
                Self::unavailable(detail)
            }
            error => Self::invalid_field("file", error.to_string()),
        }
    }
}

/// What was made.
#[derive(Serialize, JsonSchema)]
struct Imported {
    format: String,
    app: ImportedApp,
    /// How many there are.
    scripts: usize,
    routes: usize,
    triggers: usize,
    topics: usize,
    kv: usize,
    /// The secrets that the file names; it holds no values.
    secrets_to_set: Vec<String>,
}

/// The app that was made.
#[derive(Serialize, JsonSchema)]
struct ImportedApp {
    id: AppId,
    slug: Slug,
    hosts: Vec<HostPattern>,
}

async fn import_app(
    State(node): State<Arc<Node>>,
    SignedIn(who): SignedIn,
    Query(query): Query<ImportQuery>,
    Archive(file): Archive,
) -> Result<With<Created<Imported>>, Problem> {
    let terms = Terms {
        slug: query.slug,
        with_domains: query.domains,
        by: who.user.id,
        kv_value_bytes_max: node.config.kv_value_bytes_max,
    };
    let reading = tokio::task::spawn_blocking(move || Import::read(file, terms));
    let mut import = reading.await.map_err(Problem::internal)??;
    checked_name("name", &import.app.name)?;
    let counts = node.outbox.counts();
    import.check_quotas(counts)?;
    let (app_id, versions) = (import.app.id, import.versions());
    import.app.hosts = checked_hosts(&node, import.app.hosts)?;
    let mut checked = Vec::new();
    for (script, versions) in &import.scripts {
        let within = |problem: Problem| problem.with("script", script.name.as_str());
        checked_name("name", &script.name).map_err(within)?;
        checked_limits(&node, &script.limits).map_err(within)?;
        for (_, code) in versions {
            if script.kind == Kind::Rhai {
                checked_source(code).map_err(within)?;
            }
        }
        // What is not current is kept as it is: it ran once.
        if let Some((_, current)) = versions.first() {
            let looked = node.runner.check(&import.app, script.kind, current).await;
            checked.push(looked.map_err(|error| within(error.into()))?);
        }
    }
    for route in &import.routes {
        if let Some(policy) = &route.idempotency {
            check_ttl(policy.ttl_s)?;
        }
    }
    for trigger in &import.triggers {
        let within = |problem: Problem| problem.with("trigger", trigger.name.as_str());
        checked_name("name", &trigger.name).map_err(within)?;
        if let Some(policy) = &trigger.idempotency {
            check_idempotency(policy).map_err(within)?;
        }
    }
    for topic in &import.topics {
        let name = topic.name.to_string();
        check_opening(topic).map_err(|problem| problem.with("topic", name))?;
    }
    let imported = Imported {
        format: FORMAT.name.to_owned(),
        app: ImportedApp {
            id: import.app.id,
            slug: import.app.slug.clone(),
            hosts: import.app.hosts.clone(),
        },
        scripts: import.scripts.len(),
        routes: import.routes.len(),
        triggers: import.triggers.len(),
        topics: import.topics.len(),
        kv: import.kv.len(),
        secrets_to_set: import.secrets.clone(),
    };
    Arc::new(import).write(&node.db).await?;
    counts.script_versions.add(app_id, versions);
    checked.into_iter().for_each(CheckedCode::keep);
    node.refresh_directory().await;
    let location = format!("{API_ROOT}/apps/{}", imported.app.id);
    let location = location.parse().map_err(Problem::internal)?;
    Ok(With {
        answer: Created(imported),
        header: Some((header::LOCATION, location)),
    })
}
