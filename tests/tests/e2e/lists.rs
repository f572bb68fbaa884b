//! Lists of what is large: as much is read as is answered.

use picloud_tests::{App, Engine, Server, on_both_engines, report, wait_for};
use serde_json::{Value, json};

on_both_engines!(
    a_list_of_large_values_takes_little_memory,
    a_list_of_large_dead_letters_takes_little_memory,
);

const MIB: usize = 1 << 20;

/// By how much the memory of the server grows at most while something is done, in MiB.
fn grows_by<T>(server: &Server, work: impl FnOnce() -> T) -> (u64, T) {
    let of = |name: &str| {
        let status = format!("/proc/{}/status", server.pid());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        let kib = line.split_whitespace().nth(1).unwrap().parse::<u64>();
        kib.unwrap() / 1024
    };
    // 5 has the kernel forget the peak.
    std::fs::write(format!("/proc/{}/clear_refs", server.pid()), "5").unwrap();
    let before = of("VmRSS:");
    let done = work();
    (of("VmHWM:").saturating_sub(before), done)
}

/// A script that runs as the owner; what it answers.
fn execute(server: &Server, id: &str) -> Value {
    let answer = server.api("POST", &format!("/scripts/{id}/execute"), Some(json!({})));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let executed = answer.json();
    assert_eq!(executed["outcome"], "answered", "{executed}");
    let body = executed["response"]["body"].as_str().unwrap();
    serde_json::from_str(body).unwrap()
}

fn fill(app: &App<'_>, collection: &str, count: usize) {
    for n in 0..count {
        app.set(collection, &format!("k{n:03}"), "x".repeat(MIB - 2).into());
    }
}

fn a_list_of_large_values_takes_little_memory(engine: Engine) {
    const COUNT: usize = 120;
    let server = Server::start(engine);
    let app = server.app("a");
    fill(&app, "large", COUNT);
    let page = |cursor: &str| {
        let path = format!("/apps/a/kv/large?limit=200&cursor={cursor}");
        let answer = server.api("GET", &path, None);
        assert_eq!(answer.status, 200);
        answer.json()
    };
    let (grown, page_one) = grows_by(&server, || page(""));
    let items = page_one["items"].as_array().unwrap();
    assert_eq!((items.len(), &items[3]["key"]), (4, &json!("k003")));
    report(format_args!("a page of 4 MiB of {COUNT} takes {grown} MiB"));
    assert!(grown < 60, "{grown} MiB");
    // Every key is on one page.
    let (mut seen, mut cursor) = (0, String::new());
    loop {
        let page = page(&cursor);
        for item in page["items"].as_array().unwrap() {
            assert_eq!(item["key"], format!("k{seen:03}"));
            seen += 1;
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(seen, COUNT);
    // The same for a guest, whose calls are metered by what they carry.
    let lister = app.script_with(
        "lister",
        r#"let c = kv::collection("large"); let n = 0; let cursor = ();
           loop {
               let page = c.list(cursor, 1000);
               n += page.entries.len();
               cursor = page.cursor;
               if cursor == () { break; }
           }
           n"#,
        json!({ "fuel": 400_000_000_000_u64, "timeout_ms": 60_000 }),
    );
    let (grown, listed) = grows_by(&server, || execute(&server, &lister));
    assert_eq!(listed, COUNT);
    report(format_args!("a guest that lists them takes {grown} MiB"));
    assert!(grown < 140, "{grown} MiB");
}

fn a_list_of_large_dead_letters_takes_little_memory(engine: Engine) {
    const COUNT: usize = 40;
    let server = Server::start(engine);
    let app = server.app("a");
    app.script("dies", "throw \"no\"");
    let dies = json!({ "script": "dies", "collection": "large", "name": "dies",
                       "retry": { "attempts_max": 1 } });
    app.trigger("kv", dies);
    fill(&app, "large", COUNT);
    wait_for("dead letters", || {
        let counts = server.api("GET", "/apps/a/dead-letters/counts", None);
        (counts.json()["by_state"]["unresolved"] == COUNT).then_some(())
    });
    let (grown, listed) = grows_by(&server, || app.dead_letters("limit=100"));
    assert_eq!(listed.len(), COUNT);
    assert_eq!(listed[0]["last_error"], "no");
    report(format_args!(
        "a list of {COUNT} letters of 1 MiB takes {grown} MiB"
    ));
    assert!(grown < 20, "{grown} MiB");

    let lister = app.script_with(
        "lister",
        r#"let n = 0; let cursor = (); let pages = 0;
           loop {
               let page = if cursor == () { dead_letters::list() } else { dead_letters::list(cursor) };
               n += page.entries.len();
               pages += 1;
               cursor = page.cursor;
               if cursor == () { break; }
           }
           [n, pages]"#,
        json!({ "fuel": 400_000_000_000_u64, "timeout_ms": 60_000 }),
    );
    let (grown, listed) = grows_by(&server, || execute(&server, &lister));
    assert_eq!(listed[0], COUNT);
    assert!(listed[1].as_u64() >= Some(8), "{listed}");
    report(format_args!("a guest that lists them takes {grown} MiB"));
    assert!(grown < 140, "{grown} MiB");

    // What is put back at once is bounded, too; whoever goes on puts all back.
    let (mut replayed, mut calls) = (0, 0);
    let (grown, ()) = grows_by(&server, || {
        loop {
            let body = json!({ "all": true, "limit": 1000 });
            let path = "/apps/a/dead-letters/replay";
            let answer = server.api("POST", path, Some(body)).json();
            calls += 1;
            assert!(calls <= COUNT, "{answer}");
            replayed += answer["replayed"].as_u64().unwrap();
            if replayed >= COUNT as u64 {
                break;
            }
        }
    });
    assert!(calls > 3, "{calls} calls");
    report(format_args!(
        "{calls} calls put them back, with {grown} MiB"
    ));
    assert!(grown < 120, "{grown} MiB");
}
