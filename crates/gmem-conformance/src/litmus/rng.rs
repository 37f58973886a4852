//! Draws that a seed repeats.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A seeded generator.
pub(crate) struct Rng(ChaCha8Rng);

impl Rng {
    /// The generator number `stream` of `seed`, independent of the others.
    pub(crate) fn stream(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self(rng)
    }

    /// A number under `bound`, which is not zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64() % bound
    }

    /// True every other time.
    pub(crate) fn coin(&mut self) -> bool {
        self.below(2) == 1
    }

    /// One of `these`, of which there is one at least.
    pub(crate) fn one<T: Copy>(&mut self, these: &[T]) -> T {
        these[self.below(these.len() as u64) as usize]
    }

    /// Brings `these` into any order (Fisher and Yates).
    pub(crate) fn shuffle<T>(&mut self, these: &mut [T]) {
        for i in (1..these.len()).rev() {
            these.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}
