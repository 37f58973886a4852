//! A map from page addresses to numbers whose memory is taken once: usable where nothing may be allocated.

/// Open addressing with linear probing; removing closes the gap, so there are no tombstones and lookups stay short for ever.
pub(crate) struct PageMap {
    /// Key and value; key 0 is free. A power of two of them, never more than half full.
    slots: Vec<[u64; 2]>,
    used: usize,
}

/// Multiplier of a multiplicative hash: 2^64 divided by the golden ratio, odd.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl PageMap {
    /// A map for up to `entries` pages. `None` if there is no memory.
    pub(crate) fn new(entries: usize) -> Option<Self> {
        let count = entries.max(8).checked_mul(2)?.checked_next_power_of_two()?;
        // Zeroed by the allocator, so what is never used never exists.
        Some(Self { slots: bytemuck::allocation::try_zeroed_vec(count).ok()?, used: 0 })
    }

    fn home(&self, key: u64) -> usize {
        (key.wrapping_mul(GOLDEN) >> (64 - self.slots.len().trailing_zeros())) as usize
    }

    /// Where `key` is, or the free slot where it would be.
    fn find(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = self.home(key);
        while self.slots[at][0] != 0 && self.slots[at][0] != key {
            at = (at + 1) & mask;
        }
        at
    }

    /// Keys are addresses of pages, which are even; zero means a free slot.
    fn key(va: u64) -> u64 {
        va | 1
    }

    /// How many pages it knows.
    #[cfg(all(any(test, feature = "fuzzing"), not(loom)))]
    pub(crate) fn len(&self) -> usize {
        self.used
    }

    /// The number of the page at `va`.
    pub(crate) fn get(&self, va: u64) -> Option<u64> {
        let slot = self.slots[self.find(Self::key(va))];
        (slot[0] != 0).then_some(slot[1])
    }

    /// Sets the number of the page at `va`. False if the map is full.
    pub(crate) fn insert(&mut self, va: u64, value: u64) -> bool {
        let key = Self::key(va);
        let at = self.find(key);
        if self.slots[at][0] == 0 {
            if self.used >= self.slots.len() / 2 {
                return false;
            }
            self.used += 1;
        }
        self.slots[at] = [key, value];
        true
    }

    /// Forgets the page at `va`, and returns its number.
    pub(crate) fn remove(&mut self, va: u64) -> Option<u64> {
        let mask = self.slots.len() - 1;
        let mut gap = self.find(Self::key(va));
        let [key, value] = self.slots[gap];
        if key == 0 {
            return None;
        }
        self.used -= 1;
        let mut at = gap;
        loop {
            at = (at + 1) & mask;
            let key = self.slots[at][0];
            if key == 0 {
                break;
            }
            // Moves into the gap unless its home lies behind the gap (cyclically).
            if (at.wrapping_sub(self.home(key)) & mask) >= (at.wrapping_sub(gap) & mask) {
                self.slots[gap] = self.slots[at];
                gap = at;
            }
        }
        self.slots[gap] = [0, 0];
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn agrees_with_a_plain_map_under_a_long_random_walk() {
        let (mut ours, mut model) = (PageMap::new(64).unwrap(), HashMap::new());
        let mut seed = 7u64;
        for step in 0..50_000u64 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let va = (seed >> 33) % 60 * 4096;
            match seed >> 62 {
                0 => assert_eq!(ours.remove(va), model.remove(&va), "step {step}"),
                1 => assert_eq!(ours.get(va), model.get(&va).copied(), "step {step}"),
                _ => {
                    assert!(ours.insert(va, step));
                    model.insert(va, step);
                }
            }
        }
    }

    #[test]
    fn is_full_at_some_point() {
        let mut map = PageMap::new(8).unwrap();
        assert!((0..16).map(|i| map.insert(i * 4096, i)).any(|ok| !ok));
        assert_eq!(map.get(3 * 4096), Some(3));
    }
}
