//! Metrics: kept for Prometheus, and for OpenTelemetry where they are exported.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{self as otel, Meter, MeterProvider};
use opentelemetry_sdk::metrics::SdkMeterProvider;

/// The bounds of the buckets of durations, in seconds.
const SECONDS: &[f64] = &[
    0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0,
];
/// The bounds of the buckets of counts.
const GROUP_SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Begin to count. Answers what shows the metrics to Prometheus.
///
/// # Errors
/// When something counts already.
pub fn install(exporter: Option<&SdkMeterProvider>) -> anyhow::Result<PrometheusHandle> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_group_size".into()), GROUP_SIZES)?
        .build_recorder();
    let handle = recorder.handle();
    match exporter {
        Some(exporter) => metrics::set_global_recorder(Both::new(recorder, exporter))?,
        None => metrics::set_global_recorder(recorder)?,
    }
    Ok(handle)
}

/// Counts for both. What is exported of counters and gauges is read when it is; to make an
/// instrument is slow, so each is made once.
struct Both {
    prometheus: PrometheusRecorder,
    meter: Meter,
    series: Mutex<HashMap<String, Series>>,
    counters: Made<Counter>,
    gauges: Made<Gauge>,
    histograms: Made<Histogram>,
}

/// The values of one name, each with its labels.
type Series = Arc<RwLock<Vec<(Vec<KeyValue>, Arc<AtomicU64>)>>>;

/// What was made for each key.
struct Made<T>(RwLock<HashMap<Key, T>>);

impl<T: Clone> Made<T> {
    fn new() -> Self {
        Self(RwLock::default())
    }

    fn get(&self, key: &Key, make: impl FnOnce() -> T) -> T {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = known.get(key) {
            return made.clone();
        }
        drop(known);
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.entry(key.clone()).or_insert_with(make).clone()
    }
}

impl Both {
    fn new(prometheus: PrometheusRecorder, exporter: &SdkMeterProvider) -> Self {
        Self {
            prometheus,
            meter: exporter.meter("picloud"),
            series: Mutex::default(),
            counters: Made::new(),
            gauges: Made::new(),
            histograms: Made::new(),
        }
    }

    /// A new value among those of its name; `export` makes what reads them.
    fn value(&self, key: &Key, export: impl FnOnce(&Meter, String, Series)) -> Arc<AtomicU64> {
        let mut known = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let series = known.entry(key.name().to_owned()).or_insert_with(|| {
            let series = Series::default();
            export(&self.meter, key.name().to_owned(), series.clone());
            series
        });
        let value = Arc::new(AtomicU64::new(0));
        let mut values = series.write().unwrap_or_else(PoisonError::into_inner);
        values.push((labels(key), value.clone()));
        value
    }
}

fn labels(key: &Key) -> Vec<KeyValue> {
    let label =
        |label: &metrics::Label| KeyValue::new(label.key().to_owned(), label.value().to_owned());
    key.labels().map(label).collect()
}

fn observe<T>(series: &Series, to: &dyn otel::AsyncInstrument<T>, read: impl Fn(u64) -> T) {
    let values = series.read().unwrap_or_else(PoisonError::into_inner);
    for (labels, value) in &*values {
        to.observe(read(value.load(Ordering::Acquire)), labels);
    }
}

impl Recorder for Both {
    // No metric of ours is described.
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.counters.get(key, || {
            let exported = self.value(key, |meter, name, series| {
                meter
                    .u64_observable_counter(name)
                    .with_callback(move |to| observe(&series, to, |value| value))
                    .build();
            });
            let shown = self.prometheus.register_counter(key, metadata);
            Counter::from_arc(Arc::new(BothCounters(shown, exported)))
        })
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.gauges.get(key, || {
            let exported = self.value(key, |meter, name, series| {
                meter
                    .f64_observable_gauge(name)
                    .with_callback(move |to| observe(&series, to, f64::from_bits))
                    .build();
            });
            let shown = self.prometheus.register_gauge(key, metadata);
            Gauge::from_arc(Arc::new(BothGauges(shown, exported)))
        })
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.histograms.get(key, || {
            let bounds = match key.name().ends_with("_seconds") {
                true => SECONDS,
                false => GROUP_SIZES,
            };
            let exported = self
                .meter
                .f64_histogram(key.name().to_owned())
                .with_boundaries(bounds.to_vec())
                .build();
            let shown = self.prometheus.register_histogram(key, metadata);
            Histogram::from_arc(Arc::new(BothHistograms(shown, exported, labels(key))))
        })
    }
}

struct BothCounters(Counter, Arc<AtomicU64>);

impl CounterFn for BothCounters {
    fn increment(&self, value: u64) {
        self.0.increment(value);
        CounterFn::increment(&*self.1, value);
    }

    fn absolute(&self, value: u64) {
        self.0.absolute(value);
        CounterFn::absolute(&*self.1, value);
    }
}

struct BothGauges(Gauge, Arc<AtomicU64>);

impl GaugeFn for BothGauges {
    fn increment(&self, value: f64) {
        self.0.increment(value);
        GaugeFn::increment(&*self.1, value);
    }

    fn decrement(&self, value: f64) {
        self.0.decrement(value);
        GaugeFn::decrement(&*self.1, value);
    }

    fn set(&self, value: f64) {
        self.0.set(value);
        GaugeFn::set(&*self.1, value);
    }
}

struct BothHistograms(Histogram, otel::Histogram<f64>, Vec<KeyValue>);

impl HistogramFn for BothHistograms {
    fn record(&self, value: f64) {
        self.0.record(value);
        self.1.record(value, &self.2);
    }
}
