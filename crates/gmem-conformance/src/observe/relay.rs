//! The core as the driver sees it through the observer.

use super::{Observed, rules};
use gmem::hal::{Access, DeviceError, DeviceId, EvictOutcome, FaultError, FaultHint, HostFault, PmapId, Upcalls, VirtAddr, VirtRange};
use std::sync::{Arc, Weak};

/// Passes the driver's calls on to the core.
pub(super) struct Relay {
    core: Weak<dyn Upcalls>,
    observed: Weak<Observed>,
}

impl Relay {
    pub(super) fn new(core: Weak<dyn Upcalls>, observed: Weak<Observed>) -> Self {
        Self { core, observed }
    }

    fn observed(&self) -> Option<Arc<Observed>> {
        self.observed.upgrade()
    }

    /// Whether the driver calls from inside a callback for this page, where it would wait for itself.
    fn waits_for_itself(&self, pmap: PmapId, va: VirtAddr, what: &str) -> bool {
        let Some(observed) = self.observed() else { return false };
        let mut shadow = observed.shadow();
        let Some(name) = shadow.is_inside(pmap, va) else { return false };
        shadow.breach(rules::SELF_WAIT, format_args!("{what} of {va} in {pmap} from inside {name} for it"));
        true
    }
}

impl Upcalls for Relay {
    fn device_fault(
        &self,
        device: DeviceId,
        pmap: PmapId,
        va: VirtAddr,
        access: Access,
        hint: Option<FaultHint>,
    ) -> Result<(), FaultError> {
        if self.waits_for_itself(pmap, va, "a fault") {
            // It would never return.
            return Err(FaultError::Device(DeviceError::BadRequest));
        }
        let core = self.core.upgrade().ok_or(FaultError::NotAttached)?;
        let begun = self.observed().map(|observed| observed.shadow().fault_begins(pmap, va, access));
        let answer = core.device_fault(device, pmap, va, access, hint);
        if let (Some(token), Some(observed)) = (begun, self.observed()) {
            observed.shadow().fault_ends(token, access, answer.is_ok());
        }
        answer
    }

    fn device_evict(&self, device: DeviceId, pmap: PmapId, range: VirtRange) -> EvictOutcome {
        // The core refuses a page that it has busy, so this never waits.
        self.core.upgrade().map_or(EvictOutcome::NotThere, |core| core.device_evict(device, pmap, range))
    }

    fn device_lost(&self, device: DeviceId, pmap: PmapId) {
        if let Some(observed) = self.observed() {
            observed.shadow().died(pmap);
        }
        if let Some(core) = self.core.upgrade() {
            core.device_lost(device, pmap);
        }
    }

    fn host_fault(&self, va: VirtAddr, access: Access, may_wait: bool) -> HostFault {
        self.core.upgrade().map_or(HostFault::NotOurs, |core| core.host_fault(va, access, may_wait))
    }
}
