//! A way to a server that breaks on demand without touching the server: to the test Postgres that
//! others use too, say. It can be cut, slowed down, starved and turned into a black hole; and
//! because it reads Postgres' protocol, it can lose the answer to one statement.
//!
//! In front of anything else than Postgres all works but what names statements.

mod wire;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wire::{FromClient, FromServer, Wire};
pub use wire::{Statement, normalised, writes};

/// The most that is read at once.
const PIECE: usize = 64 * 1024;
/// How long a write may wait for who does not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// A TCP proxy; dropping it cuts every connection.
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    is_over: bool,
    newcomers: Newcomers,
    pace: Pace,
    open: Vec<Arc<Connection>>,
    made: usize,
    tried: usize,
    rules: Vec<Arc<Rule>>,
    recorded: Option<Vec<Statement>>,
}

/// What becomes of who connects.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Newcomers {
    #[default]
    Served,
    /// Their connection is closed at once.
    Refused,
    /// Their connection is open, and nothing ever comes.
    Unanswered,
}

#[derive(Default, Clone, Copy)]
struct Pace {
    /// How long each piece takes, both ways.
    each: Duration,
    /// How long an answer takes on top.
    answers: Duration,
    /// Bytes a second, of each connection and each direction.
    bandwidth: Option<u64>,
}

/// What is lost of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// What the client sent: the server never hears of it.
    Request,
    /// What the server answered: it is done, and the client is not told.
    Answer,
}

/// What becomes of the connection then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It is closed, for both.
    Close,
    /// It stays open, and nothing ever passes again. When the client closes it, so does the server.
    Hang,
}

/// Chooses statements.
type Which = Box<dyn FnMut(&Statement) -> bool + Send>;

struct Rule {
    lost: Lost,
    then: Then,
    which: Mutex<Which>,
    once: bool,
    is_armed: AtomicBool,
    fired: Mutex<Vec<Statement>>,
    has_fired: Condvar,
}

/// A loss that was ordered; dropping it calls it off.
#[must_use = "a loss is called off when this is dropped"]
pub struct Armed {
    rule: Arc<Rule>,
}

impl Armed {
    /// How often it came to pass.
    pub fn fired(&self) -> usize {
        locked(&self.rule.fired).len()
    }

    /// What was lost.
    pub fn lost(&self) -> Vec<Statement> {
        locked(&self.rule.fired).clone()
    }

    /// Wait until it came to pass; says whether it did within a time.
    pub fn wait(&self, at_most: Duration) -> bool {
        let fired = locked(&self.rule.fired);
        let waited = self
            .rule
            .has_fired
            .wait_timeout_while(fired, at_most, |fired| fired.is_empty());
        !waited.unwrap_or_else(PoisonError::into_inner).0.is_empty()
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        self.rule.is_armed.store(false, Ordering::SeqCst);
    }
}

impl Rule {
    /// Whether it is about one of these; then it is the last time, if it is to happen once.
    fn takes(&self, statements: &[Statement]) -> Option<Statement> {
        // One client at a time: what is to happen once must not happen twice.
        let mut which = locked(&self.which);
        if !self.is_armed.load(Ordering::SeqCst) {
            return None;
        }
        let found = statements.iter().find(|one| which(one))?;
        if self.once {
            self.is_armed.store(false, Ordering::SeqCst);
        }
        Some(found.clone())
    }

    fn fire(&self, statement: Statement) {
        locked(&self.fired).push(statement);
        self.has_fired.notify_all();
    }
}

/// An open connection, as a test chooses among them.
#[derive(Debug, Clone)]
pub struct Connected {
    /// Its number, in the order in which they were made.
    pub number: usize,
    /// The last statements that it executed, the newest at the end.
    pub recent: Vec<String>,
}

impl Connected {
    /// The last statement.
    pub fn last(&self) -> &str {
        self.recent.last().map_or("", String::as_str)
    }

    /// Whether it executed a statement that begins so, not long ago.
    pub fn executed(&self, beginning: &str) -> bool {
        self.recent.iter().any(|text| text.starts_with(beginning))
    }
}

struct Connection {
    number: usize,
    client: TcpStream,
    server: TcpStream,
    wire: Mutex<Wire>,
    to_client: Mutex<Valve>,
    to_server: Mutex<Valve>,
    /// The round trips whose answers are to be lost.
    doomed: Mutex<VecDeque<Doom>>,
    /// Nothing passes any more.
    is_dead: AtomicBool,
}

struct Doom {
    cycle: u64,
    statement: Statement,
    rule: Arc<Rule>,
}

/// One direction of a connection.
#[derive(Default)]
struct Valve {
    is_shut: bool,
    /// What came while it was shut.
    held: Vec<u8>,
    /// The sender is gone, which its peer does not know.
    has_ended: bool,
}

fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connection {
    fn close(&self) {
        self.is_dead.store(true, Ordering::SeqCst);
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }

    fn hang(&self) {
        self.is_dead.store(true, Ordering::SeqCst);
    }

    /// Pass bytes on, or keep them. Says whether the connection goes on.
    fn pass(&self, valve: &Mutex<Valve>, mut to: &TcpStream, bytes: &[u8]) -> bool {
        if self.is_dead.load(Ordering::SeqCst) {
            return true;
        }
        let mut valve = locked(valve);
        if valve.is_shut {
            valve.held.extend_from_slice(bytes);
            return true;
        }
        to.write_all(bytes).is_ok()
    }

    fn shut(&self) {
        for valve in [&self.to_client, &self.to_server] {
            locked(valve).is_shut = true;
        }
    }

    /// Let everything pass that was kept.
    fn reopen(&self) {
        for (valve, mut to) in [
            (&self.to_server, &self.server),
            (&self.to_client, &self.client),
        ] {
            let mut valve = locked(valve);
            valve.is_shut = false;
            let held = std::mem::take(&mut valve.held);
            if to.write_all(&held).is_err() || valve.has_ended {
                self.close();
            }
        }
    }

    fn seen(&self) -> Connected {
        Connected {
            number: self.number,
            recent: locked(&self.wire).recent.iter().cloned().collect(),
        }
    }
}

impl Shared {
    /// Wait for something to read, as long as it takes, and as long as it is to take.
    fn read(&self, mut from: &TcpStream, piece: &mut [u8], is_answer: bool) -> usize {
        if !matches!(from.peek(&mut [0]), Ok(1..)) {
            return 0;
        }
        let pace = locked(&self.state).pace;
        let answers = if is_answer {
            pace.answers
        } else {
            Duration::ZERO
        };
        // All that comes in this time is one answer.
        std::thread::sleep(pace.each + answers);
        let Some(bandwidth) = pace.bandwidth else {
            return from.read(piece).unwrap_or(0);
        };
        const TURNS_A_SECOND: u64 = 20;
        let most = usize::try_from(bandwidth.div_ceil(TURNS_A_SECOND)).unwrap_or(PIECE);
        let most = most.clamp(1, piece.len());
        let read = from.read(&mut piece[..most]).unwrap_or(0);
        std::thread::sleep(Duration::from_secs_f64(read as f64 / bandwidth as f64));
        read
    }

    /// The rule that is about one of these statements, if there is one.
    fn rule(&self, statements: &[Statement]) -> Option<(Arc<Rule>, Statement)> {
        if statements.is_empty() {
            return None;
        }
        let rules = {
            let mut state = locked(&self.state);
            state
                .rules
                .retain(|rule| rule.is_armed.load(Ordering::SeqCst));
            state.rules.clone()
        };
        rules.into_iter().find_map(|rule| {
            let statement = rule.takes(statements)?;
            Some((rule, statement))
        })
    }

    fn carry_requests(&self, connection: &Connection) {
        let mut piece = vec![0; PIECE];
        loop {
            let length = self.read(&connection.client, &mut piece, false);
            // Who closes its end is not kept from it by a black hole.
            if length == 0 {
                return connection.close();
            }
            let said = locked(&connection.wire).client_sent(&piece[..length]);
            for one in said {
                let goes_on = match one {
                    FromClient::Plain(bytes) => {
                        connection.pass(&connection.to_server, &connection.server, &bytes)
                    }
                    FromClient::AsksForEncryption => {
                        connection.pass(&connection.to_client, &connection.client, b"N")
                    }
                    FromClient::Cycle(bytes, cycle, statements) => {
                        self.ask(connection, &bytes, cycle, &statements)
                    }
                };
                if !goes_on {
                    return connection.close();
                }
            }
        }
    }

    fn ask(
        &self,
        connection: &Connection,
        bytes: &[u8],
        cycle: u64,
        statements: &[Statement],
    ) -> bool {
        let is_dead = connection.is_dead.load(Ordering::SeqCst);
        if !is_dead && let Some((rule, statement)) = self.rule(statements) {
            match (rule.lost, rule.then) {
                (Lost::Answer, _) => locked(&connection.doomed).push_back(Doom {
                    cycle,
                    statement,
                    rule,
                }),
                (Lost::Request, Then::Close) => {
                    rule.fire(statement);
                    return false;
                }
                (Lost::Request, Then::Hang) => {
                    connection.hang();
                    rule.fire(statement);
                }
            }
        }
        connection.pass(&connection.to_server, &connection.server, bytes)
    }

    fn carry_answers(&self, connection: &Connection) {
        let mut piece = vec![0; PIECE];
        loop {
            let length = self.read(&connection.server, &mut piece, true);
            if length == 0 {
                // A black hole swallows the end, too.
                let mut valve = locked(&connection.to_client);
                valve.has_ended = true;
                if !valve.is_shut && !connection.is_dead.load(Ordering::SeqCst) {
                    connection.close();
                }
                return;
            }
            let said = locked(&connection.wire).server_sent(&piece[..length]);
            for one in said {
                if !self.answer(connection, one) {
                    return connection.close();
                }
            }
        }
    }

    fn answer(&self, connection: &Connection, one: FromServer) -> bool {
        let (bytes, cycle, answered) = match one {
            FromServer::Part(bytes, cycle) => (bytes, cycle, None),
            FromServer::Ready(bytes, cycle, statements) => (bytes, cycle, Some(statements)),
        };
        let is_answered = answered.is_some();
        if let Some(statements) = answered
            && let Some(recorded) = &mut locked(&self.state).recorded
        {
            recorded.extend(statements);
        }
        let mut doomed = locked(&connection.doomed);
        match doomed.front() {
            Some(doom) if doom.cycle == cycle && !is_answered => true,
            Some(doom) if doom.cycle == cycle => {
                // The connection first: whoever waits for the loss may act on it at once.
                match doom.rule.then {
                    Then::Close => connection.close(),
                    Then::Hang => connection.hang(),
                }
                if let Some(doom) = doomed.pop_front() {
                    doom.rule.fire(doom.statement);
                }
                true
            }
            _ => {
                drop(doomed);
                connection.pass(&connection.to_client, &connection.client, &bytes)
            }
        }
    }

    fn accept(self: &Arc<Self>, client: TcpStream, target: &str) {
        let mut state = locked(&self.state);
        state.tried += 1;
        let newcomers = state.newcomers;
        if newcomers == Newcomers::Refused {
            return;
        }
        // Nothing is held back to be sent together: each side did so where it wanted to.
        let _ = client.set_nodelay(true);
        let _ = client.set_write_timeout(Some(WRITE_TIMEOUT));
        let Ok(server) = TcpStream::connect(target) else {
            return;
        };
        let _ = server.set_nodelay(true);
        let _ = server.set_write_timeout(Some(WRITE_TIMEOUT));
        let number = state.made;
        state.made += 1;
        let connection = Arc::new(Connection {
            number,
            client,
            server,
            wire: Mutex::new(Wire::new(number)),
            to_client: Mutex::default(),
            to_server: Mutex::default(),
            doomed: Mutex::default(),
            is_dead: AtomicBool::new(newcomers == Newcomers::Unanswered),
        });
        state.open.push(connection.clone());
        drop(state);
        let (shared, asked) = (self.clone(), connection.clone());
        std::thread::spawn(move || {
            shared.carry_requests(&asked);
            locked(&shared.state)
                .open
                .retain(|open| open.number != number);
        });
        let shared = self.clone();
        std::thread::spawn(move || shared.carry_answers(&connection));
    }
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
        let state = Mutex::new(State::default());
        let shared = Arc::new(Shared { state });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if locked(&accepting.state).is_over {
                    return;
                }
                accepting.accept(client, &target);
            }
        });
        Self { port, shared }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.shared.state)
    }

    /// The connections that are open.
    pub fn connections(&self) -> Vec<Connected> {
        let open = self.state().open.clone();
        open.iter().map(|connection| connection.seen()).collect()
    }

    /// How many connections were ever asked for, those that were refused among them.
    pub fn tried(&self) -> usize {
        self.state().tried
    }

    /// Cut every connection, and let none be made.
    pub fn cut(&self) {
        self.refuse_new();
        self.cut_some(|_| true);
    }

    /// Cut these connections, once. Says how many.
    pub fn cut_some(&self, which: impl FnMut(&Connected) -> bool) -> usize {
        let found = self.find(which);
        found.iter().for_each(|connection| connection.close());
        found.len()
    }

    fn find(&self, mut which: impl FnMut(&Connected) -> bool) -> Vec<Arc<Connection>> {
        let open = self.state().open.clone();
        let found = open
            .into_iter()
            .filter(|connection| which(&connection.seen()));
        found.collect()
    }

    /// Close every new connection at once.
    pub fn refuse_new(&self) {
        self.state().newcomers = Newcomers::Refused;
    }

    /// Let connections be made again, and those that fell silent go on where they were: but not
    /// those that were left hanging because of a statement, and none that was made meanwhile.
    pub fn mend(&self) {
        let open = {
            let mut state = self.state();
            state.newcomers = Newcomers::Served;
            state.open.clone()
        };
        open.iter().for_each(|connection| connection.reopen());
    }

    /// Let nothing pass on these connections any more, which stay open. Says how many.
    pub fn black_hole(&self, which: impl FnMut(&Connected) -> bool) -> usize {
        let found = self.find(which);
        found.iter().for_each(|connection| connection.shut());
        found.len()
    }

    /// Let nothing pass on any connection, nor on new ones. Says how many there were.
    pub fn black_hole_all(&self) -> usize {
        self.state().newcomers = Newcomers::Unanswered;
        self.black_hole(|_| true)
    }

    /// Let each piece take this long from now on, both ways.
    pub fn slow_down(&self, delay: Duration) {
        self.state().pace.each = delay;
    }

    /// Let each answer take this much longer from now on.
    pub fn delay_answers(&self, delay: Duration) {
        self.state().pace.answers = delay;
    }

    /// Let no more than this many bytes a second pass on each connection, each way.
    pub fn limit_bandwidth(&self, bytes_a_second: Option<u64>) {
        self.state().pace.bandwidth = bytes_a_second;
    }

    /// Begin to write down what is executed, anew.
    pub fn record(&self) {
        self.state().recorded = Some(Vec::new());
    }

    /// The statements that were answered since [`Self::record`] or since this was asked last, in
    /// the order of their answers.
    pub fn recorded(&self) -> Vec<Statement> {
        let recorded = &mut self.state().recorded;
        recorded.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Lose the request or the answer of the next statement that `which` picks, once.
    pub fn lose(
        &self,
        lost: Lost,
        then: Then,
        which: impl FnMut(&Statement) -> bool + Send + 'static,
    ) -> Armed {
        self.arm(lost, then, Box::new(which), true)
    }

    /// The same, but of every such statement.
    pub fn lose_each(
        &self,
        lost: Lost,
        then: Then,
        which: impl FnMut(&Statement) -> bool + Send + 'static,
    ) -> Armed {
        self.arm(lost, then, Box::new(which), false)
    }

    fn arm(&self, lost: Lost, then: Then, which: Which, once: bool) -> Armed {
        let rule = Arc::new(Rule {
            lost,
            then,
            which: Mutex::new(which),
            once,
            is_armed: AtomicBool::new(true),
            fired: Mutex::default(),
            has_fired: Condvar::new(),
        });
        self.state().rules.push(rule.clone());
        Armed { rule }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state().is_over = true;
        self.cut_some(|_| true);
        // To wake who accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// The `n`th that `which` picks, counted from 1.
pub fn nth(
    n: usize,
    mut which: impl FnMut(&Statement) -> bool + Send + 'static,
) -> impl FnMut(&Statement) -> bool + Send + 'static {
    let seen = AtomicUsize::new(0);
    move |statement| which(statement) && seen.fetch_add(1, Ordering::SeqCst) + 1 == n
}
