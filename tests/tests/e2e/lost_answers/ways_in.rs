//! Every way in, after something was broken: each must take a call again soon.

use std::time::{Duration, Instant};

use picloud_tests::{EventStream, err, report};
use serde_json::json;

use super::rig::{Rig, Told};

/// How soon each must take a call again.
const BACK: Duration = Duration::from_secs(10);
/// How long is waited before the next try.
const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// The same for a sign-in: ten in a row use up what an address may try, whatever came of them.
const SIGN_IN_AGAIN_AFTER: Duration = Duration::from_millis(1_200);

/// Tries once; says whether it was taken.
type Way = fn(&Rig) -> Result<bool, String>;

const WAYS: [(&str, Way); 11] = [
    ("a sync call", |rig| {
        call(rig, "GET", "/sync?c=ways&n=sync", 200)
    }),
    ("an async call", |rig| {
        call(rig, "POST", "/async?c=ways&n=async", 202)
    }),
    ("a call with a key", keyed),
    ("a value that is read", |rig| {
        call(rig, "GET", "/api/v1/apps/a/kv/ways/known", 200)
    }),
    ("a value that is written", |rig| {
        put(rig, "/api/v1/apps/a/kv/ways/written")
    }),
    ("a message", publish),
    ("a sign-in", log_in),
    ("a stream", |rig| stream(rig, "/realtime/topics/news", &[])),
    ("a script that is executed by hand", execute),
    ("an import", import),
    ("the instance's events", events),
];

/// What an import takes in: an app without routes, which may be there many times.
const APP_FILE: &str = "way.zip";

fn call(rig: &Rig, method: &str, path: &str, status: u16) -> Told<bool> {
    Ok(rig.call(method, path, None)?.status_in_an_outage() == status)
}

fn put(rig: &Rig, path: &str) -> Told<bool> {
    let answer = rig.call("PUT", path, Some(&json!(1)))?;
    Ok(answer.status_in_an_outage() == 204)
}

fn keyed(rig: &Rig) -> Told<bool> {
    // The call of an earlier try may have failed, which is its outcome for good.
    let key = uuid::Uuid::now_v7().to_string();
    let header = [("idempotency-key", key.as_str())];
    let answer = rig.send("POST", "/keyed?c=ways&n=keyed", &header, None)?;
    Ok(answer.status_in_an_outage() == 200)
}

fn publish(rig: &Rig) -> Told<bool> {
    let body = json!({ "message": { "n": "way" } });
    let path = "/api/v1/apps/a/topics/news/messages";
    let answer = rig.call("POST", path, Some(&body))?;
    Ok(answer.status_in_an_outage() == 200)
}

fn log_in(rig: &Rig) -> Told<bool> {
    let body = json!({ "name": "owner", "password": rig.server.password() });
    let answer = rig.call("POST", "/api/v1/auth/login", Some(&body))?;
    if answer.status != 200 {
        std::thread::sleep(SIGN_IN_AGAIN_AFTER);
    }
    Ok(answer.status == 200)
}

fn stream(rig: &Rig, path: &str, headers: &[(&str, &str)]) -> Told<bool> {
    let opened = EventStream::open(&rig.server.url, path, headers);
    let Some(stream) = opened.ok().filter(|stream| stream.status == 200) else {
        return Ok(false);
    };
    let first = stream.next_within(Duration::from_secs(1));
    Ok(matches!(first, Ok(Some(event)) if event.name == "ready"))
}

fn events(rig: &Rig) -> Told<bool> {
    let bearer = format!("Bearer {}", rig.server.token);
    stream(rig, "/api/v1/events", &[("authorization", &bearer)])
}

fn execute(rig: &Rig) -> Told<bool> {
    let found = rig.call("GET", "/api/v1/apps/a/scripts?name=count", None)?;
    let Some(id) = found.json()["items"][0]["id"].as_str().map(str::to_owned) else {
        return Ok(false);
    };
    let body = json!({ "query": { "c": "ways", "n": "executed" } });
    let path = format!("/api/v1/scripts/{id}/execute");
    let answer = rig.call("POST", &path, Some(&body))?;
    Ok(answer.status_in_an_outage() == 200)
}

fn import(rig: &Rig) -> Told<bool> {
    let file = std::fs::read(rig.server.folder().join(APP_FILE)).expect("`lay` exported it");
    // The app of an earlier try may be there, though nobody was told.
    let slug = format!("way-{}", uuid::Uuid::now_v7().simple());
    let headers = [("content-type", "application/zip")];
    let path = format!("/api/v1/imports?slug={slug}");
    let answer = rig.send("POST", &path, &headers, Some(&file))?;
    Ok(answer.status_in_an_outage() == 201)
}

/// What the ways need before anything is broken.
pub(super) fn lay(rig: &Rig) -> Told {
    let exported = rig.server.cli(&["export", "unlucky", "--output", APP_FILE]);
    if !exported.status.success() {
        return Err(format!("nothing is exported: {}", err(&exported)));
    }
    match put(rig, "/api/v1/apps/a/kv/ways/known")? {
        true => Ok(()),
        false => Err("a value is not taken".to_owned()),
    }
}

/// See that each way in takes a call within ten seconds of `since`, when nothing was broken any more.
pub(super) fn all_back(rig: &Rig, since: Instant) -> Told {
    let tried = std::thread::scope(|scope| {
        let trying = WAYS.map(|(name, way)| scope.spawn(move || (name, back(rig, way, since))));
        trying.map(|one| one.join().expect("it says what it saw"))
    });
    let mut last = ("", Duration::ZERO);
    for (name, tried) in tried {
        let took = tried.map_err(|error| format!("{name}: {error}"))?;
        if took > last.1 {
            last = (name, took);
        }
    }
    let (name, took) = last;
    report(format_args!(
        "every way in is back after {took:?}, the last one {name}"
    ));
    Ok(())
}

fn back(rig: &Rig, way: Way, since: Instant) -> Told<Duration> {
    loop {
        let taken = way(rig);
        let took = since.elapsed();
        if took > BACK {
            return Err(format!("not taken within {BACK:?}: {taken:?}"));
        }
        if taken? {
            return Ok(took);
        }
        std::thread::sleep(AGAIN_AFTER);
    }
}
