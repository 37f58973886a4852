//! Changing what a range allows.

use crate::context::Table;
use crate::core::Core;
use crate::entry::State;
use crate::error::RangeError;
use crate::execute::Op;
use crate::hnode::EVICT_BATCH;
use crate::map::whole;
use crate::space::{Region, Space};
use alloc::sync::Arc;
use arrayvec::ArrayVec;
use gmem_hal::{Host, Mode, Platform, Prot, SpaceId, VirtRange};

/// Pages that are about to lose access.
type Batch<'a, P> = ArrayVec<Op<'a, P>, EVICT_BATCH>;

impl<P: Platform> Core<P> {
    /// Changes what CPU and devices may do in `range`, all of which must be mapped. [`Prot::WRITE`] implies [`Prot::READ`]. When it returns, no access that
    /// `prot` forbids is possible any more; accesses it newly allows are granted as they fault. May block.
    ///
    /// # Errors
    /// [`RangeError::NotMapped`] with the first hole, [`RangeError::Misaligned`]; the host's refusal. Then the old protection is in force everywhere.
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
        for region in space.walk(range) {
            if let Err(e) = self.protect_region(space, &region, prot) {
                for done in space.walk(range).take_while(|r| r.range.start() < region.range.start()) {
                    // Giving back what was allowed before needs nothing that was not there before.
                    let _ = self.protect_region(space, &done, done.prot_before);
                }
                return Err(e);
            }
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

    fn protect_region(&self, space: &Arc<Space<P>>, region: &Region, prot: Prot) -> Result<(), RangeError> {
        let old = region.attrs.prot;
        let set = |prot: Prot, lowering: bool| {
            space.lock().update(region.range, |r| {
                r.attrs.prot = prot;
                r.prot_before = old;
                r.lowering = lowering;
            });
        };
        // Nobody may map more than the host allows. So to take access away the truth goes first: operations that begin from here on use the new
        // protection, and those that began before are waited for. To give access the host goes first.
        let lowers = !prot.contains(old);
        if lowers {
            set(prot, true);
            self.wait_idle(space, region.range);
        }
        let attrs = gmem_hal::RegionAttrs { prot, ..region.attrs };
        let answer = self.platform.host().region_protect(&space.host, &gmem_hal::Pages { range: region.range, attrs });
        if answer.is_ok() && lowers {
            self.lower(space, region.range, prot);
        }
        set(if answer.is_ok() { prot } else { old }, false);
        Ok(answer?)
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
