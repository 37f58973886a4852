//! The core in worlds of every kind, with everything that can happen to them.

use gmem_explore::worlds::{ALL, Kind, MIXED, REPLICAS, STANDARD};
use gmem_explore::{Hunt, seeds};
use gmem_sim::random::{Generator, Tolerance, Weights, explore};
use gmem_sim::{Canary, Sim};
use std::panic::catch_unwind;

/// What the project promises: at least this many operations in the standard world, the invariants verified after each.
const STEPS: usize = 10_000;

#[test]
fn ten_thousand_operations_in_the_standard_world() {
    let shape = STANDARD.shape();
    let (pages, frames) = (shape.spaces.iter().map(|s| s.pages).sum::<u64>(), shape.frames * shape.devices.len() as u64);
    assert!(shape.spaces.len() >= 3 && shape.devices.len() >= 4 && pages >= 256 && pages >= 2 * frames, "the standard world shrank");
    Hunt { weights: Weights::everything(), steps: STEPS, ..Hunt::default() }.run(seeds(1));
}

/// Fewer where pages are so large that looking at their bytes takes long.
fn steps(kind: &Kind) -> usize {
    (STEPS as u64 / 4 * 4096 / kind.page_size.bytes()).clamp(300, 2000) as usize
}

#[test]
fn every_kind_of_world() {
    for kind in ALL {
        let hunt = Hunt { kind: *kind, weights: Weights::everything(), steps: steps(kind), ..Hunt::default() };
        hunt.run(seeds(if kind.page_size.bytes() > 65536 { 1 } else { 4 }));
    }
}

#[test]
fn replicas_move_no_byte_whatever_happens() {
    let calm = Weights { lose: 0, ..Weights::everything() };
    for seed in seeds(3) {
        let mut world = REPLICAS.make(&Sim::new(seed));
        let result = explore(&mut world, &REPLICAS.shape(), &mut Generator::new(seed, calm), 2000, Tolerance::default(), &mut Vec::new());
        result.unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
        let stats = world.core.stats();
        let moved = stats.h2d_fault_bytes + stats.h2d_prefetch_bytes + stats.d2h_fault_bytes + stats.d2h_evict_bytes;
        assert_eq!(moved + stats.d2h_other_bytes + stats.d2d_bytes + stats.zeroed_bytes, 0, "seed {seed}: bytes moved: {stats:#?}");
        assert_eq!(stats.evictions, 0);
        world.tear_down();
    }
}

#[test]
fn canaries_are_noticed_in_all_modes() {
    for canary in [Canary::KeepsTranslations, Canary::TearsCopies, Canary::ForgetsMappings] {
        let run = catch_unwind(|| {
            let mut world = MIXED.make_with(&Sim::new(1), Some(canary));
            let mut generator = Generator::new(1, Weights::everything());
            explore(&mut world, &MIXED.shape(), &mut generator, 2000, Tolerance::default(), &mut Vec::new()).map_err(|f| f.why)
        });
        assert!(!matches!(run, Ok(Ok(_))), "{canary:?} was not noticed");
    }
}
