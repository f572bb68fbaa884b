//! The statements of users, members, sessions, links and API keys.

pub mod keys;
pub mod links;
pub mod members;
pub mod sessions;
pub mod setup;
pub mod users;

use crate::store::StoreError;

/// What stands in a column and is none of its values.
fn inconsistent(
    table: &'static str,
    column: &'static str,
    id: impl ToString,
    value: &str,
) -> StoreError {
    StoreError::Inconsistent {
        table,
        column,
        id: id.to_string(),
        problem: format!("`{value}` is none of its values"),
    }
}
