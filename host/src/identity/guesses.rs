//! Slows down whoever guesses passwords, links and tokens: by address, and by name.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};

use super::IdentityError;

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

impl Guesses {
    /// Count an attempt from an address, at a name where one is given.
    ///
    /// # Errors
    /// [`IdentityError::TooManyGuesses`] when there were too many.
    pub fn count(&self, address: &str, name: Option<&str>) -> Result<(), IdentityError> {
        take(&self.by_address, address)?;
        match name {
            // The same user, however the name is written.
            Some(name) => take(&self.by_name, &name.to_lowercase()),
            None => Ok(()),
        }
    }
}

fn take(limiter: &DefaultKeyedRateLimiter<String>, key: &str) -> Result<(), IdentityError> {
    if limiter.len() > REMEMBERED {
        limiter.retain_recent();
        limiter.shrink_to_fit();
    }
    limiter.check_key(&key.to_owned()).map_err(|not_until| {
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
    }
}
