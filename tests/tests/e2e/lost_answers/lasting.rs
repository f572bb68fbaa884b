//! What lasts for a while: a connection that hangs, answers that are late, and a database that
//! refuses what a healthy one allows.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use picloud_tests::{Lost, Options, Statement, Then, report};
use serde_json::json;

use super::super::stopping::{END_TAKES, GRACE};
use super::load::{settle, under_load};
use super::rig::{Listener, Rig, Told};
use super::steps::Step;
use super::{locked, steps, ways_in};

/// How long a database stays broken: longer than the most that a lease of these tests lasts, and
/// longer still in the soak.
pub(super) fn broken_for() -> Duration {
    let seconds = std::env::var("PICLOUD_TEST_BROKEN_SECS").ok();
    seconds.map_or(BROKEN, |text| {
        Duration::from_secs(text.parse().expect("seconds"))
    })
}
pub(super) const BROKEN: Duration = Duration::from_secs(8);

/// How many warnings a second may be worth in the mean, all lanes and tasks together, but for those
/// about a call.
const WARNINGS_A_SECOND: u64 = 12;
/// How soon everything must work again.
const BACK: Duration = Duration::from_secs(10);
/// How old the picture may be that a node goes by, and how long it may take to say so.
const STALE: Duration = Duration::from_secs(12);
/// What the process may need on top of twice of what it had.
pub(super) const MEMORY_SLACK_KIB: u64 = 64 * 1024;

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
            let wrote = |what: &str| one.before.iter().any(|text| text.contains(what));
            one.commits_writes() && wrote("insert into kv") && wrote("insert into outbox")
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

/// Publish at a node; answers the message's id.
fn publish(node: &Rig, n: u64, is_ephemeral: bool) -> String {
    let body = json!({ "message": { "n": n.to_string() }, "ephemeral": is_ephemeral });
    let path = "/api/v1/apps/a/topics/news/messages";
    let answer = node.call("POST", path, Some(&body)).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["message_id"].as_str().unwrap().to_owned()
}

/// What another node publishes reaches this one's stream, though something hangs here. Answers both
/// nodes, and who listens to the first.
fn hears_all(
    what: &str,
    hang: impl FnOnce(&Rig) -> Option<picloud_tests::Armed>,
) -> (Rig, Rig, Listener) {
    let rig = Rig::start();
    let other = rig.another();
    let listener = Listener::start(&rig.server);
    let reaches = |id: &str| {
        let what = format!("a message while {what} hangs");
        rig.eventually(&what, || Ok((listener.heard(id) > 0).then_some(())))
    };
    ok(reaches(&publish(&other, 0, false)));
    let armed = hang(&rig);
    let begun = Instant::now();
    for n in 1..4 {
        ok(reaches(&publish(&other, n, false)));
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
    let id = publish(&other, 4, false);
    ok(reaches(&id));
    let what = "a message on a new stream";
    ok(rig.eventually(what, || Ok((later.heard(&id) > 0).then_some(()))));
    assert!(listener.twice().is_empty(), "{:?}", listener.twice());
    (rig, other, listener)
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

/// What is durable is also looked for; what is ephemeral comes on these connections or not at all.
#[test]
fn the_connections_that_listen_may_hang() {
    const HEARS_AGAIN: Duration = Duration::from_secs(8);
    let hang = |rig: &Rig| {
        let hung = rig
            .proxy
            .black_hole(|one| one.executed("LISTEN") || one.executed("listen"));
        assert!(hung > 0, "nothing listens");
    };
    let (rig, other, listener) = hears_all("every connection that listens", |rig| {
        hang(rig);
        None
    });
    // Published until one is heard: which ones are lost is not promised.
    let hears_within = |time: Duration| {
        let (begun, mut published) = (Instant::now(), Vec::new());
        while !published.iter().any(|id: &String| listener.heard(id) > 0) {
            assert!(begun.elapsed() < time, "deaf after {time:?}");
            published.push(publish(&other, 5, true));
            std::thread::sleep(Duration::from_millis(50));
        }
        begun.elapsed()
    };
    hears_within(HEARS_AGAIN);
    hang(&rig);
    let took = hears_within(HEARS_AGAIN);
    report(format_args!(
        "every connection that listens hung: an ephemeral message is heard after {took:?}"
    ));
    assert!(took > Duration::from_millis(500), "nothing hung");
}

/// What a server was like while something was broken.
pub(super) struct Watched {
    before_kib: u64,
    most_kib: u64,
    pub(super) was_not_ready: bool,
}

impl Watched {
    /// The most memory that it had, in KiB.
    pub(super) fn most_kib(&self) -> u64 {
        self.most_kib
    }
}

/// Watch a server's memory and readiness while `breaking` does its work.
pub(super) fn watch<T>(rig: &Rig, breaking: impl FnOnce() -> T) -> (Watched, T) {
    let before_kib = rig.server.memory_kib();
    let (most, over, unready) = (
        AtomicU64::new(0),
        AtomicBool::new(false),
        AtomicBool::new(false),
    );
    let done = std::thread::scope(|scope| {
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
        let done = breaking();
        over.store(true, Ordering::Relaxed);
        done
    });
    let watched = Watched {
        before_kib,
        most_kib: most.into_inner(),
        was_not_ready: unready.into_inner(),
    };
    (watched, done)
}

/// Break something, leave it so for a while, and mend it.
pub(super) fn for_a_while(break_it: impl FnOnce(), mend_it: impl FnOnce()) -> impl FnOnce() {
    || {
        break_it();
        std::thread::sleep(broken_for());
        mend_it();
    }
}

/// Break a database for a while under load: what was accepted is run, nothing is stuck, the node
/// says that it is not ready, every way in takes calls again soon, and the memory is not filled
/// meanwhile.
pub(super) fn broken(what: &str, rig: &Rig, must_be_unready: bool, breaking: impl FnOnce()) {
    ok(ways_in::lay(rig));
    // Before it is measured, it has done everything once.
    let pause = Duration::from_secs(1);
    let logged = rig.server.log().len();
    let mut seen = None;
    let mut back = None;
    let done = under_load(&[rig], || {
        std::thread::sleep(pause);
        let (watched, mended_at) = watch(rig, || {
            breaking();
            Instant::now()
        });
        seen = Some(watched);
        ways_in::all_back(rig, mended_at)?;
        rig.until_ready()?;
        back = Some(mended_at.elapsed());
        std::thread::sleep(pause);
        Ok(mended_at)
    });
    let (ledger, listener, mended_at) = done.unwrap_or_else(|error| panic!("{what}: {error}"));
    let (seen, back) = (seen.unwrap(), back.unwrap());
    let log = rig.server.log();
    let warns_of = |line: &&str| {
        let of_call = ["picloud::http::problem: ", ": a guest's call to "];
        line.contains(" WARN ") && !of_call.iter().any(|of_call| line.contains(of_call))
    };
    let warnings = log[logged..].lines().filter(warns_of).count();
    report(format_args!(
        "{what}: ready {back:?} after, {} MiB before and {} MiB at most, {warnings} warnings, {} calls answered 502",
        seen.before_kib / 1024,
        seen.most_kib / 1024,
        rig.failed.lock().unwrap().len()
    ));
    let settled = settle(rig, &ledger, &listener, mended_at);
    assert!(settled.is_ok(), "{what}: {}", settled.unwrap_err());
    assert!(
        seen.was_not_ready || !must_be_unready,
        "it was ready all the time"
    );
    let at_most = WARNINGS_A_SECOND * broken_for().as_secs();
    assert!(warnings as u64 <= at_most, "{warnings} warnings");
    assert!(
        seen.most_kib <= 2 * seen.before_kib + MEMORY_SLACK_KIB,
        "{} KiB before and {} KiB at most",
        seen.before_kib,
        seen.most_kib
    );
}

#[test]
fn a_database_that_is_read_only_for_a_while() {
    let rig = Rig::ordinary();
    let set = |is_read_only| rig.server.make_database_read_only(is_read_only);
    let read_only = for_a_while(|| set(true), || set(false));
    broken("a read-only database", &rig, true, read_only);
}

#[test]
fn a_database_that_refuses_the_login_for_a_while() {
    let rig = Rig::ordinary();
    let set = |is_refused| rig.server.refuse_database_login(is_refused);
    let refused = for_a_while(|| set(true), || set(false));
    broken("a refused login", &rig, true, refused);
}

#[test]
fn a_database_that_allows_ten_connections_for_a_while() {
    let rig = Rig::ordinary();
    let set = |at_most| rig.server.limit_database_connections(at_most);
    let mut failed = Vec::new();
    broken("ten connections", &rig, false, || {
        set(Some(10));
        // What ran on the connections that end for that may fail.
        std::thread::sleep(Duration::from_secs(1));
        rig.failed.lock().unwrap().clear();
        std::thread::sleep(broken_for());
        failed = rig.failed.lock().unwrap().clone();
        set(None);
    });
    assert_eq!(failed, <Vec<String>>::new(), "calls answered 502");
}

/// A server's own limit for statements would be set aside by what its sessions set themselves; who may
/// end others' statements can do it to any.
#[test]
fn a_database_that_ends_statements_for_a_while() {
    let rig = Rig::ordinary();
    let end = format!(
        "do $$
        declare
            until timestamptz := clock_timestamp() + interval '{} s';
            told bigint;
        begin
            while clock_timestamp() < until loop
                perform pg_stat_clear_snapshot();
                select count(*) filter (where is_told) into told from (
                    select pg_cancel_backend(pid) as is_told from pg_stat_activity
                    where datname = current_database() and usename <> current_user
                      and state = 'active') ended;
                perform pg_sleep(0.002);
            end loop;
        end $$",
        broken_for().as_secs()
    );
    let mut ended = 0;
    broken("statements that are ended", &rig, false, || {
        rig.proxy.record();
        rig.server.sql(&end);
        let recorded = rig.proxy.recorded();
        let was_ended = |one: &&Statement| one.error.as_deref() == Some("57014");
        ended = recorded.iter().filter(was_ended).count();
    });
    report(format_args!("{ended} statements were ended"));
    // Once connecting is what is ended, nothing else is tried for a while.
    assert!(ended > 10, "hardly anything was ended");
}

/// What passes on each connection of a narrow way in a second, in bytes.
const NARROW: u64 = 20_000;

/// Write a value of this length while the way is narrow: it takes at least as long as its bytes do.
fn put_narrowly(rig: &Rig, bytes: u32) -> Told {
    let value = json!("x".repeat(bytes as usize));
    let begun = Instant::now();
    let was_taken = rig.put("plain", "long", &value)?;
    let took = begun.elapsed();
    report(format_args!("{bytes} bytes on a narrow way: {took:?}"));
    if !was_taken {
        return Err(format!("{bytes} bytes are refused on a narrow way"));
    }
    let least = Duration::from_secs(1) * bytes / NARROW as u32;
    match took > least / 2 {
        true => Ok(()),
        false => Err(format!("the way is not narrow: {took:?}")),
    }
}

#[test]
fn a_narrow_way_for_a_while() {
    let rig = Rig::start();
    let narrow = for_a_while(
        || {
            rig.proxy.limit_bandwidth(Some(NARROW));
            ok(put_narrowly(&rig, 10_000));
        },
        || rig.proxy.limit_bandwidth(None),
    );
    broken("a narrow way", &rig, false, narrow);
}

/// Make sync calls for a while, as fast as many threads can; answers how many were taken.
fn calls_without_a_pause(rig: &Rig, time: Duration) -> u64 {
    const THREADS: usize = 32;
    let begun = Instant::now();
    let call = |thread: usize| {
        let mut taken = 0;
        while begun.elapsed() < time {
            let path = format!("/sync?c=lane&n={thread}");
            let answer = rig.call("GET", &path, None).unwrap();
            assert!([200, 503].contains(&answer.status), "{}", answer.text());
            taken += u64::from(answer.status == 200);
        }
        taken
    };
    std::thread::scope(|scope| {
        let call = &call;
        let calling = (0..THREADS).map(|thread| scope.spawn(move || call(thread)));
        let calling: Vec<_> = calling.collect();
        calling.into_iter().map(|one| one.join().unwrap()).sum()
    })
}

/// One that hung for good let each answered call wait in memory until its outcome would be written.
#[test]
fn the_lane_of_what_nobody_waits_for_may_hang() {
    /// How soon the lane must have another connection.
    const REPLACED: Duration = Duration::from_secs(5);
    const LASTS: Duration = Duration::from_secs(10);
    /// What each of those calls took.
    const A_CALL_KIB: u64 = 13;
    /// What they must have taken together to be told from everything else.
    const TELLING_KIB: u64 = 24 * 1024;
    let rig = Rig::start();
    // What so many calls need at once does not count.
    calls_without_a_pause(&rig, Duration::from_secs(3));
    let before_kib = rig.server.memory_kib();
    let hung = rig
        .proxy
        .black_hole(|one| one.executed("delete from outbox"));
    assert!(hung > 0, "no connection ends deliveries");
    let (first, _) = watch(&rig, || calls_without_a_pause(&rig, REPLACED));
    let (seen, taken) = watch(&rig, || {
        let mut taken = 0;
        // A busy machine takes longer for as many as tell.
        for _ in 0..6 {
            taken += calls_without_a_pause(&rig, LASTS);
            if taken * A_CALL_KIB > TELLING_KIB {
                break;
            }
        }
        taken
    });
    let grown_kib = seen.most_kib.saturating_sub(seen.before_kib);
    report(format_args!(
        "the lane of completions black-holed: {} MiB before, {} MiB at most within {REPLACED:?}, and {} MiB more in {taken} calls after",
        before_kib / 1024,
        first.most_kib / 1024,
        grown_kib / 1024
    ));
    let leaked_kib = taken * A_CALL_KIB;
    assert!(
        leaked_kib > TELLING_KIB,
        "{taken} calls are too few to tell"
    );
    assert!(grown_kib < leaked_kib / 4, "it grew by {grown_kib} KiB");
    let at_most = 2 * before_kib + MEMORY_SLACK_KIB;
    let most = first.most_kib.max(seen.most_kib);
    assert!(
        most <= at_most,
        "{before_kib} KiB before and {most} KiB at most"
    );
    rig.server.assert_nothing_stuck();
    let abandoned = rig.abandoned().unwrap();
    assert!(abandoned.is_empty(), "{} abandoned calls", abandoned.len());
}

/// Whoever writes is served on a new connection within five seconds; two more are for a machine that
/// other tests share.
#[test]
fn every_connection_may_hang_while_new_ones_work() {
    const WORKS_AGAIN: Duration = Duration::from_secs(7);
    let rig = Rig::start();
    let mut took = None;
    let hang = || {
        let begun = Instant::now();
        assert!(rig.proxy.black_hole(|_| true) > 0);
        let is_written = || Ok(rig.put("plain", "k", &json!(1))?.then_some(()));
        ok(rig.eventually("a value to be taken", is_written));
        ok(rig.until_ready().map(drop));
        took = Some(begun.elapsed());
    };
    let hung = for_a_while(hang, || ());
    broken("every connection black-holed", &rig, false, hung);
    let took = took.unwrap();
    report(format_args!(
        "every connection black-holed: a value is written and the node ready after {took:?}"
    ));
    assert!(took < WORKS_AGAIN, "{took:?}");
}

#[test]
fn nothing_may_pass_for_a_while() {
    let rig = Rig::start();
    let hang = || assert!(rig.proxy.black_hole_all() > 0);
    let hung = for_a_while(hang, || rig.proxy.mend());
    broken("everything black-holed", &rig, true, hung);
}

#[test]
fn a_stop_ends_in_its_grace_though_nothing_passes() {
    /// `shutdown_drain_ms` as it is where nothing is set.
    const DRAIN: Duration = Duration::from_millis(500);
    let mut rig = Rig::start();
    ok(steps::async_call(&rig, "before"));
    rig.proxy.black_hole_all();
    let begun = Instant::now();
    rig.server.signal("TERM");
    let ended = rig.server.ends_within(DRAIN + GRACE + END_TAKES);
    report(format_args!(
        "a stop in a black hole: {:?}",
        begun.elapsed()
    ));
    assert!(ended, "it did not end");
}

#[test]
fn late_answers_make_nothing_run_twice() {
    // With the lease of every instance.
    let rig = Rig::start_with(15_000, Options::default());
    let late = under_load(&[&rig], || {
        std::thread::sleep(Duration::from_secs(1));
        rig.proxy.delay_answers(Duration::from_secs(1));
        std::thread::sleep(Duration::from_secs(10));
        rig.proxy.delay_answers(Duration::ZERO);
        let mended_at = Instant::now();
        std::thread::sleep(Duration::from_secs(1));
        Ok(mended_at)
    });
    let (ledger, listener, mended_at) = late.unwrap();
    ok(settle(&rig, &ledger, &listener, mended_at));
    locked::no_lease_ended(&rig);
}

/// For longer than a lease lasts: it is renewed by late answers, too.
#[test]
fn late_answers_end_no_lease() {
    const LEASE: Duration = Duration::from_secs(15);
    let rig = Rig::start_with(15_000, Options::default());
    let ran = locked::begin_to_run(&rig, LEASE + Duration::from_secs(10));
    // What is executed for the first time costs several round trips.
    let until = || rig.server.query("select due_at from outbox");
    let first = until();
    let is_renewed = || Ok((until() != first).then_some(()));
    ok(rig.eventually("a lease to be renewed", is_renewed));
    rig.proxy.delay_answers(Duration::from_secs(1));
    std::thread::sleep(LEASE + Duration::from_secs(3));
    rig.proxy.delay_answers(Duration::ZERO);
    rig.server.assert_nothing_stuck();
    assert_eq!(ran().unwrap(), 1, "runs of what lasts longer than a lease");
    locked::no_lease_ended(&rig);
}
