//! The MMU functions.

use super::contexts::{Context, Contexts, assert_frame};
use super::table::Table;
use super::{Canary, SimDevice};
use crate::Callback;
use crate::index::FrameIndex;
use crate::inject::Injected;
use crate::ranges::RangeSet;
use crate::sim::lock;
use gmem_hal::{Capabilities, DeviceError, HnodeId, Mapping, Mmu, PmapId, PmapRequest, Prot, VirtRange};

fn args(pmap: PmapId, range: VirtRange) -> [u64; 3] {
    [pmap.0, range.start().get(), range.len().get()]
}

impl SimDevice {
    /// The beginning of a callback about a context. Contexts from before a death are dead.
    fn call_on(&self, callback: Callback, pmap: PmapId, args: [u64; 3]) -> Result<(), DeviceError> {
        let called = self.call(callback, args);
        if !lock(&self.contexts).gone.contains(&pmap) {
            return called;
        }
        if let Err(error @ (DeviceError::NoMemory | DeviceError::NoAnswer | DeviceError::Unsupported)) = called {
            self.is.sim.forestalled(callback, Injected::Device(error));
        }
        Err(self.gone())
    }

    /// A callback that takes access away. If it is made to fail without the device being dead, the seed says whether the device did it nevertheless.
    fn revoke(
        &self,
        callback: Callback,
        pmap: PmapId,
        ranges: &[VirtRange],
        f: impl Fn(&mut Contexts, &mut FrameIndex, VirtRange),
    ) -> Result<(), DeviceError> {
        let first = ranges.first().map_or([pmap.0, 0, 0], |range| args(pmap, *range));
        let called = self.call_on(callback, pmap, first);
        if called == Err(DeviceError::Dead) {
            return called;
        }
        let mut contexts = lock(&self.contexts);
        for range in ranges {
            contexts.assert_range(callback.name(), pmap, *range);
        }
        if called.is_err() {
            contexts.context(pmap).suspect = true;
            if contexts.rng.coin() {
                return called;
            }
        }
        let mut index = lock(&self.is.sim.index);
        // A stopped context reaches nothing and is in no index.
        if !contexts.context(pmap).fenced {
            ranges.iter().for_each(|range| f(&mut contexts, &mut index, *range));
        }
        called
    }

    fn invalidate(&self, contexts: &mut Contexts, index: &mut FrameIndex, pmap: PmapId, range: VirtRange) {
        if self.has(Canary::InvalidatesLate) {
            lock(&self.life).owed.push((pmap, range));
        } else if !self.has(Canary::KeepsTranslations) {
            contexts.invalidate(index, pmap, range);
        }
    }

    fn assert_no_peer(&self, call: &str) {
        assert!(!self.is.info.capabilities.contains(Capabilities::PEER), "{call} on a PEER device, which maps its pages itself");
    }

    /// Panics unless the device may map this memory in `pmap`.
    fn assert_mappable(&self, contexts: &mut Contexts, pmap: PmapId, mapping: &Mapping) {
        let Mapping { frame, len, .. } = *mapping;
        if let Some(range) = self.registered(frame.hnode) {
            let inside = range.begin <= frame.addr && frame.addr + len.get() <= range.end;
            assert!(inside, "pmap_enter of {frame:?} ({len}) outside the registered memory {range:?}");
        } else if frame.hnode == HnodeId::HOST {
            assert!(contexts.context(pmap).request.host.is_some(), "pmap_enter of host memory {frame:?} in {pmap}, which was given none");
            lock(&self.is.sim.host).assert_mappable(frame, len.get());
        } else {
            assert!(self.reaches_hnode(frame.hnode), "pmap_enter of {frame:?}, which device {:?} does not reach", self.is.info.name);
        }
    }
}

impl Mmu for SimDevice {
    fn pmap_create(&self, request: &PmapRequest) -> Result<PmapId, DeviceError> {
        let args = [u64::from(request.space.0), request.range.start().get(), request.range.len().get()];
        self.call(Callback::PmapCreate, args)?;
        assert!(self.is.info.modes.contains(request.mode.as_set()), "pmap_create in {:?}, which the device does not offer", request.mode);
        assert!(request.range.end().get() <= 1 << 48, "pmap_create for {}, outside the 48 bits of this MMU", request.range);
        let pmap = self.is.sim.new_pmap();
        let context = Context {
            request: *request,
            table: Table::new(),
            suspect: false,
            fenced: false,
            disowned: false,
            reserved: RangeSet::default(),
        };
        lock(&self.contexts).live.insert(pmap, context);
        Ok(pmap)
    }

    fn pmap_destroy(&self, pmap: PmapId) -> Result<(), DeviceError> {
        let called = self.call_on(Callback::PmapDestroy, pmap, [pmap.0, 0, 0]);
        let mut contexts = lock(&self.contexts);
        if called == Err(DeviceError::Dead) {
            contexts.gone.remove(&pmap);
            drop(contexts);
            self.peer_forget(pmap);
            return called;
        }
        let context = contexts.context(pmap);
        let orderly = !context.suspect && !context.fenced;
        if called.is_err() {
            context.suspect = true;
            context.disowned = true;
            self.is.sim.add_runaway(pmap);
            return called;
        }
        let mut index = lock(&self.is.sim.index);
        if orderly {
            assert!(context.table.is_empty(), "{pmap} is destroyed with entries, among them {:?}", index.first_of(pmap));
            assert!(context.reserved.is_empty(), "{pmap} is destroyed with addresses reserved: {:?}", context.reserved);
            let cached = index.first_of(pmap);
            assert!(cached.is_none(), "{pmap} is destroyed before its shootdown is done: {cached:?}");
        }
        contexts.forget(&mut index, pmap);
        contexts.live.remove(&pmap);
        drop((contexts, index));
        self.peer_forget(pmap);
        let mut life = lock(&self.life);
        assert!(life.current != Some(pmap) || !orderly || life.switch_refused, "{pmap} is destroyed while it is the current context");
        life.current = life.current.filter(|current| *current != pmap);
        Ok(())
    }

    fn pmap_enter(&self, pmap: PmapId, mapping: &Mapping) -> Result<(), DeviceError> {
        let called = self.call_on(Callback::PmapEnter, pmap, args(pmap, mapping.range()));
        // A device that did not answer may have done what it was asked, and what that leaves behind is what the core must reckon with.
        if !matches!(called, Ok(()) | Err(DeviceError::NoAnswer)) {
            return called;
        }
        self.assert_no_peer("pmap_enter");
        assert!(!mapping.prot.is_empty(), "pmap_enter at {} without any access", mapping.va);
        assert_frame("pmap_enter", mapping.frame, mapping.len);
        assert!(
            mapping.va.get().is_multiple_of(mapping.len.get()),
            "pmap_enter of {} at {}, which is not aligned to it",
            mapping.len,
            mapping.va
        );
        let mut contexts = lock(&self.contexts);
        contexts.assert_range("pmap_enter", pmap, mapping.range());
        if contexts.context(pmap).fenced {
            // Who enters a mapping cannot know that another thread of control has just had the context stopped.
            return Err(self.gone());
        }
        self.assert_mappable(&mut contexts, pmap, mapping);
        if !self.has(Canary::ForgetsMappings) {
            contexts.enter(&mut lock(&self.is.sim.index), pmap, mapping);
        }
        drop(contexts);
        if self.shows(Canary::EntersWhatItRefuses, 16) { Err(DeviceError::NoMemory) } else { called }
    }

    fn pmap_release(&self, pmap: PmapId, range: VirtRange) -> Result<(), DeviceError> {
        self.assert_no_peer("pmap_release");
        let keeps = self.has(Canary::KeepsEntries);
        self.revoke(Callback::PmapRelease, pmap, &[range], |contexts, index, range| {
            if !keeps {
                contexts.release(index, pmap, range);
            }
        })
    }

    fn pmap_protect(&self, pmap: PmapId, range: VirtRange, prot: Prot) -> Result<(), DeviceError> {
        let ignores = self.has(Canary::IgnoresProtection);
        self.revoke(Callback::PmapProtect, pmap, &[range], |contexts, index, range| {
            if !ignores {
                contexts.protect(index, pmap, range, prot);
            }
        })
    }

    fn tlb_invalidate(&self, pmap: PmapId, range: VirtRange) -> Result<(), DeviceError> {
        self.revoke(Callback::TlbInvalidate, pmap, &[range], |contexts, index, range| self.invalidate(contexts, index, pmap, range))
    }

    fn tlb_invalidate_coalesced(&self, pmap: PmapId, ranges: &[VirtRange]) -> Result<(), DeviceError> {
        for (i, range) in ranges.iter().enumerate() {
            let other = ranges[..i].iter().find(|other| other.overlaps(*range));
            assert!(other.is_none(), "tlb_invalidate_coalesced of {range} and of {other:?}, which overlap");
        }
        self.revoke(Callback::TlbInvalidateCoalesced, pmap, ranges, |contexts, index, range| self.invalidate(contexts, index, pmap, range))
    }

    fn harvest_accessed(&self, pmap: PmapId, page: VirtRange) -> Option<bool> {
        self.note("harvest_accessed", args(pmap, page));
        let mut contexts = lock(&self.contexts);
        if !self.is.accessed_bits || contexts.gone.contains(&pmap) {
            return None;
        }
        contexts.assert_range("harvest_accessed", pmap, page);
        Some(contexts.harvest(pmap, page))
    }
}
