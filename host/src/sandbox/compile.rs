//! Uploaded components: what is checked, and how they are compiled.
//!
//! Compiling can be attacked (600 KB of nested blocks took Cranelift 79 s and 606 MiB), and
//! wasmtime promises nothing there. So it happens in a child process with limits on time and
//! memory, which can be killed.

use std::io::{Read, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, setrlimit};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::engine::engine_config;

/// The largest component that is taken, in bytes.
const WASM_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Processor time for compiling, in seconds.
const CPU_SECONDS_MAX: u64 = 60;
/// Wall-clock time for compiling.
const WALL_MAX: Duration = Duration::from_secs(120);
/// Address space for compiling.
const ADDRESS_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
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
    #[error("compiling took longer than the limit of {CPU_SECONDS_MAX} s")]
    TimedOut,
    /// Compiling took too much memory.
    #[error("compiling took more memory than the limit of {} MiB", ADDRESS_BYTES_MAX >> 20)]
    OutOfMemory,
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

/// Look at the bytes before anything works on them.
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
        Some(head) if head.starts_with(b"\0asm") && head[6..] == [1, 0] => Ok(()),
        _ => Err(CompileError::NotAComponent),
    }
}

/// Look at what a component imports and exports.
pub(super) fn check_world(engine: &Engine, component: &Component) -> Result<(), CompileError> {
    let ty = component.component_type();
    for (name, _) in ty.imports(engine) {
        let allowed = ALLOWED_IMPORTS.iter().any(|start| name.starts_with(start));
        if !allowed {
            return Err(CompileError::ForbiddenImport(name.to_owned()));
        }
    }
    if !ty
        .exports(engine)
        .any(|(name, _)| name.starts_with(HANDLER))
    {
        return Err(CompileError::NoHandler);
    }
    Ok(())
}

/// Compile in a child process: this program again, as `compile-component`.
pub(super) fn in_child(wasm: &[u8]) -> Result<Vec<u8>, CompileError> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("compile-component")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().ok_or_else(|| missing("stdin"))?;
    let mut output = child.stdout.take().ok_or_else(|| missing("stdout"))?;
    let mut errors = child.stderr.take().ok_or_else(|| missing("stderr"))?;
    let wasm = wasm.to_vec();
    // A child that died does not read; its exit says why, not this write.
    let feeding = std::thread::spawn(move || input.write_all(&wasm).ok());
    let reading = std::thread::spawn(move || {
        let mut code = Vec::new();
        output.read_to_end(&mut code).map(|_| code)
    });
    let listening = std::thread::spawn(move || {
        let mut text = String::new();
        errors
            .by_ref()
            .take(64 * 1024)
            .read_to_string(&mut text)
            .map(|_| text)
    });
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > WALL_MAX {
            child.kill()?;
            child.wait()?;
            return Err(CompileError::TimedOut);
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let joined = |_| CompileError::Failed("a thread that talks to the compiler ended".into());
    feeding.join().map_err(joined)?;
    let code = reading.join().map_err(joined)??;
    let said = listening.join().map_err(joined)?.unwrap_or_default();
    if status.success() {
        return Ok(code);
    }
    use std::os::unix::process::ExitStatusExt;
    const SIGXCPU: i32 = 24;
    const SIGKILL: i32 = 9;
    match status.signal() {
        Some(SIGXCPU | SIGKILL) => Err(CompileError::TimedOut),
        Some(_) if said.contains("memory allocation") => Err(CompileError::OutOfMemory),
        Some(signal) => Err(CompileError::Failed(format!(
            "the compiler ended by signal {signal}"
        ))),
        None => Err(CompileError::Invalid(said.trim().to_owned())),
    }
}

fn missing(pipe: &str) -> CompileError {
    CompileError::Failed(format!("the compiler has no {pipe}"))
}

/// The child: limit itself, compile standard input to standard output.
pub fn compile_child_main() -> ExitCode {
    let limit = |most| Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    let limited = setrlimit(Resource::Cpu, limit(CPU_SECONDS_MAX))
        .and_then(|()| setrlimit(Resource::As, limit(ADDRESS_BYTES_MAX)))
        .and_then(|()| setrlimit(Resource::Core, limit(0)))
        .and_then(|()| setrlimit(Resource::Fsize, limit(0)));
    let compiled = limited.map_err(anyhow::Error::from).and_then(|()| {
        let mut wasm = Vec::new();
        std::io::stdin()
            .take(WASM_BYTES_MAX as u64)
            .read_to_end(&mut wasm)?;
        let engine = Engine::new(&engine_config()).map_err(anyhow::Error::from)?;
        let code = engine
            .precompile_component(&wasm)
            .map_err(anyhow::Error::from)?;
        std::io::stdout().write_all(&code)?;
        Ok(())
    });
    match compiled {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
