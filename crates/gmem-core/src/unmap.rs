//! Unmapping, and walking the touched pages of a range.

use crate::core::Core;
use crate::entry::{Entry, State};
use crate::error::RangeError;
use crate::execute::{Cause, Op};
use crate::fault::{Touch, Who};
use crate::map::give_back;
use crate::plan::{Owner, Step, Wish, plan};
use crate::space::{Region, Space};
use alloc::sync::Arc;
use alloc::vec::Vec;
use gmem_hal::{Host, Platform, SpaceId, VirtAddr, VirtRange, WaitKind};

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
        let regions = isolate(&space, range)?;
        for region in regions {
            self.unmap_region(&space, region);
        }
        Ok(())
    }

    /// Unmaps everything, under the gate.
    pub(crate) fn unmap_all(&self, space: &Arc<Space<P>>) {
        let regions: Vec<_> = space.lock().regions().collect();
        for region in regions {
            self.unmap_region(space, region);
        }
    }

    fn unmap_region(&self, space: &Arc<Space<P>>, region: Region) {
        // From here on faults find nothing, so a page that is untouched stays so.
        space.lock().update(region.range, |r| r.closing = true);
        let mut at = region.range.start();
        while let Some(page) = next_touched(space, &region, at) {
            self.discard_page(space, &region, page, false);
            at = region.page(page).end();
        }
        // Every page was seen idle, so nobody enters a replica any more.
        self.drop_replicas(space, region.range);
        self.platform.host().region_unmap(&space.host, &region.pages(region.range));
        let peers: Vec<_> = space.lock().contexts.iter().filter(|c| c.is_peer()).cloned().collect();
        give_back(&peers, region.range);
        let freed = space.lock().remove(region.range.start());
        self.platform.uncharge(freed);
        // Whoever parked for a page of it finds nothing now.
        self.wake(space, &region, region.range, true);
    }

    /// Takes a whole range from every replica at once; pages that are not theirs are absent there, which is no error.
    fn drop_replicas(&self, space: &Space<P>, range: VirtRange) {
        let replicas = crate::execute::replicas(&space.lock().contexts);
        for replica in replicas {
            self.revoke(&replica, range);
        }
    }

    /// Gives a page's bytes up. With `host` the CPU is cut off and the home freed too; without, the caller does that for the whole region. Returns an error only
    /// if the kernel holds the page.
    pub(crate) fn discard_page(&self, space: &Arc<Space<P>>, region: &Region, page: VirtAddr, host: bool) -> bool {
        loop {
            let guard = space.lock();
            // A discard holds no gate: while it waited, the region may have gone, or another come.
            let same = |r: &Region| r.attrs.page_size == region.attrs.page_size && !(host && r.closing);
            let Some(region) = guard.region_at(page).filter(same) else { return true };
            let region = &region;
            let entry = guard.entry(region, page);
            if entry.busy || entry.holds > 0 {
                let kind = if entry.busy { WaitKind::BusyPage } else { WaitKind::HeldPage };
                space.park(guard, region, page, kind);
                continue;
            }
            if entry.state == State::Unmapped {
                return true;
            }
            let touch = Touch { who: Who::Host { may_wait: true }, access: None, cause: Cause::Other, hot: false, hold: false };
            let (mut op, facts) = self.prepare(space, &guard, region, page, entry, &touch);
            self.mark_busy(guard, region, page, entry, false);
            let mut plan = plan(&facts, Wish::Discard);
            if !host {
                plan.steps.retain(|s| !matches!(s, Step::CpuUnmap | Step::DiscardHome));
            }
            if facts.owner == Owner::Nobody && !host {
                plan.steps.clear();
            }
            return match op.run(&plan.steps) {
                Ok(()) => {
                    self.commit(op, plan.next);
                    true
                }
                Err(failed) => {
                    self.abandon(op, failed.state);
                    false
                }
            };
        }
    }

    /// Calls `each` with the state and address of every page in `range` that somebody has touched. No lock is held, so the state is a hint, and regions
    /// may come and go meanwhile.
    pub(crate) fn for_each_touched<E>(
        &self,
        space: &Space<P>,
        range: VirtRange,
        mut each: impl FnMut(State, VirtAddr) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = Some(range);
        while let Some((state, page)) = rest.and_then(|rest| touched_in(space, rest)) {
            each(state, page.start())?;
            rest = VirtRange::new(page.end(), range.end());
        }
        Ok(())
    }

    /// Waits until every page has been seen idle once.
    pub(crate) fn settle_all(&self, space: &Arc<Space<P>>) {
        let _ = self.for_each_touched(space, space.range, |_, va| {
            loop {
                let guard = space.lock();
                let Some(region) = guard.region_at(va) else { return Ok(()) };
                if !guard.entry(&region, va).busy {
                    return Ok::<(), ()>(());
                }
                space.park(guard, &region, va, WaitKind::BusyPage);
            }
        });
    }

    /// Marks a page busy as soon as it is idle, for a range call that changes physical tables only.
    pub(crate) fn seize<'a>(&'a self, space: &'a Arc<Space<P>>, va: VirtAddr) -> Option<(Op<'a, P>, Entry)> {
        loop {
            let guard = space.lock();
            let region = guard.region_at(va)?;
            let entry = guard.entry(&region, va);
            if entry.busy {
                space.park(guard, &region, va, WaitKind::BusyPage);
                continue;
            }
            let touch = Touch { who: Who::Host { may_wait: true }, access: None, cause: Cause::Other, hot: false, hold: false };
            let (op, _) = self.prepare(space, &guard, &region, va, entry, &touch);
            self.mark_busy(guard, &region, va, entry, false);
            return Some((op, entry));
        }
    }
}

/// The first touched page in `range`, and its state.
fn touched_in<P: Platform>(space: &Space<P>, mut range: VirtRange) -> Option<(State, VirtRange)> {
    loop {
        let inner = space.lock();
        let region = inner.regions_in(range).next()?;
        let from = region.page(range.start().max(region.range.start())).start();
        let next = match inner.next_touched(&region, from, region.range.end(), SCAN) {
            Ok(page) => return (page < range.end()).then(|| (inner.entry(&region, page).state, region.page(page))),
            Err(next) => next.unwrap_or(region.range.end()),
        };
        range = VirtRange::new(next, range.end())?;
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

/// Cuts the regions in `range` at its ends, which must be page boundaries, and returns the parts inside.
pub(crate) fn isolate<P: Platform>(space: &Space<P>, range: VirtRange) -> Result<Vec<Region>, RangeError> {
    let mut inner = space.lock();
    for end in [range.start(), range.end()] {
        if let Some(region) = inner.region_at(end).filter(|r| r.range.start() != end)
            && !end.is_aligned(region.attrs.page_size)
        {
            return Err(RangeError::Misaligned(region.attrs.page_size));
        }
    }
    inner.split(range.start());
    inner.split(range.end());
    Ok(inner.regions_in(range).collect())
}
