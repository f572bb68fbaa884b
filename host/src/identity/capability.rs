//! What a principal may do: one enum, and one function that decides.

use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Caller, IdentityError, Via};
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

impl Decision {
    /// Nothing where they may, for where nothing is hidden.
    ///
    /// # Errors
    /// [`IdentityError::Forbidden`] says why they may not.
    pub fn allowed(self) -> Result<(), IdentityError> {
        match self {
            Self::Allowed => Ok(()),
            Self::Denied(why) => Err(IdentityError::Forbidden(why)),
            Self::Hidden => Err(IdentityError::Forbidden(
                "this is not yours to do".to_owned(),
            )),
        }
    }
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

/// Decide whether `who` may give somebody a role in an app where they may give roles at all. An API
/// key gives no role that may do what the key may not.
pub fn giving_in_app(who: &Caller, role: AppRole) -> Decision {
    let of_role = Capability::ALL
        .iter()
        .filter(|capability| matches!(capability.needs(), Needs::App(needed) if needed <= role));
    let missing: Vec<String> = of_role
        .filter(|capability| lacking_scope(who, **capability).is_some())
        .map(|capability| named(capability.scopes()))
        .collect();
    let Some(first) = missing.first() else {
        return Decision::Allowed;
    };
    Decision::Denied(format!(
        "an API key gives no role that may do more than the key: `{}` takes the scope {first}, \
         which this one does not have; sign in to give it",
        role.as_str()
    ))
}

/// Decide whether `who` may make somebody this on the instance where they may change users at all.
/// That only owners make owners is decided elsewhere.
pub fn giving_on_instance(who: &Caller, role: Role) -> Decision {
    match (&who.via, role) {
        (Via::ApiKey(_), Role::Admin | Role::Owner) => Decision::Denied(format!(
            "an API key makes nobody `{}`, who may do more than any key; sign in to do this",
            role.as_str()
        )),
        _ => Decision::Allowed,
    }
}

/// Decide whether `who` may make a link that leads to a sign-in as a user who is there already.
pub fn giving_sign_in(who: &Caller) -> Decision {
    match who.via {
        Via::ApiKey(_) => Decision::Denied(
            "a link to a new password leads to a sign-in, which may do more than any API key; \
             sign in to make one"
                .to_owned(),
        ),
        Via::Session(_) | Via::Trigger => Decision::Allowed,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{ApiKeyId, KeyGrant, SessionId, User, UserId};

    fn caller(scopes: Option<&[Scope]>) -> Caller {
        let via = match scopes {
            None => Via::Session(SessionId::new()),
            Some(scopes) => Via::ApiKey(KeyGrant {
                id: ApiKeyId::new(),
                name: "k".to_owned(),
                scopes: scopes.to_vec(),
                apps: None,
            }),
        };
        let user = User {
            id: UserId::new(),
            name: "ada".to_owned(),
            role: Role::Owner,
            created_at: chrono::Utc::now(),
            disabled_at: None,
        };
        Caller { user, via }
    }

    #[test]
    fn a_key_gives_no_role_that_may_do_more_than_it() {
        use Scope::{AppAdmin, DomainManage, LogRead, RouteWrite, ScriptRead, ScriptWrite};
        let viewer = [ScriptRead, LogRead];
        let editor = [ScriptRead, LogRead, ScriptWrite, RouteWrite];
        let all = [
            ScriptRead,
            LogRead,
            ScriptWrite,
            RouteWrite,
            DomainManage,
            AppAdmin,
        ];
        let given = |scopes: Option<&[Scope]>| {
            let roles = AppRole::ALL.iter().rev();
            let who = caller(scopes);
            roles
                .map(|role| giving_in_app(&who, *role) == Decision::Allowed)
                .collect::<Vec<_>>()
        };
        assert_eq!(given(None), [true, true, true], "a sign-in has no scopes");
        assert_eq!(given(Some(&[AppAdmin])), [false, false, false]);
        assert_eq!(given(Some(&viewer)), [true, false, false]);
        assert_eq!(given(Some(&editor)), [true, true, false]);
        assert_eq!(given(Some(&all)), [true, true, true]);
        for missing in all {
            let rest: Vec<Scope> = all.into_iter().filter(|scope| *scope != missing).collect();
            assert!(!given(Some(&rest))[2], "{}", missing.as_str());
        }
    }

    #[test]
    fn a_key_makes_nobody_greater_than_a_member_and_lets_nobody_in_as_another() {
        let key = caller(Some(Scope::ALL));
        for (role, allowed) in [
            (Role::Member, true),
            (Role::Admin, false),
            (Role::Owner, false),
        ] {
            let by_key = giving_on_instance(&key, role) == Decision::Allowed;
            assert_eq!(by_key, allowed, "{}", role.as_str());
            assert_eq!(giving_on_instance(&caller(None), role), Decision::Allowed);
        }
        assert_ne!(giving_sign_in(&key), Decision::Allowed);
        assert_eq!(giving_sign_in(&caller(None)), Decision::Allowed);
    }
}
