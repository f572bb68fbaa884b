//! The engine, its pool, the threads that guests run on, and the guests that are loaded.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
};

use super::artifact::{Artifacts, Cached};
use super::bindings::{context, dead_letters, kv, log, pubsub, rhai, secrets, types};
use super::compile::CompileLimits;
use super::components;
use super::confine;
use super::imports::Imports;
use super::limiter::{Memory, memory};
use super::run::{self, State};
use super::turns::{Crowd, Turns};
use super::{Job, Outcome, Program, ProgramError, Report, wasi};
use crate::fair_queue::{FairQueue, Patience, Place, Room};

/// How often guests that compute look up: it bounds how late a deadline is noticed and how
/// long one guest holds its thread.
const EPOCH_TICK: Duration = Duration::from_millis(4);
/// After how many polls the guests' runtime looks for timers that are due.
const EVENTS_EVERY: u32 = 8;
/// The stack of a guest. Rhai's deepest recursion needs less than half of it.
const WASM_STACK_BYTES: usize = 1024 * 1024;
/// The stack of the fibre that a guest runs on: the guest's own, and the host's calls on top.
const FIBER_STACK_BYTES: usize = WASM_STACK_BYTES + 256 * 1024;
/// Core instances of one component: a language runtime, WASI's adapter and their glue.
const CORE_INSTANCES_PER_COMPONENT: u32 = 8;
/// Tables of one component: the runtime's own and the adapter's.
const TABLES_PER_COMPONENT: u32 = 4;
/// Elements of one table.
const TABLE_ELEMENTS: usize = 10_000;
/// How much of a slot's memory stays mapped between two executions. With `pagemap_scan` only
/// the pages that were written are reset; without it, keeping them made things slower.
const KEEP_RESIDENT_BYTES: usize = 6 * 1024 * 1024;
/// How many unused slots keep the memory of their last instance, if more have not been used at once for
/// a while.
pub(super) const WARM_SLOTS: u32 = 64;
/// Instances beyond those that the gate lets in: validation of sources, and the moment
/// between a place at the gate and the slot that becomes free.
const SPARE_INSTANCES: u32 = 64;
/// How many sources may wait to be compiled; one has a mebibyte at most.
const SOURCES_WAITING: usize = 256;
/// Memory maps that an execution needs, with room to spare; the kernel bounds their number
/// (`vm.max_map_count`), and past it nothing in the process works any more.
const MAPS_PER_EXECUTION: u32 = 12;
/// Memory maps of all else in the process.
const OTHER_MAPS: u32 = 4_000;

/// What a sandbox is made of.
pub struct SandboxConfig {
    /// The packed Rhai interpreter.
    pub guest: &'static [u8],
    /// Where compiled code is kept; a folder that is ours alone.
    pub cache_dir: PathBuf,
    /// The key of the hash that compiled code is checked against before it is loaded.
    pub key: [u8; 32],
    /// How many executions there may be at once.
    pub executions_max: u32,
    /// How many threads run guests; 0: one for each core.
    pub threads: usize,
    /// The largest memory that an execution may be given.
    pub memory_bytes_max: u64,
    /// The memory that all executions may hold together.
    pub memory_bytes_of_all: u64,
    /// What compiling one uploaded component may use up.
    pub compile: CompileLimits,
    /// About how many bytes of compiled code are kept.
    pub cache_bytes_max: u64,
    /// The apps whose guests' clocks are not coarsened.
    pub precise_clock_apps: Vec<Uuid>,
}

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// wasmtime refused something of ours.
    #[error("the WebAssembly engine: {0}")]
    Engine(String),
    /// The folder for compiled code cannot be used.
    #[error("the folder for compiled code: {0}")]
    Cache(#[from] std::io::Error),
}

impl From<wasmtime::Error> for SandboxError {
    fn from(error: wasmtime::Error) -> Self {
        Self::Engine(format!("{error:#}"))
    }
}

/// Runs guests whose imports are answered by `I`.
pub struct Sandbox<I: 'static> {
    pub(super) shared: Arc<Shared<I>>,
    guests: tokio::runtime::Handle,
    turns: Arc<Turns>,
    /// Dropping it ends the guests' threads; in the background, because it may be dropped
    /// inside another runtime.
    runtime: Option<tokio::runtime::Runtime>,
    executions_max: u32,
}

/// What all executions share.
pub(super) struct Shared<I: 'static> {
    pub(super) engine: Engine,
    /// The interpreter; loaded again where its instances' slots keep too much: see [`super::trim`].
    pub(super) rhai: ArcSwap<rhai::RhaiPre<State<I>>>,
    pub(super) linker: Linker<State<I>>,
    pub(super) artifacts: Artifacts,
    /// What guests hold of the memory.
    pub(super) memory: Arc<Memory>,
    /// Uploaded components that are to be compiled.
    pub(super) components: FairQueue,
    /// Rhai sources that are to be compiled.
    sources: FairQueue,
    pub(super) compile: CompileLimits,
    /// The packed interpreter, whose code is always kept.
    pub(super) guest: &'static [u8],
    pub(super) cache_bytes_max: u64,
    pub(super) precise_clock_apps: Vec<Uuid>,
}

impl<I: Imports> Shared<I> {
    /// The interpreter, loaded once more.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub(super) fn load_interpreter(&self) -> Result<rhai::RhaiPre<State<I>>, SandboxError> {
        interpreter(&self.engine, &self.linker, &self.artifacts, self.guest)
    }
}

/// The packed interpreter, ready to be instantiated; the first time it is compiled.
fn interpreter<I: Imports>(
    engine: &Engine,
    linker: &Linker<State<I>>,
    artifacts: &Artifacts,
    packed: &[u8],
) -> Result<rhai::RhaiPre<State<I>>, SandboxError> {
    let component = artifacts.load_or_compile(engine, packed, |wasm| {
        Ok::<_, SandboxError>(engine.precompile_component(wasm)?)
    })?;
    Ok(rhai::RhaiPre::new(linker.instantiate_pre(&component)?)?)
}

impl<I: Imports> Sandbox<I> {
    /// Start the engine and its threads, and load the interpreter; the first time it is compiled,
    /// which takes seconds.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn new(config: SandboxConfig) -> Result<Self, SandboxError> {
        Self::with_spare(config, SPARE_INSTANCES)
    }

    /// The same with another number of instances beyond `executions_max`: the pool reserves 4 GiB
    /// of addresses for each, and valgrind, under which `examples/count_bench.rs` runs, has few.
    #[doc(hidden)]
    pub fn with_spare(config: SandboxConfig, spare: u32) -> Result<Self, SandboxError> {
        let executions_max = within_map_limit(config.executions_max);
        let mut engine_config = engine_config();
        engine_config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(
            executions_max + spare,
            config.memory_bytes_max,
        )));
        let engine = Engine::new(&engine_config)?;
        let artifacts = Artifacts::open(config.cache_dir, config.key)?;
        let linker = linker(&engine)?;
        let rhai = interpreter(&engine, &linker, &artifacts, config.guest)?;
        artifacts.sweep(&engine, config.guest, config.cache_bytes_max);
        if !confine::has_landlock() {
            tracing::warn!("the kernel has no Landlock; the compiler of uploads goes without");
        }
        tick(&engine);
        let threads = match config.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("guest")
            // A poll may take a tick, and the next guest is ready by then: timers, and those whom
            // the host has answered, are not to wait for 61 of them.
            .event_interval(EVENTS_EVERY)
            .global_queue_interval(1)
            .enable_all()
            .build()?;
        Ok(Self {
            shared: Arc::new(Shared {
                engine,
                rhai: ArcSwap::from_pointee(rhai),
                linker,
                artifacts,
                memory: memory(config.memory_bytes_of_all),
                components: components::queue(),
                sources: FairQueue::new(sources(threads)),
                compile: config.compile,
                guest: config.guest,
                cache_bytes_max: config.cache_bytes_max,
                precise_clock_apps: config.precise_clock_apps,
            }),
            guests: runtime.handle().clone(),
            turns: Turns::new(threads),
            runtime: Some(runtime),
            executions_max,
        })
    }

    /// Tells whether executions wait for their turns to compute.
    pub fn crowd(&self) -> Crowd {
        self.turns.crowd()
    }

    /// How many executions there may be at once; fewer than asked for where the kernel's limit
    /// on memory maps is low.
    pub fn executions_max(&self) -> u32 {
        self.executions_max
    }

    /// Run a job. It ends, at its next yield, when the returned future is dropped.
    pub async fn execute(&self, job: Job<I>) -> Report {
        let app = job.context.app_id;
        let running = self.turns.share(app, run::run(self.shared.clone(), job));
        let running = AbortOnDropHandle::new(self.guests.spawn(running));
        running.await.unwrap_or_else(|error| {
            metrics::counter!("picloud_sandbox_panics_total").increment(1);
            Report {
                outcome: Outcome::Platform(format!("an execution ended without a report: {error}")),
                fuel_used: 0,
                duration: Duration::ZERO,
                log: Vec::new(),
                log_truncated: false,
            }
        })
    }

    /// Compile a Rhai source of an app, in an instance of its own, once it is the app's turn. Nothing
    /// is run, so nothing calls `imports`.
    ///
    /// # Errors
    /// [`ProgramError`] says what is wrong with it.
    pub async fn program(
        &self,
        app: Uuid,
        source: Arc<str>,
        imports: I,
    ) -> Result<Program, ProgramError> {
        let place = self.shared.sources.place(app, Patience::Unbounded).await?;
        self.compile(app, place, source, imports).await
    }

    /// The same, unless too many wait for it.
    ///
    /// # Errors
    /// [`ProgramError::QueueFull`], and those of [`program`](Self::program).
    pub async fn program_if_room(
        &self,
        app: Uuid,
        source: Arc<str>,
        imports: I,
    ) -> Result<Program, ProgramError> {
        let place = self.shared.sources.place(app, Patience::Bounded).await?;
        self.compile(app, place, source, imports).await
    }

    async fn compile(
        &self,
        app: Uuid,
        place: Place,
        source: Arc<str>,
        imports: I,
    ) -> Result<Program, ProgramError> {
        let compiling = run::compile(self.shared.clone(), app, source, imports);
        let compiling = self.turns.share(app, compiling);
        let compiled = self.guests.spawn(async move {
            // Held until it has ended, whoever waited for it and has left.
            let _place = place;
            compiling.await
        });
        let compiled = compiled.await;
        compiled.unwrap_or_else(|error| {
            let problem = format!("compiling ended without a result: {error}");
            Err(ProgramError::Ended(Outcome::Platform(problem)))
        })
    }
}

impl<I: 'static> Drop for Sandbox<I> {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// How many sources are compiled at once: half of what guests run on is for any one app, so that
/// another's finds a thread.
fn sources(threads: usize) -> Room {
    let places = threads.max(2);
    Room {
        places,
        places_per_app: places / 2,
        waiting: SOURCES_WAITING,
        waiting_per_app: SOURCES_WAITING / 4,
    }
}

/// What decides how code is compiled; the child that compiles uploads uses the same.
pub(super) fn engine_config() -> Config {
    let mut config = Config::new();
    config
        .cranelift_opt_level(OptLevel::Speed)
        .consume_fuel(true)
        .epoch_interruption(true)
        .max_wasm_stack(WASM_STACK_BYTES)
        .async_stack_size(FIBER_STACK_BYTES)
        // A backtrace costs time at every trap, and no guest of ours has symbols to show.
        .wasm_backtrace_max_frames(None)
        .memory_init_cow(true);
    // What is off can't be wrong: nothing that today's toolchains emit needs these.
    config
        .wasm_tail_call(false)
        .wasm_relaxed_simd(false)
        .wasm_memory64(false)
        .wasm_wide_arithmetic(false)
        .wasm_custom_page_sizes(false);
    config
}

fn pool(instances: u32, memory_bytes_max: u64) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(instances.saturating_mul(CORE_INSTANCES_PER_COMPONENT))
        .total_memories(instances)
        .total_tables(instances.saturating_mul(TABLES_PER_COMPONENT))
        .total_stacks(instances)
        .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT)
        .max_memories_per_component(1)
        .max_tables_per_component(TABLES_PER_COMPONENT)
        .table_elements(TABLE_ELEMENTS)
        .max_memory_size(usize::try_from(memory_bytes_max).unwrap_or(usize::MAX))
        .max_unused_warm_slots(WARM_SLOTS)
        .linear_memory_keep_resident(0)
        .async_stack_keep_resident(0);
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        pool.pagemap_scan(Enabled::Yes)
            .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
            .table_keep_resident(64 * 1024);
    }
    pool
}

fn linker<I: Imports>(engine: &Engine) -> wasmtime::Result<Linker<State<I>>> {
    let mut linker = Linker::new(engine);
    let l = &mut linker;
    wasi::link(l)?;
    types::add_to_linker::<State<I>, HasSelf<State<I>>>(l, |state| state)?;
    context::add_to_linker::<State<I>, HasSelf<State<I>>>(l, |state| state)?;
    kv::add_to_linker::<State<I>, HasSelf<State<I>>>(l, |state| state)?;
    log::add_to_linker::<State<I>, HasSelf<State<I>>>(l, |state| state)?;
    dead_letters::add_to_linker::<State<I>, HasSelf<State<I>>>(l, |state| state)?;
    secrets::add_to_linker::<State<I>, HasSelf<State<I>>>(l, |state| state)?;
    pubsub::add_to_linker::<State<I>, HasSelf<State<I>>>(l, |state| state)?;
    // By hand, because the generated trait would have the image copied twice.
    l.instance("picloud:function/program@1.0.0")?
        .func_wrap("image", |store, ()| {
            let state: &State<I> = store.data();
            let image = state.image.clone();
            let image = image.ok_or_else(|| wasmtime::Error::msg("there is no image to run"))?;
            Ok((image,))
        })?;
    Ok(linker)
}

/// Advance the epoch for as long as the engine lives. A plain thread: a timer of a runtime that
/// guests run on could be held up by the very guests that it is to interrupt.
fn tick(engine: &Engine) {
    let engine = engine.weak();
    let ticking = move || {
        while let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(EPOCH_TICK);
        }
    };
    std::thread::Builder::new()
        .name("epoch".into())
        .spawn(ticking)
        .expect("a process that cannot start a thread cannot serve either");
}

/// The kernel's limit on the memory maps of a process; none where it tells of none.
pub fn map_limit() -> Option<u32> {
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok()?;
    text.trim().parse().ok()
}

/// How many executions at once a limit on memory maps allows.
pub fn executions_within(map_limit: u32) -> u32 {
    (map_limit.saturating_sub(OTHER_MAPS) / MAPS_PER_EXECUTION).max(16)
}

/// The limit on memory maps that so many executions at once need.
pub fn maps_of(executions: u32) -> u32 {
    executions
        .saturating_mul(MAPS_PER_EXECUTION)
        .saturating_add(OTHER_MAPS)
}

/// As many of `wanted` as the kernel's limit on memory maps allows.
fn within_map_limit(wanted: u32) -> u32 {
    let Some(limit) = map_limit() else {
        return wanted;
    };
    let possible = executions_within(limit);
    if possible < wanted {
        tracing::warn!(
            wanted,
            possible,
            vm_max_map_count = limit,
            "fewer executions at once than configured: raise vm.max_map_count"
        );
    }
    wanted.min(possible)
}

/// How the compiled code of `guest` in a folder is. Nothing is compiled.
///
/// # Errors
/// When it is ours and does not load, or cannot be read.
pub fn cached(guest: &[u8], cache_dir: &Path, key: [u8; 32]) -> Result<Cached, SandboxError> {
    let engine = Engine::new(&engine_config())?;
    Artifacts::open(cache_dir.to_owned(), key)?.look(&engine, guest)
}
