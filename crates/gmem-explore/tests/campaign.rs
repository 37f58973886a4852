//! Campaigns: all of the core at once, by the command `gmem sim` for as long as one likes, and here for as long as a test may take.

use gmem_explore::campaign::shrink::{schedule, shrink, turns};
use gmem_explore::campaign::{Act, Campaign, Case, Coverage, Faults, missing, test_of};
use gmem_explore::defects::Defect;
use gmem_explore::worlds;
use gmem_sim::Canary;
use gmem_sim::random::{Op, PageRun};

const SHORT: Campaign = Campaign { steps: 20_000, ..Campaign::new(1) };

/// A defect that is found in a thousand steps, in a campaign in which nothing else fails.
const TORN: Campaign = Campaign { faults: Faults::None, defect: Some(Defect::Device(Canary::TearsCopies)), ..SHORT };

#[test]
fn a_seed_replays_bit_for_bit_and_seeds_differ() {
    let run = |seed| {
        let ended = Campaign { seed, ..SHORT }.run();
        (ended.trace_hash, ended.steps, ended.coverage, ended.case)
    };
    assert!(run(1) == run(1), "the same seed did something else");
    assert_ne!(run(1).0, run(2).0);
}

#[test]
fn a_run_can_be_done_again_from_what_was_done() {
    let ended = SHORT.run();
    ended.expect_clean();
    let again = SHORT.replay(&ended.case);
    again.expect_clean();
    assert_eq!((again.trace_hash, again.steps), (ended.trace_hash, ended.steps));
}

#[test]
fn a_campaign_covers_every_row() {
    let mut all = Coverage::default();
    // Most rows are covered after a few seeds; a wake-up at the one right moment takes more.
    for seed in 0..200 {
        let ended = Campaign { steps: 40_000, ..Campaign::drawn(seed) }.run();
        ended.expect_clean();
        all.add(&ended.coverage);
        if [&all.transitions, &all.called, &all.failed, &all.pairs, &all.arrivals].iter().all(|rows| missing(rows).is_empty()) {
            return;
        }
    }
    let rows = [&all.transitions, &all.called, &all.failed, &all.pairs, &all.arrivals].map(|rows| missing(rows));
    panic!("never: {rows:?}");
}

#[test]
fn pages_of_every_size_and_backing_move() {
    let mut all = Coverage::default();
    for seed in 0..8 {
        for kind in [worlds::SIZES, worlds::BACKED] {
            let ended = Campaign { kind, seed, faults: Faults::None, steps: 40_000, ..SHORT }.run();
            ended.expect_clean();
            all.add(&ended.coverage);
        }
    }
    assert_eq!(missing(&all.arrivals), Vec::<&str>::new());
}

/// Where memory dies with its device, what was only there is refused until it is discarded or unmapped, and everything else is right.
#[test]
fn what_is_lost_with_a_device_is_never_there_again() {
    let mut losses = 0;
    for seed in 0..6 {
        let ended = Campaign { kind: worlds::MORTAL, seed, ..SHORT }.run();
        ended.expect_clean();
        losses += ended.losses;
    }
    assert_ne!(losses, 0, "no page was lost");
}

/// While memory stays short, the host's or a device's, every act ends; what it is refused for is an error that says so, and no byte is wrong.
#[test]
fn every_act_ends_while_memory_stays_short() {
    let mut shortages = 0;
    for seed in 0..4 {
        let ended = Campaign { faults: Faults::Some, steps: 40_000, ..Campaign::drawn(seed) }.run();
        ended.expect_clean();
        shortages += ended.case.acts.iter().flatten().filter(|act| matches!(act, Act::Short(..))).count();
    }
    assert!(shortages > 4, "memory was short {shortages} times");
}

/// That calls are made to fail excuses only acts whose calls were, or whose device is not what it was.
#[test]
fn with_failures_on_a_refusal_still_needs_a_reason() {
    for faults in [Faults::Some, Faults::All] {
        for seed in 0..4 {
            Campaign { faults, steps: 40_000, ..Campaign::drawn(seed) }.run().expect_clean();
        }
    }
}

#[test]
fn threads_of_control_alone_are_refused_nothing_without_a_reason() {
    for faults in [Faults::None, Faults::Some] {
        for seed in 0..6 {
            Campaign { steps: SHORT.steps, faults, ..Campaign::drawn(seed) }.run().expect_clean();
        }
    }
}

#[test]
fn every_defect_is_found() {
    for (name, defect, _) in Defect::ALL {
        let found =
            |seed: &u64| Campaign { seed: *seed, steps: 100_000, faults: Faults::None, defect: Some(*defect), ..Campaign::new(0) }.run();
        let found = (1..9).any(|seed| found(&seed).failure.is_some());
        assert!(found, "{name}: not found");
    }
}

/// What is checked after each step for the pages that changed is what a look at every page finds, at the same step.
#[test]
fn looking_at_what_changed_finds_what_looking_at_everything_does() {
    for (name, defect, _) in Defect::ALL {
        let run = |everything| {
            let ended = Campaign { steps: 2_000, faults: Faults::None, defect: Some(*defect), everything, ..Campaign::new(2) }.run();
            (ended.failure.map(|failure| failure.why), ended.steps)
        };
        assert_eq!(run(false), run(true), "{name}");
    }
    let run = |everything| Campaign { steps: 3_000, everything, ..Campaign::new(3) }.run().trace_hash;
    assert_eq!(run(false), run(true));
}

#[test]
fn a_failure_becomes_short() {
    let ended = TORN.run();
    let before: usize = ended.case.acts.iter().map(Vec::len).sum();
    let short = shrink(&TORN, ended.case, 400_000).expect("it fails again");
    let after: usize = short.case.acts.iter().map(Vec::len).sum();
    assert!(after <= 12 && after < before, "{before} acts became {after}: {:?}", short.case.acts);
    assert!(TORN.replay(&short.case).failure.is_some(), "the short one does not fail");
    assert!(Campaign { defect: None, ..TORN }.replay(&short.case).failure.is_none(), "without the defect nothing is wrong with it");
    let test = test_of(&TORN, &short);
    assert!(test.contains("#[test]") && test.contains("Campaign::new(1)") && test.contains("Act::Do(Op::"), "{test}");
}

#[test]
fn a_schedule_is_its_turns() {
    let steps = [0, 0, 3, 3, 3, 0];
    assert_eq!(turns(&steps), [(0, 2), (3, 3), (0, 1)]);
    assert_eq!(schedule(&turns(&steps)), steps);
}

/// A schedule that asks for what is not possible is followed as far as it is.
#[test]
fn any_schedule_can_be_followed() {
    let acts = vec![vec![Act::Do(Op::Discard(PageRun { space: 0, first: 0, count: 4 }))], vec![Act::Background]];
    for schedule in [vec![], vec![1; 1000], vec![9, 0, 200, 1, 0]] {
        Campaign::new(1).replay(&Case { acts: acts.clone(), schedule }).expect_clean();
    }
}
