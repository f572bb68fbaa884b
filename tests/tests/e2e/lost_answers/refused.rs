//! A database that refuses for a while, in ways that have no name of their own, and a session that
//! ends again and again. Nothing of an outcome may be left out for that.

use std::time::{Duration, Instant};

use picloud_tests::report;
use serde_json::json;

use super::lasting::{broken, for_a_while, ok, watch};
use super::load::{settle, under_load};
use super::rig::Rig;
use super::steps;

/// The key of the advisory lock that shows that a node lives.
const ALIVE_CLASS: u32 = 1_885_954_924;

/// Refuse under load.
fn refuses(what: &str, set: impl Fn(&Rig, bool)) {
    let rig = Rig::ordinary();
    let refused = for_a_while(|| set(&rig, false), || set(&rig, true));
    broken(what, &rig, true, refused);
    ok(steps::keyed_call(&rig, "after"));
    ok(steps::key_value_store(&rig, "after"));
}

#[test]
fn a_database_that_takes_no_connections_for_a_while() {
    refuses("a database without connections", |rig, is_allowed| {
        rig.server.allow_database_connections(is_allowed);
    });
}

#[test]
fn an_outbox_that_may_not_be_written_for_a_while() {
    refuses("no right to write the outbox", |rig, is_allowed| {
        rig.server.allow_writes_to("outbox", is_allowed);
    });
}

#[test]
fn executions_that_may_not_be_written_for_a_while() {
    refuses("no right to write executions", |rig, is_allowed| {
        rig.server.allow_writes_to("executions", is_allowed);
    });
}

/// A node that may have no more makes do with ten: it asks for no eleventh.
#[test]
fn a_node_that_is_started_where_ten_connections_are_allowed() {
    const ALLOWED: u32 = 10;
    let mut rig = Rig::ordinary();
    rig.server.stop();
    rig.server.limit_database_connections(Some(ALLOWED));
    let logged = rig.server.log().len();
    rig.server.launch();
    let mut was_ready = false;
    let told = under_load(&[&rig], || {
        let (seen, ()) = watch(&rig, || std::thread::sleep(Duration::from_secs(5)));
        was_ready = !seen.was_not_ready;
        Ok(Instant::now())
    });
    let (ledger, listener, ended_at) = told.unwrap();
    ok(settle(&rig, &ledger, &listener, ended_at));
    assert!(was_ready, "it was not ready all the time");
    assert_eq!(ledger.refused, 0, "calls that were refused");
    let log = rig.server.log();
    let log = &log[logged..];
    assert!(!log.contains("cannot be reached"), "{log}");
    report(format_args!(
        "started with {ALLOWED} connections: {} calls taken, none refused",
        ledger.taken()
    ));
}

/// Another node takes over what a node has leased whose session has ended, though the node lives.
#[test]
fn the_session_that_shows_a_nodes_life_ends_again_and_again() {
    let rig = Rig::start();
    let other = rig.another();
    let end = format!(
        "select pg_terminate_backend(pid) from pg_locks
         where locktype = 'advisory' and classid = {ALIVE_CLASS} and granted
           and database = (select oid from pg_database where datname = current_database())"
    );
    let mut ended = 0;
    let told = under_load(&[&rig, &other], || {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(8) {
            ended += rig.server.query(&end).len();
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Instant::now())
    });
    assert!(ended > 2, "{ended} sessions were ended");
    report(format_args!(
        "{ended} sessions that show a node's life ended"
    ));
    let (ledger, listener, mended_at) = told.unwrap();
    ok(settle(&rig, &ledger, &listener, mended_at));
}

/// A call whose outcome cannot be written is answered all the same, in its time.
#[test]
fn a_keyed_call_is_answered_though_its_outcome_cannot_be_written() {
    let rig = Rig::start();
    let app = rig.server.known_app("a");
    app.script_with("brief", "sleep(1.0); 1", json!({ "timeout_ms": 2_000 }));
    app.route_with(
        "brief",
        "POST /brief",
        json!({ "idempotency": { "ttl_s": 600 } }),
    );
    let answer = std::thread::scope(|scope| {
        let calling = scope.spawn(|| {
            let begun = Instant::now();
            let headers = [("idempotency-key", "k")];
            let within = Duration::from_secs(60);
            let answer = rig
                .server
                .call_within(within, "POST", "/brief", &headers, None);
            (answer, begun.elapsed())
        });
        ok(rig.eventually("the call to run", || {
            let begun = rig
                .server
                .query("select 1 from outbox where reply_to is not null");
            Ok((!begun.is_empty()).then_some(()))
        }));
        rig.proxy.black_hole_all();
        let answered = calling.join().unwrap();
        rig.proxy.mend();
        answered
    });
    let (answer, took) = answer;
    let answer = answer.expect("an answer");
    report(format_args!("{} after {took:?}", answer.status));
    // Whoever has an answer may rely on its being known; this one is not.
    assert!([503, 504].contains(&answer.status), "{}", answer.text());
    assert!(took < Duration::from_secs(15), "{took:?}");
    ok(rig.until_ready().map(drop));
    let settled = rig.server.until_nothing_is_stuck();
    assert!(settled.is_ok(), "{settled:?}");
}
