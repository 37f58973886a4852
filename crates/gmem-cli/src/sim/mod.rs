//! `gmem sim`: the whole core on a simulated machine, interleaved and made to fail by seeds.

mod canary;
mod crew;
mod report;

use crate::args::{FaultsArg, SimArgs, WorldArg};
use crate::failure::Failure;
use crate::{output, progress};
use gmem_explore::campaign::shrink::shrink;
use gmem_explore::campaign::{Campaign, Coverage, Ended, Faults, test_of};
use gmem_explore::worlds::{self, Kind};
use report::{Defeat, Report};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Steps that the runs of a shrinking may take together: a minute or two.
const SHRINK_STEPS: u64 = 4_000_000;

impl From<FaultsArg> for Faults {
    fn from(faults: FaultsArg) -> Self {
        match faults {
            FaultsArg::None => Self::None,
            FaultsArg::Some => Self::Some,
            FaultsArg::All => Self::All,
        }
    }
}

impl WorldArg {
    /// What is in this world; each seed draws its own if there is none.
    fn kind(self) -> Option<Kind> {
        match self {
            Self::Drawn => None,
            Self::Standard => Some(worlds::CAMPAIGN),
            Self::Sizes => Some(worlds::SIZES),
            Self::Backed => Some(worlds::BACKED),
            Self::Mortal => Some(worlds::MORTAL),
        }
    }

    /// The campaign of a seed in this world.
    fn campaign(self, seed: u64) -> Campaign {
        self.kind().map_or_else(|| Campaign::drawn(seed), |kind| Campaign { kind, ..Campaign::new(seed) })
    }
}

/// What several runs came to.
#[derive(Default)]
struct Sum {
    runs: u64,
    steps: u64,
    acts: u64,
    spent: Duration,
    trace_hash: u64,
    coverage: Coverage,
}

impl Sum {
    fn add(&mut self, ended: &Ended, spent: Duration) {
        // One run's hash is its own; that of several depends on each and on their order.
        self.trace_hash =
            if self.runs == 0 { ended.trace_hash } else { (self.trace_hash.rotate_left(5) ^ ended.trace_hash).wrapping_mul(MIX) };
        self.runs += 1;
        self.steps += ended.steps;
        self.acts += ended.acts;
        self.spent += spent;
        self.coverage.add(&ended.coverage);
    }
}

/// An odd number without a pattern (2^64 divided by the golden ratio), so that a multiplication by it loses nothing and mixes well.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Runs the campaign, or looks for every canary.
pub(crate) fn sim(args: &SimArgs) -> Result<(), Failure> {
    let faults = args.faults.into();
    let seeds = args.seeds.clone().unwrap_or(args.seed..args.seed + 1);
    if args.canary {
        return canary::find(args, seeds.start, faults);
    }
    let (sum, failed) = run(&seeds, args, faults)?;
    let defeat = failed.map(|(campaign, ended)| tell(&campaign, ended));
    let report = Report::new(&seeds, args, &sum, defeat);
    if args.json {
        output::json(&report)?
    } else {
        output::line(&report.text())?
    }
    match &report.failure {
        None => Ok(()),
        Some(defeat) => Err(Failure::Printed(format!("seed {} failed: {}", defeat.seed, defeat.why.lines().next().unwrap_or_default()))),
    }
}

/// Runs every seed, as long as none fails.
fn run(seeds: &Range<u64>, args: &SimArgs, faults: Faults) -> Result<(Sum, Option<(Campaign, Ended)>), Failure> {
    let count = seeds.end - seeds.start;
    let phase = progress::phase("simulating", count.saturating_mul(args.steps));
    let mut sum = Sum::default();
    let mut failed = None;
    let campaign = |n: u64| Campaign { steps: args.steps, faults, ..args.world.campaign(seeds.start + n) };
    let one = |n: u64| {
        let started = Instant::now();
        let ended = campaign(n).run();
        (ended, started.elapsed())
    };
    crew::in_order(args.jobs, count, one, |n, (ended, spent)| {
        phase.advance(ended.steps.min(args.steps));
        sum.add(&ended, spent);
        if ended.failure.is_some() {
            failed = Some((campaign(n), ended));
        }
        failed.is_none()
    })?;
    Ok((sum, failed))
}

/// Makes a failure short, and a test of it.
fn tell(campaign: &Campaign, ended: Ended) -> Defeat {
    let steps = ended.steps;
    let phase = progress::phase("shrinking", 0);
    let short = shrink(campaign, ended.case, SHRINK_STEPS);
    drop(phase);
    // Without one that is shorter, what there is must do.
    let test = short.as_ref().map(|short| test_of(campaign, short));
    let acts = short.as_ref().map_or(0, |short| short.case.acts.iter().map(Vec::len).sum());
    let shown = short.map(|short| short.failure).or(ended.failure);
    let (why, controls, tail) = shown.map(|f| (f.why, f.controls, f.tail)).unwrap_or_default();
    let tail = tail.iter().map(ToString::to_string).collect();
    Defeat { seed: campaign.seed, step: steps, why, acts, controls, test, tail }
}
