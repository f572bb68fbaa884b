//! What the store and the statements of the domains must do, on both databases alike.

mod database;
mod kv;
mod outbox;
mod store;
