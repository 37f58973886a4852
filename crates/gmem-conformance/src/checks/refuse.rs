//! What several checks need: a look at refusals, and a driver that claims to be another.

use gmem::hal::{Compute, CopyEngine, Device, DeviceError, DeviceId, DeviceInfo, Frames, HnodeId, Mmu, Peer, PhysRange, PmapId, Upcalls};
use std::sync::{Arc, Weak};

/// Ends a check as failed unless the call is refused in this way: `refused!("what", call, pattern)`.
macro_rules! refused {
    ($what:expr, $call:expr, $pattern:pat $(if $guard:expr)?) => {
        match $call {
            Err($pattern) $(if $guard)? => {}
            other => {
                let seen = other.map(|_| "success");
                return Err($crate::Stop::Failed(format!("{}: seen {seen:?}, expected Err({})", $what, stringify!($pattern))));
            }
        }
    };
}

pub(super) use refused;

/// A driver with other facts than its own, or that does not start.
pub(super) struct Claims {
    pub(super) driver: Arc<dyn Device>,
    pub(super) info: DeviceInfo,
    pub(super) start: Result<(), DeviceError>,
}

impl Claims {
    /// The same driver, with its facts changed.
    pub(super) fn new(driver: Arc<dyn Device>, change: impl FnOnce(&mut DeviceInfo)) -> Self {
        let mut info = driver.info().clone();
        change(&mut info);
        Self { driver, info, start: Ok(()) }
    }
}

impl Device for Claims {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn start(&self, id: DeviceId, upcalls: Weak<dyn Upcalls>) -> Result<(), DeviceError> {
        self.start?;
        self.driver.start(id, upcalls)
    }

    fn physical_memory(&self) -> Vec<PhysRange> {
        self.driver.physical_memory()
    }

    fn stop(&self) {
        self.driver.stop();
    }

    fn mmu(&self) -> &dyn Mmu {
        self.driver.mmu()
    }

    fn copy_engine(&self) -> &dyn CopyEngine {
        self.driver.copy_engine()
    }

    fn peer(&self) -> Option<&dyn Peer> {
        self.driver.peer()
    }

    fn frames(&self) -> Option<&dyn Frames> {
        self.driver.frames()
    }

    fn compute(&self) -> Option<&dyn Compute> {
        self.driver.compute()
    }

    fn fence(&self, pmap: PmapId) -> Result<(), DeviceError> {
        self.driver.fence(pmap)
    }

    fn memory_registered(&self, hnode: HnodeId, range: PhysRange) -> Result<(), DeviceError> {
        self.driver.memory_registered(hnode, range)
    }

    fn memory_unregistered(&self, hnode: HnodeId, range: PhysRange) {
        self.driver.memory_unregistered(hnode, range);
    }

    fn switch_context(&self, pmap: Option<PmapId>) -> Result<(), DeviceError> {
        self.driver.switch_context(pmap)
    }
}
