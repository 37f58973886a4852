//! The core against random operations, one thread of control, every callback working.

use gmem_explore::{CoreWorld, Hunt, seeds};
use gmem_sim::Canary;
use gmem_sim::random::{Generator, Shape, Tolerance, Weights, explore};
use std::panic::catch_unwind;

#[test]
fn memory_contains_what_was_written() {
    Hunt::default().run(seeds(10));
}

#[test]
fn a_seed_replays_everything() {
    let run = |seed| {
        let mut world = CoreWorld::standard(seed);
        let mut generator = Generator::new(seed, Weights::default());
        explore(&mut world, &Shape::standard(), &mut generator, 500, Tolerance::default(), &mut Vec::new()).expect("these seeds are fine");
        (world.sim.trace_hash(), world.sim.trace_events())
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).0, run(2).0);
}

#[test]
fn random_operations_reach_every_callback() {
    let mut world = CoreWorld::standard(3);
    let mut generator = Generator::new(3, Weights::default());
    explore(&mut world, &Shape::standard(), &mut generator, 4000, Tolerance::default(), &mut Vec::new()).expect("this seed is fine");
    let sim = world.sim.clone();
    let (evicted, _) = world.members[3].device().peer_evictions();
    assert_ne!(evicted, 0, "the peer never made room");
    world.tear_down();
    assert_eq!(sim.never_called(), [gmem_sim::Callback::Fence], "only a failure makes the core fence a context");
}

#[test]
fn canaries_are_noticed() {
    for canary in [Canary::KeepsTranslations, Canary::TearsCopies, Canary::ForgetsMappings] {
        let run = catch_unwind(|| {
            let mut world = CoreWorld::with_canary(1, Some(canary));
            let mut generator = Generator::new(1, Weights::default());
            explore(&mut world, &Shape::standard(), &mut generator, 2000, Tolerance::default(), &mut Vec::new()).map_err(|f| f.why)
        });
        assert!(!matches!(run, Ok(Ok(_))), "{canary:?} was not noticed");
    }
}
