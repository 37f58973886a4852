//! A page table of four levels, nine bits each over 4 KiB, as a device's memory would hold it.
//!
//! A 2 MiB page is a block entry of the second level. A 64 KiB page is sixteen entries of the last level that say they belong together, as
//! several real MMUs have it.

use gmem_hal::{PageSize, PhysAddr, Prot, VirtRange};

const BITS: u32 = 9;
const TOP: u32 = 3;

/// What one page maps to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Leaf {
    pub(super) frame: PhysAddr,
    pub(super) size: PageSize,
    /// Empty: the frame is remembered, but nothing may be accessed.
    pub(super) prot: Prot,
    pub(super) accessed: bool,
}

enum Slot {
    Empty,
    Table(Box<Node>),
    Leaf(Leaf),
}

struct Node {
    slots: Vec<Slot>,
    used: u16,
}

impl Node {
    fn new() -> Self {
        Self { slots: (0..1 << BITS).map(|_| Slot::Empty).collect(), used: 0 }
    }
}

/// The table of one context.
pub(super) struct Table(Node);

const fn shift(level: u32) -> u32 {
    12 + BITS * level
}

fn slot_of(va: u64, level: u32) -> usize {
    (va >> shift(level)) as usize & ((1 << BITS) - 1)
}

/// The level whose entries are pages of `size`, and how many entries one page takes.
const fn place(size: PageSize) -> (u32, usize) {
    match size {
        PageSize::Size4K => (0, 1),
        PageSize::Size64K => (0, 16),
        PageSize::Size2M => (1, 1),
    }
}

impl Table {
    pub(super) fn new() -> Self {
        Self(Node::new())
    }

    /// Walks to `va`: the start of the page there and its leaf, or where the hole around `va` ends.
    fn walk(&self, va: u64) -> Result<(u64, Leaf), u64> {
        assert!(va >> shift(TOP + 1) == 0, "{va:#x} lies outside the 48 bits of this MMU");
        let (mut node, mut level) = (&self.0, TOP);
        loop {
            match &node.slots[slot_of(va, level)] {
                Slot::Empty => return Err((va | ((1 << shift(level)) - 1)) + 1),
                Slot::Leaf(leaf) => return Ok((va & !(leaf.size.bytes() - 1), *leaf)),
                Slot::Table(next) => (node, level) = (next, level - 1),
            }
        }
    }

    /// The page at `va`: its start and its leaf.
    pub(super) fn get(&self, va: u64) -> Option<(u64, Leaf)> {
        self.walk(va).ok()
    }

    /// Every page that overlaps `range`, in order.
    pub(super) fn leaves(&self, range: VirtRange) -> Vec<(u64, Leaf)> {
        let mut found = Vec::new();
        let mut va = range.start().get();
        while va < range.end().get() {
            va = match self.walk(va) {
                Ok((start, leaf)) => {
                    found.push((start, leaf));
                    start + leaf.size.bytes()
                }
                Err(hole_end) => hole_end,
            };
        }
        found
    }

    /// Writes the entries of an absent page.
    pub(super) fn put(&mut self, va: u64, leaf: Leaf) {
        let (to, count) = place(leaf.size);
        let (mut node, mut level) = (&mut self.0, TOP);
        while level > to {
            let slot = &mut node.slots[slot_of(va, level)];
            if matches!(slot, Slot::Empty) {
                *slot = Slot::Table(Box::new(Node::new()));
                node.used += 1;
            }
            let Slot::Table(next) = slot else { panic!("a block entry covers {va:#x} already") };
            (node, level) = (next, level - 1);
        }
        let first = slot_of(va, to);
        for slot in &mut node.slots[first..first + count] {
            // Without this, a table of absent pages would be in the way of a block entry: `take` frees empty tables.
            assert!(matches!(slot, Slot::Empty), "an entry is present in the page of {va:#x} already");
            *slot = Slot::Leaf(leaf);
        }
        node.used += count as u16;
    }

    /// Removes the entries of the page that starts at `va`, and the tables that are empty then.
    pub(super) fn take(&mut self, va: u64) -> Leaf {
        let (start, leaf) = self.get(va).unwrap_or_else(|| panic!("no page is present at {va:#x}"));
        assert_eq!(start, va, "the page at {va:#x} starts at {start:#x}");
        let (to, count) = place(leaf.size);
        take_from(&mut self.0, va, TOP, to, count);
        leaf
    }

    /// Changes the leaf of the page that starts at `va`.
    pub(super) fn update(&mut self, va: u64, leaf: Leaf) {
        self.take(va);
        self.put(va, leaf);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.used == 0
    }
}

fn take_from(node: &mut Node, va: u64, level: u32, to: u32, count: usize) {
    let first = slot_of(va, level);
    if level == to {
        node.slots[first..first + count].fill_with(|| Slot::Empty);
        node.used -= count as u16;
        return;
    }
    let Slot::Table(next) = &mut node.slots[first] else { panic!("the walk to {va:#x} passed here before") };
    take_from(next, va, level - 1, to, count);
    if next.used == 0 {
        node.slots[first] = Slot::Empty;
        node.used -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gmem_hal::{ByteLen, HnodeId, VirtAddr};

    fn leaf(addr: u64, size: PageSize) -> Leaf {
        Leaf { frame: PhysAddr { hnode: HnodeId(1), addr }, size, prot: Prot::RW, accessed: false }
    }

    #[test]
    fn pages_of_every_size_are_found_and_removed() {
        let mut table = Table::new();
        table.put(0x20_0000, leaf(0x40_0000, PageSize::Size2M));
        table.put(0x1_0000, leaf(0x3_0000, PageSize::Size64K));
        table.put(0xffff_ffff_f000, leaf(0x1000, PageSize::Size4K));
        assert_eq!(table.get(0x3f_ffff).unwrap().0, 0x20_0000);
        assert_eq!(table.get(0x1_f123).unwrap().0, 0x1_0000);
        assert!(table.get(0x2_0000).is_none());
        let all = VirtRange::from_len(VirtAddr::new(0), ByteLen(1 << 48)).unwrap();
        assert_eq!(table.leaves(all).iter().map(|(va, _)| *va).collect::<Vec<_>>(), [0x1_0000, 0x20_0000, 0xffff_ffff_f000]);
        for (va, _) in table.leaves(all) {
            table.take(va);
        }
        assert!(table.is_empty());
    }

    #[test]
    fn empty_tables_make_room_for_blocks() {
        let mut table = Table::new();
        table.put(0x1000, leaf(0x1000, PageSize::Size4K));
        table.take(0x1000);
        table.put(0, leaf(0x20_0000, PageSize::Size2M));
        assert_eq!(table.get(0x1000).unwrap().1.size, PageSize::Size2M);
    }
}
