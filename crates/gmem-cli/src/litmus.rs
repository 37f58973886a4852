//! `gmem litmus`.

use crate::args::LitmusArgs;
use crate::failure::Failure;
use crate::{output, progress};
use gmem_conformance::litmus::{Campaign, TESTS, Trouble, run};
use std::time::Duration;

/// How long a round may take before the command says who waits for what and gives up.
const LIMIT: Duration = Duration::from_secs(30);

/// The names of the tests, for the parser of the command line.
pub(crate) fn names() -> Vec<&'static str> {
    TESTS.iter().map(|test| test.name).collect()
}

/// Runs the tests, prints what was seen, and fails if any of it is forbidden.
pub(crate) fn litmus(args: &LitmusArgs) -> Result<(), Failure> {
    let chosen = |name: &str| args.test.is_empty() || args.test.iter().any(|wanted| wanted == name);
    let tests: Vec<_> = TESTS.iter().filter(|test| chosen(test.name)).collect();
    if args.list {
        let rows: Vec<_> = tests.iter().map(|test| format!("{:<12} {}", test.name, test.asks)).collect();
        return output::line(&rows.join("\n"));
    }
    let phase = progress::phase("litmus tests", u64::from(args.rounds) * tests.len() as u64);
    let campaign =
        Campaign { tests, rounds: args.rounds, devices: args.devices.map(usize::from), seed: args.seed, defect: args.canary, limit: LIMIT };
    let report = run(&campaign, &|| phase.advance(1)).map_err(failed)?;
    drop(phase);
    // Looked at last: a reader that left does not make a forbidden outcome allowed.
    let printed = if args.json { output::json(&report) } else { output::line(&report.text()) };
    if report.counts.forbidden == 0 {
        return printed;
    }
    let wrong = format!("{} forbidden outcomes: coherence is broken; --seed {} draws the same again", report.counts.forbidden, args.seed);
    Err(match printed {
        Ok(()) => Failure::Printed(wrong),
        Err(unwritten) => Failure::Failed(format!("{wrong}\n{unwritten}")),
    })
}

fn failed(trouble: Trouble) -> Failure {
    match trouble {
        Trouble::Gmem(what, error) => Failure::from(error).in_context(what),
        other => Failure::Failed(other.to_string()),
    }
}
