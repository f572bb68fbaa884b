//! PiCloud hosts small functions that other people wrote and that nobody has to trust.
//!
//! `ARCHITECTURE.md` is the map: which room does what, and which arrows point where.

pub mod apps;
pub mod archive;
pub mod audit;
pub mod backup;
pub mod budget;
pub mod cli;
pub mod config;
pub mod cors;
pub mod dead_letters;
pub mod directory;
pub mod dispatch;
pub mod doctor;
pub mod executions;
pub mod fair_queue;
pub mod http;
pub mod idempotency;
pub mod identity;
pub mod imports;
pub mod instance;
pub mod journal;
pub mod json;
pub mod kv;
pub mod machine;
pub mod node;
pub mod oidc;
pub mod overview;
pub mod portable;
pub mod pubsub;
pub mod quotas;
pub mod retention;
pub mod routes;
pub mod sandbox;
pub mod scripts;
pub mod secrets;
pub mod stopping;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod triggers;
