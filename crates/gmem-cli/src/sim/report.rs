//! What a campaign came to, for a person and as JSON.

use super::Sum;
use crate::args::SimArgs;
use clap::ValueEnum as _;
use gmem_explore::campaign::{ROLES, missing};
use gmem_explore::worlds::CAMPAIGN;
use serde::Serialize;
use std::fmt::Write as _;
use std::ops::Range;

/// How many of the last events are shown to a person.
const TAIL: usize = 40;

/// How many rows that were not covered are named to a person.
const NAMED: usize = 8;

/// Rows of a table that were covered.
#[derive(Serialize)]
pub(crate) struct Covered {
    covered: usize,
    of: usize,
    missing: Vec<String>,
}

impl Covered {
    fn of(rows: &[(String, u64)]) -> Self {
        let missing: Vec<String> = missing(rows).into_iter().map(str::to_owned).collect();
        Self { covered: rows.len() - missing.len(), of: rows.len(), missing }
    }

    /// For a person, who is told some of what is missing.
    fn text(&self) -> String {
        let Self { covered, of, missing } = self;
        let named = &missing[..missing.len().min(NAMED)];
        let what = if named.is_empty() { String::new() } else { format!("; not {}", named.join(", ")) };
        let more = missing.len() - named.len();
        let more = if more == 0 { String::new() } else { format!(" and {more} more (--json names them)") };
        format!("{covered} of {of}{what}{more}")
    }
}

/// A seed that failed.
#[derive(Serialize)]
pub(crate) struct Defeat {
    pub(crate) seed: u64,
    /// At which step it failed before it was made short.
    pub(crate) step: u64,
    pub(crate) why: String,
    /// How many acts are left.
    pub(crate) acts: usize,
    pub(crate) controls: String,
    pub(crate) test: Option<String>,
    pub(crate) tail: Vec<String>,
}

/// The names of the fields are the interface of `--json`.
#[derive(Serialize)]
pub(crate) struct Report {
    /// As `--world` names it. What follows of a world that each seed draws is that of the standard one.
    world: String,
    first_seed: u64,
    seeds: u64,
    steps_per_seed: u64,
    faults: String,
    threads_of_control: usize,
    address_spaces: usize,
    devices: usize,
    pages: u64,
    frames: u64,
    steps: u64,
    acts: u64,
    /// Of one core.
    steps_per_second: u64,
    trace_hash: String,
    transitions: Covered,
    callbacks_called: Covered,
    callbacks_failed: Covered,
    pairs: Covered,
    pages_moved: Covered,
    pub(crate) failure: Option<Defeat>,
}

impl Report {
    pub(super) fn new(seeds: &Range<u64>, args: &SimArgs, sum: &Sum, failure: Option<Defeat>) -> Self {
        let kind = args.world.kind().unwrap_or(CAMPAIGN);
        let shape = kind.shape();
        let seconds = sum.spent.as_secs_f64();
        Self {
            world: args.world.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned()),
            first_seed: seeds.start,
            seeds: sum.runs,
            steps_per_seed: args.steps,
            faults: format!("{:?}", args.faults).to_lowercase(),
            threads_of_control: ROLES.len(),
            address_spaces: shape.spaces.len(),
            devices: shape.devices.len(),
            pages: shape.spaces.iter().map(|space| space.pages).sum(),
            frames: kind.frames * kind.exclusive_devices() as u64,
            steps: sum.steps,
            acts: sum.acts,
            steps_per_second: if seconds > 0.0 { (sum.steps as f64 / seconds) as u64 } else { 0 },
            trace_hash: format!("{:016x}", sum.trace_hash),
            transitions: Covered::of(&sum.coverage.transitions),
            callbacks_called: Covered::of(&sum.coverage.called),
            callbacks_failed: Covered::of(&sum.coverage.failed),
            pairs: Covered::of(&sum.coverage.pairs),
            pages_moved: Covered::of(&sum.coverage.arrivals),
            failure,
        }
    }

    /// For a person.
    pub(crate) fn text(&self) -> String {
        let Self { world, threads_of_control, address_spaces, devices, pages, frames, .. } = self;
        let world = format!(
            "{world}: {threads_of_control} threads of control, {address_spaces} address spaces, {devices} devices, {pages} pages, {frames} frames"
        );
        let seeds = match self.seeds {
            1 => format!("seed {}", self.first_seed),
            n => format!("{n} seeds from {}", self.first_seed),
        };
        let mut rows = vec![
            ("world", world),
            ("run", format!("{seeds}, at least {} steps each, faults {}", self.steps_per_seed, self.faults)),
            ("steps", format!("{} ({} a second on one core), {} operations", self.steps, self.steps_per_second, self.acts)),
        ];
        for (name, covered) in [
            ("transitions taken", &self.transitions),
            ("callbacks called", &self.callbacks_called),
            ("callbacks failed, by error", &self.callbacks_failed),
            ("pairs overlapped", &self.pairs),
            ("pages moved, by size", &self.pages_moved),
        ] {
            rows.push((name, covered.text()));
        }
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut text: String = rows.iter().map(|(name, value)| format!("{name:<width$}  {value}\n")).collect();
        let _ = write!(text, "trace hash: {}", self.trace_hash);
        if let Some(defeat) = &self.failure {
            let _ = write!(text, "\n\n{}", told(defeat));
        }
        text
    }
}

fn told(defeat: &Defeat) -> String {
    let Defeat { seed, step, why, acts, controls, test, tail } = defeat;
    let last = tail[tail.len().saturating_sub(TAIL)..].join("\n  ");
    let mut text = format!("seed {seed} failed at step {step}; in {acts} operations: {why}\n{controls}\nthe last events:\n  {last}");
    match test {
        Some(test) => {
            let _ = write!(text, "\n\nas a test, for crates/gmem-explore/tests/regressions.rs:\n\n{test}");
        }
        None => text.push_str("\n\nit did not fail again when it was repeated: the simulation itself is at fault"),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::Covered;

    #[test]
    fn rows_that_never_happened_are_named() {
        let covered = Covered::of(&[("a".to_owned(), 3), ("b".to_owned(), 0)]);
        assert_eq!(covered.text(), "1 of 2; not b");
        assert_eq!((covered.covered, covered.of, covered.missing), (1, 2, vec!["b".to_owned()]));
    }

    #[test]
    fn a_person_is_not_told_all_of_many() {
        let covered = |rows: u64| Covered::of(&(0..rows).map(|n| (n.to_string(), 0)).collect::<Vec<_>>()).text();
        assert_eq!(covered(8), "0 of 8; not 0, 1, 2, 3, 4, 5, 6, 7");
        assert_eq!(covered(11), "0 of 11; not 0, 1, 2, 3, 4, 5, 6, 7 and 3 more (--json names them)");
    }
}
