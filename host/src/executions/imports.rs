//! The log, as whoever watches an execution hears it.

use crate::imports::GuestImports;
use crate::sandbox::{LogImports, LogLine};

impl LogImports for GuestImports {
    fn logged(&mut self, line: &LogLine) {
        if let Some(tail) = &mut self.tail {
            tail.tell(self.app_id, line);
        }
    }
}
