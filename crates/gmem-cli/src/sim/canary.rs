//! `gmem sim --canary`: every defect that is planted on purpose must be found.

use super::crew;
use crate::args::SimArgs;
use crate::failure::Failure;
use crate::{output, progress};
use gmem_explore::campaign::{Campaign, Faults};
use gmem_explore::defects::Defect;
use serde::Serialize;

/// So many seeds are tried for each.
const SEEDS: u64 = 8;

#[derive(Serialize)]
struct Canary {
    name: &'static str,
    /// The invariant that it breaks, by the numbers of ARCHITECTURE.md.
    invariant: u32,
    /// Whether the run failed, and the same without the defect did not.
    found: bool,
    /// Until it failed, over all seeds that were tried.
    steps: u64,
    why: Option<String>,
}

#[derive(Serialize)]
struct Canaries {
    canaries: Vec<Canary>,
    found: usize,
    of: usize,
}

/// Looks for each defect, beginning with this seed.
pub(super) fn find(args: &SimArgs, first: u64, faults: Faults) -> Result<(), Failure> {
    let phase = progress::phase("looking for canaries", Defect::ALL.len() as u64);
    let mut canaries = Vec::new();
    let one = |n: u64| {
        let (name, defect, invariant) = Defect::ALL[n as usize];
        let mut canary = Canary { name, invariant, found: false, steps: 0, why: None };
        for seed in first..first.saturating_add(SEEDS) {
            let campaign = |defect, steps| Campaign { steps, faults, defect, ..args.world.campaign(seed) }.run();
            let ended = campaign(Some(defect), args.steps);
            canary.steps += ended.steps;
            let Some(failure) = ended.failure else { continue };
            canary.why = failure.why.lines().next().map(str::to_owned);
            // What fails without the defect too has not shown that it would be noticed.
            canary.found = campaign(None, ended.steps).failure.is_none();
            break;
        }
        canary
    };
    crew::in_order(args.jobs, Defect::ALL.len() as u64, one, |_, canary| {
        phase.advance(1);
        canaries.push(canary);
        true
    })?;
    drop(phase);
    let found = canaries.iter().filter(|canary| canary.found).count();
    let missed: Vec<&str> = canaries.iter().filter(|canary| !canary.found).map(|canary| canary.name).collect();
    let missed = missed.join(", ");
    let all = Canaries { of: canaries.len(), found, canaries };
    if args.json {
        output::json(&all)?
    } else {
        output::line(&text(&all))?
    }
    if missed.is_empty() { Ok(()) } else { Err(Failure::Printed(format!("not found: {missed}; give it more --steps"))) }
}

fn text(all: &Canaries) -> String {
    const WORDS: usize = 90;
    let told = |why: &str| format!("{:<WORDS$}", why.chars().take(WORDS).collect::<String>());
    let titles = ["canary", "breaks invariant", "steps until found", &told("how it showed")].map(str::to_owned).to_vec();
    let row = |canary: &Canary| {
        let steps = match (canary.found, &canary.why) {
            (true, _) => canary.steps.to_string(),
            (false, None) => format!("not in {}", canary.steps),
            (false, Some(_)) => "fails without it too".to_owned(),
        };
        vec![canary.name.to_owned(), canary.invariant.to_string(), steps, told(canary.why.as_deref().unwrap_or_default())]
    };
    let table: Vec<Vec<String>> = std::iter::once(titles).chain(all.canaries.iter().map(row)).collect();
    let table: Vec<_> = output::columns(&table).lines().map(|line| line.trim_end().to_owned()).collect();
    format!("{}\n\n{} of {} canaries found", table.join("\n"), all.found, all.of)
}
