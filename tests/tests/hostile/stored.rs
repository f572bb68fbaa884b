//! Attacks by what is kept.

use std::cell::Cell;
use std::io::Write;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use picloud_tests::{Answer, Engine, on_both_engines, report, wait_for};
use serde_json::{Value, json};

use crate::neighbour::{ATTACKER, Attacked, in_rounds};

on_both_engines!(
    p3_letters_of_bodies_that_were_small_are_listed_and_replayed_at_once,
    p1_logs_take_no_more_than_the_apps_quota,
    p3_a_guest_that_lists_large_values_again_and_again_holds_few_of_them,
    p1_a_crowd_that_writes_large_values_takes_turns_with_small_ones,
    p1_a_crowd_that_lists_large_values_by_the_api_takes_turns,
);

const MIB: usize = 1 << 20;

/// How much the database takes on disk, in MiB.
fn database_mib(attacked: &Attacked) -> u64 {
    let server = &attacked.server;
    let bytes: u64 = match server.is_on_postgres() {
        true => {
            let size = server.query("select pg_database_size(current_database())");
            size[0][0].as_deref().unwrap().parse().unwrap()
        }
        false => {
            let files = std::fs::read_dir(server.data_dir()).unwrap().flatten();
            let of_database = files.filter(|file| {
                file.file_name()
                    .display()
                    .to_string()
                    .contains("picloud.db")
            });
            of_database.map(|file| file.metadata().unwrap().len()).sum()
        }
    };
    bytes >> 20
}

/// What the attacker keeps of one kind of data.
fn kept(attacked: &Attacked, data: &str) -> Value {
    assert_eq!(attacked.server.api("POST", "/gc", None).status, 200);
    let usage = attacked.server.api("GET", "/apps/attacker/usage", None);
    let usage = usage.json();
    let stored = usage["stored"].as_array().unwrap();
    let found = stored.iter().find(|kept| kept["data"] == data);
    found.unwrap().clone()
}

fn p3_letters_of_bodies_that_were_small_are_listed_and_replayed_at_once(engine: Engine) {
    const COUNT: usize = 50;
    const EACH: usize = 400_000;
    let settings = [("PICLOUD_TRIGGER_RETRY_MAX_ATTEMPTS", "1")];
    let attacked = Attacked::start_with(engine, "50 letters of 0.4 KB", &settings);
    let (server, app) = (&attacked.server, attacked.attacker());
    app.script("s", "throw \"no\"");
    app.route_with("s", "POST /s", json!({ "dispatch_mode": "async" }));
    let mut body = GzEncoder::new(Vec::new(), Compression::best());
    body.write_all(&vec![1; EACH]).unwrap();
    let body = body.finish().unwrap();
    assert!(body.len() < 600, "{}", body.len());
    let headers = [
        ("host", ATTACKER),
        ("content-type", "text/plain"),
        ("content-encoding", "gzip"),
    ];
    let unresolved = || {
        let counts = server.api("GET", "/apps/attacker/dead-letters/counts", None);
        counts.json()["by_state"]["unresolved"].as_u64()
    };
    let slowest = Cell::new(Duration::ZERO);
    let soon = |what: &str, act: &dyn Fn() -> Answer| {
        let began = Instant::now();
        let answer = act();
        let took = began.elapsed();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(took < Duration::from_secs(5), "{what}: {took:?}");
        slowest.set(took.max(slowest.get()));
        answer.json()
    };
    let before_mib = database_mib(&attacked);
    let noticed = attacked.during(|| {
        for _ in 0..COUNT {
            let accepted = server.call("POST", "/s", &headers, Some(&body));
            assert_eq!(accepted.status, 202, "{}", accepted.text());
        }
        wait_for("the letters", || {
            (unresolved() == Some(COUNT as u64)).then_some(())
        });
        let path = "/apps/attacker/dead-letters?limit=50";
        let listed = soon("50 letters", &|| server.api("GET", path, None));
        assert_eq!(listed["items"].as_array().unwrap().len(), COUNT);
        let mut all = json!({ "all": true, "limit": COUNT });
        loop {
            let path = "/apps/attacker/dead-letters/replay";
            let done = soon("a replay", &|| server.api("POST", path, Some(all.clone())));
            if done["left"] == 0 {
                break;
            }
            all["up_to"] = done["up_to"].clone();
        }
    });
    let more_mib = database_mib(&attacked) - before_mib;
    let letters = kept(&attacked, "dead_letters");
    report(format_args!(
        "the database has {more_mib} MiB more, the letters {letters}; the slowest answer {:?}",
        slowest.get()
    ));
    noticed.is_nothing(200);
    // Each letter, and what it is replayed as, without a sixfold of it in escapes.
    let all_mib = (2 * COUNT * EACH / MIB) as u64;
    assert!(more_mib <= 2 * all_mib, "{more_mib} MiB");
}

fn p1_logs_take_no_more_than_the_apps_quota(engine: Engine) {
    let settings = [("PICLOUD_EXECUTION_BYTES_MAX", "1MiB")];
    let attacked = Attacked::start_with(engine, "logs to their limit", &settings);
    let source = r#"let line = ""; line.pad(1000, 'x'); for n in 0..300 { log::info(line); }"#;
    attacked.attacker().serve("s", source);
    let noticed = attacked.during(|| {
        in_rounds(|| {
            for answer in attacked.calls_at_once("/s", 8) {
                assert_eq!(answer, Ok(200));
            }
        });
    });
    noticed.is_nothing(200);
    let executions = kept(&attacked, "executions");
    let (bytes, rows) = (executions["bytes"].as_u64(), executions["rows"].as_u64());
    assert!(bytes.unwrap() <= MIB as u64, "{executions}");
    assert!(rows > Some(0), "the newest are kept: {executions}");
}

fn p3_a_guest_that_lists_large_values_again_and_again_holds_few_of_them(engine: Engine) {
    let attacked = Attacked::start(engine, "300 values of 1 MB, listed");
    let app = attacked.attacker();
    for n in 0..300 {
        app.set("large", &format!("k{n:03}"), "x".repeat(MIB - 2).into());
    }
    let source = r#"let c = kv::collection("large"); loop { c.list((), 1000); }"#;
    let limits = json!({ "fuel": 400_000_000_000_u64, "timeout_ms": 3_000 });
    app.script_with("s", source, limits);
    app.route("s", "GET /s");
    let noticed = attacked.during(|| {
        for answer in attacked.calls_at_once("/s", 4) {
            // By its time limit, or, where it is fast, by what its calls may carry.
            assert!(matches!(answer, Ok(502 | 504)), "{answer:?}");
        }
    });
    // Reading megabytes is not optimised in a debug build: 0.34 s were seen.
    noticed.is_felt_for(Duration::from_secs(1), 200);
}

fn p1_a_crowd_that_writes_large_values_takes_turns_with_small_ones(engine: Engine) {
    const WRITERS: usize = 40;
    let attacked = Attacked::start(engine, "40 writers of 1 MB");
    let source = r#"
        let line = ""; line.pad(1000000, 'x');
        let c = kv::collection("large");
        for n in 0..3 { c.set(ctx.request.query.key + n, line); }"#;
    attacked.attacker().serve("s", source);
    let noticed = attacked.during_writes(|| {
        in_rounds(|| {
            for answer in attacked.calls_at_once("/s?key=k", WRITERS) {
                assert_eq!(answer, Ok(200));
            }
        });
    });
    noticed.is_nothing(400);
}

fn p1_a_crowd_that_lists_large_values_by_the_api_takes_turns(engine: Engine) {
    const READERS: usize = 20;
    let attacked = Attacked::start(engine, "20 readers of 4 MB of values by the API");
    let app = attacked.attacker();
    for n in 0..8 {
        app.set("large", &format!("k{n:03}"), "x".repeat(MIB - 2).into());
    }
    let list = || {
        let list = attacked
            .server
            .api("GET", "/apps/attacker/kv/large?limit=200", None);
        list.status
    };
    let noticed = attacked.during(|| {
        in_rounds(|| {
            std::thread::scope(|scope| {
                let lists: Vec<_> = (0..READERS).map(|_| scope.spawn(list)).collect();
                for list in lists {
                    assert_eq!(list.join().unwrap(), 200);
                }
            });
        });
    });
    noticed.is_nothing(200);
}
