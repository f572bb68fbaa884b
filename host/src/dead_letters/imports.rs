//! The dead letters, as guests call them.

use uuid::Uuid;

use crate::imports::GuestImports;
use crate::sandbox::DeadLetterImports;
use crate::sandbox::bindings::dead_letters::{Error, Resolution};

impl DeadLetterImports for GuestImports {
    async fn replay(&mut self, id: String) -> Result<String, Error> {
        Err(self.refusal(&id))
    }

    async fn resolve(&mut self, id: String, _resolution: Resolution) -> Result<(), Error> {
        Err(self.refusal(&id))
    }
}

impl GuestImports {
    /// Managing dead letters needs a principal; and no app has a dead letter yet.
    fn refusal(&self, id: &str) -> Error {
        match id.parse::<Uuid>() {
            _ if !self.has_principal => Error::Denied,
            Err(_) => Error::InvalidId,
            Ok(_) => Error::NotFound,
        }
    }
}
