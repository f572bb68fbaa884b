//! What happens to streams when a read of the journal breaks.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use picloud_tests::{
    Engine, EventStream, Lost, Options, Proxy, Server, Statement, Then, report, wait_for,
};
use serde_json::json;

use super::realtime::{public, publish, ready, subscribe};
use super::realtime_faults::roomy;

/// A way to the test Postgres on which one connection dies without a word: nothing of what it asks
/// for comes any more, once it has asked for something.
struct BlackHole {
    port: u16,
    fell_in: Arc<AtomicBool>,
}

impl BlackHole {
    /// Take the first connection on which `asked` is sent.
    fn for_whoever_asks(asked: &'static [u8]) -> Self {
        let url = std::env::var("PICLOUD_TEST_POSTGRES_URL").expect("`cargo xtask test` sets it");
        let target = url
            .split(['@', '/'])
            .find(|part| part.contains(':') && !part.ends_with(':'))
            .expect("a host and a port")
            .to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let fell_in = Arc::new(AtomicBool::new(false));
        let fallen = fell_in.clone();
        std::thread::spawn(move || {
            for inside in listener.incoming().map_while(Result::ok) {
                let Ok(outside) = TcpStream::connect(&target) else {
                    continue;
                };
                let is_dead = Arc::new(AtomicBool::new(false));
                let (fallen, dead) = (fallen.clone(), is_dead.clone());
                let carry = move |mut from: TcpStream, mut to: TcpStream, asks: bool| {
                    let mut piece = [0; 16 * 1024];
                    while let Ok(length @ 1..) = from.read(&mut piece) {
                        let said = &piece[..length];
                        let asks = asks && said.windows(asked.len()).any(|part| part == asked);
                        if asks && !fallen.swap(true, Ordering::Relaxed) {
                            dead.store(true, Ordering::Relaxed);
                        }
                        if !dead.load(Ordering::Relaxed) && to.write_all(said).is_err() {
                            return;
                        }
                    }
                };
                let (from, to) = (inside.try_clone().unwrap(), outside.try_clone().unwrap());
                let there = carry.clone();
                std::thread::spawn(move || there(from, to, true));
                std::thread::spawn(move || carry(outside, inside, false));
            }
        });
        Self { port, fell_in }
    }
}

#[test]
fn a_read_of_the_journal_that_hangs_makes_nobody_deaf() {
    // What a node reads for all of its streams.
    let hole = BlackHole::for_whoever_asks(b"characters_before");
    let options = Options {
        postgres_through: Some(hole.port),
        ..roomy()
    };
    let one = Server::start_with(Engine::Postgres, options);
    public(&one.app("shop"), "a");
    let streams = [(); 2].map(|()| subscribe(&one, "/realtime/topics/a", &[]));
    streams.iter().for_each(|stream| drop(ready(stream)));
    // What is published here would be told without a read.
    let other = one.another_node(roomy());
    let app = other.known_app("shop");
    let hears = |stream: &EventStream, n: i64| assert_eq!(stream.messages(1), [n]);
    publish(&app, "a", json!(0));
    wait_for("the read", || {
        hole.fell_in.load(Ordering::Relaxed).then_some(())
    });
    // Who comes now does not depend on it either.
    let new = subscribe(&one, "/realtime/topics/a", &[]);
    ready(&new);
    let asked = Instant::now();
    publish(&app, "a", json!(1));
    streams.iter().for_each(|stream| hears(stream, 0));
    streams
        .iter()
        .chain([&new])
        .for_each(|stream| hears(stream, 1));
    report(format_args!("a hanging read cost {:?}", asked.elapsed()));
    assert!(asked.elapsed() < Duration::from_secs(10));
    for n in 2..10 {
        publish(&app, "a", json!(n));
        streams
            .iter()
            .chain([&new])
            .for_each(|stream| hears(stream, n));
    }
}

/// How long a node may not know what was written before it says so, and what it may take to.
const SAID_WITHIN: Duration = Duration::from_secs(14);
const STALE_AFTER: Duration = Duration::from_secs(10);
/// How soon everything must work again.
const BACK: Duration = Duration::from_secs(10);

/// Lose what this node asks, whenever it asks it, until it says that it cannot read the journal;
/// then let it, and see that its stream is told what was written meanwhile.
fn says_so_while(what: &str, then: Then, asks: fn(&Statement) -> bool) {
    let proxy = Proxy::start();
    let options = Options {
        postgres_through: Some(proxy.port),
        ..roomy()
    };
    let one = Server::start_with(Engine::Postgres, options);
    public(&one.app("shop"), "a");
    let stream = subscribe(&one, "/realtime/topics/a", &[]);
    ready(&stream);
    // What is published here would be told without a read.
    let other = one.another_node(roomy());
    let app = other.known_app("shop");
    publish(&app, "a", json!(0));
    assert_eq!(stream.messages(1), [0]);
    let lost = proxy.lose_each(Lost::Request, then, asks);
    let began = Instant::now();
    publish(&app, "a", json!(1));
    wait_for("the node to say so", || {
        let told = one.get("/readyz");
        let problems = told.json()["problems"].to_string();
        (told.status == 503 && problems.contains("the journal cannot be read")).then_some(())
    });
    let after = began.elapsed();
    report(format_args!(
        "{what}: said after {after:?}, {} lost",
        lost.fired()
    ));
    assert!(lost.fired() > 1, "hardly anything was lost");
    // A moment's fault is not worth a word, and the last look may be a second old.
    let at_least = STALE_AFTER - Duration::from_secs(2);
    assert!((at_least..SAID_WITHIN).contains(&after), "{after:?}");
    assert_eq!(other.get("/readyz").status, 200, "the other node reads it");
    drop(lost);
    let mended = Instant::now();
    assert_eq!(stream.messages(1), [1]);
    wait_for("readiness", || {
        (one.get("/readyz").status == 200).then_some(())
    });
    let after = mended.elapsed();
    report(format_args!("{what}: ready again after {after:?}"));
    assert!(after < BACK, "{after:?}");
    publish(&app, "a", json!(2));
    assert_eq!(stream.messages(1), [2]);
}

#[test]
fn a_node_whose_reads_of_the_journal_fail_says_so() {
    says_so_while("reads of the journal that fail", Then::Close, |one| {
        !one.writes() && one.text.contains("from journal where")
    });
}

#[test]
fn a_node_whose_reads_of_the_journal_hang_says_so() {
    says_so_while("reads of the journal that hang", Then::Hang, |one| {
        !one.writes() && one.text.contains("from journal where")
    });
}

/// Without these looks it would not know that there is something to read.
#[test]
fn a_node_that_cannot_look_how_far_the_journal_is_says_so() {
    says_so_while("looks at the journal that fail", Then::Close, |one| {
        one.text
            .contains("last_seq from channels where (app_id, topic) in")
    });
}
