//! What was refused leaves nothing behind: no file, no row, no compiled code.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base64::Engine as _;
use picloud_tests::component::{FIXTURE, bomb, section, unique};
use picloud_tests::{Answer, Engine, Options, Server, on_both_engines, wait_for};
use serde_json::{Value, json};

use crate::compiling::upload;

on_both_engines!(
    p5_what_was_refused_leaves_nothing_behind,
    p5_of_a_deleted_app_no_record_is_left,
);

/// Tables that change by themselves, by signs of life and when somebody was last seen; and the audit
/// log, which has that somebody tried.
const RESTLESS: [&str; 4] = ["nodes", "sessions", "waiting_samples", "audit"];

/// A component that imports the instance `import`, which is empty, and has it for its export `export`.
fn passing_on(import: &str, export: &str) -> Vec<u8> {
    let named = |name: &str| [&[0, name.len() as u8], name.as_bytes()].concat();
    let empty_instance_type = section(7, b"\x01\x42\0");
    let imports = section(10, &[b"\x01".to_vec(), named(import), vec![5, 0]].concat());
    let exports = section(
        11,
        &[b"\x01".to_vec(), named(export), vec![5, 0, 0]].concat(),
    );
    let head = b"\0asm\x0d\0\x01\0".to_vec();
    unique(&[head, empty_instance_type, imports, exports].concat())
}

/// What is on disk and in the database.
struct Everything {
    files: BTreeSet<String>,
    /// The rows of each table.
    rows: BTreeMap<String, Vec<String>>,
}

impl Everything {
    fn of(server: &Server) -> Self {
        let mut files = BTreeSet::new();
        for folder in [server.data_dir(), server.cache_dir()] {
            list(&folder, &mut files);
        }
        let columns = match server.is_on_postgres() {
            true => {
                "select table_name, column_name from information_schema.columns
                 where table_schema = 'public' order by 1, 2"
            }
            false => {
                "select m.name, c.name from sqlite_master m, pragma_table_info(m.name) c
                 where m.type = 'table' and m.name not like 'sqlite_%' order by 1, 2"
            }
        };
        let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for row in server.query(columns) {
            let [Some(table), Some(column)] = &row[..] else {
                panic!("{row:?}");
            };
            if !RESTLESS.contains(&table.as_str()) {
                tables
                    .entry(table.clone())
                    .or_default()
                    .push(column.clone());
            }
        }
        let texts = tables.iter().map(|(table, columns)| {
            let quoted = columns.iter().map(|column| match server.is_on_postgres() {
                true => format!("quote_nullable(\"{column}\"::text)"),
                false => format!("quote(\"{column}\")"),
            });
            let row = quoted.collect::<Vec<_>>().join(" || ',' || ");
            format!("select '{table}' as name, {row} as text from {table}")
        });
        let sql = texts.collect::<Vec<_>>().join(" union all ");
        let mut rows: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for row in server.query(&sql) {
            let mut texts = row.into_iter().flatten();
            let (table, text) = (texts.next().unwrap(), texts.next().unwrap());
            rows.entry(table).or_default().push(text);
        }
        rows.values_mut().for_each(|rows| rows.sort());
        Self { files, rows }
    }
}

fn list(folder: &Path, files: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => list(&path, files),
            false => {
                files.insert(path.display().to_string());
            }
        }
    }
}

/// The compiled code of a server.
fn code(server: &Server) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    list(&server.cache_dir(), &mut files);
    files
}

fn p5_what_was_refused_leaves_nothing_behind(engine: Engine) {
    let server = Server::start_with(
        engine,
        Options {
            environment: vec![
                ("PICLOUD_COMPILE_TIMEOUT_MS", "2000".to_owned()),
                ("PICLOUD_COMPILE_MEMORY_BYTES", "256MiB".to_owned()),
            ],
            own_cache: true,
            ..Options::default()
        },
    );
    let app = server.app("a");
    app.script("taken", "1");
    let component = upload(&server, "a", "component", &unique(FIXTURE)).json();
    let id = component["id"].as_str().unwrap().to_owned();
    let (_, viewer) = server.join("viewer", "member", json!({ "a": "viewer" }));

    // An app whose component no folder has code of, as a file.
    server.app("leaving");
    let before = code(&server);
    let made = upload(&server, "leaving", "component", &unique(FIXTURE));
    assert_eq!(made.status, 201, "{}", made.text());
    let exported = server.api("GET", "/apps/leaving/export", None).bytes;
    assert_eq!(server.api("DELETE", "/apps/leaving", None).status, 204);
    for file in code(&server).difference(&before) {
        std::fs::remove_file(file).unwrap();
    }
    wait_for("the app to be gone", || {
        (server.rows("apps") == 1).then_some(())
    });

    let before = Everything::of(&server);
    let see = |what: &str, refused: Answer, status: u16, says: &str| {
        assert_eq!(refused.status, status, "{what}: {}", refused.text());
        let text = refused.text();
        assert!(text.contains(says), "{what}: {text}");
        let after = Everything::of(&server);
        assert_eq!(after.files, before.files, "{what}");
        let differ = |table: &&String| after.rows.get(*table) != before.rows.get(*table);
        let tables: BTreeSet<_> = after.rows.keys().chain(before.rows.keys()).collect();
        let changed: Vec<_> = tables.into_iter().filter(differ).collect();
        assert!(changed.is_empty(), "{what}: rows of {changed:?}");
    };
    let source = |source: &str| json!({ "name": "new", "source": source });
    let create = |body: Value| server.api("POST", "/apps/a/scripts", Some(body));
    let change = |body: Value| server.api("PATCH", &format!("/scripts/{id}"), Some(body));
    let base64 = |wasm: &[u8]| base64::engine::general_purpose::STANDARD.encode(wasm);

    for (what, wasm, says) in [
        (
            "garbage",
            b"garbage".to_vec(),
            "not a WebAssembly component",
        ),
        (
            "a cut component",
            unique(FIXTURE)[..FIXTURE.len() / 2].to_vec(),
            "not valid",
        ),
        (
            "a function that does not validate",
            // A function of a type that there is not.
            [
                unique(FIXTURE),
                section(
                    1,
                    &[b"\0asm\x01\0\0\0".to_vec(), section(3, b"\x01\x07")].concat(),
                ),
            ]
            .concat(),
            "not valid",
        ),
        (
            "another world's import",
            passing_on("evil:thing/x", "picloud:function/handler@1.0.0"),
            "imports `evil:thing/x`",
        ),
        (
            "no handler",
            passing_on("picloud:kv/none@1.0.0", "other:thing/x"),
            "does not export",
        ),
        (
            "a handler of other types",
            passing_on("picloud:kv/none@1.0.0", "picloud:function/handler@1.0.0"),
            "does not fit the world",
        ),
        ("a bomb", bomb(), "`compile_"),
    ] {
        see(what, upload(&server, "a", "new", &wasm), 422, says);
        let changed = change(json!({ "version": 1, "wasm_base64": base64(&wasm) }));
        see(&format!("{what}, as a change"), changed, 422, says);
    }
    let fits = || unique(FIXTURE);
    see(
        "a component under a name that is taken",
        upload(&server, "a", "taken", &fits()),
        409,
        "name_taken",
    );
    let late = json!({ "version": 7, "wasm_base64": base64(&fits()) });
    see(
        "a version that is not there",
        change(late),
        409,
        "version_conflict",
    );
    let renamed = json!({ "version": 1, "name": "taken", "wasm_base64": base64(&fits()) });
    see(
        "a new version under a name that is taken",
        change(renamed),
        409,
        "name_taken",
    );
    see(
        "a source that does not parse",
        create(source("let n = ;")),
        422,
        "invalid_source",
    );
    see(
        "a source that is too large",
        create(source(&"1;".repeat(1 << 20))),
        422,
        "at most",
    );
    let entries: Vec<_> = (0..30_000).map(|n| format!("a{n}: 1")).collect();
    see(
        "a source that takes too long",
        create(source(&format!("#{{ {} }}", entries.join(", ")))),
        422,
        "to compile",
    );
    let limits = json!({ "name": "new", "source": "1", "limits": { "fuel": 0 } });
    see(
        "limits that nobody may set",
        create(limits),
        422,
        "limits.fuel",
    );
    let draft = json!({ "source": "let n = ;" });
    let tried = server.api("POST", "/apps/a/scripts/validate", Some(draft));
    see("a draft with a mistake", tried, 200, "diagnostics");

    let import = |query: &str, file: &[u8]| {
        let bearer = format!("Bearer {}", server.token);
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/zip"),
        ];
        let path = format!("/api/v1/imports?{query}");
        server.call("POST", &path, &headers, Some(file))
    };
    see(
        "an app under a slug that is taken",
        import("slug=a", &exported),
        409,
        "slug_taken",
    );
    let cut = &exported[..exported.len() / 2];
    see("half an app", import("slug=new", cut), 422, "file");

    let body = json!({ "name": "new", "kind": "component", "wasm_base64": base64(&fits()) });
    let forbidden = server.api_as(&viewer, "POST", "/apps/a/scripts", Some(body));
    see("what somebody may not do", forbidden, 403, "forbidden");

    // And what is taken is there.
    let made = upload(&server, "a", "new", &fits());
    assert_eq!(made.status, 201, "{}", made.text());
    let after = Everything::of(&server);
    assert_eq!(after.files.len(), before.files.len() + 2);
    assert_eq!(
        after.rows["scripts"].len(),
        before.rows["scripts"].len() + 1
    );
}

fn p5_of_a_deleted_app_no_record_is_left(engine: Engine) {
    let server = Server::start(engine);
    let app = server.app("shop");
    app.script("dies", "throw ctx.event.kv.value");
    app.trigger(
        "kv",
        json!({ "script": "dies", "collection": "things", "name": "t",
                "retry": { "attempts_max": 1 } }),
    );
    app.script("s", "1");
    app.route_with("s", "POST /s", json!({ "idempotency": { "ttl_s": 600 } }));
    let key = [("idempotency-key", "k")];
    assert_eq!(server.call("POST", "/s", &key, None).status, 200);
    for n in 0..70 {
        app.set("things", &format!("k{n}"), json!("personal"));
    }
    wait_for("the dead letters", || {
        let counts = server.api("GET", "/apps/shop/dead-letters/counts", None);
        (counts.json()["by_state"]["unresolved"] == 70).then_some(())
    });
    // One that goes on beyond its app's end, and one that waits for a day.
    app.script("slow", "sleep(4); 1");
    app.route_with("slow", "POST /slow", json!({ "dispatch_mode": "async" }));
    let retry = json!({ "attempts_max": 2, "backoff": "constant", "base_ms": 86_400_000 });
    app.trigger(
        "kv",
        json!({ "script": "dies", "collection": "later", "name": "later", "retry": retry }),
    );
    app.set("later", "k", json!("personal"));
    wait_for("the retry that is due tomorrow", || {
        let queue = server.api("GET", "/instance", None).json();
        (queue["queue"]["later"] == 1).then_some(())
    });
    assert_eq!(server.call("POST", "/slow", &[], None).status, 202);
    let running = || {
        server
            .query("select 1 from outbox where lease_owner is not null")
            .len()
    };
    wait_for("the slow one", || (running() == 1).then_some(()));
    assert_eq!(server.api("DELETE", "/apps/shop", None).status, 204);
    assert_eq!(running(), 1, "it goes on beyond the end of its app");
    wait_for("its end", || (running() == 0).then_some(()));
    for table in [
        "apps",
        "kv",
        "dead_letters",
        "executions",
        "abandoned_executions",
        "idempotency_keys",
        "outbox",
    ] {
        wait_for(table, || {
            let left = server.query(&format!("select 1 from {table}"));
            left.is_empty().then_some(())
        });
    }
}
