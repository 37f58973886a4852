//! A translation cache that forgets nothing by itself, except for room.
//!
//! Real TLBs forget often enough to hide a missing invalidation for days. This one keeps what it has until an invalidation covers it.

use crate::Rng;
use gmem_hal::{PageSize, PhysAddr, PmapId, Prot, VirtRange};
use std::collections::{BTreeMap, BTreeSet};

/// A cached translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cached {
    pub(super) frame: PhysAddr,
    pub(super) size: PageSize,
    pub(super) prot: Prot,
}

/// The cache of one device, tagged by context, so that a switch of context leaves it alone.
pub(super) struct Tlb {
    entries: BTreeMap<(PmapId, u64), Cached>,
    /// Pages cached as absent: each answers one more fault after the page came.
    absent: BTreeSet<(PmapId, u64)>,
    capacity: usize,
    caches_absent: bool,
}

impl Tlb {
    pub(super) fn new(capacity: usize, caches_absent: bool) -> Self {
        assert_ne!(capacity, 0, "a TLB without room cannot be stale");
        Self { entries: BTreeMap::new(), absent: BTreeSet::new(), capacity, caches_absent }
    }

    /// The entry that covers `va`, and where its page starts.
    pub(super) fn get(&self, pmap: PmapId, va: u64) -> Option<(u64, Cached)> {
        PageSize::ALL.into_iter().find_map(|size| {
            let start = va & !(size.bytes() - 1);
            self.entries.get(&(pmap, start)).filter(|e| e.size == size).map(|e| (start, *e))
        })
    }

    /// Adds an entry, and removes one that the seed chooses if there is no room: that one is returned.
    pub(super) fn fill(&mut self, pmap: PmapId, start: u64, entry: Cached, rng: &mut Rng) -> Option<(PmapId, u64, Cached)> {
        let mut victim = None;
        if self.entries.len() == self.capacity {
            let at = *self.entries.keys().nth(rng.index(self.capacity)).expect("the cache is full");
            victim = self.entries.remove(&at).map(|e| (at.0, at.1, e));
        }
        self.entries.insert((pmap, start), entry);
        victim
    }

    /// Removes the entry of the page that starts at `start`.
    pub(super) fn drop_entry(&mut self, pmap: PmapId, start: u64) -> Option<Cached> {
        self.entries.remove(&(pmap, start))
    }

    /// The entries that overlap `range`.
    pub(super) fn overlapping(&self, pmap: PmapId, range: VirtRange) -> Vec<(u64, Cached)> {
        let largest = PageSize::Size2M.bytes();
        let from = range.start().get() & !(largest - 1);
        let entries = self.entries.range((pmap, from)..(pmap, range.end().get()));
        entries.filter(|((_, start), e)| start + e.size.bytes() > range.start().get()).map(|((_, start), e)| (*start, *e)).collect()
    }

    pub(super) fn remember_absent(&mut self, pmap: PmapId, va: u64) {
        if self.caches_absent {
            self.absent.insert((pmap, va & !(PageSize::Size4K.bytes() - 1)));
        }
    }

    /// Whether `va` is cached as absent. It no longer is afterwards: a fault that was answered is looked up again.
    pub(super) fn take_absent(&mut self, pmap: PmapId, va: u64) -> bool {
        self.absent.remove(&(pmap, va & !(PageSize::Size4K.bytes() - 1)))
    }

    pub(super) fn forget_absent(&mut self, pmap: PmapId, range: VirtRange) {
        self.absent.retain(|(p, va)| *p != pmap || *va < range.start().get() || *va >= range.end().get());
    }

    /// Forgets all of one context.
    pub(super) fn forget_pmap(&mut self, pmap: PmapId) {
        self.entries.retain(|(p, _), _| *p != pmap);
        self.absent.retain(|(p, _)| *p != pmap);
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}
