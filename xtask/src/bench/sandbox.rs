//! One execution inside the host, without HTTP and without a database.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Bench;
use super::report::Row;

/// What `host/examples/sandbox_bench.rs` measures.
pub(super) fn rows(bench: &Bench) -> Result<Vec<Row>> {
    let runs = bench.scale.sandbox_runs.to_string();
    let output = Command::new(bench.programs.join("examples/sandbox_bench"))
        .arg(runs)
        .output()?;
    let said: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let number = |name: &str| said[name].as_f64().with_context(|| format!("no {name}"));
    let fresh = number("fresh_us")?;
    let long_kept = number("long_kept_us")?;
    Ok(vec![
        Row::new("fresh instance, compile, run: median", fresh, "µs")
            .at_most(90.0)
            .moonshot(45.0),
        Row::new("the same with a kept program", number("kept_us")?, "µs"),
        Row::new(
            "native Rhai, an engine per call ÷ fresh instance, compile, run",
            number("native_engine_per_call_us")? / fresh,
            "×",
        )
        .at_least(2.0),
        Row::new(
            "a 300-line script: fresh instance, compile, run",
            number("long_us")?,
            "µs",
        ),
        Row::new(
            "  what it takes, its program being kept ÷ the same with the program in place",
            long_kept / number("long_in_place_us")?,
            "×",
        )
        .at_most(3.0)
        .moonshot(1.3),
        Row::new(
            "a loop of 1,000,000 turns, fuel and deadline on ÷ native Rhai",
            number("loop_ms")? / number("native_loop_ms")?,
            "×",
        )
        .at_most(1.6)
        .moonshot(1.2),
    ])
}
