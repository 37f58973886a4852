//! Sets of byte addresses.

use gmem_hal::VirtRange;
use std::collections::BTreeMap;

/// A set of addresses, kept as disjoint ranges: start to end. Neighbours are joined.
#[derive(Clone, Debug, Default)]
pub(crate) struct RangeSet(BTreeMap<u64, u64>);

impl RangeSet {
    fn bounds(range: VirtRange) -> (u64, u64) {
        (range.start().get(), range.end().get())
    }

    /// Whether an address of `range` is in the set.
    pub(crate) fn overlaps(&self, range: VirtRange) -> bool {
        let (start, end) = Self::bounds(range);
        self.0.range(..end).next_back().is_some_and(|(_, e)| *e > start)
    }

    /// Whether every address of `range` is in the set.
    pub(crate) fn covers(&self, range: VirtRange) -> bool {
        let (start, end) = Self::bounds(range);
        self.0.range(..=start).next_back().is_some_and(|(_, e)| *e >= end)
    }

    /// Adds `range`, no address of which is in the set.
    pub(crate) fn insert(&mut self, range: VirtRange) {
        assert!(!self.overlaps(range), "{range} is in the set already");
        let (mut start, mut end) = Self::bounds(range);
        if let Some((&s, &e)) = self.0.range(..start).next_back()
            && e == start
        {
            start = s;
        }
        if let Some(e) = self.0.remove(&end) {
            end = e;
        }
        self.0.insert(start, end);
    }

    /// Removes `range`, every address of which is in the set.
    pub(crate) fn remove(&mut self, range: VirtRange) {
        assert!(self.covers(range), "{range} is not wholly in the set");
        let (start, end) = Self::bounds(range);
        let (&s, &e) = self.0.range(..=start).next_back().expect("a range that covers it was just found");
        self.0.remove(&s);
        if s < start {
            self.0.insert(s, start);
        }
        if end < e {
            self.0.insert(end, e);
        }
    }

    /// Whether the set is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gmem_hal::VirtAddr;

    fn range(start: u64, end: u64) -> VirtRange {
        VirtRange::new(VirtAddr::new(start), VirtAddr::new(end)).unwrap()
    }

    #[test]
    fn ranges_join_and_split() {
        let mut set = RangeSet::default();
        set.insert(range(10, 20));
        set.insert(range(30, 40));
        set.insert(range(20, 30));
        assert!(set.covers(range(10, 40)));
        set.remove(range(15, 35));
        assert!(set.covers(range(10, 15)) && set.covers(range(35, 40)) && !set.overlaps(range(15, 35)));
        set.remove(range(10, 15));
        set.remove(range(35, 40));
        assert!(set.is_empty());
    }
}
