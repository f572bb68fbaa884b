//! The settings: each described once.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use uuid::Uuid;

use super::LogFormat;
use crate::apps::HostPattern;
use crate::dispatch::retry::Backoff;
use crate::identity::capability::Role;

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its name in the file; `PICLOUD_` and upper case in the environment; `--` and hyphens as a
    /// flag.
    pub key: &'static str,
    /// What it is for.
    pub help: &'static str,
    /// Its value when nobody sets it; empty when it has none.
    pub default: &'static str,
    /// Whether it must not be shown.
    pub secret: bool,
}

impl Setting {
    /// Its name in the environment.
    pub fn variable(&self) -> String {
        format!("PICLOUD_{}", self.key.to_ascii_uppercase())
    }

    /// Its value as it may be shown.
    pub fn shown(&self, text: &str) -> String {
        if self.secret && !text.is_empty() {
            return "***".to_owned();
        }
        without_passwords(text)
    }
}

/// A text without the passwords of the URL that it may be: `scheme://user:password@host`, and
/// `?password=…` as drivers of Postgres take it.
fn without_passwords(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let (address, query) = match rest.split_once('?') {
        // One with a question mark in its password: the host comes after the last @. Or a password as a
        // parameter, with an @ in it.
        Some((before, after)) if !before.contains(['@', '/']) && after.contains('@') => {
            if after.split(['&', '@']).any(|pair| {
                let name = pair.split_once('=');
                name.is_some_and(|(name, _)| is_secret_parameter(name))
            }) {
                return format!("{scheme}://***");
            }
            (rest, None)
        }
        Some((before, after)) => (before, Some(after)),
        None => (rest, None),
    };
    let mut shown = match address.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((name, _)) => format!("{scheme}://{name}:***@{host}"),
            None => format!("{scheme}://{user}@{host}"),
        },
        None => format!("{scheme}://{address}"),
    };
    if let Some(query) = query {
        let pairs = query.split('&').map(|pair| match pair.split_once('=') {
            Some((name, value)) if !value.is_empty() && is_secret_parameter(name) => {
                format!("{name}=***")
            }
            _ => pair.to_owned(),
        });
        shown.push('?');
        shown.push_str(&pairs.collect::<Vec<_>>().join("&"));
    }
    shown
}

/// Whether a URL's parameter of this name holds a secret. It may be written with escapes.
fn is_secret_parameter(name: &str) -> bool {
    let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
    let name = name.to_ascii_lowercase();
    ["password", "passwd", "secret", "token"]
        .iter()
        .any(|word| name.contains(word))
}

const fn setting(key: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting {
        key,
        help,
        default,
        secret: false,
    }
}

const fn secret_setting(key: &'static str, help: &'static str) -> Setting {
    Setting {
        key,
        help,
        default: "",
        secret: true,
    }
}

/// All of them, in the order in which people should read them.
pub const SETTINGS: &[Setting] = &[
    setting("listen", "127.0.0.1:8080", "Where the server listens"),
    setting(
        "data_dir",
        "./data",
        "The folder of everything that the instance keeps",
    ),
    setting(
        "database_url",
        "",
        "postgres://… for many nodes; SQLite in data_dir when empty",
    ),
    setting(
        "cache_dir",
        "",
        "The folder of compiled code; data_dir/cache when empty",
    ),
    setting(
        "log",
        "info",
        "What is logged: error, warn, info, debug, trace, or a tracing filter",
    ),
    setting("log_format", "text", "text for people, json for machines"),
    setting(
        "executions_max",
        "2500",
        "Executions at once on this node; beyond, callers get 503",
    ),
    setting(
        "guest_threads",
        "0",
        "Threads that run guests; 0: one for each core",
    ),
    setting(
        "guest_memory_bytes",
        "",
        "Memory that all executions on this node hold at once, three quarters of it of one app; half of the machine's or the cgroup's when empty",
    ),
    setting(
        "compile_timeout_ms",
        "10000",
        "How long compiling one uploaded component may take",
    ),
    setting(
        "compile_memory_bytes",
        "512MiB",
        "How much memory compiling one uploaded component may take; two are compiled at once",
    ),
    setting(
        "precise_clock_apps",
        "",
        "Ids of apps, separated by commas, whose guests' clocks go in nanoseconds; those of all others go in steps of 1 ms, so that they learn less of their neighbours",
    ),
    setting(
        "cache_bytes_max",
        "1GiB",
        "How much compiled code is kept; what was used longest ago is removed first",
    ),
    setting(
        "body_bytes_max",
        "4MiB",
        "The largest body of a request to a route",
    ),
    setting(
        "kv_value_bytes_max",
        "1MiB",
        "The largest value of the key-value store",
    ),
    setting(
        "message_bytes_max",
        "256KiB",
        "The largest message that can be published",
    ),
    setting(
        "subscriber_token_ttl_min_sec",
        "10",
        "The shortest time for which a subscriber token is good",
    ),
    setting(
        "subscriber_token_ttl_max_sec",
        "86400",
        "The longest time for which a subscriber token is good",
    ),
    setting(
        "subscriber_token_ttl_default_sec",
        "3600",
        "For how long a subscriber token is good when the script does not say",
    ),
    setting(
        "streams_per_address_max",
        "100",
        "Streams at once from one address; beyond, callers get 429",
    ),
    setting(
        "streams_per_token_max",
        "20",
        "Streams at once with one subscriber token",
    ),
    setting("streams_per_user_max", "20", "Streams at once of one user"),
    setting("streams_per_app_max", "20000", "Streams at once of one app"),
    setting(
        "stream_replays_per_minute_max",
        "120",
        "Streams of one user, token or address that begin with what they missed, in a minute",
    ),
    setting(
        "stream_replays_at_once_max",
        "10",
        "Streams of one user, token or address that are told what they missed, at once",
    ),
    setting(
        "lease_ms",
        "15000",
        "How long a dead node's deliveries wait for another node",
    ),
    setting(
        "shutdown_drain_ms",
        "500",
        "How long a stopping node, not ready any more, serves on before it refuses calls",
    ),
    setting(
        "shutdown_grace_ms",
        "10000",
        "How long running scripts may take at shutdown",
    ),
    setting(
        "max_trigger_depth",
        "8",
        "How deep events may cause events; deeper ones are dropped",
    ),
    setting(
        "trigger_retry_max_attempts",
        "3",
        "Attempts at a delivery whose trigger sets none",
    ),
    setting(
        "trigger_retry_backoff",
        "exponential",
        "How the pause between attempts grows: exponential, linear or constant",
    ),
    setting(
        "trigger_retry_base_ms",
        "1000",
        "The first pause between attempts",
    ),
    setting(
        "trigger_retry_jitter_pct",
        "20",
        "By how much a pause is varied, both ways",
    ),
    setting(
        "dead_letter_retention_days",
        "30",
        "How long dead letters are kept",
    ),
    setting(
        "kv_bytes_max",
        "10GiB",
        "Bytes of keys and values that one app keeps; beyond, new values are refused",
    ),
    setting(
        "dead_letter_bytes_max",
        "1GiB",
        "Bytes of dead letters that one app keeps; beyond, the oldest go first",
    ),
    setting(
        "execution_bytes_max",
        "2GiB",
        "Bytes of executions with their logs that one app keeps; beyond, the oldest go first",
    ),
    setting(
        "message_bytes_kept_max",
        "1GiB",
        "Bytes of messages that the topics of one app keep; beyond, the oldest go first",
    ),
    setting(
        "delivery_bytes_max",
        "1GiB",
        "Bytes of deliveries that wait in one app; beyond, new ones are refused",
    ),
    setting(
        "deliveries_max",
        "1000000",
        "How many deliveries may wait in one app; beyond, new ones are refused",
    ),
    setting(
        "script_version_bytes_max",
        "1GiB",
        "Bytes of sources and components that one app keeps; beyond, the oldest versions go that are not needed, and if that is not enough new ones are refused",
    ),
    setting(
        "idempotency_bytes_max",
        "1GiB",
        "Bytes of idempotency keys and answers that one app keeps; beyond, calls with new keys are refused",
    ),
    setting(
        "objects_per_app_max",
        "1000",
        "How many scripts, routes, triggers, topics, members and subscriber keys one app may have, of each",
    ),
    setting(
        "abandoned_executions_retention_days",
        "7",
        "How long abandoned executions are kept",
    ),
    setting(
        "execution_retention_days",
        "14",
        "How long executions and their logs are kept",
    ),
    setting(
        "audit_retention_days",
        "365",
        "How long entries of the audit log are kept",
    ),
    setting("session_ttl_hours", "720", "How long a sign-in lasts"),
    setting(
        "session_idle_hours",
        "168",
        "How long a sign-in lasts that is not used",
    ),
    secret_setting(
        "master_key",
        "The key of the apps' secrets: 32 bytes in base64; the same on every node",
    ),
    setting(
        "master_key_file",
        "",
        "The file of that key; data_dir/master.key on SQLite when neither is set",
    ),
    secret_setting(
        "master_key_previous",
        "Keys before it, separated by commas, until `picloud secrets rotate` is done",
    ),
    setting(
        "bodies_bytes_max",
        "256MiB",
        "Bytes of the bodies of requests, and of answers that are not read yet, that this node holds at once, a quarter of them of one address and half of one app; beyond, callers get 503. As many again of payloads that it took from the outbox, three quarters of one app",
    ),
    setting(
        "connections_max",
        "20000",
        "Connections at once on this node; others are closed",
    ),
    setting(
        "connections_per_address_max",
        "8000",
        "Connections at once of one address, trusted proxies excepted",
    ),
    setting(
        "client_timeout_ms",
        "30000",
        "How long a client may take to send a request's head, its body, or to read on",
    ),
    setting(
        "trusted_proxies",
        "",
        "Networks whose X-Forwarded-For and -Proto are believed: 10.0.0.0/8, 127.0.0.1",
    ),
    setting(
        "admin_host",
        "",
        "The one host of the API and the dashboard, where apps serve nothing; any host when empty",
    ),
    setting(
        "oidc_issuer",
        "",
        "The OpenID provider that people may sign in at: https://login.example.com",
    ),
    setting("oidc_client_id", "", "Who this instance is to the provider"),
    secret_setting("oidc_client_secret", "What it shows the provider"),
    setting("oidc_client_secret_file", "", "The file of that secret"),
    setting(
        "oidc_scopes",
        "openid profile email",
        "What the provider is asked for; some want `groups` here",
    ),
    setting(
        "oidc_groups_claim",
        "groups",
        "The claim with somebody's groups; dots lead into objects: realm_access.roles",
    ),
    setting(
        "oidc_roles",
        "",
        "What groups are here: admins=owner, staff=member, shop-team=shop:editor",
    ),
    setting(
        "oidc_default_role",
        "member",
        "Role of those whose groups give none on the instance; none: they may not sign in",
    ),
    setting(
        "oidc_create_users",
        "true",
        "Whether those who come from the provider for the first time become users",
    ),
    setting(
        "oidc_link_verified_email",
        "false",
        "Whether somebody whose verified e-mail address is a user's name is that user",
    ),
    setting(
        "oidc_name",
        "",
        "What people call the provider: Sign in with …; its host when empty",
    ),
    setting(
        "default_fuel",
        "5000000000",
        "Fuel of a script that sets none",
    ),
    setting(
        "default_timeout_ms",
        "10000",
        "Time limit of a script that sets none",
    ),
    setting(
        "default_memory_bytes",
        "64MiB",
        "Memory of a script that sets none",
    ),
    setting(
        "default_output_bytes",
        "4MiB",
        "Largest response of a script that sets none",
    ),
    setting(
        "default_log_bytes",
        "256KiB",
        "Log of an execution of a script that sets none",
    ),
    setting(
        "max_fuel",
        "500000000000",
        "The most fuel that a script may set",
    ),
    setting(
        "max_timeout_ms",
        "300000",
        "The longest time limit that a script may set",
    ),
    setting(
        "max_memory_bytes",
        "256MiB",
        "The most memory that a script may set",
    ),
    setting(
        "max_output_bytes",
        "32MiB",
        "The largest response that a script may set",
    ),
    setting(
        "max_log_bytes",
        "4MiB",
        "The largest log that a script may set",
    ),
    setting("owner_name", "owner", "The name of the first owner"),
    Setting {
        key: "owner_password",
        help: "The password of the first owner; when empty, a set-up token is printed that makes one",
        default: "",
        secret: true,
    },
];

pub(super) fn text(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Err("must not be empty".into())
    } else {
        Ok(text.into())
    }
}

/// What is read by another rule, where there is anything.
pub(super) fn or_none<T>(
    read: impl FnOnce(&str) -> Result<T, String>,
) -> impl FnOnce(&str) -> Result<Option<T>, String> {
    move |text| match text.is_empty() {
        true => Ok(None),
        false => read(text).map(Some),
    }
}

pub(super) fn optional(text: &str) -> Result<Option<String>, String> {
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let mut addresses = text.to_socket_addrs().ok().into_iter().flatten();
    addresses
        .next()
        .ok_or_else(|| format!("`{text}` is no address; write it like 127.0.0.1:8080"))
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("is `true` or `false`, not `{text}`")),
    }
}

/// The URL of a provider. What comes without TLS proves nothing, but on the same machine.
pub(super) fn issuer(text: &str) -> Result<Option<String>, String> {
    let rest = text.strip_prefix("http://").unwrap_or_default();
    let is_here = ["127.0.0.1", "localhost", "[::1]"]
        .iter()
        .filter_map(|here| rest.strip_prefix(here))
        .any(|rest| rest.is_empty() || rest.starts_with([':', '/']));
    match text.is_empty() || text.starts_with("https://") || is_here {
        true => optional(text),
        false => Err(format!("must begin with https://, not `{text}`")),
    }
}

/// A role on the instance, or none.
pub(super) fn role(text: &str) -> Result<Option<Role>, String> {
    match (text, Role::parse(text)) {
        ("none", _) => Ok(None),
        (_, Some(role)) => Ok(Some(role)),
        _ => Err(format!("is owner, admin, member or none, not `{text}`")),
    }
}

pub(super) fn format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("is `text` or `json`, not `{text}`")),
    }
}

pub(super) fn backoff(text: &str) -> Result<Backoff, String> {
    Backoff::parse(text)
        .ok_or_else(|| format!("is `exponential`, `linear` or `constant`, not `{text}`"))
}

/// The name of a host, or nothing.
pub(super) fn host(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse() {
        Ok(HostPattern::Exact(name)) => Ok(Some(name)),
        _ => Err(format!(
            "must be one host like admin.example.com, without scheme, port or path, not `{text}`"
        )),
    }
}

pub(super) fn number(range: RangeInclusive<u64>) -> impl FnOnce(&str) -> Result<u64, String> {
    move |text| {
        let number = text
            .replace('_', "")
            .parse()
            .ok()
            .filter(|number| range.contains(number));
        let (least, most) = range.into_inner();
        number.ok_or_else(|| format!("must be a whole number from {least} to {most}, not `{text}`"))
    }
}

/// Networks, separated by commas; a single address is a network, too.
/// Ids, separated by commas.
pub(super) fn ids(text: &str) -> Result<Vec<Uuid>, String> {
    let words = text.split(',').map(str::trim);
    let ids = words.filter(|word| !word.is_empty()).map(|word| {
        let parsed = word.parse();
        parsed.map_err(|_| {
            format!("must be ids of apps, as `picloud apps list` shows them, not `{word}`")
        })
    });
    ids.collect()
}

pub(super) fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    let words = text
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty());
    let network = |word: &str| {
        let single = || word.parse::<IpAddr>().map(IpNet::from);
        let parsed = word.parse().or_else(|_| single());
        parsed.map_err(|_| format!("must be networks like 10.0.0.0/8 or 127.0.0.1, not `{word}`"))
    };
    words.map(network).collect()
}

/// A number of bytes: `1048576`, `1024KiB`, `1MiB`.
pub(super) fn bytes(range: RangeInclusive<u64>) -> impl FnOnce(&str) -> Result<u64, String> {
    move |text| {
        let bytes = parse_bytes(text).filter(|bytes| range.contains(bytes));
        let (least, most) = range.into_inner();
        let rule = || {
            let (least, most) = (show_bytes(least), show_bytes(most));
            format!("must be {least} to {most}, written like 1048576 or 1MiB, not `{text}`")
        };
        bytes.ok_or_else(rule)
    }
}

const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];

fn parse_bytes(text: &str) -> Option<u64> {
    let unit = UNITS
        .iter()
        .find_map(|(name, shift)| Some((text.strip_suffix(name)?, *shift)));
    let (digits, shift) = unit.unwrap_or((text, 0));
    let number: u64 = digits.trim().replace('_', "").parse().ok()?;
    number.checked_mul(1 << shift)
}

fn show_bytes(bytes: u64) -> String {
    let whole = UNITS
        .iter()
        .find(|(_, shift)| bytes >= 1 << shift && bytes.is_multiple_of(1 << shift));
    match whole {
        Some((name, shift)) => format!("{}{name}", bytes >> shift),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_number_of_bytes_reads_back(bytes: u64) {
            prop_assert_eq!(parse_bytes(&show_bytes(bytes)), Some(bytes));
        }

        #[test]
        fn parsing_bytes_never_panics(text in ".{0,30}") {
            let _ = parse_bytes(&text);
        }
    }
}
