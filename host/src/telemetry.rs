//! Log lines of the host itself, to standard error.

use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat};

/// Begin to log as the configuration says.
///
/// # Errors
/// When `log` is no filter.
pub fn init(config: &Config) -> anyhow::Result<()> {
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
    Ok(())
}
