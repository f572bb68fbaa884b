//! What `wit/` says, as Rust.
#![expect(missing_docs, reason = "generated; the WIT has the documentation")]

/// The world of the Rhai interpreter.
pub mod rhai {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "rhai",
        imports: { default: async | trappable },
        exports: { default: async },
    });
}

/// The world of an uploaded component; it shares every interface with [`rhai`].
pub mod function {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "function",
        imports: { default: async | trappable },
        exports: { default: async },
        with: {
            "picloud:function/types@1.0.0": super::rhai::picloud::function::types,
            "picloud:context/context@1.0.0": super::rhai::picloud::context::context,
            "picloud:kv/kv@1.1.0": super::rhai::picloud::kv::kv,
            "picloud:log/log@1.0.0": super::rhai::picloud::log::log,
            "picloud:dead-letters/dead-letters@1.1.0": super::rhai::picloud::dead_letters::dead_letters,
            "picloud:secrets/secrets@1.0.0": super::rhai::picloud::secrets::secrets,
            "picloud:pubsub/pubsub@1.0.0": super::rhai::picloud::pubsub::pubsub,
        },
    });
}

pub use rhai::picloud::context::context;
pub use rhai::picloud::dead_letters::dead_letters;
pub use rhai::picloud::function::types;
pub use rhai::picloud::kv::kv;
pub use rhai::picloud::log::log;
pub use rhai::picloud::pubsub::pubsub;
pub use rhai::picloud::secrets::secrets;
