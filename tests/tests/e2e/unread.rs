//! Answers that nobody reads: how much of them a node holds, and for how long.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use picloud_tests::{App, Engine, Options, Server, on_both_engines, report, wait_for};
use serde_json::json;
use socket2::{Domain, Socket, Type};

on_both_engines!(
    answers_that_nobody_reads_are_held_within_the_budget,
    answers_at_once_that_nobody_reads_are_held_as_their_guests_memory,
    lists_that_nobody_reads_are_held_within_the_budget,
    an_answer_that_is_not_read_ends_its_connection_also_where_its_client_lives,
);

const MIB: f64 = (1 << 20) as f64;
/// What one answer has.
const ANSWER_BYTES: f64 = 8.0 * MIB;

/// Ask, and read no more than how the answer begins.
fn begin(server: &Server, head: &str) -> (String, TcpStream) {
    let address = server.url.trim_start_matches("http://");
    let address: SocketAddr = address.parse().unwrap();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    // What the kernel takes is not held by the server.
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&address.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let mut begins = [0; 1024];
    let mut length = 0;
    while !begins[..length].windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut begins[length..]).unwrap();
        assert!(read > 0, "the connection ended");
        length += read;
    }
    (
        String::from_utf8_lossy(&begins[..length]).into_owned(),
        stream,
    )
}

/// A request of somebody of their own.
fn from(n: usize, path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nx-forwarded-for: 10.0.{n}.1\r\n{more}\r\n")
}

fn status(head: &str) -> &str {
    head.split(' ').nth(1).unwrap_or_default()
}

fn start(engine: Engine, more: &[(&'static str, &str)]) -> Server {
    let settings = [
        ("PICLOUD_TRUSTED_PROXIES", "127.0.0.1"),
        ("PICLOUD_BODIES_BYTES_MAX", "256MiB"),
        // What is not read ends by itself, but not here.
        ("PICLOUD_CLIENT_TIMEOUT_MS", "600000"),
    ];
    Server::start_with(engine, Options::with(&[&settings, more].concat()))
}

fn app<'s>(server: &'s Server, slug: &str) -> App<'s> {
    let app = server.app(slug);
    let hosts = json!({ "hosts": [format!("{slug}.test")] });
    let given = server.api("PATCH", &format!("/apps/{slug}"), Some(hosts));
    assert_eq!(given.status, 200, "{}", given.text());
    app
}

fn large(app: &App<'_>) {
    app.script_with(
        "large",
        r#"let s = "0123456789abcdef"; while s.len() < 8_000_000 { s += s; } s"#,
        json!({ "output_bytes": 32 << 20 }),
    );
    app.route("large", "GET /large");
}

fn answers_that_nobody_reads_are_held_within_the_budget(engine: Engine) {
    let server = start(engine, &[]);
    let (attacker, neighbour) = (app(&server, "attacker"), app(&server, "neighbour"));
    large(&attacker);
    neighbour.serve("small", "1");
    let ask = |n: usize| begin(&server, &from(n, "/large", "host: attacker.test\r\n"));
    let mut open = Vec::new();
    let mut answered = 0;
    for n in 0..60 {
        let (head, stream) = ask(n);
        match status(&head) {
            "200" => answered += 1,
            status => {
                assert_eq!(status, "503", "{head}");
                assert!(head.to_lowercase().contains("retry-after: 1"), "{head}");
            }
        }
        open.push(stream);
    }
    // Half of 256 MiB is the app's: 16 of them.
    assert_eq!(answered, 16);
    let held = server.metric("picloud_bodies_bytes");
    report(format_args!(
        "{} MiB are held, of which 128 are the app's",
        held / MIB
    ));
    assert!(
        (128.0 * MIB..128.0 * MIB + ANSWER_BYTES).contains(&held),
        "{held}"
    );
    let headers = [("host", "neighbour.test"), ("x-forwarded-for", "10.1.1.1")];
    for _ in 0..20 {
        assert_eq!(server.call("POST", "/small", &headers, None).status, 200);
    }
    drop(open);
    wait_for("all to be given back", || {
        (server.metric("picloud_bodies_bytes") == 0.0).then_some(())
    });
    assert_eq!(status(&ask(0).0), "200");
}

/// All of them are let in before the first has answered.
fn answers_at_once_that_nobody_reads_are_held_as_their_guests_memory(engine: Engine) {
    let server = start(engine, &[("PICLOUD_GUEST_MEMORY_BYTES", "256MiB")]);
    let (attacker, neighbour) = (app(&server, "attacker"), app(&server, "neighbour"));
    large(&attacker);
    neighbour.serve("small", "1");
    let ask = |n: usize| begin(&server, &from(n, "/large", "host: attacker.test\r\n"));
    let open: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..100).map(|n| scope.spawn(move || ask(n))).collect();
        asked
            .into_iter()
            .map(|asked| asked.join().unwrap())
            .collect()
    });
    let answered = open
        .iter()
        .filter(|(head, _)| status(head) == "200")
        .count();
    let held = server.metric("picloud_bodies_bytes");
    let of_guests = server.metric("picloud_guest_memory_bytes");
    report(format_args!(
        "{answered} of 100 are answered, {} MiB held, {} MiB as memory of guests",
        held / MIB,
        of_guests / MIB
    ));
    // Three quarters of 256 MiB are one app's.
    assert!((1..=24).contains(&answered), "{answered}");
    assert!(held <= 192.0 * MIB && of_guests <= 192.0 * MIB);
    let headers = [("host", "neighbour.test"), ("x-forwarded-for", "10.1.1.1")];
    assert_eq!(server.call("POST", "/small", &headers, None).status, 200);
    drop(open);
    wait_for("all to be given back", || {
        let left = ["picloud_bodies_bytes", "picloud_guest_memory_bytes"];
        left.iter()
            .all(|name| server.metric(name) == 0.0)
            .then_some(())
    });
}

fn lists_that_nobody_reads_are_held_within_the_budget(engine: Engine) {
    let server = start(engine, &[]);
    let app = app(&server, "shop");
    let value = "x".repeat(1_000_000);
    for n in 0..4 {
        app.set("things", &format!("k{n}"), json!(value));
    }
    let more = format!(
        "host: admin.test\r\nauthorization: Bearer {}\r\n",
        server.token
    );
    let ask = |n: usize| begin(&server, &from(n, "/api/v1/apps/shop/kv/things", &more));
    let mut open = Vec::new();
    let mut answered = 0;
    for _ in 0..40 {
        let (head, stream) = ask(7);
        assert!(["200", "503"].contains(&status(&head)), "{head}");
        answered += usize::from(status(&head) == "200");
        open.push(stream);
    }
    // A quarter of 256 MiB is the address's: 16 or 17 of some 4 MB.
    assert!((16..=18).contains(&answered), "{answered}");
    let held = server.metric("picloud_bodies_bytes");
    assert!((64.0 * MIB..70.0 * MIB).contains(&held), "{held}");
    assert_eq!(status(&ask(8).0), "200", "another address has its own");
    drop(open);
    wait_for("all to be given back", || {
        (server.metric("picloud_bodies_bytes") == 0.0).then_some(())
    });
}

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Over HTTP/2 a client may take nothing of an answer and be alive all the same.
fn an_answer_that_is_not_read_ends_its_connection_also_where_its_client_lives(engine: Engine) {
    let settings = [("PICLOUD_CLIENT_TIMEOUT_MS", "2000")];
    let server = Server::start_with(engine, Options::with(&settings));
    let app = server.app("a");
    app.script(
        "large",
        r#"let s = "0123456789abcdef"; while s.len() < 1_000_000 { s += s; } s"#,
    );
    app.route("large", "GET /l");
    let address = server.url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).unwrap();
    let mut said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS_INITIAL_WINDOW_SIZE is 0.
    said.extend(frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]));
    // GET, http, :path and :authority as they are (RFC 7541, 6.2.2).
    let head = [&[0x82, 0x86, 0x04, 2][..], b"/l", &[0x01, 1], b"h"].concat();
    said.extend(frame(1, 0x5, 1, &head));
    stream.write_all(&said).unwrap();
    wait_for("its execution", || {
        (!app.executions("limit=1").is_empty()).then_some(())
    });
    assert!(server.metric("picloud_bodies_bytes") >= MIB);
    let began = Instant::now();
    stream
        .set_read_timeout(Some(Duration::from_secs(15)))
        .unwrap();
    let mut rest = Vec::new();
    // It is asked whether it lives 20 seconds after it came, and no sooner.
    let ended = stream.read_to_end(&mut rest);
    let is_open = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!is_open, "still open after {:?}", began.elapsed());
    wait_for("all to be given back", || {
        (server.metric("picloud_bodies_bytes") == 0.0).then_some(())
    });
    assert_eq!(server.metric("picloud_answers_unread_total"), 1.0);
}
