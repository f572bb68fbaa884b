//! When a delivery that failed is tried again.

use chrono::TimeDelta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most attempts that a policy may allow.
pub const ATTEMPTS_MAX: u32 = 100;
/// The longest pause between two attempts, in milliseconds: a day.
pub const PAUSE_MS_MAX: u64 = 86_400_000;

/// How often a delivery is attempted, and how long it waits in between. A trigger's is fixed when
/// it is registered, so that its row tells the whole policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RetryPolicy {
    /// All attempts, the first among them: 1 to [`ATTEMPTS_MAX`].
    pub attempts_max: u32,
    /// How the pause grows.
    pub backoff: Backoff,
    /// The first pause, in milliseconds, at most [`PAUSE_MS_MAX`].
    pub base_ms: u64,
    /// By how much a pause is varied at most, both ways, in per cent: 0 to 100.
    pub jitter_pct: u32,
}

impl RetryPolicy {
    /// Whether all of it is within bounds.
    pub fn is_possible(&self) -> bool {
        (1..=ATTEMPTS_MAX).contains(&self.attempts_max)
            && self.base_ms <= PAUSE_MS_MAX
            && self.jitter_pct <= 100
    }
}

/// How the pause between two attempts grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backoff {
    /// It doubles.
    #[default]
    Exponential,
    /// It grows by the first pause each time.
    Linear,
    /// It stays.
    Constant,
}

impl Backoff {
    /// The word in the database, the API and the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exponential => "exponential",
            Self::Linear => "linear",
            Self::Constant => "constant",
        }
    }

    /// The way that a word names.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Exponential, Self::Linear, Self::Constant]
            .into_iter()
            .find(|backoff| backoff.as_str() == word)
    }
}

impl RetryPolicy {
    /// What an instance uses that sets nothing.
    pub const DEFAULT: Self = Self {
        attempts_max: 3,
        backoff: Backoff::Exponential,
        base_ms: 1_000,
        jitter_pct: 20,
    };

    /// One attempt and no other.
    pub const ONCE: Self = Self {
        attempts_max: 1,
        ..Self::DEFAULT
    };

    /// How long to wait after the attempt `attempt`, counted from 1, has failed. `seed` chooses
    /// the jitter: deliveries that failed together should not come back together.
    pub fn pause(&self, attempt: u32, seed: u64) -> TimeDelta {
        let times = match self.backoff {
            Backoff::Exponential => 1_u64.checked_shl(attempt.saturating_sub(1)),
            Backoff::Linear => Some(u64::from(attempt.max(1))),
            Backoff::Constant => Some(1),
        };
        let pause = self
            .base_ms
            .saturating_mul(times.unwrap_or(u64::MAX))
            .min(PAUSE_MS_MAX);
        let spread = pause * u64::from(self.jitter_pct.min(100)) / 100;
        let jitter = mixed(seed ^ u64::from(attempt)) % (2 * spread + 1);
        let pause = (pause - spread + jitter).min(PAUSE_MS_MAX);
        TimeDelta::milliseconds(i64::try_from(pause).unwrap_or(i64::MAX))
    }
}

/// For how long after it was made a delivery is put back without counting an attempt, where others hold
/// all memory; after that it counts, so that each ends some day.
const WAITS_FOR_MEMORY: TimeDelta = TimeDelta::minutes(15);
/// The shortest pause before it is looked at again, and the longest.
const MEMORY_PAUSES: [TimeDelta; 2] = [TimeDelta::seconds(1), TimeDelta::minutes(1)];

/// How long a delivery of that age waits for memory that others hold, a quarter as long as it has waited;
/// none where that is an attempt as any other. `seed` chooses the jitter.
pub fn pause_for_memory(age: TimeDelta, seed: u64) -> Option<TimeDelta> {
    let [shortest, longest] = MEMORY_PAUSES;
    let pause = (age / 4).clamp(shortest, longest).num_milliseconds();
    let policy = RetryPolicy {
        backoff: Backoff::Constant,
        base_ms: pause.unsigned_abs(),
        ..RetryPolicy::DEFAULT
    };
    (age < WAITS_FOR_MEMORY).then(|| policy.pause(1, seed))
}

/// SplitMix64's finaliser (Steele, Lea, Flood 2014): neighbouring seeds give unrelated numbers.
fn mixed(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn without_jitter(backoff: Backoff, attempt: u32) -> i64 {
        let policy = RetryPolicy {
            backoff,
            jitter_pct: 0,
            ..RetryPolicy::DEFAULT
        };
        policy.pause(attempt, 7).num_milliseconds()
    }

    #[test]
    fn pauses_grow_as_their_name_says() {
        let of = |backoff| [1, 2, 3, 4].map(|attempt| without_jitter(backoff, attempt));
        assert_eq!(of(Backoff::Exponential), [1_000, 2_000, 4_000, 8_000]);
        assert_eq!(of(Backoff::Linear), [1_000, 2_000, 3_000, 4_000]);
        assert_eq!(of(Backoff::Constant), [1_000; 4]);
        assert_eq!(without_jitter(Backoff::Exponential, 99), 86_400_000);
    }

    #[test]
    fn a_delivery_waits_for_memory_longer_and_longer_and_not_for_ever() {
        let pause = |age: TimeDelta| pause_for_memory(age, 7).map(|pause| pause.num_seconds());
        assert!((0..=1).contains(&pause(TimeDelta::zero()).unwrap()));
        assert!((20..=30).contains(&pause(TimeDelta::seconds(100)).unwrap()));
        assert!((48..=72).contains(&pause(TimeDelta::minutes(14)).unwrap()));
        assert_eq!(pause(TimeDelta::minutes(15)), None);
        // Of a clock that was set back.
        assert!((0..=1).contains(&pause(TimeDelta::days(-1)).unwrap()));
    }

    proptest! {
        #[test]
        fn a_pause_stays_within_its_jitter(
            attempt in 0_u32..200,
            base_ms in 0..=PAUSE_MS_MAX,
            jitter_pct in 0_u32..=100,
            seed: u64,
            backoff in prop_oneof![
                Just(Backoff::Exponential), Just(Backoff::Linear), Just(Backoff::Constant)
            ],
        ) {
            let policy = RetryPolicy { attempts_max: 3, backoff, base_ms, jitter_pct };
            let bare = RetryPolicy { jitter_pct: 0, ..policy }.pause(attempt, seed);
            let pause = policy.pause(attempt, seed).num_milliseconds();
            let bare = bare.num_milliseconds();
            let spread = bare * i64::from(jitter_pct) / 100;
            prop_assert!(pause >= bare - spread && pause <= bare + spread);
            prop_assert!((0..=PAUSE_MS_MAX as i64).contains(&pause));
        }
    }
}
