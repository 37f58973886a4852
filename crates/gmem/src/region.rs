//! A mapped region, for those who want addresses rather than vectors.

use crate::error::Error;
use crate::file::{Backing, FileError};
use crate::space::AddressSpace;
use gmem_core::{HoldRange, RangeError};
use gmem_hal::{Access, Prot, RegionAttrs, VirtRange};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A mapped range of an address space, unmapped on drop.
///
/// The CPU and the attached devices reach it by its addresses. Rust's rules are up to the user: this is `mmap`, not a slice.
#[derive(Debug)]
pub struct Region {
    space: AddressSpace,
    range: VirtRange,
    attrs: RegionAttrs,
    /// What of `range` was not unmapped: the rest may be another region's by now. Held over every call that changes a part, so that it still is a part.
    parts: Mutex<Vec<VirtRange>>,
    /// What is pinned for I/O. A pin borrows the region, so one that is still here when the region is dropped was forgotten.
    pinned: Mutex<Vec<VirtRange>>,
    /// The file that what is changed is written back to.
    file: Option<Backing>,
}

impl Region {
    pub(crate) fn new(space: AddressSpace, range: VirtRange, attrs: RegionAttrs) -> Self {
        Self { space, range, attrs, parts: Mutex::new(vec![range]), pinned: Mutex::default(), file: None }
    }

    pub(crate) fn backed_by(mut self, file: Backing) -> Self {
        self.file = Some(file);
        self
    }

    /// Says with which protection it was asked for, if it was mapped with another at first.
    pub(crate) fn asked_with(mut self, prot: Prot) -> Self {
        self.attrs.prot = prot;
        self
    }

    /// The addresses.
    pub fn range(&self) -> VirtRange {
        self.range
    }

    /// The attributes it was mapped with; [`Region::protect`] does not change what this says.
    pub fn attrs(&self) -> RegionAttrs {
        self.attrs
    }

    /// The address space it lies in.
    pub fn space(&self) -> &AddressSpace {
        &self.space
    }

    /// The first address, as a pointer.
    pub fn as_ptr(&self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.range.start().get() as usize)
    }

    /// Brings the pages of `range`, a part of this region, home and keeps them there until the guard is dropped: for memory of shared backing that the kernel is
    /// given for asynchronous I/O (`io_uring` registered buffers, `O_DIRECT`), of which it does not tell us. Whoever wants to move them waits
    /// meanwhile; unmapping and discarding them is refused. Memory of private backing needs no such call: the kernel tells.
    ///
    /// # Errors
    /// [`Error::Range`] if a page cannot be brought home; then nothing is held.
    pub fn pin_for_io(&self, range: VirtRange) -> Result<IoPin<'_>, Error> {
        self.space.inner.runtime.check_process()?;
        let mut pinned = self.pinned();
        let parts = self.parts();
        if !parts.iter().any(|part| part.contains_range(range)) {
            return Err(RangeError::NotMapped(first_hole(&parts, range)).into());
        }
        // From now on it is not unmapped. Who has another pin may drop it while this one waits for a launch.
        pinned.push(range);
        drop(pinned);
        let held = [HoldRange { range, access: Access::Write }];
        let result = self.space.inner.runtime.call(|core| core.hold(self.space.inner.id, None, &held));
        result.and_then(|held| Ok(held?)).inspect_err(|_| self.forget_pin(range))?;
        Ok(IoPin { region: self, range })
    }

    /// A pin of this range is over.
    fn forget_pin(&self, range: VirtRange) {
        let mut pinned = self.pinned();
        if let Some(at) = pinned.iter().position(|other| *other == range) {
            pinned.swap_remove(at);
        }
    }

    /// Writes what the CPU and the devices changed in a region of a shared file back to it ([`crate::RegionBuilder::map_file`]), after which reading the file gives it. The
    /// region's pages come home for it; launches that hold pages are waited for. Does nothing in every other region. Blocks while it writes.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be written, or is in append mode now; [`Error::Range`] if a page cannot be brought home, or nobody may read it. What lies before it was written; the rest
    /// still counts as changed.
    pub fn sync(&self) -> Result<(), Error> {
        let Some(file) = &self.file else { return Ok(()) };
        self.space.inner.runtime.check_process()?;
        self.parts().iter().try_for_each(|part| file.write_back(self, *part, false))
    }

    fn pinned(&self) -> MutexGuard<'_, Vec<VirtRange>> {
        // A push or a removal is done or not, whatever panics.
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unpin_for_io(&self, range: VirtRange) {
        let held = [HoldRange { range, access: Access::Write }];
        // The address space lives as long as this.
        let _ = self.space.inner.runtime.call(|core| core.unhold(self.space.inner.id, None, &held));
    }

    /// Refuses what would wait for a pin of ours for ever. The pages are looked at, since a pin holds whole ones.
    fn check_pins(&self, range: VirtRange) -> Result<MutexGuard<'_, Vec<VirtRange>>, Error> {
        self.space.inner.runtime.check_process()?;
        let pinned = self.pinned();
        let size = self.attrs.page_size;
        let meets = |pin: &VirtRange| pin.align_outward(size).is_some_and(|pin| pin.overlaps(range));
        if pinned.iter().any(meets) { Err(Error::PinnedForIo) } else { Ok(pinned) }
    }

    /// Changes what may be done in `range`, a part of this region in whole pages.
    ///
    /// # Errors
    /// [`Error::Range`]; the old protection is in force then. [`gmem_core::RangeError::NotMapped`] if `range` is not a part of this region. [`Error::File`] for writing in
    /// the region of a shared file that was not opened for it.
    pub fn protect(&self, range: VirtRange, prot: Prot) -> Result<(), Error> {
        self.space.inner.runtime.check_process()?;
        if let (Some(file), true) = (&self.file, prot.contains(Prot::WRITE)) {
            file.check_writable()?;
        }
        let parts = self.parts();
        if !parts.iter().any(|part| part.contains_range(range)) {
            return Err(RangeError::NotMapped(first_hole(&parts, range)).into());
        }
        Ok(self.space.inner.runtime.call(|core| core.protect(self.space.inner.id, range, prot))??)
    }

    /// Gives up the contents of the whole pages in `range`, a part of this region: they read as zero from now on. What was unmapped is passed over.
    ///
    /// # Errors
    /// [`Error::Range`] if the kernel holds a page, which then keeps its contents. [`Error::File`] in the region of a shared file, whose contents are not the region's to give up.
    pub fn discard(&self, range: VirtRange) -> Result<(), Error> {
        if self.file.is_some() {
            return Err(FileError::Discard.into());
        }
        let _pins = self.check_pins(range)?;
        self.check(range)?;
        let parts = self.parts();
        let (core, id) = (&self.space.inner.runtime, self.space.inner.id);
        let mut inside = parts.iter().filter_map(|part| part.intersection(range));
        inside.try_for_each(|part| core.call(|core| core.discard(id, part))?.map_err(Error::from))
    }

    /// Unmaps `range`, a part of this region in whole pages. Touching it afterwards is a fault. What was unmapped before is passed over: it may be
    /// somebody else's. In the region of a shared file, what was changed is written back first.
    ///
    /// # Errors
    /// [`Error::Range`] if an end falls inside a page; [`Error::File`] if the file cannot be written. Nothing is unmapped then. [`Error::Range`] too if there is no memory to cut
    /// a region: what lies before the cut may be unmapped then.
    pub fn unmap(&self, range: VirtRange) -> Result<(), Error> {
        let _pins = self.check_pins(range)?;
        self.check(range)?;
        if !range.is_aligned(self.attrs.page_size) {
            return Err(RangeError::Misaligned(self.attrs.page_size).into());
        }
        let mut parts = self.parts();
        if let Some(file) = &self.file {
            parts.iter().filter_map(|part| part.intersection(range)).try_for_each(|gone| file.write_back(self, gone, true))?;
        }
        // Part by part, so that the list says what is mapped also if a later part cannot be unmapped.
        while let Some(at) = parts.iter().position(|part| part.overlaps(range)) {
            let part = parts[at];
            let gone = part.intersection(range).expect("they overlap");
            self.space.inner.runtime.call(|core| core.unmap(self.space.inner.id, gone))??;
            let left = [VirtRange::new(part.start(), gone.start()), VirtRange::new(gone.end(), part.end())];
            parts.splice(at..=at, left.into_iter().flatten());
        }
        Ok(())
    }

    fn parts(&self) -> MutexGuard<'_, Vec<VirtRange>> {
        // Each change of the list is whole.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, range: VirtRange) -> Result<(), Error> {
        if self.range.contains_range(range) { Ok(()) } else { Err(RangeError::NotMapped(range.start()).into()) }
    }
}

/// The first address of `range` that is in none of `parts`, which are sorted and do not touch.
fn first_hole(parts: &[VirtRange], range: VirtRange) -> gmem_hal::VirtAddr {
    parts.iter().find(|part| part.contains(range.start())).map_or(range.start(), |part| part.end())
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.space.inner.runtime.is_forked() {
            // It is the parent's, and there is nothing of it here.
            return;
        }
        for range in std::mem::take(&mut *self.pinned()) {
            self.unpin_for_io(range);
        }
        for part in std::mem::take(&mut *self.parts()) {
            if let Some(Err(e)) = self.file.as_ref().map(|file| file.write_back(self, part, true)) {
                // Nobody is left to be told, and silence would lose writes silently.
                eprintln!("gmem: not everything in {part} was written back to its file: {e}");
            }
            // The ends are page boundaries, and the address space lives as long as this.
            let _ = self.space.inner.runtime.call(|core| core.unmap(self.space.inner.id, part));
        }
    }
}

/// Pages that stay home for the kernel's I/O until this is dropped. Made by [`Region::pin_for_io`] and [`crate::UnifiedVec::pin_for_io`].
#[derive(Debug)]
pub struct IoPin<'a> {
    region: &'a Region,
    range: VirtRange,
}

impl Drop for IoPin<'_> {
    fn drop(&mut self) {
        if self.region.space.inner.runtime.is_forked() {
            return;
        }
        self.region.forget_pin(self.range);
        self.region.unpin_for_io(self.range);
    }
}
