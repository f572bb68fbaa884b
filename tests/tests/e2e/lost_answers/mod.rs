//! The lost answer: something was done, and nobody was told. For every statement that writes, on
//! every path that writes, the answer is lost once; afterwards no row is left that nobody moves,
//! and what callers were told is what came of it.

mod lasting;
mod load;
mod refused;
mod rig;
mod soak;
mod steps;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use picloud_tests::{Lost, Then, report};

use rig::{Rig, Told};
use steps::{STEPS, Step};

/// Servers that are walked side by side.
const WALKERS: usize = 4;
/// How often each step is recorded, to tell what it always executes from what is chance: what
/// shares a commit depends on what else happens at that moment.
const RECORDINGS: usize = 2;
/// How often a step is driven until its statement is executed, where that is chance, and where every
/// recording had it: two rows may have met in a commit in each of them.
const DRIVES: usize = 3;
const CERTAIN_DRIVES: usize = 12;

/// How the renewal of leases begins, which on a slow machine any step may come to, and the step
/// that always does.
const RENEWAL: &str = "update outbox set due_at = $ where id = any";
const RENEWS: &str = "long delivery";

/// One answer to lose.
#[derive(Clone)]
struct Case {
    name: &'static str,
    step: Step,
    shape: String,
    /// Whether the step executes it each time.
    is_certain: bool,
}

/// What the walk came to.
#[derive(Default)]
struct Walked {
    lost: AtomicUsize,
    missed: Mutex<Vec<String>>,
    failed: Mutex<Vec<String>>,
}

/// The shapes of the statements that write which a step executes, until nothing runs any more.
fn record(rig: &Rig, step: Step, n: &str) -> Told<BTreeSet<String>> {
    rig.proxy.record();
    step(rig, n)?;
    rig.server.until_nothing_is_stuck()?;
    // The last answers are still being read.
    std::thread::sleep(Duration::from_millis(100));
    let recorded = rig.proxy.recorded();
    let wrote = recorded
        .iter()
        .filter(|statement| statement.is_part_of_a_write() && !statement.failed);
    Ok(wrote.map(|statement| statement.shape()).collect())
}

/// Every statement that writes, each with the first step that executes it.
fn cases() -> Vec<Case> {
    // Recorded side by side, each on a server of its own, so that they are the same each time.
    let steps = Mutex::new(STEPS.iter().enumerate().collect::<VecDeque<_>>());
    let recorded = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..WALKERS {
            scope.spawn(|| {
                let rig = Rig::start();
                loop {
                    let Some((place, (name, step))) = steps.lock().unwrap().pop_front() else {
                        return;
                    };
                    let shapes = |time| {
                        let shapes = record(&rig, *step, &format!("r{place}-{time}"));
                        shapes.unwrap_or_else(|error| panic!("{name}, with nothing lost: {error}"))
                    };
                    let all: Vec<_> = (0..RECORDINGS).map(shapes).collect();
                    recorded.lock().unwrap().insert(place, all);
                }
            });
        }
    });
    let recorded = recorded.into_inner().unwrap();
    let mut known = BTreeMap::<String, Case>::new();
    for (place, all) in &recorded {
        let (name, step) = STEPS[*place];
        for shape in all.iter().flatten() {
            let case = Case {
                name,
                step,
                shape: shape.clone(),
                is_certain: all.iter().all(|one| one.contains(shape))
                    && (!shape.contains(RENEWAL) || name == RENEWS),
            };
            let before = known.entry(shape.clone()).or_insert_with(|| case.clone());
            if case.is_certain && !before.is_certain {
                *before = case;
            }
        }
    }
    known.into_values().collect()
}

/// Lose one answer while its step is driven, and compare. Says whether it was lost.
fn lose_one(rig: &Rig, case: &Case, n: usize) -> Told<bool> {
    let shape = case.shape.clone();
    let armed = rig.proxy.lose(Lost::Answer, Then::Close, move |statement| {
        statement.is_part_of_a_write() && statement.shape() == shape
    });
    let drives = match case.is_certain {
        true => CERTAIN_DRIVES,
        false => DRIVES,
    };
    for drive in 0..drives {
        (case.step)(rig, &format!("n{n}-{drive}"))?;
        rig.server.until_nothing_is_stuck()?;
        if armed.fired() > 0 {
            break;
        }
    }
    let was_lost = armed.fired() > 0;
    drop(armed);
    rig.until_ready()?;
    Ok(was_lost)
}

#[test]
fn the_answer_to_every_statement_that_writes_is_lost_once() {
    let begun = Instant::now();
    let cases = cases();
    let recorded_in = begun.elapsed();
    let count = cases.len();
    if std::env::var_os("PICLOUD_TEST_SHOW_STATEMENTS").is_some() {
        for case in &cases {
            report(format_args!("{}: {}", case.name, case.shape));
        }
    }
    let queue = Mutex::new(cases.into_iter().enumerate().collect::<VecDeque<_>>());
    let walked = Walked::default();
    std::thread::scope(|scope| {
        for _ in 0..WALKERS {
            scope.spawn(|| walk(&queue, &walked));
        }
    });
    let lost = walked.lost.into_inner();
    let (missed, failed) = (
        walked.missed.into_inner().unwrap(),
        walked.failed.into_inner().unwrap(),
    );
    report(format_args!(
        "lost answers: {count} statements of {} steps, {lost} answers lost, {} failed, {:?} to record, {:?} in all",
        STEPS.len(),
        failed.len(),
        recorded_in,
        begun.elapsed()
    ));
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    assert!(
        missed.is_empty(),
        "never executed again:\n{}",
        missed.join("\n")
    );
    assert!(lost > 0, "nothing was lost");
}

fn walk(queue: &Mutex<VecDeque<(usize, Case)>>, walked: &Walked) {
    let mut rig = None;
    loop {
        let Some((n, case)) = queue.lock().unwrap().pop_front() else {
            return;
        };
        let Case { name, shape, .. } = &case;
        let on = rig.get_or_insert_with(Rig::start);
        match lose_one(on, &case, n) {
            Ok(true) => {
                walked.lost.fetch_add(1, Ordering::Relaxed);
            }
            Ok(false) if case.is_certain => {
                let missed = format!("{name}: {shape}");
                walked.missed.lock().unwrap().push(missed);
            }
            Ok(false) => {}
            Err(error) => {
                let failed = format!("{name}, without the answer to `{shape}`: {error}");
                walked.failed.lock().unwrap().push(failed);
                // What is stuck on it would fail the next ones, too.
                rig = None;
            }
        }
    }
}

/// The release at a stop is one more statement; it takes a process with it.
#[test]
fn a_stop_whose_release_is_not_acknowledged_leaves_nothing() {
    let mut rig = Rig::start();
    // Longer than the grace of a stop.
    let answer = rig.call("POST", "/slow?s=5.0&n=stopped", None).unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());
    // What gives leases back, whatever it looks like; nothing else does while nothing fails.
    let armed = rig.proxy.lose(Lost::Answer, Then::Close, |statement| {
        let gives_back =
            |text: &str| text.contains("outbox") && text.contains("lease_owner = null");
        statement.writes() && gives_back(&statement.text)
    });
    let begun = Instant::now();
    rig.server.signal("TERM");
    let ended = rig.server.ends_within(Duration::from_secs(10));
    let took = begun.elapsed();
    report(format_args!(
        "stopped in {took:?}, {} answers lost",
        armed.fired()
    ));
    assert!(ended, "it did not end");
    assert!(armed.fired() > 0, "nothing was lost");
    drop(armed);
    rig.server.launch();
    rig.eventually("the delivery that was cut off", || {
        Ok((rig.kv("slow", "stopped")? == true).then_some(()))
    })
    .unwrap();
    rig.server.assert_nothing_stuck();
}
