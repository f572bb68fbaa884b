//! Attacks by what HTTP allows, or does not.

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use picloud_tests::{Engine, on_both_engines, report};
use serde_json::json;

use crate::neighbour::{ATTACKER, Attacked, in_rounds};
use crate::wire::{ask, connect, status, until_its_end};

on_both_engines!(
    p1_heads_that_come_byte_by_byte_are_let_go,
    p3_bodies_of_sign_ins_that_never_come_are_not_waited_for,
    p1_requests_that_can_be_read_in_two_ways_are_refused,
    p1_heads_that_no_answer_may_have_are_refused,
    p1_streams_that_are_reset_at_once_end_their_connection,
    p1_streams_that_are_reset_a_few_at_a_time_are_nothing_more_than_calls,
);

/// How long a client may keep the server waiting.
const PATIENCE: [(&str, &str); 1] = [("PICLOUD_CLIENT_TIMEOUT_MS", "2000")];

fn p1_heads_that_come_byte_by_byte_are_let_go(engine: Engine) {
    let attacked = Attacked::start_with(engine, "100 slow heads", &PATIENCE);
    let noticed = attacked.during(|| {
        let mut slow: Vec<_> = (0..100).map(|_| connect(&attacked)).collect();
        for byte in b"GET" {
            for stream in &mut slow {
                let _ = stream.write_all(&[*byte]);
            }
            thread::sleep(Duration::from_secs(1));
        }
        for stream in slow {
            let answer = String::from_utf8_lossy(&until_its_end(stream)).into_owned();
            assert!(answer.is_empty() || status(&answer).as_deref() == Some("408"));
        }
    });
    noticed.is_nothing(50);
}

fn p3_bodies_of_sign_ins_that_never_come_are_not_waited_for(engine: Engine) {
    let attacked = Attacked::start_with(engine, "100 sign-ins without a body", &PATIENCE);
    let head = "POST /api/v1/auth/login HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n";
    let noticed = attacked.during(|| {
        let answers: Vec<_> = thread::scope(|scope| {
            let calls = (0..100).map(|_| scope.spawn(|| ask(&attacked, head.as_bytes())));
            let calls: Vec<_> = calls.collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        });
        let count = |is: &str| {
            let statuses = answers.iter().filter_map(|answer| status(answer));
            statuses.filter(|status| status == is).count()
        };
        let counts = (count("408"), count("429"), count("503"));
        report(format_args!("408, 429, 503: {counts:?}"));
        assert_eq!(counts.0 + counts.1 + counts.2, 100, "{answers:?}");
        assert!(counts.1 + counts.2 > 0, "guesses are counted before bodies");
    });
    noticed.is_nothing(50);
    let server = &attacked.server;
    let right = json!({ "name": "owner", "password": server.password() });
    assert_eq!(server.post("/api/v1/auth/login", &right).status, 200);
}

fn p1_requests_that_can_be_read_in_two_ways_are_refused(engine: Engine) {
    let attacked = Attacked::start_with(engine, "requests of two meanings", &PATIENCE);
    attacked.attacker().serve("s", "1");
    let hidden = "GET /version HTTP/1.1\r\nHost: h\r\n\r\n";
    let (host, length) = (format!("Host: {ATTACKER}\r\n"), hidden.len());
    let refused = [
        format!("{host}Content-Length: 0\r\nContent-Length: {length}\r\n\r\n"),
        format!("{host}Content-Length: 0, {length}\r\n\r\n"),
        format!("{host}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("Host: user@{ATTACKER}\r\n\r\n"),
        format!("{host}{host}\r\n"),
    ];
    // RFC 9112, 6.3: chunks go before a length, and nothing may follow.
    let taken = [
        format!("{host}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("{host}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
    ];
    let each = |heads: &[String], is: &str| {
        for head in heads {
            let answer = ask(
                &attacked,
                format!("POST /s HTTP/1.1\r\n{head}{hidden}").as_bytes(),
            );
            assert_eq!(status(&answer).as_deref(), Some(is), "{head}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{head}: {answer}");
        }
    };
    let noticed = attacked.during(|| {
        in_rounds(|| {
            thread::scope(|scope| {
                for _ in 0..20 {
                    scope.spawn(|| {
                        each(&refused, "400");
                        each(&taken, "200");
                    });
                }
            });
        });
    });
    noticed.is_nothing(50);
}

fn p1_heads_that_no_answer_may_have_are_refused(engine: Engine) {
    let attacked = Attacked::start(engine, "heads of answers");
    for (name, source) in [
        (
            "lines",
            r#"#{ statusCode: 200, headers: #{ a: "b\r\nset-cookie: c=d" } }"#,
        ),
        (
            "many",
            "let h = #{}; for n in 0..33000 { h[`x${n}`] = \"\"; } #{ statusCode: 200, headers: h }",
        ),
    ] {
        attacked.attacker().serve(name, source);
    }
    let noticed = attacked.during(|| {
        for (path, count) in [("/lines", 100), ("/many", 5)] {
            for answer in attacked.calls_at_once(path, count) {
                assert_eq!(answer, Ok(502), "{path}");
            }
        }
    });
    noticed.is_nothing(300);
    let request = format!("GET /lines HTTP/1.1\r\nHost: {ATTACKER}\r\nConnection: close\r\n\r\n");
    let answer = ask(&attacked, request.as_bytes());
    assert!(!answer.contains("set-cookie"), "{answer}");
}

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()];
    [head.concat().as_slice(), payload].concat()
}

/// The kinds and payloads of the frames that came.
fn frames(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, _flags, _, _, _, _, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let (payload, after) = rest.split_at(length.min(rest.len()));
        frames.push((*kind, payload));
        bytes = after;
    }
    frames
}

/// CVE-2023-44487: ask, and take back what was asked, 2,000 times, so many at once. Answers what
/// came.
fn reset(mut stream: TcpStream, at_once: usize) -> Vec<u8> {
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const END: u8 = 0x01 | 0x04;
    const CANCEL: [u8; 4] = [0, 0, 0, 8];
    // GET, http, :path and :authority by the static table's names (RFC 7541, A).
    let mut head = vec![0x82, 0x86, 0x04, 2, b'/', b's', 0x01];
    head.push(u8::try_from(ATTACKER.len()).unwrap());
    head.extend(ATTACKER.bytes());
    let mut groups = vec![b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()];
    groups[0].extend(frame(SETTINGS, 0, 0, &[]));
    let ids: Vec<u32> = (0..2_000).map(|n| 2 * n + 1).collect();
    groups.extend(ids.chunks(at_once).map(|ids| {
        let pairs = ids.iter().map(|id| {
            let (asked, taken_back) = (frame(HEADERS, END, *id, &head), &CANCEL);
            [asked, frame(RST_STREAM, 0, *id, taken_back)].concat()
        });
        pairs.collect::<Vec<_>>().concat()
    }));
    for group in groups {
        // It may be closed before all of it was taken.
        let _ = stream.write_all(&group);
        thread::sleep(Duration::from_millis(1));
    }
    until_its_end(stream)
}

/// Reset so many streams at once, on ten connections again and again; `see` sees what each was told.
fn resets(engine: Engine, name: &str, at_once: usize, see: impl Fn(&[u8]) + Sync) -> Attacked {
    let attacked = Attacked::start_with(engine, name, &PATIENCE);
    let source = "let n = 0; while n < 1000000 { n += 1; } n";
    attacked.attacker().serve("s", source);
    let noticed = attacked.during(|| {
        in_rounds(|| {
            thread::scope(|scope| {
                for _ in 0..10 {
                    scope.spawn(|| see(&reset(connect(&attacked), at_once)));
                }
            });
        });
        attacked.until_idle();
    });
    // Each that has begun holds an instance until it is over.
    noticed.is_nothing(250);
    attacked
}

fn p1_streams_that_are_reset_at_once_end_their_connection(engine: Engine) {
    const GOAWAY: u8 = 7;
    const ENHANCE_YOUR_CALM: [u8; 4] = [0, 0, 0, 11];
    let attacked = resets(engine, "streams reset at once", 2_000, |answer| {
        let why = frames(answer).into_iter().find(|(kind, _)| *kind == GOAWAY);
        // It is lost where the client still sends.
        assert!(why.is_none_or(|(_, why)| why[4..8] == ENHANCE_YOUR_CALM));
    });
    assert_eq!(attacked.attacker().executions("").len(), 0);
}

fn p1_streams_that_are_reset_a_few_at_a_time_are_nothing_more_than_calls(engine: Engine) {
    resets(engine, "streams reset ten at a time", 10, |_| {});
}
