//! Load on a URL, and several URLs in turns: the machine drifts, so what counts is the median of
//! ratios within rounds.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use super::Scale;

/// What is called.
pub(super) struct Target {
    pub(super) name: &'static str,
    pub(super) url: String,
    /// How wrk makes its requests, where that is not one GET over and over: a script of its, and
    /// what that is told.
    script: Option<(PathBuf, Vec<String>)>,
}

impl Target {
    /// A GET of `url`.
    pub(super) fn new(name: &'static str, url: String) -> Self {
        Self {
            name,
            url,
            script: None,
        }
    }

    /// Requests as a script of wrk makes them.
    pub(super) fn scripted(mut self, script: PathBuf, words: &[&str]) -> Self {
        let words = words.iter().map(|&word| word.to_owned()).collect();
        self.script = Some((script, words));
        self
    }
}

/// What wrk saw.
pub(super) struct Load {
    pub(super) requests: f64,
    pub(super) rate: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

/// The middle one.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The value below which `part` of the sorted ones lie.
pub(super) fn at(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

/// Call a target for some seconds; one thread of wrk, for it shares the cores with the server.
pub(super) fn wrk(target: &Target, connections: u32, seconds: u32) -> Result<Load> {
    let mut wrk = Command::new("wrk");
    wrk.args(["--latency", "--timeout", "30s", "-t1"])
        .arg(format!("-c{connections}"))
        .arg(format!("-d{seconds}s"));
    match &target.script {
        None => wrk.arg(&target.url),
        Some((script, words)) => {
            let wrk = wrk.arg("-s").arg(script).arg(&target.url);
            wrk.arg("--").args(words)
        }
    };
    let output = wrk
        .output()
        .context("wrk is not installed; run `cargo xtask setup --bench`")?;
    let said = String::from_utf8(output.stdout)?;
    if said.contains("Non-2xx") || said.contains("Socket errors") {
        bail!("not every answer of {} was fine:\n{said}", target.url);
    }
    read(&said)
}

fn read(said: &str) -> Result<Load> {
    let after = |start: &str| -> Result<&str> {
        let found = said
            .lines()
            .find_map(|line| line.trim().strip_prefix(start));
        found
            .map(str::trim)
            .with_context(|| format!("no `{start}` in:\n{said}"))
    };
    let requests = said
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .and_then(|(count, _)| count.parse().ok())
        .with_context(|| format!("no number of requests in:\n{said}"))?;
    // `Latency  <average>  <deviation>  <maximum>  <within a deviation>`, before the distribution.
    let latency = after("Latency")?.split_whitespace().nth(2);
    Ok(Load {
        requests,
        rate: after("Requests/sec:")?.parse()?,
        p50_ms: milliseconds(after("50%")?)?,
        p99_ms: milliseconds(after("99%")?)?,
        max_ms: milliseconds(latency.context("no maximum")?)?,
    })
}

/// `614.00us`, `3.31ms`, `1.02s`.
fn milliseconds(text: &str) -> Result<f64> {
    for (unit, factor) in [("us", 0.001), ("ms", 1.0), ("s", 1_000.0)] {
        if let Some(number) = text
            .strip_suffix(unit)
            .and_then(|number| number.parse::<f64>().ok())
        {
            return Ok(number * factor);
        }
    }
    bail!("`{text}` is no time")
}

/// Do something so many times, many of them at once; ends with the first failure.
pub(super) fn for_each(count: u32, act: impl Fn(u32) -> Result<()> + Sync) -> Result<()> {
    const AT_ONCE: u32 = 32;
    let next = AtomicU32::new(0);
    let work = || -> Result<()> {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= count {
                return Ok(());
            }
            act(n).inspect_err(|_| next.store(count, Ordering::Relaxed))?;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        let mut ends = workers.into_iter().map(|worker| worker.join());
        ends.try_for_each(|end| end.expect("it does not panic"))
    })
}

/// Several targets, each called once in every round.
pub(super) struct Turns {
    targets: Vec<(&'static str, Vec<Load>)>,
}

impl Turns {
    /// Call the targets in turns.
    pub(super) fn run(targets: &[&Target], connections: u32, scale: &Scale) -> Result<Self> {
        let mut turns: Vec<(&'static str, Vec<Load>)> = Vec::new();
        for target in targets {
            wrk(target, connections, 1)?;
            turns.push((target.name, Vec::new()));
        }
        for _ in 0..scale.rounds {
            for (target, (_, loads)) in targets.iter().zip(&mut turns) {
                let load = wrk(target, connections, scale.seconds_of_a_turn)?;
                if load.requests == 0.0 {
                    bail!("{} answered nothing", target.name);
                }
                loads.push(load);
            }
        }
        Ok(Self { targets: turns })
    }

    fn loads(&self, name: &str) -> Option<&[Load]> {
        let found = self.targets.iter().find(|(known, _)| *known == name);
        found.map(|(_, loads)| loads.as_slice())
    }

    /// The median of a target's figure.
    pub(super) fn median(&self, name: &str, figure: impl Fn(&Load) -> f64) -> Option<f64> {
        let loads = self.loads(name)?;
        Some(median(loads.iter().map(figure).collect()))
    }

    /// The median over the rounds of one's figure ÷ another's; nothing where one was left out.
    pub(super) fn ratio(
        &self,
        one: &str,
        other: &str,
        figure: impl Fn(&Load) -> f64,
    ) -> Option<f64> {
        let pairs = self.loads(one)?.iter().zip(self.loads(other)?);
        Some(median(pairs.map(|(a, b)| figure(a) / figure(b)).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_read() {
        let load = read(
            "Running 1s test @ http://127.0.0.1:1/\n  1 threads and 2 connections\n\
             \x20 Thread Stats   Avg      Stdev     Max   +/- Stdev\n\
             \x20   Latency   198.04us  118.34us   3.05ms   97.52%\n\
             \x20   Req/Sec    10.14k   492.39    10.73k    81.82%\n\
             \x20 Latency Distribution\n     50%  185.00us\n     75%  208.00us\n     90%  240.00us\n\
             \x20    99%  0.50ms\n  11099 requests in 1.10s, 1.62MB read\nRequests/sec:  10089.56\n",
        )
        .unwrap();
        let figures = [load.requests, load.rate, load.p50_ms, load.p99_ms];
        assert_eq!(figures, [11_099.0, 10_089.56, 0.185, 0.5]);
        assert_eq!(load.max_ms, 3.05);
        assert!(read("unable to connect").is_err());
    }

    #[test]
    fn a_ratio_is_taken_within_rounds() {
        let load = |rate| Load {
            requests: 0.0,
            rate,
            p50_ms: 0.0,
            p99_ms: 0.0,
            max_ms: 0.0,
        };
        let loads = |rates: [f64; 3]| rates.map(load).into_iter().collect();
        // The machine is twice as fast in the second round.
        let turns = Turns {
            targets: vec![
                ("ours", loads([10.0, 20.0, 10.0])),
                ("theirs", loads([20.0, 40.0, 25.0])),
            ],
        };
        assert_eq!(turns.ratio("ours", "theirs", |load| load.rate), Some(0.5));
        assert_eq!(turns.median("theirs", |load| load.rate), Some(25.0));
        assert_eq!(turns.ratio("ours", "nobody", |load| load.rate), None);
    }
}
