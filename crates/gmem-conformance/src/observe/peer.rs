//! The calls on a peer operating system.

use super::shadow::{Kind, Mapped, Shadow};
use super::{Observed, rules};
use gmem::hal::{ByteLen, DeviceError, HnodeId, PageSize, Peer, PeerError, PeerMap, PeerUnmap, PmapId, Prot, VirtAddr, VirtRange};

impl Shadow {
    fn check_reserved(&mut self, name: &str, pmap: PmapId, range: VirtRange) {
        let reserved = self.tables.get(&pmap).is_none_or(|table| table.reserved.iter().any(|r| r.contains_range(range)));
        if !reserved {
            self.breach(rules::RESERVED, format_args!("{name} of {range} in {pmap}"));
        }
    }
}

/// The page of a request, if it is one.
fn page_of(va: VirtAddr, len: ByteLen) -> Option<VirtRange> {
    let size = PageSize::from_bytes(len.get())?;
    if va.is_aligned(size) { VirtRange::page(va, size) } else { None }
}

impl Peer for Observed {
    fn va_alloc_fixed(&self, pmap: PmapId, range: VirtRange, prot: Prot) -> Result<(), PeerError> {
        let before = |shadow: &mut Shadow| {
            shadow.check_range("va_alloc_fixed", pmap, range);
            let meets = shadow.tables.get(&pmap).and_then(|table| table.reserved.iter().find(|r| r.overlaps(range)).copied());
            if let Some(old) = meets {
                shadow.breach(rules::RESERVED, format_args!("va_alloc_fixed of {range} in {pmap}, where {old} is reserved"));
            }
        };
        let after = |shadow: &mut Shadow, answer: &Result<(), PeerError>| {
            if let (Ok(()), Some(table)) = (answer, shadow.tables.get_mut(&pmap)) {
                table.reserved.push(range);
            }
        };
        let call = || {
            self.refuse_peer("va_alloc_fixed")?;
            self.inner.peer().map_or(Err(DeviceError::Unsupported.into()), |peer| peer.va_alloc_fixed(pmap, range, prot))
        };
        self.pass("va_alloc_fixed", None, before, call, after)
    }

    fn va_free(&self, pmap: PmapId, range: VirtRange) -> Result<(), DeviceError> {
        let before = |shadow: &mut Shadow| {
            shadow.check_reserved("va_free", pmap, range);
            if let Some(va) = shadow.pages_in(pmap, range).first() {
                let seen = format!("va_free of {range} in {pmap}, where {va:#x} is mapped");
                shadow.breach(rules::RESERVED, seen);
            }
            if let Some(table) = shadow.tables.get_mut(&pmap) {
                let old = std::mem::take(&mut table.reserved);
                for reserved in old {
                    if !reserved.overlaps(range) {
                        table.reserved.push(reserved);
                        continue;
                    }
                    table.reserved.extend(VirtRange::new(reserved.start(), range.start()).filter(|r| reserved.contains_range(*r)));
                    table.reserved.extend(VirtRange::new(range.end(), reserved.end()).filter(|r| reserved.contains_range(*r)));
                }
            }
        };
        let call = || {
            self.refuse("va_free")?;
            self.inner.peer().map_or(Err(DeviceError::Unsupported), |peer| peer.va_free(pmap, range))
        };
        self.pass("va_free", None, before, call, |_, _| {})
    }

    fn map(&self, request: &PeerMap) -> Result<(), PeerError> {
        let PeerMap { pmap, va, len, prot, copy, .. } = *request;
        let page = page_of(va, len);
        let before = |shadow: &mut Shadow| {
            if page.is_none() || prot.is_empty() || copy.is_some_and(|home| home.hnode != HnodeId::HOST) {
                shadow.breach(rules::MAPPING, format_args!("{request:?}"));
            }
            page.into_iter().for_each(|page| shadow.check_reserved("map", pmap, page));
        };
        let after = |shadow: &mut Shadow, answer: &Result<(), PeerError>| {
            if matches!(answer, Err(PeerError::Migrating)) {
                // It is there still, with the access of the request.
                page.into_iter().for_each(|page| shadow.change(pmap, page, |page| page.prot |= prot));
            }
            if matches!(answer, Ok(()) | Err(PeerError::PageExists)) {
                shadow.copied.down += copy.filter(|_| answer.is_ok()).map_or(0, |_| len.get());
                // The core may remind of a page with less access than it was given.
                let had = shadow.tables.get(&pmap).and_then(|table| table.pages.get(&va.get())).map_or(prot, |page| page.prot);
                let page = Mapped { len: len.get(), frame: None, prot: prot | had, queued: false, lowered: false };
                shadow.insert(pmap, va.get(), page);
            }
        };
        let call = || {
            self.refuse_peer("map")?;
            self.inner.peer().map_or(Err(DeviceError::Unsupported.into()), |peer| peer.map(request))
        };
        self.pass(if request.hot { "map hot" } else { "map" }, page.map(|page| (pmap, page, Kind::Other)), before, call, after)
    }

    fn unmap(&self, request: &PeerUnmap) -> Result<(), DeviceError> {
        let PeerUnmap { pmap, va, len, copy } = *request;
        let page = page_of(va, len);
        let before = |shadow: &mut Shadow| {
            if page.is_none() || copy.is_some_and(|home| home.hnode != HnodeId::HOST) {
                shadow.breach(rules::MAPPING, format_args!("{request:?}"));
            }
            page.into_iter().for_each(|page| {
                shadow.check_reserved("unmap", pmap, page);
                shadow.revoke_begins(pmap, page);
            });
        };
        let after = |shadow: &mut Shadow, answer: &Result<(), DeviceError>| {
            if answer.is_ok() {
                shadow.copied.home += copy.map_or(0, |_| len.get());
                shadow.remove(pmap, va.get());
            }
        };
        let call = || {
            self.refuse("unmap")?;
            self.inner.peer().map_or(Err(DeviceError::Unsupported), |peer| peer.unmap(request))
        };
        self.pass("unmap", page.map(|page| (pmap, page, Kind::Other)), before, call, after)
    }
}
