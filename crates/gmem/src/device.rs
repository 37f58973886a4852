//! A device that was added.

use crate::context::Context;
use crate::error::Error;
use crate::launch::Holding;
use crate::runtime::{Gmem, LinuxCore, Runtime};
use gmem_core::{DeviceCallError, HnodeStats};
use gmem_hal::{ByteLen, DeviceId, DeviceInfo, HnodeId, PhysRange, SpaceId};
use std::fmt;
use std::sync::Arc;

/// A device known to gmem. Clones name the same device; when the last one and every context on it are gone, the device is destroyed.
#[derive(Clone)]
pub struct Device {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) id: DeviceId,
    pub(crate) driver: Arc<dyn gmem_hal::Device>,
    pub(crate) holding: Arc<Holding>,
}

impl Gmem {
    /// Adds a device and registers the memory it has ([`gmem_hal::Device::physical_memory`]).
    ///
    /// # Errors
    /// [`Error::Device`] with what the driver or the core refused; the device is gone again then.
    pub fn add_device(&self, driver: Arc<dyn gmem_hal::Device>) -> Result<Device, Error> {
        let runtime = self.runtime.clone();
        let id = runtime.call(|core| {
            let id = core.device_create(driver.clone())?;
            for range in driver.physical_memory() {
                if let Err(e) = core.device_register_memory(id, range) {
                    let _ = core.device_destroy(id);
                    return Err(e);
                }
            }
            Ok(id)
        })??;
        Ok(Device { inner: Arc::new(Inner { runtime, id, driver, holding: Arc::default() }) })
    }
}

impl Device {
    /// Ids mean something else in another Gmem, so a device must not get there.
    pub(crate) fn check_of(&self, runtime: &Arc<Runtime>) -> Result<(), Error> {
        if Arc::ptr_eq(&self.inner.runtime, runtime) { Ok(()) } else { Err(Error::OtherGmem) }
    }

    /// The id.
    pub fn id(&self) -> DeviceId {
        self.inner.id
    }

    /// The driver's facts.
    pub fn info(&self) -> &DeviceInfo {
        self.inner.driver.info()
    }

    /// The device's memory pools.
    pub fn hnodes(&self) -> Vec<HnodeId> {
        self.inner.runtime.call(|core| core.hnodes_of(self.inner.id)).unwrap_or_default()
    }

    /// The figures of the device's memory pools.
    pub fn memory(&self) -> Vec<HnodeStats> {
        let stats = |core: &Arc<LinuxCore>| core.hnodes_of(self.inner.id).into_iter().filter_map(|h| core.hnode_stats(h)).collect();
        self.inner.runtime.call(stats).unwrap_or_default()
    }

    /// Registers more device memory, which becomes a pool of its own (`gm_dev_register_physmem` of the original). Address spaces that have the device attached use
    /// it from now on.
    ///
    /// # Errors
    /// [`Error::Device`] if the range is empty or reversed, does not lie on multiples of the device's smallest page, overlaps memory that is registered, or is none that the
    /// device has; or if there are as many pools already as there can be.
    pub fn register_memory(&self, range: PhysRange) -> Result<HnodeId, Error> {
        Ok(self.inner.runtime.call(|core| core.device_register_memory(self.inner.id, range))??)
    }

    /// Takes one of the device's memory pools back (`gm_dev_unregister_physmem`). Its id may be given to other memory afterwards.
    ///
    /// # Errors
    /// [`Error::Device`] while a page is in it, while a frame of it is quarantined, or if it is not a pool of this device; for a PEER device, while it is attached.
    pub fn unregister_memory(&self, hnode: HnodeId) -> Result<(), Error> {
        Ok(self.inner.runtime.call(|core| core.device_unregister_memory(self.inner.id, hnode))??)
    }

    /// Makes a context of this device its current one, or none, and tells the driver (`gm_dev_switch`). A launch does it by itself.
    ///
    /// # Errors
    /// [`Error::Device`] with the driver's refusal, upon which the former context stays current, or if the context is another device's; [`Error::OtherGmem`] if it is of
    /// another [`Gmem`].
    pub fn switch(&self, to: Option<&Context>) -> Result<(), Error> {
        to.map_or(Ok(()), |context| context.device().check_of(&self.inner.runtime))?;
        if let Some(context) = to.filter(|context| context.device().id() != self.inner.id) {
            return Err(DeviceCallError::NotAttached(context.space().id()).into());
        }
        Ok(self.inner.runtime.call(|core| core.switch(self.inner.id, to.map(|context| context.space().id())))??)
    }

    /// The address space whose context is the current one.
    pub fn current(&self) -> Option<SpaceId> {
        self.inner.runtime.call(|core| core.current(self.inner.id)).ok()?
    }

    /// Uses at most `limit` bytes of each of the device's memory pools (`max_memsize` of the original), unless it is a PEER device, which manages its memory itself. Pages larger than that cannot be on the device any more
    /// ([`FaultError::PageTooLarge`](gmem_hal::FaultError::PageTooLarge)).
    ///
    /// # Errors
    /// [`Error::Device`] if in one of them more is in use now, or it is smaller; then the limits are what they were.
    pub fn set_memory_limit(&self, limit: ByteLen) -> Result<(), Error> {
        let set = |core: &Arc<LinuxCore>| {
            let mut before = Vec::new();
            for hnode in core.hnodes_of(self.inner.id) {
                match core.hnode_set_limit(hnode, limit) {
                    Ok(old) => before.push((hnode, old)),
                    Err(e) => {
                        // A limit that cannot be lowered again, because more has come into use, or whose pool is gone, stays as it is.
                        for (hnode, old) in before {
                            let _ = core.hnode_set_limit(hnode, old);
                        }
                        return Err(e);
                    }
                }
            }
            Ok(())
        };
        Ok(self.inner.runtime.call(set)??)
    }

    /// Evicts up to `pages` pages from the device, pool by pool and in each the oldest first, and returns how many: fewer only if no more can be evicted.
    pub fn evict(&self, pages: usize) -> usize {
        let evict = |core: &Arc<LinuxCore>| core.hnodes_of(self.inner.id).into_iter().fold(0, |gone, h| gone + core.evict(h, pages - gone));
        self.inner.runtime.call(evict).unwrap_or_default()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Contexts keep the device alive, and address spaces those that could not be detached, so none is left and nothing can be in use.
        let _ = self.runtime.call(|core| core.device_destroy(self.id));
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("id", &self.inner.id).field("name", &self.info().name).finish()
    }
}
