//! The confinement of the process that compiles uploads: limits on what it uses up, and a list of
//! the few system calls that compiling needs. Everything else ends the process.
//!
//! Whoever took over the compiler by a crafted component finds no file, no socket and no other process
//! there. What it answers is loaded as native code all the same: this bounds what the compiler uses up
//! and reaches, and is no second sandbox around what it made.

use std::collections::BTreeMap;
use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError,
    Scope,
};
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use rustix::thread::{secure_computing_mode, set_no_new_privs};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// The newest version of Landlock that we ask for; an older kernel enforces what it knows.
const LANDLOCK: ABI = ABI::V6;

/// Why a process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A limit, or another attribute of the process.
    #[error("the limits of the process: {0}")]
    Limits(#[from] io::Error),
    /// Landlock is there and refused.
    #[error("Landlock: {0}")]
    Landlock(#[from] RulesetError),
    /// The filter of system calls.
    #[error("the filter of system calls: {0}")]
    Seccomp(#[from] seccompiler::Error),
    /// The filter of system calls could not be made.
    #[error("the filter of system calls: {0}")]
    Filter(#[from] seccompiler::BackendError),
}

/// What the process may use up.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProcessLimits {
    /// Memory that it can write to.
    pub(super) memory_bytes: u64,
    /// Processor time.
    pub(super) cpu_seconds: u64,
}

/// Limit this process, and have it end with the process that started it.
pub(super) fn limit(limits: ProcessLimits) -> Result<(), ConfineError> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from)?;
    let set = |resource, soft, hard| {
        let (current, maximum) = (Some(soft), Some(hard));
        setrlimit(resource, Rlimit { current, maximum }).map_err(io::Error::from)
    };
    // The soft limit tells by its signal, SIGXCPU, that it was this one.
    set(
        Resource::Cpu,
        limits.cpu_seconds,
        limits.cpu_seconds.saturating_add(1),
    )?;
    // Not the address space: the program itself and what is only reserved do not count.
    set(Resource::Data, limits.memory_bytes, limits.memory_bytes)?;
    set(Resource::Core, 0, 0)?;
    set(Resource::Fsize, 0, 0)?;
    set(Resource::Nproc, 0, 0)?;
    // Landlock needs one for a moment.
    set(Resource::Nofile, 8, 8)?;
    set_no_new_privs(true).map_err(io::Error::from)?;
    Ok(())
}

/// Take everything from this thread, and from what it begins, but memory, standard input and output.
/// Standard input is only read from, the other two only written to.
pub(super) fn confine() -> Result<(), ConfineError> {
    // First: the filter allows none of its calls.
    forbid_files()?;
    seccompiler::apply_filter(&filter()?)?;
    Ok(())
}

/// Allow no path, no port, no abstract socket and no signal to others, as far as the kernel has
/// Landlock. It stands behind the filter of system calls, which allows nothing that would open one.
fn forbid_files() -> Result<(), ConfineError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .restrict_self()?;
    Ok(())
}

/// Whether the kernel has Landlock.
pub fn has_landlock() -> bool {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let handled = ruleset.handle_access(AccessFs::from_all(ABI::V1));
    handled.and_then(Ruleset::create).is_ok()
}

/// Whether the kernel has filters of system calls.
pub fn has_seccomp() -> bool {
    secure_computing_mode().is_ok()
}

/// The system calls that compiling makes; any other ends the process.
fn filter() -> Result<BpfProgram, ConfineError> {
    let is = |argument, value| condition(argument, SeccompCmpOp::Eq, value);
    let lacks = |argument, bits| condition(argument, SeccompCmpOp::MaskedEq(bits), 0);
    let prot_exec = libc::PROT_EXEC as u64;
    // What grows downwards is not counted to the limit on data.
    let kind = (libc::MAP_TYPE | libc::MAP_GROWSDOWN) as u64;
    let private = condition(3, SeccompCmpOp::MaskedEq(kind), libc::MAP_PRIVATE as u64)?;
    let this = std::process::id().into();
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in [
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_futex,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_restart_syscall,
        // How Rust ends a process at a panic, or when memory is used up.
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_getpid,
        libc::SYS_gettid,
        // The allocator, and the keys of hash maps.
        libc::SYS_getrandom,
        libc::SYS_getcpu,
        libc::SYS_sched_yield,
        libc::SYS_clock_gettime,
    ] {
        rules.insert(call, Vec::new());
    }
    for (call, conditions) in [
        (libc::SYS_read, vec![vec![is(0, 0)?]]),
        (libc::SYS_write, vec![vec![is(0, 1)?], vec![is(0, 2)?]]),
        (libc::SYS_writev, vec![vec![is(0, 1)?], vec![is(0, 2)?]]),
        // Memory that nobody else sees, and that nothing in it can be run from.
        (
            libc::SYS_mmap,
            vec![vec![
                lacks(2, prot_exec)?,
                private,
                is(4, u64::from(u32::MAX))?,
            ]],
        ),
        (libc::SYS_mprotect, vec![vec![lacks(2, prot_exec)?]]),
        (libc::SYS_tgkill, vec![vec![is(0, this)?]]),
        // The allocator names its memory.
        (libc::SYS_prctl, vec![vec![is(0, libc::PR_SET_VMA as u64)?]]),
    ] {
        let any_of: Result<_, _> = conditions.into_iter().map(SeccompRule::new).collect();
        rules.insert(call, any_of?);
    }
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        target()?,
    )?;
    Ok(filter.try_into()?)
}

fn target() -> Result<TargetArch, seccompiler::BackendError> {
    std::env::consts::ARCH.try_into()
}

/// On one argument, of which the kernel takes the lower 32 bits.
fn condition(
    argument: u8,
    comparison: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, comparison, value)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpStream, UdpSocket};
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Command, ExitStatus, Stdio};

    use super::*;

    const ACT: &str = "PICLOUD_TEST_CONFINED_ACT";
    const SIGSYS: i32 = 31;
    const SIGXCPU: i32 = 24;

    /// What a helper, this test's own program again, does once it is confined.
    fn act(name: &str) {
        match name {
            "open" => drop(File::open("/proc/self/status")),
            "create" => drop(File::create("/tmp/picloud-confined")),
            "connect" => drop(TcpStream::connect("127.0.0.1:1")),
            "bind" => drop(UdpSocket::bind("127.0.0.1:0")),
            "exec" => drop(Command::new("/proc/self/exe").exec()),
            "spawn" => drop(Command::new("/bin/true").spawn()),
            "thread" => drop(std::thread::Builder::new().spawn(|| {})),
            "signal" => {
                let parent = rustix::process::getppid();
                parent.map(|parent| rustix::process::test_kill_process(parent).ok());
            }
            "pipe" => drop(std::io::pipe()),
            "spin" => loop {
                std::hint::spin_loop();
            },
            "compute" => {
                let words: Vec<String> = (0..100_000).map(|n: i32| n.to_string()).collect();
                println!("{}", words.concat().len());
            }
            _ => panic!("no such act"),
        }
    }

    /// Confined before it acts where the environment says so; else there is nothing to do.
    #[test]
    fn helper() {
        let Ok(name) = std::env::var(ACT) else {
            return;
        };
        let (how, name) = name.split_once(' ').unwrap();
        let (memory_bytes, cpu_seconds) = (1 << 30, 1);
        limit(ProcessLimits {
            memory_bytes,
            cpu_seconds,
        })
        .unwrap();
        match how {
            "whole" => confine().unwrap(),
            "landlock" => forbid_files().unwrap(),
            "limits" => {}
            _ => panic!("no such confinement"),
        }
        act(name);
        // Not by returning: the harness has threads of its own that are not confined.
        println!("done");
        std::process::exit(0);
    }

    fn run(how: &str, name: &str) -> (ExitStatus, String) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["sandbox::confine::tests::helper", "--exact", "--nocapture"])
            .env(ACT, format!("{how} {name}"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status, said)
    }

    #[test]
    fn whoever_is_confined_can_compute_and_do_nothing_else() {
        let (status, said) = run("whole", "compute");
        assert!(
            status.success() && said.contains("488890"),
            "{status}: {said}"
        );
        for name in [
            "open", "create", "connect", "bind", "exec", "spawn", "thread", "signal", "pipe",
        ] {
            let (status, said) = run("whole", name);
            assert_eq!(status.signal(), Some(SIGSYS), "{name}: {status}: {said}");
            assert!(!said.contains("done"), "{name}");
        }
    }

    #[test]
    fn processor_time_ends() {
        let (status, _) = run("limits", "spin");
        assert_eq!(status.signal(), Some(SIGXCPU), "{status}");
    }

    #[test]
    fn landlock_allows_no_path_by_itself() {
        if !has_landlock() {
            return;
        }
        let refused = std::thread::spawn(|| {
            forbid_files().unwrap();
            let opened = [File::open("/proc/self/status"), File::open("/")];
            opened.map(|opened| opened.unwrap_err().kind())
        });
        let denied = io::ErrorKind::PermissionDenied;
        assert_eq!(refused.join().unwrap(), [denied; 2]);
    }
}
