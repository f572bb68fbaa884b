//! How slowly answers may be read. Each must go at a minimum rate for as long as there is something of it
//! to write, or its connection ends: what is not read is memory that others need.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body::{Body as _, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::body::BYTES_PER_SECOND_MIN;

/// How much of an answer is written at once, and seen to be.
const PIECE_BYTES: usize = 64 * 1024;

/// Marks an answer that goes on for as long as its client listens, and has a bound of its own: a stream
/// of events.
#[derive(Clone, Copy)]
pub struct Endless;

/// The answers of a connection that are not wholly written yet.
#[derive(Clone)]
pub struct Unread(Arc<Shared>);

struct Shared {
    patience: Duration,
    answers: Mutex<Answers>,
    begun: Notify,
}

#[derive(Default)]
struct Answers {
    next: u64,
    /// Until when each must have been read on. Those are missing that wait for us.
    until: HashMap<u64, Instant>,
}

impl Unread {
    /// None so far. Each may be read at less than [`BYTES_PER_SECOND_MIN`] for this long.
    pub fn new(patience: Duration) -> Self {
        Self(Arc::new(Shared {
            patience,
            answers: Mutex::default(),
            begun: Notify::new(),
        }))
    }

    /// The body of an answer, whose reading is watched.
    pub fn of(&self, body: Body) -> Body {
        if body.is_end_stream() {
            return body;
        }
        let answer = Answer {
            number: self.0.begin(),
            of: self.0.clone(),
        };
        Body::new(Paced {
            body,
            rest: Bytes::new(),
            answer: Arc::new(answer),
        })
    }

    /// Comes back once one of the answers is read too slowly.
    pub async fn too_slow(&self) {
        loop {
            // A time that was told once comes no earlier, nor does that of an answer that begins later:
            // on a busy connection this wakes up once in a while.
            let first = self.0.lock().until.values().min().copied();
            match first {
                None => self.0.begun.notified().await,
                Some(until) if until <= Instant::now() => return,
                Some(until) => tokio::time::sleep_until(until).await,
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> u64 {
        let mut answers = self.lock();
        let number = answers.next;
        answers.next += 1;
        answers.until.insert(number, Instant::now() + self.patience);
        self.begun.notify_one();
        number
    }
}

/// An answer until the last piece of it is written.
struct Answer {
    number: u64,
    of: Arc<Shared>,
}

impl Answer {
    /// There is nothing to read, because we have not made it yet.
    fn waits_for_us(&self) {
        self.of.lock().until.remove(&self.number);
    }

    /// There is something to read again.
    fn goes_on(&self) {
        let until = Instant::now() + self.of.patience;
        let mut answers = self.of.lock();
        let Answers { until: all, .. } = &mut *answers;
        if !all.contains_key(&self.number) {
            all.insert(self.number, until);
            self.of.begun.notify_one();
        }
    }

    /// Whoever was fast has no more time for the rest than whoever begins.
    fn is_written(&self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let earned = Duration::from_secs(1) * bytes / BYTES_PER_SECOND_MIN;
        let latest = Instant::now() + self.of.patience;
        if let Some(until) = self.of.lock().until.get_mut(&self.number) {
            *until = (*until + earned).min(latest);
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.waits_for_us();
    }
}

/// A piece of an answer; it is dropped once it is written.
struct Piece {
    bytes: Bytes,
    answer: Arc<Answer>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.answer.is_written(self.bytes.len());
    }
}

/// A body in pieces that tell when they are written.
struct Paced {
    body: Body,
    /// What was taken of the body and not given on yet.
    rest: Bytes,
    answer: Arc<Answer>,
}

impl http_body::Body for Paced {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.rest.is_empty() {
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(ended) => return Poll::Ready(ended),
                Poll::Pending => {
                    self.answer.waits_for_us();
                    return Poll::Pending;
                }
            };
            self.answer.goes_on();
            match frame.into_data() {
                Ok(bytes) => self.rest = bytes,
                Err(frame) => return Poll::Ready(Some(Ok(frame))),
            }
        }
        let length = self.rest.len().min(PIECE_BYTES);
        let bytes = self.rest.split_to(length);
        let answer = self.answer.clone();
        let piece = Bytes::from_owner(Piece { bytes, answer });
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body_util::BodyExt;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    async fn piece(body: &mut Body) -> Bytes {
        let frame = body.frame().await.unwrap().unwrap();
        frame.into_data().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_read_at_a_minimum_rate() {
        let unread = Unread::new(PATIENCE);
        let started = Instant::now();
        let mut body = unread.of(Body::from(vec![7; 1 << 20]));
        let mut bytes = 0;
        // A piece earns four seconds.
        while !body.is_end_stream() {
            assert_eq!(body.size_hint().exact(), Some((1 << 20) - bytes));
            bytes += piece(&mut body).await.len() as u64;
            tokio::time::advance(Duration::from_secs(4)).await;
            assert!(unread.too_slow().now_or_never().is_none(), "{bytes}");
        }
        assert_eq!((bytes, started.elapsed().as_secs()), (1 << 20, 64));
        drop(body);
        tokio::time::advance(2 * PATIENCE).await;
        assert!(unread.too_slow().now_or_never().is_none(), "it was read");

        let mut body = unread.of(Body::from(vec![7; 1 << 20]));
        for _ in 0..4 {
            drop(piece(&mut body).await);
            tokio::time::advance(Duration::from_secs(5)).await;
        }
        let held = piece(&mut body).await;
        let started = Instant::now();
        unread.too_slow().await;
        assert!(started.elapsed() <= PATIENCE);
        drop((held, body));
        assert!(unread.too_slow().now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_piece_that_is_not_written_keeps_its_answer_and_what_is_not_made_does_not() {
        let unread = Unread::new(PATIENCE);
        let mut body = unread.of(Body::from("small"));
        let last = piece(&mut body).await;
        drop(body);
        let slow = tokio::time::timeout(2 * PATIENCE, unread.too_slow());
        assert!(slow.await.is_ok());
        drop(last);

        let (sender, made) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
        let made = futures_util::stream::unfold(made, async |mut made| {
            made.recv().await.map(|next| (next, made))
        });
        let mut body = unread.of(Body::from_stream(made));
        assert!(body.frame().now_or_never().is_none());
        let slow = tokio::time::timeout(2 * PATIENCE, unread.too_slow());
        assert!(slow.await.is_err(), "it waits for us");
        sender.send(Ok(Bytes::from_static(b"made"))).await.unwrap();
        let unwritten = piece(&mut body).await;
        let slow = tokio::time::timeout(2 * PATIENCE, unread.too_slow());
        assert!(slow.await.is_ok());
        drop(unwritten);
    }
}
