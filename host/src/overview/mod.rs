//! How apps do: what ran, how it ended and how long it took, over a time, and what waits.
//!
//! Everything here is bounded: it reads the newest rows of the time that is asked for, and says so
//! when there were more.

pub mod api;
pub mod sql;
pub mod waiting;

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use crate::executions::OutcomeKind;
use waiting::Backlog;

/// The most executions that the list of apps looks at for each app.
pub const GLANCE_MAX: i64 = 2_000;
/// The most executions that the overview of one app looks at.
pub const EXECUTIONS_MAX: i64 = 20_000;
/// Beyond so many, what waits is not counted.
pub const WAITING_MAX: i64 = 10_000;
/// The most steps into which a time is cut.
pub const STEPS_MAX: u32 = 200;

/// What is looked at of an execution.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// What became of it.
    pub outcome: OutcomeKind,
    /// How long it took.
    pub duration_us: u64,
}

/// How some executions went.
#[derive(Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Figures {
    /// How many there were.
    pub executions: u64,
    /// How many of them did not answer.
    pub failed: u64,
    /// Half of them took no longer than so many microseconds; null when there were none.
    pub p50_us: Option<u64>,
    /// The same of 95 in 100.
    pub p95_us: Option<u64>,
    /// The same of 99 in 100.
    pub p99_us: Option<u64>,
}

/// A part of a time.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Step {
    /// When it begins.
    pub at: DateTime<Utc>,
    /// How its executions went.
    #[serde(flatten)]
    pub figures: Figures,
    /// How many had each outcome; outcomes that none had are left out.
    pub by_outcome: BTreeMap<&'static str, u64>,
    /// The most deliveries that waited at once, of one look a minute.
    pub waiting: i64,
    /// The longest that the first of them had been due then, in microseconds.
    pub overdue_us: u64,
}

impl Figures {
    /// The figures of samples.
    pub fn of(samples: &[Sample]) -> Self {
        let mut durations: Vec<u64> = samples.iter().map(|sample| sample.duration_us).collect();
        durations.sort_unstable();
        let failed = samples
            .iter()
            .filter(|sample| sample.outcome != OutcomeKind::Answered);
        Self {
            executions: samples.len() as u64,
            failed: failed.count() as u64,
            p50_us: percentile(&durations, 50),
            p95_us: percentile(&durations, 95),
            p99_us: percentile(&durations, 99),
        }
    }
}

/// The smallest of the sorted values that `percent` in 100 do not exceed.
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

/// Cut the time from `since` to `until` into `count` steps, with the samples of each. What waited
/// counts for the minute after it was looked at.
pub fn steps(
    samples: &[Sample],
    backlogs: &[Backlog],
    since: DateTime<Utc>,
    until: DateTime<Utc>,
    count: u32,
) -> Vec<Step> {
    let length_us = (until - since)
        .num_microseconds()
        .unwrap_or(i64::MAX)
        .max(1);
    // In which step an instant lies; below 0 or beyond the last where it lies outside.
    let step_of = |at: DateTime<Utc>| {
        let into_us = (at - since).num_microseconds().unwrap_or(i64::MAX);
        let step = (i128::from(into_us) * i128::from(count)).div_euclid(i128::from(length_us));
        i64::try_from(step).unwrap_or(i64::MAX)
    };
    let mut of_step = vec![Vec::new(); count as usize];
    for sample in samples {
        let at = usize::try_from(step_of(sample.started_at)).ok();
        if let Some(step) = at.and_then(|at| of_step.get_mut(at)) {
            step.push(sample.clone());
        }
    }
    let mut waited = vec![(0, 0); count as usize];
    for backlog in backlogs {
        let last = step_of(backlog.at + waiting::EVERY - TimeDelta::microseconds(1));
        let first = step_of(backlog.at).max(0);
        for at in first..=last.min(i64::from(count) - 1) {
            let Some((waiting, overdue_us)) =
                usize::try_from(at).ok().and_then(|at| waited.get_mut(at))
            else {
                continue;
            };
            *waiting = backlog.waiting.max(*waiting);
            *overdue_us = backlog.overdue_us().max(*overdue_us);
        }
    }
    let begins = |at: usize| {
        let us = i128::from(length_us) * at as i128 / i128::from(count);
        since + TimeDelta::microseconds(i64::try_from(us).unwrap_or(i64::MAX))
    };
    let step = |((at, samples), (waiting, overdue_us)): ((usize, Vec<Sample>), (i64, u64))| {
        let mut by_outcome = BTreeMap::new();
        for sample in &samples {
            *by_outcome.entry(sample.outcome.as_str()).or_default() += 1;
        }
        Step {
            at: begins(at),
            figures: Figures::of(&samples),
            by_outcome,
            waiting,
            overdue_us,
        }
    };
    of_step
        .into_iter()
        .enumerate()
        .zip(waited)
        .map(step)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(second: i64, outcome: OutcomeKind, duration_us: u64) -> Sample {
        Sample {
            started_at: DateTime::from_timestamp(second, 0).unwrap(),
            outcome,
            duration_us,
        }
    }

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let hundred: Vec<u64> = (1..=100).collect();
        let of = |percent| percentile(&hundred, percent);
        assert_eq!((of(50), of(95), of(99)), (Some(50), Some(95), Some(99)));
        assert_eq!(percentile(&[7], 50), Some(7));
        assert_eq!(percentile(&[1, 2], 99), Some(2));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn every_sample_is_in_the_step_in_which_it_began() {
        let samples = [
            sample(0, OutcomeKind::Answered, 10),
            sample(9, OutcomeKind::Threw, 30),
            sample(10, OutcomeKind::Answered, 20),
            // Outside: the time ends before.
            sample(20, OutcomeKind::Answered, 99),
            sample(-1, OutcomeKind::Answered, 99),
        ];
        let at = |second| DateTime::from_timestamp(second, 0).unwrap();
        let cut = steps(&samples, &[], at(0), at(20), 2);
        assert_eq!(cut.len(), 2);
        assert_eq!((cut[0].at, cut[1].at), (at(0), at(10)));
        let counts: Vec<_> = cut
            .iter()
            .map(|step| (step.figures.executions, step.figures.failed))
            .collect();
        assert_eq!(counts, [(2, 1), (1, 0)]);
        assert_eq!(cut[0].by_outcome, [("answered", 1), ("threw", 1)].into());
        assert_eq!(cut[1].figures.p99_us, Some(20));
    }

    #[test]
    fn what_waited_counts_for_its_minute() {
        let at = |second| DateTime::from_timestamp(second, 0).unwrap();
        let backlog = |second, waiting| Backlog {
            at: at(second),
            waiting,
            oldest_due_at: Some(at(30)),
        };
        // Steps of half a minute; what was seen before the time begins reaches into it.
        let looks = [backlog(45, 1), backlog(120, 5), backlog(179, 3)];
        let cut = steps(&[], &looks, at(60), at(210), 5);
        let seen: Vec<_> = cut
            .iter()
            .map(|step| (step.waiting, step.overdue_us / 1_000_000))
            .collect();
        assert_eq!(seen, [(1, 15), (1, 15), (5, 90), (5, 149), (3, 149)]);
    }
}
