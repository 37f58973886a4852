//! A small set of disjoint address ranges.

use gmem_hal::{HostError, VirtAddr, VirtRange};

/// Sorted, disjoint, merged ranges. For sets of tens of ranges: every operation walks the list.
#[derive(Debug, Default)]
pub(crate) struct RangeSet(Vec<VirtRange>);

impl RangeSet {
    /// Whether `va` is in the set.
    pub(crate) fn contains(&self, va: VirtAddr) -> bool {
        self.0.iter().any(|r| r.contains(va))
    }

    /// Adds or removes `range`. On `Err` the set is unchanged.
    pub(crate) fn set(&mut self, range: VirtRange, member: bool) -> Result<(), HostError> {
        let mut next: Vec<VirtRange> = Vec::new();
        next.try_reserve(self.0.len() + 2).map_err(|_| HostError::NoMemory)?;
        for r in &self.0 {
            next.extend(VirtRange::new(r.start(), r.end().min(range.start())));
            next.extend(VirtRange::new(r.start().max(range.end()), r.end()));
        }
        if member {
            next.push(range);
        }
        next.sort_unstable_by_key(|r| r.start());
        next.dedup_by(|b, a| {
            let touching = a.end() == b.start();
            if touching {
                *a = VirtRange::new(a.start(), b.end()).expect("two ranges in order");
            }
            touching
        });
        self.0 = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(a: u64, b: u64) -> VirtRange {
        VirtRange::new(VirtAddr::new(a), VirtAddr::new(b)).expect("not empty")
    }

    #[test]
    fn agrees_with_a_flat_model() {
        let (mut set, mut model, mut seed) = (RangeSet::default(), [false; 64], 7u64);
        for _ in 0..2000 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let a = (seed >> 33) % 63;
            let b = a + 1 + (seed >> 45) % (64 - a - 1).max(1);
            let member = seed >> 63 == 0;
            set.set(range(a, b), member).expect("memory");
            model[a as usize..b as usize].fill(member);
            for (i, m) in model.iter().enumerate() {
                assert_eq!(set.contains(VirtAddr::new(i as u64)), *m, "at {i} of {set:?}");
            }
            assert!(set.0.windows(2).all(|w| w[0].end() < w[1].start()), "{set:?} is not sorted and merged");
        }
    }
}
