//! Steps on which something goes wrong by itself, or at another node: what is written then is
//! written in no other way.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use picloud_tests::{Lost, Then};
use serde_json::{Value, json};

use super::rig::{Rig, Told, accepted};
use super::steps::{Step, heard};

/// One for each path that writes what no other does.
pub(super) const STEPS: [(&str, Step); 12] = [
    ("failing handler", failing_handler),
    ("caller who leaves", caller_who_leaves),
    ("claim while paused", claim_while_paused),
    ("lease without a holder", lease_without_a_holder),
    ("call that was taken from us", call_that_was_taken),
    ("dead node", dead_node),
    ("script without its code", script_without_its_code),
    ("import that fails", import_that_fails),
    ("large app that goes", large_app_that_goes),
    ("small topic", small_topic),
    ("sign-out", sign_out),
    ("database that is away", database_that_is_away),
];

/// The dead letter whose handler fails is marked, and makes none of its own.
fn failing_handler(rig: &Rig, n: &str) -> Told {
    let path = format!("/api/v1/apps/unlucky/kv/doomed/{n}");
    let answer = rig.call("PUT", &path, Some(&json!(1)))?;
    if !accepted(&answer, 204)? {
        return Ok(());
    }
    rig.eventually("a dead letter whose handler failed", || {
        let list = rig.ask("/apps/unlucky/dead-letters?limit=200")?;
        for letter in list["items"].as_array().into_iter().flatten() {
            let id = letter["id"].as_str().unwrap_or_default();
            let whole = rig.ask(&format!("/dead-letters/{id}"))?;
            if whole["payload"]["kv"]["key"] == n && whole["handler_failed"] == true {
                return Ok(Some(()));
            }
        }
        Ok(None)
    })
}

/// The call goes on, and is recorded as abandoned.
fn caller_who_leaves(rig: &Rig, n: &str) -> Told {
    let before = rig.abandoned()?.len();
    let address = rig.server.url.trim_start_matches("http://").to_owned();
    let left = TcpStream::connect(&address).and_then(|mut stream| {
        let call = format!("GET /slow?s=0.3&n={n} HTTP/1.1\r\nhost: {address}\r\n\r\n");
        stream.write_all(call.as_bytes())?;
        // It is answered long after this.
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(stream.read(&mut [0; 64]).unwrap_or(0))
    });
    match left {
        Err(error) => return Err(format!("no connection: {error}")),
        // The server refused it.
        Ok(1..) => return Ok(()),
        Ok(0) => {}
    }
    rig.eventually("a call to be recorded as abandoned", || {
        Ok((rig.abandoned()?.len() > before).then_some(()))
    })
}

/// The path of the trigger that can be paused.
pub(super) fn pausable(rig: &Rig) -> Told<String> {
    let list = rig.ask("/apps/a/triggers?limit=200")?;
    let mut triggers = list["items"].as_array().into_iter().flatten();
    let trigger = triggers.find(|trigger| trigger["name"] == "paused");
    let id = trigger.and_then(|trigger| trigger["id"].as_str());
    let id = id.ok_or("the trigger is not there")?;
    Ok(format!("/api/v1/triggers/{id}"))
}

/// Write a key while its trigger is paused, do something to the row that is held, and let it go on.
fn while_paused(rig: &Rig, n: &str, then: impl FnOnce() -> Told) -> Told {
    let trigger = pausable(rig)?;
    rig.insist("POST", &format!("{trigger}/pause"), None, &[])?;
    let was_taken = rig.put("paused", n, &json!(1))?;
    let done = if was_taken { then() } else { Ok(()) };
    rig.insist("POST", &format!("{trigger}/resume"), None, &[])?;
    done?;
    match was_taken {
        true => heard(rig, &format!("paused-{n}-insert")),
        false => Ok(()),
    }
}

fn has(rig: &Rig, rows: &str) -> bool {
    let sql = format!("select 1 from outbox where {rows} limit 1");
    !rig.server.query(&sql).is_empty()
}

/// A node that has not heard of the pause lets the row go on; it is put back as one that is held.
fn claim_while_paused(rig: &Rig, n: &str) -> Told {
    while_paused(rig, n, || {
        rig.server
            .sql("update outbox set held = false, history = '[ ]' where held");
        // It was claimed and put back: nothing else holds a row that is there already.
        rig.eventually("the row to be held again", || {
            Ok(has(rig, "held and history = '[ ]'").then_some(()))
        })
    })
}

/// A row that is leased to a node which knows nothing of it, as after a claim that it never heard of,
/// is given back by that node.
fn lease_without_a_holder(rig: &Rig, n: &str) -> Told {
    let worker = rig.worker()?;
    while_paused(rig, n, || {
        rig.server.sql(&format!(
            "update outbox set held = false, attempt = attempt + 1, lease_owner = '{worker}',
                    due_at = now() + interval '1 minute' where held"
        ));
        Ok(())
    })
}

/// Another node has claimed the row of a call, and would record it as abandoned, but its caller was
/// answered: its execution is kept, and nothing else.
fn call_that_was_taken(rig: &Rig, n: &str) -> Told {
    let called = std::thread::scope(|scope| {
        // Shorter than it takes until the lease is renewed, and found to be lost.
        let path = format!("/slow?s=0.25&n={n}");
        let calling = scope.spawn(move || rig.call("GET", &path, None));
        let begun = Instant::now();
        let take = "update outbox set lease_owner = gen_random_uuid() where reply_to is not null
                    returning id";
        while begun.elapsed() < Duration::from_millis(200) {
            if !rig.server.query(take).is_empty() {
                break;
            }
        }
        calling.join().map_err(|_| "the call panicked".to_owned())
    });
    let answer = called??;
    if !accepted(&answer, 200)? {
        return Ok(());
    }
    let id = answer.headers["x-execution-id"]
        .to_str()
        .unwrap_or_default();
    rig.eventually("the end of an answered call", || {
        let known = rig.ask(&format!("/executions/{id}"))?;
        let is_gone = !has(rig, &format!("id = '{id}'"));
        Ok((known["outcome"] == "answered" && is_gone).then_some(()))
    })?;
    match rig.abandoned()?.iter().any(|abandoned| abandoned == id) {
        true => Err(format!(
            "call {n} was answered 200 and is recorded as abandoned"
        )),
        false => Ok(()),
    }
}

/// What a node had leased that is gone, others give back before its leases end.
fn dead_node(rig: &Rig, n: &str) -> Told {
    let mut other = rig.another();
    let answer = other.call("POST", &format!("/slow?s=1.0&n={n}"), None)?;
    if !accepted(&answer, 202)? {
        return Ok(());
    }
    let theirs = format!("lease_owner <> '{}'", rig.worker()?);
    rig.eventually("the other node to show that it lives", || {
        let locks = "select 1 from pg_locks where locktype = 'advisory' and objsubid = 2
            and database = (select oid from pg_database where datname = current_database())";
        Ok((rig.server.query(locks).len() >= 2).then_some(()))
    })?;
    // It is looked twice a second who lives.
    std::thread::sleep(Duration::from_millis(700));
    other.server.kill();
    // Longer than a test waits.
    rig.server.sql(&format!(
        "update outbox set due_at = now() + interval '1 minute' where {theirs}"
    ));
    rig.eventually("a dead node's delivery to run", || {
        Ok((rig.kv("slow", n)? == true).then_some(()))
    })
}

/// A call with a key whose script is not there any more did nothing: its key is free again.
fn script_without_its_code(rig: &Rig, n: &str) -> Told {
    let name = format!("bare{n}");
    let script = json!({ "name": name, "source": "1" });
    rig.insist("POST", "/api/v1/apps/a/scripts", Some(&script), &[409])?;
    let route = json!({
        "script": name, "method": "POST", "path": format!("/{name}"), "idempotency": { "ttl_s": 600 }
    });
    rig.insist("POST", "/api/v1/apps/a/routes", Some(&route), &[409])?;
    rig.server.sql(&format!(
        "delete from script_versions where script_id = (select id from scripts where name = '{name}')"
    ));
    let path = format!("/{name}");
    let answer = rig.send("POST", &path, &[("idempotency-key", n)], None)?;
    if answer.status < 400 {
        return Err(format!("a script without code answers {}", answer.status));
    }
    rig.eventually("the key to be free", || {
        let known = format!("select 1 from idempotency_keys where key = '{n}'");
        Ok(rig.server.query(&known).is_empty().then_some(()))
    })
}

/// What was imported when an import failed is removed at once.
fn import_that_fails(rig: &Rig, n: &str) -> Told {
    let file = rig
        .insist("GET", "/api/v1/apps/tiny/export?kv=true", None, &[])?
        .bytes;
    let fails = rig.proxy.lose(Lost::Request, Then::Close, |one| {
        one.text.starts_with("insert into kv (collection")
    });
    let path = format!("/api/v1/imports?slug=failed-{n}");
    let zip = [("content-type", "application/zip")];
    let answer = rig.send("POST", &path, &zip, Some(&file))?;
    if accepted(&answer, 201)? && fails.fired() > 0 {
        return Err("an import that was cut is answered 201".to_owned());
    }
    if until_no_app(rig, "remove_at is not null").is_err() {
        // Not even that could be written: it goes half a minute after its last sign of life.
        until_no_app(rig, "remove_at > now() + interval '30 s'")?;
        rig.server
            .sql("update apps set remove_at = now() where remove_at is not null");
        until_no_app(rig, "remove_at is not null")?;
    }
    match answer.status {
        201 => rig
            .insist("DELETE", &format!("/api/v1/apps/failed-{n}"), None, &[404])
            .map(drop),
        _ => Ok(()),
    }
}

/// An app with more keys than one transaction removes.
fn large_app_that_goes(rig: &Rig, n: &str) -> Told {
    let slug = format!("large-{n}");
    let app = json!({ "slug": slug });
    rig.insist("POST", "/api/v1/apps", Some(&app), &[409])?;
    rig.server.sql(&format!(
        "insert into kv (app_id, collection, key, value, updated_at)
         select id, 'c', n::text, '1', now() from apps, generate_series(1, 501) n
         where slug = '{slug}' on conflict do nothing"
    ));
    let path = format!("/api/v1/apps/{slug}");
    rig.insist("DELETE", &path, None, &[404])?;
    until_no_app(rig, "remove_at is not null")
}

pub(super) fn until_no_app(rig: &Rig, which: &str) -> Told {
    let query = format!("select 1 from apps where {which}");
    rig.eventually("what is left of an app to be gone", || {
        Ok(rig.server.query(&query).is_empty().then_some(()))
    })
}

/// What a topic does not keep goes when it is swept, and the rest with the topic.
fn small_topic(rig: &Rig, n: &str) -> Told {
    let topic = format!("/api/v1/apps/a/topics/small-{n}");
    let kept = json!({ "auth_mode": "public", "retention_messages": 1 });
    rig.insist("PUT", &topic, Some(&kept), &[])?;
    for message in 0..2 {
        let body = json!({ "message": message });
        let answer = rig.call("POST", &format!("{topic}/messages"), Some(&body))?;
        accepted(&answer, 200)?;
    }
    rig.insist("POST", "/api/v1/gc", None, &[])?;
    let kept = rig.server.query(&format!(
        "select count(*) from journal where topic = 'small-{n}'"
    ));
    if !matches!(kept[0][0].as_deref(), Some("0" | "1")) {
        return Err(format!("a topic that keeps one message has {kept:?}"));
    }
    rig.insist("DELETE", &topic, None, &[404])?;
    rig.insist("POST", "/api/v1/gc", None, &[])?;
    rig.eventually("the topic's channel to be gone", || {
        let left = format!("select 1 from channels where topic = 'small-{n}'");
        let is_gone = rig.server.query(&left).is_empty();
        if !is_gone {
            rig.insist("POST", "/api/v1/gc", None, &[])?;
        }
        Ok(is_gone.then_some(()))
    })
}

/// A session that was ended is good for nothing.
fn sign_out(rig: &Rig, _: &str) -> Told {
    let body = json!({ "name": "owner", "password": rig.server.password() });
    let session = rig.insist("POST", "/api/v1/auth/login", Some(&body), &[])?;
    let token: Value = session.json()["token"].clone();
    let bearer = format!("Bearer {}", token.as_str().unwrap_or_default());
    let as_them = [("authorization", &*bearer)];
    let call = |method, path| {
        rig.server
            .call_within(super::rig::CALL, method, path, &as_them, None)
    };
    let out = call("POST", "/api/v1/auth/logout")?;
    if !accepted(&out, 204)? {
        return Ok(());
    }
    match call("GET", "/api/v1/auth/me")?.status {
        401 => Ok(()),
        other => Err(format!("a session that was ended is answered {other}")),
    }
}

/// After a write that failed, the database is asked by another one whether it takes them again.
fn database_that_is_away(rig: &Rig, n: &str) -> Told {
    let beat = || rig.server.query("select beat from directory_version");
    let before = beat();
    rig.proxy.cut();
    // Nothing is read for it before it is written down.
    let answer = rig.call("GET", &format!("/sync?c=away&n={n}"), None);
    rig.proxy.mend();
    if accepted(&answer?, 200)? {
        return Err("a call was answered of which no database knows".to_owned());
    }
    rig.eventually("the database to be written on trial", || {
        Ok((beat() != before).then_some(()))
    })?;
    rig.until_ready()?;
    match rig.kv("away", n)?.is_null() {
        true => Ok(()),
        false => Err(format!("call {n} was refused and ran")),
    }
}
