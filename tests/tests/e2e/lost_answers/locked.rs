//! Somebody locks a table for a while, as a migration does or a hand in `psql`: what needs it waits,
//! and neither fills the memory nor keeps the rest from its leases.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use picloud_tests::{Lost, Then, report, wait_for};
use serde_json::json;

use super::lasting::{MEMORY_SLACK_KIB, broken, broken_for, ok, watch};
use super::rig::{LEASE_MS, Rig, Told, accepted};

/// Begin a delivery that takes this long; answers how to ask how often it was begun.
pub(super) fn begin_to_run(rig: &Rig, takes: Duration) -> impl Fn() -> Told<i64> + '_ {
    let app = rig.server.known_app("a");
    let source = r#"let c = kv::collection("lasting"); let known = c.get("n");
                    c.set("n", if known == () { 1 } else { known + 1 }); sleep(SECONDS)"#;
    let source = source.replace("SECONDS", &format!("{:?}", takes.as_secs_f64()));
    app.script_with("lasting", &source, json!({ "timeout_ms": 60_000 }));
    app.route_with(
        "lasting",
        "POST /lasting",
        json!({ "dispatch_mode": "async" }),
    );
    let answer = rig.call("POST", "/lasting", None).unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());
    let begun = || Ok(rig.kv("lasting", "n")?.as_i64().unwrap_or(0));
    let has_begun = || Ok((begun()? == 1).then_some(()));
    ok(rig.eventually("a delivery to begin", has_begun));
    begun
}

/// No lease of this node has ended while it was held.
pub(super) fn no_lease_ended(rig: &Rig) {
    let metrics = [
        "picloud_leases_reclaimed_total",
        "picloud_completions_refused_total",
    ];
    let ended = metrics.map(|name| rig.server.metric(name));
    assert_eq!(ended, [0.0, 0.0], "leases that ended while they were held");
}

/// Lock values under a load of which the most waits for it.
fn locked(what: &str, rig: &Rig, must_be_unready: bool) {
    const THREADS: usize = 32;
    let over = AtomicBool::new(false);
    let call = |thread: usize| {
        for n in 0.. {
            if over.load(Ordering::Relaxed) {
                break;
            }
            let (method, path, status) = match n % 2 {
                0 => ("POST", "/async", 202),
                _ => ("GET", "/sync", 200),
            };
            let answer = rig.call(method, &format!("{path}?c=more&n={thread}-{n}"), None);
            match answer.and_then(|answer| accepted(&answer, status)) {
                Ok(true) => {}
                // What is accepted meanwhile is to be run in time: who is refused comes again as told.
                Ok(false) => std::thread::sleep(Duration::from_secs(1)),
                Err(odd) => panic!("{odd}"),
            }
        }
    };
    broken(what, rig, must_be_unready, || {
        let lock = rig.server.lock("kv");
        std::thread::scope(|scope| {
            let call = &call;
            (0..THREADS).for_each(|thread| drop(scope.spawn(move || call(thread))));
            std::thread::sleep(broken_for());
            over.store(true, Ordering::Relaxed);
            drop(lock);
        });
    });
}

#[test]
fn values_that_are_locked_for_a_while() {
    locked("locked values", &Rig::start(), true);
}

/// Nothing waits for the lock, and whatever came next would.
#[test]
fn a_node_is_not_ready_while_a_table_is_locked_that_calls_need() {
    let rig = Rig::start();
    let ready = || rig.call("GET", "/readyz", None).unwrap();
    for table in ["kv", "outbox", "executions", "secrets", "journal"] {
        let lock = rig.server.lock(table);
        let said = wait_for("a node to say that a table is locked", || {
            Some(ready()).filter(|answer| answer.status == 503)
        });
        assert!(said.text().contains("unavailable"), "{}", said.text());
        drop(lock);
        rig.until_ready().unwrap();
    }
    // What does not touch them goes on.
    let _lock = rig.server.lock("audit");
    ok(super::steps::sync_call(&rig, "beside"));
    assert_eq!(ready().status, 200);
}

/// Each call that waits for a lock has an instance, and its memory: new ones are refused at once.
#[test]
fn calls_are_refused_while_the_values_that_they_read_are_locked() {
    /// Some hundred a second.
    const EACH: Duration = Duration::from_millis(4);
    /// After this long a lock is known of.
    const KNOWN: Duration = Duration::from_secs(2);
    const REFUSED_WITHIN: Duration = Duration::from_secs(2);
    let rig = Rig::start();
    let app = rig.server.known_app("a");
    app.script("reads", r#"kv::collection("c").get("k")"#);
    app.route("reads", "GET /reads");
    app.route_with("reads", "POST /reads", json!({ "dispatch_mode": "async" }));
    assert_eq!(rig.call("GET", "/reads", None).unwrap().status, 200);
    let before_kib = rig.server.memory_kib();
    let lock = rig.server.lock("kv");
    let begun = Instant::now();
    let (seen, answers) = watch(&rig, || {
        std::thread::scope(|scope| {
            let mut calls = Vec::new();
            while begun.elapsed() < broken_for() {
                let rig = &rig;
                calls.push(scope.spawn(move || {
                    let since = begun.elapsed();
                    let answer = rig.call("GET", "/reads", None).unwrap();
                    (since, begun.elapsed() - since, answer)
                }));
                std::thread::sleep(EACH);
            }
            let accepted = rig.call("POST", "/reads", None).unwrap();
            assert_eq!(accepted.status, 202, "{}", accepted.text());
            calls
                .into_iter()
                .map(|call| call.join().unwrap())
                .collect::<Vec<_>>()
        })
    });
    drop(lock);
    let later: Vec<_> = answers.iter().filter(|one| one.0 > KNOWN).collect();
    let most_kib = seen.most_kib();
    report(format_args!(
        "{} calls while the values were locked, {} of them refused: {} MiB before and {} MiB at most",
        answers.len(),
        answers.iter().filter(|one| one.2.status == 503).count(),
        before_kib / 1024,
        most_kib / 1024,
    ));
    assert!(later.len() > 100, "{} calls", later.len());
    for (_, took, answer) in later {
        assert_eq!(answer.status_in_an_outage(), 503, "{}", answer.text());
        assert!(*took < REFUSED_WITHIN, "refused after {took:?}");
    }
    assert!(seen.was_not_ready, "it was ready all the time");
    assert!(
        most_kib <= 2 * before_kib + MEMORY_SLACK_KIB,
        "{before_kib} KiB before and {most_kib} KiB at most"
    );
    rig.until_ready().unwrap();
    let read = || rig.call("GET", "/reads", None).map(|answer| answer.status);
    ok(rig.eventually("a read", || Ok((read()? == 200).then_some(()))));
    rig.server.assert_nothing_stuck();
}

#[test]
fn a_file_of_sqlite_that_is_locked_for_a_while() {
    locked("a locked file", &Rig::on_sqlite(None), true);
}

/// Longer than a transaction may take: what waits is cut off, and the connection is replaced.
#[test]
fn values_that_are_locked_for_longer_than_a_transaction_may_take() {
    const LASTS: Duration = Duration::from_secs(35);
    // So many that each lane of keys has one that waits, whatever the app's id is.
    const WRITERS: usize = 48;
    const JOBS: usize = 20;
    let rig = Rig::start();
    let lock = rig.server.lock("kv");
    let begun = Instant::now();
    let mut told = Vec::new();
    std::thread::scope(|scope| {
        let writing = (0..WRITERS).map(|n| {
            let (server, path) = (&rig.server, format!("/apps/a/kv/plain/k{n}"));
            scope.spawn(move || server.api("PUT", &path, Some(json!(n))))
        });
        let writing: Vec<_> = writing.collect();
        for n in 0..JOBS {
            let answer = rig.call("POST", &format!("/async?c=waited&n={n}"), None);
            assert_eq!(answer.unwrap().status, 202);
        }
        let waiting = || std::thread::sleep(LASTS.saturating_sub(begun.elapsed()));
        let (seen, ()) = watch(&rig, waiting);
        assert!(seen.was_not_ready, "it was ready all the time");
        drop(lock);
        let answers = writing.into_iter().map(|one| one.join().unwrap());
        told.extend(answers.map(|answer| accepted(&answer, 204).unwrap()));
    });
    let back = rig.until_ready().unwrap();
    let taken = told.iter().filter(|was_taken| **was_taken).count();
    report(format_args!(
        "values locked for {LASTS:?}: {taken} of {WRITERS} written, ready {back:?} after"
    ));
    rig.server.assert_nothing_stuck();
    for (n, _) in told.iter().enumerate().filter(|(_, was_taken)| **was_taken) {
        assert_eq!(rig.kv("plain", &format!("k{n}")).unwrap(), n);
    }
    for n in 0..JOBS {
        let ran = || Ok((rig.kv("waited", &n.to_string())?.as_i64() >= Some(1)).then_some(()));
        ok(rig.eventually("what was accepted", ran));
    }
    assert!(rig.put("plain", "after", &json!(1)).unwrap());
    let log = rig.server.log();
    assert!(log.contains("and was cut off"), "nothing was cut off");
    assert!(!log.contains("the store is closed"), "{log}");
}

/// A node does not take from itself what it works on.
#[test]
fn a_node_whose_leases_are_not_renewed_in_time_does_not_claim_what_it_holds() {
    let rig = Rig::start();
    let lease = Duration::from_millis(LEASE_MS);
    // What renews leases says first that the node lives.
    let armed = rig.proxy.lose_each(Lost::Request, Then::Hang, |one| {
        one.text.contains("pg_try_advisory_lock")
    });
    assert!(armed.wait(Duration::from_secs(10)), "no lease is renewed");
    let long = begin_to_run(&rig, 4 * lease);
    let done = || Ok((rig.server.rows("outbox") == 0).then_some(()));
    let begun = Instant::now();
    while begun.elapsed() < 4 * lease {
        assert_eq!(long().unwrap(), 1, "runs after {:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(100));
    }
    ok(rig.eventually("the end of what was held", done));
    assert_eq!(long().unwrap(), 1);
    assert!(armed.fired() > 1, "the leases were renewed");
    no_lease_ended(&rig);
}

/// No outcome can be written, and no lease ends for that: each delivery runs once.
#[test]
fn leases_are_renewed_while_executions_are_locked_for_longer() {
    const DELIVERIES: u32 = 20;
    let rig = Rig::start();
    let lease = Duration::from_millis(LEASE_MS);
    let long = begin_to_run(&rig, 2 * lease);
    let lock = rig.server.lock("executions");
    let begun = Instant::now();
    for n in 0..DELIVERIES {
        let path = format!("/async?c=locked&n={n}");
        let answer = rig.call("POST", &path, None).unwrap();
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    std::thread::sleep((3 * lease).saturating_sub(begun.elapsed()));
    let waiting = rig.server.rows("outbox");
    drop(lock);
    report(format_args!("{waiting} outcomes waited for a lock"));
    assert!(waiting > 1, "nothing waited for the lock");
    rig.server.assert_nothing_stuck();
    assert_eq!(long().unwrap(), 1, "runs of the long one");
    for n in 0..DELIVERIES {
        assert_eq!(rig.kv("locked", &n.to_string()).unwrap(), 1, "runs of {n}");
    }
    no_lease_ended(&rig);
}
