//! The machine: who may read the files, how much room there is, what the kernel allows.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::process::{Resource, geteuid, getrlimit};

use super::{Finding, shell};
use crate::config::Config;
use crate::machine;
use crate::sandbox::{self, Cached, RHAI_GUEST};

/// Free space below which the database may soon not be written any more, and below which somebody
/// should look.
const DISK_BYTES_ERROR: u64 = 256 << 20;
const DISK_BYTES_WARNING: u64 = 2 << 30;
/// Files besides the connections: the database, compiled code, logs.
const OTHER_FILES: u64 = 256;

/// Every check of the machine that a server can do, too.
pub(super) fn check(config: &Config) -> Vec<Finding> {
    vec![
        user(geteuid().is_root()),
        private("data_dir", &config.data_dir, "700"),
        private("cache_dir", &config.cache_dir, "700"),
        private("cache_key", &config.cache_dir.join("key"), "600"),
        disk(&config.data_dir),
        compiler(sandbox::has_seccomp(), sandbox::has_landlock()),
        map_count(config.executions_max),
        open_files(
            config.connections_max as u64,
            getrlimit(Resource::Nofile).maximum,
        ),
    ]
}

/// Whether whoever breaks out of the sandbox would be root.
fn user(is_root: bool) -> Finding {
    const NAME: &str = "user";
    match is_root {
        false => Finding::ok(NAME, "this does not run as root"),
        true => Finding::warning(
            NAME,
            "this runs as root: whoever breaks out of the sandbox has the whole machine",
            "Run it as a user of its own, as deploy/picloud.service does, or by --user in a container.",
        ),
    }
}

/// Which layer this process has behind the sandbox, as far as the kernel tells.
pub(super) fn confinement() -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    second_layer(&status, machine::memory_limit_bytes())
}

/// `status` is that of the process in `/proc`.
fn second_layer(status: &str, memory_max: Option<u64>) -> Finding {
    const NAME: &str = "confinement";
    let field = |name: &str| {
        let mut lines = status.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.map(str::trim)
    };
    let mut lacks = Vec::new();
    if field("Seccomp") == Some("0") {
        lacks.push("any system call may be made (no seccomp filter)");
    }
    if field("NoNewPrivs") == Some("0") {
        lacks.push("programs may raise privileges (no_new_privs is off)");
    }
    if memory_max.is_none() {
        lacks.push("memory is not limited");
    }
    match lacks.is_empty() {
        true => Finding::ok(
            NAME,
            "the process has a seccomp filter, gets no new privileges, and its memory is limited",
        ),
        false => Finding::warning(
            NAME,
            format!("the sandbox has no second layer: {}", lacks.join("; ")),
            "Start it by deploy/picloud.service, or with the same limits; docs/access.md says what they are for.",
        ),
    }
}

/// Whether a path belongs to whoever runs this. What is not there yet will.
pub(super) fn is_ours(path: &Path) -> bool {
    let owner = fs::metadata(path).map(|about| about.uid());
    owner.is_ok_and(|owner| owner == geteuid().as_raw()) || !path.exists()
}

/// Whether a file or folder belongs to whoever runs this, and to nobody else.
pub(super) fn private(name: &'static str, path: &Path, mode: &str) -> Finding {
    let shown = shell(path);
    let about = match fs::metadata(path) {
        Ok(about) => about,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let found = format!("{shown} is not there yet; the first start makes it");
            return Finding::ok(name, found);
        }
        Err(error) => {
            let fix = "Let it belong to the user that the server runs as.";
            return Finding::error(name, format!("{shown} cannot be looked at: {error}"), fix)
                .with_command(format!("chown -R USER {shown}"));
        }
    };
    let (owner, own) = (about.uid(), geteuid().as_raw());
    if owner != own {
        return Finding::error(
            name,
            format!("{shown} belongs to the user {owner}, and this runs as {own}"),
            "Run this as the user that the server runs as, and let everything in data_dir and cache_dir belong to that user.",
        )
        .with_command(format!("chown -R {own} {shown}"));
    }
    let bits = about.permissions().mode() & 0o777;
    if bits & 0o077 != 0 {
        return Finding::error(
            name,
            format!("other users of this machine may use {shown} (mode {bits:o})"),
            "Let only its owner read and change it.",
        )
        .with_command(format!("chmod {mode} {shown}"));
    }
    Finding::ok(name, format!("{shown} is its owner's alone"))
}

/// Whether a file with secrets, which somebody else may have put there for us, is not everybody's.
pub(super) fn secret(name: &'static str, path: &Path) -> Finding {
    let shown = shell(path);
    match fs::metadata(path).map(|about| about.permissions().mode() & 0o777) {
        Ok(bits) if bits & 0o007 != 0 => Finding::warning(
            name,
            format!("every user of this machine may use {shown} (mode {bits:o}), and it has secrets in it"),
            "Let only the user that the server runs as read it.",
        )
        .with_command(format!("chmod o= {shown}")),
        Ok(_) => Finding::ok(name, format!("{shown} is not everybody's to read")),
        Err(error) => Finding::error(
            name,
            format!("{shown} cannot be looked at: {error}"),
            "See that it is there, and that the user that the server runs as may read it.",
        ),
    }
}

fn disk(data_dir: &Path) -> Finding {
    const NAME: &str = "disk";
    let there = data_dir.ancestors().find(|folder| folder.exists());
    let folder = there.unwrap_or(Path::new("."));
    match rustix::fs::statvfs(folder) {
        Ok(disk) => room(&shell(folder), disk.f_bavail.saturating_mul(disk.f_frsize)),
        Err(error) => Finding::error(
            NAME,
            format!("the disk of {} cannot be asked: {error}", shell(folder)),
            "See that it is mounted.",
        ),
    }
}

fn room(folder: &str, free: u64) -> Finding {
    const NAME: &str = "disk";
    const FIX: &str = "Make room, or keep less: execution_retention_days, dead_letter_retention_days. Below 64 MiB, an instance on SQLite takes nothing new on.";
    let found = format!("{} MiB are free at {folder}", free >> 20);
    let command = format!("du -sh {folder}/*");
    match free {
        ..DISK_BYTES_ERROR => Finding::error(NAME, found, FIX).with_command(command),
        DISK_BYTES_ERROR..DISK_BYTES_WARNING => {
            Finding::warning(NAME, found, FIX).with_command(command)
        }
        _ => Finding::ok(NAME, found),
    }
}

/// Whether the compiler of uploaded components can be confined.
fn compiler(has_seccomp: bool, has_landlock: bool) -> Finding {
    const NAME: &str = "compiler";
    match (has_seccomp, has_landlock) {
        (false, _) => Finding::error(
            NAME,
            "the kernel has no filters of system calls (seccomp), so no component can be compiled",
            "Run on a kernel with CONFIG_SECCOMP_FILTER.",
        ),
        (true, false) => Finding::warning(
            NAME,
            "the kernel has no Landlock: the compiler of uploads is confined by a filter of system calls alone",
            "Have the kernel started with landlock in its list lsm=; Linux has it since 5.13.",
        ),
        (true, true) => Finding::ok(
            NAME,
            "the compiler of uploads is confined by a filter of system calls and by Landlock",
        ),
    }
}

fn map_count(wanted: u32) -> Finding {
    const NAME: &str = "max_map_count";
    let Some(limit) = sandbox::map_limit() else {
        return Finding::ok(NAME, "the kernel tells of no limit on memory maps");
    };
    let possible = sandbox::executions_within(limit);
    if possible >= wanted {
        let found = format!("{wanted} executions at once fit into vm.max_map_count = {limit}");
        return Finding::ok(NAME, found);
    }
    let needed = sandbox::maps_of(wanted);
    Finding::warning(
        NAME,
        format!(
            "executions_max is {wanted}, and vm.max_map_count = {limit} allows {possible}: the server takes no more than those at once"
        ),
        "Raise the kernel's limit, here and in /etc/sysctl.d, or make executions_max less.",
    )
    .with_command(format!("sysctl -w vm.max_map_count={needed}"))
}

/// The server raises its own limit as far as it may, so `limit` is the hard one.
fn open_files(connections_max: u64, limit: Option<u64>) -> Finding {
    const NAME: &str = "open_files";
    let needed = connections_max + OTHER_FILES;
    match limit {
        Some(limit) if limit < needed => Finding::warning(
            NAME,
            format!("{limit} files may be open, and connections_max = {connections_max} needs {needed}"),
            format!("Let the server open more (LimitNOFILE={needed} in a unit of systemd, --ulimit nofile={needed} of Docker), or make connections_max less."),
        )
        .with_command(format!("ulimit -n {needed}")),
        Some(limit) => {
            let found = format!("{limit} files may be open, which is enough for {connections_max} connections");
            Finding::ok(NAME, found)
        }
        None => Finding::ok(NAME, "any number of files may be open"),
    }
}

/// Whether the interpreter's compiled code loads. A server that serves has loaded it.
pub(super) fn guest(config: &Config) -> Finding {
    const NAME: &str = "guest";
    const FIX: &str = "The next start compiles it anew. Find out who changed the file; if the disk did, replace it.";
    let folder = &config.cache_dir;
    let key = match fs::read(folder.join("key")) {
        Ok(key) => <[u8; 32]>::try_from(key).ok(),
        Err(_) => {
            return Finding::ok(
                NAME,
                "not compiled yet; the first start does that in seconds",
            );
        }
    };
    let Some(key) = key else {
        let found = format!("{} is no key", shell(&folder.join("key")));
        let fix = "Remove it: the next start makes another, and compiles everything anew.";
        return Finding::error(NAME, found, fix)
            .with_command(format!("rm {}", shell(&folder.join("key"))));
    };
    match sandbox::cached(RHAI_GUEST, folder, key) {
        Ok(Cached::Loads) => Finding::ok(NAME, "the interpreter's compiled code loads"),
        Ok(Cached::Missing) => Finding::ok(
            NAME,
            "not compiled yet for this version of picloud; the next start does that in seconds",
        ),
        Ok(Cached::Changed) => Finding::warning(
            NAME,
            format!(
                "the compiled code in {} is not what picloud wrote",
                shell(folder)
            ),
            FIX,
        ),
        Err(error) => Finding::error(NAME, error.to_string(), FIX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    #[test]
    fn what_others_may_use_is_an_error_with_its_command() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        assert_eq!(private("key", &path, "600").severity, Severity::Ok);
        fs::write(&path, "x").unwrap();
        for (bits, severity) in [
            (0o600, Severity::Ok),
            (0o400, Severity::Ok),
            (0o640, Severity::Error),
            (0o602, Severity::Error),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(bits)).unwrap();
            let found = private("key", &path, "600");
            assert_eq!(found.severity, severity, "{bits:o}");
            let command = format!("chmod 600 {}", path.display());
            let expected = (severity != Severity::Ok).then_some(command);
            assert_eq!(found.command, expected);
        }
    }

    #[test]
    fn root_and_a_process_without_a_second_layer_are_told() {
        assert_eq!(user(false).severity, Severity::Ok);
        assert_eq!(user(true).severity, Severity::Warning);
        let status = "Name:\tpicloud\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        let whole = second_layer(status, Some(1 << 30));
        assert_eq!(whole.severity, Severity::Ok);
        for (status, memory_max, lacks) in [
            (
                status.replace("Seccomp:\t2", "Seccomp:\t0"),
                Some(1),
                "seccomp",
            ),
            (
                status.replace("Privs:\t1", "Privs:\t0"),
                Some(1),
                "no_new_privs",
            ),
            (status.to_owned(), None, "memory is not limited"),
        ] {
            let found = second_layer(&status, memory_max);
            assert_eq!(found.severity, Severity::Warning);
            assert!(found.found.contains(lacks), "{}", found.found);
        }
    }

    #[test]
    fn a_secret_that_was_put_there_may_be_a_groups_and_not_everybodys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        assert_eq!(secret("key", &path).severity, Severity::Error);
        fs::write(&path, "x").unwrap();
        for (bits, severity) in [(0o640, Severity::Ok), (0o444, Severity::Warning)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(bits)).unwrap();
            assert_eq!(secret("key", &path).severity, severity, "{bits:o}");
        }
    }

    #[test]
    fn a_compiler_that_is_less_confined_is_told() {
        for (seccomp, landlock, severity) in [
            (true, true, Severity::Ok),
            (true, false, Severity::Warning),
            (false, true, Severity::Error),
        ] {
            assert_eq!(compiler(seccomp, landlock).severity, severity);
        }
    }

    #[test]
    fn a_disk_that_is_nearly_full_is_told() {
        for (free, severity) in [
            (0, Severity::Error),
            (DISK_BYTES_ERROR - 1, Severity::Error),
            (DISK_BYTES_ERROR, Severity::Warning),
            (DISK_BYTES_WARNING, Severity::Ok),
        ] {
            assert_eq!(room("/data", free).severity, severity, "{free}");
        }
    }

    #[test]
    fn a_limit_that_is_too_low_names_the_one_that_is_not() {
        assert_eq!(open_files(1_000, Some(1_256)).severity, Severity::Ok);
        assert_eq!(open_files(1_000, None).severity, Severity::Ok);
        let low = open_files(1_000, Some(1_255));
        assert_eq!(low.severity, Severity::Warning);
        assert_eq!(low.command.as_deref(), Some("ulimit -n 1256"));
    }
}
