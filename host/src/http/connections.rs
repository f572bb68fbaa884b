//! The connections: how many there may be, and how long the other end may keep us waiting.
//!
//! What a slow or greedy client could hold is bounded one by one: the first bytes and the head of
//! a request here and in hyper, its body in [`super::body`], the reading of an answer in
//! [`super::pace`], by a time limit on writes that make no progress, and by one on what the kernel
//! cannot deliver.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use ipnet::IpNet;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio_io_timeout::TimeoutWriter;

use super::pace::{Endless, Unread};
use crate::config::Config;
use crate::identity::guesses::subscriber;
use crate::stopping::{Stage, Stopping};

/// What is kept of a request's head until it is whole; hyper answers 431 beyond.
const HEAD_BUFFER_BYTES: usize = 128 * 1024;
/// What an HTTP/2 client may have open at once.
const STREAMS_MAX: u32 = 250;
/// How often an HTTP/2 client that says nothing is asked whether it lives.
const PING_EVERY: Duration = Duration::from_secs(20);
/// How an HTTP/2 connection begins (RFC 9113, 3.4).
const HTTP2_BEGINS: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long to wait where the system has no more room for connections.
const OUT_OF_FILES_PAUSE: Duration = Duration::from_millis(100);

/// Counts the connections, all and of each address.
struct Places {
    most: usize,
    most_of_one: usize,
    /// Their connections are many people's.
    proxies: Vec<IpNet>,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A connection's place; dropping it gives it back.
struct Place {
    places: Arc<Places>,
    /// Whose share it counts to.
    of: Option<IpAddr>,
}

impl Places {
    fn new(config: &Config) -> Arc<Self> {
        Arc::new(Self {
            most: config.connections_max,
            most_of_one: config.connections_per_address_max,
            proxies: config.trusted_proxies.clone(),
            taken: Mutex::default(),
        })
    }

    /// A place for a connection from `address`, if there is one.
    fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let address = address.to_canonical();
        let is_proxy = self.proxies.iter().any(|net| net.contains(&address));
        let of = (!is_proxy).then(|| subscriber(address));
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.most {
            return None;
        }
        if let Some(of) = of {
            let theirs = taken.by_address.entry(of).or_default();
            if *theirs >= self.most_of_one {
                return None;
            }
            *theirs += 1;
        }
        taken.all += 1;
        metrics::gauge!("picloud_connections").increment(1.0);
        let places = self.clone();
        Some(Place { places, of })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let taken = &self.places.taken;
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        metrics::gauge!("picloud_connections").decrement(1.0);
        if let Some(of) = self.of
            && let Some(theirs) = taken.by_address.get_mut(&of)
        {
            *theirs -= 1;
            if *theirs == 0 {
                taken.by_address.remove(&of);
            }
        }
    }
}

/// Answers a request that came from an address. Its future is boxed, so that a connection holds no
/// room for it while nothing is asked, or while a stream is written.
pub type Responder = Arc<dyn Fn(SocketAddr, Request) -> BoxFuture<'static, Response> + Send + Sync>;

/// Serve until the node is [closed](Stage::Closed), and then until what is being answered is.
pub async fn serve(
    listener: TcpListener,
    responder: Responder,
    config: &Config,
    stopping: &Stopping,
) {
    let places = Places::new(config);
    let patience = Duration::from_millis(config.client_timeout_ms);
    let graceful = GracefulShutdown::new();
    let mut stopped = pin!(stopping.reached(Stage::Closed));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stopped => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // That one is gone, or there are too many open files: some will be closed.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(OUT_OF_FILES_PAUSE).await;
                continue;
            }
        };
        let Some(place) = places.take(peer.ip()) else {
            metrics::counter!("picloud_connections_refused_total").increment(1);
            continue;
        };
        let (responder, watcher) = (responder.clone(), graceful.watcher());
        let closed = stopping.reached(Stage::Closed);
        tokio::spawn(async move {
            let conversing = converse(stream, peer, responder, patience, watcher, closed);
            // How a connection ends is its client's affair.
            if let Err(error) = conversing.await {
                tracing::trace!(%error, %peer, "a connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

type ConnectionError = Box<dyn std::error::Error + Send + Sync>;

async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    responder: Responder,
    patience: Duration,
    watcher: Watcher,
    closed: impl Future<Output = ()>,
) -> Result<(), ConnectionError> {
    // Whoever reads next to nothing of a stream leaves little behind that is not delivered: the
    // kernel takes all of it, and no write of ours ever waits. So the kernel must count, too.
    SockRef::from(&stream).set_tcp_user_timeout(Some(patience))?;
    // A small event goes out at once, also while one before it is not acknowledged.
    stream.set_nodelay(true)?;
    // hyper waits for as long as it takes to know which protocol is spoken.
    let is_http2 = tokio::select! {
        begun = tokio::time::timeout(patience, begins_http2(&stream)) => begun??,
        // A browser that keeps a connection ready has nothing to wait for.
        () = closed => return Ok(()),
    };
    let mut stream = TimeoutWriter::new(stream);
    stream.set_timeout(Some(patience));
    let unread = Unread::new(patience, is_http2);
    let answers = unread.clone();
    let service = service_fn(move |request: http::Request<_>| {
        let answers = answers.clone();
        let answered = responder(peer, request.map(Body::new));
        answered.map(move |response| {
            let is_endless = response.extensions().get::<Endless>().is_some();
            Ok::<_, Infallible>(match is_endless {
                true => response,
                false => response.map(|body| answers.of(body)),
            })
        })
    });
    let too_slow = async move {
        unread.too_slow().await;
        metrics::counter!("picloud_answers_unread_total").increment(1);
        Err::<(), ConnectionError>("an answer was read too slowly".into())
    };
    let stream = TokioIo::new(Box::pin(stream));
    // Not hyper-util's builder for both: it reads the first bytes apart, and with them hyper's
    // buffer grows to twice its size, for as long as a stream lasts.
    if is_http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(patience)
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_BUFFER_BYTES as u32);
        // Boxed, so that a connection of the other kind, which carries one stream, stays small.
        let conversing = Box::pin(watcher.watch(builder.serve_connection(stream, service)));
        tokio::select! {
            ended = conversing => Ok(ended?),
            ended = too_slow => ended,
        }
    } else {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(patience)
            .max_buf_size(HEAD_BUFFER_BYTES);
        let conversing = watcher.watch(builder.serve_connection(stream, service));
        tokio::select! {
            ended = conversing => Ok(ended?),
            ended = too_slow => ended,
        }
    }
}

/// Whether a client speaks HTTP/2, as soon as it has said enough.
async fn begins_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut begins = [0; HTTP2_BEGINS.len()];
    loop {
        let count = stream.peek(&mut begins).await?;
        if count == 0 || begins[..count] != HTTP2_BEGINS[..count] {
            return Ok(false);
        }
        if count == begins.len() {
            return Ok(true);
        }
        // What was peeked at stays, so the stream is ready at once.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_subscriber_and_given_back() {
        let places = Arc::new(Places {
            most: 4,
            most_of_one: 2,
            proxies: vec!["10.0.0.0/8".parse().unwrap()],
            taken: Mutex::default(),
        });
        let take = |address: &str| places.take(address.parse().unwrap());
        let (one, two) = (take("2001:db8::1"), take("2001:db8::2"));
        assert!(one.is_some() && two.is_some());
        assert!(take("2001:db8::3").is_none(), "the same subscriber");
        drop(one);
        let three = take("2001:db8::3");
        assert!(three.is_some());
        let proxy = [take("10.0.0.1"), take("::ffff:10.0.0.1")];
        assert!(proxy.iter().all(Option::is_some));
        assert!(
            take("10.0.0.1").is_none() && take("192.0.2.1").is_none(),
            "none is left"
        );
        drop((two, three, proxy));
        let taken = places.taken.lock().unwrap();
        assert_eq!((taken.all, taken.by_address.len()), (0, 0));
    }
}
