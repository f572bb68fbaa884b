//! Opens many streams, publishes messages, and tells how long each took to reach each stream. It
//! sends and hears the bytes that it is told to, so that it measures peers too. `cargo xtask bench`
//! runs it with one JSON object and reads one JSON object for each line that it writes to it: what
//! the server takes for idle streams is measured between the two.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout};

/// What stands for a message's number in what is published; numbers have as many digits.
const NUMBER: &str = "#######";
const FIRST_NUMBER: u64 = 1_000_000;
/// How many streams are being opened at once.
const OPENING: usize = 64;
/// How long is waited for what does not come.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a stream reads at once: ten thousand of them should be small here, too.
const PIECE: usize = 2 * 1024;

#[derive(Deserialize)]
struct Plan {
    address: SocketAddr,
    streams: usize,
    /// What a subscriber sends, and what it hears once it has subscribed.
    subscribe: String,
    subscribed: String,
    /// What stands before the number of each message that is heard. Where no number follows,
    /// messages are counted: there is one publisher then.
    mark: String,
    publishers: u64,
    /// What a publisher sends once, and hears.
    hello: Option<(String, String)>,
    /// What it sends for each message, what is in the answer, and how that ends.
    publish: String,
    published: (String, String),
}

/// One line of what we are told: how many messages are published, and how many a second; none: as
/// fast as that goes.
#[derive(Deserialize)]
struct Turn {
    messages: u64,
    per_second: Option<u32>,
}

/// What the streams tell: which message, and how long after it was sent.
type Heard = mpsc::UnboundedSender<(u64, Duration)>;

struct Shared {
    plan: Plan,
    begun: Instant,
    /// When each message of a turn was sent, in nanoseconds after the begin.
    sent: Vec<AtomicU64>,
}

impl Shared {
    fn note_sent(&self, number: u64) {
        let nanos = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.sent[number as usize].store(nanos, Ordering::Relaxed);
    }

    fn age(&self, number: u64) -> Option<Duration> {
        let sent = self.sent.get(number as usize)?.load(Ordering::Relaxed);
        Some(
            self.begun
                .elapsed()
                .saturating_sub(Duration::from_nanos(sent)),
        )
    }
}

fn position(heard: &[u8], wanted: &[u8]) -> Option<usize> {
    memchr::memmem::find(heard, wanted)
}

/// Send something and read until the answer has `end`; answers what was heard.
async fn ask(socket: &mut TcpStream, words: &str, end: &str) -> Result<Vec<u8>> {
    socket.write_all(words.as_bytes()).await?;
    let mut heard = Vec::with_capacity(1024);
    while position(&heard, end.as_bytes()).is_none() {
        if socket.read_buf(&mut heard).await? == 0 {
            bail!("it ended with: {}", String::from_utf8_lossy(&heard));
        }
    }
    Ok(heard)
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// A stream that tells what it hears, for as long as it lasts.
async fn follow(shared: Arc<Shared>, mut socket: TcpStream, heard: Heard) -> Result<()> {
    let mark = shared.plan.mark.as_bytes();
    let (mut rest, mut count) = (Vec::with_capacity(PIECE), 0);
    loop {
        if socket.read_buf(&mut rest).await? == 0 {
            bail!("a stream ended");
        }
        let mut done = 0;
        while let Some(at) = position(&rest[done..], mark) {
            let after = done + at + mark.len();
            // A number that is not whole yet comes with the next piece.
            let Some(digits) = rest.get(after..after + NUMBER.len()) else {
                break;
            };
            let number = std::str::from_utf8(digits).ok();
            let number = number.and_then(|digits| digits.parse::<u64>().ok());
            let number = number.map_or(count, |number| number - FIRST_NUMBER);
            count += 1;
            done = after + NUMBER.len();
            if let Some(age) = shared.age(number) {
                let _ = heard.send((number, age));
            }
        }
        // A mark and its number may be at the end of a piece, and not be whole.
        let kept = (rest.len() - done).min(mark.len() + NUMBER.len());
        rest.drain(..rest.len() - kept);
    }
}

/// Publish the messages whose turn it is for this publisher.
async fn publish(shared: Arc<Shared>, from: u64, numbers: Vec<u64>, turn: Arc<Turn>) -> Result<()> {
    let plan = &shared.plan;
    let mut socket = connect(plan.address).await?;
    if let Some((words, end)) = &plan.hello {
        ask(&mut socket, words, end).await?;
    }
    let begun = Instant::now();
    for number in numbers {
        if let Some(per_second) = turn.per_second {
            let due = Duration::from_secs_f64((number - from) as f64 / f64::from(per_second));
            sleep_until(begun + due).await;
        }
        let words = plan
            .publish
            .replace(NUMBER, &(FIRST_NUMBER + number).to_string());
        shared.note_sent(number);
        socket.write_all(words.as_bytes()).await?;
        let (word, end) = &plan.published;
        let mut said = Vec::with_capacity(1024);
        let is_answered = |said: &[u8]| {
            position(said, word.as_bytes()).is_some() && said.ends_with(end.as_bytes())
        };
        while !is_answered(&said) {
            let read = timeout(PATIENCE, socket.read_buf(&mut said)).await;
            if !read.is_ok_and(|read| read.is_ok_and(|bytes| bytes > 0)) {
                bail!("a message was refused: {}", String::from_utf8_lossy(&said));
            }
        }
    }
    Ok(())
}

async fn open_all(shared: &Arc<Shared>, heard: &Heard) -> Result<()> {
    let places = Arc::new(Semaphore::new(OPENING));
    let mut opening = Vec::new();
    for _ in 0..shared.plan.streams {
        let (shared, heard) = (shared.clone(), heard.clone());
        let place = places.clone().acquire_owned().await?;
        opening.push(tokio::spawn(async move {
            let mut socket = connect(shared.plan.address).await?;
            let plan = &shared.plan;
            let asked = ask(&mut socket, &plan.subscribe, &plan.subscribed);
            timeout(PATIENCE, asked)
                .await
                .context("it does not open")??;
            drop(place);
            tokio::spawn(follow(shared, socket, heard));
            Ok::<_, anyhow::Error>(())
        }));
    }
    for opened in opening {
        opened.await??;
    }
    Ok(())
}

/// Publish, and wait until every stream has heard every message.
async fn take_turn(
    shared: &Arc<Shared>,
    turn: Turn,
    from: u64,
    heard: &mut mpsc::UnboundedReceiver<(u64, Duration)>,
) -> Result<serde_json::Value> {
    let turn = Arc::new(turn);
    let begun = Instant::now();
    let publishers = shared.plan.publishers;
    let publishing: Vec<_> = (0..publishers)
        .map(|which| {
            let numbers = (from..from + turn.messages).filter(|n| n % publishers == which);
            let (shared, numbers) = (shared.clone(), numbers.collect());
            tokio::spawn(publish(shared, from, numbers, turn.clone()))
        })
        .collect();
    let expected = turn.messages * shared.plan.streams as u64;
    let mut ages = Vec::with_capacity(expected as usize);
    let mut by_number = vec![0_u64; turn.messages as usize];
    while (ages.len() as u64) < expected {
        // What is still missing then is lost.
        let Ok(Some((number, age))) = timeout(PATIENCE, heard.recv()).await else {
            break;
        };
        if let Some(count) = by_number.get_mut((number - from) as usize) {
            *count += 1;
        }
        ages.push(age);
    }
    let took = begun.elapsed();
    for publisher in publishing {
        publisher.await??;
    }
    // A message that one stream heard twice would hide one that another did not hear.
    let streams = shared.plan.streams as u64;
    let lost: u64 = by_number.iter().map(|count| count.abs_diff(streams)).sum();
    if ages.is_empty() {
        bail!("nobody heard anything");
    }
    ages.sort_unstable();
    let at = |part: f64| {
        let age = ages[((ages.len() - 1) as f64 * part) as usize];
        age.as_secs_f64() * 1e3
    };
    Ok(json!({
        "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0), "lost": lost,
        "seconds": took.as_secs_f64(),
    }))
}

// One thread: the server needs the cores, too.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    /// More than any turns publish together.
    const MESSAGES_MAX: usize = 1_000_000;
    let plan = std::env::args().nth(1).context("give it a plan")?;
    let shared = Arc::new(Shared {
        plan: serde_json::from_str(&plan)?,
        begun: Instant::now(),
        sent: (0..MESSAGES_MAX).map(|_| AtomicU64::new(0)).collect(),
    });
    let (tell, mut heard) = mpsc::unbounded_channel();
    open_all(&shared, &tell).await?;
    let opened = shared.begun.elapsed().as_secs_f64();
    println!("{}", json!({ "opened_in_s": opened }));
    std::io::stdout().flush()?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut from = 0;
    while let Some(line) = lines.next_line().await? {
        let turn: Turn = serde_json::from_str(&line)?;
        let messages = turn.messages;
        let figures = take_turn(&shared, turn, from, &mut heard).await?;
        from += messages;
        println!("{figures}");
        std::io::stdout().flush()?;
    }
    Ok(())
}
