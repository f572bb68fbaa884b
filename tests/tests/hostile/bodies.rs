//! Attacks by bodies that are large, slow, or never end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use picloud_tests::{Engine, on_both_engines};

use crate::neighbour::{ATTACKER, Attacked};
use crate::wire::{connect, status};

on_both_engines!(p3_bodies_that_do_not_end_take_no_more_than_they_may);

/// Send all but the last byte of a body, as far as it is taken. Answers the status that came, if one
/// did, and the connection.
fn begin(attacked: &Attacked, host: &str, path: &str, bytes: usize) -> (Option<String>, TcpStream) {
    let mut stream = connect(attacked);
    // A body that is taken is waited for, and not answered: what is refused is refused before.
    stream
        .set_read_timeout(Some(Duration::from_millis(400)))
        .unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {bytes}\r\n\r\n"
    );
    let sent = stream.write_all(head.as_bytes());
    let sent = sent.and_then(|()| stream.write_all(&vec![b' '; bytes - 1]));
    let _ = sent;
    let mut answer = [0; 64];
    let read = stream.read(&mut answer).unwrap_or_default();
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    (status(&answer), stream)
}

fn p3_bodies_that_do_not_end_take_no_more_than_they_may(engine: Engine) {
    let attacked = Attacked::start(engine, "bodies that do not end");
    attacked.attacker().serve("s", "1");
    let noticed = attacked.during(|| {
        let mut open = Vec::new();
        let mut refused = 0;
        for _ in 0..60 {
            let (status, stream) = begin(&attacked, ATTACKER, "/s", 4 << 20);
            refused += usize::from(status.as_deref() == Some("503"));
            open.push(stream);
        }
        // A quarter of 256 MiB is 16 of them.
        assert!((40..=50).contains(&refused), "{refused} of 60");
        let mut large = 0;
        for _ in 0..60 {
            let (status, stream) = begin(&attacked, "x", "/api/v1/auth/login", 20 << 20);
            large += usize::from(status.as_deref() == Some("413"));
            open.push(stream);
        }
        // After some of them even that is not looked at.
        assert!((20..=60).contains(&large), "{large} of 60");
    });
    noticed.is_nothing(200);
    let (status, mut stream) = begin(&attacked, ATTACKER, "/s", 4 << 20);
    assert_eq!(status, None, "all is given back");
    stream.write_all(b"1").unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut answer = [0; 64];
    let read = stream.read(&mut answer).unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 200"), "{answer:?}");
}
