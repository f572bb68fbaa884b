//! `picloud serve` and `picloud config`.

use std::path::PathBuf;

use clap::{Arg, ArgMatches};
use serde_json::json;

use super::output::{Failure, Output, table};
use crate::config::{Config, ConfigError, SETTINGS, Values, odd_variables};

/// Every setting as a flag.
#[derive(Debug)]
pub(super) struct Serve {
    file: Option<PathBuf>,
    flags: Vec<(&'static str, String)>,
}

impl clap::Args for Serve {
    fn augment_args(command: clap::Command) -> clap::Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .env("PICLOUD_CONFIG")
            .help("The file of settings; ./picloud.toml if it is there")
            .value_parser(clap::value_parser!(PathBuf));
        let flags = SETTINGS
            .iter()
            .filter(|setting| !setting.secret)
            .map(|setting| {
                let default = match setting.default {
                    "" => String::new(),
                    default => format!(" [default: {default}]"),
                };
                Arg::new(setting.key)
                    .long(setting.key.replace('_', "-"))
                    .value_name("VALUE")
                    .help(format!(
                        "{}{default} [env: {}]",
                        setting.help,
                        setting.variable()
                    ))
            });
        command.arg(file).args(flags)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Serve {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |key| matches.get_one::<String>(key).cloned();
        let plain = SETTINGS.iter().filter(|setting| !setting.secret);
        let flags = plain
            .filter_map(|setting| Some((setting.key, given(setting.key)?)))
            .collect();
        Ok(Self {
            file: matches.get_one::<PathBuf>("config").cloned(),
            flags,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl Serve {
    /// These flags, and what stands in this file.
    pub(super) fn with(file: Option<PathBuf>, flags: Vec<(&'static str, String)>) -> Self {
        Self { file, flags }
    }

    /// The configuration that they make, with the environment's.
    pub(super) fn config(self) -> Result<Config, Failure> {
        Ok(self.values()?.config()?)
    }

    /// Whether a file or any setting is named.
    pub(super) fn is_given(&self) -> bool {
        self.file.is_some() || !self.flags.is_empty()
    }

    pub(super) fn values(&self) -> Result<Values, ConfigError> {
        let beside = PathBuf::from("picloud.toml");
        let file = self
            .file
            .clone()
            .or_else(|| beside.exists().then_some(beside));
        Values::gather(
            &self.flags,
            |name| std::env::var(name).ok(),
            file.as_deref(),
        )
    }

    pub(super) fn run(self) -> Result<(), Failure> {
        let config: Config = self.values()?.config()?;
        let exporters = crate::telemetry::init(&config)?;
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        for (name, nearest) in odd_variables(names) {
            tracing::warn!(variable = %name, nearest, "this variable of the environment is no setting");
        }
        if config.admin_host.is_none() && !config.listen.ip().is_loopback() {
            tracing::warn!(
                listen = %config.listen,
                "others than this machine can open the dashboard, and it shares its host with the pages of apps: give it a name of its own with admin_host"
            );
        }
        raise_file_limit();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let metrics = crate::telemetry::metrics::install(exporters.metrics.as_ref())?;
        let served = runtime.block_on(crate::node::run(config, metrics));
        // What still blocks a thread, a compilation say, must not hold the shutdown up.
        runtime.shutdown_background();
        exporters.stop();
        Ok(served?)
    }

    pub(super) fn show(self, out: &Output) -> Result<(), Failure> {
        let values = self.values()?;
        values.config()?;
        let shown: serde_json::Map<_, _> = values
            .shown()
            .map(|(setting, text, source)| {
                (
                    setting.key.to_owned(),
                    json!({ "value": text, "source": source.to_string() }),
                )
            })
            .collect();
        out.show_own(&shown, || {
            let rows: Vec<_> = values
                .shown()
                .map(|(setting, text, source)| {
                    vec![setting.key.to_owned(), text, source.to_string()]
                })
                .collect();
            table(&["SETTING", "VALUE", "FROM"], &rows);
        });
        Ok(())
    }
}

/// Every connection is a file, and the usual soft limit of 1,024 is fewer than the executions
/// that may wait at once. The hard limit is what the operator means.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    ) {
        tracing::warn!(%error, "the limit on open files could not be raised");
    }
}
