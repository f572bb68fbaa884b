//! Attacks on the memory.

use picloud_tests::{Engine, on_both_engines};
use serde_json::json;

use crate::neighbour::{ATTACKER, Attacked};

on_both_engines!(p1_guests_hold_no_more_memory_than_they_may);

fn p1_guests_hold_no_more_memory_than_they_may(engine: Engine) {
    let settings = [("PICLOUD_GUEST_MEMORY_BYTES", "256MiB")];
    let attacked = Attacked::start_with(engine, "48 MiB each", &settings);
    let source = "let long = \"aaaaaaaaaaaaaaaa\"; for n in 0..20 { long += long; } \
        let n = 0; while n < 300000 { n += 1; } long.len";
    let limits = json!({ "fuel": 100_000_000_000_u64, "timeout_ms": 30_000 });
    attacked.attacker().script_with("s", source, limits);
    attacked.attacker().route("s", "GET /s");
    let noticed = attacked.during(|| {
        let answers = attacked.calls_at_once("/s", 60);
        let count = |status: u16| answers.iter().filter(|a| **a == Ok(status)).count();
        assert_eq!(count(200) + count(503), 60, "{answers:?}");
        assert!(count(200) > 0 && count(503) > 0, "{answers:?}");
    });
    noticed.is_nothing(450);
    let refused = attacked.attacker().executions("outcome=no_memory&limit=1");
    let said = refused[0]["error"]["message"].as_str().unwrap();
    assert!(said.contains("no more memory"), "{said}");
    assert_eq!(attacked.call(ATTACKER, "/s"), Ok(200), "all is given back");
}
