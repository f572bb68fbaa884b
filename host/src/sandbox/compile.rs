//! Uploaded components: what is checked, and how they are compiled.
//!
//! Compiling can be attacked (600 KB of nested blocks took Cranelift 79 s and 606 MiB), and
//! wasmtime promises nothing there. So it happens in a child process with limits on time and
//! memory, which can be killed, and which may do nothing but compute (`confine.rs`).

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use wasmparser::{Parser, Payload};
use wasmtime::Engine;

use super::confine::{self, ConfineError, ProcessLimits};
use super::engine::engine_config;
use crate::fair_queue::QueueFull;

/// The largest component that is taken, in bytes.
const WASM_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The most machine code of one component: eight times the largest one, and more than that is
/// nothing that a compiler makes of it.
const CODE_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// How much of what the compiler says is read.
const SAID_BYTES_MAX: u64 = 64 * 1024;
/// How much memory the child's allocator takes at once, in KiB. Its default of a gigabyte would be
/// there before the limit is, and not count.
const ARENA_KIB: &str = "32768";
/// The export that makes a component a function.
const HANDLER: &str = "picloud:function/handler@";
/// What a component may import: our own contract, and the part of WASI that is linked.
const ALLOWED_IMPORTS: [&str; 12] = [
    "picloud:context/",
    "picloud:dead-letters/",
    "picloud:function/types@",
    "picloud:kv/",
    "picloud:log/",
    "picloud:secrets/",
    "picloud:pubsub/",
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:filesystem/",
    "wasi:io/",
    "wasi:random/",
];

/// What is wrong with an uploaded component.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// It is too large.
    #[error("the component has {bytes} bytes; the limit is {WASM_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// It is compiled already: code for a processor, which cannot be trusted.
    #[error("this is code that was compiled already; upload the component itself")]
    Precompiled,
    /// It is a core module.
    #[error(
        "this is a core WebAssembly module; make a component of it, with `wasm-tools component new` say"
    )]
    CoreModule,
    /// It is no WebAssembly at all.
    #[error("this is not a WebAssembly component")]
    NotAComponent,
    /// It wants something that guests do not get.
    #[error("the component imports `{0}`, which functions do not get")]
    ForbiddenImport(String),
    /// It exports no handler.
    #[error("the component does not export `picloud:function/handler`")]
    NoHandler,
    /// Its types are not those of the contract.
    #[error("the component does not fit the world `picloud:function/function`: {0}")]
    WrongWorld(String),
    /// It does not validate.
    #[error("the component is not valid: {0}")]
    Invalid(String),
    /// Compiling took too long.
    #[error(
        "compiling took longer than the limit of {timeout_ms} ms (`compile_timeout_ms`); make the component smaller, or its functions"
    )]
    TimedOut {
        /// The limit.
        timeout_ms: u64,
    },
    /// Compiling took too much memory.
    #[error(
        "compiling took more memory than the limit of {} MiB (`compile_memory_bytes`); make the component smaller, or its functions", .memory_bytes >> 20
    )]
    OutOfMemory {
        /// The limit.
        memory_bytes: u64,
    },
    /// There is more machine code than any component needs.
    #[error("the component compiles to more than {} MiB; make it smaller", CODE_BYTES_MAX >> 20)]
    TooMuchCode,
    /// Others wait to be compiled.
    #[error("components wait to be compiled: {full}")]
    QueueFull {
        /// How many.
        full: QueueFull,
        /// After how many seconds another of them may have ended.
        retry_after_s: u64,
    },
    /// Our own fault.
    #[error("the component could not be compiled: {0}")]
    Failed(String),
}

impl From<std::io::Error> for CompileError {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<wasmtime::Error> for CompileError {
    fn from(error: wasmtime::Error) -> Self {
        Self::Failed(format!("{error:#}"))
    }
}

/// What compiling one component may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileLimits {
    /// Wall-clock time, and processor time.
    pub timeout_ms: u64,
    /// Memory.
    pub memory_bytes: u64,
}

impl CompileLimits {
    /// What an instance has that sets nothing.
    pub const DEFAULT: Self = Self {
        timeout_ms: 10_000,
        memory_bytes: 512 * 1024 * 1024,
    };

    /// How long whoever is next may have to wait, in whole seconds.
    pub fn seconds(self) -> u64 {
        self.timeout_ms.div_ceil(1_000)
    }
}

/// Look at the bytes before anything works on them: what they are, and by name what the component
/// imports and exports. Nothing is compiled, and no function is looked at.
pub(super) fn check(wasm: &[u8]) -> Result<(), CompileError> {
    if wasm.len() > WASM_BYTES_MAX {
        return Err(CompileError::TooLarge { bytes: wasm.len() });
    }
    if Engine::detect_precompiled(wasm).is_some() {
        return Err(CompileError::Precompiled);
    }
    // The layer after the version says what it is: 0 a core module, 1 a component.
    match wasm.get(..8) {
        Some(b"\0asm\x01\0\0\0") => Err(CompileError::CoreModule),
        Some(head) if head.starts_with(b"\0asm") && head[6..] == [1, 0] => check_names(wasm),
        _ => Err(CompileError::NotAComponent),
    }
}

/// Look at the names of what a component imports and exports. Its types are for wasmtime.
fn check_names(wasm: &[u8]) -> Result<(), CompileError> {
    let invalid = |error: wasmparser::BinaryReaderError| CompileError::Invalid(error.to_string());
    // Modules and components within: what they import, the component around them gives.
    let mut depth = 0_u32;
    let mut has_handler = false;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(invalid)? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(imports) if depth == 0 => {
                for import in imports {
                    let name = import.map_err(invalid)?.name.name;
                    if !ALLOWED_IMPORTS.iter().any(|start| name.starts_with(start)) {
                        return Err(CompileError::ForbiddenImport(name.to_owned()));
                    }
                }
            }
            Payload::ComponentExportSection(exports) if depth == 0 => {
                for export in exports {
                    has_handler |= export.map_err(invalid)?.name.name.starts_with(HANDLER);
                }
            }
            _ => {}
        }
    }
    match has_handler {
        true => Ok(()),
        false => Err(CompileError::NoHandler),
    }
}

/// Compile in a child process: this program again, as `compile-component`. The child ends with the
/// returned future.
pub(super) async fn in_child(wasm: &[u8], limits: CompileLimits) -> Result<Vec<u8>, CompileError> {
    // Not by its name: that may be another version by now.
    let mut child = Command::new("/proc/self/exe")
        .arg("compile-component")
        .arg(limits.memory_bytes.to_string())
        .arg(limits.seconds().to_string())
        .env_clear()
        .env("MIMALLOC_ARENA_RESERVE", ARENA_KIB)
        .env("MIMALLOC_USE_NUMA_NODES", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut input = child.stdin.take().ok_or_else(|| missing("stdin"))?;
    let output = child.stdout.take().ok_or_else(|| missing("stdout"))?;
    let errors = child.stderr.take().ok_or_else(|| missing("stderr"))?;
    let feeding = async move {
        // A child that died does not read; its exit says why, not this write.
        input.write_all(wasm).await.ok();
    };
    let working = async {
        let reading = bounded(output, CODE_BYTES_MAX + 1);
        let listening = bounded(errors, SAID_BYTES_MAX);
        let ((), code, said) = tokio::join!(feeding, reading, listening);
        Ok::<_, CompileError>((child.wait().await?, code?, said?))
    };
    let worked = tokio::time::timeout(Duration::from_millis(limits.timeout_ms), working).await;
    let Ok(worked) = worked else {
        // Until it is gone its place is not another's.
        child.kill().await?;
        let timeout_ms = limits.timeout_ms;
        return Err(CompileError::TimedOut { timeout_ms });
    };
    let (status, code, said) = worked?;
    if code.len() as u64 > CODE_BYTES_MAX {
        return Err(CompileError::TooMuchCode);
    }
    if status.success() {
        return Ok(code);
    }
    Err(ended(status, &String::from_utf8_lossy(&said), limits))
}

async fn bounded(from: impl AsyncRead + Unpin, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(bytes_max).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// What the end of a child that gave no code says.
fn ended(status: ExitStatus, said: &str, limits: CompileLimits) -> CompileError {
    const SIGKILL: i32 = 9;
    const SIGXCPU: i32 = 24;
    const SIGSYS: i32 = 31;
    let CompileLimits {
        timeout_ms,
        memory_bytes,
    } = limits;
    match (status.signal(), status.code()) {
        (Some(SIGXCPU), _) => CompileError::TimedOut { timeout_ms },
        (Some(SIGSYS), _) => CompileError::Failed(
            "the compiler made a system call that compiling does not need".to_owned(),
        ),
        (Some(SIGKILL), _) => CompileError::Failed(
            "the compiler was killed; the machine may be out of memory".to_owned(),
        ),
        // How Rust says it, and how Cranelift does in a panic or an error.
        _ if ["memory allocation of", "out of memory"]
            .iter()
            .any(|words| said.contains(words)) =>
        {
            CompileError::OutOfMemory { memory_bytes }
        }
        (Some(signal), _) => {
            CompileError::Failed(format!("the compiler ended by the signal {signal}"))
        }
        (None, Some(REFUSED)) => CompileError::Invalid(said.trim().to_owned()),
        (None, _) => CompileError::Failed(said.trim().to_owned()),
    }
}

fn missing(pipe: &str) -> CompileError {
    CompileError::Failed(format!("the compiler has no {pipe}"))
}

/// The exit code of a child that does not take the component.
const REFUSED: i32 = 2;
/// The exit code of a child that could not begin.
const NOT_CONFINED: u8 = 3;

/// The child: confine itself, and compile standard input to standard output.
pub fn compile_child_main(memory_bytes: u64, cpu_seconds: u64) -> ExitCode {
    let engine = match confined_engine(ProcessLimits {
        memory_bytes,
        cpu_seconds,
    }) {
        Ok(engine) => engine,
        Err(error) => {
            eprintln!("the compiler cannot be confined: {error}");
            return ExitCode::from(NOT_CONFINED);
        }
    };
    let mut wasm = Vec::new();
    let input = std::io::stdin().take(WASM_BYTES_MAX as u64);
    let read = { input }
        .read_to_end(&mut wasm)
        .map_err(wasmtime::Error::from);
    let compiled = read.and_then(|_| engine.precompile_component(&wasm));
    match compiled {
        Ok(code) => match std::io::stdout().write_all(&code) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(REFUSED as u8)
        }
    }
}

/// The compiler, in a process that may do nothing any more but compute. It is made first: it looks
/// at the processor, and depends on nothing that was uploaded.
fn confined_engine(limits: ProcessLimits) -> Result<Engine, ConfineError> {
    confine::limit(limits)?;
    let mut config = engine_config();
    // One thread: the filter allows no other.
    config.parallel_compilation(false);
    let engine = Engine::new(&config);
    let engine = engine.map_err(|error| std::io::Error::other(format!("{error:#}")))?;
    confine::confine()?;
    Ok(engine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_in_the_message() {
        let limits = CompileLimits::DEFAULT;
        let of = |raw, said| ended(ExitStatus::from_raw(raw), said, limits).to_string();
        assert!(of(24, "").contains("limit of 10000 ms"), "{}", of(24, ""));
        for (raw, said) in [
            (6, "memory allocation of 9 bytes failed"),
            (101 << 8, "unhandled out-of-memory error: out of memory (…)"),
            (2 << 8, "out of memory"),
        ] {
            let memory = of(raw, said);
            assert!(memory.contains("limit of 512 MiB"), "{memory}");
        }
        assert!(of(31, "").contains("system call"));
        assert_eq!(of(2 << 8, "why\n"), "the component is not valid: why");
        assert_eq!(
            of(3 << 8, "why\n"),
            "the component could not be compiled: why"
        );
    }
}
