//! What the host says of itself: log lines to standard error, traces, metrics.
//!
//! - [`trace`]: where in a trace something happens; [`metrics`]: what is counted.
//! - [`otlp`]: exports both, where the environment asks for it.

pub mod metrics;
pub mod otlp;
pub mod trace;

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
        .with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => logging.init(),
        LogFormat::Json => logging.json().init(),
    }
    otlp::start()
}
