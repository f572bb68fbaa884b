//! Authority that was taken away: each kind of credential, taken away in each way, at each way in.

mod keys;
mod links;
mod rig;
mod sessions;
mod subscribers;
mod ways;
