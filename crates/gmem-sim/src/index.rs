//! Who can still reach a piece of memory: every table entry and every cached translation, by the memory it names.
//!
//! A real machine has no such index, which is why a frame used again before its shootdown is so hard to find there. Here it makes that a
//! panic at the moment of the mistake.

use gmem_hal::{ByteLen, PageSize, PhysAddr, PmapId, Prot, VirtAddr};
use std::collections::BTreeMap;
use std::fmt;

/// One way by which a device reaches memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) pmap: PmapId,
    pub(crate) va: VirtAddr,
    pub(crate) len: ByteLen,
    pub(crate) prot: Prot,
    /// A cached translation, not a table entry.
    pub(crate) cached: bool,
    /// The table tolerates no other mapping of its frames.
    pub(crate) exclusive: bool,
}

impl fmt::Debug for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.cached { "a cached translation" } else { "a table entry" };
        write!(f, "{how} of {:?} at {} ({}, {:?})", self.pmap, self.va, self.len, self.prot)
    }
}

/// The reverse index: from memory to the ways to reach it.
#[derive(Debug, Default)]
pub(crate) struct FrameIndex(BTreeMap<PhysAddr, Vec<Use>>);

impl FrameIndex {
    pub(crate) fn add(&mut self, frame: PhysAddr, by: Use) {
        self.0.entry(frame).or_default().push(by);
    }

    /// Forgets one way, which was added before.
    pub(crate) fn remove(&mut self, frame: PhysAddr, pmap: PmapId, va: VirtAddr, cached: bool) {
        let uses = self.0.get_mut(&frame).unwrap_or_else(|| panic!("{frame:?} is reached by nothing, not by {pmap} at {va}"));
        let at = uses.iter().position(|u| u.pmap == pmap && u.va == va && u.cached == cached);
        uses.swap_remove(at.unwrap_or_else(|| panic!("{frame:?} is not reached by {pmap} at {va}")));
        if uses.is_empty() {
            self.0.remove(&frame);
        }
    }

    /// Forgets every way by `pmap`.
    pub(crate) fn forget_pmap(&mut self, pmap: PmapId) {
        self.0.retain(|_, uses| {
            uses.retain(|u| u.pmap != pmap);
            !uses.is_empty()
        });
    }

    /// Whether a way by `pmap` is known.
    pub(crate) fn first_of(&self, pmap: PmapId) -> Option<(PhysAddr, Use)> {
        self.0.iter().find_map(|(frame, uses)| uses.iter().find(|u| u.pmap == pmap).map(|u| (*frame, *u)))
    }

    /// The first way, by table or cache, to reach a byte of the `len` bytes from `frame`, among those `which` accepts. Entries without any
    /// access are no way.
    pub(crate) fn find(&self, frame: PhysAddr, len: ByteLen, which: impl Fn(&Use) -> bool) -> Option<(PhysAddr, Use)> {
        let end = frame.addr + len.get();
        let hit = |(at, uses): (&PhysAddr, &Vec<Use>)| {
            let overlaps = |u: &Use| at.addr < end && frame.addr < at.addr + u.len.get() && !u.prot.is_empty();
            uses.iter().find(|u| overlaps(u) && which(u)).map(|u| (*at, *u))
        };
        // Every way is aligned to its size, so what reaches into the range from before it starts where a larger page would.
        let before = PageSize::ALL.iter().map(|size| frame.addr & !(size.bytes() - 1)).filter(|at| *at < frame.addr);
        let before = before.filter_map(|addr| self.0.get_key_value(&PhysAddr { addr, ..frame }));
        let inside = self.0.range(frame..PhysAddr { addr: end, ..frame });
        before.chain(inside).find_map(hit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gmem_hal::HnodeId;

    fn frame(addr: u64) -> PhysAddr {
        PhysAddr { hnode: HnodeId(1), addr }
    }

    fn by(va: u64, len: u64, prot: Prot) -> Use {
        Use { pmap: PmapId(1), va: VirtAddr::new(va), len: ByteLen(len), prot, cached: false, exclusive: true }
    }

    #[test]
    fn overlap_is_found_from_within_and_from_before() {
        let mut index = FrameIndex::default();
        index.add(frame(0x20_0000), by(0, 0x20_0000, Prot::RW));
        index.add(frame(0x1000), by(0x1000, 0x1000, Prot::READ));
        let found = |addr, len| index.find(frame(addr), ByteLen(len), |_| true).map(|(f, _)| f.addr);
        assert_eq!(found(0x3f_f000, 0x1000), Some(0x20_0000));
        assert_eq!(found(0, 0x1_0000), Some(0x1000));
        assert_eq!(found(0x2000, 0x1000), None);
        assert_eq!(index.find(frame(0x1000), ByteLen(0x1000), |u| u.prot.contains(Prot::WRITE)), None);
    }

    #[test]
    fn an_entry_without_access_reaches_nothing() {
        let mut index = FrameIndex::default();
        index.add(frame(0), by(0, 0x1000, Prot::empty()));
        assert_eq!(index.find(frame(0), ByteLen(0x1000), |_| true), None);
        index.remove(frame(0), PmapId(1), VirtAddr::new(0), false);
        assert!(index.first_of(PmapId(1)).is_none());
    }
}
