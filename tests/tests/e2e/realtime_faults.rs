//! Streams that are cut, servers that die, readers that are slow, nodes that tell each other.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use picloud_tests::{
    Engine, Event, EventStream, Options, Proxy, Server, on_both_engines, report, wait_for,
};
use serde_json::json;

use super::realtime::{open, options, public, publish, ready, subscribe};

on_both_engines!(
    cuts_of_streams_lose_nothing_and_double_nothing,
    cuts_of_the_dashboards_stream_lose_nothing_and_double_nothing,
    streams_resume_after_the_server_was_killed,
    a_slow_reader_is_cut_off_and_resumes,
    a_stream_that_is_too_slow_for_one_topic_is_deaf_to_none,
    topics_that_are_read_from_the_journal_take_turns,
    readers_that_stop_or_trickle_are_ended_soon_and_resume,
    replays_are_budgeted_by_user_token_and_address,
    two_thousand_idle_streams_hear_a_message,
    streams_come_through_nginx_and_over_http_2,
);

pub fn roomy() -> Options {
    let limit = "100000".to_owned();
    Options {
        environment: vec![
            ("PICLOUD_STREAMS_PER_ADDRESS_MAX", limit.clone()),
            ("PICLOUD_STREAMS_PER_APP_MAX", limit.clone()),
            ("PICLOUD_STREAM_REPLAYS_PER_MINUTE_MAX", limit.clone()),
            ("PICLOUD_STREAM_REPLAYS_AT_ONCE_MAX", limit),
        ],
        ..Options::default()
    }
}

/// The number that stands for the end of what is told.
const END: i64 = 1_000_000;
/// How many cuts, unless `PICLOUD_TEST_CUTS` says more: `cargo xtask soak` does.
const CUTS: u64 = 300;

/// A stream, and how the numbers that it tells are read off its messages.
struct Followed<'s> {
    path: &'s str,
    authorization: &'s str,
    number: fn(&Event) -> Option<i64>,
}

impl Followed<'_> {
    /// Follow it through whatever happens to its connections, which are counted; answers the
    /// numbers. It begins with what the journal has.
    fn follow(&self, address: &str, connections: &AtomicU64) -> Vec<i64> {
        let (mut heard, mut last) = (Vec::new(), None::<String>);
        let give_up_at = Instant::now() + Duration::from_secs(600);
        while heard.last() != Some(&END) {
            assert!(Instant::now() < give_up_at, "{} heard", heard.len());
            let id = last.clone().unwrap_or_else(|| "earliest".to_owned());
            let headers = [
                ("last-event-id", &*id),
                ("authorization", self.authorization),
            ];
            let Ok(stream) = EventStream::open(address, self.path, &headers) else {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            };
            if stream.status != 200 {
                continue;
            }
            connections.fetch_add(1, Ordering::Relaxed);
            while let Some(event) = stream.next() {
                if event.name == "message" {
                    heard.extend((self.number)(&event));
                }
                assert_ne!(event.name, "gap");
                last = event.id.or(last);
                if heard.last() == Some(&END) {
                    break;
                }
            }
        }
        heard
    }

    /// Have three readers follow it through a proxy that cuts their connections again and again,
    /// while `tell` is called with 0, 1, 2, … and the end.
    fn cut(&self, server: &Server, tell: impl Fn(i64) + Sync) {
        let asked = std::env::var("PICLOUD_TEST_CUTS");
        let cuts_max = asked.map_or(CUTS, |text| text.parse().expect("a number"));
        let proxy = Proxy::to(server.url.trim_start_matches("http://"));
        let through = format!("127.0.0.1:{}", proxy.port);
        let (is_cutting, cuts) = (AtomicBool::new(true), AtomicU64::new(0));
        let connections = AtomicU64::new(0);
        let told = AtomicU64::new(0);
        let readers = 3;
        let heard: Vec<_> = std::thread::scope(|scope| {
            scope.spawn(|| {
                // Lengths that fit neither the publisher's pace nor the readers'.
                for n in 0..cuts_max {
                    let before = connections.load(Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(3 + n * 7 % 31));
                    // Where everything is slow there would be nothing to cut.
                    let enough = Instant::now() + Duration::from_millis(300);
                    while connections.load(Ordering::Relaxed) == before && Instant::now() < enough {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    proxy.cut();
                    proxy.mend();
                    cuts.fetch_add(1, Ordering::Relaxed);
                }
                is_cutting.store(false, Ordering::Relaxed);
            });
            let telling = scope.spawn(|| {
                let mut n = 0;
                while is_cutting.load(Ordering::Relaxed) {
                    tell(n);
                    n += 1;
                    std::thread::sleep(Duration::from_millis(8));
                }
                tell(END);
                told.store(n.unsigned_abs() + 1, Ordering::Relaxed);
            });
            let follow = || scope.spawn(|| self.follow(&through, &connections));
            let following: Vec<_> = (0..readers).map(|_| follow()).collect();
            telling.join().unwrap();
            following
                .into_iter()
                .map(|reader| reader.join().unwrap())
                .collect()
        });
        let told = told.into_inner();
        let connections = connections.into_inner();
        report(format_args!(
            "{} cuts, {told} messages, {readers} readers who came {connections} times",
            cuts.load(Ordering::Relaxed)
        ));
        assert!(connections > cuts_max / 2, "{connections}");
        for messages in heard {
            let mut expected: Vec<i64> = (0..told as i64 - 1).collect();
            expected.push(END);
            assert!(
                messages == expected,
                "{} of {}",
                messages.len(),
                expected.len()
            );
        }
    }
}

fn cuts_of_streams_lose_nothing_and_double_nothing(engine: Engine) {
    let server = Server::start_with(engine, roomy());
    let app = server.app("shop");
    open(&app, "a", json!({ "auth_mode": "public" }));
    let followed = Followed {
        path: "/realtime/topics/a",
        authorization: "",
        number: |event| event.data["message"].as_i64(),
    };
    followed.cut(&server, |n| {
        publish(&app, "a", json!(n));
    });
}

fn cuts_of_the_dashboards_stream_lose_nothing_and_double_nothing(engine: Engine) {
    let server = Server::start_with(engine, roomy());
    let app = server.app("shop");
    // Somebody who hears of this app only, and not of how it was made.
    let (_, ada) = server.join("ada", "member", json!({ "shop": "viewer" }));
    // What is changed is named by the path of the change.
    let followed = Followed {
        path: "/api/v1/events",
        authorization: &format!("Bearer {ada}"),
        number: |event| {
            let target = event.data["data"]["target"].as_str()?;
            target.split_once("/topics/t")?.1.parse().ok()
        },
    };
    followed.cut(&server, |n| {
        open(&app, &format!("t{n}"), json!({ "auth_mode": "session" }));
    });
}

fn streams_resume_after_the_server_was_killed(engine: Engine) {
    let mut server = Server::start_with(engine, roomy());
    let app = server.app("shop");
    open(&app, "a", json!({ "auth_mode": "public" }));
    let streams: Vec<_> = (0..20)
        .map(|_| EventStream::open(&server.url, "/realtime/topics/a", &[]).unwrap())
        .collect();
    let mut last: Vec<_> = streams
        .iter()
        .map(|stream| stream.expect("ready").id.unwrap())
        .collect();
    for n in 0..5 {
        publish(&app, "a", json!(n));
    }
    for (stream, last) in streams.iter().zip(&mut last).take(10) {
        for _ in 0..3 {
            *last = stream.expect("message").id.unwrap();
        }
    }
    server.kill();
    for stream in &streams {
        while stream.next().is_some() {}
    }
    server.launch();
    publish(&server.known_app("shop"), "a", json!(5));
    for (n, last) in last.iter().enumerate() {
        let headers = [("last-event-id", last.as_str())];
        let stream = EventStream::open(&server.url, "/realtime/topics/a", &headers).unwrap();
        stream.expect("ready");
        let missed: &[i64] = if n < 10 {
            &[3, 4, 5]
        } else {
            &[0, 1, 2, 3, 4, 5]
        };
        assert_eq!(stream.messages(missed.len()), missed);
    }
}

fn a_slow_reader_is_cut_off_and_resumes(engine: Engine) {
    let server = Server::start_with(engine, roomy());
    let app = server.app("shop");
    open(&app, "a", json!({ "auth_mode": "public" }));
    let address = server.url.trim_start_matches("http://");
    let mut slow = std::net::TcpStream::connect(address).unwrap();
    let request = format!("GET /realtime/topics/a HTTP/1.1\r\nhost: {address}\r\n\r\n");
    slow.write_all(request.as_bytes()).unwrap();
    let mut byte = [0];
    slow.read_exact(&mut byte).unwrap();
    let quick = EventStream::open(&server.url, "/realtime/topics/a", &[]).unwrap();
    let begin = quick.expect("ready").id.unwrap();
    // More than the kernel holds for the slow one, and than the server does.
    let body = "x".repeat(200_000);
    let mut sent = 0;
    while server.metric("picloud_streams_cut_off_total") < 1.0 {
        assert!(sent < 400, "it is held for ever");
        publish(&app, "a", json!({ "n": sent, "body": body }));
        assert_eq!(
            quick.expect("message").data["message"]["n"],
            sent,
            "others do not wait"
        );
        sent += 1;
        // A byte now and then.
        slow.read_exact(&mut byte).unwrap();
    }
    report(format_args!("cut off after {sent} messages of 200 kB"));
    let headers = [("last-event-id", begin.as_str())];
    let resumed = EventStream::open(&server.url, "/realtime/topics/a", &headers).unwrap();
    resumed.expect("ready");
    for n in 0..sent {
        assert_eq!(resumed.expect("message").data["message"]["n"], n);
    }
}

/// What a stream of several topics said, and where to go on.
struct Heard<'p> {
    address: String,
    path: &'p str,
    stream: EventStream,
    last: Option<String>,
    numbers: BTreeMap<String, Vec<i64>>,
}

impl<'p> Heard<'p> {
    fn of(address: String, path: &'p str) -> Self {
        let stream = EventStream::open(&address, path, &[]).unwrap();
        let last = stream.expect("ready").id;
        let numbers = BTreeMap::new();
        Self {
            address,
            path,
            stream,
            last,
            numbers,
        }
    }

    /// Read on until that many messages were heard, however often the stream ends.
    fn read_until(&mut self, count: usize) {
        while self.numbers.values().map(Vec::len).sum::<usize>() < count {
            let Some(event) = self.stream.next() else {
                let last = self.last.clone().unwrap_or_default();
                let headers = [("last-event-id", last.as_str())];
                self.stream = EventStream::open(&self.address, self.path, &headers).unwrap();
                continue;
            };
            assert_ne!(event.name, "gap");
            if event.name == "message" {
                let topic = event.data["topic"].as_str().unwrap_or_default();
                let number = event.data["message"]["n"].as_i64().unwrap();
                self.numbers
                    .entry(topic.to_owned())
                    .or_default()
                    .push(number);
            }
            self.last = event.id.or(self.last.take());
        }
    }
}

fn a_stream_that_is_too_slow_for_one_topic_is_deaf_to_none(engine: Engine) {
    const OTHERS: [&str; 4] = ["b", "c", "d", "e"];
    let server = Server::start_with(engine, roomy());
    let app = server.app("shop");
    let topics = ["flood"].into_iter().chain(OTHERS);
    topics.clone().for_each(|topic| public(&app, topic));
    let mut told = BTreeMap::new();
    let mut tell = |topic: &str, body: &str| {
        let numbers: &mut Vec<i64> = told.entry(topic.to_owned()).or_default();
        let n = numbers.len() as i64;
        publish(&app, topic, json!({ "n": n, "body": body }));
        numbers.push(n);
        told.clone()
    };
    let count = |told: &BTreeMap<String, Vec<i64>>| told.values().map(Vec::len).sum::<usize>();
    let proxy = Proxy::to(server.url.trim_start_matches("http://"));
    let address = format!("127.0.0.1:{}", proxy.port);
    let path = "/realtime?topic=flood&topic=b&topic=c&topic=d&topic=e";
    let mut heard = Heard::of(address, path);
    for topic in topics.clone() {
        tell(topic, "");
    }
    proxy.slow_down(Duration::from_millis(50));
    // Of all that it is told, one message of one topic does not fit: the last of these.
    let body = "x".repeat(100_000);
    let mut all = tell("flood", &body);
    while server.metric("picloud_streams_cut_off_total") < 1.0 {
        assert!(count(&all) < 2_000, "it is held for ever");
        all = tell("flood", &body);
    }
    report(format_args!(
        "cut off after {} messages of 100 kB",
        count(&all) - 6
    ));
    proxy.slow_down(Duration::ZERO);
    heard.read_until(count(&all) - 1);
    for _ in 0..3 {
        for topic in topics.clone() {
            all = tell(topic, "");
        }
    }
    heard.read_until(count(&all));
    assert_eq!(heard.numbers, all);
    // And it goes on.
    for topic in topics {
        all = tell(topic, "");
        heard.read_until(count(&all));
        assert_eq!(heard.numbers, all);
    }
}

fn topics_that_are_read_from_the_journal_take_turns(engine: Engine) {
    const FLOOD: usize = 600;
    let server = Server::start_with(engine, roomy());
    let app = server.app("shop");
    ["flood", "b"].iter().for_each(|topic| public(&app, topic));
    for n in 0..FLOOD {
        publish(&app, "flood", json!(n));
    }
    publish(&app, "b", json!("the only one"));
    let path = "/realtime?topic=flood&topic=b&last_event_id=earliest";
    let stream = subscribe(&server, path, &[]);
    ready(&stream);
    let heard = stream.messages(FLOOD + 1);
    let place = heard.iter().position(|message| message == "the only one");
    assert!(place.is_some_and(|place| place < FLOOD), "{place:?}");
}

/// A reader whose kernel takes next to nothing for it.
fn with_small_window(address: &str) -> std::net::TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(1_024).unwrap();
    let there: std::net::SocketAddr = address.parse().unwrap();
    socket.connect(&there.into()).unwrap();
    let mut socket = std::net::TcpStream::from(socket);
    let request = format!("GET /realtime/topics/a HTTP/1.1\r\nhost: {address}\r\n\r\n");
    socket.write_all(request.as_bytes()).unwrap();
    socket
}

fn readers_that_stop_or_trickle_are_ended_soon_and_resume(engine: Engine) {
    const MESSAGES: i64 = 20;
    let mut options = roomy();
    let patience = ("PICLOUD_CLIENT_TIMEOUT_MS", "1500".to_owned());
    options.environment.push(patience);
    let server = Server::start_with(engine, options);
    let app = server.app("shop");
    open(&app, "a", json!({ "auth_mode": "public" }));
    let begin = ready(&subscribe(&server, "/realtime/topics/a", &[]));
    let open = || server.metric("picloud_streams_open");
    wait_for("the first stream's end", || (open() == 0.0).then_some(()));
    let address = server.url.trim_start_matches("http://");
    let stopped = with_small_window(address);
    let mut trickling = with_small_window(address);
    wait_for("the streams", || (open() == 2.0).then_some(()));
    // Far less than what waits for a slow reader here, or in the kernel: no write ever fails.
    for n in 0..MESSAGES {
        publish(&app, "a", json!({ "n": n, "text": "x".repeat(600) }));
    }
    let begun = Instant::now();
    wait_for("the streams to be ended", || {
        // As slowly as that, a byte at a time.
        let _ = trickling.read(&mut [0]);
        (open() == 0.0).then_some(())
    });
    report(format_args!("ended after {:?}", begun.elapsed()));
    drop((stopped, trickling));
    // Whoever reads is not ended, and misses nothing.
    let headers = [("last-event-id", begin.as_str())];
    let resumed = EventStream::open(&server.url, "/realtime/topics/a", &headers).unwrap();
    resumed.expect("ready");
    let heard = resumed.messages(MESSAGES as usize);
    assert!((0..MESSAGES).all(|n| heard[n as usize]["n"] == n));
    publish(&app, "a", json!("more"));
    assert_eq!(resumed.messages(1), ["more"]);
}

fn replays_are_budgeted_by_user_token_and_address(engine: Engine) {
    let limits = [
        ("PICLOUD_STREAM_REPLAYS_PER_MINUTE_MAX", "3"),
        ("PICLOUD_STREAM_REPLAYS_AT_ONCE_MAX", "1"),
    ];
    let server = Server::start_with(engine, options(&limits));
    let app = server.app("shop");
    public(&app, "a");
    open(&app, "closed", json!({ "auth_mode": "token" }));
    app.serve("token", r#"pubsub::subscriber_token(["*"])"#);
    let begin = ready(&subscribe(&server, "/realtime/topics/a", &[]));
    let bearer = format!("Bearer {}", server.token);
    let signed_in = [("authorization", bearer.as_str())];
    // Coming back after nothing happened is no replay.
    for _ in 0..5 {
        let path = format!("/realtime/topics/a?last_event_id={begin}");
        ready(&subscribe(&server, &path, &[]));
    }
    // More than the kernel takes for somebody who reads nothing.
    let body = "x".repeat(200_000);
    for _ in 0..100 {
        publish(&app, "a", json!(body));
    }
    publish(&app, "closed", json!("there"));
    let refused = |path: &str, headers: &[(&str, &str)]| {
        let answer = server.call("GET", path, headers, None);
        let known = (answer.status, &*answer.problem()) == (429, "too_many_replays");
        assert!(known, "{} {}", answer.status, answer.text());
        let after = answer.headers["retry-after"]
            .to_str()
            .unwrap()
            .parse::<u64>();
        assert!(after.is_ok_and(|after| (1..=60).contains(&after)));
    };
    let all = "/realtime/topics/a?last_event_id=earliest";
    // One that goes on and on is the only one of its address.
    let mut slow = std::net::TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
    let request = format!("GET {all} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n");
    std::io::Write::write_all(&mut slow, request.as_bytes()).unwrap();
    std::io::Read::read_exact(&mut slow, &mut [0]).unwrap();
    refused(all, &[]);
    drop(slow);
    // It is known to be gone soon. What was refused counts for nothing.
    let replays = |path: &str, headers: &[(&str, &str)]| {
        wait_for("a replay", || {
            let stream = subscribe(&server, path, headers);
            (stream.status == 200).then(|| {
                ready(&stream);
                stream.expect("message");
            })
        });
    };
    replays(all, &[]);
    replays(all, &[]);
    refused(all, &[]);
    // Whoever begins now, and whoever is somebody else, is let in: each has a budget of their own.
    ready(&subscribe(&server, "/realtime/topics/a", &[]));
    let events = "/api/v1/events?last_event_id=earliest";
    for _ in 0..2 {
        let token = server.get("/token").json();
        let closed = format!(
            "/realtime/topics/closed?last_event_id=earliest&token={}",
            token.as_str().unwrap()
        );
        for _ in 0..3 {
            replays(&closed, &[]);
        }
        refused(&closed, &[]);
    }
    for _ in 0..3 {
        replays(events, &signed_in);
    }
    refused(events, &signed_in);
    ready(&subscribe(&server, "/api/v1/events", &signed_in));
}

fn two_thousand_idle_streams_hear_a_message(engine: Engine) {
    const STREAMS: usize = 2_000;
    let server = Server::start_with(engine, roomy());
    let app = server.app("shop");
    open(&app, "a", json!({ "auth_mode": "public" }));
    let address = server.url.trim_start_matches("http://");
    let request = format!("GET /realtime/topics/a HTTP/1.1\r\nhost: {address}\r\n\r\n");
    // What the process needs besides streams is there already.
    let connect = || {
        let mut socket = std::net::TcpStream::connect(address).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        let mut heard = Vec::new();
        let mut piece = [0; 4_096];
        while !String::from_utf8_lossy(&heard).contains("event: ready") {
            let length = socket.read(&mut piece).unwrap();
            assert!(length > 0, "{}", String::from_utf8_lossy(&heard));
            heard.extend_from_slice(&piece[..length]);
        }
        socket
    };
    let first: Vec<_> = (0..50).map(|_| connect()).collect();
    let before = server.memory_kib();
    let mut streams: Vec<_> = (0..STREAMS).map(|_| connect()).collect();
    let each = (server.memory_kib() - before) as f64 / STREAMS as f64;
    let sent = Instant::now();
    publish(&app, "a", json!("to all"));
    for stream in &mut streams {
        let mut heard = Vec::new();
        let mut piece = [0; 4_096];
        while !String::from_utf8_lossy(&heard).contains("to all") {
            let length = stream.read(&mut piece).unwrap();
            assert!(length > 0);
            heard.extend_from_slice(&piece[..length]);
        }
    }
    report(format_args!(
        "{STREAMS} idle streams: {each:.1} KiB each; a message reached all of them in {:?}",
        sent.elapsed()
    ));
    assert!(each < 60.0, "{each:.1} KiB each");
    drop((first, streams));
    wait_for("the streams to be gone", || {
        (server.metric("picloud_streams_open") == 0.0).then_some(())
    });
}

/// An nginx in front of a server.
struct Nginx {
    child: std::process::Child,
    http_1: u16,
    http_2: u16,
}

impl Nginx {
    fn start(server: &Server) -> Self {
        let port = || {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().port()
        };
        let (http_1, http_2) = (port(), port());
        let (folder, url) = (server.folder().display(), &server.url);
        // As nginx does it by default, but for where things are.
        let config = format!(
            "daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
             events {{ }}
             http {{
               access_log off; client_body_temp_path {folder}/n1; proxy_temp_path {folder}/n2;
               fastcgi_temp_path {folder}/n3; uwsgi_temp_path {folder}/n4; scgi_temp_path {folder}/n5;
               server {{ listen 127.0.0.1:{http_1}; location / {{ proxy_pass {url}; }} }}
               server {{ listen 127.0.0.1:{http_2} http2;
                         location / {{ proxy_pass {url}; proxy_http_version 1.1; }} }}
             }}"
        );
        let path = server.folder().join("nginx.conf");
        std::fs::write(&path, config).unwrap();
        let program = match std::path::Path::new("/usr/sbin/nginx").exists() {
            true => "/usr/sbin/nginx",
            false => "nginx",
        };
        let mut nginx = std::process::Command::new(program);
        nginx
            .args(["-c", path.to_str().unwrap(), "-p"])
            .arg(server.folder());
        let child = nginx
            .spawn()
            .expect("nginx; `cargo xtask setup --test` installs it");
        wait_for("nginx", || {
            std::net::TcpStream::connect(("127.0.0.1", http_2)).ok()
        });
        Self {
            child,
            http_1,
            http_2,
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its workers go with it only if it is asked.
        let pid = self.child.id().to_string();
        let _ = std::process::Command::new("kill")
            .args(["-TERM", &pid])
            .status();
        let _ = self.child.wait();
    }
}

fn streams_come_through_nginx_and_over_http_2(engine: Engine) {
    use std::io::{BufRead, BufReader};
    let server = Server::start_with(engine, roomy());
    let app = server.app("shop");
    open(&app, "a", json!({ "auth_mode": "public" }));
    let nginx = Nginx::start(&server);
    let address = format!("127.0.0.1:{}", nginx.http_1);
    let stream = EventStream::open(&address, "/realtime/topics/a", &[]).unwrap();
    // At once: nothing is held back until there is more.
    let begin = stream.expect("ready").id.unwrap();
    let follow_over_http_2 = |url: &str| {
        let mut curl = std::process::Command::new("curl");
        curl.args([
            "-sN",
            "--http2-prior-knowledge",
            "-w",
            "%{http_version}",
            url,
        ]);
        curl.args(["-H", &format!("last-event-id: {begin}")]);
        let mut curl = curl.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(curl.stdout.take().unwrap()).lines();
        (curl, lines.map_while(Result::ok))
    };
    let through_nginx = format!("http://127.0.0.1:{}/realtime/topics/a", nginx.http_2);
    let directly = format!("{}/realtime/topics/a", server.url);
    let mut followers: Vec<_> = [through_nginx, directly]
        .iter()
        .map(|url| follow_over_http_2(url))
        .collect();
    for n in 0..20 {
        publish(&app, "a", json!({ "n": n }));
        assert_eq!(stream.messages(1), [json!({ "n": n })]);
        for (_, lines) in &mut followers {
            let said = format!(r#""message":{{"n":{n}}}"#);
            let line = lines
                .find(|line| line.contains(r#""message":"#))
                .expect("a message");
            assert!(line.contains(&said), "{line}");
        }
    }
    for (mut curl, _) in followers {
        curl.kill().unwrap();
        curl.wait().unwrap();
    }
}

#[test]
fn what_one_node_publishes_the_streams_of_another_hear() {
    let one = Server::start_with(Engine::Postgres, roomy());
    let app = one.app("shop");
    open(&app, "a", json!({ "auth_mode": "public" }));
    let other = one.another_node(roomy());
    let there = other.known_app("shop");
    let stream = EventStream::open(&other.url, "/realtime/topics/a", &[]).unwrap();
    stream.expect("ready");
    let started = Instant::now();
    for n in 0..50 {
        publish(if n % 2 == 0 { &app } else { &there }, "a", json!(n));
    }
    let heard = stream.messages(50);
    assert_eq!(heard, (0..50).map(|n| json!(n)).collect::<Vec<_>>());
    report(format_args!(
        "50 messages from two nodes in {:?}",
        started.elapsed()
    ));
    // Ephemeral ones, too, also those that are larger than a notification.
    for body in ["small".to_owned(), "ключ".repeat(20_000)] {
        let path = "/apps/shop/topics/a/messages";
        let message = json!({ "message": body, "ephemeral": true });
        // Whether notifications are heard yet, nobody tells.
        wait_for("an ephemeral message", || {
            assert_eq!(one.api("POST", path, Some(message.clone())).status, 200);
            (!stream.is_silent(1_000)).then_some(())
        });
    }
    // And the events of the instance.
    let bearer = format!("Bearer {}", other.token);
    let headers = [("authorization", bearer.as_str())];
    let events = EventStream::open(&other.url, "/api/v1/events", &headers).unwrap();
    events.expect("ready");
    app.script("s", "1");
    let event = events.expect("message");
    assert_eq!(event.data["data"]["what"], "script", "{event:?}");
    drop(there);
}
