//! Saying where pages should be: prefetch, discard, pin, hold; and asking where they are.

use crate::context::Context;
use crate::core::Core;
use crate::entry::State;
use crate::error::RangeError;
use crate::execute::Cause;
use crate::fault::{Touch, Touched, Who, list_of};
use crate::space::{Region, Space};
use alloc::sync::Arc;
use alloc::vec::Vec;
use gmem_hal::{Access, DeviceId, FaultError, Platform, SpaceId, VirtAddr, VirtRange};

/// Where a run of pages is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Residence {
    /// The pages.
    pub range: VirtRange,
    /// Their state.
    pub state: State,
    /// The device they are on, in state [`State::Device`] or [`State::Duplicated`].
    pub device: Option<DeviceId>,
    /// Whether they are pinned, or held by a launch.
    pub pinned: bool,
}

/// A range that a launch will touch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HoldRange {
    /// The bytes; every page they lie in is held.
    pub range: VirtRange,
    /// How the launch touches them.
    pub access: Access,
}

impl<P: Platform> Core<P> {
    /// Brings the pages of `range`, rounded outward, to a device, or home with `None`. All of it must be mapped. Returns how many pages moved. May block.
    ///
    /// # Errors
    /// [`RangeError::Fault`] with the first page that could not be brought; those before it were.
    pub fn prefetch(&self, space: SpaceId, range: VirtRange, device: Option<DeviceId>, access: Access) -> Result<usize, RangeError> {
        let (space, context) = self.find(space, device)?;
        self.check_mapped(&space, range)?;
        let mut moved = 0;
        self.each_page(&space, range, |_, page| {
            let touched = self.bring(&space, context.as_ref(), page, access, false)?;
            moved += usize::from(touched == Touched::Moved);
            Ok(())
        })?;
        Ok(moved)
    }

    /// Gives up the contents of the whole pages inside `range`: they read as zero from now on (`MADV_DONTNEED` of the original). Holes are passed over. Waits for
    /// launches that hold pages. May block.
    ///
    /// # Errors
    /// [`RangeError::Fault`] with a page that the kernel holds pinned; it keeps its contents.
    pub fn discard(&self, space: SpaceId, range: VirtRange) -> Result<(), RangeError> {
        let space = self.space(space).ok_or(RangeError::NoSuchSpace(space))?;
        self.for_each_touched(&space, range, |_, va| match self.discard_page(&space, range, va) {
            true => Ok(()),
            false => Err(RangeError::Fault(va, FaultError::Host(gmem_hal::HostError::Pinned))),
        })
    }

    /// Keeps the pages of `range` from being evicted, wherever they are, until as many [`Core::unpin`]. Accesses still move them: coherence comes first. Does not
    /// block.
    ///
    /// # Errors
    /// [`RangeError::TooManyPins`] at 255; then no page was pinned.
    pub fn pin(&self, space: SpaceId, range: VirtRange) -> Result<(), RangeError> {
        let found = self.space(space).ok_or(RangeError::NoSuchSpace(space))?;
        self.check_mapped(&found, range)?;
        let mut pinned = None;
        let result = self.each_page(&found, range, |region, page| {
            self.change_pins(&found, page, true)?;
            pinned = Some(region.page(page).end());
            Ok(())
        });
        if let (Err(_), Some(end)) = (&result, pinned)
            && let Some(done) = VirtRange::new(range.start(), end)
        {
            let _ = self.unpin(space, done);
        }
        result
    }

    /// Takes one [`Core::pin`] back. Does not block.
    ///
    /// # Errors
    /// [`RangeError::NotPinned`] with the first page that has no pin; those before it lost one.
    pub fn unpin(&self, space: SpaceId, range: VirtRange) -> Result<(), RangeError> {
        let space = self.space(space).ok_or(RangeError::NoSuchSpace(space))?;
        self.each_page(&space, range, |_, page| self.change_pins(&space, page, false))
    }

    fn change_pins(&self, space: &Space<P>, page: VirtAddr, add: bool) -> Result<(), RangeError> {
        let mut guard = space.lock();
        // It was there a moment ago; somebody may have unmapped it since.
        let region = &guard.region_at(page).filter(|r| !r.closing).ok_or(RangeError::NotMapped(page))?;
        let page = region.page(page).start();
        let mut entry = guard.entry(region, page);
        entry.pins = match add {
            true => entry.pins.checked_add(1).ok_or(RangeError::TooManyPins(page))?,
            false => entry.pins.checked_sub(1).ok_or(RangeError::NotPinned(page))?,
        };
        guard.set_entry(region, page, entry);
        self.relist(&entry);
        Ok(())
    }

    /// Puts a page's frame on the list its entry asks for. Called under the space lock; whoever has the page busy does it at the end anyway.
    fn relist(&self, entry: &crate::entry::Entry) {
        if !entry.busy
            && let Some(frame) = entry.frame
            && let Some(hnode) = self.hnode(entry.hnode)
        {
            hnode.resettle(frame, list_of(entry));
        }
    }

    /// Brings exactly the pages of `ranges` to where `device` can touch them without a fault, or home with `None` (for I/O by the kernel), and keeps them there until
    /// [`Core::unhold`]: everybody else who wants to move them waits. All or nothing. Pages are taken in the order of their addresses, so holds cannot wait for each other in a circle. May block.
    ///
    /// # Errors
    /// [`RangeError::Fault`] with [`FaultError::NoDeviceMemory`] if they do not fit.
    pub fn hold(&self, space: SpaceId, device: Option<DeviceId>, ranges: &[HoldRange]) -> Result<(), RangeError> {
        let (found, context) = self.find(space, device)?;
        let mut sorted: Vec<HoldRange> = ranges.to_vec();
        sorted.sort_by_key(|hold| hold.range.start());
        for (n, hold) in sorted.iter().enumerate() {
            let mut end = hold.range.start();
            let result = self.check_mapped(&found, hold.range).and_then(|()| {
                self.each_page(&found, hold.range, |region, page| {
                    self.bring(&found, context.as_ref(), page, hold.access, true)?;
                    end = region.page(page).end();
                    Ok(())
                })
            });
            if let Err(e) = result {
                self.unhold_range(&found, VirtRange::new(hold.range.start(), end));
                for hold in &sorted[..n] {
                    self.unhold_range(&found, Some(hold.range));
                }
                return Err(e);
            }
        }
        Ok(())
    }

    /// Ends a hold made with the same `ranges`, and wakes whoever waits for the pages.
    ///
    /// # Errors
    /// [`RangeError::NoSuchSpace`].
    pub fn unhold(&self, space: SpaceId, ranges: &[HoldRange]) -> Result<(), RangeError> {
        let space = self.space(space).ok_or(RangeError::NoSuchSpace(space))?;
        for hold in ranges {
            self.unhold_range(&space, Some(hold.range));
        }
        Ok(())
    }

    fn unhold_range(&self, space: &Arc<Space<P>>, range: Option<VirtRange>) {
        let Some(range) = range else { return };
        let _ = self.each_page(space, range, |_, page| {
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
            self.wake(space, region, region.page(page), wake);
            Ok(())
        });
    }

    /// Brings one page to a context, or home.
    fn bring(
        &self,
        space: &Arc<Space<P>>,
        context: Option<&Arc<Context<P>>>,
        page: VirtAddr,
        access: Access,
        hold: bool,
    ) -> Result<Touched, RangeError> {
        let who = match context {
            Some(context) => Who::Context(context),
            None => Who::Host { may_wait: true },
        };
        let touched = self.touch(space, page, &Touch { who, access: Some(access), cause: Cause::Prefetch, hot: true, hold });
        let touched = touched.map_err(|e| RangeError::Fault(page, e))?;
        if touched == Touched::Moved {
            self.counters.migrations.add(1);
        }
        Ok(touched)
    }

    fn find(&self, space: SpaceId, device: Option<DeviceId>) -> Result<(Arc<Space<P>>, Option<Arc<Context<P>>>), RangeError> {
        let found = self.space(space).ok_or(RangeError::NoSuchSpace(space))?;
        let Some(device) = device else { return Ok((found, None)) };
        let context = found.lock().context_of(device).ok_or(RangeError::NotAttached(device))?;
        let owner = self.table_owner(&found, &context);
        Ok((found, owner))
    }

    /// Calls `each` for every page of every region in `range`, rounded outward, with no lock held: the region may be gone when `each` looks.
    fn each_page(
        &self,
        space: &Space<P>,
        range: VirtRange,
        mut each: impl FnMut(&Region, VirtAddr) -> Result<(), RangeError>,
    ) -> Result<(), RangeError> {
        let mut at = range.start();
        while at < range.end() {
            let region = space.lock().regions_in(VirtRange::new(at, range.end()).ok_or(RangeError::Empty)?).next();
            let Some(region) = region else { return Ok(()) };
            let page = region.page(at.max(region.range.start()));
            if page.start() >= range.end() {
                return Ok(());
            }
            each(&region, page.start())?;
            at = page.end();
        }
        Ok(())
    }

    /// Where the pages of `range` are, in runs; holes are left out. A snapshot: pages may move meanwhile. Does not block and faults nothing in.
    pub fn residency(&self, space: SpaceId, range: VirtRange) -> Result<Vec<Residence>, RangeError> {
        let space = self.space(space).ok_or(RangeError::NoSuchSpace(space))?;
        let mut runs: Vec<Residence> = Vec::new();
        self.each_page(&space, range, |_, page| {
            let inner = space.lock();
            let Some(region) = inner.region_at(page) else { return Ok(()) };
            let entry = inner.entry(&region, region.page(page).start());
            drop(inner);
            let device = if entry.state.on_device() { self.hnode(entry.hnode).map(|h| h.device) } else { None };
            let one = Residence { range: region.page(page), state: entry.state, device, pinned: entry.pins > 0 || entry.holds > 0 };
            match runs.last_mut() {
                Some(last) if last.range.end() == page && (last.state, last.device, last.pinned) == (one.state, one.device, one.pinned) => {
                    last.range = VirtRange::new(last.range.start(), one.range.end()).expect("a run grows");
                }
                _ => runs.push(one),
            }
            Ok(())
        })?;
        Ok(runs)
    }
}
