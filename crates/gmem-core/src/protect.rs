//! Changing what a range allows.

use crate::context::Table;
use crate::core::Core;
use crate::entry::State;
use crate::error::RangeError;
use crate::execute::Op;
use crate::hnode::EVICT_BATCH;
use crate::map::whole;
use crate::space::Space;
use alloc::sync::Arc;
use arrayvec::ArrayVec;
use gmem_hal::{Backing, Host, HostError, Mode, Platform, Prot, SpaceId, VirtRange};

/// Pages that are about to lose access.
type Batch<'a, P> = ArrayVec<Op<'a, P>, EVICT_BATCH>;

impl<P: Platform> Core<P> {
    /// Changes what CPU and devices may do in `range`, all of which must be mapped. [`Prot::WRITE`] implies [`Prot::READ`]. When it returns, no access that
    /// `prot` forbids is possible any more; accesses it newly allows are granted as they fault. May block.
    ///
    /// # Errors
    /// [`RangeError::NotMapped`] with the first hole, [`RangeError::Misaligned`]; the host's refusal, such as that the kernel holds a page of private backing
    /// pinned. Then the old protection is in force everywhere.
    pub fn protect(&self, space: SpaceId, range: VirtRange, prot: Prot) -> Result<(), RangeError> {
        let prot = whole(prot);
        let space = self.space(space).ok_or(RangeError::NoSuchSpace(space))?;
        let _gate = space.enter_gate("protect").ok_or(RangeError::NoSuchSpace(space.id))?;
        self.check_mapped(&space, range)?;
        self.isolate(&space, range)?;
        let result = self.protect_regions(&space, range, prot);
        self.rejoin(&space, range);
        result
    }

    /// Changes every region of `range`, or none.
    fn protect_regions(&self, space: &Arc<Space<P>>, range: VirtRange, prot: Prot) -> Result<(), RangeError> {
        // The truth and what the host allows change at one moment for everybody: no operation sees one without the other.
        space.begin_change(range);
        let answer = self.take_private_home(space, range).and_then(|()| self.protect_on_host(space, range, prot));
        space.end_change(range, |region| {
            if answer.is_ok() {
                region.lowering = !prot.contains(region.attrs.prot);
                region.attrs.prot = prot;
            }
        });
        for region in space.walk(range) {
            // Whoever came for another part of the same mapping waits too.
            let waiting = space.lock().mapped_with(&region);
            self.platform.host().wake(&space.host, &region.pages(waiting));
        }
        answer?;
        for region in space.walk(range).filter(|region| region.lowering) {
            self.lower(space, region.range, prot);
            space.lock().update(region.range, |r| r.lowering = false);
        }
        Ok(())
    }

    fn protect_on_host(&self, space: &Space<P>, range: VirtRange, prot: Prot) -> Result<(), HostError> {
        let host = self.platform.host();
        for region in space.walk(range) {
            if let Err(e) = host.region_protect(&space.host, &region.pages(region.range), prot) {
                // Of the last one half may be done. The host gives back what was there.
                for done in space.walk(range).take_while(|r| r.range.start() <= region.range.start()) {
                    let _ = host.region_protect(&space.host, &done.pages(done.range), done.attrs.prot);
                }
                return Err(e);
            }
        }
        Ok(())
    }

    /// Takes the pages of private backing in `range` from the CPU: how they move depends on what they allow.
    fn take_private_home(&self, space: &Space<P>, range: VirtRange) -> Result<(), HostError> {
        for region in space.walk(range).filter(|region| region.attrs.backing == Backing::Private) {
            self.for_each_touched(space, region.range, |state, page| match state {
                State::Host => self.platform.host().cpu_unmap(&space.host, &region.pages(region.page(page))),
                _ => Ok(()),
            })?;
        }
        Ok(())
    }

    /// Whether every page of `range` is mapped.
    pub(crate) fn check_mapped(&self, space: &Space<P>, range: VirtRange) -> Result<(), RangeError> {
        let inner = space.lock();
        let mut at = range.start();
        for region in inner.regions_in(range) {
            if region.range.start() > at || region.closing {
                break;
            }
            at = region.range.end();
        }
        if at < range.end() { Err(RangeError::NotMapped(at)) } else { Ok(()) }
    }

    /// Takes access away from every device table that has pages of `range`, in batches with one invalidation per table.
    fn lower(&self, space: &Arc<Space<P>>, range: VirtRange, prot: Prot) {
        let mut batch = Batch::new();
        let _ = self.for_each_touched(space, range, |state, va| {
            if state == State::Unmapped {
                return Ok::<(), ()>(());
            }
            // Nobody waits for a page with others in hand.
            let op = self.seize(space, va, || self.lower_batch(space, ::core::mem::take(&mut batch), prot));
            batch.extend(op);
            if batch.is_full() {
                self.lower_batch(space, ::core::mem::take(&mut batch), prot);
            }
            Ok(())
        });
        self.lower_batch(space, batch, prot);
    }

    fn lower_batch(&self, space: &Space<P>, batch: Batch<'_, P>, prot: Prot) {
        for context in space.contexts().iter().filter(|c| matches!(c.table, Table::Own(_))) {
            let has = |op: &&Op<'_, P>| match &op.from {
                Some(from) => from.device.id == context.device.id,
                None => context.mode == Mode::Replicate && op.state == State::Host,
            };
            let ranges: ArrayVec<VirtRange, EVICT_BATCH> = batch.iter().filter(has).map(|op| op.page).collect();
            self.restrict(context, &ranges, prot);
        }
        for op in batch {
            self.keep(op, false);
        }
    }
}
