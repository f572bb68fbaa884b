//! What fails for each request alike, while the database is away say: the first is logged, those that
//! follow are counted, and how many they were is logged once it is over.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// It is over once nothing failed for so long.
const QUIET: Duration = Duration::from_secs(5);
/// How often is looked whether it is.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Those that go on.
static GOING_ON: Mutex<Vec<&'static Repeated>> = Mutex::new(Vec::new());

/// One kind of failure.
pub struct Repeated {
    /// What failed, in the plural.
    what: &'static str,
    series: Mutex<Option<Series>>,
}

struct Series {
    last: Instant,
    count: u64,
}

impl Repeated {
    /// A kind of failure, named in the plural by `what` fails.
    pub const fn new(what: &'static str) -> Self {
        Self {
            what,
            series: Mutex::new(None),
        }
    }

    /// Count a failure. Says whether it is the first of a series, which is to be logged.
    pub fn begins(&'static self) -> bool {
        let is_first = self.count(Instant::now());
        if is_first {
            locked(&GOING_ON).push(self);
        }
        is_first
    }

    fn count(&self, now: Instant) -> bool {
        let mut series = locked(&self.series);
        let is_first = series.is_none();
        let count = series.as_ref().map_or(0, |series| series.count) + 1;
        *series = Some(Series { last: now, count });
        is_first
    }

    /// How many there were, once it is over.
    fn ended(&self, now: Instant) -> Option<u64> {
        let mut series = locked(&self.series);
        series
            .take_if(|series| now - series.last >= QUIET)
            .map(|series| series.count)
    }
}

/// Log what is over, for ever.
pub async fn keep_telling_what_is_over() {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = Instant::now();
        locked(&GOING_ON).retain(|repeated| match repeated.ended(now) {
            None => true,
            Some(count) => {
                tracing::info!(count, "over: {}", repeated.what);
                false
            }
        });
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held cannot have left it half-written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_series_is_told_and_how_many_it_had() {
        let failures = Repeated::new("failures");
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(failures.count(start));
        assert!(!failures.count(after(4)) && !failures.count(after(8)));
        assert_eq!(failures.ended(after(12)), None);
        assert_eq!(failures.ended(after(13)), Some(3));
        assert_eq!(failures.ended(after(60)), None);
        assert!(failures.count(after(60)));
    }
}
