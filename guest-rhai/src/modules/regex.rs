//! `regex::{is_match, find, find_all, captures, replace, split}`: linear in the text whatever the
//! pattern.

use regex_lite::{Captures, Regex, RegexBuilder};
use rhai::{Array, Dynamic, ImmutableString, Map, Module};

use super::{Context, Native, fail};

/// What a compiled pattern may take, in bytes.
const PATTERN_BYTES_MAX: usize = 1024 * 1024;

fn compile(context: &Context<'_>, call: &'static str, pattern: &str) -> Native<Regex> {
    RegexBuilder::new(pattern)
        .size_limit(PATTERN_BYTES_MAX)
        .build()
        .or_else(|problem| fail(context, call, format!("the pattern: {problem}")))
}

/// The groups by number, and those that have one by name.
fn groups(regex: &Regex, captures: &Captures<'_>) -> Map {
    let value = |group: Option<regex_lite::Match<'_>>| {
        group.map_or(Dynamic::UNIT, |group| group.as_str().into())
    };
    let mut map = Map::new();
    for (at, name) in regex.capture_names().enumerate() {
        map.insert(at.to_string().into(), value(captures.get(at)));
        if let Some(name) = name {
            map.insert(name.into(), value(captures.get(at)));
        }
    }
    map
}

pub(super) fn module() -> Module {
    let mut module = Module::new();
    module.set_native_fn(
        "is_match",
        |context: Context<'_>, pattern: ImmutableString, text: ImmutableString| {
            Ok(compile(&context, "regex::is_match", &pattern)?.is_match(&text))
        },
    );
    module.set_native_fn(
        "find",
        |context: Context<'_>, pattern: ImmutableString, text: ImmutableString| {
            let found = compile(&context, "regex::find", &pattern)?
                .find(&text)
                .map(|found| found.as_str().into());
            Ok::<Dynamic, _>(found.unwrap_or(Dynamic::UNIT))
        },
    );
    module.set_native_fn(
        "find_all",
        |context: Context<'_>, pattern: ImmutableString, text: ImmutableString| {
            let regex = compile(&context, "regex::find_all", &pattern)?;
            Ok::<Array, _>(
                regex
                    .find_iter(&text)
                    .map(|found| found.as_str().into())
                    .collect(),
            )
        },
    );
    module.set_native_fn(
        "captures",
        |context: Context<'_>, pattern: ImmutableString, text: ImmutableString| {
            let regex = compile(&context, "regex::captures", &pattern)?;
            let found = regex
                .captures(&text)
                .map(|captures| groups(&regex, &captures).into());
            Ok::<Dynamic, _>(found.unwrap_or(Dynamic::UNIT))
        },
    );
    module.set_native_fn(
        "replace",
        |context: Context<'_>,
         pattern: ImmutableString,
         text: ImmutableString,
         with: ImmutableString| {
            let regex = compile(&context, "regex::replace", &pattern)?;
            Ok(regex.replace_all(&text, with.as_str()).into_owned())
        },
    );
    module.set_native_fn(
        "split",
        |context: Context<'_>, pattern: ImmutableString, text: ImmutableString| {
            let regex = compile(&context, "regex::split", &pattern)?;
            Ok::<Array, _>(regex.split(&text).map(Into::into).collect())
        },
    );
    module
}
