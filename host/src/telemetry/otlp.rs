//! Traces and metrics to a collector, by OTLP over HTTP, as the `OTEL_*` variables of the
//! environment say.
//!
//! Threads of the SDK's own send what gathers in bounded queues: what a slow collector cannot take
//! is lost, and no request waits for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;

use super::trace;

/// What is exported under when `OTEL_SERVICE_NAME` does not say.
const SERVICE: &str = "picloud";
/// How long a stopping process tries to send what it still has.
const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a collector may take when nothing else is set.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What we read of a collector's answer at most.
const ANSWER_BYTES_MAX: u64 = 1024 * 1024;

/// What exports. Ends, and sends what is left, when it is [stopped](Self::stop).
#[derive(Default)]
pub struct Exporters {
    traces: Option<SdkTracerProvider>,
    /// What metrics are exported with.
    pub metrics: Option<SdkMeterProvider>,
}

/// What can be exported.
#[derive(Debug, Clone, Copy)]
enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
        }
    }

    /// The variable of this signal, or else the one of all signals.
    fn variable(self, name: &str) -> Option<(String, String)> {
        let own = format!("OTEL_EXPORTER_OTLP_{}_{name}", self.name());
        let all = format!("OTEL_EXPORTER_OTLP_{name}");
        [own, all]
            .into_iter()
            .find_map(|variable| Some((set(&variable)?, variable)))
            .map(|(value, variable)| (variable, value))
    }

    /// Whether it is to be exported: where there is somewhere to export it to.
    fn is_wanted(self) -> anyhow::Result<bool> {
        let variable = format!("OTEL_{}_EXPORTER", self.name());
        let is_wanted = match set(&variable).as_deref() {
            Some("none") => false,
            Some("otlp") => true,
            None => self.variable("ENDPOINT").is_some(),
            Some(other) => bail!("{variable}: is `otlp` or `none`, not `{other}`"),
        };
        if is_wanted
            && let Some((variable, protocol)) = self.variable("PROTOCOL")
            && protocol != "http/protobuf"
        {
            bail!(
                "{variable}: only `http/protobuf` is spoken here, not `{protocol}`; \
                 collectors take it on port 4318"
            );
        }
        Ok(is_wanted)
    }

    fn client(self) -> anyhow::Result<Client> {
        let timeout = match self.variable("TIMEOUT") {
            Some((variable, text)) => Duration::from_millis(text.parse().with_context(|| {
                format!("{variable}: must be a number of milliseconds, not `{text}`")
            })?),
            None => TIMEOUT,
        };
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .build()
            .new_agent();
        Ok(Client {
            agent,
            signal: self,
            failed: AtomicBool::new(false),
        })
    }
}

/// A variable of the environment; one that is empty is not set, says the specification.
fn set(variable: &str) -> Option<String> {
    std::env::var(variable)
        .ok()
        .filter(|value| !value.is_empty())
}

/// Begin to export what the environment asks for.
///
/// # Errors
/// When a variable has a value that it cannot have.
pub(super) fn start() -> anyhow::Result<Exporters> {
    let mut exporters = Exporters::default();
    if set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(exporters);
    }
    let resource = || {
        let mut resource = Resource::builder();
        if set("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(SERVICE);
        }
        resource.build()
    };
    if Signal::Traces.is_wanted()? {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Signal::Traces.client()?)
            .build()
            .context("OTEL_EXPORTER_OTLP_*")?;
        let provider = SdkTracerProvider::builder()
            .with_resource(resource())
            .with_batch_exporter(exporter)
            .build();
        trace::export_with(provider.tracer(SERVICE));
        exporters.traces = Some(provider);
    }
    if Signal::Metrics.is_wanted()? {
        let exporter = MetricExporter::builder()
            .with_http()
            .with_http_client(Signal::Metrics.client()?)
            .build()
            .context("OTEL_EXPORTER_OTLP_*")?;
        let provider = SdkMeterProvider::builder()
            .with_resource(resource())
            .with_periodic_exporter(exporter)
            .build();
        exporters.metrics = Some(provider);
    }
    Ok(exporters)
}

impl Exporters {
    /// Send what is left. Blocks, though not for long.
    pub fn stop(self) {
        let traces = self
            .traces
            .map(|traces| traces.shutdown_with_timeout(LAST_EXPORT_TIMEOUT));
        let metrics = self
            .metrics
            .map(|metrics| metrics.shutdown_with_timeout(LAST_EXPORT_TIMEOUT));
        for error in [traces, metrics]
            .into_iter()
            .flatten()
            .filter_map(Result::err)
        {
            tracing::warn!(%error, "the last telemetry could not be exported");
        }
    }
}

/// The HTTP client that the CLI uses, too. It blocks, on the thread of the SDK that exports.
#[derive(Debug)]
struct Client {
    agent: ureq::Agent,
    signal: Signal,
    /// So that a collector that is away is told of once, and not at every export.
    failed: AtomicBool,
}

impl Client {
    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let request = Request::from_parts(parts, &body[..]);
        let (parts, body) = self.agent.run(request)?.into_parts();
        let mut body = body;
        let bytes = body.with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
        Ok(Response::from_parts(parts, bytes.into()))
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = self.send(request);
        let problem = match &sent {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("the collector answered {}", answer.status())),
            Err(error) => Some(error.to_string()),
        };
        let signal = self.signal.name().to_ascii_lowercase();
        let failed_before = self.failed.swap(problem.is_some(), Ordering::Relaxed);
        match problem {
            Some(problem) if !failed_before => {
                tracing::warn!(%signal, %problem, "telemetry cannot be exported now");
            }
            None if failed_before => tracing::info!(%signal, "telemetry is exported again"),
            _ => {}
        }
        sent
    }
}
