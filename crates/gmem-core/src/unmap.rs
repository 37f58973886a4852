//! Unmapping, and walking the touched pages of a range.

use crate::context::Table;
use crate::core::Core;
use crate::entry::{PageEvent, State};
use crate::error::RangeError;
use crate::execute::{Cause, Op};
use crate::fault::Touch;
use crate::hnode::EVICT_BATCH;
use crate::plan::{Owner, Step, Wish, plan};
use crate::space::{Change, Contexts, REGION_BYTES, Region, Space};
use alloc::sync::Arc;
use arrayvec::ArrayVec;
use gmem_hal::{FaultError, Host, Platform, SpaceId, VirtAddr, VirtRange, WaitKind};

/// Pages whose devices are about to lose them.
type Batch<'a, P> = ArrayVec<Op<'a, P>, EVICT_BATCH>;

/// How many entries are looked at in one hold of the space lock.
const SCAN: usize = 4096;

impl<P: Platform> Core<P> {
    /// Unmaps `range`, which may cover several regions, parts of regions, and holes. Waits for launches that hold pages of it. May block.
    ///
    /// # Errors
    /// [`RangeError::Misaligned`] if an end falls inside a page; nothing was unmapped then.
    pub fn unmap(&self, space: SpaceId, range: VirtRange) -> Result<(), RangeError> {
        let space = self.space(space).ok_or(RangeError::NoSuchSpace(space))?;
        let _gate = space.enter_gate("unmap").ok_or(RangeError::NoSuchSpace(space.id))?;
        self.isolate(&space, range)?;
        for region in space.walk(range) {
            self.unmap_region(&space, region);
        }
        Ok(())
    }

    /// Unmaps everything, under the gate.
    pub(crate) fn unmap_all(&self, space: &Arc<Space<P>>) {
        for region in space.walk(space.range) {
            self.unmap_region(space, region);
        }
    }

    fn unmap_region(&self, space: &Arc<Space<P>>, region: Region) {
        // From here on faults find nothing, so a page that is untouched stays so.
        space.lock().update(region.range, |r| r.closing = true);
        let mut batch = Batch::new();
        let mut at = region.range.start();
        while let Some(page) = next_touched(space, &region, at) {
            self.begin_discard(space, &region, page, &mut batch);
            at = region.page(page).end();
        }
        self.discard_batch(batch);
        // Every page was seen idle, so nobody enters a replica any more.
        self.drop_replicas(space, region.range);
        self.platform.host().region_unmap(&space.host, &region.pages(region.range));
        let peers: Contexts<P> = space.contexts().into_iter().filter(|c| c.is_peer() && matches!(c.table, Table::Own(_))).collect();
        self.give_back(&peers, region.range);
        let (freed, table) = space.lock().remove(region.range.start());
        drop(table);
        self.platform.uncharge(freed);
        // Threads that wait in the host for a page of it are told to look again; in the core nobody can, as each page was seen idle after the region was closed.
        self.platform.host().wake(&space.host, &region.pages(region.range));
    }

    /// Takes a whole range from every replica at once; pages that are not theirs are absent there, which is no error.
    fn drop_replicas(&self, space: &Space<P>, range: VirtRange) {
        let replicas = crate::execute::replicas(&space.lock().contexts);
        for replica in replicas {
            self.revoke(&replica, range);
        }
    }

    /// Gives up the bytes of a page whose region is being unmapped: at once, or with `batch`. The home and the CPU's mapping go with the region.
    fn begin_discard<'a>(&'a self, space: &'a Arc<Space<P>>, region: &Region, page: VirtAddr, batch: &mut Batch<'a, P>) {
        loop {
            let guard = space.lock();
            let entry = guard.entry(region, page);
            if entry.busy || entry.holds > 0 {
                // Whoever has it may want a page of the batch before it lets go.
                if !batch.is_empty() {
                    drop(guard);
                    self.discard_batch(core::mem::take(batch));
                    continue;
                }
                let kind = if entry.busy { WaitKind::BusyPage } else { WaitKind::HeldPage };
                space.park(guard, region, page, kind);
                continue;
            }
            if entry.state == State::Unmapped {
                self.counters.take_transition(entry.state, PageEvent::Discard);
                return;
            }
            let (mut op, facts) = self.prepare(space, &guard, region, page, entry, &Touch::home(Cause::Other));
            self.mark_busy(guard, region, page, entry, false);
            match facts.owner {
                Owner::Nobody => self.commit(op, PageEvent::Discard),
                Owner::Frames => {
                    batch.push(op);
                    if batch.is_full() {
                        self.discard_batch(core::mem::take(batch));
                    }
                }
                Owner::Peer => {
                    // Without a copy nothing of it can fail.
                    let _ = op.run(&[Step::PeerUnmap { copy: false }].into_iter().collect());
                    self.commit(op, PageEvent::Discard);
                }
            }
            return;
        }
    }

    /// Takes pages from their devices with one invalidation per table, and gives their frames up.
    fn discard_batch(&self, mut batch: Batch<'_, P>) {
        self.revoke_batch(batch.iter_mut().collect());
        for op in batch {
            self.commit(op, PageEvent::Discard);
        }
    }

    /// Gives the bytes of the page at `va` up and frees its home, if it lies inside `range`. On an error, such as that the kernel holds the page, it is as it was.
    pub(crate) fn discard_page(&self, space: &Arc<Space<P>>, range: VirtRange, va: VirtAddr) -> Result<(), FaultError> {
        loop {
            let guard = space.lock();
            let Some(region) = guard.region_at(va).filter(|r| !r.closing && range.contains_range(r.page(va))) else { return Ok(()) };
            if guard.change(&region) != Change::No {
                space.await_change(guard, va);
                continue;
            }
            let (region, page) = (&region, region.page(va).start());
            let entry = guard.entry(region, page);
            if entry.busy || entry.holds > 0 {
                let kind = if entry.busy { WaitKind::BusyPage } else { WaitKind::HeldPage };
                space.park(guard, region, page, kind);
                continue;
            }
            if entry.state == State::Unmapped {
                self.counters.take_transition(entry.state, PageEvent::Discard);
                return Ok(());
            }
            let (mut op, facts) = self.prepare(space, &guard, region, page, entry, &Touch::home(Cause::Other));
            self.mark_busy(guard, region, page, entry, false);
            let plan = plan(&facts, Wish::Discard);
            return match op.run(&plan.steps) {
                Ok(()) => {
                    self.commit(op, plan.event);
                    Ok(())
                }
                Err(failed) => {
                    self.abandon(op, failed.state);
                    Err(failed.error)
                }
            };
        }
    }

    /// Cuts the regions in `range` at its ends, which must be page boundaries. Under the gate.
    pub(crate) fn isolate(&self, space: &Space<P>, range: VirtRange) -> Result<(), RangeError> {
        let ends = [range.start(), range.end()];
        for end in ends {
            if let Some(region) = space.lock().region_at(end).filter(|r| r.range.start() != end)
                && !end.is_aligned(region.attrs.page_size)
            {
                return Err(RangeError::Misaligned(region.attrs.page_size));
            }
        }
        // Nobody else cuts regions: the gate is ours. What cuts nothing needs nothing, so that at the limit of memory a whole region can still be unmapped.
        let cuts = ends.into_iter().filter(|end| space.lock().region_at(*end).is_some_and(|r| r.range.start() != *end)).count();
        if cuts == 0 {
            return Ok(());
        }
        self.platform.charge(cuts * REGION_BYTES)?;
        space.make_room(cuts, 0).inspect_err(|_| self.platform.uncharge(cuts * REGION_BYTES))?;
        let mut inner = space.lock();
        let made = ends.into_iter().filter(|end| inner.split(*end)).count();
        assert_eq!(made, cuts, "regions of {} were cut by somebody else", space.id);
        Ok(())
    }

    /// Makes one region again of those that meet at the ends of `range`, or inside it, and do not differ any more. Under the gate.
    pub(crate) fn rejoin(&self, space: &Space<P>, range: VirtRange) {
        let mut at = Some(range.start());
        while let Some(boundary) = at {
            let merged = space.lock().merge(boundary);
            self.platform.uncharge(usize::from(merged) * REGION_BYTES);
            // The next boundary is where the region that holds this one ends.
            at = space.lock().region_at(boundary).map(|r| r.range.end()).filter(|end| *end <= range.end());
        }
    }

    /// Calls `each` with the state and address of every page in `range` that somebody has touched. No lock is held, so the state is a hint.
    pub(crate) fn for_each_touched<E>(
        &self,
        space: &Space<P>,
        range: VirtRange,
        mut each: impl FnMut(State, VirtAddr) -> Result<(), E>,
    ) -> Result<(), E> {
        // Regions come and go meanwhile, so each look begins with the one that is there now.
        let mut at = range.start();
        while let Some(rest) = VirtRange::new(at, range.end()) {
            let (page, state, next) = {
                let inner = space.lock();
                let Some(region) = inner.regions_in(rest).next() else { return Ok(()) };
                let from = region.page(at.max(region.range.start())).start();
                match inner.next_touched(&region, from, region.range.end(), SCAN) {
                    Ok(page) => (page, Some(inner.entry(&region, page).state), region.page(page).end()),
                    Err(next) => (from, None, next.unwrap_or(region.range.end())),
                }
            };
            match state {
                Some(state) if page < range.end() => each(state, page)?,
                Some(_) => return Ok(()),
                None => {}
            }
            at = next;
        }
        Ok(())
    }

    /// Waits until every page of `range` has been seen idle once: what began before is over then.
    pub(crate) fn wait_idle(&self, space: &Arc<Space<P>>, range: VirtRange) {
        let _ = self.for_each_touched(space, range, |_, va| {
            loop {
                let guard = space.lock();
                let Some(region) = guard.region_at(va).filter(|r| guard.entry(r, va).busy) else { return Ok::<(), ()>(()) };
                space.park(guard, &region, va, WaitKind::BusyPage);
            }
        });
    }

    /// Marks a page busy as soon as it is idle, for a range call that changes physical tables only. If it must wait for that, it calls `let_go` first.
    pub(crate) fn seize<'a>(&'a self, space: &'a Arc<Space<P>>, va: VirtAddr, let_go: impl FnOnce()) -> Option<Op<'a, P>> {
        let mut let_go = Some(let_go);
        loop {
            // Of a region that is being unmapped each page is looked at once: none that was seen idle may become busy again.
            let (guard, region) = space.unchanging(|inner| inner.region_at(va).filter(|r| !r.closing))?;
            let entry = guard.entry(&region, va);
            if entry.busy {
                match let_go.take() {
                    Some(let_go) => {
                        drop(guard);
                        let_go();
                    }
                    None => space.park(guard, &region, va, WaitKind::BusyPage),
                }
                continue;
            }
            let (op, _) = self.prepare(space, &guard, &region, va, entry, &Touch::home(Cause::Other));
            self.mark_busy(guard, &region, va, entry, false);
            return Some(op);
        }
    }
}

/// The first touched page of `region`, which the caller keeps from going, at or after `from`.
fn next_touched<P: Platform>(space: &Space<P>, region: &Region, mut from: VirtAddr) -> Option<VirtAddr> {
    while from < region.range.end() {
        match space.lock().next_touched(region, from, region.range.end(), SCAN) {
            Ok(page) => return Some(page),
            Err(next) => from = next?,
        }
    }
    None
}
