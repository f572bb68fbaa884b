//! The codings of a request's body (RFC 9110, 8.4.1): what `content-encoding` names is taken off
//! before a script sees the body.

use std::io::{Cursor, Read};

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, header};
use brotli_decompressor::Decompressor;
use flate2::read::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;

use super::problem::{Problem, ProblemType};

/// What is taken off, as an answer says it.
const ACCEPTED: &str = "gzip, br, zstd";
/// How many codings a body may have on top of each other.
const CODINGS_MAX: usize = 3;
/// The largest window that a sender of zstd may want (RFC 9659): 8 MiB.
const ZSTD_WINDOW_MAX: u64 = 8 << 20;
const BROTLI_BUFFER: usize = 4096;

/// The bytes of a body without the codings that its header names; none where it names none.
///
/// # Errors
/// 415 with `Accept-Encoding` for a coding that we do not know, 400 where the bytes are none of
/// theirs, 413 where there are more than `bytes_max`: a few bytes can unpack to any number.
pub fn decoded(
    headers: &HeaderMap,
    bytes: &Bytes,
    bytes_max: usize,
) -> Result<Option<Bytes>, Problem> {
    let named = headers.get_all(header::CONTENT_ENCODING).iter();
    let named = named.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let named = named.map(|coding| String::from_utf8_lossy(coding).trim().to_ascii_lowercase());
    let named = named.filter(|coding| !coding.is_empty() && coding != "identity");
    let codings: Vec<String> = named.collect();
    if codings.is_empty() {
        return Ok(None);
    }
    if codings.len() > CODINGS_MAX {
        let detail = format!("the body has more than {CODINGS_MAX} codings on top of each other");
        return Err(Problem::malformed(detail));
    }
    let mut bytes = bytes.clone();
    // The last one was put on last.
    for coding in codings.iter().rev() {
        bytes = without(coding, bytes, bytes_max)?;
    }
    Ok(Some(bytes))
}

fn without(coding: &str, bytes: Bytes, bytes_max: usize) -> Result<Bytes, Problem> {
    let broken = |_| {
        let detail = format!("the body is not {coding}, though its content-encoding says so");
        Problem::malformed(detail)
    };
    let coded = Cursor::new(bytes);
    let read = match coding {
        "gzip" | "x-gzip" => all(MultiGzDecoder::new(coded), bytes_max),
        "br" => all(Decompressor::new(coded, BROTLI_BUFFER), bytes_max),
        "zstd" => all_frames(coded, bytes_max),
        other => {
            let detail =
                format!("the body's content-encoding `{other}` is none of {ACCEPTED} and identity");
            return Err(Problem::new(ProblemType::UnsupportedMediaType, detail)
                .with("field", "content-encoding")
                .with_header(header::ACCEPT_ENCODING, ACCEPTED));
        }
    };
    match read.map_err(broken)? {
        Some(bytes) => Ok(bytes),
        None => Err(Problem::body_too_large(bytes_max)),
    }
}

/// All that a reader gives, unless that is more than `bytes_max`.
fn all(reader: impl Read, bytes_max: usize) -> std::io::Result<Option<Bytes>> {
    let most = u64::try_from(bytes_max)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    let mut out = Vec::new();
    reader.take(most).read_to_end(&mut out)?;
    Ok((out.len() <= bytes_max).then(|| out.into()))
}

/// The same of zstd, of which frames follow one another.
fn all_frames(mut coded: Cursor<Bytes>, bytes_max: usize) -> std::io::Result<Option<Bytes>> {
    let mut out = Vec::new();
    loop {
        let frame = StreamingDecoder::new_with_max_window_size(&mut coded, ZSTD_WINDOW_MAX);
        let frame = frame.map_err(std::io::Error::other)?;
        match all(frame, bytes_max - out.len())? {
            Some(bytes) => out.extend_from_slice(&bytes),
            None => return Ok(None),
        }
        if coded.position() >= coded.get_ref().len() as u64 {
            return Ok(Some(out.into()));
        }
    }
}

/// Say of a body that was decoded what is true of it now.
pub fn say_length(headers: &mut HeaderMap, bytes: usize) {
    headers.remove(header::CONTENT_ENCODING);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Bytes {
        let mut coder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        coder.write_all(bytes).unwrap();
        coder.finish().unwrap().into()
    }

    fn zstd(bytes: &[u8]) -> Bytes {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        ruzstd::encoding::compress_to_vec(bytes, level).into()
    }

    /// A stream of RFC 7932 with `bytes` as they are, which are few.
    fn brotli(bytes: &[u8]) -> Bytes {
        let length = u32::try_from(bytes.len() - 1).unwrap();
        assert!(length < 1 << 16);
        // WBITS 16, not last, four nibbles, the length, as it is.
        let head = length << 4 | 1 << 20;
        let mut coded = head.to_le_bytes()[..3].to_vec();
        coded.extend(bytes);
        // Last, and empty.
        coded.push(3);
        coded.into()
    }

    fn decode(codings: &[&'static str], bytes: &Bytes, most: usize) -> Result<Bytes, u16> {
        let mut headers = HeaderMap::new();
        for coding in codings {
            headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
        }
        match decoded(&headers, bytes, most) {
            Ok(out) => Ok(out.unwrap_or_else(|| bytes.clone())),
            Err(problem) => Err(problem.of().status().as_u16()),
        }
    }

    #[test]
    fn what_is_coded_is_decoded() {
        let plain = Bytes::from_static(b"hello hello hello");
        for (codings, coded) in [
            (&["gzip"][..], gzip(&plain)),
            (&["GZip"], gzip(&plain)),
            (&["x-gzip"], gzip(&plain)),
            (&["br"], brotli(&plain)),
            (&["zstd"], zstd(&plain)),
            (&["identity"], plain.clone()),
            (&[], plain.clone()),
            (&["zstd, gzip"], gzip(&zstd(&plain))),
            (
                &["zstd"],
                [zstd(b"hello hello"), zstd(b" hello")].concat().into(),
            ),
            (&["zstd", " identity , gzip "], gzip(&zstd(&plain))),
        ] {
            assert_eq!(
                decode(codings, &coded, 64),
                Ok(plain.clone()),
                "{codings:?}"
            );
        }
    }

    #[test]
    fn what_is_not_what_it_says_or_too_large_is_refused() {
        let plain = Bytes::from(vec![b'x'; 1 << 20]);
        for (codings, coded, status) in [
            (&["gzip"][..], gzip(&plain), 413),
            (&["zstd"], zstd(&plain), 413),
            (&["gzip"], plain.clone(), 400),
            (&["br"], Bytes::from_static(b"\xff\xff\xff"), 400),
            (&["zstd"], plain.clone(), 400),
            (&["zstd"], [zstd(b"x"), plain.clone()].concat().into(), 400),
            (&["deflate"], plain.clone(), 415),
            (&["gzip, gzip, gzip, gzip"], gzip(&plain), 400),
        ] {
            assert_eq!(decode(codings, &coded, 1_000), Err(status), "{codings:?}");
        }
    }
}
