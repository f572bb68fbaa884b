//! Topics: messages for triggers, and for whoever subscribed.

use picloud_tests::{App, Engine, EventStream, Options, Server, on_both_engines, wait_for};
use serde_json::{Value, json};

on_both_engines!(
    a_message_reaches_triggers_and_streams,
    a_client_that_comes_back_receives_what_it_missed,
    one_stream_resumes_all_of_its_topics,
    an_ephemeral_message_reaches_whoever_listens,
    what_the_journal_no_longer_has_is_a_gap,
    a_closed_topic_resets_its_streams_and_is_as_if_it_were_not_there,
    a_token_lets_in_for_its_topics_and_its_time,
    tokens_end_when_they_are_revoked,
    whoever_is_signed_in_may_see_topics_for_sessions,
    bad_requests_are_refused_with_what_is_wrong,
    streams_are_capped,
    pages_of_other_origins_are_let_in_by_topic,
    a_message_that_causes_itself_is_stopped_by_the_depth_limit,
    the_command_line_opens_publishes_and_closes,
);

/// Scripts cannot sign tokens on Postgres without one.
const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

pub(crate) fn options(more: &[(&'static str, &str)]) -> Options {
    let mut environment = vec![("PICLOUD_MASTER_KEY", KEY.to_owned())];
    environment.extend(
        more.iter()
            .map(|(name, value)| (*name, (*value).to_owned())),
    );
    Options {
        environment,
        ..Options::default()
    }
}

pub(crate) fn start(engine: Engine) -> Server {
    Server::start_with(engine, options(&[]))
}

pub(crate) fn open(app: &App<'_>, topic: &str, body: Value) {
    let path = format!("/apps/{}/topics/{}", app.slug, topic.replace('/', "%2F"));
    let opened = app.server.api("PUT", &path, Some(body));
    assert_eq!(opened.status, 200, "{}", opened.text());
}

pub(crate) fn publish(app: &App<'_>, topic: &str, message: Value) -> Value {
    let path = format!("/apps/{}/topics/{topic}/messages", app.slug);
    let body = json!({ "message": message });
    let published = app.server.api("POST", &path, Some(body));
    assert_eq!(published.status, 200, "{}", published.text());
    published.json()
}

pub(crate) fn subscribe(server: &Server, path: &str, headers: &[(&str, &str)]) -> EventStream {
    EventStream::open(&server.url, path, headers).unwrap()
}

pub(crate) fn public(app: &App<'_>, topic: &str) {
    open(app, topic, json!({ "auth_mode": "public" }));
}

pub(crate) fn ready(stream: &EventStream) -> String {
    assert_eq!(stream.status, 200, "{}", stream.header);
    stream.expect("ready").id.expect("an id")
}

fn a_message_reaches_triggers_and_streams(engine: Engine) {
    let server = start(engine);
    let app = server.app("shop");
    app.script(
        "keep",
        r#"kv::collection("heard").set(ctx.script_name, ctx.event)"#,
    );
    app.script("fails", "throw `no: ${ctx.event.pubsub.message}`");
    app.trigger("pubsub", json!({ "script": "keep", "topic": "orders:*" }));
    app.trigger(
        "pubsub",
        json!({ "script": "fails", "topic": "orders:eu", "retry": { "attempts_max": 2, "base_ms": 1 } }),
    );
    app.trigger("pubsub", json!({ "script": "fails", "topic": "other" }));
    public(&app, "orders:eu");
    let stream = subscribe(&server, "/realtime/topics/orders:eu", &[]);
    ready(&stream);
    assert!(stream.header.contains("content-type: text/event-stream"));
    assert!(stream.header.contains("x-accel-buffering: no"));
    assert!(stream.header.contains("cache-control: no-store"));
    app.serve(
        "order",
        r#"pubsub::publish_durable("orders:eu", #{ n: 1, text: "a\nb" })"#,
    );
    let message_id = server.get("/order").json();
    let event = stream.expect("message");
    assert!(event.id.is_some());
    assert_eq!(event.data["id"], message_id);
    assert_eq!(event.data["topic"], "orders:eu");
    assert_eq!(event.data["message"], json!({ "n": 1, "text": "a\nb" }));
    assert!(event.data["seq"].is_i64());
    let heard = wait_for("the trigger", || {
        Some(app.kv("heard", "keep")).filter(|heard| !heard.is_null())
    });
    assert_eq!(heard["source"], "pubsub");
    assert_eq!(heard["id"], message_id);
    assert_eq!(heard["pubsub"]["topic"], "orders:eu");
    assert_eq!(heard["pubsub"]["message"]["n"], 1);
    assert_eq!(heard["pubsub"]["message_id"], message_id);
    assert_eq!(heard["pubsub"]["published_at"], event.data["published_at"]);
    // One delivery for each trigger, with its own retries and its own dead letter.
    let letters = wait_for("the dead letter", || {
        Some(app.dead_letters("source=pubsub")).filter(|letters| !letters.is_empty())
    });
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0]["attempts"], 2);
    // What it wrote is seen before it has ended.
    wait_for("its execution", || {
        let ended = app.executions("outcome=answered&invocation_type=pubsub");
        (ended.len() == 1).then_some(())
    });
}

fn a_client_that_comes_back_receives_what_it_missed(engine: Engine) {
    let server = start(engine);
    let app = server.app("shop");
    public(&app, "a");
    for n in 0..3 {
        publish(&app, "a", json!(n));
    }
    let path = "/realtime/topics/a";
    let stream = subscribe(&server, path, &[]);
    let at_3 = ready(&stream);
    assert!(stream.is_silent(300), "it begins now");
    publish(&app, "a", json!(3));
    let third = stream.expect("message");
    assert_eq!(third.data["message"], 3);
    drop(stream);
    for n in 4..7 {
        publish(&app, "a", json!(n));
    }
    let resumed = subscribe(&server, path, &[("last-event-id", &third.id.unwrap())]);
    ready(&resumed);
    assert_eq!(resumed.messages(3), [4, 5, 6]);
    publish(&app, "a", json!(7));
    assert_eq!(resumed.messages(1), [7]);
    // From before the first message, and by the query.
    let resumed = subscribe(&server, &format!("{path}?last_event_id={at_3}"), &[]);
    ready(&resumed);
    assert_eq!(resumed.messages(5), [3, 4, 5, 6, 7]);
    let all = subscribe(&server, &format!("{path}?last_event_id=earliest"), &[]);
    ready(&all);
    assert_eq!(all.messages(8), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert!(all.is_silent(300));
}

fn one_stream_resumes_all_of_its_topics(engine: Engine) {
    let server = start(engine);
    let app = server.app("shop");
    public(&app, "room:*");
    public(&app, "a/b");
    let path = "/realtime?topic=room:1&topic=a%2Fb&topic=room:1";
    let stream = subscribe(&server, path, &[]);
    let ready_event = stream.expect("ready");
    assert_eq!(ready_event.data["topics"], json!(["room:1", "a/b"]));
    publish(&app, "room:1", json!("r1"));
    publish(&app, "room:2", json!("not ours"));
    publish(&app, "a%2Fb", json!("b1"));
    assert_eq!(stream.messages(1), ["r1"]);
    let last = stream.expect("message");
    assert_eq!(last.data["topic"], "a/b");
    drop(stream);
    publish(&app, "room:1", json!("r2"));
    publish(&app, "a%2Fb", json!("b2"));
    // With a topic more, which begins now.
    let path = "/realtime?topic=a%2Fb&topic=room:1&topic=room:2";
    let resumed = subscribe(&server, path, &[("last-event-id", &last.id.unwrap())]);
    ready(&resumed);
    let mut both = resumed.messages(2);
    both.sort_by_key(Value::to_string);
    assert_eq!(both, ["b2", "r2"]);
    publish(&app, "room:2", json!("now"));
    assert_eq!(resumed.messages(1), ["now"]);
}

fn an_ephemeral_message_reaches_whoever_listens(engine: Engine) {
    let server = start(engine);
    let app = server.app("shop");
    public(&app, "a");
    app.serve("typing", r#"pubsub::publish_ephemeral("a", "typing")"#);
    let stream = subscribe(&server, "/realtime/topics/a", &[]);
    let id = ready(&stream);
    assert_eq!(server.get("/typing").status, 200);
    let event = stream.expect("message");
    assert_eq!(event.data["message"], "typing");
    assert!(event.id.is_none() && event.data.get("seq").is_none());
    publish(&app, "a", json!(1));
    assert_eq!(stream.messages(1), [1]);
    let resumed = subscribe(&server, "/realtime/topics/a", &[("last-event-id", &id)]);
    ready(&resumed);
    assert_eq!(resumed.messages(1), [1]);
}

fn what_the_journal_no_longer_has_is_a_gap(engine: Engine) {
    let server = start(engine);
    let app = server.app("shop");
    open(
        &app,
        "a",
        json!({ "auth_mode": "public", "retention_messages": 5 }),
    );
    let path = "/realtime/topics/a";
    let stream = subscribe(&server, path, &[]);
    let before = ready(&stream);
    for n in 0..20 {
        publish(&app, "a", json!(n));
    }
    let at_18 = stream.messages(18).pop().unwrap();
    assert_eq!(at_18, 17);
    let at_18 = stream.expect("message").id.unwrap();
    assert_eq!(server.api("POST", "/gc", None).status, 200);
    let resumed = subscribe(&server, path, &[("last-event-id", &before)]);
    ready(&resumed);
    let gap = resumed.expect("gap");
    assert_eq!(gap.data["topic"], "a");
    assert_eq!(resumed.messages(5), [15, 16, 17, 18, 19]);
    // The id of a gap is one to come back with; and who missed nothing has no gap.
    let resumed = subscribe(&server, path, &[("last-event-id", &gap.id.unwrap())]);
    ready(&resumed);
    assert_eq!(resumed.messages(5).len(), 5);
    let resumed = subscribe(&server, path, &[("last-event-id", &at_18)]);
    ready(&resumed);
    assert_eq!(resumed.messages(1), [19]);
    let all = subscribe(&server, &format!("{path}?last_event_id=earliest"), &[]);
    ready(&all);
    assert_eq!(all.messages(5).len(), 5);
}

fn a_closed_topic_resets_its_streams_and_is_as_if_it_were_not_there(engine: Engine) {
    let server = start(engine);
    let app = server.app("shop");
    public(&app, "a");
    let path = "/realtime/topics/a";
    let stream = subscribe(&server, path, &[]);
    let id = ready(&stream);
    let closed = server.api("DELETE", "/apps/shop/topics/a", None);
    assert_eq!(closed.status, 204);
    assert_eq!(stream.expect("reset").data["topic"], "a");
    assert_eq!(stream.next(), None);
    // Published to, but not open; and never heard of: the same.
    publish(&app, "a", json!(1));
    let internal = server.get(path);
    let unknown = server.get("/realtime/topics/b");
    assert_eq!((internal.status, unknown.status), (404, 404));
    let same = unknown.text().replace("`b`", "`a`");
    assert_eq!(
        internal.text(),
        same.replace(r#""topic":"b""#, r#""topic":"a""#)
    );
    // Opened again it has a journal of its own: the old id is seen to be old.
    public(&app, "a");
    publish(&app, "a", json!(2));
    let again = subscribe(&server, path, &[("last-event-id", &id)]);
    ready(&again);
    assert!(matches!(&*again.next().unwrap().name, "gap" | "message"));
}

fn token(server: &Server, query: &str) -> String {
    let answer = server.get(&format!("/token?{query}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json().as_str().unwrap().to_owned()
}

/// Serves `/token?topic=…&ttl=…`.
fn serve_tokens(app: &App<'_>) {
    app.serve(
        "token",
        r#"let q = ctx.request.query;
           if "ttl" in q { pubsub::subscriber_token([q.topic], parse_int(q.ttl)) }
           else { pubsub::subscriber_token([q.topic]) }"#,
    );
}

fn a_token_lets_in_for_its_topics_and_its_time(engine: Engine) {
    let short = [("PICLOUD_SUBSCRIBER_TOKEN_TTL_MIN_SEC", "2")];
    let server = Server::start_with(engine, options(&short));
    let app = server.app("shop");
    serve_tokens(&app);
    open(&app, "room:*", json!({ "auth_mode": "token" }));
    let path = "/realtime/topics/room:1";
    let status = |path: &str, token: &str| {
        let bearer = format!("Bearer {token}");
        let stream = subscribe(&server, path, &[("authorization", &bearer)]);
        stream.status
    };
    assert_eq!(server.get(path).status, 401);
    let good = token(&server, "topic=room:1");
    assert_eq!(status(path, &good), 200);
    assert_eq!(status("/realtime/topics/room:2", &good), 403);
    assert_eq!(status("/realtime?topic=room:1&topic=room:2", &good), 403);
    assert_eq!(
        status("/realtime/topics/room:2", &token(&server, "topic=room:*")),
        200
    );
    let by_query = subscribe(&server, &format!("{path}?token={good}"), &[]);
    assert_eq!(by_query.status, 200);
    let expires_at = |token: &str| {
        let stream = subscribe(&server, &format!("{path}?token={token}"), &[]);
        let text = stream.expect("ready").data["expires_at"].clone();
        let at = chrono::DateTime::parse_from_rfc3339(text.as_str().unwrap()).unwrap();
        (at.to_utc() - chrono::Utc::now()).num_seconds()
    };
    assert!((3_500..=3_600).contains(&expires_at(&good)));
    // 10 years are a day, and none is the least.
    let ten_years = token(&server, "topic=room:1&ttl=315360000");
    assert!((86_000..=86_400).contains(&expires_at(&ten_years)));
    let brief = token(&server, "topic=room:1&ttl=0");
    let stream = subscribe(&server, &format!("{path}?token={brief}"), &[]);
    ready(&stream);
    stream.expect("expired");
    assert_eq!(stream.next(), None);
    assert_eq!(status(path, &brief), 401);
    // Tampered with, cut, of another app, and none at all.
    let flip = |at: usize| {
        let mut bytes = good.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        String::from_utf8(bytes).unwrap()
    };
    for at in [6, 40, good.len() - 5] {
        assert_eq!(status(path, &flip(at)), 401, "{at}");
    }
    for odd in [
        "pct_",
        "pct_.",
        "pct_a.b",
        "nonsense",
        &good[..good.len() - 3],
    ] {
        assert_eq!(status(path, odd), 401, "{odd}");
    }
    let other = server.api(
        "POST",
        "/apps",
        Some(json!({ "slug": "other", "hosts": ["other.test"] })),
    );
    assert_eq!(other.status, 201, "{}", other.text());
    open(
        &server.known_app("other"),
        "room:*",
        json!({ "auth_mode": "token" }),
    );
    let bearer = format!("Bearer {good}");
    let headers = [("authorization", bearer.as_str()), ("host", "other.test")];
    assert_eq!(subscribe(&server, path, &headers).status, 401);
    assert!(!server.log().contains(&good[4..]), "no token in the log");
}

fn tokens_end_when_they_are_revoked(engine: Engine) {
    let server = start(engine);
    let app = server.app("shop");
    serve_tokens(&app);
    open(&app, "a", json!({ "auth_mode": "token" }));
    let first = token(&server, "topic=a");
    let stream = subscribe(&server, &format!("/realtime/topics/a?token={first}"), &[]);
    ready(&stream);
    let rotate = |revoke: bool| {
        let body = json!({ "revoke": revoke });
        let rotated = server.api("POST", "/apps/shop/subscriber-keys/rotate", Some(body));
        assert_eq!(rotated.status, 200, "{}", rotated.text());
    };
    rotate(false);
    let second = token(&server, "topic=a");
    let status = |token: &str| server_status(&server, token);
    assert_eq!((status(&first), status(&second)), (200, 200));
    assert!(stream.is_silent(300));
    rotate(true);
    stream.expect("expired");
    assert_eq!((status(&first), status(&second)), (401, 401));
    assert_eq!(status(&token(&server, "topic=a")), 200);
}

fn server_status(server: &Server, token: &str) -> u16 {
    subscribe(server, &format!("/realtime/topics/a?token={token}"), &[]).status
}

fn whoever_is_signed_in_may_see_topics_for_sessions(engine: Engine) {
    let server = start(engine);
    let app = server.app("shop");
    open(&app, "a", json!({ "auth_mode": "session" }));
    let (id, member) = server.join("ada", "member", json!({ "shop": "viewer" }));
    let (_, stranger) = server.join("eve", "member", json!({}));
    let as_user = |token: &str| {
        let bearer = format!("Bearer {token}");
        subscribe(&server, "/realtime/topics/a", &[("authorization", &bearer)])
    };
    assert_eq!(server.get("/realtime/topics/a").status, 401);
    assert_eq!(as_user(&stranger).status, 403);
    let stream = as_user(&member);
    ready(&stream);
    publish(&app, "a", json!(1));
    assert_eq!(stream.messages(1), [1]);
    let removed = server.api("DELETE", &format!("/apps/shop/members/{id}"), None);
    assert_eq!(removed.status, 204, "{}", removed.text());
    publish(&app, "a", json!(2));
    stream.expect("reset");
}

fn bad_requests_are_refused_with_what_is_wrong(engine: Engine) {
    let server = start(engine);
    let app = server.app("shop");
    public(&app, "a");
    let too_long = "t".repeat(257);
    for odd in ["a b", "ключ", "a*", &too_long, "a?b", "%00"] {
        let encoded: String = odd.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let subscribed = server.get(&format!("/realtime/topics/{encoded}"));
        assert_eq!(subscribed.status, 422, "{odd}: {}", subscribed.text());
        assert_eq!(subscribed.json()["field"], "topic");
        let path = format!("/apps/shop/topics/{encoded}/messages");
        let published = server.api("POST", &path, Some(json!({ "message": 1 })));
        assert_eq!(published.status, 422, "{odd}");
        assert_eq!(published.json()["field"], "topic");
    }
    assert_eq!(server.get("/realtime").status, 422);
    assert_eq!(server.get("/realtime?topic=").status, 422);
    let many: String = (0..51).map(|n| format!("topic=t{n}&")).collect();
    assert_eq!(server.get(&format!("/realtime?{many}")).status, 422);
    let bad_id = server.get("/realtime/topics/a?last_event_id=nonsense");
    assert_eq!(
        (bad_id.status, bad_id.json()["field"].clone()),
        (422, json!("last_event_id"))
    );
    // The limit is 256 KiB of JSON, and named.
    let path = "/apps/shop/topics/a/messages";
    let fits = json!({ "message": "x".repeat(256 * 1024 - 2) });
    assert_eq!(server.api("POST", path, Some(fits)).status, 200);
    let large = server.api(
        "POST",
        path,
        Some(json!({ "message": "x".repeat(256 * 1024 - 1) })),
    );
    assert_eq!((large.status, &*large.problem()), (413, "body_too_large"));
    assert!(large.text().contains("262144"), "{}", large.text());
    app.serve(
        "large",
        r#"let s = ""; s.pad(300000, 'x'); let said = "";
           try { pubsub::publish_durable("a", s) } catch (e) { said = `${e}` } said"#,
    );
    let said = server.get("/large").text();
    assert!(
        said.contains("pubsub::publish_durable: the message has 300002 bytes; the limit is 262144"),
        "{said}"
    );
    for (body, field) in [
        (json!({}), "auth_mode"),
        (json!({ "auth_mode": "none" }), "auth_mode"),
        (
            json!({ "auth_mode": "public", "retention_s": 0 }),
            "retention_s",
        ),
        (
            json!({ "auth_mode": "public", "cors_origins": ["x"] }),
            "cors_origins[0]",
        ),
    ] {
        let opened = server.api("PUT", "/apps/shop/topics/b", Some(body));
        assert_eq!(
            (opened.status, opened.json()["field"].clone()),
            (422, json!(field))
        );
    }
    assert_eq!(server.post("/realtime", &json!(1)).status, 405);
}

fn streams_are_capped(engine: Engine) {
    let caps = [("PICLOUD_STREAMS_PER_ADDRESS_MAX", "3")];
    let server = Server::start_with(engine, options(&caps));
    let app = server.app("shop");
    public(&app, "a");
    let path = "/realtime/topics/a";
    let mut held: Vec<_> = (0..3).map(|_| subscribe(&server, path, &[])).collect();
    held.iter()
        .for_each(|stream| assert_eq!(stream.status, 200));
    let refused = server.get(path);
    assert_eq!(
        (refused.status, &*refused.problem()),
        (429, "too_many_streams")
    );
    assert!(refused.headers.contains_key("retry-after"));
    held.pop();
    wait_for("the place of a stream that ended", || {
        (subscribe(&server, path, &[]).status == 200).then_some(())
    });
}

fn pages_of_other_origins_are_let_in_by_topic(engine: Engine) {
    let server = start(engine);
    let app = server.app("shop");
    let origin = "https://shop.example.com";
    open(
        &app,
        "a",
        json!({ "auth_mode": "token", "cors_origins": [origin] }),
    );
    open(
        &app,
        "b",
        json!({ "auth_mode": "public", "cors_origins": ["*"] }),
    );
    public(&app, "c");
    let preflight = |path: &str, origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "GET"),
            ("access-control-request-headers", "authorization"),
        ];
        let answer = server.call("OPTIONS", path, &headers, None);
        let of = |name: &str| {
            answer
                .headers
                .get(name)
                .map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(answer.status, 204);
        (
            of("access-control-allow-origin"),
            of("access-control-allow-credentials"),
        )
    };
    let yes = Some("true".to_owned());
    assert_eq!(
        preflight("/realtime/topics/a", origin),
        (Some(origin.to_owned()), yes)
    );
    // Whoever is not let in may ask, and read that they are not: their browser would show them nothing
    // else. No credentials go with it.
    let elsewhere = "https://evil.example";
    for path in [
        "/realtime/topics/a",
        "/realtime/topics/c",
        "/realtime/topics/no",
    ] {
        let allowed = (Some(elsewhere.to_owned()), None);
        assert_eq!(preflight(path, elsewhere), allowed, "{path}");
    }
    for (path, from, status, topic) in [
        ("/realtime/topics/a", elsewhere, 403, "a"),
        ("/realtime?topic=b&topic=c", origin, 403, "c"),
        ("/realtime/topics/c", "null", 403, "c"),
        ("/realtime/topics/no", elsewhere, 404, "no"),
    ] {
        let refused = server.call("GET", path, &[("origin", from)], None);
        assert_eq!(refused.status, status, "{path}");
        assert_eq!(refused.json()["topic"], topic, "{path}");
        assert_eq!(refused.headers["access-control-allow-origin"], from);
        assert!(
            !refused
                .headers
                .contains_key("access-control-allow-credentials")
        );
        if status == 403 {
            assert!(
                refused.text().contains("cors_origins"),
                "{}",
                refused.text()
            );
        }
    }
    // A page of this very host may, whatever is listed, and one on another port of it is another's.
    let own = server.url.replace("http://", "https://");
    let stream = subscribe(&server, "/realtime/topics/c", &[("origin", &own)]);
    ready(&stream);
    assert!(!stream.header.contains("access-control-allow-origin"));
    let port = &[("origin", "http://127.0.0.1:1")];
    assert_eq!(
        server.call("GET", "/realtime/topics/c", port, None).status,
        403
    );
    let both = preflight("/realtime?topic=a&topic=b", origin);
    assert_eq!(both, (Some(origin.to_owned()), None));
    // A page may read why it was not let in.
    let refused = server.call("GET", "/realtime/topics/a", &[("origin", origin)], None);
    assert_eq!(refused.status, 401);
    assert_eq!(refused.headers["access-control-allow-origin"], origin);
}

fn a_message_that_causes_itself_is_stopped_by_the_depth_limit(engine: Engine) {
    let server = start(engine);
    let app = server.app("shop");
    app.script(
        "echo",
        r#"pubsub::publish_durable("a", ctx.event.pubsub.message + 1)"#,
    );
    app.trigger("pubsub", json!({ "script": "echo", "topic": "a" }));
    public(&app, "a");
    let stream = subscribe(&server, "/realtime/topics/a", &[]);
    ready(&stream);
    publish(&app, "a", json!(0));
    assert_eq!(stream.messages(9), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    wait_for("the last is dropped", || {
        (server.metric("picloud_deliveries_dropped_total") >= 1.0).then_some(())
    });
    assert!(stream.is_silent(500));
    assert!(app.dead_letters("").is_empty());
}

fn the_command_line_opens_publishes_and_closes(engine: Engine) {
    let server = start(engine);
    let app = server.app("shop");
    let cli = |words: &[&str]| {
        let done = server.cli(words);
        let (out, err) = (
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr),
        );
        assert!(done.status.success(), "{words:?}: {out}{err}");
        out.into_owned()
    };
    cli(&[
        "topics", "open", "room:*", "--auth", "public", "--app", "shop",
    ]);
    assert!(cli(&["topics", "list", "--app", "shop"]).contains("room:*"));
    let stream = subscribe(&server, "/realtime/topics/room:1", &[]);
    ready(&stream);
    let said = cli(&["--json", "publish", "room:1", r#"{"a":1}"#, "--app", "shop"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(stream.expect("message").data["id"], said["message_id"]);
    app.script("s", "1");
    cli(&[
        "triggers",
        "create-pubsub",
        "s",
        "--topic",
        "room:*",
        "--app",
        "shop",
    ]);
    cli(&["topics", "close", "room:*", "--app", "shop"]);
    stream.expect("reset");
    let bad = server.cli(&["publish", "room:1", "hello", "--app", "shop"]);
    assert_eq!(bad.status.code(), Some(2));
}
