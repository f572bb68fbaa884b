//! A way to a server that can be cut and slowed down without touching the server: to the test
//! Postgres that others use too, say.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A TCP proxy.
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    is_cut: bool,
    /// How long each piece takes.
    delay: Duration,
    open: Vec<TcpStream>,
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn carry(mut from: TcpStream, mut to: TcpStream, state: &Mutex<State>) {
    let mut piece = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        let delay = locked(state).delay;
        std::thread::sleep(delay);
        if to.write_all(&piece[..length]).is_err() {
            return;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

impl Proxy {
    /// Start one in front of the Postgres that `PICLOUD_TEST_POSTGRES_URL` names.
    ///
    /// # Panics
    /// When there is no test Postgres.
    pub fn start() -> Self {
        let url = std::env::var("PICLOUD_TEST_POSTGRES_URL").expect("`cargo xtask test` sets it");
        let target = url
            .split(['@', '/'])
            .find(|part| part.contains(':') && !part.ends_with(':'));
        Self::to(target.expect("a host and a port"))
    }

    /// Start one in front of whoever listens at `target`, a host and a port.
    ///
    /// # Panics
    /// When there is no port for it.
    pub fn to(target: &str) -> Self {
        let target = target.to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("a port").port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for inside in listener.incoming().map_while(Result::ok) {
                let mut state = locked(&shared);
                if state.is_cut {
                    continue;
                }
                let Ok(outside) = TcpStream::connect(&target) else {
                    continue;
                };
                for (from, to) in [(&inside, &outside), (&outside, &inside)] {
                    if let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) {
                        let shared = shared.clone();
                        std::thread::spawn(move || carry(from, to, &shared));
                    }
                }
                state.open.extend([inside, outside]);
            }
        });
        Self { port, state }
    }

    /// Cut every connection, and let none be made.
    pub fn cut(&self) {
        let mut state = locked(&self.state);
        state.is_cut = true;
        for stream in state.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Let connections be made again.
    pub fn mend(&self) {
        locked(&self.state).is_cut = false;
    }

    /// Let each piece take this long from now on, both ways.
    pub fn slow_down(&self, delay: Duration) {
        locked(&self.state).delay = delay;
    }
}
