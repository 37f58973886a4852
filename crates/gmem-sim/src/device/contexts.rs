//! The tables and the translation cache of one device, and the checks on how they change. Keeps the index of who reaches what memory in step.

use super::table::{Leaf, Table};
use super::tlb::{Cached, Tlb};
use crate::Rng;
use crate::changes::{Change, Changes};
use crate::index::{FrameIndex, Use};
use crate::ranges::RangeSet;
use gmem_hal::{ByteLen, Mapping, Mode, PageSize, PageSizes, PhysAddr, PmapId, PmapRequest, Prot, VirtAddr, VirtRange};
use std::collections::{BTreeMap, BTreeSet};

/// One context.
pub(super) struct Context {
    pub(super) request: PmapRequest,
    pub(super) table: Table,
    /// A revoke was made to fail: what the table holds is no longer the core's to say.
    pub(super) suspect: bool,
    /// It was stopped by force.
    pub(super) fenced: bool,
    /// Destroying it was made to fail: the core has no context of this number any more, the device still has one.
    pub(super) disowned: bool,
    /// Ranges a peer reserved.
    pub(super) reserved: RangeSet,
}

/// The contexts of one device.
pub(super) struct Contexts {
    pub(super) live: BTreeMap<PmapId, Context>,
    /// Contexts that ended with the death of the device.
    pub(super) gone: BTreeSet<PmapId>,
    pub(super) tlb: Tlb,
    pub(super) rng: Rng,
    pub(super) page_sizes: PageSizes,
    pub(super) changes: Changes,
}

fn page(va: u64, size: PageSize) -> VirtRange {
    VirtRange::from_len(VirtAddr::new(va), size.len()).expect("a page of a 48-bit table does not wrap")
}

impl Contexts {
    pub(super) fn context(&mut self, pmap: PmapId) -> &mut Context {
        self.live.get_mut(&pmap).unwrap_or_else(|| panic!("{pmap} is not a context of this device (any more)"))
    }

    /// Panics unless `range` is one that the core may name in a call about `pmap`.
    pub(super) fn assert_range(&mut self, call: &str, pmap: PmapId, range: VirtRange) {
        let most = self.context(pmap).request.range;
        assert!(most.contains_range(range), "{call} of {range} outside the range {most} of {pmap}");
        assert!(range.is_aligned(PageSize::Size4K), "{call} of {range}, which is not page aligned");
    }

    fn reach(&self, pmap: PmapId, va: u64, size: PageSize, prot: Prot, cached: bool) -> Use {
        let exclusive = self.live[&pmap].request.mode == Mode::CoherentExclusive;
        Use { pmap, va: VirtAddr::new(va), len: size.len(), prot, cached, exclusive }
    }

    fn changed(&self, pmap: PmapId, va: u64, size: PageSize) {
        self.changes.note(Change::Device(self.live[&pmap].request.space, page(va, size)));
    }

    fn put(&mut self, index: &mut FrameIndex, pmap: PmapId, va: u64, leaf: Leaf) {
        index.add(leaf.frame, self.reach(pmap, va, leaf.size, leaf.prot, false));
        self.context(pmap).table.put(va, leaf);
        self.changed(pmap, va, leaf.size);
    }

    fn take(&mut self, index: &mut FrameIndex, pmap: PmapId, va: u64) -> Leaf {
        let leaf = self.context(pmap).table.take(va);
        index.remove(leaf.frame, pmap, VirtAddr::new(va), false);
        self.changed(pmap, va, leaf.size);
        leaf
    }

    /// Makes no page of the table stick out of `range`: larger pages at its ends become 4 KiB ones.
    fn split_at_ends(&mut self, index: &mut FrameIndex, pmap: PmapId, range: VirtRange) {
        for va in [range.start().get(), range.end().get() - 1] {
            let Some((start, leaf)) = self.context(pmap).table.get(va) else { continue };
            if range.contains_range(page(start, leaf.size)) {
                continue;
            }
            self.take(index, pmap, start);
            for offset in (0..leaf.size.bytes()).step_by(PageSize::Size4K.bytes() as usize) {
                let frame = PhysAddr { addr: leaf.frame.addr + offset, ..leaf.frame };
                self.put(index, pmap, start + offset, Leaf { frame, size: PageSize::Size4K, ..leaf });
            }
        }
    }

    /// Writes table entries for a mapping, by entries of the largest size that the MMU has and that is not too large.
    pub(super) fn enter(&mut self, index: &mut FrameIndex, pmap: PmapId, mapping: &Mapping) {
        let Mapping { va, frame, len, prot } = *mapping;
        let sizes = PageSize::ALL.into_iter().rev();
        let size = sizes.clone().find(|s| s.bytes() <= len.get() && self.page_sizes.contains(*s));
        let size = size.unwrap_or_else(|| panic!("pmap_enter of {len} at {va}: this MMU has no pages so small"));
        self.assert_enterable(index, pmap, mapping);
        for (start, _) in self.context(pmap).table.leaves(mapping.range()) {
            self.take(index, pmap, start);
        }
        for offset in (0..len.get()).step_by(size.bytes() as usize) {
            let frame = PhysAddr { addr: frame.addr + offset, ..frame };
            self.put(index, pmap, va.get() + offset, Leaf { frame, size, prot, accessed: false });
        }
    }

    fn assert_enterable(&mut self, index: &FrameIndex, pmap: PmapId, mapping: &Mapping) {
        let Mapping { va, frame, len, prot } = *mapping;
        let range = mapping.range();
        let there = self.context(pmap).table.leaves(range);
        let there = there.into_iter().map(|(start, leaf)| (start, leaf.size, leaf.frame, leaf.prot, "a present entry"));
        let cached = self.tlb.overlapping(pmap, range);
        let cached =
            cached.into_iter().map(|(start, e)| (start, e.size, e.frame, Prot::empty(), "a cached translation not yet invalidated"));
        for (start, size, old, old_prot, what) in there.chain(cached) {
            // Both sides are reduced to the frame of address zero, which is equal exactly if they agree on every byte they share.
            let same = old.hnode == frame.hnode && old.addr.wrapping_sub(start) == frame.addr.wrapping_sub(va.get());
            assert!(same, "pmap_enter of {frame:?} at {range} of {pmap} over {what}: {old:?} at {start:#x} ({size})");
            assert!(prot.contains(old_prot), "pmap_enter at {range} of {pmap} as {prot:?} over {what} with more access, {old_prot:?}");
        }
        let exclusive = self.context(pmap).request.mode == Mode::CoherentExclusive;
        let other = |u: &Use| (u.pmap != pmap || !range.contains(u.va)) && (exclusive || u.exclusive);
        if let Some((at, by)) = index.find(frame, len, other) {
            panic!("pmap_enter of {frame:?} at {range} of {pmap}, but {by:?} reaches it as {at:?} and one of the two is exclusive");
        }
    }

    /// Removes the table entries of `range`; cached translations stay.
    pub(super) fn release(&mut self, index: &mut FrameIndex, pmap: PmapId, range: VirtRange) {
        self.split_at_ends(index, pmap, range);
        for (start, _) in self.context(pmap).table.leaves(range) {
            self.take(index, pmap, start);
        }
    }

    /// Changes the access of the table entries of `range`; cached translations stay.
    pub(super) fn protect(&mut self, index: &mut FrameIndex, pmap: PmapId, range: VirtRange, prot: Prot) {
        self.split_at_ends(index, pmap, range);
        for (start, leaf) in self.context(pmap).table.leaves(range) {
            self.take(index, pmap, start);
            self.put(index, pmap, start, Leaf { prot, ..leaf });
        }
    }

    /// Drops the cached translations that overlap `range`.
    pub(super) fn invalidate(&mut self, index: &mut FrameIndex, pmap: PmapId, range: VirtRange) {
        for (start, entry) in self.tlb.overlapping(pmap, range) {
            self.tlb.drop_entry(pmap, start);
            index.remove(entry.frame, pmap, VirtAddr::new(start), true);
        }
        self.tlb.forget_absent(pmap, range);
    }

    /// Caches the translation of the page that starts at `start`.
    pub(super) fn cache(&mut self, index: &mut FrameIndex, pmap: PmapId, start: u64, leaf: Leaf) {
        self.context(pmap).table.update(start, Leaf { accessed: true, ..leaf });
        let entry = Cached { frame: leaf.frame, size: leaf.size, prot: leaf.prot };
        if let Some((pmap, start, old)) = self.tlb.fill(pmap, start, entry, &mut self.rng) {
            index.remove(old.frame, pmap, VirtAddr::new(start), true);
        }
        index.add(leaf.frame, self.reach(pmap, start, leaf.size, leaf.prot, true));
    }

    /// Drops one cached translation.
    pub(super) fn uncache(&mut self, index: &mut FrameIndex, pmap: PmapId, start: u64) {
        if let Some(old) = self.tlb.drop_entry(pmap, start) {
            index.remove(old.frame, pmap, VirtAddr::new(start), true);
        }
    }

    /// A context reaches nothing any more: it was destroyed, stopped, or died.
    pub(super) fn forget(&mut self, index: &mut FrameIndex, pmap: PmapId) {
        self.tlb.forget_pmap(pmap);
        index.forget_pmap(pmap);
    }

    /// Reads and clears the accessed marks of `range`.
    pub(super) fn harvest(&mut self, pmap: PmapId, range: VirtRange) -> bool {
        let table = &mut self.context(pmap).table;
        let mut any = false;
        for (start, leaf) in table.leaves(range) {
            any |= leaf.accessed;
            table.update(start, Leaf { accessed: false, ..leaf });
        }
        any
    }

    /// What the table holds at `va`, caches aside: the memory and the access.
    pub(super) fn translation(&self, pmap: PmapId, va: VirtAddr) -> Option<(PhysAddr, Prot)> {
        let (start, leaf) = self.live.get(&pmap)?.table.get(va.get())?;
        Some((PhysAddr { addr: leaf.frame.addr + (va.get() - start), ..leaf.frame }, leaf.prot))
    }
}

/// Panics unless `frame` and `len` are one frame of one of the page sizes.
pub(super) fn assert_frame(call: &str, frame: PhysAddr, len: ByteLen) {
    assert!(PageSize::from_bytes(len.get()).is_some(), "{call} of {len}, which is no page size");
    assert!(frame.addr.is_multiple_of(len.get()), "{call} of {len} at {frame:?}, which is not aligned to it");
}
