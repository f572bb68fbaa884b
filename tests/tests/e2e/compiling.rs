//! Compiling what was uploaded: what one app makes it cost is not another's to wait for.

use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use picloud_tests::component::{FIXTURE, bomb, unique};
use picloud_tests::{Answer, Engine, Options, Server, on_both_engines, report, wait_for};
use serde_json::json;

on_both_engines!(
    a_neighbours_upload_is_compiled_while_another_app_uploads_ten_bombs,
    the_same_component_may_be_uploaded_many_times_at_once,
    more_than_may_wait_are_told_when_to_come_again,
    a_neighbours_source_is_validated_while_another_app_validates_bombs,
);

/// Upload a component.
pub fn upload(server: &Server, app: &str, name: &str, wasm: &[u8]) -> Answer {
    let text = base64::engine::general_purpose::STANDARD.encode(wasm);
    let body = json!({ "name": name, "kind": "component", "wasm_base64": text });
    server.api("POST", &format!("/apps/{app}/scripts"), Some(body))
}

fn start(engine: Engine, environment: &[(&'static str, &str)]) -> Server {
    let options = Options {
        own_cache: true,
        ..Options::with(environment)
    };
    Server::start_with(engine, options)
}

/// The processes that compile for a server, each with the memory that it takes, in MiB.
fn compilers(server: &Server) -> Vec<(u32, u64)> {
    let parent = format!("PPid:\t{}\n", server.pid());
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter_map(|id: u32| {
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let words = std::fs::read(format!("/proc/{id}/cmdline")).ok()?;
        let words = String::from_utf8_lossy(&words).into_owned();
        let is_one = status.contains(&parent) && words.contains("compile-component");
        let resident = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = resident.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        is_one.then_some((id, kib.unwrap_or_default() / 1024))
    })
    .collect()
}

fn a_neighbours_upload_is_compiled_while_another_app_uploads_ten_bombs(engine: Engine) {
    // The bombs take 2 s each, one after the other.
    const WITHIN: Duration = Duration::from_secs(10);
    let server = start(engine, &[("PICLOUD_COMPILE_TIMEOUT_MS", "2000")]);
    server.app("bomber");
    server.app("neighbour");
    let server = &server;
    thread::scope(|scope| {
        let bombs: Vec<_> = (0..10)
            .map(|n| scope.spawn(move || upload(server, "bomber", &format!("b{n}"), &bomb())))
            .collect();
        wait_for("a bomb", || (!compilers(server).is_empty()).then_some(()));
        let mut slowest = Duration::ZERO;
        for n in 0..4 {
            let began = Instant::now();
            let answer = upload(server, "neighbour", &format!("n{n}"), &unique(FIXTURE));
            assert_eq!(answer.status, 201, "{}", answer.text());
            slowest = slowest.max(began.elapsed());
        }
        let running = compilers(server);
        assert!(running.len() <= 1, "one app has one compiler: {running:?}");
        let (mut most, mut largest) = (0, 0);
        while bombs.iter().any(|bomb| !bomb.is_finished()) {
            let running = compilers(server);
            most = most.max(running.len());
            largest = largest.max(running.iter().map(|(_, mib)| *mib).sum::<u64>());
            thread::sleep(Duration::from_millis(50));
        }
        for bomb in bombs {
            let refused = bomb.join().unwrap();
            let detail = refused.json()["detail"].to_string();
            assert_eq!(refused.status, 422, "{detail}");
            assert!(detail.contains("compile_"), "{detail}");
        }
        report(format_args!(
            "beside ten bombs an upload takes {slowest:?}; they take {most} processes and {largest} MiB"
        ));
        assert!(slowest < WITHIN, "{slowest:?}");
        assert!(most <= 1 && largest <= 640, "{most}, {largest} MiB");
    });
    assert!(compilers(server).is_empty());
}

fn the_same_component_may_be_uploaded_many_times_at_once(engine: Engine) {
    let server = &start(engine, &[]);
    for n in 0..4 {
        server.app(&format!("a{n}"));
    }
    let wasm = &unique(FIXTURE);
    thread::scope(|scope| {
        let uploads: Vec<_> = (0..16)
            .map(|n| {
                let app = format!("a{}", n % 4);
                scope.spawn(move || upload(server, &app, &format!("c{n}"), wasm))
            })
            .collect();
        for one in uploads {
            let made = one.join().unwrap();
            assert_eq!(made.status, 201, "{}", made.text());
        }
    });
    let app = server.known_app("a0");
    app.route("c0", "ANY /c/{*rest}");
    assert_eq!(server.get("/c/x").status, 200);
}

fn more_than_may_wait_are_told_when_to_come_again(engine: Engine) {
    let server = &start(engine, &[("PICLOUD_COMPILE_TIMEOUT_MS", "1000")]);
    server.app("a");
    thread::scope(|scope| {
        let uploads: Vec<_> = (0..16)
            .map(|n| scope.spawn(move || upload(server, "a", &format!("b{n}"), &bomb())))
            .collect();
        let answers: Vec<_> = uploads.into_iter().map(|one| one.join().unwrap()).collect();
        let told: Vec<_> = answers.iter().filter(|one| one.status == 503).collect();
        assert!(!told.is_empty());
        for answer in told {
            assert_eq!(answer.problem(), "overloaded");
            assert_eq!(answer.headers["retry-after"], "1");
            let detail = answer.json()["detail"].to_string();
            assert!(detail.contains("10 wait already"), "{detail}");
        }
    });
}

fn a_neighbours_source_is_validated_while_another_app_validates_bombs(engine: Engine) {
    let server = &start(engine, &[]);
    server.app("bomber");
    server.app("neighbour");
    let validate = |app: &str, source: &str| {
        let body = json!({ "source": source });
        server.api("POST", &format!("/apps/{app}/scripts/validate"), Some(body))
    };
    // Each entry is compared with all before it.
    let entries: Vec<_> = (0..30_000).map(|n| format!("a{n}: 1")).collect();
    let bomb = &format!("#{{ {} }}", entries.join(", "));
    let began = Instant::now();
    let alone = validate("bomber", bomb);
    let took = began.elapsed();
    let found = alone.json()["diagnostics"][0]["message"].to_string();
    assert!(found.contains("more work to compile"), "{}", alone.text());
    thread::scope(|scope| {
        let bombs: Vec<_> = (0..8)
            .map(|_| scope.spawn(move || validate("bomber", bomb)))
            .collect();
        let mut waits: Vec<_> = (0..20)
            .map(|n| {
                let began = Instant::now();
                let fine = validate("neighbour", &format!("let n = {n}; n + 1"));
                assert_eq!(fine.json()["diagnostics"], json!([]), "{}", fine.text());
                began.elapsed()
            })
            .collect();
        waits.sort();
        for bomb in bombs {
            assert_eq!(bomb.join().unwrap().status, 200);
        }
        report(format_args!(
            "a bomb ends after {took:?}; beside eight a source is validated in {:?} at most",
            waits[19]
        ));
        assert!(waits[19] < Duration::from_secs(1), "{waits:?}");
    });
}
