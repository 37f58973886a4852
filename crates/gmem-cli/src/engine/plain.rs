//! The CPU alone, in ordinary memory.

use super::Engine;
use crate::failure::Failure;
use bytemuck::Pod;
use gmem::Args;
use gmem::{Grid, Kernel};

/// Kernels run as function calls, one core after the other.
pub(crate) struct Plain {
    /// The number of cores; the results do not depend on it.
    pub(crate) workers: usize,
}

impl Engine for Plain {
    type Buffer<T: Pod + Send + Sync> = Vec<T>;

    fn zeroed<T: Pod + Send + Sync>(&self, len: usize) -> Result<Vec<T>, Failure> {
        bytemuck::try_zeroed_vec(len).map_err(|()| Failure::Failed(format!("no memory for {len} elements on the CPU")))
    }

    unsafe fn launch(&self, kernel: &'static Kernel, args: Args<'_>) -> Result<(), Failure> {
        for worker in 0..self.workers {
            // SAFETY: the caller vouches that the arguments fit the kernel; the slices among them are borrowed until after the
            // call, and one worker runs at a time.
            unsafe { (kernel.run)(Grid { worker, workers: self.workers }, args.words()) };
        }
        Ok(())
    }
}
