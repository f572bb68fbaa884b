//! Attacks by what has to be compiled.

use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use picloud_tests::component::{FIXTURE, bomb, unique};
use picloud_tests::{Answer, Engine, Options, on_both_engines};
use serde_json::json;

use crate::neighbour::Attacked;

on_both_engines!(
    p5_ten_bombs_at_once_leave_nothing_behind,
    p1_the_same_component_many_times_at_once_is_compiled_once,
);

fn start(engine: Engine, name: &str, settings: &[(&'static str, &str)]) -> Attacked {
    let options = Options {
        own_cache: true,
        ..Options::with(settings)
    };
    Attacked::start_as(engine, name, options)
}

/// The files of compiled code, with what vouches for them.
fn code(attacked: &Attacked) -> Vec<String> {
    let files = std::fs::read_dir(attacked.server.cache_dir()).unwrap();
    let names = files.map(|file| file.unwrap().file_name().display().to_string());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

fn uploads_at_once(attacked: &Attacked, components: &[Vec<u8>]) -> Vec<Answer> {
    let bodies = components.iter().enumerate().map(|(n, wasm)| {
        json!({ "name": format!("c{n}"), "kind": "component", "wasm_base64": STANDARD.encode(wasm) })
    });
    let upload = |body| {
        attacked
            .server
            .api("POST", "/apps/attacker/scripts", Some(body))
    };
    thread::scope(|scope| {
        let uploads = bodies.map(|body| scope.spawn(move || upload(body)));
        let uploads: Vec<_> = uploads.collect();
        uploads.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

fn p5_ten_bombs_at_once_leave_nothing_behind(engine: Engine) {
    // One after the other, because one app has one compiler, and no less than a second each.
    let settings = [("PICLOUD_COMPILE_TIMEOUT_MS", "1000")];
    let attacked = start(engine, "ten bombs", &settings);
    let bombs: Vec<_> = (0..10).map(|_| bomb()).collect();
    let before = (code(&attacked), attacked.server.rows("script_versions"));
    let noticed = attacked.during(|| {
        for refused in uploads_at_once(&attacked, &bombs) {
            let detail = refused.json()["detail"].to_string();
            assert_eq!(refused.status, 422, "{detail}");
            assert!(detail.contains("compile_"), "{detail}");
        }
    });
    noticed.is_nothing(100);
    let after = (code(&attacked), attacked.server.rows("script_versions"));
    assert_eq!(after, before);
}

fn p1_the_same_component_many_times_at_once_is_compiled_once(engine: Engine) {
    let attacked = start(engine, "one component 8 times", &[]);
    let before = code(&attacked);
    let noticed = attacked.during(|| {
        for made in uploads_at_once(&attacked, &vec![unique(FIXTURE); 8]) {
            assert_eq!(made.status, 201, "{}", made.text());
        }
    });
    noticed.is_nothing(100);
    let mut more = code(&attacked);
    more.retain(|file| !before.contains(file));
    let kinds: Vec<_> = more
        .iter()
        .map(|file| file.split_once('.').unwrap())
        .collect();
    assert!(matches!(kinds[..], [(_, "cwasm"), (_, "hmac")]), "{more:?}");
}
