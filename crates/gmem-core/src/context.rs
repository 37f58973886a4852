//! A context: a device attached to an address space.

use crate::device::DeviceSlot;
use ::core::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use alloc::sync::Arc;
use gmem_hal::{Capabilities, Device, DeviceId, Event, Mmu, Mode, Platform, PmapId, VirtAddr, Wait, WaitKind};

/// Which page table the context uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Table {
    /// Its own.
    Own(PmapId),
    /// The CPU's (SHARE).
    Cpu,
    /// Another device's of the same format (SHARE).
    Of(DeviceId, PmapId),
}

// How a context stands with the core, in the order it gets worse.
const GOOD: u8 = 0;
/// Being stopped: no new access is granted, but until the fence ends the device may use what it has.
const FENCING: u8 = 1;
/// Stopped, as far as can be told.
const FENCED: u8 = 2;
/// Certain to touch no memory.
const DEAD: u8 = 3;

pub(crate) struct Context<P: Platform> {
    pub(crate) device: Arc<DeviceSlot<P>>, // c
    pub(crate) mode: Mode,                 // c
    pub(crate) table: Table,               // c
    standing: AtomicU8,                    // a
    /// Signalled when a fence has ended.
    fence_ended: P::Event,
    leaving: AtomicBool, // a
}

impl<P: Platform> Context<P> {
    pub(crate) fn new(device: Arc<DeviceSlot<P>>, mode: Mode, table: Table) -> Self {
        Self { device, mode, table, standing: AtomicU8::new(GOOD), fence_ended: P::Event::default(), leaving: AtomicBool::new(false) }
    }

    pub(crate) fn driver(&self) -> &dyn Device {
        &*self.device.driver
    }

    pub(crate) fn mmu(&self) -> &dyn Mmu {
        self.device.driver.mmu()
    }

    pub(crate) fn is_peer(&self) -> bool {
        self.device.is_peer()
    }

    /// The table's id on its device; `None` for the CPU's.
    pub(crate) fn pmap(&self) -> Option<PmapId> {
        match self.table {
            Table::Own(pmap) | Table::Of(_, pmap) => Some(pmap),
            Table::Cpu => None,
        }
    }

    /// The table's id, for contexts that were chosen because they have one of their own.
    pub(crate) fn own_pmap(&self) -> PmapId {
        match self.table {
            Table::Own(pmap) => pmap,
            other => panic!("a context with table {other:?} was asked for its own page table"),
        }
    }

    /// Whether a fault of it can be resolved. If not, it sees what its launches hold; in REPLICATE mode it sees everything in any case.
    pub(crate) fn is_replayable(&self) -> bool {
        self.driver().info().capabilities.contains(Capabilities::REPLAYABLE) || self.mode != Mode::CoherentExclusive
    }

    /// Whether it was stopped for good, or is just being stopped.
    pub(crate) fn is_fenced(&self) -> bool {
        self.standing.load(Ordering::Acquire) != GOOD
    }

    /// Whether there is nothing to be taken from it any more: its fence has ended. While a fence is under way the device may still write.
    pub(crate) fn is_stopped(&self) -> bool {
        self.standing.load(Ordering::Acquire) >= FENCED
    }

    /// Its device confirmed that it will never touch memory again in this context.
    pub(crate) fn is_dead(&self) -> bool {
        self.standing.load(Ordering::Acquire) == DEAD
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    pub(crate) fn set_leaving(&self, leaving: bool) {
        self.leaving.store(leaving, Ordering::Release);
    }

    /// The context is gone by itself. Returns whether that is what stopped it, for [`Core::lose`](crate::core::Core::lose), which counts.
    pub(crate) fn declare_dead(&self) -> bool {
        let before = self.standing.swap(DEAD, Ordering::AcqRel);
        self.fence_ended.signal();
        before == GOOD
    }

    /// Stops the context for good, by force if the driver can, or waits until another thread has done so. Returns whether it was this call that did, for
    /// [`Core::fence`](crate::core::Core::fence), which counts.
    pub(crate) fn stop(&self) -> bool {
        let first = self.standing.compare_exchange(GOOD, FENCING, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if first {
            let confirmed = matches!(self.table, Table::Own(pmap) if self.driver().fence(pmap).is_ok());
            // Somebody may have learnt of its death meanwhile: that stands.
            let _ = self.standing.compare_exchange(FENCING, if confirmed { DEAD } else { FENCED }, Ordering::AcqRel, Ordering::Acquire);
            self.fence_ended.signal();
        }
        loop {
            let epoch = self.fence_ended.epoch();
            if self.is_stopped() {
                return first;
            }
            // The driver's fence is bounded in time.
            let at = VirtAddr::new(u64::from(self.device.id.0));
            self.fence_ended.wait(epoch, &Wait { kind: WaitKind::Topology, space: None, at, owner: "fence" });
        }
    }
}
