//! The page table of one context: a sorted array of entries.
//!
//! Its room is taken when it is made, because entering and releasing lie on the fault path, where nothing may be allocated.

use gmem::hal::{PageSize, PhysAddr, Prot, VirtAddr, VirtRange};

/// A mapped page, of any size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) page: VirtRange,
    pub(super) frame: PhysAddr,
    pub(super) prot: Prot,
    /// Set by the MMU when it fills the TLB from here.
    pub(super) accessed: bool,
}

/// The entries, by address, disjoint.
pub(super) struct Table {
    entries: Vec<Entry>,
}

impl Entry {
    /// What of it lies behind its first 4 KiB.
    pub(super) fn tail(&self) -> Option<Self> {
        let base = PageSize::Size4K.bytes();
        let page = VirtRange::new(VirtAddr::new(self.page.start().get() + base), self.page.end())?;
        (page.len().get() > 0).then_some(Self { page, frame: PhysAddr { addr: self.frame.addr + base, ..self.frame }, ..*self })
    }
}

impl Table {
    /// A table with room for `most` entries.
    pub(super) fn new(most: usize) -> Self {
        Self { entries: Vec::with_capacity(most) }
    }

    /// The entries that overlap `range`, as indices.
    fn overlapping(&self, range: VirtRange) -> std::ops::Range<usize> {
        let first = self.entries.partition_point(|e| e.page.end() <= range.start());
        let count = self.entries[first..].partition_point(|e| e.page.start() < range.end());
        first..first + count
    }

    /// The entry of the page that holds `va`.
    pub(super) fn at(&mut self, va: u64) -> Option<&mut Entry> {
        let next = self.entries.partition_point(|e| e.page.start().get() <= va);
        self.entries[..next].last_mut().filter(|e| va < e.page.end().get())
    }

    /// The entries in `range`.
    pub(super) fn inside(&mut self, range: VirtRange) -> &mut [Entry] {
        let found = self.overlapping(range);
        &mut self.entries[found]
    }

    /// Puts `entry` in the place of whatever it overlaps. `false` if there is no room.
    pub(super) fn put(&mut self, entry: Entry) -> bool {
        let found = self.overlapping(entry.page);
        if found.is_empty() {
            if self.entries.len() == self.entries.capacity() {
                return false;
            }
            self.entries.insert(found.start, entry);
        } else {
            self.entries[found.start] = entry;
            self.entries.drain(found.start + 1..found.end);
        }
        true
    }

    /// Removes what overlaps `range`.
    pub(super) fn remove(&mut self, range: VirtRange) {
        let found = self.overlapping(range);
        self.entries.drain(found);
    }

    /// Removes everything.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gmem::hal::{ByteLen, HnodeId};

    fn range(page: u64, pages: u64) -> VirtRange {
        VirtRange::from_len(VirtAddr::new(page << 12), ByteLen(pages << 12)).expect("a small range")
    }

    fn entry(page: u64, pages: u64) -> Entry {
        let frame = PhysAddr { hnode: HnodeId(1), addr: page << 12 };
        Entry { page: range(page, pages), frame, prot: Prot::RW, accessed: false }
    }

    #[test]
    fn entries_of_several_sizes_are_found_by_any_address_in_them_and_removed_by_any_range_over_them() {
        let mut table = Table::new(4);
        assert!(table.put(entry(16, 16)) && table.put(entry(1, 1)) && table.put(entry(40, 1)));
        assert_eq!(table.at(31 << 12 | 5).map(|e| e.page), Some(range(16, 16)));
        assert_eq!(table.at(32 << 12), None);
        assert_eq!(table.at(0), None);
        assert_eq!(table.inside(range(0, 17)).len(), 2);
        table.remove(range(2, 30));
        assert_eq!(table.at(16 << 12), None);
        assert_eq!(table.inside(range(0, 64)).len(), 2);
    }

    #[test]
    fn a_full_table_takes_nothing_new_but_replaces() {
        let mut table = Table::new(1);
        assert!(table.put(entry(3, 1)) && table.put(Entry { prot: Prot::READ, ..entry(3, 1) }));
        let room = table.entries.capacity();
        assert!((4..).take(room - 1).all(|page| table.put(entry(page, 1))));
        assert!(!table.put(entry(900, 1)));
        assert_eq!(table.at(3 << 12).map(|e| e.prot), Some(Prot::READ));
    }
}
