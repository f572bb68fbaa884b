//! `time::{now, now_ms, parse, format}` in UTC, and `sleep`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};
use rhai::{Engine, ImmutableString, Module};

use super::{Context, Native, fail};
use crate::host;

/// The longest sleep: beyond any deadline.
const SLEEP_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Milliseconds since 1970.
pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn at(context: &Context<'_>, call: &'static str, ms: i64) -> Native<DateTime<Utc>> {
    match DateTime::from_timestamp_millis(ms) {
        Some(at) => Ok(at),
        None => fail(context, call, format!("{ms} ms is out of range")),
    }
}

fn rfc_3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

pub(super) fn module() -> Module {
    let mut module = Module::new();
    module.set_native_fn("now", |context: Context<'_>| {
        Ok(rfc_3339(at(&context, "time::now", now_ms())?))
    });
    module.set_native_fn("now_ms", || Ok(now_ms()));
    module.set_native_fn(
        "parse",
        |context: Context<'_>, text: ImmutableString| -> Native<i64> {
            match DateTime::parse_from_rfc3339(&text) {
                Ok(at) => Ok(at.timestamp_millis()),
                Err(problem) => fail(
                    &context,
                    "time::parse",
                    format!("{problem}; write it like 2026-01-31T12:00:00Z"),
                ),
            }
        },
    );
    module.set_native_fn("format", |context: Context<'_>, ms: i64| {
        Ok(rfc_3339(at(&context, "time::format", ms)?))
    });
    module.set_native_fn(
        "format",
        |context: Context<'_>, ms: i64, format: ImmutableString| -> Native<String> {
            const CALL: &str = "time::format";
            let mut text = String::new();
            let formatted = at(&context, CALL, ms)?.format(&format);
            match std::fmt::Write::write_fmt(&mut text, format_args!("{formatted}")) {
                Ok(()) => Ok(text),
                Err(_) => fail(
                    &context,
                    CALL,
                    format!("`{format}` is no format; see strftime"),
                ),
            }
        },
    );
    module
}

/// `sleep(seconds)`, for a whole number or a fraction. It waits in the host and holds nothing.
pub(super) fn register_sleep(engine: &mut Engine) {
    fn sleep(context: &Context<'_>, seconds: f64) -> Native<()> {
        match Duration::try_from_secs_f64(seconds) {
            Ok(long) => host::sleep(long.min(SLEEP_MAX)),
            Err(_) => {
                return fail(
                    context,
                    "sleep",
                    format!("{seconds} is no number of seconds"),
                );
            }
        }
        Ok(())
    }
    engine.register_fn("sleep", |context: Context<'_>, seconds: i64| {
        sleep(&context, seconds as f64)
    });
    engine.register_fn("sleep", |context: Context<'_>, seconds: f64| {
        sleep(&context, seconds)
    });
}
