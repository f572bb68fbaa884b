//! How many streams may be open at once.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::apps::AppId;
use crate::identity::UserId;

/// By what streams are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Cap {
    /// The address of the client.
    Address(String),
    /// A subscriber token.
    Token([u8; 16]),
    /// A user.
    User(UserId),
    /// An app.
    App(AppId),
}

impl Cap {
    fn what(&self) -> &'static str {
        match self {
            Self::Address(_) => "from one address",
            Self::Token(_) => "with one token",
            Self::User(_) => "of one user",
            Self::App(_) => "of one app",
        }
    }
}

/// As many streams are open as may be.
#[derive(Debug, thiserror::Error)]
#[error(
    "at most {max} streams {what} may be open at once; close one, or put several topics on one stream"
)]
pub struct TooMany {
    what: &'static str,
    max: u64,
}

/// The streams that are open on this node.
#[derive(Default)]
pub struct Caps {
    open: Mutex<HashMap<Cap, u64>>,
}

impl Caps {
    /// A place for one more stream under each of these caps.
    ///
    /// # Errors
    /// [`TooMany`] says which is reached.
    pub fn enter(self: &Arc<Self>, caps: Vec<(Cap, u64)>) -> Result<Place, TooMany> {
        let mut open = self.locked();
        for (cap, max) in &caps {
            let (what, max) = (cap.what(), *max);
            if open.get(cap).is_some_and(|count| *count >= max) {
                return Err(TooMany { what, max });
            }
        }
        let held: Vec<Cap> = caps.into_iter().map(|(cap, _)| cap).collect();
        for cap in &held {
            *open.entry(cap.clone()).or_default() += 1;
        }
        drop(open);
        metrics::gauge!("picloud_streams_open").increment(1.0);
        let caps = self.clone();
        Ok(Place { caps, held })
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<Cap, u64>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place for a stream; it is free again when this goes.
pub struct Place {
    caps: Arc<Caps>,
    held: Vec<Cap>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.caps.locked();
        for cap in &self.held {
            if let Some(count) = open.get_mut(cap) {
                *count -= 1;
                if *count == 0 {
                    open.remove(cap);
                }
            }
        }
        metrics::gauge!("picloud_streams_open").decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_taken_under_every_cap_or_under_none() {
        let caps = Arc::new(Caps::default());
        let enter = |address: &str, max| {
            let of_app = (Cap::App(uuid::Uuid::nil().into()), 3);
            caps.enter(vec![(Cap::Address(address.to_owned()), max), of_app])
        };
        let first = enter("a", 1).ok().unwrap();
        assert!(enter("a", 1).is_err());
        let others: Vec<_> = ["b", "c"]
            .map(|address| enter(address, 1).ok().unwrap())
            .into();
        assert!(enter("d", 1).is_err(), "the app's");
        drop(first);
        let again = enter("a", 1);
        assert!(again.is_ok());
        drop((again, others));
        assert!(caps.locked().is_empty());
    }
}
