//! A mapped region, for those who want addresses rather than vectors.

use crate::error::Error;
use crate::space::AddressSpace;
use gmem_hal::{Prot, RegionAttrs, VirtRange};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A mapped range of an address space, unmapped on drop.
///
/// The CPU and the attached devices reach it by its addresses. Rust's rules are up to the user: this is `mmap`, not a slice.
#[derive(Debug)]
pub struct Region {
    space: AddressSpace,
    range: VirtRange,
    attrs: RegionAttrs,
    /// What of it is still mapped: disjoint ranges. What was unmapped may belong to others by now.
    parts: Mutex<Vec<VirtRange>>,
}

impl Region {
    pub(crate) fn new(space: AddressSpace, range: VirtRange, attrs: RegionAttrs) -> Self {
        Self { space, range, attrs, parts: Mutex::new(vec![range]) }
    }

    /// The addresses.
    pub fn range(&self) -> VirtRange {
        self.range
    }

    /// The attributes it was mapped with.
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

    /// Changes what may be done in `range`, a part of this region in whole pages.
    ///
    /// # Errors
    /// [`Error::Range`]; the old protection is in force then. [`gmem_core::RangeError::NotMapped`] if `range` is not a part of this region, or was unmapped.
    pub fn protect(&self, range: VirtRange, prot: Prot) -> Result<(), Error> {
        self.check(range)?;
        Ok(self.space.inner.runtime.call(|core| core.protect(self.space.inner.id, range, prot))?)
    }

    /// Gives up the contents of the whole pages in `range`, a part of this region: they read as zero from now on.
    ///
    /// # Errors
    /// [`Error::Range`] if the kernel holds a page, which then keeps its contents.
    pub fn discard(&self, range: VirtRange) -> Result<(), Error> {
        self.check(range)?;
        Ok(self.space.inner.runtime.call(|core| core.discard(self.space.inner.id, range))?)
    }

    /// Unmaps `range`, a part of this region in whole pages. Touching it afterwards is a fault.
    ///
    /// # Errors
    /// [`Error::Range`] if an end falls inside a page.
    pub fn unmap(&self, range: VirtRange) -> Result<(), Error> {
        if !self.range.contains_range(range) {
            return Err(gmem_core::RangeError::NotMapped(range.start()).into());
        }
        let mut parts = self.parts();
        let mut left = Vec::with_capacity(parts.len() + 1);
        for part in &*parts {
            match part.intersection(range) {
                // Only what is ours: another region may lie where this one was unmapped before.
                Some(gone) => {
                    self.space.inner.runtime.call(|core| core.unmap(self.space.inner.id, gone))?;
                    left.extend(VirtRange::new(part.start(), gone.start()));
                    left.extend(VirtRange::new(gone.end(), part.end()));
                }
                None => left.push(*part),
            }
        }
        *parts = left;
        Ok(())
    }

    fn parts(&self) -> MutexGuard<'_, Vec<VirtRange>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, range: VirtRange) -> Result<(), Error> {
        let inside = self.parts().iter().any(|part| part.contains_range(range));
        if inside { Ok(()) } else { Err(gmem_core::RangeError::NotMapped(range.start()).into()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        for part in &*self.parts() {
            // The ends are page boundaries, and the address space lives as long as this.
            let _ = self.space.inner.runtime.call(|core| core.unmap(self.space.inner.id, *part));
        }
    }
}
