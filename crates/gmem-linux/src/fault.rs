//! What the ways of fault delivery share: who resolves, and which pages must die.

use crate::FutexLock;
use crate::sys::area::{Advice, Area};
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};
use gmem_hal::{Access, HostFault, PageSize, Prot, Upcalls, VirtAddr, VirtRange, lock_api::Mutex};
use std::sync::{OnceLock, Weak};

/// The fault side of a host. Everything here is async-signal-safe.
#[derive(Default)]
pub(crate) struct Faults {
    upcalls: OnceLock<Weak<dyn Upcalls>>,
    /// Base pages that were poisoned and not mapped since. At most as many as have room: a page that did not fit stays poisoned until its region is
    /// unmapped, which is no more than a failed access deserves.
    poisoned: Mutex<FutexLock, ArrayVec<VirtAddr, 64>>,
    /// The length of `poisoned`, to be read without the lock.
    count: AtomicUsize,
    /// How often a region was mapped, or what it allows was changed. Changed under the lock of `poisoned`.
    changed: AtomicU64,
}

impl Faults {
    /// Says whom to ask.
    ///
    /// # Panics
    /// If that was said before.
    pub(crate) fn set_upcalls(&self, upcalls: Weak<dyn Upcalls>) {
        assert!(self.upcalls.set(upcalls).is_ok(), "a host serves one core");
    }

    /// Asks the core to resolve a fault. Without a core, nothing is ours.
    pub(crate) fn resolve(&self, va: VirtAddr, access: Access, may_wait: bool) -> HostFault {
        match self.upcalls.get().and_then(Weak::upgrade) {
            Some(core) => core.host_fault(va, access, may_wait),
            None => HostFault::NotOurs,
        }
    }

    /// A region is about to be mapped, or to allow something else: what was judged before does not hold for it.
    pub(crate) fn region_changed(&self) {
        let _poisoned = self.poisoned.lock();
        self.changed.fetch_add(1, Release);
    }

    /// How often regions changed so far, to be read before the message of a fault is.
    pub(crate) fn epoch(&self) -> u64 {
        self.changed.load(Acquire)
    }

    /// Poisons the base page at `va` by calling `poison`, and notes it if that said true. The lock is held over both, so that whoever maps the page
    /// next finds the note; `poison` must not wake the faulter, who might be that one.
    ///
    /// Not if a region changed since `epoch`: who faults still waits when the message is read, but an earlier message of the same page may let it go on, and then
    /// it is judged here by what the page is now, which it has not touched. One that still waits faults again and is judged again.
    pub(crate) fn poison(&self, va: VirtAddr, epoch: u64, poison: impl FnOnce() -> bool) {
        let mut poisoned = self.poisoned.lock();
        if self.epoch() == epoch && poison() && !poisoned.contains(&va) {
            let _ = poisoned.try_push(va);
        }
        self.count.store(poisoned.len(), Release);
    }

    /// Takes the poison out of the pages of `range`, which are about to be mapped with `prot`.
    pub(crate) fn clear_poison(&self, area: &Area, range: VirtRange, prot: Prot) {
        if self.count.load(Acquire) == 0 {
            return;
        }
        let mut poisoned = self.poisoned.lock();
        poisoned.retain(|va| {
            if !range.contains(*va) {
                return true;
            }
            let page = VirtRange::page(*va, PageSize::Size4K).expect("inside an area");
            // A poisoned page holds a marker instead of bytes, so nothing is lost by the zap. Where the kernel has no markers, access was taken away instead.
            // A failure leaves the page poisoned, and an access to it still dies.
            let _ = area.advise(page, Advice::DontNeed);
            let _ = area.protect(page, prot);
            false
        });
        self.count.store(poisoned.len(), Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_older_than_the_change_of_a_region_poisons_nothing() {
        let faults = Faults::default();
        let (va, before) = (VirtAddr::new(0x1000), faults.epoch());
        faults.region_changed();
        faults.poison(va, before, || panic!("the page belongs to another region now"));
        assert_eq!(faults.count.load(Acquire), 0);
        faults.poison(va, faults.epoch(), || true);
        assert_eq!(faults.count.load(Acquire), 1);
    }
}
