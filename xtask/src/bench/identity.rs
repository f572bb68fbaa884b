//! What it costs to know who calls.

use std::time::Instant;

use anyhow::Result;

use super::Bench;
use super::load::{median, wrk};
use super::report::Row;
use super::server::Server;

/// Fewer than are let in at once at one name, with that of the start.
const SIGN_INS: u32 = 7;

/// How long a sign-in takes, and what a token costs a call of the API.
pub(super) fn rows(bench: &Bench) -> Result<Vec<Row>> {
    let server = Server::start(bench, "identity", &[])?;
    let sign_ins = (0..SIGN_INS).map(|_| {
        let started = Instant::now();
        server.sign_in()?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    });
    let sign_in = median(sign_ins.collect::<Result<_>>()?);

    // Both answer a few fields from memory; only one asks whose the token is.
    let bearer = bench.root.join("tests/bench/bearer.lua");
    let with = server.target("with a token", "/api/v1/auth/me");
    let with = with.scripted(bearer, &[server.token()]);
    let without = server.target("for anybody", "/api/v1/auth/oidc");
    for target in [&with, &without] {
        wrk(target, 32, 1)?;
    }
    let mut costs = Vec::new();
    for _ in 0..bench.scale.rounds {
        let seconds = bench.scale.seconds_of_a_turn;
        let with = server.cost(&with, seconds)?;
        costs.push((with, server.cost(&without, seconds)?));
    }
    let (ratio, added_us) = overhead(&costs);
    Ok(vec![
        Row::new("sign-in with a password (argon2id)", sign_in, "ms").at_most(250.0),
        Row::new(
            "cost of a call of the API: with a token ÷ for anybody",
            ratio,
            "×",
        ),
        Row::new("  what the check of the token adds", added_us, "µs").at_most(200.0),
    ])
}

/// Of processor times with and without, in seconds, round by round: the ratio, and how many
/// microseconds are between them.
fn overhead(costs: &[(f64, f64)]) -> (f64, f64) {
    let of_rounds = |figure: fn(&(f64, f64)) -> f64| median(costs.iter().map(figure).collect());
    (
        of_rounds(|(with, without)| with / without),
        of_rounds(|(with, without)| (with - without) * 1e6),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overhead_is_taken_within_rounds() {
        // The machine is half as fast in the second round.
        let costs = [(60e-6, 40e-6), (120e-6, 80e-6), (61e-6, 40e-6)];
        let (ratio, added_us) = overhead(&costs);
        assert!((ratio - 1.5).abs() < 1e-9, "{ratio}");
        assert!((added_us - 21.0).abs() < 1e-9, "{added_us}");
    }
}
