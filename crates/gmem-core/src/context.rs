//! A context: a device attached to an address space.

use crate::device::DeviceSlot;
use ::core::sync::atomic::{AtomicBool, Ordering};
use alloc::sync::Arc;
use gmem_hal::{Device, DeviceId, Mmu, Mode, Platform, PmapId};

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

pub(crate) struct Context<P: Platform> {
    pub(crate) device: Arc<DeviceSlot<P>>, // c
    pub(crate) mode: Mode,                 // c
    pub(crate) table: Table,               // c
    fenced: AtomicBool,                    // a
    dead: AtomicBool,                      // a
    leaving: AtomicBool,                   // a
}

impl<P: Platform> Context<P> {
    pub(crate) fn new(device: Arc<DeviceSlot<P>>, mode: Mode, table: Table) -> Self {
        Self { device, mode, table, fenced: AtomicBool::new(false), dead: AtomicBool::new(false), leaving: AtomicBool::new(false) }
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

    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    /// Its device confirmed that it will never touch memory again in this context.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    pub(crate) fn set_leaving(&self, leaving: bool) {
        self.leaving.store(leaving, Ordering::Release);
    }

    /// The context is gone by itself. Returns whether that is what stopped it, for [`Core::lose`](crate::core::Core::lose), which counts.
    pub(crate) fn declare_dead(&self) -> bool {
        self.dead.store(true, Ordering::Release);
        !self.fenced.swap(true, Ordering::AcqRel)
    }

    /// Stops the context for good, by force if the driver can. Returns whether it was this call that did, for
    /// [`Core::fence`](crate::core::Core::fence), which counts.
    pub(crate) fn stop(&self) -> bool {
        let first = !self.fenced.swap(true, Ordering::AcqRel);
        if first
            && let Table::Own(pmap) = self.table
            && self.driver().fence(pmap).is_ok()
        {
            self.dead.store(true, Ordering::Release);
        }
        first
    }
}
