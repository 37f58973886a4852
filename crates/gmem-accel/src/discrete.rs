//! The discrete accelerator, as programs hold it.

use crate::builder::Builder;
use crate::machine::Machine;
use gmem_hal::{ByteLen, DeviceError, PhysRange, PmapId};
use std::fmt;

/// A discrete accelerator: memory of its own, an MMU of its own, cores of its own, each context in a process of its own.
///
/// Give it to the core as a [`gmem_hal::Device`] and register [`Discrete::memory`]. Dropping it ends its processes, blocking for the time limit at most.
pub struct Discrete(Machine);

impl fmt::Debug for Discrete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = gmem_hal::Device::info(self);
        f.debug_struct("Discrete").field("name", &info.name).field("memory", &self.memory()).finish_non_exhaustive()
    }
}

impl Discrete {
    /// Describes a device: 64 MiB of memory, as many cores as this machine has, replayable, unless told otherwise.
    pub fn builder() -> Builder {
        Builder::new()
    }

    pub(crate) fn new(spec: Builder) -> Self {
        Self(Machine::new(spec))
    }

    /// What it is made of.
    pub(crate) fn machine(&self) -> &Machine {
        &self.0
    }

    /// The device's memory, to be registered with the core.
    pub fn memory(&self) -> PhysRange {
        self.0.memory()
    }

    /// The id of the process of a context, for tools that show or test it. `None` if there is no such context.
    pub fn process(&self, pmap: PmapId) -> Option<u32> {
        self.0.process(pmap)
    }

    /// The memory that the process of a context has resident, device memory included; a frame counts once. Reads `/proc`, so not for
    /// fault paths. `BadRequest` if there is no such context, `Dead` if its process is gone.
    pub fn resident(&self, pmap: PmapId) -> Result<ByteLen, DeviceError> {
        self.0.resident(pmap)
    }
}
