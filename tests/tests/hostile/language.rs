//! Attacks by what the language can do.

use picloud_tests::{Engine, on_both_engines};
use serde_json::json;

use crate::neighbour::{Attacked, in_rounds};

on_both_engines!(
    p1_recursion_without_end_throws,
    p1_a_pattern_that_repeats_what_repeats_is_matched_in_time,
    p1_a_pattern_that_is_enormous_throws,
    p1_a_text_that_doubles_ends_with_its_memory,
    p1_a_map_of_a_hundred_thousand_members_ends_with_its_fuel,
);

/// Call a script, twenty times at once: each call ends with the same status and outcome.
fn ends(engine: Engine, name: &str, source: &str, status: u16, outcome: &str) {
    let attacked = Attacked::start(engine, name);
    let app = attacked.attacker();
    let limits = json!({ "fuel": 500_000_000, "memory_bytes": 16 << 20 });
    app.script_with("s", source, limits);
    app.route("s", "GET /s");
    let noticed = attacked.during(|| {
        in_rounds(|| {
            for answer in attacked.calls_at_once("/s", 20) {
                assert_eq!(answer, Ok(status));
            }
        });
    });
    noticed.is_nothing(400);
    let ended = app.executions("limit=200");
    let other = ended.iter().find(|one| one["outcome"] != outcome);
    assert!(ended.len() >= 20 && other.is_none(), "{other:?}");
}

fn p1_recursion_without_end_throws(engine: Engine) {
    let source = "fn f(n) { f(n + 1) + 1 } f(0)";
    ends(engine, "recursion", source, 502, "threw");
}

fn p1_a_pattern_that_repeats_what_repeats_is_matched_in_time(engine: Engine) {
    let source = r#"let text = "a"; for n in 0..16 { text += text; } regex::is_match("^(((a+)+)+)+$", text + "!")"#;
    ends(engine, "nested quantifiers", source, 200, "answered");
}

fn p1_a_pattern_that_is_enormous_throws(engine: Engine) {
    let source = r#"regex::is_match("(((a{1,100}){1,100}){1,100}){1,100}", "a")"#;
    ends(engine, "an enormous pattern", source, 502, "threw");
}

fn p1_a_text_that_doubles_ends_with_its_memory(engine: Engine) {
    let source = r#"let text = "x"; loop { text += text; }"#;
    ends(engine, "doubled text", source, 502, "memory_exceeded");
}

fn p1_a_map_of_a_hundred_thousand_members_ends_with_its_fuel(engine: Engine) {
    let source = "let m = #{}; for n in 0..100000 { m[`k${n}`] = n; } m.len()";
    ends(engine, "100,000 members", source, 507, "fuel_used_up");
}
