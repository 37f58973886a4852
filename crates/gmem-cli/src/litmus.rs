//! `gmem litmus`.

use crate::args::LitmusArgs;
use crate::failure::Failure;
use crate::{output, progress};
use clap::ValueEnum;
use gmem_conformance::litmus::{Campaign, Defect, TESTS, Trouble, run};
use std::time::Duration;

/// How long a round may take before the command says who waits for what and gives up.
const LIMIT: Duration = Duration::from_secs(30);
/// The same with a planted defect, where waiting for ever is one way of finding it.
const CANARY_LIMIT: Duration = Duration::from_secs(8);

/// The names of the tests, for the parser of the command line.
pub(crate) fn names() -> Vec<&'static str> {
    TESTS.iter().map(|test| test.name).collect()
}

/// Runs the tests, prints what was seen, and fails if any of it is forbidden.
pub(crate) fn litmus(args: &LitmusArgs) -> Result<(), Failure> {
    let chosen = |name: &str| args.test.is_empty() || args.test.iter().any(|wanted| wanted == name);
    let tests: Vec<_> = TESTS.iter().filter(|test| chosen(test.name)).collect();
    if args.list && args.json {
        let rows: Vec<_> = tests.iter().map(|test| serde_json::json!({ "name": test.name, "asks": test.asks })).collect();
        return output::json(&rows);
    }
    if args.list {
        let rows: Vec<_> = tests.iter().map(|test| format!("{:<12} {}", test.name, test.asks)).collect();
        return output::line(&rows.join("\n"));
    }
    let phase = progress::phase("litmus tests", u64::from(args.rounds) * tests.len() as u64);
    let limit = if args.canary.is_some() { CANARY_LIMIT } else { LIMIT };
    let campaign =
        Campaign { tests, rounds: args.rounds, devices: args.devices.map(usize::from), seed: args.seed, defect: args.canary, limit };
    let report = run(&campaign, &|| phase.advance(1)).map_err(|trouble| failed(trouble, &campaign))?;
    drop(phase);
    // Looked at last: a reader that left does not make a forbidden outcome allowed.
    let printed = if args.json { output::json(&report) } else { output::line(&report.text()) };
    if report.counts.forbidden == 0 {
        let missed = |defect| Failure::Printed(format!("the planted defect ({}) was not found: try more --rounds", name_of(defect)));
        return printed.and(args.canary.map_or(Ok(()), |defect| Err(missed(defect))));
    }
    let again = format!("--seed {} draws the same again", args.seed);
    let wrong = match args.canary {
        Some(defect) => format!(
            "the planted defect ({}) was found, as it must be: {} forbidden outcomes; {again}",
            name_of(defect),
            report.counts.forbidden
        ),
        None => format!("{} forbidden outcomes: coherence is broken; {again}", report.counts.forbidden),
    };
    Err(match printed {
        Ok(()) => Failure::Printed(wrong),
        Err(unwritten) => Failure::Failed(format!("{wrong}\n{unwritten}")),
    })
}

fn name_of(defect: Defect) -> String {
    defect.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
}

fn failed(trouble: Trouble, campaign: &Campaign) -> Failure {
    match trouble {
        Trouble::Gmem(what, error) => Failure::from(error).in_context(what),
        Trouble::Stuck(portrait) if campaign.defect.is_some() => {
            let found = "the planted defect was found, as it must be: participants wait for what was lost";
            Failure::Failed(format!("{found}\n{portrait}"))
        }
        other => Failure::Failed(other.to_string()),
    }
}
