//! The device as a PEER: its own system manages its addresses and its memory, and makes room by asking the core to take pages home.

use super::Reference;
use super::table::Entry;
use crate::Defect;
use gmem::hal::{
    CopyEngine, DeviceError, EvictOutcome, HnodeId, Mmu, PageSize, Peer, PeerError, PeerMap, PeerUnmap, PhysAddr, PhysRange, PmapId, Prot,
    VirtAddr, VirtRange,
};

/// A page that the peer holds.
#[derive(Clone, Copy)]
struct Page {
    pmap: PmapId,
    range: VirtRange,
    size: PageSize,
    addr: u64,
    /// When it was last said to be used.
    used: u64,
    /// The core was asked to take it home and has not answered.
    evicting: bool,
}

/// What the peer's system knows.
pub(super) struct PeerState {
    pages: Vec<Page>,
    ticks: u64,
    /// What the peer uses for itself: reserving it is a conflict.
    occupied: Vec<VirtRange>,
}

impl PeerState {
    pub(super) fn new(most: usize) -> Self {
        Self { pages: Vec::with_capacity(most), ticks: 0, occupied: Vec::new() }
    }

    fn page(&mut self, pmap: PmapId, va: VirtAddr) -> Option<&mut Page> {
        self.pages.iter_mut().find(|p| p.pmap == pmap && p.range.start() == va)
    }

    fn tick(&mut self) -> u64 {
        self.ticks += 1;
        self.ticks
    }

    /// The page least recently used that may be asked for: not one that was, nor one that was refused since `since`.
    fn victim(&mut self, refused: &[VirtRange]) -> Option<Page> {
        let may_go = |p: &&mut Page| !p.evicting && !refused.contains(&p.range);
        let victim = self.pages.iter_mut().filter(may_go).min_by_key(|p| p.used)?;
        victim.evicting = true;
        Some(*victim)
    }
}

/// How many victims one allocation asks for before it gives up.
const TRIES: usize = 16;

impl Reference {
    /// Has the peer use `range` for something of its own: a mapping there is refused, and the core must find another place.
    pub fn occupy(&self, range: VirtRange) {
        self.peer_state().occupied.push(range);
    }

    /// The device decides by itself to give its least recently used page up. What the core said; `None` if there is no page.
    pub fn peer_evict(&self) -> Option<EvictOutcome> {
        let victim = self.peer_state().victim(&[])?;
        Some(self.ask_for(&victim))
    }

    fn ask_for(&self, victim: &Page) -> EvictOutcome {
        let outcome = match self.core() {
            Some((id, core)) => core.device_evict(id, victim.pmap, victim.range),
            None => EvictOutcome::Refused,
        };
        if let Some(page) = self.peer_state().page(victim.pmap, victim.range.start()) {
            page.evicting = false;
        }
        outcome
    }

    /// A context is gone: so are its pages.
    pub(super) fn peer_forget(&self, pmap: PmapId) {
        self.peer_state().pages.retain(|page| {
            if page.pmap == pmap {
                self.frames().free(page.addr, page.size);
            }
            page.pmap != pmap
        });
    }

    fn peer_alloc(&self, size: PageSize) -> Result<u64, PeerError> {
        let memory = PhysRange { begin: 0, end: self.is.memory };
        let mut refused = [None; TRIES];
        for n in 0..TRIES {
            if let Some(addr) = self.frames().alloc(memory, size) {
                return Ok(addr);
            }
            let ranges: arrayvec::ArrayVec<VirtRange, TRIES> = refused.iter().flatten().copied().collect();
            let victim = self.peer_state().victim(&ranges).ok_or(PeerError::NoMemory)?;
            let outcome = self.ask_for(&victim);
            if outcome == EvictOutcome::Refused && victim.size == size && self.has(Defect::PeerStealsFrame) {
                self.steal(&victim);
                return Ok(victim.addr);
            }
            if outcome != EvictOutcome::Evicted {
                refused[n] = Some(victim.range);
            }
        }
        Err(PeerError::NoMemory)
    }

    /// What a broken peer does with a page that the core does not want to let go.
    fn steal(&self, victim: &Page) {
        if let Ok(pmap) = self.pmap(victim.pmap) {
            let mut state = pmap.lock();
            state.table.remove(victim.range);
            state.tlb.forget(victim.range);
        }
        self.peer_state().pages.retain(|p| p.addr != victim.addr);
    }

    /// A page that is mapped already becomes recent, and gets more access if asked.
    fn map_again(&self, request: &PeerMap, page: Page) -> Result<(), PeerError> {
        let used = self.peer_state().tick();
        if let Some(page) = self.peer_state().page(request.pmap, request.va) {
            page.used = used;
        }
        self.enter_page(&page, request.prot)?;
        // It has what was asked for, and its eviction is to be called off.
        if page.evicting { Err(PeerError::Migrating) } else { Ok(()) }
    }

    fn enter_page(&self, page: &Page, prot: Prot) -> Result<(), PeerError> {
        let pmap = self.pmap(page.pmap)?;
        let mut state = self.alive(&pmap)?;
        // The core may remind of a page with less access than it was given.
        let now = state.table.inside(page.range).first().map_or(Prot::empty(), |e| e.prot);
        let frame = PhysAddr { hnode: self.first_hnode(), addr: page.addr };
        let entry = Entry { page: page.range, frame, prot: prot | now, accessed: false };
        if state.enter(self, entry) { Ok(()) } else { Err(PeerError::NoMemory) }
    }

    fn page_request(&self, call: &str, pmap: PmapId, va: VirtAddr, len: gmem::hal::ByteLen) -> Result<(PageSize, VirtRange), DeviceError> {
        let inside = self.pmap(pmap)?.range;
        let size = PageSize::from_bytes(len.get()).filter(|size| va.is_aligned(*size));
        let range = size.and_then(|size| VirtRange::page(va, size)).filter(|range| inside.contains_range(*range));
        let bad = || self.protocol_error(format_args!("{call} of {len} at {va} in {pmap}"));
        Ok((size.ok_or_else(bad)?, range.ok_or_else(bad)?))
    }
}

impl Peer for Reference {
    fn va_alloc_fixed(&self, _: PmapId, range: VirtRange, _: Prot) -> Result<(), PeerError> {
        if self.peer_state().occupied.iter().any(|own| own.overlaps(range)) { Err(PeerError::Conflict) } else { Ok(()) }
    }

    fn va_free(&self, pmap: PmapId, range: VirtRange) -> Result<(), DeviceError> {
        let mapped = self.peer_state().pages.iter().any(|p| p.pmap == pmap && p.range.overlaps(range));
        if mapped { Err(self.protocol_error(format_args!("va_free of {range} in {pmap}, where pages are mapped"))) } else { Ok(()) }
    }

    fn map(&self, request: &PeerMap) -> Result<(), PeerError> {
        let (size, range) = self.page_request("map", request.pmap, request.va, request.len)?;
        if request.copy.is_some_and(|home| home.hnode != HnodeId::HOST) || request.prot.is_empty() {
            return Err(self.protocol_error(format_args!("{request:?}")).into());
        }
        if self.has(Defect::PeerClaimsPage) {
            return Err(PeerError::PageExists);
        }
        let there = self.peer_state().page(request.pmap, request.va).copied();
        if let Some(page) = there {
            return self.map_again(request, page);
        }
        let addr = self.peer_alloc(size)?;
        let frame = PhysAddr { hnode: self.first_hnode(), addr };
        let filled = match request.copy {
            Some(home) => self.copy(frame, home, request.len),
            None => self.zero(frame, request.len),
        };
        let used = self.peer_state().tick();
        let page = Page { pmap: request.pmap, range, size, addr, used, evicting: false };
        match filled.map_err(PeerError::from).and_then(|()| self.enter_page(&page, request.prot)) {
            Ok(()) => self.peer_state().pages.push(page),
            Err(e) => {
                self.frames().free(addr, size);
                return Err(e);
            }
        }
        Ok(())
    }

    fn unmap(&self, request: &PeerUnmap) -> Result<(), DeviceError> {
        let (size, range) = self.page_request("unmap", request.pmap, request.va, request.len)?;
        let there = self.peer_state().page(request.pmap, request.va).copied();
        let Some(page) = there else {
            let lost = request.copy.is_some() && !self.has(Defect::PeerStealsFrame);
            return if lost { Err(DeviceError::BadRequest) } else { Ok(()) };
        };
        let pmap = self.pmap(request.pmap)?;
        let was = pmap.lock().table.inside(range).first().map(|e| e.prot);
        // A stopped context has no translation left, and its bytes are still there to be copied.
        if !self.has(Defect::PeerKeepsMapping) && !pmap.lock().dead {
            self.pmap_release(request.pmap, range)?;
            self.tlb_invalidate(request.pmap, range)?;
        }
        if let Some(home) = request.copy
            && let Err(e) = self.copy(home, PhysAddr { hnode: self.first_hnode(), addr: page.addr }, request.len)
        {
            // The page stays with the device. If it cannot be entered it faults, and is entered then.
            let _ = was.map(|prot| self.enter_page(&page, prot));
            return Err(e);
        }
        self.peer_state().pages.retain(|p| p.addr != page.addr);
        self.frames().free(page.addr, size);
        Ok(())
    }
}
