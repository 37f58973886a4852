//! Typed buffers in unified memory.

use crate::error::Error;
use crate::region::{IoPin, Region};
use bytemuck::Pod;
use gmem_hal::VirtRange;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// A buffer of plain data that the CPU and the attached devices use through the same pointers.
///
/// It is a slice: borrowing it is what a launch does with it, so that the CPU cannot write, or even read, what a kernel is writing.
pub struct UnifiedVec<T: Pod> {
    region: Region,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: Pod> UnifiedVec<T> {
    pub(crate) fn new(region: Region, len: usize) -> Result<Self, Error> {
        // A page is aligned more strictly than any plain type of a sensible size.
        if align_of::<T>() > 4096 || size_of::<T>() == 0 {
            return Err(Error::Length);
        }
        Ok(Self { region, len, elements: PhantomData })
    }

    /// The addresses of the whole pages it lies in. To unmap or protect parts of a mapping, use a [`Region`].
    pub fn range(&self) -> VirtRange {
        self.region.range()
    }

    /// Keeps the whole vector home for the kernel's I/O: see [`Region::pin_for_io`].
    ///
    /// # Errors
    /// [`Error::Range`] if a page cannot be brought home; then nothing is held.
    pub fn pin_for_io(&self) -> Result<IoPin<'_>, Error> {
        self.region.pin_for_io(self.region.range())
    }
}

impl<T: Pod> Deref for UnifiedVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the region is mapped readable for as long as `self` lives (nothing safe unmaps or protects a region that is inside a vector), it has at
        // least `len` elements, is page aligned, and any bytes are a valid `T` because `T: Pod`. A device writes it only during a launch
        // that borrowed it exclusively.
        unsafe { std::slice::from_raw_parts(self.region.as_ptr().cast::<T>(), self.len) }
    }
}

impl<T: Pod> DerefMut for UnifiedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`, and the region is writable and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.region.as_ptr().cast::<T>(), self.len) }
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for UnifiedVec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnifiedVec").field("range", &self.region.range()).field("len", &self.len).finish()
    }
}
