//! Attacks on the processor.

use std::time::Duration;

use picloud_tests::{Engine, on_both_engines};
use serde_json::json;

use crate::neighbour::{ATTACKER, Attacked};

on_both_engines!(
    p1_loops_leave_others_their_turns,
    p1_loops_whose_callers_left_leave_others_their_turns,
);

/// How many loops run at once.
const LOOPS: usize = 400;

fn loops(attacked: &Attacked) {
    let limits = json!({ "fuel": 500_000_000_000_u64, "timeout_ms": 5_000 });
    attacked.attacker().script_with("loop", "loop {}", limits);
    attacked.attacker().route("loop", "GET /loop");
}

fn p1_loops_leave_others_their_turns(engine: Engine) {
    let attacked = Attacked::start(engine, "loops");
    loops(&attacked);
    let noticed = attacked.during(|| {
        for answer in attacked.calls_at_once("/loop", LOOPS) {
            assert_eq!(answer, Ok(504));
        }
    });
    noticed.is_nothing(400);
    // What was stopped by its deadline tells what it took.
    let used = attacked.attacker().last_execution()["fuel"].as_u64();
    assert!(used.unwrap() > 0);
}

fn p1_loops_whose_callers_left_leave_others_their_turns(engine: Engine) {
    let attacked = Attacked::start(engine, "loops whose callers left");
    loops(&attacked);
    let noticed = attacked.during(|| {
        std::thread::scope(|scope| {
            for _ in 0..LOOPS {
                scope.spawn(|| {
                    for _ in 0..4 {
                        let time = Duration::from_millis(700);
                        let headers = [("host", ATTACKER)];
                        let server = &attacked.server;
                        let call = server.call_within(time, "GET", "/loop", &headers, None);
                        assert!(call.is_err(), "the caller has left");
                    }
                });
            }
        });
        attacked.until_idle();
    });
    // Each that has begun holds an instance until its time limit: of the 1,600 nearly all.
    noticed.is_nothing(600);
}
