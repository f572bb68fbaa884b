//! What executions log while they run on this node, for whoever watches one.
//!
//! It costs nothing where nothing is logged: the first line makes the entry. The lines are those of
//! the record to come, so who reads on in the record knows which they have seen.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::ExecutionId;
use crate::apps::AppId;
use crate::sandbox::LogLine;

/// The lines of an execution so far.
type Lines = watch::Receiver<Vec<LogLine>>;

/// The executions of this node that run and have logged something.
#[derive(Clone, Default)]
pub struct Running(Arc<Mutex<HashMap<ExecutionId, (AppId, Lines)>>>);

impl Running {
    /// What an execution logged so far, and what it logs from now on; none where it has not logged
    /// anything, or does not run here. No more comes once the sender is gone.
    pub fn lines(&self, id: ExecutionId) -> Option<(AppId, Lines)> {
        self.all().get(&id).cloned()
    }

    fn all(&self) -> MutexGuard<'_, HashMap<ExecutionId, (AppId, Lines)>> {
        // Nothing is done under the lock that could leave the map half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where one execution tells its lines. What it told is forgotten when it ends.
pub struct Tail {
    running: Running,
    id: ExecutionId,
    lines: Option<watch::Sender<Vec<LogLine>>>,
}

impl Tail {
    /// The tail of an execution that has logged nothing yet.
    pub fn new(running: Running, id: ExecutionId) -> Self {
        let lines = None;
        Self { running, id, lines }
    }

    /// Tell a line.
    pub fn tell(&mut self, app_id: AppId, line: &LogLine) {
        let lines = self.lines.get_or_insert_with(|| {
            let (told, lines) = watch::channel(Vec::new());
            self.running.all().insert(self.id, (app_id, lines));
            told
        });
        lines.send_modify(|lines| lines.push(line.clone()));
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        if self.lines.is_some() {
            self.running.all().remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Level;

    #[test]
    fn lines_are_told_while_it_runs_and_forgotten_when_it_ends() {
        let running = Running::default();
        let (id, app_id) = (ExecutionId::new(), AppId::new());
        let mut tail = Tail::new(running.clone(), id);
        assert!(running.lines(id).is_none());
        let line = |message: &str| LogLine {
            at: chrono::Utc::now(),
            level: Level::Info,
            message: message.to_owned(),
            fields: Default::default(),
        };
        tail.tell(app_id, &line("one"));
        let (told_of, mut lines) = running.lines(id).unwrap();
        assert_eq!((told_of, lines.borrow_and_update().len()), (app_id, 1));
        tail.tell(app_id, &line("two"));
        assert!(lines.has_changed().unwrap());
        assert_eq!(lines.borrow_and_update()[1].message, "two");
        drop(tail);
        assert!(lines.has_changed().is_err());
        assert!(running.lines(id).is_none());
    }
}
