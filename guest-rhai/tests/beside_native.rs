//! The language here and as Rhai has it: the same scripts by Rhai's own interpreter, without
//! anything of ours, and by the guest's engine on both of its ways. What differs is on a list, with
//! its reason (`tests/rhai/differences.txt`).

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test may end where it finds something odd"
)]

mod generate;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use guest_rhai::host::HOST;
use guest_rhai::script::{self, Script};
use guest_rhai::{ctx, engine};
use rhai::{Dynamic, Engine, EvalAltResult, OptimizationLevel, Position};

/// How many generated cases there are unless `PICLOUD_RHAI_CASES` says otherwise.
const CASES: u64 = 1_000;
/// After how many operations a generated case counts as one that does not end.
const OPERATIONS_MAX: u64 = 100_000;

/// What became of a script: its value or its error, and what it printed.
#[derive(Debug, PartialEq, Eq, Clone)]
struct Ended {
    value: Result<String, (String, Position)>,
    printed: Vec<String>,
}

impl Ended {
    fn is_endless(&self) -> bool {
        matches!(&self.value, Err((text, _)) if text == "Too many operations")
    }
}

/// A value in all its detail.
fn shown(value: &Dynamic) -> String {
    let value = value.flatten_clone();
    if let Ok(float) = value.as_float() {
        return format!("{float:?}");
    }
    if let Some(array) = value.clone().try_cast::<rhai::Array>() {
        let items: Vec<_> = array.iter().map(shown).collect();
        return format!("[{}]", items.join(", "));
    }
    if let Some(map) = value.clone().try_cast::<rhai::Map>() {
        let members: Vec<_> = map
            .iter()
            .map(|(k, v)| format!("{k:?}: {}", shown(v)))
            .collect();
        return format!("#{{{}}}", members.join(", "));
    }
    if value.type_name() == "Fn" {
        return format!("a function: {}", without_number(&value.to_string()));
    }
    format!("{}: {value:?}", value.type_name())
}

/// A text without the numbers in Rhai's names for closures.
fn without_number(text: &str) -> String {
    let mut parts = text.split("anon$");
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        clean += "anon$";
        clean += part.trim_start_matches(|c: char| c.is_ascii_hexdigit());
    }
    clean
}

fn ended(value: Result<Dynamic, Box<EvalAltResult>>, printed: Vec<String>) -> Ended {
    let value = value.map(|value| shown(&value)).map_err(|error| {
        let mut error = *error;
        loop {
            let at = error.position();
            match error {
                EvalAltResult::ErrorInFunctionCall(_, _, inner, _)
                | EvalAltResult::ErrorInModule(_, inner, _) => {
                    error = *inner;
                    if error.position().is_none() {
                        error.set_position(at);
                    }
                }
                _ => break,
            }
        }
        let at = error.position();
        error.set_position(Position::NONE);
        let text = match &error {
            EvalAltResult::ErrorRuntime(value, _) => format!("thrown: {}", shown(value)),
            other => other.to_string(),
        };
        (without_number(&text), at)
    });
    Ended { value, printed }
}

thread_local! {
    static PRINTED: RefCell<Vec<String>> = RefCell::default();
    static NATIVE: Engine = native();
}

/// Rhai by itself, with the limits on depth that ours has.
fn native() -> Engine {
    let mut native = Engine::new();
    native
        .set_optimization_level(OptimizationLevel::None)
        .set_max_call_levels(engine::CALL_LEVELS_MAX)
        .set_max_expr_depths(engine::EXPR_DEPTH_MAX, engine::EXPR_DEPTH_MAX)
        .set_max_operations(OPERATIONS_MAX)
        .on_print(|text| PRINTED.with_borrow_mut(|to| to.push(text.to_owned())))
        .on_debug(|text, _, _| PRINTED.with_borrow_mut(|to| to.push(text.to_owned())));
    native
}

fn by_native(source: &str) -> Option<Ended> {
    NATIVE.with(|native| {
        PRINTED.take();
        let tree = native.compile(source).ok()?;
        let value = native.eval_ast::<Dynamic>(&tree);
        Some(ended(value, PRINTED.take()))
    })
}

fn by_ours(script: &Script) -> Ended {
    HOST.take();
    ctx::set_request(None);
    let value = engine::evaluate(script);
    let printed = HOST.take().log.into_iter().map(|line| line.1).collect();
    ended(value, printed)
}

/// The two ways of ours: bytecode, where there is one, and the tree.
fn by_both(source: &str) -> Option<(Option<Ended>, Ended)> {
    let tree = engine::parse(source).ok()?;
    let bytecode = script::compile(&tree).map(|compiled| by_ours(&compiled.load().unwrap()));
    Some((bytecode, by_ours(&script::of_tree(tree))))
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/rhai")
}

/// A difference that is known, and why there is one.
struct Known {
    /// `tree`, `bytecode` or `both`.
    way: String,
    /// Words that a description of the difference has.
    words: Vec<String>,
}

/// What a file says in lines; comments begin with `# `, since a script may begin with `#{`.
fn lines(file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(folder().join(file)).unwrap();
    let says = |line: &&str| !line.is_empty() && !line.starts_with("# ");
    text.lines().filter(says).map(str::to_owned).collect()
}

/// The list: `way | words … | reason`, in lines.
fn known() -> Vec<Known> {
    lines("differences.txt")
        .iter()
        .map(|line| {
            let parts: Vec<_> = line.split(" | ").collect();
            let [way, words, reason] = parts[..] else {
                panic!("not `way | words | reason`: {line}");
            };
            assert!(!reason.trim().is_empty(), "no reason: {line}");
            Known {
                way: way.trim().to_owned(),
                words: words
                    .split(" … ")
                    .map(|word| word.trim().to_owned())
                    .collect(),
            }
        })
        .collect()
}

/// A printed text without the columns of the errors in it.
fn without_column(text: &str) -> String {
    let mut parts = text.split("\"position\": ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        text + part.trim_start_matches(|c: char| c.is_ascii_digit())
    })
}

/// Where two ends differ, in words; none where they do not.
fn difference(native: &Ended, ours: &Ended) -> Option<String> {
    if native == ours {
        return None;
    }
    // A caught error that is printed says its place, too.
    let printed = native.printed.iter().zip(&ours.printed);
    let is_column = |(a, b): (&String, &String)| without_column(a) == without_column(b);
    let prints_the_same =
        native.printed.len() == ours.printed.len() && printed.clone().all(is_column);
    if let (Err((a, at)), Err((b, other))) = (&native.value, &ours.value)
        && a == b
        && prints_the_same
        && at != other
    {
        let what = match (at.line() == other.line(), at.position(), other.position()) {
            (true, Some(a), Some(b)) if a + 1 == b => "one column later",
            (true, ..) => "column",
            _ => "line",
        };
        return Some(format!("place: {what}: {a}: native {at:?}, ours {other:?}"));
    }
    if native.value == ours.value
        && prints_the_same
        && let Some((a, b)) = printed.clone().find(|(a, b)| a != b)
    {
        let message = a.split("\"message\": \"").nth(1).unwrap_or_default();
        return Some(format!("place: column: {message}: native {a}, ours {b}"));
    }
    let told = |ended: &Ended| match &ended.value {
        Ok(value) => format!("{value} printed {:?}", ended.printed),
        Err((text, at)) => format!("error `{text}` at {at:?} printed {:?}", ended.printed),
    };
    Some(format!("native {}; ours {}", told(native), told(ours)))
}

/// Compare a script on both ways; what differs and is not known.
fn odd(source: &str, known: &[Known]) -> Vec<String> {
    let native = by_native(source);
    if native.as_ref().is_some_and(Ended::is_endless) {
        return Vec::new();
    }
    let ours = by_both(source);
    let (native, (bytecode, tree)) = match (native, ours) {
        (Some(native), Some(ours)) => (native, ours),
        (None, None) => return Vec::new(),
        (native, _) => {
            let which = if native.is_some() {
                "only native"
            } else {
                "only ours"
            };
            return vec![format!("{which} parses it")];
        }
    };
    let ways = [("bytecode", bytecode), ("tree", Some(tree))];
    let differing = ways.into_iter().filter_map(|(way, ended)| {
        let difference = difference(&native, &ended?)?;
        let expected = known.iter().any(|known| {
            (known.way == way || known.way == "both")
                && known.words.iter().all(|word| difference.contains(word))
        });
        (!expected).then(|| format!("{way}: {difference}"))
    });
    differing.collect()
}

#[test]
fn generated_scripts_do_what_native_rhai_does() {
    let cases = std::env::var("PICLOUD_RHAI_CASES").ok();
    let cases = cases.map_or(CASES, |cases| cases.parse().unwrap());
    let first = std::env::var("PICLOUD_RHAI_FIRST").ok();
    let first = first.map_or(0, |first| first.parse().unwrap());
    let known = known();
    let mut found = BTreeMap::new();
    let (mut valid, mut compiled, mut threw) = (0, 0, 0);
    for seed in first..first + cases {
        let source = generate::script(seed);
        if let Some(native) = by_native(&source) {
            valid += 1;
            threw += u64::from(native.value.is_err());
        }
        compiled +=
            u64::from(engine::parse(&source).is_ok_and(|tree| script::compile(&tree).is_some()));
        let odd = odd(&source, &known);
        if !odd.is_empty() {
            found.insert(seed, (source, odd));
        }
    }
    println!("{cases} scripts: {valid} valid, {threw} threw, {compiled} have bytecode");
    for (seed, (source, odd)) in found.iter().take(20) {
        println!("seed {seed}:\n{source}\n  {}\n", odd.join("\n  "));
    }
    assert!(found.is_empty(), "{} of {cases} differ", found.len());
    assert!(valid * 10 > cases * 9, "only {valid} of {cases} are valid");
    assert!(
        threw * 2 < valid && threw * 20 > valid,
        "{threw} of {valid} throw"
    );
    assert!(
        compiled * 4 > valid,
        "only {compiled} of {valid} have bytecode"
    );
}

/// What an expectation says of how a script ended.
fn told(ended: Option<&Ended>) -> String {
    match ended.map(|ended| &ended.value) {
        None => "(invalid)".to_owned(),
        Some(Ok(value)) => value.clone(),
        Some(Err((message, _))) => format!("! {message}"),
    }
}

#[test]
fn the_language_does_what_is_expected() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in lines("expectations.txt") {
        let (source, is) = line.rsplit_once(" => ").unwrap();
        let source = source.replace("\\n", "\n").replace("\\r", "\r");
        let native = by_native(&source);
        let ours = by_both(&source);
        let tree = ours.as_ref().map(|(_, tree)| tree);
        let bytecode = ours.as_ref().and_then(|(bytecode, _)| bytecode.as_ref());
        let ways = [
            ("native", Some(told(native.as_ref()))),
            ("tree", Some(told(tree))),
        ];
        let bytecode = ("bytecode", bytecode.map(|ended| told(Some(ended))));
        for (way, told) in ways.into_iter().chain([bytecode]) {
            if told.as_ref().is_some_and(|told| told != is) {
                wrong.push(format!(
                    "{source}\n  {way}: {}\n  expected: {is}",
                    told.unwrap_or_default()
                ));
            }
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 50, "only {count} expectations");
}

/// Every literal text of a Rust source.
fn literals(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(at) = rest.find('"') {
        let hashes = rest[..at]
            .bytes()
            .rev()
            .take_while(|byte| *byte == b'#')
            .count();
        let is_raw = rest[..at - hashes].ends_with('r');
        let body = &rest[at + 1..];
        let end = match is_raw {
            true => body.find(&format!("\"{}", "#".repeat(hashes))),
            false => {
                let mut escaped = false;
                body.find(|c| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                })
            }
        };
        let Some(end) = end else { break };
        let text = &body[..end];
        found.push(match is_raw {
            true => text.to_owned(),
            false => text
                .replace("\\n", "\n")
                .replace("\\\"", "\"")
                .replace("\\\\", "\\"),
        });
        rest = &body[end + 1..];
    }
    found
}

/// The scripts in the tests of a checkout of Rhai's repository, which `tests/rhai/take-suite.sh` makes.
#[test]
fn the_upstream_suites_scripts_do_what_native_rhai_does() {
    let Some(suite) = std::env::var_os("PICLOUD_RHAI_SUITE") else {
        println!("skipped: `cargo xtask soak` takes the suite, and sets PICLOUD_RHAI_SUITE");
        return;
    };
    // Some of its scripts go deep.
    let running = move || run_suite(&PathBuf::from(suite));
    let running = std::thread::Builder::new()
        .stack_size(1 << 30)
        .spawn(running);
    running.unwrap().join().unwrap();
}

/// Which scripts of the suite are not held against native Rhai: files of it, and words of scripts.
/// The list: `file or words | what | reason`, in lines.
fn left_out() -> (Vec<String>, Vec<String>) {
    let (mut files, mut words) = (Vec::new(), Vec::new());
    for line in lines("left-out.txt") {
        let parts: Vec<_> = line.split(" | ").map(str::trim).collect();
        match parts[..] {
            ["file", name, reason] if !reason.is_empty() => files.push(name.to_owned()),
            ["words", what, reason] if !reason.is_empty() => words.push(what.to_owned()),
            _ => panic!("not `file or words | what | reason`: {line}"),
        }
    }
    (files, words)
}

fn run_suite(suite: &std::path::Path) {
    let known = known();
    let (files, words) = left_out();
    let (mut count, mut skipped, mut found) = (0, 0, Vec::new());
    for file in std::fs::read_dir(suite.join("tests")).unwrap() {
        let path = file.unwrap().path();
        let is_rust = path.extension().is_some_and(|ext| ext == "rs");
        if !is_rust || files.iter().any(|name| path.ends_with(name)) {
            continue;
        }
        for source in literals(&std::fs::read_to_string(&path).unwrap()) {
            if words.iter().any(|words| source.contains(words.as_str())) {
                skipped += 1;
                continue;
            }
            // Most literals are no scripts, or take what the test registers.
            if by_native(&source).is_none() {
                continue;
            }
            count += 1;
            let odd = odd(&source, &known);
            if !odd.is_empty() {
                found.push(format!(
                    "{}:\n{source}\n  {}",
                    path.display(),
                    odd.join("\n  ")
                ));
            }
        }
    }
    println!("{count} scripts of the suite, {skipped} left out");
    assert!(
        found.is_empty(),
        "{} differ\n{}",
        found.len(),
        found.join("\n")
    );
    assert!(count > 1_000, "only {count} scripts of the suite");
}
