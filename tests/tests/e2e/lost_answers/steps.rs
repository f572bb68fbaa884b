//! One step for each path that writes: it drives the path, and compares what it was told with what
//! came of it. What the server refuses may have been done; what it takes must have been.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::mishaps::{pausable, until_no_app};
use super::rig::{Listener, Rig, Told, accepted};

/// Drives a path once; the text makes what it writes its own.
pub(super) type Step = fn(&Rig, &str) -> Told;

/// Every path that writes, but for [what goes wrong](super::mishaps).
pub(super) const STEPS: [(&str, Step); 22] = [
    // First, so that what a node does by itself is known as that.
    ("idle", idle),
    ("sync call", sync_call),
    ("sync calls at once", calls_at_once),
    ("call with a key", keyed_call),
    ("async call", async_call),
    ("async calls in a row", calls_in_a_row),
    ("retry", retry),
    ("long delivery", long_delivery),
    ("dead letter", dead_letter),
    ("replay", replay),
    ("resolve", resolve),
    ("bulk replay and resolve", bulk),
    ("key-value store", key_value_store),
    ("key that nothing hears", plain_key),
    ("key with two triggers", key_with_two_triggers),
    ("ordered key", ordered_key),
    ("publish", publish),
    ("messages at once", messages_at_once),
    ("import", import),
    ("script", script),
    ("pause and resume", pause_and_resume),
    ("session and sweep", session_and_sweep),
];

/// Longer than what a node does by itself takes to come round, but for what it does each minute.
fn idle(_: &Rig, _: &str) -> Told {
    std::thread::sleep(Duration::from_millis(5_500));
    Ok(())
}

fn is_once(rig: &Rig, collection: &str, n: &str) -> Told {
    let count = rig.kv(collection, n)?;
    match count == 1 {
        true => Ok(()),
        false => Err(format!(
            "{collection} {n} was answered 200 and ran {count} times"
        )),
    }
}

pub(super) fn sync_call(rig: &Rig, n: &str) -> Told {
    let answer = rig.call("GET", &format!("/sync?c=sync&n={n}"), None)?;
    if !accepted(&answer, 200)? {
        return Ok(());
    }
    is_once(rig, "sync", n)?;
    let id = answer.headers["x-execution-id"]
        .to_str()
        .unwrap_or_default();
    // What becomes of it is written after its answer.
    rig.eventually("the end of an answered call", || {
        let known = rig.ask(&format!("/executions/{id}"))?;
        Ok((known["outcome"] == "answered").then_some(()))
    })?;
    match rig.abandoned()?.iter().any(|abandoned| abandoned == id) {
        true => Err(format!(
            "sync call {n} was answered 200 and is recorded as abandoned"
        )),
        false => Ok(()),
    }
}

/// What becomes of several is written together.
fn calls_at_once(rig: &Rig, n: &str) -> Told {
    std::thread::scope(|scope| {
        let call = |call| scope.spawn(move || sync_call(rig, &format!("{n}-{call}")));
        let calls = [0, 1, 2, 3, 4, 5, 6, 7].map(call);
        let told = calls.map(|call| call.join().expect("it says what it saw"));
        told.into_iter().collect()
    })
}

pub(super) fn keyed_call(rig: &Rig, n: &str) -> Told {
    let path = format!("/keyed?c=keyed&n={n}");
    let call = || rig.send("POST", &path, &[("idempotency-key", n)], None);
    let first = call()?;
    let was_taken = accepted(&first, 200)?;
    let again = rig.eventually("a call with a key to be answered again", || {
        let again = call()?;
        let is_over = again.status < 500
            && !(again.status == 409 && again.problem() == "idempotency_in_progress");
        Ok(is_over.then_some(again))
    })?;
    if was_taken {
        if (again.status, &again.bytes) != (200, &first.bytes) {
            let text = again.text();
            return Err(format!(
                "call {n} was answered 200, then {}: {text}",
                again.status
            ));
        }
        return is_once(rig, "keyed", n);
    }
    // The first call may have failed, which is its outcome for good, or have been lost.
    let is_known = again.status == 200
        || (again.status == 409 && again.problem() == "idempotency_answer_not_kept");
    match is_known || again.status == 502 {
        true => Ok(()),
        false => Err(format!(
            "call {n} ends as {}: {}",
            again.status,
            again.text()
        )),
    }
}

fn ran(rig: &Rig, collection: &str, n: &str, at_least: u64) -> Told {
    let what = format!("{collection} {n}, which was accepted, to run");
    rig.eventually(&what, || {
        let count = rig.kv(collection, n)?.as_u64().unwrap_or(0);
        Ok((count >= at_least).then_some(()))
    })
}

pub(super) fn async_call(rig: &Rig, n: &str) -> Told {
    let answer = rig.call("POST", &format!("/async?c=async&n={n}"), None)?;
    match accepted(&answer, 202)? {
        true => ran(rig, "async", n, 1),
        false => Ok(()),
    }
}

/// The clock is known after the first of them: the others are a single statement each.
fn calls_in_a_row(rig: &Rig, n: &str) -> Told {
    (0..4).try_for_each(|call| async_call(rig, &format!("{n}-{call}")))
}

pub(super) fn retry(rig: &Rig, n: &str) -> Told {
    let answer = rig.call("POST", &format!("/flaky?n={n}"), None)?;
    match accepted(&answer, 202)? {
        true => ran(rig, "flaky", n, 2),
        false => Ok(()),
    }
}

/// Longer than a heartbeat takes to come round.
pub(super) fn long_delivery(rig: &Rig, n: &str) -> Told {
    let answer = rig.call("POST", &format!("/slow?s=1.0&n={n}"), None)?;
    if !accepted(&answer, 202)? {
        return Ok(());
    }
    let what = format!("slow {n}, which was accepted, to run");
    rig.eventually(&what, || Ok((rig.kv("slow", n)? == true).then_some(())))
}

/// The dead letter of what was written to a key, once there is one.
fn letter_of(rig: &Rig, n: &str) -> Told<Value> {
    rig.eventually("a dead letter", || {
        let list = rig.ask("/apps/a/dead-letters?source=kv&limit=200")?;
        for letter in list["items"].as_array().into_iter().flatten() {
            let id = letter["id"].as_str().unwrap_or_default();
            let whole = rig.ask(&format!("/dead-letters/{id}"))?;
            if whole["replay_of"].is_null() && whole["payload"]["kv"]["key"] == n {
                return Ok(Some(whole));
            }
        }
        Ok(None)
    })
}

/// Write until it was taken, and wait for the dead letter.
fn some_letter(rig: &Rig, n: &str) -> Told<String> {
    while !rig.put("doomed", n, &json!(1))? {}
    let letter = letter_of(rig, n)?;
    Ok(letter["id"].as_str().unwrap_or_default().to_owned())
}

fn dead_letter(rig: &Rig, n: &str) -> Told {
    if !rig.put("doomed", n, &json!(1))? {
        return Ok(());
    }
    let letter = letter_of(rig, n)?;
    let id = letter["id"].as_str().unwrap_or_default();
    rig.eventually("the handler of a dead letter", || {
        let is_marked = rig.ask(&format!("/dead-letters/{id}"))?["handler_failed"] == true;
        Ok((is_marked || rig.kv("mourned", id)? == true).then_some(()))
    })
}

fn replay(rig: &Rig, n: &str) -> Told {
    let id = some_letter(rig, n)?;
    rig.insist(
        "POST",
        &format!("/api/v1/dead-letters/{id}/replay"),
        Some(&json!({})),
        &[409],
    )?;
    replayed(rig, &id)
}

/// What is replayed dies again, as a letter of its own.
fn replayed(rig: &Rig, id: &str) -> Told {
    rig.eventually("what came of a replay", || {
        let list = rig.ask("/apps/a/dead-letters?limit=200")?;
        let mut letters = list["items"].as_array().into_iter().flatten();
        Ok(letters
            .any(|letter| letter["replay_of"] == id)
            .then_some(()))
    })?;
    let state = rig.ask(&format!("/dead-letters/{id}"))?["state"].clone();
    match state == "replayed" {
        true => Ok(()),
        false => Err(format!("dead letter {id} was replayed and is {state}")),
    }
}

fn resolve(rig: &Rig, n: &str) -> Told {
    let id = some_letter(rig, n)?;
    let path = format!("/api/v1/dead-letters/{id}/resolve");
    rig.insist("POST", &path, Some(&json!({ "reason": "ignored" })), &[409])?;
    let state = rig.ask(&format!("/dead-letters/{id}"))?["state"].clone();
    match state == "resolved" {
        true => Ok(()),
        false => Err(format!("dead letter {id} was resolved and is {state}")),
    }
}

fn bulk(rig: &Rig, n: &str) -> Told {
    let id = some_letter(rig, n)?;
    let all = json!({ "all": true });
    rig.insist(
        "POST",
        "/api/v1/apps/a/dead-letters/replay",
        Some(&all),
        &[],
    )?;
    replayed(rig, &id)?;
    let all = json!({ "all": true, "reason": "ignored" });
    rig.eventually("no letter to be left", || {
        rig.insist(
            "POST",
            "/api/v1/apps/a/dead-letters/resolve",
            Some(&all),
            &[],
        )?;
        let left = rig.ask("/apps/a/dead-letters?state=unresolved&limit=1")?;
        Ok(left["items"]
            .as_array()
            .is_some_and(Vec::is_empty)
            .then_some(()))
    })
}

pub(super) fn heard(rig: &Rig, what: &str) -> Told {
    rig.eventually(&format!("the trigger of {what}"), || {
        Ok((rig.kv("heard", what)? == true).then_some(()))
    })
}

pub(super) fn key_value_store(rig: &Rig, n: &str) -> Told {
    if !rig.put("things", n, &json!(1))? {
        return Ok(());
    }
    heard(rig, &format!("things-{n}-insert"))?;
    let path = format!("/api/v1/apps/a/kv/things/{n}");
    let gone = rig.call("DELETE", &path, None)?;
    match accepted(&gone, 204)? {
        true => heard(rig, &format!("things-{n}-delete")),
        false => Ok(()),
    }
}

fn plain_key(rig: &Rig, n: &str) -> Told {
    if !rig.put("plain", n, &json!(1))? {
        return Ok(());
    }
    let path = format!("/api/v1/apps/a/kv/plain/{n}");
    let gone = rig.call("DELETE", &path, None)?;
    match accepted(&gone, 204)? && !rig.kv("plain", n)?.is_null() {
        true => Err(format!("key {n} was deleted and is there")),
        false => Ok(()),
    }
}

/// Both deliveries are written by one statement.
fn key_with_two_triggers(rig: &Rig, n: &str) -> Told {
    match rig.put("twice", n, &json!(1))? {
        true => {
            heard(rig, &format!("twice-{n}-insert"))?;
            ran(rig, "heard-too", n, 1)
        }
        false => Ok(()),
    }
}

/// What the handlers of an ordered key saw.
pub(super) fn seen(rig: &Rig, key: &str) -> Told<Vec<i64>> {
    let list = rig.kv("order", key)?;
    let values = list.as_array().into_iter().flatten();
    Ok(values.filter_map(Value::as_i64).collect())
}

/// A handler may run twice for a value, but never for one after another that came later.
pub(super) fn in_order(key: &str, seen: &[i64]) -> Told {
    match seen.is_sorted() {
        true => Ok(()),
        false => Err(format!(
            "the values of key {key} were seen out of order: {seen:?}"
        )),
    }
}

pub(super) fn ordered_key(rig: &Rig, n: &str) -> Told {
    let mut taken = Vec::new();
    for value in 1..=4_i64 {
        if rig.put("ordered", n, &json!(value))? {
            taken.push(value);
        } else {
            // It may be written, or be on its way: nothing comes after it on this key.
            break;
        }
    }
    let all = rig.eventually(&format!("the values of ordered key {n}"), || {
        let seen = seen(rig, n)?;
        Ok(taken
            .iter()
            .all(|value| seen.contains(value))
            .then_some(seen))
    })?;
    in_order(n, &all)
}

fn publish(rig: &Rig, n: &str) -> Told {
    let listener = Listener::start(&rig.server);
    let body = json!({ "message": { "n": n } });
    let answer = rig.call("POST", "/api/v1/apps/a/topics/news/messages", Some(&body))?;
    let mut published = Vec::new();
    if accepted(&answer, 200)? {
        published.push((n.to_owned(), answer.json()["message_id"].clone()));
    }
    let from_script = format!("{n}-script");
    let answer = rig.call("POST", &format!("/publish?n={from_script}"), None)?;
    if accepted(&answer, 200)? {
        published.push((from_script, answer.json()));
    }
    for (n, id) in published {
        let id = id.as_str().ok_or("a message has no id")?;
        rig.eventually(&format!("the stream to hear {n}"), || {
            Ok((listener.heard(id) > 0).then_some(()))
        })?;
        rig.eventually(&format!("the trigger of message {n}"), || {
            Ok((rig.kv("news", &n)? == true).then_some(()))
        })?;
    }
    match listener.twice() {
        twice if twice.is_empty() => Ok(()),
        twice => Err(format!("messages that a stream heard twice: {twice:?}")),
    }
}

/// Several are written to the topic together.
fn messages_at_once(rig: &Rig, n: &str) -> Told {
    let path = "/api/v1/apps/a/topics/news/messages";
    let publish = |n: String| -> Told {
        let body = json!({ "message": { "n": n } });
        let answer = rig.call("POST", path, Some(&body))?;
        if !accepted(&answer, 200)? {
            return Ok(());
        }
        rig.eventually(&format!("the trigger of message {n}"), || {
            Ok((rig.kv("news", &n)? == true).then_some(()))
        })
    };
    std::thread::scope(|scope| {
        let publish = &publish;
        let one = |place| scope.spawn(move || publish(format!("{n}-{place}")));
        let all = [0, 1, 2, 3, 4, 5].map(one);
        let told = all.map(|one| one.join().expect("it says what it saw"));
        told.into_iter().collect()
    })
}

fn import(rig: &Rig, n: &str) -> Told {
    let file = rig
        .insist("GET", "/api/v1/apps/tiny/export?kv=true", None, &[])?
        .bytes;
    let slug = format!("imported-{n}");
    let begun = Instant::now();
    loop {
        let path = format!("/api/v1/imports?slug={slug}");
        let zip = [("content-type", "application/zip")];
        let answer = rig.send("POST", &path, &zip, Some(&file))?;
        match answer.status {
            // It was done, and nobody was told.
            201 | 409 => break,
            500 | 503 if begun.elapsed() < Duration::from_secs(10) => {}
            other => return Err(format!("an import is answered {other}: {}", answer.text())),
        }
    }
    let count = |list: &str| -> Told<usize> {
        let page = rig.ask(&format!("/apps/{slug}/{list}"))?;
        Ok(page["items"].as_array().map_or(0, Vec::len))
    };
    let counts = (
        count("scripts")?,
        count("routes")?,
        count("triggers")?,
        count("kv/c")?,
    );
    if counts != (1, 1, 1, 3) {
        return Err(format!("an app was imported in part: {counts:?}"));
    }
    let gone = format!("/api/v1/apps/{slug}");
    rig.insist("DELETE", &gone, None, &[404])?;
    match rig.ask(&format!("/apps/{slug}"))?.is_null() {
        // Nobody sees it, but it is there for a while.
        true => until_no_app(rig, "remove_at is not null"),
        false => Err("an app that was deleted is there".to_owned()),
    }
}

fn script(rig: &Rig, n: &str) -> Told {
    let name = format!("s{n}");
    let body = json!({ "name": name, "source": "1" });
    rig.insist("POST", "/api/v1/apps/a/scripts", Some(&body), &[409])?;
    let list = rig.ask(&format!("/apps/a/scripts?name={name}"))?;
    let made = &list["items"][0];
    let path = format!(
        "/api/v1/scripts/{}",
        made["id"].as_str().unwrap_or_default()
    );
    let change = json!({ "version": made["version"], "source": "2" });
    rig.insist("PATCH", &path, Some(&change), &[409])?;
    let changed = rig.insist("GET", &path, None, &[])?.json();
    if changed["version"] != 2 {
        return Err(format!("a script was changed and is {changed}"));
    }
    let route = json!({ "script": name, "method": "GET", "path": format!("/{name}") });
    rig.insist("POST", "/api/v1/apps/a/routes", Some(&route), &[409])?;
    // The node that was told must not answer as before.
    let answer = rig.insist("GET", &format!("/{name}"), None, &[])?;
    if answer.text() != "2" {
        return Err(format!(
            "the script that was changed answers {}",
            answer.text()
        ));
    }
    let executed = rig.call("POST", &format!("{path}/execute"), Some(&json!({})))?;
    accepted(&executed, 200)?;
    rig.insist("DELETE", &path, None, &[404])?;
    match rig.call("GET", &format!("/{name}"), None)?.status {
        404 => Ok(()),
        other => Err(format!("a script that was deleted answers {other}")),
    }
}

fn pause_and_resume(rig: &Rig, n: &str) -> Told {
    let path = pausable(rig)?;
    // One that is on its way when it is paused, one that comes after.
    let before = rig.put("paused", &format!("{n}-before"), &json!(1))?;
    rig.insist("POST", &format!("{path}/pause"), None, &[])?;
    let after = rig.put("paused", &format!("{n}-after"), &json!(1))?;
    rig.insist("POST", &format!("{path}/resume"), None, &[])?;
    for (was_taken, when) in [(before, "before"), (after, "after")] {
        if was_taken {
            heard(rig, &format!("paused-{n}-{when}-insert"))?;
        }
    }
    Ok(())
}

fn session_and_sweep(rig: &Rig, _: &str) -> Told {
    let body = json!({ "name": "owner", "password": rig.server.password() });
    let session = rig.insist("POST", "/api/v1/auth/login", Some(&body), &[])?;
    let token = session.json()["token"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let bearer = format!("Bearer {token}");
    let as_them = [("authorization", &*bearer)];
    let me = rig
        .server
        .call_within(super::rig::CALL, "GET", "/api/v1/auth/me", &as_them, None)?;
    if me.status != 200 {
        return Err(format!(
            "a session that was begun is answered {}",
            me.status
        ));
    }
    rig.insist("POST", "/api/v1/gc", None, &[])?;
    Ok(())
}
