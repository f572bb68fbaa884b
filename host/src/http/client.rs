//! The TypeScript client as a package that npm installs: part of the binary, so that it fits it.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use rust_embed::RustEmbed;
use serde_json::json;

use super::endpoints::{Api, Rule};
use super::openapi::describe::{Operation, Output};
use super::problem::{Problem, ProblemType};

/// What `cargo xtask sdk` packed; empty where it did not run before the binary was built. A debug
/// build reads the folder at run time.
#[derive(RustEmbed)]
#[folder = "../build/sdk"]
#[allow_missing = true]
struct Files;

const FILE: &str = "client.tgz";

/// The endpoint of the package.
pub fn endpoints() -> Api {
    Api::default()
        .get("/sdk/client.tgz", Rule::Public, show)
        .called(
            "getClientPackage",
            "The TypeScript client of this version, for `npm install`",
        )
        .may_fail(&[ProblemType::NotFound])
}

/// A package of npm.
struct Tarball {
    bytes: Vec<u8>,
    etag: String,
}

impl IntoResponse for Tarball {
    fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, "application/gzip"),
            (
                header::CONTENT_DISPOSITION,
                "attachment; filename=\"client.tgz\"",
            ),
            // Another version's is another file.
            (header::CACHE_CONTROL, "no-cache"),
            (header::ETAG, &self.etag),
        ];
        (headers, self.bytes).into_response()
    }
}

impl Output for Tarball {
    fn describe(operation: &mut Operation<'_>) {
        let bytes = json!({ "type": "string", "format": "binary" });
        operation.answers(StatusCode::OK, "application/gzip", bytes);
    }
}

async fn show() -> Result<Tarball, Problem> {
    let file = Files::get(FILE).ok_or_else(|| {
        Problem::not_found(
            "this binary was built without the client: run `cargo xtask sdk`, then build it again",
        )
    })?;
    let etag = format!("\"{}\"", hex::encode(&file.metadata.sha256_hash()[..16]));
    let bytes = file.data.into_owned();
    Ok(Tarball { bytes, etag })
}
