//! What the host says of itself: log lines to standard error, traces, metrics.
//!
//! - [`trace`]: where in a trace something happens; [`metrics`]: what is counted.
//! - [`otlp`]: exports both, where the environment asks for it.
//! - [`repeated`]: one line for what fails again and again.

pub mod metrics;
pub mod otlp;
pub mod repeated;
pub mod trace;

use std::io::{IsTerminal, Write};

use chrono::{SecondsFormat, Utc};
use serde_json::{Value, json};
use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat};

/// Begin to log as the configuration says, and to export what the environment says.
///
/// # Errors
/// When `log` is no filter, or a variable `OTEL_*` has a value that it cannot have.
pub fn init(config: &Config) -> anyhow::Result<otlp::Exporters> {
    let filter = EnvFilter::try_new(&config.log)
        .map_err(|error| anyhow::anyhow!("log: `{}` is no filter: {error}", config.log))?;
    let logging = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // It would say so with `eprintln!`, which panics where the line could not be written: on
        // a full disk, in the middle of a request.
        .log_internal_errors(false)
        .with_ansi(has_colours())
        .with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => logging.init(),
        LogFormat::Json => logging.json().init(),
    }
    otlp::start()
}

/// Whether colours are for somebody: on a terminal, unless <https://no-color.org>.
fn has_colours() -> bool {
    let is_unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !is_unwanted
}

/// Tell whoever started the process something, on standard output: as a line of text, or as the
/// log's lines are where they are JSON. `more` is what machines get besides.
pub fn tell(format: LogFormat, text: &str, more: &[(&str, &str)]) {
    let line = match format {
        LogFormat::Text => text.to_owned(),
        LogFormat::Json => {
            let mut fields = json!({ "message": text });
            for (name, value) in more {
                fields[name] = Value::from(*value);
            }
            let timestamp = Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
            json!({ "timestamp": timestamp, "level": "INFO", "fields": fields,
                    "target": "picloud::node" })
            .to_string()
        }
    };
    // Who does not read it has no need of it.
    let _ = writeln!(std::io::stdout(), "{line}");
}
