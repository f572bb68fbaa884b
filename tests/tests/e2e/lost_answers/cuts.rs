//! The way to the database is cut as a whole, again and again, and while much is being written.

use std::time::{Duration, Instant};

use picloud_tests::{report, wait_for};
use serde_json::json;

use super::lasting::{broken, broken_for};
use super::rig::Rig;

#[test]
fn a_way_that_is_cut_again_and_again() {
    const CUT_FOR: Duration = Duration::from_millis(100);
    const MENDED_FOR: Duration = Duration::from_millis(900);
    let rig = Rig::start();
    let mut cuts = 0;
    broken("cut again and again", &rig, false, || {
        let begun = Instant::now();
        while begun.elapsed() < broken_for() {
            rig.proxy.cut();
            std::thread::sleep(CUT_FOR);
            rig.proxy.mend();
            std::thread::sleep(MENDED_FOR);
            cuts += 1;
        }
    });
    report(format_args!("cut {cuts} times"));
    assert!(cuts > 4, "it was cut {cuts} times");
}

/// What was to be written together is tried one by one, but not any more once the database is away.
#[test]
fn many_writes_that_are_cut_off_ask_for_few_connections() {
    const WRITES: usize = 256;
    const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
    let rig = Rig::start();
    let waiting = |mode: &str| {
        let locks = "select 1 from pg_locks where relation = 'kv'::regclass and not granted";
        wait_for("who waits for the lock", || {
            let found = rig.server.query(&format!("{locks} and mode = '{mode}'"));
            (!found.is_empty()).then_some(())
        });
    };
    let lock = rig.server.lock("kv");
    std::thread::scope(|scope| {
        let write = |n: usize| rig.put("plain", &format!("k{n}"), &json!(n));
        let writing = (0..WRITES).map(|n| scope.spawn(move || write(n)));
        let writing: Vec<_> = writing.collect();
        wait_for("all to be there", || {
            (rig.server.metric("picloud_connections") > WRITES as f64).then_some(())
        });
        waiting("RowExclusiveLock");
        // The first ones pass, and the rest is one group, which waits for the next lock.
        let next = scope.spawn(|| rig.server.lock("kv"));
        waiting("AccessExclusiveLock");
        drop(lock);
        let next = next.join().unwrap();
        waiting("RowExclusiveLock");
        let before = rig.proxy.tried();
        rig.proxy.cut();
        let cut = Instant::now();
        let taken = writing.into_iter().map(|one| one.join().unwrap().unwrap());
        let taken = taken.filter(|was_taken| *was_taken).count();
        let (took, tried) = (cut.elapsed(), rig.proxy.tried() - before);
        drop(next);
        rig.proxy.mend();
        report(format_args!(
            "{WRITES} writes, {taken} taken before the cut: the rest was refused after {took:?} and \
             {tried} tries to connect"
        ));
        assert!(took < ANSWERED_WITHIN, "{took:?}");
        assert!(taken < WRITES / 2, "{taken} were written before the cut");
        assert!(tried < WRITES / 4, "{tried} tries to connect");
    });
    rig.until_ready().unwrap();
    rig.server.assert_nothing_stuck();
}
