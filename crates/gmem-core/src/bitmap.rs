//! A bitmap whose first set bit is found in as many steps as it has levels: one level per factor of 64.

use crate::zeroed::zeroed;
use alloc::boxed::Box;
use alloc::vec::Vec;
use gmem_hal::OutOfMemory;

pub(crate) struct Bitmap {
    /// `levels[0]` holds the bits; a bit of `levels[n + 1]` says that a word of `levels[n]` is not zero.
    levels: Vec<Box<[u64]>>,
}

impl Bitmap {
    /// `bits` zero bits.
    pub(crate) fn new(bits: usize) -> Result<Self, OutOfMemory> {
        let mut levels = Vec::new();
        let mut words = bits.div_ceil(64).max(1);
        loop {
            levels.push(zeroed(words)?);
            if words == 1 {
                return Ok(Self { levels });
            }
            words = words.div_ceil(64);
        }
    }

    pub(crate) fn set(&mut self, bit: usize) {
        let mut at = bit;
        for level in &mut self.levels {
            level[at / 64] |= 1 << (at % 64);
            at /= 64;
        }
    }

    pub(crate) fn clear(&mut self, bit: usize) {
        let mut at = bit;
        for level in &mut self.levels {
            level[at / 64] &= !(1 << (at % 64));
            if level[at / 64] != 0 {
                return;
            }
            at /= 64;
        }
    }

    pub(crate) fn get(&self, bit: usize) -> bool {
        self.levels[0].get(bit / 64).is_some_and(|word| word & 1 << (bit % 64) != 0)
    }

    pub(crate) fn first(&self) -> Option<usize> {
        let mut at = 0;
        for level in self.levels.iter().rev() {
            let word = level[at];
            if word == 0 {
                return None;
            }
            at = at * 64 + word.trailing_zeros() as usize;
        }
        Some(at)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.levels.iter().map(|level| level.len() * 8).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_set_bit_at_every_size() {
        for bits in [1, 63, 64, 65, 4096, 4097, 300_000] {
            let mut map = Bitmap::new(bits).unwrap();
            assert_eq!(map.first(), None);
            for bit in [bits - 1, bits / 2, 0] {
                map.set(bit);
                assert!(map.get(bit));
                assert_eq!(map.first(), Some(bit));
            }
            map.clear(0);
            assert_eq!(map.first(), if bits == 1 { None } else { Some(bits / 2).filter(|b| *b > 0).or(Some(bits - 1)) });
        }
    }
}
