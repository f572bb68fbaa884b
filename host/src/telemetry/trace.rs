//! Traces: where in a trace something happens, and the spans that are exported.
//!
//! A trace goes with the work, not with the thread: its place is written into the row of the
//! outbox, and whoever takes the row on, on this node or another, goes on from there. So spans
//! are made here, from a place that is at hand, and not by way of `tracing`, whose spans know
//! their thread only and would cost each request something even where nobody collects them.
//! Without a `traceparent` from the caller and without an exporter nothing here does anything.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use http::Method;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags,
    TraceId, TraceState, Tracer,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace::{SdkTracer, Span as SdkSpan};
use tracing::Instrument;

/// What makes the spans that are exported; not set where none are.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

tokio::task_local! {
    static CURRENT: Span;
}

/// Export spans from now on.
pub(super) fn export_with(tracer: SdkTracer) {
    // Only the first counts, and there is one process-wide set-up.
    let _ = TRACER.set(tracer);
}

/// Whether spans are exported.
pub fn is_exported() -> bool {
    TRACER.get().is_some()
}

/// A place in a trace, as the header `traceparent` says it (W3C Trace Context).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    trace_id: TraceId,
    span_id: SpanId,
    flags: TraceFlags,
}

impl TraceParent {
    /// What a `traceparent` says; none when it is not valid. A version that is newer than ours
    /// may have more behind the fields that we know.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(5, '-');
        let mut hex = |digits: usize| {
            let part = parts.next()?;
            let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            (part.len() == digits && part.bytes().all(is_hex)).then_some(part)
        };
        let (version, trace_id, span_id, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        if version == "ff" || version == "00" && parts.next().is_some() {
            return None;
        }
        let parsed = Self {
            trace_id: TraceId::from_hex(trace_id).ok()?,
            span_id: SpanId::from_hex(span_id).ok()?,
            // Newer flags mean nothing to us; whether the trace is sampled does.
            flags: TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
        };
        let is_valid = parsed.trace_id != TraceId::INVALID && parsed.span_id != SpanId::INVALID;
        is_valid.then_some(parsed)
    }

    /// The trace, in hexadecimal.
    pub fn trace_id(self) -> String {
        self.trace_id.to_string()
    }

    fn context(self) -> Context {
        let context = SpanContext::new(
            self.trace_id,
            self.span_id,
            self.flags,
            true,
            TraceState::NONE,
        );
        Context::new().with_remote_span_context(context)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trace_id,
            span_id,
            flags,
        } = self;
        write!(f, "00-{trace_id}-{span_id}-{:02x}", flags.to_u8())
    }
}

/// Where in a trace the current task is; none when it is in none.
pub fn here() -> Option<TraceParent> {
    CURRENT.try_with(|span| span.at).ok().flatten()
}

/// A piece of work in a trace. Where spans are exported it is one of them, and ends with its last
/// clone; else it only stands where its caller stood.
#[derive(Debug, Clone, Default)]
pub struct Span {
    at: Option<TraceParent>,
    exported: Option<Arc<Mutex<SdkSpan>>>,
}

impl Span {
    /// Begin a piece of the work that the current task does.
    pub fn begin(name: &'static str) -> Self {
        Self::start(here(), || SpanBuilder::from_name(name))
    }

    /// Begin to answer a request, which named `parent` as the work that led to it.
    pub fn serve(parent: Option<TraceParent>, method: &Method) -> Self {
        Self::start(parent, || {
            SpanBuilder::from_name(method.to_string()).with_kind(SpanKind::Server)
        })
    }

    /// A piece of the work that the current task does, which began at `from` and ends now.
    pub fn since(from: impl Into<SystemTime>, name: &'static str) {
        Self::start(here(), || {
            SpanBuilder::from_name(name).with_start_time(from)
        });
    }

    /// No piece of its own, but work that goes on at a place in a trace.
    pub fn of(at: Option<TraceParent>) -> Self {
        Self { at, exported: None }
    }

    /// What the current task does.
    pub fn current() -> Self {
        CURRENT.try_with(Self::clone).unwrap_or_default()
    }

    fn start(parent: Option<TraceParent>, span: impl FnOnce() -> SpanBuilder) -> Self {
        let Some(tracer) = TRACER.get() else {
            return Self::of(parent);
        };
        let span = span();
        let parent = parent.map_or_else(Context::new, TraceParent::context);
        let span = tracer.build_with_context(span, &parent);
        let context = span.span_context();
        let at = TraceParent {
            trace_id: context.trace_id(),
            span_id: context.span_id(),
            flags: context.trace_flags(),
        };
        Self {
            at: Some(at),
            exported: Some(Arc::new(Mutex::new(span))),
        }
    }

    /// Where in the trace it is.
    pub fn at(&self) -> Option<TraceParent> {
        self.at
    }

    /// Whether what is said of it reaches anybody.
    pub fn is_exported(&self) -> bool {
        self.exported.is_some()
    }

    /// Say more about it.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        self.with(|span| span.set_attribute(KeyValue::new(key, value)));
    }

    /// Give it another name.
    pub fn rename(&self, name: String) {
        self.with(|span| span.update_name(name));
    }

    /// Say that it failed.
    pub fn failed(&self, why: impl Into<Cow<'static, str>>) {
        self.with(|span| span.set_status(Status::error(why)));
    }

    fn with(&self, change: impl FnOnce(&mut SdkSpan)) {
        if let Some(span) = &self.exported {
            change(&mut span.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Do `work` as this piece: what it begins is beneath it, and its log lines name the trace.
    pub async fn around<T>(self, work: impl Future<Output = T>) -> T {
        let Some(at) = self.at else {
            return work.await;
        };
        // Of the highest level, so that no filter takes the trace off the lines that it lets through.
        let logged = tracing::error_span!("trace", trace_id = %at.trace_id);
        CURRENT.scope(self, work).instrument(logged).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_and_written_as_it_came() {
        let parent = TraceParent::parse(PARENT).unwrap();
        assert_eq!(parent.to_string(), PARENT);
        assert_eq!(parent.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let unsampled = PARENT.replace("-01", "-00");
        assert_eq!(
            TraceParent::parse(&unsampled).unwrap().to_string(),
            unsampled
        );
    }

    #[test]
    fn a_newer_version_may_say_more() {
        let newer = format!("cc{}-what-comes", &PARENT[2..]);
        assert_eq!(TraceParent::parse(&newer).unwrap().to_string(), PARENT);
    }

    #[test]
    fn what_is_no_traceparent_is_none() {
        for text in [
            "",
            "00",
            &PARENT[..54],
            &format!("{PARENT}-more"),
            &format!("{PARENT} "),
            &PARENT.to_uppercase(),
            &PARENT.replace("00-", "ff-"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceParent::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,60}") {
            let _ = TraceParent::parse(&text);
        }
    }

    #[tokio::test]
    async fn without_an_exporter_work_stands_where_its_caller_stood() {
        let parent = TraceParent::parse(PARENT);
        assert_eq!(here(), None);
        let span = Span::serve(parent, &Method::GET);
        let seen = span.around(async { (here(), Span::begin("piece").at()) });
        assert_eq!(seen.await, (parent, parent));
        assert_eq!(Span::begin("piece").around(async { here() }).await, None);
    }
}
