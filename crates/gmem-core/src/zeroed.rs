//! Zeroed tables, allocated fallibly and lazily: the system hands out zero pages as they are touched, so a sparse table costs what is used of it.

use alloc::boxed::Box;
use bytemuck::Zeroable;
use gmem_hal::OutOfMemory;

pub(crate) fn zeroed<T: Zeroable>(len: usize) -> Result<Box<[T]>, OutOfMemory> {
    bytemuck::allocation::try_zeroed_slice_box(len).map_err(|()| OutOfMemory)
}
