//! The configuration: flags over `PICLOUD_*` over `picloud.toml` over defaults. Each value
//! remembers where it came from.

mod settings;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use chrono::TimeDelta;

use ipnet::IpNet;
use uuid::Uuid;

use crate::dispatch::retry::{self, RetryPolicy};
use crate::journal::ReplayLimits;
use crate::oidc;
use crate::pubsub;
use crate::quotas::{Data, Quotas, objects};
use crate::retention::Retention;
use crate::sandbox::{CompileLimits, Limits};
pub use settings::{SETTINGS, Setting};

/// What an instance runs with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the server listens.
    pub listen: SocketAddr,
    /// The folder of everything that the instance keeps.
    pub data_dir: PathBuf,
    /// `sqlite://…` or `postgres://…`.
    pub database_url: String,
    /// The folder of compiled code.
    pub cache_dir: PathBuf,
    /// What is logged, as a filter of `tracing`.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Executions at once on this node.
    pub executions_max: u32,
    /// Threads that run guests; 0: one for each core.
    pub guest_threads: usize,
    /// The memory that all executions on this node may hold; none: half of the machine's.
    pub guest_memory_bytes: Option<u64>,
    /// The largest body of a request to a route.
    pub body_bytes_max: usize,
    /// The largest value of the key-value store.
    pub kv_value_bytes_max: usize,
    /// What may be published, and how long subscriber tokens are good.
    pub pubsub: pubsub::Limits,
    /// How many streams may be open at once.
    pub streams: StreamLimits,
    /// How long a lease lasts without a heartbeat.
    pub lease_ms: u64,
    /// How long a node that was told to stop serves on while it is not ready.
    pub shutdown_drain_ms: u64,
    /// How long running scripts get to finish at shutdown.
    pub shutdown_grace_ms: u64,
    /// How deep events may cause events.
    pub trigger_depth_max: u32,
    /// How a delivery is retried whose trigger says nothing else.
    pub retry: RetryPolicy,
    /// How long what is over is kept.
    pub retention: Retention,
    /// How many bytes each app keeps in the database.
    pub quotas: Quotas,
    /// How long a session lasts.
    pub session_ttl_hours: u32,
    /// How long one lasts that is not used.
    pub session_idle_hours: u32,
    /// The key of the secrets.
    pub master_key: Option<String>,
    /// The file of that key.
    pub master_key_file: Option<PathBuf>,
    /// The keys before it.
    pub master_key_previous: String,
    /// Bytes of requests' and answers' bodies that are held at once.
    pub bodies_bytes_max: u64,
    /// Connections at once.
    pub connections_max: usize,
    /// Connections at once of one address.
    pub connections_per_address_max: usize,
    /// How long a client may keep us waiting.
    pub client_timeout_ms: u64,
    /// The proxies whose `x-forwarded-for` and `x-forwarded-proto` are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The one host of the API and the dashboard; none: any host, beside the routes of the apps.
    pub admin_host: Option<String>,
    /// The OpenID provider, if there is one.
    pub oidc: Option<oidc::Settings>,
    /// What compiling one uploaded component may use up.
    pub compile: CompileLimits,
    /// About how many bytes of compiled code are kept.
    pub cache_bytes_max: u64,
    /// The apps whose guests' clocks are not coarsened.
    pub precise_clock_apps: Vec<Uuid>,
    /// What a script gets that sets no limits.
    pub default_limits: Limits,
    /// What a script may set at most.
    pub ceiling: Limits,
    /// The name of the first owner.
    pub owner_name: String,
    /// The password of the first owner; none: whoever has the set-up token makes them.
    pub owner_password: Option<String>,
}

impl Config {
    /// Make the folder of the instance, for us alone, if it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_data_dir(&self) -> anyhow::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.data_dir)
            .with_context(|| format!("data_dir {}", self.data_dir.display()))
    }
}

/// How many streams may be open at once on this node.
#[derive(Debug, Clone, Copy)]
pub struct StreamLimits {
    /// From one address.
    pub per_address: u64,
    /// With one subscriber token.
    pub per_token: u64,
    /// Of one user.
    pub per_user: u64,
    /// Of one app.
    pub per_app: u64,
    /// How much may be replayed to them.
    pub replays: ReplayLimits,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nobody set it.
    Default,
    /// A file.
    File(PathBuf),
    /// A variable of the environment.
    Environment(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// What is wrong with the configuration, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A key that does not exist.
    #[error("{source_of}: there is no setting `{key}`{}", nearest.map_or(String::new(), |near| format!("; did you mean `{near}`?")))]
    UnknownKey {
        /// Where it stands.
        source_of: Source,
        /// The key.
        key: String,
        /// The one that was probably meant.
        nearest: Option<&'static str>,
    },
    /// A value that cannot be.
    #[error("{key} (from {source_of}): {problem}")]
    InvalidValue {
        /// The key.
        key: &'static str,
        /// Where the value came from.
        source_of: Source,
        /// What is wrong with it.
        problem: String,
    },
    /// The file cannot be read.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
}

/// Every setting's text and where it came from.
#[derive(Debug, Clone)]
pub struct Values(BTreeMap<&'static str, (String, Source)>);

impl Values {
    /// Gather the values: `flags` over the environment over the file over defaults.
    ///
    /// # Errors
    /// [`ConfigError`] for an unknown key or a file that cannot be read.
    pub fn gather(
        flags: &[(&'static str, String)],
        environment: impl Fn(&str) -> Option<String>,
        file: Option<&Path>,
    ) -> Result<Self, ConfigError> {
        let mut values: BTreeMap<_, _> = SETTINGS
            .iter()
            .map(|setting| (setting.key, (setting.default.to_owned(), Source::Default)))
            .collect();
        if let Some(path) = file {
            for (key, text) in read_file(path)? {
                values.insert(key, (text, Source::File(path.to_owned())));
            }
        }
        for setting in SETTINGS {
            let name = setting.variable();
            if let Some(text) = environment(&name) {
                values.insert(setting.key, (text, Source::Environment(name)));
            }
        }
        for (key, text) in flags {
            let flag = format!("--{}", key.replace('_', "-"));
            values.insert(key, (text.clone(), Source::Flag(flag)));
        }
        Ok(Self(values))
    }

    /// Each setting with its value, as it may be shown, and where that came from.
    pub fn shown(&self) -> impl Iterator<Item = (&'static Setting, String, &Source)> {
        SETTINGS.iter().filter_map(|setting| {
            let (text, source) = self.0.get(setting.key)?;
            Some((setting, setting.shown(text), source))
        })
    }

    /// The file of settings, if a secret or a password stands in it.
    pub fn file_with_secrets(&self) -> Option<&Path> {
        SETTINGS.iter().find_map(|setting| {
            let (text, source) = self.0.get(setting.key)?;
            match source {
                Source::File(path) if setting.shown(text) != *text => Some(path.as_path()),
                _ => None,
            }
        })
    }

    fn get<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        let (text, source) = self
            .0
            .get(key)
            .expect("every key that we ask for is in SETTINGS");
        parse(text).map_err(|problem| {
            let source_of = source.clone();
            ConfigError::InvalidValue {
                key,
                source_of,
                problem,
            }
        })
    }

    /// What is set about the OpenID provider; none without an issuer.
    fn oidc(&self) -> Result<Option<oidc::Settings>, ConfigError> {
        use settings::{boolean, issuer, optional, role, text};
        let otherwise = self.get("oidc_default_role", role)?;
        let roles = |text: &str| oidc::roles::Mapping::parse(text, otherwise);
        let roles = self.get("oidc_roles", roles)?;
        let (creates_users, links_verified_email) = (
            self.get("oidc_create_users", boolean)?,
            self.get("oidc_link_verified_email", boolean)?,
        );
        let Some(issuer) = self.get("oidc_issuer", issuer)? else {
            return Ok(None);
        };
        let host = issuer.split('/').nth(2).unwrap_or_default().to_owned();
        let name = self.get("oidc_name", optional)?.unwrap_or(host);
        let words = |text: &str| Ok(text.split_whitespace().map(str::to_owned).collect());
        Ok(Some(oidc::Settings {
            issuer,
            client_id: self.get("oidc_client_id", text)?,
            client_secret: self.get("oidc_client_secret", optional)?,
            client_secret_file: self
                .get("oidc_client_secret_file", optional)?
                .map(PathBuf::from),
            scopes: self.get("oidc_scopes", words)?,
            groups_claim: self.get("oidc_groups_claim", text)?,
            roles,
            creates_users,
            links_verified_email,
            name,
        }))
    }

    /// The configuration that these values make.
    ///
    /// # Errors
    /// [`ConfigError::InvalidValue`] for the first that cannot be.
    pub fn config(&self) -> Result<Config, ConfigError> {
        use settings::{
            address, backoff, bytes, format, host, ids, networks, number, optional, or_none, text,
        };
        let limits = |prefix: [&'static str; 5]| -> Result<Limits, ConfigError> {
            Ok(Limits {
                fuel: self.get(prefix[0], number(1..=u64::MAX / 2))?,
                timeout_ms: self.get(prefix[1], number(1..=24 * 3_600_000))?,
                memory_bytes: self.get(prefix[2], bytes(8 << 20..=4 << 30))?,
                output_bytes: self.get(prefix[3], bytes(1..=1 << 30))?,
                log_bytes: self.get(prefix[4], bytes(1..=1 << 30))?,
            })
        };
        let days = |key| -> Result<TimeDelta, ConfigError> {
            Ok(TimeDelta::days(self.get(key, number(1..=36_500))? as i64))
        };
        let quota = |data: Data| self.get(data.setting(), bytes(64 << 10..=1 << 50));
        let data_dir = PathBuf::from(self.get("data_dir", text)?);
        let database_url = self.get("database_url", optional)?;
        let cache_dir = self.get("cache_dir", optional)?;
        Ok(Config {
            listen: self.get("listen", address)?,
            database_url: database_url
                .unwrap_or_else(|| format!("sqlite://{}", data_dir.join("picloud.db").display())),
            cache_dir: cache_dir.map_or_else(|| data_dir.join("cache"), PathBuf::from),
            data_dir,
            log: self.get("log", text)?,
            log_format: self.get("log_format", format)?,
            executions_max: self.get("executions_max", number(1..=100_000))? as u32,
            guest_memory_bytes: self
                .get("guest_memory_bytes", or_none(bytes(64 << 20..=1 << 50)))?,
            guest_threads: self.get("guest_threads", number(0..=1024))? as usize,
            body_bytes_max: self.get("body_bytes_max", bytes(1024..=64 << 20))? as usize,
            kv_value_bytes_max: self.get("kv_value_bytes_max", bytes(1024..=16 << 20))? as usize,
            pubsub: pubsub::Limits {
                message_bytes_max: self.get("message_bytes_max", bytes(1024..=4 << 20))? as usize,
                token_ttl: pubsub::TtlBounds {
                    min_s: self.get("subscriber_token_ttl_min_sec", number(1..=86_400))? as u32,
                    max_s: self.get("subscriber_token_ttl_max_sec", number(1..=31_536_000))? as u32,
                    default_s: self
                        .get("subscriber_token_ttl_default_sec", number(1..=31_536_000))?
                        as u32,
                },
                subscriber_keys_max: self.get(objects::SETTING, number(1..=1_000_000))?,
            },
            streams: StreamLimits {
                per_address: self.get("streams_per_address_max", number(1..=1_000_000))?,
                per_token: self.get("streams_per_token_max", number(1..=1_000_000))?,
                per_user: self.get("streams_per_user_max", number(1..=1_000_000))?,
                per_app: self.get("streams_per_app_max", number(1..=1_000_000))?,
                replays: ReplayLimits {
                    per_minute: self.get("stream_replays_per_minute_max", number(1..=1_000_000))?
                        as u32,
                    at_once: self.get("stream_replays_at_once_max", number(1..=1_000_000))?,
                },
            },
            lease_ms: self.get("lease_ms", number(1_000..=600_000))?,
            shutdown_drain_ms: self.get("shutdown_drain_ms", number(0..=3_600_000))?,
            shutdown_grace_ms: self.get("shutdown_grace_ms", number(0..=3_600_000))?,
            trigger_depth_max: self.get("max_trigger_depth", number(1..=64))? as u32,
            retry: RetryPolicy {
                attempts_max: self.get(
                    "trigger_retry_max_attempts",
                    number(1..=u64::from(retry::ATTEMPTS_MAX)),
                )? as u32,
                backoff: self.get("trigger_retry_backoff", backoff)?,
                base_ms: self.get("trigger_retry_base_ms", number(0..=retry::PAUSE_MS_MAX))?,
                jitter_pct: self.get("trigger_retry_jitter_pct", number(0..=100))? as u32,
            },
            retention: Retention {
                dead_letters: days("dead_letter_retention_days")?,
                abandoned_executions: days("abandoned_executions_retention_days")?,
                executions: days("execution_retention_days")?,
                audit: days("audit_retention_days")?,
            },
            quotas: Quotas {
                kv: quota(Data::Kv)?,
                dead_letters: quota(Data::DeadLetters)?,
                executions: quota(Data::Executions)?,
                messages: quota(Data::Messages)?,
                delivery_bytes: quota(Data::Deliveries)?,
                deliveries: self.get("deliveries_max", number(1..=1_000_000_000))?,
                script_versions: quota(Data::ScriptVersions)?,
                idempotency_keys: quota(Data::IdempotencyKeys)?,
                objects: self.get(objects::SETTING, number(1..=1_000_000))?,
            },
            session_ttl_hours: self.get("session_ttl_hours", number(1..=24 * 366))? as u32,
            session_idle_hours: self.get("session_idle_hours", number(1..=24 * 366))? as u32,
            master_key: self.get("master_key", optional)?,
            master_key_file: self.get("master_key_file", optional)?.map(PathBuf::from),
            master_key_previous: self
                .get("master_key_previous", optional)?
                .unwrap_or_default(),
            bodies_bytes_max: self.get("bodies_bytes_max", bytes(64 << 20..=1 << 40))?,
            connections_max: self.get("connections_max", number(1..=1_000_000))? as usize,
            connections_per_address_max: self
                .get("connections_per_address_max", number(1..=1_000_000))?
                as usize,
            client_timeout_ms: self.get("client_timeout_ms", number(100..=3_600_000))?,
            trusted_proxies: self.get("trusted_proxies", networks)?,
            admin_host: self.get("admin_host", host)?,
            oidc: self.oidc()?,
            compile: CompileLimits {
                timeout_ms: self.get("compile_timeout_ms", number(1_000..=600_000))?,
                memory_bytes: self.get("compile_memory_bytes", bytes(128 << 20..=16 << 30))?,
            },
            precise_clock_apps: self.get("precise_clock_apps", ids)?,
            cache_bytes_max: self.get("cache_bytes_max", bytes(64 << 20..=1 << 40))?,
            default_limits: limits([
                "default_fuel",
                "default_timeout_ms",
                "default_memory_bytes",
                "default_output_bytes",
                "default_log_bytes",
            ])?,
            ceiling: limits([
                "max_fuel",
                "max_timeout_ms",
                "max_memory_bytes",
                "max_output_bytes",
                "max_log_bytes",
            ])?,
            owner_name: self.get("owner_name", text)?,
            owner_password: self.get("owner_password", optional)?,
        })
    }
}

fn read_file(path: &Path) -> Result<Vec<(&'static str, String)>, ConfigError> {
    let problem = |problem: String| ConfigError::File {
        path: path.to_owned(),
        problem,
    };
    let text = std::fs::read_to_string(path).map_err(|error| problem(error.to_string()))?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| problem(error.to_string()))?;
    let mut values = Vec::new();
    for (key, value) in table {
        let setting = SETTINGS
            .iter()
            .find(|setting| setting.key == key)
            .ok_or_else(|| {
                let source_of = Source::File(path.to_owned());
                ConfigError::UnknownKey {
                    source_of,
                    nearest: nearest(&key),
                    key: key.clone(),
                }
            })?;
        let text = match value {
            toml::Value::String(text) => text,
            other => other.to_string(),
        };
        values.push((setting.key, text));
    }
    Ok(values)
}

/// The setting whose name is most like `key`.
fn nearest(key: &str) -> Option<&'static str> {
    let likeness = |setting: &Setting| strsim::jaro_winkler(setting.key, key);
    let best = SETTINGS
        .iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) > 0.7).then_some(best.key)
}

/// Variables that begin like ours but are no setting, with the nearest setting: probably typing
/// mistakes.
pub fn odd_variables(names: impl Iterator<Item = String>) -> Vec<(String, Option<&'static str>)> {
    // These belong to the CLI, the build and the tests.
    const OTHERS: [&str; 6] = ["URL", "TOKEN", "APP", "CONFIG", "BIN", "OWNER_PASSWORD"];
    const PREFIXES: [&str; 2] = ["TEST_", "GUEST_"];
    names
        .filter_map(|name| {
            let key = name.strip_prefix("PICLOUD_")?;
            let known = SETTINGS.iter().any(|setting| setting.variable() == name)
                || OTHERS.contains(&key)
                || PREFIXES.iter().any(|prefix| key.starts_with(prefix));
            let near = nearest(&key.to_ascii_lowercase());
            (!known).then_some((name.clone(), near))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather(
        flags: &[(&'static str, String)],
        environment: &[(&str, &str)],
        file: Option<&str>,
    ) -> Result<Values, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picloud.toml");
        let path = file.map(|text| {
            std::fs::write(&path, text).unwrap();
            path
        });
        let environment = |name: &str| {
            environment
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, v)| (*v).to_owned())
        };
        Values::gather(flags, environment, path.as_deref())
    }

    #[test]
    fn the_defaults_are_valid() {
        let config = gather(&[], &[], None).unwrap().config().unwrap();
        assert_eq!(config.database_url, "sqlite://./data/picloud.db");
        assert_eq!(config.default_limits, Limits::DEFAULT);
        assert_eq!(config.ceiling, Limits::CEILING);
        assert_eq!(config.compile, CompileLimits::DEFAULT);
    }

    #[test]
    fn flags_win_over_variables_over_the_file() {
        let file = Some("lease_ms = 3000\nexecutions_max = 5\nlog = \"warn\"\n");
        let environment = [
            ("PICLOUD_LEASE_MS", "4000"),
            ("PICLOUD_EXECUTIONS_MAX", "6"),
        ];
        let values = gather(&[("lease_ms", "5000".into())], &environment, file).unwrap();
        let config = values.config().unwrap();
        assert_eq!(
            (config.lease_ms, config.executions_max, config.log.as_str()),
            (5000, 6, "warn")
        );
        let source = |key| values.0[key].1.to_string();
        assert_eq!(source("lease_ms"), "--lease-ms");
        assert_eq!(source("executions_max"), "PICLOUD_EXECUTIONS_MAX");
        assert!(source("log").ends_with("picloud.toml"));
        assert_eq!(source("listen"), "default");
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let error = gather(&[], &[], Some("lisen = \"x\""))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no setting `lisen`; did you mean `listen`?"),
            "{error}"
        );
        let odd = odd_variables(
            [
                "PICLOUD_LISTN".to_owned(),
                "PICLOUD_URL".into(),
                "PATH".into(),
            ]
            .into_iter(),
        );
        assert_eq!(odd, [("PICLOUD_LISTN".to_owned(), Some("listen"))]);
    }

    #[test]
    fn a_bad_value_names_its_key_and_source() {
        let values = gather(&[], &[("PICLOUD_LEASE_MS", "soon")], None).unwrap();
        let error = values.config().unwrap_err().to_string();
        assert!(
            error.starts_with("lease_ms (from PICLOUD_LEASE_MS): "),
            "{error}"
        );
    }

    #[test]
    fn secrets_are_not_shown() {
        let environment = [
            ("PICLOUD_OWNER_PASSWORD", "hunter2"),
            ("PICLOUD_DATABASE_URL", "postgres://me:hunter2@db/x"),
        ];
        let values = gather(&[], &environment, None).unwrap();
        let all: String = values.shown().map(|(_, text, _)| text).collect();
        assert!(!all.contains("hunter2"), "{all}");
        assert!(all.contains("postgres://me:***@db/x"), "{all}");
        assert_eq!(values.file_with_secrets(), None);
        for (url, shown) in [
            (
                "postgres://db/x?user=me&password=hunter2&sslmode=require",
                "postgres://db/x?user=me&password=***&sslmode=require",
            ),
            (
                "postgres://me:hunter2@db/x?sslpassword=hunter2",
                "postgres://me:***@db/x?sslpassword=***",
            ),
            (
                "postgres://db/x?%70assword=hunter2",
                "postgres://db/x?%70assword=***",
            ),
            ("postgres://me:hunt?er2@db/x", "postgres://me:***@db/x"),
            (
                "postgres://db/x?user=me&password=hunt@er2",
                "postgres://db/x?user=me&password=***",
            ),
            ("postgres://db:5432?password=hunt@er2", "postgres://***"),
            (
                "postgres://me:hunter2@db/x?options=a@b",
                "postgres://me:***@db/x?options=a@b",
            ),
            ("postgres://me@db/x?user=you", "postgres://me@db/x?user=you"),
        ] {
            let values = gather(&[], &[("PICLOUD_DATABASE_URL", url)], None).unwrap();
            let mut all = values.shown().map(|(_, text, _)| text);
            assert!(all.any(|text| text == shown), "{url}");
        }
        for (text, has) in [
            ("log = \"warn\"", false),
            ("master_key = \"\"", false),
            ("master_key = \"hunter2\"", true),
            ("database_url = \"postgres://me:hunter2@db/x\"", true),
            (
                "database_url = \"postgres://db/x?user=me&password=hunter2\"",
                true,
            ),
            ("database_url = \"postgres://db/x?user=me\"", false),
        ] {
            let values = gather(&[], &[], Some(text)).unwrap();
            assert_eq!(values.file_with_secrets().is_some(), has, "{text}");
        }
    }
}
