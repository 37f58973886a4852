//! The operating system of a PEER device: it manages its addresses and pages itself, and makes room by asking the core to take pages home.

use super::{Canary, SimDevice};
use crate::Callback;
use crate::ranges::RangeSet;
use crate::sched::{self, Reason};
use crate::sim::lock;
use gmem_hal::{
    ByteLen, DeviceError, EvictOutcome, HnodeId, Mapping, PageSize, Peer, PeerError, PeerMap, PeerUnmap, PhysAddr, PmapId, Prot, VirtAddr,
    VirtRange,
};
use std::collections::{BTreeMap, BTreeSet};

/// A page by its table and its address.
type Key = (PmapId, u64);

#[derive(Clone, Copy)]
struct Page {
    frame: PhysAddr,
    size: PageSize,
    /// When it was last said to be used.
    used: u64,
    /// The core was asked to take it home and has not answered.
    evicting: bool,
}

/// What a peer knows of its pages.
pub(super) struct PeerState {
    /// The pool its pages are in, which is not one of the core's.
    hnode: HnodeId,
    pages: BTreeMap<Key, Page>,
    occupied: RangeSet,
    ticks: u64,
    evictions: u64,
    refusals: u64,
}

impl PeerState {
    pub(super) fn new(hnode: HnodeId) -> Self {
        Self { hnode, pages: BTreeMap::new(), occupied: RangeSet::default(), ticks: 0, evictions: 0, refusals: 0 }
    }

    pub(super) fn clear(&mut self) {
        self.pages.clear();
    }

    fn tick(&mut self) -> u64 {
        self.ticks += 1;
        self.ticks
    }
}

fn page_size(len: ByteLen) -> PageSize {
    PageSize::from_bytes(len.get()).unwrap_or_else(|| panic!("a peer is asked for a page of {len}"))
}

fn page_range(va: VirtAddr, len: ByteLen) -> VirtRange {
    assert!(va.get().is_multiple_of(len.get()), "a peer is asked for a page of {len} at {va}, which is not aligned to it");
    VirtRange::from_len(va, len).unwrap_or_else(|| panic!("a peer is asked for {len} at {va}"))
}

impl SimDevice {
    /// A part of a PEER device's address space is in use by itself: reserving it is refused with [`PeerError::Conflict`].
    pub fn occupy(&self, range: VirtRange) {
        lock(&self.peer).occupied.insert(range);
    }

    /// Where a PEER device keeps a page.
    pub fn peer_frame(&self, pmap: PmapId, va: VirtAddr) -> Option<PhysAddr> {
        lock(&self.peer).pages.get(&(pmap, va.get())).map(|page| page.frame)
    }

    /// How many pages a PEER device holds.
    pub fn peer_pages(&self) -> usize {
        lock(&self.peer).pages.len()
    }

    /// How many of its requests to evict were granted and refused.
    pub fn peer_evictions(&self) -> (u64, u64) {
        let peer = lock(&self.peer);
        (peer.evictions, peer.refusals)
    }

    /// The peer decides by itself to give up to `count` pages home, the least recently used first. Answers how many went.
    pub fn peer_evict(&self, count: usize) -> usize {
        let mut tried = BTreeSet::new();
        (0..count).take_while(|_| self.evict_one(&mut tried)).count()
    }

    /// Forgets the pages of a context that was destroyed.
    pub(super) fn peer_forget(&self, pmap: PmapId) {
        let mut peer = lock(&self.peer);
        let mut frames = lock(&self.frames);
        peer.pages.retain(|key, page| {
            if key.0 == pmap {
                frames.free(page.frame.addr, page.size);
            }
            key.0 != pmap
        });
    }

    /// Has the core take one page home, the least recently used that it agrees to and that was not tried before.
    fn evict_one(&self, tried: &mut BTreeSet<Key>) -> bool {
        loop {
            let victim = {
                let mut peer = lock(&self.peer);
                // The core may have forgotten what a context that it gave up holds.
                let may_go = |key: &Key| !tried.contains(key) && !self.is_given_up(key.0);
                let candidates = peer.pages.iter().filter(|(key, page)| !page.evicting && may_go(key));
                let Some((&key, _)) = candidates.min_by_key(|(_, page)| page.used) else { return false };
                let page = peer.pages.get_mut(&key).expect("it was just found");
                page.evicting = true;
                (key, page.size)
            };
            let ((pmap, va), size) = victim;
            tried.insert((pmap, va));
            let range = page_range(VirtAddr::new(va), size.len());
            let core = self.upcalls().zip(self.id());
            let outcome = core.map_or(EvictOutcome::Refused, |(core, id)| core.device_evict(id, pmap, range));
            self.is.sim.event("device_evict", [pmap.0, va, size.bytes(), outcome as u64]);
            let mut peer = lock(&self.peer);
            // Another page that came there since is not the one that was asked for.
            let there = peer.pages.get_mut(&(pmap, va)).is_some_and(|page| std::mem::take(&mut page.evicting));
            match outcome {
                EvictOutcome::Evicted => {
                    // Between the answer and now the core may have mapped it again; then another one must go.
                    peer.evictions += 1;
                    return true;
                }
                EvictOutcome::Refused => peer.refusals += 1,
                EvictOutcome::NotThere => {
                    assert!(
                        !there || self.is_dead() || self.is_given_up(pmap),
                        "the core says that {pmap} holds nothing at {range}, but it does"
                    )
                }
            }
        }
    }

    /// A peer whose memory outlives it touches nothing any more, so its bytes are there to be copied. Else they are lost, and only the page can be given up.
    fn unmap_of_the_dead(&self, request: &PeerUnmap) -> Result<(), DeviceError> {
        let PeerUnmap { pmap, va, len, copy } = *request;
        if copy.is_some() && !self.is.memory_survives {
            return Err(self.gone());
        }
        let Some(page) = lock(&self.peer).pages.get(&(pmap, va.get())).copied() else { return Ok(()) };
        if let Some(home) = copy {
            self.transfer(home, Some(page.frame), len, false)?;
        }
        lock(&self.peer).pages.remove(&(pmap, va.get()));
        lock(&self.frames).free(page.frame.addr, page.size);
        Ok(())
    }

    fn peer_alloc(&self, size: PageSize) -> Result<PhysAddr, PeerError> {
        let hnode = lock(&self.peer).hnode;
        let mut tried = BTreeSet::new();
        loop {
            if let Some(addr) = lock(&self.frames).alloc(self.is.memory, size) {
                return Ok(PhysAddr { hnode, addr });
            }
            if !self.evict_one(&mut tried) {
                return Err(PeerError::NoMemory);
            }
        }
    }

    /// A `map` of a page that is there: it becomes recent, and gets more access if asked.
    fn map_again(&self, request: &PeerMap, page: Page) -> Result<(), PeerError> {
        let range = page_range(request.va, request.len);
        let mut contexts = lock(&self.contexts);
        let mut peer = lock(&self.peer);
        let used = peer.tick();
        peer.pages.get_mut(&(request.pmap, request.va.get())).expect("it was just found").used = used;
        let now = contexts.translation(request.pmap, request.va).map_or(Prot::empty(), |(_, prot)| prot);
        if request.prot != now && request.prot.contains(now) {
            contexts.protect(&mut lock(&self.is.sim.index), request.pmap, range, request.prot);
        }
        if page.evicting {
            return Err(PeerError::Migrating);
        }
        // Both answers are allowed: let the seed say which, that nobody relies on one.
        if contexts.rng.coin() { Ok(()) } else { Err(PeerError::PageExists) }
    }

    fn peer_release(&self, pmap: PmapId, range: VirtRange) {
        let mut contexts = lock(&self.contexts);
        let mut index = lock(&self.is.sim.index);
        // A stopped context reaches nothing and is in no index.
        if !contexts.context(pmap).fenced {
            contexts.release(&mut index, pmap, range);
            contexts.invalidate(&mut index, pmap, range);
        }
    }

    fn peer_enter(&self, pmap: PmapId, va: VirtAddr, page: Page, prot: Prot) {
        let mapping = Mapping { va, frame: page.frame, len: page.size.len(), prot };
        let mut contexts = lock(&self.contexts);
        if contexts.context(pmap).fenced {
            return;
        }
        contexts.enter(&mut lock(&self.is.sim.index), pmap, &mapping);
    }

    fn assert_reserved(&self, call: &str, pmap: PmapId, range: VirtRange) {
        let mut contexts = lock(&self.contexts);
        assert!(contexts.context(pmap).reserved.covers(range), "{call} of {range} in {pmap}, which was not reserved");
    }

    /// Whether the context died with the device, or was stopped.
    fn peer_gone(&self, pmap: PmapId) -> bool {
        let contexts = lock(&self.contexts);
        contexts.gone.contains(&pmap) || contexts.live.get(&pmap).is_some_and(|c| c.fenced)
    }
}

impl Peer for SimDevice {
    fn va_alloc_fixed(&self, pmap: PmapId, range: VirtRange, prot: Prot) -> Result<(), PeerError> {
        self.peer_call(Callback::VaAllocFixed, [pmap.0, range.start().get(), u64::from(prot.bits())])?;
        if self.peer_gone(pmap) {
            return Err(self.gone().into());
        }
        let occupied = lock(&self.peer).occupied.overlaps(range);
        let mut contexts = lock(&self.contexts);
        contexts.assert_range("va_alloc_fixed", pmap, range);
        if occupied {
            return Err(PeerError::Conflict);
        }
        contexts.context(pmap).reserved.insert(range);
        Ok(())
    }

    fn va_free(&self, pmap: PmapId, range: VirtRange) -> Result<(), DeviceError> {
        let called = self.call(Callback::VaFree, [pmap.0, range.start().get(), range.len().get()]);
        if self.peer_gone(pmap) {
            return Err(self.gone());
        }
        if called.is_err() {
            lock(&self.contexts).context(pmap).suspect = true;
            return called;
        }
        let inside = (pmap, range.start().get())..(pmap, range.end().get());
        if let Some((key, _)) = lock(&self.peer).pages.range(inside).next() {
            panic!("va_free of {range} in {pmap} with a page mapped at {:#x}", key.1);
        }
        self.assert_reserved("va_free", pmap, range);
        lock(&self.contexts).context(pmap).reserved.remove(range);
        Ok(())
    }

    fn map(&self, request: &PeerMap) -> Result<(), PeerError> {
        let PeerMap { pmap, va, len, prot, copy, .. } = *request;
        self.peer_call(Callback::PeerMap, [pmap.0, va.get(), copy.map_or(0, |home| home.addr)])?;
        if self.peer_gone(pmap) {
            return Err(self.gone().into());
        }
        let (size, range) = (page_size(len), page_range(va, len));
        assert!(!prot.is_empty(), "a peer is asked to map {range} without any access");
        self.assert_reserved("map", pmap, range);
        let there = lock(&self.peer).pages.get(&(pmap, va.get())).copied();
        if let Some(page) = there {
            return self.map_again(request, page);
        }
        let frame = self.peer_alloc(size)?;
        if let Some(home) = copy {
            assert_eq!(home.hnode, HnodeId::HOST, "a peer is asked to copy from {home:?}, which is not host memory");
        }
        let filled = self.transfer(frame, copy, len, false);
        sched::yield_point(Reason::Inside("peer_map"));
        if self.peer_gone(pmap) || filled.is_err() {
            lock(&self.frames).free(frame.addr, size);
            return Err(self.gone().into());
        }
        let page = Page { frame, size, used: lock(&self.peer).tick(), evicting: false };
        self.peer_enter(pmap, va, page, prot);
        lock(&self.peer).pages.insert((pmap, va.get()), page);
        Ok(())
    }

    fn unmap(&self, request: &PeerUnmap) -> Result<(), DeviceError> {
        let PeerUnmap { pmap, va, len, copy } = *request;
        let called = self.call(Callback::PeerUnmap, [pmap.0, va.get(), copy.map_or(0, |home| home.addr)]);
        if called == Err(DeviceError::Dead) || lock(&self.contexts).gone.contains(&pmap) {
            return self.unmap_of_the_dead(request);
        }
        let range = page_range(va, len);
        self.assert_reserved("unmap", pmap, range);
        let there = lock(&self.peer).pages.get(&(pmap, va.get())).copied();
        let Some(page) = there else {
            assert!(copy.is_none(), "a peer is asked to copy {range} of {pmap} home, where it holds nothing");
            return called.or_else(|error| if error == DeviceError::CopyFailed { Ok(()) } else { Err(error) });
        };
        match (called, copy) {
            (Err(DeviceError::CopyFailed), Some(home)) => {
                let prot = self.table_prot(pmap, va);
                self.peer_release(pmap, range);
                self.transfer(home, Some(page.frame), len, true)?;
                self.peer_enter(pmap, va, page, prot);
                return called;
            }
            // Without a copy there is none to fail.
            (Ok(()) | Err(DeviceError::CopyFailed), _) => {}
            (Err(_), _) => {
                lock(&self.contexts).context(pmap).suspect = true;
                return called;
            }
        }
        self.peer_release(pmap, range);
        if let Some(home) = copy.filter(|_| !self.shows(Canary::ForgetsHomes, 4)) {
            self.transfer(home, Some(page.frame), len, false)?;
        }
        lock(&self.peer).pages.remove(&(pmap, va.get()));
        lock(&self.frames).free(page.frame.addr, page.size);
        Ok(())
    }
}
