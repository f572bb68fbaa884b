//! The component's exports, and the imports as [`crate::host`] calls them.

#![allow(missing_docs, reason = "generated; the WIT has the documentation")]

wit_bindgen::generate!({ path: "../wit", world: "rhai", generate_all });

use exports::picloud::function::interpreter::{Diagnostic, Failure, Guest, Invocation, Response};
use picloud::function::program;
use picloud::function::types::{Header, Position, Thrown};

use crate::arena;
use crate::ctx;
use crate::engine;
use crate::outcome;
use crate::script::{self, Script};

struct Interpreter;

export!(Interpreter);

/// Of 64 KiB, with those that an instance begins with.
const MORE_PAGES_THAN_THERE_ARE: usize = 65_000;

/// Build the engine before the snapshot is taken.
#[unsafe(export_name = "wizer-initialize")]
extern "C" fn initialize() {
    std::panic::set_hook(Box::new(|panic| {
        // A vector that no address space holds: say it as what asked for a bit less does. The
        // host ends an instance that asks for memory beyond its limit.
        if panic.payload_as_str() == Some("capacity overflow") {
            core::arch::wasm32::memory_grow::<0>(MORE_PAGES_THAN_THERE_ARE);
        }
    }));
    engine::prepare();
}

impl Guest for Interpreter {
    fn compile(source: String) -> Result<Option<Vec<u8>>, Vec<Diagnostic>> {
        let tree = engine::parse(&source).map_err(diagnostics)?;
        script::check(&tree).map_err(diagnostics)?;
        Ok(match script::compile(&tree) {
            Some(compiled) => arena::image_of(|| compiled.load()),
            None => arena::image_of(|| engine::parse_apart(&source).ok().map(script::of_tree)),
        })
    }

    fn run(source: Option<String>, invocation: Invocation) -> Result<Response, Failure> {
        ctx::set_request(invocation.request.map(|request| {
            ctx::Request {
                method: request.method,
                path: request.path,
                params: request.params,
                query: request.query,
                rest: request.rest,
                headers: request
                    .headers
                    .into_iter()
                    .map(|header| (header.name, header.value))
                    .collect(),
                content_type: request
                    .body
                    .as_ref()
                    .and_then(|body| body.content_type.clone()),
                body: request.body.map(|body| body.bytes),
            }
        }));
        let ended = match source {
            None => engine::run(arena::restore::<Script>(program::image)),
            Some(source) => {
                let tree = engine::parse(&source)
                    .map_err(|found| Failure::InvalidSource(diagnostics(found)))?;
                engine::run(&script::of_tree(tree))
            }
        };
        match ended {
            Ok(response) => Ok(Response {
                status: response.status,
                headers: response
                    .headers
                    .into_iter()
                    .map(|(name, value)| Header { name, value })
                    .collect(),
                body: response.body,
            }),
            Err(outcome::Failure::Threw(thrown)) => Err(Failure::Threw(Thrown {
                message: thrown.message,
                position: thrown.position.map(position),
                calls: thrown.calls,
            })),
            Err(outcome::Failure::InvalidResponse(problem)) => {
                Err(Failure::InvalidResponse(problem))
            }
        }
    }
}

fn position((line, column): (u32, u32)) -> Position {
    Position { line, column }
}

fn diagnostics(found: Vec<outcome::Diagnostic>) -> Vec<Diagnostic> {
    let found = found.into_iter().map(|found| Diagnostic {
        message: found.message,
        position: found.position.map(position),
    });
    found.collect()
}
