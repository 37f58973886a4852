//! Delivery in the faulting thread: which spaces want it, and where a SIGSEGV goes.
//!
//! The registry is one per process, because the signal handler is. Its locks are taken by the handler, with all signals masked, and by
//! gmem's own threads, which take none: so never twice by one thread.

use crate::FutexLock;
use crate::fault::Faults;
use crate::report;
use crate::sys::sigsegv::{self, Resolver};
use core::sync::atomic::{AtomicUsize, Ordering::*};
use gmem_hal::{Access, HostError, HostFault, VirtAddr, VirtRange, lock_api::Mutex};
use std::sync::Arc;
use std::time::Duration;

/// Spaces with in-thread delivery, per process. The handler looks at each, without order. [`HostError::TooManyInThread`] says this number.
const SLOTS: usize = 64;

/// Owned by its slot, and for the length of a fault by the handlers that use it.
type Target = Arc<(VirtRange, Arc<Faults>)>;

static REGISTRY: [Mutex<FutexLock, Option<Target>>; SLOTS] = [const { Mutex::new(None) }; SLOTS];

/// Slots at or above this were never used.
static HIGH: AtomicUsize = AtomicUsize::new(0);

/// A space's place in the registry.
#[derive(Debug)]
pub(crate) struct Registered {
    slot: usize,
}

impl Registered {
    /// From now on SIGSEGVs in `range` are asked of `faults`. Installs the handler if it is the first.
    pub(crate) fn new(range: VirtRange, faults: &Arc<Faults>) -> Result<Self, HostError> {
        sigsegv::install(Resolver { owns: |va| target(va).is_some(), resolve }).map_err(|e| HostError::Os(e.raw_os_error()))?;
        for (slot, entry) in REGISTRY.iter().enumerate() {
            let mut entry = entry.lock();
            if entry.is_none() {
                *entry = Some(Arc::new((range, faults.clone())));
                HIGH.fetch_max(slot + 1, AcqRel);
                return Ok(Self { slot });
            }
        }
        Err(HostError::TooManyInThread)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let target = REGISTRY[self.slot].lock().take().expect("a slot is emptied by its owner");
        // A handler must not become the last owner: it would have to free. Faults end, so this does too.
        while Arc::strong_count(&target) > 1 {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// Whose address this is.
fn target(va: VirtAddr) -> Option<Target> {
    let used = HIGH.load(Acquire);
    REGISTRY[..used].iter().find_map(|slot| slot.lock().as_ref().filter(|t| t.0.contains(va)).cloned())
}

/// Called by the signal handler.
fn resolve(va: VirtAddr, access: Access) -> bool {
    let Some(target) = target(va) else { return false };
    match target.1.resolve(va, access, true) {
        // Pending is not said when waiting is allowed; trying again is right in any case.
        HostFault::Resolved | HostFault::Pending => true,
        HostFault::NotOurs => false,
        failed @ HostFault::Failed(_) => {
            report::failed_access(va, access, &failed);
            false
        }
    }
}
