//! What lasts for a while: a connection that hangs, answers that are late, and a database that
//! refuses what a healthy one allows.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use picloud_tests::{Lost, Options, Statement, Then, report};
use serde_json::json;

use super::load::{settle, under_load};
use super::rig::{Listener, Rig, Told, environment};
use super::steps;
use super::steps::Step;

/// How long a database stays broken. Longer than the most that a lease of these tests lasts.
const BROKEN: Duration = Duration::from_secs(8);
/// How soon everything must work again.
const BACK: Duration = Duration::from_secs(10);
/// How old the picture may be that a node goes by, and how long it may take to say so.
const STALE: Duration = Duration::from_secs(12);
/// What the process may need on top of twice of what it had.
const MEMORY_SLACK_KIB: u64 = 64 * 1024;

pub(super) fn ok(told: Told) {
    if let Err(error) = told {
        panic!("{error}");
    }
}

/// Drive a step while the answer to a statement never comes, on a connection that stays open.
fn hangs(name: &str, step: Step, which: fn(&Statement) -> bool) {
    let rig = Rig::start();
    ok(step(&rig, "before"));
    let armed = rig.proxy.lose(Lost::Answer, Then::Hang, which);
    let begun = Instant::now();
    let told = step(&rig, "hung");
    // What the step waited for may be seen before this is written.
    assert!(
        armed.wait(Duration::from_secs(5)),
        "the answer was not lost"
    );
    let ready = rig.until_ready();
    let settled = rig.server.until_nothing_is_stuck();
    report(format_args!(
        "no answer to {name}, and the connection open: over after {:?}",
        begun.elapsed()
    ));
    ok(told);
    ready.unwrap();
    settled.unwrap();
    ok(steps::sync_call(&rig, "after"));
    ok(steps::async_call(&rig, "after"));
}

#[test]
fn a_born_claimed_insert_may_hang() {
    hangs("a new delivery", steps::async_call, |one| {
        one.text.starts_with("insert into outbox")
    });
}

#[test]
fn a_sync_calls_insert_may_hang() {
    hangs("a new sync call", steps::sync_call, |one| {
        one.text.starts_with("insert into outbox")
    });
}

#[test]
fn a_completion_may_hang() {
    hangs("a completion", steps::async_call, |one| {
        one.text.contains("delete from outbox")
    });
}

#[test]
fn the_commit_of_a_completion_may_hang() {
    hangs("the commit of a completion", steps::keyed_call, |one| {
        one.commits_writes()
            && one
                .before
                .iter()
                .any(|text| text.contains("delete from outbox"))
    });
}

#[test]
fn a_claim_may_hang() {
    hangs("a claim", steps::retry, |one| {
        one.writes() && one.text.contains("update outbox") && one.text.contains("attempt + 1")
    });
}

#[test]
fn a_heartbeat_may_hang() {
    hangs("a heartbeat", steps::long_delivery, |one| {
        one.writes()
            && one.text.contains("update outbox")
            && one.text.contains("due_at")
            && !["attempt", "held", "blocked", "lease_owner = null"]
                .iter()
                .any(|other| one.text.contains(other))
    });
}

#[test]
fn the_commit_of_a_key_with_triggers_may_hang() {
    hangs(
        "the commit of a key's value",
        steps::key_value_store,
        |one| {
            one.commits_writes()
                && one
                    .before
                    .iter()
                    .any(|text| text.starts_with("insert into kv"))
        },
    );
}

#[test]
fn a_node_whose_picture_is_old_says_so() {
    let rig = Rig::start();
    let other = rig.another();
    let app = rig.server.known_app("a");
    app.serve("picture", "1");
    ok(other.eventually("the script", || {
        Ok((other.server.get("/picture-of").status == 404
            && other.call("GET", "/picture", None)?.text() != "")
            .then_some(()))
    }));
    let armed = rig.proxy.lose_each(Lost::Request, Then::Hang, {
        // One connection, whatever else is tried on others.
        let hung = AtomicBool::new(false);
        move |one| {
            let reads = one.text.contains("from directory_version") && !one.writes();
            reads && !hung.swap(true, Ordering::SeqCst)
        }
    });
    assert!(
        armed.wait(Duration::from_secs(10)),
        "the directory is not read"
    );
    let list = other.ask("/apps/a/scripts?name=picture").unwrap();
    let path = format!(
        "/api/v1/scripts/{}",
        list["items"][0]["id"].as_str().unwrap()
    );
    let change = json!({ "version": 1, "source": "2" });
    other.insist("PATCH", &path, Some(&change), &[409]).unwrap();
    let begun = Instant::now();
    loop {
        let answer = rig.call("GET", "/picture", None).unwrap();
        if answer.status == 200 && answer.text() == "2" {
            break;
        }
        let is_ready = rig.call("GET", "/readyz", None).unwrap().status == 200;
        assert!(
            begun.elapsed() < STALE || !is_ready,
            "{:?} after the change it serves the old script, and is ready",
            begun.elapsed()
        );
        assert!(
            begun.elapsed() < STALE + BACK,
            "it is not back: {}",
            answer.text()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    report(format_args!(
        "a directory that hung: fresh after {:?}",
        begun.elapsed()
    ));
    rig.until_ready().unwrap();
}

/// What another node publishes reaches this one's stream, though something hangs here.
fn hears_all(what: &str, hang: impl FnOnce(&Rig) -> Option<picloud_tests::Armed>) {
    let rig = Rig::start();
    let other = rig.another();
    let listener = Listener::start(&rig.server);
    let publish = |n: u64| {
        let body = json!({ "message": { "n": n.to_string() } });
        let path = "/api/v1/apps/a/topics/news/messages";
        let answer = other.call("POST", path, Some(&body)).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["message_id"].as_str().unwrap().to_owned()
    };
    let reaches = |id: &str| {
        let what = format!("a message while {what} hangs");
        rig.eventually(&what, || Ok((listener.heard(id) > 0).then_some(())))
    };
    ok(reaches(&publish(0)));
    let armed = hang(&rig);
    let begun = Instant::now();
    for n in 1..4 {
        ok(reaches(&publish(n)));
    }
    if let Some(armed) = armed {
        assert!(armed.fired() > 0, "nothing hung");
    }
    report(format_args!(
        "{what} hung: heard all after {:?}",
        begun.elapsed()
    ));
    // A stream that begins now hears, too.
    let later = Listener::start(&rig.server);
    let id = publish(4);
    ok(reaches(&id));
    let what = "a message on a new stream";
    ok(rig.eventually(what, || Ok((later.heard(&id) > 0).then_some(()))));
    assert!(listener.twice().is_empty(), "{:?}", listener.twice());
}

#[test]
fn a_read_of_the_journal_may_hang() {
    hears_all("a read of the journal", |rig| {
        let armed = rig.proxy.lose(Lost::Answer, Then::Hang, |one| {
            !one.writes() && one.text.contains("from journal where")
        });
        Some(armed)
    });
}

#[test]
fn the_connections_that_listen_may_hang() {
    hears_all("every connection that listens", |rig| {
        let hung = rig
            .proxy
            .black_hole(|one| one.executed("LISTEN") || one.executed("listen"));
        assert!(hung > 0, "nothing listens");
        None
    });
}

/// Watch a server's memory and readiness while `breaking` does its work.
struct Watched {
    before_kib: u64,
    most_kib: u64,
    was_not_ready: bool,
}

fn watch(rig: &Rig, breaking: impl FnOnce() -> Told) -> Told<Watched> {
    let before_kib = rig.server.memory_kib();
    let (most, over, unready) = (
        AtomicU64::new(0),
        AtomicBool::new(false),
        AtomicBool::new(false),
    );
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(rig.server.memory_kib(), Ordering::Relaxed);
                let is_ready = rig
                    .call("GET", "/readyz", None)
                    .is_ok_and(|ready| ready.status == 200);
                unready.fetch_or(!is_ready, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let broken = breaking();
        over.store(true, Ordering::Relaxed);
        broken
    })?;
    Ok(Watched {
        before_kib,
        most_kib: most.into_inner(),
        was_not_ready: unready.into_inner(),
    })
}

/// Break a database for a while under load: what was accepted is run, nothing is stuck, the node
/// says that it is not ready, is back soon, and does not fill the memory meanwhile.
pub(super) fn broken(
    what: &str,
    rig: &Rig,
    must_be_unready: bool,
    break_it: impl FnOnce(),
    mend_it: impl FnOnce(),
) {
    // Before it is measured, it has done everything once.
    let pause = Duration::from_secs(1);
    let mut seen = None;
    let mut back = None;
    let done = under_load(&[rig], || {
        std::thread::sleep(pause);
        let watched = watch(rig, || {
            break_it();
            std::thread::sleep(BROKEN);
            mend_it();
            Ok(())
        })?;
        seen = Some(watched);
        back = Some(rig.until_ready()?);
        std::thread::sleep(pause);
        Ok(())
    });
    let (ledger, listener) = done.unwrap_or_else(|error| panic!("{what}: {error}"));
    let (seen, back) = (seen.unwrap(), back.unwrap());
    report(format_args!(
        "{what}: ready {back:?} after, {} MiB before and {} MiB at most",
        seen.before_kib / 1024,
        seen.most_kib / 1024
    ));
    let settled = settle(rig, &ledger, &listener);
    assert!(settled.is_ok(), "{what}: {}", settled.unwrap_err());
    assert!(
        seen.was_not_ready || !must_be_unready,
        "it was ready all the time"
    );
    assert!(
        seen.most_kib <= 2 * seen.before_kib + MEMORY_SLACK_KIB,
        "{} KiB before and {} KiB at most",
        seen.before_kib,
        seen.most_kib
    );
}

pub(super) fn ordinary() -> Rig {
    Rig::start_with(Options {
        environment: environment(super::rig::LEASE_MS),
        ordinary_role: true,
        ..Options::default()
    })
}

#[test]
fn a_database_that_is_read_only_for_a_while() {
    let rig = ordinary();
    let set = |is_read_only| rig.server.make_database_read_only(is_read_only);
    broken(
        "a read-only database",
        &rig,
        true,
        || set(true),
        || set(false),
    );
}

#[test]
fn a_database_that_refuses_the_login_for_a_while() {
    let rig = ordinary();
    let set = |is_refused| rig.server.refuse_database_login(is_refused);
    broken("a refused login", &rig, true, || set(true), || set(false));
}

#[test]
fn a_database_that_allows_ten_connections_for_a_while() {
    let rig = ordinary();
    let set = |at_most| rig.server.limit_database_connections(at_most);
    broken(
        "ten connections",
        &rig,
        false,
        || set(Some(10)),
        || set(None),
    );
}

#[test]
fn a_database_that_ends_statements_for_a_while() {
    let rig = ordinary();
    let set = |at_most| rig.server.limit_database_statements(at_most);
    let short = Some(Duration::from_millis(1));
    broken(
        "a short statement_timeout",
        &rig,
        false,
        || set(short),
        || set(None),
    );
}

#[test]
fn the_lane_of_what_nobody_waits_for_may_hang() {
    let rig = Rig::start();
    let hang = || {
        let hung = rig
            .proxy
            .black_hole(|one| one.executed("delete from outbox"));
        assert!(hung > 0, "no connection ends deliveries");
    };
    broken(
        "the lane of completions black-holed",
        &rig,
        false,
        hang,
        || (),
    );
}

#[test]
fn every_connection_may_hang_while_new_ones_work() {
    let rig = Rig::start();
    let hang = || assert!(rig.proxy.black_hole(|_| true) > 0);
    broken("every connection black-holed", &rig, false, hang, || ());
}

#[test]
fn nothing_may_pass_for_a_while() {
    let rig = Rig::start();
    let hang = || assert!(rig.proxy.black_hole_all() > 0);
    broken("everything black-holed", &rig, true, hang, || {
        rig.proxy.mend()
    });
}

#[test]
fn a_stop_ends_in_its_grace_though_nothing_passes() {
    let mut rig = Rig::start();
    ok(steps::async_call(&rig, "before"));
    rig.proxy.black_hole_all();
    let begun = Instant::now();
    rig.server.signal("TERM");
    // The grace of these servers is two seconds; what comes after it may take as long again.
    let ended = rig.server.ends_within(Duration::from_secs(8));
    report(format_args!(
        "a stop in a black hole: {:?}",
        begun.elapsed()
    ));
    assert!(ended, "it did not end");
}

#[test]
fn late_answers_make_nothing_run_twice() {
    // With the lease of every instance.
    let rig = Rig::start_with(Options {
        environment: environment(15_000),
        ..Options::default()
    });
    let late = under_load(&[&rig], || {
        std::thread::sleep(Duration::from_secs(1));
        rig.proxy.delay_answers(Duration::from_secs(1));
        std::thread::sleep(Duration::from_secs(10));
        rig.proxy.delay_answers(Duration::ZERO);
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    });
    let (ledger, listener) = late.unwrap();
    ok(settle(&rig, &ledger, &listener));
    let reclaimed = rig.server.metric("picloud_leases_reclaimed_total");
    let refused = rig.server.metric("picloud_completions_refused_total");
    assert_eq!(
        (reclaimed, refused),
        (0.0, 0.0),
        "leases that ended while they were held"
    );
}
