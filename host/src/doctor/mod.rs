//! Checks of a set-up: what is wrong with it, and how to mend that.
//!
//! A server checks itself when it is asked, because its limits, its files and its database are
//! what counts. The command line checks the machine that it runs on, with the server down or not.

pub mod api;
mod database;
mod machine;
mod reach;
mod running;
pub mod sql;

use std::path::Path;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, Values, odd_variables};
use crate::node::Node;
use crate::store::{StoreError, snapshot};
use database::Depth;
pub use reach::Arrival;

/// How long the database may take to show that it takes writes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// How long all that is asked of the database may take: whoever looks for what is wrong does not wait
/// for as long as somebody holds a lock.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// How much a finding matters.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Nothing is to be done.
    Ok,
    /// It works, but not as well or as safely as it could.
    Warning,
    /// It does not work, or is not safe.
    Error,
}

impl Severity {
    /// The word in the API and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Finding {
    /// The name of the check.
    pub name: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What is so.
    pub found: String,
    /// How to mend it; null where nothing is to be done.
    pub fix: Option<String>,
    /// A command that does, where one is enough, to be run on the machine of the server.
    pub command: Option<String>,
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            severity: Severity::Ok,
            found: found.into(),
            fix: None,
            command: None,
        }
    }

    fn warning(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            fix: Some(fix.into()),
            ..Self::ok(name, found)
        }
    }

    fn error(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            ..Self::warning(name, found, fix)
        }
    }

    fn with_command(self, command: impl Into<String>) -> Self {
        Self {
            command: Some(command.into()),
            ..self
        }
    }
}

/// What all checks found.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DoctorReport")]
pub struct Report {
    /// The worst of them.
    pub severity: Severity,
    /// Each of them, in the order in which people should read them.
    pub findings: Vec<Finding>,
}

impl From<Vec<Finding>> for Report {
    fn from(findings: Vec<Finding>) -> Self {
        let worst = findings.iter().map(|finding| finding.severity).max();
        let severity = worst.unwrap_or(Severity::Ok);
        Self { severity, findings }
    }
}

/// What a server finds of itself, when it is asked by a request that came so.
pub async fn of_server(node: &Node, arrival: Arrival) -> Report {
    let config = &node.config;
    let mut findings = reach::of_server(config, arrival, node.directory.picture().users());
    findings.extend(machine::check(config));
    findings.push(machine::confinement());
    let longest = Duration::from_millis(config.ceiling.timeout_ms);
    findings.push(leases(node.outbox.oldest_lease(), longest));
    findings.push(running::directory(node.directory.age()));
    findings.push(running::tasks(&node.tasks.problems()));
    findings.push(running::stored(&node.quotas.nearly_full()));
    let looked = async {
        let asked = tokio::time::timeout(ANSWER_TIMEOUT, node.db.check()).await;
        let conn = match asked {
            // The disk has a finding of its own, and can be read.
            Ok(Err(StoreError::NoRoom(_))) => node.db.read().await,
            Ok(Err(error)) => Err(error),
            // One that does not answer in time may be busy: what follows tells.
            Ok(Ok(())) | Err(_) => node.db.read().await,
        };
        database::check(config, conn, Depth::Asked).await
    };
    match tokio::time::timeout(LOOK_TIMEOUT, looked).await {
        Ok(found) => findings.extend(found),
        Err(_) => findings.push(database::does_not_answer(config, LOOK_TIMEOUT)),
    }
    findings.into()
}

/// For how much longer than its script may run a delivery may be worked on, until that is odd: its
/// outcome is to be written, too.
const SETTLING_MAX: Duration = Duration::from_secs(60);

/// Whether deliveries are worked on for longer than any script may run.
fn leases(oldest: Duration, longest: Duration) -> Finding {
    const NAME: &str = "leases";
    if oldest <= longest + SETTLING_MAX {
        return Finding::ok(
            NAME,
            "no delivery is worked on for longer than a script may run",
        );
    }
    let found = format!(
        "a delivery has been worked on for {} s, and no script may run for longer than {} s",
        oldest.as_secs(),
        longest.as_secs()
    );
    let fix = "Its outcome cannot be written: see the server's log, and whether the database takes writes.";
    Finding::error(NAME, found, fix)
}

/// What is found on this machine, with the server down or not, where it is to run with `values`.
pub async fn of_machine(values: Result<Values, ConfigError>) -> Report {
    let read = values.and_then(|values| Ok((values.config()?, values)));
    let (config, values) = match read {
        Ok(read) => read,
        Err(error) => {
            let fix = "Correct it; `picloud config` shows each setting and where it comes from.";
            let finding = Finding::error("configuration", error.to_string(), fix);
            return vec![finding.with_command("picloud config")].into();
        }
    };
    let mut findings = vec![configuration(&values), environment()];
    findings.extend(reach::of_machine(&config));
    findings.extend(machine::check(&config));
    findings.push(machine::guest(&config));
    // What root writes beside a database of somebody else, that user's server cannot open.
    match machine::is_ours(&config.data_dir) {
        false => findings.push(Finding::warning(
            "database",
            "it was not looked at: data_dir belongs to another user",
            "Run this as the user that the server runs as.",
        )),
        true => {
            let conn = snapshot(&config.database_url).await;
            findings.extend(database::check(&config, conn, Depth::Whole).await);
        }
    }
    findings.into()
}

/// Whether a file of settings has secrets in it that everybody may read.
fn configuration(values: &Values) -> Finding {
    const NAME: &str = "configuration";
    match values.file_with_secrets() {
        Some(path) => machine::secret(NAME, path),
        None => Finding::ok(NAME, "every setting is valid"),
    }
}

/// Whether a variable looks as if it were meant to be a setting.
fn environment() -> Finding {
    const NAME: &str = "environment";
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let Some((name, nearest)) = odd_variables(names).into_iter().next() else {
        return Finding::ok(NAME, "every PICLOUD_ variable is a setting");
    };
    let fix = match nearest {
        Some(near) => format!(
            "Rename it, if you meant PICLOUD_{}.",
            near.to_ascii_uppercase()
        ),
        None => "Remove it.".to_owned(),
    };
    Finding::warning(NAME, format!("{name} is no setting"), fix)
}

/// A path as a shell takes it, and from the root, so that a command with it works anywhere.
fn shell(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%:,=".contains(c);
    match text.chars().all(is_plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_of_a_shell() {
        assert_eq!(shell(Path::new("/srv/data")), "/srv/data");
        assert_eq!(
            shell(Path::new("/a b/it's; rm -r")),
            r"'/a b/it'\''s; rm -r'"
        );
        assert!(shell(Path::new("data")).starts_with('/'));
    }

    #[test]
    fn a_lease_that_outlives_every_script_is_an_error() {
        let longest = Duration::from_secs(30);
        let severity = |oldest| leases(oldest, longest).severity;
        assert_eq!(severity(longest + SETTLING_MAX), Severity::Ok);
        assert_eq!(severity(longest + SETTLING_MAX * 2), Severity::Error);
    }

    #[test]
    fn a_report_is_as_bad_as_its_worst_finding() {
        let report = Report::from(vec![
            Finding::warning("a", "x", "y"),
            Finding::error("b", "x", "y"),
            Finding::ok("c", "x"),
        ]);
        assert_eq!(report.severity, Severity::Error);
        assert_eq!(Report::from(Vec::new()).severity, Severity::Ok);
    }
}
