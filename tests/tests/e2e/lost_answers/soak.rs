//! Several nodes on one database: answers lost at random under load, and order while nodes die and
//! freeze.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use picloud_tests::{Lost, Then, nth, report};
use serde_json::json;

use super::load::{settle, under_load};
use super::rig::{LEASE_MS, Rig, Told, accepted};
use super::steps::{in_order, seen};

/// How many answers are lost under load, unless `PICLOUD_TEST_LOST_ANSWERS` says more: `cargo
/// xtask soak` does.
const LOSSES: u64 = 20;

/// Numbers that look random and are the same each time for a seed (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

fn random_losses(nodes: usize) {
    let losses = number("PICLOUD_TEST_LOST_ANSWERS").unwrap_or(LOSSES);
    let seed = number("PICLOUD_TEST_SEED").unwrap_or(u64::from(std::process::id()) | 1 << 40);
    let mut random = Random(seed);
    let first = Rig::start();
    let others: Vec<Rig> = (1..nodes).map(|_| first.another()).collect();
    let all: Vec<&Rig> = std::iter::once(&first).chain(&others).collect();
    let begun = Instant::now();
    let mut lost = 0;
    let done = under_load(&all, || {
        for _ in 0..losses {
            let node = all[usize::try_from(random.below(nodes as u64)).unwrap_or(0)];
            let what = match random.below(8) {
                0 => Lost::Request,
                _ => Lost::Answer,
            };
            let then = match random.below(4) {
                0 => Then::Hang,
                _ => Then::Close,
            };
            let skip = usize::try_from(random.below(20)).unwrap_or(0) + 1;
            let which = nth(skip, |statement| statement.is_part_of_a_write());
            let armed = node.proxy.lose(what, then, which);
            armed.wait(Duration::from_secs(5));
            lost += armed.fired();
        }
        Ok(Instant::now())
    });
    let took = begun.elapsed();
    let (ledger, listener, mended_at) = done.unwrap();
    report(format_args!(
        "seed {seed}, {nodes} nodes: {lost} of {losses} answers lost in {took:?}, {} calls taken, {} refused",
        ledger.taken(),
        ledger.refused
    ));
    assert!(lost > 0, "nothing was lost");
    for node in &all {
        node.until_ready().unwrap();
    }
    let settled = settle(&first, &ledger, &listener, mended_at);
    assert!(settled.is_ok(), "seed {seed}: {}", settled.unwrap_err());
}

#[test]
fn answers_lost_at_random_on_one_node() {
    random_losses(1);
}

#[test]
fn answers_lost_at_random_on_two_nodes() {
    random_losses(2);
}

#[test]
fn answers_lost_at_random_on_four_nodes() {
    random_losses(4);
}

/// Write to ordered keys, each value after the answer to the one before, until it is over. A write
/// whose outcome is not known may come late: its key is left for another.
fn write_in_order(nodes: &[&Rig], writer: usize, over: &AtomicBool) -> Vec<(String, Vec<i64>)> {
    let mut keys = vec![(format!("w{writer}-0"), Vec::new())];
    for turn in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let node = nodes[(writer + turn) % nodes.len()];
        let (key, written) = keys.last_mut().expect("one at least");
        let value = i64::try_from(turn).unwrap_or(i64::MAX);
        let path = format!("/api/v1/apps/a/kv/ordered/{key}");
        let authorization = format!("Bearer {}", node.server.token);
        let headers = [("authorization", &*authorization)];
        let body = json!(value).to_string();
        // Not as long as a frozen node takes.
        let time = Duration::from_secs(2);
        let answer = node
            .server
            .call_within(time, "PUT", &path, &headers, Some(body.as_bytes()));
        match answer {
            Ok(answer) if accepted(&answer, 204) == Ok(true) => written.push(value),
            _ => keys.push((format!("w{writer}-{}", turn + 1), Vec::new())),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    keys
}

#[test]
fn order_holds_while_nodes_die_and_freeze() {
    const WRITERS: usize = 16;
    let first = Rig::start();
    let mut killed = first.another();
    let (frozen, last) = (first.another(), first.another());
    let over = AtomicBool::new(false);
    let pid = killed.server.pid().to_string();
    let worker = killed.worker().unwrap();
    // It dies in the middle of something.
    let slow = killed.call("POST", "/slow?s=1.0&n=died", None).unwrap();
    assert_eq!(slow.status, 202, "{}", slow.text());
    let leases = format!("select count(*) from outbox where lease_owner = '{worker}'");
    let leases = || first.server.query(&leases)[0][0].clone();
    assert_ne!(leases().as_deref(), Some("0"));
    let keys = std::thread::scope(|scope| {
        let (over, all) = (&over, [&first, &killed, &frozen, &last]);
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| scope.spawn(move || write_in_order(&all, writer, over)))
            .collect();
        std::thread::sleep(Duration::from_millis(700));
        let kill = std::process::Command::new("kill")
            .args(["-9", &pid])
            .status();
        assert!(kill.unwrap().success());
        let died = Instant::now();
        let what = "a dead node's work to be taken over";
        let taken_over =
            first.eventually(
                what,
                || Ok((leases().as_deref() == Some("0")).then_some(())),
            );
        report(format_args!(
            "a dead node's work was taken over after {:?}",
            died.elapsed()
        ));
        frozen.server.signal("STOP");
        std::thread::sleep(Duration::from_millis(2 * LEASE_MS));
        frozen.server.signal("CONT");
        std::thread::sleep(Duration::from_millis(1_500));
        over.store(true, Ordering::Relaxed);
        taken_over.unwrap();
        let keys = writers
            .into_iter()
            .flat_map(|writer| writer.join().unwrap());
        keys.collect::<Vec<_>>()
    });
    killed.server.kill();
    first.server.assert_nothing_stuck();
    let written: usize = keys.iter().map(|(_, written)| written.len()).sum();
    report(format_args!(
        "{written} values on {} ordered keys, a node killed and one frozen",
        keys.len()
    ));
    assert!(written > WRITERS, "hardly anything was written");
    let begun = Instant::now();
    for (key, written) in &keys {
        let all: Told<Vec<i64>> = first.eventually(&format!("the values of key {key}"), || {
            let seen = seen(&first, key)?;
            Ok(written
                .iter()
                .all(|value| seen.contains(value))
                .then_some(seen))
        });
        in_order(key, &all.unwrap()).unwrap();
        assert!(begun.elapsed() < 3 * first.settled(), "it takes too long");
    }
}
