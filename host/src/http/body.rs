//! Bodies within bounds. A request's is read to its limit, not for ever, and out of what all bodies may
//! take; an answer's is counted to the same until it is written.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::Instant;

use super::problem::{Problem, ProblemType};
use crate::apps::AppId;
use crate::budget::{Budget, Exceeded, Hold, Metrics, Share};
use crate::identity::guesses::subscriber_of;
use crate::portable::IMPORT_BYTES_MAX;

/// What a client must send, once its patience is used up, and read of an answer.
pub(super) const BYTES_PER_SECOND_MIN: u32 = 16 * 1024;
/// How long a body may take, however fast it comes.
const TIME_MAX: Duration = Duration::from_secs(300);
/// One in so many bytes is what one address may have the node hold, but always one of the largest
/// bodies.
const SHARE_OF_ADDRESS: u64 = 4;
/// The same of one app.
const SHARE_OF_APP: u64 = 2;
/// How much of an answer a socket takes at once: of one that is no longer, this process holds nothing that
/// its client could leave unread.
const SMALL_ANSWER_BYTES: u64 = 16 * 1024;
/// What a body is counted for before its first bytes come.
const COUNTED_AT_ONCE: usize = 16 * 1024;

/// Whom a body is counted to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Sender {
    /// An IPv4 address, or a network of IPv6.
    Address(String),
    /// The app whose route it is for, or is the answer of.
    App(AppId),
}

/// The bytes of requests' and answers' bodies that this node holds, of everybody together.
pub struct Bodies(Arc<Budget<Sender>>);

/// How large a body may be, and what it is counted to.
#[derive(Clone)]
pub struct Allowance {
    /// The most bytes, as they come and without their coding.
    pub bytes_max: usize,
    /// How long its client may take.
    pub patience_ms: u64,
    /// What it is counted to.
    pub hold: Arc<Hold<Sender>>,
}

impl Bodies {
    /// At most `bytes_max` of all.
    pub fn new(bytes_max: u64) -> Self {
        let metrics = Metrics {
            bytes: "picloud_bodies_bytes",
            refused: "picloud_bodies_refused_total",
        };
        Self(Budget::new(bytes_max, metrics))
    }

    /// A hold on nothing yet, of a request from an address, to an app's route or to ourselves.
    pub fn hold(&self, address: &str, app: Option<AppId>) -> Arc<Hold<Sender>> {
        let share = |of, part: u64| Share {
            of,
            bytes_max: (self.0.bytes_max() / part).max(IMPORT_BYTES_MAX as u64),
        };
        let address = Sender::Address(subscriber_of(address));
        let of_app = app.map(|app| share(Sender::App(app), SHARE_OF_APP));
        Arc::new(
            self.0
                .hold([Some(share(address, SHARE_OF_ADDRESS)), of_app]),
        )
    }
}

impl From<Exceeded> for Problem {
    fn from(_: Exceeded) -> Self {
        let detail = "This node holds as many bytes of requests and of answers that are not read yet as it may, of all or of your address or this app; try again";
        Self::new(ProblemType::Overloaded, detail).with_header(axum::http::header::RETRY_AFTER, "1")
    }
}

/// Bytes that are held for as long as anybody has them.
struct Counted {
    bytes: Bytes,
    _hold: Arc<Hold<Sender>>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Allowance {
    /// Bytes that are counted until the last of their copies is gone, whoever has it by then.
    ///
    /// # Errors
    /// 503 where there is no room for them.
    pub fn counted(&self, bytes: Bytes) -> Result<Bytes, Problem> {
        self.grow_to(bytes.len())?;
        let hold = self.hold.clone();
        Ok(Bytes::from_owner(Counted { bytes, _hold: hold }))
    }

    fn grow_to(&self, bytes: usize) -> Result<(), Exceeded> {
        self.hold.grow_to(bytes as u64)
    }
}

/// The whole body, within what it is allowed. It may take as long as its client's patience, and
/// longer only while it comes at [`BYTES_PER_SECOND_MIN`], up to [`TIME_MAX`].
///
/// # Errors
/// 413, 408, 503, or 400 where it breaks off.
pub async fn read(mut body: Body, allowance: &Allowance) -> Result<Bytes, Problem> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let bytes_max = allowance.bytes_max;
    let announced = body.size_hint().lower();
    if usize::try_from(announced).is_ok_and(|bytes| bytes > bytes_max) {
        return Err(Problem::body_too_large(bytes_max));
    }
    allowance.grow_to(COUNTED_AT_ONCE)?;
    let began = Instant::now();
    let mut deadline = began + Duration::from_millis(allowance.patience_ms);
    let mut pieces = Vec::new();
    loop {
        let latest = deadline.min(began + TIME_MAX);
        let frame = tokio::time::timeout_at(latest, body.frame()).await;
        let frame = frame.map_err(|_| Problem::too_slow())?;
        let Some(frame) = frame else {
            return Ok(pieces.into());
        };
        let frame =
            frame.map_err(|_| Problem::malformed("the body could not be read to its end"))?;
        let Ok(piece) = frame.into_data() else {
            continue;
        };
        if pieces.len() + piece.len() > bytes_max {
            return Err(Problem::body_too_large(bytes_max));
        }
        let bytes = u32::try_from(piece.len()).unwrap_or(u32::MAX);
        deadline += Duration::from_secs(1) * bytes / BYTES_PER_SECOND_MIN;
        // Most bodies are one piece.
        if pieces.is_empty() && body.is_end_stream() {
            allowance.grow_to(piece.len())?;
            return Ok(piece);
        }
        // Counted before it is allocated: what grows doubles.
        let needed = pieces.len() + piece.len();
        if needed > pieces.capacity() {
            let capacity = needed.max(2 * pieces.capacity()).min(bytes_max);
            allowance.grow_to(capacity)?;
            pieces.reserve_exact(capacity - pieces.len());
        }
        pieces.extend_from_slice(&piece);
    }
}

/// An answer whose bytes are counted until they are written, or its connection has ended. There is no
/// refusing them any more, because whoever is answered was let in: what comes next is refused
/// ([`Hold::check`]).
pub fn answered(body: Body, hold: &Hold<Sender>) -> Body {
    if is_small(&body) {
        return body;
    }
    // What is there as a whole is held as a whole, however much of it is written.
    let whole = body.size_hint().exact().map(|bytes| {
        let hold = hold.another();
        hold.note(bytes);
        Arc::new(hold)
    });
    Body::new(Answered {
        body,
        whole,
        of: hold.another(),
    })
}

/// Whether nothing of an answer stays here once it was begun to be written.
pub(super) fn is_small(body: &Body) -> bool {
    let most = body.size_hint().upper();
    most.is_some_and(|most| most <= SMALL_ANSWER_BYTES)
}

/// The body of an answer, each of whose pieces is counted.
struct Answered {
    body: Body,
    /// What all pieces are held by; none where they are made one by one.
    whole: Option<Arc<Hold<Sender>>>,
    of: Hold<Sender>,
}

impl http_body::Body for Answered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let counted = |bytes: Bytes| {
            let hold = self.whole.clone().unwrap_or_else(|| {
                let hold = self.of.another();
                hold.note(bytes.len() as u64);
                Arc::new(hold)
            });
            Bytes::from_owner(Counted { bytes, _hold: hold })
        };
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(counted))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn an_address_and_an_app_have_their_shares() {
        let bodies = Bodies::new(400 * MIB);
        let (a, b) = (AppId::new(), AppId::new());
        let hold = |address: &str, app| bodies.hold(address, Some(app));
        let first = hold("192.0.2.1", a);
        assert!(first.grow_to(80 * MIB).is_ok());
        let more = hold("192.0.2.1", b).grow_to(21 * MIB);
        assert!(more.is_err(), "of one address");
        let second = hold("192.0.2.2", a);
        assert!(second.grow_to(100 * MIB).is_ok());
        let more = hold("192.0.2.3", a).grow_to(21 * MIB);
        assert!(more.is_err(), "of one app");
        let others = ["192.0.2.3", "192.0.2.4"].map(|address| hold(address, b));
        assert!(others.iter().all(|other| other.grow_to(100 * MIB).is_ok()));
        let own = bodies.hold("192.0.2.5", None);
        assert!(own.grow_to(21 * MIB).is_err() && own.grow_to(20 * MIB).is_ok());
    }

    #[test]
    fn bytes_are_counted_until_the_last_copy_is_gone() {
        let bodies = Bodies::new(1_000);
        let allowance = Allowance {
            bytes_max: 100,
            patience_ms: 1,
            hold: bodies.hold("::1", None),
        };
        let bytes = allowance.counted(Bytes::from_static(b"12345")).unwrap();
        let copy = bytes.slice(1..2);
        drop((bytes, allowance));
        assert_eq!(bodies.0.held().0, 5);
        drop(copy);
        assert_eq!(bodies.0.held().0, 0);
    }

    #[tokio::test]
    async fn an_answer_is_counted_until_it_is_written_and_never_refused() {
        let bodies = Bodies::new(100);
        let hold = bodies.hold("::1", None);
        let small = answered(Body::from(vec![0; 1_000]), &hold);
        assert_eq!(
            (small.size_hint().exact(), bodies.0.held().0),
            (Some(1_000), 0)
        );
        let mut whole = answered(Body::from(vec![0; 20_000]), &hold);
        assert_eq!(whole.size_hint().exact(), Some(20_000));
        assert_eq!(bodies.0.held().0, 20_000);
        assert!(hold.check().is_err(), "what comes next");
        let mut piece = whole.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(whole.is_end_stream());
        drop((whole, piece.split_to(19_999)));
        assert_eq!(bodies.0.held().0, 20_000, "its memory is one");
        drop(piece);
        assert_eq!(bodies.0.held().0, 0);

        let pieces = ["ab", "cde"].map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)));
        let mut made = answered(Body::from_stream(futures_util::stream::iter(pieces)), &hold);
        assert_eq!(bodies.0.held().0, 0);
        let first = made.frame().await.unwrap().unwrap();
        let second = made.frame().await.unwrap().unwrap();
        assert_eq!(bodies.0.held().0, 5);
        drop(first);
        assert_eq!(bodies.0.held().0, 3);
        drop((second, made));
        assert_eq!(bodies.0.held(), (0, 0));
    }
}
