//! What guests reach of the instance: one value per execution, bound to its app. The calls
//! themselves are in the domains' `imports.rs`.

use std::fmt::Display;
use std::future::Future;

use tokio::runtime::Handle;

use crate::apps::AppId;
use crate::dead_letters::DeadLetters;
use crate::executions::running::{Running, Tail};
use crate::identity::Maker;
use crate::kv::{Kv, KvStore};
use crate::pubsub::PubSub;
use crate::sandbox::Crowd;
use crate::scripts::ScriptId;
use crate::secrets::Secrets;
use crate::telemetry::repeated::Repeated;
use crate::triggers::firing::Origin;

/// What the imports of all executions have in common.
#[derive(Clone)]
pub struct Services {
    /// The key-value store.
    pub kv: KvStore,
    /// The secrets.
    pub secrets: Secrets,
    /// The topics.
    pub pubsub: PubSub,
    /// What runs here.
    pub running: Running,
}

/// What an execution's imports work on. The app comes from the execution, never from what a
/// guest says.
pub struct GuestImports {
    /// The app's key-value store.
    pub kv: Kv,
    /// Whether whoever acts may read it.
    pub may_read_kv: bool,
    /// Whether whoever acts may change it.
    pub may_write_kv: bool,
    /// The app's dead letters, if somebody acts who may manage them; a public route's script
    /// acts as nobody.
    pub dead_letters: Option<DeadLetters>,
    /// The secrets of all apps.
    pub secrets: Secrets,
    /// The topics of all apps.
    pub pubsub: PubSub,
    /// Whether whoever acts may publish.
    pub may_publish: bool,
    /// Who acts, if somebody does: what it makes that lets others in is theirs.
    pub acts_for: Option<Maker>,
    /// What its messages go back to.
    pub origin: Origin,
    /// The app.
    pub app_id: AppId,
    /// The script that runs.
    pub script_id: ScriptId,
    /// Where its log lines are told; a script that is only compiled has none.
    pub tail: Option<Tail>,
    /// Where the store's work runs: apart from the threads that guests compute on, and to its
    /// end even when the guest is stopped in the middle of a call.
    pub host: Handle,
    /// Whether executions wait for their turns to compute.
    pub crowd: Crowd,
}

static FAILED: Repeated = Repeated::new("guests' calls that the database was unavailable for");

/// Log that a guest's call to a part of us failed, because the database is away or for another reason.
pub fn log_failed(of: &'static str, error: &dyn Display, is_away: bool) {
    match !is_away || FAILED.begins() {
        true => tracing::warn!(%error, "a guest's call to {of} failed"),
        false => tracing::debug!(%error, "a guest's call to {of} failed"),
    }
}

impl GuestImports {
    /// Run `work` apart from the guests; `None` if it panicked.
    pub async fn apart<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        self.host.spawn(work).await.ok()
    }
}
