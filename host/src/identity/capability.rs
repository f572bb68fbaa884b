//! What a principal may do: one enum, and one function that decides.

use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Caller, Via};
use crate::apps::AppId;

/// What somebody may do on the instance. A greater one may do all that a lesser one may.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Only what their roles in apps say.
    Member,
    /// Everything in every app, and everything on the instance but what concerns owners.
    Admin,
    /// Everything. There is always one.
    Owner,
}

/// What somebody may do in one app. A greater one may do all that a lesser one may.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum AppRole {
    /// Look.
    Viewer,
    /// Change what the app does.
    Editor,
    /// Decide who may, and what becomes of what failed.
    AppAdmin,
}

/// What an API key may be used for.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum Scope {
    /// Reading scripts, routes and the key-value store.
    #[serde(rename = "script:read")]
    ScriptRead,
    /// Changing, running and reading scripts, changing the key-value store.
    #[serde(rename = "script:write")]
    ScriptWrite,
    /// Changing routes, and reading them.
    #[serde(rename = "route:write")]
    RouteWrite,
    /// Changing which hosts an app claims.
    #[serde(rename = "domain:manage")]
    DomainManage,
    /// Triggers, dead letters, members, settings.
    #[serde(rename = "app:admin")]
    AppAdmin,
    /// Reading executions and their logs.
    #[serde(rename = "log:read")]
    LogRead,
    /// The instance: its apps and users.
    #[serde(rename = "instance:admin")]
    InstanceAdmin,
}

macro_rules! names {
    ($type:ident { $($variant:ident => $name:literal),* $(,)? }) => {
        impl $type {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name in the API, the database and the docs.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// The one of this name.
            pub fn parse(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.as_str() == name)
            }
        }
    };
}

names!(Role { Owner => "owner", Admin => "admin", Member => "member" });
names!(AppRole { AppAdmin => "app_admin", Editor => "editor", Viewer => "viewer" });
names!(Scope {
    ScriptRead => "script:read",
    ScriptWrite => "script:write",
    RouteWrite => "route:write",
    DomainManage => "domain:manage",
    AppAdmin => "app:admin",
    LogRead => "log:read",
    InstanceAdmin => "instance:admin",
});

/// One thing that a principal may or may not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// See that an app is there.
    SeeApp,
    /// Read scripts and their versions.
    ReadScripts,
    /// Change and run scripts.
    WriteScripts,
    /// Read the key-value store.
    ReadKv,
    /// Change the key-value store.
    WriteKv,
    /// Read routes.
    ReadRoutes,
    /// Change routes.
    WriteRoutes,
    /// Read executions and their logs.
    ReadLogs,
    /// Read what requests and events carried and what scripts said of it, in an app that hides
    /// that from viewers.
    ReadPayloads,
    /// Change which hosts an app claims.
    ManageDomains,
    /// Read and change triggers.
    ManageTriggers,
    /// Read, replay and resolve dead letters.
    ManageDeadLetters,
    /// Publish messages.
    Publish,
    /// Open topics to subscribers and close them, end subscriber tokens.
    ManageTopics,
    /// See which secrets there are, give them values, remove them.
    ManageSecrets,
    /// Name and delete an app, decide who may do what in it, read what they did.
    ManageApp,
    /// Make apps.
    CreateApps,
    /// Decide who may do what on the instance, and tend it.
    ManageInstance,
}

/// What it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// At least this role in the app.
    App(AppRole),
    /// At least this role on the instance.
    Instance(Role),
}

names!(Capability {
    SeeApp => "see_app",
    ReadScripts => "read_scripts",
    WriteScripts => "write_scripts",
    ReadKv => "read_kv",
    WriteKv => "write_kv",
    ReadRoutes => "read_routes",
    WriteRoutes => "write_routes",
    ReadLogs => "read_logs",
    ReadPayloads => "read_payloads",
    ManageDomains => "manage_domains",
    ManageTriggers => "manage_triggers",
    ManageDeadLetters => "manage_dead_letters",
    Publish => "publish",
    ManageTopics => "manage_topics",
    ManageSecrets => "manage_secrets",
    ManageApp => "manage_app",
    CreateApps => "create_apps",
    ManageInstance => "manage_instance",
});

impl Capability {
    /// The role that it takes.
    pub fn needs(self) -> Needs {
        match self {
            Self::SeeApp | Self::ReadScripts | Self::ReadKv | Self::ReadRoutes | Self::ReadLogs => {
                Needs::App(AppRole::Viewer)
            }
            Self::WriteScripts
            | Self::WriteKv
            | Self::WriteRoutes
            | Self::Publish
            | Self::ReadPayloads => Needs::App(AppRole::Editor),
            Self::ManageDomains
            | Self::ManageTriggers
            | Self::ManageDeadLetters
            | Self::ManageTopics
            | Self::ManageSecrets
            | Self::ManageApp => Needs::App(AppRole::AppAdmin),
            Self::CreateApps | Self::ManageInstance => Needs::Instance(Role::Admin),
        }
    }

    /// The scopes of which an API key must have one besides; none where any key will do. Whoever may
    /// write something may read it: the answer to a change shows what was changed.
    pub fn scopes(self) -> &'static [Scope] {
        match self {
            Self::SeeApp => &[],
            Self::ReadScripts => &[Scope::ScriptRead, Scope::ScriptWrite],
            // What is kept there is nobody's to read who only deploys.
            Self::ReadKv => &[Scope::ScriptRead],
            Self::ReadRoutes => &[Scope::ScriptRead, Scope::RouteWrite],
            // Whoever may change a script may have it tell them.
            Self::WriteScripts | Self::WriteKv | Self::Publish | Self::ReadPayloads => {
                &[Scope::ScriptWrite]
            }
            Self::WriteRoutes => &[Scope::RouteWrite],
            Self::ReadLogs => &[Scope::LogRead],
            Self::ManageDomains => &[Scope::DomainManage],
            Self::ManageTriggers
            | Self::ManageDeadLetters
            | Self::ManageTopics
            | Self::ManageSecrets
            | Self::ManageApp => &[Scope::AppAdmin],
            Self::CreateApps | Self::ManageInstance => &[Scope::InstanceAdmin],
        }
    }
}

/// Whether somebody may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// They may.
    Allowed,
    /// They may not, for want of what the text names.
    Denied(String),
    /// They may not even know that the app is there.
    Hidden,
}

/// Decide whether `who`, whose role in the app is `role`, may do something in an app. Whoever is
/// at least admin of the instance is `app_admin` of every app.
pub fn in_app(
    who: &Caller,
    role: Option<AppRole>,
    app_id: AppId,
    capability: Capability,
) -> Decision {
    let role = match who.user.role {
        Role::Owner | Role::Admin => Some(AppRole::AppAdmin),
        Role::Member => role,
    };
    let Some(role) = role else {
        return Decision::Hidden;
    };
    if let Via::ApiKey(key) = &who.via
        && key
            .apps
            .as_ref()
            .is_some_and(|apps| !apps.contains(&app_id))
    {
        return Decision::Hidden;
    }
    if let Some(lacks) = lacking_scope(who, capability) {
        return lacks;
    }
    match capability.needs() {
        Needs::App(needed) if role < needed => Decision::Denied(format!(
            "this takes the role `{}` in the app; yours is `{}`",
            needed.as_str(),
            role.as_str()
        )),
        Needs::Instance(_) => on_instance(who, capability),
        Needs::App(_) => Decision::Allowed,
    }
}

/// Decide whether `who` may do something on the instance.
pub fn on_instance(who: &Caller, capability: Capability) -> Decision {
    if let Some(lacks) = lacking_scope(who, capability) {
        return lacks;
    }
    if let Via::ApiKey(key) = &who.via
        && key.apps.is_some()
    {
        return Decision::Denied("this API key is for some apps only".to_owned());
    }
    match capability.needs() {
        Needs::Instance(needed) if who.user.role < needed => Decision::Denied(format!(
            "this takes the role `{}` on the instance; yours is `{}`",
            needed.as_str(),
            who.user.role.as_str()
        )),
        _ => Decision::Allowed,
    }
}

fn lacking_scope(who: &Caller, capability: Capability) -> Option<Decision> {
    let Via::ApiKey(key) = &who.via else {
        return None;
    };
    let takes = capability.scopes();
    let lacks = !takes.is_empty() && !takes.iter().any(|scope| key.scopes.contains(scope));
    lacks.then(|| {
        Decision::Denied(format!(
            "this takes the scope {}, which this API key does not have",
            named(takes)
        ))
    })
}

/// Scopes of which one is enough, in words.
fn named(scopes: &[Scope]) -> String {
    let names: Vec<String> = scopes
        .iter()
        .map(|scope| format!("`{}`", scope.as_str()))
        .collect();
    names.join(" or ")
}

/// The table of the docs.
pub fn table() -> String {
    let mut table = "| capability | role | scope of an API key |\n|---|---|---|\n".to_owned();
    for capability in Capability::ALL {
        let role = match capability.needs() {
            Needs::App(role) => format!("`{}` of the app", role.as_str()),
            Needs::Instance(role) => format!("`{}` of the instance", role.as_str()),
        };
        let scope = match capability.scopes() {
            [] => "any".to_owned(),
            scopes => named(scopes),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(table, "| `{}` | {role} | {scope} |", capability.as_str());
    }
    table
}
