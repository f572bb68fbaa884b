//! A collector of telemetry: takes OTLP over HTTP, as any does, and keeps what came.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

/// A running collector.
pub struct Collector {
    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` is set to.
    pub url: String,
    kept: Arc<Kept>,
}

#[derive(Default)]
struct Kept {
    spans: Mutex<Vec<Span>>,
    metrics: Mutex<Vec<Metric>>,
    resources: Mutex<Vec<KeyValue>>,
    requests: AtomicUsize,
    answers_nothing: AtomicBool,
}

impl Collector {
    /// Start one.
    ///
    /// # Panics
    /// When there is no port.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("a port"));
        let kept = Arc::<Kept>::default();
        let shared = kept.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = shared.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { url, kept }
    }

    /// From now on take what is sent and never answer.
    pub fn stall(&self) {
        self.kept.answers_nothing.store(true, Ordering::Relaxed);
    }

    /// How many requests came.
    pub fn requests(&self) -> usize {
        self.kept.requests.load(Ordering::Relaxed)
    }

    /// The spans of a trace that came so far.
    pub fn spans(&self, trace_id: &str) -> Vec<Span> {
        let spans = self
            .kept
            .spans
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let of_trace = |span: &&Span| hex(&span.trace_id) == trace_id;
        spans.iter().filter(of_trace).cloned().collect()
    }

    /// The newest export of a metric, if there was one.
    pub fn metric(&self, name: &str) -> Option<Metric> {
        let metrics = self
            .kept
            .metrics
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        metrics
            .iter()
            .rev()
            .find(|metric| metric.name == name)
            .cloned()
    }

    /// What the senders say of themselves under this key.
    pub fn resource(&self, key: &str) -> Option<String> {
        let resources = self
            .kept
            .resources
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        attribute(&resources, key)
    }
}

/// Bytes as they are written in a `traceparent`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The text of an attribute.
pub fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}

fn serve(stream: TcpStream, kept: &Kept) {
    let Ok(mut answers) = stream.try_clone() else {
        return;
    };
    let mut requests = BufReader::new(stream);
    while let Some((path, body)) = read(&mut requests) {
        kept.requests.fetch_add(1, Ordering::Relaxed);
        let status = match path.as_str() {
            "/v1/traces" => keep_traces(kept, &body),
            "/v1/metrics" => keep_metrics(kept, &body),
            _ => "404 Not Found",
        };
        if kept.answers_nothing.load(Ordering::Relaxed) {
            continue;
        }
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n"
        );
        if answers.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// The path and the body of the next request.
fn read(from: &mut impl BufRead) -> Option<(String, Vec<u8>)> {
    let mut line = String::new();
    from.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut length = 0;
    loop {
        line.clear();
        from.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).ok()?;
    Some((path, body))
}

fn keep_traces(kept: &Kept, body: &[u8]) -> &'static str {
    let Ok(sent) = ExportTraceServiceRequest::decode(body) else {
        return "400 Bad Request";
    };
    for of_resource in sent.resource_spans {
        keep_resource(
            kept,
            of_resource.resource.map(|resource| resource.attributes),
        );
        let spans = of_resource
            .scope_spans
            .into_iter()
            .flat_map(|scope| scope.spans);
        kept.spans
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(spans);
    }
    "200 OK"
}

fn keep_metrics(kept: &Kept, body: &[u8]) -> &'static str {
    let Ok(sent) = ExportMetricsServiceRequest::decode(body) else {
        return "400 Bad Request";
    };
    for of_resource in sent.resource_metrics {
        keep_resource(
            kept,
            of_resource.resource.map(|resource| resource.attributes),
        );
        let metrics = of_resource
            .scope_metrics
            .into_iter()
            .flat_map(|scope| scope.metrics);
        kept.metrics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(metrics);
    }
    "200 OK"
}

fn keep_resource(kept: &Kept, attributes: Option<Vec<KeyValue>>) {
    let mut known = kept
        .resources
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    *known = attributes.unwrap_or_default();
}
