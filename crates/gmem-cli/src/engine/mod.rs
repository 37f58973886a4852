//! What a workload runs on: memory that both sides see, and launches of kernels.
//!
//! The workloads are written once against [`Engine`]. [`Plain`] is the CPU alone in ordinary memory, which is what `--check` compares with.

mod plain;
mod unified;

pub(crate) use plain::Plain;
pub(crate) use unified::Unified;

use crate::failure::Failure;
use bytemuck::Pod;
use gmem::{Args, Kernel};
use std::ops::DerefMut;

/// Memory and a device.
pub(crate) trait Engine {
    /// Memory that the CPU and the device reach through the same pointers.
    type Buffer<T: Pod + Send + Sync>: DerefMut<Target = [T]>;

    /// `len` elements of zeros, on a page boundary.
    fn zeroed<T: Pod + Send + Sync>(&self, len: usize) -> Result<Self::Buffer<T>, Failure>;

    /// Runs `kernel` on every core of the device and waits for its end. The borrows in `args` keep the CPU's hands off meanwhile.
    ///
    /// # Safety
    /// `args` are what `kernel` expects: the same number and kinds, with slices as long as it goes through.
    unsafe fn launch(&self, kernel: &'static Kernel, args: Args<'_>) -> Result<(), Failure>;
}
