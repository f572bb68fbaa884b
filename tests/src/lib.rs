//! The harness of the end-to-end tests: a real server, on either database, reached as users
//! reach it.

mod app;
mod cache;
pub mod collector;
pub mod component;
mod database;
mod place;
pub mod provider;
mod proxy;
mod server;
mod stream;
mod stuck;
mod terminal;

pub use app::App;
pub use database::{Lock, Row};
pub use place::Place;
pub use proxy::{Armed, Connected, Lost, Proxy, Statement, Then, normalised, nth, writes};
pub use server::{Answer, Engine, Options, Server, restart_postgres};
pub use stream::{Ended, Event, EventStream};
pub use terminal::{Home, err, fails, fine, out};

use std::time::{Duration, Instant};

/// Wait until `done` answers something; a test that waits in vain fails here.
///
/// # Panics
/// When it takes longer than half a minute.
#[track_caller]
pub fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = done() {
            return found;
        }
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "waited in vain for: {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Say what a test did, where CI shows it: what `eprintln!` prints, a test that passes swallows.
pub fn report(text: std::fmt::Arguments<'_>) {
    use std::io::Write;
    // A line that cannot be written is no reason to fail.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Make two tests of each function, one for each database.
#[macro_export]
macro_rules! on_both_engines {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[test] fn $name() { super::$name($crate::Engine::Sqlite); })*
        }
        mod postgres {
            $(#[test] fn $name() { super::$name($crate::Engine::Postgres); })*
        }
    };
}

/// Doubles of any size that look random and are the same each time for a seed (xorshift64).
pub fn doubles(seed: u64) -> impl Iterator<Item = f64> {
    let mut bits = seed;
    let doubles = std::iter::repeat_with(move || {
        bits ^= bits << 13;
        bits ^= bits >> 7;
        bits ^= bits << 17;
        f64::from_bits(bits)
    });
    doubles.filter(|double| double.is_finite())
}
