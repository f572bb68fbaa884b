//! Calls of all kinds from several threads, and a ledger of what they were told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use picloud_tests::report;
use serde_json::{Value, json};

use super::rig::{Listener, Rig, Told, accepted};
use super::steps::in_order;

/// How many call at once.
const THREADS: usize = 6;
/// How many kinds of calls there are.
const KINDS: usize = 6;

/// What callers were told.
#[derive(Default)]
pub(super) struct Ledger {
    /// Sync calls that were answered, and their executions.
    answered: BTreeMap<String, String>,
    /// Async calls that were accepted.
    accepted: BTreeSet<String>,
    /// Calls with a key and what they were answered, if it was an answer.
    keyed: BTreeMap<String, Option<Vec<u8>>>,
    /// Values that were written, which a trigger hears.
    written: Vec<String>,
    /// The values of ordered keys that were written.
    ordered: BTreeMap<String, Vec<i64>>,
    /// Messages that were published.
    published: Vec<String>,
    /// How many calls the server refused.
    pub(super) refused: usize,
    /// Calls that were not answered, or not as they may be.
    odd: Vec<String>,
}

impl Ledger {
    fn absorb(&mut self, other: Self) {
        self.answered.extend(other.answered);
        self.accepted.extend(other.accepted);
        self.keyed.extend(other.keyed);
        self.written.extend(other.written);
        self.ordered.extend(other.ordered);
        self.published.extend(other.published);
        self.refused += other.refused;
        self.odd.extend(other.odd);
    }

    /// How many calls were taken.
    pub(super) fn taken(&self) -> usize {
        let keyed = self.keyed.values().flatten().count();
        let ordered: usize = self.ordered.values().map(Vec::len).sum();
        let plain = self.answered.len() + self.accepted.len() + self.written.len();
        plain + keyed + ordered + self.published.len()
    }
}

/// Call all of `nodes` in turn until `breaking` has done its work, which says since when nothing is
/// broken any more; answers what the callers were told, what a stream heard meanwhile, and since when.
pub(super) fn under_load(
    nodes: &[&Rig],
    breaking: impl FnOnce() -> Told<Instant>,
) -> Told<(Ledger, Listener, Instant)> {
    let over = AtomicBool::new(false);
    let listener = Listener::start(&nodes[nodes.len() - 1].server);
    let (ledger, broken) = std::thread::scope(|scope| {
        let over = &over;
        let callers: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || call_until(nodes, thread, over)))
            .collect();
        let broken = breaking();
        over.store(true, Ordering::Relaxed);
        let mut ledger = Ledger::default();
        for caller in callers {
            ledger.absorb(caller.join().unwrap());
        }
        (ledger, broken)
    });
    Ok((ledger, listener, broken?))
}

fn call_until(nodes: &[&Rig], thread: usize, over: &AtomicBool) -> Ledger {
    let mut ledger = Ledger::default();
    for turn in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        // Each kind of call at each node.
        let node = nodes[(turn / KINDS + thread) % nodes.len()];
        if let Err(odd) = call_one(node, thread, turn, &mut ledger) {
            ledger.odd.push(odd);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    ledger
}

fn call_one(node: &Rig, thread: usize, turn: usize, ledger: &mut Ledger) -> Told {
    let n = format!("{thread}-{turn}");
    // Each thread something else at a time: all of them could be waiting for the same.
    let was_taken = match (turn + thread) % KINDS {
        0 => {
            let answer = node.call("GET", &format!("/sync?c=sync&n={n}"), None)?;
            accepted(&answer, 200)? && {
                let id = answer.headers["x-execution-id"]
                    .to_str()
                    .unwrap_or_default();
                ledger.answered.insert(n, id.to_owned());
                true
            }
        }
        1 => {
            let answer = node.call("POST", &format!("/async?c=async&n={n}"), None)?;
            accepted(&answer, 202)? && ledger.accepted.insert(n)
        }
        2 => {
            let path = format!("/keyed?c=keyed&n={n}");
            let key = [("idempotency-key", &*n)];
            let answer = node.send("POST", &path, &key, None);
            let answer = answer.inspect_err(|_| {
                ledger.keyed.insert(n.clone(), None);
            })?;
            let was_taken = accepted(&answer, 200)?;
            ledger.keyed.insert(n, was_taken.then_some(answer.bytes));
            was_taken
        }
        3 => {
            node.put("things", &n, &json!(turn))? && {
                ledger.written.push(n);
                true
            }
        }
        4 => {
            // A key for each thread, and another one once a write was not acknowledged: it may
            // come late, which would be taken for a mistake in the order.
            let next = |turn: usize| format!("{thread}-{turn:06}");
            let known = ledger.ordered.keys().next_back().cloned();
            let key = known.unwrap_or_else(|| next(turn));
            let value = i64::try_from(turn).unwrap_or(i64::MAX);
            let written = node.put("ordered", &key, &json!(value));
            match &written {
                Ok(true) => ledger.ordered.entry(key).or_default().push(value),
                _ => {
                    ledger.ordered.insert(next(turn + 1), Vec::new());
                }
            }
            written?
        }
        _ => {
            let body = json!({ "message": { "n": n } });
            let path = "/api/v1/apps/a/topics/news/messages";
            let answer = node.call("POST", path, Some(&body))?;
            accepted(&answer, 200)? && {
                let id = answer.json()["message_id"].clone();
                ledger.published.extend(id.as_str().map(str::to_owned));
                true
            }
        }
    };
    ledger.refused += usize::from(!was_taken);
    Ok(())
}

/// Every entry of a collection.
fn entries(rig: &Rig, collection: &str) -> Told<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    let mut cursor = String::new();
    loop {
        let page = rig.ask(&format!("/apps/a/kv/{collection}?limit=200{cursor}"))?;
        for item in page["items"].as_array().into_iter().flatten() {
            let key = item["key"].as_str().unwrap_or_default().to_owned();
            found.insert(key, item["value"].clone());
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(found),
        }
    }
}

/// Wait until nothing is stuck, and compare what callers were told with what came of it: all of it
/// within one lease and five seconds of `since`.
pub(super) fn settle(rig: &Rig, ledger: &Ledger, listener: &Listener, since: Instant) -> Told {
    rig.server.until_nothing_is_stuck()?;
    let settled = since.elapsed();
    report(format_args!(
        "{} taken, {} refused, settled {settled:?} after",
        ledger.taken(),
        ledger.refused
    ));
    if settled > rig.settled() {
        return Err(format!("something was stuck for {settled:?}"));
    }
    if !ledger.odd.is_empty() {
        let odd = &ledger.odd[..ledger.odd.len().min(5)];
        let count = ledger.odd.len();
        return Err(format!("{count} calls went wrong: {}", odd.join("; ")));
    }
    if ledger.taken() == 0 {
        return Err("nothing was taken".to_owned());
    }
    let sync = entries(rig, "sync")?;
    if let Some((n, _)) = ledger
        .answered
        .iter()
        .find(|(n, _)| sync.get(*n) != Some(&json!(1)))
    {
        let count = sync.get(n);
        return Err(format!(
            "sync call {n} was answered 200 and ran {count:?} times"
        ));
    }
    while let Err(error) = none_is_abandoned(rig, ledger) {
        let waited = since.elapsed();
        report(format_args!("after {waited:?}: {error}"));
        if waited > rig.settled() {
            return Err(format!("after {waited:?}: {error}"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    for id in ledger.answered.values() {
        let outcome = rig.ask(&format!("/executions/{id}"))?["outcome"].take();
        if outcome != "answered" {
            return Err(format!(
                "sync call {id} was answered 200, and its execution is {outcome}"
            ));
        }
    }
    settle_keys(rig, ledger)?;
    while let Err(error) = all_came(rig, ledger, listener) {
        let waited = since.elapsed();
        if waited > rig.settled() {
            return Err(format!("after {waited:?}: {error}"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    match listener.twice() {
        twice if twice.is_empty() => Ok(()),
        twice => Err(format!("messages that a stream heard twice: {twice:?}")),
    }
}

/// A call whose outcome could not be written within its lease is recorded as abandoned, until it can.
fn none_is_abandoned(rig: &Rig, ledger: &Ledger) -> Told {
    let abandoned: BTreeSet<_> = rig.abandoned()?.into_iter().collect();
    let both = ledger
        .answered
        .iter()
        .filter(|(_, id)| abandoned.contains(*id));
    let both: Vec<_> = both.map(|(n, _)| n).collect();
    match both.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "sync calls that were answered 200 and are recorded as abandoned: {both:?}"
        )),
    }
}

fn settle_keys(rig: &Rig, ledger: &Ledger) -> Told {
    for (n, first) in &ledger.keyed {
        let path = format!("/keyed?c=keyed&n={n}");
        let again = rig.send("POST", &path, &[("idempotency-key", n)], None)?;
        let is_right = match first {
            Some(first) => again.status == 200 && again.bytes == *first,
            // Whatever it is, it is over.
            None => {
                again.status < 500
                    && !(again.status == 409 && again.problem() == "idempotency_in_progress")
                    || again.status == 502
            }
        };
        if !is_right {
            let text = again.text();
            return Err(format!(
                "call {n} with a key, answered {first:?}, then {}: {text}",
                again.status
            ));
        }
    }
    Ok(())
}

/// Whether what was accepted has run, and was heard. A delivery that failed meanwhile is due again.
fn all_came(rig: &Rig, ledger: &Ledger, listener: &Listener) -> Told {
    let ran = entries(rig, "async")?;
    let accepted = ledger.accepted.iter();
    let lost: Vec<_> = accepted.filter(|n| !ran.contains_key(*n)).collect();
    if !lost.is_empty() {
        return Err(format!("accepted and never ran: {lost:?}"));
    }
    let heard = entries(rig, "heard")?;
    let silent = ledger
        .written
        .iter()
        .filter(|n| !heard.contains_key(&format!("things-{n}-insert")));
    let silent: Vec<_> = silent.collect();
    if !silent.is_empty() {
        return Err(format!("written, and no trigger heard it: {silent:?}"));
    }
    let order = entries(rig, "order")?;
    for (key, written) in &ledger.ordered {
        let seen = order
            .get(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let seen: Vec<i64> = seen.filter_map(Value::as_i64).collect();
        in_order(key, &seen)?;
        if let Some(missing) = written.iter().find(|value| !seen.contains(value)) {
            return Err(format!(
                "{missing} of ordered key {key} was never seen: {seen:?}"
            ));
        }
    }
    let missed = ledger.published.iter().filter(|id| listener.heard(id) == 0);
    match missed.count() {
        0 => Ok(()),
        count => Err(format!(
            "{count} messages that were published did not reach a stream"
        )),
    }
}
