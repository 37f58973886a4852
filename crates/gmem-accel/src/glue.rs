//! The glue: all that a driver writes besides its MMU functions, its copy engine and its own plumbing.

use crate::discrete::Discrete;
use crate::keeper::Hooks;
use gmem_hal::{Capabilities, Compute, CopyEngine, Device, DeviceError, DeviceId, DeviceInfo, EvictOutcome, FaultError};
use gmem_hal::{HnodeId, Mmu, Peer, PhysRange, PmapId, Upcalls};
use std::sync::Weak;

impl Device for Discrete {
    fn info(&self) -> &DeviceInfo {
        &self.machine().info
    }

    fn start(&self, id: DeviceId, upcalls: Weak<dyn Upcalls>) -> Result<(), DeviceError> {
        let (core, faults, lost, evict) = (upcalls.as_ptr().addr(), upcalls.clone(), upcalls.clone(), upcalls);
        let hooks = Hooks {
            resolve: Box::new(move |context, va, access| {
                let core = faults.upgrade().ok_or(FaultError::NotAttached)?;
                core.device_fault(id, context.facts.pmap, va, access, None)
            }),
            lost: Box::new(move |pmap| {
                if let Some(core) = lost.upgrade() {
                    core.device_lost(id, pmap);
                }
            }),
            evict: Box::new(move |pmap, range| evict.upgrade().map_or(EvictOutcome::Refused, |core| core.device_evict(id, pmap, range))),
        };
        self.machine().power_on(core, hooks)
    }

    fn physical_memory(&self) -> Vec<PhysRange> {
        vec![self.memory()]
    }

    fn memory_registered(&self, hnode: HnodeId, range: PhysRange) -> Result<(), DeviceError> {
        self.machine().add_memory(hnode, range)
    }

    fn memory_unregistered(&self, hnode: HnodeId, _range: PhysRange) {
        self.machine().remove_memory(hnode);
    }

    fn stop(&self) {
        self.machine().power_off();
    }

    fn mmu(&self) -> &dyn Mmu {
        self.machine()
    }

    fn copy_engine(&self) -> &dyn CopyEngine {
        self.machine()
    }

    fn peer(&self) -> Option<&dyn Peer> {
        self.info().capabilities.contains(Capabilities::PEER).then_some(self.machine() as &dyn Peer)
    }

    fn compute(&self) -> Option<&dyn Compute> {
        Some(self.machine())
    }

    fn fence(&self, pmap: PmapId) -> Result<(), DeviceError> {
        self.machine().stop_context(pmap)
    }
}
