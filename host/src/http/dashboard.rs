//! The dashboard: static files that are part of the binary. What needs no token of its own calls
//! the API, which does.

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::get;
use rust_embed::{EmbeddedFile, RustEmbed};

/// What `cargo xtask dashboard` built; empty where it did not run before the binary was built. A
/// debug build reads the folder at run time.
#[derive(RustEmbed)]
#[folder = "../build/dashboard"]
#[allow_missing = true]
struct Files;

/// What every address below `/admin` that is no file answers: the page finds its way itself.
const PAGE: &str = "index.html";

/// Names of files below here have a hash of their contents in them.
const HASHED: &str = "_app/immutable/";

/// How files were compressed beforehand: the name of the coding and the ending of the file, the
/// smallest first.
const CODINGS: [(&str, &str); 2] = [("br", ".br"), ("gzip", ".gz")];

/// What the page's own policy (`csp` in dashboard/vite.config.ts) cannot say: a policy in a
/// document cannot forbid that it is framed.
const POLICY: &str = "frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

/// The paths of the dashboard, for any state.
pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/admin", get(|| async { Redirect::permanent("/admin/") }))
        .route("/admin/", get(|headers| file(String::new(), headers)))
        .route(
            "/admin/{*path}",
            get(|Path(path), headers| file(path, headers)),
        )
}

async fn file(path: String, headers: HeaderMap) -> Response {
    let is_asset = path.starts_with("_app/");
    let found = Files::get(&path)
        .map(|raw| (path.as_str(), raw))
        // A missing asset is of another version: the page, asked for as a script, would confuse.
        .or_else(|| (!is_asset).then(|| Files::get(PAGE).map(|raw| (PAGE, raw)))?);
    match found {
        Some((name, raw)) => answer(name, raw, &headers),
        None if is_asset => StatusCode::NOT_FOUND.into_response(),
        None => (
            StatusCode::SERVICE_UNAVAILABLE,
            Html(include_str!("dashboard.html")),
        )
            .into_response(),
    }
}

fn answer(name: &str, raw: EmbeddedFile, asked: &HeaderMap) -> Response {
    let compressed = CODINGS.iter().find_map(|(coding, ending)| {
        let file = accepts(asked, coding).then(|| Files::get(&format!("{name}{ending}")))??;
        Some((*coding, file))
    });
    let media_type = raw.metadata.mimetype().to_owned();
    let (coding, file) = match compressed {
        Some((coding, file)) => (Some(coding), file),
        None => (None, raw),
    };
    // The bytes that are sent, so each coding has a tag of its own.
    let tag = format!("\"{}\"", hex::encode(&file.metadata.sha256_hash()[..16]));
    let caching = match name.starts_with(HASHED) {
        true => "public, max-age=31536000, immutable",
        false => "no-cache",
    };
    let mut response = file.data.into_owned().into_response();
    let headers = response.headers_mut();
    let mut set = |name, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set(header::ETAG, &tag);
    set(header::CACHE_CONTROL, caching);
    set(header::VARY, "accept-encoding");
    set(header::CONTENT_TYPE, &media_type);
    if let Some(coding) = coding {
        set(header::CONTENT_ENCODING, coding);
    }
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::CONTENT_SECURITY_POLICY, POLICY);
    set(header::REFERRER_POLICY, "no-referrer");
    response
}

/// Whether `Accept-Encoding` names a coding without refusing it (`;q=0`).
fn accepts(asked: &HeaderMap, coding: &str) -> bool {
    asked
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|offer| {
            let (name, weight) = offer.split_once(';').unwrap_or((offer, "q=1"));
            let weight = weight.trim().strip_prefix("q=").unwrap_or("1");
            name.trim().eq_ignore_ascii_case(coding) && weight.parse() != Ok(0.0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coding_is_used_where_it_is_named_and_not_refused() {
        for (value, coding, accepted) in [
            ("gzip, deflate, br", "br", true),
            ("gzip;q=0.5, br;q=0", "br", false),
            ("gzip;q=0.5, br;q=0", "gzip", true),
            ("GZIP", "gzip", true),
            ("identity", "gzip", false),
            ("brotli", "br", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
            assert_eq!(accepts(&headers, coding), accepted, "{value} {coding}");
        }
        assert!(!accepts(&HeaderMap::new(), "br"));
    }
}
