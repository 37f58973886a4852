//! Drivers that are broken on purpose: a litmus test that has never seen a forbidden outcome proves nothing.

use gmem::accel;
use gmem::hal::{
    ByteLen, Compute, CopyEngine, Device, DeviceError, DeviceId, DeviceInfo, HnodeId, Mapping, Mmu, PhysAddr, PhysRange, PmapId,
    PmapRequest, Prot, Upcalls, VirtRange,
};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// What a driver does wrong.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Defect {
    /// One copy in eight does nothing
    SkipsCopies,
    /// Mappings are taken away after the copy instead of before, so that what is stored meanwhile is lost
    CopiesBeforeRevoking,
    /// Invalidations are not waited for, so that a device goes on using a page that is somebody else's
    DoesNotInvalidate,
}

/// A discrete accelerator whose driver has a defect.
pub(crate) struct Broken {
    inner: Arc<accel::Discrete>,
    defect: Defect,
    copies: AtomicU32,
    /// What should have been released.
    put_off: Mutex<Vec<(PmapId, VirtRange)>>,
}

impl Broken {
    pub(crate) fn new(inner: Arc<accel::Discrete>, defect: Defect) -> Self {
        Self { inner, defect, copies: AtomicU32::new(0), put_off: Mutex::default() }
    }

    fn honest(&self) -> &dyn Mmu {
        Device::mmu(&*self.inner)
    }

    /// Releases what should have been released long ago.
    fn catch_up(&self) -> Result<(), DeviceError> {
        let put_off = std::mem::take(&mut *self.put_off.lock().unwrap_or_else(PoisonError::into_inner));
        put_off.into_iter().try_for_each(|(pmap, range)| {
            self.honest().pmap_release(pmap, range)?;
            self.honest().tlb_invalidate(pmap, range)
        })
    }
}

impl Device for Broken {
    fn info(&self) -> &DeviceInfo {
        Device::info(&*self.inner)
    }
    fn start(&self, id: DeviceId, upcalls: Weak<dyn Upcalls>) -> Result<(), DeviceError> {
        Device::start(&*self.inner, id, upcalls)
    }
    fn stop(&self) {
        Device::stop(&*self.inner);
    }
    fn physical_memory(&self) -> Vec<PhysRange> {
        Device::physical_memory(&*self.inner)
    }
    fn memory_registered(&self, hnode: HnodeId, range: PhysRange) -> Result<(), DeviceError> {
        Device::memory_registered(&*self.inner, hnode, range)
    }
    fn memory_unregistered(&self, hnode: HnodeId, range: PhysRange) {
        Device::memory_unregistered(&*self.inner, hnode, range);
    }
    fn fence(&self, pmap: PmapId) -> Result<(), DeviceError> {
        Device::fence(&*self.inner, pmap)
    }
    fn mmu(&self) -> &dyn Mmu {
        self
    }
    fn copy_engine(&self) -> &dyn CopyEngine {
        self
    }
    fn compute(&self) -> Option<&dyn Compute> {
        Device::compute(&*self.inner)
    }
}

impl Mmu for Broken {
    fn pmap_create(&self, request: &PmapRequest) -> Result<PmapId, DeviceError> {
        self.honest().pmap_create(request)
    }
    fn pmap_destroy(&self, pmap: PmapId) -> Result<(), DeviceError> {
        self.catch_up()?;
        self.honest().pmap_destroy(pmap)
    }
    fn pmap_enter(&self, pmap: PmapId, mapping: &Mapping) -> Result<(), DeviceError> {
        // A release that came later than this would take the new mapping.
        self.catch_up()?;
        self.honest().pmap_enter(pmap, mapping)
    }
    fn pmap_release(&self, pmap: PmapId, range: VirtRange) -> Result<(), DeviceError> {
        if self.defect == Defect::CopiesBeforeRevoking {
            self.put_off.lock().unwrap_or_else(PoisonError::into_inner).push((pmap, range));
            return Ok(());
        }
        self.honest().pmap_release(pmap, range)
    }
    fn pmap_protect(&self, pmap: PmapId, range: VirtRange, prot: Prot) -> Result<(), DeviceError> {
        self.honest().pmap_protect(pmap, range, prot)
    }
    fn tlb_invalidate(&self, pmap: PmapId, range: VirtRange) -> Result<(), DeviceError> {
        match self.defect {
            Defect::DoesNotInvalidate => Ok(()),
            _ => self.honest().tlb_invalidate(pmap, range),
        }
    }
}

impl CopyEngine for Broken {
    fn zero(&self, dst: PhysAddr, len: ByteLen) -> Result<(), DeviceError> {
        self.catch_up()?;
        Device::copy_engine(&*self.inner).zero(dst, len)
    }
    fn copy(&self, dst: PhysAddr, src: PhysAddr, len: ByteLen) -> Result<(), DeviceError> {
        if self.defect == Defect::SkipsCopies && self.copies.fetch_add(1, Ordering::Relaxed).is_multiple_of(8) {
            return Ok(());
        }
        Device::copy_engine(&*self.inner).copy(dst, src, len)?;
        self.catch_up()
    }
    fn reaches(&self, hnode: HnodeId) -> bool {
        Device::copy_engine(&*self.inner).reaches(hnode)
    }
}
