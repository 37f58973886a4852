//! The calls on page tables.

use super::shadow::{Kind, Mapped, Table};
use super::{Observed, rules};
use gmem::hal::{DeviceError, Mapping, Mmu, Mode, PmapId, PmapRequest, Prot, VirtRange};

impl Mmu for Observed {
    fn pmap_create(&self, request: &PmapRequest) -> Result<PmapId, DeviceError> {
        let before = |shadow: &mut super::Shadow| {
            if request.host.is_some() != (request.mode == Mode::Replicate) {
                shadow.breach(rules::WINDOW, format_args!("{request:?}"));
            }
        };
        let after = |shadow: &mut super::Shadow, answer: &Result<PmapId, DeviceError>| {
            let Ok(pmap) = *answer else { return };
            if shadow.tables.contains_key(&pmap) {
                // The core refuses it, so the table that has the id stays what it is.
                shadow.breach(rules::UNIQUE_PMAP, format_args!("{pmap} is in use and was given again"));
                return;
            }
            shadow.tables.insert(pmap, Table::new(request));
        };
        self.pass("pmap_create", None, before, || self.refuse("pmap_create").and_then(|()| self.inner.mmu().pmap_create(request)), after)
    }

    fn pmap_destroy(&self, pmap: PmapId) -> Result<(), DeviceError> {
        let before = |shadow: &mut super::Shadow| {
            let Some(table) = shadow.tables.get_mut(&pmap) else {
                return shadow.breach(rules::KNOWN_PMAP, format_args!("pmap_destroy names {pmap}"));
            };
            table.destroyed = true;
            if let Some((va, page)) = table.pages.iter().next().filter(|_| !table.fenced) {
                let seen = format!("{pmap} is destroyed with {page:?} at {va:#x}");
                shadow.breach(rules::DESTROY_EMPTY, seen);
            }
        };
        let after = |shadow: &mut super::Shadow, answer: &Result<(), DeviceError>| {
            if matches!(answer, Ok(()) | Err(DeviceError::Dead)) {
                shadow.died(pmap);
                shadow.tables.remove(&pmap);
            }
        };
        self.pass("pmap_destroy", None, before, || self.refuse("pmap_destroy").and_then(|()| self.inner.mmu().pmap_destroy(pmap)), after)
    }

    fn pmap_enter(&self, pmap: PmapId, mapping: &Mapping) -> Result<(), DeviceError> {
        let before = |shadow: &mut super::Shadow| shadow.check_enter(pmap, mapping);
        let after = |shadow: &mut super::Shadow, answer: &Result<(), DeviceError>| {
            if answer.is_ok() {
                let page = Mapped { len: mapping.len.get(), frame: Some(mapping.frame), prot: mapping.prot, queued: false, lowered: false };
                shadow.insert(pmap, mapping.va.get(), page);
            }
        };
        let page = Some((pmap, mapping.range(), Kind::Other));
        self.pass("pmap_enter", page, before, || self.refuse("pmap_enter").and_then(|()| self.inner.mmu().pmap_enter(pmap, mapping)), after)
    }

    fn pmap_release(&self, pmap: PmapId, range: VirtRange) -> Result<(), DeviceError> {
        let absent = self.shadow().pages_in(pmap, range).is_empty();
        let after = |shadow: &mut super::Shadow, answer: &Result<(), DeviceError>| match answer {
            // From a failed one on the context is fenced; until then the pages are as good as released.
            Ok(()) => shadow.change(pmap, range, |page| page.queued = true),
            Err(DeviceError::Dead) => shadow.answered_dead(pmap),
            Err(DeviceError::NoAnswer) => {}
            Err(error) if absent => shadow.breach(rules::ABSENT, format_args!("pmap_release of {range}: {error}")),
            Err(_) => {}
        };
        let page = Some((pmap, range, Kind::Revoke));
        self.pass(
            "pmap_release",
            page,
            |_| {},
            || self.refuse("pmap_release").and_then(|()| self.inner.mmu().pmap_release(pmap, range)),
            after,
        )
    }

    fn pmap_protect(&self, pmap: PmapId, range: VirtRange, prot: Prot) -> Result<(), DeviceError> {
        let absent = self.shadow().pages_in(pmap, range).is_empty();
        let after = |shadow: &mut super::Shadow, answer: &Result<(), DeviceError>| match answer {
            Ok(()) => shadow.change(pmap, range, |page| {
                page.lowered |= page.prot.contains(Prot::WRITE) && !prot.contains(Prot::WRITE);
                page.queued |= prot.is_empty();
                page.prot = prot;
            }),
            Err(DeviceError::Dead) => shadow.answered_dead(pmap),
            Err(DeviceError::NoAnswer) => {}
            Err(error) if absent => shadow.breach(rules::ABSENT, format_args!("pmap_protect of {range}: {error}")),
            Err(_) => {}
        };
        let page = Some((pmap, range, Kind::Other));
        self.pass(
            "pmap_protect",
            page,
            |shadow| shadow.revoke_begins(pmap, range),
            || self.refuse("pmap_protect").and_then(|()| self.inner.mmu().pmap_protect(pmap, range, prot)),
            after,
        )
    }

    fn tlb_invalidate(&self, pmap: PmapId, range: VirtRange) -> Result<(), DeviceError> {
        let after = |shadow: &mut super::Shadow, answer: &Result<(), DeviceError>| match answer {
            Ok(()) => shadow.invalidated(pmap, range),
            Err(DeviceError::Dead) => shadow.answered_dead(pmap),
            Err(_) => {}
        };
        let page = Some((pmap, range, Kind::Revoke));
        self.pass(
            "tlb_invalidate",
            page,
            |_| {},
            || self.refuse("tlb_invalidate").and_then(|()| self.inner.mmu().tlb_invalidate(pmap, range)),
            after,
        )
    }

    fn tlb_invalidate_coalesced(&self, pmap: PmapId, ranges: &[VirtRange]) -> Result<(), DeviceError> {
        let before = |shadow: &mut super::Shadow| {
            let mut sorted = ranges.to_vec();
            sorted.sort_by_key(|range| range.start());
            for range in &sorted {
                shadow.revoke_begins(pmap, *range);
                shadow.check_range("tlb_invalidate_coalesced", pmap, *range);
            }
            if let Some(pair) = sorted.windows(2).find(|pair| pair[0].overlaps(pair[1])) {
                shadow.breach(rules::DISJOINT, format_args!("{} and {} in {pmap}", pair[0], pair[1]));
            }
        };
        let after = |shadow: &mut super::Shadow, answer: &Result<(), DeviceError>| match answer {
            Ok(()) => ranges.iter().for_each(|range| shadow.invalidated(pmap, *range)),
            Err(DeviceError::Dead) => shadow.answered_dead(pmap),
            Err(_) => {}
        };
        self.pass(
            "tlb_invalidate_coalesced",
            None,
            before,
            || self.refuse("tlb_invalidate_coalesced").and_then(|()| self.inner.mmu().tlb_invalidate_coalesced(pmap, ranges)),
            after,
        )
    }

    fn harvest_accessed(&self, pmap: PmapId, page: VirtRange) -> Option<bool> {
        let what = Some((pmap, page, Kind::Other));
        self.pass("harvest_accessed", what, |_| {}, || self.inner.mmu().harvest_accessed(pmap, page), |_, _| {})
    }
}
