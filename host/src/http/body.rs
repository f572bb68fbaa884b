//! Reading the body of a request: to its limit, and not for ever.

use std::time::Duration;

use axum::body::{Body, Bytes};
use bytes::BytesMut;
use http_body_util::BodyExt;
use tokio::time::Instant;

use super::problem::Problem;

/// What a client must send, once its patience is used up.
const BYTES_PER_SECOND_MIN: u32 = 16 * 1024;

/// The whole body, of at most `bytes_max` bytes. It may take `patience_ms`, and longer only while
/// it comes at [`BYTES_PER_SECOND_MIN`].
///
/// # Errors
/// 413, 408, or 400 where it breaks off.
pub async fn read(mut body: Body, bytes_max: usize, patience_ms: u64) -> Result<Bytes, Problem> {
    use http_body::Body as _;
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let announced = body.size_hint().lower();
    if usize::try_from(announced).is_ok_and(|bytes| bytes > bytes_max) {
        return Err(Problem::body_too_large(bytes_max));
    }
    let mut deadline = Instant::now() + Duration::from_millis(patience_ms);
    let mut pieces = BytesMut::new();
    loop {
        let frame = tokio::time::timeout_at(deadline, body.frame()).await;
        let frame = frame.map_err(|_| Problem::too_slow())?;
        let Some(frame) = frame else {
            return Ok(pieces.freeze());
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
            return Ok(piece);
        }
        pieces.extend_from_slice(&piece);
    }
}
