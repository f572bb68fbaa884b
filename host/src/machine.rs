//! What the machine has that this process runs on.

use std::fs;
use std::path::Path;

/// What is taken for the memory of a machine that does not tell.
const MEMORY_UNKNOWN_BYTES: u64 = 1 << 30;

/// The memory that this process may use, in bytes: the machine's, or what its control groups leave of it.
pub fn memory_bytes() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib: u64 = line?.trim().trim_end_matches(" kB").parse().ok()?;
        Some(kib * 1024)
    });
    let limits = machine.into_iter().chain(memory_limit_bytes());
    limits.min().unwrap_or(MEMORY_UNKNOWN_BYTES)
}

/// How much memory this process's control groups let it take, in bytes; none where nothing tells of a
/// limit.
pub fn memory_limit_bytes() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().filter_map(limit_of_group).min()
}

/// The lowest limit of the group that a line of `/proc/self/cgroup` names, `HIERARCHY:CONTROLLERS:PATH`
/// (cgroups(7)), and of those above it.
fn limit_of_group(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    let (root, file) = match controllers {
        "" => ("/sys/fs/cgroup", "memory.max"),
        "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        _ => return None,
    };
    let own = Path::new(root).join(path.trim_start_matches('/'));
    let groups = own.ancestors().take_while(|group| group.starts_with(root));
    let limits = groups.filter_map(|group| {
        let text = fs::read_to_string(group.join(file)).ok()?;
        let limit = text.trim().parse().ok();
        // Without a limit the old hierarchy tells the largest number of pages that there is.
        limit.filter(|limit| *limit < 1 << 60)
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_memory() {
        assert!((64 << 20..1 << 50).contains(&memory_bytes()));
        assert_eq!(limit_of_group("3:cpu:/x"), None);
        assert_eq!(limit_of_group("no group"), None);
    }
}
