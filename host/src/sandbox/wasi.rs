//! The part of WASI that guests get: clocks, randomness and polling, and an empty `wasi:cli`
//! and `wasi:filesystem` for language runtimes that ask. No sockets at all.

use wasmtime::component::{HasData, Linker, ResourceTable};
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksView};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::{cli, clocks, filesystem, random};
use wasmtime_wasi::random::WasiRandom;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_io::bindings::wasi::io;

use super::imports::Imports;
use super::run::State;

/// The most random bytes of one call: the host allocates what the guest asks for.
const RANDOM_BYTES_MAX: u64 = 64 * 1024;
/// How many handles to host resources (polls, streams) a guest may hold at once.
const HANDLES_MAX: usize = 1_000;

/// WASI's state, made when the guest first asks for it: most scripts never do.
#[derive(Default)]
pub(super) struct Wasi {
    parts: Option<Box<(WasiCtx, ResourceTable)>>,
}

impl<I: Imports> WasiView for State<I> {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let (ctx, table) = &mut **self.wasi.parts.get_or_insert_with(|| {
            let mut table = ResourceTable::new();
            table.set_max_capacity(HANDLES_MAX);
            let mut ctx = WasiCtx::builder();
            ctx.max_random_size(RANDOM_BYTES_MAX)
                .allow_tcp(false)
                .allow_udp(false)
                .allow_ip_name_lookup(false);
            Box::new((ctx.build(), table))
        });
        WasiCtxView { ctx, table }
    }
}

struct HasTable;

impl HasData for HasTable {
    type Data<'a> = &'a mut ResourceTable;
}

/// Link it.
pub(super) fn link<I: Imports>(l: &mut Linker<State<I>>) -> wasmtime::Result<()> {
    type S<I> = State<I>;
    io::error::add_to_linker::<S<I>, HasTable>(l, |s| s.ctx().table)?;
    io::poll::add_to_linker::<S<I>, HasTable>(l, |s| s.ctx().table)?;
    io::streams::add_to_linker::<S<I>, HasTable>(l, |s| s.ctx().table)?;
    clocks::wall_clock::add_to_linker::<S<I>, WasiClocks>(l, S::<I>::clocks)?;
    clocks::monotonic_clock::add_to_linker::<S<I>, WasiClocks>(l, S::<I>::clocks)?;
    random::random::add_to_linker::<S<I>, WasiRandom>(l, |s| s.ctx().ctx.random())?;
    random::insecure::add_to_linker::<S<I>, WasiRandom>(l, |s| s.ctx().ctx.random())?;
    random::insecure_seed::add_to_linker::<S<I>, WasiRandom>(l, |s| s.ctx().ctx.random())?;
    cli::exit::add_to_linker::<S<I>, WasiCli>(l, S::<I>::cli)?;
    cli::environment::add_to_linker::<S<I>, WasiCli>(l, S::<I>::cli)?;
    cli::stdin::add_to_linker::<S<I>, WasiCli>(l, S::<I>::cli)?;
    cli::stdout::add_to_linker::<S<I>, WasiCli>(l, S::<I>::cli)?;
    cli::stderr::add_to_linker::<S<I>, WasiCli>(l, S::<I>::cli)?;
    cli::terminal_input::add_to_linker::<S<I>, WasiCli>(l, S::<I>::cli)?;
    cli::terminal_output::add_to_linker::<S<I>, WasiCli>(l, S::<I>::cli)?;
    cli::terminal_stdin::add_to_linker::<S<I>, WasiCli>(l, S::<I>::cli)?;
    cli::terminal_stdout::add_to_linker::<S<I>, WasiCli>(l, S::<I>::cli)?;
    cli::terminal_stderr::add_to_linker::<S<I>, WasiCli>(l, S::<I>::cli)?;
    filesystem::types::add_to_linker::<S<I>, WasiFilesystem>(l, S::<I>::filesystem)?;
    filesystem::preopens::add_to_linker::<S<I>, WasiFilesystem>(l, S::<I>::filesystem)?;
    Ok(())
}
