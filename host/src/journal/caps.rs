//! How many streams may be open at once, and how much may be replayed.

use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};

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

/// Counts what goes on at once.
#[derive(Default)]
struct Counts(Mutex<HashMap<Cap, u64>>);

impl Counts {
    /// One more under each of these caps, or the one that is reached.
    fn take(self: &Arc<Self>, caps: Vec<(Cap, u64)>) -> Result<Counted, (Cap, u64)> {
        let mut counts = self.locked();
        let is_reached = |(cap, max): &&(Cap, u64)| counts.get(cap).is_some_and(|n| n >= max);
        if let Some(reached) = caps.iter().find(is_reached) {
            return Err(reached.clone());
        }
        let held: Vec<Cap> = caps.into_iter().map(|(cap, _)| cap).collect();
        for cap in &held {
            *counts.entry(cap.clone()).or_default() += 1;
        }
        drop(counts);
        let counts = self.clone();
        Ok(Counted { counts, held })
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<Cap, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What counts until this goes.
struct Counted {
    counts: Arc<Counts>,
    held: Vec<Cap>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.counts.locked();
        for cap in &self.held {
            if let Some(count) = counts.get_mut(cap) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(cap);
                }
            }
        }
    }
}

/// The streams that are open on this node.
#[derive(Default)]
pub struct Caps {
    open: Arc<Counts>,
}

impl Caps {
    /// A place for one more stream under each of these caps.
    ///
    /// # Errors
    /// [`TooMany`] says which is reached.
    pub fn enter(&self, caps: Vec<(Cap, u64)>) -> Result<Place, TooMany> {
        let counted = self.open.take(caps).map_err(|(cap, max)| TooMany {
            what: cap.what(),
            max,
        })?;
        metrics::gauge!("picloud_streams_open").increment(1.0);
        Ok(Place { _counted: counted })
    }
}

/// A place for a stream; it is free again when this goes.
pub struct Place {
    _counted: Counted,
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::gauge!("picloud_streams_open").decrement(1.0);
    }
}

/// How often streams of one user, token or address may begin with what they missed: that is read
/// from the database for each of them, while what is new is read once for all.
#[derive(Debug, Clone, Copy)]
pub struct ReplayLimits {
    /// In a minute.
    pub per_minute: u32,
    /// At once.
    pub at_once: u64,
}

/// Too much is replayed.
#[derive(Debug, thiserror::Error)]
#[error("too many streams {what} began with what they missed: try again in {retry_after_s} s")]
pub struct TooManyReplays {
    what: &'static str,
    /// When to try again, in seconds.
    pub retry_after_s: u64,
}

/// When to try again where as many replays go on as may be, in seconds.
const REPLAY_AGAIN_S: u64 = 1;
/// How many users, tokens and addresses are remembered before those that may replay freely are
/// forgotten.
const REMEMBERED: usize = 10_000;

/// The replays on this node.
pub struct Replays {
    limits: ReplayLimits,
    running: Arc<Counts>,
    begun: DefaultKeyedRateLimiter<Cap>,
}

impl Replays {
    /// Replays within these limits.
    pub fn new(limits: ReplayLimits) -> Self {
        let per_minute = NonZeroU32::new(limits.per_minute).unwrap_or(NonZeroU32::MIN);
        Self {
            limits,
            running: Arc::default(),
            begun: DefaultKeyedRateLimiter::keyed(Quota::per_minute(per_minute)),
        }
    }

    /// Begin a replay on the account of somebody.
    ///
    /// # Errors
    /// [`TooManyReplays`] says when to try again.
    pub fn begin(&self, of: Cap) -> Result<Replay, TooManyReplays> {
        let what = of.what();
        let too_many = |retry_after_s| TooManyReplays {
            what,
            retry_after_s,
        };
        if self.begun.len() > REMEMBERED {
            self.begun.retain_recent();
            self.begun.shrink_to_fit();
        }
        let running = self.running.take(vec![(of.clone(), self.limits.at_once)]);
        let running = running.map_err(|_| too_many(REPLAY_AGAIN_S))?;
        self.begun.check_key(&of).map_err(|not_until| {
            let wait = not_until.wait_time_from(DefaultClock::default().now());
            too_many(wait.as_secs() + 1)
        })?;
        Ok(Replay { _counted: running })
    }
}

/// A replay that goes on until this goes.
pub struct Replay {
    _counted: Counted,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_taken_under_every_cap_or_under_none() {
        let caps = Caps::default();
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
        assert!(caps.open.locked().is_empty());
    }

    #[test]
    fn replays_are_counted_at_once_and_by_the_minute_for_each_alone() {
        let replays = Replays::new(ReplayLimits {
            per_minute: 5,
            at_once: 2,
        });
        let begin = |token: u8| replays.begin(Cap::Token([token; 16]));
        let both = (begin(1).ok().unwrap(), begin(1).ok().unwrap());
        assert_eq!(begin(1).err().unwrap().retry_after_s, REPLAY_AGAIN_S);
        assert!(begin(2).is_ok(), "another's");
        drop(both);
        for _ in 0..3 {
            assert!(begin(1).is_ok());
        }
        // A minute has room for five: the next has it in 12 s.
        let refused = begin(1).err().unwrap();
        assert!((1..=13).contains(&refused.retry_after_s), "{refused}");
        assert!(begin(2).is_ok());
        assert!(replays.running.locked().is_empty());
    }
}
