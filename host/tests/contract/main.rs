//! What the store and the statements of the domains must do, on both databases alike.

#![allow(
    clippy::unwrap_used,
    reason = "a test may end where it finds something odd"
)]

mod audit;
mod backup;
mod database;
mod dead_letters;
mod instance;
mod journal;
mod kv;
mod leases;
mod no_memory;
mod outbox;
mod overview;
mod retention;
mod store;
mod waiting;
