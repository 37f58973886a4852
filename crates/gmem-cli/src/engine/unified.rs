//! Unified memory and an accelerator, by way of the library.

use super::{Args, Engine, Plain};
use crate::failure::Failure;
use crate::kernel::Kernel;
use crate::report::Counters;
use crate::setup::Setup;
use bytemuck::Pod;

/// PLACEHOLDER until the facade is there: the CPU alone.
pub(crate) struct Unified(Plain);

impl Unified {
    pub(crate) fn open(setup: &Setup, _space: u64) -> Result<Self, Failure> {
        Ok(Self(Plain { workers: setup.cores }))
    }
    pub(crate) fn counters(&self) -> Result<Counters, Failure> {
        Ok(Counters::default())
    }
    pub(crate) fn bytes_managed(&self) -> u64 {
        0
    }
}

impl Engine for Unified {
    type Buffer<T: Pod + Send + Sync> = Vec<T>;
    fn zeroed<T: Pod + Send + Sync>(&self, len: usize) -> Result<Vec<T>, Failure> {
        self.0.zeroed(len)
    }
    unsafe fn launch(&self, kernel: &'static Kernel, args: Args<'_>) -> Result<(), Failure> {
        // SAFETY: forwarded.
        unsafe { self.0.launch(kernel, args) }
    }
}
