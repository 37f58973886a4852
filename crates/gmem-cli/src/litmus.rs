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

/// Runs the tests, prints what was seen, and fails if any of it is forbidden; of a planted defect, if none is.
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
    let report = run(&campaign, &|| phase.advance(1));
    drop(phase);
    let report = match (report, args.canary) {
        (Ok(report), _) => report,
        // What is lost keeps somebody waiting for ever.
        (Err(Trouble::Stuck(portrait)), Some(defect)) => return stuck(defect, &portrait, args),
        (Err(trouble), _) => return Err(failed(trouble)),
    };
    // Looked at last: a reader that left does not make a forbidden outcome allowed.
    let printed = if args.json { output::json(&report) } else { output::line(&report.text()) };
    let forbidden = report.counts.forbidden;
    match (args.canary.map(name_of), forbidden) {
        (None, 0) => printed,
        (None, _) => {
            let wrong = format!("{forbidden} forbidden outcomes: coherence is broken; --seed {} draws the same again", args.seed);
            Err(match printed {
                Ok(()) => Failure::Printed(wrong),
                Err(unwritten) => Failure::Failed(format!("{wrong}\n{unwritten}")),
            })
        }
        (Some(defect), 0) => printed.and(Err(Failure::Printed(format!("the planted defect ({defect}) was not found: try more --rounds")))),
        (Some(defect), _) => {
            eprintln!("gmem: the planted defect ({defect}) was found, as it must be: {forbidden} forbidden outcomes");
            printed
        }
    }
}

/// A planted defect was found because participants wait for what it lost.
fn stuck(defect: Defect, portrait: &str, args: &LitmusArgs) -> Result<(), Failure> {
    let found = format!("the planted defect ({}) was found, as it must be: participants wait for what was lost", name_of(defect));
    if args.json {
        output::json(&serde_json::json!({ "found": found, "waiting": portrait }))
    } else {
        output::line(&format!("{found}\n{portrait}"))
    }
}

fn name_of(defect: Defect) -> String {
    defect.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
}

fn failed(trouble: Trouble) -> Failure {
    match trouble {
        Trouble::Gmem(what, error) => Failure::from(error).in_context(what),
        other => Failure::Failed(other.to_string()),
    }
}
