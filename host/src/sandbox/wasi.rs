//! The part of WASI that guests get: coarse clocks, randomness and polling, and an empty `wasi:cli`
//! and `wasi:filesystem` for language runtimes that ask. No sockets at all.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};

use wasmtime::component::{HasData, Linker, ResourceTable};
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::clocks::{HostMonotonicClock, HostWallClock, WasiClocks, WasiClocksView};
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
/// The step in which guests' clocks go. What can be learned of others through the processor's caches
/// is learned by telling some 100 ns apart; this does not rule that out, and makes it take long.
const CLOCK_STEP: Duration = Duration::from_millis(1);
/// From when guests' monotonic clocks count. It is the same for all, so that no guest finds the steps of
/// two clocks at different places.
static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The step of the clocks of apps that are trusted with more.
const PRECISE_CLOCK_STEP: Duration = Duration::from_nanos(1);

/// A clock that shows a time only when a whole step has passed.
#[derive(Clone, Copy)]
struct SteppingClock {
    step: Duration,
}

impl SteppingClock {
    fn of(is_precise: bool) -> Self {
        let step = match is_precise {
            true => PRECISE_CLOCK_STEP,
            false => CLOCK_STEP,
        };
        Self { step }
    }

    /// The last whole step at a time. A step divides a second.
    fn shown(self, time: Duration) -> Duration {
        let beyond = time.subsec_nanos() % self.step.subsec_nanos();
        time.saturating_sub(Duration::from_nanos(beyond.into()))
    }
}

impl HostMonotonicClock for SteppingClock {
    fn resolution(&self) -> u64 {
        nanoseconds(self.step)
    }

    fn now(&self) -> u64 {
        nanoseconds(self.shown(BEGAN.elapsed()))
    }
}

impl HostWallClock for SteppingClock {
    fn resolution(&self) -> Duration {
        self.step
    }

    fn now(&self) -> Duration {
        // A clock before 1970 is none that a guest could do anything with.
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        self.shown(since_1970.unwrap_or_default())
    }
}

fn nanoseconds(time: Duration) -> u64 {
    // 584 years fit.
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// WASI's state, made when the guest first asks for it: most scripts never do.
#[derive(Default)]
pub(super) struct Wasi {
    parts: Option<Box<(WasiCtx, ResourceTable)>>,
}

impl<I: Imports> WasiView for State<I> {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let clock = SteppingClock::of(self.has_precise_clocks);
        let (ctx, table) = &mut **self.wasi.parts.get_or_insert_with(|| {
            let mut table = ResourceTable::new();
            table.set_max_capacity(HANDLES_MAX);
            let mut ctx = WasiCtx::builder();
            ctx.max_random_size(RANDOM_BYTES_MAX)
                .monotonic_clock(clock)
                .wall_clock(clock)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_go_in_whole_steps() {
        for (ns, shown) in [
            (0, 0),
            (999_999, 0),
            (1_000_000, 1_000_000),
            (5_000_000_000, 5_000_000_000),
            (1_790_000_000_123_456_789, 1_790_000_000_123_000_000),
        ] {
            let time = Duration::from_nanos(ns);
            assert_eq!(nanoseconds(SteppingClock::of(false).shown(time)), shown);
            assert_eq!(SteppingClock::of(true).shown(time), time);
        }
        let (step, coarse) = (nanoseconds(CLOCK_STEP), SteppingClock::of(false));
        assert_eq!(HostMonotonicClock::resolution(&coarse), step);
        assert_eq!(HostMonotonicClock::now(&coarse) % step, 0);
        let wall = HostWallClock::now(&coarse);
        assert_eq!(nanoseconds(wall) % step, 0);
        assert!(wall > Duration::from_secs(1_700_000_000));
    }
}
