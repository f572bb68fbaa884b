//! The unit of systemd in `deploy/`: its flags are the program's, and what it takes away is taken away.

use std::path::Path;
use std::process::Command;

use picloud_tests::{Engine, Server, fine, report};

fn unit() -> (String, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/picloud.service");
    let text = std::fs::read_to_string(&path).unwrap();
    (path.display().to_string(), text)
}

/// What a line of the unit sets; the last one, as systemd takes it.
fn set<'u>(unit: &'u str, key: &str) -> Option<&'u str> {
    let lines = unit.lines().rev();
    let mut values = lines.filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.next()
}

#[test]
fn the_unit_names_flags_that_there_are_and_what_must_be_set() {
    let (_, unit) = unit();
    let server = Server::start(Engine::Sqlite);
    let help = fine(server.cli(&["serve", "--help"]));
    let start = set(&unit, "ExecStart").unwrap();
    let (_program, words) = start.split_once(' ').unwrap();
    let mut words = words.split(' ');
    assert_eq!(words.next(), Some("serve"));
    for flag in words.filter(|word| word.starts_with("--")) {
        assert!(help.contains(flag), "{flag}");
    }
    assert_ne!(set(&unit, "User"), None, "it runs as somebody");
    for (key, value) in [
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("StateDirectory", "picloud"),
        ("StateDirectoryMode", "0700"),
        ("CapabilityBoundingSet", ""),
        ("UMask", "0077"),
    ] {
        assert_eq!(set(&unit, key), Some(value), "{key}");
    }
    assert!(set(&unit, "MemoryMax").is_some());
    // Compiled WebAssembly is written, and then made executable.
    assert_eq!(set(&unit, "MemoryDenyWriteExecute"), None);
    // The limit on memory maps is read in /proc/sys.
    assert_eq!(set(&unit, "ProcSubset"), None);
}

#[test]
fn systemd_finds_little_exposure_in_the_unit() {
    let (path, _) = unit();
    let security = ["security", "--offline=true", "--threshold=20", "--no-pager"];
    let looked = Command::new("systemd-analyze")
        .args(security)
        .arg(&path)
        .output();
    match looked {
        // 2.0 of 10.
        Ok(found) => assert!(found.status.success(), "{}", fine(found)),
        Err(error) => report(format_args!(
            "systemd-analyze is not here ({error}): not looked at"
        )),
    }
}
