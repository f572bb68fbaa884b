//! Traces and metrics: from the caller's `traceparent` to a collector.

use std::net::TcpListener;

use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::trace::v1::Span;
use picloud_tests::collector::{Collector, attribute, hex};
use picloud_tests::{App, Engine, Options, Server, on_both_engines, report, wait_for};
use serde_json::{Value, json};

on_both_engines!(
    a_callers_trace_goes_through_route_event_and_handler,
    without_a_collector_a_callers_trace_is_kept_all_the_same,
    what_a_handler_failed_at_stays_in_its_trace,
    metrics_are_exported_as_they_are_shown,
    a_collector_that_is_away_or_hangs_slows_no_request,
);

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

fn exporting_to(url: &str, more: &[(&'static str, &str)]) -> Options {
    let mut environment = vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.to_owned()),
        ("OTEL_BSP_SCHEDULE_DELAY", "50".to_owned()),
        ("OTEL_METRIC_EXPORT_INTERVAL", "100".to_owned()),
    ];
    let more = more
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()));
    environment.extend(more);
    Options {
        environment,
        ..Options::default()
    }
}

/// A route `POST /orders/{id}` that sets a key, and a handler that hears it.
fn orders(server: &Server) -> App<'_> {
    let app = server.app("a");
    app.script(
        "write",
        r#"kv::collection("orders").set(ctx.request.params.id, 1); "written""#,
    );
    app.route("write", "POST /orders/{id}");
    app.script(
        "listen",
        r#"kv::collection("heard").set(ctx.event.kv.key, true);"#,
    );
    app.trigger("kv", json!({ "script": "listen", "collection": "orders" }));
    app
}

fn order(server: &Server, traceparent: &str) -> picloud_tests::Answer {
    server.call("POST", "/orders/7", &[("traceparent", traceparent)], None)
}

/// The executions of the route and of the handler, once both are over.
fn both_executions(app: &App<'_>) -> Vec<Value> {
    wait_for("both executions", || {
        let found = app.executions(&format!("trace_id={TRACE}"));
        (found.len() == 2).then_some(found)
    })
}

#[track_caller]
fn named<'s>(spans: &'s [Span], name: &str, parent: &[u8]) -> &'s Span {
    let found = spans
        .iter()
        .find(|span| span.name == name && span.parent_span_id == parent);
    found.unwrap_or_else(|| {
        let names: Vec<_> = spans.iter().map(|span| &span.name).collect();
        panic!("no `{name}` beneath {} in {names:?}", hex(parent))
    })
}

fn a_callers_trace_goes_through_route_event_and_handler(engine: Engine) {
    let collector = Collector::start();
    let server = Server::start_with(engine, exporting_to(&collector.url, &[]));
    let app = orders(&server);
    let answer = order(&server, &traceparent("01"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    both_executions(&app);
    // Two attempts, each with a wait, an execution with its run, and the commits around them.
    let spans = wait_for("every span", || {
        let spans = collector.spans(TRACE);
        (spans.len() == 10).then_some(spans)
    });
    let caller: Vec<u8> = (0..16)
        .step_by(2)
        .map(|at| u8::from_str_radix(&PARENT[at..at + 2], 16).unwrap())
        .collect();
    let request = named(&spans, "POST /orders/{id}", &caller);
    assert_eq!(
        attribute(&request.attributes, "http.route").unwrap(),
        "/orders/{id}"
    );
    assert_eq!(
        attribute(&request.attributes, "url.path").unwrap(),
        "/orders/7"
    );
    assert_eq!(
        attribute(&request.attributes, "http.response.status_code").unwrap(),
        "200"
    );
    // The answer says where it was made.
    let made_at = format!("00-{TRACE}-{}-01", hex(&request.span_id));
    assert_eq!(answer.headers["traceresponse"], made_at.as_str());
    named(&spans, "commit delivery", &request.span_id);
    named(&spans, "delivery wait", &request.span_id);
    named(&spans, "commit outcome", &request.span_id);
    let execution = named(&spans, "execution", &request.span_id);
    let id = attribute(&execution.attributes, "picloud.execution.id").unwrap();
    assert_eq!(answer.headers["x-execution-id"], id.as_str());
    assert_eq!(
        attribute(&execution.attributes, "picloud.outcome").unwrap(),
        "answered"
    );
    let run = named(&spans, "sandbox run", &execution.span_id);
    assert!(run.start_time_unix_nano >= execution.start_time_unix_nano);
    // The handler lies beneath the execution that caused its event.
    named(&spans, "delivery wait", &execution.span_id);
    let handler = named(&spans, "execution", &execution.span_id);
    assert_eq!(
        attribute(&handler.attributes, "picloud.invocation_type").unwrap(),
        "kv"
    );
    named(&spans, "sandbox run", &handler.span_id);
    named(&spans, "commit outcome", &execution.span_id);
    assert_eq!(collector.resource("service.name").unwrap(), "picloud");
    // Who says that a trace is not sampled, finds it nowhere.
    let other = traceparent("00").replace(TRACE, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    assert_eq!(order(&server, &other).status, 200);
    let before = collector.requests();
    wait_for("another export", || {
        (collector.requests() > before).then_some(())
    });
    assert_eq!(collector.spans("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa").len(), 0);
}

fn without_a_collector_a_callers_trace_is_kept_all_the_same(engine: Engine) {
    let options = Options {
        environment: vec![("PICLOUD_LOG_FORMAT", "json".to_owned())],
        ..Options::default()
    };
    let server = Server::start_with(engine, options);
    let app = orders(&server);
    let sent = traceparent("00");
    let answer = order(&server, &sent);
    // Nothing was added to the trace, so the place is the caller's own.
    assert_eq!(answer.headers["traceresponse"], sent.as_str());
    let executions = both_executions(&app);
    assert!(
        executions
            .iter()
            .all(|execution| execution["trace_id"] == TRACE)
    );
    let deeper = executions
        .iter()
        .filter(|found| !found["parent_id"].is_null());
    assert_eq!(deeper.count(), 1);
    // A problem names the trace, here as in the API.
    for path in ["/nowhere", "/api/v1/nowhere"] {
        let problem = server.call("GET", path, &[("traceparent", sent.as_str())], None);
        assert_eq!(
            (problem.status, &problem.json()["trace_id"]),
            (404, &json!(TRACE))
        );
    }
    // Who sends none, or no valid one, hears of none.
    for sent in ["", "00-0-0-00", &format!("{sent}{sent}")] {
        let answer = server.call("POST", "/orders/8", &[("traceparent", sent)], None);
        assert_eq!(answer.status, 200);
        assert!(!answer.headers.contains_key("traceresponse"), "{sent}");
    }
    let untraced = app.executions("invocation_type=http&limit=1");
    assert_eq!(untraced[0]["trace_id"], Value::Null);
    let bad = server.api("GET", "/apps/a/executions?trace_id=short", None);
    assert_eq!(
        (bad.status, &bad.json()["field"]),
        (422, &json!("trace_id"))
    );
}

fn what_a_handler_failed_at_stays_in_its_trace(engine: Engine) {
    let options = Options {
        environment: vec![("PICLOUD_LOG_FORMAT", "json".to_owned())],
        ..Options::default()
    };
    let server = Server::start_with(engine, options);
    let app = orders(&server);
    app.script("fail", r#"throw "no""#);
    app.trigger(
        "kv",
        json!({ "script": "fail", "collection": "orders", "retry": { "attempts_max": 1 } }),
    );
    app.script("bury", "()");
    app.trigger("dead_letter", json!({ "script": "bury" }));
    assert_eq!(order(&server, &traceparent("01")).status, 200);
    let dead = wait_for("a dead letter", || app.dead_letters("").into_iter().next());
    wait_for("its handler", || {
        let found = app.executions(&format!("trace_id={TRACE}&invocation_type=dead_letter"));
        (found.len() == 1).then_some(())
    });
    let id = dead["id"].as_str().unwrap();
    let replayed = server.api(
        "POST",
        &format!("/dead-letters/{id}/replay"),
        Some(json!({})),
    );
    assert!(replayed.status < 300, "{}", replayed.text());
    wait_for("the replay", || {
        let found = app.executions(&format!("trace_id={TRACE}&outcome=threw"));
        (found.len() == 2).then_some(())
    });
    // The line in the log that tells of it names the trace.
    let line = wait_for("the line", || {
        let log = server.log();
        let line = log
            .lines()
            .find(|line| line.contains("used up its attempts"))?;
        serde_json::from_str::<Value>(line).ok()
    });
    assert_eq!(line["span"]["trace_id"], TRACE, "{line}");
}

fn metrics_are_exported_as_they_are_shown(engine: Engine) {
    let collector = Collector::start();
    let more = [
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_SERVICE_NAME", "shop"),
    ];
    let server = Server::start_with(engine, exporting_to(&collector.url, &more));
    let app = orders(&server);
    for _ in 0..3 {
        let answer = server.call("POST", "/orders/7", &[], None);
        assert!(!answer.headers.contains_key("traceresponse"));
    }
    wait_for("every execution", || {
        (app.executions("").len() == 6).then_some(())
    });
    let points = wait_for("the counter", || {
        let Some(Data::Sum(sum)) = collector.metric("picloud_executions_total")?.data else {
            panic!("a counter is no sum");
        };
        let value = |point: &opentelemetry_proto::tonic::metrics::v1::NumberDataPoint| {
            (
                attribute(&point.attributes, "outcome"),
                match point.value {
                    Some(Number::AsInt(value)) => value,
                    _ => 0,
                },
            )
        };
        let points: Vec<_> = sum.data_points.iter().map(value).collect();
        (points.iter().map(|(_, value)| value).sum::<i64>() == 6).then_some(points)
    });
    assert_eq!(points, [(Some("answered".to_owned()), 6)]);
    assert_eq!(server.metric("picloud_executions_total"), 6.0);
    let Some(Data::Histogram(durations)) =
        collector.metric("picloud_execution_seconds").unwrap().data
    else {
        panic!("durations are no histogram");
    };
    assert!(durations.data_points[0].explicit_bounds.contains(&0.0005));
    assert_eq!(server.metric("picloud_execution_seconds_count"), 6.0);
    wait_for("a gauge", || collector.metric("picloud_outbox_deliveries"));
    assert_eq!(collector.resource("service.name").unwrap(), "shop");
}

fn a_collector_that_is_away_or_hangs_slows_no_request(engine: Engine) {
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let hanging = Collector::start();
    hanging.stall();
    for url in [format!("http://{nobody}"), hanging.url.clone()] {
        // A queue that is full at once: what does not fit is lost, and nobody waits for it.
        let more = [("OTEL_BSP_MAX_QUEUE_SIZE", "16")];
        let server = Server::start_with(engine, exporting_to(&url, &more));
        let app = server.app("a");
        app.serve("hello", r#""hello""#);
        let mut slowest = std::time::Duration::ZERO;
        for _ in 0..200 {
            let begun = std::time::Instant::now();
            assert_eq!(server.get("/hello").status, 200);
            slowest = slowest.max(begun.elapsed());
        }
        report(format_args!(
            "slowest of 200 requests with a dead collector: {slowest:?}"
        ));
        // Whoever waited for the collector would wait for its time limit of 10 s.
        assert!(slowest < std::time::Duration::from_secs(5), "{slowest:?}");
        if url == hanging.url {
            assert!(hanging.requests() > 0);
        } else {
            wait_for("the warning", || {
                server
                    .log()
                    .contains("telemetry cannot be exported now")
                    .then_some(())
            });
        }
        // Nor does it keep a node from stopping.
        server.signal("TERM");
        wait_for("the end", || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid()));
            stat.map_or(true, |stat| stat.contains(") Z")).then_some(())
        });
    }
}
