//! The lost answer: something was done, and nobody was told. For every statement that writes, on
//! every path that writes, the answer is lost once; afterwards no row is left that nobody moves,
//! and what callers were told is what came of it.

mod cuts;
mod found_out;
mod lasting;
mod load;
mod locked;
mod mishaps;
mod refused;
mod rig;
mod soak;
mod source;
mod sqlite;
mod steps;
mod ways_in;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use picloud_tests::{Lost, Then, report};

use rig::{Rig, Told};
use source::{coverage, exempt_texts};
use steps::Step;

/// Servers that are walked side by side.
const WALKERS: usize = 6;
/// How often each step is recorded, to tell what it always executes from what is chance: what
/// shares a commit depends on what else happens at that moment.
const RECORDINGS: usize = 2;
/// How often a case's steps are driven until its statement is executed, where that is chance, and
/// where it must be.
const DRIVES: usize = 3;
const CERTAIN_DRIVES: usize = 12;
/// How long the walk may take.
const WALKED_WITHIN: Duration = Duration::from_secs(600);

/// How the renewal of leases begins, which on a slow machine any step may come to, and the step
/// that always does.
const RENEWAL: &str = "update outbox set due_at = greatest(due_at, $) where id = any";
const RENEWS: &str = "long delivery";

/// All steps.
fn steps() -> impl Iterator<Item = (&'static str, Step)> {
    steps::STEPS.into_iter().chain(mishaps::STEPS)
}

/// One answer to lose.
struct Case {
    shape: String,
    /// The steps that execute it: those that always do, or else all in which it was seen.
    steps: Vec<(&'static str, Step)>,
    /// Whether those always do.
    is_certain: bool,
    /// Whether its answer must be lost. What shares a commit is chance, a statement is not, but for
    /// what a node does by itself once a minute.
    must_be_lost: bool,
}

impl Case {
    /// The statement itself, if it is not a commit.
    fn text(&self) -> Option<&str> {
        if self.shape.starts_with("commit: ") {
            return None;
        }
        let alone = self.shape.strip_prefix("autocommitted: ");
        Some(alone.unwrap_or(&self.shape))
    }

    fn says(&self) -> String {
        let steps: Vec<_> = self.steps.iter().map(|(name, _)| *name).collect();
        format!("{}: {}", steps.join(", "), self.shape)
    }
}

/// What the walk came to.
#[derive(Default)]
struct Walked {
    lost: AtomicUsize,
    /// What had to be lost, and was not executed again.
    missed: Mutex<Vec<String>>,
    /// What was left to chance, and not executed again.
    not_met: Mutex<Vec<String>>,
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
        .filter(|statement| statement.is_part_of_a_write() && statement.error.is_none());
    Ok(wrote.map(|statement| statement.shape()).collect())
}

/// Every statement that writes, and every set of them that was committed together.
fn cases() -> Vec<Case> {
    // Recorded side by side, each on a server of its own, so that they are the same each time.
    let queue = Mutex::new(steps().enumerate().collect::<VecDeque<_>>());
    let recorded = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..WALKERS {
            scope.spawn(|| {
                let rig = Rig::start();
                loop {
                    let Some((place, (name, step))) = queue.lock().unwrap().pop_front() else {
                        return;
                    };
                    let shapes = |time| {
                        let shapes = record(&rig, step, &format!("r{place}-{time}"));
                        shapes.unwrap_or_else(|error| panic!("{name}, with nothing lost: {error}"))
                    };
                    let all: Vec<_> = (0..RECORDINGS).map(shapes).collect();
                    recorded.lock().unwrap().insert(place, (name, step, all));
                }
            });
        }
    });
    let mut known = BTreeMap::<String, Case>::new();
    for (name, step, all) in recorded.into_inner().unwrap().into_values() {
        let seen: BTreeSet<&String> = all.iter().flatten().collect();
        for shape in seen {
            let is_certain = all.iter().all(|one| one.contains(shape))
                && (!shape.contains(RENEWAL) || name == RENEWS);
            let case = known.entry(shape.clone()).or_insert_with(|| Case {
                shape: shape.clone(),
                steps: Vec::new(),
                is_certain,
                must_be_lost: false,
            });
            match (case.is_certain, is_certain) {
                // One that always does is enough.
                (true, _) if !case.steps.is_empty() => {}
                (false, true) => {
                    case.steps = vec![(name, step)];
                    case.is_certain = true;
                }
                _ => case.steps.push((name, step)),
            }
        }
    }
    let exempt = exempt_texts();
    let mut cases: Vec<Case> = known.into_values().collect();
    for case in &mut cases {
        let is_needed = case.text().is_some_and(|text| !exempt.contains(text));
        case.must_be_lost = case.is_certain || is_needed;
    }
    cases
}

/// Lose one answer while its step is driven, and compare. Says whether it was lost.
fn lose_one(rig: &Rig, case: &Case, n: usize) -> Told<bool> {
    let shape = case.shape.clone();
    let armed = rig.proxy.lose(Lost::Answer, Then::Close, move |statement| {
        statement.is_part_of_a_write() && statement.shape() == shape
    });
    let drives = match case.must_be_lost {
        true => CERTAIN_DRIVES,
        false => DRIVES,
    };
    for (drive, (name, step)) in (0..drives).zip(case.steps.iter().cycle()) {
        let driven = step(rig, &format!("n{n}-{drive}"));
        driven.map_err(|error| format!("{name}: {error}"))?;
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
    let by_chance = cases.iter().filter(|case| !case.must_be_lost).count();
    if std::env::var_os("PICLOUD_TEST_SHOW_STATEMENTS").is_some() {
        for case in &cases {
            let chance = if case.must_be_lost { "" } else { "by chance, " };
            report(format_args!("{chance}{}", case.says()));
        }
    }
    let executed = cases.iter().filter_map(Case::text).map(str::to_owned);
    let executed: BTreeSet<String> = executed.collect();
    let coverage = coverage(&executed);
    report(format_args!(
        "statements that write in the source: {} walked, {} exempt, {} missing",
        coverage.walked,
        coverage.exempt,
        coverage.missing.len()
    ));
    let queue = Mutex::new(cases.into_iter().enumerate().collect::<VecDeque<_>>());
    let walked = Walked::default();
    std::thread::scope(|scope| {
        for _ in 0..WALKERS {
            scope.spawn(|| walk(&queue, &walked));
        }
    });
    let took = begun.elapsed();
    let lost = walked.lost.into_inner();
    let [missed, not_met, failed] =
        [walked.missed, walked.not_met, walked.failed].map(|list| list.into_inner().unwrap());
    report(format_args!(
        "lost answers: {count} cases of {} statements and {} steps, {lost} answers lost, {} of {by_chance} left to chance not met, {} failed, {recorded_in:?} to record, {took:?} in all",
        executed.len(),
        steps().count(),
        not_met.len(),
        failed.len(),
    ));
    let mut problems = failed;
    problems.extend(
        missed
            .iter()
            .map(|case| format!("never executed again: {case}")),
    );
    problems.extend(coverage.missing.iter().map(|one| {
        let place = format!("{}:{}", one.file, one.line);
        format!(
            "{place}: no step comes to this, and nothing says why none has to: {}",
            one.text
        )
    }));
    if not_met.len() * 10 > count {
        problems.push(format!("chance decided too much:\n{}", not_met.join("\n")));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
    assert!(took <= WALKED_WITHIN, "it took {took:?}");
}

fn walk(queue: &Mutex<VecDeque<(usize, Case)>>, walked: &Walked) {
    let mut rig = None;
    loop {
        let Some((n, case)) = queue.lock().unwrap().pop_front() else {
            return;
        };
        let on = rig.get_or_insert_with(Rig::start);
        match lose_one(on, &case, n) {
            Ok(true) => {
                walked.lost.fetch_add(1, Ordering::Relaxed);
            }
            Ok(false) => {
                let list = match case.must_be_lost {
                    true => &walked.missed,
                    false => &walked.not_met,
                };
                list.lock().unwrap().push(case.says());
            }
            Err(error) => {
                let failed = format!("without the answer to `{}`: {error}", case.shape);
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
