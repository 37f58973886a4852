//! The core as the driver sees it through the observer.

use super::{Observed, rules};
use gmem::hal::{Access, DeviceError, DeviceId, EvictOutcome, FaultError, FaultHint, HostFault, PmapId, Upcalls, VirtAddr, VirtRange};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Passes the calls of all observed drivers of a core on to it. One for each core, because drivers may tell by it that they have one core, and then reach each other's memory.
pub(super) struct Relay {
    core: Weak<dyn Upcalls>,
    observed: Mutex<Vec<(DeviceId, Weak<Observed>)>>,
}

/// The relays of all cores of this process that have observed devices.
static RELAYS: Mutex<Vec<Weak<Relay>>> = Mutex::new(Vec::new());

/// Whether this thread has a signal not blocked that a program may have a handler for: threads started in `start` or in a callback have not.
fn may_be_interrupted() -> bool {
    // SAFETY: the set is plain data that `sigemptyset` makes valid; asking for the mask with no set given changes nothing.
    unsafe {
        let mut blocked: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut blocked);
        let asked = libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut blocked);
        asked == 0 && [libc::SIGUSR1, libc::SIGALRM, libc::SIGPROF].iter().any(|signal| libc::sigismember(&raw const blocked, *signal) == 0)
    }
}

/// Nothing panics under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Relay {
    /// The relay of `core`, which from now on knows `observed` as `device`.
    pub(super) fn of(core: &Weak<dyn Upcalls>, device: DeviceId, observed: Weak<Observed>) -> Arc<Self> {
        let mut relays = lock(&RELAYS);
        relays.retain(|relay| relay.strong_count() > 0);
        // A relay keeps the address of its core from being another's.
        let known = relays.iter().filter_map(Weak::upgrade).find(|relay| relay.core.as_ptr().addr() == core.as_ptr().addr());
        let relay = known.unwrap_or_else(|| {
            let relay = Arc::new(Self { core: core.clone(), observed: Mutex::default() });
            relays.push(Arc::downgrade(&relay));
            relay
        });
        let mut devices = lock(&relay.observed);
        devices.retain(|(id, old)| *id != device && old.strong_count() > 0);
        devices.push((device, observed));
        drop(devices);
        relay
    }

    fn observed(&self, device: DeviceId) -> Option<Arc<Observed>> {
        lock(&self.observed).iter().find(|(id, _)| *id == device)?.1.upgrade()
    }

    /// Notes if the driver calls from a thread that is none of its own: one that a signal may interrupt.
    fn check_thread(&self, device: DeviceId, what: &str) {
        if may_be_interrupted()
            && let Some(observed) = self.observed(device)
        {
            observed.shadow().breach_of_thread(what);
        }
    }

    /// Whether the driver calls from inside a callback for this page, where it would wait for itself.
    fn waits_for_itself(&self, device: DeviceId, pmap: PmapId, va: VirtAddr, what: &str) -> bool {
        let Some(observed) = self.observed(device) else { return false };
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
        self.check_thread(device, "a fault");
        if self.waits_for_itself(device, pmap, va, "a fault") {
            // It would never return.
            return Err(FaultError::Device(DeviceError::BadRequest));
        }
        let core = self.core.upgrade().ok_or(FaultError::NotAttached)?;
        let begun = self.observed(device).map(|observed| observed.shadow().fault_begins(pmap, va, access, hint));
        if begun == Some(None) {
            // So that the access ends, and the check with it.
            return Err(FaultError::Device(DeviceError::BadRequest));
        }
        let answer = core.device_fault(device, pmap, va, access, hint);
        if let (Some(token), Some(observed)) = (begun.flatten(), self.observed(device)) {
            observed.shadow().fault_ends(token, access, answer);
        }
        answer
    }

    fn device_evict(&self, device: DeviceId, pmap: PmapId, range: VirtRange) -> EvictOutcome {
        self.check_thread(device, "the wish to evict");
        // The core refuses a page that it has busy, so this never waits.
        self.core.upgrade().map_or(EvictOutcome::NotThere, |core| core.device_evict(device, pmap, range))
    }

    fn device_lost(&self, device: DeviceId, pmap: PmapId) {
        self.check_thread(device, "the loss of a context");
        if let Some(observed) = self.observed(device) {
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
