//! Numbers keep their digits on the ways that lead through scripts.

use picloud_tests::{Engine, Server, doubles, on_both_engines, wait_for};
use serde_json::json;

use super::json_values::api;

on_both_engines!(doubles_and_large_integers_reach_scripts_as_they_are);

fn doubles_and_large_integers_reach_scripts_as_they_are(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("a");
    let doubles = doubles(0x2545_F491_4F6C_DD1D).take(300);
    let mut written: Vec<String> = doubles.map(|double| format!("{double:e}")).collect();
    written.extend(
        [
            "9007199254740993",
            "9223372036854775807",
            "-9223372036854775808",
            "18446744073709551616",
            "10.0",
            "-0.0",
        ]
        .map(str::to_owned),
    );
    let numbers = format!("[{}]", written.join(","));
    let is_a_double = |number: &str| number.contains(['.', 'e', 'E']);
    let same = |told: &str| {
        let told = told.trim_start_matches('[').trim_end_matches(']');
        let told: Vec<&str> = told.split(',').map(str::trim).collect();
        assert_eq!(told.len(), written.len(), "{told:?}");
        for (told, written) in told.iter().zip(&written) {
            if is_a_double(written) {
                let bits = |text: &str| text.parse::<f64>().unwrap().to_bits();
                assert!(is_a_double(told), "{told} was {written}");
                assert_eq!(bits(told), bits(written), "{told} was {written}");
            } else {
                assert_eq!(told, written);
            }
        }
    };
    let echo = app.script("echo", "ctx.request.body");
    let body = format!("{{\"body\": {numbers}}}");
    let ran = api(&server, "POST", &format!("/scripts/{echo}/execute"), &body);
    assert_eq!(ran.json()["outcome"], "answered", "{}", ran.text());
    same(ran.json()["response"]["body"].as_str().unwrap());
    // What died is told to whoever handles dead letters.
    app.script("doomed", "throw 1");
    let once = json!({ "attempts_max": 1 });
    let trigger = json!({ "script": "doomed", "collection": "in", "retry": once });
    app.trigger("kv", trigger);
    app.script(
        "told",
        r#"kv::collection("told").set("k", ctx.event.dead_letter.original.kv.value)"#,
    );
    app.trigger("dead_letter", json!({ "script": "told" }));
    assert_eq!(api(&server, "PUT", "/apps/a/kv/in/k", &numbers).status, 204);
    let told = wait_for("the handler", || {
        let told = api(&server, "GET", "/apps/a/kv/told/k", "");
        (told.status == 200).then_some(told)
    });
    same(&told.text());
}
