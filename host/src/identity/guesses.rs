//! Slows down whoever guesses passwords, links and tokens: by address, by address and name, and, for
//! addresses that a user has no session from, by name.
//!
//! A limit by name alone would let one address lock the rightful out. So what one address may try at a
//! name is its own, and only strangers share a limit: it bounds a guess from many addresses at one
//! name, and does not count for an address from which a session of that user goes on.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
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
    by_address: DefaultKeyedRateLimiter<String>,
    by_pair: DefaultKeyedRateLimiter<String>,
    by_stranger: DefaultKeyedRateLimiter<String>,
}

impl Default for Guesses {
    fn default() -> Self {
        let limiter = |every, burst| {
            let quota = Quota::with_period(every).expect("a period is longer than nothing");
            DefaultKeyedRateLimiter::keyed(quota.allow_burst(burst))
        };
        Self {
            by_address: limiter(ADDRESS_EVERY, ADDRESS_BURST),
            by_pair: limiter(PAIR_EVERY, PAIR_BURST),
            by_stranger: limiter(STRANGERS_EVERY, STRANGERS_BURST),
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
    pub fn count(&self, address: &str) -> Result<(), IdentityError> {
        take(&self.by_address, subscriber_of(address))
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
        is_known: impl AsyncFnOnce() -> Result<bool, IdentityError>,
    ) -> Result<(), IdentityError> {
        // The same user, however the name is written; and no more of it than a user's can have.
        let name = name::sought(name);
        let name: String = name.chars().take(NAME_BYTES_MAX).collect();
        take(&self.by_pair, format!("{} {name}", subscriber_of(address)))?;
        match take(&self.by_stranger, name) {
            Err(_) if is_known().await? => Ok(()),
            counted => counted,
        }
    }
}

/// Whose address it is, if it is one, as a key.
pub fn subscriber_of(address: &str) -> String {
    let from = address.parse().map(subscriber);
    from.map_or_else(|_| address.to_owned(), |from| from.to_string())
}

fn take(limiter: &DefaultKeyedRateLimiter<String>, key: String) -> Result<(), IdentityError> {
    if limiter.len() > REMEMBERED {
        limiter.retain_recent();
        limiter.shrink_to_fit();
    }
    limiter.check_key(&key).map_err(|not_until| {
        let wait = not_until.wait_time_from(DefaultClock::default().now());
        IdentityError::TooManyGuesses {
            retry_after_s: wait.as_secs() + 1,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_stopped(counted: &Result<(), IdentityError>) -> bool {
        matches!(counted, Err(IdentityError::TooManyGuesses { .. }))
    }

    #[tokio::test]
    async fn ten_thousand_attempts_are_stopped_and_others_are_not() {
        let guesses = Guesses::default();
        let stranger = async || Ok(false);
        // From everywhere at one name. A slow machine takes long enough for some more.
        let mut tried = 0;
        for n in 0..10_000 {
            let address = format!("10.0.{}.{}", n / 250, n % 250);
            tried += u32::from(guesses.count_at(&address, "ada", stranger).await.is_ok());
        }
        assert!((100..120).contains(&tried), "{tried}");
        // Whoever signed in from where they are is not kept out by that, nor is anybody else.
        let known = async || Ok(true);
        assert!(guesses.count_at("192.0.2.1", "Ada", known).await.is_ok());
        let refused = guesses.count_at("192.0.2.2", "ada", stranger).await;
        assert!(is_stopped(&refused));
        assert!(
            guesses
                .count_at("192.0.2.2", "grace", stranger)
                .await
                .is_ok()
        );
        // One address at one name, known or not.
        let mut tried = 0;
        for _ in 0..20 {
            tried += u32::from(guesses.count_at("192.0.2.3", "eve", known).await.is_ok());
        }
        assert!((10..13).contains(&tried), "{tried}");
        assert!(guesses.count_at("192.0.2.4", "eve", stranger).await.is_ok());
        // One address at all names.
        let mut tried = 0;
        for n in 0..1_000 {
            let name = format!("user{n}");
            let counted = guesses.count("192.0.2.7").is_ok();
            let at = guesses.count_at("192.0.2.7", &name, stranger).await;
            tried += u32::from(counted && at.is_ok());
        }
        assert!((30..50).contains(&tried), "{tried}");
        // Whoever has one address of IPv6 has 2⁶⁴ of them.
        let tried = (0..10_000).filter(|n| guesses.count(&format!("2001:db8::{n:x}")).is_ok());
        assert!((30..50).contains(&tried.count()));
        assert!(guesses.count("2001:db8:0:1::1").is_ok());
    }

    #[tokio::test]
    async fn a_name_that_nobody_can_have_is_not_kept_whole() {
        let guesses = Guesses::default();
        let long = "x".repeat(10 << 20);
        let counted = guesses.count_at("192.0.2.9", &long, async || Ok(false));
        assert!(counted.await.is_ok());
        let kept = long[..NAME_BYTES_MAX].to_owned();
        let left = (0..200).filter(|_| take(&guesses.by_stranger, kept.clone()).is_ok());
        assert_eq!(left.count(), 99);
    }
}
