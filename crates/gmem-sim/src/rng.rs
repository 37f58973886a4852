//! Randomness that a seed replays.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A seeded generator.
///
/// ChaCha, because its sequence is fixed by its specification: a seed noted in a regression test stays good when a crate is updated.
#[derive(Clone, Debug)]
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// The generator of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// The generator number `stream` of `seed`. Streams are independent, so that one more draw in one part does not change another part.
    pub fn stream(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self(rng)
    }

    /// Any number.
    pub fn draw(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number under `bound`, which is not zero. The bias of the remainder is of no consequence for the small bounds used here.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert_ne!(bound, 0, "there is no number below zero");
        self.draw() % bound
    }

    /// An index of a slice of length `len`, which is not zero.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True `per_mille` times out of a thousand.
    pub fn chance(&mut self, per_mille: u16) -> bool {
        self.below(1000) < u64::from(per_mille)
    }

    /// True every other time.
    pub fn coin(&mut self) -> bool {
        self.draw() & 1 == 1
    }

    /// The index of one of `weights`, drawn in proportion to its weight. Not all weights are zero.
    pub fn weighted(&mut self, weights: &[u32]) -> usize {
        let total = weights.iter().map(|w| u64::from(*w)).sum();
        let mut left = self.below(total);
        for (i, weight) in weights.iter().enumerate() {
            match left.checked_sub(u64::from(*weight)) {
                Some(rest) => left = rest,
                None => return i,
            }
        }
        unreachable!("the draw lies under the sum of the weights")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_sequence_and_streams_differ() {
        let sequence = |mut rng: Rng| (0..8).map(|_| rng.draw()).collect::<Vec<_>>();
        assert_eq!(sequence(Rng::new(7)), sequence(Rng::new(7)));
        assert_ne!(sequence(Rng::stream(7, 1)), sequence(Rng::stream(7, 2)));
    }

    #[test]
    fn weights_are_obeyed() {
        let mut rng = Rng::new(1);
        let mut hits = [0u32; 3];
        for _ in 0..3000 {
            hits[rng.weighted(&[1, 0, 2])] += 1;
        }
        assert_eq!(hits[1], 0);
        assert!(hits[2] > hits[0], "weight 2 was drawn {} times, weight 1 {} times", hits[2], hits[0]);
    }
}
