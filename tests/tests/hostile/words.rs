//! Attacks by what a script says: logs, and secrets that are looked for in them.

use picloud_tests::{Engine, on_both_engines};
use serde_json::json;

use crate::neighbour::{ATTACKER, Attacked};

on_both_engines!(
    p2_long_messages_beside_many_secrets_hold_nobody_up,
    p3_a_field_of_many_megabytes_is_not_looked_at,
    p3_many_small_fields_take_no_more_than_they_may,
);

/// A text of 32 MiB.
const LONG: &str = r#"let long = "aaaaaaaaaaaaaaaa"; for n in 0..21 { long += long; }"#;

fn limits() -> serde_json::Value {
    json!({ "memory_bytes": 256 << 20, "fuel": 100_000_000_000_u64, "log_bytes": 4 << 20 })
}

fn p2_long_messages_beside_many_secrets_hold_nobody_up(engine: Engine) {
    let attacked = Attacked::start(engine, "long messages, 200 secrets");
    for n in 0..200 {
        let value = json!({ "value": format!("{}{n}", "a".repeat(2_000)) });
        let path = format!("/apps/attacker/secrets/s{n}");
        assert_eq!(attacked.server.api("PUT", &path, Some(value)).status, 204);
    }
    let source = format!(
        "for n in 0..200 {{ secrets::get(`s${{n}}`); }} {LONG} for n in 0..7 {{ log::info(long); }}"
    );
    attacked.attacker().script_with("s", &source, limits());
    attacked.attacker().route("s", "GET /s");
    let noticed = attacked.during(|| {
        for _ in 0..3 {
            assert_eq!(attacked.calls_at_once("/s", 2), [Ok(200), Ok(200)]);
        }
    });
    noticed.is_nothing(700);
    let execution = attacked.attacker().last_execution();
    assert!(!execution.to_string().contains("aaaaaaaaaa"));
}

fn p3_a_field_of_many_megabytes_is_not_looked_at(engine: Engine) {
    let attacked = Attacked::start(engine, "a field of 32 MiB");
    let source = format!("{LONG} log::info(\"x\", #{{ long: long }}); 1");
    attacked.attacker().script_with("s", &source, limits());
    attacked.attacker().route("s", "GET /s");
    let noticed = attacked.during(|| {
        for _ in 0..6 {
            assert_eq!(attacked.call(ATTACKER, "/s"), Ok(200));
        }
    });
    noticed.is_nothing(400);
}

fn p3_many_small_fields_take_no_more_than_they_may(engine: Engine) {
    let attacked = Attacked::start(engine, "many small fields");
    let source = "for n in 0..20 { let fields = #{}; for m in 0..1000 { fields[`f${m}`] = [[], [], []]; } log::info(\"x\", fields); } 1";
    attacked.attacker().script_with("s", source, limits());
    attacked.attacker().route("s", "GET /s");
    let noticed = attacked.during(|| {
        for answer in attacked.calls_at_once("/s", 16) {
            assert_eq!(answer, Ok(200));
        }
    });
    noticed.is_nothing(700);
}
