//! The secrets, as guests call them.

use super::SecretError;
use crate::imports::{GuestImports, log_failed};
use crate::sandbox::SecretImports;
use crate::sandbox::bindings::secrets as wit;

impl SecretImports for GuestImports {
    async fn get(&mut self, name: String) -> Result<Option<String>, wit::Error> {
        let (secrets, app_id, script_id) = (self.secrets.clone(), self.app_id, self.script_id);
        let read = self.apart(async move { secrets.read(app_id, script_id, &name).await });
        let error = match read.await {
            Some(Ok(value)) => return Ok(value),
            Some(Err(error)) => error,
            None => return Err(wit::Error::Unavailable),
        };
        Err(match error {
            SecretError::InvalidName(problem) => wit::Error::InvalidName(problem.to_owned()),
            SecretError::Denied(_) => wit::Error::Denied,
            SecretError::Store(error) => {
                log_failed("the secrets", &error, error.is_unavailable());
                wit::Error::Unavailable
            }
            error => {
                tracing::warn!(%app_id, %error, "a guest could not read a secret");
                wit::Error::Unavailable
            }
        })
    }
}
