//! What the C library below Rust's standard library imports of WASI's first preview: clocks and
//! randomness come from WASI's second, the rest is not there. `cargo xtask guest` binds these to
//! the imports of their names, so that no adapter stands between: an adapter is instantiated with
//! each instance, and took as long as the rest.

use wasip2::clocks::{monotonic_clock, wall_clock};
use wasip2::random::random;

/// WASI's numbers for "no problem", "no such file", "invalid argument", and "no such function".
const SUCCESS: i32 = 0;
const BADF: i32 = 8;
const INVAL: i32 = 28;
const NOSYS: i32 = 52;

/// # Safety
/// There are `length` bytes at `bytes`.
#[unsafe(export_name = "wasi_snapshot_preview1.random_get")]
unsafe extern "C" fn random_get(bytes: *mut u8, length: usize) -> i32 {
    let random = random::get_random_bytes(length as u64);
    // SAFETY: the caller promises the place; the host gives as many as it was asked for.
    unsafe { bytes.copy_from_nonoverlapping(random.as_ptr(), random.len().min(length)) };
    SUCCESS
}

/// # Safety
/// `time` can be written to.
#[unsafe(export_name = "wasi_snapshot_preview1.clock_time_get")]
unsafe extern "C" fn clock_time_get(clock: i32, _precision: i64, time: *mut u64) -> i32 {
    let now = match clock {
        0 => {
            let now = wall_clock::now();
            now.seconds * 1_000_000_000 + u64::from(now.nanoseconds)
        }
        1 => monotonic_clock::now(),
        _ => return INVAL,
    };
    // SAFETY: the caller promises the place.
    unsafe { time.write(now) };
    SUCCESS
}

/// # Safety
/// `count` and `bytes` can be written to.
#[unsafe(export_name = "wasi_snapshot_preview1.environ_sizes_get")]
unsafe extern "C" fn environ_sizes_get(count: *mut usize, bytes: *mut usize) -> i32 {
    // SAFETY: the caller promises the places.
    unsafe {
        count.write(0);
        bytes.write(0);
    }
    SUCCESS
}

#[unsafe(export_name = "wasi_snapshot_preview1.environ_get")]
extern "C" fn environ_get(_: i32, _: i32) -> i32 {
    SUCCESS
}

#[unsafe(export_name = "wasi_snapshot_preview1.proc_exit")]
extern "C" fn proc_exit(_: i32) -> ! {
    core::arch::wasm32::unreachable()
}

macro_rules! not_there {
    ($($problem:ident: $name:literal => $function:ident($($of:ty),*);)*) => {
        $(
            #[unsafe(export_name = concat!("wasi_snapshot_preview1.", $name))]
            extern "C" fn $function($(_: $of),*) -> i32 {
                $problem
            }
        )*
    };
}

not_there! {
    BADF: "fd_close" => fd_close(i32);
    BADF: "fd_fdstat_get" => fd_fdstat_get(i32, i32);
    BADF: "fd_filestat_get" => fd_filestat_get(i32, i32);
    BADF: "fd_prestat_get" => fd_prestat_get(i32, i32);
    BADF: "fd_prestat_dir_name" => fd_prestat_dir_name(i32, i32, i32);
    BADF: "fd_read" => fd_read(i32, i32, i32, i32);
    BADF: "fd_seek" => fd_seek(i32, i64, i32, i32);
    BADF: "fd_write" => fd_write(i32, i32, i32, i32);
    BADF: "path_filestat_get" => path_filestat_get(i32, i32, i32, i32, i32);
    BADF: "path_open" => path_open(i32, i32, i32, i32, i32, i64, i64, i32, i32);
    NOSYS: "poll_oneoff" => poll_oneoff(i32, i32, i32, i32);
}
