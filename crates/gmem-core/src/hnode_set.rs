//! A set of hnodes, as a bitmap: changing it needs no memory.

use crate::entry::MAX_HNODES;
use gmem_hal::HnodeId;

#[derive(Clone)]
pub(crate) struct HnodeSet([u64; MAX_HNODES / 64]);

impl HnodeSet {
    pub(crate) const fn new() -> Self {
        Self([0; MAX_HNODES / 64])
    }

    fn place(id: HnodeId) -> (usize, u64) {
        (usize::from(id.0) / 64, 1 << (id.0 % 64))
    }

    pub(crate) fn contains(&self, id: HnodeId) -> bool {
        let (word, bit) = Self::place(id);
        self.0[word] & bit != 0
    }

    pub(crate) fn insert(&mut self, id: HnodeId) {
        let (word, bit) = Self::place(id);
        self.0[word] |= bit;
    }

    pub(crate) fn remove(&mut self, id: HnodeId) {
        let (word, bit) = Self::place(id);
        self.0[word] &= !bit;
    }

    /// The lowest id of a device's memory that is not in the set.
    pub(crate) fn first_absent(&self) -> Option<HnodeId> {
        (1..MAX_HNODES as u16).map(HnodeId).find(|id| !self.contains(*id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_given_out_lowest_first_until_there_is_none() {
        let mut set = HnodeSet::new();
        for n in 1..MAX_HNODES as u16 {
            assert_eq!(set.first_absent(), Some(HnodeId(n)));
            set.insert(HnodeId(n));
        }
        assert_eq!(set.first_absent(), None);
        set.remove(HnodeId(640));
        assert!(!set.contains(HnodeId(640)) && set.contains(HnodeId(641)) && !set.contains(HnodeId::HOST));
        assert_eq!(set.first_absent(), Some(HnodeId(640)));
    }
}
