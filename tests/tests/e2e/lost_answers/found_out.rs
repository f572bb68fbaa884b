//! The truth about a lost answer is found out before anybody is told: where the database stays
//! there, whoever waits hears what was done, and never that it is not known.

use std::time::{Duration, Instant};

use picloud_tests::{Answer, Lost, Statement, Then, report};
use serde_json::json;

use super::lasting::ok;
use super::rig::{Rig, Told};

/// For how long a call is repeated until its answer is the one that is lost.
const DRIVEN: Duration = Duration::from_secs(20);

/// Call again and again until an answer to `which` was lost. Each call must be answered with this
/// status, the one behind the loss no less; answers its number.
fn drive(
    rig: &Rig,
    what: &str,
    which: fn(&Statement) -> bool,
    status: u16,
    pause: Duration,
    call: impl Fn(usize) -> Told<Answer>,
) -> usize {
    let armed = rig.proxy.lose(Lost::Answer, Then::Close, which);
    let begun = Instant::now();
    for n in 0.. {
        let called = Instant::now();
        let answer = call(n).unwrap();
        let took = called.elapsed();
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
        if armed.fired() > 0 {
            report(format_args!("{what} was lost: {status} after {took:?}"));
            let lost = rig.server.metric("picloud_store_answers_lost_total");
            assert!(lost >= 1.0, "{what}: {lost} lost answers are counted");
            return n;
        }
        assert!(begun.elapsed() < DRIVEN, "{what}: it was not executed");
        std::thread::sleep(pause);
    }
    unreachable!("calls without end")
}

fn wrote(one: &Statement, what: &str) -> bool {
    one.before.iter().any(|text| text.contains(what))
}

/// How often the app's scripts ran for this kind of invocation.
fn runs(rig: &Rig, kind: &str) -> Option<String> {
    let query = format!(
        "select count(*) from executions where invocation_type = '{kind}'
         and app_id = (select id from apps where slug = 'a')"
    );
    rig.server.query(&query)[0][0].clone()
}

#[test]
fn a_value_whose_commit_is_not_acknowledged_is_written_and_said_to_be() {
    let rig = Rig::start();
    let put = |n: usize| {
        let path = format!("/api/v1/apps/a/kv/things/found-{n}");
        rig.call("PUT", &path, Some(&json!(n)))
    };
    let which = |one: &Statement| {
        one.commits_writes() && wrote(one, "insert into kv") && wrote(one, "insert into outbox")
    };
    let n = drive(
        &rig,
        "the commit of a value",
        which,
        204,
        Duration::ZERO,
        put,
    );
    assert_eq!(rig.kv("things", &format!("found-{n}")).unwrap(), n);
    let heard = format!("things-found-{n}-insert");
    ok(rig.eventually("its trigger", || {
        Ok((rig.kv("heard", &heard)? == true).then_some(()))
    }));
    rig.server.assert_nothing_stuck();
    // Written twice, it would have been heard twice.
    assert_eq!(runs(&rig, "kv"), Some(format!("{}", n + 1)));
}

/// The row of an async call is there once, and its script ran once.
fn ran_once(rig: &Rig, n: usize) {
    let key = format!("found-{n}");
    ok(rig.eventually("the call to run", || {
        Ok((rig.kv("found", &key)? != json!(null)).then_some(()))
    }));
    rig.server.assert_nothing_stuck();
    assert_eq!(rig.kv("found", &key).unwrap(), 1);
    assert_eq!(runs(rig, "http_async"), Some(format!("{}", n + 1)));
}

fn async_call(rig: &Rig, n: usize) -> Told<Answer> {
    rig.call("POST", &format!("/async?c=found&n=found-{n}"), None)
}

#[test]
fn a_call_whose_commit_is_not_acknowledged_is_accepted() {
    let rig = Rig::start();
    let which = |one: &Statement| one.commits_writes() && wrote(one, "insert into outbox (");
    // Where nothing was written for a second, the clock is read with the transaction's beginning.
    let pause = Duration::from_millis(1_100);
    let what = "the commit of a new delivery";
    let n = drive(&rig, what, which, 202, pause, |n| async_call(&rig, n));
    ran_once(&rig, n);
}

#[test]
fn a_call_whose_only_statement_is_not_acknowledged_is_accepted() {
    let rig = Rig::start();
    let which =
        |one: &Statement| !one.in_transaction && one.text.starts_with("insert into outbox (");
    let what = "the only statement of a new delivery";
    let pause = Duration::ZERO;
    let n = drive(&rig, what, which, 202, pause, |n| async_call(&rig, n));
    ran_once(&rig, n);
}
