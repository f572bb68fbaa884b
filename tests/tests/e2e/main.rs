//! What users can see, as rules.

mod api;
mod bad_input;
mod cli;
mod faults;
mod routes;
mod sandbox;
mod spine;
