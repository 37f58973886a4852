//! A small generator of pseudo-random numbers (splitmix64), so that a seed means the same run for ever.

/// The generator.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The sequence that belongs to `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not zero. The bias of the method is below `bound` / 2^64.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }

    /// A number in [-1, 1).
    pub(crate) fn symmetric(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Calls `swap` for the exchanges that bring `len` things into a random order (Fisher and Yates).
    pub(crate) fn shuffle(&mut self, len: usize, mut swap: impl FnMut(usize, usize)) {
        for i in (1..len).rev() {
            swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_in_their_ranges_and_repeat_with_the_seed() {
        let mut random = Random::new(1);
        for _ in 0..1000 {
            assert!(random.below(7) < 7);
            assert!((-1.0..1.0).contains(&random.symmetric()));
        }
        assert_eq!(Random::new(5).bits(), Random::new(5).bits());
        assert_ne!(Random::new(5).bits(), Random::new(6).bits());
    }

    #[test]
    fn a_shuffle_is_a_permutation() {
        let mut order: Vec<usize> = (0..100).collect();
        Random::new(3).shuffle(100, |a, b| order.swap(a, b));
        assert!(order.iter().enumerate().any(|(i, n)| i != *n));
        order.sort_unstable();
        assert!(order.iter().enumerate().all(|(i, n)| i == *n));
    }
}
