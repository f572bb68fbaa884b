//! What streams are told of executions: a summary for each app and second, so that no call costs a
//! write for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::{Execution, ExecutionId, OutcomeKind};
use crate::apps::AppId;
use crate::journal::{Channel, Journal, NewEntry, kinds};
use crate::scripts::ScriptId;

/// How often streams are told.
const EVERY: Duration = Duration::from_secs(1);
/// How many of those that failed are named.
const FAILED_MAX: usize = 20;

/// The executions that ended since streams were last told.
pub struct Tally {
    journal: Arc<Journal>,
    apps: Mutex<HashMap<AppId, Summary>>,
}

#[derive(Default, Serialize)]
struct Summary {
    count: u64,
    by_outcome: BTreeMap<&'static str, u64>,
    failed: Vec<Failed>,
}

#[derive(Serialize)]
struct Failed {
    id: ExecutionId,
    script_id: ScriptId,
    outcome: &'static str,
}

impl Tally {
    /// A tally whose streams are those of `journal`.
    pub fn new(journal: Arc<Journal>) -> Arc<Self> {
        let apps = Mutex::default();
        Arc::new(Self { journal, apps })
    }

    /// An execution ended.
    pub fn count(&self, execution: &Execution) {
        if !self.journal.is_watched() {
            return;
        }
        let outcome = execution.outcome.as_str();
        let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        let summary = apps.entry(execution.app_id).or_default();
        summary.count += 1;
        *summary.by_outcome.entry(outcome).or_default() += 1;
        if execution.outcome != OutcomeKind::Answered && summary.failed.len() < FAILED_MAX {
            summary.failed.push(Failed {
                id: execution.id,
                script_id: execution.script_id,
                outcome,
            });
        }
    }

    /// Tell streams again and again, for ever.
    pub async fn keep_telling(self: Arc<Self>) {
        loop {
            tokio::time::sleep(EVERY).await;
            let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
            let ended = std::mem::take(&mut *apps);
            drop(apps);
            for (app_id, summary) in ended {
                let summary = serde_json::to_value(summary).unwrap_or_default();
                let entry = NewEntry::event(kinds::EXECUTIONS, Some(app_id), &summary);
                self.journal.tell_ephemeral(&Channel::events(), entry);
            }
        }
    }
}
