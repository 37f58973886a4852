//! Saying where pages should be: prefetch, discard, pin; and asking where they are.

use crate::context::Context;
use crate::core::Core;
use crate::entry::State;
use crate::error::RangeError;
use crate::execute::Cause;
use crate::fault::{Hold, Touch, Touched, Who, list_of};
use crate::space::{Region, Space};
use alloc::sync::Arc;
use alloc::vec::Vec;
use gmem_hal::{Access, DeviceId, Platform, SpaceId, VirtAddr, VirtRange};

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

impl<P: Platform> Core<P> {
    /// Brings the pages of `range`, rounded outward, to a device, or home with `None`. All of it must be mapped: over a hole nothing moves. Returns how many pages moved; what
    /// others moved meanwhile does not count, so several at once end and move each page once. A device that cannot
    /// replay faults has them in its memory then, and sees them when a launch names them. May block.
    ///
    /// # Errors
    /// [`RangeError::Fault`] with the first page that could not be brought; those before it were.
    pub fn prefetch(&self, space: SpaceId, range: VirtRange, device: Option<DeviceId>, access: Access) -> Result<usize, RangeError> {
        let (space, context) = self.find(space, device)?;
        let mut moved = 0;
        let result = self.each_mapped_page(&space, range, |_, page| {
            let touched = self.bring(&space, context.as_ref(), page, access, Hold::No)?;
            moved += usize::from(touched == Touched::Moved);
            Ok(())
        });
        if let Some(context) = &context {
            self.close(&space, context, range);
        }
        result.map(|()| moved)
    }

    /// Gives up the contents of the whole pages inside `range`: they read as zero from now on (`MADV_DONTNEED` of the original). Holes are passed over. Waits for
    /// launches that hold pages. May block.
    ///
    /// # Errors
    /// [`RangeError::Fault`] with the first page that cannot be taken from where it is, such as one that the kernel holds pinned; it keeps its contents.
    pub fn discard(&self, space: SpaceId, range: VirtRange) -> Result<(), RangeError> {
        let space = self.space(space).ok_or(RangeError::NoSuchSpace(space))?;
        self.for_each_touched(&space, range, |_, va| self.discard_page(&space, range, va).map_err(|e| RangeError::Fault(va, e)))
    }

    /// Keeps the pages of `range` from being evicted, wherever they are, until as many [`Core::unpin`]. Accesses still move them: coherence comes first. Does not
    /// block.
    ///
    /// # Errors
    /// [`RangeError::TooManyPins`] at 255; then no page was pinned.
    pub fn pin(&self, space: SpaceId, range: VirtRange) -> Result<(), RangeError> {
        let found = self.space(space).ok_or(RangeError::NoSuchSpace(space))?;
        let mut pinned = None;
        let result = self.each_mapped_page(&found, range, |region, page| {
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
    pub(crate) fn relist(&self, entry: &crate::entry::Entry) {
        if !entry.busy
            && let Some(frame) = entry.frame
            && let Some(hnode) = self.hnode(entry.hnode)
        {
            hnode.resettle(frame, list_of(entry));
        }
    }

    /// Brings one page to a context, or home.
    pub(crate) fn bring(
        &self,
        space: &Arc<Space<P>>,
        context: Option<&Arc<Context<P>>>,
        page: VirtAddr,
        access: Access,
        hold: Hold,
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

    pub(crate) fn find(&self, space: SpaceId, device: Option<DeviceId>) -> Result<(Arc<Space<P>>, Option<Arc<Context<P>>>), RangeError> {
        let found = self.space(space).ok_or(RangeError::NoSuchSpace(space))?;
        let Some(device) = device else { return Ok((found, None)) };
        let context = found.lock().context_of(device).ok_or(RangeError::NotAttached(device))?;
        let owner = self.table_owner(&found, &context);
        Ok((found, owner))
    }

    /// Calls `each` for every page of `range`, rounded outward, all of which must be mapped and stay so: [`RangeError::NotMapped`] with the first that is not, after
    /// those before it. To pass over a page that was unmapped meanwhile would be to say that something was done to it, and to undo that later on whatever is
    /// mapped there then.
    pub(crate) fn each_mapped_page(
        &self,
        space: &Space<P>,
        range: VirtRange,
        mut each: impl FnMut(&Region, VirtAddr) -> Result<(), RangeError>,
    ) -> Result<(), RangeError> {
        self.check_mapped(space, range)?;
        let mut end = range.start();
        self.each_page(space, range, |region, page| {
            if page > end {
                return Err(RangeError::NotMapped(end));
            }
            each(region, page)?;
            end = region.page(page).end();
            Ok(())
        })?;
        if end < range.end() { Err(RangeError::NotMapped(end)) } else { Ok(()) }
    }

    /// Calls `each` for every page of every region in `range`, rounded outward, with no lock held: the region may be gone when `each` looks.
    pub(crate) fn each_page(
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
