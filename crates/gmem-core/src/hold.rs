//! Holding pages for a launch, and letting them go.
//!
//! A device that cannot replay faults touches exactly what its launches named: a page is mapped there for as long as a launch holds it, and no
//! longer. The page stays in the device's memory, so that the next launch finds it there. (In REPLICATE mode a device sees everything that is mapped at home, replay or not.)

use crate::context::Context;
use crate::core::Core;
use crate::error::RangeError;
use crate::execute::Op;
use crate::fault::{Hold, Touched};
use crate::hnode::EVICT_BATCH;
use crate::space::{Ended, Space};
use alloc::sync::Arc;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use gmem_hal::{Access, ByteLen, DeviceId, Mode, OutOfMemory, PageSize, Platform, Prot, SpaceId, VirtAddr, VirtRange};

/// A range that a launch will touch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HoldRange {
    /// The bytes; every page they lie in is held.
    pub range: VirtRange,
    /// How the launch touches them.
    pub access: Access,
}

/// Pages that a device is about to lose sight of.
type Batch<'a, P> = ArrayVec<Op<'a, P>, EVICT_BATCH>;

impl<P: Platform> Core<P> {
    /// Brings exactly the pages of `ranges` to where `device` can touch them without a fault, or home with `None` (for I/O by the kernel), and keeps them there until
    /// [`Core::unhold`]: everybody else who wants to move them waits. All or nothing. Pages are taken in the order of their addresses, so holds cannot wait for each other in a circle. May block.
    ///
    /// # Errors
    /// [`RangeError::DoesNotFit`] if the device's memory is too small for them; [`RangeError::Fault`] with [`FaultError::NoDeviceMemory`](gmem_hal::FaultError::NoDeviceMemory) if it is, for now, because of
    /// what others hold or have pinned there.
    pub fn hold(&self, space: SpaceId, device: Option<DeviceId>, ranges: &[HoldRange]) -> Result<(), RangeError> {
        self.take(space, device, ranges, Hold::Yes)
    }

    /// The same, but does not wait for a page that others hold elsewhere.
    ///
    /// # Errors
    /// As for [`Core::hold`]; and [`RangeError::Held`] with such a page.
    pub fn try_hold(&self, space: SpaceId, device: Option<DeviceId>, ranges: &[HoldRange]) -> Result<(), RangeError> {
        self.take(space, device, ranges, Hold::Try)
    }

    fn take(&self, space: SpaceId, device: Option<DeviceId>, ranges: &[HoldRange], how: Hold) -> Result<(), RangeError> {
        let (found, context) = self.find(space, device)?;
        let sorted = sorted(ranges)?;
        self.size_of_hold(&found, context.as_ref(), &sorted)?;
        for (n, hold) in sorted.iter().enumerate() {
            let mut end = hold.range.start();
            let result = self.each_mapped_page(&found, hold.range, |region, page| {
                let page = region.page(page);
                // What this call holds already can only get more access.
                let how = if is_among(&sorted[..n], page) { Hold::No } else { how };
                if self.bring(&found, context.as_ref(), page.start(), hold.access, how)? == Touched::Pending {
                    return Err(RangeError::Held(page.start()));
                }
                end = page.end();
                Ok(())
            });
            if let Err(e) = result {
                self.let_go(&found, context.as_ref(), &sorted[..n], VirtRange::new(hold.range.start(), end));
                return Err(e);
            }
        }
        Ok(())
    }

    /// How many bytes these ranges take on `device` in whole pages, what they have in common once, and how many its memories can hold, whoever has some now.
    /// Nothing and everything for a context that has no pages of its own there. Does not block.
    ///
    /// # Errors
    /// [`RangeError::DoesNotFit`] if that is less, or less of one page size.
    pub fn hold_size(&self, space: SpaceId, device: DeviceId, ranges: &[HoldRange]) -> Result<(ByteLen, ByteLen), RangeError> {
        let (found, context) = self.find(space, Some(device))?;
        self.size_of_hold(&found, context.as_ref(), &sorted(ranges)?)
    }

    fn size_of_hold(
        &self,
        space: &Arc<Space<P>>,
        context: Option<&Arc<Context<P>>>,
        sorted: &[HoldRange],
    ) -> Result<(ByteLen, ByteLen), RangeError> {
        let Some(context) = context.filter(|context| context.mode == Mode::CoherentExclusive) else {
            return Ok((ByteLen(0), ByteLen(u64::MAX)));
        };
        let pools = context.device.pools();
        let guard = space.lock();
        let mut asked = PageSize::ALL.map(|size| (size, 0));
        let mut counted = VirtAddr::new(0);
        for hold in sorted {
            for region in guard.regions_in(hold.range) {
                let first = region.page(hold.range.start().max(region.range.start())).start().max(counted);
                let end = region.page(VirtAddr::new(hold.range.end().get().min(region.range.end().get()) - 1)).end();
                let of_size = asked.iter_mut().filter(|(size, _)| *size == region.attrs.page_size);
                of_size.for_each(|(_, bytes)| *bytes += end.get().saturating_sub(first.get()));
                counted = counted.max(end);
            }
        }
        drop(guard);
        let room = |size| pools.iter().map(|hnode| hnode.usable(size).get()).sum::<u64>();
        let all = (asked.iter().map(|(_, bytes)| *bytes).sum::<u64>(), room(PageSize::Size4K));
        let each = asked.iter().map(|(size, bytes)| (*bytes, room(*size)));
        // Without any memory the device is on its way out, or its memory is being exchanged: who tries is told.
        match [all].into_iter().chain(each).find(|(asked, room)| asked > room && !pools.is_empty()) {
            Some((asked, room)) => Err(RangeError::DoesNotFit { asked: ByteLen(asked), room: ByteLen(room) }),
            None => Ok((ByteLen(all.0), ByteLen(all.1))),
        }
    }

    /// Ends a hold made with the same `device` and `ranges`, and wakes whoever waits for the pages. A device that cannot replay faults sees them no longer, unless
    /// another launch holds them too. May block.
    ///
    /// # Errors
    /// [`RangeError::NoSuchSpace`].
    pub fn unhold(&self, space: SpaceId, device: Option<DeviceId>, ranges: &[HoldRange]) -> Result<(), RangeError> {
        let (found, context) = match self.find(space, device) {
            // Without its context a device sees nothing any more.
            Err(RangeError::NotAttached(_)) => self.find(space, None)?,
            found => found?,
        };
        self.let_go(&found, context.as_ref(), ranges, None);
        Ok(())
    }

    /// Each page of `ranges` and of what was held after them.
    fn let_go(&self, space: &Arc<Space<P>>, context: Option<&Arc<Context<P>>>, ranges: &[HoldRange], then: Option<VirtRange>) {
        for (n, range) in ranges.iter().map(|hold| hold.range).chain(then).enumerate() {
            self.unhold_range(space, range, &ranges[..n]);
            if let Some(context) = context {
                self.close(space, context, range);
            }
        }
    }

    /// Those pages of `range` that are in none of the ranges before.
    fn unhold_range(&self, space: &Arc<Space<P>>, range: VirtRange, before: &[HoldRange]) {
        let _ = self.each_page(space, range, |region, page| {
            if is_among(before, region.page(page)) {
                return Ok(());
            }
            let mut guard = space.lock();
            // A held page is not unmapped, but a region beside it may have been split off since.
            let Some(region) = &guard.region_at(page) else { return Ok(()) };
            let mut entry = guard.entry(region, page);
            entry.holds = entry.holds.saturating_sub(1);
            let wake = entry.holds == 0 && entry.waiters;
            entry.waiters &= !wake;
            guard.set_entry(region, page, entry);
            self.relist(&entry);
            drop(guard);
            self.wake(space, region, region.page(page), Ended::free(wake));
            Ok(())
        });
    }

    /// Takes the pages of `range` that no launch holds any more from the sight of a device that cannot replay faults, and leaves them in its memory.
    pub(crate) fn close(&self, space: &Arc<Space<P>>, context: &Context<P>, range: VirtRange) {
        if context.is_replayable() {
            return;
        }
        let mut batch = Batch::new();
        let _ = self.each_page(space, range, |_, page| {
            let op = self.seize(space, page, || self.close_batch(context, ::core::mem::take(&mut batch)));
            let Some(op) = op else { return Ok(()) };
            // The device may have been detached and attached again: its new context closes what is its own.
            let own = op.from.as_ref().is_some_and(|from| ::core::ptr::eq(&**from, context));
            if own && space.lock().entry(&op.region, page).holds == 0 {
                batch.push(op);
            } else {
                self.keep(op, false);
            }
            if batch.is_full() {
                self.close_batch(context, ::core::mem::take(&mut batch));
            }
            Ok(())
        });
        self.close_batch(context, batch);
    }

    fn close_batch(&self, context: &Context<P>, batch: Batch<'_, P>) {
        self.restrict(context, &batch.iter().map(|op| op.page).collect::<ArrayVec<_, EVICT_BATCH>>(), Prot::empty());
        batch.into_iter().for_each(|op| self.keep(op, false));
    }

    /// Lowers what a context may do in `ranges`, with one invalidation. One that does not answer is fenced.
    pub(crate) fn restrict(&self, context: &Context<P>, ranges: &[VirtRange], prot: Prot) {
        if ranges.is_empty() {
            return;
        }
        if context.is_fenced() {
            // Until a fence that is under way has ended, the device may use what it has.
            self.fence(context);
            return;
        }
        let (mmu, pmap) = (context.mmu(), context.own_pmap());
        let lowered = ranges.iter().try_for_each(|range| mmu.pmap_protect(pmap, *range, prot));
        self.revoked(context, lowered.and_then(|()| mmu.tlb_invalidate_coalesced(pmap, ranges)));
        self.counters.coalesced_invalidations.add(1);
    }
}

/// Whether one of the ranges has a part of the page. A page is held once, however often it is named.
fn is_among(ranges: &[HoldRange], page: VirtRange) -> bool {
    // Of many small ones in a page the last has it too.
    ranges.iter().rev().any(|hold| hold.range.overlaps(page))
}

/// The ranges by their first addresses.
fn sorted(ranges: &[HoldRange]) -> Result<Vec<HoldRange>, RangeError> {
    let mut sorted: Vec<HoldRange> = Vec::new();
    sorted.try_reserve_exact(ranges.len()).map_err(|_| OutOfMemory)?;
    sorted.extend_from_slice(ranges);
    sorted.sort_by_key(|hold| hold.range.start());
    Ok(sorted)
}
