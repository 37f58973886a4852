//! The MMU functions.

use super::Reference;
use super::memory::Window;
use super::pmap::{Pmap, State};
use super::table::Entry;
use crate::Defect;
use gmem::hal::{Access, DeviceError, HnodeId, Mapping, Mmu, PageSize, PmapId, PmapRequest, Prot, VirtRange};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

/// Entries that a REPLICATE context can have: it receives every page of its address space, and what does not fit faults again.
const REPLICATE_ENTRIES: usize = 1 << 16;

impl Reference {
    pub(super) fn pmap(&self, id: PmapId) -> Result<Arc<Pmap>, DeviceError> {
        let found = self.pmaps().iter().find(|p| p.id == id).cloned();
        found.ok_or_else(|| self.protocol_error(format_args!("{id} is not a table of this device")))
    }

    /// The state of the context that a callback names, if it lives.
    pub(super) fn alive<'a>(&self, pmap: &'a Pmap) -> Result<MutexGuard<'a, State>, DeviceError> {
        let state = pmap.lock();
        if state.dead { Err(DeviceError::Dead) } else { Ok(state) }
    }

    fn check_range(&self, call: &str, pmap: &Pmap, range: VirtRange) -> Result<(), DeviceError> {
        if range.is_aligned(PageSize::Size4K) && pmap.range.contains_range(range) {
            return Ok(());
        }
        Err(self.protocol_error(format_args!("{call} of {range}, outside {} or not in whole pages", pmap.range)))
    }

    /// A broken allocator forgets that a frame is free only after its shootdown, and after its bytes were copied.
    fn free_early(&self, state: &mut State, range: VirtRange) {
        for entry in state.table.inside(range) {
            if entry.frame.hnode != HnodeId::HOST
                && let Some(size) = PageSize::from_bytes(entry.page.len().get())
            {
                self.frames().free(entry.frame.addr, size);
            }
        }
    }
}

impl Mmu for Reference {
    fn pmap_create(&self, request: &PmapRequest) -> Result<PmapId, DeviceError> {
        let shared = !self.has(Defect::WindowPrivate);
        let window = request.host.map(|window| Window::map(&window, request.range, shared)).transpose()?;
        let entries = if window.is_some() { REPLICATE_ENTRIES } else { (self.is.memory / PageSize::Size4K.bytes()) as usize };
        let id = match self.has(Defect::PmapIdReused) {
            true => PmapId(1),
            false => PmapId(self.next_pmap.fetch_add(1, Ordering::Relaxed)),
        };
        self.pmaps().push(Arc::new(Pmap::new(id, request.range, window, entries)));
        Ok(id)
    }

    fn pmap_destroy(&self, pmap: PmapId) -> Result<(), DeviceError> {
        let gone = self.pmap(pmap)?;
        if self.has(Defect::DestroyKeepsTable) {
            return Ok(());
        }
        gone.lock().kill();
        self.peer_forget(pmap);
        self.pmaps().retain(|p| p.id != pmap);
        Ok(())
    }

    fn pmap_enter(&self, pmap: PmapId, mapping: &Mapping) -> Result<(), DeviceError> {
        let pmap = self.pmap(pmap)?;
        let (page, len) = (mapping.range(), mapping.len.get());
        self.check_range("pmap_enter", &pmap, page)?;
        let mut frame = mapping.frame;
        if pmap.pointer(self, frame, len).is_none() || mapping.prot.is_empty() {
            return Err(self.protocol_error(format_args!("pmap_enter of {mapping:?}, which is not memory of ours or allows nothing")));
        }
        let neighbour = gmem::hal::PhysAddr { addr: frame.addr ^ len, ..frame };
        let reachable = pmap.pointer(self, neighbour, len).is_some();
        if self.has(Defect::WrongFrame) && reachable {
            frame = neighbour;
        }
        let mut state = self.alive(&pmap)?;
        state.catch_up();
        if self.has(Defect::NeighbourMapped)
            && reachable
            && let Some(beside) = VirtRange::from_len(page.end(), mapping.len).filter(|r| pmap.range.contains_range(*r))
            && state.table.inside(beside).is_empty()
        {
            state.table.put(Entry { page: beside, frame: neighbour, prot: mapping.prot, accessed: false });
        }
        let page = match VirtRange::page(mapping.va, PageSize::Size4K) {
            Some(first) if self.has(Defect::EnterBasePageOnly) => first,
            _ => page,
        };
        let entry = Entry { page, frame, prot: mapping.prot, accessed: false };
        assert!(!self.has(Defect::Panics), "a driver that panics");
        let entered = self.has(Defect::EnterForgotten) || state.enter(self, entry);
        drop(state);
        if self.has(Defect::FaultsItself)
            && let Some((id, core)) = self.core()
        {
            // Its answer is of no interest to a driver that is this wrong.
            let _ = core.device_fault(id, pmap.id, mapping.va, Access::Read, None);
        }
        if entered { Ok(()) } else { Err(DeviceError::NoMemory) }
    }

    fn pmap_release(&self, pmap: PmapId, range: VirtRange) -> Result<(), DeviceError> {
        let pmap = self.pmap(pmap)?;
        self.check_range("pmap_release", &pmap, range)?;
        let mut state = self.alive(&pmap)?;
        if self.has(Defect::AbsentIsAnError) && state.table.inside(range).is_empty() {
            return Err(DeviceError::BadRequest);
        }
        if self.has(Defect::FrameFreedEarly) {
            self.free_early(&mut state, range);
        }
        if self.has(Defect::CopiedBeforeUnmapped) {
            state.catch_up();
            state.late = Some(range);
            return Ok(());
        }
        state.release(self, range);
        Ok(())
    }

    fn pmap_protect(&self, pmap: PmapId, range: VirtRange, prot: Prot) -> Result<(), DeviceError> {
        if prot.is_empty() {
            return self.pmap_release(pmap, range);
        }
        let pmap = self.pmap(pmap)?;
        self.check_range("pmap_protect", &pmap, range)?;
        let mut state = self.alive(&pmap)?;
        if self.has(Defect::ProtectingAbsentIsAnError) && state.table.inside(range).is_empty() {
            return Err(DeviceError::BadRequest);
        }
        match () {
            () if self.has(Defect::ProtectIgnored) => {}
            () if self.has(Defect::ProtectBasePageOnly) => state.split_first_of_each(range, Some(prot)),
            () => state.table.inside(range).iter_mut().for_each(|entry| entry.prot = prot),
        }
        Ok(())
    }

    fn tlb_invalidate(&self, pmap: PmapId, range: VirtRange) -> Result<(), DeviceError> {
        let pmap = self.pmap(pmap)?;
        self.check_range("tlb_invalidate", &pmap, range)?;
        self.be_late(Defect::AnswersLate);
        self.be_late(Defect::NeverAnswers);
        let mut state = self.alive(&pmap)?;
        match () {
            () if self.has(Defect::StaleTlb) || state.late.is_some() => {}
            () if self.has(Defect::InvalidateBasePageOnly) => state.tlb.forget_first_of_each(range),
            () => state.tlb.forget(range),
        }
        Ok(())
    }

    fn tlb_invalidate_coalesced(&self, pmap: PmapId, ranges: &[VirtRange]) -> Result<(), DeviceError> {
        let ranges = if self.has(Defect::CoalescedFirstOnly) { &ranges[..ranges.len().min(1)] } else { ranges };
        ranges.iter().try_for_each(|range| self.tlb_invalidate(pmap, *range))
    }

    fn harvest_accessed(&self, pmap: PmapId, page: VirtRange) -> Option<bool> {
        if !self.is.accessed_bits {
            return None;
        }
        let pmap = self.pmap(pmap).ok()?;
        let mut state = pmap.lock();
        // What the TLB has is used without a look at the table, and so would not be marked again.
        state.tlb.forget(page);
        let marked = state.table.inside(page).iter_mut().filter_map(|entry| std::mem::take(&mut entry.accessed).then_some(())).count();
        Some(marked > 0 || self.has(Defect::AccessedAlways))
    }
}
