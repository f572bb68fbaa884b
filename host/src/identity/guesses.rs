//! Slows down whoever guesses passwords, links and tokens: by address, by address and name, and, for
//! addresses that a user has no session from, by name.
//!
//! A limit by name alone would let one address lock the rightful out. So what one address may try at a
//! name is its own, and only strangers share a limit: it bounds a guess from many addresses at one
//! name, and does not count for an address from which a session of that user goes on.
//!
//! What was answered 503 was no guess: nobody looked whether it was right. It is given back.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};

use super::{IdentityError, name};
use crate::apps::NAME_BYTES_MAX;

/// How many attempts an address may make at once, and how often after those.
const ADDRESS_BURST: NonZeroU32 = NonZeroU32::new(30).expect("30 is not 0");
const ADDRESS_EVERY: Duration = Duration::from_secs(2);
/// The same for an address at one name.
const PAIR_BURST: NonZeroU32 = NonZeroU32::new(10).expect("10 is not 0");
const PAIR_EVERY: Duration = Duration::from_secs(10);
/// The same for all strangers at one name. Slow enough that guessing is hopeless: 8,640 a day.
const STRANGERS_BURST: NonZeroU32 = NonZeroU32::new(100).expect("100 is not 0");
const STRANGERS_EVERY: Duration = Duration::from_secs(10);
/// How many addresses or names are remembered before those that may try freely are forgotten.
const REMEMBERED: usize = 10_000;

/// Counts attempts. Each node counts its own.
pub struct Guesses {
    by_address: Arc<Limit>,
    by_pair: Arc<Limit>,
    by_stranger: Arc<Limit>,
}

/// How often something may be tried by whom a key names.
struct Limit {
    limiter: DefaultKeyedRateLimiter<String>,
    burst: u32,
    /// How many attempts were given back and not made again: at most as many as may be made at once, or
    /// an outage would be a time in which to collect them.
    given_back: Mutex<HashMap<String, u32>>,
}

/// What the attempt of a request was counted as.
#[derive(Clone, Default)]
pub struct Counted(Arc<Mutex<Vec<Taken>>>);

/// What was taken of a limit, by whom a key names.
struct Taken {
    limit: Arc<Limit>,
    key: String,
}

impl Counted {
    fn add(&self, limit: &Arc<Limit>, key: String) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = limit.clone();
        counted.push(Taken { limit, key });
    }

    /// It was none: it was not found out whether it was right.
    pub fn give_back(&self) {
        let counted = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for Taken { limit, key } in counted {
            limit.give_back(key);
        }
    }
}

impl Default for Guesses {
    fn default() -> Self {
        Self {
            by_address: Limit::new(ADDRESS_EVERY, ADDRESS_BURST),
            by_pair: Limit::new(PAIR_EVERY, PAIR_BURST),
            by_stranger: Limit::new(STRANGERS_EVERY, STRANGERS_BURST),
        }
    }
}

/// One subscriber has one IPv4 address, or 2⁶⁴ of IPv6.
pub fn subscriber(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

impl Guesses {
    /// Count an attempt from an address.
    ///
    /// # Errors
    /// [`IdentityError::TooManyGuesses`] when there were too many.
    pub fn count(&self, address: &str, counted: &Counted) -> Result<(), IdentityError> {
        self.by_address.take(subscriber_of(address), counted)
    }

    /// Count an attempt from an address, which is [counted](Self::count) for that, at the password of a
    /// name. `is_known` says whether its user has signed in from there before; it is asked only where
    /// strangers have tried too often.
    ///
    /// # Errors
    /// [`IdentityError::TooManyGuesses`] when there were too many, or what `is_known` fails with.
    pub async fn count_at(
        &self,
        address: &str,
        name: &str,
        counted: &Counted,
        is_known: impl AsyncFnOnce() -> Result<bool, IdentityError>,
    ) -> Result<(), IdentityError> {
        // The same user, however the name is written; and no more of it than a user's can have.
        let name = name::sought(name);
        let name: String = name.chars().take(NAME_BYTES_MAX).collect();
        let pair = format!("{} {name}", subscriber_of(address));
        self.by_pair.take(pair, counted)?;
        match self.by_stranger.take(name, counted) {
            Err(_) if is_known().await? => Ok(()),
            taken => taken,
        }
    }
}

/// Whose address it is, if it is one, as a key.
pub fn subscriber_of(address: &str) -> String {
    let from = address.parse().map(subscriber);
    from.map_or_else(|_| address.to_owned(), |from| from.to_string())
}

impl Limit {
    fn new(every: Duration, burst: NonZeroU32) -> Arc<Self> {
        let quota = Quota::with_period(every).expect("a period is longer than nothing");
        Arc::new(Self {
            limiter: DefaultKeyedRateLimiter::keyed(quota.allow_burst(burst)),
            burst: burst.get(),
            given_back: Mutex::default(),
        })
    }

    fn take(self: &Arc<Self>, key: String, counted: &Counted) -> Result<(), IdentityError> {
        if self.limiter.len() > REMEMBERED {
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
        }
        match self.limiter.check_key(&key) {
            Err(not_until) if !self.take_given_back(&key) => {
                let wait = not_until.wait_time_from(DefaultClock::default().now());
                Err(IdentityError::TooManyGuesses {
                    retry_after_s: wait.as_secs() + 1,
                })
            }
            _ => {
                counted.add(self, key);
                Ok(())
            }
        }
    }

    fn take_given_back(&self, key: &str) -> bool {
        let mut given_back = self.given_back();
        let Some(left) = given_back.get_mut(key) else {
            return false;
        };
        *left -= 1;
        if *left == 0 {
            given_back.remove(key);
        }
        true
    }

    fn give_back(&self, key: String) {
        let mut given_back = self.given_back();
        if given_back.len() >= REMEMBERED {
            given_back.clear();
        }
        let left = given_back.entry(key).or_default();
        *left = self.burst.min(*left + 1);
    }

    fn given_back(&self) -> std::sync::MutexGuard<'_, HashMap<String, u32>> {
        // A panic while it was held cannot have left a map operation half-done.
        self.given_back
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_stopped(counted: &Result<(), IdentityError>) -> bool {
        matches!(counted, Err(IdentityError::TooManyGuesses { .. }))
    }

    #[tokio::test]
    async fn ten_thousand_attempts_are_stopped_and_others_are_not() {
        let (guesses, of) = (Guesses::default(), Counted::default());
        let stranger = async || Ok(false);
        // From everywhere at one name. A slow machine takes long enough for some more.
        let mut tried = 0;
        for n in 0..10_000 {
            let address = format!("10.0.{}.{}", n / 250, n % 250);
            tried += u32::from(
                guesses
                    .count_at(&address, "ada", &of, stranger)
                    .await
                    .is_ok(),
            );
        }
        assert!((100..120).contains(&tried), "{tried}");
        // Whoever signed in from where they are is not kept out by that, nor is anybody else.
        let known = async || Ok(true);
        assert!(
            guesses
                .count_at("192.0.2.1", "Ada", &of, known)
                .await
                .is_ok()
        );
        let refused = guesses.count_at("192.0.2.2", "ada", &of, stranger).await;
        assert!(is_stopped(&refused));
        assert!(
            guesses
                .count_at("192.0.2.2", "grace", &of, stranger)
                .await
                .is_ok()
        );
        // One address at one name, known or not.
        let mut tried = 0;
        for _ in 0..20 {
            tried += u32::from(
                guesses
                    .count_at("192.0.2.3", "eve", &of, known)
                    .await
                    .is_ok(),
            );
        }
        assert!((10..13).contains(&tried), "{tried}");
        assert!(
            guesses
                .count_at("192.0.2.4", "eve", &of, stranger)
                .await
                .is_ok()
        );
        // One address at all names.
        let mut tried = 0;
        for n in 0..1_000 {
            let name = format!("user{n}");
            let counted = guesses.count("192.0.2.7", &of).is_ok();
            let at = guesses.count_at("192.0.2.7", &name, &of, stranger).await;
            tried += u32::from(counted && at.is_ok());
        }
        assert!((30..50).contains(&tried), "{tried}");
        // Whoever has one address of IPv6 has 2⁶⁴ of them.
        let tried = (0..10_000).filter(|n| guesses.count(&format!("2001:db8::{n:x}"), &of).is_ok());
        assert!((30..50).contains(&tried.count()));
        assert!(guesses.count("2001:db8:0:1::1", &of).is_ok());
    }

    #[tokio::test]
    async fn what_was_given_back_was_no_guess() {
        let guesses = Guesses::default();
        let stranger = async || Ok(false);
        let tries = async || {
            let mut counted = Vec::new();
            loop {
                let of = Counted::default();
                let at = guesses.count_at("192.0.2.1", "ada", &of, stranger).await;
                if is_stopped(&at) {
                    return counted;
                }
                counted.push(of);
            }
        };
        let outage = tries().await;
        assert!((10..13).contains(&outage.len()), "{}", outage.len());
        for of in outage.iter().chain(&outage) {
            of.give_back();
        }
        let after = tries().await;
        assert!((10..13).contains(&after.len()), "{}", after.len());
        // However long it lasts, no more can be collected.
        let many = Counted::default();
        for _ in 0..100 {
            many.add(&guesses.by_pair, "192.0.2.1 ada".to_owned());
        }
        many.give_back();
        assert!(tries().await.len() < 13);
    }

    #[tokio::test]
    async fn a_name_that_nobody_can_have_is_not_kept_whole() {
        let (guesses, of) = (Guesses::default(), Counted::default());
        let long = "x".repeat(10 << 20);
        let counted = guesses.count_at("192.0.2.9", &long, &of, async || Ok(false));
        assert!(counted.await.is_ok());
        let kept = long[..NAME_BYTES_MAX].to_owned();
        let left = (0..200).filter(|_| guesses.by_stranger.take(kept.clone(), &of).is_ok());
        assert_eq!(left.count(), 99);
    }
}
