//! What users can see, as rules.

mod access;
mod api;
mod backup;
mod bad_input;
mod cli;
mod cookies;
mod dead_letters;
mod doctor;
mod etags;
mod faults;
mod idempotency;
mod kills;
mod limits;
mod nodes;
mod overview;
mod portable;
mod realtime;
mod realtime_faults;
mod routes;
mod sandbox;
mod secrets;
mod setup;
mod spine;
mod traces;
mod triggers;
mod users;
