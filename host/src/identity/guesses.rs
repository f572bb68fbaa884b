//! Slows down whoever guesses passwords, links and tokens: by address, and by name.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};

use super::IdentityError;
use crate::apps::NAME_BYTES_MAX;

/// How many attempts an address may make at once, and how often after those.
const ADDRESS_BURST: NonZeroU32 = NonZeroU32::new(30).expect("30 is not 0");
const ADDRESS_EVERY: Duration = Duration::from_secs(2);
/// The same at one name, from wherever. Slow enough that guessing is hopeless (8,640 a day), and
/// fast enough that an attacker cannot lock anybody out for long.
const NAME_BURST: NonZeroU32 = NonZeroU32::new(10).expect("10 is not 0");
const NAME_EVERY: Duration = Duration::from_secs(10);
/// How many addresses or names are remembered before those that may try freely are forgotten.
const REMEMBERED: usize = 10_000;

/// Counts attempts. Each node counts its own.
pub struct Guesses {
    by_address: DefaultKeyedRateLimiter<String>,
    by_name: DefaultKeyedRateLimiter<String>,
}

impl Default for Guesses {
    fn default() -> Self {
        let quota = |every, burst| {
            let quota = Quota::with_period(every).expect("a period is longer than nothing");
            quota.allow_burst(burst)
        };
        Self {
            by_address: DefaultKeyedRateLimiter::keyed(quota(ADDRESS_EVERY, ADDRESS_BURST)),
            by_name: DefaultKeyedRateLimiter::keyed(quota(NAME_EVERY, NAME_BURST)),
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
    /// Count an attempt from an address, at a name where one is given.
    ///
    /// # Errors
    /// [`IdentityError::TooManyGuesses`] when there were too many.
    pub fn count(&self, address: &str, name: Option<&str>) -> Result<(), IdentityError> {
        let from = address.parse().map(subscriber);
        take(
            &self.by_address,
            from.map_or_else(|_| address.to_owned(), |from| from.to_string()),
        )?;
        let Some(name) = name else { return Ok(()) };
        // The same user, however the name is written; and no more of it than a user's can have.
        let name = name.chars().take(NAME_BYTES_MAX);
        take(&self.by_name, name.flat_map(char::to_lowercase).collect())
    }
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

    #[test]
    fn ten_thousand_attempts_are_stopped_and_others_are_not() {
        let guesses = Guesses::default();
        let tried = (0..10_000).filter(|n| {
            guesses
                .count(&format!("10.0.{}.{}", n / 250, n % 250), Some("ada"))
                .is_ok()
        });
        // A slow machine takes long enough for some more.
        assert!((10..20).contains(&tried.count()));
        assert!(guesses.count("192.0.2.1", Some("grace")).is_ok());
        let tried = (0..10_000).filter(|n| {
            guesses
                .count("192.0.2.7", Some(&format!("user{n}")))
                .is_ok()
        });
        assert!((30..50).contains(&tried.count()));
        assert!(guesses.count("192.0.2.8", Some("Eve")).is_ok());
        // Whoever has one address of IPv6 has 2⁶⁴ of them.
        let tried =
            (0..10_000).filter(|n| guesses.count(&format!("2001:db8::{n:x}"), None).is_ok());
        assert!((30..50).contains(&tried.count()));
        assert!(guesses.count("2001:db8:0:1::1", None).is_ok());
        // A name that nobody can have is not kept whole.
        let long = "x".repeat(10 << 20);
        assert!(guesses.count("192.0.2.9", Some(&long)).is_ok());
        assert!(take(&guesses.by_name, long[..NAME_BYTES_MAX].to_owned()).is_ok());
        assert!(
            guesses
                .by_name
                .check_key(&long[..NAME_BYTES_MAX].to_owned())
                .is_ok()
        );
    }
}
