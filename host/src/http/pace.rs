//! How slowly answers may be read. Each must go at a minimum rate for as long as there is something of it
//! to write, or its connection ends: what is not read is memory that others need.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::body::{BYTES_PER_SECOND_MIN, is_small};

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
    answers: Mutex<Answers>,
    begun: Notify,
}

/// Until when each answer must have been read on.
struct Answers {
    patience: Duration,
    /// Whether what is read of one counts for all of them.
    as_one: bool,
    next: u64,
    /// Those are missing that wait for us.
    until: HashMap<u64, Instant>,
}

impl Answers {
    fn new(patience: Duration, as_one: bool) -> Self {
        Self {
            patience,
            as_one,
            next: 0,
            until: HashMap::new(),
        }
    }

    /// There is something to read of an answer: one that begins, or that waited for us.
    fn goes_on(&mut self, number: u64, now: Instant) {
        let until = now + self.patience;
        self.until.entry(number).or_insert(until);
    }

    /// Some of it is written. Whoever was fast has no more time for the rest than whoever begins.
    fn is_written(&mut self, number: u64, bytes: usize, now: Instant) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let earned = Duration::from_secs(1) * bytes / BYTES_PER_SECOND_MIN;
        let (latest, as_one) = (now + self.patience, self.as_one);
        let read = self
            .until
            .iter_mut()
            .filter(|(of, _)| as_one || **of == number);
        for (_, until) in read {
            *until = (*until + earned).min(latest);
        }
    }

    /// When the first of them is too slow. It is never told a time again that is earlier.
    fn first(&self) -> Option<Instant> {
        self.until.values().min().copied()
    }
}

impl Unread {
    /// None so far. Each may be read at less than [`BYTES_PER_SECOND_MIN`] for this long; or all of them
    /// together, where a connection carries many at once (HTTP/2), and a slow one takes all along.
    pub fn new(patience: Duration, as_one: bool) -> Self {
        Self(Arc::new(Shared {
            answers: Mutex::new(Answers::new(patience, as_one)),
            begun: Notify::new(),
        }))
    }

    /// The body of an answer, whose reading is watched.
    pub fn of(&self, body: Body) -> Body {
        if is_small(&body) {
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
            // On a busy connection this wakes up once in a while, and not with each answer.
            let first = self.0.lock().first();
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
        answers.goes_on(number, Instant::now());
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
        self.of.lock().goes_on(self.number, Instant::now());
        self.of.begun.notify_one();
    }

    fn is_written(&self, bytes: usize) {
        let now = Instant::now();
        self.of.lock().is_written(self.number, bytes, now);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.waits_for_us();
    }
}

/// A piece of an answer; it is dropped once it is written, or nobody wants it any more.
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
    use http_body::Body as _;
    use http_body_util::BodyExt;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn an_answer_is_read_at_a_minimum_rate() {
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        // What a piece earns.
        let piece = 4 * BYTES_PER_SECOND_MIN as usize;
        let mut answers = Answers::new(PATIENCE, false);
        answers.goes_on(1, at(0));
        assert_eq!(answers.first(), Some(at(10)));
        for seconds in [5, 10, 14] {
            answers.is_written(1, piece, at(seconds));
        }
        assert_eq!(answers.first(), Some(at(22)), "12 seconds' worth");
        // What is read at once is for no longer than that.
        answers.is_written(1, 1_000 * piece, at(15));
        assert_eq!(answers.first(), Some(at(25)));
        answers.goes_on(1, at(20));
        assert_eq!(answers.first(), Some(at(25)), "it went on already");
        answers.goes_on(2, at(16));
        answers.is_written(1, piece, at(24));
        assert_eq!(answers.first(), Some(at(26)), "the other one");
        answers.is_written(3, piece, at(24));
        assert_eq!(answers.until.len(), 2);
    }

    async fn piece(body: &mut Body) -> Bytes {
        let frame = body.frame().await.unwrap().unwrap();
        frame.into_data().unwrap()
    }

    /// Whether something is to be read, where nothing may be read slowly.
    fn is_unread(unread: &Unread) -> bool {
        unread.too_slow().now_or_never().is_some()
    }

    #[tokio::test]
    async fn an_answer_comes_in_pieces_and_is_unread_until_all_are_written() {
        let unread = Unread::new(Duration::ZERO, false);
        assert!(!is_unread(&unread));
        let text: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        let mut body = unread.of(Body::from(text.clone()));
        let (mut pieces, mut held) = (Vec::new(), Vec::new());
        while !body.is_end_stream() {
            let left = (text.len() - pieces.len()) as u64;
            assert_eq!(body.size_hint().exact(), Some(left));
            let next = piece(&mut body).await;
            assert!(next.len() <= PIECE_BYTES);
            pieces.extend_from_slice(&next);
            held.push(next);
        }
        assert_eq!((pieces == text, held.len()), (true, 4));
        drop(body);
        held.truncate(1);
        assert!(is_unread(&unread));
        drop(held);
        assert!(!is_unread(&unread));
    }

    #[tokio::test]
    async fn what_is_not_made_yet_is_not_unread() {
        let unread = Unread::new(Duration::ZERO, false);
        let (sender, made) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
        let made = futures_util::stream::unfold(made, async |mut made| {
            made.recv().await.map(|next| (next, made))
        });
        let mut body = unread.of(Body::from_stream(made));
        assert!(is_unread(&unread));
        assert!(body.frame().now_or_never().is_none());
        assert!(!is_unread(&unread), "it waits for us");
        sender.send(Ok(Bytes::from_static(b"made"))).await.unwrap();
        let made = piece(&mut body).await;
        assert!(is_unread(&unread));
        assert!(body.frame().now_or_never().is_none());
        assert!(!is_unread(&unread), "what was taken is written meanwhile");
        drop((made, body));
    }
}
