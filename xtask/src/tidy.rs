//! The layout is the architecture; modules cannot enforce it, so these tests do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which files may not name what, and why.
struct Rule {
    what: &'static str,
    names: &'static [&'static str],
    applies: fn(&str) -> bool,
    why: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        what: "axum",
        names: &["axum::", "use axum"],
        applies: |file| {
            file.starts_with("host/src/")
                && !file.starts_with("host/src/http/")
                && !file.ends_with("/api.rs")
                && file != "host/src/node.rs"
        },
        why: "only http/ and the domains' api.rs speak HTTP (and node.rs starts the server)",
    },
    Rule {
        what: "wasmtime",
        names: &["wasmtime::", "use wasmtime"],
        applies: |file| file.starts_with("host/src/") && !file.starts_with("host/src/sandbox/"),
        why: "only sandbox/ knows what runs the guests",
    },
    Rule {
        what: "sqlx",
        names: &["sqlx::", "use sqlx"],
        applies: |file| {
            file.starts_with("host/src/")
                && !file.starts_with("host/src/store/")
                && !file.ends_with("/sql.rs")
                && !file.contains("/sql/")
        },
        why: "SQL stands in store/, in sql.rs files and in sql/ folders",
    },
    Rule {
        what: "another room",
        names: &[
            "crate::apps",
            "crate::http",
            "crate::store",
            "crate::dispatch",
            "crate::kv",
            "crate::scripts",
            "crate::routes",
            "crate::identity",
            "crate::executions",
            "crate::node",
        ],
        applies: |file| file.starts_with("host/src/sandbox/"),
        why: "the sandbox knows nothing of HTTP, SQL or the domains",
    },
    Rule {
        what: "a domain",
        names: &[
            "crate::apps",
            "crate::http",
            "crate::dispatch",
            "crate::kv",
            "crate::scripts",
            "crate::routes",
            "crate::identity",
            "crate::executions",
            "crate::node",
            "crate::sandbox",
        ],
        applies: |file| file.starts_with("host/src/store/"),
        why: "the store knows no domain",
    },
    Rule {
        what: "HTTP",
        names: &["crate::http"],
        applies: |file| file.starts_with("host/src/dispatch/"),
        why: "arrows point from http to dispatch, not back",
    },
    Rule {
        what: "something postponed",
        names: &["todo!(", "unimplemented!(", "#[ignore"],
        applies: |file| file != "xtask/src/tidy.rs",
        why: "a stub called done is a defect",
    },
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// Every Rust file of ours, with its path from the root.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, root: &Path, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if path.file_name().is_none_or(|name| name != "target") {
                    walk(&path, root, found);
                }
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let name = path
                    .strip_prefix(root)
                    .unwrap()
                    .to_string_lossy()
                    .into_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let root = root();
    let mut found = Vec::new();
    for folder in ["host/src", "guest-rhai", "xtask/src", "tests"] {
        walk(&root.join(folder), &root, &mut found);
    }
    assert!(
        found.len() > 50,
        "only {} files found: the walk is broken",
        found.len()
    );
    found
}

#[test]
fn no_room_names_what_it_must_not_know() {
    let mut broken = Vec::new();
    for (file, text) in sources() {
        for rule in RULES.iter().filter(|rule| (rule.applies)(&file)) {
            for (at, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                if rule.names.iter().any(|name| code.contains(name)) {
                    broken.push(format!(
                        "{file}:{} names {}: {}",
                        at + 1,
                        rule.what,
                        rule.why
                    ));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn no_file_needs_a_table_of_contents() {
    let long = sources()
        .into_iter()
        .filter(|(_, text)| text.lines().count() > 700);
    let long: Vec<String> = long.map(|(file, _)| file).collect();
    assert!(long.is_empty(), "over 700 lines: {long:?}");
}

#[test]
fn no_room_is_a_drawer() {
    const DRAWERS: [&str; 5] = ["utils", "helpers", "common", "misc", "manager"];
    let named = sources().into_iter().map(|(file, _)| file).filter(|file| {
        file.trim_end_matches(".rs")
            .split('/')
            .any(|part| DRAWERS.contains(&part))
    });
    assert_eq!(named.collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn both_databases_have_the_same_migrations_tables_and_columns() {
    let list = |engine: &str| {
        let folder = fs::read_dir(root().join("migrations").join(engine)).unwrap();
        let mut names: Vec<_> = folder.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(list("sqlite"), list("postgres"));
    // The tables as they are after every migration, each with the first words of its lines.
    let tables = |engine: &str| {
        let mut tables = BTreeMap::<String, BTreeSet<String>>::new();
        for name in list(engine) {
            let text = fs::read_to_string(root().join("migrations").join(engine).join(name));
            let text = text.unwrap();
            let code = text
                .lines()
                .map(|line| line.split("--").next().unwrap_or_default());
            let code = code.collect::<Vec<_>>().join("\n");
            for statement in code.split(';') {
                let words: Vec<&str> = statement.split_whitespace().collect();
                match words[..] {
                    ["create", "table", table, ..] => {
                        let lines = statement.trim().lines().skip(1);
                        let columns = lines.filter_map(|line| line.split_whitespace().next());
                        let columns = columns.filter(|word| !word.starts_with(')'));
                        let columns = columns.map(str::to_owned).collect();
                        tables.insert(table.to_owned(), columns);
                    }
                    ["alter", "table", table, "add", "column", column, ..] => {
                        tables.get_mut(table).unwrap().insert(column.to_owned());
                    }
                    ["alter", "table", table, "rename", "to", new] => {
                        let columns = tables.remove(table).unwrap();
                        tables.insert(new.to_owned(), columns);
                    }
                    ["drop", "table", table] => {
                        tables.remove(table).unwrap();
                    }
                    _ => {}
                }
            }
        }
        tables
    };
    let (sqlite, postgres) = (tables("sqlite"), tables("postgres"));
    assert!(sqlite["executions"].contains("request_id"), "{sqlite:?}");
    assert_eq!(sqlite, postgres);
}
