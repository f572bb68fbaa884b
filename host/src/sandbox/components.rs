//! Uploaded components on their way to being instances: found in the folder of compiled code, or
//! compiled, and linked.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use super::artifact::Published;
use super::bindings::function;
use super::compile::{self, CompileError};
use super::engine::{Sandbox, Shared};
use super::imports::Imports;
use super::run::State;
use crate::fair_queue::{FairQueue, Patience, Room};

/// How many components are compiled at once, and how many may wait. Each that is compiled takes a
/// core, and memory up to a limit of its own; each that waits is kept in memory. One app has at most
/// one of the two places, so that another's upload finds one.
const ROOM: Room = Room {
    places: 2,
    places_per_app: 1,
    waiting: 32,
    waiting_per_app: 10,
};

/// The queue of components that are to be compiled.
pub(super) fn queue() -> FairQueue {
    FairQueue::new(ROOM)
}

/// An uploaded component, loaded and linked; clones share it.
#[derive(Clone)]
pub struct Component {
    /// A `FunctionPre<State<I>>`, whose `I` its users need not know.
    pre: Arc<dyn Any + Send + Sync>,
}

impl Component {
    pub(super) fn pre<I: Imports>(&self) -> Option<&function::FunctionPre<State<I>>> {
        self.pre.downcast_ref()
    }
}

/// A component that can run. Dropped, the code that was compiled for it is removed again, unless it
/// is [kept](Self::keep), or was there before.
#[must_use]
pub struct Compiled {
    component: Component,
    published: Option<Published>,
}

impl Compiled {
    /// The component, whose code stays where it is.
    pub fn keep(self) -> Component {
        if let Some(published) = self.published {
            published.keep();
        }
        self.component
    }
}

impl<I: Imports> Shared<I> {
    /// A component that was compiled, ready to be instantiated.
    fn linked(
        &self,
        component: &wasmtime::component::Component,
    ) -> Result<Component, CompileError> {
        let pre = self.linker.instantiate_pre(component);
        let pre = pre.and_then(function::FunctionPre::new);
        let pre = pre.map_err(|error| CompileError::WrongWorld(format!("{error:#}")))?;
        let pre = Arc::new(pre);
        Ok(Component { pre })
    }

    fn load(&self, wasm: &[u8]) -> Option<Result<Compiled, CompileError>> {
        let loaded = self.artifacts.load(&self.engine, wasm)?;
        Some(self.linked(&loaded).map(|component| Compiled {
            component,
            published: None,
        }))
    }

    fn publish(&self, wasm: &[u8], code: &[u8]) -> Result<Compiled, CompileError> {
        let publishing = self
            .artifacts
            .publish(&self.engine, wasm, code, |loaded| self.linked(loaded));
        let (component, published) = publishing?;
        self.artifacts
            .sweep(&self.engine, self.guest, self.cache_bytes_max);
        let published = Some(published);
        Ok(Compiled {
            component,
            published,
        })
    }
}

impl<I: Imports> Sandbox<I> {
    /// Check an uploaded component of `app` and compile it, in a child process with limits, unless
    /// that was done before; then load it. What is refused leaves no code.
    ///
    /// # Errors
    /// [`CompileError`] says what is wrong with it, or how many wait.
    pub async fn component(
        &self,
        app: Uuid,
        wasm: Bytes,
        patience: Patience,
    ) -> Result<Compiled, CompileError> {
        compile::check(&wasm)?;
        if let Some(loaded) = self.loaded(wasm.clone()).await? {
            return Ok(loaded);
        }
        let place = self.shared.components.place(app, patience).await;
        let place = place.map_err(|full| CompileError::QueueFull {
            full,
            retry_after_s: self.shared.compile.seconds(),
        })?;
        let shared = self.shared.clone();
        // A task of its own: the place is held until the compiler has ended, whoever waited for it
        // and has left.
        let compiling = tokio::spawn(async move {
            let _place = place;
            let (wasm_of, shared_of) = (wasm.clone(), shared.clone());
            let loaded = tokio::task::spawn_blocking(move || shared_of.load(&wasm_of));
            // Another upload of the same may have been before this one.
            if let Some(loaded) = loaded.await.map_err(failed)? {
                return loaded;
            }
            let code = compile::in_child(&wasm, shared.compile).await?;
            let publishing = tokio::task::spawn_blocking(move || shared.publish(&wasm, &code));
            publishing.await.map_err(failed)?
        });
        compiling.await.map_err(failed)?
    }

    async fn loaded(&self, wasm: Bytes) -> Result<Option<Compiled>, CompileError> {
        let shared = self.shared.clone();
        let loading = tokio::task::spawn_blocking(move || shared.load(&wasm));
        loading.await.map_err(failed)?.transpose()
    }
}

fn failed(error: tokio::task::JoinError) -> CompileError {
    CompileError::Failed(error.to_string())
}
